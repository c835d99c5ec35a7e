"""How experts are weighted at each log-SNR, and how scores integrate: the fifth stage of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion.cubature import row_keys, spawn_keys
from sk_itdiffusion.judging import log_likelihoods, mean_and_error
from sk_itdiffusion.likelihood import ErrorProfile, IntegrationRule, fit_placement, stacking_weights
from sk_itdiffusion.model import TableModel, kind_of_expert, scoring_noise, summarize_profile
from sk_itdiffusion.rows import WeightedRows
from sk_itdiffusion.schema import LEAST_ROWS_TO_SPLIT
from sk_itdiffusion.selection import (
    KERNELS,
    N_NODES,
    choose_control,
    plain_reference,
    settings_ask_for_kernels,
)
from sk_itdiffusion.settings import FitSettings
from sk_itdiffusion.splitting import MappedSplit
from sk_itdiffusion.validation import crossfitted_errors, fold_weights, mean_and_std
from sk_itdiffusion.warning import warn

__all__ = []

MOST_PROFILE_ROWS = 2_000
#: Noisy rows, at least, from which the errors at a node are averaged if states are few.
LEAST_PROFILE_ROWS = 1_000
#: Intermediate numbers that the error profile may take; large images get fewer rows.
MOST_PROFILE_WORK = 2 * 10**9
#: Gain in nats for which each score may pass through all kernels.
LEAST_GAIN_OF_KERNELS = 0.02


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
