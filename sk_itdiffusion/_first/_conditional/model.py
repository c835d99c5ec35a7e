"""The conditional distribution of all targets: categories first, then numbers given these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor

from sk_itdiffusion._first._conditional.base_model import (
    Candidate,
    LocationScale,
    classifiers,
    fit_location_scale,
    regressors,
)
from sk_itdiffusion._first._conditional.category_model import (
    CategoryModel,
    fit_calibration,
    fit_categories,
)
from sk_itdiffusion._first._conditional.context import ContextEncoder
from sk_itdiffusion._first._conditional.curves import ResidualCurves, RowResiduals
from sk_itdiffusion._first._conditional.features import Features
from sk_itdiffusion._first._conditional.network import (
    ContextNetwork,
    NoiseProducts,
    fit_context_network,
    levels_of,
)
from sk_itdiffusion._first._conditional.residual import NormalMixture, entropy_of, fit_residuals
from sk_itdiffusion._first._conditional.splitting import DistinctRows, RowRoles, folds_of_units
from sk_itdiffusion._first._immse.likelihood import MSECurve
from sk_itdiffusion._first._runtime.progress import current_progress
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_same
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference

__all__ = ["ConditionalModel", "ConformalScores", "fit_conditional_model"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
#: Name of the reference in curves.
MIXTURE = "gaussian_mixture"
#: Combinations of categories over which means are taken.
MAX_STATES = 1000
#: Units to validate from which a network can have a say: with fewer its share is hardly known.
MIN_UNITS_FOR_NETWORK = 40
#: Units to validate from which there is one unless asked otherwise, and its epochs.  Log-densities
#: with and without it differ by half a nat or so; of 100 rows the mean gain is known to 0.05.
MIN_UNITS_FOR_AUTO, EPOCHS = 100, 40


@stored()
@dataclass(frozen=True)
class ConformalScores:
    """How far from the median the conformal rows are, on the scale of probabilities.

    Rows of one group are not exchangeable with a row of a new group, but groups are.  Therefore
    each of K groups has the mass 1 / (K + 1), which its rows share, and as much belongs to the new
    row (hierarchical conformal prediction; Lee, Barber and Willett, arXiv:2306.06342).

    Attributes
    ----------
    distance : ndarray of shape (n,)
        Twice the distance of each row's probability integral transform from a half, increasing.
    weight : ndarray of shape (n,)
        Weights of the rows; if they are in groups, shares of these.
    of_new : float, default=1.0
        Weight of the new row.
    """

    distance: Array
    weight: Array
    of_new: float = 1.0

    def central_probability(self, coverage: float) -> float:
        """Return the central probability whose intervals cover new rows at a rate.

        Parameters
        ----------
        coverage : float
            Rate in (0, 1).

        Returns
        -------
        float
            At most 1, which stands for unbounded intervals: there are too few rows, or groups, for
            the rate.
        """
        below = np.cumsum(self.weight)
        needed = coverage * (below[-1] + self.of_new)
        place = int(np.searchsorted(below, needed * (1.0 - 1e-12)))
        return 1.0 if place == len(below) else float(self.distance[place])

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        check_same(len(self.distance), len(self.weight), "there are other weights")
        if not (np.diff(self.distance) >= 0.0).all() or not (
            (self.weight > 0.0).all() and self.of_new > 0.0
        ):
            raise ValueError("the conformal rows are not in order, or have no weights")


@stored()
@dataclass(frozen=True)
class ConditionalModel:
    """Distribution of targets given features.

    Attributes
    ----------
    discrete : tuple of int
        Numbers of the targets that are categories, in the order of the chain rule.
    nominal : tuple of bool
        Which of these have no order.
    categories : tuple of CategoryModel
        Their models, given the features and the categories before.
    continuous : tuple of int
        Numbers of the other targets.
    numbers : tuple of LocationScale
        Their locations and scales, given the features and all categories.
    residual : GaussianMixtureReference or None
        Joint distribution of the standardised residuals; None without continuous targets.
    context : ContextEncoder or None
        What the network sees.
    network : ContextNetwork or None
        How the residual of one continuous target depends on the features; None if it does not, or
        there are other numbers of continuous targets.
    conformal : ConformalScores or None
        Calibration of intervals.
    """

    discrete: tuple[int, ...]
    nominal: tuple[bool, ...]
    categories: tuple[CategoryModel, ...]
    continuous: tuple[int, ...]
    numbers: tuple[LocationScale, ...]
    residual: GaussianMixtureReference | None
    context: ContextEncoder | None = None
    network: ContextNetwork | None = None
    conformal: ConformalScores | None = None

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return len(self.discrete) + len(self.continuous)

    def given_categories(self, features: Features, codes: Array, n_known: int) -> Features:
        """Return features and the codes, (n, n_discrete), of the first categories next to them."""
        for j in range(n_known):
            name = f"target_{self.discrete[j]}"
            features = features.with_column(codes[:, j], name, self.nominal[j])
        return features

    def log_density(self, features: Features, targets: Array) -> Array:
        """Return log-densities of encoded targets, shape (n,), in nats.

        Unseen categories, whose codes are negative, are left out: the density is that of the other
        targets, which is a mean over the known categories where these depend on them.
        """
        to_sum = self.unseen_before_others(targets)
        if to_sum.any():
            j = int(np.argmax(to_sum.any(axis=0)))
            return self.log_mean_density(features, targets, j, to_sum[:, j])
        codes = targets[:, list(self.discrete)]
        is_seen = codes >= 0.0
        codes = np.where(is_seen, codes, 0.0)
        total = np.zeros(len(features))
        rows = np.arange(len(features))
        for j, model in enumerate(self.categories):
            logs = model.log_probabilities(self.given_categories(features, codes, j))
            total += np.where(is_seen[:, j], logs[rows, codes[:, j].astype(np.intp)], 0.0)
        if self.residual is not None:
            given = self.given_categories(features, codes, len(self.discrete))
            location, log_scale = located(self.numbers, given)
            u = standardized(targets[:, list(self.continuous)], location, log_scale)
            total -= log_scale.sum(axis=1)
            if self.network is None:
                total += log_likelihoods(self.residual, u)
            else:
                total += self.curves(self.seen(given, location, log_scale)).log_density(u[:, 0])
        return total

    def unseen_before_others(self, targets: Array) -> NDArray[np.bool_]:
        """Return which categories, (n, n_discrete), are unseen and before targets that are not."""
        unseen = targets[:, list(self.discrete)] < 0.0
        is_last = np.full(len(targets), self.residual is None)
        for j in reversed(range(unseen.shape[1])):
            is_last &= unseen[:, j]
            unseen[:, j] &= ~is_last
        return unseen

    def log_mean_density(
        self, features: Features, targets: Array, j: int, is_unseen: NDArray[np.bool_]
    ) -> Array:
        """Return log-densities without a discrete target in the rows in which it is unseen."""
        size = np.where(is_unseen, len(self.categories[j].marginal), 1)
        first = np.cumsum(size) - size
        row = np.repeat(np.arange(len(targets)), size)
        filled = targets[row]
        code = np.where(
            is_unseen[row], np.arange(len(row)) - first[row], filled[:, self.discrete[j]]
        )
        filled[:, self.discrete[j]] = code
        return np.asarray(
            np.logaddexp.reduceat(self.log_density(features.take(row), filled), first)
        )

    def seen(self, given: Features, location: Array, log_scale: Array) -> Array:
        """Return what the network sees of rows."""
        assert self.context is not None
        return self.context.of_rows(given, location[:, 0], log_scale[:, 0])

    def residuals_of(self, given: Features, location: Array, log_scale: Array) -> RowResiduals:
        """Return the distributions of the residual of one target, of each row."""
        assert self.residual is not None
        if self.network is None:
            return NormalMixture.of_reference(self.residual)
        return self.curves(self.seen(given, location, log_scale))

    def curves(self, seen: Array) -> ResidualCurves:
        """Return the distributions of the residual of one target that the network gives."""
        assert self.network is not None
        return self.network.curves(seen)

    def mse_curve(self, features: Features, targets: Array) -> MSECurve:
        """Return squared errors of the noise in the residual of the one target."""
        assert self.residual is not None
        location, log_scale = located(self.numbers, features)
        u = standardized(targets, location, log_scale)[:, 0]
        if self.network is None:
            products = NoiseProducts.of(self.residual, levels_of(self.residual))
            nothing = np.zeros((len(u), *products.z.shape))
            model = reference = products.of_rows(nothing, products.mixture.score(u))[0]
            networks, weights = {}, {MIXTURE: np.ones(len(products.logsnr))}
        else:
            products, share = self.network.products, self.network.share
            seen = self.seen(features, location, log_scale)
            reference, alone, model = self.network.errors(u, seen)
            networks, weights = {"network": alone}, {MIXTURE: 1.0 - share, "network": share}
        curves = [{"model": model}, {MIXTURE: reference}, networks]
        means = [{name: each.mean(axis=1) for name, each in part.items()} for part in curves]
        errors = [
            {name: each.std(axis=1) / np.sqrt(len(u)) for name, each in part.items()}
            for part in curves
        ]
        return MSECurve(
            products.logsnr,
            means[0]["model"],
            errors[0]["model"],
            means[1],
            errors[1],
            means[2],
            errors[2],
            weights,
        )

    def expected_log_density(self, features: Features) -> Array:
        """Return the mean log-density of random targets of each row: minus the entropy."""
        total = np.zeros(len(features))
        for codes, logs in self.states(features):
            inner = logs
            if self.residual is not None:
                given = self.given_categories(features, codes, len(self.discrete))
                inner = logs + self.expected_log_density_of_numbers(given)
            total += np.exp(logs) * inner
        return total

    def expected_log_density_of_numbers(self, given: Features) -> Array:
        """Return the mean log-density of the continuous targets of each row."""
        assert self.residual is not None
        location, log_scale = located(self.numbers, given)
        scales = log_scale.sum(axis=1)
        if self.network is None:
            return np.asarray(-scales - entropy_of(self.residual))
        return np.asarray(-scales - self.curves(self.seen(given, location, log_scale)).entropy)

    def states(self, features: Features) -> Iterator[tuple[Array, Array]]:
        """Yield (codes, log-probabilities of the rows) for each combination of categories."""
        sizes = [len(model.marginal) for model in self.categories]
        if np.prod(sizes, dtype=np.float64) > MAX_STATES:
            raise ValueError(
                f"The categories of the targets have more than {MAX_STATES} combinations, over "
                "which there is no sum. Fit fewer targets, or draw samples."
            )
        for state in np.ndindex(*sizes):
            codes = np.tile(np.asarray(state, dtype=np.float64), (len(features), 1))
            total = np.zeros(len(features))
            for j, model in enumerate(self.categories):
                logs = model.log_probabilities(self.given_categories(features, codes, j))
                total += logs[:, state[j]]
            yield codes, total

    def marginal_probabilities(self, features: Features) -> list[Array]:
        """Return the probabilities of the categories of each discrete target."""
        found = [np.zeros((len(features), len(model.marginal))) for model in self.categories]
        for codes, logs in self.states(features):
            for j, table in enumerate(found):
                table[:, int(codes[0, j])] += np.exp(logs)
        return found

    def moments(self, features: Features) -> tuple[Array, Array]:
        """Return means and standard deviations of the continuous targets, (n, n_continuous)."""
        assert self.residual is not None
        mean_u: Any = self.residual.mean.numpy()
        std_u: Any = self.residual.covariance.diagonal().sqrt().numpy()
        first: Any = 0.0
        second: Any = 0.0
        for codes, logs in self.states(features):
            given = self.given_categories(features, codes, len(self.discrete))
            location, log_scale = located(self.numbers, given)
            if self.network is not None:
                mean_u, std_u = self.residuals_of(given, location, log_scale).moments
            scale = np.exp(log_scale)
            mean, std = location + scale * mean_u, scale * std_u
            if not self.discrete:  # without cancellation
                return mean, std
            probability = np.exp(logs)[:, None]
            first = first + probability * mean
            second = second + probability * (mean**2 + std**2)
        return np.asarray(first), np.sqrt(np.maximum(second - np.square(first), 0.0))

    def probabilities_below(self, features: Features, numbers: Array) -> tuple[Array, Array]:
        """Return the probabilities of at most, and of more than, the one target."""
        location, log_scale = located(self.numbers, features)
        u = standardized(numbers, location, log_scale)
        found = self.residuals_of(features, location, log_scale)
        return found.cdf(u)[:, 0], found.sf(u)[:, 0]

    def quantiles(self, features: Features, probability: Array) -> Array:
        """Return quantiles of the one target, shape (n, n_probabilities)."""
        location, log_scale = located(self.numbers, features)
        u = self.residuals_of(features, location, log_scale).quantile(probability)
        return np.asarray(location + np.exp(log_scale) * u)

    def sample(
        self, features: Features, n_draws: int, random_state: np.random.RandomState
    ) -> Array:
        """Return encoded targets, shape (n * n_draws, n_targets): all draws of a row together."""
        row = np.repeat(np.arange(len(features)), n_draws)
        codes = np.empty((len(row), len(self.discrete)))
        for j, model in enumerate(self.categories):
            logs = model.log_probabilities(self.given_categories(features.take(row), codes, j))
            total = np.exp(logs).cumsum(axis=1)
            drawn = random_state.random_sample(len(row)) * total[:, -1]
            codes[:, j] = np.minimum((total <= drawn[:, None]).sum(axis=1), logs.shape[1] - 1)
        found = np.empty((len(row), self.n_targets))
        found[:, list(self.discrete)] = codes
        if self.residual is not None:
            # Equal rows with equal categories have one distribution.
            _, first, number = np.unique(
                np.column_stack([row, codes]), axis=0, return_index=True, return_inverse=True
            )
            given = self.given_categories(features.take(row[first]), codes[first], codes.shape[1])
            location, log_scale = located(self.numbers, given)
            place = number.ravel()
            if self.network is None:
                u = self.residual.sample(len(row), random_state)
            else:
                curves = self.curves(self.seen(given, location, log_scale)).take(place)
                u = curves.quantile(random_state.random_sample((len(row), 1)))
            found[:, list(self.continuous)] = location[place] + np.exp(log_scale[place]) * u
        return found

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together."""
        check_same(sorted(self.discrete + self.continuous), list(range(self.n_targets)), "targets")
        sizes = [len(self.nominal), len(self.categories), len(self.numbers)]
        expected = [len(self.discrete), len(self.discrete), len(self.continuous)]
        check_same(sizes, expected, "there are other targets")
        n_columns = 0 if self.residual is None else self.residual.n_features
        check_same(n_columns, len(self.continuous), "there are other residuals")
        has_no = [self.context is None, self.network is None]
        if has_no[0] != has_no[1] or (not has_no[0] and n_columns != 1):
            raise ValueError("a network is without its context, or there is not one target")


