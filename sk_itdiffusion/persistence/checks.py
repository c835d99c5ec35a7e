"""What is read from a file fits together: types of fields, and one evaluation of the whole."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import numpy as np

from sk_itdiffusion.ensemble import IMMSEEnsemble
from sk_itdiffusion.estimator import CategoricalEstimator, DensityEstimator
from sk_itdiffusion.model import Effort, TableModel

__all__ = ["check_fields", "rehearse"]

#: Evaluations of the rehearsal, as few as there can be.
LEAST_EFFORT = Effort(n_strata=2, n_draws=2, n_directions=1)


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


# -- the whole -------------------------------------------------------------------------------


def rehearse(estimator: Any) -> None:
    """Raise an error if a loaded estimator cannot read and score a row.

    Parameters
    ----------
    estimator : estimator
        A density estimator or detector with all its attributes.

    Raises
    ------
    ValueError
        If its parts do not fit together, or the density of the row is no number.
    """
    density = getattr(estimator, "estimator_", estimator)
    assert isinstance(density, DensityEstimator)
    model = density._model
    check_columns(estimator, density, model)
    values = middle_row(model)
    score = log_density_of(estimator, density)(values)
    if score.shape != (1,) or np.isnan(score).any():
        raise ValueError("the density of a row is no number")


def middle_row(model: TableModel) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return numbers and codes of a row in the middle of the model's space, (1, n_columns)."""
    space = model.space
    values = space.values(np.zeros((1, len(space.continuous) + len(space.discrete))))
    return values if model.dequantizer is None else model.dequantizer.rounded(values)


def log_density_of(
    estimator: Any, density: DensityEstimator
) -> Callable[[Any], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the function that scores numbers and codes, with the least effort."""
    model = density._model
    if hasattr(estimator, "_floored"):
        float(estimator.offset_)
        if not estimator._floored.is_plain:
            return lambda values: estimator._floored.log_density(values, LEAST_EFFORT)
    if getattr(density, "likelihood", "immse") == "path":
        return lambda values: model.path_log_probability(values, LEAST_EFFORT)[0]
    return lambda values: model.log_density(values, LEAST_EFFORT)[0]


def check_columns(estimator: Any, density: DensityEstimator, model: TableModel) -> None:
    """Raise an error if names, levels and the model do not have the same columns."""
    n_columns = model.space.n_columns
    for each in (estimator, density):
        names = getattr(each, "feature_names_in_", None)
        if each.n_features_in_ != n_columns or (names is not None and len(names) != n_columns):
            raise ValueError(f"a {type(each).__name__} has other columns than its model")
    has_levels = isinstance(density, CategoricalEstimator) or (
        isinstance(density, IMMSEEnsemble) and density._encoder is not None
    )
    if has_levels:
        values, levels = middle_row(model), model.space.discrete
        again = density._read(density._write(values))
        if not np.array_equal(again[:, levels], values[:, levels]):
            raise ValueError("the levels are not those of the model")
