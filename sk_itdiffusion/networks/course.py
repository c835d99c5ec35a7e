"""The learning rate of a training, and its end.

The rate is that of a training without end, which falls with the root of the steps, and goes to zero
in the last half of them.  This fall begins at no fixed step: a training goes on until twice the
steps promise less than a tolerance, the bound has long been no better, or no more epochs or seconds
are left than the fall takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Course", "gain_of_a_doubling"]

#: Steps in which the rate rises, and after which it falls with the root of their number.
N_WARMUP, N_CONSTANT = 50, 500
#: Doublings of the steps from the last one that is measured to the one after the end.
DOUBLINGS_TO_COME = 2.5
#: Epochs that tell what twice as many will gain, and those after which a network must have gained.
MIN_EPOCHS, TRIAL_EPOCHS = 16, 8
#: Share of all epochs that are more than noise if none of them improves the bound.
SHARE_OF_PATIENCE = 1 / 3


def gain_of_a_doubling(bounds: Sequence[float]) -> float:
    """Return how many nats twice the steps would gain, judging by the last doublings.

    Means of the last half of the epochs, of the quarter before it and of the eighth before that are
    compared.  A doubling gains less than the one before by a factor that is assumed to stay.
    """
    n = len(bounds)
    early, middle, late = (float(np.mean(bounds[n // p : 2 * n // p])) for p in (8, 4, 2))
    before, last = early - middle, middle - late
    if last <= 0.0:
        return 0.0
    factor = min(1.0, last / before) if before > 0.0 else 1.0
    return float(last * factor**DOUBLINGS_TO_COME)


@dataclass
class Course:
    """The course of a training.

    Attributes
    ----------
    n_steps : int
        Steps at most.
    tol : float
        Nats that twice the steps have to gain.
    patience : int
        Epochs without improvement that end it, if they are a third of all.
    seconds : float or None
        Seconds that it may take.
    """

    n_steps: int
    tol: float
    patience: int
    seconds: float | None = None
    step: int = 0
    ended_by: str | None = None
    bounds: list[float] = field(default_factory=list)
    _fall: tuple[int, int, float] | None = None
    _started: float = field(default_factory=time.monotonic)

    @property
    def factor(self) -> float:
        """Factor of the learning rate at the present step."""
        if self._fall is not None:
            start, length, height = self._fall
            return height * max(0.0, 1.0 - (self.step - start) / length)
        rise = min((self.step + 1) / N_WARMUP, 1.0)
        return rise * math.sqrt(N_CONSTANT / max(self.step, N_CONSTANT))

    @property
    def has_ended(self) -> bool:
        """Whether no step is left."""
        return self._fall is not None and self.step >= self._fall[0] + self._fall[1]

    def advance(self) -> None:
        """Count a step, and let the rate fall if there is only as much left as that takes."""
        self.step += 1
        if self._fall is None:
            if self._steps_left_by_time() <= self.step:
                self._end("time")
            elif self.n_steps - self.step <= self.step:
                self._end("epochs")

    def judge(self, bound: float, error: float) -> bool:
        """Take the bound of an epoch, negative where it gains; return whether to end at once.

        Parameters
        ----------
        bound : float
            Minus the gain over the references, in nats per row.
        error : float
            Its standard error.

        Returns
        -------
        bool
            Whether a trial has shown that no network can pay.
        """
        self.bounds.append(bound)
        n = len(self.bounds)
        if self._fall is not None:
            return False
        if n >= TRIAL_EPOCHS and -min(self.bounds) + gain_of_a_doubling(self.bounds) < error:
            self.ended_by = "trial"
            return True
        n_worse = n - 1 - int(np.argmin(self.bounds))
        if n_worse >= max(self.patience, SHARE_OF_PATIENCE * n) or (
            n >= MIN_EPOCHS and gain_of_a_doubling(self.bounds) < self.tol
        ):
            self._end("validation")
        return False

    def _end(self, reason: str) -> None:
        left = min(self._steps_left_by_time(), self.n_steps - self.step)
        self._fall = (self.step, max(1, math.ceil(min(left, self.step))), self.factor)
        self.ended_by = reason

    def _steps_left_by_time(self) -> float:
        if self.seconds is None:
            return math.inf
        spent = time.monotonic() - self._started
        return self.step * max(0.0, self.seconds - spent) / max(spent, 1e-9)
