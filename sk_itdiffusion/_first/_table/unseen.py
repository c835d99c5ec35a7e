r"""Probabilities of values that are not among the categories of a column.

The largest count of a table is often in one row only, and so are rare categories: new rows have
values that the rows of `fit` lack.  Such values have a probability too.

**All of them together** have the Good-Turing mass [1]_: of n rows, those whose value would be new
except for the row itself tell how often new values come.  With :math:`N_1` such rows the mass is

.. math:: m = \frac{N_1 + 1}{n + 2},

the share of these rows after one row with a new value and one with a known value are added, so that
it is neither 0 nor 1.  Among integers whose range is filled up with categories only the least
and the largest value can be such values.

**Names** that were not seen are one event, since nothing tells one of them from another: each of
them has the log-probability of the event.

**Integers in order** may be below all categories, above, or between two of them.  Each of
these regions has the rows that would be new there, and an equal part of the added row.  Of g gaps
between categories about :math:`\sqrt g` neighbours make a group, whose numbers are equally likely,
and groups are as likely as they have gaps (an estimate by spacings, as new values are as likely in
one gap as in another).  Distances k = 1, 2, ... beyond
an end have a geometric distribution whose ratio is uncertain: under a uniform prior, and N excesses
of sum S over a value near the end,

.. math:: P(k) = \frac{B(a + k - 1,\, b + 1)}{B(a,\, b)}, \qquad a = 1 + S - N, \quad b = 1 + N,

which sums to 1.  The excesses are those of the outermost :math:`\sqrt n` rows.  Nothing is below a
least value of 0: such columns are counts.  Values that are no integers, and negative counts,
have a share of :math:`1 / (n + 2)` of the mass as one event.

References
----------
.. [1] I. J. Good. "The population frequencies of species and the estimation of population
   parameters". Biometrika 40, 1953.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from sk_itdiffusion._first.persistence import stored

__all__ = ["GeometricTail", "UnseenValues", "is_whole_number"]

Array = NDArray[np.float64]
#: Python integers, which are exact beyond what floats can distinguish.
Integers = NDArray[np.object_]

#: Most excesses that count, so that differences of large logarithms stay exact.
MAX_EXCESSES = 1e6
#: Largest distance of numbers that counts, so that sums are numbers.
MAX_EXCESS = 1e200


def is_whole_number(value: Any) -> bool:
    """Return whether a value is an integer, or a float without decimals."""
    return isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())


def whole_numbers(values: Iterable[Any]) -> Integers:
    """Return integers of any types as Python integers."""
    return np.array([int(value) for value in values], dtype=object)


def gap_sizes(values: Integers) -> Array:
    """Return the differences of increasing integers, at most ``MAX_EXCESS``."""
    # Before they become floats: large neighbours would be equal.
    return np.minimum(np.diff(values), MAX_EXCESS).astype(np.float64)


@stored()
@dataclass(frozen=True)
class GeometricTail:
    """Distances beyond an end, of a geometric distribution whose ratio is uncertain.

    Attributes
    ----------
    log_mass : float
        Log-probability of all values beyond the end, in nats.
    a, b : float
        Positive parameters of the beta distribution of the ratio.
    """

    log_mass: float
    a: float
    b: float

    def __post_init__(self) -> None:
        if not (self.log_mass < 0.0 and 0.0 < self.a < math.inf and 0.0 < self.b < math.inf):
            raise ValueError("the tail of unseen values is no distribution")

    @classmethod
    def fit(cls, values: Integers, count: Array, mass: float) -> GeometricTail:
        """Return the tail beyond the largest value.

        Parameters
        ----------
        values : ndarray of shape (n_values,), dtype object
            Increasing integers.
        count : ndarray of shape (n_values,)
            How often each was seen, a positive number.
        mass : float
            Probability of the tail.

        Returns
        -------
        GeometricTail
            The tail.
        """
        most = min(math.sqrt(count.sum()), MAX_EXCESSES)
        at_least = np.cumsum(count[::-1])[::-1]
        first = max(1, int(np.count_nonzero(at_least >= most)) - 1)
        n_excesses = float(count[first:].sum())
        share = min(1.0, most / n_excesses) if n_excesses else 0.0
        excess = np.minimum(values[first:] - values[first - 1], MAX_EXCESS).astype(np.float64)
        beyond = float(count[first:] @ (excess - 1.0))
        return cls(math.log(mass), 1.0 + share * beyond, 1.0 + share * n_excesses)

    def log_probability(self, distance: int) -> float:
        """Return the log-probability of the value at a distance of at least 1."""
        counted = float(min(distance, MAX_EXCESS))
        at_distance = betaln(self.a + counted - 1.0, self.b + 1.0)
        return self.log_mass + float(at_distance - betaln(self.a, self.b))


@stored()
@dataclass(frozen=True)
class UnseenValues:
    """Log-probabilities of values that are not among the categories of a column, in nats.

    Attributes
    ----------
    log_mass : float
        That of all of them together.
    log_other : float
        That of the event of any value for which nothing else is said.
    below, above : GeometricTail or None, default=None
        Integers below and above all categories.
    log_gap : float or None, default=None
        That of each gap between categories that are integers.
    """

    log_mass: float
    log_other: float
    below: GeometricTail | None = None
    above: GeometricTail | None = None
    log_gap: float | None = None

    def __post_init__(self) -> None:
        masses = [self.log_mass, self.log_other, -1.0 if self.log_gap is None else self.log_gap]
        if not all(-math.inf < log_mass < 0.0 for log_mass in masses):
            raise ValueError("the mass of unseen values is no probability")

    @property
    def log_seen(self) -> float:
        """Log-probability of all categories together."""
        return math.log1p(-math.exp(self.log_mass))

    @classmethod
    def of_names(cls, n_new: float, n_rows: float) -> UnseenValues:
        """Return one event.

        Parameters
        ----------
        n_new : float
            Rows whose value would be new except for the row itself.
        n_rows : float
            All rows.

        Returns
        -------
        UnseenValues
            The probabilities.
        """
        log_mass = math.log((n_new + 1.0) / (n_rows + 2.0))
        return cls(log_mass, log_mass)

    @classmethod
    def of_whole_numbers(
        cls, categories: Integers, values: Integers, count: Array, n_new: Array, n_rows: float
    ) -> UnseenValues:
        """Return the probabilities of integers below, between and above categories.

        Parameters
        ----------
        categories : ndarray of shape (n_categories,), dtype object
            Increasing categories, as Python integers.
        values : ndarray of shape (n_values,), dtype object
            Those that were seen, increasing.
        count : ndarray of shape (n_values,)
            How often.
        n_new : ndarray of shape (n_values,)
            How many of these rows would have a new value except for themselves.
        n_rows : float
            All rows.

        Returns
        -------
        UnseenValues
            The probabilities.
        """
        n_gaps = int(np.count_nonzero(gap_sizes(categories) > 1.0))
        found = {"above": float(n_new[-1])}
        if categories[0] != 0:
            found["below"] = float(n_new[:-1][:1].sum())
        if n_gaps:
            found["between"] = float(n_new[1:-1].sum())
        total = (sum(found.values()) + 1.0) / (n_rows + 2.0)
        share_of_others = 1.0 / (n_rows + 2.0)
        mass = {
            region: (1.0 - share_of_others) * (n + 1.0 / len(found)) / (n_rows + 2.0)
            for region, n in found.items()
        }
        below = None
        if "below" in mass:
            below = GeometricTail.fit(-values[::-1], count[::-1], mass["below"])
        return cls(
            math.log(total),
            math.log(share_of_others) + math.log(total),
            below,
            GeometricTail.fit(values, count, mass["above"]),
            math.log(mass["between"]) - math.log(n_gaps) if n_gaps else None,
        )

    def log_probabilities(self, values: Iterable[Any], categories: Iterable[Any]) -> Array:
        """Return the log-probabilities of values that are not categories.

        Parameters
        ----------
        values : iterable of length n_values
            Values, of any types.
        categories : iterable of length n_categories
            The categories of the column.

        Returns
        -------
        ndarray of shape (n_values,)
            Log-probabilities, all negative; of names, and of other values that are one event,
            that of the event.
        """
        if self.above is None:
            return np.array([self.log_other for _ in values])
        known = np.sort(whole_numbers(categories))
        between = np.array([]) if self.log_gap is None else self.log_gap + log_spacings(known)
        return np.array([self._log_probability(value, known, between) for value in values])

    def _log_probability(self, value: Any, categories: Integers, between: Array) -> float:
        """Return the log-probability of a value alongside increasing categories.

        That of a number between two categories is the entry of the lower one in the third argument.
        """
        if not is_whole_number(value):
            return self.log_other
        number = int(value)
        if self.above is not None and number > categories[-1]:
            return self.above.log_probability(number - categories[-1])
        if number < categories[0]:
            tail = self.below
            return self.log_other if tail is None else tail.log_probability(categories[0] - number)
        lower = bisect_right(categories, number) - 1
        # A number may equal a category that is of another type, as booleans do.
        is_between = lower < len(between) and math.isfinite(between[lower])
        return float(between[lower]) if is_between else self.log_other


def log_spacings(categories: Integers) -> Array:
    """Return log-probabilities of the integers between two categories, in units of one gap's.

    Parameters
    ----------
    categories : ndarray of shape (n_categories,), dtype object
        Increasing integers.

    Returns
    -------
    ndarray of shape (n_categories - 1,)
        Log-probability of each number above a category and below the next; minus infinity where
        there is none.
    """
    numbers = np.maximum(gap_sizes(categories) - 1.0, 0.0)
    gaps = np.flatnonzero(numbers)
    n_together = math.ceil(math.sqrt(len(gaps)))
    found = np.full(len(numbers), -math.inf)
    for start in range(0, len(gaps), max(1, n_together)):
        group = gaps[start : start + n_together]
        found[group] = math.log(len(group)) - math.log(numbers[group].sum())
    return found
