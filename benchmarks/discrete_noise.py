"""Numerical noise of two estimators of log P of discrete rows, both with one trained denoiser.

    python benchmarks/discrete_noise.py --data-dir DATA --output results/discrete_noise.jsonl
    python benchmarks/discrete_noise.py --datasets digits --seeds 0 --quick

The denoiser is the stack of IMMSEDiscreteDensity with its default parameters. Compared are

- the published estimator (Kong, Brekelmans, Ver Steeg, ICLR 2023): half the integral of the error
  of the predicted noise, at log-SNRs drawn from a logistic distribution cut off at four scales and
  shared by all rows, with one Gaussian noise for each row and log-SNR; the lower tail is that of a
  Gaussian with the covariance of the training rows, the upper one the published bound. Location
  and scale are derived from the spectrum of the training rows in three ways: with matched moments,
  as in the published code (whose scale has pi instead of pi**2), and as in LogisticSchedule
  (higher and wider);
- this library's: strata of the log-SNR placed by validation rows, with the error of the reference
  as control variate, with different tolerances.

Outside the range in which the library integrates, the published estimator takes the reference for
the denoiser, so that both estimate the same log P. The noise of a row is the standard deviation
over repetitions with other seeds, root mean square over the rows; the common part is what all rows
share. The published draws are independent, so that their noise follows, more exactly than from the
repetitions, from the variance of single draws. The "evaluations ratio" is the number of published
evaluations over the number of the library's that has the same noise, for each published form. One
evaluation of the library also evaluates the reference; the evaluations that place the strata, once
in a fit, are not counted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from discrete_data import DiscreteData, load_data
from evaluations import evaluations_of_rows
from numpy.typing import NDArray
from peers import sample_clipped_logistic
from results import Record, ResultsFile, format_markdown
from threadpoolctl import threadpool_limits

from sk_itdiffusion import IMMSEDiscreteDensity
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._immse.likelihood import IntegrationRule
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.layout import Layout

Array = NDArray[np.float64]

DATASETS = ("plants", "digits")
CLIP = 4.0  # scales at which the published code cuts the logistic distribution off
# Shift of the location, factor of the scale, and weight of the variance of the log-eigenvalues in
# its square: with matched moments, as in the published code, and as in LogisticSchedule.
PUBLISHED_FORMS = {
    "published": (0.0, 1.0, 3.0 / math.pi**2),
    "published code": (0.0, 1.0, 3.0 / math.pi),
    "published, wide": (1.0, 1.7, 3.0 / math.pi**2),
}
MIN_EIGENVALUE = 1e-6  # smaller ones belong to constant columns
MAX_DEVIATIONS = 3.0  # by which the means of two agreeing estimators may differ


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    n_rows : int
        Test rows; equal ones count once.
    n_repetitions : int
        Repetitions of the published estimator at its greatest number of evaluations.
    n_library_repetitions : int
        Repetitions of the library's estimator, whose noise has to be read off them.
    n_published : sequence of int
        Evaluations of the published estimator for one row; each divides the largest.
    tolerances : sequence of float
        Standard errors asked of the library's estimator, in nats.
    """

    n_rows: int
    n_repetitions: int
    n_library_repetitions: int
    n_published: tuple[int, ...]
    tolerances: tuple[float, ...]

    def describe(self) -> str:
        """Return the name of the setting in the records."""
        return (
            f"{self.n_rows} rows, published {self.n_published} x {self.n_repetitions}, "
            f"tolerances {self.tolerances} x {self.n_library_repetitions}"
        )


@dataclass(frozen=True)
class Spectrum:
    """Mean and principal directions of the training points.

    Attributes
    ----------
    mean : array of shape (d,)
        Mean.
    eigenvalues : array of shape (k,)
        Variances along the principal directions, without those of constant columns.
    basis : array of shape (d, k)
        The directions.
    """

    mean: Array
    eigenvalues: Array
    basis: Array

    @classmethod
    def of(cls, points: Array) -> Spectrum:
        """Return the spectrum of points (n, d)."""
        eigenvalues, basis = np.linalg.eigh(np.cov(points.T))
        varying = eigenvalues > MIN_EIGENVALUE
        return cls(points.mean(axis=0), eigenvalues[varying], basis[:, varying])

    def location_and_scale(self, shift: float, factor: float, weight: float) -> tuple[float, float]:
        """Return those of the logistic distribution; see ``PUBLISHED_FORMS``."""
        logs = np.log(self.eigenvalues)
        scale = math.sqrt(1.0 + weight * logs.var())
        return shift - float(logs.mean()), factor * scale

    def lower_tail(self, points: Array, logsnr: float) -> Array:
        """Return half the integral of a Gaussian's error of each row up to a log-SNR.

        The mean over rows of this covariance is the published half of ``log1p(snr * eigenvalue)``,
        summed over the eigenvalues.
        """
        snr = math.exp(logsnr)
        excess = ((points - self.mean) @ self.basis) ** 2 - self.eigenvalues
        shrunk = snr / (1.0 + snr * self.eigenvalues)
        return 0.5 * (np.log1p(snr * self.eigenvalues).sum() + excess @ shrunk)


