"""Compare density estimators on continuous tables by the log-likelihood of test rows.

    python benchmarks/tabular.py --data-dir DATA --output results/tabular.jsonl
    python benchmarks/tabular.py --data-dir DATA --datasets phoneme --seeds 0

The tables and the layout of their folder are in tabular_data.py: of equal rows one is kept, and
columns with ties get uniform noise of the width of their lattice step. By the seed rows are split
into 80% for training, 10% for validation and 10% for the test, and standardised by the mean and
the standard deviation of the first two; log-likelihoods are in nats per row in these units.

All methods get the same rows. IMMSEDensity, with its default parameters, gets training and
validation rows together and splits them itself; of the peers (peers.py) those that choose by
cross-validation use both, the others choose and stop by the validation rows. Every test row is
scored by every method; only in the choice of the kernels' bandwidth at most 2000 rows of each fold
are. For twonorm the true density is another row of the table.

Each measurement is made in a process of its own, which has imported everything before the clock
starts. Printed are medians over the seeds: the mean log-likelihood of the test rows with its
standard error over them; paired differences, with their standard errors, of IMMSEDensity to the
best peer (the one with the largest median on these very test rows, which favours the peers), to
the neural spline flow and to the Gaussian mixture; seconds of fit and score (of the fit also those
of all processors together, which tell more where other programs run), and the peak memory of the
process, which includes what it needs before the fit.

Finished records in the output file are not measured again, except those of methods given to
--again. Log-likelihoods of the single rows are in a folder alongside the file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from analytic import LIBRARY, make_method
from numpy.typing import NDArray
from peers import PEERS
from processes import (
    MeasurementError,
    call_in_fresh_process,
    import_late_modules,
    peak_megabytes,
    use_threads,
)
from results import (
    ArrayFolder,
    Record,
    ResultsFile,
    describe_runs,
    format_markdown,
    pivot_medians,
)
from tabular_data import TABLES, Split, load_table, random_split

from sk_itdiffusion.datasets import load_density

Array = NDArray[np.float64]
Rows = dict[tuple[str, int, str], NDArray[np.float32]]

TRUTH = "true_density"
TABLES_WITH_TRUTH = ("twonorm",)
FLOW, MIXTURE = "neural_spline_flow", "gaussian_mixture_validation"
DEFAULT_METHODS = (
    LIBRARY,
    "kernel_density",
    MIXTURE,
    FLOW,
    "masked_autoregressive_flow",
    "published_recipe",
    TRUTH,
)
ROWS_IF_QUICK = 500
COSTS = (
    ("fit_seconds", "fit, s", ".1f"),
    ("fit_processor_seconds", "of processors", ".1f"),
    ("score_seconds", "score, s", ".2f"),
    ("score_microseconds", "score, us per row", ".0f"),
    ("peak_megabytes", "peak memory, MB", ".0f"),
    ("idle_megabytes", "before the fit, MB", ".0f"),
)


@dataclass(frozen=True)
class Measurement:
    """What one process measures."""

    dataset: str
    method: str
    seed: int
    data_dir: Path
    keep_copies: bool
    quick: bool
    threads: int | None

    @property
    def key(self) -> Record:
        """Fields that identify the record."""
        setting = "quick" if self.quick else "default"
        setting += ", copies kept" if self.keep_copies else ""
        return {
            "dataset": self.dataset,
            "seed": self.seed,
            "method": self.method,
            "setting": setting,
        }

    def split(self) -> Split:
        """Return the rows."""
        X = load_table(self.dataset, self.data_dir, self.keep_copies)
        return random_split(X[:ROWS_IF_QUICK] if self.quick else X, self.seed)


class TrueDensity:
    """The density from which a table was drawn, behind the interface of the methods."""

    def __init__(self, dataset: str, split: Split) -> None:
        self.density = load_density(dataset)
        self.split = split
        self.details_: dict[str, Any] = {}

    def fit(self, X_train: Array, X_valid: Array, seed: int) -> TrueDensity:
        """Do nothing."""
        return self

    def score_samples(self, X: Array) -> Array:
        """Return log p of each row, in nats and standard units."""
        log_density = self.density.log_prob(X * self.split.scale + self.split.center)
        return self.split.standardized_log_density(log_density)


def measure(measurement: Measurement) -> tuple[Record, Array]:
    """Fit and score one method; return likelihood, times and memory, and the rows' log p."""
    with use_threads(measurement.threads):
        split = measurement.split()
        if measurement.method == TRUTH:
            method: Any = TrueDensity(measurement.dataset, split)
        else:
            method = make_method(measurement.method, measurement.quick)
        import_late_modules()
        idle = peak_megabytes()
        start, processor = time.perf_counter(), time.process_time()
        method.fit(split.train, split.valid, measurement.seed)
        fitted, processor = time.perf_counter(), time.process_time() - processor
        log_density = method.score_samples(split.test)
        scored = time.perf_counter()
    record = {
        "log_likelihood": float(log_density.mean()),
        "standard_error": standard_error(log_density),
        "fit_seconds": fitted - start,
        "fit_processor_seconds": processor,
        "score_seconds": scored - fitted,
        "score_microseconds": 1e6 * (scored - fitted) / len(split.test),
        "peak_megabytes": peak_megabytes(),
        "idle_megabytes": idle,
        "n_train": len(split.train),
        "n_valid": len(split.valid),
        "n_test": len(split.test),
        "n_columns": split.test.shape[1],
        "details": method.details_,
    }
    return record, log_density


