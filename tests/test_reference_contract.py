"""The contract of all references, each against sums over a grid of rows.

A reference is summed over all states of its discrete columns and a fine grid of its continuous
ones.  On the grid the log-density, the denoiser, the smoothed density and the samples have an
oracle that knows nothing of the reference but its log-density.
"""

import collections
import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from sk_itdiffusion.channel import add_noise, noise_from_data
from sk_itdiffusion.layout import Layout, Variable, lattice_values
from sk_itdiffusion.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LatentClassReference,
    LowRankGaussianReference,
    Reference,
)

MIXTURE = ([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0], [0, 1.0]]])
VARIABLES = [Variable(2, lattice_values(2, 0.5, 0.5)), Variable(3), Variable(4, np.arange(4) - 1.0)]
PROBABILITIES = [[0.4, 0.6], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]]


def mixture(d):
    """Return a mixture of one or two columns."""
    weights, means, covariances = (np.array(part) for part in MIXTURE)
    return GaussianMixtureReference(weights, means[:, :d], covariances[:, :d, :d])


def kernels(d):
    points = np.random.default_rng(0).normal(size=(12, d))
    weights = np.arange(1.0, 13.0)
    return KernelDensityReference(points, 0.1 * np.eye(d) + 0.02, mixture(d), 0.3, weights)


def classes(n_continuous):
    rng = np.random.default_rng(1)
    tables = [rng.dirichlet(np.ones(len(p)), size=2) for p in PROBABILITIES]
    continuous = mixture(n_continuous) if n_continuous else None
    return LatentClassReference(Layout(n_continuous, VARIABLES), [0.3, 0.7], tables, continuous)


def independent(continuous):
    n_continuous = 0 if continuous is None else continuous.n_features
    return IndependentReference(Layout(n_continuous, VARIABLES), PROBABILITIES, continuous)


REFERENCES = {
    "normal": lambda: GaussianReference([0.5, -0.5], [[1.0, 0.6], [0.6, 0.8]]),
    "normal, one column": lambda: GaussianReference([0.5], [[0.7]]),
    "mixture": lambda: mixture(2),
    "kernels": lambda: kernels(2),
    "kernels, one column": lambda: kernels(1),
    "low rank": lambda: LowRankGaussianReference([0.2, 0.0], [[0.6], [0.8]], [1.5], 0.4),
    "independent": lambda: independent(None),
    "independent beside a normal column": lambda: independent(GaussianReference([0.5], [[0.7]])),
    "independent beside a mixture": lambda: independent(mixture(1)),
    "classes": lambda: classes(0),
    "classes with a continuous column": lambda: classes(1),
}


@dataclass(frozen=True)
class Grid:
    """All rows of a grid, their points, and the probability of each under a reference."""

    reference: Reference
    rows: torch.Tensor
    points: torch.Tensor
    probability: torch.Tensor
    n_continuous: int

    @classmethod
    def of(cls, reference):
        layout = getattr(reference, "layout", None) or Layout(reference.n_features)
        n_steps = {0: 1, 1: 801, 2: 201}[layout.n_continuous]
        axes = [np.linspace(-7.0, 7.0, n_steps)] * layout.n_continuous
        axes += [np.arange(variable.n_levels) for variable in layout.variables]
        rows = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], axis=1)
        rows = torch.from_numpy(rows.astype(np.float64))
        cell = (14.0 / (n_steps - 1)) ** layout.n_continuous if layout.n_continuous else 1.0
        probability = reference.log_prob(rows).exp() * cell
        return cls(reference, rows, layout.embed(rows), probability, layout.n_continuous)

    def joint(self, z, logsnr):
        """Return p(row) p(z | row) up to a factor of z, (B, n_rows)."""
        signal, noise = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr)
        squares = (z[:, None] - signal[:, None, None] * self.points).square().sum(2)
        return self.probability * (-0.5 * squares / noise[:, None]).exp()


@pytest.fixture(scope="module", params=list(REFERENCES))
def grid(request):
    return Grid.of(REFERENCES[request.param]())


def noisy_points(grid, level, n=8):
    """Return rows of the grid, drawn at random, with noise, and the level of each."""
    rng = np.random.default_rng(2)
    chosen = rng.choice(len(grid.rows), size=n, p=(grid.probability / grid.probability.sum()))
    eps = torch.from_numpy(rng.normal(size=(n, grid.points.shape[1])))
    logsnr = torch.full((n,), level, dtype=torch.float64)
    return grid.rows[chosen], eps, add_noise(grid.points[chosen], eps, logsnr), logsnr


def test_total_is_one(grid):
    assert grid.probability.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("level", [-3.0, 0.5, 3.0])
