"""Values that `fit` has not seen: distributions that sum to 1, and all that is done with them."""

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.special import betaln
from sklearn.model_selection import GridSearchCV, cross_val_score

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion._first._table.encoding import TableEncoder

pytestmark = pytest.mark.usefixtures("brief_fits")

RNG = np.random.default_rng(0)
COLUMNS = {
    "counts": RNG.poisson(2.0, size=300),
    "counts that were all 0": np.zeros(40, dtype=int),
    "one positive value": np.full(40, 7),
    "zeros and ones": RNG.integers(0, 2, size=300),
    "both signs": np.rint(3.0 * RNG.normal(size=200)).astype(int),
    "floats": RNG.poisson(2.0, size=300) + 4.0,
    "wide": np.rint(200.0 * RNG.standard_cauchy(size=80)).astype(int),
    "wide, with a sentinel": np.append(RNG.poisson(2.0, size=200), [999, 999]),
    "few": np.array([3, 3, 5]),
}


def fitted_column(values, kind="ordinal", **settings):
    return TableEncoder.fit(pd.DataFrame({"x": values}), kinds=[kind], **settings)


def log_probabilities(encoder, values):
    """Return the encoded log-probabilities, NaN where values are categories."""
    encoded = encoder.encode(pd.DataFrame({"x": pd.Series(values)}))[:, 0]
    return np.where(encoded < 0.0, encoded, np.nan)


def log_survival(tail, distance):
    """Return the log-probability of all distances beyond one of a beta-geometric distribution."""
    return tail.log_mass + betaln(tail.a + distance, tail.b) - betaln(tail.a, tail.b)


# -- one column ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_masses_of_all_whole_numbers_and_others_sum_to_one(name):
    values = COLUMNS[name]
    encoder = fitted_column(values)
    unseen = encoder.columns[0].unseen
    low, high = int(values.min()), int(values.max())
    found = np.exp(log_probabilities(encoder, np.arange(low - 50, high + 51)))
    total = np.nansum(found) + np.exp(unseen.log_other) + np.exp(log_survival(unseen.above, 50))
    if unseen.below is None:
        assert low == 0
        total -= 50 * np.exp(unseen.log_other)  # negative counts are no event each
    else:
        total += np.exp(log_survival(unseen.below, 50))
    np.testing.assert_allclose(total, np.exp(unseen.log_mass), rtol=1e-9)
    np.testing.assert_allclose(np.exp(unseen.log_mass) + np.exp(unseen.log_seen), 1.0)
    assert 1.0 / (len(values) + 2.0) <= np.exp(unseen.log_mass) * (1 + 1e-12)
    assert (np.diff(log_probabilities(encoder, np.arange(high + 1, high + 51))) < 0.0).all()


WIDE = np.rint(200.0 * np.random.default_rng(1).standard_cauchy(size=80)).astype(int)


@pytest.mark.parametrize(
    ("base", "dtype"),
    [(2**60, np.int64), (-(2**62), np.int64), (2**63 + 5, np.uint64), (10**25, object)],
)
@pytest.mark.parametrize("above", [np.random.default_rng(0).integers(0, 4, size=200), WIDE])
def test_integers_that_floats_do_not_tell_apart_are_as_likely_as_smaller_ones(base, dtype, above):
    """Below 2**53 nothing depends on a number that is added to all, and beyond it nothing does."""
    above = above - above.min() + 2

    def column(start, numbers):
        return np.array([start + int(number) for number in numbers], dtype=dtype)

    asked = np.unique(above[:, None] + np.arange(-1, 2))
    for handle_unknown in ("good_turing", "error"):
        encoders = [
            fitted_column(column(start, above), handle_unknown=handle_unknown)
            for start in (2**40, base)
        ]
        known = asked if handle_unknown == "good_turing" else np.unique(above)
        found = [
            encoder.encode(pd.DataFrame({"x": column(start, known)}))
            for start, encoder in zip((2**40, base), encoders, strict=True)
        ]
        np.testing.assert_array_equal(found[1], found[0])
        assert len(np.unique(found[1][found[1] >= 0])) == len(encoders[1].columns[0].categories)


