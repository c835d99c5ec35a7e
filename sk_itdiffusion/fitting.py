"""How the model behind the estimators is fitted.

Rows are grouped and split, the columns are standardised and mapped, references are fitted, the
network is trained on what they lack, and at each log-SNR the experts are stacked by their
validation errors.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Generator

from sk_itdiffusion.bounds import around_cells, check_inside, shown_bounds, unbounded
from sk_itdiffusion.callbacks import FitTasks
from sk_itdiffusion.cubature import PiecewiseDensity, row_keys, spawn_keys
from sk_itdiffusion.denoisers import (
    ConvolutionalNetwork,
    LevelDenoiser,
    PreconditionedDenoiser,
    ReferencedDenoiser,
    ResidualMLP,
    UNetBackbone,
)
from sk_itdiffusion.denoisers.levels import n_level_outputs, n_periodic_inputs
from sk_itdiffusion.denoisers.mlp import replace_dropout
from sk_itdiffusion.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion.dequantize import Dequantizer, NoisyCopies
from sk_itdiffusion.distributed import ALONE, Processes
from sk_itdiffusion.experts import (
    MOST_ROWS_FOR_SPECTRUM,
    MappedSplit,
    choose_marginal_map,
    fit_gaussian_by_validation,
    fit_kernel_density_by_validation,
    fit_latent_class_by_validation,
    fit_mixture_by_validation,
    level_logsnr_range,
    log_likelihoods,
    logsnr_range,
    marginal_kinds,
    mean_and_error,
    mixture_regularization,
)
from sk_itdiffusion.generators import CopyableGenerator
from sk_itdiffusion.groups import RowGroups, near_copies
from sk_itdiffusion.latent_class import level_counts, smoothed_marginals
from sk_itdiffusion.likelihood import (
    ErrorProfile,
    IntegrationRule,
    error_profile,
    fit_placement,
    stacking_weights,
)
from sk_itdiffusion.marginals import AffineMap, MarginalMap, Standardizer
from sk_itdiffusion.model import (
    NETWORKS,
    BeyondBounds,
    Seeds,
    TableModel,
    kind_of_expert,
    names_of_networks,
    network_denoiser,
    number_of_network,
    profile_noise,
    scoring_noise,
    summarize_profile,
)
from sk_itdiffusion.parallel import run_all_interruptibly, run_interruptibly
from sk_itdiffusion.pretrained import PretrainedDenoiser
from sk_itdiffusion.progress import current_progress, stretch_of_progress
from sk_itdiffusion.references import (
    ContinuousReference,
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    Reference,
)
from sk_itdiffusion.references.discrete import DiscreteReference
from sk_itdiffusion.rows import (
    ColumnReport,
    WeightedRows,
    column_labels,
    effective_number,
    group_rows,
    in_common_units,
    inspect_columns,
    resample_rows,
)
from sk_itdiffusion.schedules import Schedule
from sk_itdiffusion.space import CONSTANT_WIDTH, ColumnKind, TableSpace, make_layout
from sk_itdiffusion.streams import Stream, StreamedRows, affordable_rows
from sk_itdiffusion.training import (
    DenoisingObjective,
    EpochBoard,
    Network,
    RowDataset,
    TrainingPlan,
    TrainingReport,
    train,
)
from sk_itdiffusion.validation import Optimism, crossfitted_errors, fold_weights, mean_and_std
from sk_itdiffusion.warning import warn

__all__ = ["FitSettings", "fit_table_model"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

N_NODES = 41
MOST_VALIDATION_ROWS = 10_000
MOST_PROFILE_ROWS = 2_000
#: Noisy rows, at least, from which the errors at a node are averaged if states are few.
LEAST_PROFILE_ROWS = 1_000
LEAST_VALIDATION_ROWS = 2_000
#: Noisy validation rows that judge an epoch of continuous columns.
NOISY_VALIDATION_ROWS = 4_096
#: Intermediate numbers that the error profile may take; large images get fewer rows.
MOST_PROFILE_WORK = 2 * 10**9
WIDTH_BESIDE_CONVOLUTIONS = 256
#: Distinct rows below which none are spared for validation, and nothing is chosen or trained.
LEAST_ROWS_TO_SPLIT = 40
#: Noisy copies that few dequantised rows are made into.
LEAST_NOISY_COPIES = 10_000
#: Share of the rows that near-copies of each other may be without making a split impossible.
LARGEST_SHARE_OF_COPIES = 0.5
#: Observations that integer weights may stand for.
MOST_OBSERVATIONS = 1e8
#: Hidden units up to which one thread trains as fast as several.
WIDEST_FOR_ONE_THREAD = 256
#: Steps of dequantisation that the noise at the highest log-SNR is finer than.
FINENESS_OF_DEQUANTIZATION = 10.0
#: Rows from which the importance density is refitted; images are dear.
ROWS_TO_ADAPT, IMAGES_TO_ADAPT = 256, 64
MOST_PIXELS_FOR_ONE_THREAD = 256
#: Dropout that is worth the time of its random numbers.
LEAST_DROPOUT = 0.01
#: Networks, of different regularisation, that a table of continuous columns gets.
NETWORKS_OF_A_TABLE = 2
#: Epochs for which their length is meant where it grows with the rows.
EPOCHS_OF_A_TABLE = 40
#: Name of the density of kernels among experts and references.
KERNELS = "kernel_density"
_kernels_by_default: ContextVar[bool] = ContextVar("kernels_by_default", default=True)
#: Gain in nats for which each score may pass through all kernels.
LEAST_GAIN_OF_KERNELS = 0.02
#: Share of a progress bar that is for the training; the rest is for the weights of the experts.
SHARE_OF_TRAINING = 0.95


@dataclass(frozen=True)
class FitSettings:
    """The estimator's parameters, resolved and checked."""

    reference: str | ContinuousReference
    experts: str | Sequence[str]
    marginals: str
    schedule: Schedule
    hidden_size: int
    n_blocks: int
    n_frequencies: int
    dropout: float | None
    weight_decay: float | None
    max_epochs: int
    steps_per_epoch: int | None
    batch_size: int
    learning_rate: float
    patience: int | None
    validation_fraction: float
    n_strata: int
    n_draws: int
    n_directions: int | None
    device: torch.device
    callbacks: Sequence[Any] = ()
    verbose: int = 0
    feature_names: Sequence[str] | None = None
    is_discrete: bool = False
    preconditioner: str = "independent"
    loss: str = "mse"
    image_shape: tuple[int, ...] | None = None
    #: None for as many as suit the rows.
    n_networks: int | None = 1
    denoiser: PretrainedDenoiser | None = None
    dequantize: bool | Array = False
    micro_batch_size: int | None = None
    stream: Stream | None = None
    processes: Processes = ALONE
    #: Bounds of all columns if they are given, and whether they are to be found.
    bounds: Array | None = None
    finds_bounds: bool = False
    #: Least and greatest values of the columns of all rows that are known of.
    extent: tuple[Array, Array] | None = None
    tasks: FitTasks = field(default_factory=FitTasks)
    #: Whether kernels may be experts without being asked for.
    kernels: bool = False
    #: Whether rows nearer to each other than independent ones are kept on one side of the split.
    near_copies: bool = True
    #: Returns the attributes of an estimator that has a model.
    attributes_of: Callable[[TableModel], dict[str, Any]] | None = None

    @property
    def has_images(self) -> bool:
        """Whether the network takes images of continuous pixels."""
        given = self.denoiser is not None and self.denoiser.image_shape is not None
        return given or (self.image_shape is not None and not self.is_discrete)

    @property
    def has_table_network(self) -> bool:
        """Whether the network is the library's own for columns that are no continuous pixels."""
        return self.denoiser is None and not self.has_images


