"""The validation bound: cross-fitted, with a standard error, against the loss of new rows."""

from dataclasses import replace

import numpy as np
import pytest

import sk_itdiffusion
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity, IMMSEEnsemble
from sk_itdiffusion._first._fit.validation import (
    Optimism,
    codes_of,
    crossfitted_errors,
    mean_and_std,
    variance_of_units,
    with_unseen_values,
)
from sk_itdiffusion._first._immse.error_profiles import ErrorProfile, stacking_weights
from sk_itdiffusion._first._table.marginals import MarginalMap, Standardizer
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.space import TableSpace
from sk_itdiffusion._first.layout import Layout, Variable, lattice_values
from sk_itdiffusion._first.references import IndependentReference
from sk_itdiffusion._first.references.optimism import choice_optimism, fold_weights

pytestmark = pytest.mark.usefixtures("brief_fits")


def rows_of_weight(weight, group=None):
    X = np.arange(len(weight), dtype=float)[:, None]
    return WeightedRows(X, np.asarray(weight), group=group)


def test_folds_have_all_weights():
    weight = np.random.default_rng(0).integers(1, 30, size=25).astype(float)
    for in_counts in (False, True):
        folds = fold_weights(rows_of_weight(weight), in_counts)
        np.testing.assert_array_equal(folds.sum(axis=0), weight)
    np.testing.assert_allclose(folds.sum(axis=1), weight.sum() / 10, atol=1.0)
    # Counts are spread, rows are whole.
    assert (np.abs(folds - weight / 10) < 1.0).all()
    assert ((fold_weights(rows_of_weight(weight), False) > 0).sum(axis=0) == 1).all()


def test_groups_are_in_one_fold():
    group = np.random.default_rng(0).integers(30, size=100)
    folds = fold_weights(rows_of_weight(np.ones(100), group), False)
    fold = folds.argmax(axis=0)
    for label in np.unique(group):
        assert len(set(fold[group == label])) == 1
    assert len(folds) == 10


def test_choice_among_equals_is_flattered_by_the_maximum_of_its_means():
    """Of candidates with independent normal scores the best is as good as any other.

    The mean of the scores less the estimated optimism has the expectation 0; the limit is four
    standard errors over the repetitions.
    """
    rng = np.random.default_rng(0)
    found, flattered = [], []
    rows = rows_of_weight(np.ones(20))
    for _ in range(300):
        scores = rng.normal(size=(8, 20))

        def best(part, share, unit):
            return int(np.argmax(part @ share))

        chosen = scores[best(scores, np.ones(20), None)]
        flattered.append(chosen.mean())
        found.append((chosen - choice_optimism(scores, rows, best)).mean())
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error
    assert np.mean(flattered) > 10 * error


def test_weights_of_the_stack_are_those_of_other_rows():
    """What a fold's own residuals are has no influence on the weights that it is judged by."""
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(3, 60, 4))
    gram = np.einsum("kne,knf->knef", residuals, residuals)
    profile = ErrorProfile("abcd", np.arange(3.0), gram, np.full(60, 1 / 60))
    folds = fold_weights(rows_of_weight(np.ones(60)), False)
    errors = crossfitted_errors(profile, folds)
    for fold in folds:
        here = fold > 0
        scaled = np.where(here[:, None, None], 100.0 * gram, gram)
        other = crossfitted_errors(replace(profile, gram=scaled), folds)
        np.testing.assert_allclose(other[:, here], 100.0 * errors[:, here], rtol=1e-9)
    # Residuals without a pattern: weights that suit them flatter.
    flattered = profile.row_errors(stacking_weights(profile)).mean()
    assert flattered < errors.mean()


def test_standard_error_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(size=50)
    mean, std = mean_and_std(values, rows_of_weight(np.ones(50)))
    assert mean == pytest.approx(values.mean())
    assert std == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    # Each row twice, in groups: nothing is learned.
    group = np.repeat(np.arange(50), 2)
    twice = mean_and_std(np.repeat(values, 2), rows_of_weight(np.ones(100), group))
    assert twice == pytest.approx((mean, std))
    counted = mean_and_std(values, rows_of_weight(np.full(50, 4.0)), 200.0)
    assert counted[1] == pytest.approx(values.std() / np.sqrt(199))
    assert mean_and_std(values, rows_of_weight(np.ones(50)), None, 25.0)[1] == pytest.approx(
        5 / np.sqrt(50)
    )


