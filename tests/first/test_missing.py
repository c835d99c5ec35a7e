"""Tables with missing entries, and questions about parts of rows: fits, scores, views."""

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import stats
from seeds import shifted
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEImputer,
    IMMSEMixedDensity,
)
from sk_itdiffusion._first._table.groups import RowGroups
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references import GaussianReference, ReferenceFamily

pytestmark = pytest.mark.usefixtures("brief_fits")

NAN = np.nan
ANALYTIC = {"max_epochs": 0, "random_state": shifted(0)}
#: Without a choice of maps, which takes most of the time.
STANDARD = ANALYTIC | {"marginals": "standard"}


def hidden(X, share, seed=0):
    """Return rows of which a share of the entries, chosen completely at random, is missing."""
    X = np.array(X, dtype=np.float64)
    X[np.random.default_rng(seed).random(X.shape) < share] = np.nan
    return X


def normal_rows(n=400, seed=0):
    rng = np.random.default_rng(seed)
    covariance = [[1.0, 0.8, 0.3], [0.8, 2.0, -0.4], [0.3, -0.4, 1.5]]
    return rng.multivariate_normal([1.0, -2.0, 3.0], covariance, size=n)


def mixed_table(n=400, seed=0):
    rng = np.random.default_rng(seed)
    colour = rng.choice(["red", "green", "blue"], n, p=[0.5, 0.3, 0.2])
    size = rng.normal(3.0 * (colour == "red"), 1.0)
    count = rng.integers(0, 4, n) + 2 * (colour == "blue")
    return pd.DataFrame({"colour": colour, "count": count, "size": size, "weight": np.exp(size)})


def mixed_holes(n=400, share=0.2, seed=0):
    table = mixed_table(n, seed).astype({"count": "Int64"})
    return table.mask(np.random.default_rng(seed + 1).random(table.shape) < share)


def mixed_density(**settings):
    return IMMSEMixedDensity(handle_missing="missing", **(ANALYTIC | settings))


def quick_gaussian(**settings):
    return IMMSEDensity(
        reference="gaussian", experts=["gaussian"], marginals="standard", **(ANALYTIC | settings)
    )


# -- what is learned ---------------------------------------------------------------------------


@pytest.mark.parametrize("marginals", others_slow(["standard", "auto"]))
def test_mean_is_that_of_the_population_if_entries_are_missing_at_random(marginals):
    # X2 is hidden for 80% of the rows with X1 > 0; the mean of those that are left is far from 0.
    # Of 5000 rows the mean has a standard error of about 0.02, and its mean over two tables and
    # 4000 draws each of 0.02 too, maps and mixtures included.
    means, naive = [], []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        X = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]], size=5000)
        X[(X[:, 0] > 0.0) & (rng.random(5000) < 0.8), 1] = np.nan
        density = IMMSEDensity(marginals=marginals, **ANALYTIC).fit(X)
        means.append(density.marginal(1).sample(4000, random_state=seed).mean())
        naive.append(np.nanmean(X[:, 1]))
    assert np.mean(naive) < -0.3
    assert abs(np.mean(means)) < 0.05


def test_scores_of_observed_parts_are_near_those_of_the_truth():
    covariance = np.cov(normal_rows(200_000, 9).T)
    X, new = hidden(normal_rows(2000), 0.3), hidden(normal_rows(500, 1), 0.3, 1)
    truth = np.zeros(len(new))
    for i, row in enumerate(new):
        seen = ~np.isnan(row)
        if seen.any():
            mean = np.array([1.0, -2.0, 3.0])[seen]
            truth[i] = stats.multivariate_normal.logpdf(
                row[seen], mean, covariance[np.ix_(seen, seen)]
            )
    density = IMMSEDensity(**STANDARD).fit(X)
    # 9 parameters of 2000 rows: a loss of about 9 / (2 * 2000) nats for complete ones.
    loss = (truth - density.score_samples(new)).mean()
    assert -0.02 < loss < 0.03
    # The entropy is that of the observed parts of validation rows.
    assert abs(density.entropy_ + truth.mean()) < 4.0 * density.entropy_std_


def test_rows_without_entries_have_the_score_zero_and_teach_nothing():
    X = hidden(normal_rows(), 0.2)
    X = X[~np.isnan(X).all(axis=1)]
    empty = np.full((7, 3), np.nan)
    density = IMMSEDensity(**STANDARD).fit(X)
    with_empty = IMMSEDensity(**STANDARD).fit(np.vstack([empty, X]))
    scores, std = density.score_samples(np.vstack([X, empty]), return_std=True)
    np.testing.assert_array_equal(with_empty.score_samples(X), scores[: len(X)])
    np.testing.assert_array_equal(scores[len(X) :], 0.0)
    np.testing.assert_array_equal(std, 0.0)


# -- laws --------------------------------------------------------------------------------------


def discrete_rows(n=600, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 3, n)
    second = np.where(rng.random(n) < 0.7, first > 0, rng.random(n) < 0.5)
    return np.column_stack([first, second, (first + rng.integers(0, 2, n)) % 3])


CATEGORIES = [range(3), range(2), range(3)]


@pytest.mark.parametrize("kind", ["nominal", "ordinal"])
def test_totals_and_marginals_of_a_discrete_table_by_enumeration(kind):
    density = IMMSEDiscreteDensity(kind=kind, handle_unknown="error", **ANALYTIC)
    density.fit(hidden(discrete_rows(), 0.3))
    states = np.array(list(itertools.product(*CATEGORIES)), dtype=np.float64)
    joint = np.exp(density.score_samples(states))
    for seen in itertools.product([False, True], repeat=3):
        part = np.where(seen, states, np.nan)
        distinct, group = np.unique(np.nan_to_num(part, nan=-1.0), axis=0, return_inverse=True)
        rows = np.where(distinct < 0.0, np.nan, distinct)
        probability = np.exp(density.score_samples(rows))
        assert 0.97 < probability.sum() < 1.0 + 1e-9
        np.testing.assert_allclose(probability, np.bincount(group.ravel(), joint), rtol=1e-9)


