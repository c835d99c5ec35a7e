"""Roles of columns in the training of a network that answers for any part of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from sk_itdiffusion._first._fit.batches import Batches, NoisyRows
from sk_itdiffusion._first._fit.judgement import Judgement
from sk_itdiffusion._first._fit.patterns import Question
from sk_itdiffusion._first._fit.training import DenoisingObjective
from sk_itdiffusion._first._immse.likelihood import Denoiser
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.denoisers.role_levels import RoleLevelDenoiser
from sk_itdiffusion._first.denoisers.roles import RoleDenoiser, distinct_rows, with_roles
from sk_itdiffusion._first.layout import Layout

__all__ = ["RoleObjective", "draw_roles"]

#: Consecutive rows of a batch that have the same roles, as far as their entries are observed.
ROWS_OF_A_PATTERN = 64
#: Shares of patterns in which all columns are targets, or some of which others are missing.  In the
#: others some columns are targets, and the others are given or missing.
SHARE_OF_ALL, SHARE_OF_MARGINALS = 1 / 2, 1 / 4
#: Share of the last kind of patterns in which no column is missing.
SHARE_WITHOUT_MISSING = 1 / 2
#: Kinds of patterns: all columns are targets, some are and no others given, and others are given.
N_KINDS = 3


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
    # Stratified, so that few patterns are of all kinds.
    kind = (torch.randperm(n_patterns, generator=generator) + kind) / n_patterns
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
    partner : Callable[[Question], Denoiser] or None, default=None
        Returns the denoiser of a part of rows with which the network is evaluated on it.
    """

    prepares_rows = True

    def __init__(
        self,
        denoiser: RoleDenoiser | RoleLevelDenoiser,
        layout: Layout,
        generator: Generator,
        offset: float = 0.0,
        loss: str = "mse",
        partner: Callable[[Question], Denoiser] | None = None,
    ) -> None:
        super().__init__(denoiser, layout, offset=offset, loss=loss)
        self.generator = generator
        self.partner = partner
        self.columns = layout.columns_of_points()

    def drawn_roles(self, rows: Tensor) -> NoisyRows:
        """Return the roles of the entries of rows, of which some may be missing."""
        n_patterns = -(-len(rows) // ROWS_OF_A_PATTERN)
        target, given = (
            role.repeat_interleave(ROWS_OF_A_PATTERN, dim=0)[: len(rows)].to(rows.device)
            & ~rows.isnan()
            for role in draw_roles(n_patterns, rows.shape[1], self.generator)
        )
        return {"target": target, "given": given}

    def judged(
        self, batches: Batches, references: Sequence[Callable[[Tensor, Tensor], Tensor]]
    ) -> Batches:
        """Return validation rows with roles, of which kinds are evaluated apart.

        The kinds are whole rows, parts of rows, and parts given others.
        """
        batches = super().judged(batches, references)
        batches = [(rows | self.drawn_roles(rows["x"]), unused) for rows, unused in batches]
        logsnr = torch.cat([rows["logsnr"] for rows, _ in batches])
        self.judgement = Judgement(logsnr, self.offset, N_KINDS)
        for rows, _ in batches:
            rows["kind"] = kind_of(rows)
            if "unexplained" in rows:
                self._explain_parts(rows)
        self.partner = None  # nor do nets that are kept need it
        return batches

    def _explain_parts(self, rows: NoisyRows) -> None:
        """Replace what references leave of the noise of whole rows by that of parts of them."""
        assert self.partner is not None
        is_part = rows["kind"] > 0
        roles = torch.cat([rows["target"], rows["given"]], dim=1)
        first, group = distinct_rows(roles)
        for number, row in enumerate(first.tolist()):
            if not is_part[row]:
                continue
            here = (group == number).nonzero()[:, 0]
            target, given = (rows[role][row].cpu().numpy() for role in ("target", "given"))
            values = np.where(given, rows["x"][here].double().cpu().numpy(), 0.0)
            denoise = self.partner(Question(target, given, values if given.any() else values[:1]))
            place = torch.from_numpy(target[self.columns].nonzero()[0]).to(here.device)
            clean = self.layout.embed(rows["x"][here])[:, place]
            eps, logsnr = rows["eps"][here][:, place], rows["logsnr"][here]
            left = torch.zeros_like(rows["eps"][here])
            left[:, place] = eps - denoise(add_noise(clean, eps, logsnr), logsnr).to(eps)
            rows["unexplained"][here] = left

    @torch.no_grad()
    def with_constants(self, batch: NoisyRows) -> NoisyRows:
        """Return noisy rows with roles, and with all computed that does not depend on weights."""
        rows, logsnr = batch["x"], batch["logsnr"]
        # Those of validation rows are fixed.
        roles = batch if "target" in batch else self.drawn_roles(rows)
        target, given = roles["target"], roles["given"]
        filled = rows.nan_to_num()
        points = self.layout.embed(filled)
        is_noisy = target[:, torch.from_numpy(self.columns).to(rows.device)]
        noisy = torch.where(is_noisy, add_noise(points, batch["eps"], logsnr), points)
        z = with_roles(noisy, target, given, self.columns)
        kept = ("logsnr", "importance", "unexplained", "kind")
        known = {"z": z} | {key: batch[key] for key in kept if key in batch}
        if isinstance(self.denoiser, RoleLevelDenoiser):
            return known | {"x": filled, "eps": batch["eps"]}
        assert isinstance(self.denoiser, RoleDenoiser)
        constants = self.denoiser.constants(z, logsnr)
        missed = is_noisy * (batch["eps"] - constants.pop("baseline"))
        return known | {"missed": missed} | constants

    def forward(self, logsnr: Tensor, importance: Tensor, **rows: Tensor) -> Tensor:
        """Return the bound in nats, shape (B,); see `DenoisingObjective.forward`."""
        network = self.denoiser if self.training else self.averaged
        if not isinstance(network, RoleLevelDenoiser):
            return super().forward(logsnr, importance, **rows)
        unexplained, kind = rows.pop("unexplained", None), rows.pop("kind", None)
        x, z, eps = rows["x"], rows["z"], rows["eps"]
        if self.training and self.loss == "cross_entropy":
            return self.offset - importance * network.information_gain(x, z, eps, logsnr)
        baseline, correction = network.parts(z, logsnr)
        missed = network.target_points(z) * (eps - baseline)
        self.tell_judgement(logsnr, importance, missed, correction, unexplained, kind)
        gain = (correction * (2.0 * missed - correction)).sum(1)
        return self.offset - 0.5 * importance * gain


def kind_of(rows: NoisyRows) -> Tensor:
    """Return the kinds of rows with roles, (B,): whole ones, parts, and parts given others."""
    is_whole = (rows["target"] == ~rows["x"].isnan()).all(1)
    return torch.where(is_whole, 0, torch.where(rows["given"].any(1), 2, 1))
