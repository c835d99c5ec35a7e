"""The contract of all networks: what each denoiser with weights does, whatever its backbone."""

import copy
import math

import numpy as np
import pytest
import torch

from sk_itdiffusion.channel import noise_from_data
from sk_itdiffusion.denoisers import (
    ConvolutionalNetwork,
    LevelDenoiser,
    PreconditionedDenoiser,
    ResidualMLP,
    UNetBackbone,
)
from sk_itdiffusion.denoisers.levels import n_level_outputs, n_periodic_inputs
from sk_itdiffusion.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion.generators import CopyableGenerator
from sk_itdiffusion.layout import Layout, Variable, lattice_values
from sk_itdiffusion.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    LatentClassReference,
)

LOW, HIGH = -4.0, 8.0
VARIABLES = [Variable(2, lattice_values(2, 0.5, 0.5)), Variable(3), Variable(9, np.arange(9) / 3.0)]
PIXELS = [Variable(5, lattice_values(5, 2.0, 1.5))] * 12


def generator(seed=0):
    return CopyableGenerator().manual_seed(seed)


def probabilities(variables, n_classes=None):
    rng = np.random.default_rng(0)
    return [rng.dirichlet(np.full(v.n_levels, 2.0), size=n_classes) for v in variables]


def normal(d):
    return GaussianReference(np.linspace(-0.5, 0.5, d), 0.5 * np.eye(d) + 0.3)


def perceptron(embedding, source, layout):
    return ResidualMLP(
        layout.n_points,
        embedding,
        width=16,
        n_blocks=2,
        n_frequencies=2,
        dropout=0.3,
        generator=source,
        n_periodic=n_periodic_inputs(layout),
        n_outputs=layout.n_continuous + n_level_outputs(layout),
    )


def table(source):
    embedding = LogSNREmbedding(LOW, HIGH)
    backbone = perceptron(embedding, source, Layout(3))
    return PreconditionedDenoiser(backbone, normal(3).float(), embedding)


def levels(source, n_continuous=0, with_classes=False):
    embedding = LogSNREmbedding(LOW, HIGH)
    layout = Layout(n_continuous, VARIABLES)
    continuous = normal(n_continuous) if n_continuous else None
    independent = IndependentReference(layout, probabilities(VARIABLES), continuous)
    reference = independent
    if with_classes:
        inner = None
        if continuous is not None:
            covariances = np.stack([continuous.covariance] * 2)
            inner = GaussianMixtureReference([0.5, 0.5], np.eye(2, n_continuous), covariances)
        tables = probabilities(VARIABLES, 2)
        reference = LatentClassReference(layout, [0.4, 0.6], tables, inner)
    independent, reference = independent.float(), reference.float()
    return LevelDenoiser(perceptron(embedding, source, layout), reference, independent, embedding)


def pixel_levels(source):
    embedding = LogSNREmbedding(LOW, HIGH)
    layout = Layout(0, PIXELS)
    n_outputs = n_level_outputs(layout) // len(PIXELS)
    sizes = {"width": 8, "n_blocks": 1, "dropout": 0.3, "generator": source}
    backbone = ConvolutionalNetwork((3, 4), n_outputs, embedding, **sizes)
    reference = IndependentReference(layout, probabilities(PIXELS)).float()
    return LevelDenoiser(backbone, reference, reference, embedding)


def pixels(source):
    sizes = {"width": 8, "n_blocks": 1, "dropout": 0.3, "generator": source}
    backbone = UNetBackbone((1, 8, 8), LOW, HIGH, **sizes)
    return PreconditionedDenoiser(backbone, normal(64).float(), LogSNREmbedding(LOW, HIGH))


BUILDERS = {
    "perceptron": table,
    "levels": levels,
    "levels over classes": lambda source: levels(source, with_classes=True),
    "levels and numbers": lambda source: levels(source, 2),
    "levels and numbers over classes": lambda source: levels(source, 2, with_classes=True),
    "convolutions over levels": pixel_levels,
    "U-Net": pixels,
}


