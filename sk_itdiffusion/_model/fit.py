"""The stages of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import skorch
import torch
from numpy.typing import NDArray

from sk_itdiffusion._immse.channel import as_tensor
from sk_itdiffusion._immse.integral import Calibration, Rule
from sk_itdiffusion._immse.noise import child_keys, row_keys
from sk_itdiffusion._immse.placement import Placement
from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion._model.maps import fit_one, read_columns
from sk_itdiffusion._model.model import Model, Part
from sk_itdiffusion._model.networks import NetworkSettings, train_networks
from sk_itdiffusion._model.stack import Profile, Stack, residual_profile
from sk_itdiffusion._model.table import Split, Table, split_rows
from sk_itdiffusion._table.columns import Columns, last_of
from sk_itdiffusion._table.maps import Quantile, fit_map
from sk_itdiffusion.references.base import Reference
from sk_itdiffusion.references.kernels import MAX_KERNELS, KernelReference, fit_kernels
from sk_itdiffusion.references.mixture import MixtureReference
from sk_itdiffusion.references.select import Fitted, choose_mixture, refined

__all__ = ["EXPERTS", "FitSettings", "fit_model"]

Array = NDArray[np.float64]
#: Rows from which on quantiles are tried; rows and components of the mixtures that choose maps.
MIN_ROWS_OF_QUANTILES, MAX_ROWS_OF_GUIDE, COMPONENTS_OF_GUIDE = 500, 3_000, 32
#: Rows of the profile and of the calibration of errors.
MAX_PROFILE_ROWS, CALIBRATION_ROWS = 400, 40
#: Nats by which a stack must be better than one expert, which needs no integral.
LEAST_GAIN = 0.02
#: Numbers that a pass over the profile may take.
MAX_WORK = 3 * 10**8
#: Columns beyond which there are no kernels.
MAX_COLUMNS_OF_KERNELS = 50
CHUNK = 8192


#: Experts by name.
EXPERTS = ("gaussian", "gaussian_mixture", "kernel_density", "network")


@dataclass(frozen=True)
class FitSettings:
    """What a fit is told.

    Attributes
    ----------
    names : sequence of str
        Experts, of `EXPERTS`.
    kinds : sequence of str
        Kinds of maps to choose from.
    bounds : ndarray of shape (n_columns, 2)
        Bounds of columns, infinite where there are none.
    is_given : ndarray of bool, shape (n_columns,)
        Whether they are the user's.
    fraction : float
        Share of the rows that networks do not see.
    networks : NetworkSettings or None
        How networks are trained; None if there are none.
    seed : int
        Seed.
    """

    names: Sequence[str]
    kinds: Sequence[str]
    bounds: Array
    is_given: NDArray[np.bool_]
    fraction: float
    networks: NetworkSettings | None
    seed: int


def fit_model(table: Table, settings: FitSettings) -> tuple[Model, skorch.NeuralNet | None]:
    """Return the fitted model of a table, and the net that trained its network.

    Parameters
    ----------
    table : Table
        Rows.
    settings : FitSettings
        Parameters.

    Returns
    -------
    model : Model
        The model.
    net : skorch.NeuralNet or None
        The net; None without networks.
    """
    seed = settings.seed
    split = split_rows(
        table, settings.fraction, has_networks=settings.networks is not None, seed=seed
    )
    columns = read_columns(table, settings.bounds, settings.is_given)
    if not columns.n_points:
        alone = Part(Stack.alone("gaussian"))
        return Model(columns, {}, {}, alone, alone, seed), None
    columns, guide = choose_columns(table, columns, split, settings.kinds, seed)
    references = fit_references(table, columns, split, guide, settings.names, seed)
    networks: dict[str, torch.nn.Module] = {}
    net = None
    if settings.networks is not None and split.has_validation:
        points, _ = columns.points(table.X)
        nodes = logsnr_nodes(list(references.all.values()))
        best = references.best
        networks["network"], net = train_networks(
            points, table.weight, split, references.folds[0], best, nodes, settings.networks
        )
    return stack_experts(columns, references, networks, table, split, seed), net


@dataclass(frozen=True)
class References:
    """References of each fold, and those of all rows.

    Attributes
    ----------
    folds : sequence of dict of str to Reference
        References that have not seen the rows that are held out in a fold, the normal one always
        among them.
    all : dict of str to Reference
        References of all rows.
    scores : dict of str to ndarray of shape (n_held,)
        Log-densities of held-out points under the references of their fold.
    """

    folds: Sequence[dict[str, Reference]]
    all: dict[str, Reference]
    scores: dict[str, Array]

    @property
    def best(self) -> str:
        """The reference that makes held-out rows likeliest, the simplest within one error."""
        chosen = next(iter(self.all))
        for name in self.all:
            if self.scores and is_gain(self.scores[name] - self.scores[chosen]):
                chosen = name
        return chosen


def is_gain(gain: Array, n_errors: float = 1.0) -> bool:
    """Return whether a mean over rows is positive by more than some standard errors."""
    if len(gain) < 2:
        return False
    return bool(gain.mean() > n_errors * gain.std(ddof=1) / np.sqrt(len(gain)))


def choose_columns(
    table: Table, columns: Columns, split: Split, kinds: Sequence[str], seed: int
) -> tuple[Columns, Fitted | None]:
    """Return the columns behind the kind of map that makes held-out rows likeliest.

    All columns have the same kind, so that what depends on each other stays nearly linear, but for
    heavy tails, which only quantiles straighten.  A mixture of few components is the judge; it is
    returned too if it was fitted to all rows.
    """
    if len(kinds) > 1 and len(table.X) < MIN_ROWS_OF_QUANTILES:
        kinds = [kind for kind in kinds if kind != "quantile"]
    # With one fold, maps of the rows that it sees cannot flatter those that are held out.
    seen = split.weight[:, 0] > 0 if split.n_choices == 1 else None
    plain = [mapped(table, columns, kind, seen) for kind in kinds]
    tame = [with_heavy_tails(table, each, seen) for each in plain]
    candidates = tame + [each for each, other in zip(plain, tame, strict=True) if each is not other]
    if len(candidates) == 1 or not split.has_validation:
        return with_all_rows(table, candidates[0]), None
    few = np.arange(len(table.X))
    if len(few) > MAX_ROWS_OF_GUIDE:
        few = np.random.default_rng(seed).permutation(few)[:MAX_ROWS_OF_GUIDE]
    weight, held, floor = split.weight[few], split.judged[few], floor_of(table, columns)
    scores, guides = [], []
    for candidate in candidates:
        points, log_slope = candidate.points(table.X[few])
        guide = choose_mixture(points, weight, held, floor, seed, COMPONENTS_OF_GUIDE)
        scores.append(guide.score + log_slope.sum(axis=1)[np.nonzero(held)[0]])
        guides.append(guide)
    best = 0
    for number in range(1, len(candidates)):
        if is_gain(scores[number] - scores[best]):
            best = number
    has_all = len(few) == len(table.X) and seen is None
    return with_all_rows(table, candidates[best]), guides[best] if has_all else None


def with_all_rows(table: Table, columns: Columns) -> Columns:
    """Return the columns with the same kinds of maps, fitted to all rows."""
    numbers = np.flatnonzero(columns.varies)
    maps = [
        fit_one(table, int(j), kind, tuple(columns.bounds[j]))
        for j, kind in zip(numbers, columns.kinds(), strict=True)
    ]
    return columns.with_maps(maps)


def mapped(table: Table, columns: Columns, kind: str, seen: NDArray[np.bool_] | None) -> Columns:
    """Return the columns behind maps of one kind."""
    numbers = np.flatnonzero(columns.varies)
    maps = [fit_one(table, int(j), kind, tuple(columns.bounds[j]), seen) for j in numbers]
    return columns.with_maps(maps)


def with_heavy_tails(table: Table, columns: Columns, rows: NDArray[np.bool_] | None) -> Columns:
    """Return the columns of which those that still have heavy tails are mapped by quantiles."""
    points, _ = columns.points(table.X)
    maps, is_heavy = list(columns.maps), False
    for number, j in enumerate(np.flatnonzero(columns.varies)):
        seen = ~np.isnan(points[:, number])
        last = last_of(fit_map("quantile", points[seen, number], table.weight[seen]))
        if isinstance(last, Quantile) and last.is_heavy:
            maps[number] = fit_one(table, int(j), "quantile", tuple(columns.bounds[j]), rows)
            is_heavy = True
    return columns.with_maps(maps) if is_heavy else columns


def floor_of(table: Table, columns: Columns) -> float:
    """Return the least variance of a component, below what the columns resolve."""
    scale = np.nanstd(table.X, axis=0)[columns.varies]
    step = float((table.resolution[columns.varies] / scale).max(initial=0.0))
    return float(np.clip(step**2 / 12.0, 1e-7, 1e-2))


def fit_references(
    table: Table,
    columns: Columns,
    split: Split,
    guide: Fitted | None,
    names: Sequence[str],
    seed: int,
) -> References:
    """Fit the references to all rows and to the folds.

    Parameters
    ----------
    table : Table
        Rows.
    columns : Columns
        Columns with their maps.
    split : Split
        Folds.
    guide : Fitted or None
        Mixtures of few components of the same points, if there are any.
    names : sequence of str
        Which of ``"gaussian"``, ``"gaussian_mixture"`` and ``"kernel_density"`` are wanted.
    seed : int
        Seed.

    Returns
    -------
    fitted : `References`
        References of all rows and of the folds; kernels only if held-out rows are likelier so.
    """
    points, _ = columns.points(table.X)
    floor = floor_of(table, columns)
    given = (points, split.weight, split.judged, floor)
    fitted = refined(choose_mixture(*given, seed, begin=guide, has_between=True), *given)
    by_fold = {"gaussian": fitted.gaussian, "gaussian_mixture": fitted.mixture}
    if fitted.mixture is fitted.gaussian:
        del by_fold["gaussian_mixture"]
    n_folds = split.held.shape[1]
    folds: list[dict[str, Reference]] = [
        {name: each[number] for name, each in by_fold.items()} for number in range(n_folds + 1)
    ]
    if "kernel_density" in names and n_folds:
        add_kernels(folds, points, table, split, floor, seed)
    scores = {}
    for name in folds[-1]:
        scores[name] = held_out_scores(folds, name, points, split)
    if "kernel_density" in scores:
        others = [name for name in scores if name != "kernel_density"]
        if not is_gain(scores["kernel_density"] - scores[others[-1]]):
            scores.pop("kernel_density")
    kept = [name for name in scores if name in names] or ["gaussian"]
    of_folds = list(dict.fromkeys(["gaussian", *kept]))
    return References(
        [{name: each[name] for name in of_folds} for each in folds[:-1]],
        {name: folds[-1][name] for name in kept},
        {name: scores[name] for name in kept},
    )


def held_out_scores(
    folds: Sequence[dict[str, Reference]], name: str, points: Array, split: Split
) -> Array:
    """Return log-densities of held-out points under the reference of their fold."""
    rows, fold = np.nonzero(split.judged)
    found = np.empty(len(rows))
    for number in np.unique(fold):
        own = fold == number
        x = points[rows[own]]
        roles = Roles.of_rows(x, np.zeros(x.shape[1], dtype=bool))
        found[own] = folds[number][name].log_prob(as_tensor(np.nan_to_num(x)), roles).numpy()
    return found


def add_kernels(
    folds: list[dict[str, Reference]],
    points: Array,
    table: Table,
    split: Split,
    floor: float,
    seed: int,
) -> None:
    """Add kernels around the complete rows of each fold."""
    complete = ~np.isnan(points).any(axis=1)
    if points.shape[1] > MAX_COLUMNS_OF_KERNELS or complete.sum() < 20:
        return
    few = np.random.default_rng(seed).permutation(np.flatnonzero(complete))
    background = last_mixture(folds[0])
    own = few[split.weight[few, 0] > 0][:MAX_KERNELS]
    covariance, share = fit_kernels(
        points[own], table.weight[own], table.unit[own], background, floor, seed
    )
    for number, references in enumerate(folds):
        own = few[split.weight[few, number] > 0][:MAX_KERNELS]
        references["kernel_density"] = KernelReference(
            points[own], table.weight[own], covariance, last_mixture(references), share
        )


def last_mixture(references: dict[str, Reference]) -> MixtureReference:
    """Return the richest mixture of a fold."""
    found = list(references.values())[-1]
    assert isinstance(found, MixtureReference)
    return found


def logsnr_nodes(references: Sequence[Reference], low_rank: float = 0.5) -> Array:
    """Return nodes over the range of the log-SNR in which references differ."""
    ranges = [each.variance_range() for each in references]
    least, largest = min(low for low, _ in ranges), max(high for _, high in ranges)
    low, high = -4.0 - np.log(max(largest, 1.0)), 4.5 - np.log(least)
    return np.linspace(low, high, int(np.ceil((high - low) / low_rank)) + 1)


def stack_experts(
    columns: Columns,
    references: References,
    networks: dict[str, torch.nn.Module],
    table: Table,
    split: Split,
    seed: int,
) -> Model:
    """Return the model of experts that are weighted by their errors on held-out rows."""
    best = references.best
    alone = Part(Stack.alone(best))
    model = Model(columns, references.all, networks, alone, alone, seed)
    if len(references.all) + len(networks) == 1 or not split.has_validation:
        return model
    held = split.held.copy() if networks else split.judged
    if networks:
        held[:, 1:] = False
    rows, fold = np.nonzero(held)
    points, _ = columns.points(table.X[rows])
    complete = ~np.isnan(points).any(axis=1)
    nodes = logsnr_nodes(list(references.all.values()))
    per_row = 5 * len(nodes) * sum(each.n_numbers for each in references.all.values())
    n_rows = int(np.clip(MAX_WORK // per_row, 60, MAX_PROFILE_ROWS))
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(complete))[:n_rows]
    if len(chosen) < 20:
        return model
    points, fold, weight = points[chosen], fold[chosen], table.weight[rows[chosen]]
    keys = row_keys(points, seed + 1)
    roles = Roles.all_targets(columns.n_points)
    parts, order = [], []
    for number, fitted in enumerate(references.folds):
        own = np.flatnonzero(fold == number)
        if len(own):
            experts = {name: fitted[name].denoise for name in references.all} | networks
            parts.append(
                residual_profile(
                    points[own], keys[own], experts, nodes, roles, weight[own], seed, 1, CHUNK
                )
            )
            order.append(own)
    gram = np.concatenate([part.gram for part in parts], axis=1)
    shuffled = np.concatenate(order)
    weight = weight[shuffled] / weight.sum()
    profile = Profile(parts[0].names, nodes, gram, weight)
    points, keys = points[shuffled], keys[shuffled]
    gain = profile.cross_fitted_gain(best)
    if not is_gain(gain) or gain.mean() < LEAST_GAIN:
        return model
    stack = Stack(profile.names, best, nodes, profile.best_weights())
    return Model(
        columns, references.all, networks, ruled(model, stack, profile, points, keys), alone, seed
    )


def ruled(
    model: Model, stack: Stack, profile: Profile, points: Array, keys: NDArray[np.uint64]
) -> Part:
    """Return the part of a stack, with a rule that looks where the integrand is."""
    number = profile.names.index(stack.control)
    differs = stack.weights[:, number] < 1.0 - 1e-9
    first, last = np.flatnonzero(differs)[[0, -1]]
    inside = slice(max(first - 1, 0), min(last + 2, len(profile.nodes)))
    difference = profile.gram[..., number, number] - profile.row_errors(stack.weights)
    height = np.sqrt(np.square(difference).mean(axis=1))[inside]
    placement = Placement.at_nodes(profile.nodes[inside], height, floor=0.2)
    rule = Rule(placement, model.seed, CHUNK)
    few = slice(0, CALIBRATION_ROWS)
    x, own = points[few], keys[few]
    roles = Roles.all_targets(points.shape[1])
    pair = stack.pair(model.experts)

    def integrate(n_draws: int, part: int) -> tuple[Array, Array]:
        others = child_keys(own, np.array([2 * n_draws + part + 2**30]))[:, 0]
        return rule.integrate(x, others, pair, roles, n_draws)

    log_density = model.references[stack.control].log_prob(as_tensor(x), roles).numpy()
    return Part(stack, rule, Calibration.measured(integrate, log_density))