def fit_table_model(
    values: Array,
    weight: Array,
    kinds: Sequence[ColumnKind],
    settings: FitSettings,
    random_state: np.random.RandomState,
    previous: TableModel | None = None,
    given_space: TableSpace | None = None,
    groups: NDArray[np.intp] | None = None,
) -> TableModel:
    """Return a model fitted to rows.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_columns)
        Finite numbers of continuous columns, codes of discrete ones.
    weight : ndarray of shape (n_samples,)
        Non-negative weights.
    kinds : sequence of ColumnKind
        Kinds of the columns.
    settings : FitSettings
        Parameters.
    random_state : RandomState
        Source of all randomness.
    previous : TableModel or None, default=None
        Model whose maps and references are kept and whose network is trained further.
    given_space : TableSpace or None, default=None
        Space of other models with the same columns, if they shall be combined.
    groups : ndarray of shape (n_samples,), int, or None, default=None
        Groups of the rows, of each of which all rows train or all validate.

    Returns
    -------
    TableModel
        The fitted model.
    """
    seeds = Seeds.draw(random_state) if previous is None else previous.seeds
    grouped = group_rows(values, weight)
    counted = in_counts(grouped, weight)
    dequantizer = make_dequantizer(counted, settings, seeds, previous)
    known_space = given_space if previous is None else previous.space
    check_bounds(grouped.X, settings, dequantizer, known_space)
    if dequantizer is not None:
        copies = noisy_copies(counted, dequantizer, settings)
        grouped = copies.rows
    n_weighted = float(counted.weight.sum())
    space, report = table_space(grouped, kinds, settings, n_weighted, dequantizer)
    if given_space is not None:
        space = given_space
    check_varying_columns(space, settings, previous)
    warn_about_columns(report, space, dequantizer, settings.feature_names)
    if space.is_discrete:
        grouped = counted
    belonging = None
    if groups is not None:
        source = grouped if dequantizer is None else counted
        belonging = RowGroups.of(source, values, weight, groups)
        if dequantizer is not None:
            belonging = groups_of_copies(belonging, counted, copies)
    if space.is_empty:
        return _empty_model(grouped, space, settings, seeds, dequantizer)
    step = report.step[space.continuous]
    if dequantizer is not None:
        step = noise_steps(dequantizer, space)
    warn_of_few_rows(n_observations(grouped, space), space, settings)
    if previous is not None:
        step = step * space.standardizer.scale / previous.space.standardizer.scale
        rows = grouped.with_values(previous.space.standardized(grouped.X))
        split = MappedSplit.behind(
            previous.space, *split_rows(rows, previous.space, settings, seeds.split, belonging)
        )
        # Its kernels may stand on rows that now validate.
        references = {name: r for name, r in previous.references.items() if name != KERNELS}
        logsnr, preconditioner = previous.logsnr[:N_NODES], previous.preconditioner
    else:
        rows = grouped.with_values(space.standardized(grouped.X))
        train_rows, valid_rows = split_rows(rows, space, settings, seeds.split, belonging)
        current_progress().show(0.0, "references")
        split, references = fit_analytic_side(
            space, train_rows, valid_rows, step, settings, seeds.mixtures
        )
        preconditioner = choose_preconditioner(references, settings)
        logsnr = np.linspace(*model_range(split, references, step), N_NODES)
    references |= kernel_reference(split, references, step, settings)
    logsnr = with_nodes_for_kernels(logsnr, references, step)
    if previous is not None and previous.control in references and KERNELS not in references:
        control = previous.control
    else:
        control = choose_control(references, split.valid, settings)
    model = TableModel(
        space=split.space,
        references=references,
        control=control,
        preconditioner=preconditioner,
        nets={},
        logsnr=logsnr,
        expert_names=(),
        weights=np.empty((len(logsnr), 0)),
        rule=None,
        seeds=seeds,
        device=settings.device,
        n_fits=1 if previous is None else previous.n_fits + 1,
        dequantizer=dequantizer,
        has_images=settings.has_images,
        beyond=law_beyond_bounds(split.space, rows, settings)
        if previous is None
        else previous.beyond,
    )
    model.nets = train_networks(
        networks_to_train(settings, n_observations(rows, space)),
        model,
        split,
        settings,
        previous,
    )
    if model.nets:
        model.history = bound_history(next(iter(model.nets.values())))
        warn_if_still_improving(model.nets.values(), settings)
    with stretch_of_progress(SHARE_OF_TRAINING if model.nets else 0.0, 1.0):
        finish_stacking(model, split, settings)
    logger.info(
        "fitted to %d rows: control variate %r of %s, %r maps, log-SNRs from %.2f to %.2f, "
        "validation bound %.4f nats per row",
        len(rows),
        model.control,
        sorted(model.references),
        model.space.marginal_map.kind,
        *model.logsnr[[0, -1]],
        model.entropy,
    )
    return model


def check_bounds(
    X: Array,
    settings: FitSettings,
    dequantizer: Dequantizer | None,
    known: TableSpace | None,
) -> None:
    """Raise an error if rows are not between given bounds, or between those of a given space."""
    names = settings.feature_names
    labels = [str(j) if names is None else repr(str(names[j])) for j in range(X.shape[1])]
    if settings.bounds is not None:
        check_inside(
            X,
            bounds_of_cells(settings.bounds, dequantizer),
            labels,
            "Set wider bounds, or leave the row out.",
        )
    if known is not None:
        known.check_inside(X, labels)


def bounds_of_cells(bounds: Array, dequantizer: Dequantizer | None) -> Array:
    """Return the bounds of values with the noise of dequantisation."""
    return bounds if dequantizer is None else around_cells(bounds, dequantizer.step)


def candidate_bounds(
    varying: WeightedRows,
    continuous: NDArray[np.intp],
    report: ColumnReport,
    settings: FitSettings,
    dequantizer: Dequantizer | None,
) -> Array | None:
    """Return the bounds of continuous columns that are given, or shown by the rows, if any are.

    Only a choice of maps on validation rows judges bounds that are shown, and only if all rows are
    known.
    """
    if settings.bounds is not None:
        bounds = bounds_of_cells(settings.bounds, dequantizer)[continuous]
        return bounds if np.isfinite(bounds).any() else None
    judged = settings.marginals == "auto" and len(varying) >= LEAST_ROWS_TO_SPLIT
    judged = judged and not isinstance(settings.reference, ContinuousReference)
    if not settings.finds_bounds or not judged or settings.stream is not None:
        return None
    least, greatest = varying.X.min(axis=0), varying.X.max(axis=0)
    if settings.extent is not None:
        least = np.minimum(least, settings.extent[0][continuous])
        greatest = np.maximum(greatest, settings.extent[1][continuous])
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


