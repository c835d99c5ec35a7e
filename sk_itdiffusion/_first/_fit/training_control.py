"""What is done in each step and epoch of a training, as a callback of skorch."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Protocol

import numpy as np
import skorch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback
from torch import Tensor

from sk_itdiffusion._first._fit.course import Course, End, Limits
from sk_itdiffusion._first._fit.optimizers import clip_norm
from sk_itdiffusion._first._fit.training_report import TrainingReport
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion.distributed import ALONE, Processes

__all__ = ["StopTraining", "TrainingControl", "UntilItsEnd", "rates_of", "set_rates"]

#: Epoch after which the importance density is refitted if a training goes on from a checkpoint.
FIRST_ADAPTATION = 2
#: Gain of the last quarter of all epochs, in nats and as a share of the whole gain, from which on
#: a training that has not been ended by its validation rows would go on gaining.
MIN_LATE_GAIN, MIN_SHARE_OF_LATE_GAIN = 0.1, 0.1


class StopTraining(Exception):  # noqa: N818  it is a request, not an error
    """Raised inside the training loop to end it early and regularly."""


class Batches(Sized, Protocol):
    """An epoch's batches."""

    def __iter__(self) -> Iterator[Any]: ...


class UntilItsEnd:
    """Batches of an epoch, which ends early if the training does.

    Parameters
    ----------
    batches : iterable with a length
        The batches.
    control : TrainingControl
        Knows whether the training has ended.
    """

    def __init__(self, batches: Batches, control: TrainingControl) -> None:
        self.batches = batches
        self.control = control

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            if self.control.course.has_ended:
                return


def rates_of(net: skorch.NeuralNet) -> list[float]:
    """Return the learning rates of the optimiser's groups."""
    return [group["lr"] for group in net.optimizer_.param_groups]


def set_rates(net: skorch.NeuralNet, rates: Sequence[float], factor: float) -> None:
    """Give the optimiser's groups their base rates times a factor."""
    for group, rate in zip(net.optimizer_.param_groups, rates, strict=True):
        group["lr"] = factor * rate


def unknown_bound() -> float:
    """Return infinity."""
    return math.inf


def bound_alone(bound: float) -> Sequence[float]:
    """Return the bound of a network that is evaluated alone, on rows of one kind."""
    return [bound]


def mean(bounds: Sequence[float]) -> float:
    """Return the mean over the kinds of rows, each of which counts alike."""
    return sum(bounds) / len(bounds)


def would_go_on_gaining(bounds: Sequence[float]) -> bool:
    """Return whether the last quarter of bounds, of which the first is of no step, gained much."""
    least = np.minimum.accumulate(bounds)
    n_last = math.ceil((len(bounds) - 1) / 4)  # the last epoch may have few steps
    gain, late = least[0] - least[-1], least[-1 - n_last] - least[-1]
    return bool(max(MIN_LATE_GAIN, MIN_SHARE_OF_LATE_GAIN * gain) < late < math.inf)


