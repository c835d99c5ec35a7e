"""Modules that know what they are made with, so that files can hold them."""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import Any, ClassVar, Self

from torch import nn

__all__ = ["ConfiguredModule", "check_size"]


class ConfiguredModule(nn.Module):
    """Module that keeps its constructor's arguments as attributes of the same names."""

    #: Arguments that only say how the numbers in the module begin.
    _only_initial: ClassVar[tuple[str, ...]] = ("generator",)

    def config(self) -> dict[str, Any]:
        """Return what a module of the same shape is made from; submodules are among it."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if name not in self._only_initial}

    @classmethod
    def from_config(cls, **config: Any) -> Self:
        """Return a module with any numbers in its tensors, made from what `config` returns."""
        return cls(**config)

    @classmethod
    def least_numbers(cls, **config: Any) -> int:
        """Return how many numbers the tensors of such a module have at least.

        A file that tells of more numbers than it has is refused before anything is built.
        """
        return 0


def check_size(size: Any, least: int = 0) -> int:
    """Return a size that a file tells, or raise an error if it is none."""
    if not isinstance(size, Integral) or isinstance(size, bool) or size < least:
        raise ValueError(f"{size!r} is no size")
    return int(size)
