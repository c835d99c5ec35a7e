"""Targets of any container as numbers and codes, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.kinds import Kind
from sk_itdiffusion._first._table.reading import (
    Labels,
    Table,
    as_floats,
    by_column,
    factorize,
    first_few,
    read_table,
    without_tensors,
)

__all__ = [
    "encoded_targets",
    "fit_targets",
    "kinds_of_targets",
    "log_shares_of_seen",
    "target_table",
]

Array = NDArray[np.float64]
KINDS = ("continuous", "ordinal", "nominal")
#: Distinct integers up to which a target is ordinal if nobody says what it is.
MAX_ORDINAL = 256


def target_table(y: Any, name: str) -> Table:
    """Return targets as a table.

    Parameters
    ----------
    y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
        Targets.
    name : str
        Name of the estimator, for messages.

    Returns
    -------
    Table
        The table.

    Raises
    ------
    ValueError
        If there are no targets, or values are missing or infinite.
    """
    if y is None:
        raise ValueError(f"{name} requires y to be passed, but the target y is None.")
    y = without_tensors(y)
    if isinstance(y, pd.api.extensions.ExtensionArray):
        y = pd.Series(y)
    if hasattr(y, "to_frame") and not hasattr(y, "columns"):
        y = y.to_frame() if getattr(y, "name", None) is not None else y.to_frame("y")
    elif not hasattr(y, "columns"):
        y = y if hasattr(y, "dtype") else as_array(y)
        if y.ndim == 1:
            y = np.reshape(column_or_1d(y, dtype=y.dtype), (-1, 1))
    table = read_table(y)
    for j, label in enumerate(table.labels):
        check_target(table.column(j), label)
    return table


def as_array(y: Any) -> NDArray[Any]:
    """Return a list as an array, in which numbers alongside texts stay numbers."""
    found = np.asarray(y)
    return np.asarray(y, dtype=object) if found.dtype.kind in "US" else found


def check_target(column: pd.Series[Any], label: str) -> None:
    """Raise a ValueError if a target has values that are missing or infinite."""
    if column.isna().any():
        raise ValueError(
            f"Input y contains NaN in column {label!r}. Rows without a target say nothing about "
            "it: drop them."
        )
    if pd.api.types.is_float_dtype(column.dtype) and np.isinf(column.to_numpy(np.float64)).any():
        raise ValueError(
            "Input y contains infinity or a value too large for dtype('float64') in column "
            f"{label!r}."
        )


def kinds_of_targets(table: Table, asked: Any) -> list[Kind]:
    """Return the kinds of targets.

    Parameters
    ----------
    table : Table
        Targets.
    asked : str, sequence or dict
        "from_dtype", or the kind of all targets, of each, or of those that a dict names.

    Returns
    -------
    list of str
        "continuous", "ordinal" or "nominal" for each.

    Raises
    ------
    ValueError
        If a kind is unknown, or a continuous target holds no numbers.
    """
    if isinstance(asked, str):
        by_number: dict[int, Any] = dict.fromkeys(range(table.n_columns), asked)
    else:
        by_number = by_column(table, asked, "target_kinds")
    kinds: list[Kind] = []
    for j, label in enumerate(table.labels):
        kind = by_number.get(j, "from_dtype")
        if kind not in ("from_dtype", *KINDS):
            raise ValueError(
                f"target_kinds must be 'from_dtype' or one of {', '.join(map(repr, KINDS))} for "
                f"each target, got {kind!r}."
            )
        kinds.append(kind_of_dtype(table, j) if kind == "from_dtype" else cast(Kind, kind))
        if kinds[j] == "continuous" and not table.holds_numbers[j]:
            raise ValueError(
                f"The target {label!r} holds no numbers and cannot be continuous. Convert it, or "
                "name its kind by target_kinds."
            )
    return kinds


def kind_of_dtype(table: Table, j: int) -> Kind:
    """Return the kind that a target has by its dtype."""
    storage = table.storages[j]
    if storage == "integer":
        return "ordinal" if table.column(j).nunique() <= MAX_ORDINAL else "continuous"
    if storage == "ordered":
        return "ordinal"
    return "nominal" if storage in ("boolean", "unordered", "text") else "continuous"


def fit_targets(
    table: Table, kinds: list[Kind], handle_unknown: str, sample_weight: Array
) -> TableEncoder:
    """Return the encoder of targets, with the categories of those that are discrete.

    Nominal ones are sorted, as scikit-learn has classes.

    Parameters
    ----------
    table : Table
        Targets.
    kinds : list of {"continuous", "ordinal", "nominal"}
        Their kinds.
    handle_unknown : {"good_turing", "error"}
        Whether other categories have the mass of Good and Turing, or are an error.
    sample_weight : ndarray of shape (n_samples,)
        Weights; categories are those of rows of positive weight.

    Returns
    -------
    TableEncoder
        The encoder.
    """
    check_consistent_length(sample_weight, table.frame)
    encoder = TableEncoder.fit(
        table, kinds=kinds, handle_unknown=handle_unknown, sample_weight=sample_weight
    )
    columns = []
    for column in encoder.columns:
        if column.kind == "nominal" and column.categories is not None:
            labels = in_order(column.categories.tolist())
            columns.append(replace(column, categories=labels))
        else:
            columns.append(column)
    return replace(encoder, columns=tuple(columns))


def in_order(labels: list[Any]) -> Labels:
    """Return labels in sorted order, by type and text if they cannot be sorted."""
    try:
        ordered = sorted(labels)
    except TypeError:
        ordered = sorted(labels, key=lambda each: (type(each).__name__, str(each)))
    found = np.empty(len(ordered), dtype=object)
    found[:] = ordered
    return found


def encoded_targets(encoder: TableEncoder, table: Table, n_rows: int) -> Array:
    """Return numbers and codes of targets like the fitted ones.

    Categories that were not seen become their log-probabilities, which are negative.

    Raises
    ------
    ValueError
        If there are others, another number of rows, or values that are no categories and have no
        probability.
    """
    if table.n_columns != len(encoder.columns):
        raise ValueError(
            f"y has {table.n_columns} columns, but the estimator was fitted to "
            f"{len(encoder.columns)}."
        )
    if len(table.frame) != n_rows:
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: "
            f"{[n_rows, len(table.frame)]}"
        )
    for j, column in enumerate(encoder.columns):
        if column.categories is None:
            as_floats(table.column(j), column.label)
        if column.categories is None or column.unseen is not None:
            continue
        known = pd.Index(column.categories, dtype=object, tupleize_cols=False)
        numbers, labels = factorize(table.column(j), column.label)
        there = labels[np.unique(numbers)]
        others = [label for label in there if label not in known]
        if others:
            raise ValueError(
                f"The target {column.label!r} has categories that fit has not seen: "
                f"{first_few(others)}. Fit to a categorical dtype that has all of them, or with "
                "handle_unknown='good_turing', so that other categories have a probability."
            )
    return encoder.encode(table)


def log_shares_of_seen(encoder: TableEncoder, targets: Array) -> Array:
    """Return what it adds to log-densities that categories may be unseen, shape (n,), in nats.

    A known category has the log-probability that the category is one of the known ones, and an
    unseen one its own log-probability, which is its code.
    """
    total = np.zeros(len(targets))
    for j, column in enumerate(encoder.columns):
        if column.categories is not None:
            total += np.where(targets[:, j] < 0.0, targets[:, j], column.log_seen)
    return total
