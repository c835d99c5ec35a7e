"""The paper's experiments with any images and any diffusion models
=================================================================

Kong, Brekelmans and Ver Steeg ("Information-Theoretic Diffusion", ICLR 2023) evaluate diffusion
models as densities by their squared errors instead of by the variational bound, tune them with the
same objective, combine them per signal-to-noise ratio, and round their predictions to the levels of
pixels. The script does so with each model in a folder of the diffusers library (subfolders unet and
scheduler), and prints and draws the results, on images that neither training nor any choice saw::

    python examples/paper_experiments.py --data mnist.npz                      # trains two models
    python examples/paper_experiments.py --data cifar10.npz --denoiser ddpm iddpm --device cuda

The npz file holds uint8 arrays X_train and X_test. Without --data the images are scikit-learn's
digits; without --denoiser two small networks are trained with the plain DDPM loss, saved, and read
again. The first model is tuned; all of them are members of the ensemble. Add --quick to see that
the script runs.

All figures are in bits/dim of the 256 levels: a density of dequantised pixels in [-1, 1] has
log2(127.5) = 6.99 less. Errors are standard errors over the test images; where two methods are
compared they are those of the difference, image by image.
"""

# %%
# Figures and pictures for MNIST have :doc:`a page of their own </paper_experiments>`.

import argparse
import math
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from skorch.callbacks import Callback

from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, PretrainedDenoiser
from sk_itdiffusion.cubature import PiecewiseDensity

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from discrete_peers import tail_terms
from results import format_markdown
from variational_bound import (
    BoundSettings,
    Chain,
    dequantised,
    flat,
    image_bounds,
    in_float32,
    load_images,
    scaled_pixels,
    summarize,
    to_bits,
)

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, GREY = "#56B4E9", "#D55E00", "#777777"
FITTED = "variational bound, fitted variances"
#: Channels of the networks trained here, at each resolution.
WIDTHS = (16, 32, 64)
LEVELS = scaled_pixels(np.arange(256)).ravel()


