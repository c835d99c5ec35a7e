"""What is told of a training: to progress bars, logs and callbacks."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import skorch

from sk_itdiffusion._first._runtime.callbacks import FitTasks
from sk_itdiffusion._first._runtime.progress import Progress

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.training_control import TrainingControl

__all__ = ["EpochBoard", "TrainingReport"]

logger = logging.getLogger(__name__)


class EpochBoard:
    """One text about all networks that are being trained, for the one bar that they share.

    Parameters
    ----------
    has_names : bool, default=False
        Whether a network that is trained alone is named, since there are others before or after.
    """

    def __init__(self, has_names: bool = False) -> None:
        self.has_names = has_names
        self._lock = threading.Lock()
        self._epochs: dict[str, tuple[int, int, tuple[float, float] | None]] = {}

    def __reduce__(self) -> Any:
        return EpochBoard, (self.has_names,)  # locks cannot be copied

    def tell(
        self,
        progress: Progress,
        share: float,
        name: str,
        epoch: tuple[int, int],
        bounds: tuple[float, float] | None = None,
    ) -> None:
        """Show that a network is in an epoch of so many, or has ended it with two bounds."""
        with self._lock:
            self._epochs[name] = *epoch, bounds
            progress.show(share, self.text(name))

    def text(self, name: str) -> str:
        """Return the text, of which the news is that of the network of a name."""
        epochs = self._epochs.values()
        is_named = self.has_names and len(epochs) == 1
        text = f"{name}, " if is_named else ""
        # Of several networks the one that is behind.
        text += "epoch {}/{}".format(*min(epoch[:2] for epoch in epochs))
        known = [epoch[2] for epoch in epochs if epoch[2] is not None]
        for part, values in zip(("train", "valid"), zip(*known, strict=True), strict=False):
            text += f", {part} " + " and ".join(f"{value:.3f}" for value in values)
        return text

    def ended(self, name: str) -> None:
        """Say no more of a network."""
        with self._lock:
            self._epochs.pop(name, None)


@dataclass
class TrainingReport:
    """Tells of the epochs of a network: on a bar, in the log, to scikit-learn's callbacks.

    Attributes
    ----------
    name : str
        Name of the network.
    progress : Progress
        Where the training is shown.
    tasks : FitTasks
        The epochs as tasks of a fit.
    attributes_now : callable or None
        Returns the attributes that the estimator would have if the fit of the net, whose best
        weights are restored, had ended now.
    is_only : bool
        Whether no other network is trained, so that its name says nothing.
    board : EpochBoard
        Makes the text on the bar, of this network and of those trained at the same time.
    """

    name: str = "network"
    progress: Progress = field(default_factory=Progress)
    tasks: FitTasks = field(default_factory=FitTasks)
    attributes_now: Callable[[skorch.NeuralNet], dict[str, Any]] | None = None
    is_only: bool = True
    board: EpochBoard = field(default_factory=EpochBoard)

    def epoch(self, number: int, n_epochs: int) -> str:
        """Return the name of an epoch."""
        return f"{'' if self.is_only else f'{self.name}, '}epoch {number}/{n_epochs}"

    def epoch_begins(self, number: int, n_epochs: int) -> None:
        """Tell that an epoch begins."""
        if number == 1:
            self.progress.restart()
            self.board.tell(self.progress, 0.0, self.name, (number, n_epochs))
        self.tasks.begin_task(self.epoch(number, n_epochs))

    def epoch_ends(self, control: TrainingControl, net: skorch.NeuralNet) -> bool:
        """Tell of the bounds of an epoch, and return whether a callback asks to end."""
        row = net.history[-1]
        bounds = row["train_loss"], row.get("valid_loss", math.nan)
        name = self.epoch(row["epoch"], control.n_epochs)
        epoch = row["epoch"], control.n_epochs
        self.board.tell(self.progress, control.share_done, self.name, epoch, bounds)
        logger.debug(
            "%s of %s: training bound %.4f, validation bound %.4f nats per row",
            name,
            self.name,
            *bounds,
        )

        def attributes() -> dict[str, Any] | None:
            if self.attributes_now is None:
                return None
            return self.attributes_now(control.best_net(net))

        return self.tasks.end_task(attributes)

    def ends(self, control: TrainingControl, net: skorch.NeuralNet) -> None:
        """Tell that the training has ended."""
        self.tasks.end_task()
        self.progress.show(1.0)
        self.board.ended(self.name)
        logger.info(
            "%s trained for %d of at most %d epochs; best validation bound %.4f nats per row, of "
            "epoch %d",
            self.name,
            len(net.history),
            control.n_epochs,
            control.best,
            control.best_epoch,
        )