@pytest.mark.parametrize("density", others_slow([quick_gaussian(), IMMSEDensity(**ANALYTIC)]))
def test_conditional_plus_marginal_is_the_joint(density):
    density = clone(density).fit(hidden(np.exp(0.3 * normal_rows()), 0.2))
    X = np.exp(0.3 * normal_rows(50, 1))
    for given in ([0], [2, 1]):
        marginal = density.marginal(given).score_samples(X[:, given])
        conditional = density.score_samples(X, given=given)
        np.testing.assert_allclose(marginal + conditional, density.score_samples(X), atol=1e-8)


def test_conditional_plus_marginal_is_the_joint_of_mixed_columns():
    density = mixed_density(reference="latent_class", marginals="standard").fit(mixed_holes())
    X = mixed_table(50, 1)
    for given in (["colour"], ["size", "count"]):
        marginal = density.marginal(given).score_samples(X[given])
        conditional = density.conditional(given).score_samples(X)
        np.testing.assert_allclose(marginal + conditional, density.score_samples(X), atol=1e-8)


def test_density_of_a_part_is_the_integral_of_the_joint():
    density = IMMSEDensity(**STANDARD).fit(hidden(normal_rows()[:, :2], 0.2))
    grid = np.linspace(-14.0, 12.0, 5001)
    for x in (0.0, 2.5):
        joint = density.score_samples(np.column_stack([np.full_like(grid, x), grid]))
        (part,) = density.score_samples([[x, np.nan]])
        np.testing.assert_allclose(np.trapezoid(np.exp(joint), grid), np.exp(part), rtol=1e-3)


def assert_same_scores(first, second, X):
    np.testing.assert_array_equal(first.score_samples(X), second.score_samples(X))
    assert first.entropy_ == second.entropy_


def test_order_of_rows_is_irrelevant_and_weights_are_repetitions():
    X = hidden(normal_rows(200), 0.2)
    order = np.random.default_rng(shifted(3)).permutation(len(X))
    times = np.random.default_rng(shifted(4)).integers(1, 3, len(X))
    density = quick_gaussian().fit(X)
    assert_same_scores(density, quick_gaussian().fit(X[order]), X)
    weighted = quick_gaussian().fit(X, sample_weight=times)
    assert_same_scores(weighted, quick_gaussian().fit(np.repeat(X, times, axis=0)), X)


def test_order_and_weights_of_discrete_rows():
    X = hidden(discrete_rows(300), 0.2)
    times = np.random.default_rng(shifted(4)).integers(1, 3, len(X))
    density = IMMSEDiscreteDensity(**ANALYTIC).fit(X)
    assert_same_scores(density, IMMSEDiscreteDensity(**ANALYTIC).fit(X[::-1]), X)
    weighted = IMMSEDiscreteDensity(**ANALYTIC).fit(X, sample_weight=times)
    repeated = IMMSEDiscreteDensity(**ANALYTIC).fit(np.repeat(X, times, axis=0))
    assert_same_scores(weighted, repeated, X)


def test_scores_do_not_depend_on_other_rows():
    density = IMMSEDensity(**STANDARD).fit(hidden(normal_rows(), 0.2))
    X = hidden(normal_rows(300, 2), 0.4, 2)
    together = density.score_samples(X)
    alone = [density.score_samples(X[i : i + 1])[0] for i in range(0, 300, 17)]
    np.testing.assert_array_equal(alone, together[::17])
    np.testing.assert_array_equal(density.score_samples(X[::-1])[::-1], together)


def test_scores_of_observed_parts_follow_the_units():
    X = hidden(normal_rows(), 0.2)
    factor = np.array([4.0, 0.125, 2.0**20])
    density, scaled = quick_gaussian().fit(X), quick_gaussian().fit(X * factor)
    change = np.where(np.isnan(X), 0.0, np.log(factor)).sum(axis=1)
    np.testing.assert_allclose(
        scaled.score_samples(X * factor), density.score_samples(X) - change, atol=1e-9
    )


def test_complete_rows_are_scored_as_without_incomplete_ones_beside_them():
    X = normal_rows()
    density = IMMSEDensity(
        hidden_size=16, n_blocks=1, max_epochs=1, steps_per_epoch=3, random_state=shifted(0)
    ).fit(X)
    new = normal_rows(20, 1)
    scores = density.score_samples(new)
    new[::2, 1] = np.nan
    with pytest.warns(UserWarning, match="max_epochs=0"):
        found = density.score_samples(new)
    np.testing.assert_array_equal(found[1::2], scores[1::2])
    with pytest.warns(UserWarning, match="max_epochs=0"):
        np.testing.assert_allclose(
            density.marginal([0, 2]).score_samples(new[::2, [0, 2]]), found[::2]
        )


def test_questions_to_a_fit_without_networks_do_not_warn(recwarn):
    density = IMMSEDensity(**STANDARD).fit(normal_rows())
    density.score_samples(hidden(normal_rows(), 0.5))
    density.score_samples(normal_rows(), given=[0])
    density.marginal(0).sample(3)
    assert not recwarn


def test_constant_columns_count_only_where_they_are_observed():
    X = np.column_stack([normal_rows(200), np.full(200, 5.0)])
    X = np.where(np.random.default_rng(shifted(0)).random(X.shape) < 0.2, np.nan, X)
    with pytest.warns(UserWarning, match="constant"):
        density = quick_gaussian().fit(X)
    rows = np.array([[1.0, np.nan, 3.0, 5.0], [1.0, np.nan, 3.0, np.nan], [np.nan] * 4])
    both, without, nothing = density.score_samples(rows)
    np.testing.assert_allclose(both - without, stats.norm.logpdf(0.0, scale=5e-3))
    assert nothing == 0.0
    np.testing.assert_allclose(density.score_samples(rows[:1], given=[3]), without)
    np.testing.assert_allclose(density.score_samples(rows[:1], given=[0, 1, 2]), both - without)


