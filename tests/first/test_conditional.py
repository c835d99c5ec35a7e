"""Conditional densities: exact laws, known conditionals, and which rows see what."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import stats
from scipy.integrate import trapezoid
from seeds import shifted
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from sk_itdiffusion import IMMSEConditionalDensity, IMMSERegressor, load
from sk_itdiffusion._first._conditional import base_model, sklearn_state, splitting
from sk_itdiffusion._first._conditional.model import ConformalScores
from sk_itdiffusion._first._conditional.residual import NormalMixture
from sk_itdiffusion._first._conditional.splitting import distinct_rows, divide_rows
from sk_itdiffusion._first._immse.cubature import row_keys
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion.metrics import (
    crps_of_normal_mixture,
    log_density_scorer,
    neg_crps_scorer,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

LINEAR = IMMSEConditionalDensity(LinearRegression(), max_epochs=0, random_state=shifted(0))
TREES = IMMSEConditionalDensity(
    [
        ExtraTreesRegressor(20, min_samples_leaf=3, random_state=shifted(0)),
        ExtraTreesClassifier(20, min_samples_leaf=3, random_state=shifted(0)),
    ],
    cv=3,
    max_epochs=0,
    random_state=shifted(0),
)


def heteroscedastic(n, seed=0):
    """Return features, targets, and the function of their exact log-density."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.0, 1.0, size=(n, 2))

    def law(X):
        return stats.norm(X[:, 0] - 0.5 * X[:, 1], 0.3 * np.exp(X[:, 0]))

    return X, law(X).rvs(random_state=rng), lambda X, y: law(X).logpdf(y)


def heavy_tailed(n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.0, 1.0, size=(n, 2))
    y = X[:, 0] + 0.3 * rng.standard_t(3, size=n)
    return X, y, lambda X, y: stats.t(3, X[:, 0], 0.3).logpdf(y)