def law_beyond_bounds(
    space: TableSpace, rows: WeightedRows, settings: FitSettings
) -> BeyondBounds | None:
    """Return the law of rows beyond bounds that none of the rows crosses; None if given ones."""
    if space.bounds is None or settings.bounds is not None:
        return None
    continuous = rows.columns(space.layout.n_continuous)
    gaussian = GaussianReference.fit(continuous.X, continuous.weight)
    reference: Reference = gaussian
    if space.layout.variables:
        marginals = smoothed_marginals(rows, space.layout)
        reference = IndependentReference(space.layout, marginals, gaussian)
    return BeyondBounds(reference, 1.0 / (len(rows) + 2.0))


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
    if settings.has_images or has_given_units(settings):
        return image_space(grouped, settings, n_weighted)
    is_continuous = np.array([kind.n_levels == 0 for kind in kinds], dtype=bool)
    varies = grouped.X.min(axis=0) < grouped.X.max(axis=0)
    continuous = np.flatnonzero(is_continuous & varies)
    varying = WeightedRows(np.ascontiguousarray(grouped.X[:, continuous]), grouped.weight)
    standardizer = Standardizer.fit(varying.X, varying.weight)
    inspected = inspect_columns(varying, standardizer.scale, n_weighted)
    report = _full_report(inspected, continuous, len(kinds))
    discrete = np.flatnonzero([kind.n_levels > 1 for kind in kinds])
    coded = WeightedRows(np.hstack([varying.X, grouped.X[:, discrete]]), grouped.weight)
    modelled = [kind for kind in kinds if kind.n_levels > 1]
    bounds = candidate_bounds(varying, continuous, report, settings, dequantizer)
    standardizer, anchored = anchored_at(standardizer, bounds)
    space = TableSpace(
        n_columns=len(kinds),
        continuous=continuous,
        discrete=discrete,
        constant=np.flatnonzero(is_continuous & ~varies),
        constant_values=grouped.X[0].copy(),
        standardizer=standardizer,
        marginal_map=MarginalMap("standard", ()),
        layout=make_layout(modelled, coded, len(continuous), settings.image_shape is not None),
        log_seen=np.array([kind.log_seen for kind in kinds], dtype=np.float64),
        bounds=bounds,
        anchored=anchored,
    )
    return space, report


def noise_steps(dequantizer: Dequantizer, space: TableSpace) -> Array:
    """Return the steps that the log-SNR must resolve: some of the finest noise, in all columns."""
    step = dequantizer.step[space.continuous] / space.standardizer.scale
    finest = step[step > 0].min(initial=1.0)
    return np.where(step > 0, finest / FINENESS_OF_DEQUANTIZATION, 0.0)


def has_given_units(settings: FitSettings) -> bool:
    """Return whether a denoiser says which values are -1 and 1 for it."""
    return settings.denoiser is not None and settings.denoiser.data_range is not None


def image_space(
    grouped: WeightedRows, settings: FitSettings, n_weighted: float
) -> tuple[TableSpace, ColumnReport]:
    """Return a space in which all columns, varying or not, have one center and one scale."""
    n_columns = grouped.X.shape[1]
    if settings.denoiser is not None and settings.denoiser.data_range is not None:
        low, high = settings.denoiser.data_range
        center, scale = 0.5 * (low + high), 0.5 * (high - low)
    else:
        center = float(grouped.share @ grouped.X.mean(axis=1))
        scale = math.sqrt(float(grouped.share @ ((grouped.X - center) ** 2).mean(axis=1))) or 1.0
    standardizer = Standardizer(np.full(n_columns, center), np.full(n_columns, scale))
    space = TableSpace(
        n_columns=n_columns,
        continuous=np.arange(n_columns),
        discrete=np.arange(0),
        constant=np.arange(0),
        constant_values=grouped.X[0].copy(),
        standardizer=standardizer,
        marginal_map=MarginalMap("standard", (AffineMap(),) * n_columns),
        layout=make_layout([], grouped, n_columns, False),
        log_seen=np.zeros(n_columns),
        is_mapped=True,
    )
    return space, inspect_columns(grouped, standardizer.scale, n_weighted)


def make_dequantizer(
    grouped: WeightedRows, settings: FitSettings, seeds: Seeds, previous: TableModel | None
) -> Dequantizer | None:
    """Return what adds noise to the rows, None if nothing does."""
    if settings.dequantize is False:
        return None
    if previous is not None and previous.dequantizer is not None:
        previous.dequantizer.check(grouped.X, settings.feature_names)
        return previous.dequantizer
    step = None if settings.dequantize is True else settings.dequantize
    found = Dequantizer.fit(grouped.X, step, settings.has_images, seeds.scoring + 3, grouped.weight)
    found.check(grouped.X, settings.feature_names)
    return found


