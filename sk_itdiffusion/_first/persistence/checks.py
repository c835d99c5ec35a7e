"""What is read from a file fits together: types, shapes, ranges and orders.

The classes that are stored say which: by the types that they declare, and in their methods
``_finish_loading`` with the functions from here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import numpy as np
import torch

__all__ = [
    "check_finite",
    "check_in_range",
    "check_increasing",
    "check_not_negative",
    "check_positive",
    "check_same",
    "check_shapes",
    "check_types",
    "declared_types",
]


def check_types(make: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> None:
    """Raise an error if an argument is not of the type that is declared for it."""
    types_of = declared_types(make)
    for key, value in arguments.items():
        if key in types_of and not is_of_type(value, types_of[key]):
            raise ValueError(f"{key} of a {name} is not of the type {types_of[key]}")


@functools.cache
def declared_types(make: Any) -> dict[str, Any]:
    """Return the declared types of the arguments of a class or function.

    Those of a ``from_config`` that takes any argument are those of the constructor.
    """
    if dataclasses.is_dataclass(make):
        return typing.get_type_hints(make)
    cls = make.__self__ if getattr(make, "__name__", "") == "from_config" else make
    function = inspect.getattr_static(cls, "__init__") if inspect.isclass(cls) else make
    names = inspect.signature(function).parameters
    return {name: hint for name, hint in typing.get_type_hints(function).items() if name in names}


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
    """Return whether a value is an object of a class; integers are numbers, booleans are not."""
    if cls in (int, float):
        numbers = (int, np.integer) if cls is int else (int, float, np.integer, np.floating)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, type(None) if cls is None else cls)


def is_array_of(array: np.ndarray[Any, Any], arguments: tuple[Any, ...]) -> bool:
    """Return whether an array has the kind of numbers of ``numpy.ndarray[shape, dtype]``."""
    (scalar,) = typing.get_args(arguments[1]) or (Any,)
    return scalar is Any or np.issubdtype(array.dtype, scalar)


def check_shapes(holder: Any, shapes: Mapping[str, str], **sizes: int) -> dict[str, int]:
    """Raise an error if attributes that are arrays or tensors have other shapes; return the sizes.

    ``shapes`` has for each attribute a letter for each axis, such as ``"nd"``; equal letters are
    equal sizes, some of which may be known.
    """
    for name, letters in shapes.items():
        array = getattr(holder, name)
        is_array = isinstance(array, np.ndarray | torch.Tensor) and array.ndim == len(letters)
        pairs = zip(letters, array.shape, strict=True) if is_array else []
        if not is_array or any(sizes.setdefault(axis, size) != size for axis, size in pairs):
            raise ValueError(f"{name} of a {type(holder).__name__} has another shape")
    return sizes


def check_same(first: Any, second: Any, what: str) -> None:
    """Raise an error if two sizes, or lists of names, are not the same."""
    if first != second:
        raise ValueError(f"{what}: {first!r} and {second!r}")


def check_numbers(numbers: Any, what: str, is_good: Callable[[Any], Any]) -> None:
    """Raise an error if a number, or one in an array or tensor, is not as it has to be."""
    values = numbers.detach().cpu().numpy() if isinstance(numbers, torch.Tensor) else numbers
    array = np.asarray(values)
    if array.dtype.kind not in "buif" or not np.all(is_good(array.astype(np.float64))):
        raise ValueError(f"{what}, or no numbers")


def check_finite(numbers: Any, what: str) -> None:
    """Raise an error if numbers are infinite."""
    check_numbers(numbers, f"the {what} are infinite", np.isfinite)


def check_positive(numbers: Any, what: str) -> None:
    """Raise an error if numbers are not positive, or infinite."""
    check_numbers(numbers, f"the {what} are not positive", lambda n: np.isfinite(n) & (n > 0.0))


def check_not_negative(numbers: Any, what: str) -> None:
    """Raise an error if numbers are negative or infinite."""
    check_numbers(numbers, f"the {what} are negative", lambda n: np.isfinite(n) & (n >= 0.0))


def check_in_range(numbers: Any, low: Any, high: Any, what: str) -> None:
    """Raise an error if numbers are not between two ends, both of which they may be."""
    check_numbers(numbers, f"the {what} are out of range", lambda n: (n >= low) & (n <= high))


def check_increasing(numbers: Any, what: str) -> None:
    """Raise an error if numbers do not increase."""
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or (np.diff(numbers) <= 0.0).any():
        raise ValueError(f"the {what} do not increase")