def standard_error(values: NDArray[Any]) -> float:
    """Return the standard error of the mean of independent values."""
    return float(np.std(values, ddof=1, dtype=np.float64) / np.sqrt(len(values)))


def planned(arguments: argparse.Namespace) -> list[Measurement]:
    """Return all measurements that the command line asks for."""
    return [
        Measurement(
            dataset,
            method,
            seed,
            arguments.data_dir,
            arguments.keep_copies,
            arguments.quick,
            arguments.threads,
        )
        for dataset in arguments.datasets
        for seed in arguments.seeds
        for method in arguments.methods
        if method != TRUTH or dataset in TABLES_WITH_TRUTH
    ]


def compare(arguments: argparse.Namespace) -> tuple[list[Record], Rows, list[str]]:
    """Measure what the results file lacks.

    Returns the records, the log-likelihoods of the rows, and descriptions of what failed, which
    does not end the comparison.
    """
    results, folder = ResultsFile(arguments.output), ArrayFolder(arguments.output)
    records, rows, failures = [], {}, []
    for each in planned(arguments):
        try:
            record, values = measure_once(each, results, folder, each.method in arguments.again)
        except MeasurementError as error:
            failures.append(f"{each.dataset}, {each.method}, seed {each.seed} failed: {error}")
            print(failures[-1], flush=True)
            continue
        print_progress(record)
        records.append(record)
        rows[each.dataset, each.seed, each.method] = values
    return records, rows, failures


def measure_once(
    measurement: Measurement, results: ResultsFile, folder: ArrayFolder, again: bool
) -> tuple[Record, NDArray[np.float32]]:
    """Return the record and the rows' log-likelihoods from the files, or measure and add them."""
    key = measurement.key
    record, log_density = results.find(**key), folder.find(**key)
    if record is None or log_density is None or again:
        measured, values = call_in_fresh_process(measure, measurement)
        folder.add(values, **key)
        record, log_density = results.add({**key, **measured}), values.astype(np.float32)
    return record, log_density


def print_progress(record: Record) -> None:
    """Print one line for a finished record."""
    print(
        f"{record['dataset']:12} {record['method']:28} seed {record['seed']}  "
        f"{record['log_likelihood']:.4f} +- {record['standard_error']:.4f} nats  "
        f"fit {record['fit_seconds']:.1f} s  score {record['score_seconds']:.2f} s  "
        f"{record['peak_megabytes']:.0f} MB",
        flush=True,
    )


# --- Tables ---------------------------------------------------------------------------------


def paired_difference(rows: Rows, dataset: str, peer: str | None) -> tuple[float, float] | None:
    """Return the medians over the seeds of the mean lead over a peer and of its standard error.

    None if no seed has both.
    """
    leads = [
        log_density.astype(np.float64) - rows[dataset, seed, peer]
        for (name, seed, method), log_density in rows.items()
        if (name, method) == (dataset, LIBRARY) and (dataset, seed, peer) in rows
    ]
    if not leads:
        return None
    means = [float(lead.mean()) for lead in leads]
    return statistics.median(means), statistics.median(map(standard_error, leads))


