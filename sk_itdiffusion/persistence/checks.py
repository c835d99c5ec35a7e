"""What is read from a file fits together: types of fields, numbers, evaluations of the whole."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionDtype
from sklearn.utils.validation import check_is_fitted

from sk_itdiffusion._estimators.base import DensityEstimator
from sk_itdiffusion._estimators.ensemble import IMMSEEnsemble
from sk_itdiffusion._fit.effort import Effort
from sk_itdiffusion._fit.model import TableModel
from sk_itdiffusion._immse.cubature import PiecewiseDensity
from sk_itdiffusion._table.space import TableSpace

__all__ = ["check_fields", "rehearse"]

Array = NDArray[np.float64]

#: Evaluations for each row of the rehearsal, as few as there can be.
LEAST_EFFORT = Effort(n_strata=2, n_draws=2, n_directions=1)
#: Where its rows are in each column, in standard deviations; evaluations of images take long.
PLACES = (-1e3, -8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0, 1e3)
PLACES_IN_IMAGES = (-1.0, 0.0, 1.0)
#: How far, and at how many points, maps of columns are checked.
FARTHEST_IN_MAPS, POINTS_IN_MAPS = 8.0, 129


# -- types -----------------------------------------------------------------------------------


def check_fields(value: Any) -> None:
    """Raise an error if a field of a dataclass object is not of the type that it is declared as."""
    cls: Any = type(value)
    for name, hint in field_types(cls).items():
        if not is_of_type(getattr(value, name), hint):
            raise TypeError(f"{type(value).__name__}.{name} is not of the type {hint}")


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Return the declared types of the fields of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_of_type(value: Any, hint: Any) -> bool:
    """Return whether a value is of a declared type; numbers of numpy are numbers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or getattr(hint, "_is_protocol", False):
        return True
    if origin in (Union, types.UnionType):
        return any(is_of_type(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is None:
        return is_instance(value, hint)
    if origin is np.ndarray:
        return isinstance(value, np.ndarray) and is_array_of(value, arguments)
    if issubclass(origin, Mapping):
        key, entry = arguments
        return isinstance(value, Mapping) and all(
            is_of_type(k, key) and is_of_type(v, entry) for k, v in value.items()
        )
    if issubclass(origin, Sequence):
        is_sequence = isinstance(value, list | tuple)
        kinds = [kind for kind in arguments if kind is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            return is_sequence and len(value) == len(kinds) and all(map(is_of_type, value, kinds))
        return is_sequence and all(is_of_type(item, kinds[0]) for item in value)
    return isinstance(value, origin)


def is_instance(value: Any, cls: Any) -> bool:
    """Return whether a value is an object of a class; whole numbers are numbers, truths are not."""
    if cls in (int, float):
        numbers = (int, np.integer) if cls is int else (int, float, np.integer, np.floating)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, type(None) if cls is None else cls)


def is_array_of(array: np.ndarray[Any, Any], arguments: tuple[Any, ...]) -> bool:
    """Return whether an array has the kind of numbers of ``numpy.ndarray[shape, dtype]``."""
    (scalar,) = typing.get_args(arguments[1]) or (Any,)
    return scalar is Any or np.issubdtype(array.dtype, scalar)


# -- numbers ---------------------------------------------------------------------------------


def check_model(model: TableModel) -> None:
    """Raise an error if numbers of a model are none, or are not in their order or range."""
    check_increasing(model.logsnr, "log-SNRs")
    if model.weights.shape != (len(model.logsnr), len(model.expert_names)):
        raise ValueError("there are other weights than experts and log-SNRs")
    check_not_negative(model.weights, "weights of experts")
    if model.rule is not None:
        check_placement(model.rule.placement)
    check_maps(model.space)


def check_placement(placement: PiecewiseDensity) -> None:
    """Raise an error if a density has no order of edges or no masses between them."""
    check_increasing(placement.edges, "edges of strata")
    check_not_negative(placement.mass, "masses of strata")
    if placement.mass.shape != (len(placement.edges) - 1,) or not placement.mass.any():
        raise ValueError("strata have other masses than edges")


def check_increasing(numbers: Array, what: str) -> None:
    """Raise an error if numbers do not increase."""
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or (np.diff(numbers) <= 0.0).any():
        raise ValueError(f"the {what} do not increase")


def check_not_negative(numbers: Array, what: str) -> None:
    """Raise an error if numbers are negative or infinite."""
    if not (np.isfinite(numbers) & (numbers >= 0.0)).all():
        raise ValueError(f"the {what} are negative, or no numbers")


def check_maps(space: TableSpace) -> None:
    """Raise an error if the map of a column does not increase, or has no slope."""
    n_continuous = len(space.continuous)
    if n_continuous == 0:
        return
    grid = np.linspace(-FARTHEST_IN_MAPS, FARTHEST_IN_MAPS, POINTS_IN_MAPS)
    rows = np.zeros((len(grid), n_continuous + len(space.discrete)))
    rows[:, :n_continuous] = grid[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        values = space.values(rows)
        # Columns of the largest numbers that there are do not go as far.
        kept = np.asarray(np.isfinite(values).all(axis=1))
        mapped, log_slope = space.rows(space.standardized(values[kept]))
    falls = (np.diff(values[kept], axis=0) < 0.0).any() or (np.diff(mapped, axis=0) < 0.0).any()
    if not kept[len(grid) // 2] or falls or not np.isfinite(mapped).all():
        raise ValueError("the map of a column does not increase")
    if np.isnan(log_slope).any() or not np.isfinite(log_slope).any():
        raise ValueError("the map of a column has no slope")


# -- the whole -------------------------------------------------------------------------------


def rehearse(estimator: Any) -> None:
    """Raise an error if a loaded estimator cannot read and score rows.

    Parameters
    ----------
    estimator : estimator
        A density estimator or detector with all its attributes.

    Raises
    ------
    ValueError
        If its parts do not fit together, or the density of a row is no number: rows from the
        middle of the model's space to far out in every column are scored.
    """
    density = getattr(estimator, "estimator_", estimator)
    assert isinstance(density, DensityEstimator)
    model = density._model
    places = PLACES_IN_IMAGES if model.has_images else PLACES
    check_columns(estimator, density, model)
    check_model(model)
    check_reading(estimator, density, rows_at(model, np.zeros(len(places))))
    rows = rows_at(model, np.array(places))
    scores = log_density_of(estimator, density)(rows)
    if scores.shape != (len(rows),) or np.isnan(scores).any() or not np.isfinite(scores).any():
        raise ValueError("the density of a row is no number")
    if (scores == np.inf).any():
        raise ValueError("the density of a row is infinite")
    if isinstance(density, IMMSEEnsemble):
        for member in density.estimators_:
            rehearse(member)


def rows_at(model: TableModel, places: Array) -> Array:
    """Return numbers at places in the model's space, and codes of first to last levels.

    Parameters
    ----------
    model : TableModel
        The model.
    places : ndarray of shape (n_rows,)
        Where each row is in all continuous columns.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Rows, but for those that are no numbers.
    """
    space = model.space
    rows = np.zeros((len(places), len(space.continuous) + len(space.discrete)))
    rows[:, : len(space.continuous)] = places[:, None]
    share = np.linspace(0.0, 1.0, len(places))
    n_levels = [variable.n_levels for variable in space.layout.variables]
    most = np.array(n_levels, dtype=np.float64).reshape(1, -1) - 1.0
    rows[:, len(space.continuous) :] = np.rint(share[:, None] * most)
    with np.errstate(over="ignore", invalid="ignore"):
        values = space.values(rows)
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) == 0:
        raise ValueError("its columns have no numbers")
    return model.on_lattice(values)


def log_density_of(estimator: Any, density: DensityEstimator) -> Callable[[Any], Array]:
    """Return the function that scores numbers and codes, with the least effort."""
    model = density._model
    if hasattr(estimator, "_floored"):
        check_threshold(estimator)
        if not estimator._floored.is_plain:
            return lambda values: estimator._floored.log_density(values, LEAST_EFFORT)
    if getattr(density, "likelihood", "immse") == "path":
        return lambda values: model.path_log_probability(values, LEAST_EFFORT)[0]
    return lambda values: model.log_density(values, LEAST_EFFORT)[0]


def check_threshold(detector: Any) -> None:
    """Raise an error if what scores are compared with is no number."""
    if not is_instance(detector.offset_, float) or not math.isfinite(detector.offset_):
        raise ValueError("the threshold is no number")
    if hasattr(detector, "calibration_scores_"):
        scores = detector.calibration_scores_
        has_order = isinstance(scores, np.ndarray) and scores.ndim == 1 and len(scores) > 0
        if not has_order or not np.isfinite(scores).all() or (np.diff(scores) < 0.0).any():
            raise ValueError("the scores of held-out rows are no sorted numbers")
        weights = detector.calibration_weights_
        has_shape = isinstance(weights, np.ndarray) and weights.shape == scores.shape
        if not has_shape or not np.isfinite(weights).all() or (weights <= 0.0).any():
            raise ValueError("the weights of held-out rows are no positive numbers")


def check_columns(estimator: Any, density: DensityEstimator, model: TableModel) -> None:
    """Raise an error if names and the model do not have the same columns."""
    n_columns = model.space.n_columns
    for each in (estimator, density):
        names = getattr(each, "feature_names_in_", None)
        if each.n_features_in_ != n_columns or (names is not None and len(names) != n_columns):
            raise ValueError(f"a {type(each).__name__} has other columns than its model")


def check_reading(estimator: Any, density: DensityEstimator, rows: Array) -> None:
    """Raise an error if the table of rows is not read as these rows."""
    for name in ("_encoder", "_frame_format"):
        encoder = getattr(density, name, None)
        if encoder is not None:
            check_dtypes(encoder)
    log_seen = np.zeros(density._model.space.n_columns)
    encoder = getattr(density, "_encoder", None)
    if encoder is not None:
        log_seen = np.array([column.log_seen for column in encoder.columns])
    check_log_seen(density._model.space.log_seen, log_seen)
    table = density._write(rows)
    names = getattr(density, "feature_names_in_", None)
    if names is not None and isinstance(table, np.ndarray):
        table = pd.DataFrame(table, columns=names)
    check_is_fitted(estimator)
    if estimator is not density:
        estimator._checked_rows(table, reset=False)
    density._effort()
    again, levels = density._read(table), density._model.space.discrete
    if again.shape != rows.shape or not np.array_equal(again[:, levels], rows[:, levels]):
        raise ValueError("the levels are not those of the model")


def check_log_seen(found: Array, expected: Array) -> None:
    """Raise an error if a model and what reads its rows differ about values that are no levels."""
    same = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-9, atol=0.0)
    if not same:
        raise ValueError("the probabilities of values that were not seen do not fit together")


def check_dtypes(encoder: Any) -> None:
    """Raise an error if dtypes of columns are none: pandas would look up texts."""
    if not all(isinstance(dtype, np.dtype | ExtensionDtype) for dtype in encoder.dtypes):
        raise ValueError("the dtype of a column is none")
