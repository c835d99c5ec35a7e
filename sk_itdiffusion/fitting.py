"""How the model behind the continuous estimator is fitted.

Rows are grouped and split, the columns are standardised and mapped, references are fitted, the
network is trained on what they lack, and at each log-SNR the experts are stacked by their
validation errors.
"""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from torch import Generator

from sk_itdiffusion.cubature import NoiseRule, PiecewiseDensity, row_keys
from sk_itdiffusion.denoisers import PreconditionedDenoiser, ResidualMLP
from sk_itdiffusion.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion.experts import (
    MappedSplit,
    choose_marginal_map,
    fit_mixture_by_validation,
    log_likelihoods,
    logsnr_range,
    marginal_kinds,
    mixture_regularization,
)
from sk_itdiffusion.likelihood import (
    ErrorProfile,
    IntegrationRule,
    error_profile,
    fit_placement,
    stacking_weights,
)
from sk_itdiffusion.marginals import MarginalMap, Standardizer
from sk_itdiffusion.model import (
    CONSTANT_WIDTH,
    NETWORK,
    Seeds,
    TableModel,
    network_denoiser,
    summarize_profile,
)
from sk_itdiffusion.parallel import run_interruptibly
from sk_itdiffusion.references import GaussianReference, Reference
from sk_itdiffusion.rows import (
    ColumnReport,
    WeightedRows,
    column_labels,
    group_rows,
    inspect_columns,
    resample_rows,
)
from sk_itdiffusion.schedules import Schedule
from sk_itdiffusion.training import (
    DenoisingObjective,
    RowDataset,
    TrainingPlan,
    train,
)

__all__ = ["FitSettings", "fit_table_model"]

Array = NDArray[np.float64]

N_NODES = 41
MOST_VALIDATION_ROWS = 10_000
MOST_PROFILE_ROWS = 2_000
#: Distinct rows below which none are spared for validation, and nothing is chosen or trained.
LEAST_ROWS_TO_SPLIT = 40
#: Hidden units up to which one thread trains as fast as several.
WIDEST_FOR_ONE_THREAD = 256


@dataclass(frozen=True)
class FitSettings:
    """The estimator's parameters, resolved and checked."""

    reference: str | Reference
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


def fit_table_model(
    X: Array,
    weight: Array,
    settings: FitSettings,
    random_state: np.random.RandomState,
    previous: TableModel | None = None,
) -> TableModel:
    """Return a model fitted to rows.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Finite rows.
    weight : ndarray of shape (n_samples,)
        Non-negative weights.
    settings : FitSettings
        Parameters.
    random_state : RandomState
        Source of all randomness.
    previous : TableModel or None, default=None
        Model whose maps and references are kept and whose network is trained further.

    Returns
    -------
    TableModel
        The fitted model.
    """
    seeds = Seeds.draw(random_state) if previous is None else previous.seeds
    rows = group_rows(X, weight)
    varies = rows.X.min(axis=0) < rows.X.max(axis=0)
    check_varying_columns(varies, settings, previous)
    varying = WeightedRows(np.ascontiguousarray(rows.X[:, varies]), rows.weight)
    standardizer = Standardizer.fit(varying.X, varying.weight)
    columns = _full_report(inspect_columns(varying, standardizer.scale), varies)
    warn_about_columns(columns, settings.feature_names)
    if not varies.any():
        return _constant_model(rows, columns, standardizer, settings, seeds)
    if previous is not None:
        standardizer, split = _reuse_maps(previous, varying, settings)
        references, control, logsnr = previous.references, previous.control, previous.logsnr
    else:
        standardized = WeightedRows(standardizer.transform(varying.X), rows.weight)
        train_rows, valid_rows = split_rows(standardized, settings, seeds.split)
        split, references = run_interruptibly(
            lambda stop: _fit_analytic_side(
                train_rows, valid_rows, columns, standardizer, settings, seeds.mixtures, stop
            )
        )
        control = choose_control(references, split.valid, settings)
        coarsest = float(columns.step.max(initial=0.0))
        logsnr = np.linspace(*logsnr_range(list(references.values()), coarsest), N_NODES)
    model = TableModel(
        columns=columns,
        constant_values=rows.X[0].copy(),
        standardizer=standardizer,
        marginal_map=split.marginal_map,
        references=references,
        control=control,
        net=None,
        logsnr=logsnr,
        expert_names=(),
        weights=np.empty((N_NODES, 0)),
        rule=None,
        seeds=seeds,
        device=settings.device,
        n_fits=1 if previous is None else previous.n_fits + 1,
    )
    if use_network(settings, len(rows)):
        # Built and trained in the worker, which no torch mode of the calling thread reaches.
        small = settings.device.type == "cpu" and settings.hidden_size <= WIDEST_FOR_ONE_THREAD
        model.net = run_interruptibly(
            lambda stop: train_network(model, split, settings, previous, stop), limited=small
        )
        model.history = bound_history(model.net)
    finish_stacking(model, split, settings)
    return model


