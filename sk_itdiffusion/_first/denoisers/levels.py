r"""Denoiser for rows with discrete columns.

The network corrects the posterior of the categories that a reference gives,

.. math:: p(x_i = k \mid z) = \mathrm{softmax}_k\left(
    \log p_\mathrm{ref}(x_i = k \mid z) + e^{g(a)} f_{ik}(z, a) \right), \qquad
    \hat x_i = \sum_k p(x_i = k \mid z)\, v_k,

where :math:`f_{ik}` is free for unordered categories and a cubic polynomial of the category for
ordered ones.  Unordered categories with fewer than 5 training rows keep the posterior of the
reference, and the others share what is left: a network would memorise that such categories
do not occur, which costs nothing on average and gives nonsense where one occurs after all.
Continuous columns are corrected as by `PreconditionedDenoiser`.  The last layer starts at zero, so
that an untrained model is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sk_itdiffusion._first._runtime.configured import ConfiguredModule
from sk_itdiffusion._first.denoisers.precondition import (
    LogSNREmbedding,
    check_backbone,
    check_precision,
)
from sk_itdiffusion._first.layout import (
    FINE_LATTICE,
    LatticeGroup,
    Layout,
    OneHotGroup,
    check_same_layout,
)
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_same
from sk_itdiffusion._first.references.discrete import (
    DiscreteReference,
    IndependentReference,
    noise_of_posteriors,
)
from sk_itdiffusion._first.references.posteriors import (
    DEGREE,
    DensePosterior,
    LevelPosterior,
    StreamedPosterior,
    scaled_categories,
)

__all__ = ["LevelDenoiser", "LevelPrediction", "n_category_outputs"]

#: Training rows below which an unordered category keeps the posterior of the reference.
MIN_ROWS_FOR_A_CATEGORY = 5


class HasMean(Protocol):
    """Has a mean point for the variables of a group."""

    @property
    def group(self) -> LatticeGroup | OneHotGroup:
        """The variables."""

    def mean(self) -> Tensor:
        """Return the mean point, (B, n_points)."""


@dataclass(frozen=True)
class LevelPrediction:
    """What reference and model say of noisy rows.

    Attributes
    ----------
    reference_noise, correction : Tensor of shape (B, d)
        Noise predicted by the reference, and what the model adds to it.
    reference, model : list of LevelPosterior
        Posteriors of the categories for each group.
    """

    reference_noise: Tensor
    correction: Tensor
    reference: list[LevelPosterior]
    model: list[LevelPosterior]


def is_periodic(group: LatticeGroup | OneHotGroup) -> bool:
    """Return whether the group's posterior means enter with sines and cosines."""
    return isinstance(group, LatticeGroup) and group.n_categories >= FINE_LATTICE


def n_outputs_of(group: LatticeGroup | OneHotGroup) -> int:
    """Return the numbers that the network gives for one group."""
    if isinstance(group, OneHotGroup):
        return group.n_points
    return group.n_variables * min(DEGREE, group.n_categories - 1)


def n_periodic_inputs(layout: Layout) -> int:
    """Return how many inputs of the network have sines and cosines."""
    return layout.n_continuous + sum(b.n_points for b in layout.groups if is_periodic(b))


def n_category_outputs(layout: Layout) -> int:
    """Return the numbers that the network gives for all discrete variables."""
    return sum(n_outputs_of(group) for group in layout.groups)