@pytest.mark.parametrize("density", [IMMSEDiscreteDensity, IMMSEMixedDensity])
def test_densities_of_integers_that_floats_do_not_tell_apart(density, tmp_path):
    above = np.random.default_rng(0).integers(0, 4, size=(200, 1))
    asked = np.arange(-2, 7)[:, None]
    small, large = (density(max_epochs=0, random_state=0).fit(b + above) for b in (100, 2**60))
    large.save(tmp_path / "large.zip")
    large = sk_itdiffusion.load(tmp_path / "large.zip")
    expected = small.score_samples(100 + asked)
    np.testing.assert_array_equal(large.score_samples(2**60 + asked), expected)
    drawn = [est.sample(50, random_state=0) - b for est, b in ((small, 100), (large, 2**60))]
    np.testing.assert_array_equal(*drawn)


def test_names_are_one_event_of_the_share_of_values_that_are_new_but_for_one_row():
    values = ["a", "a", "b", "c", None, "d", "d"]
    encoder = fitted_column(pd.Series(values, dtype=object), "nominal")
    found = log_probabilities(encoder, ["z", "y", 3.5])
    np.testing.assert_allclose(found, np.log((3 + 1) / (7 + 2)))
    for kind, column in (("ordinal", np.array([0.5, 0.5, 1.5, 2.5])), ("nominal", [1, 1, 2, 900])):
        found = log_probabilities(fitted_column(column, kind), [7, 7.5])
        np.testing.assert_allclose(found, np.log((2 + 1) / (4 + 2)))


def test_numbers_between_seen_ones_are_levels_so_that_single_ones_tell_nothing():
    ages = np.append(np.arange(20, 60), [20, 59])  # all but the least and the greatest once
    unseen = fitted_column(ages).columns[0].unseen
    np.testing.assert_allclose(np.exp(unseen.log_mass), 1 / 44)
    unseen = fitted_column(ages[1:]).columns[0].unseen  # now the least once, too
    np.testing.assert_allclose(np.exp(unseen.log_mass), 2 / 43)
    masses = np.exp([unseen.below.log_mass, unseen.above.log_mass])
    np.testing.assert_allclose(masses, np.array([1.5, 0.5]) / 43 * (1 - 1 / 43))


def test_new_values_are_as_frequent_as_their_mass_says():
    """The estimate of Good and Turing, before a row is added, has no bias.

    Over 100 samples the means differ by less than four standard errors of the difference.
    """
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, 61) ** 1.5
    share /= share.sum()
    counts, names = np.empty((100, 2)), np.empty((100, 2))
    for number in range(100):
        drawn = rng.choice(60, size=51, p=share)
        for rows, kind, found in ((drawn, "ordinal", counts), (drawn + 0.5, "nominal", names)):
            column = fitted_column(rows[:50], kind).columns[0]
            estimate = 52.0 / 50.0 * np.exp(column.unseen.log_mass) - 1.0 / 50.0
            levels = np.array(column.categories, dtype=float) - (kind == "nominal") * 0.5
            if kind == "ordinal" and levels[0] == 0:
                known = share[: int(levels[-1]) + 1].sum()
            elif kind == "ordinal":
                known = share[int(levels[0]) : int(levels[-1]) + 1].sum()
            else:
                known = share[levels.astype(int)].sum()
            found[number] = estimate, 1.0 - known
    for found in (counts, names):
        difference = found[:, 0] - found[:, 1]
        assert abs(difference.mean()) < 4.0 * difference.std() / np.sqrt(100)


