"""What a long call shows of itself: one bar, on a terminal or in a notebook.

A call goes from 0 to 1.  Calls that are parts of another one, such as the fits of the members of an
ensemble, move the bar of the outermost one; a part that is called with ``verbose`` inside of a
silent call has a bar of its own.  Which bar is shown is known to the calling thread only: worker
threads are handed the `Progress` that they report to.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Progress", "current_progress", "progress_bar", "stretch_of_progress"]

#: Seconds after which a bar of scoring appears; most calls are over by then.
SECONDS_UNTIL_A_BAR = 3.0
#: Weight of the latest speed in the estimate of the time left.
SMOOTHING = 0.1
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Bar:
    """A progress bar of tqdm that threads can share.

    Parameters
    ----------
    title : str
        What is done, as long as no part of it says more.
    delay : float, default=0.0
        Seconds until it appears, at least 0; if it is closed before, nothing is written.
    """

    def __init__(self, title: str, delay: float = 0.0) -> None:
        from tqdm.auto import tqdm  # only here, since in a notebook its import may warn

        # Without the thread that would refresh bars, and would outlive this one.
        kind: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
        self.title = title
        self._at_once = delay == 0.0
        self._lock = threading.Lock()
        self._shown = kind(
            total=1.0,
            desc=title,
            delay=delay,
            miniters=0,
            smoothing=SMOOTHING,
            dynamic_ncols=True,
            bar_format=BAR_FORMAT,
        )

    def move(self, place: float, text: str | None = None, title: str = "") -> None:
        """Move forward to a place between 0 and 1, and say something; never backward."""
        with self._lock:
            self._shown.set_description_str(title or self.title, refresh=False)
            self._shown.update(max(0.0, place - self._shown.n))
            if text is not None:
                self._shown.set_postfix_str(text, refresh=self._at_once)

    def tell(self, text: str) -> None:
        """Write a line that stays above the bar."""
        with self._lock:
            self._shown.write(text, file=sys.stderr)

    def restart(self) -> None:
        """Set the clock to zero, unless there has been progress.

        The time before the first of many steps would spoil the estimate of the time left.
        """
        with self._lock:
            if self._shown.n == 0.0:
                self._shown.reset()

    def close(self) -> None:
        """End the bar."""
        with self._lock:
            self._shown.close()


class Progress:
    """A stretch of a bar, on which a part of a call goes from 0 to 1.

    Parameters
    ----------
    bar : Bar or None, default=None
        The bar; with None nothing is shown.
    start, stop : float, default=0.0, 1.0
        Where the stretch begins and ends on the bar, in [0, 1].
    label : str, default=""
        Title of the bar meanwhile; empty for the bar's own.
    """

    def __init__(
        self, bar: Bar | None = None, start: float = 0.0, stop: float = 1.0, label: str = ""
    ) -> None:
        self.bar = bar
        self.start, self.stop = start, stop
        self.label = label

    def show(self, share: float, text: str | None = None) -> None:
        """Show which share in [0, 1] of the part is done, and what is being done."""
        if self.bar is not None:
            self.bar.move(self.start + share * (self.stop - self.start), text, self.label)

    def tell(self, text: str) -> None:
        """Write a line that stays above the bar."""
        if self.bar is not None:
            self.bar.tell(text)

    def stretch(self, start: float, stop: float, label: str = "") -> Progress:
        """Return the stretch between two shares of this one; its label is added to this one's."""
        width = self.stop - self.start
        title = ", ".join(part for part in (self.label, label) if part)
        return Progress(self.bar, self.start + start * width, self.start + stop * width, title)

    def strands(self, n: int) -> list[Progress]:
        """Return n parts that may go on at the same time; their mean is shown."""
        shares = [0.0] * n
        return [_Strand(self, shares, number) for number in range(n)]

    def restart(self) -> None:
        """Set the clock of the bar to zero, unless there has been progress."""
        if self.bar is not None:
            self.bar.restart()


class _Strand(Progress):
    """One of several parts that may go on at the same time."""

    def __init__(self, whole: Progress, shares: list[float], number: int) -> None:
        super().__init__(whole.bar, whole.start, whole.stop, whole.label)
        self._shares, self._number = shares, number

    def show(self, share: float, text: str | None = None) -> None:
        """Show the mean share of all strands, and what is being done in this one."""
        self._shares[self._number] = share
        super().show(sum(self._shares) / len(self._shares), text)


SILENT = Progress()
_current: ContextVar[Progress | None] = ContextVar("sk_itdiffusion_progress", default=None)


def current_progress() -> Progress:
    """Return the progress of the call that is being made in this thread; silent by default."""
    return _current.get() or SILENT


@contextmanager
def _made_current(progress: Progress) -> Iterator[Progress]:
    token = _current.set(progress)
    try:
        yield progress
    finally:
        _current.reset(token)


@contextmanager
def progress_bar(title: str, verbose: int, delay: float = 0.0) -> Iterator[Progress]:
    """Show a bar during a call, unless it is part of a call that shows one.

    Parameters
    ----------
    title : str
        Title of the bar.
    verbose : int
        0 for no bar.
    delay : float, default=0.0
        Seconds until the bar appears, at least 0.

    Yields
    ------
    Progress
        The progress of the call.
    """
    outer = _current.get()
    if outer is not None or not verbose:
        yield outer or SILENT
        return
    bar = Bar(title, delay)
    try:
        with _made_current(Progress(bar)) as progress:
            yield progress
        bar.move(1.0)
    finally:
        bar.close()


@contextmanager
def stretch_of_progress(start: float, stop: float, label: str = "") -> Iterator[Progress]:
    """Let what is done meanwhile move the current bar between two shares of its stretch.

    Parameters
    ----------
    start, stop : float
        Shares in [0, 1] of the current stretch.
    label : str, default=""
        Title meanwhile.

    Yields
    ------
    Progress
        The stretch.
    """
    outer = _current.get()
    if outer is None:
        yield SILENT
        return
    with _made_current(outer.stretch(start, stop, label)) as progress:
        yield progress
        progress.show(1.0)
