"""Roles of columns in the training of a network that answers for any part of a row."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sk_itdiffusion._fit.batches import NoisyRows
from sk_itdiffusion._fit.training import DenoisingObjective
from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.denoisers.role_levels import RoleLevelDenoiser
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
    denoiser : RoleDenoiser or RoleLevelDenoiser
        The network.
    layout : Layout
        Where the columns of the rows are in the points.
    generator : Generator
        Source of the roles.
    offset : float, default=0.0
        Mean negative log-likelihood of the reference, in nats.
    loss : {"mse", "cross_entropy"}, default="mse"
        See `DenoisingObjective`.
    """

    prepares_rows = True

    def __init__(
        self,
        denoiser: RoleDenoiser | RoleLevelDenoiser,
        layout: Layout,
        generator: Generator,
        offset: float = 0.0,
        loss: str = "mse",
    ) -> None:
        super().__init__(denoiser, layout, offset=offset, loss=loss)
        self.generator = generator
        self.columns = layout.columns_of_points()

    @torch.no_grad()
    def with_constants(self, batch: NoisyRows) -> NoisyRows:
        """Return noisy rows with roles, and with all computed that does not depend on weights."""
        rows, logsnr = batch["x"], batch["logsnr"]
        observed = ~rows.isnan()
        n_patterns = -(-len(rows) // ROWS_OF_A_PATTERN)
        target, given = (
            role.repeat_interleave(ROWS_OF_A_PATTERN, dim=0)[: len(rows)].to(rows.device) & observed
            for role in draw_roles(n_patterns, rows.shape[1], self.generator)
        )
        filled = rows.nan_to_num()
        points = self.layout.embed(filled)
        is_noisy = target[:, torch.from_numpy(self.columns).to(rows.device)]
        noisy = torch.where(is_noisy, add_noise(points, batch["eps"], logsnr), points)
        z = with_roles(noisy, target, given, self.columns)
        known = {"z": z, "logsnr": logsnr, "importance": batch["importance"]}
        if isinstance(self.denoiser, RoleLevelDenoiser):
            return known | {"x": filled, "eps": batch["eps"]}
        assert isinstance(self.denoiser, RoleDenoiser)
        constants = self.denoiser.constants(z, logsnr)
        return known | {"missed": batch["eps"] - constants.pop("baseline")} | constants

    def forward(self, logsnr: Tensor, importance: Tensor, **rows: Tensor) -> Tensor:
        """Return the bound in nats, shape (B,); see `DenoisingObjective.forward`."""
        network = self.denoiser if self.training else self.averaged
        if not isinstance(network, RoleLevelDenoiser):
            return super().forward(logsnr, importance, **rows)
        x, z, eps = rows["x"], rows["z"], rows["eps"]
        if self.training and self.loss == "cross_entropy":
            return self.offset - importance * network.information_gain(x, z, eps, logsnr)
        baseline, correction = network.parts(z, logsnr)
        gain = (correction * (2.0 * (eps - baseline) - correction)).sum(1)
        return self.offset - 0.5 * importance * gain
