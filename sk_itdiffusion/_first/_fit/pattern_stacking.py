"""How experts are weighted for parts of rows, on validation rows with random patterns."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from sk_itdiffusion._first._fit.experts import Experts, noise_for_layout
from sk_itdiffusion._first._fit.pattern_gains import PatternGain
from sk_itdiffusion._first._fit.patterns import (
    N_CLASSES,
    PatternStack,
    PreparedQuestion,
    Question,
    class_of_pattern,
    conditional_log_density,
    questions_of,
)
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._fit.validation import crossfitted_errors
from sk_itdiffusion._first._immse.cubature import Keys, PiecewiseDensity, keys_apart, spawn_keys
from sk_itdiffusion._first._immse.error_profiles import (
    ErrorProfile,
    products_of_residuals,
    stacking_weights,
)
from sk_itdiffusion._first._immse.errors import LADDER, ErrorCalibration, calibrate_errors
from sk_itdiffusion._first._immse.likelihood import IntegrationRule
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references import ReferenceMixture
from sk_itdiffusion._first.references.judging import log_likelihoods, mean_and_error
from sk_itdiffusion._first.references.optimism import fold_weights

__all__ = ["drivers_of_missingness", "fit_pattern_stack", "likeliest_reference"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Validation rows of each class of patterns, at most and at least.
ROWS_OF_A_CLASS, MIN_ROWS_OF_A_CLASS = 160, 20
#: Of them, those that calibrate the errors of the integral.
ROWS_TO_CALIBRATE = 100
#: Rows that tell whether missingness depends on values: at most, at least of each kind, and those
#: of a category among them that are expected.
MAX_ROWS_TO_COMPARE = 20_000
MIN_ROWS_TO_COMPARE, MIN_EXPECTED = 20, 5
#: Categories that are compared one by one; the codes of more are numbers.
MAX_CATEGORIES_TO_COMPARE = 20
#: Probability of taking a column for one on which missingness depends, if there is none.
LEVEL_OF_TEST = 0.01


@dataclass(frozen=True)
class PatternRows:
    """Validation rows with a pattern each, of one class.

    Attributes
    ----------
    rows : WeightedRows
        The rows.
    target, given : ndarray of shape (n_rows, n_columns), bool
        Their patterns.
    """

    rows: WeightedRows
    target: Mask
    given: Mask


def fit_pattern_stack(
    experts: Experts,
    parts: ReferenceMixture,
    names: Sequence[str],
    split: MappedSplit,
    without: Collection[str] = (),
) -> tuple[PatternStack | None, list[PatternGain]]:
    """Return the weights of experts for parts of rows, and what networks gain by class of patterns.

    Parameters
    ----------
    experts : Experts
        The fitted denoisers; all networks have roles.
    parts : ReferenceMixture
        What parts of rows are scored by where networks are not used.
    names : sequence of str
        Names of the experts that may be used.
    split : MappedSplit
        Training and validation rows.
    without : collection of str, default=()
        Names of references that are too expensive to evaluate anew for each row.

    Returns
    -------
    stack : PatternStack or None
        The weights; None if networks are of no use for any class.
    gains : list of PatternGain
        The gains of all classes; none if there are no networks.
    """
    if experts.dequantizer is not None or not any(name in experts.nets for name in names):
        return None, []
    names = [name for name in names if name not in without]
    control = likeliest_reference(experts, names, split)
    names = list(dict.fromkeys([*names, control]))
    drivers = drivers_of_missingness(split)
    weights = np.zeros((N_CLASSES, len(experts.grid), len(names)))
    weights[:, :, names.index(control)] = 1.0
    stack = PatternStack(control, experts.grid, names, weights, (None,) * N_CLASSES, drivers)
    gains = []
    for number in range(N_CLASSES):
        chosen = rows_of_class(split, number, drivers, experts.seeds.scoring + number)
        n_rows, gain, error = 0, math.nan, math.nan
        if chosen is not None:
            stack, gain, error = with_class(stack, experts, parts, chosen, number)
            n_rows = len(chosen.rows)
        has_given, has_many = map(bool, divmod(number, 2))
        is_used = stack.rules[number] is not None
        gains.append(PatternGain(has_given, has_many, n_rows, gain, error, is_used))
    return None if all(rule is None for rule in stack.rules) else stack, gains


def likeliest_reference(experts: Experts, names: Sequence[str], split: MappedSplit) -> str:
    """Return the name of the reference under which the validation rows are likeliest."""
    share = split.valid.share
    possible = [name for name in names if name in experts.references] or [experts.plain]
    return max(
        possible,
        key=lambda name: float(share @ log_likelihoods(experts.references[name], split.valid.X)),
    )


def rows_of_class(split: MappedSplit, number: int, drivers: Mask, seed: int) -> PatternRows | None:
    """Return validation rows with random patterns of a class, None if there are too few.

    Where rows have missing entries and no columns are given, half of the patterns are those of
    what was observed.
    """
    has_given, has_many = divmod(number, 2)
    if drivers.any() and not has_given:
        return None
    X = split.valid.X
    # Few states, each of many rows, are seen in several patterns.
    times = -(-ROWS_OF_A_CLASS // len(X)) if split.space.is_discrete else 1
    row = np.tile(np.arange(len(X)), times)
    X = X[row]
    n_rows, n_columns = X.shape
    observed = ~np.isnan(X)
    least, most = (n_columns // 2 + 1, n_columns) if has_many else (1, n_columns // 2)
    if has_given or not split.has_missing:
        most = min(most, n_columns - 1)
    if least > most:
        return None
    rng = np.random.RandomState(seed % 2**32)
    rank = rng.rand(n_rows, n_columns).argsort(axis=1)
    target = (rank < rng.randint(least, most + 1, size=n_rows)[:, None]) & observed
    if split.has_missing and not has_given:
        target = np.where(np.arange(n_rows)[:, None] % 2 == 0, observed, target)
    share = np.where(rng.rand(n_rows) < 0.5, 1.0, rng.rand(n_rows))
    given = ~target & observed & (rng.rand(n_rows, n_columns) < share[:, None])
    if not has_given:
        given[:] = False
    target, given = target & ~drivers, given | (drivers & observed)
    fits = target.any(axis=1) & (class_of_pattern(target, given) == number)
    chosen = np.flatnonzero(fits & (given | ~drivers).all(axis=1))[:ROWS_OF_A_CLASS]
    if len(chosen) < MIN_ROWS_OF_A_CLASS:
        return None
    return PatternRows(split.valid.take(row[chosen]), target[chosen], given[chosen])


def with_class(
    stack: PatternStack,
    experts: Experts,
    parts: ReferenceMixture,
    chosen: PatternRows,
    number: int,
) -> tuple[PatternStack, float, float]:
    """Return the stack with the weights and the rule of a class of patterns, and what is gained.

    The stack is the same if the networks do not gain more than a standard error on the mixture of
    references.

    Returns
    -------
    stack : PatternStack
        The stack.
    gain, error : float
        Gain of the mean log-density in nats, and its standard error.
    """
    rows, share = chosen.rows, chosen.rows.share
    profile = profile_of_parts(stack, experts, chosen)
    weights = stacking_weights(profile)
    of_control = profile.row_errors(profile.vertex(stack.control))
    errors = crossfitted_errors(profile, fold_weights(rows, False))
    known = rows.X, chosen.target, chosen.given
    log_density = conditional_log_density(experts.references[stack.control], *known)
    gain = log_density + profile.integral(of_control - errors)
    # Patterns of one row are not independent of each other.
    source = rows.keys(0) if experts.space.is_discrete else rows.unit
    mean, error = mean_and_error(
        gain - conditional_log_density(parts, *known), share, source=source
    )
    differs = np.flatnonzero(weights[:, stack.expert_names.index(stack.control)] < 1.0)
    if not mean > error or not len(differs):
        return stack, mean, error
    nodes = slice(max(differs[0] - 1, 0), min(differs[-1] + 2, len(stack.logsnr)))
    difference = of_control - profile.row_errors(weights)
    height = np.sqrt(np.square(difference) @ share)[nodes]
    placement = PiecewiseDensity.from_profile(stack.logsnr[nodes], 0.5 * (height[1:] + height[:-1]))
    noise = noise_for_layout(experts.space.layout, experts.seeds.scoring)
    rule = IntegrationRule(placement, noise, LADDER[0])
    all_weights, rules = stack.weights.copy(), list(stack.rules)
    all_weights[number], rules[number] = weights, rule
    stack = replace(stack, weights=all_weights, rules=tuple(rules))
    few = PatternRows(
        rows.take(np.arange(min(len(rows), ROWS_TO_CALIBRATE))), chosen.target, chosen.given
    )
    errors_of_rule = calibrated(stack, experts, few, log_density[: len(few.rows)])
    rules[number] = replace(rule, errors=errors_of_rule)
    return replace(stack, rules=tuple(rules)), mean, error


def profile_of_parts(stack: PatternStack, experts: Experts, chosen: PatternRows) -> ErrorProfile:
    """Return the products of the experts' residuals on parts of rows, at the nodes."""
    rows, logsnr = chosen.rows, stack.logsnr
    # Patterns of one row have noise of their own: weights are judged on rows that did not fit them.
    keys = keys_apart(rows.keys(experts.seeds.scoring + 1))

    def grams(part: tuple[Question, NDArray[np.intp]]) -> Array:
        question, numbers = part
        denoisers = question.denoisers(experts, stack.expert_names)
        layout = question.layout(experts.space.layout)
        noise = experts.profile_noise(layout.n_points)
        found = []
        for number, point in zip(
            numbers, layout.embed_array(rows.X[numbers][:, question.target]), strict=True
        ):
            drawn = noise.draw(spawn_keys(keys[number : number + 1], len(logsnr)).ravel())
            points = np.tile(point, (len(logsnr), 1))
            found.append(
                products_of_residuals(
                    points, logsnr, drawn, denoisers, experts.device, experts.precision
                )
            )
        return np.stack(found)

    questions = questions_of(rows.X, chosen.target, chosen.given)
    found = map_in_workers(grams, questions, experts.device)
    n_experts = len(stack.expert_names)
    gram = np.empty((len(logsnr), len(rows), n_experts, n_experts))
    for (_, numbers), products in zip(questions, found, strict=True):
        gram[:, numbers] = products.swapaxes(0, 1)
    return ErrorProfile(tuple(stack.expert_names), logsnr, gram, rows.share)