def test_repetitions_are_weights_and_their_unit_is_nothing():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"n": rng.poisson(3.0, size=60), "w": rng.integers(0, 900, size=60) * 7})
    X["c"] = rng.choice(list("abcdefghijklmnop"), size=60)
    kinds, times = ["ordinal", "ordinal", "nominal"], rng.integers(1, 4, size=60)

    def masses(frame, weight=None):
        columns = TableEncoder.fit(frame, kinds=kinds, sample_weight=weight).columns
        return [
            value
            for column in columns
            for part in (column.unseen, column.unseen.above, column.unseen.below)
            if part is not None
            for value in vars(part).values()
            if isinstance(value, float)
        ]

    repeated = masses(X.loc[np.repeat(X.index, times)])
    np.testing.assert_allclose(masses(X, times), repeated, rtol=1e-12)
    np.testing.assert_allclose(masses(X, 0.37 * times), repeated, rtol=1e-12)
    uneven = rng.uniform(0.5, 1.5, size=60)
    np.testing.assert_allclose(masses(X, 0.37 * uneven), masses(X, uneven), rtol=1e-9)
    np.testing.assert_allclose(masses(X, np.full(60, 0.37)), masses(X), rtol=1e-12)


@pytest.mark.parametrize("kind", ["ordinal", "nominal"])
def test_sums_of_weights_and_of_their_squares_tell_what_the_rows_do(kind):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"n": rng.poisson(20.0, size=60) * 7, "weight": rng.gamma(4.0, size=60)})
    sums = X.assign(squares=X["weight"] ** 2).groupby("n", as_index=False).sum()

    def fitted(frame, **settings):
        return TableEncoder.fit(
            frame[["n"]], kinds=[kind], sample_weight=frame["weight"], **settings
        )

    found = fitted(sums, squared_weight=sums["squares"].to_numpy())
    new = pd.DataFrame({"n": [-7, 1, 1000]})
    # Weights of single rows are rounded to 24 bits.
    np.testing.assert_allclose(found.encode(new), fitted(X).encode(new), rtol=1e-6)
    assert (fitted(sums).encode(new) > found.encode(new) + 0.1).all()


@pytest.mark.parametrize("values", [[-1e308, 0.0, 1e308], [2**63 - 1, 2**53, 2**53 + 1]])
def test_the_largest_numbers_have_unseen_neighbours(values):
    encoder = fitted_column(pd.Series(values))
    new = pd.Series([1e300, -1e300, 5.0, 2.5, "text"], dtype=object)
    found = encoder.encode(pd.DataFrame({"x": new}))
    assert np.isfinite(found).all()
    assert (found < 0.0).all()


# -- tables ----------------------------------------------------------------------------------


def small_table(n=120, seed=0):
    """Draw two groups of rows with counts, texts and truths."""
    rng = np.random.default_rng(seed)
    group = rng.random(n) < 0.5
    return pd.DataFrame(
        {
            "count": rng.poisson(np.where(group, 0.3, 2.0)),
            "name": np.where(rng.random(n) < 0.9, np.where(group, "a", "b"), "c").astype(object),
            "true": group,
            "constant": "always",
            "x": rng.normal(size=n) + 3.0 * group,
        }
    )


def analytic(reference, **settings):
    return {
        "max_epochs": 0,
        "experts": [reference],
        "reference": reference,
        "random_state": 0,
        **settings,
    }


def everything(density, table):
    """Return rows of all categories and other values, and the factor by which each counts.

    Counts go as far as 50 beyond the greatest one, and stand for what is beyond.
    """
    column = density._encoder.columns[0]
    last = int(max(column.categories)) + 50
    survival = np.exp(log_survival(column.unseen.above, 50))
    at_last = np.exp(column.unseen.above.log_probability(50.0))
    counts = [(value, 1.0) for value in range(last)]
    counts += [(last, 1.0 + survival / at_last), (0.5, 1.0)]
    names = [(value, 1.0) for value in (*density.categories_[1], "other")]
    truths = [(value, 1.0) for value in (True, False)]
    constants = [(value, 1.0) for value in ("always", "other")]
    cells = list(itertools.product(counts, names, truths, constants))
    rows = pd.DataFrame([[value for value, _ in cell] for cell in cells], columns=table.columns[:4])
    rows["true"] = rows["true"].astype(bool)
    return rows, np.array([np.prod([factor for _, factor in cell]) for cell in cells])


