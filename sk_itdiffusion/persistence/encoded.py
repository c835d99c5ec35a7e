"""Values and objects as JSON and arrays, and back: only kinds that are listed here or registered.

JSON holds null, booleans, whole numbers, finite numbers, texts and lists as they are.  Any other
value is a dict with its kind as ``"$"``; numbers of arrays and tensors are apart, in a dict from
names to arrays.  Objects of registered classes are stored once, however often they are referred to.
Nothing that is read names code: a kind or a class is looked up in a dict that this library fills,
or among the classes that whoever loads a file has passed.
"""

from __future__ import annotations

import contextlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Codec", "Decoder", "Encoder", "Kind", "Registry"]

#: What `json` takes and returns.
Json = Any
Node = dict[str, Json]

KIND = "$"
#: Parts of paths that are used in names of arrays.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
HOW_TO_BE_SAVED = (
    "A class of your own can be saved if it defines config, which returns what an object is made "
    "from, and from_config, which makes an object from it; one that is no torch module also if it "
    "is a dataclass or has get_params."
)


class Codec(ABC):
    """How objects of one class become fields, and back.

    Attributes
    ----------
    name : str
        Name of the class in files.
    cls : type
        The class.
    """

    def __init__(self, cls: type, name: str | None = None) -> None:
        # A class that is renamed keeps the name that files have for it.
        self.name = cls.__name__ if name is None else name
        self.cls = cls

    def accepts(self, value: object) -> bool:
        """Return whether the codec is that of a value."""
        return type(value) is self.cls

    @abstractmethod
    def encode(self, value: Any, encoder: Encoder) -> Node:
        """Return the fields of an object."""

    @abstractmethod
    def decode(self, fields: Node, decoder: Decoder) -> Any:
        """Return the object with the fields."""


@dataclass(frozen=True)
class Kind:
    """How values of some types become JSON, and back.

    Attributes
    ----------
    name : str
        Name in files.
    types : tuple of type
        The types.
    encode : callable
        Returns the content of a value's node.
    decode : callable
        Returns the value of a node.
    derived : bool
        Whether instances of derived types are values of this kind.
    """

    name: str
    types: tuple[type, ...]
    encode: Callable[[Any, Encoder], Node]
    decode: Callable[[Node, Decoder], Any]
    derived: bool = False

    def accepts(self, value: object) -> bool:
        """Return whether a value is of this kind."""
        return isinstance(value, self.types) if self.derived else type(value) in self.types


class Registry:
    """What may be stored.

    Parameters
    ----------
    kinds : sequence of Kind
        The kinds of values.
    codecs : sequence of Codec
        One for each class of the library.
    own_codec : callable, default=lambda cls: None
        Returns the codec of a class of the user's own, or None if its objects cannot be stored.
    classes : sequence of type, default=()
        Classes of the user's own whose objects files may hold.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        codecs: Sequence[Codec],
        own_codec: Callable[[type], Codec | None] = lambda cls: None,
        classes: Sequence[type] = (),
    ) -> None:
        self.kinds = {kind.name: kind for kind in kinds}
        self.codecs = {codec.name: codec for codec in codecs}
        self.own_codec = own_codec
        self.own_codecs = {cls.__name__: self._checked_codec(cls) for cls in classes}
        if len(self.own_codecs) < len(set(classes)):
            raise ValueError("classes must have different names.")

    def _checked_codec(self, cls: type) -> Codec:
        codec = self.own_codec(cls) if isinstance(cls, type) else None
        if codec is None:
            raise TypeError(
                "classes must be classes that have config and from_config, are dataclasses, or "
                f"have get_params, got {cls!r}."
            )
        return codec

    def with_classes(self, classes: Sequence[type]) -> Registry:
        """Return what may be stored, classes of the user's own among it."""
        return Registry(
            list(self.kinds.values()), list(self.codecs.values()), self.own_codec, classes
        )

    def stores(self, value: object) -> bool:
        """Return whether an object is stored by itself, whatever holds it."""
        return self.find(value) is not None or self.own_codec(type(value)) is not None

    def find(self, value: object) -> Codec | None:
        """Return the codec of an object; None if its class is none of the library's."""
        exact = self.codecs.get(type(value).__name__)
        if exact is not None and exact.accepts(value):
            return exact
        return next((codec for codec in self.codecs.values() if codec.accepts(value)), None)


