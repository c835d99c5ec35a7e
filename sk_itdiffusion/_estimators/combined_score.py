r"""Scores of models of different kinds as one: each has the say that training rows give it.

The log-densities of the members m = 1, ..., M and the local score live on different scales, and
their tails fall at different speeds.  Each is therefore standardised by how training rows score
under it, and how far a row is below their median :math:`c_m` is measured on a signed logarithmic
scale, with the distance :math:`s_m` of their lowest tenth as unit:

.. math:: t_m(x) = \sigma\left( \frac{c_m - S_m(x)}{s_m} \right), \qquad
    \sigma(u) = \mathrm{sign}(u) \log(1 + |u|), \qquad
    S(x) = c - s \log \sum_m w_m e^{t_m(x)},

where c and s are the means of :math:`c_m` and :math:`s_m` over the log-densities, so that ordinary
rows have scores as their log-densities are.  The mean of :math:`e^{t_m}` is what the harmonic mean
of p-values does (Wilson 2019): a row that one member alone finds odd is odd.

A member that ignores how columns depend on each other has nothing to say where rows are odd by
that; so the weight :math:`w_m` is what it has to say about it.  It is the square of
:math:`2 A_m - 1`, with :math:`A_m` the area under the ROC curve with which its scores tell training
rows from ones of which half of the entries come from another row.

References
----------
D. J. Wilson. "The harmonic mean p-value for combining dependent tests". PNAS, 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from sk_itdiffusion._estimators.calibration import weighted_quantile
from sk_itdiffusion._estimators.contributions import Contributions, reconciled
from sk_itdiffusion._estimators.local_score import LocalScore
from sk_itdiffusion._estimators.outlier_score import (
    MIN_SCORE,
    MODEL,
    FlooredModel,
    MappedRows,
)
from sk_itdiffusion._fit.model import TableModel
from sk_itdiffusion._immse.errors import Tolerance
from sk_itdiffusion._runtime.progress import stretch_of_progress
from sk_itdiffusion.persistence import stored
from sk_itdiffusion.persistence.checks import check_in_range, check_positive, check_shapes

__all__ = ["LOCAL", "CombinedScore", "finite_parts", "main_member"]

Array = NDArray[np.float64]

#: Name of the local score among the members.
LOCAL = "neighbors"
#: Training rows by which members are standardised and weighted, and for typical contributions.
ROWS_TO_JUDGE, ROWS_FOR_TYPICAL = 500, 50
#: Share of the rows at whose score the unit of a member is taken.
LOW_SHARE = 0.1
#: Least unit of a member, in nats: that of categories may be less, or 0 where most rows are equal.
MIN_SCALE = 0.1


def main_member(model: TableModel) -> str:
    """Return the name of the stack if a network has a say in it, else of the likeliest reference.

    Without a network the stack is hardly better than that, and takes far longer.
    """
    known = {*model.references}
    others = [
        number
        for number, name in enumerate(model.expert_names)
        if name not in known and model.weights[:, number].any()
    ]
    return MODEL if others or not known else model.control


@stored()
@dataclass(frozen=True)
class CombinedScore:
    """The score of several members.

    Attributes
    ----------
    floored : FlooredModel
        The model with its noise floors, and the names of the members that are log-densities.
    local : LocalScore or None
        The local score.
    center, scale : ndarray of shape (n_members,)
        Median score of training rows under each member, and by how much their lowest tenth is
        below it; the local score comes last.
    weight : ndarray of shape (n_members,)
        Weights of the members; they sum to 1.
    """

    floored: FlooredModel
    local: LocalScore | None
    center: Array
    scale: Array
    weight: Array

    @classmethod
    def fit(
        cls,
        floored: FlooredModel,
        local: LocalScore | None,
        values: Array,
        weight: Array,
        n_rows: int,
        generator: np.random.Generator,
        tolerance: Tolerance,
    ) -> CombinedScore:
        """Return the score whose members are judged by rows in random order, of some weight.

        Parameters
        ----------
        floored : FlooredModel
            The model, with the members that are log-densities.
        local : LocalScore or None
            The local score.
        values : ndarray of shape (n, n_columns)
            Distinct training rows: numbers and codes.
        weight : ndarray of shape (n,)
            Their positive weights.
        n_rows : int
            How many rows they stand for.
        generator : numpy.random.Generator
            Source of the exchanged entries.
        tolerance : Tolerance
            Standard error that the integral of a row should have.

        Returns
        -------
        CombinedScore
            The score.
        """
        values, weight = values[:ROWS_TO_JUDGE], weight[:ROWS_TO_JUDGE]
        n_members = len(floored.members) + (local is not None)
        empty = cls(floored, local, np.zeros(n_members), np.ones(n_members), np.ones(n_members))
        with stretch_of_progress(0.0, 0.5):
            own = empty.of_members(values, tolerance)
        # Few distinct rows meet several others each.
        times = -(-ROWS_TO_JUDGE // len(values))
        repeated = np.repeat(np.arange(len(values)), times)
        share = weight[repeated] / weight[repeated].sum()
        with stretch_of_progress(0.5, 1.0):
            exchanged = with_exchanged_entries(values[repeated], share, generator)
            mixed = empty.of_members(exchanged, tolerance)
        center, low = (quantiles(own, weight, q) for q in (0.5, LOW_SHARE))
        told = told_apart(own[repeated], mixed, share)
        # Twice the standard error: less is chance, and no more is known of any member.
        say = np.maximum(told, 4.0 / math.sqrt(6.0 * min(n_rows, ROWS_TO_JUDGE))) ** 2
        return replace(
            empty,
            center=center,
            scale=np.maximum(center - low, MIN_SCALE),
            weight=say / say.sum(),
        )

    @property
    def model(self) -> TableModel:
        """The model."""
        return self.floored.model

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members."""
        return (*self.floored.members, *([] if self.local is None else [LOCAL]))

    def of_members(self, values: Array, tolerance: Tolerance) -> Array:
        """Return the members' scores of numbers and codes, (n, n_members)."""
        names = self.floored.members
        found = []
        for number, name in enumerate(names):
            with stretch_of_progress(number / len(names), (number + 1) / len(names)):
                found.append(self._alone(name).log_density(values, tolerance))
        if self.local is not None:
            found.append(self.local.scores(MappedRows.of(self.floored.model, values).mapped))
        return np.maximum(np.column_stack(found), MIN_SCORE)

    def _alone(self, name: str) -> FlooredModel:
        return replace(self.floored, members=(name,))

    # -- the score ---------------------------------------------------------------------------

    def scores(self, values: Array, tolerance: Tolerance) -> Array:
        """Return the scores of numbers and codes, (n,); see `FlooredModel.log_density`."""
        return self._combined(self._surprise(self.of_members(values, tolerance)))

    def _surprise(self, scores: Array) -> Array:
        """Return by how much scores are below the median, on the signed logarithmic scale."""
        below = (self.center - scores) / self.scale
        return np.asarray(np.sign(below) * np.log1p(np.abs(below)))

    @property
    def _location_and_unit(self) -> tuple[float, float]:
        """Center and scale of the log-densities."""
        n = len(self.floored.members)
        share = self.weight[:n] / self.weight[:n].sum()
        return float(share @ self.center[:n]), float(share @ self.scale[:n])

    def _combined(self, surprise: Array) -> Array:
        location, unit = self._location_and_unit
        # No overflow, since surprises are logarithms of floats; sums of a row in one order.
        total = np.ascontiguousarray(np.exp(surprise) * self.weight).sum(axis=1)
        return np.asarray(location - unit * np.log(total))

    # -- contributions -----------------------------------------------------------------------

    def contributions(self, values: Array, tolerance: Tolerance) -> Array:
        """Return what each column contributes to the scores, (n, n_columns).

        Each member's change from typical contributions, along the straight line to those of the
        row, is divided by its columns, and the members are weighted by their share of the sum.
        What is left over of the score is no column's own and is divided equally.
        """
        scores = self.of_members(values, tolerance)
        surprise = self._surprise(scores)
        say = self.weight * np.exp(surprise - surprise.max(axis=1, keepdims=True))
        say = say / say.sum(axis=1, keepdims=True)
        unit = self._location_and_unit[1]
        n = len(self.floored.members)
        share = self.weight[:n] / self.weight[:n].sum()
        parts = np.zeros_like(values)
        for number, name in enumerate(self.floored.members):
            typical = self._typical(name, tolerance)
            own = finite_parts(Contributions(self._alone(name)).of(values, tolerance))
            change, total = own - typical, own.sum(axis=1)
            rise = self._surprise_of(number, total) - self._surprise_of(number, typical.sum())
            slope = slopes(rise, total - typical.sum(), -1.0 / self.scale[number])
            parts += share[number] * typical - unit * say[:, [number]] * slope[:, None] * change
        if self.local is not None:
            parts += unit * say[:, [n]] * self._local_parts(values)
        left = self._combined(surprise) - parts.sum(axis=1)
        parts += left[:, None] / parts.shape[1]
        return reconciled(parts, self._combined(surprise))

    def _surprise_of(self, number: int, score: Array) -> Array:
        below = (self.center[number] - score) / self.scale[number]
        return np.asarray(np.sign(below) * np.log1p(np.abs(below)))

    def _typical(self, name: str, tolerance: Tolerance) -> Array:
        """Return the median contributions of some training rows to a log-density."""
        model = self.floored.model
        rows = np.empty((0, 0)) if self.local is None else self.local.rows[:ROWS_FOR_TYPICAL]
        if not len(rows):
            return np.zeros(model.space.n_columns)
        values = model.on_lattice(model.space.values(rows))
        return np.median(Contributions(self._alone(name)).of(values, tolerance), axis=0)

    def _local_parts(self, values: Array) -> Array:
        """Return what columns contribute to the surprise of the local score, with the other sign.

        It grows in each with the change of the score from that of typical distances.
        """
        assert self.local is not None
        model, scale = self.floored.model, self.scale[-1]
        found = self.local.contributions(MappedRows.of(model, values).mapped)
        parts = np.zeros_like(values)
        parts[:, np.concatenate([model.space.continuous, model.space.discrete])] = found
        size = np.abs(found.sum(axis=1))
        return np.asarray(parts * slopes(np.log1p(size / scale), size, 1.0 / scale)[:, None])

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        shapes = {"center": "m", "scale": "m", "weight": "m"}
        check_shapes(self, shapes, m=len(self.members))
        check_in_range(self.center, MIN_SCORE, -MIN_SCORE, "medians of scores")
        check_positive(self.scale, "scales of scores")
        check_positive(self.weight, "weights of members")


