"""Continuous tables for measuring density estimators, and how their rows are used.

A folder of data has ``uci/<file>.npz`` for each of `TABLES`, with an array ``X`` of shape
(n_rows, n_columns).

Of equal rows one is kept, and columns with ties get uniform noise of the width of their lattice
step, the same in every run, so that a density exists and no method gains from copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NOISE_SEED = 20_230_501
SHARE_OF_TEST = SHARE_OF_VALIDATION = 0.1


@dataclass(frozen=True)
class TableFile:
    """A file, and how many of its columns, from the first on, are continuous; None means all."""

    name: str
    n_columns: int | None = None


TABLES = {
    "power-plant": TableFile("power-plant.npz"),
    "kin8nm": TableFile("kin8nm.npz"),
    "protein": TableFile("protein-tertiary-structure.npz"),
    "magic": TableFile("magic.npz"),
    "twonorm": TableFile("twonorm.npz"),
    "abalone": TableFile("abalone.npz", 7),
    "phoneme": TableFile("phoneme.npz", 5),
}


def load_table(name: str, data_dir: Path, keep_copies: bool = False) -> Array:
    """Return the dequantised rows of a table.

    Parameters
    ----------
    name : str
        One of `TABLES`.
    data_dir : Path
        Folder of the data.
    keep_copies : bool, default=False
        Whether to keep equal rows, each with noise of its own.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Rows in the order of the file.
    """
    file = TABLES[name]
    with np.load(data_dir / "uci" / file.name, allow_pickle=False) as arrays:
        X = arrays["X"][:, : file.n_columns].astype(np.float64)
    return dequantized(X if keep_copies else distinct_rows(X), NOISE_SEED)


def distinct_rows(X: Array) -> Array:
    """Return the first of each group of equal rows, in the order given."""
    _, first = np.unique(X, axis=0, return_index=True)
    return X[np.sort(first)]


def dequantized(X: Array, seed: int) -> Array:
    """Return rows with uniform noise, centred at zero, of the width of each column's step."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, X.shape)
    return X + noise * np.array([noise_width(column) for column in X.T])


def noise_width(column: Array) -> float:
    """Return the lattice step of a column with ties, 0 of one without.

    Where there are ties but no lattice, as in numbers of some significant digits, it is the
    smallest difference.
    """
    values = np.unique(column)
    if len(values) in (1, len(column)):
        return 0.0
    gaps = np.diff(values)
    steps = gaps / gaps.min()
    if steps.max() < 1e6 and np.abs(steps - np.rint(steps)).max() < 0.01:
        return float((values[-1] - values[0]) / np.rint(steps).sum())
    return float(gaps.min())


@dataclass(frozen=True)
class Split:
    """Rows in standard units: those of the training and validation rows together.

    Attributes
    ----------
    train, valid, test : ndarray of shape (n_rows, n_columns)
        The parts.
    center, scale : ndarray of shape (n_columns,)
        Mean and standard deviation in the units of the table.
    """

    train: Array
    valid: Array
    test: Array
    center: Array
    scale: Array

    @classmethod
    def from_rows(cls, rows: Array, n_valid: int, test: Array) -> Split:
        """Return the split of rows to fit, of which the last ones validate, and test rows."""
        center, scale = rows.mean(axis=0), rows.std(axis=0)
        fitted, tested = (rows - center) / scale, (test - center) / scale
        return cls(fitted[:-n_valid], fitted[-n_valid:], tested, center, scale)

    def standardized_log_density(self, log_density: Array) -> Array:
        """Return log-densities in the units of the table as those in standard units."""
        return log_density + np.log(self.scale).sum()


def random_split(X: Array, seed: int) -> Split:
    """Return 80% of the rows for training, 10% for validation and 10% for the test, at random."""
    X = np.random.default_rng(seed).permutation(X)
    n_test, n_valid = round(SHARE_OF_TEST * len(X)), round(SHARE_OF_VALIDATION * len(X))
    return Split.from_rows(X[n_test:], n_valid, X[:n_test])


def random_subsample(X: Array, n_rows: int, most_tested: int, seed: int) -> Split:
    """Return few rows to fit, a tenth of them for validation, and others for the test."""
    X = np.random.default_rng(seed).permutation(X)
    n_valid = round(SHARE_OF_VALIDATION * n_rows)
    return Split.from_rows(X[:n_rows], n_valid, X[n_rows : n_rows + most_tested])


def curved_rows(n_rows: int, n_columns: int, seed: int) -> Array:
    """Return rows far from normal: each column bends with the one before it.

    The first column is standard normal, every other one twice the cosine of its predecessor plus
    half a standard normal number.
    """
    X = np.random.default_rng(seed).standard_normal((n_rows, n_columns))
    for j in range(1, n_columns):
        X[:, j] = 2.0 * np.cos(X[:, j - 1]) + 0.5 * X[:, j]
    return X