def best_peer(medians: dict[str, float]) -> str | None:
    """Return the peer with the largest log-likelihood, None if there are no peers."""
    peers = [method for method in medians if method not in (LIBRARY, TRUTH)]
    return max(peers, key=medians.__getitem__, default=None)


def with_error(value: tuple[float, float] | None, sign: str = "+") -> str:
    """Return a number with its standard error, or nothing."""
    return "" if value is None else f"{value[0]:{sign}.3f} ± {value[1]:.3f}"


def format_likelihoods(records: list[Record], rows: Rows) -> str:
    """Return a Markdown table of log-likelihoods and of the differences to the peers."""
    means, errors = (
        pivot_medians(records, value) for value in ("log_likelihood", "standard_error")
    )
    methods = list(dict.fromkeys(record["method"] for record in records))
    best = {dataset: best_peer(medians) for dataset, medians in means.items()}
    compared = [best, dict.fromkeys(means, FLOW), dict.fromkeys(means, MIXTURE)]
    body = []
    for dataset, medians in means.items():
        cells = [
            with_error((medians[m], errors[dataset][m]), "") if m in medians else ""
            for m in methods
        ]
        leads = [paired_difference(rows, dataset, peers[dataset]) for peers in compared]
        body.append([dataset, *cells, best[dataset] or "", *map(with_error, leads)])
    averages = [mean_lead(rows, peers) for peers in compared]
    body.append(["mean over the tables", *[""] * (len(methods) + 1), *averages])
    titles = ["best peer", "to the best peer", f"to {FLOW}", f"to {MIXTURE}"]
    return format_markdown(["table", *methods, *titles], body)


def mean_lead(rows: Rows, peers: dict[str, str | None]) -> str:
    """Return the mean over the tables of the lead over one peer each, or nothing."""
    leads = [paired_difference(rows, dataset, peer) for dataset, peer in peers.items()]
    known = [lead[0] for lead in leads if lead is not None]
    return f"{statistics.mean(known):+.3f}" if known else ""


def lines_of_truth(rows: Rows) -> str:
    """Return a line for each table whose true density was scored, with the difference to it."""
    known = [(name, paired_difference(rows, name, TRUTH)) for name in TABLES_WITH_TRUTH]
    return "".join(
        f"\n{name}, {LIBRARY} to the true density: {with_error(lead)}\n"
        for name, lead in known
        if lead is not None
    )


def format_costs(records: list[Record]) -> str:
    """Return a Markdown table of times and memory, a row for each table and method."""
    body = []
    for dataset in dict.fromkeys(record["dataset"] for record in records):
        chosen = [record for record in records if record["dataset"] == dataset]
        medians = {value: pivot_medians(chosen, value)[dataset] for value, _, _ in COSTS}
        sizes = [f"{chosen[0]['n_train'] + chosen[0]['n_valid']}", f"{chosen[0]['n_columns']}"]
        seconds = medians["fit_seconds"]
        for method in seconds:
            cells = [format(medians[value][method], style) for value, _, style in COSTS]
            ratio = f"{seconds[method] / seconds[FLOW]:.2f}" if FLOW in seconds else ""
            body.append([dataset, method, *sizes, *cells, ratio])
    titles = ["rows to fit", "columns", *(title for _, title, _ in COSTS), f"fit / {FLOW}"]
    return format_markdown(["table", "method", *titles], body)


def print_comparison(records: list[Record], rows: Rows) -> None:
    """Print the tables and what they were measured with."""
    seeds = len({record["seed"] for record in records})
    print(
        f"\nMean log-likelihood of the test rows, nats per row in standard units; medians of "
        f"{seeds} seed(s); differences are those of {LIBRARY} to the peers on the same rows\n\n"
        f"{format_likelihoods(records, rows)}\n{lines_of_truth(rows)}\n"
        f"Costs; medians of {seeds} seed(s)\n\n{format_costs(records)}\n\n"
        f"{describe_runs(records)}"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = (LIBRARY, *PEERS, TRUTH)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--datasets", nargs="+", choices=tuple(TABLES), default=list(TABLES))
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(DEFAULT_METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument(
        "--again", nargs="+", choices=methods, default=[], help="methods to measure once more"
    )
    parser.add_argument(
        "--keep-copies", action="store_true", help="keep equal rows, each with its own noise"
    )
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="few rows and short fits, as a test")
    return parser.parse_args()


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records, rows, failures = compare(arguments)
    print_comparison(records, rows)
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