def with_exchanged_entries(values: Array, share: Array, generator: np.random.Generator) -> Array:
    """Return rows of which a random half of the entries comes from another row."""
    partner = generator.choice(len(values), size=len(values), p=share)
    n_columns = values.shape[1]
    order = generator.permuted(np.tile(np.arange(n_columns), (len(values), 1)), axis=1)
    return np.where(order < max(1, n_columns // 2), values[partner], values)


def told_apart(own: Array, mixed: Array, share: Array) -> Array:
    """Return Somers' D of each member: from 1 if all exchanged rows score lower, to -1."""
    is_mixed, weight = np.repeat([False, True], len(own)), np.tile(share, 2)
    areas = [
        roc_auc_score(is_mixed, -np.append(a, b), sample_weight=weight)
        for a, b in zip(own.T, mixed.T, strict=True)
    ]
    return 2.0 * np.array(areas) - 1.0


def finite_parts(parts: Array) -> Array:
    """Return contributions in which columns without a density share the least score."""
    far = np.isneginf(parts)
    return np.where(far, MIN_SCORE / far.sum(axis=1, keepdims=True).clip(min=1), parts)


def slopes(rise: Array, difference: Array, otherwise: float) -> Array:
    """Return quotients, or another value where there is no difference."""
    slope = np.full_like(difference, otherwise)
    return np.divide(rise, difference, out=slope, where=difference != 0.0)


def quantiles(scores: Array, weight: Array, share: float) -> Array:
    """Return a quantile of each column of scores of weighted rows."""
    found = []
    for column in scores.T:
        order = np.argsort(column, kind="stable")
        found.append(weighted_quantile(column[order], weight[order] / weight.min(), share))
    return np.array(found)