class TrainingControl(Callback):
    """Learning rate, gradient clipping, weight averaging, the end, the best state.

    Epochs are evaluated by the bound of the model that the network will be a part of, see
    `Judgement`.  The rate and the end are those of a `Course`.  When rows are memorised
    the best weights are restored before the rate falls; at the end they are those of the best
    epoch.
    """

    #: Bound of the network at its start.
    initial_bound = math.inf
    #: What ended the training at a time when it was still gaining; None if it had gained enough.
    ended_too_early_by: End | None = None

    def __init__(
        self,
        limits: Limits,
        *,
        clip: float = 1.0,
        interrupted: threading.Event | None = None,
        measured: Callable[[], float] = unknown_bound,
        judged: Callable[[float], Sequence[float]] = bound_alone,
        on_epoch: Callable[[skorch.NeuralNet, int], None] | None = None,
        report: TrainingReport | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.limits = limits
        self.clip = clip
        self.measured = measured
        self.judged = judged
        self.interrupted = interrupted
        self.on_epoch = on_epoch
        self.report = TrainingReport() if report is None else report
        self.processes = processes

    @property
    def n_epochs(self) -> int:
        """Epochs at most."""
        return self.limits.n_epochs

    @property
    def share_done(self) -> float:
        """Share of the training that is done."""
        return self.course.share_done

    def on_train_begin(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Note the base rates."""
        self.course = Course(self.limits, self.processes)
        self.has_ended = False
        self.best = math.inf
        self.best_state: dict[str, Tensor] | None = None
        self.best_epoch = 0
        self.ended_too_early_by = None
        self.base_rates = rates_of(net)
        self.averages = net.module_.averages()
        self.parameters = self.averages[0][1]
        self.initial_bound = self.measured()
        bounds = self.judged(self.initial_bound)
        self.note_best(net, mean(bounds))
        self.least_of_kinds = [(bound, 0) for bound in bounds]

    def on_epoch_begin(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Go on where a checkpoint ended, if a callback has loaded one."""
        n_done = len(net.history) - 1
        if n_done > 0 and self.course.step == 0:
            self._resume(net, n_done)
        self.report.epoch_begins(n_done + 1, self.n_epochs)

    def _resume(self, net: skorch.NeuralNet, n_done: int) -> None:
        if n_done >= self.n_epochs:
            net.history.pop()
            raise StopTraining
        self.course.resume(n_done * self.limits.steps_per_epoch)
        net.module_.n_updates = self.course.step
        # The weights are those of the checkpoint, whichever epoch was the best.
        self.best_epoch = n_done
        bounds = self.judged(self.measured())
        self.note_best(net, mean(bounds))
        self.least_of_kinds = [(bound, n_done) for bound in bounds]
        if self.on_epoch is not None:
            self.on_epoch(net, FIRST_ADAPTATION)

    def on_batch_begin(self, net: skorch.NeuralNet, training: bool = False, **_: Any) -> None:
        """Set the learning rate."""
        if training:
            set_rates(net, self.base_rates, self.course.factor)

    def on_grad_computed(self, net: skorch.NeuralNet, training: bool = False, **_: Any) -> None:
        """Average the gradient over the processes, and clip its norm."""
        if training:
            self.processes.average_gradients(self.parameters)
            clip_norm([p.grad for p in self.parameters if p.grad is not None], self.clip)

    def on_batch_end(self, net: skorch.NeuralNet, training: bool = False, **_: Any) -> None:
        """Update the average, unless the user interrupts."""
        if self.interrupted is not None and self.interrupted.is_set():
            raise KeyboardInterrupt
        if training:
            self.course.advance()
            net.module_.update_average(self.averages)
            self.report.progress.show(self.share_done)

    def note_best(self, net: skorch.NeuralNet, bound: float) -> None:
        """Keep a copy of the averaged weights as the best so far."""
        self.best = bound
        self.best_state = {
            key: value.clone() for key, value in net.module_.averaged.state_dict().items()
        }

    def restore_best(self, net: skorch.NeuralNet) -> None:
        """Put the best averaged weights into the network and its average."""
        assert self.best_state is not None
        net.module_.averaged.load_state_dict(self.best_state)
        net.module_.denoiser.load_state_dict(self.best_state)

    def best_net(self, net: skorch.NeuralNet) -> skorch.NeuralNet:
        """Return a copy of a net in training, with the best weights so far."""
        best = object.__new__(type(net))
        vars(best).update(vars(net) | {"module_": copy.deepcopy(net.module_).eval()})
        self.restore_best(best)
        return best

    def judge_end(self, net: skorch.NeuralNet) -> None:
        """Note whether the training had no more epochs, or time, but would go on gaining."""
        decay = self.course.decay
        if not self.course.has_ended or decay is None or decay.end == "validation":
            return
        # The bound of the network alone: that of the model falls by little at a time.
        own = [row["valid_loss"] for row in net.history if "valid_loss" in row]
        if would_go_on_gaining([self.initial_bound, *own]):
            self.ended_too_early_by = decay.end

    def on_epoch_end(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Judge the epoch by its validation bound, and whether it is the last one."""
        self._average_losses(net)
        epoch = len(net.history)
        bounds = self.judged(net.history[-1].get("valid_loss", net.history[-1]["train_loss"]))
        bound = mean(bounds)
        if not math.isfinite(bound) or not math.isfinite(net.history[-1]["train_loss"]):
            self._handle_divergence(net)
            return
        if bound < self.best:
            self.note_best(net, bound)
            self.best_epoch = epoch
        if self.on_epoch is not None:
            self.on_epoch(net, epoch)
        self.has_ended = self.report.epoch_ends(self, net) or self.course.has_ended
        if self.course.judge(bounds, self._n_without_gain(bounds, epoch)):
            self.restore_best(net)

    def _n_without_gain(self, bounds: Sequence[float], epoch: int) -> int:
        """Return how many of the last epochs improved the bound of no kind of rows."""
        now = zip(self.least_of_kinds, bounds, strict=True)
        self.least_of_kinds = [
            (bound, epoch) if bound < least[0] else least for least, bound in now
        ]
        return epoch - max(last for _, last in self.least_of_kinds)

    def _average_losses(self, net: skorch.NeuralNet) -> None:
        """Replace the losses of the epoch by their means over the rows of all processes."""
        if self.processes.size == 1:
            return
        row = net.history[-1]
        for part in ("train", "valid"):
            n_rows = sum(batch.get(f"{part}_batch_size", 0) for batch in row["batches"])
            mean = self.processes.mean(row[f"{part}_loss"], n_rows, net.device)
            net.history.record(f"{part}_loss", mean)

    def forget(self) -> None:
        """Drop the copy of the best weights and the link to the data."""
        self.best_state = None
        self.parameters, self.averages = [], []
        self.on_epoch = None
        self.measured, self.judged = unknown_bound, bound_alone
        self.interrupted = None
        self.report = TrainingReport()

    def _handle_divergence(self, net: skorch.NeuralNet) -> None:
        if self.best_epoch == 0:
            raise FloatingPointError(
                f"Training diverged in epoch {len(net.history)}, before any was good: the loss is "
                "not finite. Lower learning_rate, or check the data for extreme values."
            )
        warn(
            "Training diverged: the loss is not finite. The weights of the best epoch are used. A "
            "lower learning_rate avoids this.",
            ConvergenceWarning,
        )
        self.has_ended = True
