"""Rows that are equal by chance, as those with zeros of amounts, are different observations."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEImputer, IMMSEMixedDensity
from sk_itdiffusion._first._fit.schema import grouped_and_counted, noisy_copies
from sk_itdiffusion._first._fit.splitting import with_observations_apart
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first._table.groups import near_copies
from sk_itdiffusion._first._table.rows import WeightedRows

ANALYTIC = {"max_epochs": 0}
NAN = np.nan
pytestmark = pytest.mark.filterwarnings("ignore:Column.*have many equal")


def apart(X):
    """Return the rows of a table of numbers, those that are equal by chance divided."""
    grouped, _ = grouped_and_counted(X, np.ones(len(X)))
    layout = SimpleNamespace(n_continuous=X.shape[1])
    space = SimpleNamespace(is_discrete=False, is_empty=False, layout=layout)
    return with_observations_apart(grouped, None, space)[0]


def amounts(n, seed, kind):
    """Return categories and amounts, about half of which are zero, or amounts only."""
    rng = np.random.default_rng(seed)
    code = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    is_zero = rng.random(n) < np.array([0.7, 0.4, 0.2])[code]
    amount = np.where(is_zero, 0.0, np.exp(2.0 + code + 0.7 * rng.normal(size=n)))
    if kind == "mixed":
        return pd.DataFrame({"plan": np.array(["a", "b", "c"])[code], "amount": amount})
    other = np.where(is_zero, 0.0, rng.gamma(2.0, size=n))
    return pd.DataFrame({"amount": amount, "other": other})


def density_of(kind, seed):
    """Return an estimator of such rows."""
    if kind == "mixed":
        return IMMSEMixedDensity(**ANALYTIC, random_state=seed)
    return IMMSEDensity(**ANALYTIC, random_state=seed)


def ensemble_of(kind, seed):
    """Return an ensemble of two estimators of such rows."""
    members = [("first", density_of(kind, seed)), ("second", density_of(kind, seed + 1))]
    return IMMSEEnsemble(members, random_state=seed)


@pytest.mark.parametrize(
    ("kind", "make", "has_groups"),
    [
        ("mixed", density_of, False),
        ("numbers", density_of, False),
        pytest.param("mixed", density_of, True, marks=pytest.mark.slow),
        pytest.param("numbers", density_of, True, marks=pytest.mark.slow),
        pytest.param("mixed", ensemble_of, False, marks=pytest.mark.slow),
        pytest.param("mixed", ensemble_of, True, marks=pytest.mark.slow),
        pytest.param("numbers", ensemble_of, False, marks=pytest.mark.slow),
    ],
)
def test_zeros_are_on_both_sides_of_the_split_and_in_the_density(kind, make, has_groups):
    """If all were on one side, the model or ``entropy_`` would be that of the other rows."""
    far = []
    for seed in range(3):
        table, new = amounts(400, seed, kind), amounts(2000, 100 + seed, kind)
        groups = np.arange(400) // 4 if has_groups else None
        density = make(kind, seed).fit(table, groups=groups)
        scores = density.score_samples(new)
        error = np.hypot(density.entropy_std_, scores.std() / np.sqrt(2000))
        far.append((density.entropy_ + scores.mean()) / error)
        drawn = density.sample(2000, random_state=seed)["amount"]
        share = np.mean(table["amount"] == 0.0)
        # A tenth of the rows validate, and draws have an error of their own.
        error = np.sqrt(share * (1.0 - share) * (1.0 / 9 / 400 + 1.0 / 2000))
        assert abs(np.mean(abs(drawn) < 0.5) - share) < 4.0 * error
    assert abs(np.mean(far)) < 3.0 / np.sqrt(3)


def test_zeros_are_imputed():
    table = amounts(400, 0, "mixed")
    rng = np.random.default_rng(1)
    is_hidden = rng.random(400) < 0.3
    hidden = table.assign(amount=table["amount"].mask(is_hidden))
    imputer = IMMSEImputer(
        IMMSEMixedDensity(**ANALYTIC), strategy="sample", n_fits=1, random_state=0
    )
    completed = imputer.set_output(transform="pandas").fit_transform(hidden)
    for plan in ("a", "b"):
        own = np.asarray(table["plan"] == plan)
        found = np.mean(completed["amount"][own & is_hidden] == 0.0)
        share = np.mean(hidden["amount"][own & ~is_hidden] == 0.0)
        n_found, n_seen = np.sum(own & is_hidden), np.sum(own & ~is_hidden)
        error = np.sqrt(share * (1.0 - share) * (1.0 / n_found + 1.0 / n_seen))
        assert abs(found - share) < 3.0 * error


def test_which_rows_are_equal_by_chance():
    rng = np.random.default_rng(0)
    number = rng.normal(size=40)
    X = np.column_stack(
        [np.r_[0.0, 0.0, 1.0, NAN, NAN, number], np.r_[0.0, 1.0, 2.0, NAN, 0.0, number]]
    )
    weight = np.r_[30.0, 20.0, 20.0, 2.0, 2.0, np.ones(40)]
    rows = WeightedRows(X, weight)
    expected = np.r_[True, True, True, True, True, np.zeros(40, dtype=bool)]
    np.testing.assert_array_equal(rows.are_equal_by_chance, expected)
    # Weights that are no numbers of observations do not make a value frequent.
    few = WeightedRows(X, weight, number=np.full(45, 2.0))
    expected[[0, 1, 2, 4]] = False
    np.testing.assert_array_equal(few.are_equal_by_chance, expected)


def test_rows_of_great_weight_and_repeated_rows_are_not():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    weight = np.ceil(1000.0 * np.exp(rng.normal(size=60)))
    assert (weight / weight.sum()).max() > 0.05
    assert not WeightedRows(X, weight).are_equal_by_chance.any()
    assert not WeightedRows(X[:15], np.full(15, 60.0)).are_equal_by_chance.any()


def test_grades_are_equal_by_chance_beside_categories():
    """All of their values are frequent: many of the distinct rows have each of them."""
    grade, level = (each.ravel() for each in np.meshgrid(np.arange(1.0, 6.0), np.arange(8.0)))
    rows = WeightedRows(np.column_stack([grade, level]), np.full(40, 15.0))
    assert rows.columns(1).are_equal_by_chance.all()


@pytest.mark.parametrize("times", [1, 2, 7])
def test_rows_are_observations_whatever_the_least_number_of_equal_ones(times):
    """The least weight is 1, but not the number of its observations."""
    X = np.repeat(np.append(0.0, np.arange(1.5, 20.0)), np.append(90, np.full(19, 2)))[:, None]
    rows = apart(np.repeat(X, times, axis=0))
    numbers = np.unique(rows.X, return_counts=True)[1]
    np.testing.assert_array_equal(numbers, np.append(90 * times, np.ones(19)))
    assert rows.weight[rows.X[:, 0] == 0.0].sum() == pytest.approx(45.0)
    np.testing.assert_allclose(rows.weight[rows.X[:, 0] > 0.0], 1.0)


@pytest.mark.usefixtures("brief_fits")
def test_weights_are_repetitions_of_frequent_rows_too():
    table = amounts(150, 0, "mixed")
    weight = np.random.default_rng(0).integers(1, 4, size=150)
    once = density_of("mixed", 0).fit(table, sample_weight=weight)
    index = np.random.default_rng(1).permutation(np.repeat(np.arange(150), weight))
    again = density_of("mixed", 0).fit(table.iloc[index])
    np.testing.assert_array_equal(again.score_samples(table), once.score_samples(table))


def test_frequent_rows_are_no_near_duplicates():
    rng = np.random.default_rng(0)
    X = np.exp(rng.normal(size=(400, 2)))
    X[:120] = 0.0
    rows = apart(X)
    assert len(rows) == 400
    assert not len(near_copies(rows.X, rows.content))


def test_zeros_of_a_stream_are_on_both_sides():
    far = []
    for seed in range(6):
        table, new = amounts(1500, seed, "mixed"), amounts(2000, 100 + seed, "mixed")
        density = density_of("mixed", seed).set_params(categories={"plan": ["a", "b", "c"]})
        for start in range(0, 1500, 500):
            density.partial_fit(table[start : start + 500])
        scores = density.score_samples(new)
        error = np.hypot(density.entropy_std_, scores.std() / np.sqrt(2000))
        far.append((density.entropy_ + scores.mean()) / error)
        plan = pd.DataFrame({"plan": ["a"]})
        found = np.exp(density.marginal(["plan"]).score_samples(plan)[0])
        share = np.mean(table["plan"] == "a")
        # A tenth of the rows validate.
        assert abs(found - share) < 4.0 * np.sqrt(share * (1.0 - share) / 1500 / 9)
    assert abs(np.mean(far)) < 3.0 / np.sqrt(6)


def test_zeros_beside_a_dequantized_column_are_observations():
    """Noisy copies of a row off the lattices are of one source, unless it is a frequent one."""
    rng = np.random.default_rng(0)
    count = rng.poisson(2.0, size=400)
    amount = np.where(rng.random(400) < 0.6, 0.0, np.exp(rng.normal(size=400)))
    X = np.column_stack([count, amount])
    _, counted = grouped_and_counted(X, np.ones(400))
    dequantizer = Dequantizer.fit(counted.X, step=None, shared=False, seed=0)
    settings = SimpleNamespace(model=SimpleNamespace(has_images=False))
    copies = noisy_copies(counted, dequantizer, settings)
    n_sources = len(np.unique(copies.rows.source))
    assert n_sources == 400
    images = SimpleNamespace(model=SimpleNamespace(has_images=True))
    assert len(np.unique(noisy_copies(counted, dequantizer, images).rows.source)) == len(counted)
