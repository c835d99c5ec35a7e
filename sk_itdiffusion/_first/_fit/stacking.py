"""How experts are weighted at each log-SNR, and how scores integrate: the fifth stage of a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.experts import (
    NETWORKS,
    Experts,
    Mixing,
    kind_of_expert,
    scoring_noise,
)
from sk_itdiffusion._first._fit.grids import n_nodes_needed
from sk_itdiffusion._first._fit.model import TableModel, summarize_profile
from sk_itdiffusion._first._fit.parts import fit_parts
from sk_itdiffusion._first._fit.schema import MIN_ROWS_TO_SPLIT, Schema
from sk_itdiffusion._first._fit.selection import FittedReferences, choose_control, demand_of
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._fit.validation import (
    crossfitted_errors,
    mean_and_std,
    variance_of_units,
    with_unseen_values,
)
from sk_itdiffusion._first._immse.cubature import Keys, PiecewiseDensity, spawn_keys
from sk_itdiffusion._first._immse.error_profiles import ErrorProfile, stacking_weights
from sk_itdiffusion._first._immse.errors import LADDER, calibrate_errors
from sk_itdiffusion._first._immse.likelihood import IntegrationRule, PairedDenoiser, fit_placement
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references import Reference
from sk_itdiffusion._first.references.families import ReferenceFamily
from sk_itdiffusion._first.references.judging import log_likelihoods, mean_and_error
from sk_itdiffusion._first.references.optimism import fold_weights

__all__ = ["restrict_profile", "scoring_rule", "stacked_model"]

Array = NDArray[np.float64]
#: Rows that the rule of scoring is fitted to, repeated if there are fewer.
RULE_ROWS = 100
#: Validation rows that are moved away from all others, and how many times as far from the mean.
ROWS_TO_MOVE, DISTANCES = 30, (3.0, 10.0, 30.0)
MAX_PROFILE_ROWS = 2_000
#: Noisy rows, at least, from which the errors at a node are averaged if states are few.
MIN_PROFILE_ROWS = 1_000
#: Intermediate numbers that the error profile may take; large images get fewer rows.
MAX_PROFILE_WORK = 2 * 10**9


def stacked_model(
    experts: Experts,
    references: FittedReferences,
    split: MappedSplit,
    schema: Schema,
    settings: FitSettings,
    history: Sequence[dict[str, float]] = (),
) -> TableModel:
    """Return the model of experts that are weighted by their validation errors.

    Parameters
    ----------
    experts : Experts
        The fitted denoisers.
    references : FittedReferences
        What follows from the references among them.
    split : MappedSplit
        Training and validation rows.
    schema : Schema
        What the columns are.
    settings : FitSettings
        Parameters.
    history : sequence of dict, default=()
        Bounds of each epoch of the training.

    Returns
    -------
    TableModel
        The model.
    """
    control, logsnr = references.control, references.logsnr
    n_rows = n_profile_rows(experts, len(logsnr), len(split.valid))
    valid, log_slope = split.valid.take(np.arange(n_rows)), split.valid_log_slope[:n_rows]
    folds = fold_weights(valid, experts.space.is_discrete)
    keys = valid.keys(experts.seeds.scoring + 1)
    if experts.space.is_discrete:
        times = times_to_repeat(valid, MIN_PROFILE_ROWS)
        valid, keys = repeated_rows(valid, keys, MIN_PROFILE_ROWS)
        log_slope, folds = np.zeros(len(valid)), np.repeat(folds / times, times, axis=1)
    names = chosen_experts(experts, control, split, schema, settings)
    profile = experts.profile(valid.X, valid.weight, keys, logsnr, valid.source)
    for dear in dear_families(settings, experts.references):
        others = tuple(name for name in names if name != dear.name)
        if gains_by(dear, profile, names, settings):
            continue
        names = others
        kept = {name: r for name, r in experts.references.items() if name != dear.name}
        experts = replace(experts, references=kept)
        profile = restrict_profile(profile, [name for name in profile.names if name != dear.name])
        if control == dear.name:
            control = choose_control(kept, split.valid, settings)
    profile = with_nodes_needed(profile, experts, schema, settings)
    logsnr = profile.logsnr
    members = restrict_profile(profile, names)
    mixing = Mixing(control, logsnr, names, stacking_weights(members))
    difference = profile.row_errors(profile.vertex(control)) - crossfitted_errors(members, folds)
    log_density = log_likelihoods(experts.references[control], valid.X)
    log_density += log_slope + members.integral(difference)
    used = dict(zip(members.names, mixing.weights.mean(axis=0), strict=True))
    optimism = split.optimism.of_stack(used, experts.plain, len(split.valid))[:n_rows]
    log_density -= np.repeat(optimism, len(log_density) // n_rows)
    entropy = entropy_std = math.nan
    if split.judged:
        n, reference = members.n_observations, experts.references[control]
        log_density = with_unseen_values(
            log_density, valid, split.trained_codes, experts.space, reference
        )
        variance = variance_of_reference(reference, split, n)
        mean, entropy_std = mean_and_std(log_density, valid, n, variance)
        entropy = -mean - experts.constant_term
    return TableModel.of(
        experts,
        mixing,
        rule=scoring_rule(experts, mixing, mixing.paired(experts.experts()), split.valid),
        entropy=entropy,
        entropy_std=entropy_std,
        history=list(history),
        curve=summarize_profile(profile, names, mixing.weights, experts.network_names),
        parts=fit_parts(experts.references, names, control, split, n_rows),
    )


def variance_of_reference(
    reference: Reference, split: MappedSplit, n_observations: float | None
) -> float:
    """Return the variance of a reference's log-likelihood over training rows, or groups of them.

    Parameters
    ----------
    reference : Reference
        The reference.
    split : MappedSplit
        The rows.
    n_observations : float or None
        Number of observations that the validation rows stand for, if weights are counts.

    Returns
    -------
    float
        The variance of an independent unit, in squared nats; 0 if there are not two of them, or
        fewer training rows than validation rows, as in a chunk of a stream.
    """
    if len(split.train) < len(split.valid):
        return 0.0
    rows = split.train.take(np.arange(min(len(split.train), MAX_PROFILE_ROWS)))
    if n_observations is not None:
        n_observations *= float(rows.weight.sum() / split.valid.weight.sum())
    log_density = log_likelihoods(reference, rows.X)
    log_density += np.broadcast_to(split.train_log_slope, len(split.train))[: len(rows)]
    variance = variance_of_units(log_density, rows, n_observations)[1]
    return 0.0 if math.isnan(variance) else variance


def dear_families(
    settings: FitSettings, references: Mapping[str, Reference]
) -> list[ReferenceFamily]:
    """Return the families whose references stay only if they are worth their time."""
    return [
        family
        for family in settings.model.families
        if family.least_gain > 0.0
        and family.name in references
        and settings.model.experts == "auto"
        and family.name not in (*settings.model.asked, settings.model.reference)
    ]


def gains_by(
    family: ReferenceFamily,
    profile: ErrorProfile,
    names: Sequence[str],
    settings: FitSettings,
) -> bool:
    """Return whether a stack gains so much by an expert as its evaluation is worth.

    The expert must lower the validation bound by more than the family's least gain and by more than
    one standard error.
    """
    members = restrict_profile(profile, names)
    others = restrict_profile(profile, [name for name in names if name != family.name])
    errors, errors_of_others = (
        part.row_errors(stacking_weights(part)) for part in (members, others)
    )
    gain = profile.integral(errors_of_others - errors)
    mean, error = mean_and_error(gain, profile.row_weight, source=profile.source)
    return settings.runtime.processes.from_first(lambda: mean > max(error, family.least_gain))


def with_nodes_needed(
    profile: ErrorProfile, experts: Experts, schema: Schema, settings: FitSettings
) -> ErrorProfile:
    """Return the profile at as many nodes as the experts that are left need."""
    beyond = settings.model.beyond_the_grid
    fine = [reference for name, reference in experts.references.items() if name in beyond]
    n_nodes = n_nodes_needed(profile.logsnr, experts.grid, fine, schema.resolution)
    return replace(profile, logsnr=profile.logsnr[:n_nodes], gram=profile.gram[:n_nodes])


def n_profile_rows(experts: Experts, n_nodes: int, n_rows: int) -> int:
    """Return how many of the validation rows the error profile can afford."""
    affordable = MAX_PROFILE_WORK // (n_nodes * experts.widest)
    return min(n_rows, MAX_PROFILE_ROWS, max(100, affordable))


def times_to_repeat(rows: WeightedRows, least: int) -> int:
    """Return how often rows are repeated to be at least so many."""
    return math.ceil(least / len(rows))


def repeated_rows(
    rows: WeightedRows, keys: NDArray[np.uint64], least: int
) -> tuple[WeightedRows, NDArray[np.uint64]]:
    """Return rows repeated with different keys, so that few states are seen with enough noise."""
    times = times_to_repeat(rows, least)
    many = rows.take(np.repeat(np.arange(len(rows)), times))
    return replace(many, weight=many.weight / times), spawn_keys(keys, times).ravel()


def reasons_of_absence(split: MappedSplit, schema: Schema, settings: FitSettings) -> dict[str, str]:
    """Return why experts may be missing, by their names."""
    rows = f"it needs {MIN_ROWS_TO_SPLIT} rows (distinct ones if columns are continuous)"
    reasons = {
        NETWORKS[0]: rows,
        NETWORKS[1]: f"{rows} and a convolutional network alongside it",
        "reference": "it needs an object as the parameter reference",
    }
    if settings.model.has_missing and not settings.model.has_roles:
        reasons |= dict.fromkeys(NETWORKS, "it needs rows without missing entries")
    demand = demand_of(settings)
    families = {family.name: family for family in settings.model.families}
    return reasons | {
        name: family.why_absent(schema, demand, split.judged) for name, family in families.items()
    }


def chosen_experts(
    experts: Experts, control: str, split: MappedSplit, schema: Schema, settings: FitSettings
) -> Sequence[str]:
    """Return the names of the experts to stack."""
    available = list(experts.experts())
    if settings.model.experts == "auto":
        return tuple(available)
    chosen = tuple(name for name in available if kind_of_expert(name) in settings.model.experts)
    there = {*map(kind_of_expert, chosen), *settings.model.passed}  # others warn of what is passed
    missing = sorted(set(settings.model.experts) - there)
    if missing:
        reasons = reasons_of_absence(split, schema, settings)
        told = "; ".join(f"{name!r}, {reasons[name]}" for name in missing)
        warn(f"experts names {missing}, which are not possible for these rows: {told}.")
    return chosen or (control,)


def restrict_profile(profile: ErrorProfile, names: Sequence[str]) -> ErrorProfile:
    """Return the profile of some of the experts."""
    index = [list(profile.names).index(name) for name in names]
    return replace(profile, names=tuple(names), gram=profile.gram[:, :, index][..., index])


def moved_out(points: Array, experts: Experts) -> list[Array]:
    """Return points whose continuous columns are several times as far from their mean.

    Integrals of rows far from all others come from other log-SNRs than those of validation rows.
    """
    found, columns = [], slice(experts.space.layout.n_continuous)
    few = points[:ROWS_TO_MOVE]
    center = few[:, columns].mean(axis=0)
    for distance in DISTANCES:
        moved = few.copy()
        moved[:, columns] = center + distance * (few[:, columns] - center)
        found.append(moved)
    return found


def scoring_rule(
    experts: Experts, mixing: Mixing, paired: PairedDenoiser, valid: WeightedRows
) -> IntegrationRule | None:
    """Return the integration rule fitted to the validation gap, None if there is no gap.

    ``paired`` is the control variate and the stack.
    """
    names = list(mixing.expert_names)
    differs = np.ones(len(mixing.logsnr), dtype=bool)
    if mixing.control in names:
        differs = mixing.weights[:, names.index(mixing.control)] < 1.0
    if not differs.any():
        return None
    first, last = np.flatnonzero(differs)[[0, -1]]
    nodes = slice(max(first - 1, 0), min(last + 2, len(mixing.logsnr)))
    valid = valid.take(np.arange(min(len(valid), RULE_ROWS)))
    keys = valid.keys(experts.seeds.scoring + 2)
    valid, keys = repeated_rows(valid, keys, RULE_ROWS)
    noise = scoring_noise(experts.space, experts.seeds.scoring, experts.has_images)

    def placement_of(points: Array, keys: Keys) -> PiecewiseDensity:
        return fit_placement(
            points,
            keys,
            paired,
            noise,
            mixing.logsnr[nodes],
            budget=experts.budget,
            device=experts.device,
            dtype=experts.precision,
        )

    embedded = experts.space.layout.embed_array(valid.X)
    placement = placement_of(embedded, keys)
    far = None
    if experts.space.layout.n_continuous and not experts.has_images:
        moved = [placement_of(part, keys[: len(part)]) for part in moved_out(embedded, experts)]
        far = PiecewiseDensity.mean_of([placement, *moved])
    rule = IntegrationRule(placement, noise, LADDER[0], far=far)
    rows, points = experts.rows_to_integrate(valid.X)

    def integrate(keys: NDArray[np.uint64], n_draws: int) -> tuple[Array, Array]:
        return experts.gap(rows, keys, paired, replace(rule, n_draws=n_draws), points)

    log_density = log_likelihoods(experts.references[mixing.control], valid.X)
    return replace(rule, errors=calibrate_errors(integrate, keys, log_density, valid.weight))