class Encoder:
    """Turns values into JSON and arrays.

    Parameters
    ----------
    registry : Registry
        What may be stored.

    Attributes
    ----------
    arrays : dict of str to ndarray
        The numbers.
    objects : list of dict
        Class and fields of each object.
    modules : dict of str to str
        For each module of the user's own that is left out: under which name it has to be given
        again, and its class.
    device : str
        Where the models are.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.arrays: dict[str, NDArray[Any]] = {}
        self.objects: list[Node] = []
        self.modules: dict[str, str] = {}
        self.device = "cpu"
        self._slot = ""
        self._path: list[str] = []
        self._numbers: dict[int, int] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._own: dict[str, type] = {}
        # What is encoded is kept, so that no address is used twice.
        self._kept: list[object] = []

    @contextlib.contextmanager
    def at(self, part: object) -> Iterator[None]:
        """Name a part of what is being encoded, for messages and names of arrays."""
        self._path.append(str(part))
        try:
            yield
        finally:
            self._path.pop()

    @contextlib.contextmanager
    def member(self, name: str) -> Iterator[None]:
        """Say whose module of the user's own it is, if there is one."""
        before, self._slot = self._slot, name
        try:
            yield
        finally:
            self._slot = before

    def encode(self, value: Any) -> Json:
        """Return a value as JSON."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is list:
            return self.items(value)
        for kind in self.registry.kinds.values():
            if kind.accepts(value):
                return {KIND: kind.name, **kind.encode(value, self)}
        return {KIND: "object", "number": self._object(value)}

    def items(self, values: Any) -> list[Json]:
        """Return the items of a sequence as JSON."""
        found = []
        for number, value in enumerate(values):
            with self.at(number):
                found.append(self.encode(value))
        return found

    def fields(self, values: Mapping[str, Any]) -> Node:
        """Return named values as JSON."""
        found = {}
        for name, value in values.items():
            with self.at(name):
                found[name] = self.encode(value)
        return found

    def refusal(self, what: str) -> TypeError:
        """Return the error that what is being encoded cannot be stored."""
        return TypeError(f"{'.'.join(self._path)} {what}, which cannot be saved.")

    def given(self, module: torch.nn.Module) -> Node:
        """Return a mark for a module that has to be given again."""
        self.modules.setdefault(self._slot, type(module).__name__)
        return {KIND: "given", "member": self._slot}

    def store(self, array: NDArray[Any], strides: Sequence[int], key: tuple[Any, ...]) -> Node:
        """Keep an array of numbers; equal keys are the same array.

        The order of its axes in memory is kept too: products of matrices may depend on it in the
        last bit.
        """
        order = sorted(range(array.ndim), key=lambda axis: -abs(strides[axis]))
        if key not in self._names:
            name = self._free_name()
            self.arrays[name] = np.ascontiguousarray(array.transpose(order)).reshape(
                [array.shape[axis] for axis in order]
            )
            self._names[key] = name
        plain = order == list(range(array.ndim))
        return {"name": self._names[key]} | ({} if plain else {"order": order})

    def keep(self, value: object) -> None:
        """Keep a value alive as long as the encoder."""
        self._kept.append(value)

    def _free_name(self) -> str:
        parts = [part if PLAIN_NAME.fullmatch(part) else "_" for part in self._path]
        name = ".".join(parts)
        return name if name not in self.arrays else f"{name}.{len(self.arrays)}"

    def _object(self, value: object) -> int:
        if id(value) not in self._numbers:
            codec = self.registry.find(value)
            mark = {} if codec is not None else {"own": True}
            codec = self._own_codec(value) if codec is None else codec
            self._numbers[id(value)] = number = len(self.objects)
            self.keep(value)
            self.objects.append({})
            fields = codec.encode(value, self)
            self.objects[number] = {"class": codec.name, "fields": fields} | mark
        return self._numbers[id(value)]

    def _own_codec(self, value: object) -> Codec:
        """Return the codec of an object of the user's own, or raise an error if there is none."""
        cls = type(value)
        codec = self.registry.own_codec(cls)
        if codec is None:
            refusal = self.refusal(f"is of type {cls.__module__}.{cls.__qualname__}")
            raise TypeError(f"{refusal} {HOW_TO_BE_SAVED}")
        if self._own.setdefault(codec.name, cls) is not cls:
            raise self.refusal(f"is of another class {codec.name} than a second object")
        return codec