@stored()
class LevelDenoiser(ConfiguredModule):
    """Denoiser that corrects a reference's posterior of the categories.

    Parameters
    ----------
    backbone : nn.Module
        Called as ``backbone(inputs, logsnr)``; returns corrections of the continuous columns and
        numbers for each group.
    reference : DiscreteReference
        Reference whose posterior is corrected.
    independent : IndependentReference
        Reference whose posterior means are the network's inputs.
    embedding : LogSNREmbedding
        Features from which the gains are linear.
    counts : sequence of ndarray of shape (n_categories,), or None
        Training rows of the categories of each variable; None if all categories have enough.
    """

    #: Which categories are rare is in buffers.
    _only_initial: ClassVar[tuple[str, ...]] = ("counts",)

    def __init__(
        self,
        backbone: nn.Module,
        reference: DiscreteReference,
        independent: IndependentReference,
        embedding: LogSNREmbedding,
        counts: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.reference = reference
        self.independent = None if reference is independent else independent
        self.layout = reference.layout
        self.embedding = embedding
        self.gain = nn.Parameter(torch.zeros(embedding.n_features, dtype=torch.float32))
        self.category_gain = nn.Parameter(torch.zeros(embedding.n_features, dtype=torch.float32))
        for number, group in enumerate(self.layout.groups):
            if isinstance(group, LatticeGroup):
                self.register_buffer(f"powers_{number}", category_powers(group))
        self.mark_rare_categories(counts)

    def config(self) -> dict[str, Any]:
        """Return what a denoiser of the same shape is made from."""
        own = self.independent
        return super().config() | {"independent": self.reference if own is None else own}

    def mark_rare_categories(self, counts: Sequence[NDArray[np.float64]] | None) -> None:
        """Let categories of few training rows keep the reference's posterior."""
        for number, group in enumerate(self.layout.groups):
            rare = None if counts is None else rare_categories(group, counts)
            # Not in the state: a warm start may have other rare categories.
            self.register_buffer(f"rare_{number}", rare, persistent=False)

    def inputs(self, z: Tensor, posteriors: Sequence[HasMean]) -> Tensor:
        """Return the network's inputs, periodic ones first."""
        periodic, plain = [z[:, : self.layout.n_continuous]], list[Tensor]()
        for posterior in posteriors:
            (periodic if is_periodic(posterior.group) else plain).append(posterior.mean())
        return torch.cat(periodic + plain, dim=1)

    def changed(self, posterior: LevelPosterior, outputs: Tensor, number: int) -> LevelPosterior:
        """Return a group's posterior changed by the network's outputs."""
        group = self.layout.groups[number]
        if isinstance(group, OneHotGroup):
            change = outputs[:, group.gather_index]
        else:
            coefficients = outputs.reshape(len(outputs), group.n_variables, -1)
            if isinstance(posterior, StreamedPosterior):
                return posterior.changed(coefficients)
            powers = getattr(self, f"powers_{number}")
            change = torch.einsum("bmp,mpk->bmk", coefficients, powers)
        log_p = changed_posterior(posterior.dense(), change, getattr(self, f"rare_{number}"))
        return DensePosterior(group, log_p)

    def predict(self, z: Tensor, logsnr: Tensor) -> LevelPrediction:
        """Return what reference and model say of points z (B, d)."""
        continuous, reference = self.reference.posteriors(z, logsnr)
        means = reference if self.independent is None else self.independent.posteriors(z, logsnr)[1]
        return self.corrected(z, logsnr, self.inputs(z, means), continuous, reference)

    def corrected(
        self,
        z: Tensor,
        logsnr: Tensor,
        inputs: Tensor,
        continuous: Tensor,
        reference: list[LevelPosterior],
    ) -> LevelPrediction:
        """Return what reference and model say of points, from the network's inputs.

        ``continuous`` is the noise of the continuous columns, and ``reference`` the posteriors of
        the categories, that the reference predicts.
        """
        features = self.embedding(logsnr)
        outputs = self.backbone(inputs, logsnr)
        n_continuous = self.layout.n_continuous
        spread = (torch.sigmoid(logsnr) * torch.sigmoid(-logsnr)).sqrt()
        scale = spread * torch.exp(features @ self.gain)
        correction = [scale[:, None] * outputs[:, :n_continuous]]
        outputs = torch.exp(features @ self.category_gain)[:, None] * outputs[:, n_continuous:]
        sizes = [n_outputs_of(group) for group in self.layout.groups]
        model = []
        for number, part in enumerate(outputs.split(sizes, dim=1)):
            model.append(self.changed(reference[number], part, number))
            shift = model[-1].mean_less(reference[number])
            correction.append(-torch.exp(0.5 * logsnr)[:, None] * shift)
        noise = noise_of_posteriors(z, logsnr, continuous, reference)
        return LevelPrediction(noise, torch.cat(correction, dim=1), reference, model)

    def parts(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reference's prediction of the noise and the network's correction to it."""
        prediction = self.predict(z, logsnr)
        return prediction.reference_noise, prediction.correction

    def information_gain(self, rows: Tensor, z: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        """Return the gain over the reference, (B,): in log-posterior, or else in error."""
        prediction = self.predict(z, logsnr)
        n_continuous = self.layout.n_continuous
        baseline = prediction.reference_noise[:, :n_continuous]
        correction = prediction.correction[:, :n_continuous]
        gain = 0.5 * (correction * (2.0 * (eps[:, :n_continuous] - baseline) - correction)).sum(1)
        # Near the size of the bound's own weight, so that both kinds of columns count alike.
        weight = 2.0 * torch.sigmoid(logsnr)
        for model, reference in zip(prediction.model, prediction.reference, strict=True):
            codes = model.group.codes(rows, n_continuous)
            surplus = model.log_probability(codes) - reference.log_probability(codes)
            gain = gain + weight * self.total(surplus, model.group, z)
        return gain

    def total(self, surplus: Tensor, group: LatticeGroup | OneHotGroup, z: Tensor) -> Tensor:
        """Return the sums, (B,), of a number (B, m) of the variables of a group."""
        return surplus.sum(1)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise, shape (B, d)."""
        baseline, correction = self.parts(z, logsnr)
        return baseline + correction

    def log_posterior(self, z: Tensor, logsnr: Tensor) -> list[Tensor]:
        """Return log p(category | z) for each group, each of shape (B, m, K)."""
        return [posterior.dense() for posterior in self.predict(z, logsnr).model]

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        layout = self.layout
        n_outputs = layout.n_continuous + n_category_outputs(layout)
        check_backbone(self.backbone, layout.n_points, n_outputs, n_periodic_inputs(layout))
        if self.independent is not None:
            check_same_layout(self.independent.layout, layout)
        check_precision(self)
        self._check_rare_categories()

    def _check_rare_categories(self) -> None:
        """Raise an error if it is not known of each category whether it is rare."""
        for number, group in enumerate(self.layout.groups):
            rare = getattr(self, f"rare_{number}")
            if rare is not None and rare.dtype != torch.bool:
                raise ValueError("it is not known which categories are rare")
            check_same(
                (group.allowed if rare is None else rare).shape,
                group.allowed.shape,
                "other categories",
            )


def rare_categories(
    group: LatticeGroup | OneHotGroup, counts: Sequence[NDArray[np.float64]]
) -> Tensor | None:
    """Return which categories keep the reference's posterior, (m, K), or None if none does."""
    if isinstance(group, LatticeGroup) and group.n_categories > 2:
        return None
    rare = torch.zeros(group.allowed.shape, dtype=torch.bool)
    for row, j in zip(rare, group.columns, strict=True):
        row[: len(counts[j])] = torch.from_numpy(counts[j] < MIN_ROWS_FOR_A_CATEGORY)
    return rare if bool(rare.any()) else None


def changed_posterior(reference: Tensor, change: Tensor, rare: Tensor | None) -> Tensor:
    """Return the log-posterior (B, m, K) changed by a network, save for rare categories (m, K)."""
    if rare is None:
        return (reference + change).log_softmax(2)
    # Where all categories are rare nothing is changed; treating none as rare there avoids NaN.
    settled = rare.all(1, keepdim=True)
    kept = rare & ~settled
    # A finite number instead of minus infinity keeps the gradients finite.
    lowest = -0.5 * torch.finfo(reference.dtype).max
    left = reference.masked_fill(kept, lowest).logsumexp(2, keepdim=True)
    shared = (reference + change).masked_fill(kept, lowest).log_softmax(2) + left
    return torch.where(kept | settled, reference, shared)


def category_powers(group: LatticeGroup) -> Tensor:
    """Return powers 1 to 3 of the categories scaled to [-1, 1], shape (m, degree, K)."""
    category = scaled_categories(group)
    exponents = torch.arange(1, min(DEGREE, group.n_categories - 1) + 1)
    return (category[:, None, :] ** exponents[:, None]).float()
