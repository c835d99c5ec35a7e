"""Warnings that point at the line of the user's program that led to them, and are shown once.

Between that line and the place that finds something to warn of there are frames of this package, of
scikit-learn and of skorch, in a number that depends on the call; in a worker thread there is no way
back at all, so that workers are told the line of their caller.  Python shows a warning once for
each line and text, unless filters have been touched in the meantime, as scikit-learn does around
each fold of a search; here it stays with once.
"""

from __future__ import annotations

import sys
import threading
import warnings
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

__all__ = ["UserLine", "called_from", "current_line", "warn"]

#: Packages whose frames are not the user's.
INNER_PACKAGES = frozenset(
    {
        "sk_itdiffusion",
        "sklearn",
        "skorch",
        "torch",
        "joblib",
        "contextlib",
        "threading",
        "concurrent",
        "multiprocessing",
    }
)
_this_thread = threading.local()


@dataclass(frozen=True)
class UserLine:
    """A line of a program that warnings point at.

    Attributes
    ----------
    filename : str
        File of the line.
    number : int
        Number of the line.
    module : str
        Name of the module.
    registry : dict
        The module's memory of the warnings that have been shown.
    """

    filename: str
    number: int
    module: str
    registry: dict[Any, Any]

    @classmethod
    def of(cls, frame: FrameType) -> Self:
        """Return the line that is being executed in a frame."""
        names = frame.f_globals
        registry = names.setdefault("__warningregistry__", {})
        module = str(names.get("__name__", "<unknown>"))
        return cls(frame.f_code.co_filename, frame.f_lineno, module, registry)


def current_line() -> UserLine:
    """Return the user's line that this call comes from, in worker threads the one of the caller.

    If there is none, as in worker processes, it is the outermost line.
    """
    known: UserLine | None = getattr(_this_thread, "line", None)
    if known is not None:
        return known
    frame = sys._getframe(1)
    while _is_inner(frame) and frame.f_back is not None:
        frame = frame.f_back
    return UserLine.of(frame)


def called_from(line: UserLine) -> None:
    """Let warnings of this thread, a worker, point at a line."""
    _this_thread.line = line


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning for the user's line, once for each line and text.

    Parameters
    ----------
    message : str
        The text; without figures that would differ between the folds of a search.
    category : type, default=UserWarning
        Class of the warning.
    """
    line = current_line()
    key = (message, category, line.number)
    shown = line.registry.get(__name__, frozenset())
    if key in shown and _action(message, category, line) == "default":
        return
    warnings.warn_explicit(
        message, category, line.filename, line.number, line.module, line.registry
    )
    # Python empties the registry whenever filters have been touched.
    line.registry[__name__] = shown | {key}


def _is_inner(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in INNER_PACKAGES


def _action(message: str, category: type[Warning], line: UserLine) -> str:
    """Return what the filters say of a warning, as `warnings.warn_explicit` finds it."""
    for action, text, kind, module, number in warnings.filters:
        if (
            _fits(text, message)
            and issubclass(category, kind)
            and _fits(module, line.module)
            and number in (0, line.number)
        ):
            return str(action)
    return str(getattr(warnings, "defaultaction", "default"))


def _fits(pattern: Any, text: str) -> bool:
    """Return whether a filter's pattern fits; those that Python begins with are plain strings."""
    if pattern is None or isinstance(pattern, str):
        return pattern in (None, text)
    return pattern.match(text) is not None