def test_values_that_training_lacks_cost_what_unseen_ones_will():
    """By hand: their column has the share of unseen values, the other ones are scored alone."""
    layout = Layout(0, [Variable(4), Variable(2), Variable(5, lattice_values(5, 2.0, 1.0))])
    marginals = [np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.5, 0.5]), np.full(5, 0.2)]
    reference = IndependentReference(layout, marginals)
    log_seen = np.log([0.9, 1.0, 0.8])
    space = TableSpace(
        n_columns=3,
        continuous=np.arange(0),
        discrete=np.arange(3),
        constant=np.arange(0),
        constant_values=np.zeros(3),
        standardizer=Standardizer(np.empty(0), np.empty(0)),
        marginal_map=MarginalMap("standard", ()),
        layout=layout,
        log_seen=log_seen,
    )
    codes = codes_of(np.array([[0.0, 0, 1], [1, 0, 3], [0, np.nan, 3]]))
    # Seen; two names of no training row, one event; a gap, which is none; beyond the others.
    values = np.array([[0.0, 0, 1], [2, 0, 1], [3, 1, 3], [0, 0, 2], [1, 0, 4]])
    valid = rows_of_weight(np.ones(5)).with_values(values)
    seen = np.log([0.4 * 0.1, 0.2 * 0.1, 0.1 * 0.1, 0.4 * 0.1, 0.3 * 0.1])
    found = with_unseen_values(seen + 7.0, valid, codes, space, reference) - 7.0
    share = [0.4 * 0.1, 0.1 * 0.1 / 0.9, 0.1 * 0.1 / 0.9, 0.4 * 0.1, 0.3 * 0.5 * 0.2 / 0.8]
    np.testing.assert_allclose(found, np.log(share), rtol=1e-12)


def test_variance_of_units_counts_what_groups_share():
    """Groups of independent rows tell as much as their rows, groups of equal ones as one row."""
    rng = np.random.default_rng(0)
    group, alone = np.repeat(np.arange(2000), 5), rng.normal(size=10_000)
    n, variance = variance_of_units(alone, rows_of_weight(np.ones(10_000), group))
    assert n == pytest.approx(2000)
    # The standard deviation of a variance of 2000 values is that share of it.
    assert variance == pytest.approx(1 / 5, abs=4 * np.sqrt(2 / 2000) / 5)
    equal = rng.normal(size=2000)[group]
    assert variance_of_units(equal, rows_of_weight(np.ones(10_000), group)) == pytest.approx(
        (2000, np.var(equal) * 2000 / 1999)
    )
    assert np.isnan(variance_of_units(alone[:5], rows_of_weight(np.ones(5), np.zeros(5, int)))[1])


@pytest.mark.slow
def test_entropy_of_few_rows_is_not_flattered():
    """The mean over 24 fits to 100 rows is that of the loss of new rows.

    Without cross-fitting it is 0.13 to 0.2 nats less.  The limits are three standard errors, and
    for the errors that are given a factor of 1.6: four standard deviations of a ratio of so many.
    """
    bias, z = [], []
    for seed in range(24):
        rng = np.random.default_rng(5000 + seed)
        angle = rng.integers(4, size=400) * np.pi / 2
        X = 3 * np.column_stack([np.cos(angle), np.sin(angle)]) + rng.normal(size=(400, 2))
        density = IMMSEDensity(max_epochs=0, score_tol=0.5, random_state=seed).fit(X[:100])
        bias.append(density.entropy_ + density.score(X[100:]))
        z.append(bias[-1] / density.entropy_std_)
    assert abs(np.mean(bias)) < 3 * np.std(bias) / np.sqrt(len(bias))
    assert 1 / 1.6 < np.sqrt(np.mean(np.square(z))) < 1.6


def banana(rng, n):
    x = rng.normal(size=n)
    return np.column_stack([x, x**2 + 0.5 * rng.normal(size=n)])


