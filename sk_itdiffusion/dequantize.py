r"""Uniform dequantisation of columns whose values lie on a lattice.

If :math:`u` is uniform on a cell of volume :math:`V` around the lattice point :math:`x`, and
:math:`p` is the density of noisy rows, then :math:`\int_V p(x + u)\, du` is a probability of
:math:`x`, and by Jensen's inequality (Theis, van den Oord, Bethge 2016)

.. math:: \log P(x) \ge E_u \log p(x + u) + \log V .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sk_itdiffusion.cubature import Keys, hash_uniform, row_keys, spawn_keys
from sk_itdiffusion.rows import column_labels, lattice_step

__all__ = ["Dequantizer"]

Array = NDArray[np.float64]

#: Share of a step by which a value may be off the lattice, for rounding.
TOLERANCE = 0.01
ROWS_IN_A_CHECK = 1_000
#: Rows of images from which the common step of all pixels is found.
ROWS_FOR_STEP = 1_000


@dataclass(frozen=True)
class Dequantizer:
    """Uniform noise, centred at zero, of the width of each column's step.

    Attributes
    ----------
    step : ndarray of shape (d,)
        Lattice step; 0 for a column without a lattice, which gets no noise.
    origin : ndarray of shape (d,)
        A point of each lattice.
    seed : int
        Seed of the noise.
    """

    step: Array
    origin: Array
    seed: int

    @classmethod
    def fit(cls, X: Array, step: ArrayLike | None, shared: bool, seed: int) -> Dequantizer:
        """Return the dequantiser of rows.

        Parameters
        ----------
        X : ndarray of shape (n_samples, d)
            Rows.
        step : float, array-like of shape (d,) or None
            Lattice steps; None finds them.
        shared : bool
            Whether all columns have one lattice, as the pixels of images.
        seed : int
            Seed of the noise.

        Returns
        -------
        Dequantizer
            The dequantiser.

        Raises
        ------
        ValueError
            If no column is on a lattice.
        """
        if step is not None:
            steps = np.array(np.broadcast_to(np.asarray(step, dtype=np.float64), X.shape[1]))
        elif shared:
            steps = np.full(X.shape[1], refined_step(np.unique(X[:ROWS_FOR_STEP])))
        else:
            steps = np.array([refined_step(np.unique(column)) for column in X.T])
        if not steps.any():
            raise ValueError(
                "dequantize=True finds no column whose values are multiples of a common step; set "
                "dequantize to the step, or to False."
            )
        origin = np.full(X.shape[1], X[:ROWS_FOR_STEP].min()) if shared else X.min(axis=0)
        return cls(steps, origin, seed)

    def log_volume(self, columns: NDArray[np.intp]) -> float:
        """Return the logarithm of the volume of a lattice cell of some columns."""
        step = self.step[columns]
        return float(np.log(step[step > 0]).sum())

    def offsets(self, keys: Keys) -> Array:
        """Return noise of shape (n, d) for keys of shape (n,)."""
        offsets = np.zeros((len(keys), len(self.step)))
        chosen = self.step > 0
        uniform = hash_uniform(spawn_keys(keys, int(chosen.sum())), 7)
        offsets[:, chosen] = (uniform - 0.5) * self.step[chosen]
        return offsets

    def noisy(self, X: Array) -> Array:
        """Return rows with noise that follows from their content."""
        return X + self.offsets(row_keys(self.in_steps(X), self.seed))

    def in_steps(self, X: Array) -> Array:
        """Return rows in steps from the origin, which do not depend on the units."""
        width = np.where(self.step > 0, self.step, 1.0)
        steps = (X - self.origin) / width
        return np.where(self.step > 0, np.rint(steps), X)

    def rounded(self, X: Array) -> Array:
        """Return the nearest lattice points."""
        return np.where(self.step > 0, self.origin + self.step * self.in_steps(X), X)

    def check(self, X: Array, names: Sequence[str] | None) -> None:
        """Raise an error that names the columns with values off the lattice."""
        wrong = np.zeros(X.shape[1], dtype=bool)
        for start in range(0, len(X), ROWS_IN_A_CHECK):
            part = X[start : start + ROWS_IN_A_CHECK]
            with np.errstate(invalid="ignore", over="ignore"):
                off = np.abs(part - self.rounded(part)) > TOLERANCE * self.step
            wrong |= (off & (self.step > 0)).any(axis=0)
        if wrong.any():
            raise ValueError(
                f"Column(s) {column_labels(wrong, names)} have values that are not on the lattice "
                "of the fitted rows, so they have no probability; round them, or fit with "
                "dequantize=False, or set dequantize to a finer step."
            )


def refined_step(values: Array) -> float:
    """Return the lattice step of sorted, distinct values, from their whole width; 0 if none."""
    step = lattice_step(values) if len(values) > 1 else 0.0
    if step == 0.0:
        return 0.0
    # The smallest gap alone carries its rounding error to the far end of the lattice.
    n_steps = np.rint(np.diff(values) / step).sum()
    return float((values[-1] - values[0]) / n_steps)