# -- fit ---------------------------------------------------------------------------------------


def fit_conditional_model(
    features: Features,
    targets: Array,
    kinds: Sequence[str],
    n_categories: Sequence[int],
    rows: DistinctRows,
    roles: RowRoles,
    base: Any,
    n_folds: int,
    fold: Index | None,
    max_epochs: int | str,
    seed: int,
) -> ConditionalModel:
    """Return the model of targets given features.

    Parameters
    ----------
    features : Features
        Distinct rows.
    targets : ndarray of shape (n, n_targets)
        Their numbers and codes.
    kinds : sequence of {"continuous", "ordinal", "nominal"}
        Kinds of the targets.
    n_categories : sequence of int
        Numbers of their categories.
    rows : DistinctRows
        Weights and units of the rows.
    roles : RowRoles
        Which of them train, validate and calibrate.
    base : "auto" or estimator or list of estimator
        Base model, or those for categories and for numbers.
    n_folds : int
        Folds of the training rows.
    fold : ndarray of shape (n,), int, or None
        Folds of the rows that were asked for.
    max_epochs : int
        Epochs of the network at most; 0 for none.
    seed : int
        Seed of the models and of the starts of the mixture.

    Returns
    -------
    ConditionalModel
        The model.
    """
    train = roles.train
    own = None if fold is None else fold[train]
    folds = folds_of_units(rows.unit[train], rows.weight[train], n_folds, own)
    job = FitJob(rows.weight, rows.unit, roles, folds, base, max_epochs, seed)
    discrete = [j for j, kind in enumerate(kinds) if kind != "continuous"]
    continuous = [j for j, kind in enumerate(kinds) if kind == "continuous"]
    progress = current_progress()
    categories: list[CategoryModel] = []
    for j in discrete:
        progress.show(len(categories) / len(kinds))
        categories.append(job.fit_categories(features, targets[:, j], n_categories[j]))
        features = features.with_column(targets[:, j], f"target_{j}", kinds[j] == "nominal")
    progress.show(len(discrete) / len(kinds))
    found = job.fit_numbers(features, targets[:, continuous]) if continuous else None
    model = ConditionalModel(
        tuple(discrete),
        tuple(kinds[j] == "nominal" for j in discrete),
        tuple(categories),
        tuple(continuous),
        () if found is None else found.numbers,
        None if found is None else found.residual,
        None if found is None else found.context,
        None if found is None else found.network,
    )
    rest = roles.conformal
    if not len(rest):
        return model
    if rows.group_share is None:
        weight = rows.weight[rest]
        return with_conformal(model, features.take(rest), targets[rest], weight, weight.mean())
    return with_conformal(model, features.take(rest), targets[rest], rows.group_share[rest], 1.0)


