"""Measure how far the law of `sample` is from that of `score_samples`, and from the truth.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --densities banana ring --seeds 0 1 2

IMMSEDensity is fitted to rows of a known density p.  Its scores are a density q, and its samples
follow the probability flow of the same denoiser, which is q only if the denoiser is optimal.
Printed are means of the true log p, in nats, with their standard errors over rows,

- under p: of fresh rows;
- under q: of the same rows, weighted by q / p;
- of samples,

and the same three of the estimate log q.  So the difference between the last two columns is what
sampling and scoring disagree about, and that between the first two is the error of the fit.  The
energy distance is that between samples and fresh rows, alongside that between two sets of fresh
rows, in the units of the columns (its root is a distance); the sets have as many rows as are
sampled.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion.datasets import DENSITY_NAMES, load_density

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]


def mean_and_error(values: Array, weight: Array | None = None) -> tuple[float, float]:
    """Return a weighted mean and its standard error over rows."""
    weight = np.ones(len(values)) if weight is None else weight
    share = weight / weight.sum()
    mean = float(share @ values)
    return mean, float(np.sqrt((share**2) @ (values - mean) ** 2))


def energy_distance(first: Array, second: Array) -> float:
    """Return the energy distance of two samples, unbiased, so that it may be below 0."""
    n, m = len(first), len(second)
    within = cdist(first, first).sum() / (n * (n - 1)) + cdist(second, second).sum() / (m * (m - 1))
    return float(2.0 * cdist(first, second).mean() - within)


def measure(name: str, seed: int, n_rows: int, n_drawn: int, max_epochs: int) -> None:
    """Fit to one density, and print what is found."""
    truth = load_density(name)
    X = truth.sample(n_rows + 2 * n_drawn, random_state=seed)
    train, fresh, other = np.split(X, [n_rows, n_rows + n_drawn])
    density = IMMSEDensity(max_epochs=max_epochs, random_state=seed).fit(train)
    drawn = density.sample(n_drawn, random_state=seed + 1)
    log_p, log_q = truth.log_prob(fresh), density.score_samples(fresh)
    weight = np.exp(log_q - log_p)
    of_samples = {"log p": truth.log_prob(drawn), "log q": density.score_samples(drawn)}
    print(f"{name}, seed {seed}, {n_rows} rows, {n_drawn} samples")
    for label, values in (("log p", log_p), ("log q", log_q)):
        parts = mean_and_error(values), mean_and_error(values, weight)
        texts = [f"{mean:8.3f} +- {error:.3f}" for mean, error in parts]
        mean, error = mean_and_error(of_samples[label])
        difference, both = mean - parts[1][0], np.hypot(error, parts[1][1])
        print(
            f"  mean {label}: under p {texts[0]}   under q {texts[1]}   of samples "
            f"{mean:8.3f} +- {error:.3f}   samples less q {difference:+.3f} +- {both:.3f}"
        )
    print(
        f"  energy distance: samples {energy_distance(drawn, fresh):.5f}, other fresh rows "
        f"{energy_distance(other, fresh):.5f}",
        flush=True,
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--densities", nargs="+", choices=DENSITY_NAMES, default=["banana", "ring"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="a short fit, and few samples")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    sizes = (200, 200, 1) if arguments.quick else None
    for name in arguments.densities:
        for seed in arguments.seeds:
            rows = arguments.rows, arguments.samples, arguments.max_epochs
            measure(name, seed, *(sizes or rows))


if __name__ == "__main__":
    main()
