r"""The variational bound of diffusion models, alongside the I-MMSE estimate of the same denoiser.

    python benchmarks/variational_bound.py --data mnist.npz --denoiser ddpm tuned_ddpm
    python benchmarks/variational_bound.py --data mnist.npz --denoiser ddpm --steps 10 100 1000

Each denoiser is a folder as diffusers writes it (subfolders unet and scheduler), the data an npz
file with the arrays X_train and X_test of 8-bit images. Finished records in the output file are not
computed again.

**The bound** (Sohl-Dickstein et al. 2015; Ho, Jain and Abbeel 2020). With cumulative signal shares
:math:`\bar\alpha_1 > \dots > \bar\alpha_T` and :math:`z_t = \sqrt{\bar\alpha_t}\,x +
\sqrt{1 - \bar\alpha_t}\,\epsilon`, in nats,

.. math:: -\log p(x) \le KL(q(z_T|x) \| N(0, I))
    + \sum_{t=2}^T E\,KL(q(z_{t-1}|z_t, x) \| p(z_{t-1}|z_t)) - E \log p(x|z_1) .

The posterior :math:`q(z_{t-1}|z_t, x)` is normal with variance :math:`\tilde\beta_t`; the model's
transition puts the denoiser's :math:`\hat x` instead of x, with variance
:math:`\sigma_t^2`, which is :math:`\tilde\beta_t` ("posterior"), :math:`\beta_t` ("beta"), both
with :math:`\sigma_1^2 = \tilde\beta_2`, or the best one on other images for each t ("fitted": what
a model of learned variances can reach at most with one variance for all pixels). The decoder
:math:`p(x|z_1)` is normal around :math:`\hat x`: its density for dequantised pixels (the continuous
bound), or its mass in the bins of the 256 levels, the outer ones open (the discrete bound). As
usual, :math:`\hat x` is clipped to the range of pixels. A chain of fewer steps is a selection from
the T, evenly spaced. The sum over t is estimated without bias from one random step in each
of ``--strata`` strata, other ones for each image.

**Bits/dim.** Pixels lie in [-1, 1]. A continuous figure is the density there; plus log2(127.5) =
6.99 it is a bound on the discrete scale of the 256 levels, on which the tables are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from results import Record, ResultsFile, format_markdown
from torch import Tensor

Array = NDArray[np.float64]
#: Maps z (B, d) and log-SNR (B,) to the predicted noise (B, d).
Denoiser = Callable[[Tensor, Tensor], Tensor]

VARIANCES = ("posterior", "beta", "fitted")
#: Half the distance of two levels of 8-bit pixels in [-1, 1].
HALF_BIN = 1.0 / 255.0
BITS_OF_A_UNIT = math.log2(127.5)


# --- The chain ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A diffusion in discrete time; index 0 is the step t = 1.

    Parameters
    ----------
    alphas_cumprod : Tensor of shape (T,), float64
        Cumulative signal shares, decreasing.
    """

    alphas_cumprod: Tensor

    @property
    def n_steps(self) -> int:
        """Number T of steps."""
        return len(self.alphas_cumprod)

    @property
    def logsnr(self) -> Tensor:
        """Log signal-to-noise ratio at each step, shape (T,)."""
        return self.alphas_cumprod.logit()

    @property
    def previous(self) -> Tensor:
        """Cumulative signal share one step before, 1 before the first, shape (T,)."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @property
    def betas(self) -> Tensor:
        """Variance of the noise added in each step, shape (T,)."""
        return 1.0 - self.alphas_cumprod / self.previous

    @property
    def posterior_variances(self) -> Tensor:
        """Variance of q(z_{t-1} | z_t, x), 0 for the first step, shape (T,)."""
        return self.betas * (1.0 - self.previous) / (1.0 - self.alphas_cumprod)

    @property
    def data_coefficients(self) -> Tensor:
        """Factor of x in the mean of q(z_{t-1} | z_t, x), 1 for the first step, shape (T,)."""
        return self.previous.sqrt() * self.betas / (1.0 - self.alphas_cumprod)

    def respaced(self, n_steps: int) -> Chain:
        """Return the chain of fewer, evenly spaced steps, the first and the last included."""
        chosen = torch.linspace(0, self.n_steps - 1, n_steps, dtype=torch.float64).round().long()
        return Chain(self.alphas_cumprod[chosen])


def fixed_variances(chain: Chain, kind: str) -> Tensor:
    """Return the variances of the model's transitions, that of the decoder first, shape (T,)."""
    variances = (chain.posterior_variances if kind == "posterior" else chain.betas).clone()
    variances[0] = chain.posterior_variances[1]
    return variances


