"""Numbers at the ends of what there is: units, ties, tails, shapes, log-SNRs."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion._first._table.marginals import Standardizer
from sk_itdiffusion._first._table.rows import group_rows, in_units_of_the_least, lattice_step
from sk_itdiffusion._first.channel import add_noise, data_from_noise, noise_from_data
from sk_itdiffusion._first.layout import Layout, Variable
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    LatentClassReference,
    LowRankGaussianReference,
)
from sk_itdiffusion._first.references.mixture import as_mixture

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {"max_epochs": 0, "score_tol": 0.5, "random_state": 0}
TRAINED = {"max_epochs": 1, "steps_per_epoch": 5, "hidden_size": 16, "score_tol": 0.5}
LEAST = 5e-324  # the least positive number


@pytest.fixture(scope="module", name="X")
def rows():
    rng = np.random.default_rng(0)
    first = rng.normal(size=300)
    return np.column_stack([first, first**2 + rng.normal(size=300)])


# -- units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", others_slow([1e-300, 1e300, 1e-40, 1e40], 2))
@pytest.mark.parametrize("max_epochs", others_slow([0, 1]))
def test_units_enter_by_their_jacobian(X, unit, max_epochs):
    """Other units than powers of two are split otherwise, so up to the spread of splits."""
    settings = QUICK | TRAINED | {"max_epochs": max_epochs}
    plain = IMMSEDensity(**settings).fit(X)
    moved = IMMSEDensity(**settings).fit(X * unit)
    expected = plain.score_samples(X) - 2 * np.log(unit)
    found, std = moved.score_samples(X * unit, return_std=True)
    assert np.isfinite(found).all()
    assert np.isfinite(std).all()
    assert np.abs(np.mean(found - expected)) < 0.3
    assert np.isfinite(moved.sample(5, random_state=0)).all()


@pytest.mark.slow
def test_columns_of_all_units_together(X):
    units = np.array([1e-300, 1e300])
    density = IMMSEDensity(**QUICK).fit(X * units)
    plain = IMMSEDensity(**QUICK).fit(X)
    difference = density.score_samples(X * units) - plain.score_samples(X)
    # The units' logarithms cancel.
    assert np.abs(difference.mean()) < 0.3
    detector = IMMSEOutlierDetector(contamination=0.1, random_state=0).fit(X * units)
    assert (detector.predict(X * units) == -1).sum() == 30
    assert np.isfinite(detector.explain(X[:3] * units).to_numpy()).all()


def test_the_least_numbers_are_told_apart():
    """A column of a few multiples of the least number: more frequent values are likelier."""
    counts = np.repeat([0, 1, 2, 7], [10, 40, 11, 1])
    column = (counts * LEAST)[:, None]
    with pytest.warns(UserWarning, match="many equal"):
        density = IMMSEDensity(**QUICK).fit(column)
    scores = density.score_samples(np.array([[0.0], [1.0], [2.0], [7.0], [40.0]]) * LEAST)
    assert np.isfinite(scores).all()
    assert scores[1] > max(scores[0], scores[2]) > scores[4]
    assert density.score_samples([[1.0]])[0] < scores.min()


# scikit-learn looks for infinities in the sum of all numbers.
@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning")
def test_the_largest_numbers_are_told_apart():
    most = np.finfo(float).max
    column = np.random.default_rng(0).uniform(-1.0, 1.0, size=(200, 1)) * most
    density = IMMSEDensity(**QUICK).fit(column)
    scores = density.score_samples(column)
    assert np.isfinite(scores).all()
    uniform = -math.log(2.0) - math.log(most)
    assert np.abs(np.mean(scores) - uniform) < 0.5


def test_standardising_is_exact_under_powers_of_two_at_both_ends():
    column = np.random.default_rng(0).normal(size=(50, 1))
    plain = Standardizer.fit(column, np.ones(50)).transform(column)
    for exponent in (-1000, 1020):
        scaled = np.ldexp(column, exponent)
        found = Standardizer.fit(scaled, np.ones(50)).transform(scaled)
        np.testing.assert_array_equal(found, plain)


def test_columns_that_are_constant_at_any_size_have_a_density():
    for value in (LEAST, 1e-305, -1e-300, 0.0, 1e300):
        with pytest.warns(UserWarning, match="constant"):
            density = IMMSEDensity(**QUICK).fit(np.full((30, 1), value))
        near, far, farthest = density.score_samples([[value], [1.0 - value], [-1.7e308]])
        assert np.isfinite(near)
        assert near >= far
        assert near > farthest


def test_steps_of_lattices_at_both_ends():
    for values in ([0.0, LEAST, 1e300], [-1.7e308, 0.0, 1.7e308], [0.0, LEAST, 4 * LEAST]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step = lattice_step(np.array(values))
        assert step >= 0.0
    assert lattice_step(np.array([0.0, 1e-300, 4e-300])) == 1e-300


# -- weights and copies ----------------------------------------------------------------------


def test_repetition_is_a_weight_to_the_last_bit():
    """Sums of weights are sums of integers, so that not even their rounding differs."""
    X = np.array([[0.0], [0.0], [1.0], [1.0]])
    weighted = group_rows(X, np.array([3.0, 2.0, 2.0, 1.0]))
    repeated = group_rows(np.repeat(X, [3, 2, 2, 1], axis=0), np.ones(8))
    np.testing.assert_array_equal(weighted.weight, repeated.weight)
    np.testing.assert_array_equal(in_units_of_the_least(np.array([0.3, 0.1])), [3.0, 1.0])


@pytest.mark.filterwarnings("ignore:Column")
def test_weights_of_all_sizes_are_used_or_refused(X):
    weight = np.ones(len(X))
    weight[0] = 1e99
    assert np.isfinite(IMMSEDensity(**QUICK).fit(X, sample_weight=weight).score_samples(X)).all()
    weight[0] = 1e150
    for estimator in (IMMSEDensity(**QUICK), IMMSEMixedDensity(**QUICK)):
        with pytest.raises(ValueError, match="sample_weight must not"):
            estimator.fit(X, sample_weight=weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Column")
def test_a_million_copies_of_few_rows(X):
    """They are the few rows with weights."""
    copies = np.tile(X[:100], (10_000, 1))
    density = IMMSEDensity(**QUICK).fit(copies)
    few = IMMSEDensity(**QUICK).fit(X[:100], sample_weight=np.full(100, 10_000.0))
    scores = density.score_samples(copies)
    np.testing.assert_array_equal(scores[:100], few.score_samples(X[:100]))
    np.testing.assert_array_equal(scores, np.tile(scores[:100], 10_000))


@pytest.mark.slow
def test_a_million_copies_of_few_levels():
    levels = np.tile([[0, 0], [0, 1], [1, 1], [0, 0]], (250_000, 1))
    density = IMMSEDiscreteDensity(**QUICK).fit(levels)
    log_p = density.score_samples([[0, 0], [0, 1], [1, 1], [1, 0]])
    np.testing.assert_allclose(np.exp(log_p[:3]), [0.5, 0.25, 0.25], atol=0.02)
    assert log_p[3] < -4.0


# -- distributions ---------------------------------------------------------------------------


@pytest.mark.parametrize("marginals", others_slow(["auto", "standard", "quantile"]))
def test_heavy_tails_respect_the_bound(marginals, usual_fits):
    """Columns without a mean, let alone a variance."""
    rng = np.random.default_rng(0)
    X, new = rng.standard_cauchy((2, 2000, 2))
    density = IMMSEDensity(marginals=marginals, **QUICK).fit(X)
    truth = stats.cauchy.logpdf(new).sum(axis=1)
    found, std = density.score_samples(new, return_std=True)
    assert np.isfinite(found).all()
    difference = found - truth
    error = np.hypot(difference.std(), np.sqrt(np.mean(std**2))) / math.sqrt(len(new))
    assert difference.mean() < 4.0 * error
    if marginals == "auto":  # the map is chosen that suits the tails
        assert difference.mean() > -0.5


def excess_of_cauchy(n, seeds):
    """Return the Kullback-Leibler divergences of fits to columns of n rows, on fresh rows."""
    found = []
    for seed in seeds:
        X, new = (stats.cauchy.rvs(size=(k, 1), random_state=seed + k) for k in (n, 4001))
        density = IMMSEDensity(**QUICK | {"random_state": seed}).fit(X)
        found.append(np.mean(stats.cauchy.logpdf(new[:, 0]) - density.score_samples(new)))
    return np.array(found)


def test_cauchy_columns_are_learned(usual_fits):
    """Of 40 fits to 1000 rows the largest divergence was 0.05, and 0.1 was exceeded by 26 before.

    Their mean is 0.022; the fresh rows have an error of about 0.01.
    """
    assert (excess_of_cauchy(1000, range(3)) < 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "limit"), [(1000, 0.1), (200, 0.5)])
def test_cauchy_columns_are_learned_in_19_of_20_fits(n, limit):
    assert (excess_of_cauchy(n, range(100, 120)) < limit).sum() >= 19


def masses_beyond(far, model):
    """Return the probabilities that references give to each column's values beyond two ends."""
    n_columns = len(model.space.marginal_map.columns)
    ends = model.space.standardized(np.repeat([[-far], [far]], n_columns, axis=1))
    mapped = model.space.marginal_map.transform(ends)[0]
    found = []
    for reference in model.references.values():
        mixture = as_mixture(reference)
        share = mixture.log_weights.exp().numpy()
        for j in range(n_columns):
            variances = (mixture.basis[:, j].square() * mixture.variances).sum(1).numpy()
            scaled = (mapped[:, [j]] - mixture.means[:, j].numpy()) / np.sqrt(variances)
            found.append(share @ (stats.norm.cdf(scaled[0]) + stats.norm.sf(scaled[1])))
    return found