def upper_tail(layout: Layout, logsnr: float) -> float:
    """Return the published bound on half the integral of the error above a log-SNR."""
    return sum(
        4.0 * math.exp(-(((step - 0.5) * variable.spacing) ** 2) * math.exp(logsnr))
        for variable in layout.variables
        for step in range(1, variable.n_categories)
    )


# --- The two estimators ---------------------------------------------------------------------


def published_draws(
    model: TableModel, points: Array, location: float, scale: float, n_draws: int, seed: int
) -> Array:
    """Return the contribution of each shared log-SNR to -log P of each row, (n_draws, n_rows).

    The estimate is their mean, except for the tails.
    """
    generator = torch.Generator().manual_seed(seed)
    denoisers = model.paired()
    low, high = fitted_rule(model).placement.edges[[0, -1]]
    place = {"device": model.device, "dtype": model.precision}
    x = torch.from_numpy(points).to(**place)
    logsnr, weight = sample_clipped_logistic(n_draws, generator, location, scale, CLIP)
    errors = []
    for part in logsnr.split(max(1, model.budget // len(x))):
        level = part.repeat_interleave(len(x)).to(**place)
        noise = torch.randn(len(level), x.shape[1], generator=generator, dtype=torch.float64)
        noise = noise.to(**place)
        with torch.no_grad():
            control, stacked = denoisers(add_noise(x.repeat(len(part), 1), noise, level), level)
        inside = ((level >= low) & (level <= high))[:, None]
        error = (noise - torch.where(inside, stacked, control)).square().sum(dim=1)
        errors.append(error.reshape(len(part), len(x)).double().cpu())
    return (0.5 * weight[:, None] * torch.cat(errors)).numpy()


def fitted_rule(model: TableModel) -> IntegrationRule:
    """Return the integration rule of a model, or raise if it has none."""
    if model.rule is None:
        raise ValueError("The stack is the reference everywhere: there is nothing to integrate.")
    return model.rule


def library_estimates(
    estimator: IMMSEDiscreteDensity, X: Array, score_tol: float, seeds: list[int]
) -> tuple[Array, Array, float]:
    """Score rows with different seeds of the noise.

    Returns log P and the reported standard errors, both (n_seeds, n_rows), and the evaluations for
    one row.
    """
    scores = []
    for seed in seeds:
        with scoring_seed(estimator._model, seed):
            scores.append(estimator.score_samples(X, return_std=True, score_tol=score_tol))
    log_prob, std = (np.stack(values) for values in zip(*scores, strict=True))
    return log_prob, std, float(evaluations_of_rows(estimator, X, score_tol).mean())


@contextmanager
def scoring_seed(model: TableModel, seed: int) -> Iterator[None]:
    """Give a model another seed of the noise in scoring."""
    original = model.seeds
    model.seeds = replace(original, scoring=seed)
    try:
        yield
    finally:
        model.seeds = original


# --- Measurement ----------------------------------------------------------------------------


def noise_of(estimates: Array) -> dict[str, float]:
    """Return the noise of repeated estimates (n_repetitions, n_rows) and its common part.

    The square of the common part is the mean covariance of two rows.
    """
    n_rows = estimates.shape[1]
    variance = float(estimates.var(axis=0, ddof=1).mean())
    of_mean = float(estimates.mean(axis=1).var(ddof=1))
    common = (n_rows * of_mean - variance) / max(1, n_rows - 1)
    return {"noise": math.sqrt(variance), "common": math.sqrt(max(0.0, common))}


def measure(data: DiscreteData, effort: Effort, seed: int, quick: bool) -> Record:
    """Fit the library's estimator and return the noise of all estimates with its denoiser."""
    parameters = {**data.parameters, **({"max_epochs": 3} if quick else {})}
    estimator = IMMSEDiscreteDensity(random_state=seed, **parameters).fit(data.X)
    X, _ = data.distinct_test_rows()
    library, log_prob = measure_library(estimator, X, effort)
    spectrum = Spectrum.of(embedded(estimator, data.X))
    points = embedded(estimator, X)
    published = []
    for form in PUBLISHED_FORMS:
        published += measure_published(
            form, estimator._model, points, spectrum, effort, log_prob, seed
        )
    return {"n_rows": len(X), "library": library, "published": published}


def embedded(estimator: IMMSEDiscreteDensity, X: Array) -> Array:
    """Return the points of rows in the space of the denoisers."""
    space = estimator._model.space
    return space.layout.embed_array(space.standardized(estimator._read(X)))


def measure_library(
    estimator: IMMSEDiscreteDensity, X: Array, effort: Effort
) -> tuple[list[Record], Array]:
    """Return the noise for each tolerance, and log P with the least (repeated)."""
    seeds = [1_000 + repetition for repetition in range(effort.n_library_repetitions)]
    records = []
    for score_tol in effort.tolerances:
        log_prob, std, n_evaluations = library_estimates(estimator, X, score_tol, seeds)
        records.append(
            {
                "score_tol": score_tol,
                "evaluations": n_evaluations,
                **noise_of(log_prob),
                "reported": float(np.sqrt(np.mean(std**2))),
                "log_prob": float(log_prob.mean()),
            }
        )
    return records, log_prob


def measure_published(
    form: str,
    model: TableModel,
    points: Array,
    spectrum: Spectrum,
    effort: Effort,
    library_log_prob: Array,
    seed: int,
) -> list[Record]:
    """Return the noise of one form of the published estimator for each number of evaluations."""
    location, scale = spectrum.location_and_scale(*PUBLISHED_FORMS[form])
    lower = spectrum.lower_tail(points, location - CLIP * scale)
    upper = upper_tail(model.space.layout, location + CLIP * scale)
    most = max(effort.n_published)
    first_seed = 1_000 * (1 + seed * len(PUBLISHED_FORMS) + list(PUBLISHED_FORMS).index(form))

    def repetition(number: int) -> Array:
        return published_draws(model, points, location, scale, most, first_seed + number)

    repetitions = map_in_workers(repetition, range(effort.n_repetitions), model.device)
    draws = -np.concatenate(repetitions)
    comparison = compare_means(draws - lower - upper, library_log_prob)
    tails = {"lower_tail": float(lower.mean()), "upper_tail": upper}
    single = noise_of(draws)
    records = []
    for n in effort.n_published:
        estimates = draws.reshape(-1, n, len(points)).mean(axis=1)
        repeated = noise_of(estimates)
        records.append(
            {
                "form": form,
                "location": location,
                "scale": scale,
                "evaluations": n,
                **{name: value / math.sqrt(n) for name, value in single.items()},
                "repetitions": len(estimates),
                "repeated_noise": repeated["noise"],
                "repeated_common": repeated["common"],
                **tails,
                **comparison,
            }
        )
    return records


def compare_means(draws: Array, log_prob: Array) -> Record:
    """Return how far the means of two estimators are apart, and the standard error of that.

    ``row_deviation`` is the root mean square over rows of the difference in standard errors, about
    1 if the estimators agree; ``draws`` (n, n_rows) and ``log_prob`` (m, n_rows) are independent.
    """
    difference = draws.mean(axis=0) - log_prob.mean(axis=0)
    row_variance = sum(values.var(axis=0, ddof=1) / len(values) for values in (draws, log_prob))
    variance = sum(values.mean(axis=1).var(ddof=1) / len(values) for values in (draws, log_prob))
    return {
        "log_prob": float(draws.mean()),
        "difference": float(difference.mean()),
        "difference_error": math.sqrt(variance),
        "row_deviation": float(np.sqrt(np.mean(difference**2 / row_variance))),
    }


# --- Tables ---------------------------------------------------------------------------------


def largest_of_forms(record: Record) -> list[Record]:
    """Return the entry with the most evaluations of each published form."""
    most = max(entry["evaluations"] for entry in record["published"])
    return [entry for entry in record["published"] if entry["evaluations"] == most]


def evaluations_with_noise(library: list[Record], noise: float) -> tuple[float, bool]:
    """Return the evaluations at which the library has this noise, and whether fewer may do.

    Logarithms are interpolated; with more evaluations than measured the variance falls with their
    reciprocal, and with the fewest measured that have less noise the number is only a bound.
    """
    evaluations = np.array([entry["evaluations"] for entry in library], dtype=np.float64)
    noises = np.minimum.accumulate([entry["noise"] for entry in library])
    if noise >= noises[0]:
        return float(evaluations[0]), True
    if noise < noises[-1]:
        return float(evaluations[-1] * (noises[-1] / noise) ** 2), False
    logs = np.interp(np.log(noise), np.log(noises[::-1]), np.log(evaluations[::-1]))
    return float(np.exp(logs)), False


def format_noise(record: Record) -> str:
    """Return a Markdown table of the noise of all estimates for one data set and seed.

    The relative noise is that in units of the first published form's with the most evaluations.
    """
    base = largest_of_forms(record)[0]["noise"]
    body = [
        [
            entry.get("form", "library"),
            str(entry["evaluations"]),
            f"{entry['noise']:.3f}",
            f"{entry['common']:.3f}",
            f"{entry['noise'] / base:.2f}",
            f"{entry['repeated_noise']:.3f}" if "repeated_noise" in entry else "",
            f"{entry['reported']:.3f}" if "reported" in entry else "",
            f"{entry['log_prob']:.3f}",
        ]
        for entry in [*record["published"], *record["library"]]
    ]
    header = [
        *("estimator", "evaluations", "noise of a row", "common to rows", "relative noise"),
        *("by repetitions", "reported error", "mean log P"),
    ]
    return format_markdown(header, body)


def format_agreement(record: Record) -> str:
    """Return a sentence for each published form on the difference of the means."""
    lines = []
    for entry in largest_of_forms(record):
        deviations = entry["difference"] / entry["difference_error"]
        verdict = "agree" if abs(deviations) <= MAX_DEVIATIONS else "DISAGREE"
        lines.append(
            f"{entry['form']}: mean log P minus the library's {entry['difference']:+.3f} +- "
            f"{entry['difference_error']:.3f}, single rows differ by {entry['row_deviation']:.2f} "
            f"standard errors; the means {verdict}"
        )
    return "\n".join(lines)


def format_ratios(records: list[Record]) -> str:
    """Return a Markdown table of the evaluations for equal noise."""
    body = []
    for record in records:
        for entry in largest_of_forms(record):
            needed, is_bound = evaluations_with_noise(record["library"], entry["noise"])
            ratio = entry["evaluations"] / needed
            body.append(
                [
                    record["dataset"],
                    str(record["seed"]),
                    entry["form"],
                    f"{entry['noise']:.3f}",
                    str(entry["evaluations"]),
                    f"{needed:.1f}",
                    f"{'at least ' if is_bound else ''}{ratio:.1f}",
                ]
            )
    header = [
        *("dataset", "seed", "published form", "noise of a row", "published evaluations"),
        *("library's evaluations", "evaluations ratio"),
    ]
    return format_markdown(header, body)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--data-dir", help="folder of the data sets; digits needs none")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--library-repetitions", type=int, default=32)
    parser.add_argument("--published", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--tolerances", nargs="+", type=float, default=[0.4, 0.2, 0.1, 0.05])
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="few rows and epochs, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.repetitions, arguments.library_repetitions = 30, 4, 16
    if any(max(arguments.published) % n for n in arguments.published):
        parser.error("Each number of published evaluations must divide the largest.")
    if min(arguments.repetitions, arguments.library_repetitions, arguments.rows) < 2:
        parser.error("At least 2 repetitions and 2 rows are needed.")
    return arguments


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    effort = Effort(
        arguments.rows,
        arguments.repetitions,
        arguments.library_repetitions,
        tuple(sorted(arguments.published)),
        tuple(sorted(arguments.tolerances, reverse=True)),
    )
    setting = f"{'quick' if arguments.quick else 'default'}, {effort.describe()}"
    records = []
    for name in arguments.datasets:
        for seed in arguments.seeds:
            key = {"dataset": name, "seed": seed, "method": "discrete_noise", "setting": setting}
            record = results.find(**key)
            if record is None:
                data = load_data(name, seed, arguments.data_dir, effort.n_rows, arguments.quick)
                record = results.add({**key, **measure(data, effort, seed, arguments.quick)})
            records.append(record)
            print(
                f"\n{name}, seed {seed}, {record['n_rows']} rows, nats per row\n\n"
                f"{format_noise(record)}\n\n{format_agreement(record)}",
                flush=True,
            )
    return records


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with threadpool_limits(limits=arguments.threads):
        records = compare(arguments, ResultsFile(arguments.output))
    print(f"\nEvaluations of the denoiser for equal noise\n\n{format_ratios(records)}")


if __name__ == "__main__":
    main()
