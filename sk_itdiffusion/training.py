"""Training of denoisers through skorch, by the bound on the negative log-likelihood."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback
from skorch.helper import predefined_split
from torch import Generator, Tensor, nn

from sk_itdiffusion.callbacks import FitTasks
from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.cubature import PiecewiseDensity
from sk_itdiffusion.denoisers import (
    LevelDenoiser,
    PreconditionedDenoiser,
    ReferencedDenoiser,
)
from sk_itdiffusion.denoisers.mlp import share_dropout
from sk_itdiffusion.distributed import ALONE, Processes
from sk_itdiffusion.layout import Layout
from sk_itdiffusion.memory import LESS, is_out_of_memory, release_memory
from sk_itdiffusion.optimizers import clip_norm, optimizer_settings
from sk_itdiffusion.progress import Progress
from sk_itdiffusion.streams import RowDataset, StreamedRows
from sk_itdiffusion.warning import warn

__all__ = [
    "DenoisingObjective",
    "NoisyRowIterator",
    "RowDataset",
    "StopTraining",
    "TrainingControl",
    "TrainingPlan",
    "TrainingReport",
    "train",
]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Network = PreconditionedDenoiser | LevelDenoiser | ReferencedDenoiser
#: Rows ``x`` with noise ``eps``, ``logsnr`` and its weight ``importance``, or what
#: `DenoisingObjective.prepared` returns for them.
NoisyRows = dict[str, Tensor]
Batches = list[tuple[NoisyRows, Tensor]]
#: Parameters of an average and of what it follows, then the buffers of both.
Averages = list[tuple[list[Tensor], list[Tensor]]]

#: Numbers in the noisy validation rows: judging an epoch of images must not take as long as it.
MOST_VALIDATION_NUMBERS = 2**21
NUMBERS_IN_A_VALIDATION_BATCH = 2**19
#: Numbers in the noise of the batches that are made together.
NUMBERS_MADE_AT_ONCE = 2**16
SHARE_OF_UNIFORM_VALIDATION = 0.3
#: Rows that judge an epoch in any case.
LEAST_VALIDATION_ROWS = 1_000
#: Noisy validation rows that are no more repeated; judging an epoch must not take as long as it.
ENOUGH_NOISY_ROWS = 16_384
#: Posterior probabilities of levels in judging an epoch; images of long lattices have many.
MOST_VALIDATION_LEVELS = 10**8
#: Epochs after which the importance density is refitted.
ADAPTATION_EPOCHS = (2, 6, 14)
#: Gain of the last quarter of all epochs, in nats and as a share of the whole gain, from which on
#: a training that has not been ended by its validation rows would go on gaining.
LEAST_LATE_GAIN, LEAST_SHARE_OF_LATE_GAIN = 0.1, 0.1


class StopTraining(Exception):  # noqa: N818  it is a request, not an error
    """Raised inside the training loop to end it early and regularly."""


class NoisyRowIterator:
    """Batches of rows with log-SNRs and noise, made in memory.

    An epoch is a fixed number of batches; passes through the shuffled rows go on across epochs.
    A pass takes rows in proportion to their weights, by systematic sampling, so that rows of equal
    weight are all taken once.  Log-SNRs are stratified over each batch.

    Parameters
    ----------
    dataset : RowDataset
        Rows.
    batch_size : int
        Rows in a batch; they repeat, with other noise, if there are fewer.
    n_batches : int
        Batches in an epoch.
    density : PiecewiseDensity
        Importance density of the log-SNR; may be replaced between epochs.
    generator : torch.Generator
        Source of all randomness.
    n_points : int
        Dimension of the noise.
    share : slice, default=slice(None)
        The part of each batch that is made; the others are those of other processes.
    n_at_once : int, default=1
        Batches that are made together, in fewer and larger operations.
    prepare : callable or None, default=None
        Returns a batch, or several one after the other, in the form that the network wants.
    """

    def __init__(
        self,
        dataset: RowDataset,
        batch_size: int,
        n_batches: int,
        density: PiecewiseDensity,
        generator: Generator,
        n_points: int,
        share: slice = slice(None),
        n_at_once: int = 1,
        prepare: Callable[[NoisyRows], NoisyRows] | None = None,
    ) -> None:
        self.rows = dataset.rows
        self.n_at_once = n_at_once
        self.prepare = prepare
        self.share = share
        self.width = dataset.width
        self.n_points = n_points
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.generator = generator
        self._share = torch.from_numpy(np.cumsum(dataset.weight) / dataset.weight.sum())
        self._queue = torch.empty(0, dtype=torch.long)
        self.set_density(density)

    def set_density(self, density: PiecewiseDensity) -> None:
        """Use another importance density from the next batch on."""
        self.density = density
        self._cumulative = torch.from_numpy(np.concatenate([[0.0], np.cumsum(density.mass)]))
        self._edges = torch.from_numpy(density.edges)
        self._heights = torch.from_numpy(density.mass / np.diff(density.edges))

    def __len__(self) -> int:
        return self.n_batches

    def _next_indices(self) -> Tensor:
        if 8 * len(self.rows) < self.batch_size:
            return self._systematic(self.batch_size)
        while len(self._queue) < self.batch_size:
            self._queue = torch.cat([self._queue, self._systematic(len(self.rows))])
        indices, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return indices

    def _systematic(self, n: int) -> Tensor:
        """Return n rows in proportion to their weights, shuffled."""
        offset = torch.rand((), generator=self.generator, dtype=torch.float64)
        marks = (torch.arange(n, dtype=torch.float64) + offset) / n
        taken = torch.searchsorted(self._share, marks).clamp(max=len(self.rows) - 1)
        return taken[torch.randperm(n, generator=self.generator)]

    def draw_logsnr(self, n: int, n_batches: int = 1) -> tuple[Tensor, Tensor]:
        """Return log-SNRs, stratified in each batch and in random order, and their weights."""
        shape = (n_batches, n)
        within = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        order = torch.rand(shape, generator=self.generator, dtype=torch.float64).argsort(dim=1)
        position = ((order + within) / n).flatten() * self._cumulative[-1]
        cell = torch.searchsorted(self._cumulative, position, right=True) - 1
        cell = cell.clamp(0, len(self._heights) - 1)
        width = self._edges[cell + 1] - self._edges[cell]
        mass = self._cumulative[cell + 1] - self._cumulative[cell]
        logsnr = self._edges[cell] + width * (position - self._cumulative[cell]) / mass
        return logsnr.float(), (1.0 / self._heights[cell]).float()

    def batches(self, rows: Tensor, n_batches: int = 1) -> Batches:
        """Return this process's shares of batches of rows, in the form that skorch passes on."""
        n = len(rows) // n_batches
        logsnr, importance = self.draw_logsnr(n, n_batches)
        shape = (len(rows), self.n_points)
        eps = torch.randn(shape, generator=self.generator, dtype=rows.dtype)
        noise = {"eps": eps, "logsnr": logsnr, "importance": importance}
        if self.width is not None:
            uniform = torch.rand(rows.shape, generator=self.generator, dtype=rows.dtype) - 0.5
            rows = rows + (uniform * self.width).to(rows.device)
        together = {
            key: value.unflatten(0, (n_batches, n))[:, self.share].flatten(0, 1).to(rows.device)
            for key, value in ({"x": rows} | noise).items()
        }
        if self.prepare is not None:
            together = self.prepare(together)
        parts = zip(*(value.chunk(n_batches) for value in together.values()), strict=True)
        target = torch.zeros(len(together["logsnr"]) // n_batches, device=rows.device)
        return [(dict(zip(together, part, strict=True)), target) for part in parts]

    def __iter__(self) -> Iterator[tuple[NoisyRows, Tensor]]:
        for start in range(0, self.n_batches, self.n_at_once):
            n_batches = min(self.n_at_once, self.n_batches - start)
            indices = torch.cat([self._next_indices() for _ in range(n_batches)])
            yield from self.batches(self.rows[indices.to(self.rows.device)], n_batches)


class StreamedRowIterator(NoisyRowIterator):
    """Noisy batches of rows in memory, of which each then gives its place to one of a stream.

    So the order of the stream matters little: its rows are mixed with those of long before.
    """

    def __init__(self, source: StreamedRows, *arguments: Any) -> None:
        super().__init__(source.memory, *arguments)
        self._chunks = source.chunks(self.batch_size, self.generator)
        self._streamed = self.rows[:0]
        while len(self.rows) < self.batch_size:
            self.rows = torch.cat([self.rows, next(self._chunks)])

    def _next_indices(self) -> Tensor:
        """Return places in memory, none of them twice."""
        if len(self._queue) < self.batch_size:
            self._queue = torch.randperm(len(self.rows), generator=self.generator)
        indices, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return indices

    def _next_streamed(self) -> Tensor:
        """Return as many rows of the stream as are in a batch."""
        while len(self._streamed) < self.batch_size:
            self._streamed = torch.cat([self._streamed, next(self._chunks)])
        rows = self._streamed[: self.batch_size]
        self._streamed = self._streamed[self.batch_size :]
        return rows

    def __iter__(self) -> Iterator[tuple[NoisyRows, Tensor]]:
        for _ in range(self.n_batches):
            places = self._next_indices().to(self.rows.device)
            rows = self.rows[places]
            self.rows[places] = self._next_streamed()
            yield from self.batches(rows)


class FixedNoiseIterator:
    """The same noisy validation batches in every epoch, so that epochs compare."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[NoisyRows, Tensor]]:
        return iter(self.batches)


class DenoisingObjective(nn.Module):
    """The bound on the negative log-likelihood of noisy rows, and the averaged weights.

    In training the network itself is evaluated, in evaluation its exponential moving average.

    Parameters
    ----------
    denoiser : PreconditionedDenoiser or LevelDenoiser
        The network.
    layout : Layout
        Where the columns of the rows are in the points.
    decay : float, default=0.995
        Decay of the moving average for each step; less in the first steps.
    offset : float, default=0.0
        Mean negative log-likelihood of the reference, in nats.
    loss : {"mse", "cross_entropy"}, default="mse"
        What is minimised for discrete columns: the bound, or the cross-entropy of the levels'
        posterior, which has the same optimum.  Evaluation is always the bound.
    """

    def __init__(
        self,
        denoiser: Network,
        layout: Layout,
        decay: float = 0.995,
        offset: float = 0.0,
        loss: str = "mse",
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.layout = layout
        self.decay = decay
        self.offset = offset
        self.loss = loss
        self.averaged = copy.deepcopy(denoiser).requires_grad_(False)
        self.n_updates = 0

    def averages(self) -> Averages:
        """Return the average's parameters and the network's, then the buffers of both.

        To walk through the modules in each step takes as long as a tenth of a small one.
        """
        average, network = self.averaged, self.denoiser
        return [
            (list(average.parameters()), list(network.parameters())),
            (list(average.buffers()), list(network.buffers())),
        ]

    @torch.no_grad()
    def update_average(self, averages: Averages) -> None:
        """Move what `averages` has returned towards the current weights."""
        self.n_updates += 1
        decay = min(self.decay, self.n_updates / (self.n_updates + 9.0))
        parameters, buffers = averages
        torch._foreach_lerp_(*parameters, 1.0 - decay)
        # Running statistics are averages already.
        for average, current in zip(*buffers, strict=True):
            if average is not current:
                average.copy_(current)

    @torch.no_grad()
    def prepared(self, batch: NoisyRows) -> NoisyRows:
        """Return noisy rows with all computed that does not depend on the weights.

        Of networks that correct a reference of continuous columns those are the noisy points
        ``z``, what of the noise the reference has ``missed``, and `constants` of the network;
        other networks' rows are returned as they are.
        """
        if not isinstance(self.denoiser, PreconditionedDenoiser):
            return batch
        z = add_noise(self.layout.embed(batch["x"]), batch["eps"], batch["logsnr"])
        known = {"z": z, "logsnr": batch["logsnr"], "importance": batch["importance"]}
        constants = self.denoiser.constants(z, batch["logsnr"])
        return known | {"missed": batch["eps"] - constants.pop("baseline")} | constants

    def forward(self, logsnr: Tensor, importance: Tensor, **rows: Tensor) -> Tensor:
        """Return the bound in nats, shape (B,), without cancellation against the reference.

        Parameters
        ----------
        logsnr, importance : Tensor of shape (B,)
            Log-SNRs and their weights.
        **rows : Tensor
            Clean rows ``x`` and noise ``eps``, or what `prepared` has made of them.
        """
        network = self.denoiser if self.training else self.averaged
        if "missed" in rows and isinstance(network, PreconditionedDenoiser):
            missed = rows.pop("missed")
            correction = network.correction(logsnr=logsnr, **rows)
        else:
            x, eps = rows["x"], rows["eps"]
            z = add_noise(self.layout.embed(x), eps, logsnr)
            is_told_levels = self.training and self.loss == "cross_entropy"
            if is_told_levels and isinstance(network, LevelDenoiser):
                return self.offset - importance * network.information_gain(x, z, eps, logsnr)
            baseline, correction = network.parts(z, logsnr)
            missed = eps - baseline
        gain = (correction * (2.0 * missed - correction)).sum(1)
        return self.offset - 0.5 * importance * gain


class MeanCriterion(nn.Module):
    """Mean of the module's output; there are no targets."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean."""
        return output.mean()


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


class TrainingControl(Callback):
    """Learning rate, gradient clipping, weight averaging, early stopping, best state.

    The rate warms up, then follows a cosine to zero over the planned steps.  When the validation
    bound has not improved for ``patience`` epochs the best weights are restored and the rate is
    taken to zero quickly from there; training then ends.
    """

    #: Whether the bound was still improving when training reached its last epoch.
    is_still_improving = False

    def __init__(
        self,
        n_steps: int,
        n_epochs: int,
        patience: int | None,
        *,
        n_warmup: int = 50,
        clip: float = 1.0,
        interrupted: threading.Event | None = None,
        initial_bound: float = math.inf,
        on_epoch: Callable[[skorch.NeuralNet, int], None] | None = None,
        report: TrainingReport | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.n_steps = n_steps
        self.n_epochs = n_epochs
        self.patience = patience
        self.n_warmup = n_warmup
        self.clip = clip
        self.initial_bound = initial_bound
        self.interrupted = interrupted
        self.on_epoch = on_epoch
        self.report = TrainingReport() if report is None else report
        self.processes = processes

    def on_train_begin(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Note the base rates."""
        self.step = 0
        self.has_ended = False
        self.best = math.inf
        self.best_state: dict[str, Tensor] | None = None
        self.best_epoch = 0
        self.is_still_improving = False
        self.cooling_from: tuple[int, int, float] | None = None
        self.base_rates = [group["lr"] for group in net.optimizer_.param_groups]
        self.averages = net.module_.averages()
        self.parameters = self.averages[0][1]
        self.note_best(net, self.initial_bound)

    def on_epoch_begin(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Go on where a checkpoint ended, if a callback has loaded one."""
        n_done = len(net.history) - 1
        if n_done > 0 and self.step == 0:
            self._resume(net, n_done)
        self.report.epoch_begins(n_done + 1, self.n_epochs)

    def _resume(self, net: skorch.NeuralNet, n_done: int) -> None:
        if n_done >= self.n_epochs:
            net.history.pop()
            raise StopTraining
        self.step = n_done * self.n_steps // self.n_epochs
        net.module_.n_updates = self.step
        # The weights are those of the checkpoint, whichever epoch was the best.
        self.best_epoch = n_done
        self.note_best(net, net.history[-2].get("valid_loss", math.inf))
        if self.on_epoch is not None:
            self.on_epoch(net, ADAPTATION_EPOCHS[0])

    @property
    def share_done(self) -> float:
        """Share of the steps to be taken, as far as they are known, that are done."""
        if self.cooling_from is None:
            return self.step / self.n_steps
        start, length, _ = self.cooling_from
        return min(1.0, self.step / (start + length))

    def rate_factor(self) -> float:
        """Return the factor of the learning rate at the present step."""
        if self.cooling_from is not None:
            start, length, height = self.cooling_from
            return height * max(0.0, 1.0 - (self.step - start) / length)
        if self.step < self.n_warmup:
            return (self.step + 1) / self.n_warmup
        progress = (self.step - self.n_warmup) / max(1, self.n_steps - self.n_warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def on_batch_begin(self, net: skorch.NeuralNet, training: bool = False, **_: Any) -> None:
        """Set the learning rate."""
        if training:
            factor = self.rate_factor()
            for group, rate in zip(net.optimizer_.param_groups, self.base_rates, strict=True):
                group["lr"] = factor * rate

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
            self.step += 1
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

    def judge_end(self, net: skorch.NeuralNet) -> None:
        """Note whether the last epoch was the last possible one, and more of them would gain."""
        bounds = [row["valid_loss"] for row in net.history if "valid_loss" in row]
        if len(bounds) < self.n_epochs or self.cooling_from is not None:
            return
        least = np.minimum.accumulate([self.initial_bound, *bounds])
        n_last = max(1, len(bounds) // 4)
        gain, late = least[0] - least[-1], least[-1 - n_last] - least[-1]
        tolerance = max(LEAST_LATE_GAIN, LEAST_SHARE_OF_LATE_GAIN * gain)
        self.is_still_improving = bool(tolerance < late < math.inf)

    def best_net(self, net: skorch.NeuralNet) -> skorch.NeuralNet:
        """Return a copy of a net in training, with the best weights so far."""
        best = object.__new__(type(net))
        vars(best).update(vars(net) | {"module_": copy.deepcopy(net.module_).eval()})
        self.restore_best(best)
        return best

    def on_epoch_end(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Judge the epoch by its validation bound, and whether it is the last one."""
        self._average_losses(net)
        epoch = len(net.history)
        bound = net.history[-1].get("valid_loss", net.history[-1]["train_loss"])
        if not math.isfinite(bound) or not math.isfinite(net.history[-1]["train_loss"]):
            self._handle_divergence(net)
            return
        if bound < self.best:
            self.note_best(net, bound)
            self.best_epoch = epoch
        if self.on_epoch is not None:
            self.on_epoch(net, epoch)
        self.has_ended = self.report.epoch_ends(self, net) or epoch >= self.n_epochs
        if self.cooling_from is not None:
            self.has_ended |= self.step - self.cooling_from[0] >= self.cooling_from[1]
        elif self.patience is not None and epoch - self.best_epoch >= self.patience:
            height = self.rate_factor()
            self.restore_best(net)
            self.cooling_from = (self.step, max(1, self.step // 4), height)

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
        self.interrupted = None
        self.report = TrainingReport()

    def _handle_divergence(self, net: skorch.NeuralNet) -> None:
        if self.best_epoch == 0:
            raise FloatingPointError(
                f"Training diverged in epoch {len(net.history)}, before any was good: the loss is "
                "not finite. Lower learning_rate, or check the data for values far from all others."
            )
        warn(
            "Training diverged: the loss is not finite. The weights of the best epoch are used. A "
            "lower learning_rate avoids this.",
            ConvergenceWarning,
        )
        self.has_ended = True


@dataclass(frozen=True)
class TrainingPlan:
    """What one training needs besides the network and the data."""

    density: PiecewiseDensity
    adaptive: bool
    batch_size: int
    n_batches: int
    max_epochs: int
    learning_rate: float
    weight_decay: float
    patience: int | None
    n_validation_noises: int = 16
    micro_batch_size: int | None = None
    verbose: int = 0
    processes: Processes = ALONE


class _Net(skorch.NeuralNet):
    """skorch's net, with callbacks' requests to stop kept apart from the user's interrupts."""

    micro_batch_size: int | None = None
    #: Whether memory was not enough for parts of the size asked for.
    has_smaller_parts: bool = False

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call a method of all callbacks; skorch's way to stop is a KeyboardInterrupt.

        The last epoch ends for all callbacks, whichever of them ends the training.
        """
        try:
            super().notify(method_name, **cb_kwargs)
        except KeyboardInterrupt as stop:
            if method_name != "on_epoch_end":
                raise
            raise StopTraining from stop
        if method_name == "on_epoch_end" and dict(self.callbacks_)["control"].has_ended:
            raise StopTraining

    def _set_training(self, training: bool = True) -> None:
        """Change the mode of the modules if it is the other one: each step asks for it."""
        if self.module_.training != training:
            super()._set_training(training)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take the gradient of a batch, in smaller parts from where memory is not enough."""
        try:
            return self._train_step_in_parts(batch, **fit_params)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Outside of the handler, whose traceback would keep the tensors of the first attempt.
        self._use_smaller_parts(len(batch[1]), reason)
        return self.train_step_single(batch, **fit_params)

    def _use_smaller_parts(self, n_rows: int, reason: str) -> None:
        """Let batches be taken in parts of an eighth, once; then raise an error."""
        size = min(n_rows, self.micro_batch_size or n_rows)
        if self.has_smaller_parts:
            raise MemoryError(
                f"There is too little memory to train on {size} rows at a time ({reason}). Lower "
                "micro_batch_size, batch_size or hidden_size, or use another device."
            )
        release_memory()
        self._zero_grad_optimizer()
        self.has_smaller_parts, self.micro_batch_size = True, max(1, size // LESS)
        warn(
            f"There was too little memory to train on {size} rows at a time; going on with "
            f"{self.micro_batch_size}, as micro_batch_size={self.micro_batch_size} does.",
        )

    def _train_step_in_parts(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take the gradient of a batch, in parts if the batch would not fit into memory."""
        size = self.micro_batch_size
        n_rows = len(batch[1])
        if size is None or n_rows <= size:
            step: dict[str, Any] = super().train_step_single(batch, **fit_params)
            return step
        self._set_training(True)
        total = torch.zeros((), device=batch[1].device)
        for start in range(0, n_rows, size):
            part = {key: value[start : start + size] for key, value in batch[0].items()}
            output = self.infer(part, **fit_params)
            loss = output.sum() / n_rows
            loss.backward()
            total += loss.detach()
        return {"loss": total, "y_pred": output.detach()}

    def forget_training(self) -> None:
        """Drop what only training needs: moments, best weights, the data of the iterators."""
        self.optimizer_.clear_state()
        self.iterator_train = self.iterator_valid = torch.utils.data.DataLoader
        self.train_split = None
        share_dropout(self.module_, None)
        dict(self.callbacks_)["control"].forget()


def train(
    objective: DenoisingObjective,
    train_rows: RowDataset | StreamedRows,
    valid_rows: RowDataset,
    plan: TrainingPlan,
    generator: Generator,
    *,
    adapt: Callable[[Network], PiecewiseDensity] | None = None,
    callbacks: list[Any] | None = None,
    device: torch.device | str = "cpu",
    interrupted: threading.Event | None = None,
    report: TrainingReport | None = None,
) -> skorch.NeuralNet:
    """Train the objective's denoiser and return the skorch net with the best weights.

    Parameters
    ----------
    objective : DenoisingObjective
        Module to train, in place.
    train_rows : RowDataset or StreamedRows
        Rows to train on.
    valid_rows : RowDataset
        Rows to judge by.
    plan : TrainingPlan
        Sizes and rates.
    generator : torch.Generator
        Source of all randomness.
    adapt : callable or None, default=None
        Returns a new importance density from the averaged network.
    callbacks : list or None, default=None
        Further skorch callbacks.
    device : torch.device or str, default="cpu"
        Device of the network.
    interrupted : threading.Event or None, default=None
        Ends the training by a KeyboardInterrupt once it is set.
    report : TrainingReport or None, default=None
        Is told of the epochs.

    Returns
    -------
    NeuralNet
        The net; its history has ``train_loss`` and ``valid_loss`` in nats per row.

    Raises
    ------
    FloatingPointError
        If training diverges before any epoch was good.
    """
    if plan.max_epochs > 0 and not any(p.requires_grad for p in objective.parameters()):
        raise ValueError("denoiser has no parameters to train; set max_epochs=0 to evaluate it.")
    objective.to(device)
    n_points = objective.layout.n_points
    fixed = _validation_batches(valid_rows, plan, generator, objective.layout)
    share = plan.processes.share(plan.batch_size)
    if plan.processes.size > 1:
        share_dropout(objective, (share, plan.batch_size))
    sizes = (plan.batch_size, plan.n_batches, plan.density, generator, n_points, share)
    n_at_once = max(1, NUMBERS_MADE_AT_ONCE // (plan.batch_size * n_points))
    if isinstance(train_rows, StreamedRows):
        iterator: NoisyRowIterator = StreamedRowIterator(train_rows, *sizes)
    elif n_at_once == 1:
        iterator = NoisyRowIterator(train_rows, *sizes)
    else:
        iterator = NoisyRowIterator(train_rows, *sizes, n_at_once, objective.prepared)
        fixed = [(objective.prepared(batch), target) for batch, target in fixed]

    def on_epoch(net: skorch.NeuralNet, epoch: int) -> None:
        if adapt is not None and plan.adaptive and epoch in ADAPTATION_EPOCHS:
            iterator.set_density(adapt(net.module_.averaged))

    control = TrainingControl(
        plan.max_epochs * plan.n_batches,
        plan.max_epochs,
        plan.patience,
        n_warmup=min(50, max(1, plan.n_batches // 2)),
        on_epoch=on_epoch,
        interrupted=interrupted,
        initial_bound=mean_bound(objective, fixed, plan.processes),
        report=report,
        processes=plan.processes,
    )
    net = _Net(
        objective,
        criterion=MeanCriterion,
        **optimizer_settings(plan.learning_rate, plan.weight_decay),
        max_epochs=plan.max_epochs,
        iterator_train=lambda *_, **__: iterator,
        iterator_valid=lambda *_, **__: FixedNoiseIterator(fixed),
        train_split=predefined_split(valid_rows),
        callbacks=[("control", control), *(callbacks or [])],
        # The bar shows what this callback would print; others may print if it is verbose.
        callbacks__print_log=None,
        verbose=plan.verbose,
        device=device,
    )
    net.micro_batch_size = plan.micro_batch_size
    net.initialize()
    if plan.max_epochs == 0:
        return net
    # The iterators hold the rows; skorch only asks whether there are as many targets.
    net.notify("on_train_begin", X=valid_rows, y=None)
    with contextlib.suppress(StopTraining):
        net.fit_loop(valid_rows, epochs=plan.max_epochs)
    control.restore_best(net)
    control.judge_end(net)
    net.module_.eval()
    control.report.ends(control, net)
    net.notify("on_train_end", X=valid_rows, y=None)
    return net


@torch.no_grad()
def mean_bound(
    objective: DenoisingObjective, batches: Batches, processes: Processes = ALONE
) -> float:
    """Return the averaged network's bound on the validation batches of all processes, in nats."""
    objective.eval()
    total = sum(float(objective(**batch).sum()) for batch, _ in batches)
    n_rows = sum(len(target) for _, target in batches)
    return processes.mean(total / n_rows, n_rows, batches[0][1].device)


def _validation_batches(
    rows: RowDataset, plan: TrainingPlan, generator: Generator, layout: Layout
) -> Batches:
    """Return noisy validation rows, several stratified log-SNRs for each row."""
    # The order of rows is random in all but name, so the first ones are a fair sample.
    rows = rows.first(max(LEAST_VALIDATION_ROWS, MOST_VALIDATION_NUMBERS // layout.n_points))
    most = MOST_VALIDATION_NUMBERS // (len(rows) * layout.n_points)
    enough = min(ENOUGH_NOISY_ROWS, MOST_VALIDATION_LEVELS // max(layout.n_level_points, 1))
    most = min(most, enough // len(rows))
    n_noises = int(np.clip(most, 1, plan.n_validation_noises))
    n_total = len(rows) * n_noises
    # Where the schedule hardly samples, weights would be so large that few rows decide.
    uniform = np.diff(plan.density.edges) / np.ptp(plan.density.edges)
    share = SHARE_OF_UNIFORM_VALIDATION
    mass = (1.0 - share) * plan.density.mass + share * uniform
    density = PiecewiseDensity(plan.density.edges, mass)
    mine = plan.processes.share(n_total)
    source = NoisyRowIterator(rows, 1, 1, density, generator, layout.n_points, mine)
    repeated = rows.rows.repeat_interleave(n_noises, dim=0)
    ((batch, target),) = source.batches(repeated)
    weight = torch.from_numpy(rows.weight / rows.weight.mean()).float()
    weight = weight.repeat_interleave(n_noises)[mine].to(repeated.device)
    batch["importance"] = batch["importance"] * weight
    size = int(np.clip(2**24 // max(layout.n_level_points, 1), 64, 4096))
    size = min(size, max(16, NUMBERS_IN_A_VALIDATION_BATCH // layout.n_points))
    size = min(size, plan.micro_batch_size or size)
    return [
        ({key: value[i : i + size] for key, value in batch.items()}, target[i : i + size])
        for i in range(0, len(target), size)
    ]
