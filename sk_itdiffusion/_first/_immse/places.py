"""Places of evaluations in a batch, on which the last bits of their results may depend.

Products of matrices treat rows that are left over from their tiles in another way, and may sum a
row in another order if it does not begin at a multiple of 16 bytes.  Vectorised functions may round
the numbers that are left over in another way.  So a batch is built from whole tiles, and the
evaluations of each row of a table begin at a multiple of a few places in it: what a row gives is
the same wherever it is.  Where denoisers look at the points of a whole tile, to find what is near
them, rows begin with a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "DOUBLE_APART",
    "EVALUATIONS_IN_A_TILE",
    "MAX_ROWS_TO_PAD",
    "SINGLE_APART",
    "Places",
]

#: Evaluations in a batch are a multiple of this.
EVALUATIONS_IN_A_TILE = 32
#: Places whose distance is a multiple of 16 bytes, whatever the number of columns.
SINGLE_APART = 4
DOUBLE_APART = 2
#: Rows, at most, to which a batch of one row is padded where an evaluation takes next to no time.
MAX_ROWS_TO_PAD = 256


@dataclass(frozen=True)
class Places:
    """Where in a batch the evaluations of rows are.

    Attributes
    ----------
    n_rows : int
        Rows.
    n_evaluations : int
        Evaluations of each row.
    apart : int, default=32
        Rows begin at multiples of this.  If no tile is looked at as a whole `SINGLE_APART` is
        enough, and `DOUBLE_APART` where nothing is calculated in single precision, as in networks.
    """

    n_rows: int
    n_evaluations: int
    apart: int = EVALUATIONS_IN_A_TILE

    @classmethod
    def within(cls, budget: int, n_evaluations: int, apart: int = EVALUATIONS_IN_A_TILE) -> Places:
        """Return the places of as many rows as a budget of evaluations allows, at least one."""
        n_rows = budget // cls(1, n_evaluations, apart).from_row_to_row
        return cls(max(1, n_rows), n_evaluations, apart)

    @property
    def from_row_to_row(self) -> int:
        """Number of places from one row to the next."""
        return self.n_evaluations + -self.n_evaluations % self.apart

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values (n_rows * n_evaluations, ...) at their places.

        Between them are copies of the last values of each row: what is in a tile is near together,
        as far as it is in the values.
        """
        own = values.reshape(self.n_rows, self.n_evaluations, *values.shape[1:])
        gap = self.from_row_to_row - self.n_evaluations
        if gap:
            own = np.concatenate([own, np.repeat(own[:, -1:], gap, axis=1)], axis=1)
        placed = own.reshape(-1, *values.shape[1:])
        missing = -len(placed) % EVALUATIONS_IN_A_TILE
        return np.concatenate([placed, np.repeat(placed[-1:], missing, axis=0)])

    def gathered(self, found: Tensor) -> Tensor:
        """Return what was found at the places, (n_rows * n_evaluations, ...)."""
        step = self.from_row_to_row
        own = found[: self.n_rows * step].reshape(self.n_rows, step, *found.shape[1:])
        return own[:, : self.n_evaluations].reshape(-1, *found.shape[1:])