@pytest.fixture(params=list(BUILDERS))
def build(request):
    if request.param == "U-Net":
        pytest.importorskip("diffusers")
    return BUILDERS[request.param]


def perturbed(network):
    """Return the network with other weights, as training would leave them."""
    source = generator(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=source)
    return network.eval()


def noisy(network, n=6):
    rng = np.random.default_rng(1)
    z = torch.from_numpy(rng.normal(size=(n, network.reference.n_features))).float()
    return z, torch.linspace(LOW, HIGH, n)


def test_untrained_network_is_its_reference(build):
    network = build(generator()).eval()
    z, logsnr = noisy(network)
    torch.testing.assert_close(network(z, logsnr), network.reference.denoise(z, logsnr))


def test_prediction_is_the_sum_of_its_parts(build):
    network = perturbed(build(generator()))
    z, logsnr = noisy(network)
    baseline, correction = network.parts(z, logsnr)
    torch.testing.assert_close(baseline, network.reference.denoise(z, logsnr))
    torch.testing.assert_close(baseline + correction, network(z, logsnr))
    assert correction.abs().max() > 1e-3


def test_rows_do_not_depend_on_each_other(build):
    network = perturbed(build(generator()))
    z, logsnr = noisy(network)
    alone = torch.cat([network(z[i : i + 1], logsnr[i : i + 1]) for i in range(len(z))])
    torch.testing.assert_close(network(z, logsnr), alone, rtol=1e-4, atol=1e-5)


def test_training_reaches_each_weight(build):
    """Of perturbed networks; at the start the last layer is zero, and nothing lies behind it."""
    network = perturbed(build(generator())).train()
    z, logsnr = noisy(network)
    network(z, logsnr).square().sum().backward()
    unreached = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    # The gain of continuous columns, where there are none.
    has_none = isinstance(network, LevelDenoiser) and network.layout.n_continuous == 0
    assert unreached == (["gain"] if has_none else [])


def test_weights_and_dropout_come_from_the_generator_alone(build):
    before = torch.random.get_rng_state()
    first, second, other = (build(generator(seed)) for seed in (0, 0, 1))
    same = first.state_dict()
    for name, value in second.state_dict().items():
        assert torch.equal(value, same[name]), name
    assert any(not torch.equal(v, same[name]) for name, v in other.state_dict().items())
    first, second = perturbed(first).train(), perturbed(second).train()
    z, logsnr = noisy(first)
    dropped = first(z, logsnr)
    assert torch.equal(dropped, second(z, logsnr))
    assert not torch.equal(dropped, first(z, logsnr))  # another mask
    first.eval()
    assert torch.equal(first(z, logsnr), first(z, logsnr))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_copies_predict_the_same(build):
    network = perturbed(build(generator()))
    z, logsnr = noisy(network)
    assert torch.equal(copy.deepcopy(network)(z, logsnr), network(z, logsnr))


@pytest.mark.parametrize("name", [name for name in BUILDERS if "levels" in name])
def test_posteriors_are_probabilities_whose_mean_is_the_prediction(name):
    network = perturbed(BUILDERS[name](generator()))
    z, logsnr = noisy(network)
    noise = network(z, logsnr)
    posteriors = network.log_posterior(z, logsnr)
    for block, log_p in zip(network.layout.blocks, posteriors, strict=True):
        probability = log_p.exp() * block.allowed
        torch.testing.assert_close(probability.sum(2), torch.ones(probability.shape[:2]))
        mean = block.mean(probability.double()).float()
        part = z[:, block.coordinates]
        found = noise_from_data(part, mean, logsnr)
        # In single precision errors of the mean are multiplied by the root of the largest SNR.
        tolerance = 1e-6 * math.exp(0.5 * HIGH) * 10
        torch.testing.assert_close(noise[:, block.coordinates], found, rtol=1e-4, atol=tolerance)
