"""The parameters of an estimator, resolved and checked, in the form that a fit takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sk_itdiffusion._first._runtime.callbacks import FitTasks
from sk_itdiffusion._first._table.streams import Stream
from sk_itdiffusion._first.denoisers import MLPFamily, NetworkFamily, NetworkTask
from sk_itdiffusion._first.pretrained import PretrainedDenoiser
from sk_itdiffusion._first.references import ContinuousReference
from sk_itdiffusion._first.references.families import BUILT_IN_FAMILIES, ReferenceFamily
from sk_itdiffusion._first.schedules import Schedule
from sk_itdiffusion.distributed import ALONE, Processes

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.model import TableModel

__all__ = [
    "FitSettings",
    "ModelSettings",
    "RuntimeSettings",
    "TrainingSettings",
]

Array = NDArray[np.float64]
#: Nats that twice the steps have to gain by default, and for each column if that is more.
USUAL_TOL, USUAL_TOL_PER_COLUMN = 0.02, 0.002
#: Share of the time of a fit after which no network is trained; then come weights and errors.
SHARE_OF_TIME = 0.85


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is fitted: to which columns, by which experts."""

    reference: str | ContinuousReference
    experts: str | Sequence[str]
    marginals: str
    hidden_size: int
    n_blocks: int
    n_frequencies: int
    validation_fraction: float
    is_discrete: bool = False
    preconditioner: str = "independent"
    image_shape: tuple[int, ...] | None = None
    #: What the networks are, and the kind of table that they are for.
    network: NetworkFamily = field(default_factory=MLPFamily)
    task: NetworkTask = field(default_factory=NetworkTask)
    #: None for as many as suit the rows.
    n_networks: int | None = 1
    denoiser: PretrainedDenoiser | None = None
    dequantize: bool | Array = False
    #: Bounds of all columns if they are given, and whether they are to be found.
    bounds: Array | None = None
    finds_bounds: bool = False
    #: Smallest and largest values of the columns of all rows that are known of.
    extent: tuple[Array, Array] | None = None
    #: Families of references that may be used, in the order in which they are fitted.
    families: tuple[ReferenceFamily, ...] = BUILT_IN_FAMILIES
    #: Names of the experts that are asked for.
    asked: tuple[str, ...] = ()
    #: Names of families that are passed as objects.
    passed: tuple[str, ...] = ()
    #: Whether the training rows will be ranked among themselves.
    ranks_training_rows: bool = False
    #: Whether rows may be held out to validate, if there are enough.
    may_hold_out: bool = True
    #: Observations that a weight of 1 stands for; None if they follow from the weights.
    observations_per_weight: float | None = None
    #: Whether rows have missing entries, so that no network of complete rows can be trained.
    has_missing: bool = False
    #: Whether networks are trained on random parts of rows, and answer for parts.
    has_roles: bool = False
    #: Whether rows nearer to each other than independent ones are kept on one side of the split.
    near_copies: bool = True

    @property
    def beyond_the_grid(self) -> set[str]:
        """Names of the families over whose range of the log-SNR no networks are trained."""
        return {family.name for family in self.families if not family.shares_grid}

    @property
    def has_images(self) -> bool:
        """Whether the network takes images of continuous pixels."""
        given = self.denoiser is not None and self.denoiser.image_shape is not None
        return given or (self.image_shape is not None and not self.is_discrete)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How networks are trained."""

    schedule: Schedule
    dropout: float | None
    weight_decay: float | None
    max_epochs: int
    steps_per_epoch: int | None
    batch_size: int
    learning_rate: float
    #: Nats that twice the steps have to gain; "auto" for a number that suits the columns, None for
    #: no limit.
    tol: float | str | None
    patience: int | None
    loss: str = "mse"
    micro_batch_size: int | None = None
    callbacks: Sequence[Any] = ()

    def tol_of(self, n_columns: int) -> float | None:
        """Return the nats that twice the steps have to gain for rows of so many columns."""
        if isinstance(self.tol, str):
            return max(USUAL_TOL, USUAL_TOL_PER_COLUMN * n_columns)
        return self.tol


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where a fit runs, what it reads, and whom it tells of it."""

    device: torch.device
    verbose: int = 0
    #: Seconds for the fit, and the reading of `time.monotonic` at its start.
    time_limit: float | None = None
    started: float = 0.0
    feature_names: Sequence[str] | None = None
    stream: Stream | None = None
    processes: Processes = ALONE
    tasks: FitTasks = field(default_factory=FitTasks)
    #: Returns the attributes of an estimator that has a model.
    attributes_of: Callable[[TableModel], dict[str, Any]] | None = None

    def seconds_to_train(self) -> float | None:
        """Return the seconds that are left for the training of networks; None for no limit."""
        if self.time_limit is None:
            return None
        spent = time.monotonic() - self.started
        return max(0.0, SHARE_OF_TIME * self.time_limit - spent)


@dataclass(frozen=True)
class FitSettings:
    """The estimator's parameters, resolved and checked, by stages of a fit."""

    model: ModelSettings
    training: TrainingSettings
    runtime: RuntimeSettings

    @classmethod
    def of(cls, **values: Any) -> FitSettings:
        """Return the settings of values by name, whichever part they belong to."""
        grouped = {
            name: kind(**{each: values.pop(each) for each in names_in(kind) if each in values})
            for name, kind in part_types().items()
        }
        check_all_used(values)
        return cls(**grouped)

    def changed(self, **values: Any) -> FitSettings:
        """Return the settings with other values by name, whichever part they belong to."""
        parts = {}
        for name, kind in part_types().items():
            own = {each: values.pop(each) for each in names_in(kind) if each in values}
            parts[name] = replace(getattr(self, name), **own)
        check_all_used(values)
        return FitSettings(**parts)


def part_types() -> dict[str, type]:
    """Return the parts of settings, and their types."""
    return {
        "model": ModelSettings,
        "training": TrainingSettings,
        "runtime": RuntimeSettings,
    }


def names_in(part: Any) -> list[str]:
    """Return the names of the settings in a part."""
    return [each.name for each in fields(part)]


def check_all_used(values: Mapping[str, Any]) -> None:
    """Raise an error if there are values without a place."""
    if values:
        raise TypeError(f"There are no settings {sorted(values)}.")
