"""Measure the time of scoring against the standard error of its numerical integration.

    python benchmarks/scoring_error.py --data-dir DATA --output results/scoring_error.jsonl

IMMSEDensity with its default parameters, or ``--max-epochs``, is fitted to a random half of the
rows of a table of tabular_data.py (magic, of 10 columns, unless told), and scores the other rows,
at most 10,000 (``--most-scored``), with several tolerances.  Sets of discrete_data.py, and
densities of analytic.py, are fitted as in rule_agreement.py.  Printed are, for each tolerance,

- the mean of the evaluations of the denoisers for a row, and the seconds of processors that
  ``score_samples`` takes, which tell more than those of the clock where other programs run;
- the standard error of a row's log-density that ``score_samples`` returns: the median and the root
  of the mean square over the rows, in nats;
- the standard deviation of the true errors divided by the standard errors, of all rows and of the
  5% of the lowest log-density: one, if standard errors are right.  What is true is the mean of
  several exact scorings with other noise;
- the standard error of the mean over these rows, as far as it is one of integration;

and the time of ``score``, and how much it differs from the mean of exact scores.

Finished records in the output file are not measured again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from discrete_data import DATASETS
from evaluations import evaluations_of_rows
from numpy.typing import NDArray
from processes import import_late_modules, use_threads
from results import Record, ResultsFile, describe_runs, format_markdown
from rule_agreement import fitted
from tabular_data import TABLES, load_table

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion.datasets import DENSITY_NAMES

Array = NDArray[np.float64]

MAX_SCORED = 10_000
#: In nats; None is the default.
TOLERANCES = (0.2, None, 0.1, 0.05)
#: Share of the rows of the lowest log-density that are looked at on their own.
LOW_SHARE = 0.05
#: Rows whose true errors are looked at, and scorings with other noise of which the mean is true.
N_JUDGED, N_OTHER_NOISE = 500, 8
SCORE = "score"


def fitted_density(name: str, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return a fitted estimator, and rows to score."""
    epochs = 2 if arguments.quick else arguments.max_epochs
    if name not in TABLES:
        return fitted(name, arguments.data_dir, epochs)
    X = np.random.default_rng(arguments.seed).permutation(load_table(name, arguments.data_dir))
    half = len(X) // 2
    rows, others = (X[:200], X[200:300]) if arguments.quick else (X[:half], X[half:])
    parameters = {} if epochs is None else {"max_epochs": epochs}
    return IMMSEDensity(random_state=arguments.seed, **parameters).fit(rows), others


def measure(density: Any, X: Any, score_tol: float | None, truth: Array) -> Record:
    """Return time and errors of scoring with a tolerance."""
    start = time.process_time()
    log_density, error = density.score_samples(X, return_std=True, score_tol=score_tol)
    seconds = time.process_time() - start
    judged = slice(0, len(truth))
    z_scores = (log_density[judged] - truth) / error[judged]
    low = np.argsort(truth)[: max(2, round(LOW_SHARE * len(truth)))]
    return {
        "seconds": seconds,
        "n_scored": len(X),
        "n_evaluations": float(evaluations_of_rows(density, X, score_tol).mean()),
        "median_error": float(np.median(error)),
        "error": root_mean_square(error),
        "z_scores": root_mean_square(z_scores),
        "z_scores_low": root_mean_square(z_scores[low]),
        "error_of_mean": float(np.sqrt(np.sum(error**2))) / len(X),
    }


def measure_mean(density: Any, X: Any) -> Record:
    """Return the time of `score`, and by how much it differs from the mean of single scores."""
    start = time.process_time()
    mean = density.score(X)
    seconds = time.process_time() - start
    exact = density.score_samples(X, score_tol=exact_tolerance(density))
    return {"seconds": seconds, "n_scored": len(X), "difference": mean - float(exact.mean())}


def exact_tolerance(density: Any) -> float:
    """Return half of the usual tolerance."""
    return float(density._tolerance().nats) / 2.0


def root_mean_square(values: Array) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def true_log_density(density: Any, X: Any) -> Array:
    """Return the mean of scorings with other noise, which a model draws by its seed."""
    model = density._model
    scorings = []
    for number in range(1, N_OTHER_NOISE + 1):
        seeds = replace(model.seeds, scoring=model.seeds.scoring + number)
        density._model = replace(model, seeds=seeds)
        scorings.append(density.score_samples(X, score_tol=exact_tolerance(density)))
    density._model = model
    return np.asarray(np.mean(scorings, axis=0))


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure the tolerances that the results file lacks; return the records of all."""
    import_late_modules()
    records: list[Record] = []
    tolerances = (None,) if arguments.default_only else TOLERANCES
    for dataset in arguments.datasets:
        keys = [describe(dataset, arguments, method_of(tol)) for tol in tolerances]
        keys.append(describe(dataset, arguments, SCORE))
        found = [results.find(**key) for key in keys]
        if None in found:
            density, scored = fitted_density(dataset, arguments)
            scored = scored[: arguments.most_scored]
            truth = true_log_density(density, scored[:N_JUDGED])
            measured = [measure(density, scored, tol, truth) for tol in tolerances]
            measured.append(measure_mean(density, scored))
            found = [results.add({**key, **each}) for key, each in zip(keys, measured, strict=True)]
        records += [record for record in found if record is not None]
    return records


def method_of(score_tol: float | None) -> str:
    """Return the name of scoring with a tolerance."""
    return "score_samples, " + ("default" if score_tol is None else f"score_tol={score_tol:g}")


def describe(dataset: str, arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """Return the key of a record."""
    setting = f"threads {arguments.threads}" + (", quick" if arguments.quick else "")
    if arguments.max_epochs is not None:
        setting += f", {arguments.max_epochs} epochs"
    return {"dataset": dataset, "seed": arguments.seed, "method": method, "setting": setting}


def format_errors(records: list[Record]) -> str:
    """Return a Markdown table, a row for each tolerance, and what `score` takes."""
    body = [
        [
            record["dataset"],
            record["method"].removeprefix("score_samples, "),
            f"{record['n_evaluations']:.0f}",
            str(record["n_scored"]),
            f"{record['seconds']:.1f}",
            f"{record['median_error']:.3f}",
            f"{record['error']:.3f}",
            f"{record['z_scores']:.2f}",
            f"{record['z_scores_low']:.2f}",
            f"{record['error_of_mean']:.4f}",
        ]
        for record in records
        if record["method"] != SCORE
    ]
    titles = ["table", "tolerance", "evaluations", "rows", "seconds", "median error", "error"]
    table = format_markdown([*titles, "z-scores", "lowest 5%", "error of the mean"], body)
    means = [
        f"{record['dataset']}: score of {record['n_scored']} rows took {record['seconds']:.1f} s, "
        f"{record['difference']:+.4f} from the mean of score_samples"
        for record in records
        if record["method"] == SCORE
    ]
    return "\n\n".join([table, *means])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*TABLES, *DATASETS, *DENSITY_NAMES)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--datasets", nargs="+", choices=names, default=["magic"])
    parser.add_argument("--most-scored", type=int, default=MAX_SCORED)
    parser.add_argument("--max-epochs", type=int, default=None)
    parser.add_argument("--default-only", action="store_true", help="no other tolerance")
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