def test_mixtures_behind_pareto_tails_keep_their_index(usual_fits):
    """Beyond 1e6 are 1e-18 of the law; of 24 fits the most had 1e-8, and 18 had 1e-4 before.

    A shape that is 1/2 too large, as a hundred rows may suggest, makes that 1e-8.
    """
    for seed in range(6):
        X = np.random.default_rng(seed).standard_t(3, size=(300, 2))
        model = IMMSEDensity(marginals="quantile", **QUICK).fit(X)._model
        assert max(masses_beyond(1e6, model)) < 1e-6


def test_mixtures_behind_logarithms_are_not_exponentially_wide(usual_fits):
    """Beyond 1e6 are 1e-43 of the law, two lognormal columns; wide components had 7e-6 there."""
    rng = np.random.default_rng(0)
    first, noise = rng.normal(size=(2, 1000))
    second = 0.9 * first * rng.choice([-1.0, 1.0], 1000) + math.sqrt(0.19) * noise
    X = np.exp(np.column_stack([first, second]))
    density = IMMSEDensity(marginals="standard", bounds=[(0, None)] * 2, **QUICK).fit(X)
    assert "gaussian_mixture" in density.expert_weights_
    assert max(masses_beyond(1e6, density._model)) < 1e-12


def test_a_point_mass_beside_a_density_is_named_and_scored():
    rng = np.random.default_rng(0)
    column = np.where(rng.random(500) < 0.4, 0.0, rng.normal(3.0, 1.0, 500))
    X = np.column_stack([column, rng.normal(size=500)])
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 have many equal"):
        density = IMMSEDensity(**QUICK).fit(X)
    scores = density.score_samples(X)
    assert np.isfinite(scores).all()
    assert scores[column == 0.0].mean() > scores[column != 0.0].mean() + 1.0
    assert density.score_samples([[1e3, 0.0]])[0] < scores.min()


