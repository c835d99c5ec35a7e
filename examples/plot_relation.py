"""
From denoising errors to a density, in pictures
===============================================

How well noise can be predicted, at every signal-to-noise ratio, determines a density. This page
shows it for a single column whose density is known exactly, so that both sides of the relation can
be drawn: the best predictions of the noise, their errors, the integral of these errors alongside
the logarithm of the density, and finally the density that :class:`sk_itdiffusion.IMMSEDensity`
learns from rows.

``python examples/plot_relation.py`` saves the pictures in a folder; ``--quick`` shows that it runs.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import norm

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.references import GaussianMixtureReference, GaussianReference

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"

# sphinx_gallery_start_ignore
parser = argparse.ArgumentParser(description="The relation in pictures.")
parser.add_argument("--output", type=Path, default=Path("relation"), help="folder to fill")
parser.add_argument("--quick", action="store_true", help="few rows and epochs")
args = parser.parse_args()


def save(fig, name):
    args.output.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.output / name, dpi=120)


def plain(*axes):
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)


# sphinx_gallery_end_ignore

# %%
# Rows seen through noise
# -----------------------
#
# The density p has a narrow and a wide peak; q is the Gaussian with the same mean and variance. A
# row x is mixed with noise, the noise is predicted from the mixture z, and the best prediction is
# the conditional mean of the noise given z. At a low log-SNR only the mean and the variance of p
# matter, and both predictions agree. At an intermediate one the two peaks matter. At a high one z
# is nearly x, and the prediction depends on the details of the density.

weights, centers, variances = np.array([0.6, 0.4]), np.array([-0.8, 1.2]), np.array([0.04, 0.2])
truth = GaussianMixtureReference(weights, centers[:, None], variances[:, None, None])
mean = weights @ centers
gaussian = GaussianReference([mean], [[weights @ (variances + (centers - mean) ** 2)]])

points = torch.linspace(-3.2, 3.2, 400, dtype=torch.float64)[:, None]
fig, axes = plt.subplots(
    2, 4, figsize=(11, 5), sharex=True, sharey="row", height_ratios=[1, 1.3], layout="constrained"
)
for (above, below), logsnr in zip(axes.T, (-4.0, 0.0, 2.0, 5.0), strict=True):
    level = torch.full((len(points),), logsnr, dtype=torch.float64)
    signal, noise = 1.0 / (1.0 + np.exp(-logsnr)), 1.0 / (1.0 + np.exp(logsnr))
    scales = np.sqrt(signal * variances + noise)
    seen = torch.from_numpy(norm.pdf(points, np.sqrt(signal) * centers, scales) @ weights)
    above.fill_between(points[:, 0], seen, color=BLUE, alpha=0.3, lw=0)
    above.set(title=f"log-SNR {logsnr:g}")
    for q_or_p, style in ((gaussian, {"color": GREY, "ls": "--"}), (truth, {"color": BLUE})):
        guess = q_or_p.denoise(points, level)[:, 0]
        below.plot(points, guess.where(seen > 1e-3, np.nan), **style)  # where there are rows
    below.set(xlabel="noisy row z", ylim=(-4, 4))
axes[0, 0].set(ylabel="density of z", yticks=[])
axes[1, 0].set(ylabel="predicted noise")
axes[1, 0].legend(["best for q", "best for p"], frameon=False)
plain(*axes.flat)
save(fig, "guesses.png")

# %%
# Prediction errors, row by row
# -----------------------------
#
# For one row, the squared errors of both predictions are averaged over the noise, at each log-SNR.
# **Half the area between the two curves is log p(x) - log q(x)**, counted as negative where q
# predicts better for this row. That is the relation. It holds for each single row, as the titles
# show for a row in the narrow peak, one in the wide peak, and one between them.

eps = torch.linspace(-7.0, 7.0, 1401, dtype=torch.float64)[:, None]
probability = torch.softmax(-0.5 * eps[:, 0] ** 2, 0)
nodes = np.linspace(-9.0, 13.0, 221)


def squared_errors(denoiser, x):
    """Return the mean squared error in the noise for one row x at each node."""
    errors = []
    for logsnr in nodes:
        level = torch.full((len(eps),), logsnr, dtype=torch.float64)
        guess = denoiser.denoise(add_noise(x.expand_as(eps), eps, level), level)
        errors.append((probability * (eps - guess)[:, 0] ** 2).sum().item())
    return np.array(errors)


def log_ratio(x):
    """Return log p(x) - log q(x)."""
    return (truth.log_prob(x[None]) - gaussian.log_prob(x[None])).item()


fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
for ax, value in zip(axes, (-0.8, 1.2, 0.3), strict=True):
    x = torch.tensor([value], dtype=torch.float64)
    under_q, under_p = squared_errors(gaussian, x), squared_errors(truth, x)
    half_area = 0.5 * np.trapezoid(under_q - under_p, nodes)
    ax.plot(nodes, under_q, color=GREY, ls="--", label="best for q")
    ax.plot(nodes, under_p, color=BLUE, label="best for p")
    for sign, colour in ((1, BLUE), (-1, ORANGE)):
        where = sign * (under_q - under_p) >= 0
        ax.fill_between(nodes, under_p, under_q, where=where, color=colour, alpha=0.25, lw=0)
    ax.set(
        xlabel="log-SNR",
        title=f"x = {value:g}: half the area {half_area:.3f},\n"
        f"log p(x) - log q(x) = {log_ratio(x):.3f}",
    )
axes[0].set(ylabel="squared error in the noise")
axes[0].legend(frameon=False)
plain(*axes)
save(fig, "errors_of_rows.png")

# %%
# From errors to a density
# ------------------------
#
# The integral for many rows gives the curve of log p, so a network that predicts noise well is a
# density estimate. :class:`~sk_itdiffusion.IMMSEDensity` learns from 4000 rows and knows nothing
# about p; at each log-SNR it weights its networks, a Gaussian and a mixture that it fits itself.

rng = np.random.RandomState(0)
n_rows = 4000
# sphinx_gallery_start_ignore
n_rows = 300 if args.quick else n_rows
# sphinx_gallery_end_ignore
rows = truth.sample(n_rows, rng)
settings = {}
# sphinx_gallery_start_ignore
if args.quick:
    settings = {"max_epochs": 2, "steps_per_epoch": 10}
# sphinx_gallery_end_ignore
density = IMMSEDensity(random_state=0, **settings).fit(rows)

x = np.linspace(-2.0, 3.0, 81)[:, None]
log_p, std = density.score_samples(x, return_std=True)
integral = [
    gaussian.log_prob(row[None]).item()
    + 0.5 * np.trapezoid(squared_errors(gaussian, row) - squared_errors(truth, row), nodes)
    for row in torch.from_numpy(x[::5])
]
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
exact = truth.log_prob(torch.from_numpy(x))
left.plot(x, exact, color=BLUE, label="log p")
left.plot(x, gaussian.log_prob(torch.from_numpy(x)), color=GREY, ls="--", label="log q")
left.plot(x[::5], integral, "o", ms=4, color=BLUE, label="log q + half the area")
left.errorbar(x[:, 0], log_p, 2 * std, fmt=".", ms=3, lw=1, color=ORANGE, label="IMMSEDensity")
left.set(xlabel="x", ylabel="log-density (nats)", ylim=(-8, 2))
left.legend(frameon=False, ncols=2, loc="upper right")

curve = density.mse_curve(truth.sample(2000, rng))
right.plot(curve.logsnr, curve.references["gaussian"], color=GREY, ls="--", label="Gaussian")
right.plot(curve.logsnr, curve.model, color=ORANGE, label="IMMSEDensity")
right.fill_between(
    curve.logsnr, curve.model, curve.references["gaussian"], color=ORANGE, alpha=0.2, lw=0
)
right.set(xlabel="log-SNR of the standardised rows", ylabel="squared error, mean over new rows")
right.legend(frameon=False)
plain(left, right)
save(fig, "density.png")

# %%
# Averaged over new rows, half the shaded area on the right is the mean of log p - log q: what the
# model has learned beyond a Gaussian, in nats per row. The curve also shows *at which scale*:
# structure that matters only at high log-SNRs is fine structure.

gap = 0.5 * np.trapezoid(curve.references["gaussian"] - curve.model, curve.logsnr)
print(f"half the area: {gap:.3f} nats per row")
