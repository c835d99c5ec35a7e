"""Values and objects as JSON and arrays, and back: only kinds and classes that are known.

JSON holds null, booleans, integers, finite numbers, strings and lists as they are.  Any other
value is a dict with its kind as ``"$"`` (see `sk_itdiffusion.persistence.kinds`); the numbers of
arrays and tensors are apart, in a dict from names to arrays.  Objects of declared classes are
stored once, however often they are referred to.  Nothing that is read names code: a kind or a class
is looked up among those that the library has declared, or that whoever loads a file has passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sk_itdiffusion._first.persistence.kinds import KINDS, LISTED, TIMES, is_simple, simple_dtype
from sk_itdiffusion._first.persistence.objects import Node, decode_object, encode_object
from sk_itdiffusion._first.persistence.registry import (
    DECLARED,
    Declaration,
    declaration_of,
    declared_by_user,
    user_classes,
)

__all__ = ["Decoder", "Encoder"]

#: What `json` takes and returns.
Json = Any

KIND = "$"
#: Parts of paths that are used in names of arrays.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
HOW_TO_BE_SAVED = (
    "A custom class can be saved if it defines config, which returns the arguments of an object, "
    "and from_config, which creates an object from them; classes other than torch modules also if "
    "they are dataclasses or have get_params."
)


class Encoder:
    """Turns values into JSON and arrays.

    After that it has the numbers (``arrays``), what each object is (``objects``), where the models
    are (``device``), and by the names of members the classes of modules defined by the user that
    are left out (``modules``).
    """

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.objects: list[Node] = []
        self.modules: dict[str, str] = {}
        self.device = "cpu"
        self._member = ""
        self._path: list[str] = []
        self._numbers: dict[int, int] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._classes: dict[tuple[str, bool], type] = {}
        # What is encoded is kept, so that no address is used twice.
        self._kept: list[object] = []

    def at(self, part: object, value: Any, encode: Callable[[Any], Json] | None = None) -> Json:
        """Return a part of what is being encoded as JSON; messages and arrays have its name."""
        self._path.append(str(part))
        found = (encode or self.encode)(value)
        self._path.pop()
        return found

    def encode(self, value: Any) -> Json:
        """Return a value as JSON."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is list:
            return self.items(value)
        if type(value) is dict:
            items = [[self.encode(key), self.at(key, entry)] for key, entry in value.items()]
            return {KIND: "dict", "items": items}
        if type(value) is np.ndarray and value.dtype.kind not in LISTED:
            return self._array(value)
        if type(value) in (torch.Tensor, torch.nn.Parameter):
            return self._tensor(value)
        kind = next((each for each in KINDS if each.accepts(value)), None)
        if kind is None:
            return {KIND: "object", "number": self._object(value)}
        parts = kind.parts(value)
        if parts is None:
            raise self.refusal(value)
        return {KIND: kind.name, "parts": self.items(parts)}

    def items(self, values: Sequence[Any]) -> list[Json]:
        """Return the items of a sequence as JSON."""
        return [self.at(number, value) for number, value in enumerate(values)]

    def fields(self, values: Mapping[str, Any]) -> Node:
        """Return named values as JSON."""
        return {name: self.at(name, value) for name, value in values.items()}

    def members(self, estimators: Any) -> list[Json]:
        """Return named estimators as pairs; their modules are given again by these names."""
        pairs = estimators.items() if isinstance(estimators, Mapping) else estimators
        found = []
        for name, estimator in pairs:
            before, self._member = self._member, name
            found.append(self.at(name, (name, estimator)))
            self._member = before
        return found

    def given(self, module: torch.nn.Module) -> Node:
        """Return a mark for a module that has to be given again."""
        self.modules.setdefault(self._member, type(module).__name__)
        return {KIND: "given", "member": self._member}

    def refusal(self, value: object, why: str = "") -> TypeError:
        """Return the error that what is being encoded cannot be stored."""
        cls, dtype = type(value), getattr(value, "dtype", None)
        what = f"is of type {cls.__module__}.{cls.__qualname__}"
        what += "" if dtype is None else f" and dtype {dtype}"
        refused = f"{'.'.join(self._path)} {why or what}, which cannot be saved."
        return TypeError(refused if why or dtype is not None else f"{refused} {HOW_TO_BE_SAVED}")

    def _array(self, array: NDArray[Any]) -> Node:
        """Return the node of an array of numbers or times."""
        dtype = array.dtype
        if not is_simple(dtype):
            raise self.refusal(array)
        native = array.astype(dtype.newbyteorder("="), copy=False)
        numbers = native.view(np.int64) if dtype.kind in TIMES else native
        key = (array.ctypes.data, dtype.str, array.shape, array.strides)
        self._kept.append(array)
        return {KIND: "array", "dtype": dtype.str, **self._store(numbers, native.strides, key)}

    def _tensor(self, tensor: torch.Tensor) -> Node:
        """Return the node of a tensor."""
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.dtype == torch.bfloat16:
            raise self.refusal(tensor)
        place = (str(tensor.device), tensor.data_ptr())
        key = (*place, tensor.dtype, tuple(tensor.shape), tensor.stride())
        self._kept.append(tensor)
        numbers = tensor.detach().cpu().numpy()
        return {KIND: "tensor", **self._store(numbers, tensor.stride(), key)}

    def _store(self, array: NDArray[Any], strides: Sequence[int], key: tuple[Any, ...]) -> Node:
        """Keep an array of numbers; equal keys are the same array.

        The order of its axes in memory is kept too: products of matrices may depend on it in the
        last bit.
        """
        order = sorted(range(array.ndim), key=lambda axis: -abs(strides[axis]))
        if key not in self._names:
            parts = [part if PLAIN_NAME.fullmatch(part) else "_" for part in self._path]
            name = ".".join(parts)
            self._names[key] = name if name not in self.arrays else f"{name}.{len(self.arrays)}"
            self.arrays[self._names[key]] = np.ascontiguousarray(array.transpose(order)).reshape(
                [array.shape[axis] for axis in order]
            )
        plain = order == list(range(array.ndim))
        return {"name": self._names[key]} | ({} if plain else {"order": order})

    def _object(self, value: object) -> int:
        """Return the number of an object, which is encoded at the first time."""
        if id(value) not in self._numbers:
            cls = type(value)
            declaration = declaration_of(cls) or declared_by_user(cls)
            if declaration is None:
                raise self.refusal(value)
            if self._classes.setdefault((declaration.name, declaration.is_own), cls) is not cls:
                why = f"is of another class {declaration.name} than a second object"
                raise self.refusal(value, why)
            self._numbers[id(value)] = number = len(self.objects)
            self._kept.append(value)
            self.objects.append({})
            self.objects[number] = encode_object(value, declaration, self)
        return self._numbers[id(value)]


