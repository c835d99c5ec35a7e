"""Networks trained by others: exact conversions, and diffusers' own pipeline as the oracle."""

import math

import numpy as np
import pytest
import torch
from seeds import shifted

from sk_itdiffusion import IMMSEDensity, PretrainedDenoiser
from sk_itdiffusion._first._fit.optimizers import MuonAdamW
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.pretrained import (
    DiscreteTimeNoise,
    EDMNoise,
    LogSNRNoise,
    NoiseSchedule,
    SigmaNoise,
)
from sk_itdiffusion._first.references import GaussianReference

MEAN, COVARIANCE = [0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]]
TIMES = (0, 10, 333, 999)


class ExactNetwork(torch.nn.Module):
    """The optimal network of normal data, in the conventions of a schedule and a prediction."""

    def __init__(self, schedule: NoiseSchedule, prediction_type: str, doubled: bool = False):
        super().__init__()
        self.reference = GaussianReference(MEAN, COVARIANCE)
        self.schedule, self.prediction_type, self.doubled = schedule, prediction_type, doubled

    def logsnr(self, time):
        if isinstance(self.schedule, DiscreteTimeNoise):
            return torch.from_numpy(self.schedule.logsnr(time.numpy()))
        if isinstance(self.schedule, SigmaNoise):
            return -2.0 * time.log()
        return -8.0 * time if isinstance(self.schedule, EDMNoise) else time

    def forward(self, points, time):
        # Estimators work with a copy in single precision.
        dtype = self.reference.mean.dtype
        a, points = self.logsnr(time.double())[:, None].to(dtype), points.to(dtype)
        sigma = torch.exp(-0.5 * a)
        signal, noise = torch.sigmoid(a).sqrt(), torch.sigmoid(-a).sqrt()
        if isinstance(self.schedule, SigmaNoise):
            z = points * signal
        elif isinstance(self.schedule, EDMNoise):
            z = points * (sigma**2 + self.schedule.sigma_data**2).sqrt() * signal
        else:
            z = points
        eps = self.reference.denoise(z, a[:, 0])
        x = (z - noise * eps) / signal
        if isinstance(self.schedule, EDMNoise):
            spread = self.schedule.sigma_data
            total = sigma**2 + spread**2
            output = (x - spread**2 / total * z / signal) / (sigma * spread * total.rsqrt())
        else:
            v = signal * eps - noise * x
            output = {"epsilon": eps, "sample": x, "v_prediction": v}[self.prediction_type]
        output = torch.cat([output, 7.0 + output], dim=1) if self.doubled else output
        return output.float()


CONVENTIONS = [
    (DiscreteTimeNoise.ddpm_linear(), "epsilon"),
    (DiscreteTimeNoise.ddpm_linear(), "sample"),
    (DiscreteTimeNoise.ddpm_linear(), "v_prediction"),
    (DiscreteTimeNoise.cosine(), "epsilon"),
    (DiscreteTimeNoise.cosine(), "v_prediction"),
    (SigmaNoise(), "sample"),
    (SigmaNoise(), "epsilon"),
    (EDMNoise(0.7), "epsilon"),
    (LogSNRNoise(), "epsilon"),
    (LogSNRNoise(), "sample"),
]