@pytest.mark.slow
def test_more_columns_than_rows():
    """2000 independent normal columns and 500 rows; the truth is not beaten on new rows."""
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(2, 500, 2000))
    density = IMMSEDensity(**QUICK | TRAINED).fit(X)
    scores, std = density.score_samples(new[:50], return_std=True)
    truth = stats.norm.logpdf(new[:50]).sum(axis=1)
    assert np.isfinite(scores).all()
    difference = scores - truth
    error = np.hypot(difference.std(), np.sqrt(np.mean(std**2))) / math.sqrt(50)
    assert difference.mean() < 4.0 * error
    # Of about 2838 nats of entropy; a sample covariance without shrinkage is of no use here.
    assert difference.mean() > -200.0
    assert density.score_samples(new[:3] + 10.0).max() < scores.min()


@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate")
@pytest.mark.parametrize(
    "estimator",
    [
        IMMSEDensity(**QUICK),
        IMMSEMixedDensity(**QUICK),
        IMMSEEnsemble([("one", IMMSEDensity(**QUICK))], random_state=0),
        IMMSEOutlierDetector(random_state=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_equal_rows_are_likelier_than_any_other(estimator):
    X = np.full((50, 2), 3.5)
    estimator.fit(X)
    equal, near, far, farthest = estimator.score_samples(
        [[3.5, 3.5], [3.5, 3.501], [3.5, 4.0], [1e300, -1e300]]
    )
    assert np.isfinite([equal, near, far]).all()
    assert equal > near > far > farthest
    assert not np.isnan(farthest)


def test_equal_rows_of_levels_are_certain_but_for_values_that_were_not_seen():
    density = IMMSEDiscreteDensity(**QUICK).fit(np.full((50, 2), 7))
    assert density.score_samples([[7, 7]])[0] == pytest.approx(2.0 * np.log1p(-1 / 52))
    closed = IMMSEDiscreteDensity(categories=[[7], [7]], **QUICK).fit(np.full((50, 2), 7))
    assert closed.score_samples([[7, 7]])[0] == 0.0


# -- log-SNRs --------------------------------------------------------------------------------


def references():
    """Return references of 3 coordinates by name."""
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=3), rng.normal(size=(3, 3))
    covariance = root @ root.T + np.eye(3)
    means, covariances = rng.normal(size=(4, 3)), np.stack([covariance] * 4)
    layout = Layout(0, [Variable(3, None)])
    return {
        "gaussian": GaussianReference(mean, covariance),
        "low rank": LowRankGaussianReference(
            mean, np.linalg.qr(root)[0][:, :1], np.array([2.0]), 0.5
        ),
        "mixture": GaussianMixtureReference(np.full(4, 0.25), means, covariances),
        "independent": IndependentReference(layout, [np.array([0.2, 0.3, 0.5])], None),
        "classes": LatentClassReference(
            layout, np.array([0.5, 0.5]), [np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])], None
        ),
    }


