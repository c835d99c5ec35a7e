"""Compare ways to fit densities to tables with missing entries, by observed parts of test rows.

    python benchmarks/missing.py --data-dir DATA --output results/missing.jsonl
    python benchmarks/missing.py --data-dir DATA --datasets phoneme --shares 0.3 --rows 1000

Tables and their split are those of tabular.py, of the first 5,000 rows (--rows) in random order. Of
each entry, of training, validation and test rows alike, it is decided by chance whether it is
missing (completely at random), with a probability of 0.1, 0.3 and 0.5; the same entries are missing
for all methods. A test row is scored by the log-density of the observed entries of it, in nats and
standard units; rows of which nothing was observed count as 0.

IMMSEDensity without networks (``max_epochs=0``) is fitted to the rows with their holes, and with
networks that are trained on the observed entries (the defaults). Besides it there are a Gaussian
mixture with the number of components that validates best (peers.py, with one start each), fitted to
rows in which holes were replaced by the means of their columns, and to rows that scikit-learn's
IterativeImputer has completed; and IMMSEDensity fitted to the latter. Mixtures are scored by their
exact marginals, and their validation rows are imputed as those for training are.

Printed are, for each table and share, mean log-densities of the test rows with standard errors, and
paired differences of IMMSEDensity to each other method. Finished records in the output file are not
measured again, except those of methods given to --again.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from command_line import Finished, parser_of
from numpy.typing import NDArray
from peers import GaussianMixturePeer
from processes import use_threads
from results import ArrayFolder, Record, describe_runs, format_markdown
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.mixture import GaussianMixture
from tabular import standard_error, with_error
from tabular_data import TABLES, Split, load_table, random_split

from sk_itdiffusion import IMMSEDensity

Array = NDArray[np.float64]
Scorer = Callable[[Array], Array]

SHARES = (0.1, 0.3, 0.5)
MAX_ROWS, ROWS_IF_QUICK = 5_000, 400
LIBRARY = "immse_density"


def with_holes(split: Split, share: float, seed: int) -> Split:
    """Return the rows with entries that are missing completely at random."""
    rng = np.random.default_rng(seed)
    parts = [
        np.where(rng.random(part.shape) < share, np.nan, part)
        for part in (split.train, split.valid, split.test)
    ]
    return Split(*parts, split.center, split.scale)


def observed_log_density(mixture: GaussianMixture, X: Array) -> Array:
    """Return the log-density of the observed part of each row under a Gaussian mixture."""
    found = np.zeros(len(X))
    patterns, pattern = np.unique(~np.isnan(X), axis=0, return_inverse=True)
    for number, observed in enumerate(patterns):
        here = pattern.ravel() == number
        if not observed.any():
            continue
        block = np.ix_(observed, observed)
        joint = [
            np.log(weight)
            + multivariate_normal(mean[observed], covariance[block]).logpdf(X[here][:, observed])
            for weight, mean, covariance in zip(
                mixture.weights_, mixture.means_, mixture.covariances_, strict=True
            )
        ]
        found[here] = logsumexp(np.reshape(joint, (len(joint), -1)), axis=0)
    return found


def fit_immse(split: Split, seed: int, quick: bool) -> Scorer:
    """Return the scores of IMMSEDensity fitted to all rows, which splits them itself."""
    rows = np.concatenate([split.train, split.valid])
    return IMMSEDensity(max_epochs=0, random_state=seed).fit(rows).score_samples


def fit_with_networks(split: Split, seed: int, quick: bool) -> Scorer:
    """Return the scores of IMMSEDensity with networks that were trained on observed entries."""
    rows = np.concatenate([split.train, split.valid])
    limits = {"max_epochs": 1, "n_networks": 1} if quick else {}
    return IMMSEDensity(random_state=seed, **limits).fit(rows).score_samples


def fit_mixture(split: Split, seed: int, quick: bool) -> Scorer:
    """Return the exact scores of a Gaussian mixture of complete rows."""
    peer = GaussianMixturePeer("validation", n_init=1)
    mixture = peer.fit(split.train, split.valid, seed).model_
    return lambda X: observed_log_density(mixture, X)


def imputed(split: Split, imputer: Any) -> Split:
    """Return the split with training and validation rows completed by an imputer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        train = imputer.fit_transform(split.train)
    return Split(train, imputer.transform(split.valid), split.test, split.center, split.scale)


METHODS: dict[str, Callable[[Split, int, bool], Scorer]] = {
    LIBRARY: fit_immse,
    "with networks": fit_with_networks,
    "mean, then mixture": lambda split, seed, quick: fit_mixture(
        imputed(split, SimpleImputer()), seed, quick
    ),
    "IterativeImputer, then mixture": lambda split, seed, quick: fit_mixture(
        imputed(split, IterativeImputer(random_state=seed)), seed, quick
    ),
    "IterativeImputer, then IMMSEDensity": lambda split, seed, quick: fit_immse(
        imputed(split, IterativeImputer(random_state=seed)), seed, quick
    ),
}


