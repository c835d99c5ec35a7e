"""Generators of random numbers that are copied and pickled without losing memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["CopyableGenerator"]


class CopyableGenerator(torch.Generator):
    """PyTorch's generator, whose copies and pickles hold its state as a tensor.

    PyTorch's own way of copying one (up to version 2.13 at least) never gives the copy's state, of
    some kilobytes, back; networks with dropout are copied and pickled with their generator.
    """

    def __reduce__(  # type: ignore[override]
        self,
    ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _generator_in_state, (self.device.type, self.get_state())


def _generator_in_state(device: str, state: Tensor) -> CopyableGenerator:
    generator = CopyableGenerator(device)
    generator.set_state(state)
    return generator
