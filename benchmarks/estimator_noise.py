"""Numerical noise of two estimators of log p, both with the exact denoiser of the distribution.

    python benchmarks/estimator_noise.py
    python benchmarks/estimator_noise.py --densities ring --evaluations 170 510 --rows 200

Printed is the root-mean-square error of log p over rows against evaluations of the denoiser per
row, for

- the published estimator: random log-SNR values from a logistic distribution cut off at four
  scales, one Gaussian draw of the noise for each, the error of N(0, I) subtracted in the mean;
- this library's: strata of the log-SNR fitted to the gap between the errors of the exact denoiser
  and of a Gaussian reference, which is also the control variate, and spherical-radial noise.

The rows are standardised with the distribution's own means and variances. A ratio of variances of
100 means that the published estimator needs 100 times the evaluations for the same error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peers import published_log_prob
from results import Record, ResultsFile, format_markdown

from sk_itdiffusion._first._fit.grids import N_NODES, logsnr_range
from sk_itdiffusion._first._immse.cubature import NoiseRule, row_keys
from sk_itdiffusion._first._immse.likelihood import IntegrationRule, fit_placement, information_gap
from sk_itdiffusion.datasets import GaussianMixtureDensity, load_density
from sk_itdiffusion.references import GaussianMixtureReference, GaussianReference

Array = NDArray[np.float64]

DENSITIES = ("ring", "spiral", "mixture_10d")
# Multiples of 10 and of 34, the evaluations of one stratum in 2 and in 10 dimensions, so that both
# estimators use exactly as many.
EVALUATIONS = (170, 510, 2040)
N_PILOT_ROWS = 100  # validation rows from which the strata are placed, as in IMMSEDensity


def standardized(density: GaussianMixtureDensity) -> GaussianMixtureDensity:
    """Return the mixture of the columns minus their means, divided by their deviations."""
    mean, covariance = mixture_moments(density)
    scale = np.sqrt(np.diag(covariance))
    return GaussianMixtureDensity(
        density.weights,
        (density.means - mean) / scale,
        density.covariances / np.outer(scale, scale),
    )


def mixture_moments(density: GaussianMixtureDensity) -> tuple[Array, Array]:
    """Return mean and covariance of a mixture."""
    mean = density.weights @ density.means
    offsets = density.means - mean
    within = np.einsum("k,kij->ij", density.weights, density.covariances)
    return mean, within + np.einsum("k,ki,kj->ij", density.weights, offsets, offsets)


def exact_reference(density: GaussianMixtureDensity) -> GaussianMixtureReference:
    """Return the distribution with its optimal denoiser."""
    return GaussianMixtureReference(density.weights, density.means, density.covariances)


def published_scores(
    density: GaussianMixtureDensity, X: Array, n_evaluations: int, seed: int
) -> Array:
    """Return log p by the published estimator, for rows of a standardised density."""
    generator = torch.Generator().manual_seed(seed)
    denoise = exact_reference(density).denoise
    return published_log_prob(denoise, torch.from_numpy(X), n_evaluations, generator)


def library_scores(
    density: GaussianMixtureDensity, X: Array, n_evaluations: int, seed: int
) -> Array:
    """Return log p by this library, with at most ``n_evaluations`` for each row."""
    control, exact = GaussianReference(*mixture_moments(density)), exact_reference(density)
    rule = fitted_rule(density, control, exact, n_evaluations, seed)
    gap, _ = information_gap(
        X,
        row_keys(X, seed),
        lambda z, logsnr: (control.denoise(z, logsnr), exact.denoise(z, logsnr)),
        rule,
    )
    return control.log_prob(torch.from_numpy(X)).numpy() + gap


def fitted_rule(
    density: GaussianMixtureDensity,
    control: GaussianReference,
    exact: GaussianMixtureReference,
    n_evaluations: int,
    seed: int,
) -> IntegrationRule:
    """Place the strata by the gap between the two denoisers on rows of their own."""
    d = density.n_features
    pilot = density.sample(N_PILOT_ROWS, random_state=10_000 + seed)
    noise = NoiseRule.for_scoring(d, seed)
    placement = fit_placement(
        pilot,
        row_keys(pilot, seed + 1),
        lambda z, logsnr: (control.denoise(z, logsnr), exact.denoise(z, logsnr)),
        noise,
        np.linspace(*logsnr_range([control, exact], resolution=0.0), N_NODES),
    )
    return IntegrationRule(placement, noise, 2 * max(1, n_evaluations // (2 * noise.n_evaluations)))


def measure(name: str, n_evaluations: int, n_rows: int, seed: int) -> Record:
    """Return the errors of both estimators on rows of one density."""
    density = load_density(name)
    if not isinstance(density, GaussianMixtureDensity):
        raise ValueError(f"{name} is not a Gaussian mixture; its denoiser is not known exactly.")
    density = standardized(density)
    X = density.sample(n_rows, random_state=seed)
    truth = density.log_prob(X)
    record: Record = {"dataset": name, "seed": seed, "evaluations": n_evaluations}
    for estimator in (published_scores, library_scores):
        error = estimator(density, X, n_evaluations, seed) - truth
        prefix = estimator.__name__.removesuffix("_scores")
        record[f"{prefix}_rmse"] = float(np.sqrt(np.mean(error**2)))
        record[f"{prefix}_bias"] = float(error.mean())
    record["variance_ratio"] = (record["published_rmse"] / record["library_rmse"]) ** 2
    return record


def print_table(records: list[Record]) -> None:
    """Print the errors as a Markdown table."""
    fields = ("published_rmse", "library_rmse", "published_bias", "library_bias")
    header = ["dataset", "seed", "evaluations", *fields, "variance_ratio"]
    body = [
        [
            record["dataset"],
            str(record["seed"]),
            str(record["evaluations"]),
            *(f"{record[field]:.4f}" for field in fields),
            f"{record['variance_ratio']:.0f}",
        ]
        for record in records
    ]
    print(format_markdown(header, body))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--densities", nargs="+", default=list(DENSITIES))
    parser.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, help="file of finished records, JSON lines")
    parser.add_argument("--quick", action="store_true", help="20 rows, 170 evaluations, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.evaluations = 20, [170]
    return arguments


def main() -> None:
    """Measure every combination that the results file lacks and print the table."""
    arguments = parse_arguments()
    results = ResultsFile(arguments.output)
    records = []
    for name in arguments.densities:
        for n_evaluations in arguments.evaluations:
            for seed in arguments.seeds:
                key = {
                    "dataset": name,
                    "seed": seed,
                    "method": "estimator_noise",
                    "setting": f"{n_evaluations} evaluations, {arguments.rows} rows",
                }
                record = results.find(**key)
                if record is None:
                    measured = measure(name, n_evaluations, arguments.rows, seed)
                    record = results.add({**key, **measured})
                records.append(record)
    print_table(records)


if __name__ == "__main__":
    main()
