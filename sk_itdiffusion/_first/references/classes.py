"""The latent class reference: a mixture of products of independent columns."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_finite,
    check_in_range,
    check_same,
    check_shapes,
)
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.discrete import (
    DiscreteReference,
    category_likelihoods,
    checked_probabilities,
)
from sk_itdiffusion._first.references.mixture import (
    GaussianMixtureReference,
    MixtureOfEachPoint,
    mixture_given,
    normal_parts,
)
from sk_itdiffusion._first.references.parts import (
    checked_columns,
    chosen_by,
    log_sum,
    log_sum_given,
    other_columns,
)
from sk_itdiffusion._first.references.posteriors import (
    DensePosterior,
    LevelPosterior,
)

__all__ = ["LatentClassReference"]

Array = NDArray[np.float64]


@stored()
class LatentClassReference(DiscreteReference):
    """Mixture of products: discrete columns are independent within each class.

    Parameters
    ----------
    layout : Layout
        Where the columns are.
    weights : array-like of shape (n_classes,)
        Positive weights; scaled to sum to 1.
    probabilities : sequence of array-like of shape (n_classes, n_categories)
        Positive probabilities of the categories, for each discrete variable.
    continuous : GaussianMixtureReference or None, default=None
        Normal distributions of the continuous columns in the classes; its weights are ignored.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.layout import Layout, Variable, lattice_values
    >>> from sk_itdiffusion.references import LatentClassReference
    >>> layout = Layout(0, [Variable(2, lattice_values(2, 0.5, 0.5))] * 2)
    >>> probabilities = [[[0.9, 0.1], [0.2, 0.8]]] * 2
    >>> reference = LatentClassReference(layout, [0.5, 0.5], probabilities)
    >>> round(reference.log_prob(torch.zeros(1, 2, dtype=torch.float64)).exp().item(), 4)
    0.425
    """

    log_weights: Tensor
    continuous: GaussianMixtureReference | None

    def __init__(
        self,
        layout: Layout,
        weights: ArrayLike,
        probabilities: Sequence[ArrayLike],
        continuous: GaussianMixtureReference | None = None,
    ) -> None:
        super().__init__()
        if (continuous is None) != (layout.n_continuous == 0):
            raise ValueError("continuous is required if, and only if, there are such columns.")
        if len(probabilities) != len(layout.variables):
            raise ValueError(
                f"probabilities must have one entry for each of the {len(layout.variables)} "
                f"discrete variables, got {len(probabilities)}."
            )
        proportions = checked_probabilities(weights, len(np.asarray(weights)), "weights")
        self.layout = layout
        self.n_features = layout.n_points
        self.register_buffer("log_weights", torch.from_numpy(np.log(proportions)))
        self.continuous = continuous
        for number, group in enumerate(layout.groups):
            table = np.zeros((group.n_variables, group.n_categories, len(proportions)))
            for row, j in zip(table, group.columns, strict=True):
                n_categories = layout.variables[j].n_categories
                row[:n_categories] = np.array(
                    [
                        checked_probabilities(p, n_categories, f"probabilities[{j}]")
                        for p in np.asarray(probabilities[j])
                    ]
                ).T
            self.register_buffer(f"table_{number}", torch.from_numpy(table))

    @property
    def tables(self) -> list[Tensor]:
        """Probabilities of the categories in the classes for each group, each (m, K, n_classes)."""
        return [getattr(self, f"table_{b}") for b in range(len(self.layout.groups))]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.log_weights.shape[-1]

    @property
    def n_intermediate(self) -> int:
        """Numbers that one evaluation makes; see `Reference.n_intermediate`."""
        inner = 0 if self.continuous is None else self.continuous.n_intermediate
        return inner + self.n_classes * len(self.layout.variables) + self.layout.n_category_points

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log-probability (times density) of rows, (B,); see `Reference.log_prob`."""
        return self._class_log_prob(x).logsumexp(1)

    def _class_log_prob(self, x: Tensor) -> Tensor:
        """Return logs of the classes' weights times their probabilities of rows, (B, n_classes)."""
        joint = self.log_weights.to(x.dtype).expand(len(x), -1)
        if self.continuous is not None:
            density = self.continuous.component_log_prob(x[:, : self.n_continuous])
            joint = joint + density - self.continuous.log_weights
        for group, table in zip(self.layout.groups, self.tables, strict=True):
            codes, observed = group.observed_codes(x, self.n_continuous)
            index = codes + group.n_categories * torch.arange(group.n_variables, device=x.device)
            log_table = nn.functional.pad(table.flatten(0, 1).log(), (0, 0, 0, 1))
            index = index.masked_fill(~observed, len(log_table) - 1)  # a row of zeros
            joint = joint + nn.functional.embedding_bag(index, log_table, mode="sum")
        return joint

    def marginal(self, columns: Sequence[int]) -> Reference:
        """Return the classes of some columns; see `Reference.marginal`.

        Without discrete columns it is a mixture of normal distributions.
        """
        kept = self._checked_parts(columns)
        if len(kept) == self.n_columns:
            return self
        continuous, _ = self._split(kept)
        part = None
        if self.continuous is not None and continuous:
            part = self.continuous.marginal(continuous)
        return self._with_weights(kept, self.log_weights, part)

    def given(self, columns: Sequence[int], values: ArrayLike) -> Reference:
        """Return the classes of the other columns; see `Reference.given`.

        Without discrete columns it is a mixture of normal distributions.
        """
        known, others, numbers = self._checked_given(columns, values)
        if not known:
            return self
        row = np.full((1, self.n_columns), np.nan)
        row[0, known] = numbers
        log_weights = torch.from_numpy(self._class_log_joint_of_parts(row)[:, 0])
        continuous, _ = self._split(known)
        unknown, _ = self._split(others)
        part = self.continuous if unknown else None
        if part is not None and continuous:
            values = numbers[: len(continuous)]
            part = mixture_given(part, continuous, unknown, values, log_weights)
        return self._with_weights(others, log_weights, part)

    def given_each(self, columns: Sequence[int], values: Array) -> nn.Module:
        """Return the classes of the other columns, for each point; see `Reference.given_each`."""
        known = checked_columns(columns, self.n_columns)
        if not known:
            return self
        others = other_columns(known, self.n_columns)
        unknown, variables = self._split(others)
        rows = np.full((len(values), self.n_columns), np.nan)
        rows[:, known] = values
        log_weights = torch.from_numpy(self._class_log_joint_of_parts(rows)).T
        part = None
        if self.continuous is not None and unknown:
            # Classes have one weight, be it of all their columns or of their continuous ones.
            own = torch.zeros_like(log_weights) if variables else log_weights
            part = MixtureOfEachPoint.of_rows(self.continuous, rows[:, : self.n_continuous], own)
            if not variables:
                return part
        found = self._with_weights(others, self.log_weights, part)
        found.log_weights = log_weights.log_softmax(1)
        return found

    def _with_weights(
        self,
        columns: Sequence[int],
        log_weights: Tensor,
        continuous: GaussianMixtureReference | None,
    ) -> Reference:
        """Return the classes of some columns with other weights, whose sum may not be 1."""
        layout, (_, variables) = self.layout.part(columns), self._split(columns)
        normalised = log_weights.detach().cpu().double().log_softmax(0)
        if continuous is not None and not variables:
            found = copy.deepcopy(continuous)
            found.log_weights = normalised
            return found
        tables = self._tables_of_variables()
        equal = np.ones(self.n_classes)
        classes = LatentClassReference(layout, equal, [tables[j] for j in variables], continuous)
        classes.log_weights = normalised
        return classes

    def _tables_of_variables(self) -> list[Array]:
        """Return the probabilities (n_classes, n_categories) of each variable."""
        found: dict[int, Array] = {}
        for group, table in zip(self.layout.groups, self.tables, strict=True):
            for j, part in zip(group.columns, table.cpu().double().numpy(), strict=True):
                found[j] = part[: self.layout.variables[j].n_categories].T
        return [found[j] for j in range(len(found))]

    def _class_log_joint_of_parts(self, rows: Array) -> Array:
        """Return log of weight times density of observed entries, (n_classes, n_rows)."""
        joint = self._log_weights() + self._log_prob_of_categories(rows)
        if self.continuous is not None:
            joint += normal_parts(self.continuous).log_densities(rows[:, : self.n_continuous])
        return np.asarray(joint)

    def _log_weights(self) -> Array:
        """Return the logarithms of the weights, (n_classes, 1)."""
        return np.asarray(self.log_weights.detach().cpu().double().numpy()[:, None])

    def _log_prob_of_categories(self, rows: Array) -> Array:
        """Return the classes' log-probabilities of the categories of rows, (n_classes, n_rows)."""
        total = np.zeros((self.n_classes, len(rows)))
        for j, table in enumerate(self._tables_of_variables()):
            codes = rows[:, self.n_continuous + j]
            # NaN is not a category, nor are negative numbers.
            is_known = codes >= 0.0
            total[:, is_known] += np.log(table)[:, codes[is_known].astype(np.intp)]
        return total

    def _log_prob_of_parts(self, rows: Array) -> Array:
        """Return the log-densities of the observed entries of rows."""
        return log_sum(self._class_log_joint_of_parts(rows))

    def _log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return log-densities of given entries of rows, and of the others given these."""
        return log_sum_given(*self._class_log_prob_given(rows, given))

    def _class_log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return logs of weights times densities of given entries, and densities of the others.

        Both have shape (n_classes, n_rows); the latter are given the former.
        """
        of_given = self._log_weights() + self._log_prob_of_categories(np.where(given, rows, np.nan))
        of_others = self._log_prob_of_categories(np.where(given, np.nan, rows))
        if self.continuous is not None:
            here = slice(self.n_continuous)
            parts = normal_parts(self.continuous)
            more_given, more_others = parts.log_densities_given(rows[:, here], given[:, here])
            of_given, of_others = of_given + more_given, of_others + more_others
        return of_given, of_others

    def _completed(self, rows: Array, uniform: Array) -> Array:
        """Return rows with draws instead of missing entries."""
        found, m = rows.copy(), self.n_continuous
        chosen = chosen_by(uniform[:, 1], self._class_log_joint_of_parts(rows))
        if self.continuous is not None:
            parts = normal_parts(self.continuous)
            found[:, :m] = parts.drawn(rows[:, :m], chosen, uniform[:, 2 : m + 2])
        found[:, m:] = self._drawn_categories(rows[:, m:], chosen, uniform[:, 2 + m :])
        return found

    def _drawn_categories(self, codes: Array, chosen: NDArray[np.intp], uniform: Array) -> Array:
        """Return codes, missing ones drawn from the chosen classes by numbers in (0, 1)."""
        found = codes.copy()
        for j, table in enumerate(self._tables_of_variables()):
            missing = np.isnan(codes[:, j])
            log_table = np.log(table)[chosen[missing]].T
            found[missing, j] = chosen_by(uniform[missing, j], log_table)
        return found

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        if math.isinf(logsnr):
            return self.log_prob(rows)
        return self._smoothed_class_log_prob(rows, eps, logsnr).logsumexp(1)

    def _smoothed_class_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return what `_class_log_prob` does of noisy rows, at a finite log-SNR."""
        joint = self.log_weights.to(rows.dtype).expand(len(rows), -1)
        if self.continuous is not None:
            density = self.continuous.component_log_prob(*self._noisy(rows, eps, logsnr))
            joint = joint + density - self.continuous.log_weights
        for number, likelihood, hit, observed in category_likelihoods(
            self.layout, rows, eps, logsnr
        ):
            highest = likelihood.amax(2, keepdim=True)
            scaled = (likelihood - highest).exp().transpose(0, 1)
            by_class = torch.bmm(scaled, self.tables[number])  # (m, B, C)
            log_ratio = by_class.log() + (highest[:, :, 0] - hit).T[:, :, None]
            joint = joint + (log_ratio * observed.T[:, :, None]).sum(0)
        return joint

    def continuous_moments(
        self, rows: Tensor, eps: Tensor, logsnr: float, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return their moments in the classes; see `DiscreteReference.continuous_moments`."""
        assert self.continuous is not None
        level = torch.full((len(rows),), logsnr, dtype=rows.dtype, device=rows.device)
        posterior = self.class_log_joint(z, level).softmax(1)
        return self.continuous.component_moments(*self._noisy(rows, eps, logsnr), posterior)

    def class_log_joint(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the logarithms of the classes' weights times their densities of noisy rows.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations of the points.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, n_classes)
            Logarithms, up to a constant of each row.
        """
        return self._evidence(z, logsnr)[0]

    def _evidence(
        self, z: Tensor, logsnr: Tensor
    ) -> tuple[Tensor, Tensor | None, list[tuple[Tensor, Tensor]]]:
        """Return the joint of the classes, whitened residuals, and what each group tells.

        Of a group these are the likelihoods of categories (m, B, K) and of classes (m, B, C).
        """
        joint = self.log_weights.to(z.dtype).expand(len(z), -1)
        whitened = None
        if self.continuous is not None:
            density, whitened = self.continuous.noisy_components(z[:, : self.n_continuous], logsnr)
            joint = joint + density - self.continuous.log_weights
        evidence = []
        for group, table in zip(self.layout.groups, self.tables, strict=True):
            likelihood = group.log_likelihood(z[:, group.coordinates], logsnr)
            likelihood = likelihood.masked_fill(~group.allowed, -torch.inf)
            likelihood = (likelihood - likelihood.amax(2, keepdim=True)).exp().transpose(0, 1)
            likelihood = without_denormals(likelihood)
            by_class = torch.bmm(likelihood, table)  # (m, B, C)
            joint = joint + by_class.log().sum(0)
            evidence.append((likelihood, by_class))
        return joint, whitened, evidence

    def posteriors(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, list[LevelPosterior]]:
        """Return the predicted noise and posteriors; see `DiscreteReference.posteriors`."""
        joint, whitened, evidence = self._evidence(z, logsnr)
        posterior = joint.softmax(1)
        categories = self._posteriors_of_classes(posterior, evidence, self.layout)
        if self.continuous is None or whitened is None:
            return z[:, :0], categories
        posterior = without_denormals(posterior)
        return self.continuous.average_noise(posterior, whitened, logsnr), categories

    def _posteriors_of_classes(
        self, posterior: Tensor, evidence: Sequence[tuple[Tensor, Tensor]], layout: Layout
    ) -> list[LevelPosterior]:
        """Return what is known of the categories.

        Parameters
        ----------
        posterior : Tensor of shape (B, n_classes)
            Probabilities of the classes.
        evidence : sequence of (Tensor, Tensor)
            What `_evidence` says of the groups.
        layout : Layout
            Where these variables are; other columns may be before them.

        Returns
        -------
        list of LevelPosterior
            Probabilities of the categories, for each group of the layout.
        """
        posterior = without_denormals(posterior)
        return [
            # The tiny number keeps the logarithm finite where float underflows.
            DensePosterior(
                group,
                (likelihood * torch.bmm(posterior / by_class, table.transpose(1, 2)))
                .transpose(0, 1)
                .add(torch.finfo(posterior.dtype).tiny)
                .log(),
            )
            for group, (likelihood, by_class), table in zip(
                layout.groups, evidence, self.tables, strict=True
            )
        ]

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> Array:
        """Return random rows, shape (n_samples, n_columns); see `Reference.sample`."""
        weights = self.log_weights.exp().cpu().numpy()
        chosen = random_state.choice(len(weights), size=n_samples, p=weights / weights.sum())
        return self._sample_classes(chosen, random_state)

    def _sample_classes(
        self, chosen: NDArray[np.intp], random_state: np.random.RandomState
    ) -> Array:
        """Return one random row of each of the chosen classes, (n_samples, n_columns)."""
        n_samples = len(chosen)
        rows = np.empty((n_samples, self.layout.n_columns))
        for group, table in zip(self.layout.groups, self.tables, strict=True):
            cumulative = table.cumsum(1).cpu().numpy()
            for i, j in enumerate(group.columns):
                below = cumulative[i][:-1, chosen] < random_state.uniform(size=n_samples)
                rows[:, self.n_continuous + j] = below.sum(axis=0)
        if self.continuous is not None:
            rows[:, : self.n_continuous] = self.continuous.sample_components(chosen, random_state)
        return rows

    def extra_repr(self) -> str:
        """Return what `repr` shows.

        Returns
        -------
        str
            The sizes.
        """
        return f"n_classes={self.n_classes}, n_variables={len(self.layout.variables)}"

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        self._check_layout("table", n_more=1)
        for number in range(len(self.layout.groups)):
            name = f"table_{number}"
            check_shapes(self, {"log_weights": "k", name: "mlk"})
            check_in_range(getattr(self, name), 0.0, 1.0 + 1e-6, "probabilities of categories")
        check_finite(self.log_weights, "log-weights of classes")
        if self.continuous is not None:
            n_classes = len(self.continuous.log_weights)
            check_same(n_classes, self.n_classes, "there are other classes")


def without_denormals(values: Tensor) -> Tensor:
    """Return non-negative numbers, those below the normal range as 0.

    Products with such numbers, which far classes have, take many times longer.
    """
    return torch.where(values < torch.finfo(values.dtype).tiny, 0.0, values)
