"""Compare IMMSEDensity with normal distributions and their mixtures on few rows of tables.

    python benchmarks/small_tables.py --data-dir DATA --output results/small_tables.jsonl

From each table of tabular_data.py (of equal rows one is kept, columns with ties get uniform noise
of their lattice step) 20 random subsamples of 200 and of 1000 rows are drawn; the test rows are
2000 of the others, or all if there are fewer. A tenth of the rows validates for the peers that
choose by validation; the normal distribution and the mixture chosen by BIC are fitted to all of
them, and so is IMMSEDensity with its default parameters, which splits them itself.
Log-likelihoods are in nats per row, standardised by mean and standard deviation of the rows to
fit.

Printed are, for each table and size, the mean log-likelihoods over the subsamples; the mean paired
difference of IMMSEDensity to the better of the peers, with its standard error over the subsamples
(which have rows in common: it is the error for this table, not for others like it); and the median
and the largest seconds of its fit. The better peer is that of the largest mean on these very test
rows, which favours the peers. Finished records in the output file are not measured again, except
those of methods given to --again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from analytic import LIBRARY, make_method
from peers import PEERS
from processes import import_late_modules, use_threads
from results import Record, ResultsFile, describe_runs, format_markdown
from tabular import best_peer, standard_error, with_error
from tabular_data import TABLES, Split, load_table, random_subsample

SIZES = (200, 1000)
N_SUBSAMPLES = 20
MAX_TESTED = 2000
DEFAULT_METHODS = (LIBRARY, "gaussian", "gaussian_mixture", "gaussian_mixture_validation")


def measure(method: str, split: Split, seed: int, quick: bool) -> Record:
    """Fit one method and score the test rows; return its likelihood and times."""
    model = make_method(method, quick)
    start = time.perf_counter()
    model.fit(split.train, split.valid, seed)
    fitted = time.perf_counter()
    log_density = model.score_samples(split.test)
    return {
        "log_likelihood": float(log_density.mean()),
        "standard_error": standard_error(log_density),
        "fit_seconds": fitted - start,
        "score_seconds": time.perf_counter() - fitted,
        "n_test": len(split.test),
        "n_columns": split.test.shape[1],
        "details": model.details_,
    }


def describe_setting(size: int, arguments: argparse.Namespace) -> str:
    """Return the name of the setting in the records; other test rows make another setting."""
    setting = f"{size} rows, at most {arguments.most_tested} tested"
    return f"{setting}, quick" if arguments.quick else setting


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    import_late_modules()
    records = []
    for dataset in arguments.datasets:
        X = load_table(dataset, arguments.data_dir)
        for size in arguments.sizes:
            for seed in range(arguments.subsamples):
                split = random_subsample(X, size, arguments.most_tested, seed)
                for method in arguments.methods:
                    setting = describe_setting(size, arguments)
                    key = {"dataset": dataset, "seed": seed, "method": method, "setting": setting}
                    record = results.find(**key)
                    if record is None or method in arguments.again:
                        measured = measure(method, split, seed, arguments.quick)
                        record = results.add({**key, "size": size, **measured})
                    records.append(record)
                print_progress(records[-len(arguments.methods) :])
    return records


def print_progress(records: list[Record]) -> None:
    """Print one line for a finished subsample."""
    likelihoods = "  ".join(f"{r['method']} {r['log_likelihood']:.3f}" for r in records)
    first = records[0]
    print(
        f"{first['dataset']}, {first['size']} rows, subsample {first['seed']}: {likelihoods}",
        flush=True,
    )


def paired_difference(records: list[Record], peer: str) -> tuple[float, float]:
    """Return the mean over the subsamples of the lead over a peer, and its standard error."""
    by_seed = {
        method: {r["seed"]: r["log_likelihood"] for r in records if r["method"] == method}
        for method in (LIBRARY, peer)
    }
    leads = np.array([value - by_seed[peer][seed] for seed, value in by_seed[LIBRARY].items()])
    return float(leads.mean()), standard_error(leads)


def format_comparison(records: list[Record]) -> str:
    """Return a Markdown table, a row for each table and size."""
    methods = list(dict.fromkeys(record["method"] for record in records))
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record["dataset"], record["size"]), []).append(record)
    body = []
    for (dataset, size), group in groups.items():
        means = {
            method: float(np.mean([r["log_likelihood"] for r in group if r["method"] == method]))
            for method in methods
        }
        cells = [format(mean, ".3f") for mean in means.values()]
        body.append([dataset, str(size), *cells, *compared_cells(group, means)])
    titles = ["better peer", "difference", "in standard errors", "fit, s", "at most"]
    return format_markdown(["table", "rows", *methods, *titles], body)


def compared_cells(records: list[Record], means: dict[str, float]) -> list[str]:
    """Return the better peer, the difference to it, and the seconds of the fits."""
    peer = best_peer(means)
    if LIBRARY not in means or peer is None:
        return [""] * 5
    lead, error = paired_difference(records, peer)
    seconds = [r["fit_seconds"] for r in records if r["method"] == LIBRARY]
    return [
        peer,
        with_error((lead, error)),
        f"{lead / error:+.1f}" if error > 0 else "",
        f"{np.median(seconds):.1f}",
        f"{max(seconds):.1f}",
    ]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = (LIBRARY, *PEERS)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--datasets", nargs="+", choices=tuple(TABLES), default=list(TABLES))
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(DEFAULT_METHODS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--subsamples", type=int, default=N_SUBSAMPLES)
    parser.add_argument("--most-tested", type=int, default=MAX_TESTED, help="test rows at most")
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument(
        "--again", nargs="+", choices=methods, default=[], help="methods to measure once more"
    )
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="short fits of 60 rows, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.subsamples, arguments.most_tested = [60], 2, 100
    return arguments


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records = compare(arguments, ResultsFile(arguments.output))
    print(
        f"\nMeans of {arguments.subsamples} subsamples, nats per row in standard units\n\n"
        f"{format_comparison(records)}\n\n{describe_runs(records)}"
    )


if __name__ == "__main__":
    main()
