r"""Latent classes of discrete columns, crossed with normal components of continuous ones.

With :math:`P_c` a latent class of the discrete columns :math:`y`, :math:`N_k` a component of a
Gaussian mixture of the continuous columns :math:`x`, and :math:`\alpha` and :math:`\beta` the
weights of both,

.. math:: p(x, y) \propto \sum_{c, k} \rho_{ck}\, \alpha_c P_c(y)\, \beta_k N_k(x).

What noise, parts of rows and given entries do, they do to the two mixtures by themselves; the
ratios :math:`\rho` stay as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_in_range, check_same, check_shapes
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.buffers import as_float_tensor
from sk_itdiffusion._first.references.classes import LatentClassReference
from sk_itdiffusion._first.references.discrete import DiscreteReference
from sk_itdiffusion._first.references.mixture import (
    GaussianMixtureReference,
    MixtureOfEachPoint,
    normal_parts,
)
from sk_itdiffusion._first.references.parts import checked_columns, chosen_with_rest, other_columns
from sk_itdiffusion._first.references.posteriors import LevelPosterior

__all__ = ["CrossedMixtureReference"]

Array = NDArray[np.float64]


@stored()
class CrossedMixtureReference(DiscreteReference):
    """Mixture of products of a latent class and a normal component, for each pair of both.

    Parameters
    ----------
    classes : LatentClassReference
        Latent classes of discrete columns alone, with their weights.
    continuous : GaussianMixtureReference
        Normal components of the continuous columns, with their weights.
    ratios : array-like of shape (n_classes, n_components)
        Positive numbers: how many times as likely a class and a component are together as if they
        were independent, up to a factor.

    Raises
    ------
    ValueError
        If the classes have continuous columns, or the ratios are of another shape or not positive.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.layout import Layout, Variable, lattice_values
    >>> from sk_itdiffusion.references import (
    ...     CrossedMixtureReference,
    ...     GaussianMixtureReference,
    ...     LatentClassReference,
    ... )
    >>> layout = Layout(0, [Variable(2, lattice_values(2, 0.5, 0.5))])
    >>> classes = LatentClassReference(layout, [0.5, 0.5], [[[0.9, 0.1], [0.2, 0.8]]])
    >>> mixture = GaussianMixtureReference([0.5, 0.5], [[-1.0], [1.0]], [[[1.0]], [[1.0]]])
    >>> reference = CrossedMixtureReference(classes, mixture, [[1.8, 0.2], [0.2, 1.8]])
    >>> row = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    >>> round(reference.log_prob(row).exp().item(), 3)
    0.173
    """

    ratios: Tensor
    continuous: GaussianMixtureReference

    def __init__(
        self,
        classes: LatentClassReference,
        continuous: GaussianMixtureReference,
        ratios: ArrayLike | Tensor,
    ) -> None:
        super().__init__()
        if classes.n_continuous:
            raise ValueError("classes must be of discrete columns alone.")
        numbers = as_float_tensor(ratios, 2, "ratios")
        shape = (classes.n_classes, continuous.n_components)
        if tuple(numbers.shape) != shape or bool((numbers <= 0).any()):
            raise ValueError(f"ratios must be positive numbers of shape {shape}.")
        self.classes = classes
        self.continuous = continuous
        self.layout = Layout(continuous.n_features, classes.layout.variables)
        self.n_features = self.layout.n_points
        self.register_buffer("ratios", numbers)

    @property
    def n_intermediate(self) -> int:
        """Numbers that one evaluation makes; see `Reference.n_intermediate`."""
        return self.classes.n_intermediate + self.continuous.n_intermediate

    @property
    def log_normalizer(self) -> Tensor:
        """Logarithm of the sum over pairs of ratios times both weights, a scalar."""
        of_classes, of_components = self.classes.log_weights, self.continuous.log_weights
        return self._log_sum_of_pairs(of_classes[None], of_components[None])[0]

    def _log_sum_of_pairs(self, of_classes: Tensor, of_components: Tensor) -> Tensor:
        """Return log of the sum over pairs, (B,), of terms (B, n_classes) and (B, n_components).

        No ratio is 0, so that the sum is not below the smallest of them times the largest terms.
        """
        highest = of_classes.amax(1, keepdim=True), of_components.amax(1, keepdim=True)
        first, second = (of_classes - highest[0]).exp(), (of_components - highest[1]).exp()
        total = torch.zeros_like(second)
        # One class after the other, so that a row's sum does not depend on the other rows.
        for share, ratio in zip(first.T, self.ratios.to(second.dtype), strict=True):
            total = total + share[:, None] * (ratio * second)
        return total.sum(1).log() + (highest[0] + highest[1])[:, 0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log-probability times density of rows, (B,); see `Reference.log_prob`."""
        of_classes = self.classes._class_log_prob(x[:, self.n_continuous :])
        of_components = self.continuous.component_log_prob(x[:, : self.n_continuous])
        return self._log_sum_of_pairs(of_classes, of_components) - self.log_normalizer.to(x.dtype)

    # -- parts of rows -------------------------------------------------------------------------

    def marginal(self, columns: Sequence[int]) -> Reference:
        """Return the distribution of some columns; see `Reference.marginal`.

        Of columns of one kind it is a mixture of components, or of classes.
        """
        kept = self._checked_parts(columns)
        if len(kept) == self.n_columns:
            return self
        numbers, variables = self._split(kept)
        classes = self.classes.marginal(variables) if variables else None
        components = self.continuous.marginal(numbers) if numbers else None
        of_classes, of_components = self.classes.log_weights, self.continuous.log_weights
        return self._crossed(classes, components, of_classes, of_components)

    def given(self, columns: Sequence[int], values: ArrayLike) -> Reference:
        """Return the distribution of the other columns; see `Reference.given`.

        Of columns of one kind it is a mixture of components, or of classes.
        """
        known, others, numbers = self._checked_given(columns, values)
        if not known:
            return self
        row = np.full((1, self.n_columns), np.nan)
        row[0, known] = numbers
        of_classes, of_components = (torch.from_numpy(part[:, 0]) for part in self._terms(row))
        left, variables = self._split(others)
        given, codes = self._split(known)
        classes = components = None
        if variables:
            classes = self.classes.given(codes, numbers[len(given) :])
        if left:
            components = self.continuous.given(given, numbers[: len(given)])
        return self._crossed(classes, components, of_classes, of_components)

    def _crossed(
        self,
        classes: Reference | None,
        components: Reference | None,
        of_classes: Tensor,
        of_components: Tensor,
    ) -> Reference:
        """Return what is left of the two mixtures, of which one may be empty.

        The logarithms of the weights, (n_classes,) and (n_components,), are up to a number each.
        """
        if classes is not None and components is not None:
            assert isinstance(classes, LatentClassReference)
            assert isinstance(components, GaussianMixtureReference)
            return CrossedMixtureReference(classes, components, self.ratios)
        of_classes, of_components = (
            part.detach().cpu().double()[None] for part in (of_classes, of_components)
        )
        found = copy.deepcopy(components if classes is None else classes)
        assert isinstance(found, LatentClassReference | GaussianMixtureReference)
        by_pair = self._log_weights_of(classes is None, of_classes, of_components)
        found.log_weights = by_pair[0].log_softmax(0)
        return found

    def _log_weights_of(
        self, components: bool, of_classes: Tensor, of_components: Tensor
    ) -> Tensor:
        """Return log-weights of components or of classes, (B, n), from those of both.

        They are up to a number for each row, which may be so large that ratios would be lost.
        """
        log_ratios = self.ratios.detach().cpu().double().log()
        of_classes = of_classes - of_classes.amax(1, keepdim=True)
        of_components = of_components - of_components.amax(1, keepdim=True)
        if components:
            return of_components + (of_classes[:, :, None] + log_ratios).logsumexp(1)
        return of_classes + (of_components[:, None, :] + log_ratios).logsumexp(2)

    def given_each(self, columns: Sequence[int], values: Array) -> nn.Module:
        """Return the denoiser of other columns, for each point; see `Reference.given_each`."""
        known = checked_columns(columns, self.n_columns)
        if not known:
            return self
        left, variables = self._split(other_columns(known, self.n_columns))
        given, codes = self._split(known)
        rows = np.full((len(values), self.n_columns), np.nan)
        rows[:, known] = values
        of_classes, of_components = (torch.from_numpy(part).T for part in self._terms(rows))
        if not variables:
            weights = self._log_weights_of(True, of_classes, of_components)
            return MixtureOfEachPoint.of_rows(
                self.continuous, rows[:, : self.n_continuous], weights
            )
        classes = self.classes.given_each(codes, values[:, len(given) :])
        if not left:
            found = copy.deepcopy(classes) if classes is self.classes else classes
            weights = self._log_weights_of(False, of_classes, of_components)
            found.log_weights = weights.log_softmax(1)
            return found
        components = self.continuous.given_each(given, values[:, : len(given)])
        return CrossedMixtureReference(
            cast(LatentClassReference, classes),
            cast(GaussianMixtureReference, components),
            self.ratios,
        )

    def _terms(self, rows: Array) -> tuple[Array, Array]:
        """Return logs of weights times densities of observed entries in classes and components.

        The shapes are (n_classes, n_rows) and (n_components, n_rows).
        """
        m = self.n_continuous
        return (
            self.classes._class_log_joint_of_parts(rows[:, m:]),
            self._log_weights_of_components()
            + normal_parts(self.continuous).log_densities(np.ascontiguousarray(rows[:, :m])),
        )

    def _log_weights_of_components(self) -> Array:
        return np.asarray(self.continuous.log_weights.detach().cpu().double().numpy()[:, None])

    def _log_sum_of_terms(self, of_classes: Array, of_components: Array) -> Array:
        """Return what `_log_sum_of_pairs` does, of terms (n_classes, n) and (n_components, n)."""
        terms = (
            torch.from_numpy(np.ascontiguousarray(part.T)) for part in (of_classes, of_components)
        )
        return np.asarray(self._log_sum_of_pairs(*terms).detach().numpy())

    def _log_prob_of_parts(self, rows: Array) -> Array:
        """Return the log-densities of the observed entries of rows."""
        return self._log_sum_of_terms(*self._terms(rows)) - float(self.log_normalizer)

    def _log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return log-densities of given entries of rows, and of the others given these."""
        m = self.n_continuous
        first, of_others = self.classes._class_log_prob_given(rows[:, m:], given[:, m:])
        numbers = normal_parts(self.continuous).log_densities_given(rows[:, :m], given[:, :m])
        second = self._log_weights_of_components() + numbers[0]
        of_given = self._log_sum_of_terms(first, second)
        first, second = first - first.max(axis=0), second - second.max(axis=0)
        both = self._log_sum_of_terms(first + of_others, second + numbers[1])
        alone = self._log_sum_of_terms(first, second)
        return of_given - float(self.log_normalizer), both - alone

    def _completed(self, rows: Array, uniform: Array) -> Array:
        """Return rows with draws instead of missing entries."""
        m = self.n_continuous
        of_classes, of_components = self._terms(rows)
        terms = torch.from_numpy(of_classes.T.copy()), torch.from_numpy(of_components.T.copy())
        of_class = self._log_weights_of(False, *terms).numpy().T
        chosen, rest = chosen_with_rest(uniform[:, 1], of_class)
        log_ratios = self.ratios.detach().cpu().double().log().numpy()
        near = of_components - of_components.max(axis=0)
        component, _ = chosen_with_rest(rest, near + log_ratios[chosen].T)
        found = rows.copy()
        parts = normal_parts(self.continuous)
        found[:, :m] = parts.drawn(rows[:, :m], component, uniform[:, 2 : m + 2])
        found[:, m:] = self.classes._drawn_categories(rows[:, m:], chosen, uniform[:, 2 + m :])
        return found

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> Array:
        """Return random rows, shape (n_samples, n_columns); see `Reference.sample`."""
        terms = self.classes.log_weights[:, None] + self.continuous.log_weights
        share = (terms.cpu().double() + self.ratios.cpu().double().log()).flatten().softmax(0)
        pair = random_state.choice(len(share), size=n_samples, p=share.numpy())
        chosen, component = np.divmod(pair, self.continuous.n_components)
        categories = self.classes._sample_classes(chosen, random_state)
        numbers = self.continuous.sample_components(component, random_state)
        return np.hstack([numbers, categories])

    # -- noise ---------------------------------------------------------------------------------

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        if math.isinf(logsnr):
            return self.log_prob(rows)
        m = self.n_continuous
        of_classes = self.classes._smoothed_class_log_prob(rows[:, m:], eps[:, m:], logsnr)
        of_components = self.continuous.component_log_prob(*self._noisy(rows, eps, logsnr))
        total = self._log_sum_of_pairs(of_classes, of_components)
        return total - self.log_normalizer.to(rows.dtype)

    def continuous_moments(
        self, rows: Tensor, eps: Tensor, logsnr: float, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return their moments, given all columns; see `DiscreteReference.continuous_moments`."""
        level = torch.full((len(rows),), logsnr, dtype=rows.dtype, device=rows.device)
        m = self.n_continuous
        of_classes = self.classes.class_log_joint(z[:, m:], level)
        of_components, _ = self.continuous.noisy_components(z[:, :m], level)
        posterior = self._shares(of_classes, of_components)[1]
        return self.continuous.component_moments(*self._noisy(rows, eps, logsnr), posterior)

    def _shares(self, of_classes: Tensor, of_components: Tensor) -> tuple[Tensor, Tensor]:
        """Return posteriors of classes (B, n_classes) and of components (B, n_components)."""
        first = (of_classes - of_classes.amax(1, keepdim=True)).exp()
        second = (of_components - of_components.amax(1, keepdim=True)).exp()
        ratios = self.ratios.to(first.dtype)
        first, second = first * (second @ ratios.T), second * (first @ ratios)
        return first / first.sum(1, keepdim=True), second / second.sum(1, keepdim=True)

    def posteriors(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, list[LevelPosterior]]:
        """Return the predicted noise and posteriors; see `DiscreteReference.posteriors`."""
        m = self.n_continuous
        of_classes, _, evidence = self.classes._evidence(z[:, m:], logsnr)
        of_components, whitened = self.continuous.noisy_components(z[:, :m], logsnr)
        first, second = self._shares(of_classes, of_components)
        noise = self.continuous.average_noise(second, whitened, logsnr)
        return noise, self.classes._posteriors_of_classes(first, evidence, self.layout)

    def without_wide_components(self) -> Reference:
        """Return the same without them in the mixture; see `Reference.without_wide_components`."""
        narrow = self.continuous.without_wide_components()
        if narrow is self.continuous:
            return self
        ratios = self.ratios[:, : narrow.n_components]
        return CrossedMixtureReference(self.classes, narrow, ratios)

    def extra_repr(self) -> str:
        """Return what `repr` shows.

        Returns
        -------
        str
            The sizes.
        """
        return f"n_classes={self.classes.n_classes}, n_components={self.continuous.n_components}"

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_shapes(self, {"ratios": "ck"})
        check_in_range(self.ratios, np.finfo(np.float64).tiny, np.inf, "ratios of pairs")
        shape = (self.classes.n_classes, self.continuous.n_components)
        check_same(tuple(self.ratios.shape), shape, "there are other classes or components")
        check_same(self.classes.n_continuous, 0, "classes have continuous columns")
        sizes = [self.continuous.n_features, self.n_features]
        check_same(sizes, [self.n_continuous, self.layout.n_points], "the layout is another one")
