"""Rows that belong together: given groups, near-copies, and what the split does with them."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.model_selection import GroupKFold, cross_val_score

from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity, IMMSEEnsemble, IMMSEMixedDensity
from sk_itdiffusion._first._fit.fitting import fit_table_model
from sk_itdiffusion._first._fit.schema import in_counts
from sk_itdiffusion._first._fit.stacking import repeated_rows
from sk_itdiffusion._first._fit.validation import mean_and_std
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first._table.groups import (
    RowGroups,
    could_be_independent,
    groups_of_observations,
    near_copies,
    neighbors_too_near,
    places_of,
    whole_groups,
)
from sk_itdiffusion._first._table.rows import WeightedRows, group_rows
from sk_itdiffusion._first.references.optimism import fold_weights

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {"max_epochs": 0, "random_state": 0}
WARNING = "Some rows are closer to each other than independent rows would be"


def repeated(n_objects, n_times, d=2, noise=1e-3, seed=0):
    """Objects measured several times."""
    rng = np.random.default_rng(seed)
    objects = np.repeat(rng.normal(size=(n_objects, d)), n_times, axis=0)
    return objects + noise * rng.normal(size=objects.shape)


def listed_groups(X, labels, weight=None):
    weight = np.ones(len(X)) if weight is None else weight
    rows = group_rows(X, weight)
    return rows, RowGroups.of(rows, X, weight, pd.factorize(labels)[0])


def validating(X, labels, *, seed=0, fraction=0.1, in_counts=False, weight=None):
    """Return the set of rows that validate, and whether groups are whole."""
    rows, groups = listed_groups(X, labels, weight)
    if not in_counts:
        groups = groups.joined(rows)
    chosen = groups.split(rows, fraction, 10_000, seed, in_counts)
    assert not set(groups.group[chosen]) & set(groups.group[~chosen])
    return {tuple(row) for row in groups.part(rows, chosen).X}


# -- the split ---------------------------------------------------------------------------------


def test_no_group_is_on_both_sides_and_the_fraction_is_of_rows():
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(600, 2)), rng.integers(60, size=600)
    owner = {tuple(row): label for row, label in zip(X, labels, strict=True)}
    valid = validating(X, labels)
    assert {owner[row] for row in valid}.isdisjoint(
        {label for row, label in owner.items() if row not in valid}
    )
    largest = np.bincount(labels).max()
    assert abs(len(valid) - 60) <= largest / 2


def test_names_and_order_are_of_no_account():
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(300, 2)), rng.integers(40, size=300)
    valid = validating(X, labels)
    order = rng.permutation(300)
    named = np.array([f"person {-label}" for label in labels], dtype=object)
    assert validating(X[order], named[order]) == valid
    assert validating(X, labels, seed=1) != valid


def test_groups_with_equal_rows_are_one():
    X = np.random.default_rng(0).normal(size=(100, 2))
    X[1] = X[0]  # joins the groups 0 and 1
    rows, groups = listed_groups(X, np.arange(100) // 1)
    joined = groups.joined(rows)
    assert len(rows) == 99
    assert len(np.unique(joined.group)) == 99
    labels = np.arange(100) // 2
    X[2] = X[0]  # joins the pairs 0 and 1
    rows, groups = listed_groups(X, labels)
    assert len(np.unique(groups.joined(rows).group)) == 49


def test_states_of_discrete_tables_are_divided_as_their_groups_are():
    """Two states, each in all groups, are not one group; counts add up, weights likewise."""
    rng = np.random.default_rng(0)
    X, labels = rng.integers(2, size=(400, 1)).astype(float), np.repeat(np.arange(40), 10)
    weight = np.ones(400)
    rows = in_counts(group_rows(X, weight), weight)
    groups = RowGroups.of(rows, X, weight, labels)
    chosen = groups.split(rows, 0.2, 10_000, 0, in_counts=True)
    valid, train = groups.part(rows, chosen), groups.part(rows, ~chosen)
    assert valid.weight.sum() == 80
    np.testing.assert_array_equal(valid.weight + train.weight, rows.weight)
    in_valid = np.unique(groups.group[chosen])
    state = rows.X[groups.row, 0]
    counts = np.stack(
        [np.bincount(groups.group, groups.weight * (state == value)) for value in (0, 1)], axis=1
    )
    given = [np.bincount(X[labels == label, 0].astype(int), minlength=2) for label in range(40)]
    assert sorted(map(tuple, counts)) == sorted(map(tuple, given))
    order = valid.X[:, 0].astype(int)
    np.testing.assert_array_equal(valid.weight, counts[in_valid].sum(axis=0)[order])
    # Groups of equal content differ, and both states are on both sides.
    assert len(in_valid) == 8
    assert len(train) == len(valid) == 2


def test_groups_have_numbers_of_their_own():
    """Which follow from their rows and weights; of groups of equal content any will do."""
    rng = np.random.default_rng(0)
    X, labels = np.round(rng.normal(size=(300, 2))), np.arange(300) // 3
    for weight in (np.ones(300), rng.integers(1, 4, size=300), np.exp(rng.normal(size=300))):
        order, renamed = rng.permutation(300), rng.permutation(100)
        _, given = listed_groups(X, labels, weight)
        _, other = listed_groups(X[order], renamed[labels][order], weight[order])
        np.testing.assert_array_equal(other.row, given.row)
        np.testing.assert_array_equal(other.group, given.group)
        np.testing.assert_allclose(other.weight, given.weight, rtol=1e-12)


def states_of_groups(n_groups=12, size=10, weighted=False, seed=0):
    """Return rows of two states, their groups and weights, and the states with their groups."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_groups), size)
    X = (rng.random(len(labels)) < rng.random(n_groups)[labels]).astype(float)[:, None]
    weight = np.exp(rng.normal(size=len(X))) if weighted else np.ones(len(X))
    rows = in_counts(group_rows(X, weight), weight)
    groups = RowGroups.of(rows, X, weight, labels)
    return X, labels, weight, groups.part(rows, np.ones(len(groups.row), dtype=bool))