# -- values that no row of the fit has, bounds, lattices ----------------------------------------


def test_given_values_that_were_not_seen_count_as_missing(named):
    density = named
    rows = mixed_table(5, 1)
    strange = rows.assign(colour="violet")
    unknown = rows.assign(colour=None)  # a missing value is not known, seen or not
    given = ["colour", "count"]
    np.testing.assert_allclose(
        density.score_samples(strange, given=given), density.score_samples(unknown, given=given)
    )
    # As targets they have their mass, and tell nothing of the others.
    mass = density._encoder.columns[0].unseen.log_mass
    np.testing.assert_allclose(
        density.score_samples(strange), density.score_samples(unknown) + mass
    )
    draws = density.conditional("colour").sample(strange, 3, random_state=shifted(0))
    assert draws.notna().all(axis=None)


def test_bounds_hold_for_draws_and_density():
    rng = np.random.default_rng(shifted(0))
    X = hidden(rng.gamma(1.0, size=(300, 2)), 0.3)
    density = IMMSEDensity(bounds={0: (0, None), 1: (0, None)}, **ANALYTIC).fit(X)
    assert (
        density.conditional(0).sample(np.ones((100, 2)), 3, random_state=shifted(0)) > 0.0
    ).all()
    assert np.isneginf(density.score_samples([[-1.0, np.nan]])).all()
    found = IMMSEDensity(**ANALYTIC).fit(X)
    np.testing.assert_array_equal(found.bounds_[:, 0], 0.0)
    joint, given = found.score_samples([[-1.0, 0.5], [-1.0, np.nan]])
    np.testing.assert_allclose(found.score_samples([[-1.0, 0.5]], given=0), joint - given)
    assert np.isfinite([joint, given]).all()


def test_entries_beyond_bounds_say_nothing_of_the_others():
    rng = np.random.default_rng(shifted(0))
    x = rng.gamma(1.0, size=300)
    X = hidden(np.column_stack([x, x * rng.lognormal(0.0, 0.05, 300)]), 0.2)
    imputer = IMMSEImputer(IMMSEDensity(**ANALYTIC), n_fits=1, random_state=shifted(0)).fit(X)
    assert imputer.density_.bounds_[0, 0] == 0.0
    beyond, unknown, known = imputer.transform([[-1.0, np.nan], [np.nan, np.nan], [5.0, np.nan]])
    assert beyond.tolist() == [-1.0, unknown[1]]
    assert known[1] > 2.0 * unknown[1]


def test_density_given_far_values_has_the_mean_that_it_has_given_others():
    rng = np.random.default_rng(shifted(1))
    x = rng.normal(size=300)
    X = np.column_stack([x, 0.8 * x + 0.6 * rng.normal(size=300)])
    density = IMMSEDensity(**ANALYTIC | {"reference": "gaussian", "experts": ["gaussian"]}).fit(X)
    for given in (1e3, 1e9):
        drawn = density.conditional([0]).sample([[given]], 200, random_state=shifted(0))
        rows = np.column_stack([np.full(200, given), np.ravel(drawn)])
        found, std = density.score_samples(rows, given=[0], return_std=True)
        usual = density.score_samples(rows - rows.mean(axis=0), given=[0]).mean()
        assert not std.any()
        assert abs(found.mean() - usual) < 4.0 * found.std() / np.sqrt(200) + 0.1


@pytest.mark.filterwarnings("error")
def test_categories_given_far_values_have_one_law_in_scores_and_draws():
    """Also given values whose squares overflow, of which the limit is known."""
    rng = np.random.default_rng(shifted(0))
    kind = rng.integers(0, 3, 400)
    x = rng.normal(size=400) * np.array([1.0, 2.0, 0.5])[kind] + kind
    table = pd.DataFrame({"x": x, "y": x + rng.normal(size=400), "kind": np.array([*"uvw"])[kind]})
    density = mixed_density(handle_unknown="error").fit(table)
    found = {}
    for far in (1e4, -1e9, 1e99, 1e101, 1e160, 1e300):
        rows = pd.DataFrame({"x": far, "y": np.nan, "kind": [*"uvw"]})
        found[far] = np.exp(density.score_samples(rows, given=["x"]))
        assert found[far].sum() == pytest.approx(1.0, abs=1e-9)
        drawn = density.conditional(["x"]).sample(rows[:1], 2_000, random_state=shifted(0))
        counts = [(drawn["kind"] == name).sum() for name in "uvw"]
        assert stats.chisquare(counts, 2_000.0 * found[far]).pvalue > 1e-3
        assert np.isfinite(drawn["y"]).all()
    np.testing.assert_allclose(found[1e160], found[1e99], atol=1e-9)
    np.testing.assert_allclose(found[1e300], found[1e99], atol=1e-9)


@pytest.mark.filterwarnings("error")
def test_entries_whose_squares_overflow_are_impossible():
    rng = np.random.default_rng(shifted(0))
    X = hidden(rng.normal(size=(300, 3)), 0.2)
    density = IMMSEDensity(**ANALYTIC).fit(X)
    found = density.score_samples(
        [[1e155, np.nan, 0.0], [1e200, np.nan, np.nan], [1e160, 0.0, 0.0]]
    )
    assert np.isneginf(found).all()
    assert np.isneginf(density.marginal([0]).score_samples([[1e160]])).all()
    assert np.isneginf(density.score_samples([[0.0, 1e160, 0.0], [1e3, 1e160, 0.0]], given=0)).all()


@pytest.mark.filterwarnings("error", "ignore:.*are constant")
def test_impossible_given_values_say_nothing_in_scores_and_draws():
    """Beyond bounds that the user has set, or far from the only value of a column."""
    rng = np.random.default_rng(shifted(0))
    x = rng.gamma(2.0, size=300)
    X = np.column_stack([x, np.full(300, 3.0), x + rng.normal(size=300)])
    bounds = [(0.0, None), None, None]
    density = IMMSEDensity(**STANDARD | {"bounds": bounds}).fit(X)
    rows = np.array([[-1.0, 3.0, 2.0], [NAN, 3.0, 2.0], [1.0, 1e160, 2.0], [1.0, 3.0, 2.0]])
    found = density.score_samples(rows, given=[0, 1])
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[::2], found[1::2])
    # As targets they stay impossible.
    assert np.isneginf(density.score_samples(rows[[0, 2]], given=[2])).all()


