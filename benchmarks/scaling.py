"""Measure time and memory of fit and score against the numbers of rows and of columns.

    python benchmarks/scaling.py --output results/scaling.jsonl
    python benchmarks/scaling.py --rows 1000 10000 --columns 2 10 --seeds 0 1 2
    python benchmarks/scaling.py --max-epochs 0     # without networks

IMMSEDensity with its default parameters (or --max-epochs) is fitted to 10^3 to 10^6 rows of 10
columns, and to 10^4 rows of 2 to 500 columns, of a density far from normal. A second process loads
the fitted model and scores as many other rows as were fitted, but at most 100,000 (--most-scored).

Each fit and each scoring is made in a process of its own, which has imported everything before the
clock starts and is killed after --most-seconds. Printed are, for each size, the seconds, the
microseconds for each scored row, and the growth of the process's peak memory over what it had with
imports and data (at least 1 MB); then the exponents b of seconds and memory ~ (rows or columns)^b,
by least squares in logarithms over all sizes, and between the two largest: where part of the costs
is constant, the latter is nearer to the limit. Values are medians over the seeds. Finished records
in the output file are not measured again, failed ones only with --retry.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from analytic import LIBRARY
from numpy.typing import NDArray
from processes import (
    MeasurementError,
    call_in_fresh_process,
    import_late_modules,
    peak_megabytes,
    use_threads,
)
from results import Record, ResultsFile, describe_runs, format_markdown, pivot_medians
from tabular_data import curved_rows

import sk_itdiffusion

Array = NDArray[np.float64]

ROWS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
COLUMNS = (2, 5, 10, 20, 50, 100, 200, 500)
ROWS_OF_COLUMNS, COLUMNS_OF_ROWS = 10_000, 10
MIN_MEGABYTES = 1.0
VALUES = {
    "fit_seconds": ("fit, s", ".1f"),
    "fit_processor_seconds": ("of processors, s", ".1f"),
    "fit_megabytes": ("fit, MB", ".0f"),
    "score_seconds": ("score, s", ".2f"),
    "score_microseconds": ("score, us per row", ".0f"),
    "score_megabytes": ("score, MB", ".0f"),
    "n_epochs": ("epochs", ".0f"),
}
EXPONENTS = ("fit_seconds", "fit_megabytes", "score_seconds", "score_megabytes")


@dataclass(frozen=True)
class Cell:
    """One size."""

    n_rows: int
    n_columns: int
    n_scored: int
    seed: int
    quick: bool
    threads: int | None
    max_epochs: int | None = None

    @property
    def key(self) -> Record:
        """Fields that identify the record."""
        setting = f"{self.n_scored} scored, threads {self.threads}"
        if self.max_epochs is not None:
            setting += f", max_epochs {self.max_epochs}"
        return {
            "dataset": f"{self.n_rows} rows, {self.n_columns} columns",
            "seed": self.seed,
            "method": LIBRARY,
            "setting": f"{setting}, quick" if self.quick else setting,
        }

    def rows(self) -> Array:
        """Return the rows to fit."""
        return curved_rows(self.n_rows, self.n_columns, self.seed)

    def scored_rows(self) -> Array:
        """Return other rows."""
        return curved_rows(self.n_scored, self.n_columns, self.seed + 1_000_003)


def measure_fit(cell: Cell, path: Path) -> Record:
    """Fit and save the model; return time and memory of the fit."""
    with use_threads(cell.threads):
        X = cell.rows()
        estimator = sk_itdiffusion.IMMSEDensity(random_state=cell.seed)
        max_epochs = 1 if cell.quick else cell.max_epochs
        if max_epochs is not None:
            estimator.set_params(max_epochs=max_epochs)
        import_late_modules()
        idle, start, processor = peak_megabytes(), time.perf_counter(), time.process_time()
        estimator.fit(X)
        seconds, peak = time.perf_counter() - start, peak_megabytes()
        processor = time.process_time() - processor
    estimator.save(path)
    return {
        "fit_seconds": seconds,
        "fit_processor_seconds": processor,
        "fit_megabytes": max(peak - idle, MIN_MEGABYTES),
        "fit_peak_megabytes": peak,
        "n_epochs": getattr(estimator, "n_iter_", 0),
    }


def measure_score(cell: Cell, path: Path) -> Record:
    """Load the model and score rows; return time and memory of the scoring."""
    with use_threads(cell.threads):
        X = cell.scored_rows()
        estimator = sk_itdiffusion.load(path)
        import_late_modules()
        idle, start = peak_megabytes(), time.perf_counter()
        estimator.score_samples(X)
        seconds, peak = time.perf_counter() - start, peak_megabytes()
    return {
        "score_seconds": seconds,
        "score_microseconds": 1e6 * seconds / cell.n_scored,
        "score_megabytes": max(peak - idle, MIN_MEGABYTES),
        "score_peak_megabytes": peak,
    }


def measure(cell: Cell, most_seconds: float) -> Record:
    """Return the measurements of a cell; ``failed`` says why some are missing."""
    record: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        try:
            for step in (measure_fit, measure_score):
                record |= call_in_fresh_process(step, cell, path, most_seconds=most_seconds)
        except MeasurementError as error:
            record["failed"] = f"{step.__name__}: {str(error).strip().splitlines()[-1]}"
    return record


def compare(arguments: argparse.Namespace, cells: list[Cell]) -> list[Record]:
    """Measure the cells that the results file lacks; return the records of all."""
    results = ResultsFile(arguments.output)
    records = []
    for cell in cells:
        record = results.find(**cell.key)
        if record is None or ("failed" in record and arguments.retry):
            measured = measure(cell, arguments.most_seconds)
            sizes = {"n_rows": cell.n_rows, "n_columns": cell.n_columns, "n_scored": cell.n_scored}
            record = results.add({**cell.key, **sizes, **measured})
        print(describe(record), flush=True)
        records.append(record)
    return records


def describe(record: Record) -> str:
    """Return one line for a finished record."""
    known = [
        f"{title} {record[name]:{style}}"
        for name, (title, style) in VALUES.items()
        if name in record
    ]
    return f"{record['dataset']}, seed {record['seed']}: " + "  ".join(
        [*known, record.get("failed", "")]
    )


def exponent(sizes: Array, values: Array) -> float:
    """Return the slope of log values on log sizes by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def format_sizes(records: list[Record], size: str) -> str:
    """Return a Markdown table, a row for each size."""
    medians = {name: pivot_medians(records, name, size, "method") for name in VALUES}
    body = [
        [
            str(value),
            *(
                format(medians[name][value][LIBRARY], style) if value in medians[name] else "failed"
                for name, (_, style) in VALUES.items()
            ),
        ]
        for value in sorted({record[size] for record in records})
    ]
    return format_markdown([size, *(title for title, _ in VALUES.values())], body)


