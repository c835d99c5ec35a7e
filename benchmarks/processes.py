"""Times and peak memory of calls in processes of their own, which nothing before has warmed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: What fits import when they first need it; some of it takes seconds.
LATE_IMPORTS = ("torch._dynamo", "zuko")


class MeasurementError(RuntimeError):
    """A call in a process of its own failed, was killed or took too long."""


def call_in_fresh_process(
    function: Callable[..., Any], *arguments: Any, most_seconds: float | None = None
) -> Any:
    """Return the result of a call in a new Python process.

    Parameters
    ----------
    function : callable
        Function of a module's top level.
    *arguments : object
        Its arguments; like its result they are pickled.
    most_seconds : float or None, default=None
        Seconds, the start of the process included, after which it is killed; None means never.

    Returns
    -------
    object
        What the function returns.

    Raises
    ------
    MeasurementError
        If the function raises an error, or the process is killed or takes too long.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(most_seconds):
            raise MeasurementError(f"took more than {most_seconds:g} s")
        succeeded, result = receiver.recv()
    except EOFError:
        process.join()
        raise MeasurementError(f"ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not succeeded:
        raise MeasurementError(result)
    return result


def _send_result(sender: Connection, function: Callable[..., Any], arguments: Any) -> None:
    """Send whether the function succeeded, and its result or its traceback."""
    try:
        message = (True, function(*arguments))
    except Exception:
        message = (False, traceback.format_exc())
    sender.send(message)
    sender.close()


def import_late_modules() -> None:
    """Import now what fits import when they first need it, so that no clock counts that."""
    for name in LATE_IMPORTS:
        if importlib.util.find_spec(name.split(".")[0]) is not None:
            importlib.import_module(name)


def peak_megabytes() -> float:
    """Return the largest memory that this process has had resident so far, in 10^6 bytes.

    On Linux the kernel's count of this program is read, since ``getrusage`` starts with what the
    parent process had when it started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


class AllocatorState(ctypes.Structure):
    """The C library's ``struct mallinfo2``."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def allocated_bytes() -> float:
    """Return the bytes that the C library's allocator has given out; NaN if it does not tell."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return math.nan
    library.mallinfo2.restype = AllocatorState
    state = library.mallinfo2()
    return float(state.uordblks + state.hblkhd)


@contextmanager
def use_threads(threads: int | None) -> Iterator[None]:
    """Limit the threads of torch and of linear algebra; None leaves them at their own choice."""
    # Here, so that a process for something small does not load them.
    import torch
    from threadpoolctl import threadpool_limits

    if threads is not None:
        torch.set_num_threads(threads)
    with threadpool_limits(limits=threads):
        yield