def test_offsets_of_lattices_are_those_of_targets():
    rng = np.random.default_rng(shifted(0))
    x = rng.normal(size=600)
    X = hidden(np.column_stack([np.rint(3.0 * x), x + rng.normal(size=600)]), 0.2)
    density = IMMSEDensity(dequantize=[1.0, 0.0], **STANDARD).fit(X)
    rows = X[~np.isnan(X).any(axis=1)][:20]
    std = [
        density.score_samples(rows, return_std=True, given=given)[1] for given in (None, [0], [1])
    ]
    assert (std[0] > 0.0).all()
    assert (std[1] == 0.0).all()
    assert (std[2] > 0.0).all()
    # Probabilities of the lattice's points given the other column; noise makes them a little less.
    points = np.column_stack([np.arange(-30.0, 31.0), np.full(61, 0.3)])
    total = np.exp(density.score_samples(points, given=1)).sum()
    assert 0.9 < total < 1.01
    draws = density.conditional(1).sample(rows, 5, random_state=shifted(0))
    np.testing.assert_array_equal(draws, np.rint(draws))


# -- containers, kinds of missing entries ------------------------------------------------------


def test_all_kinds_of_missing_entries_are_the_same():
    X = hidden(normal_rows(200), 0.2)
    missing = np.isnan(X)
    names = ["a", "b", "c"]
    frame = pd.DataFrame(X, columns=names)
    polars = pytest.importorskip("polars")
    nulls = {name: [None if np.isnan(x) else x for x in frame[name]] for name in names}
    tables = [
        X.tolist(),
        np.where(missing, None, X),
        np.where(missing, pd.NA, X).tolist(),
        frame,
        frame.astype(object).where(~missing, pd.NA),
        frame.astype("Float64"),
        polars.DataFrame(nulls),
    ]
    expected = quick_gaussian().fit(X).score_samples(X)
    for table in tables:
        density = quick_gaussian().fit(table)
        np.testing.assert_array_equal(density.score_samples(table), expected)


def plans_with_amounts(n, seed, at_random=False):
    """Return categories and numbers that depend on them, half of which are missing."""
    rng = np.random.default_rng(seed)
    code = rng.choice(3, size=n, p=[0.6, 0.3, 0.1])
    amount = np.exp(rng.normal(size=n) + code)
    amount[code == 0 if at_random else rng.random(n) < 0.5] = NAN
    return pd.DataFrame({"plan": np.array(["a", "b", "c"])[code], "amount": amount})


@pytest.mark.parametrize("at_random", [False, True])
def test_rows_of_categories_only_are_observations(at_random):
    """Equal ones are not copies: if all were on one side of the split, few states would judge."""
    far, shares = [], []
    for seed in range(4):
        table, new = (plans_with_amounts(n, seed + n, at_random) for n in (400, 2000))
        density = IMMSEMixedDensity(**STANDARD).fit(table)
        scores = density.score_samples(new)
        error = np.hypot(density.entropy_std_, scores.std() / np.sqrt(2000))
        far.append((density.entropy_ + scores.mean()) / error)
        found = density.marginal(["plan"]).score_samples(pd.DataFrame({"plan": ["a"]}))
        shares.append(np.exp(found[0]) - np.mean(table["plan"] == "a"))
    assert abs(np.mean(far)) < 3.0 / np.sqrt(4)
    # A tenth of the rows is for validation, which has frequencies of its own.
    assert np.abs(shares).max() < 4.0 * np.sqrt(0.24 / 400 / 9)


def test_rows_of_categories_only_may_have_weights_and_groups():
    table = plans_with_amounts(300, 0)
    weight = np.random.default_rng(shifted(0)).integers(1, 4, size=300)
    group = np.arange(300) // 3
    once = IMMSEMixedDensity(**STANDARD).fit(table, sample_weight=weight)
    index = np.random.default_rng(shifted(1)).permutation(np.repeat(np.arange(300), weight))
    again = IMMSEMixedDensity(**STANDARD).fit(table.iloc[index])
    np.testing.assert_array_equal(again.score_samples(table), once.score_samples(table))
    # All groups have a row in common with others, and are not one group for that.
    grouped = IMMSEMixedDensity(**STANDARD).fit(table, groups=group)
    assert np.isfinite(grouped.entropy_std_)
    rows = WeightedRows(np.array([[NAN, 0.0], [1.0, 0.0], [NAN, 1.0]]), np.array([3.0, 2.0, 1.0]))
    share = np.array([1.0, 2.0, 2.0, 1.0])
    listed = RowGroups(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]), share)
    parts = listed.of_parts(rows, np.array([1, 0, 2, 0, 0]), np.array([3, 1, 1]))
    np.testing.assert_array_equal(parts.row, np.arange(5))
    np.testing.assert_array_equal(parts.group, [1, 0, 2, 1, 1])
    np.testing.assert_array_equal(parts.weight, [2.0, 1.0, 1.0, 1.0, 1.0])


def test_missing_entries_of_mixed_tables_of_pandas_and_polars():
    polars = pytest.importorskip("polars")
    table, quick = mixed_holes(), mixed_density(reference="independent", marginals="standard")
    expected = clone(quick).fit(table).score_samples(table)
    as_lists = {
        name: [None if pd.isna(x) else x for x in table[name].astype(object)] for name in table
    }
    nulls = polars.DataFrame(as_lists)
    density = clone(quick).fit(nulls)
    assert density.kinds_ == ["nominal", "ordinal", "continuous", "continuous"]
    np.testing.assert_array_equal(density.score_samples(nulls), expected)
    objects = table.astype(object).where(table.notna(), None).to_numpy()
    np.testing.assert_array_equal(clone(quick).fit(objects).score_samples(objects), expected)
    draws = density.conditional(["colour"]).sample(nulls[:5], 2, random_state=shifted(0))
    assert draws.columns == ["row", "draw", "count", "size", "weight"]
    assert draws.shape == (10, 5)
    assert draws["count"].dtype == polars.Int64


