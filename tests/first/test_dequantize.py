"""Dequantisation: each observation has a noise of its own, and all columns of a lattice a cell."""

import warnings

import numpy as np
import pandas as pd
import pytest

from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
    load,
)
from sk_itdiffusion._first._immse.cubature import copy_numbers
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first._table.rows import WeightedRows

pytestmark = pytest.mark.usefixtures("brief_fits")

#: Without training: maps, references and their weights only.
PLAIN = {"max_epochs": 0, "score_tol": 0.5, "random_state": 0}


def three_states(n, seed=0):
    """Return rows of three equally likely states."""
    first = np.random.default_rng(seed).integers(0, 3, n)
    return np.column_stack([first, (first + 1) % 3]).astype(float)


def entropy_of(counts):
    share = counts / counts.sum()
    return -float(share @ np.log(share))


# -- copies --------------------------------------------------------------------------------------


@pytest.mark.slow
# Equal rows share their error.
@pytest.mark.filterwarnings("ignore:The score has a standard error")
def test_few_states_of_many_rows_are_told_apart():
    """Below 40 states nothing was fitted but one normal distribution, which scores -3.0.

    Cells have edges, which a mixture blurs: 0.1 nats for each column.
    """
    scores, optima = [], []
    for seed in range(2):
        X = three_states(1000, seed)
        states, counts = np.unique(X, axis=0, return_counts=True)
        density = IMMSEDensity(dequantize=True, **PLAIN).fit(X)
        scores.append(np.average(density.score_samples(states), weights=counts))
        optima.append(-entropy_of(np.unique(X[:, 0], return_counts=True)[1]))
    assert np.mean(optima) - 0.2 < np.mean(scores) < np.mean(optima) + 0.02


@pytest.mark.slow
# Equal rows share their error.
@pytest.mark.filterwarnings("ignore:The score has a standard error")
def test_trained_networks_come_near_the_entropy_of_few_states():
    X = three_states(1500)
    density = IMMSEDensity(dequantize=True, random_state=0).fit(X)
    assert density.n_iter_ > 0
    assert -1.0986 - 0.15 < density.score(X) < -1.0986 + 0.02


