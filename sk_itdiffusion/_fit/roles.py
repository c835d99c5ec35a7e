"""Roles of columns in the training of a network that answers for any part of a row."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sk_itdiffusion._fit.batches import NoisyRows
from sk_itdiffusion._fit.training import DenoisingObjective
from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.denoisers.roles import RoleDenoiser, with_roles
from sk_itdiffusion.layout import Layout

__all__ = ["RoleObjective", "draw_roles"]

#: Consecutive rows of a batch that have the same roles, as far as their entries are observed.
ROWS_OF_A_PATTERN = 64
#: Shares of patterns in which all columns are targets, or some of which others are missing.  In the
#: others some columns are targets, and the others are given or missing.
SHARE_OF_ALL, SHARE_OF_MARGINALS = 1 / 3, 1 / 3
#: Share of the last kind of patterns in which no column is missing.
SHARE_WITHOUT_MISSING = 1 / 2


def draw_roles(n_patterns: int, n_columns: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return which columns are targets and which are given, in random patterns.

    Parameters
    ----------
    n_patterns : int
        Number of patterns.
    n_columns : int
        Number of columns.
    generator : Generator
        Source of randomness.

    Returns
    -------
    target, given : Tensor of shape (n_patterns, n_columns), bool
        The roles; each pattern has a target.
    """
    kind, size, share, full = torch.rand(4, n_patterns, generator=generator)
    rank = torch.rand(n_patterns, n_columns, generator=generator).argsort(dim=1)
    chance = torch.rand(n_patterns, n_columns, generator=generator)
    n_targets = 1 + (size * (n_columns - 1)).long()
    is_all = (kind < SHARE_OF_ALL) | (n_columns == 1)
    target = (rank < n_targets[:, None]) | is_all[:, None]
    share = torch.where(full < SHARE_WITHOUT_MISSING, torch.ones_like(share), share)
    has_given = kind >= SHARE_OF_ALL + SHARE_OF_MARGINALS
    return target, ~target & has_given[:, None] & (chance < share[:, None])


class RoleObjective(DenoisingObjective):
    """The bound for random parts of rows: the noise is on the targets only.

    Missing entries (NaN) are neither targets nor given.

    Parameters
    ----------
    denoiser : RoleDenoiser
        The network.
    layout : Layout
        Where the columns of the rows are in the points.
    generator : Generator
        Source of the roles.
    offset : float, default=0.0
        Mean negative log-likelihood of the reference, in nats.
    """

    prepares_rows = True

    def __init__(
        self,
        denoiser: RoleDenoiser,
        layout: Layout,
        generator: Generator,
        offset: float = 0.0,
    ) -> None:
        super().__init__(denoiser, layout, offset=offset)
        self.generator = generator

    @torch.no_grad()
    def with_constants(self, batch: NoisyRows) -> NoisyRows:
        """Return noisy rows with roles, and with all computed that does not depend on weights."""
        assert isinstance(self.denoiser, RoleDenoiser)
        points, logsnr = batch["x"], batch["logsnr"]
        observed = ~points.isnan()
        n_patterns = -(-len(points) // ROWS_OF_A_PATTERN)
        target, given = (
            role.repeat_interleave(ROWS_OF_A_PATTERN, dim=0)[: len(points)].to(points.device)
            & observed
            for role in draw_roles(n_patterns, points.shape[1], self.generator)
        )
        noisy = torch.where(target, add_noise(points, batch["eps"], logsnr), points)
        z = with_roles(noisy, target, given)
        known = {"z": z, "logsnr": logsnr, "importance": batch["importance"]}
        constants = self.denoiser.constants(z, logsnr)
        return known | {"missed": batch["eps"] - constants.pop("baseline")} | constants
