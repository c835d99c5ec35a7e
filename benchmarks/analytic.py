"""Compare density estimators on distributions whose log-density is known.

    python benchmarks/analytic.py --output results/analytic.jsonl
    python benchmarks/analytic.py --densities ring spiral --methods immse_density --seeds 0
    python benchmarks/analytic.py --time-to-match

Each method is fitted to 8000 rows and scored on 2000 others. Printed are the Kullback-Leibler
divergence from the truth to the estimate (the mean of true minus estimated log p over the test
rows, nats per row), the mean absolute error of log p, the seconds of the fit and the microseconds
per scored row; each is the median over the seeds. Finished records in the output file are not
computed again.

With --time-to-match, IMMSEDensity is fitted with max_epochs = 0, 1, 2, 4, ... until its divergence
is below that of the published recipe, and the time of that complete fit is divided by the recipe's.
With 0 epochs there is no network: maps and analytic references only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import PEERS, make_peer
from results import Record, ResultsFile, format_markdown, markdown_table

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion.datasets import DENSITY_NAMES, AnalyticDensity, load_density

Array = NDArray[np.float64]

LIBRARY = "immse_density"
DEFAULT_METHODS = (
    LIBRARY,
    "kernel_density",
    "gaussian_mixture",
    "neural_spline_flow",
    "published_recipe",
)
DENSITIES_TO_MATCH = ("ring", "banana", "spiral")
TABLES = (
    ("kl", "KL(truth || estimate), nats per row", ".3f"),
    ("absolute_error", "Mean absolute error of log p, nats", ".3f"),
    ("fit_seconds", "Fit, seconds", ".1f"),
    ("score_microseconds", "Score, microseconds per row", ".1f"),
)


class LibraryMethod:
    """IMMSEDensity with its default parameters, behind the interface of the peers.

    The estimator splits off its own validation rows, so it gets all rows.
    """

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def fit(self, X_train: Array, X_valid: Array, seed: int) -> LibraryMethod:
        """Fit to all rows."""
        estimator = IMMSEDensity(random_state=seed, **self.parameters)
        self.estimator_ = estimator.fit(np.concatenate([X_train, X_valid]))
        self.details_ = {
            "n_epochs": self.estimator_.n_iter_,
            "marginals": self.estimator_.marginals_,
            "references": list(self.estimator_.references_),
        }
        return self

    def score_samples(self, X: Array) -> Array:
        """Return log p of each row, in nats."""
        return self.estimator_.score_samples(X)


def make_method(name: str, quick: bool) -> Any:
    """Return an unfitted method by name."""
    if name == LIBRARY:
        return LibraryMethod(**({"max_epochs": 2} if quick else {}))
    return make_peer(name, quick=quick)


def draw_rows(density: AnalyticDensity, seed: int, quick: bool) -> tuple[Array, Array, Array]:
    """Return training (7200), validation (800) and test rows (2000); an eighth if quick."""
    n_train, n_valid, n_test = (900, 100, 250) if quick else (7200, 800, 2000)
    X = density.sample(n_train + n_valid + n_test, random_state=seed)
    train, valid, test = np.split(X, [n_train, n_train + n_valid])
    return train, valid, test


def measure(method: Any, density: AnalyticDensity, seed: int, quick: bool) -> Record:
    """Fit and score one method; return its errors and times."""
    X_train, X_valid, X_test = draw_rows(density, seed, quick)
    start = time.perf_counter()
    method.fit(X_train, X_valid, seed)
    fitted = time.perf_counter()
    log_prob = method.score_samples(X_test)
    scored = time.perf_counter()
    excess = density.log_prob(X_test) - log_prob
    return {
        "kl": float(excess.mean()),
        "kl_standard_error": float(excess.std(ddof=1) / np.sqrt(len(excess))),
        "absolute_error": float(np.abs(excess).mean()),
        "fit_seconds": fitted - start,
        "score_microseconds": 1e6 * (scored - fitted) / len(X_test),
    }


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    setting = "quick" if arguments.quick else "default"
    records = []
    for dataset in arguments.densities:
        for method in arguments.methods:
            for seed in arguments.seeds:
                key = {"dataset": dataset, "seed": seed, "method": method, "setting": setting}
                record = results.find(**key)
                if record is None:
                    model = make_method(method, arguments.quick)
                    measured = measure(model, load_density(dataset), seed, arguments.quick)
                    record = results.add({**key, **measured})
                print_progress(record)
                records.append(record)
    return records


def print_progress(record: Record) -> None:
    """Print one line for a finished record."""
    print(
        f"{record['dataset']:20} {record['method']:24} seed {record['seed']}  "
        f"KL {record['kl']:.4f} +- {record['kl_standard_error']:.4f}  "
        f"fit {record['fit_seconds']:.1f} s  score {record['score_microseconds']:.1f} us/row",
        flush=True,
    )


def print_comparison(records: list[Record]) -> None:
    """Print one table for each measure."""
    for value, title, number_format in TABLES:
        print(f"\n{title}\n\n{markdown_table(records, value, number_format=number_format)}")
    worst = max(record["kl_standard_error"] for record in records)
    print(f"\nLargest standard error of a KL over the test rows: {worst:.3f} nats.")


# --- Time to match the published recipe -----------------------------------------------------


def library_fits(density: AnalyticDensity, seed: int, quick: bool) -> Iterator[Record]:
    """Yield measurements of IMMSEDensity refitted with a doubling number of epochs."""
    for max_epochs in (0, *(2**k for k in range(3 if quick else 11))):
        method = LibraryMethod(max_epochs=max_epochs)
        yield {"max_epochs": max_epochs, **measure(method, density, seed, quick)}


def time_to_match(dataset: str, seed: int, quick: bool) -> Record:
    """Measure the recipe and the library in one go; ``ratio`` is None if it never matched."""
    density = load_density(dataset)
    recipe = measure(make_peer("published_recipe", quick=quick), density, seed, quick)
    fits = []
    for fit in library_fits(density, seed, quick):
        fits.append(fit)
        print(
            f"{dataset} seed {seed}: max_epochs {fit['max_epochs']}, {fit['fit_seconds']:.1f} s, "
            f"KL {fit['kl']:.3f} (recipe {recipe['fit_seconds']:.1f} s, {recipe['kl']:.3f})",
            flush=True,
        )
        if fit["kl"] < recipe["kl"]:
            break
    matched = fits[-1]["kl"] < recipe["kl"]
    ratio = fits[-1]["fit_seconds"] / recipe["fit_seconds"] if matched else None
    return {"recipe": recipe, "fits": fits, "ratio": ratio}


def match_recipe(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure the time to match for every density and seed that the results file lacks."""
    setting = "quick" if arguments.quick else "default"
    records = []
    for dataset in arguments.densities:
        for seed in arguments.seeds:
            key = {"dataset": dataset, "seed": seed, "method": "time_to_match", "setting": setting}
            record = results.find(**key)
            if record is None:
                record = results.add({**key, **time_to_match(dataset, seed, arguments.quick)})
            records.append(record)
    return records