@pytest.mark.slow
def test_held_out_rows_of_fifty_states_score_near_their_entropy():
    """Rows held out were -8.1 where the optimum is -3.9: each state was a row in training."""
    scores = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        states = rng.permutation(144)[:50]
        drawn = states[rng.integers(0, 50, 2500)]
        X = np.column_stack([drawn // 12, drawn % 12]).astype(float)
        scores.append(IMMSEDensity(dequantize=True, **PLAIN).fit(X[:2000]).score(X[2000:]))
    assert -np.log(50) - 0.6 < np.mean(scores) < -np.log(50) + 0.05


@pytest.mark.slow
def test_counts_score_like_counts_with_noise_added_by_hand():
    """The mean over fits is not below that of rows with noise by more than twice its error."""
    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, fresh = (rng.poisson(0.5, (n, 1)).astype(float) for n in (800, 400))
        fresh = np.minimum(fresh, X.max())
        noisy, noisy_fresh = (rows + rng.uniform(-0.5, 0.5, rows.shape) for rows in (X, fresh))
        own = IMMSEDensity(dequantize=True, **PLAIN).fit(X).score(fresh)
        gains.append(own - IMMSEDensity(**PLAIN).fit(noisy).score(noisy_fresh))
    assert np.mean(gains) > -0.02 - 2 * np.std(gains, ddof=1) / 2


def make_dequantizer(X, **options):
    return Dequantizer.fit(X, None, shared=False, seed=0, **options)


def test_copies_have_noise_of_their_own_whatever_the_order():
    X = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    dequantizer = make_dequantizer(X)

    def copies(order):
        rows = WeightedRows(X[order], np.array([3.0, 1.0, 2.0])[order])
        return dequantizer.noisy_copies(rows, least=0, most=100, one=False).rows

    found = copies([0, 1, 2])
    assert len(np.unique(found.X, axis=0)) == 6
    np.testing.assert_array_equal(found.weight, np.ones(6))
    assert np.abs(found.X - np.rint(found.X)).max() < 0.5
    again = copies([2, 0, 1])
    np.testing.assert_array_equal(found.X, again.X)
    np.testing.assert_array_equal(found.source, again.source)


def test_copies_share_the_weight_of_their_row():
    X = np.arange(3.0)[:, None]
    rows = WeightedRows(X, np.array([2.5, 0.4, 1.0]))
    for least, most in [(0, 100), (20, 100), (0, 2)]:
        copies = make_dequantizer(X).noisy_copies(rows, least=least, most=most, one=False).rows
        total = np.bincount(np.rint(copies.X[:, 0]).astype(int), copies.weight)
        np.testing.assert_allclose(total, rows.weight, rtol=1e-12)
        assert least <= len(copies) <= max(least, most) * 2 + len(rows)


def test_noise_of_copies_is_uniform_and_independent_between_columns():
    X = np.array([[0.0, 0.0], [1.0, 1.0]])
    rows = WeightedRows(X, np.array([20_000.0, 20_000.0]))
    copies = make_dequantizer(X).noisy_copies(rows, least=0, most=10**6, one=False).rows
    noise = copies.X - np.rint(copies.X)
    error = 4 / np.sqrt(12 * len(noise))
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=error)
    np.testing.assert_allclose(noise.var(axis=0), 1 / 12, rtol=0.03)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 4 / np.sqrt(len(noise))


def test_copies_of_one_source_are_on_one_side_of_the_split():
    X = np.arange(60.0)[:, None]
    rows = WeightedRows(X, np.full(60, 3.0))
    for one, n_sources in ((True, 60), (False, 180)):
        copies = make_dequantizer(X).noisy_copies(rows, least=500, most=1000, one=one).rows
        assert len(np.unique(copies.source)) == n_sources
        train, valid = copies.split(0.25, 10_000, seed=1)
        assert len(train) + len(valid) == len(copies)
        assert not set(train.source) & set(valid.source)
        assert len(np.unique(valid.source)) == n_sources // 4


def test_copies_are_numbered_among_equal_rows():
    keys = np.array([5, 3, 5, 5, 3], dtype=np.uint64)
    np.testing.assert_array_equal(copy_numbers(keys), [0, 0, 1, 2, 1])


@pytest.mark.slow
def test_weights_are_repetition_and_a_common_factor_is_nothing():
    X = three_states(301)
    states, counts = np.unique(X, axis=0, return_counts=True)
    assert np.gcd.reduce(counts) == 1
    one = IMMSEDensity(dequantize=True, **PLAIN).fit(X[::-1])
    for weight in (counts, 0.37 * counts):
        other = IMMSEDensity(dequantize=True, **PLAIN).fit(states, sample_weight=weight)
        np.testing.assert_array_equal(other.score_samples(states), one.score_samples(states))


def test_weights_of_counts_give_their_probabilities():
    """Most rows were drawn once each, and P(0) was 2e-9."""
    values, weight = np.arange(4.0)[:, None], np.array([581.0, 331.0, 71.0, 17.0])
    density = IMMSEDensity(dequantize=True, **PLAIN | {"score_tol": 0.1})
    found = np.exp(density.fit(values, sample_weight=weight).score_samples(values))
    np.testing.assert_allclose(found[:2], weight[:2] / 1000, rtol=0.2)
    assert found.sum() < 1.05


def test_columns_without_a_lattice_beside_one():
    """A row of real numbers that comes again is one row, on one side of the split."""
    rng = np.random.default_rng(0)
    few = np.column_stack([rng.normal(size=35), rng.poisson(2.0, 35)])
    repeated = np.tile(few, (10, 1))
    density = IMMSEDensity(dequantize=[0.0, 1.0], **PLAIN).fit(repeated)
    assert density.marginals_ == "standard"  # nothing validates fewer than 40 rows
    assert set(density.expert_weights_) == {"gaussian"}


@pytest.mark.slow
def test_no_advice_to_dequantise_what_is():
    X = three_states(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IMMSEDensity(dequantize=True, **PLAIN).fit(X)
        IMMSEDensity(dequantize=True, **PLAIN).fit(np.column_stack([X, np.full(200, 5.0)]))
    rng = np.random.default_rng(0)
    tied = np.column_stack([X[:, 0], np.rint(rng.normal(size=200))])
    with pytest.warns(UserWarning, match=r"Column\(s\) 1 have many equal.*or set their steps"):
        IMMSEDensity(dequantize=[1.0, 0.0], **PLAIN).fit(tied)


def test_streams_give_equal_rows_different_noise():
    X = three_states(3000)
    density = IMMSEDensity(dequantize=True, **PLAIN)
    for part in np.split(X, 3):
        density.partial_fit(part)
    # A normal distribution of the noisy rows: the variance of a uniform one is in its covariance.
    spread = density.reference_.covariance.numpy() * np.outer(*2 * [density_scale(density)])
    np.testing.assert_allclose(spread, np.cov(X.T) + np.eye(2) / 12, atol=0.05)


def density_scale(density):
    return density._model.space.standardizer.scale


# Equal rows share their error.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The score has a standard error")
def test_ensembles_of_few_states():
    X = three_states(300)
    settings = PLAIN | {"score_tol": 0.1}
    members = [(name, IMMSEDensity(dequantize=True, **settings)) for name in ("one", "two")]
    ensemble = IMMSEEnsemble(members, random_state=0).fit(X)
    score = ensemble.score(X)
    assert -1.5 < score < -1.0
    assert ensemble.entropy_ == pytest.approx(-score, abs=0.15)


# -- tolerance ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_standard_errors_fall_with_the_tolerance():
    """Sixteen draws of noise in the cell were taken whatever the effort was.

    The scores with the default tolerance differ from those with a sixth of it by as much as their
    standard errors say, except for chance and the errors' own errors: with few draws and skewed
    log-densities a factor of two in the variance.
    """
    X = np.random.default_rng(0).poisson(3.0, (400, 2)).astype(float)
    density = IMMSEDensity(dequantize=True, **PLAIN).fit(X)
    asked = np.unique(X, axis=0)
    scores, errors = [], []
    for score_tol in (0.1, 0.05, 0.015):
        found = density.score_samples(asked, return_std=True, score_tol=score_tol)
        scores.append(found[0])
        errors.append(found[1])
    rms = [float(np.sqrt(np.mean(error**2))) for error in errors]
    assert rms[1] < 0.7 * rms[0]
    assert rms[2] < 0.3 * rms[0]
    share = np.mean((scores[0] - scores[2]) ** 2 / (errors[0] ** 2 + errors[2] ** 2))
    assert 0.4 < share < 2.0


# -- large integers ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("as_given", [np.asarray, np.ndarray.tolist, pd.DataFrame, pd.Series])
def test_integers_that_are_equal_as_floats_are_no_lattice(as_given):
    """All four values were one, of probability 1 each."""
    X = 2**60 + np.random.default_rng(0).integers(0, 4, size=(100, 2))
    X[:, 1] -= 2**60
    given = pd.DataFrame(X, dtype=object) if as_given is pd.Series else as_given(X)
    with pytest.raises(ValueError, match=r"Column\(s\) '?0'? hold different integers"):
        IMMSEDensity(dequantize=True, **PLAIN).fit(given)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "density",
    [
        IMMSEDensity(**PLAIN),
        IMMSEMixedDensity(ordinal_features=None, **PLAIN),
        IMMSEOutlierDetector(trim=0.0, contamination=0.1, random_state=0),
    ],
)
def test_integers_that_are_equal_as_floats_are_warned_of(density):
    X = 2**60 + np.random.default_rng(0).integers(0, 4, size=(30, 1))
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 hold different integers"):
        density.fit(X)


def test_noise_of_few_values_is_warned_of():
    """Floats near 2**60 are 256 apart: the noise of a cell would have but four values."""
    X = 1024 * np.random.default_rng(0).integers(0, 4, size=(200, 1))
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 have values so far from 0"):
        IMMSEDensity(dequantize=True, **PLAIN).fit(X + 2**60)
    X = 1024 * X  # a million are enough
    fits = [IMMSEDensity(dequantize=True, **PLAIN).fit(X + start) for start in (0, 2**60)]
    probabilities = [
        np.exp(fit.score_samples(np.unique(X)[:, None] + start)).sum()
        for fit, start in zip(fits, (0, 2**60), strict=True)
    ]
    assert probabilities[1] == pytest.approx(probabilities[0], abs=0.1)


# -- columns without variation -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constant", "step"), [(7.0, 0.25), (7.1, 7.1), (0.0, 0.25), (7.3125, 7.3125)]
)
def test_constants_have_the_step_of_the_others_or_their_own(constant, step):
    X = np.column_stack([0.25 * three_states(100), np.full(100, constant)])
    assert make_dequantizer(X).step[2] == pytest.approx(step)
    apart = X.copy()
    apart[:, 1] *= 2.0  # no common step: integers have 1
    expected = 1.0 if constant == round(constant) else constant
    assert make_dequantizer(apart).step[2] == pytest.approx(expected)


