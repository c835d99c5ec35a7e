r"""Training by the bound on the negative log-likelihood, through skorch.

For one noisy row the bound is :math:`-\frac12 w [\,|\epsilon - \epsilon_q|^2
- |\epsilon - \hat\epsilon|^2\,]`, with w the importance of its log-SNR: the gain over the reference
that the network corrects, negative.  Epochs are judged by what the network gains over the best
reference once it is mixed with it, in cells of the log-SNR.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from skorch.helper import predefined_split
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sk_itdiffusion._immse.channel import noised
from sk_itdiffusion._immse.placement import Placement
from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion.networks.base import CorrectedReference
from sk_itdiffusion.networks.course import Course
from sk_itdiffusion.networks.optimizer import MuonAdamW
from sk_itdiffusion.references.base import Reference

__all__ = ["Training", "TrainingData", "train"]

Array = NDArray[np.float64]
EMA_DECAY, MAX_NORM = 0.995, 1.0
#: Cells of the log-SNR in which a network is mixed with the best reference to judge an epoch.
N_CELLS = 16
#: Noisy validation rows of an epoch, and batches that are made at once.
NOISY_ROWS, BATCHES_AT_ONCE = 4_096, 8
#: Epochs after which the density of the log-SNR is fitted to the gap.
ADAPTATIONS = (4, 12, 30)


class Training(BaseEstimator):
    """How a network is trained.

    Parameters
    ----------
    batch_size : int, default=512
        Noisy rows in a step, at least 1.
    learning_rate : float, default=0.03
        Learning rate of the hidden layers (Muon), positive; that of all other parameters (AdamW) is
        0.15 times as large.
    weight_decay : float or "auto", default="auto"
        Weight decay of the hidden layers, at least 0; ``"auto"`` is larger for fewer rows.
    steps_per_epoch : int or "auto", default="auto"
        Steps in an epoch, at least 1; ``"auto"`` is between 10 and 160, more for more rows.
    tol : float or "auto", default="auto"
        Nats for which twice the steps are worthwhile, at least 0; ``"auto"`` is 0.02, or 0.002 for
        each column if that is more.
    n_iter_no_change : int, default=6
        Epochs without improvement after which training ends, at least 1; a third of all if that is
        more.

    Examples
    --------
    >>> from sk_itdiffusion.networks.training import Training
    >>> Training(batch_size=256)
    Training(batch_size=256)
    """

    def __init__(
        self,
        batch_size: int = 512,
        learning_rate: float = 0.03,
        weight_decay: float | str = "auto",
        steps_per_epoch: int | str = "auto",
        tol: float | str = "auto",
        n_iter_no_change: int = 6,
    ) -> None:
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps_per_epoch = steps_per_epoch
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change

    def epoch_length(self, n_rows: int) -> int:
        """Return the steps of an epoch."""
        if isinstance(self.steps_per_epoch, int):
            return self.steps_per_epoch
        return round(float(np.clip(max(min(n_rows, 1_500), n_rows / 3), 400, 6_400)) / 40)

    def tolerance(self, n_columns: int) -> float:
        """Return the nats for which twice the steps are worthwhile."""
        return max(0.02, 0.002 * n_columns) if isinstance(self.tol, str) else self.tol


def scarcity(n_rows: int) -> float:
    """Return how strong regularisation has to be, between 0 and 1, for a number of rows."""
    return float(np.clip(math.log(30_000.0 / n_rows) / math.log(30.0), 0.0, 1.0)) ** 3


@dataclass(frozen=True)
class TrainingData:
    """What a training sees.

    Attributes
    ----------
    train, valid : Tensor of shape (n, d)
        Points; NaN is missing.
    weight : Tensor of shape (n,)
        Weights of the training rows.
    placement : Placement
        Density of the log-SNR in training.
    best : Reference
        The reference that the network has to improve on.
    has_parts : bool
        Whether the network is trained on parts of rows too.
    is_adaptive : bool
        Whether the density of the log-SNR is fitted again to the measured gap.
    """

    train: Tensor
    valid: Tensor
    weight: Tensor
    placement: Placement
    best: Reference
    has_parts: bool
    is_adaptive: bool


class Objective(nn.Module):
    """The bound of noisy rows; in evaluation that of the averaged weights."""

    def __init__(self, network: CorrectedReference) -> None:
        super().__init__()
        self.network = network
        self.averaged = AveragedModel(network, multi_avg_fn=_moved_towards)
        self.judged: list[Tensor] = []

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        target: Tensor,
        given: Tensor,
        missed: Tensor,
        importance: Tensor,
        left: Tensor | None = None,
    ) -> Tensor:
        """Return the bound in nats, (B,).

        Parameters
        ----------
        z, logsnr, target, given : Tensor
            Noisy points, log-SNRs, and roles as numbers.
        missed : Tensor of shape (B, d)
            What the reference that is corrected leaves of the noise.
        importance : Tensor of shape (B,)
            Weights of the log-SNRs.
        left : Tensor of shape (B, d) or None, default=None
            Of validation rows, what the best reference leaves of the noise.
        """
        network = self.network
        if not self.training:
            network = cast("CorrectedReference", self.averaged.module)
        correction = network.correction(z, logsnr, target, given)
        if left is not None:
            better = left - (missed - correction)
            self.judged.append(torch.stack([(left * better).sum(1), better.square().sum(1)]))
        bound: Tensor = -0.5 * importance * (correction * (2.0 * missed - correction)).sum(1)
        return bound


@torch.no_grad()
def _moved_towards(averages: Any, current: Any, n: int | Tensor) -> None:
    """Move averaged weights towards the current ones, faster in the first steps."""
    decay = min(EMA_DECAY, (int(n) + 1) / (int(n) + 10))
    torch._foreach_lerp_(averages, current, 1.0 - decay)


class Mean(nn.Module):
    """The mean of the module's output; there are no targets."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean."""
        return output.mean()