def in_counts(grouped: WeightedRows, weight: Array) -> WeightedRows:
    """Return grouped rows with weights that are numbers of observations.

    Weights that are multiples of a common unit are counts of it.  Others are scaled to sum to the
    number of observations of equal weight that tell as much (Kish's effective sample size).
    """
    units = in_common_units(weight[weight > 0])
    if np.array_equal(units, np.rint(units)):
        total = min(float(units.sum()), MOST_OBSERVATIONS)
        return WeightedRows(grouped.X, np.maximum(np.rint(grouped.share * total), 1.0))
    return WeightedRows(grouped.X, grouped.share * effective_number(units))


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
    Where one is not, and of images, they are copies of one.
    """
    varies = counted.X.min(axis=0) < counted.X.max(axis=0)
    has_probabilities = bool((dequantizer.step[varies] > 0).all()) and not settings.has_images
    least = 0 if settings.has_images else LEAST_NOISY_COPIES
    most = affordable_rows(counted.X.shape[1])
    return dequantizer.noisy_copies(counted, least, most, one=not has_probabilities)


def n_observations(rows: WeightedRows, space: TableSpace) -> int:
    """Return the number of rows that count: of a discrete table all, else the distinct ones.

    Noisy copies of one source are one row.
    """
    if rows.source is not None:
        return min(len(np.unique(rows.source)), round(float(rows.weight.sum())))
    return round(float(rows.weight.sum())) if space.is_discrete else len(rows)


def check_varying_columns(
    space: TableSpace, settings: FitSettings, previous: TableModel | None
) -> None:
    """Raise an error if columns do not vary where something given needs them to."""
    names = settings.feature_names
    constant = np.isin(np.arange(space.n_columns), space.constant)
    if isinstance(settings.reference, ContinuousReference) and constant.any():
        raise ValueError(
            f"A reference object needs all columns to vary; column(s) "
            f"{column_labels(constant, names)} are constant. Leave them out of both."
        )
    if previous is not None and not np.array_equal(space.constant, previous.space.constant):
        earlier = np.isin(np.arange(space.n_columns), previous.space.constant)
        raise ValueError(
            f"warm_start needs the columns that vary to be those of the earlier fit; column(s) "
            f"{column_labels(constant != earlier, names)} changed. Set warm_start=False to fit "
            "anew."
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
            f"Column(s) {column_labels(constant, names)} are constant and have no density; "
            f"they enter as normal densities with {CONSTANT_WIDTH:g} of their value (or of 1) as "
            "standard deviation. Leave them out to avoid this.",
        )
    if tied.any():
        advice = "set dequantize=True" if dequantizer is None else "give their steps in dequantize"
        warn(
            f"Column(s) {column_labels(tied, names)} have many equal or coarsely rounded "
            "values, for which no density exists; log-densities depend on how finely they are "
            "resolved. Model them as discrete (an integer dtype or ordinal_features in "
            f"IMMSEMixedDensity), or {advice}.",
        )


def warn_of_few_rows(n_rows: int, space: TableSpace, settings: FitSettings) -> None:
    """Warn of so few rows that the model is the plain reference, unless no more was asked for."""
    plain = ("gaussian", "independent")
    is_enough = settings.max_epochs == 0 and (
        isinstance(settings.reference, ContinuousReference) or settings.reference in plain
    )
    if n_rows >= LEAST_ROWS_TO_SPLIT or (is_enough and settings.denoiser is None):
        return
    model = "independent columns" if space.layout.variables else "a single normal distribution"
    rows = "rows" if space.is_discrete else "distinct rows"
    text = (
        f"There are fewer than {LEAST_ROWS_TO_SPLIT} {rows}: the model is {model}, without "
        "networks or other experts, and no rows are held out, so that entropy_ is NaN."
    )
    n_columns = len(space.continuous)
    if n_columns and n_rows <= n_columns + 1 and not settings.has_images:
        text += (
            f" So few rows do not determine a covariance of {n_columns} continuous column(s): "
            "log-densities rest on assumptions, and standard errors of score_samples, which are "
            "those of the numerical integration alone, do not show how uncertain they are."
        )
    warn(text)


def split_rows(
    rows: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    seed: int,
    groups: RowGroups | None = None,
) -> tuple[WeightedRows, WeightedRows]:
    """Return training and validation rows; very few rows serve as both."""
    if n_observations(rows, space) < LEAST_ROWS_TO_SPLIT:
        return rows, rows
    is_counted = space.is_discrete
    together = rows_together(rows, space, settings, groups, is_counted)
    if together is None:
        return split_independent_rows(rows, settings, seed, is_counted)
    valid = split_groups(together, rows, settings, seed, is_counted)
    return together.part(rows, ~valid), together.part(rows, valid)


def split_independent_rows(
    rows: WeightedRows, settings: FitSettings, seed: int, is_counted: bool
) -> tuple[WeightedRows, WeightedRows]:
    """Return training and validation rows of those that are independent.

    ``is_counted`` says whether weights are numbers of observations.
    """
    split = rows.split
    if is_counted:
        counts = np.maximum(np.rint(rows.weight), 1.0)
        # Fractional weights of few states are as good as counts; rows of many are kept whole.
        if np.array_equal(counts, rows.weight) or len(rows) < LEAST_ROWS_TO_SPLIT:
            split = WeightedRows(rows.X, counts).split_copies
    return split(settings.validation_fraction, MOST_VALIDATION_ROWS, seed)


def split_groups(
    groups: RowGroups, rows: WeightedRows, settings: FitSettings, seed: int, is_counted: bool
) -> NDArray[np.bool_]:
    """Return which of the rows that groups list validate."""
    fraction, most = settings.validation_fraction, MOST_VALIDATION_ROWS
    return groups.split(rows, fraction, most, seed, in_counts=is_counted)


def rows_together(
    rows: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    groups: RowGroups | None,
    is_counted: bool,
) -> RowGroups | None:
    """Return the groups of rows that have to be on one side of a split, None if there are none.

    They are those given, or near-copies of continuous rows.  Equal rows that are counted are
    different observations, which may be in different groups; of other tables groups with a row in
    common are one.
    """
    if is_counted or rows.source is not None:
        return groups
    if groups is not None:
        return groups.joined(rows)
    if not settings.near_copies or space.layout.variables or settings.has_images:
        return None
    links = near_copies(rows.X)
    if not len(links):
        return None
    joined = RowGroups.alone(rows).joined(rows, links)
    warn_about_near_copies()
    # A chain of near-copies through all rows leaves nothing to divide.
    return joined if joined.largest_share <= LARGEST_SHARE_OF_COPIES else None


def warn_about_near_copies() -> None:
    """Warn that rows are not independent, so that new rows may not be like those that validate."""
    warn(
        "Rows are nearer to each other than independent rows would be, as if they were measured "
        "twice or copied with noise. Where possible such rows train together or validate "
        "together, but the density of new rows may still be estimated from fewer independent ones "
        "than there seem to be. If rows belong together, pass groups to fit, and split them by "
        "group in cross-validation; otherwise remove the copies."
    )


def fit_analytic_side(
    space: TableSpace,
    train_rows: WeightedRows,
    valid_rows: WeightedRows,
    step: Array,
    settings: FitSettings,
    seed: int,
) -> tuple[MappedSplit, dict[str, Reference]]:
    """Return the mapped rows and the references; the first of several processes finds them."""

    def mapped_and_fitted(stop: threading.Event) -> tuple[MappedSplit, dict[str, Reference]]:
        split = _map_columns(space, train_rows, valid_rows, step, settings, seed)
        references, optimism = fit_references(split, step, settings, seed, stop, split.judged)
        return replace(split, optimism=replace(split.optimism, mixture=optimism)), references

    if settings.processes.size == 1:
        return run_interruptibly(mapped_and_fitted)

    def found_by_one() -> tuple[TableSpace, dict[str, Reference], Optimism]:
        split, references = run_interruptibly(mapped_and_fitted)
        return split.space, references, split.optimism

    space, references, optimism = settings.processes.from_first(found_by_one)
    split = MappedSplit.behind(space, train_rows, valid_rows)
    return replace(split, optimism=optimism), references


def _map_columns(
    space: TableSpace,
    train_rows: WeightedRows,
    valid_rows: WeightedRows,
    step: Array,
    settings: FitSettings,
    seed: int,
) -> MappedSplit:
    """Return the rows behind the chosen marginal map."""
    if space.is_mapped:
        return MappedSplit.behind(space, train_rows, valid_rows)
    kinds = marginal_kinds(settings.marginals)
    if isinstance(settings.reference, ContinuousReference) or valid_rows is train_rows:
        kinds = kinds[:1]
    regularization = mixture_regularization(step)
    is_choice = space.bounds is not None and settings.bounds is None
    spaces = [space, replace(space, bounds=None)] if is_choice else [space]
    resolution = None
    if kernels_may_be_experts(space, settings):
        resolution = float(step.max(initial=0.0))
    return choose_marginal_map(
        kinds, spaces, train_rows, valid_rows, regularization, seed, resolution
    )


def fit_references(
    split: MappedSplit,
    step: Array,
    settings: FitSettings,
    seed: int,
    stop: threading.Event,
    judged: bool,
) -> tuple[dict[str, Reference], Array | float]:
    """Return the references that the settings ask for and that validation rows can judge.

    With them comes by how much their choice flatters each of these rows.
    """
    random_state = np.random.RandomState(seed)
    asked = {settings.preconditioner, *asked_experts(settings)}
    if settings_ask_for_kernels(settings):
        asked.add("gaussian_mixture")  # between the kernels

    def wanted(name: str) -> bool:
        return judged and (settings.reference in ("auto", name) or name in asked)

    continuous, optimism = _continuous_references(
        split, step, settings, random_state, stop, wanted, judged
    )
    layout = split.space.layout
    if not layout.variables:
        return continuous, optimism
    marginals = smoothed_marginals(split.train, layout)
    independent = IndependentReference(layout, marginals, continuous.get("gaussian"))
    references: dict[str, Reference] = {"independent": independent}
    if "gaussian_mixture" in continuous:
        mixture = continuous["gaussian_mixture"]
        references["gaussian_mixture"] = IndependentReference(layout, marginals, mixture)
    if wanted("latent_class"):
        classes = fit_latent_class_by_validation(
            split, independent, mixture_regularization(step), random_state, stop
        )
        if classes is not None:
            references["latent_class"] = classes
    return references, optimism


def _continuous_references(
    split: MappedSplit,
    step: Array,
    settings: FitSettings,
    random_state: np.random.RandomState,
    stop: threading.Event,
    wanted: Callable[[str], bool],
    judged: bool,
) -> tuple[dict[str, Reference], Array | float]:
    """Return the references of the continuous columns, and how their choice flatters rows."""
    if not split.n_continuous:
        return {}, 0.0
    train = split.continuous_train
    if settings.has_images:
        valid = split.continuous_valid if judged else None
        gaussian = fit_gaussian_by_validation(train, valid, random_state)
    else:
        gaussian = GaussianReference.fit(train.X, train.weight)
    references: dict[str, Reference] = {"gaussian": gaussian}
    standardizer = split.space.standardizer
    if isinstance(settings.reference, ContinuousReference):
        references["reference"] = settings.reference.standardized(
            standardizer.center, standardizer.scale
        )
    elif "reference" in settings.experts:
        raise ValueError(
            "experts names 'reference', which needs a ContinuousReference object as the parameter "
            "reference."
        )
    optimism: Array | float = 0.0
    if wanted("gaussian_mixture") and not settings.has_images:
        mixture, optimism = fit_mixture_by_validation(
            train, split.continuous_valid, mixture_regularization(step), random_state, stop
        )
        if mixture is not None:
            references["gaussian_mixture"] = mixture
    return references, optimism


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let no estimator have kernels among its experts that does not ask for them.

    Rows of the training set are to be ranked among themselves, and not all of them have a kernel.
    """
    token = _kernels_by_default.set(False)
    try:
        yield
    finally:
        _kernels_by_default.reset(token)


