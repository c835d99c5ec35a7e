"""Discrete and mixed data sets for benchmarks/discrete.py, read from a folder of ``.npz`` files.

=============================== ==================================================================
nltcs, plants, jester, dna,     0/1 columns; debd/NAME.npz with ``train``, ``valid``, ``test``.
mushrooms                       Fit on train and valid together.
mnist                           28 x 28 pixels, 1 where above 127; images/mnist.npz
digits                          8 x 8 pixels with the levels 0..16; scikit-learn's, no file
letter                          16 integer columns 0..15; categorical/keel_letter_ordinal.npz
adult, credit-g                 mixed tables; categorical/adult.npz and weka_credit-g.npz
=============================== ==================================================================

Sets without a split of their own are split 80/20 by the seed. The levels of every discrete column
are those of training and test rows together, the same for all methods, so that no method meets an
unknown level, and the library, which is told so by ``categories``, keeps no mass for one.

Mixed tables: columns of names are nominal (dtype ``category``, missing values are a level of their
own), integer columns ordinal, and columns of nearly continuous integers (adult: age and fnlwgt;
credit-g: duration, credit amount and age) get uniform noise of width 1 with a fixed seed before the
split and are continuous. The class column is left out. In adult, ``education`` (nominal) and
``education-num`` (ordinal) say the same; both are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Array = NDArray[Any]
Table = Array | pd.DataFrame

BINARY_NAMES = ("nltcs", "plants", "jester", "dna", "mushrooms")
CONTINUOUS_COLUMNS = {
    "adult": ("age", "fnlwgt"),
    "credit-g": ("duration", "credit_amount", "age"),
}
MIXED_FILES = {"adult": "adult.npz", "credit-g": "weka_credit-g.npz"}
DEFAULT_MAX_TEST_ROWS = {"mnist": 1000}
QUICK_ROWS = (600, 200)


@dataclass(frozen=True)
class Rows:
    """Rows of a table in the form that the peers take.

    Attributes
    ----------
    codes : array of shape (n, n_discrete), int64
        Index of the level of every discrete column.
    numbers : array of shape (n, n_continuous), float64
        Continuous columns.
    """

    codes: Array
    numbers: Array

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Rows:
        return Rows(self.codes[index], self.numbers[index])


@dataclass(frozen=True)
class DiscreteData:
    """Training and test rows of one data set.

    Attributes
    ----------
    name : str
        Name of the data set.
    X, X_test : array or DataFrame
        Rows in the form that the estimators of the library take.
    levels : list of arrays
        Values of each discrete column in ascending order; empty for a continuous column. A missing
        value is the last level.
    nominal : bool
        Whether some discrete column has no order (two levels count as ordered).
    n_dims : int or None
        Number of dimensions where a likelihood in bits per dimension is customary.
    parameters : dict
        Arguments of the library's estimator that describe the data.
    """

    name: str
    X: Table
    X_test: Table
    levels: list[Array]
    nominal: bool = False
    n_dims: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def discrete_levels(self) -> list[Array]:
        """Levels of the discrete columns alone."""
        return [levels for levels in self.levels if len(levels)]

    @property
    def n_continuous(self) -> int:
        """Number of continuous columns."""
        return len(self.levels) - len(self.discrete_levels)

    def encode(self, X: Table) -> Rows:
        """Return rows as codes of levels and continuous numbers."""
        columns = list(X.items()) if isinstance(X, pd.DataFrame) else list(enumerate(X.T))
        codes, numbers = [], []
        for (_, column), levels in zip(columns, self.levels, strict=True):
            if len(levels):
                codes.append(encode_column(column, levels))
            else:
                numbers.append(np.asarray(column, dtype=np.float64))
        return Rows(
            np.stack(codes, axis=1) if codes else np.empty((len(X), 0), dtype=np.int64),
            np.stack(numbers, axis=1) if numbers else np.empty((len(X), 0)),
        )

    def distinct_test_rows(self) -> tuple[Table, Array]:
        """Return the distinct test rows and how often each occurs."""
        rows = self.encode(self.X_test)
        together = np.concatenate([rows.codes, rows.numbers], axis=1)
        _, index, counts = np.unique(together, axis=0, return_index=True, return_counts=True)
        return take(self.X_test, index), counts


def encode_column(column: Any, levels: Array) -> Array:
    """Return the index of the level of each value; the code of a missing value is the last."""
    if isinstance(getattr(column, "dtype", None), pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy().astype(np.int64)
        return np.where(codes < 0, len(levels) - 1, codes)
    return np.searchsorted(levels, np.asarray(column))


def take(X: Table, index: Array) -> Table:
    """Return the rows of an array or a DataFrame at these positions."""
    return X.iloc[index].reset_index(drop=True) if isinstance(X, pd.DataFrame) else X[index]


# --- Data sets ------------------------------------------------------------------------------


def load_data(
    name: str,
    seed: int,
    data_dir: str | Path | None,
    max_test_rows: int | None = None,
    quick: bool = False,
) -> DiscreteData:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        One of ``DATASETS``.
    seed : int
        Seed of the split, where the set has none, and of the choice of test rows.
    data_dir : str, Path or None
        Folder of the files; may be None for digits.
    max_test_rows : int or None
        Largest number of test rows; None uses the default of the set, or 200 if ``quick``.
    quick : bool
        Whether to keep 600 training rows only.
    """
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; choose one of {', '.join(DATASETS)}.")
    if data_dir is None and name != "digits":
        raise ValueError(f"Data set {name!r} is read from a file: give --data-dir.")
    data = DATASETS[name](name, seed, Path(data_dir or "."))
    defaults = QUICK_ROWS if quick else (None, DEFAULT_MAX_TEST_ROWS.get(name))
    n_train, n_test = defaults[0], max_test_rows or defaults[1]
    generator = np.random.RandomState(seed)
    return replace(
        data,
        X=draw_subset(data.X, n_train, generator),
        X_test=draw_subset(data.X_test, n_test, generator),
    )


