"""The kinds of values that saved estimators hold: arrays, dtypes, names and labels of columns."""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionDtype

from sk_itdiffusion.persistence.encoded import Decoder, Encoder, Kind, Node

__all__ = ["KINDS"]

#: Kinds of numpy dtypes whose arrays are stored as whole numbers, and as lists.
TIMES, LISTED = "mM", "OUS"
#: Text of a simple numpy dtype; others, such as structured ones, are refused.
SIMPLE_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|O|U\d+|S\d+|[mM]8(\[\d*[A-Za-zμ]+\])?)")
#: Dtypes of pandas that are made from their names.
NAMED_DTYPES = re.compile(
    r"boolean|U?Int(8|16|32|64)|Float(32|64)|datetime64\[.*\]|period\[.*\]|interval(\[.*\])?"
    r"|[a-z0-9_\[\], ()]+\[pyarrow\]",
    re.IGNORECASE,
)
#: Bytes of one item of an array of texts, and of all of its items, that are read and written.
MOST_BYTES_OF_AN_ITEM, MOST_BYTES_OF_ITEMS = 2**20, 2**28
#: Length of ranges, which files hold in a few bytes.
LONGEST_RANGE = 10**8


def encode_dict(value: dict[Any, Any], encoder: Encoder) -> Node:
    """Return keys and values; keys may be anything that can be stored."""
    items = []
    for key, entry in value.items():
        with encoder.at(key):
            items.append([encoder.encode(key), encoder.encode(entry)])
    return {"items": items}


def decode_dict(node: Node, decoder: Decoder) -> dict[Any, Any]:
    """Return a dict."""
    return {decoder.decode(key): decoder.decode(value) for key, value in node["items"]}