class Decoder:
    """Turns JSON and arrays into values; the counterpart of `Encoder`.

    It takes what the encoder has, the user's own modules by the names of members, where the models
    shall be, and the classes defined by the user whose objects there may be.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        objects: Sequence[Node],
        given: Mapping[str, torch.nn.Module],
        device: torch.device,
        classes: Sequence[type] = (),
    ) -> None:
        self.arrays = arrays
        self.objects = objects
        self.given = given
        self.device = device
        self._kinds = {kind.name: kind for kind in KINDS}
        self._own = user_classes(classes)
        self._made: dict[Any, Any] = {}
        self._begun: set[int] = set()

    def decode(self, node: Json) -> Any:
        """Return the value of JSON."""
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node[KIND]
        if kind == "object":
            return self._object(node["number"])
        if kind == "dict":
            return {self.decode(key): self.decode(entry) for key, entry in node["items"]}
        if kind == "array":
            return self._array(node)
        if kind == "tensor":
            return self._stored(node, "", torch.tensor)
        if kind == "given":
            return self.given[node["member"]]
        if kind not in self._kinds:
            raise ValueError(f"there is no kind {kind!r} of values")
        return self._kinds[kind].make(*self.decode(node["parts"]))

    def fields(self, nodes: Mapping[str, Json]) -> dict[str, Any]:
        """Return named values."""
        return {name: self.decode(node) for name, node in nodes.items()}

    def _array(self, node: Node) -> Any:
        """Return an array of numbers or times."""
        dtype = simple_dtype(node["dtype"])
        native = dtype.newbyteorder("=")

        def as_saved(numbers: NDArray[Any]) -> NDArray[Any]:
            if numbers.dtype != (np.int64 if dtype.kind in TIMES else native):
                raise ValueError(f"the array {node['name']!r} has not the dtype {dtype}")
            return np.array(numbers.view(native), dtype=dtype)

        return self._stored(node, dtype.str, as_saved)

    def _stored(self, node: Node, how: str, make: Callable[[NDArray[Any]], Any]) -> Any:
        """Return what is built from an array and the order of its axes, once for equal nodes.

        Whatever the order, what is built from an array is made once, so that a small file does not
        fill the memory with copies.
        """
        name, order = node["name"], node.get("order")
        key = (how, name)
        if key not in self._made:
            self._made[key] = make(self.arrays[name])
        made = self._made[key]
        if order is None:
            return made
        turned = (*key, tuple(order))
        if turned not in self._made:
            turn = made.transpose if isinstance(made, np.ndarray) else made.permute
            self._made[turned] = turn([order.index(axis) for axis in range(len(order))])
        return self._made[turned]

    def _object(self, number: int) -> Any:
        """Return the object of a number, which is made at the first time."""
        if number not in self._made:
            if number in self._begun:
                raise ValueError(f"object {number} is a part of itself")
            self._begun.add(number)
            entry = self.objects[number]
            self._made[number] = decode_object(entry, self.declaration(entry), self)
        return self._made[number]

    def declaration(self, entry: Node) -> Declaration:
        """Return how an object is stored; classes defined by the user are names apart."""
        name, is_own = entry["class"], entry.get("own", False)
        known = self._own if is_own else DECLARED
        if name in known:
            return known[name]
        if not is_own:
            raise ValueError(f"there is no class {name!r}")
        own = dict.fromkeys(each["class"] for each in self.objects if each.get("own", False))
        missing = ", ".join(str(each) for each in own if each not in self._own)
        raise ValueError(
            "it contains objects of custom classes; pass the missing ones: load(..., "
            f"classes=[{missing}])"
        )