def kernels_by_default() -> bool:
    """Return whether kernels may be experts here without being asked for."""
    return _kernels_by_default.get()


def kernel_reference(
    split: MappedSplit, references: dict[str, Reference], step: Array, settings: FitSettings
) -> dict[str, Reference]:
    """Return the density of kernels by its name, if it is wanted and better than the mixture.

    A fit without networks is meant to be quick, and gets it only if it is asked for.
    """
    judged = not np.array_equal(split.valid.X, split.train.X)
    if not judged or not kernels_may_be_experts(split.space, settings):
        return {}
    plain = references.get("gaussian_mixture", references["gaussian"])
    assert isinstance(plain, GaussianReference | GaussianMixtureReference)

    def fitted(stop: threading.Event) -> KernelDensityReference | None:
        resolution = float(step.max(initial=0.0))
        return fit_kernel_density_by_validation(split.train, split.valid, plain, resolution, stop)

    density = settings.processes.from_first(lambda: run_interruptibly(fitted))
    return {} if density is None else {KERNELS: density}


def kernels_may_be_experts(space: TableSpace, settings: FitSettings) -> bool:
    """Return whether the columns and the settings allow kernels among the experts."""
    by_default = (settings.reference, settings.experts) == ("auto", "auto")
    by_default = by_default and settings.kernels and settings.max_epochs > 0
    # Apple's devices have no double precision, which narrow kernels need.
    possible = not settings.has_images and settings.device.type != "mps"
    possible = possible and not space.layout.variables
    return possible and (settings_ask_for_kernels(settings) or by_default)


def settings_ask_for_kernels(settings: FitSettings) -> bool:
    """Return whether kernels are no choice of the library."""
    return settings.reference == KERNELS or KERNELS in asked_experts(settings)


def asked_experts(settings: FitSettings) -> Collection[str]:
    """Return the names of the experts that are asked for."""
    return () if settings.experts == "auto" else settings.experts


def with_nodes_for_kernels(logsnr: Array, references: dict[str, Reference], step: Array) -> Array:
    """Return the nodes, with more of them beyond the network's where kernels need it."""
    if KERNELS not in references:
        return logsnr
    _, high = logsnr_range([references[KERNELS]], float(step.max(initial=0.0)))
    n_more = max(0, math.ceil((high - logsnr[-1]) / (logsnr[1] - logsnr[0])))
    return np.append(logsnr, np.linspace(logsnr[-1], high, n_more + 1)[1:])


def plain_reference(references: dict[str, Reference]) -> str:
    """Return the name of the smoothest reference: independent columns, or one Gaussian."""
    return "independent" if "independent" in references else "gaussian"


def choose_control(
    references: dict[str, Reference], valid: WeightedRows, settings: FitSettings
) -> str:
    """Return the name of the control variate: the one asked for, else the likeliest expert."""
    if isinstance(settings.reference, ContinuousReference):
        return "reference"
    if settings.reference in references:
        return str(settings.reference)
    plain = plain_reference(references)
    if settings.reference != "auto":
        warn(
            f"reference={settings.reference!r} is not better than the plain reference "
            f"({plain!r}) on the validation rows, or these columns do not allow it; the plain one "
            "is used.",
        )
        return plain
    stacked = [
        name for name in references if settings.experts == "auto" or name in settings.experts
    ]
    share = valid.share
    # Without references in the stack, the smoothest one: the others' errors vary far from the data.
    return max(
        stacked or [plain],
        key=lambda name: float(share @ log_likelihoods(references[name], valid.X)),
    )


def choose_preconditioner(references: dict[str, Reference], settings: FitSettings) -> str:
    """Return the name of the reference that the network corrects."""
    asked, plain = settings.preconditioner, plain_reference(references)
    if asked in references:
        return asked
    if asked != "independent":
        warn(
            f"preconditioner={asked!r} is not better than {plain!r} on the validation rows, or "
            "these columns do not allow it; the latter is used.",
        )
    return plain


def model_range(
    split: MappedSplit, references: dict[str, Reference], step: Array
) -> tuple[float, float]:
    """Return the range of the log-SNR in which a model can differ from its references."""
    layout = split.space.layout
    ranges = []
    if split.n_continuous:
        ranges.append(logsnr_range(list(references.values()), float(step.max(initial=0.0))))
    if layout.variables:
        ranges.append(level_logsnr_range(layout, split.train))
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def networks_to_train(settings: FitSettings, n_rows: int) -> list[str]:
    """Return the names of the networks; an untrained one adds nothing to its reference."""
    trained = settings.max_epochs > 0 or settings.denoiser is not None
    by_default = settings.experts == "auto" and trained
    if n_rows < LEAST_ROWS_TO_SPLIT:
        return []
    has_two_kinds = settings.image_shape is not None and settings.is_discrete
    possible = NETWORKS if has_two_kinds else names_of_networks(number_of_networks(settings))
    return [name for name in possible if by_default or kind_of_expert(name) in settings.experts]


def number_of_networks(settings: FitSettings) -> int:
    """Return how many networks of one kind are trained.

    A second one is worth its time where both see rows that are in memory, each with a core.
    Callbacks of the user, such as one that writes checkpoints to a file, may know of one only.
    """
    if settings.n_networks is not None:
        return settings.n_networks
    in_memory = settings.stream is None and settings.processes.size == 1
    has_several = settings.has_table_network and in_memory and not settings.callbacks
    return NETWORKS_OF_A_TABLE if has_several else 1


def is_large(image_shape: tuple[int, ...]) -> bool:
    """Return whether images have so many pixels that one thread is slow."""
    return math.prod(image_shape) > MOST_PIXELS_FOR_ONE_THREAD