def is_simple(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of a numpy dtype can be stored."""
    is_known = SIMPLE_DTYPE.fullmatch(dtype.str) is not None
    return is_known and dtype.itemsize <= MOST_BYTES_OF_AN_ITEM


def simple_dtype(text: str) -> np.dtype[Any]:
    """Return the simple numpy dtype of a text."""
    if not isinstance(text, str) or not SIMPLE_DTYPE.fullmatch(text):
        raise ValueError(f"{text!r} is no simple dtype")
    dtype = np.dtype(text)
    if dtype.itemsize > MOST_BYTES_OF_AN_ITEM:
        raise ValueError(f"items of the dtype {text!r} are too large")
    return dtype


def encode_array(array: NDArray[Any], encoder: Encoder) -> Node:
    """Return the node of an array: numbers are stored apart, other items listed."""
    dtype = array.dtype
    if not is_simple(dtype):
        raise encoder.refusal(f"is an array of {dtype}")
    node: Node = {"dtype": dtype.str}
    if dtype.kind in LISTED:
        if array.nbytes > MOST_BYTES_OF_ITEMS:
            raise encoder.refusal(f"is an array of {array.nbytes} bytes of texts or objects")
        return node | {"shape": list(array.shape), "items": encoder.items(array.ravel().tolist())}
    encoder.keep(array)
    key = ("array", array.ctypes.data, dtype.str, array.shape, array.strides)
    native = array.astype(dtype.newbyteorder("="), copy=False)
    numbers = native.view(np.int64) if dtype.kind in TIMES else native
    return node | encoder.store(numbers, native.strides, key)


def decode_array(node: Node, decoder: Decoder) -> NDArray[Any]:
    """Return an array."""
    dtype = simple_dtype(node["dtype"])
    if dtype.kind in LISTED:
        items = node["items"]
        if len(items) * dtype.itemsize > MOST_BYTES_OF_ITEMS:
            raise ValueError(f"an array of {len(items)} items of {dtype} is too large")
        listed = np.empty(len(items), dtype=dtype)
        for number, item in enumerate(items):
            listed[number] = decoder.decode(item)
        return listed.reshape(node["shape"])

    def as_saved(numbers: NDArray[Any]) -> NDArray[Any]:
        native = dtype.newbyteorder("=")
        if numbers.dtype != (np.int64 if dtype.kind in TIMES else native):
            raise ValueError(f"the array {node['name']!r} has not the dtype {dtype}")
        return np.array(numbers.view(native), dtype=dtype)

    array: NDArray[Any] = decoder.stored(node, "array", as_saved, dtype.str)
    return array


def encode_tensor(tensor: torch.Tensor, encoder: Encoder) -> Node:
    """Return the node of a tensor."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.dtype == torch.bfloat16:
        raise encoder.refusal(f"is a tensor of {tensor.dtype}, {tensor.layout}")
    encoder.keep(tensor)
    place = (str(tensor.device), tensor.data_ptr())
    key = ("tensor", *place, tensor.dtype, tuple(tensor.shape), tensor.stride())
    return encoder.store(tensor.detach().cpu().numpy(), tensor.stride(), key)


def decode_tensor(node: Node, decoder: Decoder) -> torch.Tensor:
    """Return a tensor with memory of its own, aligned as torch aligns it."""
    tensor: torch.Tensor = decoder.stored(node, "tensor", torch.tensor)
    return tensor


def checked_range(start: int, stop: int, step: int) -> range:
    """Return a range that is not so long that what goes through it never ends."""
    found = range(start, stop, step)
    if abs(stop - start) > LONGEST_RANGE * abs(step):
        raise ValueError(f"{found} is too long")
    return found


def encode_scalar(value: np.generic, encoder: Encoder) -> Node:
    """Return the node of a numpy scalar."""
    if not is_simple(value.dtype) or value.dtype.kind == "O":
        raise encoder.refusal(f"is a number of {value.dtype}")
    plain = value.view(np.int64).item() if value.dtype.kind in TIMES else value.item()
    return {"dtype": value.dtype.str, "value": encoder.encode(plain)}


def decode_scalar(node: Node, decoder: Decoder) -> Any:
    """Return a numpy scalar."""
    dtype, value = simple_dtype(node["dtype"]), decoder.decode(node["value"])
    if dtype.kind in TIMES:
        return np.int64(value).view(dtype)
    return np.array(value, dtype=dtype)[()]


def encode_dtype(dtype: Any, encoder: Encoder) -> Node:
    """Return the node of a dtype of numpy or pandas."""
    if isinstance(dtype, np.dtype):
        node: Node = {"numpy": dtype.str}
        known = is_simple(dtype)
    elif isinstance(dtype, pd.CategoricalDtype):
        categories = None if dtype.categories is None else encoder.encode(dtype.categories)
        return {"categories": categories, "ordered": dtype.ordered}
    elif isinstance(dtype, pd.StringDtype):
        return {"storage": dtype.storage, "na_value": encoder.encode(dtype.na_value)}
    else:
        node = {"pandas": str(dtype)}
        known = (
            bool(NAMED_DTYPES.fullmatch(str(dtype)))
            and pd.api.types.pandas_dtype(str(dtype)) == dtype
        )
    if not known:
        raise encoder.refusal(f"is the dtype {dtype}")
    return node


def decode_dtype(node: Node, decoder: Decoder) -> Any:
    """Return a dtype of numpy or pandas."""
    if "numpy" in node:
        return simple_dtype(node["numpy"])
    if "ordered" in node:
        return pd.CategoricalDtype(decoder.decode(node["categories"]), ordered=node["ordered"])
    if "storage" in node:
        return string_dtype(node["storage"], decoder.decode(node["na_value"]))
    if not NAMED_DTYPES.fullmatch(node["pandas"]):
        raise ValueError(f"there is no dtype {node['pandas']!r}")
    return pd.api.types.pandas_dtype(node["pandas"])


def string_dtype(storage: Any, na_value: Any) -> Any:
    """Return the dtype of texts; without pyarrow they are stored as Python's."""
    try:
        return pd.StringDtype(storage, na_value=na_value)
    except ImportError:
        return pd.StringDtype("python", na_value=na_value)


def encode_index(index: Any, encoder: Encoder) -> Node:
    """Return the node of names or labels."""
    if isinstance(index, pd.MultiIndex):
        return {"rows": encoder.items(list(index)), "names": encoder.items(list(index.names))}
    node = {"label": encoder.encode(index.name)}
    if isinstance(index, pd.RangeIndex):
        return node | {"range": [index.start, index.stop, index.step]}
    return node | {
        "items": encoder.items(index.astype(object).tolist()),
        "dtype": encoder.encode(index.dtype),
    }


def decode_index(node: Node, decoder: Decoder) -> Any:
    """Return names or labels."""
    if "rows" in node:
        return pd.MultiIndex.from_tuples(
            decoder.decode(node["rows"]), names=decoder.decode(node["names"])
        )
    name = decoder.decode(node["label"])
    if "range" in node:
        return pd.RangeIndex(checked_range(*node["range"]), name=name)
    items = object_array(decoder.decode(node["items"]))
    index = pd.Index(items, dtype=object, tupleize_cols=False, name=name)
    return index.astype(decoder.decode(node["dtype"]))


def object_array(items: Sequence[Any]) -> NDArray[np.object_]:
    """Return items, which may be sequences themselves, as a one-dimensional array."""
    array = np.empty(len(items), dtype=object)
    for number, item in enumerate(items):
        array[number] = item
    return array


def encode_series(series: pd.Series[Any], encoder: Encoder) -> Node:
    """Return the node of a column of labels."""
    return {
        "items": encoder.items(series.astype(object).tolist()),
        "dtype": encoder.encode(series.dtype),
        "index": encoder.encode(series.index),
        "label": encoder.encode(series.name),
    }


def decode_series(node: Node, decoder: Decoder) -> pd.Series[Any]:
    """Return a column of labels."""
    series: pd.Series[Any] = pd.Series(
        object_array(decoder.decode(node["items"])),
        index=decoder.decode(node["index"]),
        dtype=decoder.decode(node["dtype"]),
        name=decoder.decode(node["label"]),
    )
    return series


def encode_timestamp(value: pd.Timestamp, encoder: Encoder) -> Node:
    """Return the node of a time."""
    node = {"value": value.value, "unit": value.unit, "zone": str(value.tz) if value.tz else None}
    if decode_timestamp(node) != value:
        raise encoder.refusal(f"is a time in the zone {value.tz!r}")
    return node


def decode_timestamp(node: Node, _: Decoder | None = None) -> pd.Timestamp:
    """Return a time."""
    moment = pd.Timestamp(node["value"], unit="ns").as_unit(node["unit"])
    return moment if node["zone"] is None else moment.tz_localize("UTC").tz_convert(node["zone"])


def encode_datetime(value: datetime.date, encoder: Encoder) -> Node:
    """Return the node of a date of the standard library, with or without a time."""
    if getattr(value, "tzinfo", None) is not None:
        raise encoder.refusal("is a time in a zone")
    return {"value": value.isoformat()}


def encode_interval(value: Any, encoder: Encoder) -> Node:
    """Return the node of an interval."""
    return {
        "left": encoder.encode(value.left),
        "right": encoder.encode(value.right),
        "closed": value.closed,
    }


KINDS: list[Kind] = [
    Kind("float", (float,), lambda v, _: {"value": repr(v)}, lambda n, _: float(n["value"])),
    Kind(
        "tuple",
        (tuple,),
        lambda v, e: {"items": e.items(v)},
        lambda n, d: tuple(d.decode(n["items"])),
    ),
    Kind("dict", (dict,), encode_dict, decode_dict),
    Kind(
        "range",
        (range,),
        lambda v, _: {"ends": [v.start, v.stop, v.step]},
        lambda n, _: checked_range(*n["ends"]),
    ),
    Kind("array", (np.ndarray,), encode_array, decode_array),
    Kind(
        "tensor",
        (torch.Tensor, torch.nn.Parameter),
        encode_tensor,
        decode_tensor,
    ),
    Kind("scalar", (np.generic,), encode_scalar, decode_scalar, derived=True),
    Kind("dtype", (np.dtype, ExtensionDtype), encode_dtype, decode_dtype, derived=True),
    Kind("index", (pd.Index,), encode_index, decode_index, derived=True),
    Kind("series", (pd.Series,), encode_series, decode_series),
    Kind(
        "device",
        (torch.device,),
        lambda v, _: {"value": str(v)},
        lambda n, _: torch.device(n["value"]),
    ),
    Kind(
        "bytes",
        (bytes,),
        lambda v, _: {"value": v.hex()},
        lambda n, _: bytes.fromhex(n["value"]),
    ),
    Kind(
        "decimal",
        (decimal.Decimal,),
        lambda v, _: {"value": str(v)},
        lambda n, _: decimal.Decimal(n["value"]),
    ),
    Kind("timestamp", (pd.Timestamp,), encode_timestamp, decode_timestamp),
    Kind(
        "timedelta",
        (pd.Timedelta,),
        lambda v, _: {"value": v.value, "unit": v.unit},
        lambda n, _: pd.Timedelta(n["value"], unit="ns").as_unit(n["unit"]),
    ),
    Kind(
        "period",
        (pd.Period,),
        lambda v, _: {"ordinal": v.ordinal, "frequency": v.freqstr},
        lambda n, _: pd.Period(ordinal=n["ordinal"], freq=n["frequency"]),
    ),
    Kind(
        "interval",
        (pd.Interval,),
        encode_interval,
        lambda n, d: pd.Interval(d.decode(n["left"]), d.decode(n["right"]), n["closed"]),
    ),
    Kind(
        "date",
        (datetime.date,),
        encode_datetime,
        lambda n, _: datetime.date.fromisoformat(n["value"]),
    ),
    Kind(
        "datetime",
        (datetime.datetime,),
        encode_datetime,
        lambda n, _: datetime.datetime.fromisoformat(n["value"]),
    ),
    Kind("na", (type(pd.NA),), lambda *_: {}, lambda *_: pd.NA),
    Kind("nat", (type(pd.NaT),), lambda *_: {}, lambda *_: pd.NaT),
    Kind("given", (), lambda *_: {}, lambda n, d: d.given[n["member"]]),
]
