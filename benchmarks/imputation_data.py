"""Tables with entries to impute, and how imputed ones are measured.

This module needs numpy, scipy, pandas and scikit-learn only, so that peers can be measured in
environments of their own.

Tables are scikit-learn's, and the files of ``uci``, ``conditional`` (features and target) and
``categorical`` in a folder of data, of which rows are drawn at random after all but one of equal
rows were dropped. Entries are missing in one of two ways:

- "mcar": each entry with the same probability, completely at random;
- "mar": half of the columns, drawn at random, are complete. An entry of the others is missing with
  a probability that is a logistic function of the sum of the complete ones, each standardised and
  multiplied by a random number, and which is on average such that as many entries of the table are
  missing as by "mcar".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from command_line import Finished, parser_of
from numpy.typing import NDArray
from results import Record
from scipy.optimize import brentq, linear_sum_assignment
from scipy.special import expit
from scipy.stats import wasserstein_distance
from sklearn import datasets

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Share of the entries that are missing, and the steepness of the logistic function.
SHARE, SLOPE = 0.2, 2.0
MECHANISMS = ("mcar", "mar")
#: Rows at most of a table, with --quick too.
ROWS, QUICK_ROWS = 300, 60
#: Draws that are compared with the table, and draws from which intervals are taken at least.
DRAWS_TO_COMPARE, DRAWS_OF_INTERVALS = 5, 20
SKLEARN = {
    "iris": "load_iris",
    "wine": "load_wine",
    "breast cancer": "load_breast_cancer",
    "diabetes": "load_diabetes",
}
UCI = {
    "abalone": 7,
    "kin8nm": None,
    "magic": None,
    "phoneme": 5,
    "power-plant": None,
    "protein-tertiary-structure": None,
}
CONDITIONAL = ("boston", "concrete", "energy", "yacht")
MIXED = {"adult": "adult.npz", "credit-g": "weka_credit-g.npz"}
TABLES = (*SKLEARN, *UCI, *CONDITIONAL, *MIXED)


@dataclass(frozen=True)
class Table:
    """A complete table.

    Attributes
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Numbers, and codes of categories.
    is_category : ndarray of shape (n_columns,), bool
        Columns of categories.
    """

    values: Array
    is_category: Mask

    def frame(self, missing: Mask) -> pd.DataFrame:
        """Return the table without its missing entries, as pandas reads it from a file."""
        columns = []
        for j, (values, is_category) in enumerate(
            zip(self.values.T, self.is_category, strict=True)
        ):
            column = pd.Series(np.where(missing[:, j], np.nan, values), name=f"x{j}")
            if is_category:
                column = column.astype("Int64").astype("string").astype("category")
            columns.append(column)
        return pd.concat(columns, axis=1)

    def numbers(self, frame: pd.DataFrame) -> Array:
        """Return a frame's numbers and codes."""
        return frame.astype(np.float64).to_numpy()


def load(name: str, data_dir: Path, n_rows: int, seed: int) -> Table:
    """Return random rows of a table, complete ones that differ."""
    frame, is_category = frame_of(name, data_dir)
    complete = frame.dropna().drop_duplicates().to_numpy(np.float64)
    rows = np.random.default_rng(seed).permutation(complete)[:n_rows]
    varies = rows.min(axis=0) < rows.max(axis=0)
    return Table(rows[:, varies], is_category[varies])


def frame_of(name: str, data_dir: Path) -> tuple[pd.DataFrame, Mask]:
    """Return a table of numbers and codes, NaN where they are missing, and which are codes."""
    if name in SKLEARN:
        bunch = getattr(datasets, SKLEARN[name])(as_frame=True)
        has_class = name == "iris"
        frame = bunch.frame if has_class else bunch.data
        return frame, np.arange(frame.shape[1]) >= frame.shape[1] - has_class
    if name in MIXED:
        with np.load(data_dir / "categorical" / MIXED[name], allow_pickle=False) as file:
            codes, numbers = file["X_cat"].astype(np.float64), file["X_num"].astype(np.float64)
        table = np.hstack([numbers, np.where(codes < 0, np.nan, codes)])
        return pd.DataFrame(table), np.arange(table.shape[1]) >= numbers.shape[1]
    folder = "conditional" if name in CONDITIONAL else "uci"
    with np.load(data_dir / folder / f"{name}.npz", allow_pickle=False) as file:
        table = file["X"].astype(np.float64)
        if name in CONDITIONAL:
            table = np.column_stack([table, file["y"].astype(np.float64).reshape(len(table), -1)])
        else:
            table = table[:, : UCI[name]]
    return pd.DataFrame(table), np.zeros(table.shape[1], dtype=bool)


