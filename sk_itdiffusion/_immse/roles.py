"""Which coordinates of a point are targets, given or missing: a role is nothing but an SNR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Roles"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Roles:
    """Targets and given coordinates; all others are missing.

    Attributes
    ----------
    target, given : ndarray of bool, shape (d,) or (n, d)
        One row for all points, or one for each.
    """

    target: Mask
    given: Mask

    @classmethod
    def all_targets(cls, n_columns: int) -> Roles:
        """Return the roles of a joint density."""
        return cls(np.ones(n_columns, dtype=bool), np.zeros(n_columns, dtype=bool))

    @classmethod
    def of_rows(cls, X: NDArray[np.float64], given: Mask) -> Roles:
        """Return the roles of rows in which NaN is missing, given some of the columns."""
        observed = ~np.isnan(X)
        roles = cls(observed & ~given, observed & given)
        if observed.all():
            return cls(~given, given.copy())
        return roles

    @property
    def is_common(self) -> bool:
        """Whether all points have the same roles."""
        return self.target.ndim == 1

    @property
    def is_joint(self) -> bool:
        """Whether all coordinates of all points are targets."""
        return bool(self.target.all())

    @property
    def key(self) -> tuple[bytes, bytes]:
        """A key of common roles."""
        return self.target.tobytes(), self.given.tobytes()

    def take(self, index: NDArray[np.intp] | slice) -> Roles:
        """Return the roles of some points."""
        if self.is_common:
            return self
        return Roles(self.target[index], self.given[index])

    def patterns(self) -> Iterator[tuple[Roles, NDArray[np.intp] | slice]]:
        """Yield the distinct roles, each common to some points, and which points these are."""
        if self.is_common:
            yield self, slice(None)
            return
        both = np.concatenate([self.target, self.given], axis=1)
        distinct, which = np.unique(both, axis=0, return_inverse=True)
        d = self.target.shape[1]
        order = np.argsort(which.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(which.ravel()))[:-1]
        for row, index in zip(distinct, np.split(order, ends), strict=True):
            yield Roles(row[:d], row[d:]), index