def test_missing_categories_are_a_category_unless_asked_otherwise():
    table = mixed_table()
    table.loc[:99, "colour"] = None
    quick = {"reference": "independent", "marginals": "standard"} | ANALYTIC
    as_category = IMMSEMixedDensity(**quick).fit(table)
    assert None in as_category.categories_[0]
    (score,) = as_category.marginal("colour").score_samples(table[["colour"]][:1])
    np.testing.assert_allclose(np.exp(score), 0.25, atol=0.03)
    as_hole = IMMSEMixedDensity(handle_missing="missing", **quick).fit(table)
    assert None not in as_hole.categories_[0]
    assert as_hole.marginal("colour").score_samples(table[["colour"]][:1]) == 0.0
    given = IMMSEMixedDensity(
        handle_missing="missing", categories={"colour": ["red", "green", "blue", None]}, **quick
    )
    assert None in given.fit(table).categories_[0]


#: Ways to say what the categories are, none of which makes a missing entry one of them.
WITHOUT_MISSING = {
    "mixed": (IMMSEMixedDensity, object, {}),
    "errors": (IMMSEDiscreteDensity, "category", {"handle_unknown": "error"}),
    "given": (IMMSEDiscreteDensity, object, {"categories": {"colour": ["red", "green", "blue"]}}),
    "categorical": (IMMSEMixedDensity, "category", {}),
    "mixed, given": (
        IMMSEMixedDensity,
        object,
        {"categories": [["red", "green", "blue"], *4 * [None]]},
    ),
}


@pytest.mark.parametrize("kind", others_slow(WITHOUT_MISSING, 2))
def test_entries_of_columns_that_lacked_none_may_be_masked(kind, tmp_path):
    """Scores are those of the other columns, whatever the fit makes of missing categories."""
    estimator, dtype, settings = WITHOUT_MISSING[kind]
    table = mixed_table(400).astype({"colour": dtype})
    table["late"] = pd.array(table["count"] > 2, dtype="boolean")
    quick = {"reference": "latent_class"} | ANALYTIC
    if estimator is IMMSEMixedDensity:
        quick["marginals"] = "standard"
    else:
        table = table[["colour", "count", "late"]]
    density = estimator(**quick, **settings).fit(table)
    masked = table[:8].copy()
    masked["colour"] = pd.Series([None] * 8, dtype=object).astype(table["colour"].dtype)
    rest = [name for name in table if name != "colour"]
    expected = density.marginal(rest).score_samples(table[rest][:8])
    scores = density.score_samples(masked)
    np.testing.assert_array_equal(scores, expected)
    given = density.score_samples(masked, given=["colour", "count"])
    np.testing.assert_allclose(
        given, scores - density.marginal("count").score_samples(table[["count"]][:8]), atol=1e-9
    )
    (shares,) = density.conditional("late").predict_proba(masked[["late"]][:1], "colour")
    np.testing.assert_allclose(shares.sum(), 1.0)
    masked.loc[0, "late"] = None
    masked.loc[0, "count"] = 99  # of which nothing is known but its small share
    if kind != "errors":
        assert density.score_samples(masked)[0] < scores[0] - 2.0
    density.save(tmp_path / "density")
    loaded = sk_itdiffusion.load(tmp_path / "density")
    np.testing.assert_array_equal(loaded.score_samples(masked[1:]), expected[1:])


@pytest.mark.parametrize("estimator", others_slow([IMMSEMixedDensity, IMMSEDiscreteDensity]))
def test_masked_scores_are_those_of_a_fit_for_missing_categories(estimator):
    table = mixed_table(120)[["colour", "count"]].assign(sign=lambda t: t["count"] > 1)
    quick = {"reference": "independent"} | ANALYTIC
    fits = [estimator(handle_missing=how, **quick).fit(table) for how in ("category", "missing")]
    masked = table.astype(object).mask(np.random.default_rng(shifted(0)).random(table.shape) < 0.4)
    of_categories, of_missing = fits
    for given in (None, ["colour"], ["count", "sign"]):
        np.testing.assert_array_equal(
            of_categories.score_samples(masked, given=given),
            of_missing.score_samples(masked, given=given),
        )


def test_a_category_of_missing_values_stays_one():
    """It is given, or occurred in the column: another column's say nothing about it."""
    table = mixed_table(150)
    quick = {"reference": "independent", "marginals": "standard"} | ANALYTIC
    listed = {"colour": ["red", "green", "blue", None]}
    given = IMMSEMixedDensity(categories=listed, **quick).fit(table)
    assert (given.score_samples(table[:1].assign(colour=None)) < -7.0).all()
    table["word"] = np.where(table["count"] > 2, None, "few")
    density = IMMSEMixedDensity(**quick).fit(table)
    marginal = density.marginal(["colour", "word"])
    masked = pd.DataFrame({"colour": [None, None], "word": ["few", None]})
    shares = np.exp(marginal.score_samples(masked))
    np.testing.assert_allclose(shares.sum(), 1.0, atol=0.01)
    np.testing.assert_allclose(shares[1], (table["count"] > 2).mean(), atol=0.02)


def test_warm_starts_keep_what_a_missing_category_is():
    table = mixed_table(150)[["colour", "count"]]
    later = table.astype(object).mask(np.random.default_rng(shifted(0)).random(table.shape) < 0.3)
    quick = {"reference": "independent"} | ANALYTIC
    density = IMMSEDiscreteDensity(warm_start=True, **quick).fit(table)
    assert None not in density.fit(later).categories_[0]
    assert density.score_samples(later[:1].assign(colour=None, count=None)) == 0.0


