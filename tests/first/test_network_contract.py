"""The contract of all networks: what each denoiser with weights does, whatever its backbone."""

import copy
import math

import numpy as np
import pytest
import torch

from first.outside_network import SmallFamily
from sk_itdiffusion._first._fit.networks import build_backbone
from sk_itdiffusion._first._runtime.generators import CopyableGenerator, seeded
from sk_itdiffusion._first.channel import noise_from_data
from sk_itdiffusion._first.denoisers import (
    BackbonePlan,
    ConvolutionalFamily,
    LevelDenoiser,
    LogSNREmbedding,
    MLPFamily,
    NetworkTask,
    PreconditionedDenoiser,
    ReferencedDenoiser,
    UNetFamily,
)
from sk_itdiffusion._first.denoisers.levels import n_category_outputs, n_periodic_inputs
from sk_itdiffusion._first.layout import Layout, Variable, lattice_values
from sk_itdiffusion._first.persistence.encoded import Decoder, Encoder
from sk_itdiffusion._first.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    LatentClassReference,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

LOW, HIGH = -4.0, 8.0
VARIABLES = [Variable(2, lattice_values(2, 0.5, 0.5)), Variable(3), Variable(9, np.arange(9) / 3.0)]
PIXELS = [Variable(5, lattice_values(5, 2.0, 1.5))] * 12


def generator(seed=0):
    return CopyableGenerator().manual_seed(seed)


def probabilities(variables, n_classes=None):
    rng = np.random.default_rng(0)
    return [rng.dirichlet(np.full(v.n_categories, 2.0), size=n_classes) for v in variables]


def normal(d):
    return GaussianReference(np.linspace(-0.5, 0.5, d), 0.5 * np.eye(d) + 0.3)


def plan_of(layout, source, image_shape=None, dropout=0.3):
    return BackbonePlan(
        n_inputs=layout.n_points,
        n_outputs=layout.n_continuous + n_category_outputs(layout),
        n_periodic=n_periodic_inputs(layout),
        embedding=LogSNREmbedding(LOW, HIGH),
        logsnr_range=(LOW, HIGH),
        hidden_size=8 if image_shape else 16,
        n_blocks=1 if image_shape else 2,
        n_frequencies=2,
        dropout=dropout,
        generator=source,
        task=NetworkTask(bool(layout.variables), layout.n_continuous > 0, image_shape),
        layout=layout,
    )


def table(family, source, n_columns=3, **options):
    plan = plan_of(Layout(n_columns), source, **options)
    assert family.applies(plan.task)
    backbone = build_backbone(family, plan)
    return PreconditionedDenoiser(backbone, normal(n_columns).float(), plan.embedding)


def levels(family, source, n_continuous=0, with_classes=False, variables=VARIABLES, **options):
    layout = Layout(n_continuous, variables)
    plan = plan_of(layout, source, **options)
    assert family.applies(plan.task)
    continuous = normal(n_continuous) if n_continuous else None
    independent = IndependentReference(layout, probabilities(variables), continuous)
    reference = independent
    if with_classes:
        inner = None
        if continuous is not None:
            covariances = np.stack([continuous.covariance] * 2)
            inner = GaussianMixtureReference([0.5, 0.5], np.eye(2, n_continuous), covariances)
        tables = probabilities(variables, 2)
        reference = LatentClassReference(layout, [0.4, 0.6], tables, inner)
    independent, reference = independent.float(), reference.float()
    backbone = build_backbone(family, plan)
    return LevelDenoiser(backbone, reference, independent, plan.embedding)