@dataclass(frozen=True)
class FitJob:
    """What all fits of one model have in common.

    Attributes
    ----------
    weight : ndarray of shape (n,)
        Weights of all rows.
    unit : ndarray of shape (n,), int
        Their units.
    roles : RowRoles
        Which of them train, validate and calibrate.
    folds : sequence of (ndarray, ndarray)
        Folds of the training rows.
    base : "auto" or estimator or list of estimator
        Base models.
    max_epochs : int or "auto"
        Epochs of the network at most; 0 for none.
    seed : int
        Seed.
    """

    weight: Array
    unit: Index
    roles: RowRoles
    folds: Sequence[tuple[Index, Index]]
    base: Any
    max_epochs: int | str
    seed: int

    def fit_categories(self, features: Features, codes: Array, n_categories: int) -> CategoryModel:
        """Return the model of a target of categories."""
        train, valid = self.roles.train, self.roles.valid
        model, marginal, found = fit_categories(
            base_candidates(self.base, features, "classifier", self.seed, len(train)),
            features.take(train),
            codes[train],
            self.weight[train],
            self.folds,
            n_categories,
        )
        if model is None:
            return CategoryModel(None, marginal, 1.0, 0.0)
        judges = train
        if len(valid):
            judges, found = valid, model.probabilities(features.take(valid), n_categories)
        temperature, share = fit_calibration(
            found, marginal, codes[judges].astype(np.intp), self.weight[judges]
        )
        return CategoryModel(model, marginal, temperature, share)

    def fit_numbers(self, features: Features, targets: Array) -> FittedNumbers:
        """Return what is fitted to continuous targets."""
        train, valid = self.roles.train, self.roles.valid
        candidates = base_candidates(self.base, features, "regressor", self.seed, len(train))
        rows = WeightedRows(targets[train], self.weight[train], group=self.unit[train])
        numbers, found = [], []
        for target in targets[train].T:
            if np.ptp(target) == 0.0:
                raise ValueError(
                    "A continuous target does not vary in the rows to train on, and has no density."
                )
            model, out_of_fold = fit_location_scale(
                candidates, features.take(train), target, rows, self.folds, self.seed
            )
            numbers.append(model)
            found.append(out_of_fold)
        location = np.column_stack([each.location for each in found])
        log_scale = np.column_stack([each.log_scale for each in found])
        seen = rows.with_values(standardized(targets[train], location, log_scale))
        random_state = np.random.RandomState(self.seed)
        if not len(valid):
            residual, _ = fit_residuals(seen, None, random_state)
            return FittedNumbers(tuple(numbers), residual)
        places = located(numbers, features.take(valid))
        u = standardized(targets[valid], *places)
        unseen = WeightedRows(u, self.weight[valid], group=self.unit[valid])
        residual, factor = fit_residuals(seen, unseen, random_state)
        plain = FittedNumbers(tuple(numbers), residual)
        max_epochs = self.epochs(len(np.unique(self.unit[valid])))
        if len(numbers) > 1 or max_epochs == 0:
            return plain
        context = ContextEncoder.fit(features.take(train), numbers[0], log_scale[:, 0])
        given = context.of_rows(features.take(train), location[:, 0], log_scale[:, 0])
        given_valid = context.of_rows(features.take(valid), places[0][:, 0], places[1][:, 0])
        network = fit_context_network(
            seen.with_values(np.column_stack([factor * seen.X, given])),
            unseen.with_values(np.column_stack([u, given_valid])),
            residual,
            max_epochs,
            self.seed,
        )
        return plain if network is None else replace(plain, context=context, network=network)

    def epochs(self, n_units: int) -> int:
        """Return the epochs of the network if so many units validate; 0 for none."""
        if self.max_epochs == "auto":
            return EPOCHS if n_units >= MIN_UNITS_FOR_AUTO else 0
        return int(self.max_epochs) if n_units >= MIN_UNITS_FOR_NETWORK else 0


