"""A row's numbers are the same to the last bit wherever it is in a batch."""

import itertools

import numpy as np
import pytest
import torch

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._estimators.outlier_score import FlooredModel
from sk_itdiffusion._first._immse.cubature import NoiseRule, PiecewiseDensity, row_keys
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._immse.likelihood import IntegrationRule, information_gap
from sk_itdiffusion._first._immse.path import PathRule, path_log_probability
from sk_itdiffusion._first._immse.places import Places
from sk_itdiffusion._first.denoisers.mlp import linear
from sk_itdiffusion._first.layout import Layout, Variable, lattice_values
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
)
from sk_itdiffusion._first.references.judging import log_likelihoods

pytestmark = pytest.mark.usefixtures("brief_fits")


def narrow_network(*widths):
    """Return layers of the widths, in single precision."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [linear(n_in, n_out, generator), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)


def check_places(score, rows):
    """Check that rows score alike in another order, and alone."""
    together = score(rows)
    np.testing.assert_array_equal(score(rows[::-1])[::-1], together)
    for start in range(1, 6):
        np.testing.assert_array_equal(score(rows[start:]), together[start:])
        np.testing.assert_array_equal(score(rows[start : start + 1]), together[start : start + 1])


@pytest.mark.parametrize("n_evaluations", [1, 2, 3, 4, 30, 32])
@pytest.mark.parametrize("apart", [2, 4])
def test_rows_begin_at_multiples(n_evaluations, apart):
    places = Places.within(100, n_evaluations, apart)
    assert 1 <= places.n_rows <= 100 // n_evaluations
    values = 1.0 + np.arange(places.n_rows * n_evaluations * 3.0).reshape(-1, 3)
    spread = places.spread(values)
    assert len(spread) % 32 == 0
    firsts = np.searchsorted(spread[:, 0], values[::n_evaluations, 0])
    assert (firsts % apart == 0).all()
    assert set(spread[:, 0]) == set(values[:, 0])  # nothing else is in a tile
    np.testing.assert_array_equal(places.gathered(torch.from_numpy(spread)).numpy(), values)
    assert places.spread(values[:, 0]).shape == spread.shape[:1]


@pytest.mark.parametrize("n_features", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("n_draws", [6, 10])
def test_gaps(n_features, n_draws):
    """Also with networks narrow enough for products of matrices that depend on the place."""
    reference = GaussianReference(np.zeros(n_features), np.eye(n_features))
    network = narrow_network(n_features, 9, 8, n_features)

    def denoisers(z, logsnr):
        return reference.denoise(z, logsnr), network(z.float()).double()

    rule = IntegrationRule(
        PiecewiseDensity(np.array([-3.0, 3.0]), np.ones(1)),
        NoiseRule(n_features, 1, central=True, seed=0),
        n_draws,
    )
    X = np.random.default_rng(0).normal(size=(23, n_features))
    for budget in (256, 2048):
        check_places(
            lambda rows, most=budget: information_gap(
                rows, row_keys(rows, 0), denoisers, rule, budget=most
            )[0],
            X,
        )


@pytest.mark.parametrize("n_features", [5, 7, 8, 9, 11])
def test_log_likelihoods(n_features):
    rng = np.random.default_rng(n_features)
    matrices = [a @ a.T + np.eye(n_features) for a in rng.normal(size=(5, n_features, n_features))]
    X = rng.normal(size=(300, n_features))
    mixture = GaussianMixtureReference(np.ones(5), X[:5], np.stack(matrices))
    gaussian = GaussianReference(X[0], matrices[0])
    kernels = KernelDensityReference(X[:50], matrices[0], mixture, 0.3)
    for reference in (gaussian, mixture, kernels):
        check_places(lambda rows, which=reference: log_likelihoods(which, rows), X)


@pytest.mark.parametrize(
    ("n_features", "n_components"),
    [
        (6, 8),
        (20, 2),
        pytest.param(8, 3, marks=pytest.mark.slow),
        pytest.param(5, 23, marks=pytest.mark.slow),
    ],
)
def test_mixtures_denoise_alike_at_any_place(n_features, n_components):
    rng = np.random.default_rng(n_features)
    matrices = [
        a @ a.T + np.eye(n_features) for a in rng.normal(size=(n_components, *2 * [n_features]))
    ]
    means = rng.normal(size=(n_components, n_features))
    mixture = GaussianMixtureReference(np.ones(n_components), means, np.stack(matrices))
    own = torch.from_numpy(rng.normal(size=(4, n_features)))
    others = torch.from_numpy(rng.normal(size=(320, n_features)))
    level = torch.zeros(320, dtype=torch.float64)
    found = []
    for place in range(0, 320, 4):
        z = others.clone()
        z[place : place + 4] = own
        found.append(mixture.denoise(z, level)[place : place + 4])
    assert all(torch.equal(each, found[0]) for each in found)


def test_mixtures_denoise_alike_beside_any_number_of_log_snrs():
    rng = np.random.default_rng(0)
    mixture = GaussianMixtureReference([0.3, 0.7], [[0.0, 1.0], [2.0, 0.0]], [np.eye(2)] * 2)
    z, levels = torch.from_numpy(rng.normal(size=(64, 2))), torch.from_numpy(rng.normal(size=64))
    for own in range(200):
        own_level = torch.full((2,), 0.05 * own - 5.0, dtype=torch.float64)
        # Besides 62 other log-SNRs, and alongside few.
        found = [
            mixture.denoise(z, torch.cat([own_level, others]))[:2]
            for others in (levels[2:], levels[2:4].repeat_interleave(31), levels[:1].repeat(62))
        ]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("n_paths", [1, 2, 3, 5])
def test_paths(n_paths):
    binary = Variable(2, lattice_values(2, 0.5, 0.5))
    layout = Layout(0, [Variable(3), binary, binary])
    frequencies = [np.array([0.2, 0.5, 0.3]), np.array([0.5, 0.5]), np.array([0.4, 0.6])]
    independent = IndependentReference(layout, frequencies)
    reference = IndependentReference(layout, frequencies).float()
    n_points = layout.n_points
    network = narrow_network(n_points, 8, 3)

    def posterior(z, logsnr):
        shift = network(z)[:, None, :]
        parts = reference.log_posterior(z, logsnr)
        return [(part + shift[..., : part.shape[2]]).log_softmax(2) for part in parts]

    rule = PathRule(np.linspace(-2.0, 2.0, 3), NoiseRule.for_categories(n_points, 0), n_paths)
    states = np.random.default_rng(0).integers(0, [3, 2, 2], size=(90, 3)).astype(np.float64)

    def score(rows):
        return path_log_probability(
            rows,
            row_keys(rows, 0),
            layout,
            independent.log_priors,
            posterior,
            rule,
            budget=64,
            device="cpu",
            dtype=torch.float32,
        )[0]

    check_places(score, states)


@pytest.mark.parametrize("n_features", [5, 7])
def test_noise_floors(n_features):
    X = np.random.default_rng(0).normal(size=(300, n_features))
    X[:, 1:] += X[:, :1]
    experts = {"experts": ["gaussian"], "reference": "gaussian"}
    density = IMMSEDensity(max_epochs=0, random_state=0, **experts).fit(X)
    for floors in ([np.inf], [1.0, np.inf]):
        model = FlooredModel(density._model, np.array(floors), ("gaussian",))
        check_places(lambda rows, which=model: which.log_density(rows, Tolerance(0.2)), X)