def check_varying_columns(
    varies: NDArray[np.bool_], settings: FitSettings, previous: TableModel | None
) -> None:
    """Raise an error if columns do not vary where something given needs them to."""
    names = settings.feature_names
    if isinstance(settings.reference, Reference) and not varies.all():
        raise ValueError(
            f"A reference object needs all columns to vary; column(s) "
            f"{column_labels(~varies, names)} are constant. Leave them out of both."
        )
    if previous is not None and not np.array_equal(varies, previous.columns.varies):
        changed = column_labels(varies != previous.columns.varies, names)
        raise ValueError(
            f"warm_start needs the columns that vary to be those of the earlier fit; column(s) "
            f"{changed} changed. Set warm_start=False to fit anew."
        )


def _full_report(report: ColumnReport, varies: NDArray[np.bool_]) -> ColumnReport:
    """Return the report of the varying columns in the numbering of all columns."""
    tied, step = np.zeros(len(varies), dtype=bool), np.zeros(len(varies))
    tied[varies], step[varies] = report.tied, report.step
    return ColumnReport(varies, tied, step)


def warn_about_columns(columns: ColumnReport, names: Sequence[str] | None) -> None:
    """Warn about columns for which no density exists."""
    if not columns.varies.all():
        warnings.warn(
            f"Column(s) {column_labels(~columns.varies, names)} are constant and have no density; "
            f"they enter as normal densities with {CONSTANT_WIDTH:g} of their value (or of 1) as "
            "standard deviation. Leave them out to avoid this.",
            UserWarning,
            stacklevel=5,
        )
    if columns.tied.any():
        warnings.warn(
            f"Column(s) {column_labels(columns.tied, names)} have many equal or coarsely rounded "
            "values, for which no density exists; log-densities depend on how finely they are "
            "resolved. Model them as discrete, or add uniform noise of the size of their step.",
            UserWarning,
            stacklevel=5,
        )


def split_rows(
    rows: WeightedRows, settings: FitSettings, seed: int
) -> tuple[WeightedRows, WeightedRows]:
    """Return training and validation rows; very few rows serve as both."""
    if len(rows) < LEAST_ROWS_TO_SPLIT:
        return rows, rows
    return rows.split(settings.validation_fraction, MOST_VALIDATION_ROWS, seed)


def _reuse_maps(
    previous: TableModel, varying: WeightedRows, settings: FitSettings
) -> tuple[Standardizer, MappedSplit]:
    """Return the rows behind the maps of an earlier fit."""
    standardizer = previous.standardizer
    rows = WeightedRows(standardizer.transform(varying.X), varying.weight)
    train_rows, valid_rows = split_rows(rows, settings, previous.seeds.split)
    return standardizer, MappedSplit.behind(previous.marginal_map, train_rows, valid_rows)


def _fit_analytic_side(
    train_rows: WeightedRows,
    valid_rows: WeightedRows,
    columns: ColumnReport,
    standardizer: Standardizer,
    settings: FitSettings,
    seed: int,
    stop: threading.Event,
) -> tuple[MappedSplit, dict[str, Reference]]:
    """Return the mapped rows and the references."""
    split = _map_columns(train_rows, valid_rows, columns, settings, seed)
    judged = valid_rows is not train_rows
    return split, fit_references(split, columns, standardizer, settings, seed, stop, judged)


def _map_columns(
    train_rows: WeightedRows,
    valid_rows: WeightedRows,
    columns: ColumnReport,
    settings: FitSettings,
    seed: int,
) -> MappedSplit:
    """Return the rows behind the chosen marginal map."""
    kinds = marginal_kinds(settings.marginals)
    if isinstance(settings.reference, Reference) or valid_rows is train_rows:
        kinds = kinds[:1]
    regularization = mixture_regularization(columns.step)
    return choose_marginal_map(kinds, train_rows, valid_rows, regularization, seed)


def fit_references(
    split: MappedSplit,
    columns: ColumnReport,
    standardizer: Standardizer,
    settings: FitSettings,
    seed: int,
    stop: threading.Event,
    judged: bool,
) -> dict[str, Reference]:
    """Return the references that the settings ask for and that validation rows can judge."""
    random_state = np.random.RandomState(seed)
    X = resample_rows(split.train, max(len(split.train), 100_000), random_state)
    references: dict[str, Reference] = {"gaussian": GaussianReference.fit(X)}
    asked = set() if settings.experts == "auto" else set(settings.experts)
    if isinstance(settings.reference, Reference):
        references["reference"] = settings.reference.standardized(
            standardizer.center, standardizer.scale
        )
    elif "reference" in asked:
        raise ValueError(
            "experts names 'reference', which needs a Reference object as the parameter reference."
        )
    wanted = settings.reference in ("auto", "gaussian_mixture") or "gaussian_mixture" in asked
    if wanted and judged:
        mixture = fit_mixture_by_validation(
            split.train, split.valid, mixture_regularization(columns.step), random_state, stop
        )
        if mixture is not None:
            references["gaussian_mixture"] = mixture
    return references