def errors_of_ensembles(n_fits, n_rows, spread=0.0, size=1):
    """Return by how many standard errors the entropy misses the loss of new rows.

    Weights are log-normal with a spread, and rows are in groups of a size.
    """
    new, z = banana(np.random.default_rng(99), 1000), []
    for seed in range(n_fits):
        rng = np.random.default_rng(seed)
        X, weight = banana(rng, n_rows), np.exp(spread * rng.normal(size=n_rows))
        member = IMMSEDensity(
            max_epochs=0, experts=["gaussian"], marginals="standard", random_state=seed
        )
        ensemble = IMMSEEnsemble([("a", member)], random_state=seed)
        ensemble.fit(
            X,
            sample_weight=weight if spread else None,
            groups=np.arange(n_rows) // size if size > 1 else None,
        )
        z.append((ensemble.entropy_ + ensemble.score(new)) / ensemble.entropy_std_)
    return np.array(z)


@pytest.mark.parametrize(
    ("n_fits", "table"),
    [
        pytest.param(16, {"n_rows": 100}, marks=pytest.mark.slow),
        pytest.param(16, {"n_rows": 100, "size": 2}, marks=pytest.mark.slow),
        pytest.param(16, {"n_rows": 400, "spread": 1.7}, marks=pytest.mark.slow),
        pytest.param(16, {"n_rows": 400, "spread": 1.7, "size": 2}, marks=pytest.mark.slow),
    ],
)
def test_ensembles_know_the_error_of_few_or_unlike_rows(n_fits, table):
    """A heavy row, or few groups, tell little of the spread of new rows; training rows do.

    The root mean square of n z-scores of normal errors is 1 up to 1 / sqrt(2 n), of which 4 are
    allowed; a third is for losses whose tails are not normal.
    """
    z = errors_of_ensembles(n_fits, **table)
    assert np.sqrt(np.mean(z**2)) < 4 / 3 + 4 / np.sqrt(2 * n_fits)


def test_optimism_counts_as_far_as_the_stack_relies_on_a_choice():
    families = {"gaussian": 0.0, "gaussian_mixture": 100.0}
    optimism = Optimism(plain=1.0, others=np.array([10.0, 20.0]), families=families)
    weights = {"gaussian": 0.5, "gaussian_mixture": 0.25, "network": 0.25}
    found = optimism.of_stack(weights, "gaussian", 2)
    np.testing.assert_allclose(found, [0.5 + 5.0 + 25.0, 0.5 + 10.0 + 25.0])
    np.testing.assert_array_equal(Optimism().of_stack(weights, "gaussian", 3), np.zeros(3))


@pytest.mark.parametrize("n_rows", [39, 40])
def test_nothing_validates_few_rows(n_rows):
    rng = np.random.default_rng(0)
    X, codes = rng.normal(size=(n_rows, 2)), rng.integers(3, size=(n_rows, 2))
    member = IMMSEDensity(max_epochs=0, random_state=0)
    fitted = [
        member.fit(X),
        IMMSEDiscreteDensity(max_epochs=0, random_state=0).fit(codes),
        IMMSEEnsemble([("a", member)], random_state=0).fit(X),
    ]
    for density in fitted:
        assert np.isfinite(density.entropy_) == (n_rows == 40)
        assert np.isfinite(density.entropy_std_) == (n_rows == 40)


@pytest.mark.filterwarnings("ignore:.* are constant")
@pytest.mark.parametrize("dequantize", [False, True])
def test_nothing_validates_equal_rows(dequantize):
    X = np.ones((100, 2))
    options = {"max_epochs": 0, "random_state": 0}
    member = IMMSEDensity(dequantize=dequantize, **options)
    fitted = [
        member.fit(X),
        IMMSEDiscreteDensity(**options).fit(X.astype(int)),
        IMMSEEnsemble([("a", member)], random_state=0).fit(X),
    ]
    for density in fitted:
        assert np.isnan([density.entropy_, density.entropy_std_]).all()


def test_standard_error_is_stored(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 2))
    member = IMMSEDensity(max_epochs=0, random_state=0)
    for number, density in enumerate([member, IMMSEEnsemble([("a", member)], random_state=0)]):
        density.fit(X).save(tmp_path / f"{number}.itd")
        loaded = sk_itdiffusion.load(tmp_path / f"{number}.itd")
        assert loaded.entropy_std_ == density.entropy_std_ > 0.1