def train_networks(
    names: Sequence[str],
    model: TableModel,
    split: MappedSplit,
    settings: FitSettings,
    previous: TableModel | None,
) -> dict[str, skorch.NeuralNet]:
    """Return the trained nets, built and trained in workers.

    No torch mode of the calling thread reaches those.  Networks that one thread trains are trained
    at the same time, unless callbacks, which they would share, could be in each other's way, or
    other processes take part.
    """
    strands = current_progress().stretch(0.0, SHARE_OF_TRAINING).strands(len(names))
    board = EpochBoard(has_names=len(names) > 1)
    nets: dict[str, skorch.NeuralNet] = {}

    def attributes_now(name: str, net: skorch.NeuralNet) -> dict[str, Any]:
        """Return the attributes of the estimator if its fit ended with the nets that there are."""
        assert settings.attributes_of is not None
        found = nets | {name: net}
        so_far = replace(model, nets=found, history=bound_history(next(iter(found.values()))))
        experts = settings.experts
        if experts != "auto":  # no warning that some are not trained yet
            there = set(map(kind_of_expert, so_far.experts()))
            experts = [expert for expert in experts if expert in there]
        finish_stacking(so_far, split, replace(settings, experts=experts))
        return settings.attributes_of(so_far)

    jobs = {
        name: partial(
            train_network,
            name,
            model,
            split,
            settings,
            previous,
            TrainingReport(
                name, strand, settings.tasks, partial(attributes_now, name), len(names) == 1, board
            ),
        )
        for name, strand in zip(names, strands, strict=True)
    }
    limited = {name: trains_in_one_thread(name, settings) for name in names}
    is_watched = bool(settings.callbacks) or settings.tasks.are_watched
    alone = settings.processes.size == 1 and not is_watched
    if len(names) > 1 and all(limited.values()) and alone:
        return dict(zip(names, run_all_interruptibly(list(jobs.values())), strict=True))
    for name, job in jobs.items():
        nets[name] = run_interruptibly(job, limited=limited[name])
    return nets


def warn_if_still_improving(nets: Iterable[skorch.NeuralNet], settings: FitSettings) -> None:
    """Warn once if networks would be better after more epochs."""
    if any(dict(net.callbacks_)["control"].is_still_improving for net in nets):
        warn(
            f"The training ended after max_epochs={settings.max_epochs} while the validation bound "
            "was still falling. Increase max_epochs, or steps_per_epoch.",
            ConvergenceWarning,
        )


def trains_in_one_thread(name: str, settings: FitSettings) -> bool:
    """Return whether a network is so small that more threads would not train it faster."""
    shape = settings.image_shape
    large_images = shape is not None and name == NETWORKS[0] and is_large(shape)
    small = settings.hidden_size <= WIDEST_FOR_ONE_THREAD and not large_images
    return settings.device.type == "cpu" and small


def range_of_network(model: TableModel) -> tuple[float, float]:
    """Return the log-SNRs between which networks are trained; kernels may reach beyond."""
    return float(model.logsnr[0]), float(model.logsnr[:N_NODES][-1])


def cross_entropy_in_data_units(model: TableModel, split: MappedSplit) -> float:
    """Return the preconditioner's mean negative log-likelihood of the validation rows."""
    mapped = log_likelihoods(model.references[model.preconditioner], split.valid.X)
    mean = float(split.valid.share @ (mapped + split.valid_log_slope))
    return -mean - model.constant_term


def build_network(
    name: str,
    model: TableModel,
    rows: WeightedRows,
    settings: FitSettings,
    dropout: float,
    generator: Generator,
) -> Network:
    """Return a network that corrects the preconditioner: untrained, or a copy of the one given."""
    layout = model.space.layout
    low, high = range_of_network(model)
    embedding = LogSNREmbedding(low, high)
    reference = copy.deepcopy(model.references[model.preconditioner]).float()
    if settings.denoiser is not None:
        given = copy.deepcopy(settings.denoiser).float()
        if not any(parameter.requires_grad for parameter in given.parameters()):
            given.requires_grad_(True)
        replace_dropout(given, generator)
        return ReferencedDenoiser(given, reference)
    if settings.has_images:
        assert settings.image_shape is not None
        unet = UNetBackbone(
            settings.image_shape,
            low,
            high,
            width=settings.hidden_size,
            n_blocks=settings.n_blocks,
            dropout=dropout,
            generator=generator,
        )
        return PreconditionedDenoiser(unet, reference, embedding)
    beside = settings.image_shape is not None and name == NETWORKS[1]
    if settings.image_shape is not None and not beside:
        n_outputs = n_level_outputs(layout) // len(layout.variables)
        backbone: torch.nn.Module = ConvolutionalNetwork(
            settings.image_shape,
            n_outputs,
            embedding,
            width=settings.hidden_size,
            n_blocks=settings.n_blocks,
            dropout=dropout,
            generator=generator,
        )
    else:
        backbone = ResidualMLP(
            layout.n_points,
            embedding,
            width=WIDTH_BESIDE_CONVOLUTIONS if beside else settings.hidden_size,
            n_blocks=2 if beside else settings.n_blocks,
            n_frequencies=settings.n_frequencies,
            dropout=dropout,
            generator=generator,
            n_periodic=n_periodic_inputs(layout),
            n_outputs=layout.n_continuous + n_level_outputs(layout),
        )
    if not isinstance(reference, DiscreteReference):
        return PreconditionedDenoiser(backbone, reference, embedding)
    inputs: Reference = reference
    if not isinstance(inputs, IndependentReference):
        inputs = copy.deepcopy(model.references["independent"]).float()
    assert isinstance(inputs, IndependentReference)
    counts = level_counts(rows, layout)
    return LevelDenoiser(backbone, reference, inputs, embedding, counts)


def train_network(
    name: str,
    model: TableModel,
    split: MappedSplit,
    settings: FitSettings,
    previous: TableModel | None,
    report: TrainingReport,
    stop: threading.Event,
) -> skorch.NeuralNet:
    """Return the trained skorch net."""
    # Warm starts go on with other noise.
    generator = CopyableGenerator().manual_seed(
        model.seeds.network + model.n_fits - 1 + 1_000_003 * number_of_network(name)
    )
    low, high = range_of_network(model)
    n_rows = n_observations(split.train, split.space)
    if settings.stream is not None:
        n_rows += len(settings.stream)
    has_levels = bool(split.space.layout.variables)
    dropout, weight_decay = regularization_for(name, n_rows, has_levels, settings)
    denoiser = build_network(name, model, split.train, settings, dropout, generator)
    if previous is not None and name in previous.nets:
        _copy_weights(previous.nets[name].module_.averaged, denoiser)
    plan = TrainingPlan(
        density=settings.schedule.density(low, high, spectrum_of(split)),
        adaptive=settings.schedule.adaptive,
        batch_size=settings.batch_size,
        n_batches=settings.steps_per_epoch or epoch_length(n_rows, has_levels, settings),
        max_epochs=settings.max_epochs,
        learning_rate=settings.learning_rate,
        weight_decay=weight_decay,
        patience=settings.patience,
        n_validation_noises=n_validation_noises(len(split.valid), split.space, settings),
        verbose=settings.verbose,
        micro_batch_size=settings.micro_batch_size,
        processes=settings.processes,
    )
    net = train(
        DenoisingObjective(
            denoiser,
            copy.deepcopy(split.space.layout).float(),
            offset=cross_entropy_in_data_units(model, split),
            loss=settings.loss,
        ),
        training_rows(model, split, settings),
        RowDataset(split.valid.X, split.valid.weight, settings.device),
        plan,
        generator,
        adapt=density_adapter(model, split, plan.density, settings.processes),
        callbacks=list(settings.callbacks),
        device=settings.device,
        interrupted=stop,
        report=report,
    )
    net.forget_training()
    return net


