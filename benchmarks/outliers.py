"""Compare outlier detectors by the protocol of ADBench, and measure their false alarms.

    python benchmarks/outliers.py --data-dir DATA --output results/outliers.jsonl
    python benchmarks/outliers.py --data-dir DATA --false-alarms --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/outliers.py --contradictions --seeds 0 1 2 3 4
    python benchmarks/outliers.py --speed

DATA/adbench holds .npz files of ADBench (keys X, and y with 1 for anomalies), DATA/reference the
published AUROC of the DTE paper (Livernoche et al. 2024), dte_auroc_semi.csv and
dte_auroc_unsup.csv, whose columns are printed alongside the measured ones if the files are there.

Protocols: "semi" trains on the first half of the normal rows in file order and tests on all other
rows; "unsup" trains and tests on all rows. Columns are standardised by the training rows. All
methods have their default parameters on all sets; the labels are for the evaluation only.

False alarms: normal rows are split at random (the seeds) into 70% for training and 30% for tests;
the share of rejected test rows is compared with the nominal rate, with the standard error of the
mean over the splits, that of one split being alpha (1 - alpha) (1 / n_calibration + 1 / n_test).

Contradictions: in tables of 1000 rows whose columns depend on each other, each entry of an
anomalous row is ordinary by itself, but the entries do not belong together.  Detectors are trained
on 1000 rows, clean ones or with 5% of contradictions, and tested on 1000 more, of which a tenth are
contradictions; a number is in the units of its standard deviation among the training rows, and all
but this library's detector see an indicator of each category.  "Caught" is the share of the
contradictions that are rejected at a nominal 5%; of the other methods, which have no nominal rate,
at the threshold that rejects 5% of the clean test rows.

Speed: the default detector is fitted to and scores 5000 and 50,000 rows of 20 columns, the twonorm
density with an outlier in a hundred rows. Finished records in the output file are not computed
again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from results import Record, ResultsFile, format_markdown
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import OneClassSVM
from threadpoolctl import threadpool_limits

from sk_itdiffusion import IMMSEDensity, IMMSEOutlierDetector
from sk_itdiffusion.datasets import load_density

Array = NDArray[np.float64]

PUBLISHED = ("KNN", "DTE-NP", "DTE-C", "DDPM")
PROTOCOLS = ("semi", "unsup")
FALSE_ALARM_RATES = (0.01, 0.05, 0.1)
SIZES_FOR_SPEED = (5_000, 50_000)
N_ROWS_WITH_CONTRADICTIONS = 1_000
SHARE_OF_CONTRADICTIONS = 0.1
NOMINAL_RATE = 0.05
METHODS_FOR_CONTRADICTIONS = ("immse", "lof", "isolation_forest", "gaussian_mixture")
FALSE_ALARM_SETS = ("annthyroid", "pendigits", "thyroid", "vowels", "wilt")


class NearestNeighborDistance:
    """Distance to the fifth neighbour; in the unsupervised protocol a row is its own first."""

    def fit(self, X: Array) -> NearestNeighborDistance:
        """Keep the rows."""
        self.neighbors_ = NearestNeighbors(n_neighbors=5).fit(X)
        return self

    def score_samples(self, X: Array) -> Array:
        """Return negative distances."""
        return -self.neighbors_.kneighbors(X)[0][:, -1]


def make_mixture(seed: int) -> GaussianMixture:
    """Return a mixture of as many components as the rows of the smallest sets allow."""
    return GaussianMixture(20, reg_covar=1e-3, random_state=seed)


METHODS: dict[str, Callable[[int], Any]] = {
    "immse": lambda seed: IMMSEOutlierDetector(random_state=seed),
    "immse_network": lambda seed: IMMSEOutlierDetector(
        IMMSEDensity(marginals="standard", max_epochs=10), random_state=seed
    ),
    "knn": lambda seed: NearestNeighborDistance(),
    "lof": lambda seed: LocalOutlierFactor(novelty=True),
    "isolation_forest": lambda seed: IsolationForest(random_state=seed),
    "one_class_svm": lambda seed: OneClassSVM(),
    "gaussian_mixture": make_mixture,
}


def find_sets(data_dir: Path) -> dict[str, Path]:
    """Return the files of the sets by their names in lower case."""
    files = sorted(
        (data_dir / "adbench").glob("*.npz"), key=lambda path: int(path.stem.split("_")[0])
    )
    return {path.stem.split("_", 1)[1].lower(): path for path in files}


def load(path: Path) -> tuple[Array, NDArray[np.bool_]]:
    """Return rows, and which of them are anomalies."""
    with np.load(path, allow_pickle=False) as file:
        return file["X"].astype(np.float64), file["y"].astype(bool)


def split(X: Array, y: NDArray[np.bool_], protocol: str) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return training rows, test rows and the test rows' labels, standardised."""
    train, test = X, X
    if protocol == "semi":
        normal = np.flatnonzero(~y)
        first = normal[: len(normal) // 2]
        others = np.setdiff1d(np.arange(len(X)), first)
        train, test, y = X[first], X[others], y[others]
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test), y


