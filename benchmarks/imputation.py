"""Compare imputed entries of tables with the true ones, and their distributions.

    python benchmarks/imputation.py --data-dir DATA --output results/imputation.jsonl
    python benchmarks/imputation.py --data-dir DATA --datasets iris wine --mechanisms mcar

Tables and what is missing of them are those of imputation_data.py: 20% of the entries, completely
at random or at random. Methods are fitted to the rows that they impute. Measured are, of the
entries that were missing, in standard deviations of the columns and averaged over these:

- MAE and RMSE: the mean absolute and the root mean squared difference to the truth, of medians and
  means where a method has draws;
- Wasserstein: the distance of draws to the truth as samples of a column;
- rows: the Wasserstein distance of the completed table to the true one. It is small for draws as
  well as for values that are merely near to the truth;
- coverage: the share of true entries between the 5% and the 95% quantile of the draws;
- accuracy: the share of categories that are right, of the most frequent ones of the draws.

Methods: IMMSEImputer with its defaults (three fits without networks), with one fit, and with one
fit with networks, of 100 imputations each.
MissForest is the algorithm of Stekhoven and Bühlmann (2012) with scikit-learn's random forests and
the parameters of the R package (100 trees, at most 10 rounds). IterativeImputer regresses by
BayesianRidge and draws from its posterior; it sees categories as their codes, since columns of 0
and 1 that are missing together predict each other. Nearest neighbours (KNNImputer) and means see
such columns, and all see numbers standardised. miceforest is measured by
imputation_peers.py in an environment of its own, and its file is given as --peers.

Printed are mean ranks over the tables and ways of missing that all methods have been measured on,
and means of all measures. Finished records in the output file are not measured again.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from imputation_data import Array, Imputed, Mask, Method, Table, arguments_of, compare
from processes import use_threads
from results import Record, ResultsFile, describe_runs, format_markdown
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from sk_itdiffusion import IMMSEImputer, IMMSEMixedDensity

N_DRAWS = 100
#: Measures, and whether a larger one is better.
MEASURES = {
    "mae": ("MAE", False),
    "rmse": ("RMSE", False),
    "wasserstein": ("Wasserstein", False),
    "row_distance": ("rows", False),
    "accuracy": ("accuracy", True),
}


# --- The library ------------------------------------------------------------------------------


def immse(n_fits: int, **density: Any) -> Method:
    """Return imputation by IMMSEImputer with a number of fits and parameters of its density."""

    def impute(table: Table, missing: Mask, seed: int, quick: bool) -> Imputed:
        short = {"max_epochs": 1} if quick and "max_epochs" not in density else {}
        estimator = IMMSEMixedDensity(handle_missing="missing", **(density | short))
        frame = table.frame(missing)
        imputer = IMMSEImputer(estimator, n_fits=n_fits, random_state=seed).fit(frame)
        tables = imputer.multiple_imputations(frame, 20 if quick else N_DRAWS)
        return Imputed(np.stack([table.numbers(each) for each in tables]))

    return impute


# --- Peers ------------------------------------------------------------------------------------


class Encoding:
    """Numbers in standard units, and categories as columns of 0 and 1 or as their codes.

    Parameters
    ----------
    table : Table
        The table.
    missing : ndarray of shape (n_rows, n_columns), bool
        Entries that are not seen.
    as_codes : bool, default=False
        Whether categories are numbers, of which the nearest category is imputed.
    """

    def __init__(self, table: Table, missing: Mask, as_codes: bool = False) -> None:
        seen = np.where(missing, np.nan, table.values)
        self.is_category, self.as_codes = table.is_category, as_codes
        self.center, self.scale = np.nanmean(seen, axis=0), np.nanstd(seen, axis=0)
        self.categories = [np.unique(column[~np.isnan(column)]) for column in seen.T]
        self.rows = np.column_stack([self._encoded(j, column) for j, column in enumerate(seen.T)])

    def _encoded(self, j: int, column: Array) -> Array:
        if self.as_codes or not self.is_category[j]:
            return ((column - self.center[j]) / self.scale[j])[:, None]
        flags = (column[:, None] == self.categories[j]).astype(float)
        return np.where(np.isnan(column)[:, None], np.nan, flags)

    def decoded(self, rows: Array) -> Array:
        """Return the table of encoded rows, with the category whose column is largest."""
        columns, place = [], 0
        for j, is_category in enumerate(self.is_category):
            has_flags = is_category and not self.as_codes
            width = len(self.categories[j]) if has_flags else 1
            part = rows[:, place : place + width]
            place += width
            if has_flags:
                columns.append(self.categories[j][part.argmax(axis=1)])
                continue
            numbers = part[:, 0] * self.scale[j] + self.center[j]
            if is_category:
                apart = np.abs(numbers[:, None] - self.categories[j])
                numbers = self.categories[j][apart.argmin(axis=1)]
            columns.append(numbers)
        return np.column_stack(columns)


def transformed(imputer: Any, table: Table, missing: Mask, as_codes: bool = False) -> Array:
    """Return the table completed by an imputer of scikit-learn; see `Encoding`."""
    encoding = Encoding(table, missing, as_codes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        completed = encoding.decoded(imputer.fit_transform(encoding.rows))
    return np.where(missing, completed, table.values)


def single(make: Any) -> Method:
    """Return imputation by an imputer that has no draws."""

    def impute(table: Table, missing: Mask, seed: int, quick: bool) -> Imputed:
        return Imputed(transformed(make(), table, missing)[None])

    return impute


def regression(table: Table, missing: Mask, seed: int, quick: bool) -> Imputed:
    """Impute by regressions in turn, and by draws from their posteriors."""
    drawn = [
        transformed(
            IterativeImputer(sample_posterior=True, random_state=seed + i), table, missing, True
        )
        for i in range(1 if quick else 5)
    ]
    return Imputed(np.stack(drawn), transformed(IterativeImputer(), table, missing, True))


def miss_forest(table: Table, missing: Mask, seed: int, quick: bool) -> Imputed:
    """Impute by random forests in turn, until the imputed entries change more than before."""
    filled = transformed(SimpleImputer(), table, missing)
    order = [j for j in np.argsort(missing.sum(axis=0)) if missing[:, j].any()]
    last = np.array([np.inf, np.inf])
    for _ in range(1 if quick else 10):
        before, filled = filled, filled.copy()
        for j in order:
            here, others = missing[:, j], np.delete(filled, j, axis=1)
            forest = forest_of(table.is_category[j], 10 if quick else 100, seed)
            forest.fit(others[~here], filled[~here, j])
            filled[here, j] = forest.predict(others[here])
        change = changes(table, missing, before, filled)
        # Kinds of columns that the table lacks have no change.
        if not (change < last).any():
            return Imputed(before[None])
        last = change
    return Imputed(filled[None])


def forest_of(is_category: bool, n_trees: int, seed: int) -> Any:
    """Return a forest for categories or for numbers, with the parameters of R's randomForest."""
    if is_category:
        return RandomForestClassifier(n_trees, max_features="sqrt", random_state=seed)
    return RandomForestRegressor(
        n_trees, max_features="sqrt", min_samples_split=6, random_state=seed
    )


