"""One fit in several processes, on one machine or many.

Inside `shared_fit` the processes that a launcher has started (``torchrun``, ``accelerate launch``)
fit one estimator together.  Each holds the same rows and draws every batch, its log-SNRs and its
noise from the same seed, but works only on its own share of the batch; gradients are averaged, and
so are the losses by which epochs are evaluated.  A batch, the strata of its log-SNRs included, is
thus the one that a single process would have, and so is the result, up to rounding.

The averaging is a plain ``all_reduce`` of torch between the gradient and the optimiser.  The
wrappers of Accelerate or `DistributedDataParallel` would not save it any work: they shard data
loaders, where the batches here are made in memory from one seed, they wrap the module, of which
the moving average is a copy, and they wrap the optimiser, which is two in one.  Whichever launcher
sets the usual variables of the environment will do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

__all__ = ["ALONE", "Processes", "current_processes", "shared_fit"]

Result = TypeVar("Result")

#: How long processes wait for one another, for instance while the first one fits the references.
MAX_WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """The processes that fit together, as one of them sees them.

    Attributes
    ----------
    rank : int
        Number of this process; the first is 0.
    size : int
        How many processes there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> slice:
        """Return which of n items are this process's."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def from_first(self, function: Callable[[], Result]) -> Result:
        """Return the result of a function that only the first process calls, or raise its error."""
        if self.size == 1:
            return function()
        result: list[object] = [None, None]
        if self.rank == 0:
            try:
                result[0] = function()
            except Exception as error:
                result[1] = error
        distributed.broadcast_object_list(result, src=0)
        if isinstance(result[1], Exception):
            raise result[1]
        return result[0]  # type: ignore[return-value]

    def mean(self, value: float, weight: float, device: torch.device | str = "cpu") -> float:
        """Return the weighted mean of a number over all processes."""
        if self.size == 1:
            return value
        sums = torch.tensor([value * weight, weight], dtype=torch.float64, device=device)
        distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their means over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(means)
        means /= self.size
        parts = means.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def placed(self, device: torch.device) -> torch.device:
        """Return this process's own device of a kind, where only the kind is given."""
        if self.size > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        return device


#: A fit in one process.
ALONE = Processes()
_current: ContextVar[Processes] = ContextVar("processes", default=ALONE)


def current_processes() -> Processes:
    """Return the processes that fit together here: this one alone, but inside `shared_fit`."""
    return _current.get()


@contextmanager
def shared_fit() -> Iterator[Processes]:
    """Let all processes of a launcher fit an estimator together.

    Each process runs the same script: it reads the same rows and calls `fit` of an estimator with
    the same parameters.  All have the fitted estimator then.  ``batch_size`` is that of all
    processes together and must be a multiple of their number.  Further callbacks run in each
    process.

    A process takes the GPU whose number is its rank on its machine, if there are any.  The process
    group is made here, and ended here, unless there is one already.  Without a launcher this does
    nothing.

    Yields
    ------
    Processes
        With the attributes ``rank`` and ``size``: save and print where ``rank`` is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> from sk_itdiffusion.distributed import shared_fit
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> with shared_fit() as processes:
    ...     density = IMMSEDensity(max_epochs=1, random_state=0).fit(X)
    >>> processes.rank, processes.size
    (0, 1)
    """
    is_new = not (distributed.is_available() and distributed.is_initialized())
    if is_new and "RANK" not in os.environ:
        yield ALONE
        return
    if is_new:
        distributed.init_process_group(timeout=MAX_WAIT)
    token = _current.set(Processes(distributed.get_rank(), distributed.get_world_size()))
    try:
        with own_gpu():
            yield _current.get()
    finally:
        _current.reset(token)
        if is_new:
            distributed.destroy_process_group()


def own_gpu() -> torch.cuda.device | nullcontext[None]:
    """Return a context in which the GPU of this process is the current one."""
    n_gpus = torch.cuda.device_count()
    if n_gpus == 0:
        return nullcontext()
    return torch.cuda.device(int(os.environ.get("LOCAL_RANK", 0)) % n_gpus)