def test_streams_and_ensembles_tell_of_missing_categories():
    table = mixed_table(150)[["colour", "count"]]
    masked = table[:4].assign(colour=["red", None, None, "blue"])
    member = IMMSEDiscreteDensity(
        reference="independent", categories={"count": list(range(9))}, **ANALYTIC
    )
    stream = clone(member)
    with pytest.warns(UserWarning, match="only knows the categories of the first rows"):
        stream.partial_fit(table)
    with pytest.warns(UserWarning, match=r"'colour', are not learned from.*None for missing"):
        stream.partial_fit(masked)
    expected = stream.marginal("count").score_samples(masked[["count"]])
    np.testing.assert_array_equal(stream.score_samples(masked)[1:3], expected[1:3])
    ensemble = IMMSEEnsemble([("one", member)], random_state=shifted(0)).fit(table)
    with pytest.warns(UserWarning, match=r"column\(s\) 'colour' are scored as values that did"):
        scores = ensemble.score_samples(masked)
    single = clone(member).fit(table).score_samples(masked)
    assert (scores[1:3] < single[1:3] - 2.0).all()
    member.set_params(categories=[["red", "green", "blue"], list(range(9))])
    closed = IMMSEEnsemble([("one", member)], random_state=shifted(0)).fit(table)
    with pytest.raises(ValueError, match=r"'colour' has values .* a missing value"):
        closed.score_samples(masked)


@pytest.mark.parametrize(
    "estimator", [IMMSEDensity, IMMSEMixedDensity, IMMSEDiscreteDensity], ids=lambda e: e.__name__
)
def test_columns_without_values_are_named(estimator):
    X = pd.DataFrame(discrete_rows(60).astype(float), columns=["a", "b", "c"])
    X["b"] = np.nan
    with pytest.raises(ValueError, match=r"no observed values in column\(s\) 'b'"):
        estimator(**ANALYTIC).fit(X)
    X.loc[3, "b"] = 1.0
    with pytest.raises(ValueError, match=r"no observed values in column\(s\) 'b'"):
        estimator(**ANALYTIC).fit(X, sample_weight=np.arange(60) != 3)


def test_infinite_numbers_are_errors_beside_missing_ones():
    X = hidden(normal_rows(60), 0.2)
    density = quick_gaussian().fit(X)
    X[3] = 0.0, np.inf, np.nan
    with pytest.raises(ValueError, match=r"infinity.*column\(s\) 1\."):
        quick_gaussian().fit(X)
    with pytest.raises(ValueError, match=r"infinity.*column\(s\) 1\."):
        density.score_samples(X)


REFUSING = {
    "partial_fit": lambda X: IMMSEDensity(**ANALYTIC).partial_fit(X),
    "partial_fit, discrete": lambda X: IMMSEDiscreteDensity(**ANALYTIC).partial_fit(X.round()),
    "ensemble": lambda X: IMMSEEnsemble([("one", quick_gaussian())], random_state=shifted(0)).fit(
        X
    ),
    "ensemble's scores": lambda X: (
        IMMSEEnsemble([("one", quick_gaussian())], random_state=shifted(0))
        .fit(np.nan_to_num(X))
        .score_samples(X)
    ),
    "curve": lambda X: quick_gaussian().fit(np.nan_to_num(X)).mse_curve(X),
}


@pytest.mark.filterwarnings("ignore:partial_fit", "ignore:false_alarm_rate", "ignore:Column")
@pytest.mark.parametrize("name", REFUSING)
def test_what_knows_no_missing_entries_refuses_them(name):
    X = normal_rows(80)
    X[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN in column\(s\) 1"):
        REFUSING[name](X)


def test_dask_collections_refuse_missing_entries():
    arrays = pytest.importorskip("dask.array")
    X = arrays.from_array(hidden(normal_rows(80), 0.1), chunks=(40, 3))
    with pytest.raises(ValueError, match="NaN"):
        quick_gaussian().fit(X)


def test_networks_of_complete_rows_take_no_part_in_fits_with_missing_entries():
    X = hidden(normal_rows(60), 0.1)
    density = IMMSEDensity(marginals="standard", patterns="joint", random_state=shifted(0)).fit(X)
    assert density.net_ is None
    assert density.n_iter_ == 0
    same = IMMSEDensity(marginals="standard", **ANALYTIC).fit(X)
    np.testing.assert_array_equal(density.score_samples(X), same.score_samples(X))
    with pytest.warns(UserWarning, match="rows without missing entries"):
        density.set_params(experts=["network", "gaussian"]).fit(X)
    with pytest.raises(ValueError, match="no error curve"):
        density.mse_curve()


def test_warm_starts_keep_references_and_refuse_to_train_networks_on_holes():
    X, holes = normal_rows(100), hidden(normal_rows(100), 0.1)
    density = quick_gaussian(warm_start=True).fit(holes)
    reference = density.reference_
    assert density.fit(X).reference_ is reference
    network = IMMSEDensity(
        hidden_size=8,
        n_blocks=1,
        max_epochs=1,
        steps_per_epoch=2,
        warm_start=True,
        random_state=shifted(0),
    )
    network.fit(X)
    with pytest.raises(ValueError, match="warm starts"):
        network.fit(holes)


def test_groups_and_weights_with_missing_entries():
    X = hidden(normal_rows(200), 0.2)
    groups = np.arange(200) // 4
    weight = np.random.default_rng(shifted(0)).uniform(0.5, 2.0, 200)
    density = IMMSEDensity(**STANDARD).fit(X, sample_weight=weight, groups=groups)
    order = np.random.default_rng(shifted(1)).permutation(200)
    same = IMMSEDensity(**STANDARD).fit(X[order], sample_weight=weight[order], groups=groups[order])
    np.testing.assert_allclose(density.score_samples(X), same.score_samples(X), atol=1e-8)


# -- questions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named():
    """Return a density of a table with names; nothing of it may be changed."""
    return mixed_density(marginals="standard").fit(mixed_holes())


def test_columns_are_known_by_names_and_numbers(named):
    density, X = named, mixed_table(20, 1)
    by_name = density.score_samples(X, given=["colour", "size"])
    np.testing.assert_array_equal(density.score_samples(X, given=[2, 0]), by_name)
    np.testing.assert_array_equal(density.conditional(["size", 0]).score_samples(X), by_name)
    assert density.score(X, given=["colour", "size"]) == pytest.approx(by_name.mean())
    unnamed = quick_gaussian().fit(normal_rows(60))
    with pytest.raises(ValueError, match="does not have: 'a'"):
        unnamed.score_samples(normal_rows(5), given="a")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["colour", "age"], "names columns that the fitted table does not have: 'age'"),
        ([4], "does not have: 4"),
        ([-1], "does not have: -1"),
        ([True], "does not have: True"),
        ([], "at least one"),
        (["size", 2], "twice"),
        (["colour", "count", "size", "weight"], "all columns"),
    ],
)
def test_errors_of_questions_name_the_columns(named, columns, message):
    density, X = named, mixed_table(5)
    with pytest.raises(ValueError, match=message):
        density.score_samples(X, given=columns)
    with pytest.raises(ValueError, match=message):
        density.conditional(columns)
    if len(columns) < 4:
        with pytest.raises(ValueError, match=message):
            density.marginal(columns)


