"""The course of a training: its learning rate, and when it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sk_itdiffusion.distributed import ALONE, Processes

__all__ = [
    "MIN_EPOCHS_TO_COMPARE",
    "Course",
    "Decay",
    "End",
    "Limits",
    "gain_of_a_doubling",
    "rate_without_end",
]

#: Steps after which the learning rate falls with the root of their number.
N_CONSTANT = 500
#: Share of all steps in which it falls to zero.
SHARE_OF_DECAY = 0.5
#: Doublings of the steps from the last one that is measured to the one after the end.
DOUBLINGS_TO_COME = 2.5
#: Share of all epochs that are more than noise if none of them improves the bound.
SHARE_OF_PATIENCE = 1 / 3
#: Epochs that tell what twice as many will gain.
MIN_EPOCHS_TO_COMPARE = 16
#: Epochs up to which a progress bar grows about as fast as they pass.
EPOCHS_OF_A_BAR = 40

#: What ends a training: the validation rows, the number of epochs, or the time.
End = Literal["validation", "epochs", "time"]


@dataclass(frozen=True)
class Limits:
    """What ends a training.

    Attributes
    ----------
    n_epochs : int
        Epochs at most.
    steps_per_epoch : int
        Steps of each of them.
    tol : float or None, default=None
        Nats that twice the steps have to gain; None for no limit.
    patience : int or None, default=None
        Epochs without improvement on any kind of rows that end it, if they are a third of all; None
        for no limit.
    seconds : float or None, default=None
        Seconds that it may take; None for no limit.
    n_warmup : int, default=50
        Steps in which the learning rate rises.
    n_to_compare : int, default=16
        Epochs that tell what twice as many will gain.
    """

    n_epochs: int
    steps_per_epoch: int
    tol: float | None = None
    patience: int | None = None
    seconds: float | None = None
    n_warmup: int = 50
    n_to_compare: int = MIN_EPOCHS_TO_COMPARE

    @property
    def n_steps(self) -> int:
        """Steps at most."""
        return self.n_epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Decay:
    """The fall of the learning rate to zero, which ends a training.

    Attributes
    ----------
    start, length : int
        Steps before it, and of it.
    height : float
        Factor of the rate at its start.
    end : {"validation", "epochs", "time"}
        Why the training ends.
    """

    start: int
    length: int
    height: float
    end: End


def rate_without_end(step: int, n_warmup: int, n_constant: int = N_CONSTANT) -> float:
    """Return the factor of the learning rate of a training whose number of steps is open.

    It rises, is one, and then falls with the root of the steps: the more of them there are, the
    finer is what is left to learn.

    Parameters
    ----------
    step : int
        Steps so far.
    n_warmup, n_constant : int
        Steps in which the rate rises, and after which it falls.

    Returns
    -------
    float
        The factor, positive and at most 1.
    """
    rise = min((step + 1) / n_warmup, 1.0)
    return rise * math.sqrt(n_constant / max(step, n_constant))


def gain_of_a_doubling(bounds: Sequence[float]) -> float:
    """Return how many nats twice the steps would gain, if the learning rate fell from now on.

    Means of the last half of the epochs, of the quarter before it and of the eighth before that
    are compared, since single bounds are noisy at a large learning rate.  A doubling gains less
    than the one before by a factor that is assumed to stay.  From the middle of the last half to
    the end of the fall are one and a half doublings, which are still to come, and then the next.

    Parameters
    ----------
    bounds : sequence of float
        Validation bounds of at least 8 epochs before the learning rate is taken to zero.

    Returns
    -------
    float
        The gain, at least 0.
    """
    n = len(bounds)
    early, middle, late = (
        float(np.mean(bounds[n // parts : 2 * n // parts])) for parts in (8, 4, 2)
    )
    before, last = early - middle, middle - late
    if last <= 0.0:
        return 0.0
    factor = min(1.0, last / before) if before > 0.0 else 1.0
    return float(last * factor**DOUBLINGS_TO_COME)


class Course:
    """The learning rate of a training, and its end.

    The rate is that of a training without end, see `rate_without_end`, and falls to zero in the
    last half of the steps.  This fall begins at no fixed step, so that a training goes on as long
    as it gains: until twice the steps promise less than a tolerance, the validation bound has long
    been no better, or there are no more epochs, or no more time, than the fall takes.

    Parameters
    ----------
    limits : Limits
        What ends the training.
    processes : Processes, default=ALONE
        The processes that train together; the first one's clock counts.
    """

    def __init__(self, limits: Limits, processes: Processes = ALONE) -> None:
        self.limits = limits
        self.processes = processes
        self.step = 0
        self.decay: Decay | None = None
        #: Of each kind of rows the bounds of the epochs.
        self.bounds: list[list[float]] = []
        self.started = time.monotonic()

    @property
    def factor(self) -> float:
        """Factor of the learning rate at the present step."""
        if self.decay is not None:
            fallen = (self.step - self.decay.start) / self.decay.length
            return self.decay.height * max(0.0, 1.0 - fallen)
        return rate_without_end(self.step, self.limits.n_warmup)

    @property
    def has_ended(self) -> bool:
        """Whether no step is left."""
        decay = self.decay
        has_fallen = decay is not None and self.step >= decay.start + decay.length
        return has_fallen or self.step >= self.limits.n_steps

    @property
    def share_done(self) -> float:
        """Share that is done, by the logarithm of the steps as long as their number is open."""
        if self.decay is None:
            return self._share_at(self.step)
        before = self._share_at(self.decay.start)
        fallen = min(1.0, (self.step - self.decay.start) / self.decay.length)
        return before + (1.0 - before) * fallen

    def _share_at(self, step: int) -> float:
        usual = EPOCHS_OF_A_BAR * self.limits.steps_per_epoch
        return math.log1p(step / usual) / math.log1p(self.limits.n_steps / usual)

    def resume(self, step: int) -> None:
        """Go on after a number of steps of an earlier training."""
        self.step = step
        self._fall_if_it_must()

    def advance(self) -> None:
        """Count a step."""
        self.step += 1
        self._fall_if_it_must()

    def judge(self, bounds: Sequence[float], n_worse: int) -> bool:
        """Let the rate fall if validation says so; return whether the best weights were earlier.

        Training goes on as long as it gains on any kind of rows: a mean over the kinds would hide
        what is still to be learned of one of them.

        Parameters
        ----------
        bounds : sequence of float
            Bounds of the epoch that has ended, of each kind of rows.
        n_worse : int
            How many of the last epochs improved the bound of no kind of rows.
        """
        if self.decay is not None:
            return False
        self.bounds = self.bounds or [[] for _ in bounds]
        for kind, bound in zip(self.bounds, bounds, strict=True):
            kind.append(bound)
        n, limits = len(self.bounds[0]), self.limits
        if limits.patience is not None and n_worse >= max(limits.patience, SHARE_OF_PATIENCE * n):
            self._fall("validation")
            return True
        if limits.tol is None or n < limits.n_to_compare:
            return False
        if max(map(gain_of_a_doubling, self.bounds)) < limits.tol:
            self._fall("validation")
        return False

    def _fall_if_it_must(self) -> None:
        """Let the rate fall if no more steps or seconds are left than that takes."""
        if self.decay is not None:
            return
        if self._steps_left_by_time() <= self._length_of_decay:
            self._fall("time")
        elif self.limits.n_steps - self.step <= self._length_of_decay:
            self._fall("epochs")

    def _fall(self, end: End) -> None:
        left = min(self._steps_left_by_time(), self.limits.n_steps - self.step)
        length = max(1, math.ceil(min(left, self._length_of_decay)))
        self.decay = Decay(self.step, length, self.factor, end)

    @property
    def _length_of_decay(self) -> float:
        return self.step * SHARE_OF_DECAY / (1.0 - SHARE_OF_DECAY)

    def _steps_left_by_time(self) -> float:
        """Return how many steps can be taken in the time that is left, at the speed so far."""
        seconds = self.limits.seconds
        if seconds is None:
            return math.inf
        spent = self.processes.from_first(lambda: time.monotonic() - self.started)
        return self.step * max(0.0, seconds - spent) / max(spent, 1e-9)