# --- Settings and data ----------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How much to compute: images, steps of training, points of integration."""

    n_train: int = 6000
    n_valid: int = 100
    n_test: int = 200
    n_curve: int = 100  # of the test images, for the error curves
    n_steps: int = 2500
    batch_size: int = 32
    tuning_epochs: int = 10
    tuning_steps: int = 60
    tuning_rate: float = 5e-3
    reference_fraction: float = 0.005  # of the training images, to evaluate the Gaussian
    n_bound_strata: int = 24
    n_level_strata: int = 40

    @classmethod
    def of(cls, args):
        """Return the plan that the command line asks for."""
        if args.quick:
            plan = cls(
                n_train=300,
                n_valid=60,
                n_test=30,
                n_steps=40,
                batch_size=16,
                tuning_epochs=2,
                tuning_steps=5,
                reference_fraction=0.1,
                n_bound_strata=4,
                n_level_strata=6,
            )
        else:
            factor = args.minutes / 20.0
            plan = cls(
                n_steps=max(40, round(factor * cls.n_steps)),
                tuning_steps=max(5, round(factor * cls.tuning_steps)),
            )
        given = {"n_train": args.n_train, "n_test": args.n_test}
        return replace(plan, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Images:
    """8-bit images (n, channels, height, width): for training, for choices and for the results."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @classmethod
    def load(cls, path, plan):
        """Read an npz file, or take the digits."""
        n_read = plan.n_train + plan.n_valid
        if path is None:
            order = np.random.default_rng(0).permutation(1797)
            images = np.rint(load_digits().images[order, None] * (255 / 16)).astype(np.uint8)
            n_read = min(n_read, len(images) - plan.n_test)
            read, test = images[:n_read], images[n_read : n_read + plan.n_test]
        else:
            read, test = load_images(path, n_read, plan.n_test)
        return cls(read[: -plan.n_valid], read[-plan.n_valid :], test)

    @property
    def shape(self):
        """Channels, height and width."""
        return self.test.shape[1:]

    def dequantised(self, seed):
        """Return the images with noise of the width of a level."""
        parts = (self.train, self.valid, self.test)
        return Images(*(dequantised(part, (seed, i)) for i, part in enumerate(parts)))


# --- Training with the plain DDPM loss ------------------------------------------------------


def make_unet(shape, widths, seed):
    """Return an untrained U-Net without attention, with two or three resolutions."""
    from diffusers import UNet2DModel

    widths = widths if min(shape[1:]) >= 16 else widths[:2]
    # diffusers draws the initial weights from torch's global generator.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=1,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            norm_num_groups=8,
            add_attention=False,
        )


def train_ddpm(images, widths, plan, seed, device, folder):
    """Train a U-Net to predict the noise of 1000 time steps, and save it for diffusers."""
    from diffusers import DDPMScheduler

    unet, scheduler = make_unet(images.shape[1:], widths, seed).to(device), DDPMScheduler(1000)
    averaged = torch.optim.swa_utils.AveragedModel(
        unet, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, plan.n_steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    x = scaled_pixels(images).float().reshape(images.shape)
    for step in range(plan.n_steps):
        batch = x[torch.randint(len(x), (plan.batch_size,), generator=generator)]
        time_step = torch.randint(1000, (len(batch),), generator=generator)
        eps = torch.randn(batch.shape, generator=generator)
        noisy = scheduler.add_noise(batch, eps, time_step).to(device)
        loss = (unet(noisy, time_step.to(device)).sample - eps.to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        averaged.update_parameters(unet)
        if (step + 1) % max(1, plan.n_steps // 5) == 0:
            print(f"  {folder.name}: step {step + 1}, loss {loss.item():.4f}", flush=True)
    averaged.module.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")


def denoiser_folders(args, images, plan):
    """Return the folders given, or those of two networks, trained for different times."""
    if args.denoiser:
        return args.denoiser
    shares = {"ddpm": 1.0, "ddpm_short": 0.6}
    folders = [args.networks / name for name in shares]
    for seed, (folder, share) in enumerate(zip(folders, shares.values(), strict=True)):
        if not folder.exists():
            shorter = replace(plan, n_steps=max(1, round(share * plan.n_steps)))
            train_ddpm(images.train, WIDTHS, shorter, seed, args.device, folder)
    return folders


# --- Continuous densities -------------------------------------------------------------------


class BoundBefore(Callback):
    """Notes the validation bound with which a training begins."""

    def on_train_begin(self, net, **kwargs):
        self.bound = next(c.initial_bound for _, c in net.callbacks_ if hasattr(c, "initial_bound"))


def tune(folder, images, plan, args):
    """Tune a copy of a denoiser with the I-MMSE objective; return its folder and the bounds.

    The first bound is that before tuning.
    """
    before = BoundBefore()
    density = IMMSEDensity(
        image_shape=images.shape,
        denoiser=read_denoiser(folder),
        dequantize=1.0,
        experts=["network"],
        reference="gaussian",
        max_epochs=plan.tuning_epochs,
        steps_per_epoch=plan.tuning_steps,
        batch_size=plan.batch_size,
        learning_rate=plan.tuning_rate,
        callbacks=[before],
        device=args.device,
        random_state=args.seed,
    ).fit(flat(images.train))
    tuned = args.networks / f"{folder.name}_tuned"
    density.net_.module_.averaged.denoiser.module.save_pretrained(tuned / "unet")
    shutil.copytree(folder / "scheduler", tuned / "scheduler", dirs_exist_ok=True)
    return tuned, [before.bound, *(row["valid_bound"] for row in density.history_)]


def read_denoiser(folder):
    """Return the denoiser in a folder, for 8-bit pixels."""
    return PretrainedDenoiser.from_diffusers(folder, data_range=(0, 255), low_cpu_mem_usage=False)


def density_of(denoiser, images, plan, args):
    """Return the estimator of a denoiser as it is; the training images tell its reference.

    Images are dequantised, so that their density is a bound on the probability of their levels.
    """
    return IMMSEDensity(
        image_shape=images.shape,
        denoiser=denoiser,
        dequantize=1.0,
        experts=["network"],
        reference="gaussian",
        max_epochs=0,
        validation_fraction=plan.reference_fraction,
        device=args.device,
        random_state=args.seed,
    ).fit(flat(images.train))


def ensemble_of(members, images, plan, args):
    """Return the ensemble of fitted members and their Gaussian, chosen on some images."""
    return IMMSEEnsemble(
        list(members.items()),
        weights="select",
        prefit=True,
        random_state=args.seed,
    ).fit(flat(images))


def bits_of(density, images):
    """Return the estimate of each image in bits/dim."""
    return to_bits(-density.score_samples(flat(images)), images[0].size)


# --- Rounding to the levels of pixels -------------------------------------------------------


class LevelMeans:
    """Mean of the levels given a noisy observation.

    The posterior of level k is proportional to ``prior_k exp(-(x_hat - level_k)^2 / (2 v))``; with
    equal priors and v = 1 / (1 + SNR) its mean is the paper's soft rounding. It is interpolated in
    a table of predictions and variances; where the noise is finer than the levels, the seven
    nearest ones are summed.
    """

    n_points, n_variances = 16 * 255 + 1, 72
    least, greatest = math.log(1e-5), math.log(2.0)

    def __init__(self, log_prior):
        self.log_prior = log_prior.float()
        points = torch.linspace(-1.0, 1.0, self.n_points)
        levels = LEVELS.float()
        distance = (points[:, None] - levels).square()
        log_variances = torch.linspace(self.least, self.greatest, self.n_variances)
        self.table = torch.cat(
            [
                (self.log_prior - 0.5 * distance / v).softmax(1) @ levels
                for v in log_variances.exp().tolist()
            ]
        )

    def __call__(self, x_hat, variance):
        """Return the means for predictions (..., d) and variances (...)."""
        x_hat, means = x_hat.clamp(-1.0, 1.0).float(), torch.empty_like(x_hat, dtype=torch.float32)
        fine = variance.log() < self.least
        means[fine] = self._of_nearest(x_hat[fine], variance[fine].float())
        means[~fine] = self._interpolated(x_hat[~fine], variance[~fine].log().float())
        return means

    def _of_nearest(self, x_hat, variance):
        nearest = ((x_hat + 1.0) * 127.5).round().long()[..., None] + torch.arange(-3, 4)
        index = nearest.clamp(0, 255)
        offset = (nearest - 127.5) / 127.5 - x_hat[..., None]
        logits = self.log_prior[index] - 0.5 * offset.square() / variance[:, None, None]
        logits = logits.masked_fill(index != nearest, -math.inf)
        return x_hat + (logits.softmax(-1) * offset).sum(-1)

    def _interpolated(self, x_hat, log_variance):
        column = (x_hat + 1.0) * (0.5 * (self.n_points - 1))
        row = (log_variance - self.least) * ((self.n_variances - 1) / (self.greatest - self.least))
        row = row.clamp(0.0, self.n_variances - 1.0)[:, None]
        left = column.long().clamp_max(self.n_points - 2)
        lower = row.long().clamp_max(self.n_variances - 2)
        index = lower * self.n_points + left
        across = column - left
        below, above = (
            self.table[i].lerp(self.table[i + 1], across) for i in (index, index + self.n_points)
        )
        return below.lerp(above, (row - lower).expand_as(below))


def level_means(images):
    """Return the means with the frequencies of the levels as prior, and without."""
    counts = np.bincount(images.ravel(), minlength=256) + 0.5
    log_frequency = torch.from_numpy(np.log(counts / counts.sum()))
    return {"frequencies": LevelMeans(log_frequency), "none": LevelMeans(torch.zeros(256))}


@dataclass(frozen=True)
class Predictions:
    """Predicted pixels (n, m, d) of images (n, d) at log-SNRs (n, m), of density (n, m)."""

    x: torch.Tensor
    logsnr: torch.Tensor
    density: torch.Tensor
    x_hat: torch.Tensor

    @classmethod
    @torch.no_grad()
    def draw(cls, images, denoiser, placement, n_strata, generator, batch_size=256):
        """Predict from noisy images at one log-SNR in each stratum, others for each image."""
        x = scaled_pixels(images)
        shape = (len(x), n_strata)
        position = torch.rand(shape, generator=generator, dtype=torch.float64)
        position = (torch.arange(n_strata) + position) / n_strata
        logsnr = torch.from_numpy(placement.quantile(position.numpy()))
        x_hat = torch.empty((*shape, x.shape[1]), dtype=torch.float32)
        for rows in torch.arange(len(x)).split(max(1, batch_size // n_strata)):
            level = logsnr[rows][..., None]
            eps = torch.randn(x_hat[rows].shape, generator=generator, dtype=torch.float64)
            y = x[rows, None] + torch.exp(-0.5 * level) * eps
            eps_hat = denoiser((level.sigmoid().sqrt() * y).flatten(0, 1), level.ravel())
            x_hat[rows] = (y - torch.exp(-0.5 * level) * eps_hat.reshape(y.shape)).float()
        return cls(x, logsnr, torch.from_numpy(placement.density(logsnr.numpy())), x_hat)

    def terms(self, guess):
        """Return the terms (n, m), in nats, of the integral over the log-SNR with some guesses."""
        error = (guess.double() - self.x[:, None]).square().sum(2)
        return 0.5 * self.logsnr.exp() * error / (self.density * self.logsnr.shape[1])

    @property
    def interval(self):
        """Units of the log-SNR (n, m), from 0."""
        return (self.logsnr.floor().long() + 10).clamp(0, 23)


class Roundings:
    """Ways to round a denoiser's predictions, chosen in each unit of log-SNR on other images.

    Each of the kinds is replaced by the prediction itself (clipped to the range of the levels)
    where that has the lesser error, as in the paper. The categorical posterior has the frequencies
    of the levels as prior or none, and a variance that is chosen among multiples of that of soft
    rounding.
    """

    kinds = ("clipped", "rounding", "soft rounding", "categorical posterior")
    multiples = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 3.0)
    lowest, highest = -10.0, math.log(60.0 * 127.5**2)

    def __init__(self, images, means, denoiser, n_strata, seed):
        self.means, self.denoiser, self.n_strata = means, denoiser, n_strata
        self.generator = torch.Generator().manual_seed(seed)
        self.average = scaled_pixels(images.train).mean(0)
        edges = np.linspace(self.lowest, self.highest, 49)
        self.placement = PiecewiseDensity.from_profile(edges, np.ones(48))
        self._choose(images.valid)

    def _choose(self, images):
        """Choose the roundings and where to integrate."""
        predictions = self._predict(images)
        sums = {
            option: self._sum_by_interval(predictions, option)
            for kind in self.kinds
            for option in self._options(kind)
        }
        self.choice = {}
        for kind in self.kinds:
            options = list(dict.fromkeys([("clipped",), *self._options(kind)]))
            best = torch.stack([sums[option] for option in options]).argmin(0)
            self.choice[kind] = [options[number] for number in best]
        self._place(predictions)

    def _place(self, predictions):
        """Place further log-SNRs where the integrand of soft rounding is large."""
        cell = np.searchsorted(self.placement.edges, predictions.logsnr.numpy(), side="right") - 1
        terms = predictions.terms(self._guess(predictions, "soft rounding")).numpy()
        square = np.bincount(cell.ravel(), terms.ravel() ** 2, minlength=48)
        count = np.bincount(cell.ravel(), minlength=48)
        profile = np.sqrt(square / np.maximum(count, 1))
        self.placement = PiecewiseDensity.from_profile(self.placement.edges, profile, floor=0.2)

    def _predict(self, images):
        return Predictions.draw(
            images, self.denoiser, self.placement, self.n_strata, self.generator
        )

    def _options(self, kind):
        if kind != "categorical posterior":
            return [(kind,)]
        return [(kind, prior, c) for prior in self.means for c in self.multiples]

    def _sum_by_interval(self, predictions, option):
        terms = predictions.terms(self._round(predictions, option))
        return torch.bincount(predictions.interval.ravel(), terms.ravel(), minlength=24)

    def _round(self, predictions, option):
        """Return the guesses (n, m, d) of one option."""
        kind, *parameters = option
        x_hat = predictions.x_hat.clamp(-1.0, 1.0)
        if kind == "clipped":
            return x_hat
        if kind == "rounding":
            return torch.round((x_hat + 1.0) * 127.5) / 127.5 - 1.0
        prior, multiple = parameters or ("none", 1.0)
        return self.means[prior](x_hat, multiple / (1.0 + predictions.logsnr.exp()))

    def _guess(self, predictions, kind):
        """Return the guesses (n, m, d) of the options chosen for a kind."""
        guess = predictions.x_hat.clamp(-1.0, 1.0)
        interval = predictions.interval
        for option in dict.fromkeys(self.choice[kind]):
            units = [unit for unit, other in enumerate(self.choice[kind]) if other == option]
            where = torch.isin(interval, torch.tensor(units))
            if option != ("clipped",):
                part = replace(
                    predictions, x_hat=predictions.x_hat[where], logsnr=predictions.logsnr[where]
                )
                guess[where] = self._round(part, option)
        return guess

    def bits(self, images):
        """Return bounds on -log P of each image in bits/dim, for each kind.

        Below the integral's range stands the average image, above it a bound on the error of the
        nearest level.
        """
        predictions = self._predict(images)
        d = predictions.x.shape[1]
        below = 0.5 * math.exp(self.lowest) * (predictions.x - self.average).square().sum(1)
        above = d * tail_terms(LEVELS.numpy()[:, None], -math.inf, self.highest)
        return {
            kind: to_bits(
                predictions.terms(self._guess(predictions, kind)).sum(1) + below + above, d
            )
            for kind in self.kinds
        }


# --- The experiments ------------------------------------------------------------------------


def chain_of(denoiser):
    """Return the denoiser's own chain, or that of DDPM if it has none."""
    table = getattr(denoiser.noise_schedule, "alphas_cumprod", None)
    if table is None:
        table = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    return Chain(torch.as_tensor(table, dtype=torch.float64))


@dataclass
class Results:
    """Bits/dim of each test image by row of the tables, and what the figures show.

    Attributes
    ----------
    members : list of str
        The denoisers, the tuned one last.
    continuous, discrete : dict of str to ndarray of shape (n_test,)
        The tables.
    tuning : list of float
        Validation bounds of the epochs of tuning, the first one before it, in nats.
    curve : MSECurve
        Errors of all members on the test images.
    logsnr, weights : ndarray of shape (n_nodes,), dict of str to such arrays
        Weights in the ensemble.
    """

    members: list
    continuous: dict = field(default_factory=dict)
    discrete: dict = field(default_factory=dict)
    tuning: list = field(default_factory=list)
    curve: object = None
    logsnr: object = None
    weights: object = None


def run(args, images, plan):
    """Compute everything."""
    folders = denoiser_folders(args, images, plan)
    say("networks trained")
    tuned, bounds = tune(folders[0], images, plan, args)
    say("first network tuned")
    folders = [*folders, tuned]
    distinct = len({folder.name for folder in folders}) == len(folders)
    denoisers = {f.name if distinct else str(f): read_denoiser(f) for f in folders}
    results = Results(list(denoisers), tuning=bounds)
    noisy, means = images.dequantised(args.seed), level_means(images.train)
    members = {}
    for name, denoiser in denoisers.items():
        add_variational_bounds(results, name, denoiser, images, noisy, plan, args)
        members[name] = density_of(denoiser, images, plan, args)
        results.continuous[f"{name}: I-MMSE"] = bits_of(members[name], images.test)
        results.discrete[f"{name}: dequantisation"] = results.continuous[f"{name}: I-MMSE"]
        add_roundings(results, name, denoiser, images, means, plan, args)
        say(name)
    add_ensemble(results, members, images, plan, args)
    return results


def add_variational_bounds(results, name, denoiser, images, noisy, plan, args):
    """Add the rows of the variational bound of all steps."""
    for table, part in ((results.continuous, noisy), (results.discrete, images)):
        found = image_bounds(
            part.test,
            part.valid,
            in_float32(denoiser.to(args.device), args.device),
            chain_of(denoiser),
            torch.Generator().manual_seed(args.seed),
            discrete=part is images,
            settings=BoundSettings(plan.n_bound_strata),
        )
        table[f"{name}: variational bound"] = found["posterior"]
        table[f"{name}: {FITTED}"] = found["fitted"]


def add_roundings(results, name, denoiser, images, means, plan, args):
    """Add the rows of discrete probabilities by rounding."""
    roundings = Roundings(
        images,
        means,
        in_float32(denoiser.to(args.device), args.device),
        plan.n_level_strata,
        args.seed,
    )
    for kind, values in roundings.bits(images.test).items():
        results.discrete[f"{name}: {kind}"] = values


def add_ensemble(results, members, images, plan, args):
    """Add the ensemble of all members and the Gaussian, chosen on validation images."""
    ensemble = ensemble_of(members, images.valid, plan, args)
    results.logsnr, results.weights = ensemble.logsnr_, ensemble.member_weights_
    results.continuous["ensemble: I-MMSE"] = bits_of(ensemble, images.test)
    results.discrete["ensemble: dequantisation"] = results.continuous["ensemble: I-MMSE"]
    say("ensemble")
    results.curve = ensemble.mse_curve(flat(images.test[: plan.n_curve]))


def gain_of_choosing_on_test(results, n_pixels):
    """Return by how much choosing on the test images lowers the ensemble's mean bits/dim."""
    curve = results.curve
    least = np.min([*curve.networks.values(), *curve.references.values()], axis=0)
    nats = 0.5 * np.trapezoid(curve.model - least, curve.logsnr)
    return float(to_bits(nats, n_pixels))


# --- Tables ---------------------------------------------------------------------------------


def table_of(scores):
    """Return a Markdown table of means and standard errors."""
    rows = {name: summarize(values) for name, values in scores.items()}
    body = [[n, f"{r['mean']:.4f}", f"{r['standard_error']:.4f}"] for n, r in rows.items()]
    return format_markdown(["estimate", "bits/dim", "standard error"], body)


def comparisons(results):
    """Yield what the paper says is better: a sentence, the worse and the better estimate."""
    first, tuned = results.members[0], results.members[-1]
    rows = {name.removesuffix(": I-MMSE"): bits for name, bits in results.continuous.items()}
    for name in results.members:
        for kind in ("variational bound", FITTED):
            yield f"{name}: I-MMSE below {kind}", rows[f"{name}: {kind}"], rows[name]
    yield f"I-MMSE: {tuned} below {first}", rows[first], rows[tuned]
    best = min(results.members, key=lambda name: rows[name].mean())
    yield f"I-MMSE: ensemble below its best member, {best}", rows[best], rows["ensemble"]
    for name in results.members:
        posterior = results.discrete[f"{name}: categorical posterior"]
        for kind in ("soft rounding", FITTED):
            worse = results.discrete[f"{name}: {kind}"]
            yield f"{name}: categorical posterior below {kind}", worse, posterior


def table_of_comparisons(results):
    """Return a Markdown table of paired differences."""
    body = []
    for sentence, worse, better in comparisons(results):
        r = summarize(worse - better)
        ratio = r["mean"] / r["standard_error"] if r["standard_error"] > 0 else math.nan
        verdict = "yes" if ratio > 1 else "no"
        body.append(
            [sentence, f"{r['mean']:.5f}", f"{r['standard_error']:.5f}", f"{ratio:.1f}", verdict]
        )
    header = ["claim", "difference, bits/dim", "standard error", "ratio", "holds"]
    return format_markdown(header, body)


def report_of(results, images):
    """Return all tables."""
    shape = " x ".join(map(str, images.shape))
    parts = [
        f"{len(images.test)} test images of {shape} pixels; bits/dim of 256 levels",
        f"Continuous (a density in [-1, 1] has 6.9944 less)\n\n{table_of(results.continuous)}",
        f"Discrete\n\n{table_of(results.discrete)}",
        f"Differences, image by image\n\n{table_of_comparisons(results)}",
        "Chosen on the test images themselves, as in the paper, the ensemble's mean would be "
        f"{gain_of_choosing_on_test(results, math.prod(images.shape)):.5f} bits/dim lower.",
    ]
    return "\n\n".join(parts)


# --- Figures --------------------------------------------------------------------------------


def styles_of(results):
    """Return colour and line of each expert."""
    colours = [BLUE, GREEN, PURPLE, SKY, VERMILION]
    styles = {name: (colours[i % 5], "-") for i, name in enumerate(results.members[:-1])}
    return {**styles, results.members[-1]: (ORANGE, "-"), "gaussian": (GREY, "--")}


def figure_of_curves(results, n_pixels, path):
    """Draw errors per log-SNR, what is gained on the Gaussian, and the chosen experts."""
    curve, styles = results.curve, styles_of(results)
    errors = {**curve.networks, **curve.references}
    fig, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
    for name, (colour, line) in styles.items():
        axes[0].plot(curve.logsnr, errors[name] / n_pixels, line, color=colour, label=name)
        gain = to_bits(0.5 * (errors["gaussian"] - errors[name]), n_pixels)
        axes[1].plot(curve.logsnr, gain, line, color=colour)
    gain = to_bits(0.5 * (errors["gaussian"] - curve.model), n_pixels)
    axes[1].fill_between(curve.logsnr, gain, color=GREY, alpha=0.25, lw=0, label="ensemble")
    top = max(gain.max(), 1e-3)
    axes[1].set_ylim(-0.3 * top, 1.1 * top)
    draw_weights(axes[2], results, styles)
    axes[0].set(ylabel=r"$E|\epsilon-\hat\epsilon|^2$ per pixel", title="Squared error")
    axes[1].set(ylabel="bits/dim per unit of log-SNR", title="Gain on the Gaussian")
    axes[2].set(ylabel="weight in the ensemble", title="Chosen on validation images")
    for ax in axes:
        ax.set_xlabel("log signal-to-noise ratio")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:2]:
        ax.legend(frameon=False, fontsize=9)
    save(fig, path)


