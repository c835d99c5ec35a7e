"""What is left out of evaluations, or done once for several experts, changes no number."""

import numpy as np
import pytest
import torch

from sk_itdiffusion._first._fit.experts import Mixing, evaluations_in_a_part, network_denoiser
from sk_itdiffusion._first._immse.cubature import NoiseRule, PiecewiseDensity, row_keys
from sk_itdiffusion._first._immse.likelihood import (
    IntegrationRule,
    StackedDenoiser,
    information_gap,
)
from sk_itdiffusion._first.denoisers.mlp import ResidualMLP
from sk_itdiffusion._first.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    KernelDensityReference,
)

NODES = np.linspace(-4.0, 8.0, 7)


def mixture(d=3, k=6, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(k, d, d))
    covariances = 0.1 * roots @ np.swapaxes(roots, 1, 2) + 0.01 * np.eye(d)
    return GaussianMixtureReference(rng.uniform(0.5, 1.0, k), rng.normal(size=(k, d)), covariances)


def kernels(d=3, n=700):
    points = np.random.default_rng(1).normal(size=(n, d))
    return KernelDensityReference(points, 0.01 * np.eye(d), mixture(d), 0.1)


def network(d=3, width=128):
    """Return a network whose output is not zero."""
    net = ResidualMLP(d, LogSNREmbedding(-4.0, 8.0), width=width)
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            generator = torch.Generator().manual_seed(number)
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return net.eval().requires_grad_(False)


def evaluations(d, n, seed=0):
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.uniform(-5.0, 9.0, -(-n // 7)), 7)[:n]
    return torch.from_numpy(rng.normal(size=(n, d))), torch.from_numpy(level)


class Recorded:
    """A denoiser that counts its evaluations."""

    def __init__(self, denoiser):
        self.denoiser, self.n = denoiser, 0

    def __call__(self, z, logsnr):
        self.n += len(z)
        return self.denoiser(z, logsnr)


@pytest.mark.parametrize("n", [32 * 50, 77])
def test_experts_are_asked_only_where_they_have_a_weight(n):
    control, seldom = GaussianReference(np.zeros(3), np.eye(3)), Recorded(mixture())
    never = Recorded(mixture(seed=1))
    weights = np.zeros((7, 3))
    weights[3, 1] = 0.5
    weights[:, 0] = 1.0 - weights[:, 1]
    experts = {"gaussian": control, "seldom": seldom, "never": never}
    mixing = Mixing("gaussian", NODES, list(experts), weights)
    z, level = evaluations(3, n)
    level = level.sort().values  # as those of a row are
    _, found = mixing.paired(experts)(z, level)
    n_asked = seldom.n
    plain = StackedDenoiser(experts, NODES, weights).paired_with(control)
    np.testing.assert_array_equal(found, plain(z, level)[1])
    assert never.n == 0
    if n % 32 == 0:
        between = ((level > NODES[2]) & (level < NODES[4])).sum()
        assert between <= n_asked < 0.7 * n


def test_background_of_kernels_is_evaluated_once(monkeypatch):
    control = kernels()
    experts = {"mixture": mixture(), "kernels": control}
    weights = np.tile([0.4, 0.6], (7, 1))
    z, level = evaluations(3, 32 * 20)
    expected = StackedDenoiser(experts, NODES, weights).paired_with(control)(z, level)
    asked = []
    plain = GaussianMixtureReference.density_and_noise
    monkeypatch.setattr(
        GaussianMixtureReference,
        "density_and_noise",
        lambda self, *args: asked.append(self) or plain(self, *args),
    )
    paired = Mixing("kernels", NODES, list(experts), weights).paired(experts)
    for _ in range(2):
        for one, same in zip(paired(z, level), expected, strict=True):
            np.testing.assert_array_equal(one, same)
    assert len(asked) == 2
    # Another mixture is another expert.
    other = experts | {"mixture": mixture(seed=5)}
    paired = Mixing("kernels", NODES, list(other), weights).paired(other)
    found = paired(z, level)[1]
    different = StackedDenoiser(other, NODES, weights).paired_with(control)(z, level)[1]
    np.testing.assert_array_equal(found, different)


def test_networks_are_evaluated_in_parts():
    net = network(width=300)
    size = evaluations_in_a_part(net)
    assert size == 32 * (2**18 // (32 * 600))
    z, level = evaluations(3, 32 * 40)
    lengths = []
    net.register_forward_hook(lambda module, args, output: lengths.append(len(output)))
    found = network_denoiser(net)(z, level)
    assert max(lengths) == size
    # In single precision.
    np.testing.assert_allclose(found, net(z.float(), level.float()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d", [1, 4, 30])
def test_mixtures_average_what_their_components_say(d):
    """Up to the rounding of double precision, also of points far from all components."""
    reference = mixture(d, 40)
    z, level = evaluations(d, 2000)
    z[0] = 1e5
    log_density, noise = reference.density_and_noise(z, level)
    log_joint, whitened = reference.noisy_components(z, level)
    np.testing.assert_allclose(log_density, log_joint.logsumexp(1), rtol=1e-12, atol=1e-12)
    expected = reference.average_noise(log_joint.softmax(1), whitened, level)
    np.testing.assert_allclose(noise, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("control", ["kernels", "mixture"])
@pytest.mark.parametrize("n_draws", [2, 10, 32])
@pytest.mark.parametrize("d", [2, 5])
def test_rows_do_not_depend_on_each_other(d, n_draws, control):
    """To the last bit: kernels near rows of their own, and networks that are asked here and there.

    The evaluations of a row fill no whole tiles.
    """
    experts = {
        "network": network_denoiser(network(d)),
        "network_2": network_denoiser(network(d, 72)),
        "mixture": mixture(d),
        "kernels": kernels(d),
    }
    weights = np.zeros((7, 4))
    weights[1:3, 0] = weights[4, 1] = weights[4:6, 2] = 0.2
    weights[:, 3] = 1.0 - weights.sum(axis=1)
    if control == "mixture":  # kernels that are asked here and there
        weights[2:4, 2:] = [1.0 - weights[2, 0], 0.0]
    paired = Mixing(control, NODES, list(experts), weights).paired(experts)
    noise = NoiseRule(d, min(d, 3), central=True, seed=0)
    rule = IntegrationRule(PiecewiseDensity(np.array([-4.0, 8.0]), np.ones(1)), noise, n_draws)
    X = np.random.default_rng(2).normal(size=(40, d))

    def score(rows):
        return information_gap(rows, row_keys(rows, 0), paired, rule, budget=1024)[0]

    together = score(X)
    np.testing.assert_array_equal(score(X[::-1])[::-1], together)
    for start in range(1, 6):
        np.testing.assert_array_equal(score(X[start:]), together[start:])
        np.testing.assert_array_equal(score(X[start : start + 1]), together[start : start + 1])