@pytest.mark.parametrize("likelihood", others_slow(["immse", "path"]))
@pytest.mark.parametrize("reference", ["independent", "latent_class"])
def test_probabilities_of_discrete_tables_sum_to_one(reference, likelihood):
    table = small_table().drop(columns="x")
    settings = analytic(reference, likelihood=likelihood)
    density = IMMSEDiscreteDensity(**settings).fit(table)
    assert list(density.expert_weights_) == [reference]
    rows, factor = everything(density, table)
    log_p, std = density.score_samples(rows, return_std=True)
    np.testing.assert_allclose(factor @ np.exp(log_p), 1.0, rtol=1e-6)
    assert (std == 0.0).all()


@pytest.mark.parametrize(
    "reference", others_slow(["latent_class", "independent", "gaussian_mixture"])
)
def test_probabilities_of_mixed_tables_sum_to_one(reference):
    table = small_table(300)
    density = IMMSEMixedDensity(**analytic(reference, marginals="standard")).fit(table)
    assert list(density.expert_weights_) == [reference]
    rows, factor = everything(density, table)
    likely = factor > 0
    grid = np.linspace(-6.0, 9.0, 31)
    total = 0.0
    for x in grid:
        total += factor[likely] @ np.exp(density.score_samples(rows[likely].assign(x=x)))
    # The trapezoidal rule is exact to far less than this for normal densities of this width.
    np.testing.assert_allclose(total * (grid[1] - grid[0]), 1.0, atol=2e-3)


@pytest.mark.parametrize("reference", ["independent", "latent_class"])
def test_other_columns_are_scored_as_if_this_one_were_unknown(reference):
    table = small_table()
    density = IMMSEMixedDensity(**analytic(reference, marginals="standard")).fit(table)
    rows = table[:6].copy()
    levels = density.categories_[1]
    log_seen = [column.log_seen for column in density._encoder.columns]
    joint = [density.score_samples(rows.assign(name=level)) for level in levels]
    marginal = np.logaddexp.reduce(joint) - log_seen[1]
    log_mass = density._encoder.columns[1].unseen.log_mass
    found = density.score_samples(rows.assign(name="other"))
    np.testing.assert_allclose(found, marginal + log_mass, rtol=1e-9)
    # Another value of a constant column changes nothing else.
    found = density.score_samples(rows.assign(constant="other"))
    odds = density._encoder.columns[3].unseen.log_mass - log_seen[3]
    np.testing.assert_allclose(found, density.score_samples(rows) + odds, rtol=1e-9)


def test_a_row_does_not_depend_on_others_and_files_keep_all(tmp_path):
    table = small_table()
    settings = {"hidden_size": 8, "n_blocks": 1, "max_epochs": 1, "steps_per_epoch": 3}
    density = IMMSEMixedDensity(score_tol=0.5, random_state=0, **settings).fit(table)
    rows = pd.concat([table[:5]] * 3, ignore_index=True)
    rows.loc[5:9, "name"] = "other"
    rows.loc[10:12, "count"] = 99
    scores, std = density.score_samples(rows, return_std=True)
    assert np.isfinite(scores).all()
    known = np.array([0, 1, 2, 3, 4, 13, 14])
    assert (np.delete(std, known) == 0.0).all()
    for part in ([7], [11, 2], range(14, -1, -1)):
        np.testing.assert_array_equal(density.score_samples(rows.iloc[list(part)]), scores[part])
    density.save(tmp_path / "density")
    loaded = sk_itdiffusion.load(tmp_path / "density")
    np.testing.assert_array_equal(loaded.score_samples(rows), scores)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(density)).score_samples(rows), scores)
    with pytest.warns(UserWarning, match=r"'count', 'name', are not in the curve"):
        curve = density.mse_curve(rows)
    np.testing.assert_array_equal(curve.model, density.mse_curve(rows.iloc[known]).model)
    with (
        pytest.warns(UserWarning, match="not in the curve"),
        pytest.raises(ValueError, match="no error curve"),
    ):
        density.mse_curve(rows[5:10])


# -- what people do --------------------------------------------------------------------------


