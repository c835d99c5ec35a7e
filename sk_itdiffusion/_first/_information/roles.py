"""Which columns of a table are on which side of a question about information."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Roles"]

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Roles:
    """Numbers of columns on the two sides, and of those that are given in any case.

    Attributes
    ----------
    x, y, given : ndarray of int
        The columns.  y is the target: the side with fewer columns, whose density is regular even
        where x lies on a curve.
    """

    x: Index
    y: Index
    given: Index

    def without(self, side: str) -> Index:
        """Return the columns of this question that are not on a side, "x" or "y"."""
        every = {"x": self.x, "y": self.y, "given": self.given}
        return np.sort(np.concatenate([columns for name, columns in every.items() if name != side]))
