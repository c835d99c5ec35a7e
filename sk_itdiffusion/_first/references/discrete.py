r"""References for discrete and mixed columns.

`IndependentReference` is the product of smoothed marginals and, for the continuous columns of
mixed tables, of any continuous reference.  `LatentClassReference` is a mixture of such products
(Lazarsfeld's latent class model), whose noised version is a mixture again: with
:math:`r_c(z)` the posterior of the classes,

.. math:: p(k_i \mid z) = \sum_c r_c(z)\, p(k_i \mid z_i, c), \qquad
    p(k_i \mid z_i, c) \propto \pi_{cik}\, p(z_i \mid k).
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sk_itdiffusion._first.channel import noise_from_data, noise_scale, signal_scale
from sk_itdiffusion._first.layout import ONE_HOT_LENGTH, LatticeGroup, Layout, OneHotGroup
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_finite, check_in_range, check_same
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.continuous import PlainReference
from sk_itdiffusion._first.references.gaussian import add_white_noise
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.parts import checked_columns, chosen_by, other_columns
from sk_itdiffusion._first.references.posteriors import (
    DensePosterior,
    LevelPosterior,
    StreamedPosterior,
    is_long,
)

__all__ = ["DiscreteReference", "IndependentReference"]

Array = NDArray[np.float64]


class DiscreteReference(Reference):
    """A reference on rows with discrete columns: it knows the posterior of their categories.

    Points are those of the layout; `log_prob` and `sample` take and return rows, with codes.  Rows
    may have values of discrete columns that are no category, for which they have negative numbers:
    `log_prob` is then that of the other entries.
    """

    layout: Layout
    continuous: Reference | None

    @property
    def n_continuous(self) -> int:
        """Number of continuous columns."""
        return self.layout.n_continuous

    @property
    def n_columns(self) -> int:
        """Number of columns of the rows; see `Reference.n_columns`."""
        return self.layout.n_columns

    def _split(self, columns: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return numbers of continuous columns, and those of variables, among columns."""
        m = self.n_continuous
        return [j for j in columns if j < m], [j - m for j in columns if j >= m]

    def _checked_given(
        self, columns: Sequence[int], values: ArrayLike
    ) -> tuple[list[int], list[int], Array]:
        """Return columns, other columns and values, of which some are codes."""
        found, others, numbers = super()._checked_given(columns, values)
        for j, code in zip(found, numbers, strict=True):
            if j >= self.n_continuous:
                most = self.layout.variables[j - self.n_continuous].n_categories - 1
                if code != np.rint(code) or code > most:
                    raise ValueError(
                        f"the value of column {j} must be the code of a category, at most {most}, "
                        f"got {code}."
                    )
        return found, others, numbers

    def log_posterior(self, z: Tensor, logsnr: Tensor) -> list[Tensor]:
        """Return the log-probabilities of the categories of noisy rows.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations of the points.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        list of Tensor of shape (B, m, K)
            Log-probabilities given z, for the m variables of each group of the layout.
        """
        return [posterior.dense() for posterior in self.posteriors(z, logsnr)[1]]

    @abstractmethod
    def posteriors(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, list[LevelPosterior]]:
        """Return what is known of clean rows given noisy ones.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations of the points.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        noise : Tensor of shape (B, n_continuous)
            Predicted noise of the continuous columns.
        categories : list of LevelPosterior
            Probabilities of the categories, for each group of the layout.
        """

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`."""
        return noise_of_posteriors(z, logsnr, *self.posteriors(z, logsnr))

    @property
    def looks_at_tiles(self) -> bool:
        """What the reference of the continuous columns says; see `Reference.looks_at_tiles`."""
        return self.continuous is not None and self.continuous.looks_at_tiles

    def points_of(self, rows: Tensor) -> Tensor:
        """Return the points of rows with codes; see `Reference.points_of`."""
        return self.layout.embed(rows)

    def noise_moments(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """Return moments of the noise, given noisy rows; see `Reference.noise_moments`."""
        level = torch.full((len(rows),), logsnr, dtype=rows.dtype, device=rows.device)
        points = self.points_of(rows)
        z = signal_scale(level)[:, None] * points + noise_scale(level)[:, None] * eps
        found = []
        if self.continuous is not None:
            found.append(self.continuous_moments(rows, eps, logsnr, z))
        for group, log_p in zip(self.layout.groups, self.log_posterior(z, level), strict=True):
            part, noise = points[:, group.coordinates], eps[:, group.coordinates]
            found.append(
                moments_of_categories(group, log_p.exp(), part, noise, math.exp(0.5 * logsnr))
            )
        means, squares = zip(*found, strict=True)
        return torch.cat(means, dim=1), torch.cat(squares, dim=1)

    @abstractmethod
    def continuous_moments(
        self, rows: Tensor, eps: Tensor, logsnr: float, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the moments of the noise of the continuous columns, given all columns.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; codes in discrete columns.
        eps : Tensor of shape (B, d)
            Noise of the points of the rows.
        logsnr : float
            Finite log-SNR of the noise.
        z : Tensor of shape (B, d)
            Noisy observations of the points.

        Returns
        -------
        mean, square : Tensor of shape (B, n_continuous)
            The two moments of each column.
        """

    def _noisy(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, float]:
        """Return the continuous columns of noisy rows, and the variance of the noise."""
        part, noise = rows[:, : self.n_continuous], eps[:, : self.n_continuous]
        return add_white_noise(part, noise, logsnr)

    def logsnr_range(self, resolution: float) -> tuple[float, float] | None:
        """Return the range of the continuous columns, if any; see `Reference.logsnr_range`."""
        return None if self.continuous is None else self.continuous.logsnr_range(resolution)

    def _check_layout(self, tables: str, n_more: int = 0) -> None:
        """Raise an error if the sizes are not those of the layout.

        For each group there is a buffer whose name begins with ``tables``, and whose shape begins
        with that of the categories of the group.
        """
        layout = self.layout
        n_continuous = 0 if self.continuous is None else self.continuous.n_features
        found = [self.n_features, n_continuous]
        check_same(found, [layout.n_points, layout.n_continuous], "the layout is another one")
        for number, group in enumerate(layout.groups):
            table = getattr(self, f"{tables}_{number}")
            check_same(table.shape[:2], group.allowed.shape, "the categories are others")
            if table.ndim != 2 + n_more or not table.is_floating_point():
                raise ValueError("probabilities of categories have another shape or dtype")


def noise_of_posteriors(
    z: Tensor, logsnr: Tensor, continuous: Tensor, posteriors: Sequence[LevelPosterior]
) -> Tensor:
    """Return the predicted noise (B, d) that belongs to posteriors of the categories."""
    parts = [continuous]
    for posterior in posteriors:
        parts.append(noise_from_data(z[:, posterior.group.coordinates], posterior.mean(), logsnr))
    return torch.cat(parts, dim=1)


@stored()
class IndependentReference(DiscreteReference, PlainReference):
    """Independent discrete columns, times a continuous reference for the continuous ones.

    Parameters
    ----------
    layout : Layout
        Where the columns are.
    marginals : sequence of array-like of shape (n_categories,)
        Positive probabilities of the categories of each discrete variable; each is scaled to sum to
        1.
    continuous : Reference or None, default=None
        Reference for the continuous columns, if there are any.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.layout import Layout, Variable
    >>> from sk_itdiffusion.references import IndependentReference
    >>> layout = Layout(0, [Variable(3), Variable(3)])
    >>> reference = IndependentReference(layout, [[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
    >>> reference.log_prob(torch.tensor([[0.0, 2.0]])).exp().item()
    0.25
    """

    def __init__(
        self,
        layout: Layout,
        marginals: Sequence[ArrayLike],
        continuous: Reference | None = None,
    ) -> None:
        super().__init__()
        if (continuous is None) != (layout.n_continuous == 0):
            raise ValueError("continuous is required if, and only if, there are such columns.")
        if len(marginals) != len(layout.variables):
            raise ValueError(
                f"marginals must have one entry for each of the {len(layout.variables)} discrete "
                f"variables, got {len(marginals)}."
            )
        self.layout = layout
        self.continuous = continuous
        self.n_features = layout.n_points
        for number, group in enumerate(layout.groups):
            prior = np.zeros(tuple(group.allowed.shape))
            for row, j in zip(prior, group.columns, strict=True):
                row[: layout.variables[j].n_categories] = checked_probabilities(
                    marginals[j], layout.variables[j].n_categories, f"marginals[{j}]"
                )
            # The probabilities sum to 1; padded categories have probability 0.
            self.register_buffer(f"log_prior_{number}", torch.from_numpy(prior).log())

    @property
    def n_intermediate(self) -> int:
        """Numbers that one evaluation makes; see `Reference.n_intermediate`."""
        inner = 0 if self.continuous is None else self.continuous.n_intermediate
        return inner + self.layout.n_category_points

    @property
    def log_priors(self) -> list[Tensor]:
        """Log-probabilities of the categories for each group, each of shape (m, K)."""
        return [getattr(self, f"log_prior_{b}") for b in range(len(self.layout.groups))]

    def marginals(self) -> list[Array]:
        """Return the probabilities of the categories.

        Returns
        -------
        list of ndarray of shape (n_categories,)
            Probabilities of each discrete variable's categories.
        """
        found: dict[int, Array] = {}
        for group, log_prior in zip(self.layout.groups, self.log_priors, strict=True):
            for j, row in zip(group.columns, log_prior.exp().cpu().numpy(), strict=True):
                found[j] = row[: self.layout.variables[j].n_categories]
        return [found[j] for j in range(len(found))]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log-probability (times density) of rows, (B,); see `Reference.log_prob`."""
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        if self.continuous is not None:
            total = total + self.continuous.log_prob(x[:, : self.n_continuous])
        for group, log_prior in zip(self.layout.groups, self.log_priors, strict=True):
            codes, observed = group.observed_codes(x, self.n_continuous)
            total = total + (log_prior.gather(1, codes.T).T * observed).sum(1)
        return total

    def marginal(self, columns: Sequence[int]) -> Reference:
        """Return the product of some columns; see `Reference.marginal`.

        Without discrete columns it is that of the continuous reference.
        """
        kept = self._checked_parts(columns)
        if len(kept) == self.n_columns:
            return self
        continuous, _ = self._split(kept)
        part = (
            self.continuous.marginal(continuous)
            if self.continuous is not None and continuous
            else None
        )
        return self._with_continuous(kept, part)

    def given(self, columns: Sequence[int], values: ArrayLike) -> Reference:
        """Return the product of the other columns; see `Reference.given`.

        Without discrete columns it is that of the continuous reference.
        """
        known, others, numbers = self._checked_given(columns, values)
        if not known:
            return self
        continuous, _ = self._split(known)
        part = None
        if self.continuous is not None and len(continuous) < self.n_continuous:
            part = self.continuous.given(continuous, numbers[: len(continuous)])
        return self._with_continuous(others, part)

    def given_each(self, columns: Sequence[int], values: Array) -> nn.Module:
        """Return the product of the other columns, for each point; see `Reference.given_each`."""
        known = checked_columns(columns, self.n_columns)
        continuous, _ = self._split(known)
        part = self.continuous
        if part is not None and continuous:
            is_left = len(continuous) < self.n_continuous
            of_each = part.given_each(continuous, values[:, : len(continuous)]) if is_left else None
            part = cast(Reference | None, of_each)
        return self._with_continuous(other_columns(known, self.n_columns), part)

    def _with_continuous(self, columns: Sequence[int], continuous: Reference | None) -> Reference:
        """Return the product of a continuous reference and the discrete ones among columns."""
        layout, (_, variables) = self.layout.part(columns), self._split(columns)
        if continuous is not None and not variables:
            return continuous
        marginals = self.marginals()
        return IndependentReference(layout, [marginals[j] for j in variables], continuous)

    def _log_prob_of_parts(self, rows: Array) -> Array:
        """Return the log-densities of the observed entries of rows."""
        total = self._log_prob_of_categories(rows)
        if self.continuous is not None:
            part = np.ascontiguousarray(rows[:, : self.n_continuous])
            total = log_likelihoods(self.continuous, part) + total
        return total

    def _log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return log-densities of given entries of rows, and of the others given these."""
        of_given = self._log_prob_of_categories(np.where(given, rows, np.nan))
        of_others = self._log_prob_of_categories(np.where(given, np.nan, rows))
        if self.continuous is not None:
            here = slice(self.n_continuous)
            of_numbers = self.continuous._log_prob_given(rows[:, here], given[:, here])
            of_given, of_others = of_given + of_numbers[0], of_others + of_numbers[1]
        return of_given, of_others

    def _log_prob_of_categories(self, rows: Array) -> Array:
        """Return the log-probabilities of the categories of rows."""
        total = np.zeros(len(rows))
        for j, probabilities in enumerate(self.marginals()):
            codes = rows[:, self.n_continuous + j]
            # NaN is not a category, nor are negative numbers.
            is_known = codes >= 0.0
            total[is_known] += np.log(probabilities)[codes[is_known].astype(np.intp)]
        return total

    def _completed(self, rows: Array, uniform: Array) -> Array:
        """Return rows with draws instead of missing entries."""
        found, m = rows.copy(), self.n_continuous
        if self.continuous is not None:
            parts = (torch.from_numpy(part) for part in (rows[:, :m], uniform[:, : m + 2]))
            found[:, :m] = self.continuous.complete(*parts).numpy()
        for j, probabilities in enumerate(self.marginals()):
            missing = np.isnan(rows[:, m + j])
            numbers = uniform[missing, 2 + m + j]
            found[missing, m + j] = chosen_by(numbers, np.log(probabilities)[:, None])
        return found

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        if math.isinf(logsnr):
            return self.log_prob(rows)
        total = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
        if self.continuous is not None:
            part, noise = rows[:, : self.n_continuous], eps[:, : self.n_continuous]
            total = total + self.continuous.smoothed_log_prob(part, noise, logsnr)
        return total + self.level_log_ratios(rows, eps, logsnr).sum(1)

    def level_log_ratios(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of each noisy discrete variable by itself.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; codes in discrete columns.
        eps : Tensor of shape (B, d)
            Noise of the points of the rows.
        logsnr : float
            Log-SNR of the noise; infinite for none.

        Returns
        -------
        Tensor of shape (B, m)
            Log-densities, relative to those of the noise given the row, in nats; 0 where there is
            not a category.
        """
        layout = self.layout
        found = rows.new_zeros(len(rows), len(layout.variables))
        if math.isinf(logsnr):
            for group, log_prior in zip(layout.groups, self.log_priors, strict=True):
                codes, observed = group.observed_codes(rows, layout.n_continuous)
                found[:, group.columns] = log_prior.gather(1, codes.T).T * observed
            return found
        for number, likelihood, hit, observed in category_likelihoods(layout, rows, eps, logsnr):
            group, log_prior = layout.groups[number], self.log_priors[number]
            found[:, group.columns] = ((log_prior + likelihood).logsumexp(2) - hit) * observed
        return found

    def continuous_moments(
        self, rows: Tensor, eps: Tensor, logsnr: float, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return their moments, for any z; see `DiscreteReference.continuous_moments`."""
        assert self.continuous is not None
        part, noise = rows[:, : self.n_continuous], eps[:, : self.n_continuous]
        return self.continuous.noise_moments(part, noise, logsnr)

    @property
    def is_plain(self) -> bool:
        """Whether the continuous reference is plain, if there is one."""
        return self.continuous is None or isinstance(self.continuous, PlainReference)

    def independent(self) -> IndependentReference:
        """Return the product of all columns; see `PlainReference.independent`."""
        continuous = self._plain_continuous()
        alone = None if continuous is None else continuous.independent()
        return IndependentReference(self.layout, self.marginals(), alone)

    def column_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return each column's own log-density; see `PlainReference.column_log_prob`."""
        parts = []
        continuous = self._plain_continuous()
        if continuous is not None:
            part, noise = rows[:, : self.n_continuous], eps[:, : self.n_continuous]
            parts.append(continuous.column_log_prob(part, noise, logsnr))
        parts.append(self.level_log_ratios(rows, eps, logsnr))
        return torch.cat(parts, dim=1)

    def independence_logsnr(self) -> float | None:
        """Return that of the continuous columns; see `PlainReference.independence_logsnr`."""
        continuous = self._plain_continuous()
        return None if continuous is None else continuous.independence_logsnr()

    def _plain_continuous(self) -> PlainReference | None:
        """Return the continuous reference, if there is one, as a plain one."""
        if self.continuous is None or isinstance(self.continuous, PlainReference):
            return self.continuous
        raise TypeError(
            "The contributions of columns are not available for a "
            f"{type(self.continuous).__name__}."
        )

    def posteriors(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, list[LevelPosterior]]:
        """Return the predicted noise and posteriors; see `DiscreteReference.posteriors`."""
        found: list[LevelPosterior] = []
        for group, log_prior in zip(self.layout.groups, self.log_priors, strict=True):
            part = z[:, group.coordinates]
            if isinstance(group, LatticeGroup) and is_long(group):
                found.append(StreamedPosterior.unchanged(group, log_prior, part, logsnr))
            else:
                joint = log_prior + group.log_likelihood(part, logsnr)
                found.append(DensePosterior(group, joint.log_softmax(2)))
        return self.continuous_noise(z, logsnr), found

    def without_wide_components(self) -> IndependentReference:
        """Return the same without them in the continuous reference.

        See `Reference.without_wide_components`.
        """
        continuous = self.continuous
        narrow = None if continuous is None else continuous.without_wide_components()
        if narrow is continuous:
            return self
        kept = copy.deepcopy(self)
        kept.continuous = narrow
        return kept

    def continuous_noise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise of the continuous columns.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations of the points.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, n_continuous)
            The predicted noise.
        """
        part = z[:, : self.n_continuous]
        return part if self.continuous is None else self.continuous.denoise(part, logsnr)

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> Array:
        """Return random rows, shape (n_samples, n_columns); see `Reference.sample`."""
        columns = [
            random_state.choice(len(p), size=n_samples, p=p / p.sum()) for p in self.marginals()
        ]
        rows = np.empty((n_samples, self.layout.n_columns))
        rows[:, self.n_continuous :] = np.column_stack(columns)
        if self.continuous is not None:
            rows[:, : self.n_continuous] = self.continuous.sample(n_samples, random_state)
        return rows

    def extra_repr(self) -> str:
        """Return what `repr` shows.

        Returns
        -------
        str
            The sizes.
        """
        return f"n_variables={len(self.layout.variables)}"

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        self._check_layout("log_prior")
        for number, group in enumerate(self.layout.groups):
            log_prior = getattr(self, f"log_prior_{number}")
            check_in_range(log_prior, -np.inf, 1e-6, "log-probabilities of categories")
            check_finite(log_prior[group.allowed], "log-probabilities of categories")


def checked_probabilities(values: ArrayLike, n_categories: int, name: str) -> Array:
    """Return positive numbers scaled to sum to 1, or raise an error that names the parameter."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (n_categories,) or not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"{name} must be {n_categories} positive, finite numbers.")
    return np.asarray(array / array.sum())


def category_likelihoods(
    layout: Layout, rows: Tensor, eps: Tensor, logsnr: float
) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Return number, log p(z | k), log p(z | x), and which x are categories, of each group.

    The shapes are (B, m, K), (B, m) and (B, m).
    """
    level = torch.full((len(rows),), logsnr, dtype=rows.dtype, device=rows.device)
    signal, noise = signal_scale(level)[:, None], noise_scale(level)[:, None]
    found = []
    for number, group in enumerate(layout.groups):
        codes, observed = group.observed_codes(rows, layout.n_continuous)
        points = group.embed(codes, rows.dtype)
        z = signal * points + noise * eps[:, group.coordinates]
        likelihood = group.log_likelihood(z, level)
        hit = likelihood.gather(2, codes[:, :, None])[:, :, 0]
        found.append((number, likelihood.masked_fill(~group.allowed, -torch.inf), hit, observed))
    return found


def moments_of_categories(
    group: LatticeGroup | OneHotGroup, probability: Tensor, points: Tensor, eps: Tensor, root: float
) -> tuple[Tensor, Tensor]:
    """Return moments of the noise under categories of given probabilities (B, m, K).

    The root is that of the signal-to-noise ratio.
    """
    if isinstance(group, LatticeGroup):
        leading = eps[:, :, None] + root * (points[:, :, None] - group.values)
        return (probability * leading).sum(2), (probability * leading.square()).sum(2)
    here = group.flat(probability)
    there, elsewhere = eps + root * (points - ONE_HOT_LENGTH), eps + root * points
    mean = torch.lerp(elsewhere, there, here)
    return mean, torch.lerp(elsewhere.square(), there.square(), here)
