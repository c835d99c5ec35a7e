"""Compare models of discrete and mixed tables by the log-likelihood of test rows.

    python benchmarks/discrete.py --data-dir DATA --output results/discrete.jsonl
    python benchmarks/discrete.py --datasets digits --methods latent_class immse --seeds 0

The sets and the layout of their folder are in discrete_data.py, the peers in discrete_peers.py.
All methods get the same rows: training and validation rows together, to split as they like.
Printed for each data set are the mean log-likelihood of the test rows in nats (medians over the
seeds), its standard error over the rows, the numerical error of the mean (of methods that integrate
by random points), bits per dimension where that is customary, the seconds of fit and score, and how
many distinct rows were scored. Finished records in the output file are not computed again.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from discrete_data import DATASETS, DiscreteData, Table, load_data
from discrete_peers import PEERS, make_peer
from numpy.typing import NDArray
from results import Record, ResultsFile, format_markdown, pivot_medians
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]

LIBRARY = "immse"
COLUMNS = (
    ("log_likelihood", "log-likelihood", ".3f"),
    ("standard_error", "standard error", ".3f"),
    ("numerical_error", "numerical error", ".4f"),
    ("bits_per_dim", "bits/dim", ".3f"),
    ("fit_seconds", "fit, s", ".1f"),
    ("score_seconds", "score, s", ".1f"),
    ("n_distinct", "distinct rows", ".0f"),
)


class LibraryMethod:
    """The library's estimator for the kind of data, with its default parameters.

    The estimator splits off its own validation rows, so it gets all rows.
    """

    def __init__(self, data: DiscreteData, **parameters: Any) -> None:
        self.data = data
        self.parameters = parameters
        self.details_: dict[str, Any] = {}

    def fit(self, X: Table, seed: int) -> LibraryMethod:
        """Fit to all rows."""
        import sk_itdiffusion

        mixed = isinstance(self.data.X, pd.DataFrame)
        name = "IMMSEMixedDensity" if mixed else "IMMSEDiscreteDensity"
        parameters = {**self.data.parameters, **self.parameters, "random_state": seed}
        self.estimator_ = getattr(sk_itdiffusion, name)(**parameters).fit(X)
        return self

    def score(self, X: Table, counts: Array) -> tuple[Array, Array]:
        """Return log P of each row and its numerical standard error."""
        return score_until_exact(self.estimator_, X, counts)


class PeerMethod:
    """A peer behind the same interface as the library."""

    def __init__(self, name: str, data: DiscreteData, quick: bool) -> None:
        self.data = data
        self.peer = make_peer(name, data, quick=quick)

    @property
    def details_(self) -> dict[str, Any]:
        """What the fit of the peer has chosen."""
        return self.peer.details_

    def fit(self, X: Table, seed: int) -> PeerMethod:
        """Fit to all rows."""
        self.peer.fit(self.data.encode(X), seed)
        return self

    def score(self, X: Table, counts: Array) -> tuple[Array, Array]:
        """Return log P of each row and its numerical standard error."""
        return self.peer.score(self.data.encode(X))


def score_until_exact(
    estimator: Any,
    X: Table,
    counts: Array,
    tolerance: float = 0.003,
    most_seconds: float = 120.0,
) -> tuple[Array, Array]:
    """Return log P of each distinct row and its numerical standard error.

    Rows are scored with the defaults of the estimator, and where the numerical error of the mean
    exceeds ``tolerance`` nats again with as many more draws as bring it down, but no more than
    about ``most_seconds`` allow.
    """
    start = time.perf_counter()
    log_prob, std = estimator.score_samples(X, return_std=True)
    seconds = time.perf_counter() - start
    excess = (numerical_error_of_mean(std, counts) / tolerance) ** 2
    factor = round(min(1.1 * excess, most_seconds / seconds))
    if excess <= 1.0 or factor < 2:
        return log_prob, std
    error = float(np.sqrt(np.mean(std**2))) / np.sqrt(factor)
    return estimator.score_samples(X, return_std=True, score_tol=error)


def numerical_error_of_mean(std: Array, counts: Array) -> float:
    """Return the error of the mean; equal rows share theirs, distinct ones are independent."""
    return float(np.linalg.norm(counts / counts.sum() * std))


def applies(method: str, data: DiscreteData) -> bool:
    """Whether a method can model this data set in reasonable time."""
    return method == LIBRARY or PEERS[method].applies(data)


def make_method(name: str, data: DiscreteData, quick: bool) -> LibraryMethod | PeerMethod:
    """Return an unfitted method by name."""
    if name == LIBRARY:
        return LibraryMethod(data, **({"max_epochs": 2} if quick else {}))
    return PeerMethod(name, data, quick)


def measure(method: LibraryMethod | PeerMethod, data: DiscreteData, seed: int) -> Record:
    """Fit one method and score the distinct test rows; return its likelihood, errors and times."""
    X_test, counts = data.distinct_test_rows()
    start = time.perf_counter()
    method.fit(data.X, seed)
    fitted = time.perf_counter()
    log_prob, std = method.score(X_test, counts)
    scored = time.perf_counter()
    record = summarize(log_prob, std, counts)
    if data.n_dims is not None:
        record["bits_per_dim"] = -record["log_likelihood"] / (data.n_dims * np.log(2.0))
    times = {"fit_seconds": fitted - start, "score_seconds": scored - fitted}
    return {**record, **times, "details": method.details_}


def summarize(log_prob: Array, std: Array, counts: Array) -> Record:
    """Return mean and errors of the log-likelihoods of distinct rows and their counts."""
    n = int(counts.sum())
    mean = float(np.average(log_prob, weights=counts))
    variance = np.average((log_prob - mean) ** 2, weights=counts) * n / (n - 1)
    return {
        "log_likelihood": mean,
        "standard_error": float(np.sqrt(variance / n)),
        "numerical_error": numerical_error_of_mean(std, counts),
        "n_test": n,
        "n_distinct": len(counts),
    }


def describe_setting(arguments: argparse.Namespace) -> str:
    """Return the name of the setting in the records; other test rows make another setting."""
    setting = "quick" if arguments.quick else "default"
    limit = arguments.max_test_rows
    return setting if limit is None else f"{setting}, at most {limit} test rows"


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    records = []
    for dataset in arguments.datasets:
        for seed in arguments.seeds:
            data = load_data(
                dataset, seed, arguments.data_dir, arguments.max_test_rows, arguments.quick
            )
            for method in arguments.methods:
                if applies(method, data):
                    records.append(measure_once(arguments, results, data, seed, method))
                    print_progress(records[-1])
    return records


def measure_once(
    arguments: argparse.Namespace, results: ResultsFile, data: DiscreteData, seed: int, method: str
) -> Record:
    """Return the record from the results file, or measure and add it."""
    setting = describe_setting(arguments)
    key = {"dataset": data.name, "seed": seed, "method": method, "setting": setting}
    record = results.find(**key)
    if record is None:
        model = make_method(method, data, arguments.quick)
        record = results.add({**key, **measure(model, data, seed)})
    return record


def print_progress(record: Record) -> None:
    """Print one line for a finished record."""
    print(
        f"{record['dataset']:10} {record['method']:28} seed {record['seed']}  "
        f"log-likelihood {record['log_likelihood']:.4f} +- {record['standard_error']:.4f} "
        f"(numerical {record['numerical_error']:.4f})  "
        f"fit {record['fit_seconds']:.1f} s  score {record['score_seconds']:.1f} s",
        flush=True,
    )


def print_comparison(records: list[Record]) -> None:
    """Print one table for each data set, a row for each method."""
    for dataset in dict.fromkeys(record["dataset"] for record in records):
        chosen = [record for record in records if record["dataset"] == dataset]
        print(f"\n{dataset}, nats per row\n\n{format_comparison(chosen)}")


def format_comparison(records: list[Record]) -> str:
    """Return a Markdown table of the medians over the seeds for one data set."""
    columns = [column for column in COLUMNS if any(column[0] in record for record in records)]
    medians = {value: pivot_medians(records, value, "method", "dataset") for value, _, _ in columns}
    body = []
    for method in medians["log_likelihood"]:
        cells = [
            format(*medians[value][method].values(), number_format)
            for value, _, number_format in columns
        ]
        body.append([method, *cells])
    return format_markdown(["method", *(title for _, title, _ in columns)], body)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = (LIBRARY, *PEERS)
    parser.add_argument("--datasets", nargs="+", choices=tuple(DATASETS), default=list(DATASETS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(methods))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--data-dir", help="folder of the data sets; digits needs none")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="few rows and short fits, as a test")
    parser.add_argument(
        "--max-test-rows", type=int, help="greatest number of test rows; default: 1000 for mnist"
    )
    return parser.parse_args()


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with threadpool_limits(limits=arguments.threads):
        print_comparison(compare(arguments, ResultsFile(arguments.output)))


if __name__ == "__main__":
    main()