@pytest.mark.parametrize("weighted", [False, True])
def test_states_in_several_groups_have_the_error_of_the_rows(weighted):
    """The standard error of a mean over states is that over the rows, of which a group is one."""
    X, labels, weight, states = states_of_groups(weighted=weighted)
    row_of = dict(zip(states.X[:, 0], [1.5, -0.5], strict=True))
    rows = WeightedRows(X, weight, group=labels)
    expected = mean_and_std(np.array([row_of[x] for x in X[:, 0]]), rows)
    values = np.array([row_of[x] for x in states.X[:, 0]])
    found = mean_and_std(values, states, float(states.weight.sum()))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Repeated with other noise, or one after the other, they keep their groups.
    many, _ = repeated_rows(states, states.keys(0), 100)
    assert len(many) == 100
    again = mean_and_std(np.repeat(values, 50), many, float(states.weight.sum()))
    np.testing.assert_allclose(again, found)
    first = states.take(np.array([0]))
    np.testing.assert_allclose(first.sums_over_units(first.weight).sum(), states.weight[0])
    folds = fold_weights(states, in_counts=True)
    np.testing.assert_allclose(folds.sum(axis=0), states.weight)
    assert len(folds) == 10
    by_group = np.bincount(labels, weights=weight) / weight.sum()
    shares = folds.sum(axis=1) / folds.sum()
    assert np.isclose(shares[:, None], by_group, rtol=1e-6).any(axis=1)[2:].all()