def test_views_of_a_table_with_names(named):
    density, X = named, mixed_table(6, 1).set_index(pd.Index(list("abcdef")))
    marginal = density.marginal(["weight", "colour"])
    assert list(marginal.feature_names_in_) == ["weight", "colour"]
    assert marginal.n_features_in_ == 2
    scores = marginal.score_samples(X[["weight", "colour"]])
    np.testing.assert_array_equal(marginal.score_samples(X[["colour", "weight"]]), scores)
    assert marginal.score(X[["weight", "colour"]]) == pytest.approx(scores.mean())
    with pytest.raises(ValueError, match="has 'count', 'size' too"):
        marginal.score_samples(X)
    with pytest.raises(ValueError, match="lacks 'colour'"):
        marginal.score_samples(X[["weight"]])
    sample = marginal.sample(9, random_state=shifted(0))
    assert list(sample.columns) == ["weight", "colour"]
    assert len(sample) == 9
    conditional = density.conditional(["colour", "size"])
    draws = conditional.sample(X[["size", "colour"]], 4, random_state=shifted(0))
    assert draws.index.names == ["row", "draw"]
    assert list(draws.index[:5]) == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0)]
    assert list(draws.columns) == ["count", "weight"]
    pd.testing.assert_frame_equal(conditional.sample(X, 4, random_state=shifted(0)), draws)
    array = conditional.sample(X, 4, random_state=shifted(0), output="array")
    assert array.shape == (6, 4, 2)
    np.testing.assert_array_equal(array.reshape(24, 2), draws.to_numpy())
    # The weight is a function of the size, which the draws know.
    log_weight = np.log(draws["weight"].groupby("row").median())
    assert np.corrcoef(log_weight, X["size"])[0, 1] > 0.9


def test_draws_of_arrays_have_the_conditional_law():
    density = quick_gaussian().fit(normal_rows(4000))
    X = np.tile([[1.0, 0.0, 0.0]], (3, 1))
    draws = density.conditional([0]).sample(X[:, :1], 2000, random_state=shifted(0))
    assert draws.shape == (3, 2000, 2)
    assert len(np.unique(draws[..., 0])) == 6000  # equal rows have different draws
    reference = density.reference_
    mean, scale = density._model.space.standardizer.center, density._model.space.standardizer.scale
    covariance = reference.covariance.numpy() * np.outer(scale, scale)
    center = reference.mean.numpy() * scale + mean
    expected = center[1:] + covariance[1:, 0] / covariance[0, 0] * (1.0 - center[0])
    left = covariance[1:, 1:] - np.outer(covariance[1:, 0], covariance[0, 1:]) / covariance[0, 0]
    flat = draws.reshape(-1, 2)
    z = (flat.mean(axis=0) - expected) / np.sqrt(np.diag(left) / len(flat))
    assert (np.abs(z) < 4.5).all()
    np.testing.assert_allclose(np.cov(flat.T), left, atol=4.5 * 2.0 * np.sqrt(2.0 / len(flat)))
    # Draws follow from the row and the seed.
    again = density.conditional([0]).sample(X[:1], 2000, random_state=shifted(0))
    np.testing.assert_array_equal(again[0], draws[0])
    other = density.conditional([0]).sample(X[:1], 2000, random_state=shifted(1))
    assert not np.isin(other, draws).any()


@pytest.mark.parametrize(("column", "given"), [("colour", "size"), ("count", "colour")])
def test_probabilities_are_those_of_the_joint_density(named, column, given):
    # Bayes' theorem, with the probabilities of parts of rows.
    density, X = named, mixed_table(6, 1)
    known = density.categories_[list(X.columns).index(column)]
    parts = density.marginal([column, given])
    logs = [parts.score_samples(X[[column, given]].assign(**{column: each})) for each in known]
    expected = np.exp(logs).T / np.exp(logs).sum(axis=0)[:, None]
    found = density.conditional(given).predict_proba(X, column)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.ptp(found, axis=0).max() > 0.01
    one = density.conditional(given).predict_proba(X[[given]].iloc[[2]], column)
    np.testing.assert_allclose(one[0], found[2], rtol=1e-12)


def test_probabilities_are_of_one_target_with_categories(named):
    X, density = mixed_table(2), named
    view = density.conditional(["size", "weight"])
    np.testing.assert_array_equal(
        density.conditional(["size", "weight", "count"]).predict_proba(X),
        density.conditional(["size", "weight", "count"]).predict_proba(X, "colour"),
    )
    for given, column, message in [
        (view, None, "must name one of the 2 targets 'colour', 'count'"),
        (view, "size", "'size' is given"),
        (view, "age", "does not have: 'age'"),
        (view, ["colour"], "name or the number of one"),
        (density.conditional("colour"), "size", "'size' has no categories"),
        (quick_gaussian().fit(normal_rows(60)).conditional([0, 1]), 2, "has no categories"),
    ]:
        with pytest.raises(ValueError, match=message):
            given.predict_proba(X if given.n_features_in_ == 4 else normal_rows(2), column)


