"""What happens when memory is not enough: smaller pieces once, then an error that says so."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from sk_itdiffusion._first._runtime.warning import warn

__all__ = ["LESS", "is_out_of_memory", "release_memory", "retry_with_less_memory"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: Part of the pieces' size with which work is tried once more.
LESS = 8
#: What torch says when an allocation on the CPU or on Apple's devices fails.
_MESSAGES = ("can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that an allocation failed, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(message in text for message in _MESSAGES)


def release_memory() -> None:
    """Give back what is held for reuse, so that another attempt finds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def retry_with_less_memory(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return the function with another attempt, at an eighth of its ``budget``, if memory lacks.

    Parameters
    ----------
    function : callable
        Takes the keyword ``budget``, the evaluations in one forward pass; its results depend on
        it by rounding only.

    Returns
    -------
    callable
        The same function, which warns (UserWarning) when it has to try again, and raises a
        MemoryError if that fails too.
    """
    usual = inspect.signature(function).parameters["budget"].default

    @functools.wraps(function)
    def retried(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Outside of the handler, whose traceback would keep the tensors of the first attempt.
        release_memory()
        budget = int(kwargs.get("budget", usual))  # type: ignore[call-overload]
        smaller = max(1, budget // LESS)
        warn(
            f"There was too little memory for {budget} evaluations at a time; continuing with "
            f"{smaller}, which changes results only by rounding.",
        )
        try:
            return function(*args, **(kwargs | {"budget": smaller}))  # type: ignore[arg-type]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"There is too little memory even for {smaller} evaluations at a time ({reason}). "
                "Score or draw fewer rows at a time, close other programs, or use another device."
            ) from error

    return retried
