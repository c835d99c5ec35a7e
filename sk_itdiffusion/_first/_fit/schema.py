"""What the columns of a table are: the first stage of a fit.

Equal rows are grouped, lattices found and columns standardised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.bounds import around_cells, check_inside, shown_bounds, unbounded
from sk_itdiffusion._first._table.dequantize import Dequantizer, NoisyCopies, warn_of_coarse_noise
from sk_itdiffusion._first._table.groups import RowGroups
from sk_itdiffusion._first._table.marginals import (
    AffineMap,
    MarginalMap,
    Standardizer,
    without_last_bits,
)
from sk_itdiffusion._first._table.rows import (
    ColumnReport,
    WeightedRows,
    are_counts,
    column_labels,
    copied_columns,
    effective_number,
    extent,
    first_observed,
    group_rows,
    has_missing,
    in_common_units,
    inspect_columns,
)
from sk_itdiffusion._first._table.space import CONSTANT_WIDTH, ColumnKind, TableSpace, make_layout
from sk_itdiffusion._first._table.streams import affordable_rows
from sk_itdiffusion._first.references import ContinuousReference

__all__ = [
    "KnownColumns",
    "Observations",
    "Schema",
    "check_bounds",
    "grouped_and_counted",
    "in_counts",
    "n_observations",
    "read_schema",
    "table_space",
    "warn_of_few_rows",
]

Array = NDArray[np.float64]
#: Distinct rows below which none are spared for validation, and nothing is chosen or trained.
MIN_ROWS_TO_SPLIT = 40
#: Noisy copies that few dequantised rows are made into.
MIN_NOISY_COPIES = 10_000
#: Observations that integer weights may stand for.
MAX_OBSERVATIONS = 1e8
#: Steps of dequantisation that the noise at the highest log-SNR is finer than.
FINENESS_OF_DEQUANTIZATION = 10.0


@dataclass(frozen=True)
class Schema:
    """What the columns of a table are.

    Attributes
    ----------
    space : TableSpace
        Maps of the columns; those of the continuous ones may be chosen later.
    step : ndarray of shape (n_continuous,)
        Steps of the lattices of continuous columns that the log-SNR need not resolve, in standard
        deviations; 0 where there is none.
    dequantizer : Dequantizer or None
        Noise that is added to the rows before all else.
    has_images : bool
        Whether the rows are images of continuous pixels.
    device : torch.device
        Where the denoisers will be.
    """

    space: TableSpace
    step: Array
    dequantizer: Dequantizer | None
    has_images: bool
    device: torch.device

    @property
    def resolution(self) -> float:
        """Largest step of a lattice, in standard deviations; 0 if there is none."""
        return float(self.step.max(initial=0.0))

    @property
    def has_categories(self) -> bool:
        """Whether discrete columns vary."""
        return bool(self.space.layout.variables)

    @property
    def n_continuous(self) -> int:
        """Number of continuous columns that vary."""
        return self.space.layout.n_continuous


@dataclass(frozen=True)
class Observations:
    """Distinct rows of a table, with the noise of dequantisation.

    Attributes
    ----------
    rows : WeightedRows
        Rows in the units of the table, in canonical order.
    groups : RowGroups or None
        The groups that they belong to, if there are any.
    """

    rows: WeightedRows
    groups: RowGroups | None


def read_schema(
    values: Array,
    weight: Array,
    kinds: Sequence[ColumnKind],
    settings: FitSettings,
    seeds: Seeds,
    known: KnownColumns | None = None,
    groups: NDArray[np.intp] | None = None,
) -> tuple[Schema, Observations]:
    """Return what the columns are, and the rows; warn of what there is no density for.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_columns)
        Finite numbers of continuous columns, codes of discrete ones; NaN where they are missing.
    weight : ndarray of shape (n_samples,)
        Non-negative weights.
    kinds : sequence of ColumnKind
        Kinds of the columns.
    settings : FitSettings
        Parameters.
    seeds : Seeds
        Seeds of the fit.
    known : KnownColumns or None, default=None
        What is known of the columns from another fit.
    groups : ndarray of shape (n_samples,), int, or None, default=None
        Groups of the rows.

    Returns
    -------
    schema : Schema
        What the columns are.
    observations : Observations
        The rows.

    Raises
    ------
    ValueError
        If rows are not between bounds, or columns do not vary where something given needs them to.
    """
    per_weight = settings.model.observations_per_weight
    grouped, counted = grouped_and_counted(values, weight, per_weight)
    dequantizer = make_dequantizer(counted, settings, seeds, known)
    check_bounds(grouped.X, settings, dequantizer, None if known is None else known.space)
    copies = None
    if dequantizer is not None:
        copies = noisy_copies(counted, dequantizer, settings)
        grouped = copies.rows
    n_weighted = float(counted.weight.sum())
    space, report = table_space(grouped, kinds, settings, n_weighted, dequantizer)
    own_scale = space.standardizer.scale
    if known is not None and not known.must_vary_alike:
        space = known.space
    check_varying_columns(space, settings, known)
    warn_about_columns(report, space, dequantizer, settings.runtime.feature_names)
    if not settings.model.has_images:
        warn_about_copies(grouped.X[:, space.continuous], space, settings.runtime.feature_names)
    if space.is_discrete:
        grouped = counted
    belonging = None
    if groups is not None:
        source = grouped if copies is None else counted
        belonging = RowGroups.of(source, values, weight, groups)
        if copies is not None:
            belonging = groups_of_copies(belonging, counted, copies)
    if space.is_empty and dequantizer is not None:
        lattice = dequantizer.rounded(space.constant_values[None])[0]
        space = replace(space, constant_values=lattice)
    step = report.step[space.continuous]
    if dequantizer is not None:
        step = noise_steps(dequantizer, space)
    if known is not None and known.must_vary_alike and not space.is_empty:
        step = step * own_scale / known.space.standardizer.scale
        space = known.space
    schema = Schema(space, step, dequantizer, settings.model.has_images, settings.runtime.device)
    return schema, Observations(grouped, belonging)


def check_bounds(
    X: Array,
    settings: FitSettings,
    dequantizer: Dequantizer | None,
    known: TableSpace | None,
) -> None:
    """Raise an error if rows are not between given bounds, or between those of a given space."""
    names = settings.runtime.feature_names
    labels = [str(j) if names is None else repr(str(names[j])) for j in range(X.shape[1])]
    if settings.model.bounds is not None:
        check_inside(
            X,
            bounds_of_cells(settings.model.bounds, dequantizer),
            labels,
            "Set wider bounds, or leave the row out.",
        )
    if known is not None:
        known.check_inside(X, labels)


def bounds_of_cells(bounds: Array, dequantizer: Dequantizer | None) -> Array:
    """Return the bounds of values with the noise of dequantisation."""
    return bounds if dequantizer is None else around_cells(bounds, dequantizer.step)


def holds_out(n_rows: int | float, settings: FitSettings) -> bool:
    """Return whether some of the rows validate; very few train and validate."""
    return settings.model.may_hold_out and n_rows >= MIN_ROWS_TO_SPLIT


def candidate_bounds(
    varying: WeightedRows,
    continuous: NDArray[np.intp],
    report: ColumnReport,
    settings: FitSettings,
    dequantizer: Dequantizer | None,
) -> Array | None:
    """Return the bounds of continuous columns that are given, or shown by the rows, if any are.

    Only a choice of maps on validation rows evaluates bounds that are shown, and only if all rows
    are known.  Where rows are ranked, those beyond bounds are to be ranked like others.
    """
    if settings.model.bounds is not None:
        bounds = bounds_of_cells(settings.model.bounds, dequantizer)[continuous]
        return bounds if np.isfinite(bounds).any() else None
    judged = settings.model.marginals == "auto" and holds_out(len(varying), settings)
    judged = judged and not isinstance(settings.model.reference, ContinuousReference)
    judged = judged and not settings.model.ranks_training_rows
    if not settings.model.finds_bounds or not judged or settings.runtime.stream is not None:
        return None
    least, greatest = extent(varying.X)
    if settings.model.extent is not None:
        least = np.minimum(least, settings.model.extent[0][continuous])
        greatest = np.maximum(greatest, settings.model.extent[1][continuous])
    bounds = shown_bounds(varying.X, varying.weight, least, greatest)
    # Values on a lattice, with noise or without, have no density near a bound.
    on_lattice = report.tied[continuous]
    if dequantizer is not None:
        on_lattice = on_lattice | (dequantizer.step[continuous] > 0)
    bounds[on_lattice] = unbounded(1)
    return bounds if np.isfinite(bounds).any() else None


def anchored_at(standardizer: Standardizer, bounds: Array | None) -> tuple[Standardizer, list[int]]:
    """Return the standardisation around bounds, from which distances are exact, and of which."""
    if bounds is None:
        return standardizer, []
    low, high = bounds.T
    bound = np.where(np.isfinite(low), low, high)
    anchored = np.isfinite(bound)
    center = np.where(anchored, bound, standardizer.center)
    return Standardizer(center, standardizer.scale), np.flatnonzero(anchored).tolist()


def table_space(
    grouped: WeightedRows,
    kinds: Sequence[ColumnKind],
    settings: FitSettings,
    n_weighted: float,
    dequantizer: Dequantizer | None = None,
) -> tuple[TableSpace, ColumnReport]:
    """Return the space of a table, without marginal maps, and what its columns are like.

    ``n_weighted`` is the number of observations that the distinct rows stand for.
    """
    if settings.model.has_images or has_given_units(settings):
        return image_space(grouped, settings, n_weighted)
    is_continuous = np.array([kind.n_categories == 0 for kind in kinds], dtype=bool)
    least, greatest = extent(grouped.X)
    varies = least < greatest
    continuous = np.flatnonzero(is_continuous & varies)
    X = np.ascontiguousarray(grouped.X[:, continuous])
    varying = WeightedRows(X, grouped.weight, number=grouped.number)
    standardizer = Standardizer.fit(varying.X, varying.weight)
    inspected = inspect_columns(varying, standardizer.scale, n_weighted)
    report = _full_report(inspected, continuous, len(kinds))
    discrete = np.flatnonzero([kind.n_categories > 1 for kind in kinds])
    coded = WeightedRows(np.hstack([varying.X, grouped.X[:, discrete]]), grouped.weight)
    modelled = [kind for kind in kinds if kind.n_categories > 1]
    bounds = candidate_bounds(varying, continuous, report, settings, dequantizer)
    standardizer, anchored = anchored_at(standardizer, bounds)
    space = TableSpace(
        n_columns=len(kinds),
        continuous=continuous,
        discrete=discrete,
        constant=np.flatnonzero(is_continuous & ~varies),
        constant_values=first_observed(grouped.X),
        standardizer=standardizer,
        marginal_map=MarginalMap("standard", ()),
        layout=make_layout(
            modelled, coded, len(continuous), settings.model.image_shape is not None
        ),
        log_seen=np.array([kind.log_seen for kind in kinds], dtype=np.float64),
        bounds=bounds,
        anchored=anchored,
        # No row is beyond bounds that are given, and a new one may be beyond those that rows show.
        share_beyond=0.0 if settings.model.bounds is not None else 1.0 / (len(grouped) + 2.0),
    )
    return space, report


def noise_steps(dequantizer: Dequantizer, space: TableSpace) -> Array:
    """Return the steps that the log-SNR must resolve: some of the finest noise, in all columns."""
    step = dequantizer.step[space.continuous] / space.standardizer.scale
    finest = step[step > 0].min(initial=1.0)
    return np.where(step > 0, finest / FINENESS_OF_DEQUANTIZATION, 0.0)


def has_given_units(settings: FitSettings) -> bool:
    """Return whether a denoiser says which values are -1 and 1 for it."""
    return settings.model.denoiser is not None and settings.model.denoiser.data_range is not None


def image_space(
    grouped: WeightedRows, settings: FitSettings, n_weighted: float
) -> tuple[TableSpace, ColumnReport]:
    """Return a space in which all columns, varying or not, have one center and one scale."""
    n_columns = grouped.X.shape[1]
    if settings.model.denoiser is not None and settings.model.denoiser.data_range is not None:
        low, high = settings.model.denoiser.data_range
        center, scale = 0.5 * (low + high), 0.5 * (high - low)
    else:
        center = mean_of_rows(grouped, grouped.X)
        scale = math.sqrt(mean_of_rows(grouped, (grouped.X - center) ** 2)) or 1.0
        if grouped.content is not None:
            exponent = np.frexp(scale)[1]
            scaled = np.ldexp([center, scale], -exponent)
            center, scale = np.ldexp(without_last_bits(*scaled), exponent).tolist()
    standardizer = Standardizer(np.full(n_columns, center), np.full(n_columns, scale))
    space = TableSpace(
        n_columns=n_columns,
        continuous=np.arange(n_columns),
        discrete=np.arange(0),
        constant=np.arange(0),
        constant_values=first_observed(grouped.X),
        standardizer=standardizer,
        marginal_map=MarginalMap("standard", (AffineMap(),) * n_columns),
        layout=make_layout([], grouped, n_columns, False),
        log_seen=np.zeros(n_columns),
        is_mapped=True,
    )
    return space, inspect_columns(grouped, standardizer.scale, n_weighted)


def mean_of_rows(rows: WeightedRows, values: Array) -> float:
    """Return the weighted mean over rows of the means of their observed values."""
    if not has_missing(values):
        return float(rows.share @ values.mean(axis=1))
    seen = ~np.isnan(values)
    total = np.where(seen, values, 0.0).sum(axis=1)
    return float(rows.share @ (total / np.maximum(seen.sum(axis=1), 1)))


@dataclass(frozen=True)
class KnownColumns:
    """What is known of the columns from another fit.

    Attributes
    ----------
    space : TableSpace
        Its space.
    dequantizer : Dequantizer or None, default=None
        Noise that it adds; None lets the rows say it.
    must_vary_alike : bool, default=True
        Whether the same columns must vary, as where a model is fitted further.
    """

    space: TableSpace
    dequantizer: Dequantizer | None = None
    must_vary_alike: bool = True


def make_dequantizer(
    grouped: WeightedRows, settings: FitSettings, seeds: Seeds, known: KnownColumns | None
) -> Dequantizer | None:
    """Return what adds noise to the rows, None if nothing does."""
    if settings.model.dequantize is False:
        return None
    if known is not None and known.dequantizer is not None:
        known.dequantizer.check(grouped.X, settings.runtime.feature_names)
        return known.dequantizer
    step = None if settings.model.dequantize is True else settings.model.dequantize
    found = Dequantizer.fit(
        grouped.X, step, settings.model.has_images, seeds.scoring + 3, grouped.weight
    )
    found.check(grouped.X, settings.runtime.feature_names)
    warn_of_coarse_noise(found, grouped.X, settings.runtime.feature_names)
    return found


def grouped_and_counted(
    values: Array, weight: Array, observations_per_weight: float | None = None
) -> tuple[WeightedRows, WeightedRows]:
    """Return the distinct rows, and the same with weights that are numbers of observations."""
    grouped = group_rows(values, weight, are_sums=observations_per_weight is not None)
    counted = in_counts(grouped, weight, observations_per_weight)
    if grouped.number is None and not np.array_equal(counted.weight, grouped.weight):
        # Of the weights the least is 1, whatever the number of its observations.
        grouped = replace(grouped, number=counted.weight)
    return grouped, counted


def in_counts(
    grouped: WeightedRows, weight: Array, observations_per_weight: float | None = None
) -> WeightedRows:
    """Return grouped rows with weights that are numbers of observations.

    Weights that are multiples of a common unit are counts of it.  Others are scaled to sum to the
    number of observations of equal weight that tell as much (Kish's effective sample size).  Sums
    of the weights of several observations do not tell it: then ``observations_per_weight`` does,
    the number of observations that a weight of 1 stands for.
    """
    units = weight[weight > 0]
    if observations_per_weight is None:
        units = in_common_units(units)
    if are_counts(units) and observations_per_weight in (None, 1.0):
        total = min(float(units.sum()), MAX_OBSERVATIONS)
        return replace(grouped, weight=np.maximum(np.rint(grouped.share * total), 1.0))
    if observations_per_weight is None:
        return replace(grouped, weight=grouped.share * effective_number(units))
    return replace(grouped, weight=grouped.share * (observations_per_weight * units.sum()))


def groups_of_copies(groups: RowGroups, counted: WeightedRows, copies: NoisyCopies) -> RowGroups:
    """Return the groups of noisy copies of rows, from those of the rows.

    Equal rows that are different observations may be in different groups; of others, groups with a
    row in common are one.
    """
    group = groups.of_observations(counted, copies.index, copies.observation)
    found = RowGroups(np.arange(len(group)), group, copies.rows.weight)
    source = copies.rows.source
    if source is None:
        return found
    first, number = np.unique(source, return_index=True, return_inverse=True)[1:]
    links = np.column_stack([np.arange(len(group)), first[number.ravel()]])
    return found.joined(copies.rows, links)


def noisy_copies(
    counted: WeightedRows, dequantizer: Dequantizer, settings: FitSettings
) -> NoisyCopies:
    """Return noisy copies of rows, several of each observation if those are few.

    Where all columns are on lattices, equal rows are different observations, as of discrete tables.
    Otherwise they are copies of one, unless entries off the lattices are frequent values of their
    columns, such as zeros of amounts.  Equal images are copies.
    """
    has_images = settings.model.has_images
    off_lattice = counted.with_values(counted.X[:, dequantizer.step == 0.0])
    one = np.ones(len(counted), dtype=bool) if has_images else ~off_lattice.are_equal_by_chance
    least = 0 if has_images else MIN_NOISY_COPIES
    return dequantizer.noisy_copies(counted, least, affordable_rows(counted.X.shape[1]), one)


def n_observations(rows: WeightedRows, space: TableSpace) -> int:
    """Return the number of rows that count: of a discrete table all, else the distinct ones.

    Noisy copies of one source are one row.
    """
    if rows.source is not None:
        return min(len(np.unique(rows.source)), round(float(rows.weight.sum())))
    return round(float(rows.weight.sum())) if space.is_discrete else len(rows)


def check_varying_columns(
    space: TableSpace, settings: FitSettings, known: KnownColumns | None
) -> None:
    """Raise an error if columns do not vary where something given needs them to."""
    names = settings.runtime.feature_names
    constant = np.isin(np.arange(space.n_columns), space.constant)
    if isinstance(settings.model.reference, ContinuousReference) and constant.any():
        raise ValueError(
            f"A reference object requires all columns to vary; column(s) "
            f"{column_labels(constant, names)} are constant. Remove them from both."
        )
    if known is None or not known.must_vary_alike:
        return
    if not np.array_equal(space.constant, known.space.constant):
        earlier = np.isin(np.arange(space.n_columns), known.space.constant)
        raise ValueError(
            f"warm_start requires the same columns to be constant as in the earlier fit; column(s) "
            f"{column_labels(constant != earlier, names)} changed. Set warm_start=False to refit "
            "from scratch."
        )


def _full_report(report: ColumnReport, chosen: NDArray[np.intp], n_columns: int) -> ColumnReport:
    """Return the report of some columns in the numbering of all columns."""
    tied, step = np.zeros(n_columns, dtype=bool), np.zeros(n_columns)
    varies = np.zeros(n_columns, dtype=bool)
    varies[chosen], tied[chosen], step[chosen] = report.varies, report.tied, report.step
    return ColumnReport(varies, tied, step)


def warn_about_columns(
    report: ColumnReport,
    space: TableSpace,
    dequantizer: Dequantizer | None,
    names: Sequence[str] | None,
) -> None:
    """Warn about continuous columns for which no density exists: those on no lattice."""
    on_lattice = np.zeros(len(report.tied), dtype=bool)
    if dequantizer is not None:
        on_lattice = dequantizer.step > 0
    constant = np.isin(np.arange(len(report.tied)), space.constant) & ~on_lattice
    tied = report.tied & ~on_lattice
    if constant.any():
        warn(
            f"Column(s) {column_labels(constant, names)} are constant and have no density; they "
            f"are modelled as normal with {CONSTANT_WIDTH:g} of their value (or of 1) as "
            "standard deviation. Remove them to avoid this.",
        )
    if tied.any():
        advice = "set their steps in dequantize"
        if dequantizer is None:
            advice = "set dequantize=True in IMMSEDensity"
        warn(
            f"Column(s) {column_labels(tied, names)} have many equal or coarsely rounded "
            "values, for which no density exists; log-densities and entropy_ depend on how finely "
            "they are resolved. Model them as discrete by an integer dtype (a nullable one, such "
            "as Int64, if entries are missing) or ordinal_features of IMMSEMixedDensity, which "
            f"imputers and detectors take as their estimator, or {advice}.",
        )


def warn_about_copies(X: Array, space: TableSpace, names: Sequence[str] | None) -> None:
    """Warn about continuous columns that are copies of others, with which no density exists."""
    pairs = copied_columns(X)
    if not pairs:
        return
    first, copies = (np.zeros(space.n_columns, dtype=bool) for _ in range(2))
    first[space.continuous[[i for i, _ in pairs]]] = True
    copies[space.continuous[[j for _, j in pairs]]] = True
    warn(
        f"Column(s) {column_labels(copies, names)} are copies of column(s) "
        f"{column_labels(first, names)}, in the same or other units, and no density exists of both "
        "together; log-densities depend on the least variance that models have. Remove the copies.",
    )


def warn_of_few_rows(n_rows: int, space: TableSpace, settings: FitSettings) -> None:
    """Warn of so few rows that the model is the plain reference, unless no more was asked for."""
    plain = ("gaussian", "independent")
    is_enough = settings.training.max_epochs == 0 and (
        isinstance(settings.model.reference, ContinuousReference)
        or settings.model.reference in plain
    )
    if n_rows >= MIN_ROWS_TO_SPLIT or (is_enough and settings.model.denoiser is None):
        return
    model = "independent columns" if space.layout.variables else "a single normal distribution"
    rows = "rows" if space.is_discrete else "distinct rows"
    text = (
        f"There are fewer than {MIN_ROWS_TO_SPLIT} {rows}: the model is {model}, without "
        "networks or other experts, and no rows are held out, so that entropy_ is NaN."
    )
    n_columns = len(space.continuous)
    if n_columns and n_rows <= n_columns + 1 and not settings.model.has_images:
        text += (
            f" So few rows cannot determine the covariance of {n_columns} continuous column(s): "
            "log-densities depend on assumptions, and the standard errors of score_samples, "
            "which are those of the numerical integration only, do not include this uncertainty."
        )
    warn(text)