def rare_values():
    """Return a table whose largest count, and two of whose names, are in one row only."""
    table = small_table(90)[["count", "name", "true"]]
    table.loc[3, "count"], table.loc[8, "name"], table.loc[40, "name"] = 25, "rare", None
    return table


@pytest.mark.parametrize("kind", others_slow(["mixed", "discrete", "array", "categorical"]))
def test_tables_with_rare_values_can_be_cross_validated(kind):
    table = rare_values()
    plain = IMMSEDiscreteDensity(max_epochs=0, random_state=0)
    density, X = {
        "discrete": (plain, table),
        "mixed": (IMMSEMixedDensity(max_epochs=0, random_state=0), small_table(90).assign(**table)),
        "array": (plain, table[["count", "count"]].to_numpy()),
        "categorical": (plain, table.assign(name=table["name"].astype("category"))),
    }[kind]
    assert np.isfinite(cross_val_score(density, X, cv=3, error_score="raise")).all()


@pytest.mark.filterwarnings("ignore:Missing entries of column.s. 'name' are scored as values")
def test_ensembles_of_tables_with_rare_values_can_be_cross_validated():
    density = IMMSEEnsemble([("a", IMMSEDiscreteDensity(max_epochs=0))], random_state=0)
    scores = cross_val_score(density, rare_values(), cv=2, error_score="raise")
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("is_ensemble", [False, True])
def test_entropy_of_rare_names_is_that_of_new_rows(is_ensemble):
    """A third of new names are none of the fit, and validation rows have to stand for these."""
    share = np.arange(1, 2001) ** -1.2
    far = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        number = rng.choice(2000, size=2300, p=share / share.sum())
        table = pd.DataFrame({"name": np.char.mod("n%d", number)})
        density = IMMSEDiscreteDensity(max_epochs=0, random_state=seed)
        if is_ensemble:
            density = IMMSEEnsemble([("a", density)], random_state=seed)
        density.fit(table[:300])
        new = -density.score_samples(table[300:])
        error = np.hypot(density.entropy_std_, new.std() / np.sqrt(2000))
        far.append((density.entropy_ - new.mean()) / error)
    assert abs(np.mean(far)) < 3.0 / np.sqrt(6)


def test_searches_over_tables_with_rare_values_have_finite_scores():
    density = IMMSEDiscreteDensity(max_epochs=0, random_state=0)
    grid = {"validation_fraction": [0.1, 0.2]}
    search = GridSearchCV(density, grid, cv=2, refit=False, error_score="raise").fit(rare_values())
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert -30.0 < search.best_score_ < 0.0


def test_an_error_tells_what_to_do():
    table = rare_values()
    density = IMMSEDiscreteDensity(max_epochs=0, handle_unknown="error", random_state=0)
    density.fit(table[10:])
    with pytest.raises(ValueError, match=r"'count' .*: 25\. .*categories.*handle_unknown='good_tu"):
        density.score_samples(table[:10])


def test_pixels_share_the_mass_of_other_values():
    X = np.random.default_rng(0).integers(0, 3, size=(60, 16))
    density = IMMSEDiscreteDensity(image_shape=(4, 4), max_epochs=0, random_state=0).fit(X)
    unseen = {column.unseen for column in density._encoder.columns}
    assert len(unseen) == 1
    np.testing.assert_allclose(np.exp(unseen.pop().log_mass), 1 / (60 * 16 + 2))
    rows = X[:2].copy()
    rows[1, 3] = 5
    scores = density.score_samples(rows)
    assert np.isfinite(scores).all()
    assert scores[1] < scores[0] - 3.0