def format_exponents(records: list[Record], size: str) -> str:
    """Return a Markdown table of the exponents; those of scoring in rows are by scored rows."""
    body = []
    for name in EXPONENTS:
        by_scored = size == "n_rows" and name.startswith("score")
        by = "n_scored" if by_scored else size
        medians = pivot_medians(records, name, by, "method")
        sizes = np.array(sorted(medians), dtype=np.float64)
        if len(sizes) < 2:
            continue
        values = np.array([medians[value][LIBRARY] for value in sizes])
        slopes = [exponent(sizes, values), exponent(sizes[-2:], values[-2:])]
        body.append([VALUES[name][0], by, *(f"{slope:.2f}" for slope in slopes)])
    return format_markdown(["", "size", "exponent, all sizes", "two largest"], body)


def make_cells(arguments: argparse.Namespace) -> dict[str, list[Cell]]:
    """Return the cells of both series."""

    def series(sizes: list[tuple[int, int]]) -> list[Cell]:
        return [
            Cell(
                n_rows,
                n_columns,
                min(n_rows, arguments.most_scored),
                seed,
                arguments.quick,
                arguments.threads,
                arguments.max_epochs,
            )
            for n_rows, n_columns in sizes
            for seed in arguments.seeds
        ]

    n_rows = 300 if arguments.quick else ROWS_OF_COLUMNS
    return {
        "n_rows": series([(rows, COLUMNS_OF_ROWS) for rows in arguments.rows]),
        "n_columns": series([(n_rows, columns) for columns in arguments.columns]),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--columns", nargs="*", type=int, default=list(COLUMNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--max-epochs", type=int, help="of IMMSEDensity; its default if left out")
    parser.add_argument("--most-scored", type=int, default=100_000, help="scored rows at most")
    parser.add_argument("--most-seconds", type=float, default=3600.0, help="of each process")
    parser.add_argument("--retry", action="store_true", help="measure failed sizes once more")
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="small sizes, short fits, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.columns, arguments.most_scored = [100, 200], [2], 50
    return arguments


def main() -> None:
    """Measure both series and print their tables."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        series = {size: compare(arguments, cells) for size, cells in make_cells(arguments).items()}
    for size, records in series.items():
        if not records:
            continue
        print(f"\n{format_sizes(records, size)}\n\n{format_exponents(records, size)}")
    print("\n" + describe_runs(record for records in series.values() for record in records))


if __name__ == "__main__":
    main()
