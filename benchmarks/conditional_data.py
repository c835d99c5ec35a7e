"""Splits of the regression sets, and how a predicted distribution is measured on them.

This module needs numpy and scikit-learn only, so that peers can be measured in environments of
their own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from results import Record, ResultsFile

Array = NDArray[np.float64]

SETS = ("yacht", "boston", "energy", "concrete", "wine", "power", "kin8nm", "naval", "protein")
NAVAL_STEP = 0.001
N_QUANTILES = 400
#: Grades of wine, of which some are not given.
N_GRADES = 11


def load_split(path: Path, split: int, quick: bool) -> tuple[Array, Array, Array, Array]:
    """Return features and targets of training rows and of test rows."""
    with np.load(path, allow_pickle=False) as file:
        X, y = file["X"].astype(np.float64), file["y"].astype(np.float64).ravel()
        test = file["test"][split]
    test = test[test >= 0]
    if path.stem == "naval":
        y = y + NAVAL_STEP * (np.random.default_rng(split).random(len(y)) - 0.5)
    train = np.setdiff1d(np.arange(len(X)), test)
    if quick:
        train, test = train[:80], test[:30]
    return X[train], y[train], X[test], y[test]


def measure(
    make: Callable[[int], Any], rows: tuple[Array, Array, Array, Array], seed: int
) -> Record:
    """Return likelihood, CRPS, coverage and times of one method for numbers on one split."""
    X, y, X_test, y_test = rows
    start = time.process_time()
    model = make(seed)
    model.fit(X, y)
    fitted = time.process_time()
    record: Record = {}
    if hasattr(model, "log_density"):
        log_density = model.log_density(X_test, y_test)
        record["nll"] = -float(np.mean(log_density))
        record["worst"] = -float(np.min(log_density))
    scored = time.process_time()
    record |= by_quantiles(model, X_test, y_test)
    return record | cost_and_size(start, fitted, scored, rows)


def measure_classes(
    make: Callable[[int], Any], rows: tuple[Array, Array, Array, Array], seed: int
) -> Record:
    """Return the negative log-probability of the classes, and times, of a classifier."""
    X, y, X_test, y_test = rows
    start = time.process_time()
    classifier = make(seed).fit(X, y.astype(int))
    fitted = time.process_time()
    probability = np.full((len(X_test), N_GRADES), np.finfo(np.float64).eps)
    probability[:, np.asarray(classifier.classes_, dtype=int)] = classifier.predict_proba(X_test)
    own = probability[np.arange(len(X_test)), y_test.astype(int)]
    record = {"nll": -float(np.log(own).mean())}
    return record | cost_and_size(start, fitted, time.process_time(), rows)


def cost_and_size(
    start: float, fitted: float, scored: float, rows: tuple[Array, Array, Array, Array]
) -> Record:
    """Return processor seconds of the fit, milliseconds of a row, and numbers of rows."""
    n_test = len(rows[3])
    milliseconds = 1e3 * (scored - fitted) / n_test
    return {
        "cpu_seconds": fitted - start,
        "cpu_milliseconds": milliseconds,
        "n_train": len(rows[1]),
        "n_test": n_test,
    }


def by_quantiles(model: Any, X: Array, y: Array) -> Record:
    """Return the CRPS, and the coverage of central intervals of 90%."""
    levels = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    error = y[:, None] - model.quantiles(X, levels)
    loss = 2.0 * np.mean(np.maximum(levels * error, (levels - 1.0) * error), axis=1)
    low, high = model.quantiles(X, np.array([0.05, 0.95])).T
    return {"crps": float(loss.mean()), "coverage": float(np.mean((low <= y) & (y <= high)))}


def compare(
    arguments: argparse.Namespace,
    results: ResultsFile,
    methods: Callable[[str], dict[str, Callable[[int], Any]]],
) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all.

    Parameters
    ----------
    arguments : Namespace
        With ``data_dir``, ``datasets``, ``splits``, ``methods`` and ``quick``.
    results : ResultsFile
        Finished records.
    methods : callable
        From the name of a data set to the methods that are measured on it.

    Returns
    -------
    list of dict
        Records.
    """
    records = []
    for name in arguments.datasets:
        path = arguments.data_dir / "conditional" / f"{name}.npz"
        with np.load(path, allow_pickle=False) as file:
            n_splits = len(file["test"])
        for split in [s for s in arguments.splits if s < n_splits]:
            rows = load_split(path, split, arguments.quick)
            for method, make in asked_for(methods(name), arguments.methods).items():
                setting = "quick" if arguments.quick else "default"
                key = {"dataset": name, "seed": split, "method": method, "setting": setting}
                record = results.find(**key)
                if record is None:
                    of_set = measure_classes if name == "wine" else measure
                    record = results.add(key | of_set(make, rows, split))
                    print(f"{name}, split {split}, {method}: {record.get('nll', np.nan):.3f}")
                records.append(record)
    return records


def asked_for(
    known: dict[str, Callable[[int], Any]], names: Iterable[str] | None
) -> dict[str, Callable[[int], Any]]:
    """Return the methods that are asked for; None for all."""
    return known if names is None else {key: known[key] for key in known if key in set(names)}


def parser_of(description: str) -> argparse.ArgumentParser:
    """Return a parser of what all scripts that measure on these sets are asked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="file of finished records")
    parser.add_argument("--datasets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(20)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few rows, to test the script")
    return parser