def print_matches(records: list[Record]) -> None:
    """Print a table of the first fits that beat the recipe."""
    header = ["dataset", "seed", "recipe s", "recipe KL", "max_epochs", "fit s", "KL", "ratio"]
    body = []
    for record in records:
        recipe, fit = record["recipe"], record["fits"][-1]
        ratio = "never" if record["ratio"] is None else f"{record['ratio']:.3f}"
        times = [f"{recipe['fit_seconds']:.1f}", f"{recipe['kl']:.3f}", str(fit["max_epochs"])]
        cells = [record["dataset"], str(record["seed"]), *times]
        body.append([*cells, f"{fit['fit_seconds']:.1f}", f"{fit['kl']:.3f}", ratio])
    print("\n" + format_markdown(header, body))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--densities", nargs="+", choices=DENSITY_NAMES, help="default: all")
    parser.add_argument(
        "--methods", nargs="+", choices=(LIBRARY, *PEERS), default=list(DEFAULT_METHODS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    parser.add_argument("--time-to-match", action="store_true", help="see above")
    parser.add_argument("--quick", action="store_true", help="few rows and short fits, as a test")
    arguments = parser.parse_args()
    if arguments.densities is None:
        names = DENSITIES_TO_MATCH if arguments.time_to_match else DENSITY_NAMES
        arguments.densities = list(names)
    return arguments


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    results = ResultsFile(arguments.output)
    if arguments.time_to_match:
        print_matches(match_recipe(arguments, results))
    else:
        print_comparison(compare(arguments, results))


if __name__ == "__main__":
    main()