def choose_control(
    references: dict[str, Reference], valid: WeightedRows, settings: FitSettings
) -> str:
    """Return the name of the control variate: the one asked for, else the likeliest expert."""
    if isinstance(settings.reference, Reference):
        return "reference"
    if settings.reference in references:
        return str(settings.reference)
    if settings.reference == "gaussian_mixture":  # one component validates best
        return "gaussian"
    stacked = [
        name for name in references if settings.experts == "auto" or name in settings.experts
    ]
    share = valid.share
    # Without references in the stack, the smoothest one: the others' errors vary far from the data.
    return max(
        stacked or ["gaussian"],
        key=lambda name: float(share @ log_likelihoods(references[name], valid.X)),
    )


def use_network(settings: FitSettings, n_rows: int) -> bool:
    """Return whether there is a network; an untrained one adds nothing to its reference."""
    by_default = settings.experts == "auto" and settings.max_epochs > 0
    wanted = by_default or NETWORK in settings.experts
    return wanted and n_rows >= LEAST_ROWS_TO_SPLIT


def cross_entropy_in_data_units(model: TableModel, split: MappedSplit) -> float:
    """Return the preconditioner's mean negative log-likelihood of the validation rows."""
    share = split.valid.share
    mapped = log_likelihoods(model.references["gaussian"], split.valid.X)
    log_jacobian = split.valid_log_slope - np.log(model.standardizer.scale).sum()
    return -float(share @ (mapped + log_jacobian))


def train_network(
    model: TableModel,
    split: MappedSplit,
    settings: FitSettings,
    previous: TableModel | None,
    stop: threading.Event,
) -> skorch.NeuralNet:
    """Return the trained skorch net."""
    # Warm starts go on with other noise.
    generator = Generator().manual_seed(model.seeds.network + model.n_fits - 1)
    low, high = float(model.logsnr[0]), float(model.logsnr[-1])
    gaussian = model.references["gaussian"]
    n_rows, n_features = split.train.X.shape
    dropout, weight_decay = regularization_for(n_rows, settings)
    embedding = LogSNREmbedding(low, high)
    denoiser = PreconditionedDenoiser(
        ResidualMLP(
            n_features,
            embedding,
            width=settings.hidden_size,
            n_blocks=settings.n_blocks,
            n_frequencies=settings.n_frequencies,
            dropout=dropout,
            generator=generator,
        ),
        copy.deepcopy(gaussian).float(),
        embedding,
    )
    if previous is not None and previous.net is not None:
        _copy_weights(previous.net.module_.averaged, denoiser)
    spectrum = np.linalg.eigvalsh(
        np.atleast_2d(np.cov(split.train.X.T, aweights=split.train.weight))
    )
    plan = TrainingPlan(
        density=settings.schedule.density(low, high, np.maximum(spectrum, 1e-6)),
        adaptive=settings.schedule.adaptive,
        batch_size=settings.batch_size,
        n_batches=settings.steps_per_epoch or epoch_length(n_rows),
        max_epochs=settings.max_epochs,
        learning_rate=settings.learning_rate,
        weight_decay=weight_decay,
        patience=settings.patience,
        verbose=settings.verbose,
    )
    net = train(
        DenoisingObjective(denoiser, offset=cross_entropy_in_data_units(model, split)),
        RowDataset(split.train.X, split.train.weight, settings.device),
        RowDataset(split.valid.X, split.valid.weight, settings.device),
        plan,
        generator,
        adapt=_adapter(model, split, plan.density),
        callbacks=list(settings.callbacks),
        device=settings.device,
        interrupted=stop,
    )
    net.forget_training()
    return net


def _copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy the weights of an earlier network of the same size."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(
            "warm_start needs a network of the same size as in the earlier fit; keep hidden_size, "
            "n_blocks and n_frequencies, or set warm_start=False."
        ) from error


def regularization_for(n_rows: int, settings: FitSettings) -> tuple[float, float]:
    """Return dropout and weight decay, stronger for fewer rows."""
    scarcity = float(np.clip(math.log(30_000.0 / n_rows) / math.log(30.0), 0.0, 1.0)) ** 2
    dropout = 0.4 * scarcity if settings.dropout is None else settings.dropout
    decay = 0.3 * scarcity if settings.weight_decay is None else settings.weight_decay
    return dropout, decay