@dataclass(frozen=True)
class FittedNumbers:
    """What is fitted to continuous targets; see `ConditionalModel`."""

    numbers: tuple[LocationScale, ...]
    residual: GaussianMixtureReference
    context: ContextEncoder | None = None
    network: ContextNetwork | None = None


def base_candidates(
    base: Any, features: Features, kind: str, seed: int, n_rows: int
) -> list[Candidate]:
    """Return the models from which out-of-fold errors choose for a target."""
    if isinstance(base, str):
        if kind == "classifier":
            return classifiers(features.nominal, seed)
        return regressors(features.nominal, seed, n_rows)
    given = base if isinstance(base, list | tuple) else [base]
    is_kind = is_classifier if kind == "classifier" else is_regressor
    own = [Candidate(each, sees_raw=True) for each in given if is_kind(each)]
    if not own:
        raise ValueError(
            f"base must be, or have, a {kind}, for a target of "
            f"{'categories' if kind == 'classifier' else 'numbers'}; got {base!r}."
        )
    without = [each for each in given if is_classifier(each) and not hasattr(each, "predict_proba")]
    if without and kind == "classifier":
        raise ValueError(
            f"base must predict probabilities, and {without[0]!r} has no predict_proba. Wrap it in "
            "sklearn.calibration.CalibratedClassifierCV, or choose another one."
        )
    return own


def located(numbers: Sequence[LocationScale], features: Features) -> tuple[Array, Array]:
    """Return locations and logarithms of scales of the continuous targets, (n, n_continuous)."""
    found = [model.of_rows(features) for model in numbers]
    return (
        np.column_stack([location for location, _ in found]),
        np.column_stack([log_scale for _, log_scale in found]),
    )


def standardized(targets: Array, location: Array, log_scale: Array) -> Array:
    """Return standardised residuals, of the shape of the targets."""
    with np.errstate(over="ignore"):
        return np.asarray((targets - location) * np.exp(-log_scale))


def with_conformal(
    model: ConditionalModel, features: Features, targets: Array, weight: Array, of_new: float
) -> ConditionalModel:
    """Return the model with intervals that are calibrated by rows of their own."""
    below, above = model.probabilities_below(features, targets)
    distance = 1.0 - 2.0 * np.minimum(below, above)
    order = np.argsort(distance, kind="stable")
    return replace(model, conformal=ConformalScores(distance[order], weight[order], float(of_new)))
