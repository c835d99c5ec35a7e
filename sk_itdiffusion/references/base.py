"""What a reference has to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._immse.roles import Roles

__all__ = ["Reference"]

Array = NDArray[np.float64]


class Reference(ABC):
    """A distribution with known log-density and optimal denoiser, for every kind of role.

    Points are tensors of shape (n, n_columns) in double precision; entries of missing columns are
    ignored.
    """

    n_columns: int

    @property
    @abstractmethod
    def n_numbers(self) -> int:
        """Numbers that the evaluation of a point takes, a measure of its time."""

    @abstractmethod
    def log_prob(self, x: Tensor, roles: Roles) -> Tensor:
        """Return log q(x_T | x_G) of each row, shape (n,)."""

    @abstractmethod
    def denoise(self, z: Tensor, logsnr: Tensor, roles: Roles) -> Tensor:
        """Return E[eps | z] of the targets, zero elsewhere, shape (n, n_columns).

        Targets of ``z`` are noised at ``logsnr`` of shape (n,), given columns are clean.
        """

    @abstractmethod
    def sample(self, x: Tensor, roles: Roles, rng: np.random.Generator) -> Tensor:
        """Return rows ``x`` with targets drawn given the given columns."""

    @abstractmethod
    def variance_range(self) -> tuple[float, float]:
        """Return the least and the largest variance along any direction of any component."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return arrays and numbers that `from_state` makes an equal reference of."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the reference of a state."""
