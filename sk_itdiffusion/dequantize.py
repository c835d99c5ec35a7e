r"""Uniform dequantisation of columns whose values lie on a lattice.

If :math:`u` is uniform on a cell of volume :math:`V` around the lattice point :math:`x`, and
:math:`p` is the density of noisy rows, then :math:`\int_V p(x + u)\, du` is a probability of
:math:`x`, and by Jensen's inequality (Theis, van den Oord, Bethge 2016, equation 5)

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
            values = np.unique(X[:ROWS_FOR_STEP])
            steps = np.full(X.shape[1], lattice_step(values) if len(values) > 1 else 0.0)
        else:
            columns = [np.unique(column) for column in X.T]
            steps = np.array([lattice_step(c) if len(c) > 1 else 0.0 for c in columns])
        if not steps.any():
            raise ValueError(
                "dequantize=True finds no column whose values are multiples of a common step; set "
                "dequantize to the step, or to False."
            )
        origin = np.full(X.shape[1], X[:ROWS_FOR_STEP].min()) if shared else X.min(axis=0)
        return cls(steps, origin, seed)

    @property
    def log_volume(self) -> float:
        """Logarithm of the volume of a lattice cell."""
        return float(np.log(self.step[self.step > 0]).sum())

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
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(X - self.rounded(X)) > TOLERANCE * self.step
        wrong = np.asarray((off & (self.step > 0)).any(axis=0))
        if wrong.any():
            raise ValueError(
                f"Column(s) {column_labels(wrong, names)} have values that are not on the lattice "
                "of the fitted rows, so they have no probability; round them, or fit with "
                "dequantize=False, or set dequantize to a finer step."
            )
