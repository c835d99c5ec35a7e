"""Denoiser with roles for rows with discrete columns; see `sk_itdiffusion.denoisers.roles`.

The posterior of the categories of independent columns does not depend on what is given, so that
this is what the network corrects, as `LevelDenoiser` does for complete rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._runtime.configured import ConfiguredModule
from sk_itdiffusion._first.denoisers.levels import (
    LevelDenoiser,
    LevelPrediction,
    n_category_outputs,
    n_periodic_inputs,
)
from sk_itdiffusion._first.denoisers.precondition import (
    LogSNREmbedding,
    check_backbone,
    check_precision,
)
from sk_itdiffusion._first.denoisers.roles import conditional_noise, with_roles
from sk_itdiffusion._first.layout import LatticeGroup, Layout, OneHotGroup
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.references.discrete import IndependentReference
from sk_itdiffusion._first.references.gaussian import GaussianReference
from sk_itdiffusion._first.references.posteriors import LevelPosterior

__all__ = ["RoleLevelDenoiser", "n_role_inputs"]


def n_role_inputs(layout: Layout) -> int:
    """Return how many inputs a network with roles has: points, and two flags for each column."""
    return layout.n_points + 2 * layout.n_columns


@stored()
class RoleLevelDenoiser(LevelDenoiser):
    """Denoiser of some columns of a row that are noisy, given others that are not.

    The inputs are points and flags, shape (B, n_points + 2 * n_columns), see `with_roles`; what is
    predicted for columns that are no targets is zero.  Called with noisy points (B, n_points), as
    other denoisers are, all columns are targets.

    Parameters
    ----------
    backbone : nn.Module
        See `LevelDenoiser`; it has two more inputs for each column.
    reference : IndependentReference
        Reference that is corrected, whose continuous columns, if any, are normal.
    embedding : LogSNREmbedding
        Features from which the gains are linear.
    counts : sequence of ndarray of shape (n_categories,), or None
        See `LevelDenoiser`.
    """

    _only_initial: ClassVar[tuple[str, ...]] = ("counts",)
    reference: IndependentReference

    def __init__(
        self,
        backbone: torch.nn.Module,
        reference: IndependentReference,
        embedding: LogSNREmbedding,
        counts: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:
        super().__init__(backbone, reference, reference, embedding, counts)

    def config(self) -> dict[str, Any]:
        """Return what a denoiser of the same shape is made from."""
        return ConfiguredModule.config(self)

    def target_points(self, z: Tensor) -> Tensor:
        """Return which coordinates of inputs are of targets, (B, n_points), as 0 or 1."""
        flags = z[:, self.layout.n_points :]
        columns = torch.from_numpy(self.layout.columns_of_points()).to(z.device)
        return flags[:, : self.layout.n_columns][:, columns]

    def predict(self, z: Tensor, logsnr: Tensor) -> LevelPrediction:
        """Return what reference and model say of points, or of inputs with roles."""
        layout = self.layout
        if z.shape[1] == layout.n_points:
            everywhere = torch.ones_like(z, dtype=torch.bool)[:, :1].expand(-1, layout.n_columns)
            z = with_roles(z, everywhere, ~everywhere, layout.columns_of_points())
        values = z[:, : layout.n_points]
        is_target = self.target_points(z)
        continuous, posteriors = self.reference.posteriors(values, logsnr)
        normal = self.reference.continuous
        if normal is not None:
            assert isinstance(normal, GaussianReference)
            continuous = conditional_noise(normal, continuous_inputs(z, layout), logsnr)
        inputs = self.inputs_with_roles(z, is_target, posteriors)
        found = self.corrected(values, logsnr, inputs, continuous, posteriors)
        return replace(
            found,
            reference_noise=is_target * found.reference_noise,
            correction=is_target * found.correction,
        )

    def inputs_with_roles(
        self, z: Tensor, is_target: Tensor, posteriors: Sequence[LevelPosterior]
    ) -> Tensor:
        """Return the network's inputs: means of targets, points of what is given, and flags."""
        layout = self.layout
        seen = [
            ShownPosterior(each, z[:, each.group.coordinates], is_target[:, each.group.coordinates])
            for each in posteriors
        ]
        return torch.cat([self.inputs(z, seen), z[:, layout.n_points :]], dim=1)

    def total(self, surplus: Tensor, group: LatticeGroup | OneHotGroup, z: Tensor) -> Tensor:
        """Return the sums, (B,), of a number (B, m) of the variables of a group among targets."""
        if z.shape[1] == self.layout.n_points:
            return surplus.sum(1)
        first = self.layout.n_points + self.layout.n_continuous
        return (surplus * z[:, [first + j for j in group.columns]]).sum(1)

    def correction_to(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the network's correction of the targets, (B, n_points), of inputs with roles."""
        return self.predict(z, logsnr).correction

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        layout, reference = self.layout, self.reference
        if not isinstance(reference, IndependentReference) or not isinstance(
            reference.continuous, GaussianReference | None
        ):
            raise ValueError("a network with roles corrects another reference than a plain one")
        n_outputs = layout.n_continuous + n_category_outputs(layout)
        check_backbone(self.backbone, n_role_inputs(layout), n_outputs, n_periodic_inputs(layout))
        check_precision(self)
        self._check_rare_categories()


class ShownPosterior:
    """What a network sees of the variables of a group: means of targets, points of the others."""

    def __init__(self, posterior: LevelPosterior, points: Tensor, is_target: Tensor) -> None:
        self.posterior, self.group = posterior, posterior.group
        self.points, self.is_target = points, is_target

    def mean(self) -> Tensor:
        """Return the points, (B, n_points)."""
        return torch.where(self.is_target > 0, self.posterior.mean(), self.points)


def continuous_inputs(z: Tensor, layout: Layout) -> Tensor:
    """Return the values and flags of the continuous columns of inputs with roles."""
    m, n = layout.n_continuous, layout.n_points
    flags = z[:, n : n + m], z[:, n + layout.n_columns : n + layout.n_columns + m]
    return torch.cat([z[:, :m], *flags], dim=1)
