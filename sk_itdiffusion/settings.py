"""The parameters of an estimator, resolved and checked, in the form that a fit takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sk_itdiffusion.callbacks import FitTasks
from sk_itdiffusion.denoisers import MLPFamily, NetworkFamily, NetworkTask
from sk_itdiffusion.distributed import ALONE, Processes
from sk_itdiffusion.model import TableModel
from sk_itdiffusion.pretrained import PretrainedDenoiser
from sk_itdiffusion.references import ContinuousReference
from sk_itdiffusion.references.families import BUILT_IN_FAMILIES, ReferenceFamily
from sk_itdiffusion.schedules import Schedule
from sk_itdiffusion.streams import Stream

__all__ = [
    "FitSettings",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FitSettings:
    """The estimator's parameters, resolved and checked."""

    reference: str | ContinuousReference
    experts: str | Sequence[str]
    marginals: str
    schedule: Schedule
    hidden_size: int
    n_blocks: int
    n_frequencies: int
    dropout: float | None
    weight_decay: float | None
    max_epochs: int
    steps_per_epoch: int | None
    batch_size: int
    learning_rate: float
    patience: int | None
    validation_fraction: float
    n_strata: int
    n_draws: int
    n_directions: int | None
    device: torch.device
    callbacks: Sequence[Any] = ()
    verbose: int = 0
    feature_names: Sequence[str] | None = None
    is_discrete: bool = False
    preconditioner: str = "independent"
    loss: str = "mse"
    image_shape: tuple[int, ...] | None = None
    #: What the networks are, and the kind of table that they are for.
    network: NetworkFamily = field(default_factory=MLPFamily)
    task: NetworkTask = field(default_factory=NetworkTask)
    #: None for as many as suit the rows.
    n_networks: int | None = 1
    denoiser: PretrainedDenoiser | None = None
    dequantize: bool | Array = False
    micro_batch_size: int | None = None
    stream: Stream | None = None
    processes: Processes = ALONE
    #: Bounds of all columns if they are given, and whether they are to be found.
    bounds: Array | None = None
    finds_bounds: bool = False
    #: Least and greatest values of the columns of all rows that are known of.
    extent: tuple[Array, Array] | None = None
    tasks: FitTasks = field(default_factory=FitTasks)
    #: Families of references that may take part, in the order in which they are fitted.
    families: tuple[ReferenceFamily, ...] = BUILT_IN_FAMILIES
    #: Names of the experts that are asked for.
    asked: tuple[str, ...] = ()
    #: Whether the training rows will be ranked among themselves.
    ranks_training_rows: bool = False
    #: Whether rows nearer to each other than independent ones are kept on one side of the split.
    near_copies: bool = True
    #: Returns the attributes of an estimator that has a model.
    attributes_of: Callable[[TableModel], dict[str, Any]] | None = None

    @property
    def has_images(self) -> bool:
        """Whether the network takes images of continuous pixels."""
        given = self.denoiser is not None and self.denoiser.image_shape is not None
        return given or (self.image_shape is not None and not self.is_discrete)
