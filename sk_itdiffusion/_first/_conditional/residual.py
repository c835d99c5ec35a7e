"""The distribution of the standardised residual: a mixture of normal distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, ndtr, ndtri_exp, softmax
from scipy.stats import norm

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references.families.mixture import fit_mixture_by_validation
from sk_itdiffusion._first.references.gaussian import VARIANCE_FLOOR, GaussianReference
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference, as_mixture
from sk_itdiffusion._first.references.mixture_fit import fit_gaussian_mixture, with_wide_components

__all__ = ["NormalMixture", "entropy_of", "fit_residuals"]

Array = NDArray[np.float64]
#: Share of the training rows that, alongside the validation rows, judges numbers of components.
_JUDGING = 3
#: Rows of which mixtures are tried; of fewer there is a single normal distribution.
_MIN_ROWS = 30
#: Standard deviation of the logarithm of the factor before any validation row is seen, and the
#: most that it may be.
_FACTOR, _MAX_LOG_FACTOR = 0.1, 1.0
#: Halvings by which a quantile is found to the last bits.
_HALVINGS = 80
#: Points by which an entropy is a mean.
_POINTS = 4096


@dataclass(frozen=True)
class NormalMixture:
    """One-dimensional mixture of normal distributions.

    Attributes
    ----------
    weight, mean, std : ndarray of shape (n_components,)
        Weights, which sum to 1, means and standard deviations.
    """

    weight: Array
    mean: Array
    std: Array

    @classmethod
    def of_reference(cls, reference: GaussianMixtureReference) -> NormalMixture:
        """Return the distribution of a mixture of one column."""
        weight = softmax(reference.log_weights.double().numpy())
        std = np.sqrt(reference.variances.double().numpy()[:, 0])
        return cls(weight, reference.means.double().numpy()[:, 0], std)

    def cdf(self, u: Array) -> Array:
        """Return the probability of at most u, elementwise."""
        return np.asarray(
            np.sum(ndtr((u[..., None] - self.mean) / self.std) * self.weight, axis=-1)
        )

    def sf(self, u: Array) -> Array:
        """Return the probability of more than u, elementwise, exact in the upper tail."""
        return np.asarray(
            np.sum(ndtr((self.mean - u[..., None]) / self.std) * self.weight, axis=-1)
        )

    def log_density(self, u: Array) -> Array:
        """Return log-densities, elementwise."""
        logs = norm.logpdf(u[..., None], self.mean, self.std) + np.log(self.weight)
        return np.asarray(np.logaddexp.reduce(logs, axis=-1))

    def score(self, u: Array) -> Array:
        """Return the numbers of a standard normal distribution with the same probability below."""
        lower = log_ndtr((u[..., None] - self.mean) / self.std) + np.log(self.weight)
        upper = log_ndtr((self.mean - u[..., None]) / self.std) + np.log(self.weight)
        below, above = (np.logaddexp.reduce(each, axis=-1) for each in (lower, upper))
        return np.asarray(np.where(below < above, ndtri_exp(below), -ndtri_exp(above)))

    def of_score(self, score: Array) -> Array:
        """Return what `score` is of."""
        return self._found(ndtr(score), ndtr(-score))

    def quantile(self, probability: Array) -> Array:
        """Return quantiles, infinite for the probabilities 0 and 1; elementwise."""
        p = np.asarray(probability, dtype=np.float64)
        return self._found(p, 1.0 - p)

    def _found(self, below: Array, above: Array) -> Array:
        """Return the numbers with these probabilities below and above them."""
        low = np.full(below.shape, (self.mean - 40.0 * self.std).min())
        high = np.full(below.shape, (self.mean + 40.0 * self.std).max())
        is_upper = below > 0.5
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            less = np.where(is_upper, self.sf(middle) > above, self.cdf(middle) < below)
            low, high = np.where(less, middle, low), np.where(less, high, middle)
        found = 0.5 * (low + high)
        return np.where(below <= 0.0, -np.inf, np.where(above <= 0.0, np.inf, found))

    def smoothed(self, signal: float, noise: float) -> NormalMixture:
        """Return the distribution of these numbers with normal noise, of these powers."""
        std = np.sqrt(signal * self.std**2 + noise)
        return NormalMixture(self.weight, np.sqrt(signal) * self.mean, std)

    def mirrored(self) -> NormalMixture:
        """Return the distribution of the negative numbers."""
        return NormalMixture(self.weight, -self.mean, self.std)

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        mean = float(self.weight @ self.mean)
        square = float(self.weight @ (self.std**2 + (self.mean - mean) ** 2))
        return mean, float(np.sqrt(square))


def entropy_of(mixture: GaussianMixtureReference) -> float:
    """Return the entropy of a mixture, in nats; of several columns from fixed random points."""
    if mixture.n_features > 1:
        points = mixture.sample(_POINTS, np.random.RandomState(0))
        return -float(log_likelihoods(mixture, points).mean())
    # Midpoints of equal probabilities.
    probability = (np.arange(_POINTS) + 0.5) / _POINTS
    return -float(
        log_likelihoods(
            mixture, NormalMixture.of_reference(mixture).quantile(probability)[:, None]
        ).mean()
    )


def fit_residuals(
    train: WeightedRows, valid: WeightedRows | None, random_state: np.random.RandomState
) -> tuple[GaussianMixtureReference, float]:
    """Return the distribution of standardised residuals, and the factor on those out of fold.

    The number of components is chosen, and has to be better than one normal distribution by more
    than a standard error, on residuals of rows of which no model has seen the target: a third of
    the training rows, which have theirs out of fold, and the validation rows.  These are those of
    the models that are deployed, which have more rows to learn from than the folds had; one factor
    for all residuals makes them likeliest.

    Parameters
    ----------
    train : WeightedRows
        Residuals of the training rows, out of fold, with their units as groups.
    valid : WeightedRows or None
        Residuals of the validation rows, likewise.
    random_state : RandomState
        Source of the starts.

    Returns
    -------
    residual : GaussianMixtureReference
        The distribution, with wide components for rows unlike all others.
    factor : float
        Factor by which residuals of the training rows are as large as those of new ones.
    """
    found = chosen_mixture(train, valid, random_state)
    if valid is None:
        return found, 1.0
    factor = likeliest_factor(found, valid)
    n_columns = train.X.shape[1]
    scaled = found.standardized(np.zeros(n_columns), np.full(n_columns, 1.0 / factor))
    return scaled, factor


def chosen_mixture(
    train: WeightedRows, valid: WeightedRows | None, random_state: np.random.RandomState
) -> GaussianMixtureReference:
    """Return a mixture of as many components as pay, or of one and wide ones."""
    n_columns = train.X.shape[1]
    no_limit = np.full(n_columns, np.inf)
    normal = with_wide_components(
        as_mixture(GaussianReference.fit(train.X, train.weight)), train.X, train.weight, no_limit
    )
    if len(train) < _MIN_ROWS:
        return normal
    assert train.group is not None
    is_judge = train.group % _JUDGING == 0
    if not 0 < np.count_nonzero(is_judge) < len(train):
        return normal
    judges, others = (train.take(np.flatnonzero(part)) for part in (is_judge, ~is_judge))
    if valid is not None:
        judges = pooled(judges, valid)
    chosen, _ = fit_mixture_by_validation(others, judges, VARIANCE_FLOOR, random_state)
    if chosen is None:
        return normal
    n_components = chosen.n_components - chosen.n_wide
    return fit_gaussian_mixture(
        train.X, n_components, random_state, VARIANCE_FLOOR, sample_weight=train.weight
    )


def pooled(first: WeightedRows, second: WeightedRows) -> WeightedRows:
    """Return the rows of two sets, which have groups."""
    assert first.group is not None
    assert second.group is not None
    return WeightedRows(
        np.vstack([first.X, second.X]),
        np.append(first.weight, second.weight),
        group=np.append(first.group, second.group),
    )


def likeliest_factor(mixture: GaussianMixtureReference, rows: WeightedRows) -> float:
    """Return the factor on residuals by which rows are likeliest; few rows draw it to 1."""
    n_columns = rows.X.shape[1]

    def loss(log_factor: float) -> float:
        scaled = log_likelihoods(mixture, rows.X * np.exp(-log_factor)) - n_columns * log_factor
        return 0.5 * (log_factor / _FACTOR) ** 2 - float(rows.weight @ scaled)

    limits = (-_MAX_LOG_FACTOR, _MAX_LOG_FACTOR)
    return float(np.exp(minimize_scalar(loss, bounds=limits, method="bounded").x))
