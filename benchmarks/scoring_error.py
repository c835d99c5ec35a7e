"""Measure the time of scoring against the standard error of its numerical integration.

    python benchmarks/scoring_error.py --data-dir DATA --output results/scoring_error.jsonl

IMMSEDensity with its default parameters is fitted to a random half of the rows of a table of
tabular_data.py (magic, of 10 columns, unless told), and scores the other rows, at most 10,000, with
several numbers of strata and of directions of the noise.  Printed are, for each effort,

- the evaluations of the denoisers for a row and the seconds of ``score_samples``;
- the standard error of a row's log-density that ``score_samples`` returns: the median and the root
  of the mean square over the rows, in nats;
- the root of the mean square of the true errors, divided by that of the standard errors: one, if
  those are right.  What is true is taken from the mean of several scorings with other noise;
- the standard error of ``score``, the mean over these rows, as far as it is one of integration.

Finished records in the output file are not measured again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from processes import import_late_modules, use_threads
from results import Record, ResultsFile, describe_runs, format_markdown
from tabular_data import TABLES, load_table

from sk_itdiffusion import IMMSEDensity

Array = NDArray[np.float64]

MOST_SCORED = 10_000
#: Strata and directions; None is the default number of directions.
EFFORTS: tuple[tuple[int, int | None], ...] = ((4, 1), (8, None), (12, None), (16, None))
#: Rows whose true errors are looked at, and scorings with other noise of which the mean is true.
N_JUDGED, N_OTHER_NOISE = 500, 8


def halves(X: Array, seed: int) -> tuple[Array, Array]:
    """Return a random half of the rows, and others, at most as many as are to be scored."""
    X = np.random.default_rng(seed).permutation(X)
    half = len(X) // 2
    return X[:half], X[half : half + MOST_SCORED]


def measure(
    density: IMMSEDensity, X: Array, n_strata: int, n_directions: int | None, truth: Array
) -> Record:
    """Return time and errors of scoring with an effort."""
    density.set_params(n_strata=n_strata, n_directions=n_directions)
    start = time.perf_counter()
    log_density, error = density.score_samples(X, return_std=True)
    seconds = time.perf_counter() - start
    rule = density._model.scoring_rule(density._effort())
    judged = slice(0, len(truth))
    squared = np.mean((log_density[judged] - truth) ** 2)
    return {
        "seconds": seconds,
        "n_scored": len(X),
        "n_evaluations": 0 if rule is None else rule.n_evaluations,
        "median_error": float(np.median(error)),
        "error": root_mean_square(error),
        "true_error_ratio": float(np.sqrt(squared)) / root_mean_square(error[judged]),
        "error_of_mean": float(np.sqrt(np.sum(error**2))) / len(X),
    }


def root_mean_square(values: Array) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def true_log_density(density: IMMSEDensity, X: Array) -> Array:
    """Return the mean of scorings with other noise, which a model draws by its seed."""
    model = density._model
    seeds = model.seeds
    scorings = []
    for number in range(1, N_OTHER_NOISE + 1):
        model.seeds = replace(seeds, scoring=seeds.scoring + number)
        scorings.append(density.score_samples(X))
    model.seeds = seeds
    return np.asarray(np.mean(scorings, axis=0))


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure the efforts that the results file lacks; return the records of all."""
    import_late_modules()
    records: list[Record] = []
    for dataset in arguments.datasets:
        keys = [describe(dataset, arguments, *effort) for effort in EFFORTS]
        found = [results.find(**key) for key in keys]
        if None in found:
            fitted, scored = halves(load_table(dataset, arguments.data_dir), arguments.seed)
            if arguments.quick:
                fitted, scored = fitted[:200], scored[:100]
            quick = {"max_epochs": 2, "n_networks": 1} if arguments.quick else {}
            density = IMMSEDensity(random_state=arguments.seed, **quick).fit(fitted)
            truth = true_log_density(density, scored[:N_JUDGED])
            found = [
                results.add({**key, **measure(density, scored, *effort, truth)})
                for key, effort in zip(keys, EFFORTS, strict=True)
            ]
        records += [record for record in found if record is not None]
    return records


def describe(
    dataset: str, arguments: argparse.Namespace, n_strata: int, n_directions: int | None
) -> dict[str, Any]:
    """Return the key of a record."""
    directions = "default" if n_directions is None else n_directions
    setting = f"threads {arguments.threads}" + (", quick" if arguments.quick else "")
    method = f"{n_strata} strata, directions: {directions}"
    return {"dataset": dataset, "seed": arguments.seed, "method": method, "setting": setting}


def format_errors(records: list[Record]) -> str:
    """Return a Markdown table, a row for each effort."""
    body = [
        [
            record["dataset"],
            record["method"],
            str(record["n_evaluations"]),
            str(record["n_scored"]),
            f"{record['seconds']:.1f}",
            f"{record['median_error']:.3f}",
            f"{record['error']:.3f}",
            f"{record['true_error_ratio']:.2f}",
            f"{record['error_of_mean']:.4f}",
        ]
        for record in records
    ]
    titles = ["table", "effort", "evaluations", "rows", "seconds", "median error", "error"]
    return format_markdown([*titles, "true / estimated", "error of the mean"], body)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--datasets", nargs="+", choices=tuple(TABLES), default=["magic"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="few rows and epochs, as a test")
    return parser.parse_args()


def main() -> None:
    """Measure what the results file lacks and print the table."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records = compare(arguments, ResultsFile(arguments.output))
    print(f"Nats\n\n{format_errors(records)}\n\n{describe_runs(records)}")


if __name__ == "__main__":
    main()