def bimodal(n, seed=0):
    """The modes are as far apart everywhere, which needs no network."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.0, 1.0, size=(n, 2))
    y = X[:, 1] + np.where(rng.random(n) < 0.4, -1.0, 1.0) + 0.2 * rng.normal(size=n)

    def log_density(X, y):
        modes = [
            stats.norm(X[:, 1] + m, 0.2).logpdf(y) + np.log(p) for m, p in ((-1, 0.4), (1, 0.6))
        ]
        return np.logaddexp(*modes)

    return X, y, log_density


def classes(n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    logits = np.column_stack([np.zeros(n), 2.0 * X[:, 0], X[:, 1] - X[:, 0]])
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    number = (rng.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1)
    names = np.array(["a", "b", "c"])

    def log_probability(X, y):
        logits = np.column_stack([np.zeros(len(X)), 2.0 * X[:, 0], X[:, 1] - X[:, 0]])
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return logs[np.arange(len(X)), np.searchsorted(names, y)]

    return X, names[number], log_probability


def divergence(estimator, draw, n, seed):
    """Return the divergence from the truth on new rows, in nats, and its standard error."""
    X, y, log_density = draw(n, seed)
    X_new, y_new, _ = draw(4000, seed + 1000)
    apart = log_density(X_new, y_new) - clone(estimator).fit(X, y).score_samples(X_new, y_new)
    return apart.mean(), apart.std() / np.sqrt(len(apart))


# -- known conditionals ------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [heavy_tailed, bimodal], ids=lambda f: f.__name__)
def test_residuals_of_any_shape_are_learned(draw):
    """A right location leaves the mixture, of some ten numbers from 1000 rows: 0.02 nats or so.

    Narrow modes also suffer from an error of the location, whose standard deviation of 0.06 is a
    quarter of theirs.
    """
    found, error = divergence(LINEAR, draw, 1000, 0)
    assert found < (0.12 if draw is bimodal else 0.05) + 2.0 * error
    X, y, log_density = draw(1000)
    normal = stats.norm(0.0, (y - LinearRegression().fit(X, y).predict(X)).std())
    apart = log_density(X, y) - normal.logpdf(y - LinearRegression().fit(X, y).predict(X))
    assert apart.mean() > 0.12


def test_scales_follow_the_features():
    """One scale for all rows is 0.17 nats from the truth, by the variance of log s.

    Few trees have noise of their own, up to half of that.
    """
    assert divergence(LINEAR, heteroscedastic, 1000, 0)[0] < 0.09


def test_categories_of_a_right_model_are_near_the_truth():
    """Temperature and share of the marginal, and six coefficients: 8 / (2 * 900) nats."""
    estimator = IMMSEConditionalDensity(LogisticRegression(), random_state=shifted(0))
    assert divergence(estimator, classes, 1000, 0)[0] < 0.03


def test_locations_are_judged_by_the_density_of_their_residuals():
    """Errors that are small for the squares of residuals are large in narrow modes."""
    rng = np.random.default_rng(shifted(0))
    exact = rng.uniform(-1.0, 1.0, 2000)
    target = exact + np.where(rng.random(2000) < 0.4, -1.0, 1.0) + 0.1 * rng.normal(size=2000)
    table = np.column_stack([exact + 0.1 * rng.normal(size=2000), exact])
    rows = WeightedRows(target[:, None], np.ones(2000), group=np.arange(2000))
    half = np.array([0.5, 0.5])
    # Of a model of scales that says nothing, nothing follows.
    log_scale = 0.5 * rng.normal(size=2000)
    share = base_model.single_if_as_good(half, table, target, rows, log_scale)
    np.testing.assert_array_equal(share, [0.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw", [heteroscedastic, heavy_tailed, bimodal, classes], ids=lambda f: f.__name__
)
def test_automatic_models_are_near_known_conditionals(draw):
    found, error = divergence(IMMSEConditionalDensity(random_state=shifted(0)), draw, 5000, 0)
    assert found < 0.03 + 2.0 * error


def test_a_target_without_relation_has_its_marginal():
    rng = np.random.default_rng(shifted(0))
    X, y = rng.normal(size=(2000, 3)), rng.gamma(2.0, size=2000)
    X_new, y_new = rng.normal(size=(2000, 3)), rng.gamma(2.0, size=2000)
    found = clone(LINEAR).fit(X, y).score_samples(X_new, y_new)
    truth = stats.gamma(2.0).logpdf(y_new)
    # The mixture has to learn a bound too: of the marginal alone it is as far from the truth.
    alone = clone(LINEAR).fit(np.zeros((2000, 1)) + np.arange(2000)[:, None] * 1e-9, y)
    marginal = alone.score_samples(np.zeros((2000, 1)), y_new)
    assert (truth - found).mean() < (truth - marginal).mean() + 0.02


# -- exact laws --------------------------------------------------------------------------------


def small(n=200, seed=0):
    return heteroscedastic(n, seed)[:2]


@pytest.mark.parametrize(("factor", "shift", "tolerance"), [(8.0, 0.0, 1e-10), (37.1, -5.0, 1e-7)])
def test_units_of_the_target_change_the_density_by_the_jacobian(factor, shift, tolerance):
    X, y = small()
    before = clone(TREES).fit(X, y).score_samples(X, y)
    after = clone(TREES).fit(X, factor * y + shift).score_samples(X, factor * y + shift)
    np.testing.assert_allclose(after, before - np.log(factor), rtol=0, atol=tolerance)


@pytest.mark.parametrize("estimator", [LINEAR, TREES], ids=["linear", "trees"])
def test_units_of_the_features_change_nothing(estimator, monkeypatch):
    """Rows are divided by a hash of their content; if by that of ranks, nothing else changes."""
    monkeypatch.setattr(
        splitting, "row_keys", lambda X, seed: row_keys(stats.rankdata(X, axis=0), seed)
    )
    X, y = small()
    before = clone(estimator).fit(X, y).score_samples(X, y)
    moved = np.array([3.7, 0.02]) * X + np.array([4.0, -0.3])
    after = clone(estimator).fit(moved, y).score_samples(moved, y)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


def test_weights_are_repetitions_and_the_order_of_rows_is_irrelevant():
    X, y = small(120)
    weight = np.random.default_rng(shifted(0)).integers(0, 4, len(y))
    order = np.random.default_rng(shifted(1)).permutation(weight.sum())
    weighted = clone(TREES).fit(X, y, sample_weight=weight).score_samples(X, y)
    rows = np.repeat(np.arange(len(y)), weight)[order]
    repeated = clone(TREES).fit(X[rows], y[rows]).score_samples(X, y)
    np.testing.assert_array_equal(weighted, repeated)
    plain = KNeighborsRegressor()  # takes no weights
    by_weight = clone(LINEAR).set_params(base=plain).fit(X, y, sample_weight=weight)
    by_rows = clone(LINEAR).set_params(base=plain).fit(X[rows], y[rows])
    np.testing.assert_array_equal(by_weight.score_samples(X, y), by_rows.score_samples(X, y))


def test_weights_are_left_as_they_are():
    X, y = small(80)
    weight = 0.37 * np.random.default_rng(shifted(0)).integers(1, 4, len(y))
    before = weight.copy()
    scores = clone(LINEAR).fit(X, y, sample_weight=weight).score_samples(X, y)
    np.testing.assert_array_equal(weight, before)
    series = clone(LINEAR).fit(X, y, sample_weight=pd.Series(before))  # read-only
    np.testing.assert_array_equal(series.score_samples(X, y), scores)


def test_a_row_does_not_depend_on_the_others():
    X, y = small(40)
    fitted = clone(TREES).fit(X, y)
    together = fitted.score_samples(X, y), fitted.cdf(X, y)
    alone = [
        (
            fitted.score_samples(X[i : i + 1], y[i : i + 1])[0],
            fitted.cdf(X[i : i + 1], y[i : i + 1])[0],
        )
        for i in range(len(y))
    ]
    np.testing.assert_array_equal(np.transpose(together), alone)


def test_cdf_is_monotone_and_the_integral_of_the_density():
    X, y = small()
    fitted = clone(TREES).fit(X, y)
    grid = np.linspace(y.min() - 1.0, y.max() + 1.0, 4001)
    for row in X[:2]:
        rows = np.tile(row, (len(grid), 1))
        density, below = np.exp(fitted.score_samples(rows, grid)), fitted.cdf(rows, grid)
        assert (np.diff(below) >= 0.0).all()
        total = trapezoid(density, grid)
        assert total == pytest.approx(below[-1] - below[0], abs=1e-4)
        halves = [trapezoid(density[:k], grid[:k]) for k in (1000, 2000, 3000)]
        np.testing.assert_allclose(halves, below[[999, 1999, 2999]] - below[0], atol=1e-4)
        levels = np.array([0.01, 0.3, 0.5, 0.9, 0.999])
        quantiles = fitted.predict(row[None], quantiles=levels)[0]
        np.testing.assert_allclose(fitted.cdf(rows[:5], quantiles), levels, atol=1e-9)
        mean, std = fitted.predict(row[None], return_std=True)
        wide = np.linspace(-60.0, 60.0, 30_001)
        many = np.exp(fitted.score_samples(np.tile(row, (len(wide), 1)), wide))
        assert trapezoid(many * wide, wide) == pytest.approx(mean[0], abs=1e-3)
        second = trapezoid(many * (wide - mean) ** 2, wide)
        assert second**0.5 == pytest.approx(std[0], rel=1e-2)


def test_mean_log_density_of_random_targets_is_that_of_samples():
    X, y = small()
    fitted = clone(TREES).fit(X, y)
    drawn = fitted.sample(X[:50], 200, random_state=shifted(0))
    assert drawn.shape == (50, 200)
    scores = fitted.score_samples(np.repeat(X[:50], 200, axis=0), drawn.ravel())
    error = scores.std() / np.sqrt(len(scores))
    assert abs(scores.mean() - fitted.score_samples(X[:50]).mean()) < 4.0 * error
    assert (
        stats.kstest(fitted.cdf(np.repeat(X[:50], 200, axis=0), drawn.ravel()), "uniform")[1] > 1e-3
    )


# -- categories and several targets ------------------------------------------------------------


def test_categories_are_normalised_and_scored_by_their_probability():
    X, y, _ = classes(200)
    fitted = clone(TREES).fit(X, y)
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    probability = fitted.predict_proba(X)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-12)
    number = np.searchsorted(fitted.classes_, y)
    # No row has a category of its own, and any other one has the rest of the total of 1.
    log_seen = np.log1p(-1.0 / (len(y) + 2))
    scores = fitted.score_samples(X, y) - log_seen
    np.testing.assert_allclose(np.exp(scores), probability[np.arange(len(y)), number], rtol=1e-12)
    assert (fitted.predict(X) == fitted.classes_[probability.argmax(axis=1)]).all()
    entropy = -np.sum(probability * np.log(probability), axis=1)
    np.testing.assert_allclose(fitted.score_samples(X), log_seen - entropy, rtol=1e-9)
    shares = (
        fitted.sample(X[:20], 400, random_state=shifted(0))[:, :, None] == fitted.classes_
    ).mean(axis=1)
    assert np.abs(shares - probability[:20]).max() < 5.0 * 0.5 / np.sqrt(400)
    strict = clone(TREES).set_params(handle_unknown="error").fit(X, y)
    np.testing.assert_allclose(strict.score_samples(X, y), scores, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="has categories that fit has not seen: 'd'"):
        strict.score_samples(X[:1], ["d"])


def test_a_class_that_a_fold_lacks_has_a_probability():
    X, y, _ = classes(120)
    y = y.astype(object)
    y[:2] = "rare"
    frame = pd.Series(y).astype(pd.CategoricalDtype(["a", "b", "c", "rare", "never"]))
    for base in (ExtraTreesClassifier(20, random_state=shifted(0)), LogisticRegression()):
        fitted = IMMSEConditionalDensity(base, random_state=shifted(0)).fit(X, frame)
        assert (fitted.predict_proba(X) > 1e-5).all()
        assert np.isfinite(fitted.score_samples(X, frame)).all()


def mixed_targets(n=300):
    rng = np.random.default_rng(shifted(0))
    X = rng.normal(size=(n, 2))
    colour = np.where(X[:, 0] + 0.5 * rng.normal(size=n) > 0, "red", "blue")
    size = 3.0 * (colour == "red") + X[:, 1] + 0.3 * rng.normal(size=n)
    return X, pd.DataFrame({"size": size, "colour": colour})


def test_density_of_mixed_targets_sums_to_one():
    X, targets = mixed_targets()
    fitted = clone(TREES).fit(X, targets)
    assert fitted.kinds_ == ["continuous", "nominal"]
    grid = np.linspace(-12.0, 15.0, 2001)
    total = 0.0
    for colour in ("red", "blue"):
        rows = pd.DataFrame({"size": grid, "colour": colour})
        total += trapezoid(np.exp(fitted.score_samples(np.tile(X[0], (2001, 1)), rows)), grid)
    assert total == pytest.approx(1.0 - 1.0 / 302, abs=2e-3)
    # The number depends on the category, and not only on the features.
    rows = pd.DataFrame({"size": [3.0, 3.0], "colour": ["red", "blue"]})
    assert np.ptp(fitted.score_samples(np.zeros((2, 2)), rows)) > 1.0
    drawn = fitted.sample(X[:40], 30, random_state=shifted(0))
    assert drawn.shape == (40, 30, 2)
    predicted = fitted.predict(X[:40])
    means = drawn[:, :, 0].astype(float).mean(axis=1)
    spread = drawn[:, :, 0].astype(float).std(axis=1) / np.sqrt(30)
    assert np.abs((means - predicted["size"]) / np.maximum(spread, 0.05)).mean() < 2.0
    for ask in (fitted.predict_interval, lambda X: fitted.predict(X, quantiles=[0.5])):
        with pytest.raises(ValueError, match="of one continuous target only"):
            ask(X)


def test_several_continuous_targets_have_a_joint_density():
    rng = np.random.default_rng(shifted(0))
    X = rng.normal(size=(400, 2))
    noise = rng.multivariate_normal([0, 0], [[1.0, 0.9], [0.9, 1.0]], 800)
    Y = X @ np.array([[1.0, 0.5], [-1.0, 2.0]]) + noise[:400]
    fitted = clone(LINEAR).fit(X, Y)
    apart = [clone(LINEAR).fit(X, Y[:, j]) for j in (0, 1)]
    X_new = rng.normal(size=(400, 2))
    Y_new = X_new @ np.array([[1.0, 0.5], [-1.0, 2.0]]) + noise[400:]
    gain = fitted.score(X_new, Y_new) - sum(
        each.score(X_new, Y_new[:, j]) for j, each in enumerate(apart)
    )
    # The information between the residuals is 0.83 nats.
    assert gain > 0.7
    assert fitted.predict(X).shape == (400, 2)
    assert fitted.sample(X, 3).shape == (400, 3, 2)


# -- base models -------------------------------------------------------------------------------


def test_weights_of_base_models_have_the_least_squared_error():
    rng = np.random.default_rng(shifted(0))
    weight = rng.integers(1, 4, 300).astype(float)
    table = rng.normal(size=(300, 3))
    target = table @ [0.3, 0.7, 0.0] + 0.1 * rng.normal(size=300)
    found = base_model.stacking_shares(table, target, weight)
    steps = np.arange(0.0, 1.0001, 0.02)
    grid = [(a, b, 1.0 - a - b) for a in steps for b in steps if a + b < 1.0 + 1e-9]
    losses = [weight @ (target - table @ np.array(each)) ** 2 for each in grid]
    np.testing.assert_allclose(found, grid[int(np.argmin(losses))], atol=0.02)
    assert weight @ (target - table @ found) ** 2 <= min(losses) * (1.0 + 1e-3)
    assert found.sum() == pytest.approx(1.0)
    # A mean beyond all models has the nearest one, whatever its size.
    np.testing.assert_array_equal(
        base_model.stacking_shares(table[:, :1], 5.0 * table[:, 0], weight), [1.0]
    )


def test_a_single_base_model_is_enough_unless_a_mean_is_better_for_densities():
    """Squared errors of a few rows, in which the first model is far off, do not decide."""
    rng = np.random.default_rng(shifted(0))
    n = 400
    target, first, second = rng.normal(size=(3, n)) * [[1.0], [0.1], [0.1]]
    rows = WeightedRows(np.empty((n, 0)), np.ones(n))
    even = np.full(n, 0.0)

    def chosen(errors):
        table = target[:, None] + np.stack(errors, axis=1)
        share = base_model.stacking_shares(table, target, rows.weight)
        assert (share > 0.1).all()
        return share, base_model.single_if_as_good(share, table, target, rows, even)

    # The mean of two models with independent errors has a width of 0.71 of theirs.
    share, kept = chosen([first, second])
    np.testing.assert_array_equal(kept, share)
    odd = np.where(np.arange(n) < n // 10, 10.0, 0.1)
    share, kept = chosen([first * odd, 3.0 * second])
    np.testing.assert_array_equal(kept, [1.0, 0.0])


# -- which rows see what -----------------------------------------------------------------------


class Spy(RegressorMixin, BaseEstimator):
    """A linear model that tells which targets it was fitted to."""

    seen: list = []  # noqa: RUF012

    def fit(self, X, y):
        self.model_ = LinearRegression().fit(X, y)
        Spy.seen.append({round(float(x), 12) for x in np.asarray(X)[:, 0]})
        return self

    def predict(self, X):
        return self.model_.predict(X)


class Wrong(Spy):
    """A linear model of something else."""

    def predict(self, X):
        return 10.0 + super().predict(X)


def rows_seen(**options):
    X, y = small(200)
    Spy.seen = []
    fit_options = {"groups": options.pop("groups")} if "groups" in options else {}
    IMMSEConditionalDensity(Spy(), random_state=shifted(0), **options).fit(X, y, **fit_options)
    return X, Spy.seen


@pytest.mark.parametrize(("least", "n_fits"), [(1000, 5), (20, 1)])
def test_models_without_a_weight_in_a_fold_of_many_rows_are_left_out(least, n_fits, monkeypatch):
    monkeypatch.setattr(base_model, "_ROWS_TO_LEAVE_OUT", least)
    X, y = small(200)
    Spy.seen = []
    base = [Wrong(), LinearRegression()]
    fitted = IMMSEConditionalDensity(base, random_state=shifted(0), max_epochs=0).fit(X, y)
    assert len(Spy.seen) == n_fits
    assert [type(each) for each in fitted.base_models_[0]] == [LinearRegression]
    np.testing.assert_array_equal(fitted.base_weights_[0], [1.0])


class Flat(Spy):
    """A model of the same scale everywhere."""

    def predict(self, X):
        return np.zeros(len(X))


@pytest.mark.parametrize(("least", "n_fits"), [(1000, 11), (20, 7)])
def test_a_fold_of_many_rows_chooses_the_model_of_scales(least, n_fits, monkeypatch):
    """Each of five folds tries both models, or the first one does, and the better is fitted."""
    candidates = [base_model.Candidate(each) for each in (Flat(), Spy())]
    monkeypatch.setattr(base_model, "scale_models", lambda seed, n_rows: candidates)
    monkeypatch.setattr(base_model, "_ROWS_TO_LEAVE_OUT", least)
    X, y = small(300)
    Spy.seen = []
    number = clone(LINEAR).fit(X, y)._model.numbers[0]
    assert len(Spy.seen) == n_fits
    assert type(number.scale.estimator) is Spy
    assert number.strength > 0.2


def test_validation_and_conformal_rows_enter_no_model():
    _, seen = rows_seen(validation_fraction=0.2, conformal_fraction=0.3)
    assert len(set.union(*seen)) == 100
    assert max(map(len, seen)) == 100
    assert sorted(map(len, seen))[:5] == [80] * 5
    _, seen = rows_seen(validation_fraction=0.2)
    assert len(set.union(*seen)) == 160


def test_groups_and_equal_features_are_in_one_fold():
    group = np.arange(200) // 10
    X, seen = rows_seen(groups=group)
    of_row = {round(float(x), 12): g for x, g in zip(X[:, 0], group, strict=True)}
    numbers = [[of_row[x] for x in each] for each in seen]
    assert all(set(np.unique(each, return_counts=True)[1]) == {10} for each in numbers)
    folds = list(GroupKFold(4).split(X, None, group))
    _, seen = rows_seen(cv=folds, groups=group)
    numbers = [[of_row[x] for x in each] for each in seen]
    assert all(set(np.unique(each, return_counts=True)[1]) == {10} for each in numbers)
    with pytest.raises(ValueError, match="cv must predict each row once"):
        rows_seen(cv=folds[:2])


def test_frequent_values_beside_others_are_levels():
    rng = np.random.default_rng(shifted(0))
    is_zero, flag = rng.random(800) < 0.6, rng.integers(0, 2, 800)
    amount = np.where(is_zero, 0.0, rng.exponential(size=800))
    mean = 3.0 * is_zero * (1.0 + flag) + amount + flag
    X, y = np.column_stack([amount, flag]), mean + 0.3 * rng.normal(size=800)
    base = DecisionTreeRegressor(min_samples_leaf=5, random_state=shifted(0))
    fitted = IMMSEConditionalDensity(base, max_epochs=0, random_state=shifted(0)).fit(
        X[:400], y[:400]
    )
    new = np.flatnonzero(is_zero[400:]) + 400
    truth = stats.norm.logpdf(y[new], mean[new], 0.3)
    # Zeros of a flag that were not seen cost 2.7 nats.
    assert np.mean(truth - fitted.score_samples(X[new], y[new])) < 0.2


@pytest.mark.parametrize("n_levels", [6, 40])
def test_levels_of_features_that_were_seen_are_predicted_like_new_rows(n_levels):
    rng = np.random.default_rng(shifted(0))
    level, mean = rng.integers(0, n_levels, 800), rng.normal(size=n_levels)
    y = mean[level] + 0.1 * rng.normal(size=800)
    base = DecisionTreeRegressor(random_state=shifted(0))
    estimator = IMMSEConditionalDensity(base, max_epochs=0, random_state=shifted(0))
    estimator.fit(level[:400, None], y[:400])
    truth = stats.norm.logpdf(y[400:], mean[level[400:]], 0.1)
    found = estimator.score_samples(level[400:, None], y[400:])
    # A mean of ten rows, or less, is off by 0.03, which costs 0.05 nats; unseen levels cost 3.
    assert (truth - found).mean() < 0.2
    assert estimator.predict([[0]])[0] == pytest.approx(mean[0], abs=0.15)


def test_tables_of_few_states_are_warned_of():
    level = np.random.default_rng(shifted(0)).integers(0, 6, 200)
    with pytest.warns(UserWarning, match="rows have only 6 different features"):
        clone(TREES).fit(level[:, None], np.array(list("abcabc"))[level])


def test_copies_of_rows_do_not_break_the_scale():
    """Equal features and targets up to a last digit: a model that has seen one knows the other."""
    X, y = small(150)
    rng = np.random.default_rng(shifted(0))
    twice = np.vstack([X, X])
    targets = np.concatenate([y, y + 1e-9 * rng.normal(size=150)])
    X_new, y_new, _ = heteroscedastic(2000, 5)
    base = ExtraTreesRegressor(30, random_state=shifted(0))
    estimator = IMMSEConditionalDensity(base, random_state=shifted(0))
    copied = clone(estimator).fit(twice, targets).score(X_new, y_new)
    single = clone(estimator).fit(X, y).score(X_new, y_new)
    assert copied > single - 0.25
    # A third of the rows is predicted exactly; the others have a scale all the same.
    exact = X[:, 0] > 0.3
    y = np.where(exact, 0.0, y)
    fitted = clone(estimator).fit(X, y)
    assert np.isfinite(fitted.score_samples(X, y)).all()


def test_mixtures_are_not_worse_than_a_normal_residual():
    """Of normal residuals, over six sets of 100 rows."""
    lost = []
    for seed in range(6):
        X, y, _ = heteroscedastic(100, seed)
        X_new, y_new, _ = heteroscedastic(1000, seed + 50)
        fitted = clone(LINEAR).fit(X, y)
        mean, std = fitted.predict(X_new, return_std=True)
        lost.append(stats.norm(mean, std).logpdf(y_new).mean() - fitted.score(X_new, y_new))
    assert np.mean(lost) < 0.02


@pytest.mark.parametrize("n", [60, 200])
def test_conformal_intervals_cover_whatever_the_distribution(n):
    """At the rate that was asked for, within two standard errors over fits of a wrong model."""
    covered = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(n + 500, 1))
        y = np.exp(2.0 * X[:, 0]) + rng.standard_cauchy(n + 500)
        fitted = IMMSEConditionalDensity(
            LinearRegression(), conformal_fraction=0.3, cv=2, random_state=seed
        ).fit(X[:n], y[:n])
        low, high = fitted.predict_interval(X[n:], coverage=0.8).T
        covered.append(np.mean((low <= y[n:]) & (y[n:] <= high)))
    error = np.std(covered, ddof=1) / np.sqrt(len(covered))
    assert np.mean(covered) > 0.8 - 2.0 * error


def test_conformal_rank_is_exact():
    scores = ConformalScores(np.linspace(0.1, 0.9, 9), np.ones(9))
    # The k-th of nine covers k / 10.
    assert [scores.central_probability(c) for c in (0.1, 0.5, 0.75, 0.9)] == [
        pytest.approx(x) for x in (0.1, 0.5, 0.8, 0.9)
    ]
    assert scores.central_probability(0.95) == 1.0


def test_groups_are_exchangeable_where_their_rows_are_not():
    """Scores of groups with a strong effect; each draw has a row of a new group."""
    rng = np.random.default_rng(shifted(0))
    group = np.repeat(np.arange(12), 10)
    rows = distinct_rows(np.arange(120.0)[:, None], np.zeros((120, 1)), np.ones(120), group, 0)
    number, shares = group[rows.index], rows.group_share
    np.testing.assert_allclose(np.bincount(number, shares), 1.0)
    covered = np.empty((2, 1500))
    for i in range(covered.shape[1]):
        effect, noise = rng.normal(size=13), 0.3 * rng.normal(size=121)
        distance = 2.0 * stats.norm.cdf(np.abs(effect[number] + noise[:120])) - 1.0
        new = 2.0 * stats.norm.cdf(abs(effect[12] + noise[120])) - 1.0
        order = np.argsort(distance)
        by_group = ConformalScores(distance[order], shares[order])
        by_row = ConformalScores(distance[order], np.ones(120))
        covered[:, i] = [new <= each.central_probability(0.85) for each in (by_group, by_row)]
    error = np.sqrt(0.85 * 0.15 / covered.shape[1])
    assert covered[0].mean() > 0.85 - 3.0 * error
    assert covered[1].mean() < 0.85 - 3.0 * error  # why groups count
    assert by_group.central_probability(0.93) == 1.0  # 12 groups are less than 0.93 of 13


def test_intervals_of_groups_are_calibrated_by_groups():
    X, y = small(120)
    estimator = clone(LINEAR).set_params(conformal_fraction=0.5)
    plain = clone(estimator).fit(X, y).predict_interval(X)
    alone = clone(estimator).fit(X, y, groups=np.arange(120)).predict_interval(X)
    np.testing.assert_array_equal(plain, alone)
    # 10 of 20 groups cover 10/11 at most.
    fitted = clone(estimator).fit(X, y, groups=np.arange(120) % 20)
    assert np.isfinite(fitted.predict_interval(X, coverage=0.9)).all()
    assert np.isinf(fitted.predict_interval(X, coverage=0.92)).all()


def test_shares_of_a_row_in_several_groups_add_up():
    """A weight is a repetition, and equal rows of two groups count in both."""
    X, Y = np.array([[0.0], [0.0], [1.0], [2.0]]), np.zeros((4, 1))
    rows = distinct_rows(X, Y, np.array([1.0, 1.0, 3.0, 5.0]), np.array([0, 1, 1, 2]), 0)
    found = dict(zip(X[rows.index, 0], rows.group_share, strict=True))
    assert found == {0.0: 1.0 + 0.25, 1.0: 0.75, 2.0: 1.0}


# -- scikit-learn ------------------------------------------------------------------------------


def test_searches_see_the_base_model_and_maximise_the_log_density():
    X, y = small(120)
    estimator = IMMSEConditionalDensity(
        HistGradientBoostingRegressor(max_iter=5, early_stopping=False, random_state=shifted(0)),
        cv=2,
        random_state=shifted(0),
    )
    search = GridSearchCV(estimator, {"base__max_iter": [2, 20]}, cv=2).fit(X, y)
    assert search.best_params_ == {"base__max_iter": 20}
    assert search.best_estimator_.base_models_[0][0].n_iter_ == 20
    bases = GridSearchCV(
        clone(LINEAR), {"base": [LinearRegression(), KNeighborsRegressor()]}, cv=2
    ).fit(X, y)
    assert bases.best_score_ == max(bases.cv_results_["mean_test_score"])
    pipeline = make_pipeline(StandardScaler(), clone(LINEAR))
    scores = cross_val_score(pipeline, X, y, cv=2, scoring=log_density_scorer)
    assert np.isfinite(scores).all()
    with pytest.raises(ValueError, match="base__max_iter needs base to be an estimator"):
        IMMSEConditionalDensity().set_params(base__max_iter=3)


def test_weights_and_groups_are_routed():
    X, y = small(120)
    weight, group = np.random.default_rng(shifted(0)).integers(1, 4, 120), np.arange(120) // 3
    with sklearn.config_context(enable_metadata_routing=True):
        inner = clone(LINEAR).set_fit_request(sample_weight=True, groups=True)
        inner.set_score_request(sample_weight=True)
        search = GridSearchCV(inner, {"cv": [3]}, cv=GroupKFold(2))
        search.fit(X, y, sample_weight=weight, groups=group)
    train = next(iter(GroupKFold(2).split(X, y, group)))
    own = clone(LINEAR).set_params(cv=3)
    own.fit(X[train[0]], y[train[0]], sample_weight=weight[train[0]], groups=group[train[0]])
    expected = own.score(X[train[1]], y[train[1]], sample_weight=weight[train[1]])
    assert search.cv_results_["split0_test_score"][0] == pytest.approx(expected, rel=1e-12)


def test_tables_of_any_container_are_the_same():
    polars = pytest.importorskip("polars")
    rng = np.random.default_rng(shifted(0))
    frame = pd.DataFrame(
        {
            "a": np.where(rng.random(80) < 0.1, np.nan, rng.normal(size=80)),
            "b": rng.choice(["u", "v", "w"], 80),
            "c": rng.integers(0, 9, 80),
        }
    )
    y = frame["c"] + (frame["b"] == "u") + 0.1 * rng.normal(size=80)
    automatic = IMMSEConditionalDensity(random_state=shifted(0), cv=2, target_kinds="continuous")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "_MANY_COLUMNS", {"max_iter": 10})
        patch.setattr(base_model, "_FEW_COLUMNS", {"max_iter": 5})
        patch.setattr(base_model, "_N_TREES", 10)
        fitted = automatic.fit(frame, y)
    scores = fitted.score_samples(frame, y)
    other = polars.DataFrame({name: frame[name].tolist() for name in frame})
    np.testing.assert_array_equal(fitted.score_samples(other, y.tolist()), scores)
    unseen = frame.assign(b="never")
    assert np.isfinite(fitted.score_samples(unseen, y)).all()
    with pytest.raises(ValueError, match="'b' holds numbers, but its categories are texts"):
        fitted.score_samples(frame.assign(b=3), y)
    with pytest.raises(ValueError, match="feature names"):
        fitted.score_samples(frame.rename(columns={"a": "z"}), y)
    with pytest.raises(ValueError, match=r"infinity.* column\(s\) 'a'"):
        fitted.score_samples(frame.assign(a=np.inf), y)


@pytest.mark.parametrize("dtype", ["string", "category", "Int64"])
def test_targets_may_be_arrays_of_pandas(dtype):
    X, _ = small(60)
    y = pd.Series(X[:, 0] > 0).map({True: 1, False: 0}).astype(str if dtype != "Int64" else int)
    y = y.astype(dtype)
    density = IMMSEConditionalDensity(max_epochs=0, cv=2, random_state=shifted(0))
    expected = clone(density).fit(X, y).score_samples(X, y)
    fitted = density.fit(X, y.array)
    np.testing.assert_array_equal(fitted.score_samples(X, y.array), expected)


def test_targets_that_cannot_be_learned_are_errors():
    X, y = small(60)
    for wrong, message in (
        (None, "requires y to be passed"),
        (np.where(y > 1.0, np.nan, y), "Input y contains NaN"),
        (np.where(y > 1.0, np.inf, y), "Input y contains infinity"),
        (np.full(60, 2.0), "does not vary"),
        (y[:50], "inconsistent numbers of samples"),
    ):
        with pytest.raises(ValueError, match=message):
            clone(LINEAR).fit(X, wrong)
    with pytest.raises(ValueError, match="base must be, or have, a classifier"):
        clone(LINEAR).fit(X, y > 0.0)
    with pytest.raises(ValueError, match="has no predict_proba"):
        clone(LINEAR).set_params(base=RidgeClassifier()).fit(X, y > 0.0)
    with pytest.raises(ValueError, match="All rows have the same features"):
        clone(LINEAR).fit(np.ones((60, 2)), y)
    with pytest.raises(ValueError, match="of one continuous target"):
        clone(TREES).set_params(conformal_fraction=0.2).fit(X, y > 0.0)
    with pytest.raises(ValueError, match="target_kinds must be"):
        clone(LINEAR).set_params(target_kinds=["number"]).fit(X, y)
    with pytest.raises(ValueError, match="too few"):
        clone(LINEAR).set_params(validation_fraction=0.9).fit(X, y)


@pytest.mark.parametrize("n", [2, 3, 5, 12, 45])
def test_few_rows_give_finite_scores(n):
    X, y = small(n)
    for target in (y, y > np.median(y), np.where(y > -9.0, "all", "none")):
        fitted = clone(TREES).fit(X, target)
        assert np.isfinite(fitted.score_samples(X, target)).all()
    automatic = clone(TREES).set_params(base="auto", cv=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "_MANY_COLUMNS", {"max_iter": 2})
        patch.setattr(base_model, "_FEW_COLUMNS", {"max_iter": 2})
        assert np.isfinite(automatic.fit(X, y).score_samples(X, y)).all()


def test_regressors_score_the_means():
    X, y = small(200)
    regressor = IMMSERegressor(LinearRegression(), random_state=shifted(0)).fit(
        X, np.rint(4.0 * y).astype(int)
    )
    assert regressor.kinds_ == ["continuous"]
    assert 0.3 < regressor.score(X, np.rint(4.0 * y).astype(int)) < 1.0
    assert not hasattr(regressor, "predict_proba")


# -- scores ------------------------------------------------------------------------------------


def test_crps_of_mixtures_is_the_integral_of_the_squared_error_of_the_cdf():
    weight, mean, std = np.array([0.3, 0.7]), np.array([-1.0, 2.0]), np.array([0.5, 1.5])
    grid = np.linspace(-30.0, 30.0, 600_001)
    below = stats.norm.cdf((grid[:, None] - mean) / std) @ weight
    for y in (-2.0, 0.5, 7.0):
        expected = trapezoid((below - (grid >= y)) ** 2, grid)
        found = crps_of_normal_mixture([y], weight, mean, std)[0]
        assert found == pytest.approx(expected, abs=2e-4)


def test_crps_by_quantiles_is_the_closed_form():
    X, y = small(100)
    fitted = clone(LINEAR).fit(X, y)
    mixture = NormalMixture.of_reference(fitted._model.residual)
    location, log_scale = fitted._model.numbers[0].of_rows(fitted._read(X))
    scale = np.exp(log_scale)[:, None]
    exact = crps_of_normal_mixture(
        y, mixture.weight, location[:, None] + scale * mixture.mean, scale * mixture.std
    )
    assert -neg_crps_scorer(fitted, X, y) == pytest.approx(exact.mean(), rel=2e-3)


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(7))
def test_files_hold_every_automatic_model(number, tmp_path, monkeypatch):
    rng = np.random.default_rng(shifted(0))
    X, targets = mixed_targets(90)
    frame = pd.DataFrame({"a": X[:, 0], "b": rng.choice(["u", "v"], 90), "c": X[:, 1]})
    frame.loc[5, "a"] = np.nan
    monkeypatch.setattr(base_model, "_MANY_COLUMNS", {"max_iter": 5})
    monkeypatch.setattr(base_model, "_FEW_COLUMNS", {"max_iter": 5})
    monkeypatch.setattr(base_model, "_N_TREES", 5)
    monkeypatch.setattr(base_model, "_ROWS_FOR_NEURAL", 20)
    monkeypatch.setitem(base_model._NEURAL, "hidden_layer_sizes", (4,))

    def only(choose):
        def chosen(*arguments):
            found = choose(*arguments)
            return [found[number % len(found)]]

        return chosen

    for name in ("regressors", "classifiers"):
        chosen = only(getattr(base_model, name))
        monkeypatch.setattr(f"sk_itdiffusion._first._conditional.model.{name}", chosen)
    fitted = IMMSEConditionalDensity(cv=2, random_state=shifted(0)).fit(frame, targets)
    fitted.save(tmp_path / "file")
    scores = fitted.score_samples(frame, targets)
    for other in (load(tmp_path / "file"), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(other.score_samples(frame, targets), scores)
        pd.testing.assert_frame_equal(other.predict(frame), fitted.predict(frame))


def test_models_of_the_users_own_are_pickled_not_saved(tmp_path):
    X, y = small(60)
    fitted = clone(LINEAR).set_params(base=KNeighborsRegressor()).fit(X, y)
    with pytest.raises(TypeError, match="which cannot be saved"):
        fitted.save(tmp_path / "file")


def test_units_are_divided_whatever_their_sizes():
    """The share of large groups is the same on all sides, within three standard deviations."""
    rng = np.random.default_rng(shifted(0))
    sizes = np.tile([1, 1, 1, 12], 50)
    group = np.repeat(np.arange(200), sizes)
    X, y = rng.normal(size=(2, len(group), 1))
    rows = distinct_rows(X, y, np.ones(len(group)), group, 0)
    roles = divide_rows(rows, 0.1, 0.2)
    for side in (roles.conformal, roles.valid, roles.train):
        units = np.unique(group[rows.index[side]])
        spread = np.sqrt(0.25 * 0.75 / len(units))
        assert abs((sizes[units] == 12).mean() - 0.25) < 3.0 * spread


def test_nodes_that_are_no_tree_are_refused():
    X, y = small(60)
    for model in (
        ExtraTreesRegressor(2, random_state=shifted(0)).fit(X, y),
        HistGradientBoostingRegressor(max_iter=2, random_state=shifted(0)).fit(X, y),
        HistGradientBoostingClassifier(max_iter=2, random_state=shifted(0)).fit(X, y > 0.0),
    ):
        state = sklearn_state.fitted_state(model)
        back = sklearn_state.model_of_state(state)
        np.testing.assert_array_equal(back.predict(X), model.predict(X))
        records = next(records_of(state))
        names = records["names"]
        for name, wrong in (
            ("left_child", 10**6),
            ("left", 10**6),
            ("feature", 7),
            ("feature_idx", 7),
        ):
            if name in names:
                column = records["columns"][names.index(name)]
                before = column.copy()
                column[0] = wrong
                with pytest.raises(ValueError, match="no tree"):
                    sklearn_state.model_of_state(state)
                column[:] = before
        with pytest.raises(ValueError, match=r"of scikit-learn 0\.1"):
            sklearn_state.model_of_state(state | {"version": "0.1"})


def records_of(node):
    if isinstance(node, dict):
        if node.get("kind") == "records":
            yield node
        for value in node.values():
            yield from records_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from records_of(value)


def test_fits_warn_of_nothing_and_change_no_generator():
    X, y = small(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = clone(TREES).fit(X, y)
    np.testing.assert_array_equal(
        first.score_samples(X, y), clone(TREES).fit(X, y).score_samples(X, y)
    )