def training_rows(
    model: TableModel, split: MappedSplit, settings: FitSettings
) -> RowDataset | StreamedRows:
    """Return the rows to train on; the noise of dequantisation is new in each step if it can be."""
    dequantizer, space, device = model.dequantizer, split.space, settings.device

    def mapped(values: Array) -> Array:
        return space.rows(space.standardized(values))[0]

    n_seen = 0

    def prepared(values: Array) -> Array:
        nonlocal n_seen
        if values.shape[1] != space.n_columns or not np.isfinite(values).all():
            raise ValueError(f"X has rows or items that are not {space.n_columns} finite numbers.")
        if dequantizer is not None:
            dequantizer.check(values, settings.feature_names)
        check_bounds(values, settings, dequantizer, space)
        if fresh or dequantizer is None:
            return mapped(values)
        numbers = n_seen + np.arange(len(values))
        n_seen += len(values)
        return mapped(dequantizer.noisy(values, numbers))

    # Behind other maps the width of a cell varies, so there each row has one noise for good.
    fresh = dequantizer is not None and space.marginal_map.is_identity
    rows, width = split.train.X, None
    if dequantizer is not None and fresh:
        rows = mapped(dequantizer.rounded(space.values(rows)))
        width = dequantizer.step[space.continuous] / space.standardizer.scale
    if settings.stream is None:
        return RowDataset(rows, split.train.weight, device, width)
    # The stream's rows, which take the places of these, have no weights.
    alike = resample_rows(
        WeightedRows(rows, split.train.weight),
        2 * len(rows),
        np.random.RandomState(model.seeds.network),
    )
    return StreamedRows(
        settings.stream, prepared, RowDataset(alike, np.ones(len(alike)), device, width)
    )


def spectrum_of(split: MappedSplit) -> Array:
    """Return the eigenvalues of the covariance of the training points, at least 1e-6."""
    sample = split.train
    if split.space.layout.variables:
        sample = sample.take(np.arange(min(len(sample), MOST_ROWS_FOR_SPECTRUM)))
    points = split.space.layout.embed_array(sample.X)
    if points.shape[1] > len(points):
        # The eigenvalues other than 0 are those of the smaller matrix of products of rows.
        points = (np.sqrt(sample.share)[:, None] * (points - sample.share @ points)).T
        return np.asarray(np.maximum(np.linalg.eigvalsh(points.T @ points), 1e-6))
    # One row may have all the weight that numbers can tell.
    ddof = 0 if float((sample.share**2).sum()) >= 1.0 else 1
    covariance = np.atleast_2d(np.cov(points.T, aweights=sample.weight, ddof=ddof))
    return np.asarray(np.maximum(np.linalg.eigvalsh(covariance), 1e-6))


def _copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy the weights of an earlier network of the same size."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(
            "warm_start needs a network of the same size as in the earlier fit; keep hidden_size, "
            "n_blocks and n_frequencies, or set warm_start=False."
        ) from error


def regularization_for(
    name: str, n_rows: int, has_levels: bool, settings: FitSettings
) -> tuple[float, float]:
    """Return dropout and weight decay, stronger for fewer rows and for discrete columns.

    Of the networks of a table every other one has half of it: which of them is right differs
    between log-SNRs, where the validation rows weigh them.
    """
    scarcity = float(np.clip(math.log(30_000.0 / n_rows) / math.log(30.0), 0.0, 1.0))
    if has_levels:
        strength, most = scarcity**2, 0.6
    else:
        share = 0.5 if number_of_network(name) % 2 else 1.0
        strength, most = share * scarcity**3, 0.4
    usual = most * strength if most * strength >= LEAST_DROPOUT else 0.0
    dropout = usual if settings.dropout is None else settings.dropout
    decay = 0.3 * strength if settings.weight_decay is None else settings.weight_decay
    return dropout, decay


def epoch_length(n_rows: int, has_levels: bool, settings: FitSettings) -> int:
    """Return the steps of an epoch: fewer where few rows are soon learned by heart."""
    if has_levels or not settings.has_table_network:
        return int(np.clip(round(100 * math.sqrt(n_rows / 5000)), 20, 100))
    steps = np.clip(max(min(n_rows, 1_500), n_rows / 3), 400, 6_400)
    return round(float(steps) / EPOCHS_OF_A_TABLE)


def n_validation_noises(n_rows: int, space: TableSpace, settings: FitSettings) -> int:
    """Return with how many noises an epoch sees each validation row."""
    if space.layout.variables or not settings.has_table_network:
        # Few states, each of many rows, are seen with more noise.
        return max(16, math.ceil(LEAST_VALIDATION_ROWS / n_rows) if space.is_discrete else 0)
    # The epochs of a table are short, and their judgement is not to take much of their time.
    return int(np.clip(math.ceil(NOISY_VALIDATION_ROWS / n_rows), 4, 32))


def density_adapter(
    model: TableModel, split: MappedSplit, base: PiecewiseDensity, processes: Processes
) -> Callable[[Network], PiecewiseDensity]:
    """Return a function that refits the importance density to the validation gap."""
    most = IMAGES_TO_ADAPT if model.has_images else ROWS_TO_ADAPT
    few = split.valid.take(np.arange(min(len(split.valid), most)))
    keys = row_keys(few.X, 1)
    points = split.space.layout.embed_array(few.X)
    noise = replace(profile_noise(points.shape[1], model.has_images), seed=2)
    plain, nodes = model.preconditioner, model.logsnr[:N_NODES]

    def adapt(network: Network) -> PiecewiseDensity:
        network.eval()
        profile = error_profile(
            points,
            few.weight,
            keys,
            {"network": network_denoiser(network), plain: model.experts()[plain]},
            nodes,
            noise,
            budget=model.budget,
            device=model.device,
            dtype=model.precision,
        )
        gap = profile.row_errors(profile.vertex(plain)) - profile.row_errors(
            profile.vertex("network")
        )
        height = np.sqrt(gap**2 @ profile.row_weight)
        centers = 0.5 * (base.edges[1:] + base.edges[:-1])
        measured = PiecewiseDensity.from_profile(
            base.edges, np.interp(centers, nodes, height), floor=0.1
        )
        return PiecewiseDensity(base.edges, 0.5 * base.mass + 0.5 * measured.mass)

    return lambda network: processes.from_first(lambda: adapt(network))


def bound_history(net: skorch.NeuralNet) -> list[dict[str, float]]:
    """Return the bounds of each epoch, in nats per row."""
    return [
        {
            "epoch": int(row["epoch"]),
            "train_bound": float(row["train_loss"]),
            "valid_bound": float(row["valid_loss"]),
        }
        for row in net.history
        if "valid_loss" in row
    ]