def calibrated(
    stack: PatternStack, experts: Experts, chosen: PatternRows, log_density: Array
) -> ErrorCalibration:
    """Return how exact the integrals of parts of rows are."""
    rows = chosen.rows
    n_rows = len(rows)
    asked = questions_of(rows.X, chosen.target[:n_rows], chosen.given[:n_rows])
    points = np.nan_to_num(rows.X)
    questions = [(stack.prepared(experts, question), numbers) for question, numbers in asked]

    def integrate(keys: Keys, n_draws: int) -> tuple[Array, Array]:
        def of_question(part: tuple[PreparedQuestion, NDArray[np.intp]]) -> tuple[Array, Array]:
            prepared, numbers = part
            counts = np.full(len(numbers), n_draws, dtype=np.intp)
            return stack.gaps(experts, prepared, points[numbers], keys[numbers], counts)

        gap, spread = np.empty((2, n_rows))
        found = map_in_workers(of_question, questions, experts.device)
        for (_, numbers), own in zip(questions, found, strict=True):
            gap[numbers], spread[numbers] = own
        return gap, spread

    keys = rows.keys(experts.seeds.scoring + 2)
    return calibrate_errors(integrate, keys_apart(keys), log_density, rows.weight)


def drivers_of_missingness(split: MappedSplit) -> Mask:
    """Return the columns, (n_columns,), on whose values it depends which others are missing.

    Of each column the mean and the mean square, or the frequencies of the categories, are compared
    between rows in which another one is missing and rows in which it is not.  If entries are
    missing completely at random, which is if there are none such, a network that is trained on
    observed entries learns the distribution of all; otherwise it does so given the columns found
    here.
    """
    # The order of the rows is random in all but name.
    X = np.concatenate([split.valid.X, split.train.X])[:MAX_ROWS_TO_COMPARE]
    weight = np.concatenate([split.valid.weight, split.train.weight])[:MAX_ROWS_TO_COMPARE]
    found = np.zeros(X.shape[1], dtype=bool)
    missing = np.isnan(X)
    holed = np.flatnonzero(missing.any(axis=0))
    numbers = [numbers_of_column(X[:, i], i, split.space.layout) for i in range(X.shape[1])]
    n_tests = len(holed) * sum(len(each) for each in numbers)
    least = norm.isf(0.5 * LEVEL_OF_TEST / max(n_tests, 1))
    for i in range(X.shape[1]):
        seen = np.flatnonzero(~missing[:, i])
        own, share = numbers[i][:, seen], weight[seen]
        for j in holed[holed != i]:
            difference = standardized_difference(
                own, share, missing[seen, j], split.space.is_discrete
            )
            found[i] |= bool((np.abs(difference) > least).any())
    return found