class NoisyRows:
    """Batches of rows with log-SNRs, roles and noise, in the form that skorch takes.

    Rows are taken in proportion to their weights, by systematic sampling, and log-SNRs are
    stratified over each batch.
    """

    def __init__(
        self,
        data: TrainingData,
        network: CorrectedReference,
        batch_size: int,
        n_batches: int,
        generator: Generator,
    ) -> None:
        self.data, self.network, self.generator = data, network, generator
        self.batch_size, self.n_batches = batch_size, n_batches
        self.placement = data.placement
        self._share = torch.cumsum(data.weight / data.weight.sum(), 0)

    def __len__(self) -> int:
        return self.n_batches

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def _rows(self, n: int) -> Tensor:
        marks = (torch.arange(n, dtype=torch.float64) + self._rand(1)) / n
        index = torch.searchsorted(self._share, marks).clamp(max=len(self._share) - 1)
        return self.data.train[index[torch.randperm(n, generator=self.generator)]]

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for start in range(0, self.n_batches, BATCHES_AT_ONCE):
            n_batches = min(BATCHES_AT_ONCE, self.n_batches - start)
            x = self._rows(n_batches * self.batch_size)
            order = self._rand(n_batches, self.batch_size).argsort(1)
            position = (order + self._rand(n_batches, self.batch_size)) / self.batch_size
            logsnr = self.placement.quantile(position.numpy().ravel())
            roles = drawn_roles(x, self.generator) if self.data.has_parts else observed_roles(x)
            batch = noisy_batch(x, logsnr, roles, self.placement, self.network, self.generator)
            parts = zip(*(value.chunk(n_batches) for value in batch.values()), strict=True)
            for part in parts:
                yield dict(zip(batch, part, strict=True)), torch.zeros(len(part[0]))


def observed_roles(x: Tensor) -> Roles:
    """Return the roles in which all observed entries are targets."""
    return Roles.of_rows(x.numpy(), np.zeros(x.shape[1], dtype=bool))


def drawn_roles(x: Tensor, generator: Generator) -> Roles:
    """Return random roles: whole rows in half of the batch, else some columns given or missing."""
    n_columns = x.shape[1]
    observed = ~np.isnan(x.numpy())
    kinds = torch.randint(8, (), generator=generator).item()
    target, given = np.ones(n_columns, dtype=bool), np.zeros(n_columns, dtype=bool)
    if kinds >= 4:
        chance = torch.rand(n_columns, generator=generator).numpy()
        target = chance < 0.5
        target[int(chance.argmin())] = True
        given = ~target if kinds >= 6 else np.zeros(n_columns, dtype=bool)
        if kinds == 7:
            given = given & (torch.rand(n_columns, generator=generator).numpy() < 0.5)
    if observed.all():
        return Roles(target, given)
    return Roles(observed & target, observed & given)