def finish_stacking(model: TableModel, split: MappedSplit, settings: FitSettings) -> None:
    """Set the weights of the experts, the validation bound and the scoring rule, in place."""
    n_rows = n_profile_rows(model, len(split.valid))
    valid, log_slope = split.valid.take(np.arange(n_rows)), split.valid_log_slope[:n_rows]
    folds = fold_weights(valid, model.space.is_discrete)
    keys = row_keys(valid.X, model.seeds.scoring + 1)
    if model.space.is_discrete:
        times = times_to_repeat(valid, LEAST_PROFILE_ROWS)
        valid, keys = repeated(valid, keys, LEAST_PROFILE_ROWS)
        log_slope, folds = np.zeros(len(valid)), np.repeat(folds / times, times, axis=1)
    experts = model.experts()
    model.expert_names = chosen_experts(settings, list(experts), model.control)
    profile = model.profile(valid.X, valid.weight, keys, valid.source)
    if KERNELS in model.references and not settings_ask_for_kernels(settings):
        profile = without_dear_kernels(model, profile, split, settings)
    members = restrict_profile(profile, model.expert_names)
    plain = expert_of_few_rows(model)
    model.weights = stacking_weights(members, plain)
    model.curve = summarize_profile(profile, model.expert_names, model.weights, model.network_names)
    difference = profile.row_errors(profile.vertex(model.control)) - crossfitted_errors(
        members, plain, folds
    )
    log_density = log_likelihoods(model.references[model.control], valid.X)
    log_density += log_slope + members.integral(difference)
    if not model.space.is_discrete:
        used = dict(zip(members.names, model.weights.mean(axis=0), strict=True))
        plainest = plain_reference(model.references)
        log_density -= split.optimism.of_stack(used, plainest, len(split.valid))[:n_rows]
    if split.judged:
        mean, model.entropy_std = mean_and_std(
            log_density, valid, members.n_observations, variance_of_control(model, split)
        )
        model.entropy = -mean - model.constant_term
    model.rule = scoring_rule(
        model, split.valid.take(np.arange(min(len(split.valid), 100))), settings
    )


def variance_of_control(model: TableModel, split: MappedSplit) -> float:
    """Return the variance of the control variate's log-likelihood over training rows."""
    rows = split.train.take(np.arange(min(len(split.train), MOST_PROFILE_ROWS)))
    log_density = log_likelihoods(model.references[model.control], rows.X)
    log_density += np.broadcast_to(split.train_log_slope, len(split.train))[: len(rows)]
    return float(rows.share @ (log_density - rows.share @ log_density) ** 2)


def without_dear_kernels(
    model: TableModel, profile: ErrorProfile, split: MappedSplit, settings: FitSettings
) -> ErrorProfile:
    """Return the profile of the experts that are kept, and drop kernels that bring little.

    They must lower the validation bound of the stack by more than 0.02 nats and one standard error.
    """
    members = restrict_profile(profile, model.expert_names)
    others = restrict_profile(profile, [name for name in model.expert_names if name != KERNELS])
    plain = expert_of_few_rows(model)
    errors, errors_of_others = (
        part.row_errors(stacking_weights(part, plain)) for part in (members, others)
    )
    gain = profile.integral(errors_of_others - errors)
    mean, error = mean_and_error(gain, profile.row_weight, source=profile.source)
    if settings.processes.from_first(lambda: mean > max(error, LEAST_GAIN_OF_KERNELS)):
        return profile
    model.references = {name: r for name, r in model.references.items() if name != KERNELS}
    model.expert_names = others.names
    model.logsnr = model.logsnr[:N_NODES]
    if model.control == KERNELS:
        model.control = choose_control(model.references, split.valid, settings)
    kept = restrict_profile(profile, [name for name in profile.names if name != KERNELS])
    return replace(kept, logsnr=kept.logsnr[:N_NODES], gram=kept.gram[:N_NODES])


def n_profile_rows(model: TableModel, n_rows: int) -> int:
    """Return how many of the validation rows the error profile can afford."""
    affordable = MOST_PROFILE_WORK // (len(model.logsnr) * model.widest)
    return min(n_rows, MOST_PROFILE_ROWS, max(100, affordable))


def expert_of_few_rows(model: TableModel) -> str:
    """Return the expert to which few validation rows draw the weights back.

    It is the one that no choice on those rows has favoured, or with levels the control variate,
    which has passed a one-standard-error rule of its own.
    """
    if model.space.layout.variables and model.control in model.expert_names:
        return model.control
    plain = plain_reference(model.references)
    return plain if plain in model.expert_names else model.expert_names[0]


def times_to_repeat(rows: WeightedRows, least: int) -> int:
    """Return how often rows are repeated to be at least so many."""
    return math.ceil(least / len(rows))


def repeated(
    rows: WeightedRows, keys: NDArray[np.uint64], least: int
) -> tuple[WeightedRows, NDArray[np.uint64]]:
    """Return rows repeated with different keys, so that few states are seen with enough noise."""
    times = times_to_repeat(rows, least)
    many = WeightedRows(np.repeat(rows.X, times, axis=0), np.repeat(rows.weight / times, times))
    return many, spawn_keys(keys, times).ravel()


def chosen_experts(settings: FitSettings, available: list[str], control: str) -> Sequence[str]:
    """Return the names of the experts to stack."""
    if settings.experts == "auto":
        return tuple(available)
    chosen = tuple(name for name in available if kind_of_expert(name) in settings.experts)
    missing = sorted(set(settings.experts) - set(map(kind_of_expert, chosen)))
    if missing:
        warn(
            f"experts names {missing}, which these rows do not allow: a network needs "
            f"{LEAST_ROWS_TO_SPLIT} rows (distinct ones if columns are continuous), "
            "gaussian_mixture continuous columns, kernel_density at most 50 of them and no others, "
            "latent_class discrete ones, and these have to be better than the plain reference on "
            "the validation rows, kernel_density than the mixture.",
        )
    return chosen or (control,)


def restrict_profile(profile: ErrorProfile, names: Sequence[str]) -> ErrorProfile:
    """Return the profile of some of the experts."""
    index = [list(profile.names).index(name) for name in names]
    return replace(profile, names=tuple(names), gram=profile.gram[:, :, index][..., index])


def scoring_rule(
    model: TableModel, valid: WeightedRows, settings: FitSettings
) -> IntegrationRule | None:
    """Return the integration rule fitted to the validation gap, None if there is no gap."""
    control = (
        list(model.expert_names).index(model.control)
        if (model.control in model.expert_names)
        else None
    )
    differs = np.ones(len(model.logsnr), dtype=bool)
    if control is not None:
        differs = model.weights[:, control] < 1.0
    if not differs.any():
        return None
    first, last = np.flatnonzero(differs)[[0, -1]]
    nodes = slice(max(first - 1, 0), min(last + 2, len(model.logsnr)))
    keys = row_keys(valid.X, model.seeds.scoring + 2)
    if model.space.is_discrete:
        valid, keys = repeated(valid, keys, 100)
    points = model.space.layout.embed_array(valid.X)
    noise = scoring_noise(model.space, model.seeds.scoring, settings.n_directions, model.has_images)
    placement = fit_placement(
        points,
        keys,
        model.paired(),
        noise,
        model.logsnr[nodes],
        budget=model.budget,
        device=model.device,
        dtype=model.precision,
    )
    return IntegrationRule(placement, noise, settings.n_strata, settings.n_draws)


def _empty_model(
    grouped: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    seeds: Seeds,
    dequantizer: Dequantizer | None,
) -> TableModel:
    """Return the model of rows without columns that vary."""
    if dequantizer is not None:
        lattice = dequantizer.rounded(space.constant_values[None])[0]
        space = replace(space, constant_values=lattice)
    model = TableModel(
        space=space,
        references={},
        control="",
        preconditioner="",
        nets={},
        logsnr=np.empty(0),
        expert_names=(),
        weights=np.empty((0, 0)),
        rule=None,
        seeds=seeds,
        device=settings.device,
        dequantizer=dequantizer,
    )
    model.entropy = -float(model.log_density(space.constant_values[None])[0][0])
    model.entropy_std = 0.0
    return model
