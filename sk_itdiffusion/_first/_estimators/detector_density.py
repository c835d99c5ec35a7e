"""The density inside a detector: which one it is, its fits to parts of the rows, and scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._estimators.completions import (
    mean_over_completions,
    on_observed_columns,
    read_rows,
)
from sk_itdiffusion._first._estimators.density import IMMSEDensity
from sk_itdiffusion._first._estimators.discrete import IMMSEDiscreteDensity
from sk_itdiffusion._first._estimators.distinct_rows import (
    DistinctRows,
    Index,
    Rows,
    chosen_rows_of,
)
from sk_itdiffusion._first._estimators.mixed import IMMSEMixedDensity
from sk_itdiffusion._first._estimators.row_score import RowScore
from sk_itdiffusion._first._estimators.table import TableEstimator
from sk_itdiffusion._first._runtime.callbacks import FitTasks
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first._table.reading import Table, as_floats, read_table

__all__ = [
    "default_estimator",
    "explain_rows",
    "fit_clone",
    "score_rows",
    "with_common_lattice",
    "with_parameter",
]

Array = NDArray[np.float64]
#: What the estimators say about columns without a density, about ties among it, and of few rows.
COLUMN_WARNINGS = r"Column\(s\) "
TIE_WARNING = COLUMN_WARNINGS + r".* coarsely rounded"
#: What the fit to all rows says, and those to parts of them need not.
REPEATED_WARNINGS = COLUMN_WARNINGS + "|There are fewer than"


def image_shape_of(estimator: DensityEstimator) -> tuple[int, ...] | None:
    """Return the shape of the images that an estimator or its members take, or None."""
    parts = [estimator, *estimator.get_params().values()]
    shapes = [getattr(part, "image_shape", None) for part in parts]
    return next((tuple(shape) for shape in shapes if shape is not None), None)


def takes_numbers(estimator: DensityEstimator | None, table: Table) -> bool:
    """Return whether the columns of an array are all continuous."""
    if estimator is not None:
        return isinstance(estimator, IMMSEDensity)
    return all(storage in ("integer", "float") for storage in table.storages)


def default_estimator(rows: Rows) -> DensityEstimator:
    """Return the density estimator for the kinds of the columns, without a network."""
    table = read_table(rows)
    numbers = [j for j, kept in enumerate(table.storages) if kept in ("integer", "float")]
    if len(numbers) == table.n_columns:
        return IMMSEDensity(marginals="standard", max_epochs=0)
    # Dates and times are neither; the mixed density says what to do about them.
    other = [j for j, kept in enumerate(table.storages) if kept == "other"]
    if not numbers and not other:
        return IMMSEDiscreteDensity(max_epochs=0)
    ordered = [j for j, kept in enumerate(table.storages) if kept == "ordered"]
    nominal = np.setdiff1d(np.arange(table.n_columns), numbers + ordered + other)
    return IMMSEMixedDensity(
        categorical_features=mask_of_columns(nominal, table.n_columns),
        ordinal_features=mask_of_columns(ordered, table.n_columns),
        marginals="standard",
        max_epochs=0,
    )


def with_parameter(template: DensityEstimator, name: str, value: Any) -> DensityEstimator:
    """Return a clone with another value of a parameter, its own and that of its members."""
    names = [known for known in template.get_params() if f"__{known}".endswith(f"__{name}")]
    changed: DensityEstimator = clone(template).set_params(**dict.fromkeys(names, value))
    return changed


def with_common_lattice(template: DensityEstimator, rows: Rows) -> DensityEstimator:
    """Return a clone that dequantises by the steps of all rows.

    Rows that are trimmed or held out may be the only ones between the values of the others.
    """
    parameters = template.get_params()
    names = [
        name
        for name, value in parameters.items()
        if f"__{name}".endswith("__dequantize") and value is True
    ]
    if not names or any(isinstance(value, FrozenEstimator) for value in parameters.values()):
        return template
    if pd.isna(rows).any(axis=None):
        table = read_table(rows)
        columns = [as_floats(table.column(j), label) for j, label in enumerate(table.labels)]
        rows = np.column_stack(columns)
    numbers = np.asarray(rows, dtype=np.float64)
    shared = image_shape_of(template) is not None
    step = Dequantizer.fit(numbers, None, shared, seed=0).step
    changed: DensityEstimator = clone(template).set_params(**dict.fromkeys(names, step))
    return changed


def mask_of_columns(chosen: Sequence[int] | Index, n_columns: int) -> NDArray[np.bool_]:
    """Return a mask of the chosen columns."""
    return np.isin(np.arange(n_columns), chosen)


def is_judged(estimator: DensityEstimator) -> bool:
    """Return whether rows were held out of a fit, and out of those of members, to validate."""
    members: Sequence[DensityEstimator] = getattr(estimator, "estimators_", ())
    return not math.isnan(estimator._model.entropy) and all(map(is_judged, members))


def fit_clone(
    template: DensityEstimator,
    given: DistinctRows,
    seed: int,
    quiet: bool,
    tasks: FitTasks,
    may_hold_out: bool = True,
) -> DensityEstimator:
    """Return a clone fitted to rows; with a noise floor ties need no warning."""
    estimator: DensityEstimator = clone(template).set_params(random_state=seed)
    with warnings.catch_warnings(), tasks.subfit("fit", estimator):
        if quiet:
            warnings.filterwarnings("ignore", TIE_WARNING, UserWarning)
        rows, weight, squared = given.rows, given.weight, given.squared_weight
        if len(given) == 1:  # which the estimators take for a mistake
            rows = chosen_rows_of(rows, np.zeros(2, dtype=np.intp))
            weight, squared = np.repeat(weight / 2.0, 2), np.repeat(squared / 2.0, 2)
        # Not each estimator takes weights of rows that it reads in parts.
        unweighted = (weight == 1.0).all() and (squared == 1.0).all()
        weights = (None, may_hold_out) if unweighted else (weight, may_hold_out, squared)
        if given.missing is not None and isinstance(estimator, TableEstimator):
            # Even if all entries of these rows are there: others are ranked with them.
            estimator._fit_to_rank(rows, *weights, lacks_entries=True)
        else:
            estimator._fit_to_rank(rows, *weights)
    return estimator


def score_rows(estimator: DensityEstimator, score: RowScore, rows: Rows) -> Array:
    """Return finite scores of rows, in nats; of rows with missing entries those expected."""
    values = read_rows(estimator, rows)
    return mean_over_completions(estimator._model, values, partial(score.scores, estimator))


def explain_rows(estimator: DensityEstimator, score: RowScore, rows: Rows) -> Array:
    """Return what each column contributes to the scores of rows, in nats."""
    values = read_rows(estimator, rows)
    contributions = partial(score.contributions, estimator)
    parts = mean_over_completions(estimator._model, values, contributions)
    return on_observed_columns(parts, values)