def measure(detector: Any, train: Array, test: Array, y: NDArray[np.bool_]) -> Record:
    """Return AUROC and average precision in percent, and the times."""
    start = time.perf_counter()
    detector.fit(train)
    fitted = time.perf_counter()
    score = -detector.score_samples(test)
    score_seconds = time.perf_counter() - fitted
    return {
        "auroc": 100.0 * roc_auc_score(y, score),
        "average_precision": 100.0 * average_precision_score(y, score),
        "fit_seconds": fitted - start,
        "score_seconds": score_seconds,
        "n_train": len(train),
        "n_test": len(test),
        **auroc_of_members(detector, test, y),
    }


def auroc_of_members(detector: Any, test: Any, y: NDArray[np.bool_]) -> Record:
    """Return the AUROC of each member of this library's detector, in percent, and its weight."""
    if not isinstance(detector, IMMSEOutlierDetector):
        return {}
    density, combined = detector.estimator_, detector._score
    values = density._read(detector._checked_rows(test, False))
    scores = combined.of_members(values, density._tolerance())
    members = zip(combined.members, scores.T, combined.weight, strict=True)
    return {
        "members": {
            name: [100.0 * roc_auc_score(y, -score), float(weight)]
            for name, score, weight in members
        }
    }


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    sets = find_sets(arguments.data_dir)
    names = arguments.datasets or list(sets)
    records = []
    for protocol in arguments.protocols:
        for name in names:
            for method in arguments.methods:
                for seed in arguments.seeds:
                    setting = f"{protocol}, quick" if arguments.quick else protocol
                    key = {"dataset": name, "seed": seed, "method": method, "setting": setting}
                    record = results.find(**key)
                    if record is None:
                        X, y = load(sets[name])
                        if arguments.quick:
                            few = slice(None, None, max(1, len(X) // 400))
                            X, y = X[few], y[few]
                        parts = split(X, y, protocol)
                        record = results.add({**key, **measure(METHODS[method](seed), *parts)})
                        print_progress(record)
                    records.append(record)
    return records


def print_progress(record: Record) -> None:
    """Print one line for a finished record."""
    print(
        f"{record['dataset']:14} {record['setting']:6} {record['method']:18} "
        f"AUROC {record['auroc']:6.2f}  AP {record['average_precision']:6.2f}  "
        f"fit {record['fit_seconds']:.1f} s  score {record['score_seconds']:.1f} s",
        flush=True,
    )


def print_comparison(records: list[Record], data_dir: Path) -> None:
    """Print a table of the AUROC and one of the average precision for each protocol."""
    for setting in dict.fromkeys(record["setting"] for record in records):
        chosen = pd.DataFrame([record for record in records if record["setting"] == setting])
        for value in ("auroc", "average_precision"):
            table = chosen.groupby(["dataset", "method"], sort=False)[value].mean().unstack()
            if value == "auroc":
                table = table.join(published(data_dir, setting.split(",")[0]))
            print(f"\n{setting}: {value}, percent\n\n{with_means(table)}")
        print_members(setting, chosen)


def print_members(setting: str, records: pd.DataFrame) -> None:
    """Print a table of the AUROC of each member, and of its weight."""
    if "members" not in records:
        return
    found = records.dropna(subset=["members"])
    rows = [
        {
            "dataset": dataset,
            "member": name if name in ("dependence", "neighbors") else kind,
            "auroc": area,
            "weight": weight,
        }
        for dataset, members in zip(found["dataset"], found["members"], strict=True)
        for kind, (name, (area, weight)) in zip(kinds_of(members), members.items(), strict=True)
    ]
    for value in ("auroc", "weight"):
        table = pd.DataFrame(rows).groupby(["dataset", "member"], sort=False)[value].mean()
        print(f"\n{setting}: {value} of the members\n\n{with_means(table.unstack())}")


def kinds_of(members: Record) -> list[str]:
    """Return what each member is: references are the plain and the likeliest one."""
    n_references = len(members) - len({"dependence", "neighbors"} & set(members))
    kinds = ["plain", "likeliest"] if n_references == 2 else ["likeliest"]
    return [*kinds, *(name for name in members if name in ("dependence", "neighbors"))]


def published(data_dir: Path, protocol: str) -> pd.DataFrame:
    """Return the published AUROC by set, or an empty table."""
    path = data_dir / "reference" / f"dte_auroc_{protocol}.csv"
    if not path.exists():
        return pd.DataFrame()
    return pd.read_csv(path, index_col=0)[list(PUBLISHED)].add_suffix(" (published)")


def with_means(table: pd.DataFrame) -> str:
    """Return a Markdown table with the means over the sets as the last row."""
    table.loc["mean"] = table.mean()
    body = [[str(name), *(f"{value:.2f}" for value in row)] for name, row in table.iterrows()]
    return format_markdown(["set", *map(str, table.columns)], body)


# --- False alarms ---------------------------------------------------------------------------


def false_alarms(X: Array, y: NDArray[np.bool_], seed: int, quick: bool) -> Record:
    """Return the shares of normal test rows that are rejected at each rate, of one split."""
    normal = X[~y][:600] if quick else X[~y]
    train, test = train_test_split(normal, test_size=0.3, random_state=seed)
    detector = IMMSEOutlierDetector(random_state=seed).fit(train)
    p_values = detector.p_values(test)
    record: Record = {
        f"rejected_{rate}": float((p_values <= rate).mean()) for rate in FALSE_ALARM_RATES
    }
    return {**record, "n_calibration": len(detector.calibration_scores_), "n_test": len(test)}


def measure_false_alarms(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure the splits that the results file lacks; return the records of all."""
    sets = find_sets(arguments.data_dir)
    setting = "false alarms, quick" if arguments.quick else "false alarms"
    records = []
    for name in arguments.datasets or FALSE_ALARM_SETS:
        for seed in arguments.seeds:
            key = {"dataset": name, "seed": seed, "method": "immse", "setting": setting}
            record = results.find(**key)
            if record is None:
                X, y = load(sets[name])
                record = results.add({**key, **false_alarms(X, y, seed, arguments.quick)})
                print(f"{name} split {seed} done", flush=True)
            records.append(record)
    return records


def print_false_alarms(records: list[Record]) -> None:
    """Print nominal and measured rates, and their difference in standard errors."""
    body = []
    for name, group in pd.DataFrame(records).groupby("dataset", sort=False):
        for rate in FALSE_ALARM_RATES:
            variance = rate * (1 - rate) * (1 / group["n_calibration"] + 1 / group["n_test"])
            error = float(np.sqrt(variance.sum())) / len(group)
            mean = group[f"rejected_{rate}"].mean()
            cells = [f"{100 * rate:.0f}", f"{100 * mean:.2f}", f"{100 * error:.2f}"]
            body.append([str(name), *cells, f"{(mean - rate) / error:+.1f}"])
    header = ["set", "nominal %", "rejected %", "standard error %", "in standard errors"]
    print("\n" + format_markdown(header, body))


# --- Contradictions -------------------------------------------------------------------------


def other_codes(codes: NDArray[np.intp], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return codes of n categories that differ from those given."""
    return np.asarray((codes + rng.integers(1, n, size=len(codes))) % n)


def category_and_number(
    n_rows: int, is_odd: NDArray[np.bool_], rng: np.random.Generator, n_categories: int, gap: float
) -> pd.DataFrame:
    """Return a category and a number around its mean; odd rows have another category."""
    code = rng.integers(n_categories, size=n_rows)
    number = gap * code + rng.normal(size=n_rows)
    code[is_odd] = other_codes(code[is_odd], n_categories, rng)
    return pd.DataFrame({"category": as_texts(code), "number": number})


def two_categories(
    n_rows: int, is_odd: NDArray[np.bool_], rng: np.random.Generator, n_categories: int
) -> pd.DataFrame:
    """Return equal categories, except for 5% of rows; odd rows have another one in any case."""
    first = rng.integers(n_categories, size=n_rows)
    is_noise = rng.random(n_rows) < 0.05
    second = np.where(is_noise, rng.integers(n_categories, size=n_rows), first)
    second[is_odd] = other_codes(first[is_odd], n_categories, rng)
    return pd.DataFrame({"first": as_texts(first), "second": as_texts(second)})


def two_numbers(
    n_rows: int, is_odd: NDArray[np.bool_], rng: np.random.Generator, shape: str
) -> pd.DataFrame:
    """Return points of correlation 0.95, or of a ring; odd rows have another row's number."""
    if shape == "line":
        first = rng.normal(size=n_rows)
        second = 0.95 * first + np.sqrt(1.0 - 0.95**2) * rng.normal(size=n_rows)
    else:
        angle, radius = rng.uniform(0.0, 2.0 * np.pi, n_rows), rng.normal(1.0, 0.05, n_rows)
        first, second = radius * np.cos(angle), radius * np.sin(angle)
    second[is_odd] = second[rng.permutation(n_rows)[: is_odd.sum()]]
    return pd.DataFrame({"first": first, "second": second})


def as_texts(codes: NDArray[np.intp]) -> list[str]:
    """Return strings for codes."""
    return [f"c{code}" for code in codes]


def irrelevant_columns(n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return five normal columns, and five of three categories, all independent."""
    numbers = {f"number {j}": rng.normal(size=n_rows) for j in range(5)}
    return pd.DataFrame(
        numbers | {f"category {j}": as_texts(rng.integers(3, size=n_rows)) for j in range(5)}
    )


CONTRADICTIONS: dict[str, Callable[..., pd.DataFrame]] = {
    **{
        f"{k} categories {gap} apart": partial(category_and_number, n_categories=k, gap=gap)
        for k in (3, 8)
        for gap in (3, 6)
    },
    **{f"pairs of {k} categories": partial(two_categories, n_categories=k) for k in (3, 8)},
    "correlation": partial(two_numbers, shape="line"),
    "ring": partial(two_numbers, shape="ring"),
}


def make_contradictions(
    name: str, n_rows: int, share: float, rng: np.random.Generator
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Return a table, and which of its rows are contradictions."""
    is_odd = np.arange(n_rows) < round(share * n_rows)
    rows = CONTRADICTIONS[name.removesuffix(" of 12")](n_rows, is_odd, rng)
    if name.endswith(" of 12"):
        rows = pd.concat([rows, irrelevant_columns(n_rows, rng)], axis=1)
    return rows, is_odd


def encoded(train: pd.DataFrame, test: pd.DataFrame) -> tuple[Array, Array]:
    """Return indicators of the categories alongside standardised numbers."""
    encoder = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(sparse_output=False, handle_unknown="ignore"),
            make_column_selector(dtype_exclude="number"),
        ),
    )
    return encoder.fit_transform(train), encoder.transform(test)


def find_contradictions(name: str, method: str, share: float, seed: int, n_rows: int) -> Record:
    """Return AUROC, average precision and the share of contradictions that are caught."""
    rng = np.random.default_rng([seed, *map(ord, name)])
    train, _ = make_contradictions(name, n_rows, share, rng)
    test, is_odd = make_contradictions(name, n_rows, SHARE_OF_CONTRADICTIONS, rng)
    if method != "immse":
        train, test = encoded(train, test)
    detector = METHODS[method](seed)
    record = measure(detector, train, test, is_odd)
    scores = detector.score_samples(test)
    has_rate = isinstance(detector, IMMSEOutlierDetector)
    threshold = detector.offset_ if has_rate else np.quantile(scores[~is_odd], NOMINAL_RATE)
    return {
        **record,
        "caught": 100.0 * float((scores[is_odd] < threshold).mean()),
        "false_alarms": 100.0 * float((scores[~is_odd] < threshold).mean()),
    }


def measure_contradictions(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure the tables that the results file lacks; return the records of all."""
    n_rows = 200 if arguments.quick else N_ROWS_WITH_CONTRADICTIONS
    names = [f"{name}{among}" for among in ("", " of 12") for name in CONTRADICTIONS]
    records = []
    for name in arguments.datasets or names:
        for share in (0.0, 0.05):
            for method in arguments.methods:
                for seed in arguments.seeds:
                    setting = f"contradictions, {100 * share:.0f}% in training rows"
                    setting += ", quick" if arguments.quick else ""
                    key = {"dataset": name, "seed": seed, "method": method, "setting": setting}
                    record = results.find(**key)
                    if record is None:
                        record = find_contradictions(name, method, share, seed, n_rows)
                        record = results.add({**key, **record})
                        print_progress(record)
                    records.append(record)
    return records


def print_contradictions(records: list[Record]) -> None:
    """Print tables of AUROC, average precision and the share that is caught."""
    for setting in dict.fromkeys(record["setting"] for record in records):
        chosen = pd.DataFrame([record for record in records if record["setting"] == setting])
        for value in ("auroc", "average_precision", "caught", "false_alarms"):
            table = chosen.groupby(["dataset", "method"], sort=False)[value].mean().unstack()
            print(f"\n{setting}: {value}, percent\n\n{with_means(table)}")


# --- Speed ----------------------------------------------------------------------------------


def rows_with_outliers(n_rows: int, seed: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return rows of twonorm, a hundredth of them outliers of three times the spread."""
    X = load_density("twonorm").sample(n_rows, random_state=seed)
    is_outlier = np.arange(n_rows) % 100 == 0
    X[is_outlier] *= 3.0
    return X, is_outlier


def measure_speed(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure the sizes that the results file lacks; return the records of all."""
    records = []
    for n_rows in SIZES_FOR_SPEED:
        n_used = n_rows // 50 if arguments.quick else n_rows
        for seed in arguments.seeds:
            key = {"dataset": f"{n_used} x 20", "seed": seed, "method": "immse", "setting": "speed"}
            record = results.find(**key)
            if record is None:
                X, y = rows_with_outliers(n_used, seed)
                record = results.add({**key, **measure(METHODS["immse"](seed), X, X, y)})
                print_progress(record)
            records.append(record)
    return records


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name in METHODS if name != "immse_network"]
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    parser.add_argument("--datasets", nargs="+", help="names of sets in lower case; default: all")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--false-alarms", action="store_true", help="measure these instead")
    parser.add_argument("--contradictions", action="store_true", help="measure these instead")
    parser.add_argument("--speed", action="store_true", help="measure this instead")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="few rows, as a test")
    arguments = parser.parse_args()
    if arguments.methods is None:
        arguments.methods = METHODS_FOR_CONTRADICTIONS if arguments.contradictions else usual
    if arguments.data_dir is None and not (arguments.speed or arguments.contradictions):
        parser.error("--data-dir is needed, except with --speed and --contradictions")
    return arguments


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    results = ResultsFile(arguments.output)
    with threadpool_limits(limits=arguments.threads):
        if arguments.speed:
            measure_speed(arguments, results)
        elif arguments.contradictions:
            print_contradictions(measure_contradictions(arguments, results))
        elif arguments.false_alarms:
            print_false_alarms(measure_false_alarms(arguments, results))
        else:
            print_comparison(compare(arguments, results), arguments.data_dir)


if __name__ == "__main__":
    main()