def draw_subset(X: Table, n: int | None, generator: np.random.RandomState) -> Table:
    """Return n random rows, or all if there are no more."""
    if n is None or n >= len(X):
        return X
    return take(X, np.sort(generator.permutation(len(X))[:n]))


def split_indices(n: int, seed: int, share: float = 0.8) -> tuple[Array, Array]:
    """Return random positions of training and test rows."""
    order = np.random.RandomState(seed).permutation(n)
    n_train = round(share * n)
    return np.sort(order[:n_train]), np.sort(order[n_train:])


def load_binary(name: str, seed: int, data_dir: Path) -> DiscreteData:
    """Load a set of 0/1 columns with its own split."""
    parts = np.load(data_dir / "debd" / f"{name}.npz")
    X = np.concatenate([parts["train"], parts["valid"]]).astype(np.int64)
    return binary_data(name, X, parts["test"].astype(np.int64))


def load_mnist(name: str, seed: int, data_dir: Path) -> DiscreteData:
    """Load MNIST with its own split, binarised at half of the range."""
    parts = np.load(data_dir / "images" / "mnist.npz")
    X, X_test = ((parts[key] > 127).reshape(-1, 784) for key in ("X_train", "X_test"))
    data = binary_data(name, X.astype(np.int64), X_test.astype(np.int64))
    parameters = {**data.parameters, "image_shape": (28, 28)}
    return replace(data, n_dims=784, parameters=parameters)


def binary_data(name: str, X: Array, X_test: Array) -> DiscreteData:
    """Return a set of 0/1 columns; both levels are known beforehand."""
    levels = [np.array([0, 1])] * X.shape[1]
    return DiscreteData(name, X, X_test, levels, parameters={"categories": levels})


def load_digits_split(name: str, seed: int, data_dir: Path) -> DiscreteData:
    """Load scikit-learn's 8 x 8 digits."""
    X = load_digits().data.astype(np.int64)
    return ordinal_data(name, X, seed, {"image_shape": (8, 8)}, levels=[np.arange(17)] * 64)


def load_letter(name: str, seed: int, data_dir: Path) -> DiscreteData:
    """Load the letter-recognition table."""
    X = np.load(data_dir / "categorical" / "keel_letter_ordinal.npz")["X"].astype(np.int64)
    return ordinal_data(name, X, seed, {}, levels=[np.unique(column) for column in X.T])


def ordinal_data(
    name: str, X: Array, seed: int, parameters: dict[str, Any], levels: list[Array]
) -> DiscreteData:
    """Return a set of integer columns, split by the seed."""
    train, test = split_indices(len(X), seed)
    parameters = {"kind": "ordinal", "categories": levels, **parameters}
    n_dims = X.shape[1]
    return DiscreteData(name, X[train], X[test], levels, n_dims=n_dims, parameters=parameters)


def load_mixed(name: str, seed: int, data_dir: Path) -> DiscreteData:
    """Load a mixed table, split by the seed."""
    parts = np.load(data_dir / "categorical" / MIXED_FILES[name])
    frame = pd.concat(
        [number_columns(parts, CONTINUOUS_COLUMNS[name]), nominal_columns(parts)], axis=1
    )
    train, test = split_indices(len(frame), seed)
    levels = {column: find_levels(values) for column, values in frame.items()}
    return DiscreteData(
        name,
        take(frame, train),
        take(frame, test),
        list(levels.values()),
        nominal=True,
        parameters=mixed_parameters(levels),
    )


def mixed_parameters(levels: dict[Any, Array]) -> dict[str, Any]:
    """Return the arguments of the library's mixed estimator: dtypes decide, levels are given."""
    return {
        "categorical_features": "from_dtype",
        "ordinal_features": "from_dtype",
        "categories": {column: values for column, values in levels.items() if len(values)},
    }


def number_columns(parts: Any, continuous: tuple[str, ...]) -> pd.DataFrame:
    """Return integer columns, those named ``continuous`` as floats with uniform noise."""
    generator = np.random.RandomState(0)
    columns: dict[str, Array] = {}
    for column, values in zip(parts["num_names"].tolist(), parts["X_num"].T, strict=True):
        if column in continuous:
            columns[column] = values + generator.uniform(size=len(values))
        else:
            columns[column] = values.astype(np.int64)
    return pd.DataFrame(columns)


def nominal_columns(parts: Any) -> pd.DataFrame:
    """Return columns of names as unordered categories, missing where the code is -1."""
    vocabulary = json.loads(str(parts["vocab_json"]))
    names = parts["cat_names"].tolist()
    return pd.DataFrame(
        {
            column: pd.Categorical.from_codes(codes.astype(np.int64), categories=vocabulary[column])
            for column, codes in zip(names, parts["X_cat"].T, strict=True)
        }
    )


def find_levels(column: pd.Series) -> Array:
    """Return the levels of a column, empty if it is continuous; missing values come last."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = column.cat.categories.to_numpy(dtype=object)
        return np.append(levels, np.nan) if column.isna().any() else levels
    return np.unique(column) if pd.api.types.is_integer_dtype(column.dtype) else np.empty(0)


DATASETS: dict[str, Callable[[str, int, Path], DiscreteData]] = {
    **dict.fromkeys(BINARY_NAMES, load_binary),
    "digits": load_digits_split,
    "letter": load_letter,
    "mnist": load_mnist,
    **dict.fromkeys(MIXED_FILES, load_mixed),
}
