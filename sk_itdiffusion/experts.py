"""The analytic side of a fit: maps of the columns, references, range of the log-SNR."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sk_itdiffusion.cubature import Keys
from sk_itdiffusion.latent_class import fit_latent_class
from sk_itdiffusion.layout import Layout
from sk_itdiffusion.marginals import (
    MARGINAL_KINDS,
    ColumnMap,
    first_map,
    fit_marginal_map,
    heavy_columns,
)
from sk_itdiffusion.parallel import map_in_workers, single_blas_thread
from sk_itdiffusion.references import (
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LatentClassReference,
    LowRankGaussianReference,
    Reference,
)
from sk_itdiffusion.references.gaussian import VARIANCE_FLOOR, floor_eigenvalues
from sk_itdiffusion.references.kernel_density import fit_kernel_density
from sk_itdiffusion.references.mixture import (
    GaussianMixtureReference,
    as_mixture,
    fit_gaussian_mixture,
)
from sk_itdiffusion.rows import WeightedRows, sums_over_sources
from sk_itdiffusion.space import TableSpace
from sk_itdiffusion.validation import Optimism, choice_optimism

__all__ = [
    "choose_marginal_map",
    "fit_gaussian_by_validation",
    "fit_kernel_density_by_validation",
    "fit_mixture_by_validation",
    "log_likelihoods",
    "logsnr_range",
]

Array = NDArray[np.float64]

#: Rows that the mixtures see at most; more hardly change them.
MOST_ROWS_FOR_MIXTURES = 20_000
#: Rows on which the number of components is searched.
_ROWS_FOR_SEARCH = 10_000
_COMPONENTS = (2, 3, 5, 8, 12, 20, 32, 50)
_COMPONENTS_FOR_MAPS = (6, 20)
_EM_STEPS_FOR_MAPS = 60
_MOST_ROWS_FOR_MAPS = 5_000
_KERNELS_FOR_MAPS = 3_000
_MOST_ROWS_TO_FIT_MAPS = 50_000
_BLOCK_ROWS = 256
_MOST_EM_STEPS = 100
_EM_STEPS_FOR_SEARCH = 40
#: Rows from which covariances of levels are taken.
MOST_ROWS_FOR_SPECTRUM = 2_000
_CLASSES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
MOST_ROWS_FOR_CLASSES = 50_000
#: Entries of the matrix of rows and levels that latent class models are fitted to.
_MOST_INDICATORS = 4 * 10**7
#: Probabilities in a latent class model.
_MOST_CLASS_LEVELS = 10**6
#: Products of rows, levels and classes in one step of expectation-maximisation.
_MOST_CLASS_WORK = 5 * 10**9
#: In nats; information below the least log-SNR that may be left to the control variate.
_LEAST_INFORMATION = 0.005
_ROWS_FOR_A_PARAMETER = 3
#: Numbers in all covariances of a mixture; thousands of columns would take hours and gigabytes.
_MOST_COVARIANCE_ENTRIES = 4 * 10**6
#: Columns up to which a Gaussian has a full covariance, and its rank otherwise.
MOST_COLUMNS_FOR_COVARIANCE = 4_096
MOST_DIRECTIONS = 256
#: Kernels in a density of kernels, and columns beyond which they are hopeless.
_MOST_KERNELS = 10_000
_MOST_COLUMNS_FOR_KERNELS = 50
#: Variance of a kernel, in standardised units, that the highest log-SNR still resolves.
_LEAST_KERNEL_VARIANCE = 1e-7
#: Weights of the diagonal matrix in the covariances to choose from.
_SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class MappedSplit:
    """Training and validation rows of a space.

    Attributes
    ----------
    space : TableSpace
        The space.
    train, valid : WeightedRows
        The rows.
    valid_log_slope : ndarray of shape (n_valid,)
        Log-derivatives of the maps at the validation rows.
    judged : bool, default=True
        Whether validation rows are other rows than those for training.
    optimism : Optimism
        By how much choices that the validation rows have made flatter each of them.
    train_log_slope : ndarray of shape (n_train,) or float, default=0
        Log-derivatives of the maps at the training rows.
    """

    space: TableSpace
    train: WeightedRows
    valid: WeightedRows
    valid_log_slope: Array
    judged: bool = True
    optimism: Optimism = field(default_factory=Optimism)
    train_log_slope: Array | float = 0.0

    @classmethod
    def behind(cls, space: TableSpace, train: WeightedRows, valid: WeightedRows) -> MappedSplit:
        """Return standardised rows behind the maps of a space."""
        mapped, train_log_slope = space.rows(train.X)
        mapped_valid, log_slope = space.rows(valid.X)
        return cls(
            space,
            train.with_values(mapped),
            valid.with_values(mapped_valid),
            log_slope,
            judged=train is not valid,
            train_log_slope=train_log_slope,
        )

    @property
    def n_continuous(self) -> int:
        """Number of continuous columns."""
        return self.space.layout.n_continuous

    @property
    def continuous_train(self) -> WeightedRows:
        """Continuous columns of the training rows."""
        return self.train.columns(self.n_continuous)

    @property
    def continuous_valid(self) -> WeightedRows:
        """Continuous columns of the validation rows."""
        return self.valid.columns(self.n_continuous)


def log_likelihoods(reference: Reference, X: Array) -> Array:
    """Return a reference's log-density of rows, in nats.

    Rows are done in blocks of one fixed shape, so that a row's value does not depend on the other
    rows to the last bit.
    """

    @torch.no_grad()
    def block(start: int) -> Array:
        rows = X[start : start + _BLOCK_ROWS]
        padded = np.pad(rows, ((0, _BLOCK_ROWS - len(rows)), (0, 0)))
        values = reference.log_prob(torch.from_numpy(padded))
        return np.asarray(values.numpy()[: len(rows)])

    blocks = map_in_workers(block, range(0, len(X), _BLOCK_ROWS), "cpu")
    return np.concatenate([np.empty(0), *blocks])


def map_split(
    kind: str, space: TableSpace, train: WeightedRows, valid: WeightedRows
) -> MappedSplit:
    """Return standardised rows behind the map of one kind, fitted to the training rows."""
    sample = _rows_for_maps(space, train)
    before = _first_maps(space, sample)
    marginal_map = fit_marginal_map(kind, sample.X, sample.weight, before=before)
    return MappedSplit.behind(space.behind(marginal_map), train, valid)


def tame_split(
    plain: MappedSplit, space: TableSpace, train: WeightedRows, valid: WeightedRows
) -> MappedSplit:
    """Return rows behind the same kind of map, but columns with heavy tails by their quantiles.

    Validation rows help to tell whether tails are heavy: no mean over them can tell.
    """
    kind = plain.space.marginal_map.kind
    sample, more = (_rows_for_maps(space, rows) for rows in (train, valid))
    X, weight = np.concatenate([sample.X, more.X]), np.append(sample.weight, more.weight)
    heavy = heavy_columns(plain.space.marginal_map, X, weight)
    if kind == "quantile" or not any(heavy):
        return plain
    kind = "quantile" if all(heavy) else kind
    before = _first_maps(space, sample)
    marginal_map = fit_marginal_map(kind, sample.X, sample.weight, heavy, before)
    return MappedSplit.behind(space.behind(marginal_map), train, valid)


def _rows_for_maps(space: TableSpace, rows: WeightedRows) -> WeightedRows:
    """Return the continuous columns of as many rows as maps are fitted to."""
    # Canonical order is random in all but name, so the first rows are a fair sample.
    sample = rows.take(np.arange(min(len(rows), _MOST_ROWS_TO_FIT_MAPS)))
    return sample.columns(space.layout.n_continuous)


def _first_maps(space: TableSpace, rows: WeightedRows) -> list[ColumnMap | None]:
    """Return the maps of columns that are standardised around a bound; None for the others."""
    bounds = space.standardized_bounds()
    return [
        first_map(np.ascontiguousarray(rows.X[:, j]), rows.weight, *map(float, bounds[j]))
        if j in space.anchored
        else None
        for j in range(space.layout.n_continuous)
    ]


def choose_marginal_map(
    kinds: Sequence[str],
    spaces: Sequence[TableSpace],
    train: WeightedRows,
    valid: WeightedRows,
    regularization: float,
    seed: int,
    resolution: float | None = None,
) -> MappedSplit:
    """Return the rows behind the map whose Gaussian or mixture validates best.

    A mixture is a cheap guide: where a map makes the mixture better it makes the network better.
    A map other than plain standardisation must gain more than one standard error.  Where a map
    leaves tails heavy, mean and error say little, and columns are mapped by their quantiles unless
    it gains more than two.

    Parameters
    ----------
    kinds : sequence of str
        Kinds of maps to choose from; the first is preferred.
    spaces : sequence of TableSpace
        Spaces whose continuous columns are mapped, which differ in their bounds only; the others
        must gain more than two standard errors.
    train, valid : WeightedRows
        Standardised rows.
    regularization : float
        Added to the mixture's variances.
    seed : int
        Seed of the mixture.
    resolution : float or None, default=None
        Largest lattice step of a column if kernels may be experts, which are then a guide too; 0
        if there is none.  None without kernels.

    Returns
    -------
    MappedSplit
        The chosen map and the mapped rows.
    """
    if len(kinds) * len(spaces) == 1 or spaces[0].layout.n_continuous == 0:
        return map_split(kinds[0], spaces[0], train, valid)
    groups = [_candidates(kinds, space, train, valid) for space in spaces]
    splits = [split for group in groups for split, _ in group]
    scores = map_in_workers(
        lambda split: _guide_score(split, regularization, seed, resolution), splits, "cpu"
    )
    least = [n_errors for group in groups for _, n_errors in group]

    ends = np.cumsum([0, *map(len, groups)]).tolist()

    def choose(scores: Array, share: Array, source: Keys | None) -> int:
        """Return the number of the best map behind the best space."""

        def best(numbers: Sequence[int], least: Sequence[float]) -> int:
            chosen = numbers[0]
            for number in numbers[1:]:
                mean, error = mean_and_error(scores[number] - scores[chosen], share, source=source)
                if mean > least[number] * error:
                    chosen = number
            return chosen

        winners = [best(range(a, b), least) for a, b in pairwise(ends)]
        return best(winners, [2.0] * len(scores))

    guided, plain = (np.stack(part) for part in zip(*scores, strict=True))
    optimism = Optimism(
        plain=choice_optimism(guided, valid, choose, plain),
        others=choice_optimism(guided, valid, choose),
    )
    return replace(splits[choose(guided, valid.share, valid.unit)], optimism=optimism)


def _candidates(
    kinds: Sequence[str], space: TableSpace, train: WeightedRows, valid: WeightedRows
) -> list[tuple[MappedSplit, float]]:
    """Return rows behind maps, and by how many standard errors each must beat those before it."""
    plain = [map_split(kind, space, train, valid) for kind in kinds]
    tame = [tame_split(split, space, train, valid) for split in plain]
    wild = [split for split in plain if all(split is not other for other in tame)]
    return [(split, 1.0) for split in tame] + [(split, 2.0) for split in wild]


def first_rows(rows: WeightedRows, most: int) -> WeightedRows:
    """Return the first rows, which are a fair sample: canonical order is random in all but name."""
    return rows.take(np.arange(min(len(rows), most)))


def best_beyond_an_error(scores: Array, share: Array, source: Keys | None) -> int:
    """Return the best candidate if it is better than the first by a standard error, or 0."""
    best = int(np.argmax(scores @ share))
    mean, error = mean_and_error(scores[best] - scores[0], share, source=source)
    return best if mean > error else 0


def _guide_score(
    split: MappedSplit, regularization: float, seed: int, resolution: float | None
) -> tuple[Array, Array]:
    """Return the validation rows' log-likelihood under the best of a few quick references.

    Beside it is that under the first of them, a single Gaussian.
    """
    random_state = np.random.RandomState(seed)
    train = first_rows(split.continuous_train, _MOST_ROWS_FOR_MAPS)
    guides: list[Reference] = [GaussianReference.fit(train.X, train.weight)]
    guides += [
        fit_gaussian_mixture(
            train.X, n_components, random_state, regularization, _EM_STEPS_FOR_MAPS, train.weight
        )
        for n_components in _COMPONENTS_FOR_MAPS
        if (train.n_observations or len(train)) >= 10 * n_components
        and is_affordable(n_components, train.X.shape[1])
    ]
    if resolution is not None and train.X.shape[1] <= _MOST_COLUMNS_FOR_KERNELS:
        guides.append(_quick_kernels(split, guides[-1], resolution))
    share = split.valid.share
    valid = split.continuous_valid.X
    scores = [log_likelihoods(guide, valid) + split.valid_log_slope for guide in guides]
    return max(scores, key=lambda score: float(share @ score)), scores[0]


def _quick_kernels(split: MappedSplit, plain: Reference, resolution: float) -> Reference:
    """Return kernels around a few of the training rows."""
    assert isinstance(plain, GaussianReference | GaussianMixtureReference)
    rows = first_rows(split.continuous_train.without_copies(), _KERNELS_FOR_MAPS)
    floor = np.clip(resolution**2 / 12.0, _LEAST_KERNEL_VARIANCE, 1e-2)
    return fit_kernel_density(rows.X, rows.share, as_mixture(plain), floor)


def fit_gaussian_by_validation(
    train: WeightedRows, valid: WeightedRows | None, random_state: np.random.RandomState
) -> Reference:
    """Return a Gaussian of images: the covariance shrunk to its diagonal as validation rows ask.

    Pixels that hardly vary stay narrow so, other than in a covariance shrunk to one variance of
    all columns.  Images of more than 4096 columns get a covariance of low rank.

    Parameters
    ----------
    train : WeightedRows
        Training rows.
    valid : WeightedRows or None
        Validation rows; without them the columns are taken as independent.
    random_state : RandomState
        Source of the decomposition of large images.

    Returns
    -------
    Reference
        The fitted Gaussian.
    """
    n_rows, n_columns = train.X.shape
    if n_columns > MOST_COLUMNS_FOR_COVARIANCE:
        rank = max(1, min(MOST_DIRECTIONS, n_rows // 4, n_columns - 1))
        return LowRankGaussianReference.fit(train.X, rank, random_state, train.weight)
    mean = train.share @ train.X
    covariance = np.atleast_2d(np.cov(train.X.T, ddof=0, aweights=train.weight))
    diagonal = np.diag(np.diag(covariance))

    def shrunk(shrinkage: float) -> Reference:
        mixed = (1.0 - shrinkage) * covariance + shrinkage * diagonal
        return GaussianReference(mean, floor_eigenvalues(mixed))

    if valid is None:
        return shrunk(1.0)

    def scored(shrinkage: float) -> tuple[float, Reference]:
        reference = shrunk(shrinkage)
        return float(valid.share @ log_likelihoods(reference, valid.X)), reference

    best = scored(_SHRINKAGES[0])
    for shrinkage in _SHRINKAGES[1:]:
        candidate = scored(shrinkage)
        if candidate[0] <= best[0]:
            break
        best = candidate
    return best[1]


def is_affordable(n_components: int, n_columns: int) -> bool:
    """Return whether the covariances of a mixture are few enough numbers."""
    return n_components * n_columns**2 <= _MOST_COVARIANCE_ENTRIES


def fit_mixture_by_validation(
    train: WeightedRows,
    valid: WeightedRows,
    regularization: float,
    random_state: np.random.RandomState,
    stop: threading.Event | None = None,
) -> tuple[GaussianMixtureReference | None, Array]:
    """Return the mixture whose number of components validates best, and how that flatters it.

    Numbers are tried in increasing order, with few steps each and at most 10,000 rows, until two in
    a row are no better; then the best is tried once more from another start, since
    expectation-maximisation ends in local optima, and a quarter more than it.  The best must beat
    a single Gaussian by more than one standard error, which guards against choosing among
    over-fitted mixtures by a handful of rows; else there is none.

    Parameters
    ----------
    train, valid : WeightedRows
        Mapped rows.
    regularization : float
        Added to the variances.
    random_state : RandomState
        Source of the starts.
    stop : threading.Event or None, default=None
        Ends the search by a KeyboardInterrupt once it is set.

    Returns
    -------
    mixture : GaussianMixtureReference or None
        The mixture.
    optimism : ndarray of shape (n_valid,)
        By how much the choice flatters each validation row; see `choice_optimism`.
    """
    train = first_rows(train, MOST_ROWS_FOR_MIXTURES)
    few = first_rows(train, _ROWS_FOR_SEARCH)
    share = valid.share
    gaussian = log_likelihoods(GaussianReference.fit(train.X, train.weight), valid.X)
    scores: dict[tuple[int, int, int], Array] = {}

    def fit(
        rows: WeightedRows, n_steps: int, job: tuple[int, int]
    ) -> tuple[float, GaussianMixtureReference]:
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        n_components, seed = job
        mixture = fit_gaussian_mixture(
            rows.X,
            n_components,
            np.random.RandomState(seed),
            regularization,
            n_steps,
            rows.weight,
        )
        likelihoods = log_likelihoods(mixture, valid.X)
        scores[*job, n_steps] = likelihoods
        return float(share @ likelihoods), mixture

    def fit_all(
        numbers: Sequence[int],
        rows: WeightedRows = few,
        n_steps: int = _EM_STEPS_FOR_SEARCH,
    ) -> list[tuple[float, GaussianMixtureReference]]:
        seeds = random_state.randint(2**31 - 1, size=len(numbers))
        jobs = zip(numbers, seeds, strict=True)
        return map_in_workers(partial(fit, rows, n_steps), jobs, "cpu")

    n_rows, n_columns = train.n_observations or len(train), train.X.shape[1]
    possible = [
        k
        for k in _COMPONENTS
        if _ROWS_FOR_A_PARAMETER * k * (n_columns + 1) <= n_rows and is_affordable(k, n_columns)
    ]
    best = search_numbers(possible, fit_all, float(share @ gaussian))
    if best is not None:
        score, mixture, n_best = best
        beside = fit_all([round(1.25 * n_best), n_best], train, _MOST_EM_STEPS)
        mixture = max([(score, mixture), *beside], key=lambda scored: scored[0])[1]
        gain = log_likelihoods(mixture, valid.X) - gaussian
        mean, error = mean_and_error(gain, share, source=valid.unit)
    tried = np.stack([gaussian, *(scores[job] for job in sorted(scores))])
    optimism = choice_optimism(tried, valid, best_beyond_an_error)
    return (mixture if best is not None and mean > error else None), optimism


def fit_kernel_density_by_validation(
    train: WeightedRows,
    valid: WeightedRows,
    plain: GaussianReference | GaussianMixtureReference,
    resolution: float,
    stop: threading.Event | None = None,
) -> KernelDensityReference | None:
    """Return kernels around the training rows, or None if they are no better than none.

    The covariance that the kernels share and the weight of what lies between them are those of
    greatest likelihood of training rows, each without the kernel around itself, by
    expectation-maximisation.  The density must beat the plain one on the validation rows by more
    than one standard error.

    Parameters
    ----------
    train, valid : WeightedRows
        Mapped rows, distinct and in random order.
    plain : GaussianReference or GaussianMixtureReference
        Distribution that stands for what lies far from all rows.
    resolution : float
        Largest lattice step of a column, which kernels shall not resolve; 0 if there is none.
    stop : threading.Event or None, default=None
        Ends the fit by a KeyboardInterrupt once it is set.

    Returns
    -------
    KernelDensityReference or None
        The density; of more than 50 columns there is none.
    """
    rows = first_rows(train.without_copies(), _MOST_KERNELS)
    if rows.X.shape[1] > _MOST_COLUMNS_FOR_KERNELS:
        return None
    density = fit_kernel_density(
        rows.X,
        rows.share,
        as_mixture(plain),
        np.clip(resolution**2 / 12.0, _LEAST_KERNEL_VARIANCE, 1e-2),
        stopped=lambda: stop is not None and stop.is_set(),
    )
    gain = log_likelihoods(density, valid.X) - log_likelihoods(plain, valid.X)
    mean, error = mean_and_error(gain, valid.share, source=valid.unit)
    return density if mean > error else None


Fitted = TypeVar("Fitted", bound=Reference)


def search_numbers(
    numbers: Sequence[int],
    fit_all: Callable[[Sequence[int]], list[tuple[float, Fitted]]],
    least_score: float,
) -> tuple[float, Fitted, int] | None:
    """Return score, reference and number of the best, ending after two in a row that are worse.

    Parameters
    ----------
    numbers : sequence of int
        Increasing numbers of components or classes.
    fit_all : callable
        Returns scores and references of some numbers.
    least_score : float
        Score that has to be exceeded.

    Returns
    -------
    tuple or None
        The best, or None if none exceeds the least score.
    """
    best: tuple[float, Fitted, int] | None = None
    failures = 0
    # Two at a time, whatever the number of workers, so that their number changes no result.
    for pair in (numbers[i : i + 2] for i in range(0, len(numbers), 2)):
        for number, (score, reference) in zip(pair, fit_all(pair), strict=True):
            failures += 1
            if score > (least_score if best is None else best[0]):
                best, failures = (score, reference, number), 0
        if failures >= 2:
            break
    return best


def fit_latent_class_by_validation(
    split: MappedSplit,
    independent: IndependentReference,
    regularization: float,
    random_state: np.random.RandomState,
    stop: threading.Event | None = None,
) -> LatentClassReference | None:
    """Return the latent class model whose number of classes validates best, or None.

    It must be better than the independent reference by more than one standard error.

    Parameters
    ----------
    split : MappedSplit
        Training and validation rows.
    independent : IndependentReference
        Reference without classes.
    regularization : float
        Added to the variances of continuous columns.
    random_state : RandomState
        Source of the starts.
    stop : threading.Event or None, default=None
        Ends the search by a KeyboardInterrupt once it is set.

    Returns
    -------
    LatentClassReference or None
        The model.
    """
    layout, valid = independent.layout, split.valid
    width = layout.n_level_points + layout.n_continuous * (layout.n_continuous + 1) // 2
    most = int(np.clip(_MOST_INDICATORS // width, 1000, MOST_ROWS_FOR_CLASSES))
    rows = split.train.take(np.arange(min(len(split.train), most)))
    few = rows.take(np.arange(min(len(rows), MOST_ROWS_FOR_MIXTURES)))
    baseline = log_likelihoods(independent, valid.X)

    def fit(job: tuple[int, int], last: bool = False) -> tuple[float, LatentClassReference]:
        reference = fit_latent_class(
            rows if last else few,
            layout,
            job[0],
            np.random.RandomState(job[1]),
            regularization=regularization,
            max_iter=_MOST_EM_STEPS if last else _EM_STEPS_FOR_SEARCH,
            stopped=lambda: stop is not None and stop.is_set(),
        )
        return float(valid.share @ log_likelihoods(reference, valid.X)), reference

    def fit_all(numbers: Sequence[int]) -> list[tuple[float, LatentClassReference]]:
        seeds = random_state.randint(2**31 - 1, size=len(numbers))
        with single_blas_thread():
            return map_in_workers(fit, zip(numbers, seeds, strict=True), "cpu")

    n_levels = layout.n_level_points
    n_possible = min(
        len(rows), _MOST_CLASS_LEVELS // n_levels, _MOST_CLASS_WORK // (len(rows) * n_levels)
    )
    possible = [c for c in _CLASSES if c < 2 * n_possible]
    best = search_numbers(possible, fit_all, float(valid.share @ baseline))
    if best is None:
        return None
    # The search is brief; its winner is fitted once more, to all rows and to the end.
    with single_blas_thread():
        final = fit((best[2], int(random_state.randint(2**31 - 1))), last=True)
    chosen = final[1] if final[0] > best[0] else best[1]
    gain = log_likelihoods(chosen, valid.X) - baseline
    n_valid = None if layout.n_continuous else float(valid.weight.sum())
    mean, error = mean_and_error(gain, valid.share, n_valid)
    return chosen if mean > error else None


def mean_and_error(
    values: Array,
    share: Array,
    n_observations: float | None = None,
    source: Keys | None = None,
) -> tuple[float, float]:
    """Return the weighted mean over rows and its standard error; the shares sum to 1.

    Each row is one observation, or rows of one source are, or with ``n_observations`` the shares
    are those of so many.
    """
    mean = float(share @ values)
    if n_observations is not None:
        return mean, math.sqrt(float(share @ (values - mean) ** 2) / n_observations)
    return mean, math.sqrt(
        float(np.square(sums_over_sources(share * (values - mean), source)).sum())
    )


def logsnr_range(references: Sequence[Reference], resolution: float) -> tuple[float, float]:
    """Return the range of the log-SNR in which a model can differ from its references.

    It holds those of all references, see `ContinuousReference.logsnr_range`, and is not short.

    Parameters
    ----------
    references : sequence of Reference
        Fitted references, at least one of them with continuous columns.
    resolution : float
        Largest lattice step of a column, in standard deviations; 0 if there is none.

    Returns
    -------
    low, high : float
        The range.
    """
    ranges = [reference.logsnr_range(resolution) for reference in references]
    known = [each for each in ranges if each is not None]
    low = min(low for low, _ in known)
    return low, max(low + 4.0, *(high for _, high in known))


def level_logsnr_range(layout: Layout, rows: WeightedRows) -> tuple[float, float]:
    """Return the range of the log-SNR in which a model can differ from independent columns.

    At a low log-SNR a, two columns of covariance c tell ``exp(2 a) / 4 c**2`` nats more than
    independent ones do; above the upper end no level is taken for another.

    Parameters
    ----------
    layout : Layout
        Where the columns are, with at least one discrete variable.
    rows : WeightedRows
        Rows of the layout.

    Returns
    -------
    low, high : float
        The range.
    """
    sample = rows.take(np.arange(min(len(rows), MOST_ROWS_FOR_SPECTRUM)))
    points = layout.embed_array(sample.X)
    deviation = np.sqrt(sample.share)[:, None] * (points - sample.share @ points)
    squared = squared_norm(deviation)
    # Columns of one variable belong together.
    owner = layout.owners()
    order = np.argsort(owner, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        squared -= squared_norm(deviation[:, group])
    low = 0.5 * math.log(4.0 * _LEAST_INFORMATION / max(squared, 1e-3))
    high = math.log(60.0) - 2.0 * math.log(min(v.spacing for v in layout.variables))
    return low, max(high, low + 4.0)


def squared_norm(deviation: Array) -> float:
    """Return the sum of the squared entries of A'A, by the smaller of A'A and AA'."""
    tall = deviation.shape[0] >= deviation.shape[1]
    gram = deviation.T @ deviation if tall else deviation @ deviation.T
    return float((gram**2).sum())


def mixture_regularization(step: Array) -> float:
    """Return the variance that keeps a mixture from resolving the columns' lattices."""
    return float(np.clip((step**2).max(initial=0.0) / 12.0, VARIANCE_FLOOR, 1e-2))


def marginal_kinds(marginals: str) -> Sequence[str]:
    """Return the kinds of maps that a parameter value allows."""
    return MARGINAL_KINDS if marginals == "auto" else (marginals,)