# --- Evaluations of the denoiser ------------------------------------------------------------


@dataclass(frozen=True)
class Evaluations:
    """What a bound needs to know of a denoiser, for n images and m strata of the steps.

    Attributes
    ----------
    x : Tensor of shape (n, d)
        The images.
    step : Tensor of shape (n, m), int64
        Indices of the steps, 1 or more, one in each stratum.
    weight : Tensor of shape (m,)
        Number of steps in each stratum.
    squared_error : Tensor of shape (n, m)
        ``|x - x_hat|^2`` at these steps.
    decoder_mean : Tensor of shape (n, d)
        ``x_hat`` at the first step.
    """

    x: Tensor
    step: Tensor
    weight: Tensor
    squared_error: Tensor
    decoder_mean: Tensor


def evaluate(
    x: Tensor,
    denoiser: Denoiser,
    chain: Chain,
    generator: torch.Generator,
    *,
    n_strata: int | None = None,
    limits: tuple[float, float] | None = None,
    batch_size: int = 256,
) -> Evaluations:
    """Evaluate a denoiser at the first step and at one random step in each stratum of the others.

    Parameters
    ----------
    x : Tensor of shape (n, d), float64
        Images, in the denoiser's units.
    denoiser : callable
        Predicts the noise.
    chain : Chain
        The steps; at least 2.
    generator : torch.Generator
        Source of steps and noise.
    n_strata : int or None
        Strata of the steps; None, or no less than there are steps, takes all steps.
    limits : tuple of float or None
        Range to which predictions are clipped.
    batch_size : int
        Noisy images in one call of the denoiser.

    Returns
    -------
    Evaluations
        Errors and the decoder's mean.
    """
    edges = stratum_edges(chain.n_steps - 1, n_strata)
    width = edges.diff()
    position = torch.rand(len(x), len(width), generator=generator, dtype=torch.float64)
    step = 1 + edges[:-1] + torch.minimum((position * width).long(), width - 1)
    errors = torch.empty(step.shape, dtype=torch.float64)
    decoder_mean = torch.empty_like(x)
    for rows in torch.arange(len(x)).split(max(1, batch_size // step.shape[1])):
        repeated = x[rows].repeat_interleave(step.shape[1], 0)
        guess = predict(repeated, chain.logsnr[step[rows].ravel()], denoiser, generator, limits)
        errors[rows] = (repeated - guess).square().sum(1).reshape(len(rows), -1)
    for rows in torch.arange(len(x)).split(batch_size):
        first = chain.logsnr[0].expand(len(rows))
        decoder_mean[rows] = predict(x[rows], first, denoiser, generator, limits)
    return Evaluations(x, step, width.double(), errors, decoder_mean)


def stratum_edges(n: int, n_strata: int | None) -> Tensor:
    """Return edges of strata of 0, ..., n - 1, narrower near 0, where the terms are largest."""
    m = n if n_strata is None else min(n, n_strata)
    number = torch.arange(m + 1)
    return number + ((n - m) * (number / m).square()).round().long()


@torch.no_grad()
def predict(
    x: Tensor,
    logsnr: Tensor,
    denoiser: Denoiser,
    generator: torch.Generator,
    limits: tuple[float, float] | None,
) -> Tensor:
    """Return predictions of images (B, d) from noisy versions of them at log-SNRs (B,)."""
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    share = logsnr[:, None].sigmoid()
    z = share.sqrt() * x + (1.0 - share).sqrt() * eps
    # The same as (z - noise_scale eps_hat) / signal_scale.
    x_hat = x + torch.exp(-0.5 * logsnr)[:, None] * (eps - denoiser(z, logsnr))
    return x_hat if limits is None else x_hat.clamp(*limits)


# --- The terms of the bound -----------------------------------------------------------------


@dataclass(frozen=True)
class BoundTerms:
    """Terms of the bound on -log p(x) in nats, each of shape (n,)."""

    prior: Tensor
    transitions: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, shape (n,)."""
        return self.prior + self.transitions + self.decoder


def bound_terms(
    evaluations: Evaluations, chain: Chain, variances: Tensor, half_bin: float | None = None
) -> BoundTerms:
    """Return the bound on -log p of each image.

    Parameters
    ----------
    evaluations : Evaluations
        What the denoiser predicts.
    chain : Chain
        The steps.
    variances : Tensor of shape (T,)
        Variances of the model's transitions, that of the decoder first.
    half_bin : float or None
        Half the distance of two levels, from -1 to 1, for the discrete bound; None gives the
        continuous one.

    Returns
    -------
    BoundTerms
        In nats.
    """
    x = evaluations.x
    divergences = transition_divergence(
        evaluations.squared_error, evaluations.step, x.shape[1], chain, variances
    )
    return BoundTerms(
        prior=prior_divergence(x, chain),
        transitions=divergences @ evaluations.weight,
        decoder=-decoder_log_likelihood(x, evaluations.decoder_mean, variances[0], half_bin),
    )


def prior_divergence(x: Tensor, chain: Chain) -> Tensor:
    """Return KL(q(z_T | x) || N(0, I)) of images (n, d), shape (n,)."""
    share = chain.alphas_cumprod[-1]
    return 0.5 * (share * x.square() - share - torch.log1p(-share)).sum(1)


def transition_divergence(
    squared_error: Tensor, step: Tensor, n_dimensions: int, chain: Chain, variances: Tensor
) -> Tensor:
    """Return KL(q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t)) of steps with an error |x - x_hat|^2."""
    ratio = (chain.posterior_variances / variances)[step]
    factor = (chain.data_coefficients.square() / variances)[step]
    return 0.5 * (n_dimensions * (ratio - 1.0 - ratio.log()) + factor * squared_error)


def decoder_log_likelihood(
    x: Tensor, mean: Tensor, variance: Tensor, half_bin: float | None
) -> Tensor:
    """Return log p(x | z_1) of images (n, d) from the decoder's mean (n, d), shape (n,)."""
    if half_bin is None:
        square = (x - mean).square() / variance
        return -0.5 * (square + torch.log(2.0 * math.pi * variance)).sum(1)
    upper = torch.where(x > 1.0 - half_bin, math.inf, (x + half_bin - mean) / variance.sqrt())
    lower = torch.where(x < -1.0 + half_bin, -math.inf, (x - half_bin - mean) / variance.sqrt())
    return log_normal_mass(lower, upper).sum(1)


def log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """Return log(Phi(upper) - Phi(lower)), exact in both tails."""
    # The lower tail of the mirrored interval has no cancellation.
    mirrored = lower + upper > 0.0
    low = torch.where(mirrored, -upper, lower)
    high = torch.where(mirrored, -lower, upper)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


def fitted_variances(
    evaluations: Evaluations, chain: Chain, half_bin: float | None = None
) -> Tensor:
    """Return the variances of least bound on some images, that of the decoder first, shape (T,).

    The error of the predicted noise, which changes slowly with the step, is averaged over each
    stratum and interpolated.
    """
    logsnr, d = chain.logsnr, evaluations.x.shape[1]
    error = evaluations.squared_error * logsnr[evaluations.step].exp() / d
    middle = evaluations.step.double().mean(0)
    smooth = np.interp(np.arange(chain.n_steps), middle.numpy(), error.mean(0).numpy())
    data_error = torch.from_numpy(smooth) * torch.exp(-logsnr)
    variances = chain.posterior_variances + chain.data_coefficients.square() * data_error
    variances[0] = fitted_decoder_variance(evaluations, half_bin)
    return variances


def fitted_decoder_variance(evaluations: Evaluations, half_bin: float | None) -> Tensor:
    """Return the variance with which the decoder is most likely."""
    x, mean = evaluations.x, evaluations.decoder_mean
    moment = (x - mean).square().mean()
    if half_bin is None:
        return moment
    grid = moment.clamp_min(1e-8) * torch.logspace(-2, 1, 61, dtype=torch.float64)
    scores = torch.stack([decoder_log_likelihood(x, mean, v, half_bin).mean() for v in grid])
    return grid[scores.argmax()]


# --- Images ---------------------------------------------------------------------------------


def load_images(path: Path, n_train: int | None, n_test: int) -> tuple[Array, Array]:
    """Return the first (or all) training and the first test images of an npz file.

    Their shape is (n, channels, height, width).
    """
    with np.load(path, allow_pickle=False) as file:
        return with_channels(file["X_train"][:n_train]), with_channels(file["X_test"][:n_test])


def with_channels(images: Array) -> Array:
    """Return images, with their channels last, first or without any, as (n, channels, h, w)."""
    if images.ndim not in (3, 4):
        raise ValueError(f"Images must be of 2 or 3 dimensions, got {images.shape[1:]}.")
    if images.ndim == 3:
        return images[:, None]
    is_first = images.shape[1] in (1, 3)
    return images if is_first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def dequantised(images: Array, seed: int) -> Array:
    """Return images plus uniform noise of the width of a level, centred at zero."""
    return images + np.random.default_rng(seed).uniform(-0.5, 0.5, images.shape)


def scaled_pixels(images: Array) -> Tensor:
    """Return 8-bit images, dequantised or not, as float64 rows in [-1, 1]."""
    return torch.from_numpy(flat(images)) / 127.5 - 1.0


def in_float32(module: Denoiser, device: str = "cpu") -> Denoiser:
    """Return a float32 network as a denoiser of float64 tensors on the CPU."""

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        return module(z.float().to(device), logsnr.float().to(device)).double().cpu()

    return denoise


@dataclass(frozen=True)
class BoundSettings:
    """How exactly to evaluate a bound; see `evaluate`."""

    n_strata: int = 32
    batch_size: int = 256


def image_bounds(
    images: Array,
    validation: Array,
    denoiser: Denoiser,
    chain: Chain,
    generator: torch.Generator,
    *,
    discrete: bool,
    settings: BoundSettings | None = None,
) -> dict[str, Array]:
    """Return bounds in bits/dim, on the discrete scale, of images, for each kind of variance.

    Parameters
    ----------
    images, validation : ndarray of shape (n, ...)
        Images to score, and others on which variances are fitted: 8-bit ones for the discrete
        bound, dequantised ones for the continuous bound.
    denoiser : callable
        Predicts the noise of float64 rows in [-1, 1].
    chain : Chain
        The steps.
    generator : torch.Generator
        Source of steps and noise.
    discrete : bool
        Whether to bound the probability of the levels, or the density.
    settings : BoundSettings or None
        How exactly; None is the default.

    Returns
    -------
    dict of str to ndarray of shape (n,)
        Bounds by kind of variance.
    """
    settings = settings or BoundSettings()
    half_bin = HALF_BIN if discrete else None
    edge = 1.0 if discrete else 1.0 + HALF_BIN

    def measure(part: Array) -> Evaluations:
        return evaluate(
            scaled_pixels(part),
            denoiser,
            chain,
            generator,
            n_strata=settings.n_strata,
            limits=(-edge, edge),
            batch_size=settings.batch_size,
        )

    fitted = fitted_variances(measure(validation), chain, half_bin)
    variances = {kind: fixed_variances(chain, kind) for kind in VARIANCES[:2]} | {"fitted": fitted}
    scored = measure(images)
    offset = 0.0 if discrete else BITS_OF_A_UNIT
    return {
        kind: offset + to_bits(bound_terms(scored, chain, value, half_bin).total, scored.x.shape[1])
        for kind, value in variances.items()
    }


def to_bits(nats: Tensor | Array, n_dimensions: int) -> Array:
    """Return nats per image as bits/dim."""
    return np.asarray(nats) / (n_dimensions * math.log(2.0))


# --- The comparison -------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """8-bit images (n, channels, height, width): for references, for variances, to be scored."""

    train: Array
    validation: Array
    test: Array


def immse_bits(denoiser: Any, images: Images, arguments: argparse.Namespace) -> Array:
    """Return the I-MMSE estimate of dequantised images by a pretrained denoiser, in bits/dim.

    The denoiser is used alone; the Gaussian reference, fitted to the training images, is the
    control variate.
    """
    from sk_itdiffusion import IMMSEDensity

    density = IMMSEDensity(
        image_shape=images.test.shape[1:],
        denoiser=denoiser,
        dequantize=1.0,
        experts=["network"],
        reference="gaussian",
        max_epochs=0,
        n_strata=arguments.strata,
        device=arguments.device,
        random_state=arguments.seed,
    ).fit(flat(images.train))
    return to_bits(-density.score_samples(flat(images.test)), images.test[0].size)


def flat(images: Array) -> Array:
    """Return images as rows of float64 pixels."""
    return images.reshape(len(images), -1).astype(np.float64)


def summarize(bits: Array) -> Record:
    """Return mean and standard error over the images."""
    return {
        "mean": float(bits.mean()),
        "standard_error": float(bits.std(ddof=1) / math.sqrt(len(bits))),
    }


def bounds_of(
    denoiser: Any, images: Images, arguments: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Record]]]:
    """Yield the name of each bound of a denoiser, and the function that measures it."""
    table = torch.as_tensor(denoiser.noise_schedule.alphas_cumprod, dtype=torch.float64)

    def variational(n_steps: int, discrete: bool) -> Record:
        parts = (images.test, images.validation)
        bits = image_bounds(
            *(part if discrete else dequantised(part, arguments.seed) for part in parts),
            in_float32(denoiser.to(arguments.device), arguments.device),
            Chain(table).respaced(n_steps),
            torch.Generator().manual_seed(arguments.seed),
            discrete=discrete,
            settings=BoundSettings(arguments.strata),
        )
        return {kind: summarize(values) for kind, values in bits.items()}

    for n_steps in arguments.steps:
        for discrete in (False, True):
            name = f"T = {n_steps}, {'discrete' if discrete else 'continuous'}"
            yield name, partial(variational, n_steps, discrete)
    yield "I-MMSE", lambda: {"I-MMSE": summarize(immse_bits(denoiser, images, arguments))}