def holes(table: Table, mechanism: str, seed: int) -> Mask:
    """Return which entries are missing, of the shape of the table."""
    rng = np.random.default_rng(seed)
    chance = rng.random(table.values.shape)
    if mechanism == "mcar":
        return chance < SHARE
    X = table.values
    n_columns = X.shape[1]
    order = rng.permutation(n_columns)
    known, hidden = order[: (n_columns + 1) // 2], order[(n_columns + 1) // 2 :]
    share = SHARE * n_columns / len(hidden)
    drive = standardized(X[:, known]) @ rng.normal(size=(len(known), len(hidden)))
    missing = np.zeros(X.shape, dtype=bool)
    for j, column in zip(hidden, standardized(drive).T, strict=True):
        shift = brentq(lambda c, z=column: expit(SLOPE * z + c).mean() - share, -50.0, 50.0)
        missing[:, j] = chance[:, j] < expit(SLOPE * column + shift)
    return missing


def standardized(X: Array) -> Array:
    """Return columns with mean 0 and standard deviation 1."""
    return (X - X.mean(axis=0)) / X.std(axis=0)


@dataclass(frozen=True)
class Imputed:
    """Completed tables.

    Attributes
    ----------
    draws : ndarray of shape (n_draws, n_rows, n_columns)
        Tables whose missing entries are drawn; a single one if a method has no draws.
    point : ndarray of shape (n_rows, n_columns) or None
        Table with one value for each missing entry; None for medians, means and the most frequent
        category of the draws.
    """

    draws: Array
    point: Array | None = None


#: Completes a table, with a seed, and quickly if that is asked for.
Method = Callable[[Table, Mask, int, bool], Imputed]


def measures(table: Table, missing: Mask, imputed: Imputed) -> tuple[Record, Array]:
    """Return how good imputed entries are, and that for each column.

    Parameters
    ----------
    table : Table
        The truth.
    missing : ndarray of shape (n_rows, n_columns), bool
        Entries that were imputed.
    imputed : Imputed
        Completed tables.

    Returns
    -------
    record : dict
        Means over the columns, and the distance of rows.
    of_columns : ndarray of shape (5, n_columns)
        MAE, RMSE, Wasserstein distance, coverage and accuracy; NaN where there are none.
    """
    found = np.full((5, len(table.is_category)), np.nan)
    scale = table.values.std(axis=0)
    for j, is_category in enumerate(table.is_category):
        here = missing[:, j]
        if not here.any():
            continue
        truth, draws = table.values[here, j], imputed.draws[:, here, j]
        point = None if imputed.point is None else imputed.point[here, j]
        if is_category:
            found[4, j] = np.mean((most_frequent(draws) if point is None else point) == truth)
            continue
        median = np.median(draws, axis=0) if point is None else point
        mean = draws.mean(axis=0) if point is None else point
        found[0, j] = np.abs(median - truth).mean() / scale[j]
        found[1, j] = np.sqrt(np.square(mean - truth).mean()) / scale[j]
        distances = [wasserstein_distance(row, truth) for row in draws[:DRAWS_TO_COMPARE]]
        found[2, j] = np.mean(distances) / scale[j]
        if len(draws) >= DRAWS_OF_INTERVALS:
            low, high = np.quantile(draws, [0.05, 0.95], axis=0)
            found[3, j] = np.mean((low <= truth) & (truth <= high))
    names = ("mae", "rmse", "wasserstein", "coverage", "accuracy")
    record = {
        name: float(np.nanmean(values))
        for name, values in zip(names, found, strict=True)
        if np.isfinite(values).any()
    }
    tables = imputed.draws[:DRAWS_TO_COMPARE]
    record["row_distance"] = float(np.mean([distance_of_rows(table, each) for each in tables]))
    return record, found


def most_frequent(draws: Array) -> Array:
    """Return the most frequent code of each entry, from draws of shape (n_draws, n_entries)."""
    return np.array([np.bincount(each.astype(np.intp)).argmax() for each in draws.T], float)


def distance_of_rows(table: Table, completed: Array) -> float:
    """Return the Wasserstein distance between the rows of the truth and of a completed table.

    The distance of two rows is the sum of the absolute differences in standard deviations, and 1
    for each category that differs.
    """
    scale = np.where(table.is_category, 1.0, table.values.std(axis=0))
    cost = np.zeros((len(completed), len(completed)))
    for ours, theirs, is_category in zip(
        (table.values / scale).T, (completed / scale).T, table.is_category, strict=True
    ):
        apart = np.abs(ours[:, None] - theirs)
        cost += apart > 0.5 if is_category else apart
    return float(cost[linear_sum_assignment(cost)].mean())


def measure(
    method: Method, table: Table, missing: Mask, seed: int, quick: bool
) -> tuple[Record, Array]:
    """Return how good the entries are that a method imputes, and its processor time."""
    start = time.process_time()
    imputed = method(table, missing, seed, quick)
    seconds = time.process_time() - start
    record, of_columns = measures(table, missing, imputed)
    n_rows, n_columns = missing.shape
    return record | {"cpu_seconds": seconds, "n_rows": n_rows, "n_columns": n_columns}, of_columns


def compare(arguments: argparse.Namespace, methods: dict[str, Method]) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    finished = Finished(arguments.output, arguments.again)
    records = []
    n_rows = QUICK_ROWS if arguments.quick else arguments.rows
    # Method by method, so that cheap ones are finished first.
    for method in arguments.methods:
        for mechanism in arguments.mechanisms:
            for dataset in arguments.datasets:
                for seed in arguments.seeds:
                    table = load(dataset, arguments.data_dir, n_rows, seed)
                    missing = holes(table, mechanism, seed)
                    setting = f"{mechanism}, {n_rows} rows{', quick' if arguments.quick else ''}"
                    key = {"dataset": dataset, "seed": seed, "method": method, "setting": setting}
                    work = partial(measure, methods[method], table, missing, seed, arguments.quick)
                    record, is_new = finished.record(key, work)
                    records.append(record)
                    if is_new:
                        print_progress(record)
    return records


def print_progress(record: Record) -> None:
    """Print one line for a finished record."""
    names = ("mae", "rmse", "wasserstein", "row_distance", "coverage", "accuracy", "cpu_seconds")
    values = "  ".join(f"{name} {record[name]:.3f}" for name in names if name in record)
    print(f"{record['dataset']}, {record['setting']}, {record['method']}: {values}", flush=True)


def arguments_of(description: str | None, methods: dict[str, Any]) -> argparse.ArgumentParser:
    """Return a parser of what both scripts are asked."""
    parser = parser_of(description, TABLES, methods)
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISMS, default=list(MECHANISMS))
    parser.add_argument("--rows", type=int, default=ROWS, help="rows at most of a table")
    parser.add_argument("--quick", action="store_true", help="few rows, as a test")
    return parser