MLP, CONVOLUTIONAL, UNET, SMALL = MLPFamily(), ConvolutionalFamily(), UNetFamily(), SmallFamily()
BUILDERS = {
    "perceptron": lambda source, **o: table(MLP, source, **o),
    "levels": lambda source, **o: levels(MLP, source, **o),
    "categories over classes": lambda source, **o: levels(MLP, source, with_classes=True, **o),
    "categories and numbers": lambda source, **o: levels(MLP, source, 2, **o),
    "categories and numbers over classes": lambda source, **o: levels(MLP, source, 2, True, **o),
    "perceptron over pixels": lambda source, **o: table(MLP, source, 12, image_shape=(3, 4), **o),
    "convolutions over categories": lambda source, **o: levels(
        CONVOLUTIONAL, source, variables=PIXELS, image_shape=(3, 4), **o
    ),
    "convolutions over numbers": lambda source, **o: table(
        CONVOLUTIONAL, source, 50, image_shape=(2, 5, 5), **o
    ),
    "U-Net": lambda source, **o: table(UNET, source, 64, image_shape=(1, 8, 8), **o),
    "one's own": lambda source, **o: table(SMALL, source, **o),
    "one's own over categories and numbers": lambda source, **o: levels(SMALL, source, 2, **o),
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


def test_networks_are_of_single_precision(build):
    network = perturbed(build(generator()))
    z, logsnr = noisy(network)
    assert network(z, logsnr).dtype == torch.float32
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_dropout_is_in_training_only_and_as_much_as_planned(build):
    network = perturbed(build(generator(), dropout=0.0))
    z, logsnr = noisy(network)
    expected = network(z, logsnr)
    torch.testing.assert_close(network.train()(z, logsnr), expected)
    # The rate changes neither the initial weights nor what is evaluated.
    other = perturbed(build(generator(), dropout=0.3))
    assert torch.equal(other(z, logsnr), expected)
    assert not torch.allclose(other.train()(z, logsnr), expected)


def same_bits(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


def test_backbone_is_made_again_from_its_config_and_its_tensors(build):
    backbone = perturbed(build(generator())).backbone
    config = backbone.config()
    with seeded(1):
        again = type(backbone).from_config(**config)
    again.load_state_dict(backbone.state_dict())
    same_bits(again, backbone)
    assert again.config() == config
    n_numbers = sum(value.numel() for value in backbone.state_dict().values())
    assert getattr(backbone, "least_numbers", lambda **_: 0)(**config) <= n_numbers


@pytest.mark.parametrize("name", [name for name in BUILDERS if "one's own" not in name])
def test_files_give_networks_back_to_the_last_bit(name):
    if name == "U-Net":
        pytest.importorskip("diffusers")
    network = perturbed(BUILDERS[name](generator()))
    encoder = Encoder()
    node = encoder.encode(network)
    device = torch.device("cpu")
    decoder = Decoder(encoder.arrays, encoder.objects, {}, device)
    again = decoder.decode(node)
    assert type(again) is type(network)
    same_bits(again, network)
    z, logsnr = noisy(network)
    assert torch.equal(again(z, logsnr), network(z, logsnr))
    # Objects that were one are one again.
    assert again.embedding is getattr(again.backbone, "embedding", again.embedding)


@pytest.mark.parametrize(
    ("name", "cls", "argument"),
    [
        ("perceptron", "ResidualMLP", "width"),
        ("perceptron", "ResidualMLP", "n_blocks"),
        ("perceptron", "LogSNREmbedding", "n_bumps"),
        ("levels", "ResidualMLP", "n_outputs"),
        ("convolutions over categories", "ConvolutionalNetwork", "width"),
        ("convolutions over categories", "ConvolutionalNetwork", "n_outputs"),
        ("U-Net", "UNetBackbone", "width"),
        ("U-Net", "UNetBackbone", "n_blocks"),
        ("categories and numbers", "Layout", "n_continuous"),
    ],
)
def test_files_that_tell_of_more_numbers_than_they_have_are_refused(name, cls, argument):
    if name == "U-Net":
        pytest.importorskip("diffusers")
    encoder = Encoder()
    node = encoder.encode(BUILDERS[name](generator()))
    for entry in encoder.objects:
        if entry["class"] == cls:
            assert argument in entry["config"]
            entry["config"][argument] = 10**12
    decoder = Decoder(encoder.arrays, encoder.objects, {}, torch.device("cpu"))
    with pytest.raises(ValueError, match="more numbers than the file"):
        decoder.decode(node)


def test_given_denoisers_have_a_config_too():
    denoiser = torch.nn.Identity()
    network = ReferencedDenoiser(denoiser, normal(3).float())
    again = ReferencedDenoiser.from_config(**network.config())
    assert again.denoiser is denoiser
    assert again.reference is network.reference


@pytest.mark.parametrize("name", [name for name in BUILDERS if "levels" in name])
def test_posteriors_are_probabilities_whose_mean_is_the_prediction(name):
    network = perturbed(BUILDERS[name](generator()))
    z, logsnr = noisy(network)
    noise = network(z, logsnr)
    posteriors = network.log_posterior(z, logsnr)
    for block, log_p in zip(network.layout.groups, posteriors, strict=True):
        probability = log_p.exp() * block.allowed
        torch.testing.assert_close(probability.sum(2), torch.ones(probability.shape[:2]))
        mean = block.mean(probability.double()).float()
        part = z[:, block.coordinates]
        found = noise_from_data(part, mean, logsnr)
        # In single precision errors of the mean are multiplied by the root of the largest SNR.
        tolerance = 1e-6 * math.exp(0.5 * HIGH) * 10
        torch.testing.assert_close(noise[:, block.coordinates], found, rtol=1e-4, atol=tolerance)