@torch.no_grad()
def noisy_batch(
    x: Tensor,
    logsnr: Array,
    roles: Roles,
    placement: Placement,
    network: CorrectedReference,
    generator: Generator,
    best: Reference | None = None,
) -> dict[str, Tensor]:
    """Return noisy rows with all that does not depend on the weights of the network."""
    target, given = (
        torch.from_numpy(np.broadcast_to(mask, x.shape).astype(np.float32))
        for mask in (roles.target, roles.given)
    )
    level = torch.from_numpy(logsnr)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64) * target
    z = noised(x.nan_to_num(), eps, level, roles)
    batch = {
        "z": z.float(),
        "logsnr": level.float(),
        "target": target,
        "given": given,
        "missed": (eps - network.reference.denoise(z, level, roles)).float(),
        "importance": torch.from_numpy(1.0 / placement.density(logsnr)).float(),
    }
    if best is not None:
        batch["left"] = (eps - best.denoise(z, level, roles)).float()
    return batch


class FixedBatches:
    """The same noisy validation rows in every epoch, so that epochs compare."""

    def __init__(
        self, data: TrainingData, network: CorrectedReference, generator: Generator
    ) -> None:
        n_noises = int(np.clip(math.ceil(NOISY_ROWS / len(data.valid)), 4, 64))
        self.n_rows = len(data.valid)
        x = data.valid.repeat(n_noises, 1)
        position = (np.arange(len(x)) + 0.5) / len(x)
        # Each row has log-SNRs from all over the range.
        logsnr = data.placement.quantile(position)
        roles = observed_roles(x)
        batch = noisy_batch(x, logsnr, roles, data.placement, network, generator, data.best)
        self.logsnr, self.importance = logsnr, batch["importance"].double().numpy()
        self.batches = [
            dict(zip(batch, part, strict=True))
            for part in zip(*(value.split(2_048) for value in batch.values()), strict=True)
        ]

    def height(self, judged: Sequence[Tensor], edges: Array) -> Array:
        """Return the root mean square of the gap in cells of the log-SNR."""
        products, squares = torch.cat(list(judged), 1).double().numpy()
        cell = np.clip(np.searchsorted(edges, self.logsnr) - 1, 0, len(edges) - 2)
        total = np.bincount(cell, np.square(2.0 * products - squares), len(edges) - 1)
        return np.sqrt(total / np.maximum(np.bincount(cell, minlength=len(edges) - 1), 1))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in self.batches:
            yield batch, torch.zeros(len(batch["z"]))

    def gain(self, judged: Sequence[Tensor], edges: Array) -> tuple[float, float]:
        """Return what the network gains once it is mixed with the best reference, and its error.

        The share of the network in a cell of the log-SNR is the one of least error there.
        """
        products, squares = torch.cat(list(judged), 1).double().numpy()
        cell = np.clip(np.searchsorted(edges, self.logsnr) - 1, 0, len(edges) - 2)
        n_cells = len(edges) - 1
        total = np.bincount(cell, self.importance * products, n_cells)
        size = np.bincount(cell, self.importance * squares, n_cells)
        share = np.clip(total / np.maximum(size, 1e-12), 0.0, 1.0)[cell]
        gains = 0.5 * self.importance * share * (2.0 * products - share * squares)
        by_row = gains.reshape(-1, self.n_rows).mean(axis=0)
        error = by_row.std(ddof=1) / math.sqrt(self.n_rows) if self.n_rows > 1 else 0.0
        return float(by_row.mean()), float(error)