def measure(method: str, split: Split, seed: int, quick: bool) -> tuple[Record, Array]:
    """Fit one method and score the test rows; return mean and times, and the rows' scores."""
    start = time.perf_counter()
    score = METHODS[method](split, seed, quick)
    fitted = time.perf_counter()
    log_density = score(split.test)
    record = {
        "log_likelihood": float(log_density.mean()),
        "standard_error": standard_error(log_density),
        "fit_seconds": fitted - start,
        "score_seconds": time.perf_counter() - fitted,
        "n_patterns": len(np.unique(np.isnan(split.train), axis=0)),
        "n_test": len(split.test),
        "n_columns": split.test.shape[1],
    }
    return record, log_density


def compare(arguments: argparse.Namespace) -> tuple[list[Record], ArrayFolder]:
    """Measure every combination that the results file lacks; return the records of all."""
    finished = Finished(arguments.output, arguments.again)
    records = []
    for dataset in arguments.datasets:
        X = load_table(dataset, arguments.data_dir)
        for seed in arguments.seeds:
            rows = np.random.default_rng(seed).permutation(X)
            n_rows = min(ROWS_IF_QUICK if arguments.quick else arguments.rows, len(rows))
            complete = random_split(rows[:n_rows], seed)
            for share in arguments.shares:
                split = with_holes(complete, share, seed)
                for method in arguments.methods:
                    # Records of the default lack the number of rows.
                    few = "" if arguments.rows == MAX_ROWS else f", {n_rows} rows"
                    setting = f"{share:g} missing{', quick' if arguments.quick else few}"
                    key = {"dataset": dataset, "seed": seed, "method": method, "setting": setting}
                    work = partial(measure, method, split, seed, arguments.quick)
                    record, is_new = finished.record(key | {"share": share}, work)
                    if is_new:
                        print_progress(record)
                    records.append(record)
    return records, finished.folder


def print_progress(record: Record) -> None:
    """Print one line for a finished record."""
    print(
        f"{record['dataset']:12} {record['setting']:16} seed {record['seed']}  "
        f"{record['method']:36} {record['log_likelihood']:.4f} +- {record['standard_error']:.4f}  "
        f"fit {record['fit_seconds']:.1f} s  score {record['score_seconds']:.1f} s",
        flush=True,
    )


def paired_lead(record: Record, peer: str, folder: ArrayFolder) -> tuple[float, float] | None:
    """Return the mean lead over another method on the same rows, and its standard error."""
    own, other = folder.find(**record), folder.find(**{**record, "method": peer})
    if own is None or other is None:
        return None
    difference = own.astype(np.float64) - other
    return float(difference.mean()), standard_error(difference)


def format_comparison(records: list[Record], folder: ArrayFolder) -> str:
    """Return a Markdown table, a row for each table and share; medians over the seeds."""
    methods = list(dict.fromkeys(record["method"] for record in records))
    peers = [method for method in methods if method != LIBRARY]
    body: list[list[str]] = []
    leads_over: dict[str, list[float]] = {peer: [] for peer in peers}
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record["dataset"], record["share"]), []).append(record)
    for (dataset, share), group in groups.items():
        means = [
            statistics.median(r["log_likelihood"] for r in group if r["method"] == method)
            for method in methods
        ]
        cells = [format(mean, ".3f") for mean in means]
        for peer in peers:
            leads = [
                lead
                for record in group
                if record["method"] == LIBRARY
                and (lead := paired_lead(record, peer, folder)) is not None
            ]
            middle = (
                (statistics.median(x for x, _ in leads), statistics.median(e for _, e in leads))
                if leads
                else None
            )
            cells.append(with_error(middle))
            leads_over[peer] += [] if middle is None else [middle[0]]
        body.append([dataset, f"{share:g}", *cells])
    medians = [f"{statistics.median(leads_over[peer]):+.3f}" for peer in peers if leads_over[peer]]
    body.append(["median", "", *[""] * len(methods), *medians])
    titles = [f"lead over {peer}" for peer in peers]
    return format_markdown(["table", "missing", *methods, *titles], body)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__, TABLES, METHODS)
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--rows", type=int, default=MAX_ROWS, help="rows at most of a table")
    parser.add_argument("--quick", action="store_true", help="few rows, as a test")
    return parser.parse_args()


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records, folder = compare(arguments)
    print(
        f"\nMean log-density of the observed part of the test rows, nats in standard units; medians"
        f" of {len(arguments.seeds)} seed(s)\n\n{format_comparison(records, folder)}\n\n"
        f"{describe_runs(records)}"
    )


if __name__ == "__main__":
    main()