@pytest.mark.parametrize("noise_floor", others_slow(["auto", None]))
@pytest.mark.parametrize("average", others_slow([True, False]))
def test_detectors_find_unseen_values_unlikely_and_name_their_columns(noise_floor, average):
    table = small_table(200)
    template = IMMSEMixedDensity(max_epochs=0, marginals="standard")
    detector = IMMSEOutlierDetector(
        template, noise_floor=noise_floor, average=average, contamination=0.1, random_state=0
    ).fit(table)
    rows = table[:4].copy()
    rows["name"], rows["count"] = ["other", "a", "new", "other"], [0, 60, 1, 70]
    scores = detector.score_samples(rows)
    assert np.isfinite(scores).all()
    assert (scores < np.median(detector.score_samples(table)) - 2.0).all()
    parts = detector.explain(rows)
    np.testing.assert_allclose(parts.sum(axis=1), scores, rtol=1e-9)
    assert list(parts.idxmin(axis=1)) == ["name", "count", "name", "count"]
    if not average:
        columns = detector.estimator_._encoder.columns
        np.testing.assert_allclose(parts["name"].iloc[0], columns[1].unseen.log_mass)
    # A missing name is unknown, since none was missing in fit, and makes no row odd.
    of_masked = detector.explain(rows[:1].assign(name=None)).iloc[0]
    assert of_masked["name"] == 0.0
    assert of_masked.sum() > scores[0] + 2.0


def test_warm_starts_and_fitted_members_do_not_learn_from_unseen_values():
    table = rare_values()
    density = IMMSEDiscreteDensity(max_epochs=0, warm_start=True, random_state=0).fit(table[10:])
    with pytest.warns(UserWarning, match=r"'count', 'name', are not learned from"):
        density.fit(table)
    assert np.isfinite(density.score_samples(table)).all()
    member = IMMSEDiscreteDensity(max_epochs=0, random_state=0).fit(table[10:])
    with pytest.warns(UserWarning, match="are not learned from"):
        ensemble = IMMSEEnsemble([("a", member)], prefit=True, random_state=0).fit(table)
    scores = ensemble.score_samples(table)
    np.testing.assert_allclose(scores[[3, 8]], member.score_samples(table)[[3, 8]], rtol=1e-6)


def test_members_must_agree_about_other_values():
    members = [
        ("a", IMMSEDiscreteDensity(max_epochs=0)),
        ("b", IMMSEDiscreteDensity(max_epochs=0, handle_unknown="error")),
    ]
    with pytest.raises(ValueError, match=r"'b' and 'a' do not agree .* column 'count'"):
        IMMSEEnsemble(members, random_state=0).fit(rare_values())


def test_the_validation_bound_counts_the_mass_of_other_values():
    table = small_table()[["count", "name"]]
    settings = analytic("independent")
    density = IMMSEDiscreteDensity(**settings).fit(table)
    closed = IMMSEDiscreteDensity(handle_unknown="error", **settings).fit(table)
    log_seen = sum(column.log_seen for column in density._encoder.columns)
    np.testing.assert_allclose(density.entropy_, closed.entropy_ - log_seen)


@pytest.mark.parametrize("rows", ["with missing truths", "without"])
@pytest.mark.parametrize("estimator", [IMMSEDiscreteDensity, IMMSEMixedDensity])
def test_missing_truths_of_pandas_are_fitted_scored_sampled_and_saved(estimator, rows, tmp_path):
    rng = np.random.default_rng(0)
    truths = pd.array(rng.choice([True, False, None], 60), dtype="boolean")
    table = pd.DataFrame({"b": truths, "n": rng.integers(0, 3, 60)})
    fitted = table if rows == "with missing truths" else table.dropna()
    density = estimator(**analytic("independent")).fit(fitted)
    log_p = density.score_samples(table)
    # About 1/3 times 1/3, or 1/3 if no value was missing: it is then not known.
    of_numbers = density.marginal("n").score_samples(table[["n"]])
    log_ratio = (log_p - of_numbers)[table["b"].isna()]
    expected = np.log(table["b"].isna().mean()) if fitted is table else 0.0
    np.testing.assert_allclose(log_ratio, expected, atol=0.1)
    samples = density.sample(100, random_state=0)
    assert samples["b"].dtype == "boolean"
    assert samples["b"].isna().any() == (fitted is table)
    density.save(tmp_path / "density")
    loaded = sk_itdiffusion.load(tmp_path / "density")
    np.testing.assert_array_equal(loaded.score_samples(table), log_p)