@pytest.mark.parametrize("name", list(references()))
@pytest.mark.parametrize("logsnr", [-700.0, -80.0, -30.0, 30.0, 80.0, 700.0])
def test_references_denoise_at_both_ends(name, logsnr):
    """All noise is returned as it came where there is nothing else, and none where it is none."""
    reference = references()[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(5, 3, dtype=torch.float64)
    x[:, 0] = 1.0
    eps = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    level = torch.full((5,), logsnr, dtype=torch.float64)
    z = add_noise(x, eps, level)
    found = reference.denoise(z, level)
    assert torch.isfinite(found).all()
    if logsnr <= -30.0:
        torch.testing.assert_close(found, eps, rtol=0.0, atol=1e-5)
    elif name in ("gaussian", "low rank", "mixture"):
        assert found.abs().max() < 1e-4


def test_channel_goes_there_and_back_as_far_as_its_scales_are_numbers():
    eps, x = torch.full((1, 1), 0.5, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for logsnr in (-700.0, 0.0, 700.0):
        level = torch.full((1,), logsnr, dtype=torch.float64)
        z = add_noise(x, eps, level)
        assert torch.isfinite(z).all()
        if logsnr >= 0.0:
            torch.testing.assert_close(data_from_noise(z, eps, level), x)
        if logsnr <= 0.0:
            torch.testing.assert_close(noise_from_data(z, x, level), eps)


@pytest.mark.parametrize("noise_floor", others_slow([[-100.0, 0.0, 100.0], -100.0, 100.0]))
def test_floors_at_both_ends(X, noise_floor):
    """At the lower end all rows are noise and score alike, at the upper one as without noise."""
    detector = IMMSEOutlierDetector(
        IMMSEDensity(**QUICK, marginals="standard"),
        noise_floor=noise_floor,
        contamination=0.1,
        random_state=0,
    ).fit(X)
    scores = detector.score_samples(X)
    assert np.isfinite(scores).all()
    if noise_floor == -100.0:
        assert np.ptp(scores) < 1e-6
    else:
        assert detector.score_samples([[50.0, -50.0]])[0] < scores.min()


def test_standard_errors_hold_far_beyond_narrow_clusters(usual_fits):
    """What tells of a row far out happens at other log-SNRs than what tells of the others."""
    rng = np.random.default_rng(0)
    clusters = (rng.poisson(4, 1500) + 0.03 * rng.normal(size=1500))[:, None]
    density = IMMSEDensity(max_epochs=0, random_state=0).fit(clusters)
    for x in (24.0, 44.0):
        # One row with independent noise.
        rows = x + 1e-7 * np.arange(64)[:, None]
        found, std = density.score_samples(rows, return_std=True)
        exact = density.score_samples(rows[:4], score_tol=0.02).mean()
        z = (found - exact) / std
        # The median over rows is unbiased, and spreads are as large as claimed; before, 7 and 5.
        assert abs(np.median(z)) < 0.6
        assert np.sqrt(np.mean(z**2)) < 3.0
