"""Compare dequantisation inside IMMSEDensity with uniform noise that is added by hand.

    python benchmarks/dequantization.py --output results/dequantization.jsonl

The tables are counts whose probabilities are known: Poisson columns of mean 0.5 and of mean 4, and
two columns of which the second depends on the first. From each, rows are drawn for the fit and 2000
others for the test. With ``dequantize=True`` each observation has a noise of its own; by hand, rows
to fit and to test get one uniform noise of a cell's width each. Both are scored with 16 strata.

Printed are, for each table and number of rows, the mean negative log-probability of the test rows
less their true one (the divergence), of both, over the seeds, and the mean paired gain of the
former in nats per row, with its standard error over the seeds. Finished records in the output file
are not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from processes import use_threads
from results import Record, ResultsFile, describe_runs, format_markdown
from scipy import stats
from tabular import standard_error, with_error

from sk_itdiffusion import IMMSEDensity

Array = NDArray[np.float64]

SIZES = (1_000, 5_000, 20_000)
N_SEEDS = 5
N_TESTED = 2_000
METHODS = ("dequantize", "by hand")


def poisson_rows(mean: float) -> Callable[[np.random.Generator, int], tuple[Array, Array]]:
    """Return a function that draws rows of a Poisson column, and their log-probabilities."""

    def draw(generator: np.random.Generator, n_rows: int) -> tuple[Array, Array]:
        counts = generator.poisson(mean, (n_rows, 1)).astype(np.float64)
        return counts, stats.poisson.logpmf(counts[:, 0], mean)

    return draw


def dependent_rows(generator: np.random.Generator, n_rows: int) -> tuple[Array, Array]:
    """Return rows of two columns, and their log-probabilities; the first is the other's mean."""
    first = generator.poisson(2.0, n_rows)
    second = generator.poisson(0.5 + first)
    log_probability = stats.poisson.logpmf(first, 2.0) + stats.poisson.logpmf(second, 0.5 + first)
    return np.column_stack([first, second]).astype(np.float64), log_probability


TABLES = {
    "Poisson, mean 0.5": poisson_rows(0.5),
    "Poisson, mean 4": poisson_rows(4.0),
    "two columns": dependent_rows,
}


def measure(table: str, n_rows: int, method: str, seed: int, quick: bool, epochs: int) -> Record:
    """Fit one density and score the test rows; return its divergence and seconds."""
    generator = np.random.default_rng(seed)
    train, _ = TABLES[table](generator, n_rows)
    test, log_probability = TABLES[table](generator, N_TESTED)
    if method == "by hand":
        train, test = (rows + generator.uniform(-0.5, 0.5, rows.shape) for rows in (train, test))
    options = {} if epochs < 0 else {"max_epochs": epochs}
    density = IMMSEDensity(
        dequantize=method == "dequantize",
        score_tol=0.5 if quick else "auto",
        random_state=seed,
        **options,
    )
    start = time.perf_counter()
    density.fit(train)
    fitted = time.perf_counter() - start
    lost = log_probability - density.score_samples(test)
    return {"divergence": float(lost.mean()), "fit_seconds": fitted, "n_rows": n_rows}


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    records = []
    for table in arguments.tables:
        for n_rows in arguments.sizes:
            setting = f"{n_rows} rows, {arguments.epochs} epochs"
            setting += ", quick" if arguments.quick else ""
            for seed in range(arguments.seeds):
                for method in METHODS:
                    key = {"dataset": table, "seed": seed, "method": method, "setting": setting}
                    record = results.find(**key)
                    if record is None:
                        measured = measure(
                            table, n_rows, method, seed, arguments.quick, arguments.epochs
                        )
                        record = results.add({**key, **measured})
                    records.append(record)
                one, other = (record["divergence"] for record in records[-2:])
                print(
                    f"{table}, {setting}, seed {seed}: {one:.4f}, by hand {other:.4f}", flush=True
                )
    return records


def format_comparison(records: list[Record]) -> str:
    """Return a Markdown table, a row for each table and number of rows."""
    body = []
    for group in dict.fromkeys((record["dataset"], record["n_rows"]) for record in records):
        own, hand = (
            np.array(
                [
                    record["divergence"]
                    for record in records
                    if (record["dataset"], record["n_rows"]) == group and record["method"] == method
                ]
            )
            for method in METHODS
        )
        gain = with_error((float((hand - own).mean()), standard_error(hand - own)))
        body.append([group[0], str(group[1]), f"{own.mean():.4f}", f"{hand.mean():.4f}", gain])
    return format_markdown(["table", "rows", "dequantize=True", "by hand", "gain"], body)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=tuple(TABLES), default=list(TABLES))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=-1, help="epochs at most; -1 as by default")
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="no training, 200 rows, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.seeds, arguments.epochs = [200], 2, 0
    return arguments


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records = compare(arguments, ResultsFile(arguments.output))
    print(
        f"\nDivergences, nats per row, means of {arguments.seeds} seeds\n\n"
        f"{format_comparison(records)}\n\n{describe_runs(records)}"
    )


if __name__ == "__main__":
    main()
