r"""Scores of several kinds as one: each has the say that training rows give it.

The log-density of a model tells how likely a row is; that of the plainest reference, a normal
distribution or independent columns, is not deceived by small clusters of outliers among the
training rows; the local score tells how unlike a row is from its neighbours.  What columns say of
each other is a score of its own, the log-density less that of independent columns: in it the
ordinary scatter of columns that are unrelated cancels, which in the log-density of many columns
hides entries that contradict each other.

These members live on different scales, and their tails fall at different speeds, so that each
score is replaced by how surprising it is: minus the logarithm of the share of training rows that
have no higher score, as a smooth curve.  With the median :math:`c_m` and the lowest fifth
:math:`q_m` of these,

.. math:: t_m(x) = \log 5 + \begin{cases} u_m \log(5/2), & u_m \le 0 \\
    \log(1 + u_m) / \lambda_m, & u_m > 0, \end{cases}
    \qquad u_m = \frac{q_m - S_m(x)}{c_m - q_m},

where the tail is that of a Pareto law whose index :math:`1 / \lambda_m` is fitted to the rows in
it.  The members' shares are combined as Wilson (2019) does p-values that depend on each other, by
their weighted harmonic mean,

.. math:: S(x) = c - s \left( \log \sum_m w_m e^{t_m(x)} - \log 2 \right),
    \qquad s = \frac{c - q}{\log(5/2)},

with c and q of the log-density, so that ordinary rows have about their log-density, and a row that
one member alone finds odd is odd.

The weight :math:`w_m` is what a member has to say about the columns' dependence: Somers' D of its
scores between training rows and ones of which half of the entries come from another row.  So what
ignores how columns depend on each other has no say where this is what matters.  The log-density of
the most likely model and what columns say of each other under it have half of this each, since they
are two views of one model.

Training rows that were left out of the fit of the model have no part in all this: outliers among
them would make rows that are far out seem less surprising.

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

from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._estimators.calibration import weighted_quantile
from sk_itdiffusion._first._estimators.contributions import Contributions, finite_parts, reconciled
from sk_itdiffusion._first._estimators.local_score import LocalScore
from sk_itdiffusion._first._estimators.outlier_score import (
    MIN_SCORE,
    MODEL,
    FlooredModel,
    MappedRows,
)
from sk_itdiffusion._first._estimators.row_score import RowScore
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._runtime.progress import stretch_of_progress
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_in_range, check_positive, check_shapes

__all__ = ["DEPENDENCE", "LOCAL", "CombinedScore", "main_member"]

Array = NDArray[np.float64]

#: Names of members that are no log-densities: what columns say of each other, the local score.
DEPENDENCE, LOCAL = "dependence", "neighbors"
#: Name of the reference of independent columns.
COLUMNS = "columns"
#: Training rows by which members are standardised and weighted, and for typical contributions.
ROWS_TO_JUDGE, ROWS_FOR_TYPICAL = 500, 50
#: Share of the training rows in the tail.
SHARE_OF_TAIL = 0.2
#: Slope of the surprise between the tail and the median.
SLOPE = math.log(0.5 / SHARE_OF_TAIL)
#: Smallest unit of a member, in nats: that of categories may be less, or 0 where most rows are
#: equal.
MIN_SCALE = 0.1
#: Mean of log(1 + u) in the tail that is expected before any row is seen, with the weight of one.
EXPECTED_TAIL = 0.5


def main_member(model: TableModel) -> str:
    """Return the name of the stack if a network has weight in it, else of the likeliest reference.

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
class CombinedScore(RowScore):
    """The score of several members.

    Attributes
    ----------
    floored : FlooredModel
        The model with its noise floors, and the names of the members that are log-densities, the
        main one last.
    has_dependence : bool
        Whether what columns say of each other is a member.
    local : LocalScore or None
        The local score, the last member.
    center, width : ndarray of shape (n_members,)
        Median score of training rows under each member, and by how much their lowest fifth is
        below it.
    tail : ndarray of shape (n_members,)
        Mean logarithm of 1 plus how far below that the scores of this fifth are, in these units.
    weight : ndarray of shape (n_members,)
        Weights of the members; they sum to 1.
    """

    floored: FlooredModel
    has_dependence: bool
    local: LocalScore | None
    center: Array
    width: Array
    tail: Array
    weight: Array

    @classmethod
    def fit(
        cls,
        floored: FlooredModel,
        has_dependence: bool,
        local: LocalScore | None,
        values: Array,
        weight: Array,
        n_rows: int,
        generator: np.random.Generator,
        tolerance: Tolerance,
    ) -> CombinedScore:
        """Return the score whose members are evaluated by rows in random order, of some weight.

        Parameters
        ----------
        floored : FlooredModel
            The model, with the members that are log-densities.
        has_dependence : bool
            Whether what columns say of each other is a member.
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
        n_members = len(floored.members) + has_dependence + (local is not None)
        ones = np.ones(n_members)
        empty = cls(floored, has_dependence, local, 0.0 * ones, ones, ones, ones)
        with stretch_of_progress(0.0, 0.5):
            own = empty.of_members(values, tolerance)
        # Few distinct rows meet several others each.
        times = -(-ROWS_TO_JUDGE // len(values))
        repeated = np.repeat(np.arange(len(values)), times)
        share = weight[repeated] / weight[repeated].sum()
        with stretch_of_progress(0.5, 1.0):
            exchanged = with_exchanged_entries(values[repeated], share, generator)
            mixed = empty.of_members(exchanged, tolerance)
        center, low = (quantiles(own, weight, q) for q in (0.5, SHARE_OF_TAIL))
        width = np.maximum(center - low, MIN_SCALE)
        # Twice the standard error: less is chance, and no more is known of any member.
        least = 4.0 / math.sqrt(6.0 * min(n_rows, ROWS_TO_JUDGE))
        say = np.maximum(told_apart(own[repeated], mixed, share), least)
        if has_dependence:
            # Two views of one model share its weight.
            say[len(floored.members) - 1 : len(floored.members) + 1] /= 2.0
        excess = np.log1p(np.maximum(center - width - own, 0.0) / width)
        counts = (weight / weight.min())[:, None] * (excess > 0.0)
        tail = ((counts * excess).sum(axis=0) + EXPECTED_TAIL) / (counts.sum(axis=0) + 1.0)
        return replace(empty, center=center, width=width, tail=tail, weight=say / say.sum())

    @property
    def model(self) -> TableModel:
        """The model."""
        return self.floored.model

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members."""
        others = [DEPENDENCE] * self.has_dependence + [LOCAL] * (self.local is not None)
        return (*self.floored.members, *others)

    @property
    def _columns(self) -> FlooredModel:
        """The log-density of independent columns."""
        references = {**self.model.references, COLUMNS: self.floored.plain.independent()}
        model = replace(self.model, references=references)
        return FlooredModel(model, self.floored.floors, (COLUMNS,), is_wide=True)

    def _alone(self, name: str) -> FlooredModel:
        return replace(self.floored, members=(name,))

    def of_members(self, values: Array, tolerance: Tolerance) -> Array:
        """Return the members' scores of numbers and codes, (n, n_members)."""
        names = self.floored.members
        found = []
        for number, name in enumerate(names):
            with stretch_of_progress(number / len(names), (number + 1) / len(names)):
                score = self._alone(name).log_density(values, tolerance)
            found.append(np.maximum(score, MIN_SCORE))
        if self.has_dependence:
            alone = np.maximum(self._columns.log_density(values, tolerance), MIN_SCORE)
            found.append(found[-1] - alone)
        if self.local is not None:
            found.append(self.local.scores(MappedRows.of(self.model, values).mapped))
        return np.column_stack(found)

    # -- the score ---------------------------------------------------------------------------

    def scores(self, density: DensityEstimator, values: Array) -> Array:
        """Return the scores of rows; see `RowScore.scores`."""
        return self._combined(self._surprise(self.of_members(values, density._tolerance())))

    def _surprise(self, scores: Array) -> Array:
        """Return minus the logarithms of the shares of training rows that score as low."""
        below = (self.center - self.width - scores) / self.width
        far = np.log1p(np.maximum(below, 0.0)) / self.tail
        return np.asarray(far + np.minimum(below, 0.0) * SLOPE - math.log(SHARE_OF_TAIL))

    @property
    def _main(self) -> int:
        """Number of the main member."""
        return len(self.floored.members) - 1

    @property
    def scale(self) -> tuple[float, float]:
        """Score of a usual row, and the unit of differences; see `RowScore.scale`."""
        return float(self.center[self._main]), float(self.width[self._main]) / SLOPE

    def _combined(self, surprise: Array) -> Array:
        largest = surprise.max(axis=1, keepdims=True)
        # Sums of a row are taken in one order, however many rows there are.
        total = np.ascontiguousarray(np.exp(surprise - largest) * self.weight).sum(axis=1)
        rise = largest[:, 0] + np.log(total) - math.log(2.0)
        usual, unit = self.scale
        return np.asarray(usual - unit * rise)

    # -- contributions -----------------------------------------------------------------------

    def contributions(self, density: DensityEstimator, values: Array) -> Array:
        """Return what each column contributes; see `RowScore.contributions`.

        Each member's change from typical contributions, along the straight line to those of the
        row, is divided by its columns, and the members are weighted by their share of the sum.
        What is left over of the score is no column's own and is divided equally.
        """
        tolerance = density._tolerance()
        surprise = self._surprise(self.of_members(values, tolerance))
        say = self.weight * np.exp(surprise - surprise.max(axis=1, keepdims=True))
        say = say / say.sum(axis=1, keepdims=True)
        n = len(values)
        found_of_all = self._parts_of_members(np.vstack([values, self._typical_values]), tolerance)
        own = [parts[:n] for parts in found_of_all]
        typical = [np.median(parts[n:], axis=0) for parts in found_of_all]
        parts = np.tile(typical[self._main], (len(values), 1))
        for number, (usual, found) in enumerate(zip(typical, own, strict=True)):
            slope = self._slopes(number, found.sum(axis=1), float(usual.sum()))
            parts += self.scale[1] * (say[:, number] * slope)[:, None] * (found - usual)
        if self.local is not None:
            found = self._local_parts(values)
            slope = self._slopes(-1, self.center[-1] + found.sum(axis=1), float(self.center[-1]))
            parts += self.scale[1] * (say[:, -1] * slope)[:, None] * found
        total = self._combined(surprise)
        parts += (total - parts.sum(axis=1))[:, None] / parts.shape[1]
        return reconciled(parts, total)

    def _parts_of_members(self, values: Array, tolerance: Tolerance) -> list[Array]:
        """Return the columns' contributions to the members but the local score."""
        alone, rest = Contributions(self.floored).alone_and_rest(values, tolerance)
        found = [finite_parts(alone + each) for each in rest]
        if self.has_dependence:
            found.append(found[-1] - finite_parts(alone))
        return found

    def _slopes(self, number: int, score: Array, usual: float) -> Array:
        """Return by how much the surprise falls for each nat, on the way from a usual score."""
        ends = np.zeros((len(score) + 1, len(self.center)))
        ends[:, number] = np.append(score, usual)
        surprise = self._surprise(ends)[:, number]
        difference = score - usual
        slope = np.full_like(score, SLOPE / self.width[number])
        fall = surprise[-1] - surprise[:-1]
        return np.asarray(np.divide(fall, difference, out=slope, where=difference != 0.0))

    @property
    def _typical_values(self) -> Array:
        """Some training rows."""
        assert self.local is not None
        return self.model.on_lattice(self.model.space.values(self.local.rows[:ROWS_FOR_TYPICAL]))

    def _local_parts(self, values: Array) -> Array:
        """Return what columns contribute to the change of the local score."""
        assert self.local is not None
        space = self.model.space
        parts = np.zeros_like(values)
        found = self.local.contributions(MappedRows.of(self.model, values).mapped)
        parts[:, space.in_rows] = found
        return parts

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        shapes = {"center": "m", "width": "m", "tail": "m", "weight": "m"}
        check_shapes(self, shapes, m=len(self.members))
        check_in_range(self.center, 2.0 * MIN_SCORE, -2.0 * MIN_SCORE, "medians of scores")
        check_positive(self.width, "scales of scores")
        check_positive(self.tail, "tails of scores")
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


def quantiles(scores: Array, weight: Array, share: float) -> Array:
    """Return a quantile of each column of scores of weighted rows."""
    found = []
    for column in scores.T:
        order = np.argsort(column, kind="stable")
        found.append(weighted_quantile(column[order], weight[order] / weight.min(), share))
    return np.array(found)
