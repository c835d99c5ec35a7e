"""The density of kernels: against the mixture that it is, brute force, and a known density."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone

import sk_itdiffusion
from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEMixedDensity, IMMSEOutlierDetector
from sk_itdiffusion._first._fit.grids import n_nodes_needed, with_more_nodes
from sk_itdiffusion._first._table.rows import WeightedRows, group_rows
from sk_itdiffusion._first.channel import add_noise, signal_scale
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    KernelDensityReference,
)
from sk_itdiffusion._first.references.families.kernel_density import (
    fit_kernel_density_by_validation,
)
from sk_itdiffusion._first.references.kernel_fit import fit_kernel_density

pytestmark = pytest.mark.usefixtures("brief_fits")

NOISE = 2e-3
N_ATOMS = 150
QUICK = {"max_epochs": 1, "steps_per_epoch": 5, "hidden_size": 16, "random_state": 0}
ONE = QUICK | {"n_networks": 1, "score_tol": 0.5}


def atoms():
    return np.random.default_rng(7).normal(size=(N_ATOMS, 2))


def recurring(n, seed):
    """Rows near one of 150 points; their density is known."""
    rng = np.random.default_rng(seed)
    return atoms()[rng.integers(N_ATOMS, size=n)] + NOISE * rng.normal(size=(n, 2))


def true_log_density(X):
    distance = ((X[:, None] - atoms()) ** 2).sum(axis=2)
    log_kernels = -0.5 * distance / NOISE**2 - np.log(2 * np.pi * NOISE**2 * N_ATOMS)
    return np.logaddexp.reduce(log_kernels, axis=1)


def normal(d):
    return GaussianMixtureReference([1.0], np.zeros((1, d)), np.eye(d)[None])


def make_density(d=3, n=40):
    """Return a density of kernels, and the same as a mixture of all its components."""
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(n, d)), rng.uniform(0.1, 1.0, size=n)
    root = rng.normal(size=(d, d))
    covariance = 0.02 * root @ root.T + 1e-3 * np.eye(d)
    means, covariances = rng.normal(size=(2, d)), np.stack([np.eye(d), 2.0 * np.eye(d)])
    background = GaussianMixtureReference([0.3, 0.7], means, covariances)
    density = KernelDensityReference(points, covariance, background, 0.2, weights)
    mixture = GaussianMixtureReference(
        np.append(0.8 * weights / weights.sum(), [0.06, 0.14]),
        np.vstack([points, means]),
        np.concatenate([np.broadcast_to(covariance, (n, d, d)), covariances]),
    )
    return density, mixture


@pytest.mark.parametrize("logsnr", [-8.0, -1.0, 2.0, 6.0, 18.0])
@pytest.mark.parametrize("d", [1, 3])
def test_denoiser_is_that_of_the_mixture(d, logsnr):
    density, mixture = make_density(d)
    z = torch.from_numpy(np.random.default_rng(1).normal(scale=2.0, size=(50, d)))
    z[0] = 1e4  # far from all
    level = torch.full((50,), logsnr, dtype=torch.float64)
    np.testing.assert_allclose(density(z, level), mixture(z, level), rtol=1e-8, atol=1e-10)


def test_distribution_is_that_of_the_mixture():
    density, mixture = make_density()
    X = np.random.default_rng(1).normal(scale=2.0, size=(50, 3))
    np.testing.assert_allclose(
        density.log_prob(torch.from_numpy(X)), mixture.log_prob(torch.from_numpy(X)), rtol=1e-12
    )
    center, scale = np.array([0.3, -2.0, 0.0]), np.array([4.0, 0.1, 1.0])
    moved = density.standardized(center, scale)
    got = moved.log_prob(torch.from_numpy((X - center) / scale)).numpy()
    expected = density.log_prob(torch.from_numpy(X)).numpy() + np.log(scale).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    least, greatest = density.variance_range()
    assert least == pytest.approx(mixture.variance_range()[0])
    assert greatest == pytest.approx(mixture.variance_range()[1])
    drawn = density.sample(50_000, np.random.RandomState(0))
    same = mixture.sample(50_000, np.random.RandomState(1))
    for column in range(3):
        assert stats.ks_2samp(drawn[:, column], same[:, column]).pvalue > 1e-3


@pytest.mark.parametrize("variance", [1e-6, 0.3])
def test_smoothed_density_is_that_of_the_smoothed_mixture(variance):
    density, mixture = make_density()
    X = torch.from_numpy(np.random.default_rng(1).normal(scale=2.0, size=(50, 3)))
    expected = mixture.component_log_prob(X, variance).logsumexp(1)
    np.testing.assert_allclose(density.log_prob(X, variance), expected, rtol=1e-12)


def test_log_density_far_away_is_the_backgrounds():
    density, _ = make_density()
    far = torch.full((1, 3), 1e6, dtype=torch.float64)
    expected = density.background.log_prob(far) + np.log(0.2)
    np.testing.assert_allclose(density.log_prob(far), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1.0, 0.0]}, "weights must be positive"),
        ({"covariance": np.eye(3)}, "covariance and background must have 2 features"),
        ({"background": normal(3)}, "covariance and background must have 2 features"),
        ({"background_weight": 1.0}, "background_weight must be above 0 and below 1"),
        ({"covariance": np.zeros((2, 2))}, "covariance must be positive definite"),
        ({"points": [[0.0, np.nan], [0.0, 0.0]]}, "points must be finite"),
    ],
)
def test_bad_parameters_are_refused(changes, message):
    good = {
        "points": np.zeros((2, 2)),
        "covariance": np.eye(2),
        "background": normal(2),
        "background_weight": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        KernelDensityReference(**good | changes)


def left_out_log_likelihood(X, weight, covariance, background, background_weight):
    """Mean log-density of rows, each without its own kernel, by brute force."""
    values = []
    for i, x in enumerate(X):
        others = np.delete(np.arange(len(X)), i)
        share = weight[others] / weight[others].sum()
        kernels = stats.multivariate_normal(np.zeros(X.shape[1]), covariance).pdf(X[others] - x)
        elsewhere = np.exp(background.log_prob(torch.from_numpy(x[None])).item())
        mixed = (1 - background_weight) * share @ kernels + background_weight * elsewhere
        values.append(np.log(mixed))
    return np.average(values, weights=weight)


def test_fit_is_an_optimum_of_the_left_out_likelihood(usual_fits):
    X, valid = recurring(400, 0), recurring(100, 1)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, size=400)
    plain = GaussianReference.fit(X)
    density = fit_kernel_density_by_validation(
        WeightedRows(X, weight), WeightedRows(valid, np.ones(100)), plain, 0.0
    )
    covariance, share = density.covariance.numpy(), float(density.background_weight)

    def likelihood(covariance, share):
        return left_out_log_likelihood(X, weight, covariance, density.background, share)

    best = likelihood(covariance, share)
    # Steps end where one brings less than 0.005 nats, which may leave as much again.
    assert best > likelihood(0.7 * covariance, share) + 0.01
    assert best > likelihood(1.4 * covariance, share) + 0.01
    assert best > likelihood(covariance, 0.5 * share) - 0.005
    assert best > likelihood(covariance, min(2 * share, 0.9)) - 0.005
    sheared = covariance @ np.array([[1.0, 0.8], [0.0, 1.0]])
    assert best > likelihood((sheared + sheared.T) / 2, share)
    # Between the noise, of many rows at each atom, and that of both rows of a pair.
    deviation = np.sqrt(np.diag(covariance))
    assert (deviation > NOISE).all()
    assert (deviation < 1.1 * np.sqrt(2) * NOISE).all()


def test_kernels_are_no_finer_than_the_lattice():
    X = np.round(recurring(400, 0), 1) + 1e-9 * np.random.default_rng(0).normal(size=(400, 2))
    rows = WeightedRows(X, np.ones(400))
    plain = GaussianReference.fit(X)
    for resolution, least in ((0.1, 0.1**2 / 12), (0.0, 1e-7)):
        density = fit_kernel_density_by_validation(rows, rows, plain, resolution)
        assert (density.variances >= 0.999 * least).all()
        assert (density.variances < 2 * least).all()


@pytest.mark.slow
def test_values_that_come_again_are_found():
    """Kernels bring the estimate close to the truth, from which all else is far.

    Over eight seeds the gap to the truth was 0.48 nats with a standard deviation of 0.08, and 4.2
    with 0.13 without kernels; the limits are the mean of two fits and four standard errors.
    """
    gaps, entropy_errors = [], []
    for seed in range(2):
        X, new = recurring(1200, 2 * seed), recurring(200, 2 * seed + 1)
        density = IMMSEDensity(**QUICK | {"random_state": seed}).fit(X)
        assert "kernel_density" in density.references_
        score, std = density.score_samples(new, return_std=True)
        gap = true_log_density(new) - score
        gaps.append(gap.mean())
        error = np.hypot(gap.std(), np.sqrt(np.mean(std**2))) / np.sqrt(len(new))
        assert gap.mean() > -3 * error
        of_entropy = gap.std() * np.hypot(1 / np.sqrt(len(new)), 1 / np.sqrt(120))  # 120 validate
        entropy_errors.append((density.entropy_ + score.mean()) / of_entropy)
    assert np.mean(gaps) < 0.48 + 4 * 0.08 / np.sqrt(2)
    assert abs(np.mean(entropy_errors)) < 4 / np.sqrt(2)
    others = ["network", "gaussian", "gaussian_mixture"]
    without = IMMSEDensity(**QUICK, experts=others).fit(recurring(1200, 0))
    assert np.mean(true_log_density(new) - without.score_samples(new)) > 4.2 - 4 * 0.13


def test_nodes_reach_where_the_kernels_are():
    nodes = np.linspace(-4.0, 10.0, 41)
    kernels = KernelDensityReference(atoms(), 1e-6 * np.eye(2), normal(2), 0.5)
    more = with_more_nodes(nodes, [kernels], 0.0)
    np.testing.assert_array_equal(more[:41], nodes)
    assert more[-1] == 18.0
    assert np.diff(more).max() <= np.diff(nodes).max() * (1 + 1e-9)
    np.testing.assert_array_equal(with_more_nodes(nodes, [normal(2)], 0.0), nodes)
    np.testing.assert_array_equal(with_more_nodes(nodes, [], 0.0), nodes)
    assert n_nodes_needed(more, nodes, [kernels], 0.0) == len(more)
    assert n_nodes_needed(more, nodes, [], 0.0) == len(nodes)


def test_kernels_that_bring_nothing_are_dropped():
    X = np.random.default_rng(0).normal(size=(600, 2))
    density = IMMSEDensity(**ONE).fit(X)
    others = IMMSEDensity(**ONE, experts=["network", "gaussian"], reference="gaussian").fit(X)
    assert list(density.references_) == ["gaussian"]
    np.testing.assert_array_equal(density.score_samples(X[:20]), others.score_samples(X[:20]))


def test_kernels_alone_are_a_kernel_density():
    X, new = recurring(500, 0), recurring(50, 1)
    density = IMMSEDensity(
        reference="kernel_density",
        experts=["kernel_density"],
        marginals="standard",
        max_epochs=0,
        random_state=0,
    ).fit(X)
    standardizer = density._model.space.standardizer
    rows = torch.from_numpy(standardizer.transform(new))
    known = density.references_["kernel_density"].log_prob(rows)
    expected = known.numpy() - np.log(standardizer.scale).sum()
    got, std = density.score_samples(new, return_std=True)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert not std.any()


def test_without_networks_kernels_are_fitted_only_if_asked_for():
    X = recurring(300, 0)
    density = IMMSEDensity(max_epochs=0, random_state=0).fit(X)
    assert "kernel_density" not in density.references_
    density.set_params(experts=["gaussian", "kernel_density"]).fit(X)
    assert "kernel_density" in density.references_


def test_kernels_asked_for_in_vain_are_warned_about():
    X = np.random.default_rng(0).normal(size=(60, 51))
    density = IMMSEDensity(max_epochs=0, experts=["gaussian", "kernel_density"], random_state=0)
    with pytest.warns(UserWarning, match=r"names \['kernel_density'\], which are not possible"):
        density.fit(X)
    with pytest.warns(UserWarning, match="reference='kernel_density' is not better"):
        IMMSEDensity(**ONE, reference="kernel_density").fit(X)


@pytest.mark.slow
def test_warm_starts_put_no_kernels_on_rows_that_validate():
    density = IMMSEDensity(**ONE, marginals="standard", warm_start=True).fit(recurring(600, 0))
    more = np.vstack([recurring(600, 0), recurring(600, 2)])
    model = density.fit(more)._model
    grouped = group_rows(more, np.ones(len(more)))
    rows = WeightedRows(model.space.standardized(grouped.X), grouped.weight)
    train, _ = rows.split(0.1, 10_000, model.seeds.split)
    np.testing.assert_array_equal(model.references["kernel_density"].points, train.X)


@pytest.mark.slow
def test_warm_starts_measure_the_lattice_in_the_units_of_the_first_fit():
    """A step of three of its standard deviations is the coarsest that is known: 0.01 at least."""
    rng = np.random.default_rng(0)
    experts = ["gaussian", "kernel_density"]
    density = IMMSEDensity(
        max_epochs=0, marginals="standard", experts=experts, warm_start=True, random_state=0
    )
    with pytest.warns(UserWarning, match="kernel_density"):  # normal rows need none
        density.fit(rng.normal(size=(500, 2)))
    places = rng.choice(np.arange(-60.0, 60.0, 3.0), size=2000)
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 have many equal"):
        density.fit(np.column_stack([places, rng.normal(size=2000)]))
    kernels = density.references_["kernel_density"]
    np.testing.assert_allclose(kernels.covariance[0, 0], 0.01, rtol=0.05)


def test_rows_are_scored_alike_beside_others_and_after_loading(tmp_path):
    X = recurring(400, 0)
    density = IMMSEDensity(**ONE).fit(X)
    assert "kernel_density" in density.references_
    together = density.score_samples(X[:10])
    alone = [density.score_samples(row[None])[0] for row in X[:3]]
    np.testing.assert_array_equal(together[:3], alone)
    density.save(tmp_path / "model.safetensors")
    loaded = sk_itdiffusion.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(X[:10]), together[:10])
    again = IMMSEDensity(**ONE).fit(X[::-1])
    np.testing.assert_array_equal(again.score_samples(X[:10]), together[:10])
    drawn = density.sample(100, random_state=0)
    nearest = np.sqrt(((drawn[:, None] - atoms()) ** 2).sum(axis=2)).min(axis=1)
    assert np.median(nearest) < 5 * NOISE


def test_dependent_columns_in_any_units():
    """Rounding leaves a covariance with less than nothing along a direction without variance."""
    X = recurring(300, 0)
    X = np.column_stack([X, X[:, 0] - X[:, 1]])
    share = np.full(300, 1.0 / 300)

    def log_density(exponent, floor):
        rows = np.ldexp(X, exponent)
        square = np.ldexp(np.eye(3), 2 * exponent)
        background = GaussianMixtureReference([1.0], np.zeros((1, 3)), square[None])
        fitted = fit_kernel_density(rows, share, background, floor)
        found = fitted.log_prob(torch.from_numpy(np.ldexp(X[:40] + 0.01, exponent))).numpy()
        return found + 3 * exponent * np.log(2.0)

    # The floor is what double precision resolves of the largest square where that is more.
    resolved = 1e-13 * np.square(X).max()
    expected = log_density(0, resolved)
    for exponent in (20, 27, 100):
        np.testing.assert_allclose(log_density(exponent, 1e-7), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [1e12, 1e18, 1e99])
def test_weights_of_any_ratio(largest):
    X = recurring(300, 0)
    X = np.column_stack([X, X[:, 0] - X[:, 1]])  # a dependent column
    weight = np.ones(300)
    weight[7] = largest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns seem constant except for one row
        density = IMMSEDensity(**QUICK).fit(X, sample_weight=weight)
    assert np.isfinite(density.score_samples(X)).all()


@pytest.mark.filterwarnings("ignore:Some rows are closer to each other")
@pytest.mark.slow
@pytest.mark.parametrize(
    "X",
    [
        recurring(45, 0),
        recurring(500, 0)[:, :1],
        np.vstack([recurring(300, 0), recurring(300, 0) * (1 + 1e-12)]),
    ],
    ids=["few rows", "one column", "nearly equal rows"],
)
def test_awkward_tables(X):
    density = IMMSEDensity(**QUICK).fit(X)
    log_density, std = density.score_samples(X, return_std=True)
    assert np.isfinite(log_density).all()
    assert np.isfinite(std).all()


@pytest.mark.slow
def test_dequantised_rows_have_probabilities():
    """40 of 1000 values have all the probability; the estimate is a bound on it from below."""
    rng = np.random.default_rng(0)
    values = rng.choice(1000, size=40, replace=False)
    X, new = (np.column_stack([rng.choice(values, n), rng.normal(size=n)]) for n in (2000, 300))
    density = IMMSEDensity(**QUICK, dequantize=[1.0, 0.0]).fit(X)
    assert "kernel_density" in density.references_
    log_density, std = density.score_samples(new, return_std=True)
    gap = stats.norm.logpdf(new[:, 1]) - np.log(40) - log_density
    error = 3 * (std.mean() + gap.std()) / np.sqrt(len(new))
    assert -error < gap.mean() < 0.8
    # Without kernels the values are one smooth distribution of a thousand.
    without = clone(density).set_params(experts=["network", "gaussian"]).fit(X)
    assert without.score(new) < log_density.mean() - 1.0


def test_columns_of_the_mixed_density_get_no_kernels():
    density = IMMSEMixedDensity(**QUICK, categorical_features=[]).fit(recurring(500, 0))
    assert "kernel_density" not in density.references_


@pytest.mark.slow
def test_outlier_detector_has_kernels_only_if_asked():
    X = recurring(400, 0)
    estimator = IMMSEDensity(**ONE, marginals="standard")
    detector = IMMSEOutlierDetector(estimator, contamination=0.1, trim=0.0, random_state=0).fit(X)
    assert "kernel_density" not in detector.estimator_.references_
    assert "kernel_density" in clone(estimator).fit(X).references_  # the detector's alone


@pytest.mark.parametrize(
    "experts",
    [
        ["kernel_density"],
        pytest.param(["network", "gaussian", "kernel_density"], marks=pytest.mark.slow),
    ],
)
def test_detector_with_kernels_scores_by_the_smoothed_density(experts):
    """Below the floor, where the kernels have all the weight, nothing is left out."""
    X = recurring(400, 0)
    estimator = IMMSEDensity(
        **QUICK, marginals="standard", reference="kernel_density", experts=experts
    )
    options = {"contamination": 0.1, "trim": 0.0, "average": False, "noise_floor": 8.0}
    detector = IMMSEOutlierDetector(estimator, **options, random_state=0).fit(X)
    reference = detector.estimator_.references_["kernel_density"]
    points = torch.from_numpy((X[:60] - X.mean(axis=0)) / X.std(axis=0))
    noise = np.exp(-4.0) * np.random.default_rng(3).normal(size=(400, 60, 2))
    smoothed = torch.stack(
        [reference.log_prob(points + eps, np.exp(-8.0)) for eps in torch.from_numpy(noise)]
    )
    gap = detector.score_samples(X[:60]) - smoothed.mean(0).numpy()
    # Another scale of the scores is a constant; the stack is the kernels except for a little.
    error = 4 * smoothed.std(0).numpy().max() / np.sqrt(len(noise))
    np.testing.assert_allclose(gap, np.median(gap), atol=error + 0.3)


@pytest.mark.slow
def test_ensemble_has_the_kernels_of_its_members_once():
    X, new = recurring(800, 0), recurring(200, 1)
    members = [("a", IMMSEDensity(**QUICK)), ("b", IMMSEDensity(**QUICK | {"hidden_size": 8}))]
    ensemble = IMMSEEnsemble(members, random_state=0).fit(X)
    alone = ensemble.estimators_[0]
    assert "kernel_density" in alone.references_
    assert [n for n in ensemble.member_weights_ if "kernel" in n] == ["kernel_density"]
    assert np.diff(ensemble.logsnr_).max() <= np.diff(alone.logsnr_).max() * (1 + 1e-9)
    gain = ensemble.score_samples(new) - alone.score_samples(new)
    assert gain.mean() > -0.2 - 3 * gain.std() / np.sqrt(len(new))


def noisy_tiles(density, logsnr, n_rows=6, seed=3):
    """Return noisy points of rows, a tile of each, and their log-SNRs, which differ a little."""
    rng = np.random.default_rng(seed)
    rows = density.sample(n_rows, np.random.RandomState(seed))
    x = torch.from_numpy(np.repeat(rows, 32, axis=0))
    level = torch.from_numpy(logsnr + np.sort(rng.uniform(size=32 * n_rows)))
    return add_noise(x, torch.from_numpy(rng.normal(size=x.shape)), level), level


@pytest.mark.parametrize("d", [1, 3, 8])
@pytest.mark.parametrize("logsnr", [-9.0, -1.0, 2.0, 6.0, 12.0])
@pytest.mark.parametrize("n", [100, 2000])
def test_neighbours_denoise_like_all_kernels(d, logsnr, n):
    """Up to the bound on what is left out, and single precision where neighbours are many.

    What is left out has a posterior of 1e-6 at most, and is less than 30 standard deviations away;
    logarithms of weights are less than 1000 in single precision, of which it keeps 1e-7.
    """
    density, mixture = make_density(d, n)
    z, level = noisy_tiles(density, logsnr)
    near = density.denoise(z, level)
    all_kernels = density.denoise(z.clone().requires_grad_(True), level).detach()
    assert (near - all_kernels).abs().max() < 30 * 1e-6 + 1000 * 1e-7
    assert (near - mixture.denoise(z, level)).abs().max() < 30 * 1e-6 + 1000 * 1e-7
    # Such cases are rare: most kernels that are left out are much farther away.
    assert (near - all_kernels).abs().mean() < 1e-6


def neighbours_of(density, z, level):
    """Return which kernels each tile is denoised with."""
    asked = []
    plain = density._neighbours

    def recorded(*args):
        asked.append(plain(*args))
        return asked[-1]

    density._neighbours = recorded
    density.denoise(z, level)
    del density._neighbours
    return torch.cat([is_near for is_near, _ in asked])


@pytest.mark.parametrize("weight", [1e-9, 0.2])
@pytest.mark.parametrize("logsnr", [-9.0, -1.0, 2.0, 6.0, 12.0])
def test_what_is_left_out_has_next_to_no_posterior(logsnr, weight):
    density, _ = make_density(4, 1000)
    density.background_weight.fill_(weight)
    z, level = noisy_tiles(density, logsnr)
    is_near = neighbours_of(density, z, level).repeat_interleave(32, 0)
    for one, at, near in zip(z[::7], level[::7], is_near[::7], strict=True):
        scaled, variance = one[None] / signal_scale(at), float((-at).exp())
        kernels = density.kernel_log_prob(scaled, variance)[0] + np.log1p(-weight)
        total = density.log_prob(scaled, variance)
        assert float((kernels[~near] - total).exp().sum()) < 1e-6
    if logsnr >= 6.0:
        assert is_near.double().mean() < 0.2


def test_kernels_denoise_batches_of_any_size():
    density, mixture = make_density(3, 300)
    z, level = noisy_tiles(density, 4.0)
    for size in (0, 1, 31, 33):
        expected = mixture.denoise(z[:size], level[:size])
        np.testing.assert_allclose(density.denoise(z[:size], level[:size]), expected, atol=1e-4)


def test_kernels_denoise_where_there_is_next_to_no_signal():
    density, _ = make_density(3, 300)
    z, level = noisy_tiles(density, 4.0)
    for at in (-600.0, 600.0):
        found = density.denoise(z, torch.full_like(level, at))
        assert bool(torch.isfinite(found).all())