class Decoder:
    """Turns JSON and arrays into values; the counterpart of `Encoder`.

    Parameters
    ----------
    registry : Registry
        What may be stored.
    arrays : dict of str to ndarray
        The numbers.
    objects : list of dict
        Class and fields of each object.
    given : dict of str to Module
        The user's own modules by the members' names.
    device : torch.device
        Where the models shall be.
    """

    def __init__(
        self,
        registry: Registry,
        arrays: Mapping[str, NDArray[Any]],
        objects: Sequence[Node],
        given: Mapping[str, torch.nn.Module],
        device: torch.device,
    ) -> None:
        self.registry = registry
        self.arrays = arrays
        self.objects = objects
        self.given = given
        self.device = device
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
        if kind not in self.registry.kinds:
            raise ValueError(f"there is no kind {kind!r} of values")
        return self.registry.kinds[kind].decode(node, self)

    def fields(self, nodes: Mapping[str, Json]) -> dict[str, Any]:
        """Return named values."""
        return {name: self.decode(node) for name, node in nodes.items()}

    def stored(self, node: Node, kind: str, make: Callable[[NDArray[Any]], Any], *how: str) -> Any:
        """Return what is made of an array and the order of its axes, once for equal nodes.

        Whatever the order, what is made of an array is made once, so that a small file does not
        fill the memory with copies.
        """
        name, order = node["name"], node.get("order")
        made = self._once((kind, name, *how), lambda: make(self.arrays[name]))
        if order is None:
            return made

        def turned() -> Any:
            inverse = [order.index(axis) for axis in range(len(order))]
            is_array = isinstance(made, np.ndarray)
            return made.transpose(inverse) if is_array else made.permute(inverse)

        return self._once((kind, name, *how, tuple(order)), turned)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def n_numbers(self) -> int:
        """How many numbers there are in all arrays."""
        return sum(array.size for array in self.arrays.values())

    def _object(self, number: int) -> Any:
        if number in self._made:
            return self._made[number]
        if number in self._begun:
            raise ValueError(f"object {number} is a part of itself")
        self._begun.add(number)
        entry = self.objects[number]
        codec = self._codec(entry["class"], entry.get("own", False))
        self._made[number] = codec.decode(entry["fields"], self)
        return self._made[number]

    def _codec(self, name: str, is_own: bool) -> Codec:
        """Return the codec of a class by its name; those of the user's own are names apart."""
        codec = (self.registry.own_codecs if is_own else self.registry.codecs).get(name)
        if codec is not None:
            return codec
        if not is_own:
            raise ValueError(f"there is no class {name!r}")
        own = [each["class"] for each in self.objects if each.get("own", False)]
        missing = [each for each in dict.fromkeys(own) if each not in self.registry.own_codecs]
        raise ValueError(
            "it holds objects of classes that are none of the library's own; pass those that are "
            f"missing: load(..., classes=[{', '.join(map(str, missing))}])"
        )