class Control(skorch.callbacks.Callback):
    """Learning rate, clipping, averaging, judgement and end of a training."""

    def __init__(
        self,
        course: Course,
        batches: NoisyRows,
        valid: FixedBatches,
        edges: Array,
        report: Callable[[int, float], None] | None = None,
    ) -> None:
        self.course, self.batches, self.valid = course, batches, valid
        self.edges, self.report = edges, report
        self.best = math.inf
        self.best_state: dict[str, Tensor] | None = None

    def on_train_begin(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Remember the rates."""
        self.rates = [group["lr"] for group in net.optimizer_.param_groups]
        self.best_state = copy.deepcopy(net.module_.averaged.module.state_dict())
        self.best = 0.0

    def on_batch_begin(self, net: skorch.NeuralNet, training: bool = False, **_: Any) -> None:
        """Set the learning rate."""
        if training:
            for group, rate in zip(net.optimizer_.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.course.factor

    def on_grad_computed(self, net: skorch.NeuralNet, training: bool = False, **_: Any) -> None:
        """Clip the norm of the gradient."""
        if training:
            torch.nn.utils.clip_grad_norm_(net.module_.network.parameters(), MAX_NORM)

    def on_batch_end(self, net: skorch.NeuralNet, training: bool = False, **_: Any) -> None:
        """Average the weights."""
        if training:
            net.module_.averaged.update_parameters(net.module_.network)
            self.course.advance()

    def on_epoch_end(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Judge the epoch, and whether it is the last one."""
        judged = net.module_.judged
        gain, error = self.valid.gain(judged, self.edges)
        net.module_.judged = []
        if not math.isfinite(gain) or not math.isfinite(net.history[-1]["train_loss"]):
            self.course.ended_by = "divergence"
            raise TrainingEnd
        net.history.record("valid_gain", gain)
        if -gain < self.best:
            self.best = -gain
            self.best_state = copy.deepcopy(net.module_.averaged.module.state_dict())
        if self.batches.data.is_adaptive and len(net.history) in ADAPTATIONS:
            measured = Placement.from_profile(
                self.edges, self.valid.height(judged, self.edges), floor=0.1
            )
            self.batches.placement = self.batches.data.placement.mixed_with(measured)
        if self.report is not None:
            self.report(len(net.history), gain)
        if self.course.judge(-gain, error) or self.course.has_ended:
            raise TrainingEnd


class TrainingEnd(Exception):  # noqa: N818
    """The training has ended."""


def train(
    network: CorrectedReference,
    data: TrainingData,
    settings: Training,
    max_epochs: int,
    seconds: float | None,
    generator: Generator,
    callbacks: Sequence[Any] = (),
    report: Callable[[int, float], None] | None = None,
    weight_decay: float = 0.0,
) -> skorch.NeuralNet:
    """Return the trained net, whose module is the network with its best averaged weights.

    Raises
    ------
    FloatingPointError
        If the training diverges before any epoch was good.
    """
    n_steps = settings.epoch_length(len(data.train))
    tol = settings.tolerance(data.train.shape[1])
    course = Course(max_epochs * n_steps, tol, settings.n_iter_no_change, seconds)
    batches = NoisyRows(data, network, settings.batch_size, n_steps, generator)
    valid = FixedBatches(data, network, generator)
    edges = np.linspace(data.placement.edges[0], data.placement.edges[-1], N_CELLS + 1)
    control = Control(course, batches, valid, edges, report)
    rows = torch.utils.data.TensorDataset(data.train[:1])
    net = skorch.NeuralNet(
        Objective(network),
        criterion=Mean,
        optimizer=MuonAdamW,
        lr=settings.learning_rate,
        optimizer__weight_decay=weight_decay,
        optimizer__param_groups=[
            ("network.backbone.blocks.*.expand.weight", {"hidden": True}),
            ("network.backbone.blocks.*.contract.weight", {"hidden": True}),
        ],
        max_epochs=max_epochs,
        iterator_train=lambda dataset, **_: batches,
        iterator_valid=lambda dataset, **_: valid,
        train_split=predefined_split(rows),
        callbacks=[("control", control), *callbacks],
        callbacks__print_log=None,
        verbose=0,
    ).initialize()
    # The method fit of skorch would swallow the user's interrupts.
    net.notify("on_train_begin", X=rows, y=None)
    with contextlib.suppress(TrainingEnd):
        net.fit_loop(rows)
    net.notify("on_train_end", X=rows, y=None)
    if course.ended_by == "divergence" and not course.bounds:
        raise FloatingPointError(
            "Training diverged in the first epoch: the loss is not finite. Lower "
            "training__learning_rate, or check the data for extreme values."
        )
    assert control.best_state is not None
    network.load_state_dict(control.best_state)
    network.eval()
    return net
