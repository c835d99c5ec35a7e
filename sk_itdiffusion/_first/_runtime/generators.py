"""Generators of random numbers that are copied and pickled without losing memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["CopyableGenerator", "seeded"]

_SEEDING = threading.RLock()


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


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's own random numbers come from a seed, in one thread at a time.

    Afterwards they go on as if nothing had been drawn.
    """
    with _SEEDING:
        before = torch.random.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.random.set_rng_state(before)