@pytest.mark.parametrize(("schedule", "prediction_type"), CONVENTIONS)
@pytest.mark.parametrize("doubled", [False, True])
def test_every_convention_gives_the_exact_noise(schedule, prediction_type, doubled):
    generator = torch.Generator().manual_seed(shifted(0))
    exact = GaussianReference(MEAN, COVARIANCE)
    x = torch.from_numpy(exact.sample(200, np.random.RandomState(shifted(0))))
    # Within the range of all the tables; at high log-SNR x has to be subtracted from z.
    logsnr = -4.0 + 9.0 * torch.rand(200, generator=generator, dtype=torch.float64)
    z = add_noise(x, torch.randn(200, 2, generator=generator, dtype=torch.float64), logsnr)
    denoiser = PretrainedDenoiser(
        ExactNetwork(schedule, prediction_type, doubled),
        noise_schedule=schedule,
        prediction_type=prediction_type,
    )
    torch.testing.assert_close(denoiser(z, logsnr), exact.denoise(z, logsnr), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("schedule", [DiscreteTimeNoise.ddpm_linear(), DiscreteTimeNoise.cosine()])
def test_times_and_log_snrs_are_inverse(schedule):
    time = np.array([0.0, 1.0, 17.25, 500.5, 998.0, 999.0])
    found = schedule.time(torch.from_numpy(schedule.logsnr(time)))
    np.testing.assert_allclose(found.numpy(), time, atol=2e-3)
    rounded = DiscreteTimeNoise(schedule.alphas_cumprod, continuous_time=False)
    levels = torch.from_numpy(schedule.logsnr([17.25, 500.7]))
    assert rounded.time(levels).tolist() == [17, 501]
    beyond = torch.tensor([-100.0, 100.0])
    assert schedule.time(beyond).tolist() == [999.0, 0.0]


def test_published_schedules_have_their_known_values():
    linear = DiscreteTimeNoise.ddpm_linear()
    assert linear.alphas_cumprod[0] == pytest.approx(1.0 - 1e-4)
    assert math.log(linear.alphas_cumprod[-1]) == pytest.approx(
        np.log1p(-np.linspace(1e-4, 0.02, 1000)).sum()
    )
    cosine = DiscreteTimeNoise.cosine()
    # Nichol and Dhariwal: half of the way is at about half of the signal.
    assert cosine.alphas_cumprod[499] == pytest.approx(
        math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2
        / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    )


def test_a_pretrained_denoiser_gives_the_exact_log_density():
    exact = GaussianReference(MEAN, COVARIANCE)
    X = exact.sample(400, np.random.RandomState(shifted(1)))
    network = ExactNetwork(SigmaNoise(), "sample")
    denoiser = PretrainedDenoiser(network, noise_schedule="sigma", prediction_type="sample")
    density = IMMSEDensity(
        denoiser=denoiser, experts=["network"], max_epochs=0, random_state=shifted(0)
    ).fit(X[:200])
    log_density, std = density.score_samples(X[200:], return_std=True)
    deviation = log_density - exact.log_prob(torch.from_numpy(X[200:])).numpy()
    # What is left is the error of integration, and the ends of the range of the log-SNR.
    assert np.abs(deviation).max() < 5 * std.max() + 0.02
    assert abs(deviation.mean()) < 3 * np.linalg.norm(std) / len(std) + 0.01


def test_data_range_is_a_change_of_units():
    X = GaussianReference(MEAN, COVARIANCE).sample(200, np.random.RandomState(shifted(1)))
    settings = {"experts": ["network"], "max_epochs": 0, "random_state": shifted(0)}
    scores = {}
    # Powers of two, so that the rows and with them their noise are the same to the last bit.
    for factor in (1.0, 4.0):
        denoiser = PretrainedDenoiser(
            ExactNetwork(LogSNRNoise(), "epsilon"),
            noise_schedule="logsnr",
            data_range=(-factor, factor),
        )
        density = IMMSEDensity(denoiser=denoiser, **settings).fit(factor * X)
        scores[factor] = density.score_samples(factor * X)
    np.testing.assert_allclose(scores[1.0] - 2 * math.log(4.0), scores[4.0], atol=1e-9)


def test_fine_tuning_trains_a_copy_and_helps():
    class Biased(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
            self.exact = GaussianReference(np.zeros(2), np.eye(2)).float()

        def forward(self, z, logsnr):
            return self.exact.denoise(z, logsnr) + 0.5 * self.bias

    X = np.random.RandomState(shifted(0)).standard_normal((600, 2))
    module = Biased()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    # Both in the stack and alone, so that the network counts.
    settings = {"denoiser": module, "experts": ["network"], "random_state": shifted(0)}
    plain = IMMSEDensity(max_epochs=0, **settings).fit(X[:400])
    tuned = IMMSEDensity(max_epochs=4, steps_per_epoch=30, learning_rate=0.2, **settings).fit(
        X[:400]
    )
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    truth = -0.5 * (X[400:] ** 2).sum(axis=1) - math.log(2 * math.pi)
    loss_before = truth.mean() - plain.score(X[400:])
    loss_after = truth.mean() - tuned.score(X[400:])
    # The bias costs half its square, 0.25, for each unit of the log-SNR.
    width = float(np.ptp(plain.logsnr_))
    assert loss_before == pytest.approx(0.25 * width, rel=0.1)
    assert loss_after < 0.1 * loss_before


class Dropping(torch.nn.Module):
    """A network with dropout, a frozen weight and running statistics."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        with torch.random.fork_rng(devices=[]):  # weights are drawn
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(2, 8),
                torch.nn.BatchNorm1d(8),
                torch.nn.Dropout(0.5),
                torch.nn.Linear(8, 2),
            )
        for number, parameter in enumerate(self.layers.parameters()):
            torch.nn.init.constant_(parameter, 0.1 + 0.01 * number)

    def forward(self, z, logsnr):
        return torch.sigmoid(-logsnr).sqrt()[:, None] * z * self.frozen + 0.01 * self.layers(z)


def test_copies_keep_frozen_weights_and_statistics_and_draw_for_themselves():
    X = np.random.RandomState(shifted(0)).standard_normal((200, 2)) + 3.0
    settings = {
        "denoiser": Dropping(),
        "max_epochs": 2,
        "steps_per_epoch": 5,
        "random_state": shifted(0),
    }
    before = torch.get_rng_state()
    fits = [IMMSEDensity(**settings).fit(X) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(*[fit.score_samples(X) for fit in fits])
    module = fits[0].net_.module_.denoiser.denoiser.module
    assert torch.equal(module.frozen, torch.ones(2))
    averaged = fits[0].net_.module_.averaged.denoiser.module
    assert torch.equal(averaged.layers[1].running_mean, module.layers[1].running_mean)


def test_weight_decay_reaches_all_matrices_if_none_is_hidden():
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = MuonAdamW([{"params": [weight, bias]}], lr=0.1, weight_decay=2.0)
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    # AdamW's decoupled decay: a factor of 1 - rate * decay.
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1.0 - 0.15 * 0.1 * 2.0))
    torch.testing.assert_close(bias.detach(), torch.ones(2))


def test_warm_starts_take_no_other_denoiser():
    X = np.random.RandomState(shifted(0)).standard_normal((100, 2))
    module = Dropping()
    first = PretrainedDenoiser(module, noise_schedule="logsnr", data_range=(-1.0, 1.0))
    second = PretrainedDenoiser(module, noise_schedule="logsnr", data_range=(-2.0, 2.0))
    density = IMMSEDensity(
        denoiser=first, max_epochs=0, warm_start=True, random_state=shifted(0)
    ).fit(X)
    with pytest.raises(ValueError, match="denoiser changed"):
        density.set_params(denoiser=second).fit(X)


def small_unet(diffusers, channels=1, doubled=False):
    with torch.random.fork_rng():
        torch.manual_seed(shifted(0))
        return diffusers.UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels * (1 + doubled),
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
        ).eval()


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2", "scaled_linear"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_saved_models_predict_what_their_own_pipeline_does(
    diffusers, tmp_path, beta_schedule, prediction_type
):
    unet = small_unet(diffusers, channels=3)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=beta_schedule, prediction_type=prediction_type, clip_sample=False
    )
    unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    denoiser = PretrainedDenoiser.from_diffusers(tmp_path)
    assert denoiser.image_shape == (3, 8, 8)
    generator = torch.Generator().manual_seed(shifted(1))
    scheduler.set_timesteps(1000)
    for time in TIMES:
        x, eps = torch.randn(2, 4, 3, 8, 8, generator=generator)
        noisy = scheduler.add_noise(x, eps, torch.tensor([time] * 4))
        with torch.no_grad():
            output = unet(noisy, time).sample
            own = scheduler.step(output, time, noisy).pred_original_sample
            level = torch.full((4,), float(denoiser.noise_schedule.logsnr(time)))
            ours = denoiser(noisy.flatten(1), level)
        signal = scheduler.alphas_cumprod[time]
        expected = (noisy - signal.sqrt() * own) / (1.0 - signal).sqrt()
        # Both subtract the signal from the point, which at time 0 leaves a hundredth of it.
        torch.testing.assert_close(ours, expected.flatten(1), atol=2e-4, rtol=1e-3)


def test_learned_variances_are_left_out(diffusers, tmp_path):
    unet = small_unet(diffusers, doubled=True)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    denoiser = PretrainedDenoiser.from_diffusers(tmp_path, data_range=(0, 255))
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(shifted(0)))
    with torch.no_grad():
        output = unet(z.reshape(2, 1, 8, 8), 100).sample
        level = torch.full((2,), float(denoiser.noise_schedule.logsnr(100)))
        torch.testing.assert_close(denoiser(z, level), output[:, :1].flatten(1), atol=1e-5, rtol=0)


def test_edm_schedulers_are_read(diffusers, tmp_path):
    unet = small_unet(diffusers)
    unet.save_pretrained(tmp_path / "unet")
    diffusers.EDMEulerScheduler(sigma_data=0.4).save_pretrained(tmp_path / "scheduler")
    denoiser = PretrainedDenoiser.from_diffusers(tmp_path)
    assert isinstance(denoiser.noise_schedule, EDMNoise)
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.4)
    generator = torch.Generator().manual_seed(shifted(0))
    for sigma in torch.tensor([0.05, 0.7, 9.0]):
        noisy = torch.randn(2, 1, 8, 8, generator=generator) * sigma
        with torch.no_grad():
            output = unet(
                scheduler.precondition_inputs(noisy, sigma),
                scheduler.precondition_noise(sigma),
            ).sample
            own = scheduler.precondition_outputs(noisy, output, sigma)
            level = (-2.0 * sigma.log()).expand(2)
            signal = torch.sigmoid(level).sqrt()[:, None]
            ours = denoiser(signal * noisy.flatten(1), level)
        expected = ((noisy - own) / sigma).flatten(1)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_files_may_be_in_the_folder_itself(diffusers, tmp_path):
    unet = small_unet(diffusers)
    unet.save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    z, level = torch.zeros(1, 64), torch.zeros(1)
    denoiser = PretrainedDenoiser.from_diffusers(tmp_path)
    with torch.no_grad():
        time = denoiser.noise_schedule.time(level)
        expected = unet(z.reshape(1, 1, 8, 8), time).sample.flatten(1)
        torch.testing.assert_close(denoiser(z, level), expected)


def test_incomplete_folders_are_errors(diffusers, tmp_path):
    with pytest.raises(ValueError, match=r"no subfolder\(s\) \['unet', 'scheduler'\]"):
        PretrainedDenoiser.from_diffusers(tmp_path)
    with pytest.raises(ValueError, match="There is no folder"):
        PretrainedDenoiser.from_diffusers(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_schedule": "linear"}, "noise_schedule must be one of"),
        ({"prediction_type": "x0"}, "prediction_type must be one of"),
        ({"image_shape": (8, 8)}, "image_shape must be"),
        ({"data_range": (1.0, 1.0)}, "data_range must be"),
    ],
)
def test_bad_parameters_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        PretrainedDenoiser(torch.nn.Identity(), **arguments)


@pytest.mark.parametrize("table", [[0.5], [0.5, 0.9], [1.5, 0.5], [0.9, np.nan]])
def test_bad_tables_are_errors(table):
    with pytest.raises(ValueError, match="alphas_cumprod must be"):
        DiscreteTimeNoise(table)


def test_wrong_shapes_are_errors():
    class Wide(torch.nn.Module):
        def forward(self, z, logsnr):
            return torch.zeros(len(z), 5)

    with pytest.raises(ValueError, match="no parameters to train"):
        IMMSEDensity(denoiser=Wide(), max_epochs=1, random_state=shifted(0)).fit(
            np.random.RandomState(shifted(0)).rand(50, 2)
        )
    with pytest.raises(ValueError, match="image_shape may be wrong"):
        PretrainedDenoiser(Wide(), noise_schedule="logsnr")(torch.zeros(1, 2), torch.zeros(1))
