"""Training of denoisers through skorch, by the bound on the negative log-likelihood."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from skorch.helper import predefined_split
from torch import Generator, Tensor, nn

from sk_itdiffusion._first._fit.batches import (
    Batches,
    FixedNoiseIterator,
    NoisyRowIterator,
    NoisyRows,
    StreamedRowIterator,
)
from sk_itdiffusion._first._fit.course import Limits
from sk_itdiffusion._first._fit.judgement import Judgement, unexplained_noise
from sk_itdiffusion._first._fit.optimizers import optimizer_settings
from sk_itdiffusion._first._fit.training_control import (
    FIRST_ADAPTATION,
    StopTraining,
    TrainingControl,
    UntilItsEnd,
)
from sk_itdiffusion._first._fit.training_report import TrainingReport
from sk_itdiffusion._first._immse.cubature import PiecewiseDensity
from sk_itdiffusion._first._runtime.memory import LESS, is_out_of_memory, release_memory
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.streams import RowDataset, StreamedRows
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.denoisers import (
    LevelDenoiser,
    PreconditionedDenoiser,
    ReferencedDenoiser,
)
from sk_itdiffusion._first.denoisers.mlp import share_dropout
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion.distributed import ALONE, Processes

__all__ = [
    "DenoisingObjective",
    "RowDataset",
    "TrainingPlan",
    "train",
]

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]
Network = PreconditionedDenoiser | LevelDenoiser | ReferencedDenoiser
#: Parameters of an average and of what it follows, then the buffers of both.
Averages = list[tuple[list[Tensor], list[Tensor]]]
#: Numbers in the noisy validation rows: judging an epoch of images must not take as long as it.
MAX_VALIDATION_NUMBERS = 2**21
NUMBERS_IN_A_VALIDATION_BATCH = 2**19
#: Numbers in the noise of the batches that are made together.
NUMBERS_MADE_AT_ONCE = 2**16
SHARE_OF_UNIFORM_VALIDATION = 0.3
#: Rows that evaluate an epoch in any case.
MIN_VALIDATION_ROWS = 1_000
#: Noisy validation rows that are no more repeated; judging an epoch must not take as long as it.
MAX_REPEATED_ROWS = 16_384
#: Posterior probabilities of levels in judging an epoch; images of long lattices have many.
MAX_VALIDATION_CATEGORIES = 10**8


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
        What is minimised for discrete columns: the bound, or the cross-entropy of the categories'
        posterior, which has the same optimum.  Evaluation is always the bound.
    """

    #: Whether training needs what `with_constants` returns, and not only if it saves time.
    prepares_rows: ClassVar[bool] = False

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
        #: Is told, in evaluation, of rows of which it is known what references leave unexplained.
        self.judgement: Judgement | None = None

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
    def with_constants(self, batch: NoisyRows) -> NoisyRows:
        """Return noisy rows with all computed that does not depend on the weights.

        Of networks that correct a reference of continuous columns those are the noisy points
        ``z``, what of the noise the reference has ``missed``, and `constants` of the network;
        other networks' rows are returned as they are.
        """
        if not isinstance(self.denoiser, PreconditionedDenoiser):
            return batch
        z = add_noise(self.layout.embed(batch["x"]), batch["eps"], batch["logsnr"])
        kept = ("logsnr", "importance", "unexplained")
        known = {"z": z} | {key: batch[key] for key in kept if key in batch}
        constants = self.denoiser.constants(z, batch["logsnr"])
        return known | {"missed": batch["eps"] - constants.pop("baseline")} | constants

    def judged(
        self, batches: Batches, references: Sequence[Callable[[Tensor, Tensor], Tensor]]
    ) -> Batches:
        """Evaluate with references, if there are any; return validation rows with what that needs.

        That is what the best reference of each interval of the log-SNR leaves of the noise.
        """
        if not references:
            return batches
        rows = [batch for batch, _ in batches]
        judgement = Judgement(torch.cat([batch["logsnr"] for batch in rows]), self.offset)
        self.judgement = judgement
        left = unexplained_noise(rows, self.layout, references, judgement)
        return [
            (batch | {"unexplained": each}, target)
            for (batch, target), each in zip(batches, left, strict=True)
        ]

    def forward(self, logsnr: Tensor, importance: Tensor, **rows: Tensor) -> Tensor:
        """Return the bound in nats, shape (B,), without cancellation against the reference.

        Parameters
        ----------
        logsnr, importance : Tensor of shape (B,)
            Log-SNRs and their weights.
        **rows : Tensor
            Clean rows ``x`` and noise ``eps``, or what `with_constants` has built from them; of
            validation rows also what references leave ``unexplained`` of the noise.
        """
        network = self.denoiser if self.training else self.averaged
        unexplained, kind = rows.pop("unexplained", None), rows.pop("kind", None)
        if "missed" in rows and isinstance(network, PreconditionedDenoiser):
            missed = rows.pop("missed")
            correction = network.correction(logsnr=logsnr, **rows)
        else:
            x, eps = rows["x"], rows["eps"]
            z = add_noise(self.layout.embed(x), eps, logsnr)
            is_told_categories = self.training and self.loss == "cross_entropy"
            if is_told_categories and isinstance(network, LevelDenoiser):
                return self.offset - importance * network.information_gain(x, z, eps, logsnr)
            baseline, correction = network.parts(z, logsnr)
            missed = eps - baseline
        self.tell_judgement(logsnr, importance, missed, correction, unexplained, kind)
        gain = (correction * (2.0 * missed - correction)).sum(1)
        return self.offset - 0.5 * importance * gain

    def tell_judgement(
        self,
        logsnr: Tensor,
        importance: Tensor,
        missed: Tensor,
        correction: Tensor,
        unexplained: Tensor | None,
        kind: Tensor | None,
    ) -> None:
        """Tell of validation rows, with references if it is known what these leave of the noise."""
        if self.judgement is None or self.training or (unexplained is None and kind is None):
            return
        left = missed if unexplained is None else unexplained
        self.judgement.add(logsnr, importance, missed, correction, left, kind)