def changes(table: Table, missing: Mask, before: Array, after: Array) -> Array:
    """Return by how much imputed numbers and categories have changed; infinite without any."""
    numbers, categories = missing & ~table.is_category, missing & table.is_category
    found = np.array([np.inf, np.inf])
    if numbers.any():
        scaled = (after - before) / table.values.std(axis=0)
        found[0] = np.square(scaled[numbers]).sum()
    if categories.any():
        found[1] = np.mean(before[categories] != after[categories])
    return found


METHODS: dict[str, Method] = {
    "mean": single(SimpleImputer),
    "nearest neighbours": single(KNNImputer),
    "IterativeImputer": regression,
    "MissForest": miss_forest,
    "IMMSEImputer": immse(3, max_epochs=0),
    "IMMSEImputer, one fit": immse(1, max_epochs=0),
    "IMMSEImputer, one fit, networks": immse(1),
}


# --- Tables -----------------------------------------------------------------------------------


def blocks_of(records: list[Record], methods: Sequence[str]) -> list[dict[str, Record]]:
    """Return the records by method of each table and way of missing that all have."""
    groups: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        place = (record["dataset"], record["seed"], record["setting"])
        groups.setdefault(place, {})[record["method"]] = record
    return [group for group in groups.values() if all(method in group for method in methods)]


def mean_ranks(blocks: list[dict[str, Record]], methods: Sequence[str], measure: str) -> Array:
    """Return the mean rank of each method by a measure, NaN if no table has it."""
    known = [block for block in blocks if measure in block[methods[0]]]
    sign = -1.0 if MEASURES[measure][1] else 1.0
    ranks = [rankdata([sign * block[method][measure] for method in methods]) for block in known]
    return np.mean(ranks, axis=0) if ranks else np.full(len(methods), np.nan)


def mean_of(blocks: list[dict[str, Record]], method: str, measure: str) -> str:
    """Return the mean of a measure over the tables that have it, or nothing."""
    found = [block[method][measure] for block in blocks if measure in block[method]]
    return f"{statistics.mean(found):.3f}" if found else ""


def format_ranks(records: list[Record], methods: Sequence[str]) -> str:
    """Return Markdown tables of mean ranks and of means."""
    blocks = blocks_of(records, methods)
    ranks = {measure: mean_ranks(blocks, methods, measure) for measure in MEASURES}
    titles = [title for title, _ in MEASURES.values()]
    of_ranks = [
        [method, *(f"{ranks[measure][i]:.2f}" for measure in MEASURES)]
        for i, method in enumerate(methods)
    ]
    of_means = [
        [
            method,
            *(mean_of(blocks, method, name) for name in (*MEASURES, "coverage", "cpu_seconds")),
        ]
        for method in methods
    ]
    return (
        f"Mean ranks, of {len(blocks)} tables and ways of missing\n\n"
        f"{format_markdown(['method', *titles], of_ranks)}\n\nMeans\n\n"
        f"{format_markdown(['method', *titles, 'coverage', 'CPU seconds'], of_means)}"
    )


def format_tables(records: list[Record], methods: Sequence[str], measure: str) -> str:
    """Return a Markdown table of one measure, a row for each table and way of missing."""
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        groups.setdefault(f"{record['dataset']}, {record['setting']}", {})[record["method"]] = (
            record
        )
    body = [
        [name, *(f"{group[m][measure]:.3f}" if m in group else "" for m in methods)]
        for name, group in groups.items()
        if any(measure in each for each in group.values())
    ]
    return format_markdown([MEASURES[measure][0], *methods], body)


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = arguments_of(__doc__, METHODS)
    parser.add_argument("--peers", type=Path, help="records of imputation_peers.py")
    arguments = parser.parse_args()
    with use_threads(arguments.threads):
        records = compare(arguments, METHODS)
    if arguments.peers is not None:
        places = {(record["dataset"], record["seed"], record["setting"]) for record in records}
        records += [
            record
            for record in ResultsFile(arguments.peers).records
            if (record["dataset"], record["seed"], record["setting"]) in places
        ]
    methods = list(dict.fromkeys(record["method"] for record in records))
    print(f"\n{format_ranks(records, methods)}\n")
    for measure in MEASURES:
        print(f"{format_tables(records, methods, measure)}\n")
    print(describe_runs(records))


if __name__ == "__main__":
    main()
