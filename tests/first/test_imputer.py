"""Imputation: values from the conditional distribution, tables as they were, Rubin's rules."""

import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from seeds import shifted
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from first.marks import others_slow
from sk_itdiffusion import IMMSEDensity, IMMSEImputer, IMMSEMixedDensity, load
from sk_itdiffusion._first._estimators.entries import recoded
from sk_itdiffusion.imputation import PooledEstimate

pytestmark = pytest.mark.usefixtures("brief_fits")

RHO = 0.8


def correlated(n_rows, share=0.4, seed=0):
    """Return two standard normal columns, with holes at random, and without."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n_rows)
    complete = np.column_stack([x, RHO * x + np.sqrt(1 - RHO**2) * rng.normal(size=n_rows)])
    holes = complete.copy()
    holes[rng.random(n_rows) < share, 1] = np.nan
    return holes, complete


@pytest.fixture(scope="module")
def normal():
    """Return rows with holes, the complete rows, and a fitted imputer."""
    holes, complete = correlated(1000)
    density = IMMSEDensity(max_epochs=0, reference="gaussian", experts=["gaussian"])
    return holes, complete, IMMSEImputer(density, n_fits=1, random_state=shifted(0)).fit(holes)


@pytest.mark.parametrize("strategy", others_slow(["median", "mean", "mode"]))
def test_values_are_those_of_the_conditional_distribution(normal, strategy):
    """Of a normal one, mean, median and mode are the regression line."""
    holes, _, imputer = normal
    missing = np.isnan(holes[:, 1])
    n_draws = 100
    filled = clone(imputer).set_params(strategy=strategy, n_draws=n_draws).fit(holes)
    error = filled.transform(holes)[missing, 1] - RHO * holes[missing, 0]
    spread, n_seen = np.sqrt(1 - RHO**2), (~missing).sum()
    assert abs(error.mean()) < 4 * spread / np.sqrt(n_seen)
    # The error of the line's slope, and that of the mean of draws, or of their densest place.
    most = {"mean": 1.0, "median": 1.25, "mode": 5.0}[strategy] * spread / np.sqrt(n_draws)
    assert error.std() < np.hypot(1.2 * most, 4 * spread / np.sqrt(n_seen))


def test_draws_have_the_conditional_spread(normal):
    holes, complete, imputer = normal
    missing = np.isnan(holes[:, 1])
    drawn = imputer.set_params(strategy="sample").transform(holes)
    residual = (drawn[missing, 1] - RHO * holes[missing, 0]) / np.sqrt(1 - RHO**2)
    n = missing.sum()
    # The variance of the fit is that of the rows that are complete.
    n_seen = len(holes) - n
    assert residual.std() == pytest.approx(1.0, abs=4 * np.sqrt(1 / (2 * n) + 1 / (2 * n_seen)))
    correlation = np.corrcoef(drawn.T)[0, 1]
    assert correlation == pytest.approx(np.corrcoef(complete.T)[0, 1], abs=0.03)
    imputer.set_params(strategy="median")
    assert np.corrcoef(imputer.transform(holes).T)[0, 1] > correlation


@pytest.mark.parametrize("strategy", ["median", "sample"])
def test_rows_are_independent_and_observed_entries_stay(normal, strategy):
    holes, _, imputer = normal
    imputer = clone(imputer).set_params(strategy=strategy, n_draws=5).fit(holes)
    filled = imputer.transform(holes[:300])
    np.testing.assert_array_equal(filled, imputer.transform(holes[:300]))
    seen = ~np.isnan(holes[:300])
    np.testing.assert_array_equal(filled[seen], holes[:300][seen])
    order = np.random.default_rng(shifted(1)).permutation(300)[:40]
    np.testing.assert_array_equal(imputer.transform(holes[order]), filled[order])
    assert not np.isnan(imputer.transform([[np.nan, np.nan]])).any()
    again = pickle.loads(pickle.dumps(imputer))
    np.testing.assert_array_equal(again.transform(holes[:300]), filled)


def table_of_kinds(n_rows=600, seed=0):
    """Return a table of several kinds whose columns determine each other, and its holes."""
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=n_rows)
    table = pd.DataFrame(
        {
            "text": np.array(["low", "middle", "high"], dtype=object)[group],
            "category": pd.Categorical(np.array(["a", "b", "c"])[group]),
            "count": pd.array(2 * group, dtype="Int64"),
            "number": 5.0 * group + 0.5 * rng.normal(size=n_rows),
        },
        index=np.arange(n_rows)[::-1],
    )
    return table, table.mask(rng.random(table.shape) < 0.2)


@pytest.mark.parametrize("strategy", others_slow(["median", "sample", "mean", "mode"], 2))
def test_categories_stay_categories(strategy, usual_fits):
    table, holes = table_of_kinds()
    imputer = IMMSEImputer(strategy=strategy, n_draws=20, n_fits=2, random_state=shifted(0))
    filled = imputer.fit_transform(holes)
    assert isinstance(filled, pd.DataFrame)
    assert filled.index.equals(table.index)
    assert list(filled.dtypes) == list(holes.dtypes)
    assert not filled.isna().any().any()
    known = holes.notna().sum(axis=1) > 0
    for name in ("text", "category", "count"):
        right = (filled[name].astype(str) == table[name].astype(str))[known]
        assert right.mean() > 0.98
    assert set(filled["count"]) <= set(table["count"])
    assert list(imputer.get_feature_names_out()) == list(table.columns)


def test_tables_of_other_kinds():
    polars = pytest.importorskip("polars")
    _, holes = table_of_kinds(200)
    holes = holes.reset_index(drop=True)
    frame = polars.DataFrame(
        {
            "text": [None if pd.isna(x) else x for x in holes["text"]],
            "number": [None if pd.isna(x) else x for x in holes["number"]],
        }
    )
    filled = IMMSEImputer(n_draws=5, n_fits=1, random_state=shifted(0)).fit_transform(frame)
    assert isinstance(filled, polars.DataFrame)
    assert filled.schema == frame.schema
    assert filled.null_count().sum_horizontal().item() == 0
    array = holes[["text", "number"]].to_numpy(dtype=object)
    from_array = IMMSEImputer(n_draws=5, n_fits=1, random_state=shifted(0)).fit_transform(array)
    assert from_array.dtype == object
    assert not pd.isna(from_array).any()
    imputer = IMMSEImputer(n_draws=5, n_fits=1, random_state=shifted(0)).set_output(
        transform="pandas"
    )
    named = imputer.fit_transform(holes[["number"]].assign(other=np.arange(200.0)))
    assert list(named.columns) == ["number", "other"]


def test_in_a_pipeline(normal):
    holes, complete, imputer = normal
    model = make_pipeline(clone(imputer).set_params(n_draws=20), LinearRegression())
    target = complete @ [1.0, 1.0]
    assert model.fit(holes, target).score(holes, target) > 0.9


def test_complete_tables_are_returned_as_they_are(normal):
    _, complete, imputer = normal
    np.testing.assert_array_equal(imputer.transform(complete), complete)


def test_rubins_rules():
    pooled = PooledEstimate.of([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]], np.full((3, 2), 0.5))
    np.testing.assert_allclose(pooled.estimate, [2.0, 4.0])
    np.testing.assert_allclose(pooled.standard_error**2, [0.5 + 4 / 3, 0.5])
    np.testing.assert_allclose(pooled.missing_information, [(4 / 3) / (0.5 + 4 / 3), 0.0])
    np.testing.assert_allclose(
        pooled.degrees_of_freedom, [2 / ((4 / 3) / (0.5 + 4 / 3)) ** 2, np.inf]
    )
    with pytest.raises(ValueError, match="two imputations or more"):
        PooledEstimate.of([1.0], [1.0])


def test_bad_numbers_of_imputations(normal):
    holes, _, imputer = normal
    with pytest.raises(ValueError, match="n_imputations must be an integer of at least 1"):
        imputer.multiple_imputations(holes, 0)
    with pytest.raises(ValueError, match="n_imputations must be an integer of at least 2"):
        imputer.pooled_estimate(holes, lambda table: (0.0, 1.0), 1)


def test_imputations_differ_and_are_the_same_again(normal):
    holes, _, imputer = normal
    first, second = imputer.multiple_imputations(holes[:50], 2)
    assert (first != second).any()
    again, _ = imputer.multiple_imputations(holes[:50], 2)
    np.testing.assert_array_equal(first, again)


def regression_estimate(x, y):
    """Return the mean of y by its regression on x, and its standard error; y has holes."""
    seen = ~np.isnan(y)
    fit = stats.linregress(x[seen], y[seen])
    residual = y[seen] - fit.intercept - fit.slope * x[seen]
    leverage = (x.mean() - x[seen].mean()) ** 2 / (seen.sum() * x[seen].var())
    noise = residual.var(ddof=2) * (1.0 / seen.sum() + leverage)
    error = np.sqrt(fit.slope**2 * x.var(ddof=1) / len(x) + noise)
    return fit.intercept + fit.slope * x.mean(), error


@pytest.mark.slow
def test_pooled_estimates_are_those_of_the_regression():
    """The mean of a column, 40% of it missing at random given the other one.

    For normal columns the regression on the complete one is efficient.  Shrinkage of the covariance
    of 150 rows biases imputed values by a quarter of a standard error; see the docs on reliability.
    """
    shift, ratio, covered, covered_exactly = [], [], 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        holes, complete = correlated(150, 0.0, seed)
        holes[(complete[:, 0] > 0) & (rng.random(150) < 0.8), 1] = np.nan
        density = IMMSEDensity(max_epochs=0, reference="gaussian", experts=["gaussian"])
        imputer = IMMSEImputer(density, n_fits=1, random_state=seed).fit(holes)
        pooled = imputer.pooled_estimate(
            holes, lambda table: (table[:, 1].mean(), table[:, 1].var(ddof=1) / len(table)), 5
        )
        mean, error = regression_estimate(*holes.T)
        shift.append((pooled.estimate - mean) / error)
        ratio.append(pooled.standard_error / error)
        width = stats.t.ppf(0.975, pooled.degrees_of_freedom) * pooled.standard_error
        covered += abs(pooled.estimate) < width
        covered_exactly += abs(mean) < 1.96 * error
    assert abs(np.mean(shift)) < 0.4
    assert np.std(shift) < 0.6
    assert 0.95 < np.mean(ratio) < 1.25
    assert covered >= covered_exactly - 3


def test_standard_errors_include_the_uncertainty_of_the_density():
    """Of 80% missing entries of independent columns, the error is that of the other 20%.

    The root of the sum of 20 squared differences has a standard deviation of a sixth.
    """
    X = np.random.default_rng(shifted(0)).normal(size=(500, 2))
    X[:400, 1] = np.nan
    settings = {"max_epochs": 0, "reference": "gaussian", "experts": ["gaussian"]}
    density = IMMSEDensity(marginals="standard", **settings)
    imputer = IMMSEImputer(density, n_fits=1, random_state=shifted(0)).fit(X)
    pooled = imputer.pooled_estimate(X, lambda table: (table[:, 1].mean(), 1.0 / len(table)))
    expected = X[400:, 1].std() / np.sqrt(100)
    assert 0.7 * expected < pooled.standard_error < 1.6 * expected
    with pytest.raises(ValueError, match="analyze must return estimates and their squared"):
        imputer.pooled_estimate(X, lambda table: table[:, 1].mean(), 2)


def test_frames_need_not_have_all_that_fit_had():
    """Categories that a frame lacks, columns without any value, tables of another library."""
    rng = np.random.default_rng(shifted(0))
    number = rng.normal(size=200)
    letter = np.where(number > 1, "r", np.where(number > 0, "q", "p"))
    table = pd.DataFrame({"number": number, "letter": pd.Categorical(letter)})
    imputer = IMMSEImputer(n_draws=5, n_fits=1, random_state=shifted(0)).fit(table)
    new = pd.DataFrame({"number": [2.0, -1.0], "letter": pd.Categorical(["p", None])})
    filled = imputer.transform(new)
    assert filled["letter"].iloc[0] == "p"
    assert filled["letter"].notna().all()
    empty = pd.DataFrame({"number": [2.0, -1.0], "letter": pd.Series([None, None], dtype="float")})
    assert set(imputer.transform(empty)["letter"]) <= {"p", "q", "r"}
    polars = pytest.importorskip("polars")
    for dtype in (polars.Null, polars.Enum(["p"])):
        column = polars.Series("letter", [None, None], dtype=dtype)
        found = imputer.transform(polars.DataFrame({"number": [2.0, -1.0]}).with_columns(column))
        assert set(found["letter"].to_list()) <= {"p", "q", "r"}


def test_missing_categories_that_stay_are_told_of():
    rng = np.random.default_rng(shifted(0))
    table = pd.DataFrame({"a": rng.normal(size=100), "b": rng.choice(["x", "y", None], size=100)})
    density = IMMSEMixedDensity(max_epochs=0)
    imputer = IMMSEImputer(density, n_draws=2, n_fits=1, random_state=shifted(0)).fit(table)
    with pytest.warns(UserWarning, match="column.s. 'b' are a category of the density"):
        assert imputer.transform(table)["b"].isna().any()


def test_files_keep_imputers(tmp_path):
    _, holes = table_of_kinds(120)
    imputer = (
        IMMSEImputer(n_draws=3, n_fits=2, random_state=shifted(0))
        .set_output(transform="pandas")
        .fit(holes)
    )
    path = tmp_path / "imputer.safetensors"
    imputer.save(path)
    loaded = load(path)
    pd.testing.assert_frame_equal(loaded.transform(holes), imputer.transform(holes))
    for ours, theirs in zip(
        imputer.multiple_imputations(holes, 2), loaded.multiple_imputations(holes, 2), strict=True
    ):
        pd.testing.assert_frame_equal(ours, theirs)
    imputer._seed = -1
    imputer.save(path)
    with pytest.raises(ValueError, match="seed of the draws are out of range"):
        load(path)


@pytest.mark.filterwarnings("ignore:Column.s. 0, 1 have many equal:UserWarning")
def test_draws_are_observed_values_where_most_of_these_are_repeated(tmp_path):
    """Other columns, and observed entries that are not among those of the fit, are left alone."""
    rng = np.random.default_rng(shifted(0))
    grade = rng.integers(1, 6, size=300).astype(float)
    amount = np.where(rng.random(300) < 0.6, 0.0, np.exp(grade + rng.normal(size=300)))
    number = grade + rng.normal(size=300)
    holes = np.column_stack([grade, amount, number])
    holes[rng.random((300, 3)) < 0.2] = np.nan
    density = IMMSEDensity(max_epochs=0, reference="gaussian", experts=["gaussian"])
    default, none, all_columns = (
        IMMSEImputer(density, n_fits=1, random_state=shifted(0), **options).fit(holes)
        for options in ({}, {"observed_values": False}, {"observed_values": True})
    )
    new = np.array([[7.25, np.nan, np.nan], [np.nan, 3.0, 1.0], [np.nan] * 3] * 20)
    drawn, free, chosen = (
        np.stack(list(each.multiple_imputations(new, 3))) for each in (default, none, all_columns)
    )
    observed = [column[~np.isnan(column)] for column in holes.T]
    missing = np.isnan(new)
    for j, is_observed in enumerate([True, True, False]):
        assert np.isin(drawn[:, missing[:, j], j], observed[j]).all() == is_observed
        assert not np.isin(free[:, missing[:, j], j], observed[j]).any()
        nearest = np.abs(observed[j][:, None, None] - free[:, missing[:, j], j]).min(axis=0)
        np.testing.assert_allclose(
            np.abs(chosen - free)[:, missing[:, j], j], nearest, rtol=0, atol=1e-9
        )
        np.testing.assert_array_equal(drawn[:, ~missing[:, j], j][0], new[~missing[:, j], j])
    np.testing.assert_array_equal(drawn[..., 2], free[..., 2])
    # Of a column of which less than a half is repeated the repeated values are.
    some = holes.copy()
    some[(some[:, 1] == 0.0) & (rng.random(300) < 0.5), 1] = np.nan
    assert 0.3 < np.mean(some[~np.isnan(some[:, 1]), 1] == 0.0) < 0.5
    imputer = IMMSEImputer(density, n_fits=1, random_state=shifted(0)).fit(some)
    mixed = np.stack(list(imputer.multiple_imputations(new, 3)))[:, missing[:, 1], 1]
    assert 0.1 < np.mean(mixed == 0.0) < 0.6
    assert np.isin(mixed, some[:, 1]).mean() == np.mean(mixed == 0.0)
    assert np.isin(default.transform(new)[missing[:, 0], 0], observed[0]).all()
    # Zeros stay as frequent as they were.
    zeros = [np.mean(each[:, 2::3, 1] == 0.0) for each in (drawn, free)]
    assert zeros[0] > 0.2 > zeros[1] == 0.0
    path = tmp_path / "imputer.safetensors"
    default.save(path)
    np.testing.assert_array_equal(load(path).transform(new), default.transform(new))


def test_number_of_a_draw_alone_decides_on_it(normal, monkeypatch):
    """Neither how many imputations there are nor how many fit into memory changes them."""
    holes, _, imputer = normal
    first, second, third = imputer.multiple_imputations(holes[:50], 3)
    monkeypatch.setattr("sk_itdiffusion._first._estimators.imputer.NUMBERS_IN_A_PASS", 1)
    for ours, again in zip(
        (first, second), imputer.multiple_imputations(holes[:50], 2), strict=True
    ):
        np.testing.assert_array_equal(ours, again)
    assert (second != third).any()
    complete = np.zeros((2, 2))
    assert len(list(imputer.multiple_imputations(complete, 3))) == 3


def test_long_calls_of_verbose_densities_show_a_bar(normal, monkeypatch, capsys):
    holes, _, imputer = normal
    monkeypatch.setattr("sk_itdiffusion._first._estimators.base.SECONDS_UNTIL_A_BAR", 0.0)
    imputer.density_.set_params(verbose=1)
    imputer.transform(holes[:20])
    list(imputer.multiple_imputations(holes[:20], 2))
    imputer.density_.conditional([0]).sample(holes[:5], random_state=shifted(0))
    imputer.density_.marginal([0]).score_samples(holes[:5, :1])
    imputer.density_.set_params(verbose=0)
    imputer.transform(holes[:20])
    shown = capsys.readouterr().err
    for name in (
        "transform",
        "multiple_imputations",
        "ConditionalDensity.sample",
        "MarginalDensity",
    ):
        assert name in shown


def test_verbose_imputers_show_a_bar_and_change_nothing(normal, capsys):
    holes, _, imputer = normal
    quick = clone(imputer).set_params(n_fits=2, n_draws=10, estimator__marginals="standard")
    silent = quick.fit(holes[:100])
    assert capsys.readouterr().err == ""
    verbose = clone(silent).set_params(verbose=1).fit(holes[:100])
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "IMMSEImputer, fit 2/2" in shown
    np.testing.assert_array_equal(verbose.transform(holes), silent.transform(holes))
    verbose.pooled_estimate(holes[:100], lambda table: (table[:, 1].mean(), 1.0), 2)
    (line,) = capsys.readouterr().err.rstrip("\n").split("\n")
    assert "pooled_estimate" in line


@pytest.mark.parametrize("estimator", ["mean", LinearRegression(), IMMSEDensity])
def test_other_estimators_are_errors_that_say_what_to_pass(estimator):
    with pytest.raises(ValueError, match=r"^estimator must be None or a density such as IMMSEMix"):
        IMMSEImputer(estimator).fit(np.zeros((9, 2)))


def test_warning_of_ties_says_what_users_of_an_imputer_can_do():
    X = np.column_stack(
        [np.tile([0.5, 1.5], 30), np.random.default_rng(shifted(0)).normal(size=60)]
    )
    density = IMMSEDensity(max_epochs=0, reference="gaussian", experts=["gaussian"])
    with pytest.warns(UserWarning, match="imputers and detectors take as their estimator"):
        IMMSEImputer(density, n_fits=1, random_state=shifted(0)).fit(X)


def test_draws_of_several_fits_come_from_all_of_them_in_turn():
    holes, _ = correlated(150)
    density = IMMSEDensity(
        max_epochs=0, marginals="standard", reference="gaussian", experts=["gaussian"]
    )
    imputer = IMMSEImputer(density, n_fits=3, n_draws=30, random_state=shifted(0)).fit(holes)
    asked = np.array([[1.0, np.nan], [-2.0, np.nan]])
    tables = np.stack(list(imputer.multiple_imputations(asked, 9)))
    alone = clone(imputer).set_params(n_fits=1).fit(holes)
    alone.densities_, alone._seed = imputer.densities_[:1], imputer._seed
    np.testing.assert_array_equal(list(alone.multiple_imputations(asked, 3)), tables[::3])
    assert len({density.entropy_ for density in imputer.densities_}) == 3
    assert len(np.unique(tables[:, 0, 1])) == 9
    np.testing.assert_array_equal(imputer.transform(asked)[:1], imputer.transform(asked[:1]))
    again = clone(imputer).fit(holes)
    np.testing.assert_array_equal(again.transform(asked), imputer.transform(asked))
    with pytest.raises(ValueError, match="n_fits"):
        clone(imputer).set_params(n_fits=0).fit(holes)


def test_several_fits_spread_by_what_the_rows_leave_open():
    """Draws of different fits differ by the standard error of the regression line too."""
    n, n_fits = 60, 12
    rng = np.random.default_rng(shifted(0))
    x = rng.normal(size=n)
    X = np.column_stack([x, x + rng.normal(size=n)])
    asked = np.array([[6.0, np.nan]])  # where the line is least known
    density = IMMSEDensity(
        max_epochs=0, marginals="standard", reference="gaussian", experts=["gaussian"]
    )
    imputer = IMMSEImputer(density, n_fits=n_fits, random_state=shifted(0)).fit(X)
    centers = [
        fitted._model.complete(asked, 400, 0)[:, 0, 1].mean() for fitted in imputer.densities_
    ]
    error = np.sqrt((1.0 + (6.0 - x.mean()) ** 2 / x.var()) / n)
    # A standard deviation of twelve numbers has a relative error of a fifth.
    assert 0.4 < np.std(centers, ddof=1) / error < 1.8


def test_fits_number_categories_in_their_own_order():
    """Codes of one fit are translated into those of another one, and back."""
    first, second = (
        SimpleNamespace(
            _encoder=SimpleNamespace(
                columns=[SimpleNamespace(categories=None), SimpleNamespace(categories=labels)]
            )
        )
        for labels in (["a", "b", "c"], ["c", "a", "b"])
    )
    values = np.array([[0.5, 0.0], [1.5, 2.0], [np.nan, np.nan], [2.0, -1.0]])
    found = recoded(values, first, second)
    np.testing.assert_array_equal(found[:, 1], [1.0, 0.0, np.nan, -1.0])
    np.testing.assert_array_equal(found[:, 0], values[:, 0])
    np.testing.assert_array_equal(recoded(np.stack([found] * 2), second, first)[1], values)


def test_integer_weights_count_observations_in_bootstraps_too():
    states = [["a", "u"], ["a", "v"], ["b", "u"], ["b", "v"], [None, "u"], [None, "v"]]
    table, counts = pd.DataFrame(states, columns=["x", "y"]), np.array([30, 5, 4, 40, 3, 2])
    imputer = IMMSEImputer(n_fits=2, n_draws=20, strategy="mode", random_state=shifted(0))
    weighted = clone(imputer).fit(table, sample_weight=counts).transform(table)
    repeated = clone(imputer).fit(table.loc[table.index.repeat(counts)]).transform(table)
    pd.testing.assert_frame_equal(weighted, repeated)
    assert weighted["x"].tolist()[4:] == ["a", "b"]


def test_weights_of_pooled_estimates_are_those_of_the_fits():
    holes, _ = correlated(120)
    weight = np.where(holes[:, 0] > 0.0, 1.0, 1e-6)
    density = IMMSEDensity(max_epochs=0, reference="gaussian", experts=["gaussian"])
    imputer = IMMSEImputer(density, random_state=shifted(0), n_fits=1).fit(holes)

    def analyze(table):
        imputed = table[np.isnan(holes[:, 1]), 1]
        return imputed.mean(), imputed.var() / len(imputed)

    plain = imputer.pooled_estimate(holes, analyze, n_imputations=4)
    even = imputer.pooled_estimate(holes, analyze, n_imputations=4, sample_weight=np.full(120, 0.5))
    other = imputer.pooled_estimate(holes, analyze, n_imputations=4, sample_weight=weight)
    assert even.estimate == pytest.approx(plain.estimate, abs=1e-9)
    assert other.estimate != pytest.approx(plain.estimate, abs=1e-3)
