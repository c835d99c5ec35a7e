"""The kinds of values that files hold besides numbers: names, labels, dtypes, times, containers.

A kind takes a value apart into parts, which are values themselves, and makes it of them again.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionDtype

__all__ = ["KINDS", "LISTED", "TIMES", "ValueKind", "is_simple", "simple_dtype"]

#: Kinds of numpy dtypes whose arrays and scalars are stored as integers, and as lists.
TIMES, LISTED = "mM", "OUS"
#: Text of a simple numpy dtype; others, such as structured ones, are refused.
SIMPLE_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|O|U\d+|S\d+|[mM]8(\[\d*[A-Za-zμ]+\])?)")
#: Dtypes of pandas that are made from their names.
NAMED_DTYPES = re.compile(
    r"boolean|U?Int(8|16|32|64)|Float(32|64)|datetime64\[.*\]|period\[.*\]|interval(\[.*\])?"
    r"|[a-z0-9_\[\], ()]+\[pyarrow\]",
    re.IGNORECASE,
)
#: Bytes of one item of an array of strings, and of all of its items, that are read and written.
MAX_BYTES_OF_AN_ITEM, MAX_BYTES_OF_ITEMS = 2**20, 2**28
#: Length of ranges, which files hold in a few bytes.
MAX_LENGTH_OF_A_RANGE = 10**8


@dataclass(frozen=True)
class ValueKind:
    """How values of a type are taken apart, and made again.

    ``parts`` returns a sequence, or None if a value cannot be stored; ``make`` takes the parts as
    arguments.  With ``has_derived`` instances of derived types are of this kind too.
    """

    name: str
    cls: type
    parts: Callable[[Any], Sequence[Any] | None]
    make: Callable[..., Any]
    has_derived: bool = False

    def accepts(self, value: object) -> bool:
        """Return whether a value is of this kind."""
        return isinstance(value, self.cls) if self.has_derived else type(value) is self.cls


def is_simple(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of a numpy dtype can be stored."""
    is_known = SIMPLE_DTYPE.fullmatch(dtype.str) is not None
    return is_known and dtype.itemsize <= MAX_BYTES_OF_AN_ITEM


def dtype_parts(dtype: np.dtype[Any]) -> Sequence[Any] | None:
    """Return the text of a simple numpy dtype."""
    return (dtype.str,) if is_simple(dtype) else None


def simple_dtype(text: str) -> np.dtype[Any]:
    """Return the simple numpy dtype of a string."""
    if not isinstance(text, str) or not SIMPLE_DTYPE.fullmatch(text):
        raise ValueError(f"{text!r} is no simple dtype")
    dtype = np.dtype(text)
    if dtype.itemsize > MAX_BYTES_OF_AN_ITEM:
        raise ValueError(f"items of the dtype {text!r} are too large")
    return dtype


def scalar_parts(value: np.generic) -> Sequence[Any] | None:
    """Return the dtype of a numpy scalar, and its value as one of Python."""
    if not is_simple(value.dtype) or value.dtype.kind == "O":
        return None
    is_time = value.dtype.kind in TIMES
    return value.dtype.str, value.view(np.int64).item() if is_time else value.item()


def scalar_of(text: str, value: Any) -> Any:
    """Return a numpy scalar."""
    dtype = simple_dtype(text)
    return np.int64(value).view(dtype) if dtype.kind in TIMES else np.array(value, dtype=dtype)[()]


def items_parts(array: NDArray[Any]) -> Sequence[Any] | None:
    """Return dtype, shape and items of an array of strings or objects."""
    if not is_simple(array.dtype) or array.nbytes > MAX_BYTES_OF_ITEMS:
        return None
    return array.dtype.str, list(array.shape), array.ravel().tolist()


def items_of(text: str, shape: Sequence[int], items: Sequence[Any]) -> NDArray[Any]:
    """Return an array of strings or objects; objects may be sequences themselves."""
    dtype = simple_dtype(text)
    if dtype.kind not in LISTED or len(items) * dtype.itemsize > MAX_BYTES_OF_ITEMS:
        raise ValueError(f"an array of {len(items)} items of {dtype} is too large, or of numbers")
    array = np.empty(len(items), dtype=dtype)
    for number, item in enumerate(items):
        array[number] = item
    return array.reshape(shape)


def named_dtype_parts(dtype: ExtensionDtype) -> Sequence[Any] | None:
    """Return the name of a dtype of pandas that is made from its name."""
    name = str(dtype)
    is_named = NAMED_DTYPES.fullmatch(name) and pd.api.types.pandas_dtype(name) == dtype
    return (name,) if is_named else None


def named_dtype(name: str) -> Any:
    """Return the dtype of pandas of a name."""
    if not NAMED_DTYPES.fullmatch(name):
        raise ValueError(f"there is no dtype {name!r}")
    return pd.api.types.pandas_dtype(name)