def epoch_length(n_rows: int) -> int:
    """Return the steps of an epoch: 100, and fewer where few rows are soon learned by heart."""
    return int(np.clip(round(100 * math.sqrt(n_rows / 5000)), 20, 100))


def _adapter(
    model: TableModel, split: MappedSplit, base: PiecewiseDensity
) -> Callable[[PreconditionedDenoiser], PiecewiseDensity]:
    """Return a function that refits the importance density to the validation gap."""
    few = split.valid.take(np.arange(min(len(split.valid), 256)))
    keys = row_keys(few.X, 1)
    noise = NoiseRule(few.X.shape[1], min(few.X.shape[1], 2), central=False, seed=2)

    def adapt(network: PreconditionedDenoiser) -> PiecewiseDensity:
        network.eval()
        profile = error_profile(
            few.X,
            few.weight,
            keys,
            {NETWORK: network_denoiser(network), "gaussian": model.experts()["gaussian"]},
            model.logsnr,
            noise,
            budget=model.budget,
            device=model.device,
            dtype=model.precision,
        )
        gap = profile.row_errors(profile.vertex("gaussian")) - profile.row_errors(
            profile.vertex(NETWORK)
        )
        height = np.sqrt(gap**2 @ profile.row_weight)
        centers = 0.5 * (base.edges[1:] + base.edges[:-1])
        measured = PiecewiseDensity.from_profile(
            base.edges, np.interp(centers, model.logsnr, height), floor=0.1
        )
        return PiecewiseDensity(base.edges, 0.5 * base.mass + 0.5 * measured.mass)

    return adapt


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
    valid = split.valid.take(np.arange(min(len(split.valid), MOST_PROFILE_ROWS)))
    experts = model.experts()
    model.expert_names = chosen_experts(settings, list(experts), model.control)
    profile = model.profile(valid.X, valid.weight, row_keys(valid.X, model.seeds.scoring + 1))
    members = restrict_profile(profile, model.expert_names)
    # With few rows, the expert that no choice on those rows has favoured.
    anchor = "gaussian" if "gaussian" in model.expert_names else model.expert_names[0]
    model.weights = stacking_weights(members, anchor)
    model.curve = summarize_profile(profile, model.expert_names, model.weights)
    difference = profile.row_errors(profile.vertex(model.control)) - members.row_errors(
        model.weights
    )
    log_density = log_likelihoods(model.references[model.control], valid.X)
    log_density += split.valid_log_slope[: len(valid)] - np.log(model.standardizer.scale).sum()
    model.entropy = -float(members.row_weight @ (log_density + members.integral(difference)))
    model.rule = scoring_rule(model, valid.take(np.arange(min(len(valid), 100))), settings)


def chosen_experts(settings: FitSettings, available: list[str], control: str) -> Sequence[str]:
    """Return the names of the experts to stack."""
    if settings.experts == "auto":
        return tuple(available)
    chosen = tuple(name for name in available if name in settings.experts)
    missing = sorted(set(settings.experts) - set(chosen))
    if missing:
        warnings.warn(
            f"experts names {missing}, which these rows do not allow: a network needs "
            f"{LEAST_ROWS_TO_SPLIT} distinct rows, a mixture to be better than a single "
            "Gaussian on the validation rows.",
            UserWarning,
            stacklevel=6,
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
    differs = np.ones(N_NODES, dtype=bool) if control is None else model.weights[:, control] < 1.0
    if not differs.any():
        return None
    first, last = np.flatnonzero(differs)[[0, -1]]
    nodes = slice(max(first - 1, 0), min(last + 2, N_NODES))
    n_features = len(model.standardizer.center)
    noise = NoiseRule.for_scoring(n_features, model.seeds.scoring, settings.n_directions)
    placement = fit_placement(
        valid.X,
        row_keys(valid.X, model.seeds.scoring + 2),
        model.paired(),
        noise,
        model.logsnr[nodes],
        budget=model.budget,
        device=model.device,
        dtype=model.precision,
    )
    return IntegrationRule(placement, noise, settings.n_strata, settings.n_draws)


def _constant_model(
    rows: WeightedRows,
    columns: ColumnReport,
    standardizer: Standardizer,
    settings: FitSettings,
    seeds: Seeds,
) -> TableModel:
    """Return the model of rows that are all equal."""
    model = TableModel(
        columns=columns,
        constant_values=rows.X[0].copy(),
        standardizer=standardizer,
        marginal_map=MarginalMap("standard", ()),
        references={},
        control="",
        net=None,
        logsnr=np.empty(0),
        expert_names=(),
        weights=np.empty((0, 0)),
        rule=None,
        seeds=seeds,
        device=settings.device,
    )
    model.entropy = -float(model.log_density(rows.X[:1])[0][0])
    return model