def draw_weights(ax, results, styles):
    """Stack the weights of the experts in the ensemble."""
    names = [name for name in styles if name in results.weights]
    weights = [results.weights[name] for name in names]
    ax.stackplot(results.logsnr, weights, colors=[styles[name][0] for name in names], lw=0)
    ax.set(ylim=(0, 1), xlim=(results.logsnr[0], results.logsnr[-1]))


def figure_of_tuning(results, plan, n_pixels, path):
    """Draw how the bound changes while the first network is tuned."""
    bits = to_bits(np.array(results.tuning), n_pixels)
    steps = plan.tuning_steps * np.arange(len(bits))
    first, tuned = (results.continuous[f"{results.members[i]}: I-MMSE"] for i in (0, -1))
    change = summarize(tuned - first)
    fig, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    ax.plot(steps, bits - bits[0], "o-", ms=4, color=ORANGE, label="validation images")
    ax.errorbar(
        steps[-1],
        change["mean"],
        yerr=2 * change["standard_error"],
        fmt="s",
        ms=6,
        capsize=3,
        color=BLUE,
        label="test images, 2 standard errors",
    )
    ax.set(
        xlabel="steps of tuning",
        ylabel="change of the bound, bits/dim",
        title="Tuning with the I-MMSE objective",
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    save(fig, path)


def figure_of_likelihoods(results, path):
    """Draw all estimates with twice their standard errors, variational ones grey."""
    tables = {"Continuous": results.continuous, "Discrete": results.discrete}
    fig, axes = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")
    for ax, (title, scores) in zip(axes, tables.items(), strict=True):
        summaries = [summarize(values) for values in scores.values()]
        for number, (name, r) in enumerate(zip(scores, summaries, strict=True)):
            grey = "variational" in name
            style = {"fmt": "s" if grey else "o", "ms": 5, "color": GREY if grey else BLUE}
            ax.errorbar(r["mean"], number, xerr=2 * r["standard_error"], **style)
        ax.set_yticks(range(len(scores)), list(scores), fontsize=8)
        ax.invert_yaxis()
        ax.set(xlabel="bits/dim (bars: 2 standard errors)", title=title)
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right", "left"]].set_visible(False)
    save(fig, path)


def save(fig, path):
    fig.savefig(path, dpi=130)
    plt.close(fig)
    print(path, flush=True)


def say(what, _start=time.monotonic()):  # noqa: B008
    """Print what is done, and after how many seconds."""
    print(f"[{time.monotonic() - _start:5.0f} s] {what}", flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="npz file of 8-bit X_train and X_test")
    parser.add_argument("--denoiser", type=Path, nargs="+", help="folders of diffusers models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n-train", type=int, help="training images")
    parser.add_argument("--n-test", type=int, help="test images")
    parser.add_argument("--minutes", type=float, default=20.0, help="scales the steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few images, few steps")
    parser.add_argument("--output", type=Path, default=Path("paper"), help="folder of the figures")
    parser.add_argument("--networks", type=Path, help="folder of the networks trained here")
    args = parser.parse_args()
    args.networks = args.networks or args.output / "networks"
    return args


def main():
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    plan = Plan.of(args)
    images = Images.load(args.data, plan)
    results = run(args, images, plan)
    n_pixels = math.prod(images.shape)
    figure_of_curves(results, n_pixels, args.output / "paper_mse_curves.png")
    figure_of_tuning(results, plan, n_pixels, args.output / "paper_tuning.png")
    figure_of_likelihoods(results, args.output / "paper_likelihoods.png")
    print(f"\n{report_of(results, images)}\n")
    say("done")


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "paper_mse_curves.png"