def test_noisy_copies_of_states_have_the_groups_of_the_observations():
    X, labels, _, states = states_of_groups()
    dequantizer = Dequantizer.fit(X, None, False, 0)
    copies = dequantizer.noisy_copies(states, 0, 10_000, one=False)
    group = groups_of_observations(states, copies.index, copies.observation)
    state = dequantizer.rounded(copies.rows.X)[:, 0]
    found = sorted((state[group == g].sum(), (group == g).sum()) for g in np.unique(group))
    expected = sorted((X[labels == g, 0].sum(), 10) for g in range(12))
    assert found == expected


def test_common_factors_of_weights_and_rows_of_weight_zero_are_nothing():
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(120, 2)), rng.integers(30, size=120)
    weight = rng.integers(0, 3, size=120).astype(float)
    valid = validating(X, labels, weight=weight)
    assert validating(X, labels, weight=0.37 * weight) == valid
    kept = weight > 0
    assert validating(X[kept], labels[kept]) == valid


def test_wanted_numbers_are_approached_by_whole_groups():
    np.testing.assert_array_equal(whole_groups(np.full(5, 200.0), 100.0), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(whole_groups(np.array([500.0, 500.0]), 100.0), [1, 0])
    np.testing.assert_array_equal(whole_groups(np.array([90.0, 4.0, 30.0]), 9.0), [0, 1, 1])
    assert whole_groups(np.ones(1000), 100.0).sum() == 100


def test_places_are_those_of_equal_rows():
    distinct = np.random.default_rng(0).normal(size=(50, 2))
    place = np.random.default_rng(1).integers(50, size=200)
    np.testing.assert_array_equal(places_of(distinct[place] + 0.0, distinct), place)


# -- near-copies -------------------------------------------------------------------------------


def test_p_values_of_independent_rows_are_uniform():
    """In any dimension and at any density; the tail that decides is not heavier.

    The limits are four standard errors of a binomial number (neighbours share their gaps, which
    makes it twice as wide).
    """
    from sklearn.neighbors import NearestNeighbors

    for d in (1, 2, 5):
        X = np.random.default_rng(d).standard_t(5, size=(3000, d))
        found = neighbors_too_near(NearestNeighbors(n_neighbors=24).fit(X), X, np.arange(3000))
        for level in (0.01, 0.1):
            expected = 3000 * level
            assert (found.p_value <= level).sum() < expected + 8 * np.sqrt(expected)


@pytest.mark.parametrize("noise", [1e-3, 1e-15])
@pytest.mark.parametrize("n_times", [2, 3, 7])
def test_copies_are_found(noise, n_times):
    for seed in range(3):
        X = repeated(420 // n_times, n_times, noise=noise, seed=seed)
        X = group_rows(X, np.ones(len(X))).X
        found = np.unique(near_copies(X))
        assert len(found) > 0.8 * len(X)


def test_ordinary_rows_are_no_copies():
    tables = [load_iris().data, load_wine().data, load_breast_cancer().data]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        angle, peaks = rng.uniform(0, 6, 400), rng.normal(size=(150, 2))
        tables += [
            rng.normal(size=(300, 2)),
            rng.standard_cauchy(size=(500, 3)),
            np.round(rng.normal(size=(500, 3)), 2),
            rng.poisson(3, size=(500, 4)).astype(float),
            np.column_stack([rng.normal(size=400) * (rng.random(400) < 0.4), rng.normal(size=400)]),
            np.column_stack([np.cos(angle), np.sin(angle)]) + 0.01 * rng.normal(size=(400, 2)),
            np.cumsum(rng.normal(size=(400, 2)), axis=0),
            # Narrow peaks, on which new rows fall too.
            peaks[rng.integers(150, size=500)] + 2e-3 * rng.normal(size=(500, 2)),
        ]
    for X in tables:
        assert not len(near_copies(group_rows(X, np.ones(len(X))).X))


def test_only_numbers_that_no_independent_rows_have_are_impossible():
    """Mixed Poisson numbers of rows on places are possible; pairs without singles are not."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rates = rng.gamma(0.8, 2.0, size=300)
        assert could_be_independent(np.bincount(rng.poisson(rates)))
        assert could_be_independent(np.bincount(rng.poisson(4.0, size=300)))
    for impossible in ([0, 0, 500], [0, 10, 460, 1], [0, 0, 0, 60], [0, 600, 200]):
        assert not could_be_independent(np.array(impossible))


def test_near_copies_fool_neither_entropy_nor_kernels():
    """Pairs are as good as half as many rows, under whose density new rows are scored."""
    new = np.random.default_rng(1).normal(size=(500, 2))
    density = IMMSEDensity(max_epochs=1, steps_per_epoch=5, hidden_size=16, random_state=0)
    with pytest.warns(UserWarning, match=WARNING):
        density.fit(repeated(250, 2))
    assert "kernel_density" not in density.references_
    loss = -density.score_samples(new)
    truth = -stats.norm.logpdf(new).sum(axis=1)
    error = (loss - truth).std() / np.sqrt(len(new))
    assert loss.mean() - truth.mean() < 0.1 + 3 * error
    assert abs(density.entropy_ - loss.mean()) < 4 * density.entropy_std_


@pytest.mark.parametrize("noise", [1e-2, 1e-3])
def test_near_copies_within_groups_need_no_warning(noise):
    """Whoever gives groups knows which rows belong together."""
    X = repeated(150, 3, noise=noise)
    density = IMMSEDensity(**QUICK).fit(X, groups=np.repeat(np.arange(150), 3))
    assert density.entropy_ == pytest.approx(-density.score(X), abs=6 * density.entropy_std_)


# -- estimators --------------------------------------------------------------------------------


@pytest.mark.slow
def test_groups_make_the_entropy_that_of_new_groups():
    """Rows of one person are alike beyond what near-copies are: only the labels tell.

    Six small fits; the mean difference in standard errors has a variance of 1/6 if these are right.
    """
    rng = np.random.default_rng(0)
    scores = []
    for seed in range(6):
        X = repeated(80, 5, d=3, noise=0.1, seed=seed)
        density = IMMSEDensity(max_epochs=0, random_state=seed)
        density.fit(X, groups=np.repeat(np.arange(80), 5))
        new = np.sqrt(1.01) * rng.normal(size=(500, 3))
        scores.append((density.entropy_ + density.score(new)) / density.entropy_std_)
    assert abs(np.mean(scores)) < 4 / np.sqrt(6)


def visits_of_persons(seed, n_persons=20, n_visits=50):
    """Return two dependent columns of three values each, with a law of each person's own."""
    rng = np.random.default_rng(seed)
    laws = rng.dirichlet(np.full(9, 0.15), size=n_persons)
    state = np.concatenate([rng.choice(9, size=n_visits, p=law) for law in laws])
    return np.column_stack([state // 3, state % 3]), np.repeat(np.arange(n_persons), n_visits)


def errors_of_entropy(make, seeds, **table):
    """Return by how many standard errors the entropy misses the loss of visits of new persons."""
    z = []
    for seed in seeds:
        X, person = visits_of_persons(seed, **table)
        density = make(seed).fit(X, groups=person)
        new, count = np.unique(visits_of_persons(1000 + seed, 2000, 5)[0], axis=0, return_counts=1)
        loss = -density.score_samples(new) @ count / count.sum()
        z.append((density.entropy_ - loss) / density.entropy_std_)
    return np.array(z)


def discrete(seed, **parameters):
    return IMMSEDiscreteDensity(max_epochs=0, random_state=seed, **parameters)


def ensemble_of_discrete(seed):
    members = [("a", discrete(seed)), ("b", discrete(seed, reference="independent"))]
    return IMMSEEnsemble(members, random_state=seed)


def dequantized(seed):
    return IMMSEDensity(max_epochs=0, dequantize=True, random_state=seed)


def ensemble_of_dequantized(seed):
    return IMMSEEnsemble([("a", dequantized(seed))], random_state=seed)


@pytest.mark.parametrize(
    ("make", "n_fits"),
    [
        (discrete, 6),
        pytest.param(ensemble_of_discrete, 14, marks=pytest.mark.slow),
        pytest.param(ensemble_of_dequantized, 6, marks=pytest.mark.slow),
    ],
)
def test_errors_of_entropies_of_states_are_those_between_persons(make, n_fits):
    """The root mean square of n z-scores is 1 up to 1 / sqrt(2 n), of which 4 are allowed.

    It was 4 to 11 when visits counted as independent of each other.
    """
    z = errors_of_entropy(make, range(n_fits))
    assert np.sqrt(np.mean(z**2)) < 1 + 4 / np.sqrt(2 * n_fits)


def test_ensembles_of_fitted_members_count_groups_as_one():
    """Each row four times, all but equal, in groups: the error is that of one each.

    Rows have noise of their own in the estimate, which is why a tenth is allowed.
    """
    X, labels = np.random.default_rng(0).normal(size=(80, 2)), np.repeat(np.arange(80), 4)
    member = IMMSEDensity(max_epochs=0, experts=["gaussian"], random_state=0).fit(X)
    ensemble = IMMSEEnsemble([("a", member)], prefit=True, random_state=0)
    once = ensemble.fit(X).entropy_std_
    copies = X[labels] + 1e-9 * np.arange(320)[:, None]
    assert ensemble.fit(copies, groups=labels).entropy_std_ == pytest.approx(once, rel=0.1)


@pytest.mark.parametrize("make", [dequantized, ensemble_of_dequantized])
def test_dequantized_fits_depend_on_neither_labels_nor_order(make):
    rng = np.random.default_rng(0)
    X, labels = np.round(2 * rng.normal(size=(90, 2))), np.arange(90) // 3
    order, renamed = rng.permutation(90), rng.permutation(30)
    first = make(0).fit(X, groups=labels)
    second = make(0).fit(X[order], groups=renamed[labels][order])
    np.testing.assert_array_equal(first.score_samples(X[:20]), second.score_samples(X[:20]))
    assert first.entropy_std_ == second.entropy_std_


@pytest.mark.parametrize("kind", ["continuous", "discrete", "mixed", "ensemble"])
def test_estimators_keep_groups_whole(kind, monkeypatch):
    """Whatever the labels' type is; with other labels of the same groups the fit is the same."""
    seen = []

    def spy(*args, **kwargs):
        seen.append(args)
        return fit_table_model(*args, **kwargs)

    monkeypatch.setattr("sk_itdiffusion._first._estimators.table.fit_table_model", spy)
    rng = np.random.default_rng(0)
    labels = rng.integers(20, size=120)
    numbers = rng.normal(size=(120, 2))
    codes = rng.integers(3, size=(120, 2))
    table, est = {
        "continuous": (numbers, IMMSEDensity(**QUICK)),
        "discrete": (codes, IMMSEDiscreteDensity(**QUICK)),
        "mixed": (
            pd.DataFrame({"a": numbers[:, 0], "b": pd.Categorical(codes[:, 0])}),
            IMMSEMixedDensity(**QUICK),
        ),
        "ensemble": (numbers, IMMSEEnsemble([("a", IMMSEDensity(**QUICK))], random_state=0)),
    }[kind]
    scores = est.fit(table, groups=labels).score_samples(table[:9])
    tuples = [("person", int(label)) for label in labels]
    np.testing.assert_array_equal(est.fit(table, groups=tuples).score_samples(table[:9]), scores)
    assert len(np.unique(seen[0][7])) > 10
    order = rng.permutation(120)
    shuffled = table.iloc[order] if kind == "mixed" else table[order]
    again = est.fit(shuffled, groups=pd.Series(labels[order])).score_samples(table[:9])
    np.testing.assert_array_equal(again, scores)
    assert not np.array_equal(est.fit(table).score_samples(table[:9]), scores)


def test_groups_are_routed():
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(150, 2)), np.repeat(np.arange(30), 5)
    density = IMMSEDensity(**QUICK)
    plain = cross_val_score(
        density, X, groups=labels, cv=GroupKFold(2), params={"groups": labels}, error_score="raise"
    )
    with sklearn.config_context(enable_metadata_routing=True):
        density.set_fit_request(groups=True)
        routed = cross_val_score(
            density, X, cv=GroupKFold(2), params={"groups": labels}, error_score="raise"
        )
    np.testing.assert_array_equal(plain, routed)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.zeros(60, dtype=int), "at least 2 groups"),
        (np.arange(60) < 5, "leaves 0 of 60 rows in 2 groups for training"),
        (np.arange(59), "inconsistent numbers of samples"),
        (np.zeros((60, 2)), "groups must be one-dimensional"),
        ([None, *range(59)], "groups has 1 missing label"),
    ],
)
def test_bad_groups_are_refused(groups, message):
    X = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(ValueError, match=message):
        IMMSEDensity(**QUICK).fit(X, groups=groups)


