"""Threads that do not get in each other's way.

The networks here are small: their matrices take tens of microseconds, and OpenMP threads that
share them spend more time waiting for each other than computing (measured on two cores: no gain
when the machine is idle, four times slower when it is not).  So work is divided into coarse
pieces, each done by a worker thread whose own number of OpenMP threads is one; the process's is
not touched, and the numbers do not depend on how many workers there are.  After a call of
``torch.set_num_threads`` the MKL library keeps to that number in the workers too.

The one setting of the process that changes, while a mixture is fitted, is the number of BLAS
threads of numpy and scipy, as in scikit-learn's own estimators; the last user restores it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

from sk_itdiffusion._first._runtime.progress import Progress
from sk_itdiffusion._first._runtime.warning import UserLine, called_from, current_line

__all__ = ["map_in_workers", "run_all_interruptibly", "run_interruptibly", "single_blas_thread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


_this_thread = threading.local()


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


class _Callers:
    """Counts the threads, other than workers, that have work done here: they share the cores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.number = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Count the calling thread, unless it is a worker, whose caller is counted."""
        counted = not hasattr(_this_thread, "threads")
        with self._lock:
            self.number += counted
        try:
            yield
        finally:
            with self._lock:
                self.number -= counted


_callers = _Callers()


def _threads() -> int:
    """Return how many threads the calling thread could use if no one else called."""
    return int(getattr(_this_thread, "threads", torch.get_num_threads()))


def _available() -> int:
    """Return how many workers the calling thread may start."""
    return max(1, _threads() // max(1, _callers.number))


def _begin_worker(threads: int, n_openmp: int | None, line: UserLine) -> None:
    """Give the calling thread a number of OpenMP threads, and a line for its warnings.

    OpenMP keeps the number for each thread.
    """
    called_from(line)
    torch.get_num_threads()  # sets the thread's number to the default, once, if not done here
    if n_openmp is not None:
        _controller().limit(limits=n_openmp, user_api="openmp")
    _this_thread.threads = threads


def worker_pool(n_workers: int, limited: bool = True) -> ThreadPoolExecutor:
    """Return an executor whose workers use one OpenMP thread each.

    Those that are not limited use the default number of threads, or their share of it if other
    threads call too.
    """
    share = max(1, _threads() // n_workers)
    n_openmp = 1 if limited else (_available() if _callers.number > 1 else None)
    arguments = (share, n_openmp, current_line())
    return ThreadPoolExecutor(n_workers, initializer=_begin_worker, initargs=arguments)


class _SingleBlasThread:
    """Counts who needs BLAS in one thread: the first sets it, the last restores it.

    BLAS keeps this number for the whole process; with plain save and restore, two overlapping
    users would leave it changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limiter: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._limiter = _controller().limit(limits=1, user_api="blas")
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._limiter is not None:
                    self._limiter.restore_original_limits()
                    self._limiter = None


single_blas_thread = _SingleBlasThread()


def map_in_workers(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    device: torch.device | str,
    progress: Progress | None = None,
) -> list[Result]:
    """Return the function's results for items, computed by workers on a CPU.

    Parameters
    ----------
    function : callable
        Called with each item; must not depend on the order of the calls.
    items : iterable
        Arguments.
    device : torch.device or str
        On other devices than the CPU the items are done one after the other.
    progress : Progress or None, default=None
        Shows how many items are done.

    Returns
    -------
    list
        Results, in the order of the items.
    """
    todo = list(items)
    if torch.device(device).type != "cpu":
        return _collected((function(item) for item in todo), len(todo), progress)
    with _callers(), worker_pool(max(1, min(_available(), len(todo)))) as pool:
        futures = [pool.submit(function, item) for item in todo]
        try:
            return _collected((future.result() for future in futures), len(todo), progress)
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _collected(results: Iterable[Result], n: int, progress: Progress | None) -> list[Result]:
    """Return results as they come, and show how many there are."""
    collected: list[Result] = []
    for result in results:
        collected.append(result)
        if progress is not None:
            progress.show(len(collected) / n)
    return collected


def run_interruptibly(
    function: Callable[[threading.Event], Result], limited: bool = True
) -> Result:
    """Return the function's result, computed by a worker that an interrupt stops.

    Parameters
    ----------
    function : callable
        Called with an event; must end soon after the event is set.
    limited : bool, default=True
        Whether the worker has one OpenMP thread, or the default number.

    Returns
    -------
    object
        What the function returns.

    Raises
    ------
    KeyboardInterrupt
        If the user interrupts; the worker has ended then.
    """
    return run_all_interruptibly([function], limited)[0]


def run_all_interruptibly(
    functions: Sequence[Callable[[threading.Event], Result]], limited: bool = True
) -> list[Result]:
    """Return the results of functions that run at the same time; see `run_interruptibly`.

    No more of them run at once than there are threads.  If one of them fails the others are
    stopped, and those that wait are not begun.
    """
    stop = threading.Event()
    with _callers(), worker_pool(min(len(functions), _available()), limited) as pool:
        futures = [pool.submit(function, stop) for function in functions]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