def string_dtype(storage: Any, na_value: Any) -> Any:
    """Return the dtype of strings; without pyarrow they are stored as Python's."""
    try:
        return pd.StringDtype(storage, na_value=na_value)
    except ImportError:
        return pd.StringDtype("python", na_value=na_value)


def checked_range(start: int, stop: int, step: int) -> range:
    """Return a range that is not so long that what goes through it never ends."""
    found = range(start, stop, step)
    if abs(stop - start) > MAX_LENGTH_OF_A_RANGE * abs(step):
        raise ValueError(f"{found} is too long")
    return found


def objects_in(labels: Any) -> Any:
    """Return names or labels as an array of objects."""
    return labels.astype(object).to_numpy()


def index_of(labels: Any, dtype: Any, name: Any) -> Any:
    """Return names or labels, which may be tuples."""
    return pd.Index(labels, dtype=object, tupleize_cols=False, name=name).astype(dtype)


def series_of(labels: Any, dtype: Any, index: Any, name: Any) -> Any:
    """Return a column of labels."""
    return pd.Series(labels, index=index, dtype=dtype, name=name)


def timestamp_parts(value: pd.Timestamp) -> Sequence[Any] | None:
    """Return nanoseconds, unit and zone of a time, if it has a zone that has a name."""
    parts = value.value, value.unit, str(value.tz) if value.tz else None
    return parts if timestamp_of(*parts) == value else None


def timestamp_of(nanoseconds: int, unit: Any, zone: str | None) -> pd.Timestamp:
    """Return a time."""
    moment = pd.Timestamp(nanoseconds, unit="ns").as_unit(unit)
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)


def iso_parts(value: datetime.date) -> Sequence[Any] | None:
    """Return the text of a date of the standard library, with or without a time, in no zone."""
    return (value.isoformat(),) if getattr(value, "tzinfo", None) is None else None


#: The first one that accepts a value is its kind.
KINDS = [
    ValueKind("float", float, lambda v: (repr(v),), float),
    ValueKind("tuple", tuple, lambda v: v, lambda *items: items),
    ValueKind("range", range, lambda v: (v.start, v.stop, v.step), checked_range),
    ValueKind("items", np.ndarray, items_parts, items_of),
    ValueKind("scalar", np.generic, scalar_parts, scalar_of, has_derived=True),
    ValueKind("dtype", np.dtype, dtype_parts, simple_dtype, has_derived=True),
    ValueKind(
        "categorical", pd.CategoricalDtype, lambda v: (v.categories, v.ordered), pd.CategoricalDtype
    ),
    ValueKind("string", pd.StringDtype, lambda v: (v.storage, v.na_value), string_dtype),
    ValueKind("named_dtype", ExtensionDtype, named_dtype_parts, named_dtype, has_derived=True),
    ValueKind(
        "multi_index",
        pd.MultiIndex,
        lambda v: (list(v), list(v.names)),
        lambda rows, names: pd.MultiIndex.from_tuples(rows, names=names),
    ),
    ValueKind(
        "range_index",
        pd.RangeIndex,
        lambda v: (range(v.start, v.stop, v.step), v.name),
        lambda labels, name: pd.RangeIndex(labels, name=name),
    ),
    ValueKind(
        "index", pd.Index, lambda v: (objects_in(v), v.dtype, v.name), index_of, has_derived=True
    ),
    ValueKind("series", pd.Series, lambda v: (objects_in(v), v.dtype, v.index, v.name), series_of),
    ValueKind("device", torch.device, lambda v: (str(v),), torch.device),
    ValueKind("bytes", bytes, lambda v: (v.hex(),), bytes.fromhex),
    ValueKind("decimal", decimal.Decimal, lambda v: (str(v),), decimal.Decimal),
    ValueKind("timestamp", pd.Timestamp, timestamp_parts, timestamp_of),
    ValueKind(
        "timedelta",
        pd.Timedelta,
        lambda v: (v.value, v.unit),
        lambda nanoseconds, unit: pd.Timedelta(nanoseconds, unit="ns").as_unit(unit),
    ),
    ValueKind(
        "period",
        pd.Period,
        lambda v: (v.ordinal, v.freqstr),
        lambda ordinal, frequency: pd.Period(ordinal=ordinal, freq=frequency),
    ),
    ValueKind("interval", pd.Interval, lambda v: (v.left, v.right, v.closed), pd.Interval),
    ValueKind("date", datetime.date, iso_parts, datetime.date.fromisoformat),
    ValueKind("datetime", datetime.datetime, iso_parts, datetime.datetime.fromisoformat),
    ValueKind("na", type(pd.NA), lambda _: (), lambda: pd.NA),
    ValueKind("nat", type(pd.NaT), lambda _: (), lambda: pd.NaT),
]