def measure_folder(
    arguments: argparse.Namespace, results: ResultsFile, folder: Path, images: Images
) -> list[Record]:
    """Return the records of one denoiser; those in the results file are not computed again."""
    from sk_itdiffusion import PretrainedDenoiser

    denoiser = PretrainedDenoiser.from_diffusers(
        folder, data_range=(0, 255), low_cpu_mem_usage=False
    )
    records = []
    for name, measure in bounds_of(denoiser, images, arguments):
        key = {
            "dataset": arguments.data.stem,
            "seed": arguments.seed,
            "method": f"{folder}: {name}",
            "setting": f"{len(images.test)} images, {arguments.strata} strata",
        }
        record = results.find(**key) or results.add({**key, "name": name, "bits": measure()})
        print(folder, name, *format_cells(record), flush=True)
        records.append(record)
    return records


def format_cells(record: Record) -> list[str]:
    """Return mean and standard error of each column of the table."""
    found = [record["bits"].get(kind) for kind in (*VARIANCES, "I-MMSE")]
    return [f"{b['mean']:.4f} +- {b['standard_error']:.4f}" if b else "" for b in found]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="npz file with X_train, X_test")
    parser.add_argument("--denoiser", type=Path, nargs="+", required=True, help="folders")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 100, 250, 1000])
    parser.add_argument("--strata", type=int, default=32, help="strata of steps and of log-SNRs")
    parser.add_argument("--n-train", type=int, default=2000)
    parser.add_argument("--n-test", type=int, default=200)
    parser.add_argument("--n-validation", type=int, default=100, help="images that fit variances")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    return parser.parse_args()


def main() -> None:
    """Measure the bounds that the command line asks for, and print a table for each denoiser."""
    arguments = parse_arguments()
    results = ResultsFile(arguments.output)
    train, test = load_images(arguments.data, None, arguments.n_test)
    # The last training images: of networks trained here on the first ones, they are new.
    images = Images(train[: arguments.n_train], train[-arguments.n_validation :], test)
    for folder in arguments.denoiser:
        records = measure_folder(arguments, results, folder, images)
        body = [[record["name"], *format_cells(record)] for record in records]
        print(f"\n{folder}, bits/dim\n\n{format_markdown(['', *VARIANCES, 'I-MMSE'], body)}\n")


if __name__ == "__main__":
    main()