def numbers_of_column(values: Array, number: int, layout: Layout) -> Array:
    """Return what is compared of a column, (k, n): value and square, or which category it is."""
    n_continuous = layout.n_continuous
    if number >= n_continuous:
        n_categories = layout.variables[number - n_continuous].n_categories
        if n_categories <= MAX_CATEGORIES_TO_COMPARE:
            return np.asarray(values == np.arange(n_categories)[:, None], dtype=np.float64)
    return np.stack([values, values**2])


def standardized_difference(values: Array, weight: Array, first: Mask, in_counts: bool) -> Array:
    """Return the differences of means between two parts of rows, in their standard errors.

    Parameters
    ----------
    values : ndarray of shape (k, n)
        Numbers, or 0 and 1.
    weight : ndarray of shape (n,)
        Weights of the rows.
    first : ndarray of shape (n,), bool
        Which rows are in the first part.
    in_counts : bool
        Whether weights are numbers of observations.

    Returns
    -------
    ndarray of shape (k,)
        The differences; 0 where there are too few rows to tell.
    """
    shares, numbers = [], []
    for part in (first, ~first):
        own = np.where(part, weight, 0.0)
        total = own.sum()
        numbers.append(total if in_counts else total**2 / max(np.square(own).sum(), 1e-300))
        shares.append(own / max(total, 1e-300))
    if min(numbers) < MIN_ROWS_TO_COMPARE:
        return np.zeros(len(values))
    mean = values @ (weight / weight.sum())
    variance = np.square(values - mean[:, None]) @ (weight / weight.sum())
    error = np.sqrt(np.maximum(variance * (1 / numbers[0] + 1 / numbers[1]), 1e-300))
    difference = (values @ (shares[0] - shares[1])) / error
    # A normal approximation needs some rows of a category, and some of all others.
    is_flag = np.isin(values, (0.0, 1.0)).all(axis=1)
    n_expected = np.minimum(mean, 1.0 - mean) * min(numbers)
    return np.where(is_flag & (n_expected < MIN_EXPECTED), 0.0, difference)