def test_denoiser_is_the_conditional_mean(grid, level):
    _, _, z, logsnr = noisy_points(grid, level)
    joint = grid.joint(z, logsnr)
    mean = joint @ grid.points / joint.sum(1, keepdim=True)
    expected = noise_from_data(z, mean, logsnr)
    torch.testing.assert_close(grid.reference.denoise(z, logsnr), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", [-3.0, 0.5, 3.0])
def test_smoothed_density_is_the_mean_over_the_noise(grid, level):
    """For continuous columns a density of rows plus noise; for levels relative to their noise."""
    rows, eps, z, logsnr = noisy_points(grid, level)
    signal, noise = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr)
    expected = grid.joint(z, logsnr).sum(1).log()
    m = grid.n_continuous
    # The density of z / signal, of which rows plus noise of variance exp(-level) are an example.
    expected += m * (signal.log() - 0.5 * (2 * math.pi * noise).log())
    expected += 0.5 * eps[:, m:].square().sum(1)
    found = grid.reference.smoothed_log_prob(rows, eps, level)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_noise_the_smoothed_density_is_the_density(grid):
    rows, eps, _, _ = noisy_points(grid, 0.0)
    found = grid.reference.smoothed_log_prob(rows, eps, math.inf)
    torch.testing.assert_close(found, grid.reference.log_prob(rows))


def test_samples_have_the_frequencies(grid):
    """Counts in cells of the grid by a chi-squared test; cells that expect few samples are one."""
    n_samples = 20_000
    drawn = grid.reference.sample(n_samples, np.random.RandomState(0))
    # Edges lie midway between points of the grid, whose sums are then accurate to its square.
    places = np.unique(grid.rows[:, : grid.n_continuous])
    edges = 0.5 * (places[1:] + places[:-1])[:: max(1, len(places) // 25)]

    def cells(rows):
        binned = [np.digitize(column, edges) for column in rows[:, : grid.n_continuous].T]
        codes = np.rint(rows[:, grid.n_continuous :]).astype(int).T
        return list(zip(*binned, *codes, strict=True))

    expected = collections.Counter()
    for cell, p in zip(cells(grid.rows.numpy()), grid.probability.tolist(), strict=True):
        expected[cell] += n_samples * p
    counts = collections.Counter(cells(drawn))
    plenty = [cell for cell, number in expected.items() if number >= 10.0]
    observed = np.array([counts[cell] for cell in plenty])
    wanted = np.array([expected[cell] for cell in plenty])
    observed = np.append(observed, n_samples - observed.sum())
    wanted = np.append(wanted, max(n_samples - wanted.sum(), 1.0))
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_rows_do_not_depend_on_each_other(grid):
    rows, _, z, logsnr = noisy_points(grid, 1.0)
    together = grid.reference.denoise(z, logsnr)
    alone = torch.cat([grid.reference.denoise(z[i : i + 1], logsnr[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    one = torch.cat([grid.reference.log_prob(row[None]) for row in rows])
    torch.testing.assert_close(grid.reference.log_prob(rows), one, rtol=1e-12, atol=1e-12)


def test_single_precision_is_near(grid):
    _, _, z, logsnr = noisy_points(grid, 1.0)
    single = copy.deepcopy(grid.reference).float()
    found = single.denoise(z.float(), logsnr.float())
    assert found.dtype == torch.float32
    expected = grid.reference.denoise(z, logsnr)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_sizes_are_told(grid):
    assert 1 <= grid.reference.n_fused <= grid.reference.n_intermediate
    assert grid.reference.n_features == grid.points.shape[1]


CONTINUOUS = [
    "normal",
    "normal, one column",
    "mixture",
    "kernels",
    "kernels, one column",
    "low rank",
]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_standardised_reference_moves_by_the_jacobian(name):
    reference = REFERENCES[name]()
    d = reference.n_features
    center, scale = np.linspace(-1.0, 2.0, d), np.full(d, 3.0)
    X = np.random.default_rng(3).normal(size=(6, d))
    moved = reference.standardized(center, scale)
    found = moved.log_prob(torch.from_numpy((X - center) / scale))
    expected = reference.log_prob(torch.from_numpy(X)) + np.log(scale).sum()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_variance_range_holds_all_directions(name):
    """The greatest is that of the whole, the least no more than that of any direction."""
    reference = REFERENCES[name]()
    drawn = reference.sample(50_000, np.random.RandomState(0))
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(drawn.T)))
    least, greatest = reference.variance_range()
    assert greatest == pytest.approx(variances[-1], rel=0.05)
    assert 0.0 < least <= 1.05 * variances[0]