@pytest.mark.parametrize("view", ["marginal", "conditional"])
def test_views_clone_and_pickle(named, view):
    density = named
    made = getattr(density, view)(["size", "count"])
    X = mixed_table(5, 1)
    X = X[["size", "count"]] if view == "marginal" else X
    expected = made.score_samples(X)
    for copy in (clone(made), pickle.loads(pickle.dumps(made)), made.fit(X)):
        np.testing.assert_array_equal(copy.score_samples(X), expected)
    assert clone(made) is not made
    assert clone(made).density is density
    unfitted = type(made)(clone(density), ["size", "count"])
    with pytest.raises(sklearn.exceptions.NotFittedError):
        unfitted.score_samples(X)
    assert "density" in made.get_params(deep=False)


def test_completed_rows_keep_what_is_observed(named):
    table, density = mixed_holes(), named
    values = density._read(table, allow_missing=True)
    completed = density._model.complete(values, 3, seed=7)
    assert completed.shape == (3, *values.shape)
    assert not np.isnan(completed).any()
    seen = ~np.isnan(values)
    for draw in completed:
        np.testing.assert_array_equal(draw[seen], values[seen])
        density._write(draw)  # all codes are those of categories
    part = density._model.complete(values[100:110], 3, seed=7)
    lacking = np.isnan(values[100:110]).any(axis=1) & ~np.isnan(values[100:110]).all(axis=1)
    np.testing.assert_array_equal(part[:, lacking], completed[:, 100:110][:, lacking])


@pytest.mark.parametrize("kind", others_slow(["mixed", "continuous", "discrete"]))
def test_fits_with_missing_entries_are_saved(kind, tmp_path):
    density, X = {
        "mixed": (mixed_density(marginals="standard"), mixed_holes()),
        "continuous": (IMMSEDensity(dequantize=[0.5, 0, 0], **ANALYTIC), None),
        "discrete": (IMMSEDiscreteDensity(**ANALYTIC), hidden(discrete_rows(), 0.2)),
    }[kind]
    if X is None:
        X = hidden(
            np.column_stack([np.rint(2 * normal_rows()[:, 0]) / 2, normal_rows(400, 5)[:, 1:]]), 0.2
        )
    density.fit(X)
    scores = density.score_samples(X, given=[0])
    density.save(tmp_path / "density")
    loaded = sk_itdiffusion.load(tmp_path / "density")
    for copy in (loaded, pickle.loads(pickle.dumps(density))):
        np.testing.assert_array_equal(copy.score_samples(X), density.score_samples(X))
        np.testing.assert_array_equal(copy.score_samples(X, given=[0]), scores)
        first, second = (each.sample(5, random_state=shifted(0)) for each in (copy, density))
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_paths_leave_rows_with_missing_entries_to_the_references():
    X = discrete_rows()
    density = IMMSEDiscreteDensity(likelihood="path", **ANALYTIC).fit(X)
    rows = np.where([True, False, True], X[:5], np.nan)
    found = density.score_samples(rows)
    np.testing.assert_array_equal(found, density.set_params(likelihood="immse").score_samples(rows))


def test_ensembles_have_no_members_that_were_fitted_to_missing_entries():
    X = normal_rows(80)
    member = FrozenEstimator(quick_gaussian().fit(hidden(X, 0.1)))
    with pytest.raises(ValueError, match="missing entries"):
        IMMSEEnsemble([("one", member)], random_state=shifted(0)).fit(X)


class WideFamily(ReferenceFamily):
    """A family that knows nothing of missing entries."""

    name = "wide"

    def fit(self, split, context):
        rows = split.continuous_train
        assert np.isfinite(rows.X).all()
        normal = GaussianReference.fit(rows.X, rows.weight)
        return GaussianReference(normal.mean, 1.5 * normal.covariance)


def test_families_of_the_user_are_fitted_to_complete_rows():
    X = hidden(normal_rows(), 0.2)
    density = IMMSEDensity(experts=["gaussian", WideFamily()], **STANDARD).fit(X)
    assert list(density.expert_weights_) == ["gaussian", "wide"]
    assert np.isfinite(density.score_samples(X)).all()


def test_references_of_the_user_answer_for_missing_entries():
    X = hidden(normal_rows(), 0.2)
    reference = GaussianReference([1.0, -2.0, 3.0], np.cov(normal_rows(5000).T))
    density = IMMSEDensity(reference=reference, experts=["reference"], **ANALYTIC).fit(X)
    rows = X[:50, :2].copy()
    expected = np.zeros(50)
    for i, row in enumerate(rows):
        seen = np.flatnonzero(~np.isnan(row))
        if len(seen):
            part = reference.covariance.numpy()[np.ix_(seen, seen)]
            mean = reference.mean.numpy()[seen]
            expected[i] = stats.multivariate_normal.logpdf(row[seen], mean, part)
    np.testing.assert_allclose(density.marginal([0, 1]).score_samples(rows), expected, atol=1e-8)


def test_images_have_no_missing_pixels():
    X = np.random.default_rng(shifted(0)).normal(size=(60, 4))
    holes = np.where(np.random.default_rng(shifted(1)).random(X.shape) < 0.1, np.nan, X)
    density = IMMSEDensity(max_epochs=0, image_shape=(2, 2), random_state=shifted(0))
    with pytest.raises(ValueError, match="contains NaN"):
        density.fit(holes)
    with pytest.raises(ValueError, match="contains NaN"):
        density.fit(X).score_samples(holes)


@pytest.mark.parametrize("given", [1.0, 1j])
def test_columns_that_are_no_names_are_refused(given):
    X = np.random.default_rng(shifted(0)).normal(size=(60, 3))
    density = quick_gaussian().fit(X)
    with pytest.raises(ValueError, match="given must be the name or the number of a column"):
        density.score_samples(X, given=given)
