"""Which classes may be in files: those declared where they are defined, and the user's own.

A class whose objects are stored is decorated with `stored`, which takes nothing from the class but
notes how its objects become a configuration and tensors.  Importing the package fills the registry;
`load` looks names up there and among the classes that it is passed, nowhere else.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

__all__ = [
    "DECLARED",
    "Declaration",
    "declaration_of",
    "declared_by_user",
    "stored",
    "user_classes",
]

Class = TypeVar("Class", bound=type)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """How objects of a class are stored.

    An object is what it is made from (its configuration), its tensors if it is a module, and the
    attributes that a fit has given it.
    """

    cls: type
    #: Its name in files, which a class keeps when it is renamed.
    name: str
    #: Attributes to store besides the configuration, those of them that there are.
    attributes: tuple[str, ...] = ()
    #: Attributes that are dicts of arguments, and are stored like these.
    arguments: tuple[str, ...] = ()
    #: Arguments that are not stored, and are None when the object is made.
    left_out: tuple[str, ...] = ()
    #: Arguments that are modules defined by the user, to be given again.
    given: tuple[str, ...] = ()
    #: Arguments and attributes that are pairs of a name and an estimator.
    members: tuple[str, ...] = ()
    #: Whether ``device`` is among the arguments, and becomes the one asked for.
    is_placed: bool = False
    #: Whether objects of derived classes are stored as objects of this one.
    has_derived: bool = False
    #: What returns an object's configuration, and what makes an object, if the class does not.
    config: Callable[[Any], Mapping[str, Any]] | None = None
    make: Callable[..., Any] | None = None
    #: Whether it is a class defined by the user.
    is_own: bool = False

    def config_of(self, value: Any) -> dict[str, Any]:
        """Return what an object is made from.

        It is what the method ``config`` tells, else the parameters of ``get_params``, else the
        constructor's arguments, which are attributes of the same names.
        """
        if self.config is not None:
            return dict(self.config(value))
        # Of the class: frozen estimators have the attributes of others.
        if hasattr(self.cls, "config"):
            return dict(value.config())
        if hasattr(self.cls, "get_params"):
            return dict(value.get_params(deep=False))
        if dataclasses.is_dataclass(self.cls):
            names = [field.name for field in dataclasses.fields(self.cls) if field.init]
        else:
            names = list(inspect.signature(self.cls).parameters)
        return {name: getattr(value, name) for name in names}

    @property
    def maker(self) -> Callable[..., Any]:
        """What makes an object from its configuration."""
        make: Callable[..., Any] = getattr(self.cls, "from_config", self.cls)
        return make if self.make is None else self.make


#: The declarations of the library's classes, by their names in files.
DECLARED: dict[str, Declaration] = {}


def stored(*, name: str | None = None, **how: Any) -> Callable[[Class], Class]:
    """Return a decorator which declares that objects of a class may be in files.

    ``name`` is that of the class in files, its own by default, and ``how`` are other fields of
    `Declaration`.
    """

    def declare(cls: Class) -> Class:
        found = Declaration(cls=cls, name=cls.__name__ if name is None else name, **how)
        before = DECLARED.setdefault(found.name, found).cls
        if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"Two classes are stored by the name {found.name}.")
        DECLARED[found.name] = found
        return cls

    return declare


def declaration_of(cls: type) -> Declaration | None:
    """Return the declaration of a class of the library's; None for any other."""
    for each in DECLARED.values():
        if each.cls is cls or (each.has_derived and issubclass(cls, each.cls)):
            return each
    return None


# -- classes defined by the user -----------------------------------------------------------------


def declared_by_user(cls: type) -> Declaration | None:
    """Return the declaration of a class defined by the user; None if objects cannot be stored.

    They have ``config`` and ``from_config``; or they are no modules, but dataclasses, or have
    ``get_params``.
    """
    has_config = all(callable(getattr(cls, name, None)) for name in ("config", "from_config"))
    tells = dataclasses.is_dataclass(cls) or callable(getattr(cls, "get_params", None))
    if has_config or (tells and not issubclass(cls, nn.Module)):
        return Declaration(cls=cls, name=cls.__name__, is_own=True)
    return None


def user_classes(classes: Sequence[type]) -> dict[str, Declaration]:
    """Return the declarations of classes defined by the user by their names."""
    found = {}
    for cls in classes:
        declaration = declared_by_user(cls) if isinstance(cls, type) else None
        if declaration is None:
            raise TypeError(
                "classes must be classes that have config and from_config, are dataclasses, or "
                f"have get_params, got {cls!r}."
            )
        found[cls.__name__] = declaration
    if len(found) < len(set(classes)):
        raise ValueError("classes must have different names.")
    return found
