"""Information: closed forms, enumeration, laws of information, and what tables may hold."""

import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats
from scipy.special import ndtri
from seeds import shifted
from sklearn.base import clone
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline

from sk_itdiffusion import IMMSEMixedDensity, IMMSEMutualInformation
from sk_itdiffusion._first._estimators.information import folds_of_table, units_of_table
from sk_itdiffusion._first._information.blend import Blend
from sk_itdiffusion._first._information.copula import EllipticalCopula, log_slopes, t_scores
from sk_itdiffusion._first._information.counts import CountTables
from sk_itdiffusion._first._information.normal_scores import NormalScores
from sk_itdiffusion._first._information.permutation import permutation_p_value
from sk_itdiffusion._first._information.roles import Roles
from sk_itdiffusion._first._information.units import mean_over_rows
from sk_itdiffusion._first.display import (
    DependenceDisplay,
    InformationCurveDisplay,
    PointwiseInformationDisplay,
)
from sk_itdiffusion.information import (
    DependenceMatrix,
    dependence_matrix,
    entropy,
    mutual_info_immse,
    total_correlation,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

#: One normal distribution behind the normal scores, which is quick; the copula decides.
QUICK = IMMSEMixedDensity(
    max_epochs=0,
    marginals="standard",
    bounds=None,
    reference="independent",
    random_state=shifted(0),
)
ESTIMATOR = IMMSEMutualInformation(QUICK, cv=2, random_state=shifted(0))
WHOLE = IMMSEMutualInformation(cv=2, random_state=shifted(0))


def normal_pairs(n, correlation, seed=0, n_pairs=1):
    """Return pairs of correlated normal columns, and the information between their sides."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_pairs))
    y = correlation * x + np.sqrt(1.0 - correlation**2) * rng.normal(size=x.shape)
    return x, y, -0.5 * n_pairs * np.log1p(-(correlation**2))


def is_near(estimator, truth, n_errors=3.0, bias=0.01):
    found = estimator.mutual_information_
    return abs(found - truth) < n_errors * estimator.standard_error_ + bias


# -- experts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [np.inf, 3.0])
def test_copula_has_the_densities_of_elliptical_distributions(degrees):
    rng = np.random.default_rng(shifted(0))
    root = rng.normal(size=(5, 5))
    scatter = root @ root.T
    z = rng.normal(size=(7, 5))
    t = t_scores(z, degrees)

    def log_density(columns):
        part, own = t[:, columns], scatter[np.ix_(columns, columns)]
        if np.isinf(degrees):
            return stats.multivariate_normal(np.zeros(len(columns)), own).logpdf(part)
        return stats.multivariate_t(np.zeros(len(columns)), own, df=degrees).logpdf(part)

    slope = log_slopes(z, t, degrees)[:, [1, 4]].sum(axis=1)
    roles = Roles(np.array([0, 3]), np.array([1, 4]), np.array([2]))
    conditional, marginal = EllipticalCopula(degrees, scatter).log_densities(z, roles)
    expected = log_density([0, 1, 2, 3, 4]) - log_density([0, 2, 3]) + slope
    np.testing.assert_allclose(conditional[-1], expected, rtol=1e-9)
    np.testing.assert_allclose(marginal, log_density([1, 2, 4]) - log_density([2]) + slope)
    if np.isinf(degrees):  # without correlations given the third column, x tells nothing
        np.testing.assert_allclose(conditional[0], marginal, rtol=1e-9)


def test_t_scores_and_their_slopes():
    z = np.array([-8.0, -1.0, 0.0, 1.0, 8.0])[:, None]
    t = t_scores(z, 3.0)
    np.testing.assert_allclose(stats.t.logcdf(t[:3], 3.0), stats.norm.logcdf(z[:3]))
    np.testing.assert_allclose(t[::-1], -t)
    step = 1e-6
    slope = (t_scores(z + step, 3.0) - t_scores(z - step, 3.0)) / (2.0 * step)
    np.testing.assert_allclose(log_slopes(z, t, 3.0), np.log(slope), atol=1e-6)


def test_copula_finds_tails_that_come_together():
    z = np.random.default_rng(shifted(0)).multivariate_normal(np.zeros(2), np.eye(2), size=2000)
    assert EllipticalCopula.fit(z).degrees >= 30.0
    scale = np.sqrt(2.0 / np.random.default_rng(shifted(1)).chisquare(2, size=2000))
    ranks = stats.rankdata(z * scale[:, None], axis=0)
    assert EllipticalCopula.fit(ndtri((ranks - 0.5) / 2000)).degrees == 2.0


def test_normal_scores_are_increasing_and_normal():
    rng = np.random.default_rng(shifted(0))
    X = np.column_stack([rng.standard_t(1, size=500), rng.integers(0, 3, size=500)])
    X[3, 0] = np.nan
    z = NormalScores.fit(X, np.array([True, False])).transform(X)
    assert np.isnan(z[3, 0])
    np.testing.assert_array_equal(z[:, 1], X[:, 1])
    kept = np.delete(np.arange(500), 3)
    np.testing.assert_array_equal(np.argsort(z[kept, 0]), np.argsort(X[kept, 0]))
    assert stats.kstest(z[kept, 0], "norm").statistic < 0.01
    tied = NormalScores.fit(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([True]))
    np.testing.assert_allclose(
        tied.transform(np.array([[-9.0], [0.5], [9.0]])),
        ndtri([[0.25], [0.5], [0.75]]),
        atol=1e-12,
    )


def test_blend_finds_the_weight_of_independence():
    rng = np.random.default_rng(shifted(0))
    marginal = rng.normal(size=(1, 20_000))
    ratio = np.where(rng.random(20_000) < 0.5, 2.0, 0.0)
    # One that says twice the truth: y has half the density ratio less 1 that it claims.
    with np.errstate(divide="ignore"):
        conditional = marginal + np.log(ratio)
    drawn = rng.random(20_000) < 0.5 * (0.5 * ratio + 0.5)  # rows of the blend, by rejection
    blend = Blend.fit(conditional[:, drawn], marginal[:, drawn])
    assert abs(np.exp(blend.log_weights[0, 0]) - 0.5) < 0.03
    assert not blend.is_independent
    worse = Blend.fit(marginal - 0.1, marginal)
    assert worse.is_independent
    assert (worse.information(conditional, marginal) == 0.0).all()


# -- closed forms ----------------------------------------------------------------------------


def test_normal_columns_whatever_their_scale():
    x, y, truth = normal_pairs(1000, 0.7, n_pairs=2)
    found = clone(ESTIMATOR).fit(np.exp(x), np.arctan(y))
    assert is_near(found, truth)
    assert 0.01 < found.standard_error_ < 0.06


@pytest.mark.slow
def test_many_columns_of_which_few_are_dependent():
    """A full covariance would cost 400 numbers, 0.3 nats of 600 rows; two directions cost 0.06."""
    rng = np.random.default_rng(shifted(0))
    x, y, truth = normal_pairs(600, 0.8)
    X = np.column_stack([x, rng.normal(size=(600, 19))])
    Y = np.column_stack([y, rng.normal(size=(600, 19))])
    assert abs(clone(ESTIMATOR).fit(X, Y).mutual_information_ - truth) < 0.15


def test_heavy_tails_that_come_together():
    """Uncorrelated columns of a t distribution; the value is that of benchmark-mi."""
    rng = np.random.default_rng(shifted(0))
    shared = np.sqrt(1.0 / rng.chisquare(1, size=1000))
    x, y = rng.normal(size=(2, 1000)) * shared
    assert is_near(clone(ESTIMATOR).fit(x[:, None], y), 0.2242, bias=0.02)


def exact_information(table):
    p = table / table.sum()
    return float((p * np.log(p / np.outer(p.sum(axis=1), p.sum(axis=0)))).sum())


def test_tables_of_categories_by_enumeration():
    table = np.array([[4.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    cell = np.random.default_rng(shifted(0)).choice(6, size=1000, p=table.ravel() / table.sum())
    row, column = np.array(["a", "b"])[cell // 3], np.array(["u", "v", "w"])[cell % 3]
    assert is_near(clone(ESTIMATOR).fit(row[:, None], column), exact_information(table))
    with_counts = CountTables(
        np.column_stack([cell // 3, cell % 3]).astype(float), np.array([2, 3])
    )
    cells = np.array([[row, column] for row in range(2) for column in range(3)], dtype=float)
    roles = Roles(np.array([0]), np.array([1]), np.arange(0))
    conditional, marginal = with_counts.log_densities(cells, roles)
    counts = np.bincount(cell, minlength=6).reshape(2, 3)
    shares = (counts.sum(axis=0) + 1.0 / 3.0) / 1001.0
    np.testing.assert_allclose(np.exp(marginal).reshape(2, 3), np.tile(shares, (2, 1)))
    expected = (counts + shares) / (counts.sum(axis=1, keepdims=True) + 1.0)
    np.testing.assert_allclose(np.exp(conditional[0]), expected.ravel())
    sums = np.exp(conditional).reshape(-1, 2, 3).sum(axis=2)
    np.testing.assert_allclose(sums, 1.0)
    # Rows that lack an entry are not counted for the other one.
    holed = np.vstack([with_counts.codes, [[0.0, np.nan]] * 500, [[np.nan, 1.0]] * 200])
    again = CountTables(holed, np.array([2, 3])).log_densities(cells, roles)
    np.testing.assert_array_equal(again[0], conditional)
    np.testing.assert_array_equal(again[1], marginal)


@pytest.mark.slow
def test_given_columns_take_their_part():
    rng = np.random.default_rng(shifted(0))
    z = rng.normal(size=600)
    x, y = (z + rng.normal(size=600) for _ in range(2))
    assert is_near(clone(ESTIMATOR).fit(x[:, None], y), -0.5 * np.log1p(-0.25))
    apart = clone(ESTIMATOR).fit(x[:, None], y, given=z)
    assert apart.mutual_information_ <= 2.0 * apart.standard_error_
    # Of a sum and one term, the other term is known: infinite information except for the noise.
    third = x + y + 0.5 * rng.normal(size=600)
    truth = 0.5 * np.log1p((x - 0.5 * y).var() / 0.25)
    assert is_near(clone(ESTIMATOR).fit(x[:, None], third, given=y), truth, bias=0.03)
    with pytest.raises(ValueError, match="without given"):
        clone(ESTIMATOR).fit(x[:, None], y).score_samples(x[:, None], y, z)


# -- laws ------------------------------------------------------------------------------------


def draws_of_independent_sides(kind, n, seed):
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(size=(n, 2)), rng.normal(size=n)
    if kind == "heavy":
        return rng.standard_t(1, size=(n, 1)), rng.standard_t(2, size=(n, 2))
    return rng.choice(["a", "b", "c"], size=(n, 1)), rng.choice(["u", "v"], size=n)


@pytest.mark.parametrize(
    "kind",
    ["normal", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("heavy", "categorical"))],
)
def test_nothing_is_found_where_nothing_is(kind):
    found = clone(ESTIMATOR).fit(*draws_of_independent_sides(kind, 300, 0))
    assert found.mutual_information_ <= 2.0 * found.standard_error_
    assert 1e-4 < found.standard_error_ < 0.1


@pytest.mark.slow
def test_nothing_is_found_in_sixty_draws():
    near = 0
    for kind in ("normal", "heavy", "categorical"):
        for seed in range(20):
            X, y = draws_of_independent_sides(kind, 300, seed)
            found = clone(WHOLE).fit(X, y)
            near += found.mutual_information_ <= 2.0 * found.standard_error_
    assert near >= 54


@pytest.mark.slow
@pytest.mark.parametrize(("truth", "least"), [(0.02, 15), (0.1, 20), (0.5, 20)])
def test_power_and_calibration(truth, least):
    """Of 20 samples nearly all show the dependence, and as many are within two errors."""
    correlation = np.sqrt(-np.expm1(-2.0 * truth))
    found, near = 0, 0
    for seed in range(20):
        x, y, _ = normal_pairs(1000, correlation, seed)
        each = clone(ESTIMATOR).fit(x, y)
        found += each.mutual_information_ > 0.0
        near += abs(each.mutual_information_ - truth) < 2.0 * each.standard_error_
    assert found >= least
    assert near >= 16


@pytest.mark.slow
def test_information_adds_up_over_independent_pairs_and_is_symmetric():
    x, y, _ = normal_pairs(600, 0.7, n_pairs=2)
    both = clone(ESTIMATOR).fit(x, y)
    single = [clone(ESTIMATOR).fit(x[:, [j]], y[:, j]) for j in range(2)]
    total = sum(each.mutual_information_ for each in single)
    # Paired over rows, the errors cancel except for those of the fits.
    assert abs(both.mutual_information_ - total) < 0.02
    other = clone(ESTIMATOR).fit(y, x)
    assert abs(both.mutual_information_ - other.mutual_information_) < 0.005
    wide = np.column_stack([x, np.random.default_rng(shifted(5)).normal(size=600)])
    there, back = clone(ESTIMATOR).fit(wide, y), clone(ESTIMATOR).fit(y, wide)
    assert abs(there.mutual_information_ - back.mutual_information_) < 0.01


@pytest.mark.slow
def test_processing_loses_information():
    x, y, truth = normal_pairs(600, 0.8)
    whole = clone(ESTIMATOR).fit(x, y)
    coarse = clone(WHOLE).fit(np.sign(x).astype(int), y)
    difference = whole.pointwise_information_ - coarse.pointwise_information_
    assert difference.mean() > 2.0 * difference.std() / np.sqrt(600)
    # The sign of x tells half of what a bit can tell, at most.
    assert 0.1 < coarse.mutual_information_ < min(np.log(2.0), truth)


def test_curve_rises_to_the_information():
    x, y, _ = normal_pairs(600, 0.7)
    found = clone(ESTIMATOR).fit(x, y)
    curve = found.information_curve_
    assert curve.information[0] < 1e-3
    # Behind the channel the correlation is lower: the signal's share of the variance, each.
    signal = 1.0 / (1.0 + np.exp(-curve.logsnr))
    exact = -0.5 * np.log1p(-((0.7 * signal) ** 2))
    assert (np.abs(curve.information - exact) < 3.0 * curve.standard_error + 0.01).all()
    assert abs(curve.information[-1] - found.mutual_information_) < 0.02


def test_squared_differences_of_denoisers_are_the_information():
    x, y, _ = normal_pairs(600, 0.7)
    found = clone(ESTIMATOR).fit(x, y)
    x, y = x[:40], y[:40]
    squares = found.squared_differences(x, y)
    assert (squares >= 0.0).all()
    error = squares.std() / np.sqrt(40)
    # Less than that of the pointwise information, which has either sign.
    assert error < 0.7 * found.score_samples(x, y).std() / np.sqrt(40)
    assert abs(squares.mean() + 0.5 * np.log1p(-(0.7**2))) < 3.0 * error + 0.03
    np.testing.assert_array_equal(found.squared_differences(x[3:4], y[3:4]), squares[3:4])


@pytest.mark.slow
def test_squared_differences_of_categories():
    """A bit that is wrong in one of ten rows."""
    rng = np.random.default_rng(shifted(0))
    bit = rng.integers(0, 2, size=600)
    wrong = np.where(rng.random(600) < 0.1, 1 - bit, bit).astype(str)
    frame = pd.DataFrame({"bit": pd.Categorical(bit)})
    found = IMMSEMutualInformation(cv=2, random_state=shifted(0)).fit(frame, wrong)
    squares = found.squared_differences(frame[:40], wrong[:40])
    truth = np.log(2.0) + 0.1 * np.log(0.1) + 0.9 * np.log(0.9)
    assert abs(squares.mean() - truth) < 3.0 * squares.std() / np.sqrt(40) + 0.05


@pytest.mark.slow
def test_total_correlation_and_entropy_of_normal_columns():
    root = np.random.default_rng(shifted(1)).normal(size=(3, 3))
    covariance = root @ root.T + np.eye(3)
    X = np.random.default_rng(shifted(0)).multivariate_normal(np.zeros(3), covariance, size=600)
    deviation = np.sqrt(np.diag(covariance))
    truth = -0.5 * np.linalg.slogdet(covariance / np.outer(deviation, deviation))[1]
    found, error = total_correlation(X, estimator=QUICK, cv=3, random_state=shifted(0))
    assert abs(found - truth) < 3.0 * error + 0.02
    truth = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * covariance)[1]
    found, error = entropy(X, estimator=QUICK, cv=3, random_state=shifted(0))
    assert -3.0 * error < found - truth < 3.0 * error + 0.05
    # Incomplete rows are learned from, but are not in the mean.
    X[np.random.default_rng(shifted(2)).random(X.shape) < 0.2] = np.nan
    found, error = entropy(X, estimator=QUICK, cv=3, random_state=shifted(0))
    assert -3.0 * error < found - truth < 3.0 * error + 0.05
    found, error = entropy(np.arange(600) % 4, estimator=QUICK, cv=3, random_state=shifted(0))
    assert found == pytest.approx(np.log(4.0), abs=0.02)


# -- pairs of columns ------------------------------------------------------------------------


@pytest.mark.slow
def test_dependence_matrix_finds_what_correlation_misses():
    rng = np.random.default_rng(shifted(0))
    x = rng.normal(size=400)
    X = pd.DataFrame({"x": x, "square": x**2 + 0.3 * rng.normal(size=400)})
    X["noise"], X["constant"] = rng.normal(size=400), 1.0
    X["sign"] = np.where(x > 0, "up", "down")
    found = dependence_matrix(X, n_permutations=39, cv=2, random_state=shifted(0))
    assert found.names == list(X.columns)
    coefficient = found.to_frame()
    assert abs(np.corrcoef(X["x"], X["square"])[0, 1]) < 0.2 < 0.6 < coefficient["x"]["square"]
    assert coefficient["sign"]["x"] > 0.7
    assert coefficient["noise"]["x"] < 0.2
    assert (np.nan_to_num(found.coefficient) >= 0.0).all()
    assert np.nanmax(found.coefficient) == 1.0
    assert (found.coefficient.T[:3, :3] == found.coefficient[:3, :3]).all()
    assert found.p_value[0, 1] == found.p_value[0, 4] == 1.0 / 40.0
    assert found.p_value[0, 2] > 1.0 / 40.0
    assert np.isnan(found.coefficient[3, 3])
    networks = IMMSEMixedDensity(max_epochs=1, hidden_size=8, steps_per_epoch=2)
    with pytest.raises(ValueError, match="max_epochs=0"):
        dependence_matrix(X.iloc[:120, :2], estimator=networks, cv=2, random_state=shifted(0))


@pytest.mark.slow
@pytest.mark.parametrize("n_copies", [1, 3])
def test_p_values_are_uniform_where_sides_are_independent(n_copies):
    found = [
        dependence_matrix(
            np.repeat(np.random.default_rng(seed).normal(size=(100, 2)), n_copies, axis=0),
            n_permutations=19,
            cv=2,
            estimator=QUICK,
            random_state=seed,
        ).p_value[0, 1]
        for seed in range(100)
    ]
    for level in (0.1, 0.3, 0.5):
        assert abs(np.mean(np.array(found) <= level + 1e-9) - level) < 3.0 * np.sqrt(0.25 / 100)


@pytest.mark.slow
@pytest.mark.parametrize("cv", [2, 5])
def test_p_values_of_independent_categories_are_valid(cv):
    """What folds have in common by chance must not count as dependence."""
    roles = Roles(np.array([0]), np.array([1]), np.arange(0))
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        X = rng.choice(4, size=(200, 2), p=[0.4, 0.3, 0.2, 0.1]).astype(np.float64)
        fold = rng.permutation(200) % cv
        tables = [CountTables(X[fold != k], np.array([4, 4])) for k in range(cv)]
        n_experts = len(tables[0].log_densities(X[:1], roles)[0])
        totals = [
            sum(
                table.log_densities(X[fold == k], roles)[0][i].sum()
                for k, table in enumerate(tables)
            )
            for i in range(n_experts)
        ]

        def both(table, rows, roles):
            conditional, marginal = table.log_densities(rows, roles)
            return conditional, np.broadcast_to(marginal, conditional.shape)

        folds = [SimpleNamespace(log_densities=partial(both, table)) for table in tables]
        model = SimpleNamespace(folds=folds, best=int(np.argmax(totals)), roles=roles)
        found.append(permutation_p_value(model, X, fold, 39, np.random.RandomState(seed)))
    for level in (0.05, 0.1, 0.3):
        error = np.sqrt(level * (1.0 - level) / 300)
        assert np.mean(np.array(found) <= level + 1e-9) < level + 3.0 * error


@pytest.mark.slow
def test_features_are_selected_in_a_pipeline():
    rng = np.random.default_rng(shifted(0))
    X = rng.normal(size=(300, 3))
    y = X[:, 2] ** 2 + 0.3 * rng.normal(size=300)
    score = partial(mutual_info_immse, random_state=shifted(0))
    pipeline = make_pipeline(SelectKBest(score, k=1), LinearRegression()).fit(X, y)
    assert pipeline[0].get_support().tolist() == [False, False, True]


@pytest.mark.slow
def test_features_may_be_codes():
    rng = np.random.default_rng(shifted(0))
    codes = np.column_stack([rng.integers(0, 3, 200), rng.integers(0, 3, 200)]).astype(float)
    found = mutual_info_immse(
        codes, codes[:, 0] == 1.0, discrete_features=[0, 1], random_state=shifted(0)
    )
    np.testing.assert_allclose(found, [0.64, 0.0], atol=0.05)
    # Integers that are not named are numbers, as with scikit-learn.
    ranks = rng.permutation(200)
    X, y = np.column_stack([codes[:, 0], ranks]).astype(int), codes[:, 0] == 1.0
    mixed = mutual_info_immse(
        X, y, discrete_features=np.array([True, False]), random_state=shifted(0)
    )
    numbers = mutual_info_immse(ranks[:, None].astype(float), y, random_state=shifted(0))
    np.testing.assert_array_equal(mixed, [found[0], numbers[0]])


def test_features_that_are_no_numbers_have_to_be_named():
    X = pd.DataFrame({"letter": list("abcabcabcabc")})
    with pytest.raises(ValueError, match="Column 'letter' of X has values that are no numbers"):
        mutual_info_immse(X, np.arange(12.0), discrete_features=False, random_state=shifted(0))
    with pytest.raises(ValueError, match='must be "auto", a bool, a mask'):
        mutual_info_immse(X, np.arange(12.0), discrete_features="none", random_state=shifted(0))


# -- tables ----------------------------------------------------------------------------------


def mixed_table(n, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.choice(["a", "b"], size=n)
    size = rng.normal(2.0 * (kind == "a"))
    size[::10] = np.nan
    return pd.DataFrame({"kind": kind, "size": size, "grade": rng.integers(0, 4, size=n)}), kind


def test_tables_with_holes():
    table, kind = mixed_table(120)
    found = clone(ESTIMATOR).fit(table, kind)
    np.testing.assert_array_equal(np.isnan(found.pointwise_information_), table["size"].isna())
    assert np.isfinite(found.score_samples(table, kind)).all()
    with pytest.raises(ValueError, match="categories"):
        found.score(table, np.array(["c"] * 120))


@pytest.mark.slow
def test_frames_of_any_kinds_with_holes():
    table, kind = mixed_table(300)
    y = pd.DataFrame({"noisy": np.where(np.arange(300) % 7 == 0, "b", kind), "constant": 3.0})
    y.loc[::11, "noisy"] = "a"
    found = clone(WHOLE).fit(table, y)
    again = clone(WHOLE).fit(pl.from_pandas(table), pl.from_pandas(y))
    assert again.mutual_information_ == found.mutual_information_
    is_missing = np.isnan(found.pointwise_information_)
    np.testing.assert_array_equal(is_missing, table["size"].isna())
    exact = exact_information(pd.crosstab(kind[~is_missing], y["noisy"][~is_missing]).to_numpy())
    assert is_near(found, exact, bias=0.05)
    assert np.isfinite(found.score_samples(table, y)).all()
    assert found.feature_names_in_.tolist() == ["kind", "size", "grade"]


def test_scores_of_rows_follow_from_the_rows():
    x, y, truth = normal_pairs(300, 0.8)
    found = clone(ESTIMATOR).fit(x, y)
    x_new, y_new, _ = normal_pairs(400, 0.8, seed=1)
    scores, std = found.score_samples(x_new, y_new, return_std=True)
    np.testing.assert_array_equal(found.score_samples(x_new[:7], y_new[:7]), scores[:7])
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(found)).score_samples(x, y)[:7], found.score_samples(x, y)[:7]
    )
    assert abs(scores.mean() - truth) < 3.0 * scores.std() / 20.0 + 0.03
    assert found.score(x_new, y_new) == scores.mean()
    assert (std > 0.0).all()
    # Of a row far out more is known of y: for normal columns a linear function of x squared.
    expected = found.score_samples([[0.0], [2.0]])
    exact = 0.5 * (-np.log(0.36) + 0.36 - 1.0 + 0.64 * np.array([0.0, 4.0]))
    np.testing.assert_allclose(expected, exact, atol=0.35)
    order = np.random.default_rng(shifted(0)).permutation(300)
    shuffled = clone(ESTIMATOR).fit(x[order], y[order])
    assert shuffled.mutual_information_ == pytest.approx(found.mutual_information_, abs=1e-6)
    assert clone(ESTIMATOR).fit(x, y).mutual_information_ == found.mutual_information_


@pytest.mark.slow
def test_networks_learn_each_part():
    x, y, _ = normal_pairs(80, 0.8)
    density = IMMSEMixedDensity(
        max_epochs=1,
        hidden_size=8,
        n_blocks=1,
        steps_per_epoch=2,
        score_tol=0.5,
        random_state=shifted(0),
    )
    found = IMMSEMutualInformation(density, cv=2, random_state=shifted(0)).fit(x, y)
    assert len(found._model.folds[0].joint.densities) == 3
    assert found.information_curve_ is None
    assert np.isfinite(found.score(x, y))


def test_what_cannot_be_estimated():
    rng = np.random.default_rng(shifted(0))
    x, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    constant = clone(ESTIMATOR).fit(np.ones((40, 2)), y)
    assert constant.mutual_information_ == constant.standard_error_ == 0.0
    assert constant.score(np.ones((3, 2)), y[:3]) == 0.0
    with pytest.raises(ValueError, match=r"Found 3 sample\(s\) .* minimum of 4 .* lower cv"):
        clone(ESTIMATOR).fit(x[:3], y[:3])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clone(ESTIMATOR).fit(x, y[:30])
    holes = x.copy()
    holes[::2, 0], holes[1::2, 1] = np.nan, np.nan
    with pytest.raises(ValueError, match="without missing entries"):
        clone(ESTIMATOR).fit(holes, y)
    with pytest.raises(ValueError, match="requires y to be passed"):
        clone(ESTIMATOR).fit(x, None)
    with pytest.raises(ValueError, match="y has 2 columns"):
        clone(ESTIMATOR).fit(x, y).score_samples(x, x)


def test_groups_are_in_one_fold():
    x, y, _ = normal_pairs(60, 0.8)
    groups = np.arange(60) // 4
    by_groups = clone(ESTIMATOR).fit(x, y, groups=groups)
    folds = list(GroupKFold(2).split(x, groups=groups))
    by_folds = clone(ESTIMATOR).set_params(cv=folds).fit(x, y)
    np.testing.assert_array_equal(by_groups.pointwise_information_, by_folds.pointwise_information_)
    with pytest.raises(ValueError, match="groups has 2 different labels"):
        clone(ESTIMATOR).fit(x, y, groups=np.arange(60) // 30)
    with pytest.raises(ValueError, match="predict each row once"):
        clone(ESTIMATOR).set_params(cv=folds[:1]).fit(x, y)


def test_groups_of_single_rows_change_nothing():
    x, y, _ = normal_pairs(60, 0.8)
    folds = list(GroupKFold(2).split(x, groups=np.arange(60)))
    alone, grouped = (
        clone(ESTIMATOR).set_params(cv=folds).fit(x, y, groups=groups)
        for groups in (None, np.arange(60))
    )
    assert grouped.standard_error_ == pytest.approx(alone.standard_error_, rel=1e-9)
    np.testing.assert_array_equal(grouped.pointwise_information_, alone.pointwise_information_)


def test_error_of_equal_values_of_groups_is_that_of_the_groups():
    values = np.random.default_rng(shifted(0)).normal(size=20)
    mean, error = mean_over_rows(np.repeat(values, 5), np.repeat(np.arange(20), 5))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(20))
    assert np.isnan(mean_over_rows(values, np.zeros(20, dtype=int))[1])


@pytest.mark.parametrize("kind", ["numbers", pytest.param("mixed", marks=pytest.mark.slow)])
def test_copies_of_rows_are_no_observations(kind):
    x, y, _ = normal_pairs(80, 0.8)
    if kind == "mixed":
        y = np.where(y[:, 0] > 0.0, "a", "b")
    once, often = (
        clone(ESTIMATOR).fit(x[rows], y[rows])
        for rows in (np.arange(80), np.repeat(np.arange(80), 4))
    )
    assert often.mutual_information_ == pytest.approx(once.mutual_information_, rel=1e-6)
    assert often.standard_error_ == pytest.approx(once.standard_error_, rel=1e-6)
    assert often.information_curve_.standard_error == pytest.approx(
        once.information_curve_.standard_error, rel=1e-6
    )


def test_equal_rows_of_frequent_values_are_observations():
    rng = np.random.default_rng(shifted(0))
    numbers, codes = rng.normal(size=400), rng.integers(0, 3, size=400)
    every = np.array([True, True])
    rounded = np.column_stack([np.round(numbers), codes]).astype(float)
    assert units_of_table(rounded, every, None) is None
    assert units_of_table(rounded, ~every, None) is None
    # Half of the rows are zero in both columns; of the others each is there twice.
    halves = np.repeat(np.column_stack([numbers[:100], numbers[100:200]]), 2, axis=0)
    unit = units_of_table(np.concatenate([halves, np.zeros((200, 2))]), every, None)
    sizes = np.bincount(unit)
    assert (np.bincount(sizes)[1:] == [200, 100]).all()
    assert unit[0] == unit[1] != unit[2]


@pytest.mark.slow
def test_errors_of_groups_are_the_spread_over_tables():
    """Thirty groups of ten rows; the spread over 24 tables has an error of a seventh."""
    information, error, nothing = [], [], []
    group = np.repeat(np.arange(30), 10)
    for seed in range(24):
        rng = np.random.default_rng(seed)
        x, y, other = rng.normal(size=(3, 30))[:, group] + 0.3 * rng.normal(size=(3, 300))
        y = 0.8 * x + 0.6 * y
        for side, kept in ((y, information), (other, nothing)):
            found = clone(ESTIMATOR).fit(x[:, None], side, groups=group)
            kept.append(found.mutual_information_)
            if side is y:
                error.append(found.standard_error_)
    assert 0.6 < np.mean(error) / np.std(information, ddof=1) < 1.5
    assert np.mean(np.array(nothing) > 0.0) < 0.35


# -- pictures --------------------------------------------------------------------------------


def test_displays_draw_what_was_estimated():
    plt = pytest.importorskip("matplotlib.pyplot")
    x, y, _ = normal_pairs(60, 0.8)
    found = clone(ESTIMATOR).fit(x, y)
    curve = InformationCurveDisplay.from_estimator(found)
    np.testing.assert_array_equal(curve.line_.get_ydata(), found.information_curve_.information)
    points = PointwiseInformationDisplay.from_estimator(found, x[:, 0], y[:, 0])
    np.testing.assert_array_equal(points.points_.get_array(), found.pointwise_information_)
    assert points.points_.get_clim()[0] == -points.points_.get_clim()[1]
    one, zero = np.ones((2, 2)), np.zeros((2, 2))
    matrix = DependenceMatrix(["a", "b"], zero, zero, 0.25 * one, 0.5 * one)
    shown = DependenceDisplay.from_matrix(matrix)
    assert [text.get_text() for text in shown.texts_] == ["(0.25)", "(0.25)"]
    with pytest.raises(ValueError, match="2 names"):
        DependenceDisplay(names=["a", "b"], coefficient=[[1.0]])
    constant = clone(ESTIMATOR).fit(np.ones((60, 1)), y)
    with pytest.raises(ValueError, match="a side is constant"):
        InformationCurveDisplay.from_estimator(constant)
    with pytest.raises(TypeError, match="IMMSEMutualInformation"):
        PointwiseInformationDisplay.from_estimator(LinearRegression().fit(x, y), x, y)
    plt.close("all")


def test_expected_information_of_rows_has_the_mean_of_the_estimate():
    """Rows of few values of y stand for all rows, not for the values that come first."""
    rng = np.random.default_rng(shifted(0))
    x = rng.normal(size=(800, 1))
    is_yes = rng.random(800) < 1.0 / (1.0 + np.exp(-3.0 * x[:, 0]))
    y = pd.Series(np.where(is_yes, "yes", "no")).mask(rng.random(800) < 0.4)
    information = IMMSEMutualInformation(cv=2, random_state=shifted(0)).fit(x, y)
    expected, std = information.score_samples(x[:300], return_std=True)
    np.testing.assert_array_equal(information.score_samples(x[:300]), expected)
    # Of two values of y only the share of one of them is uncertain.
    assert (std < 0.1).all()
    assert std.mean() > 0.005
    error = np.hypot(expected.std() / np.sqrt(300), information.standard_error_)
    assert abs(expected.mean() - information.mutual_information_) < 4.0 * error
    assert information.mutual_information_ > 10.0 * information.standard_error_


def test_standard_errors_of_expected_information_are_the_spread_over_rows_of_y():
    rng = np.random.default_rng(shifted(0))
    x = rng.normal(size=1000)
    y = x + 0.5 * rng.normal(size=1000)
    information = IMMSEMutualInformation(cv=2, random_state=shifted(0)).fit(x[:, None], y)
    at = np.array([[-1.0], [0.0], [0.5]])
    found = []
    for _ in range(12):
        information._sample = rng.choice(y, 200, replace=False)[:, None]
        found.append(information.score_samples(at, return_std=True))
    mean, std = np.transpose(found, (1, 0, 2))
    ratio = mean.std(axis=0, ddof=1) / std.mean(axis=0)
    # A chi-squared ratio with 11 degrees of freedom: beyond these once in a thousand.
    assert ((ratio > 0.4) & (ratio < 1.8)).all()


def test_curve_of_categories_has_the_errors_that_it_states():
    rng = np.random.default_rng(shifted(0))
    x = rng.integers(0, 2, 800)
    y = np.where(rng.random(800) < 0.8, x, rng.integers(0, 3, 800))
    table = [np.array(list("ab"))[x][:, None], np.array(list("uvw"))[y]]
    curves = [IMMSEMutualInformation(cv=2, random_state=s).fit(*table) for s in range(3)]
    found = np.array([each.information_curve_.information for each in curves])
    error = np.array([each.information_curve_.standard_error for each in curves])
    # The rows are the same, so that the seeds differ by less than the errors of the rows.
    assert (found.std(axis=0, ddof=1) < 3.0 * error.mean(axis=0) + 1e-9).all()
    assert (np.diff(found.mean(axis=0)) > -2.0 * error.max()).all()


def test_equal_rows_are_in_folds_by_chance():
    """Folds with equal shares of each cell would have the errors of the rows that are learned."""
    statistics = []
    for seed in range(20):
        cell = np.random.default_rng(seed).integers(0, 16, 400)
        values = np.column_stack(np.divmod(cell, 4)).astype(float)
        fold = folds_of_table(5, [values[:, :1], values[:, 1:]], None, None, seed)
        assert np.bincount(fold).tolist() == [80] * 5
        counts = np.bincount(5 * cell + fold, minlength=80).reshape(16, 5)
        statistics.append(stats.chi2_contingency(counts).statistic)
    # Each has 60 degrees of freedom, and the standard deviation of the mean is 2.4; before, 4.
    assert abs(np.mean(statistics) - 60.0) < 4.5 * np.sqrt(2.0 * 60.0 / 20.0)


def test_order_of_the_rows_changes_neither_curve_nor_p_value():
    rng = np.random.default_rng(shifted(0))
    x = np.sort(rng.normal(size=500))
    y = 2.0 * np.minimum(x, 0.0) + 0.7 * rng.normal(size=500)
    order = rng.permutation(500)
    curves, p_values = [], []
    for rows in (np.arange(500), order):
        fit = IMMSEMutualInformation(cv=2, random_state=shifted(0)).fit(x[rows, None], y[rows])
        curves.append(fit.information_curve_.information)
        pairs = dependence_matrix(
            np.column_stack([x, y])[rows], cv=2, n_permutations=20, random_state=shifted(0)
        )
        p_values.append(pairs.p_value[0, 1])
    # Rounding of sums over rows in another order.
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-6)
    assert p_values[0] == p_values[1] == pytest.approx(1.0 / 21.0)