class MeanCriterion(nn.Module):
    """Mean of the module's output; there are no targets."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean."""
        return output.mean()


@dataclass(frozen=True)
class TrainingPlan:
    """What one training needs besides the network and the data."""

    density: PiecewiseDensity
    adaptive: bool
    batch_size: int
    limits: Limits
    learning_rate: float
    weight_decay: float
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
            f"There was too little memory to train on {size} rows at a time; continuing with "
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
        self.module_.judgement = None
        dict(self.callbacks_)["control"].forget()


class LoadedNet(_Net):
    """A trained net without what only training needs."""

    def initialize_optimizer(self, *_: Any, **__: Any) -> LoadedNet:
        """Leave the optimiser away."""
        return self


def stored_net(net: _Net) -> dict[str, Any]:
    """Return the averaged network, which both networks are when it is loaded, and the history."""
    objective = net.module_
    history = [
        {name: entry for name, entry in row.items() if isinstance(entry, Real | np.bool_)}
        for row in net.history
    ]
    return {
        "network": objective.averaged,
        "layout": objective.layout,
        "decay": objective.decay,
        "offset": objective.offset,
        "loss": objective.loss,
        "n_updates": objective.n_updates,
        "history": history,
    }


def loaded_net(
    network: Network,
    layout: Layout,
    decay: float,
    offset: float,
    loss: Literal["mse", "cross_entropy"],
    n_updates: int,
    history: list[dict[str, Any]],
    device: torch.device,
) -> LoadedNet:
    """Return the net that `stored_net` tells of, on a device."""
    objective = DenoisingObjective(network, layout, decay, offset, loss)
    objective.n_updates = n_updates
    net: LoadedNet = LoadedNet(
        objective.eval(),
        criterion=MeanCriterion,
        callbacks="disable",
        train_split=None,
        verbose=0,
        device=device,
    ).initialize()
    for row in history:
        net.history.new_epoch()
        for name, entry in row.items():
            net.history.record(name, entry)
    return net


stored(name="Net", has_derived=True, is_placed=True, config=stored_net, make=loaded_net)(_Net)