def test_rows_out_of_memory_have_no_groups(monkeypatch):
    X = np.random.default_rng(0).normal(size=(60, 2))
    labels = np.arange(60)
    monkeypatch.setattr(
        "sk_itdiffusion._first._table.partitions.affordable_rows", lambda n_columns: 40
    )
    with pytest.raises(ValueError, match="groups must be None if X has more rows than"):
        IMMSEDensity(**QUICK).fit(X, groups=labels)
    array = pytest.importorskip("dask.array").from_array(X, chunks=(20, 2))
    with pytest.raises(ValueError, match="groups must be None if X is a Dask collection"):
        IMMSEDensity(**QUICK).fit(array, groups=labels)


def test_rows_of_weight_zero_have_no_say():
    rng = np.random.default_rng(0)
    codes, labels = rng.integers(3, size=(200, 2)), rng.integers(25, size=200)
    weight = rng.integers(0, 2, size=200)
    kept = weight > 0
    est = IMMSEDiscreteDensity(**QUICK)
    weighted = est.fit(codes, sample_weight=weight, groups=labels).score_samples(codes[kept])
    few = est.fit(codes[kept], groups=labels[kept]).score_samples(codes[kept])
    np.testing.assert_array_equal(weighted, few)


def test_rows_keep_their_groups():
    rows = WeightedRows(np.arange(6.0).reshape(3, 2), np.ones(3), group=np.array([0, 1, 0]))
    np.testing.assert_array_equal(rows.take(np.array([0, 2])).group, [0, 0])
    np.testing.assert_array_equal(rows.columns(1).group, [0, 1, 0])


def test_few_observations_of_a_state_are_of_all_its_groups():
    """One state of weight 6000 in ten groups, of which 2000 observations are taken."""
    groups = RowGroups(np.zeros(10, dtype=np.intp), np.arange(10), np.full(10, 600.0))
    state = WeightedRows(np.zeros((1, 1)), np.array([6000.0]))
    index, number = np.zeros(2000, dtype=np.intp), np.arange(2000)
    found = groups.of_observations(state, index, number)
    np.testing.assert_array_equal(np.bincount(found), 200)


@pytest.mark.parametrize("n", [40, 42, 46, 58])
def test_one_group_tells_nothing_of_the_error(n):
    X = np.random.default_rng(n).normal(size=(n, 2))
    groups = np.arange(n) > n // 3
    continuous = IMMSEDensity(max_epochs=0, random_state=0).fit(X, groups=groups)
    discrete = IMMSEDiscreteDensity(max_epochs=0, random_state=0).fit(X > 0, groups=groups)
    assert np.isnan(continuous.entropy_std_)
    assert np.isnan(discrete.entropy_std_)