@pytest.mark.parametrize("dequantize", others_slow([True, 1.0]))
def test_constants_are_a_distribution_with_mass_for_other_values(dequantize, tmp_path):
    X = np.column_stack([three_states(400), np.full(400, 7.0)])
    density = IMMSEDensity(dequantize=dequantize, **PLAIN).fit(X)
    rows = np.repeat(X[:1], 401, axis=0)
    rows[:, 2] += np.arange(-200, 201)
    log_ratio = density.score_samples(rows) - density.score_samples(X[:1])
    share = np.exp(log_ratio) * 401 / 402
    assert share.sum() == pytest.approx(1.0, rel=1e-6)
    assert share[200] == 401 / 402
    density.save(tmp_path / "density.safetensors")
    loaded = load(tmp_path / "density.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(rows), density.score_samples(rows))


# Equal rows share their error.
@pytest.mark.filterwarnings("ignore:The score has a standard error")
def test_constants_of_given_steps_get_no_noise():
    X = np.column_stack([three_states(100), np.full(100, 7.0)])
    density = IMMSEDensity(dequantize=1.0, **PLAIN | {"score_tol": 0.05}).fit(X)
    without = IMMSEDensity(dequantize=1.0, **PLAIN | {"score_tol": 0.05}).fit(X[:, :2])
    expected = without.score(X[:, :2]) + np.log(101 / 102)
    assert density.score(X) == pytest.approx(expected, abs=0.2)
    assert (density.sample(5, random_state=0)[:, 2] == 7.0).all()