def train(
    objective: DenoisingObjective,
    train_rows: RowDataset | StreamedRows,
    valid_rows: RowDataset,
    plan: TrainingPlan,
    generator: Generator,
    *,
    references: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
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
        Rows to evaluate by.
    plan : TrainingPlan
        Sizes, rates and limits.
    generator : torch.Generator
        Source of all randomness.
    references : sequence of callable, default=()
        Other denoisers, in single precision, with which the network will be mixed, and with which
        it is evaluated.
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
        If training diverges in the first epoch.
    """
    if plan.limits.n_epochs > 0 and not any(p.requires_grad for p in objective.parameters()):
        raise ValueError("denoiser has no parameters to train; set max_epochs=0 to use it as is.")
    objective.to(device)
    n_points = objective.layout.n_points
    fixed = _validation_batches(valid_rows, plan, generator, objective.layout)
    fixed = objective.judged(fixed, references)
    share = plan.processes.share(plan.batch_size)
    if plan.processes.size > 1:
        share_dropout(objective, (share, plan.batch_size))
    sizes = (plan.batch_size, plan.limits.steps_per_epoch, plan.density, generator, n_points, share)
    n_at_once = max(1, NUMBERS_MADE_AT_ONCE // (plan.batch_size * n_points))
    is_stream = isinstance(train_rows, StreamedRows)
    prepare = None
    if objective.prepares_rows or (n_at_once > 1 and not is_stream):
        prepare = objective.with_constants
        fixed = [(prepare(batch), target) for batch, target in fixed]
    if isinstance(train_rows, StreamedRows):
        iterator: NoisyRowIterator = StreamedRowIterator(train_rows, *sizes, 1, prepare)
    else:
        iterator = NoisyRowIterator(train_rows, *sizes, n_at_once, prepare)

    def on_epoch(net: skorch.NeuralNet, epoch: int) -> None:
        if adapt is not None and plan.adaptive and is_adapted_after(epoch):
            iterator.set_density(adapt(net.module_.averaged))

    def judged(bound: float) -> list[float]:
        return judged_bounds(objective, bound, plan.processes)

    control = TrainingControl(
        plan.limits,
        on_epoch=on_epoch,
        interrupted=interrupted,
        measured=lambda: mean_bound(objective, fixed, plan.processes),
        judged=judged,
        report=report,
        processes=plan.processes,
    )
    net = _Net(
        objective,
        criterion=MeanCriterion,
        **optimizer_settings(plan.learning_rate, plan.weight_decay),
        max_epochs=plan.limits.n_epochs,
        iterator_train=lambda *_, **__: UntilItsEnd(iterator, control),
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
    if plan.limits.n_epochs == 0:
        return net
    # The iterators hold the rows; skorch only asks whether there are as many targets.
    net.notify("on_train_begin", X=valid_rows, y=None)
    with contextlib.suppress(StopTraining):
        net.fit_loop(valid_rows, epochs=plan.limits.n_epochs)
    control.restore_best(net)
    control.judge_end(net)
    net.module_.eval()
    control.report.ends(control, net)
    net.notify("on_train_end", X=valid_rows, y=None)
    return net


def is_adapted_after(epoch: int) -> bool:
    """Return whether the importance density is refitted: after 2, 6, 14, 30, 62, ... epochs."""
    return epoch >= FIRST_ADAPTATION and (epoch + 2).bit_count() == 1


def judged_bounds(
    objective: DenoisingObjective, bound: float, processes: Processes = ALONE
) -> list[float]:
    """Return the bounds of the kinds of rows that were evaluated last, in nats.

    They are those with references, if there are any.
    """
    judgement = objective.judgement
    if judgement is None or judgement.n_rows == 0:
        return [bound]
    device = next(objective.parameters()).device
    return [processes.mean(each, n_rows, device) for each, n_rows in judgement.take()]


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
    rows = rows.first(max(MIN_VALIDATION_ROWS, MAX_VALIDATION_NUMBERS // layout.n_points))
    rows = rows.with_weight
    most = MAX_VALIDATION_NUMBERS // (len(rows) * layout.n_points)
    enough = min(MAX_REPEATED_ROWS, MAX_VALIDATION_CATEGORIES // max(layout.n_category_points, 1))
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
    size = int(np.clip(2**24 // max(layout.n_category_points, 1), 64, 4096))
    size = min(size, max(16, NUMBERS_IN_A_VALIDATION_BATCH // layout.n_points))
    size = min(size, plan.micro_batch_size or size)
    return [
        ({key: value[i : i + size] for key, value in batch.items()}, target[i : i + size])
        for i in range(0, len(target), size)
    ]
