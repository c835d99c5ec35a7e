r"""Uniform dequantisation of columns whose values lie on a lattice.

If :math:`u` is uniform on a cell of volume :math:`V` around the lattice point :math:`x`, and
:math:`p` is the density of noisy rows, then :math:`\int_V p(x + u)\, du` is a probability of
:math:`x`, and by Jensen's inequality (Theis, van den Oord, Bethge 2016)

.. math:: \log P(x) \ge E_u \log p(x + u) + \log V .

Each copy of a row is an observation of its own and has a noise of its own.  A column without
variation gets no noise: its value has a probability, and the rest of it, 1 / (n + 2) for n rows, is
spread over the other cells on both sides by a geometric distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sk_itdiffusion._first._immse.cubature import (
    MAX_SEED,
    Keys,
    hash_uniform,
    keys_of_copies,
    row_keys,
    spawn_keys,
)
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.rows import (
    WeightedRows,
    column_labels,
    extent,
    has_missing,
    lattice_step,
    observed,
)
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_finite,
    check_in_range,
    check_not_negative,
    check_shapes,
)

__all__ = ["Dequantizer", "warn_of_coarse_noise"]

Array = NDArray[np.float64]

#: Share of a step by which a value may be off the lattice, for rounding.
TOLERANCE = 0.01
ROWS_IN_A_CHECK = 1_000
#: Rows of images from which the common step of all pixels is found.
ROWS_FOR_STEP = 1_000
#: Copies of an observation, at most, with different noise.
MAX_COPIES = 16
#: Floats in a cell below which noise on them is far from uniform.
MIN_FLOATS_IN_A_CELL = 1_000
#: Smallest mean distance, in steps, of values that a column without variation has not had.
MIN_MEAN_DISTANCE = 2.0


@dataclass(frozen=True)
class NoisyCopies:
    """Noisy copies of distinct rows.

    Attributes
    ----------
    rows : WeightedRows
        The copies.
    index : ndarray of shape (n_copies,), int
        Numbers of the rows that they are of.
    observation : ndarray of shape (n_copies,), int
        Numbers, from 0 on, of the observations of that row.
    """

    rows: WeightedRows
    index: NDArray[np.intp]
    observation: NDArray[np.intp]


@stored()
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
    is_constant : ndarray of shape (d,), bool, or None
        Columns on a lattice that do not vary and get no noise; None for none.
    unseen : float
        Probability that such a column has another value.
    mean_distance : float
        Mean distance of that value, in steps.
    """

    step: Array
    origin: Array
    seed: int
    is_constant: NDArray[np.bool_] | None = None
    unseen: float = 0.0
    mean_distance: float = MIN_MEAN_DISTANCE

    @classmethod
    def fit(
        cls,
        X: Array,
        step: ArrayLike | None,
        shared: bool,
        seed: int,
        weight: Array | None = None,
    ) -> Dequantizer:
        """Return the dequantiser of rows.

        A column without variation has the step of the others if they have the same and it is on
        their lattice, else 1 if its value is an integer, else its value.

        Parameters
        ----------
        X : ndarray of shape (n_samples, d)
            Rows, which may have missing entries.
        step : float, array-like of shape (d,) or None
            Lattice steps; None finds them.
        shared : bool
            Whether all columns have one lattice, as the pixels of images.
        seed : int
            Seed of the noise.
        weight : ndarray of shape (n_samples,) or None, default=None
            How many observations each row stands for; None for one.

        Returns
        -------
        Dequantizer
            The dequantiser.

        Raises
        ------
        ValueError
            If no column is on a lattice.
        """
        least, greatest = extent(X)
        varies = least < greatest
        if step is not None:
            steps = np.array(np.broadcast_to(np.asarray(step, dtype=np.float64), X.shape[1]))
        elif shared:
            pixels = observed(X[:ROWS_FOR_STEP].ravel())[0]
            steps = np.full(X.shape[1], refined_step(np.unique(pixels)))
        else:
            steps = np.array([refined_step(np.unique(observed(column)[0])) for column in X.T])
        if not steps.any() and (varies.any() or shared or step is not None):
            raise ValueError(
                "dequantize=True found no column whose values are multiples of a common step; set "
                "dequantize to the step, or to False."
            )
        if shared:
            return cls(steps, np.full(X.shape[1], extent(X[:ROWS_FOR_STEP])[0].min()), seed)
        origin = least
        if step is None:
            steps[~varies] = steps_of_constants(origin, steps, varies)
        counts = np.ones(len(X)) if weight is None else weight
        return cls(
            steps,
            origin,
            seed,
            ~varies & (steps > 0),
            unseen=1.0 / (float(counts.sum()) + 2.0),
            mean_distance=mean_deviation(X, counts, np.where(varies, steps, 0.0)),
        )

    @property
    def has_noise(self) -> NDArray[np.bool_]:
        """Which columns get noise."""
        on_lattice = self.step > 0
        return on_lattice if self.is_constant is None else on_lattice & ~self.is_constant

    @property
    def has_cell(self) -> NDArray[np.bool_]:
        """Which columns have a cell without noise."""
        return (self.step > 0) & ~self.has_noise

    def log_ratio(self, X: Array) -> Array:
        """Return by how much other values of columns without noise are less likely, (n, d).

        It is the log-probability of an entry less that of the column's only value in the fit; 0
        for all other columns.
        """
        ratio = np.zeros(X.shape)
        chosen = self.has_cell
        with np.errstate(over="ignore", divide="ignore"):
            distance = np.abs(np.rint((X - self.origin)[:, chosen] / self.step[chosen]))
            tail = stats.geom.logpmf(distance, 1.0 / self.mean_distance)
        least = math.log(self.unseen / 2.0) if self.unseen > 0 else -math.inf
        other = tail + least - math.log1p(-self.unseen)
        ratio[:, chosen] = np.where(distance > 0, other, 0.0)
        return ratio

    def log_volume(self, columns: NDArray[np.intp]) -> float:
        """Return the logarithm of the volume of a lattice cell of some columns."""
        step = self.step[columns]
        return float(np.log(step[step > 0]).sum())

    def offsets(self, keys: Keys) -> Array:
        """Return noise of shape (n, d) for keys of shape (n,)."""
        offsets = np.zeros((len(keys), len(self.step)))
        chosen = self.has_noise
        uniform = hash_uniform(spawn_keys(keys, int(chosen.sum())), 7)
        offsets[:, chosen] = (uniform - 0.5) * self.step[chosen]
        return offsets

    def keys(self, X: Array) -> Keys:
        """Return hashes of rows, equal for all copies of a row."""
        return row_keys(self.in_steps(X), self.seed)

    def noisy(self, X: Array, number: NDArray[np.intp]) -> Array:
        """Return rows with noise that follows from their content and the numbers of the copies."""
        return X + self.offsets(keys_of_copies(self.keys(X), number))

    def noisy_copies(
        self, rows: WeightedRows, least: int, most: int, one: bool | NDArray[np.bool_]
    ) -> NoisyCopies:
        """Return noisy copies of rows, in random order.

        Each observation has a copy, or as many (up to 16) as make ``least`` copies in all.  An
        observation of a fraction has a copy of the same fraction.

        Parameters
        ----------
        rows : WeightedRows
            Distinct rows; weights are numbers of observations.
        least : int
            Copies to make of few observations.
        most : int
            Copies, besides one for each row, beyond which a copy is several observations.
        one : bool or ndarray of shape (n_rows,)
            Whether all copies of a row are from one source, or those of an observation.

        Returns
        -------
        NoisyCopies
            Noisy rows, with their sources.
        """
        n_observations = float(rows.weight.sum())
        times = int(np.clip(math.ceil(least / n_observations), 1, MAX_COPIES))
        n_copies = np.ceil(rows.weight * times * min(1.0, most / n_observations)).astype(np.intp)
        keys = self.keys(rows.X)
        if n_copies.max() == 1:
            content = None if rows.content is None else keys
            noisy = WeightedRows(
                rows.X + self.offsets(keys),
                rows.weight,
                keys,
                content=content,
                number=rows.number,
            )
            return NoisyCopies(noisy, np.arange(len(rows)), np.zeros(len(rows), dtype=np.intp))
        index = np.repeat(np.arange(len(rows)), n_copies)
        number = np.arange(len(index)) - np.repeat(np.cumsum(n_copies) - n_copies, n_copies)
        own = keys_of_copies(keys[index], number)
        are_one = np.broadcast_to(one, len(rows))[index]
        source = np.where(are_one, keys[index], keys_of_copies(keys[index], number // times))
        order = np.argsort(own)
        index = index[order]
        copies = rows.X[index]
        copies += self.offsets(own[order])
        content = None if rows.content is None else own[order]
        weight = (rows.weight / n_copies)[index]
        equal = None if rows.number is None else (rows.number / n_copies)[index]
        found = WeightedRows(copies, weight, source[order], content=content, number=equal)
        return NoisyCopies(found, index, number[order] // times)

    def in_steps(self, X: Array) -> Array:
        """Return rows in steps from the origin, which do not depend on the units."""
        width = np.where(self.step > 0, self.step, 1.0)
        steps = (X - self.origin) / width
        return np.where(self.step > 0, np.rint(steps), X)

    def rounded(self, X: Array) -> Array:
        """Return the nearest lattice points."""
        return np.where(self.step > 0, self.origin + self.step * self.in_steps(X), X)

    def rounded_inside(self, X: Array, bounds: Array) -> Array:
        """Return the nearest lattice points between the bounds (d, 2) of the columns."""
        width = np.where(self.step > 0, self.step, 1.0)
        low, high = ((bounds - self.origin[:, None]) / width[:, None]).T
        steps = np.clip(self.in_steps(X), np.floor(low) + 1.0, np.ceil(high) - 1.0)
        return np.where(self.step > 0, self.origin + self.step * steps, X)

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
                "of the fitted rows, so their probability is undefined; round them, or fit with "
                "dequantize=False, or set dequantize to a finer step."
            )

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        sizes = check_shapes(self, {"step": "c", "origin": "c"})
        if self.is_constant is not None:
            check_shapes(self, {"is_constant": "c"}, **sizes)
        check_not_negative(self.step, "steps of columns")
        check_finite(self.origin, "origins of lattices")
        check_in_range(self.seed, 0, MAX_SEED, "seeds")
        check_in_range(self.unseen, 0.0, np.nextafter(1.0, 0.0), "probabilities of other values")
        check_in_range(self.mean_distance, 1.0, 1e300, "mean distances")


def warn_of_coarse_noise(dequantizer: Dequantizer, X: Array, names: Sequence[str] | None) -> None:
    """Warn of columns in which floats are too far apart for noise within a cell."""
    apart = np.spacing(extent(np.abs(X))[1])
    coarse = dequantizer.has_noise & (dequantizer.step < MIN_FLOATS_IN_A_CELL * apart)
    if coarse.any():
        warn(
            f"Column(s) {column_labels(coarse, names)} have values so far from 0 that 64-bit "
            "floats are too coarse for noise between neighbouring values. Subtract a nearby "
            "number, such as the minimum."
        )


def steps_of_constants(value: Array, step: Array, varies: NDArray[np.bool_]) -> Array:
    """Return the steps of the columns without variation.

    Parameters
    ----------
    value : ndarray of shape (d,)
        Smallest value of each column.
    step : ndarray of shape (d,)
        Steps of the columns that vary.
    varies : ndarray of shape (d,), bool
        These columns.

    Returns
    -------
    ndarray of shape (n_constant,)
        The step that all columns on a lattice share, if the value is on that lattice; else 1 for
        an integer, and its absolute value for anything else.
    """
    found, constant = step[step > 0], value[~varies]
    own = np.where(constant == np.rint(constant), 1.0, np.abs(constant))
    if not len(found) or not np.allclose(found, found[0], rtol=1e-6, atol=0.0):
        return own
    origin = value[varies & (step > 0)][0]
    multiple = (constant - origin) / found[0]
    on_lattice = np.abs(multiple - np.rint(multiple)) < TOLERANCE
    return np.where(on_lattice, found[0], own)


def mean_deviation(X: Array, weight: Array, step: Array) -> float:
    """Return the mean absolute deviation, in steps, over columns of positive step; at least 2."""
    chosen = step > 0
    if not chosen.any():
        return MIN_MEAN_DISTANCE
    share = weight / weight.sum()
    numbers = (X[:, chosen] - extent(X[:, chosen])[0]) / step[chosen]
    if has_missing(numbers):
        seen = ~np.isnan(numbers)
        share = seen * weight[:, None] / (weight @ seen)
        numbers = np.where(seen, numbers, 0.0)
        deviation = (share * np.abs(numbers - (share * numbers).sum(axis=0))).sum(axis=0)
    else:
        deviation = share @ np.abs(numbers - share @ numbers)
    return max(MIN_MEAN_DISTANCE, float(deviation.mean()))


def refined_step(values: Array) -> float:
    """Return the lattice step of sorted, distinct values, from their whole width; 0 if none."""
    step = lattice_step(values) if len(values) > 1 else 0.0
    if step == 0.0:
        return 0.0
    # The smallest gap alone carries its rounding error to the far end of the lattice.
    n_steps = np.rint(np.diff(values) / step).sum()
    return float((values[-1] - values[0]) / n_steps)
