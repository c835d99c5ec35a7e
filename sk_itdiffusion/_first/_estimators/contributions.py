r"""What each column contributes to a log-density with a noise floor.

With independent columns q the difference of a member and q is followed from no signal, where it is
0, to the floor, along the paths :math:`z_a = x + e^{-a/2} \epsilon` of fixed noise.  On such a path

.. math:: \frac{d}{da} \log p_a(z_a) = \frac12 \sum_j \left( 1
    + \epsilon_j E[\epsilon_j \mid z_a] - E[\epsilon_j^2 \mid z_a] \right),

which follows from the heat equation and is, averaged over the noise, the relation of Kong et al.
column by column: the expectation of each term is :math:`(1 - (\epsilon_j -
\hat\epsilon_j)^2) / 2`.  The left side is known at both ends of each interval, so the terms of an
interval are averaged such that their sum is what the log-densities differ by, whatever the rows.
Where values are not categories, what the other columns tell about each other is known from the
references, and is divided equally among them.

References
----------
X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._estimators.outlier_score import (
    FLOOR_STREAM,
    MIN_SCORE,
    MODEL,
    FlooredModel,
    FlooredRule,
    MappedRows,
    constant_parts,
    log_widths,
    share_above,
)
from sk_itdiffusion._first._fit.grids import model_range
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.model_of_parts import MIN_LOG_DENSITY
from sk_itdiffusion._first._immse.cubature import row_keys, spawn_keys
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._immse.likelihood import PointsOfDraws, paired_draws
from sk_itdiffusion._first._immse.places import DOUBLE_APART, MAX_ROWS_TO_PAD, Places
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import current_progress, stretch_of_progress
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references import Reference

__all__ = ["Contributions", "finite_parts"]

Array = NDArray[np.float64]

#: Nodes of the log-SNR at which the paths of explanations are evaluated, and draws of their noise.
PATH_NODES = 24
PATH_DRAWS = 2
#: By how much the paths begin below the log-SNR at which columns tell little about one another:
#: what they tell grows with the squared distance of rows.
ROOM_FOR_FAR_ROWS = 6.0
#: Intervals of the log-SNR that are longer lie beyond the model's range.
MAX_INTERVAL = 5.0
#: Rows that are drawn to find the range of the log-SNR in which references differ.
ROWS_FOR_RANGE = 1_000


@dataclass(frozen=True)
class Contributions:
    """What each column contributes to the score of a model with noise floors.

    Attributes
    ----------
    floored : FlooredModel
        The model with its floors.
    """

    floored: FlooredModel

    @property
    def model(self) -> TableModel:
        """The model."""
        return self.floored.model

    def of(self, values: Array, tolerance: Tolerance) -> Array:
        """Return each column's part of `FlooredModel.log_density`.

        Without floors and average they are those of the model's own log-density.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_columns)
            Numbers and codes.
        tolerance : Tolerance
            Standard error that the integral of a row should have.

        Returns
        -------
        ndarray of shape (n_samples, n_columns)
            Contributions in nats; minus infinity for entries so far out that they cannot be
            standardised.
        """
        alone, rest = self.alone_and_rest(values, tolerance)
        return np.asarray(alone + rest.mean(axis=0))

    def alone_and_rest(self, values: Array, tolerance: Tolerance) -> tuple[Array, Array]:
        """Return what columns are by themselves, and what the members say beyond that.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_columns)
            Numbers and codes.
        tolerance : Tolerance
            Standard error that the integral of a row should have.

        Returns
        -------
        alone : ndarray of shape (n_samples, n_columns)
            Log-density of each entry by itself, in nats; minus infinity so far out that it cannot
            be standardised.
        rest : ndarray of shape (n_members, n_samples, n_columns)
            What the other columns tell about each entry under each member.
        """
        model, space = self.model, self.model.space
        alone = np.zeros((len(values), space.n_columns))
        rest = np.zeros((len(self.floored.members), *alone.shape))
        alone[:, space.constant] = constant_parts(model, values)
        alone[:, space.open] = space.unseen_log_odds(values) + space.log_known[space.open]
        if space.is_empty:
            return alone, rest
        columns = space.in_rows
        # All that is known of a row are its values: equal ones are done once.
        _, first, group = np.unique(values, axis=0, return_index=True, return_inverse=True)
        distinct = values[first]
        with stretch_of_progress(0.0, 0.5):
            by_itself, beyond, near = self._columns_of_references(
                self._points_seen(distinct, tolerance), tolerance
            )
        # One after the other: the points of each row, of which most models see one.
        by_itself = by_itself.reshape(-1, *distinct.shape[:1], len(columns)).mean(axis=0)
        beyond = beyond.reshape(len(beyond), -1, *by_itself.shape).mean(axis=1)
        near = np.asarray(near.reshape(-1, len(distinct)).all(axis=0))
        for number, name in enumerate(self.floored.members):
            if name == MODEL:
                with stretch_of_progress(0.5, 1.0):
                    self._add_columns_of_model(beyond[number], distinct, near, tolerance)
        alone[:, columns] += by_itself[group.ravel()]
        rest[:, :, columns] = beyond[:, group.ravel()]
        return alone, rest

    def _points_seen(self, values: Array, tolerance: Tolerance) -> Array:
        """Return the points over which the references' part of a score is averaged.

        They are the rows, or as many times so many: all rows with one noise after the other.
        """
        dequantizer = self.model.dequantizer
        if dequantizer is None or not self.floored.is_plain:
            return values
        keys = row_keys(self.model.space.standardized(values), self.model.seeds.scoring)
        return np.concatenate(
            [values + noise for noise in self.model.reference_offsets(keys, tolerance)]
        )

    def _columns_of_references(
        self, values: Array, tolerance: Tolerance
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return what needs no network, alone and beyond, and whether one has weight in a row."""
        model, space = self.model, self.model.space
        rows = MappedRows.of(model, values)
        parts = np.where(rows.is_near, 0.0, -np.inf)
        beyond = np.zeros((len(self.floored.members), *parts.shape))
        near = rows.finite.copy()
        chosen = np.flatnonzero(rows.finite)
        if not len(chosen):
            return parts, beyond, near
        parts[:, : len(space.continuous)] += slope_parts(model, values)
        names = [self.floored.control if name == MODEL else name for name in self.floored.members]
        distinct = list(dict.fromkeys(names))
        alone = self._floored_columns(rows, chosen, tolerance)
        parts[chosen] += alone
        references = [self.floored.reference(name) for name in distinct]
        complete = space.is_complete(rows.mapped[chosen])
        gaps: list[tuple[Array, Array]] = []
        if complete.any():
            gaps = self._path_gaps(references, rows, chosen[complete])
        for number, name in enumerate(distinct):
            total = self.floored.floored_reference(references[number], rows, chosen, tolerance)
            rest = total - alone.sum(axis=1)
            found = shared_by_categories(rest, rows.mapped[chosen], len(space.continuous))
            if gaps:
                # The paths have fewer draws of noise than the score; nothing else is left over.
                gap, spread = gaps[number]
                found[complete] = reconciled(gap, rest[complete], spread)
            for member in np.flatnonzero([name == each for each in names]):
                beyond[member, chosen] = found
            if name == self.floored.control:
                near[chosen] = complete & (total > MIN_LOG_DENSITY)
        return parts, beyond, near

    def _add_columns_of_model(
        self, parts: Array, values: Array, near: NDArray[np.bool_], tolerance: Tolerance
    ) -> None:
        """Add what the stack says beyond its control variate, by the draws of the score."""
        rule = self.floored.rule(self.model.rule)
        if rule is None or not near.any():
            return
        rows, chosen = MappedRows.of(self.model, values), np.flatnonzero(near)
        points, log_density = None, self.floored.control_log_density(rows, chosen)
        if self.floored.is_plain and self.model.dequantizer is not None:
            points = self.model.dequantized_points
            standardized = self.model.space.standardized(values[chosen])
            log_density = self.model.control_log_density(
                values[chosen], standardized, rows.keys[chosen], tolerance
            ).log_density
        for each, rung in rule.rungs(log_density, tolerance):
            found = self._column_gaps(rows, values, chosen[rung], each, points)
            parts[chosen[rung]] += found

    def _floored_columns(
        self, rows: MappedRows, chosen: NDArray[np.intp], tolerance: Tolerance
    ) -> Array:
        """Return the mean smoothed log-density of each modelled column."""
        reference = self.floored.plain.independent()
        return self.floored.floor_means(
            reference.column_log_prob, rows, chosen, tolerance, reference.n_intermediate
        )

    def _logsnr_range(self) -> tuple[float, float]:
        """Return the range of the log-SNR in which references differ."""
        model = self.model
        if len(model.logsnr):
            return float(model.logsnr[0]), float(model.logsnr[-1])
        # Fits to rows with missing entries integrate nothing, and have no such range.
        assert model.parts is not None
        drawn = model.parts.sample(ROWS_FOR_RANGE, np.random.RandomState(model.seeds.scoring))
        rows = WeightedRows(drawn, np.ones(len(drawn)))
        return model_range(model.references.values(), model.space.layout, rows, 0.0)

    def _path_nodes(self) -> Array:
        """Return the log-SNRs of the paths' nodes, the floors among them."""
        known = self.floored.plain.independence_logsnr()
        least, most = self._logsnr_range()
        low = (least if known is None else min(least, known)) - ROOM_FOR_FAR_ROWS
        low = min(low, float(self.floored.floors.min()))
        high = max(low, min(float(self.floored.floors.max()), most))
        return np.unique(np.append(np.linspace(low, high, PATH_NODES), self.floored.floors))

    def _path_gaps(
        self,
        references: Sequence[Reference],
        rows: MappedRows,
        chosen: NDArray[np.intp],
    ) -> list[tuple[Array, Array]]:
        """Return what paths say about each column, and its variance between two draws of noise.

        For each reference it is the log-density less that of independent columns.
        """
        model, nodes, noise = self.model, self._path_nodes(), self.floored.noise
        layout = model.space.layout
        owner = columns_of_coordinates(layout)
        to_columns = (owner[:, None] == np.arange(layout.n_columns)).astype(np.float64)
        plain = self.floored.plain.independent()
        share = share_above(np.append(-np.inf, nodes[:-1]), self.floored.floors)
        widest = max(reference.n_intermediate for reference in (plain, *references))
        n_rows = 2**17 // (max(widest, 1) * PATH_DRAWS * noise.n_evaluations)
        n_rows = int(np.clip(n_rows, 1, MAX_ROWS_TO_PAD))

        @torch.no_grad()
        def chunk(start: int) -> Array:
            part = chosen[start : start + n_rows]
            # Padded to one shape, so that a row's value is independent of the other rows.
            part = np.pad(part, (0, n_rows - len(part)), mode="edge")
            keys = spawn_keys(rows.keys[part], 1, FLOOR_STREAM).ravel()
            eps, coefficient = noise.draws(keys, 0, PATH_DRAWS)
            eps = np.ascontiguousarray(eps.reshape(-1, eps.shape[-1]))
            places = Places(n_rows, len(eps) // n_rows, DOUBLE_APART)
            noisy = torch.from_numpy(places.spread(eps))
            repeated = np.repeat(rows.mapped[part], places.n_evaluations, axis=0)
            x = torch.from_numpy(places.spread(repeated))
            factor = coefficient.reshape(n_rows, PATH_DRAWS, -1)

            def mean(found: Tensor) -> Array:
                """Return the mean over the noise of a draw, (n_rows, PATH_DRAWS, n_values)."""
                values = places.gathered(found).numpy().reshape(*factor.shape, -1)
                return np.asarray(np.einsum("ndm,ndmc->ndc", factor, values))

            heights = np.empty((len(references), n_rows, PATH_DRAWS, len(nodes)))
            slopes = np.zeros((*heights.shape, layout.n_columns))
            for number, node in enumerate(nodes):
                base, base_slope = smoothed_slopes(plain, x, noisy, float(node))
                for r, reference in enumerate(references):
                    height, slope = smoothed_slopes(reference, x, noisy, float(node))
                    heights[r, :, :, number] = mean(height - base)[..., 0]
                    slopes[r, :, :, number] = mean(slope - base_slope) @ to_columns
            return path_contributions(nodes, share, heights, slopes)

        starts = range(0, len(chosen), n_rows)
        chunks = map_in_workers(chunk, starts, "cpu", current_progress())
        found = np.concatenate(chunks, axis=1)[:, : len(chosen)]
        return [(each.mean(axis=1), each.var(axis=1)) for each in found]

    def _column_gaps(
        self,
        rows: MappedRows,
        values: Array,
        chosen: NDArray[np.intp],
        rule: FlooredRule,
        points: PointsOfDraws | None,
    ) -> Array:
        """Return half the integral of each modelled column's difference of squared errors."""
        model, paired = self.model, self.model.paired()
        layout = model.space.layout
        owner = columns_of_coordinates(layout)
        seen = layout.embed_array(rows.mapped[chosen]) if points is None else values[chosen]
        n_rows, n_draws = rule.chunk_shape(model.budget, model.evaluations_apart)

        def one_chunk(start: int) -> Array:
            part = np.arange(start, start + n_rows).clip(max=len(seen) - 1)
            total = np.zeros((n_rows, layout.n_columns))
            for first in range(0, rule.n_draws, n_draws):
                differences, coefficient = paired_draws(
                    seen[part],
                    rows.keys[chosen[part]],
                    paired,
                    rule,
                    first,
                    n_draws,
                    model.device,
                    model.precision,
                    points,
                    model.evaluations_apart,
                )
                weighted = np.einsum("ndm,ndmc->nc", 0.5 * coefficient, differences)
                for coordinate, column in enumerate(owner):
                    total[:, column] += weighted[:, coordinate]
            return total

        starts = range(0, len(seen), n_rows)
        chunks = map_in_workers(one_chunk, starts, model.device, current_progress())
        return np.concatenate(chunks)[: len(seen)]


def columns_of_coordinates(layout: Layout) -> NDArray[np.intp]:
    """Return the column of each coordinate of a point; continuous columns come first."""
    columns = layout.owners() + layout.n_continuous
    columns[: layout.n_continuous] = np.arange(layout.n_continuous)
    return columns


def smoothed_slopes(
    reference: Reference, rows: Tensor, eps: Tensor, logsnr: float
) -> tuple[Tensor, Tensor]:
    """Return `Reference.smoothed_log_prob`, and its derivative in the log-SNR for fixed noise.

    Parameters
    ----------
    reference : Reference
        A reference.
    rows : Tensor of shape (B, n_columns)
        Rows; codes in discrete columns.
    eps : Tensor of shape (B, d)
        Noise of the points of the rows.
    logsnr : float
        Log-SNR of the noise; infinite for none.

    Returns
    -------
    log_prob : Tensor of shape (B,)
        Log-densities in nats.
    slopes : Tensor of shape (B, d)
        Terms of the derivative, one for each coordinate, up to one half of those of discrete
        columns, which all references have in common.  Zero where there is no noise.
    """
    height = reference.smoothed_log_prob(rows, eps, logsnr)
    if math.isinf(logsnr):
        return height, torch.zeros_like(eps)
    mean, square = reference.noise_moments(rows, eps, logsnr)
    return height, 0.5 * (1.0 + eps * mean - square)


def path_contributions(nodes: Array, share: Array, heights: Array, slopes: Array) -> Array:
    """Return the contributions of columns (..., c) to a difference of log-densities.

    Parameters
    ----------
    nodes : ndarray of shape (n_nodes,)
        Increasing log-SNRs; the last may be infinite.
    share : ndarray of shape (n_nodes,)
        Factors of the intervals that end at the nodes; the first begins at no signal.
    heights : ndarray of shape (..., n_nodes)
        Differences of log-densities at the nodes.
    slopes : ndarray of shape (..., n_nodes, n_columns)
        The columns' terms of their derivatives.

    Returns
    -------
    ndarray of shape (..., n_columns)
        Contributions in nats.
    """
    # Below the first node the difference grows with the square of the signal.
    total = share[0] * reconciled(0.5 * slopes[..., 0, :], heights[..., 0])
    for number in range(1, len(nodes)):
        left, right = slopes[..., number - 1, :], slopes[..., number, :]
        change = heights[..., number] - heights[..., number - 1]
        width = nodes[number] - nodes[number - 1]
        if width > MAX_INTERVAL:  # beyond the model's range the slopes fall with the noise
            part = reconciled(left, change)
        else:
            part = width * intermediate(left, right, change / width)
        total = total + share[number] * part
    return np.asarray(total)


def intermediate(left: Array, right: Array, total: Array) -> Array:
    """Return terms between those at the ends of an interval whose sum is the given one.

    They are the mean of the ends where the terms change evenly; where another component of a
    mixture takes over, and the terms jump, the ends are weighted by the parts before and after.
    """
    step = right - left
    rise = step.sum(axis=-1)
    missing = total - 0.5 * (left + right).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(rise != 0.0, missing / rise, 0.0).clip(-0.5, 0.5)
    between = 0.5 * (left + right) + shift[..., None] * step
    return reconciled(between, total, np.abs(left) + np.abs(right))


def reconciled(parts: Array, total: Array, weight: Array | None = None) -> Array:
    """Return parts whose sum is the total: what is missing is shared in proportion to a weight.

    Without a weight, and where all weights are 0, it is shared in proportion to the parts' sizes.
    """
    size = np.abs(parts)
    if weight is not None:
        size = np.where(weight.sum(axis=-1, keepdims=True) > 0.0, weight, size)
    size = size / size.max(axis=-1, keepdims=True).clip(min=np.finfo(np.float64).tiny)
    size = np.where(size.any(axis=-1, keepdims=True), size, 1.0)
    missing = total - parts.sum(axis=-1)
    return np.asarray(parts + missing[..., None] * size / size.sum(axis=-1, keepdims=True))


def finite_parts(parts: Array) -> Array:
    """Return contributions in which columns without a density share the least score."""
    far = np.isneginf(parts)
    return np.where(far, MIN_SCORE / far.sum(axis=1, keepdims=True).clip(min=1), parts)


def shared_by_categories(values: Array, mapped: Array, n_continuous: int) -> Array:
    """Return values (n,) in equal parts for the columns whose entries are numbers or categories."""
    observed = mapped >= 0.0
    observed[:, :n_continuous] = True
    return np.asarray(observed * (values / observed.sum(axis=1).clip(min=1))[:, None])


def slope_parts(model: TableModel, values: Array) -> Array:
    """Return the log-derivative of each continuous column's map, and the width of its cells.

    The shape is (n, n_continuous).
    """
    space = model.space
    with np.errstate(over="ignore"):
        standardized = space.standardized(values)
    parts = np.empty((len(values), len(space.continuous)))
    for j in range(len(space.continuous)):
        column = np.ascontiguousarray(standardized[:, j])
        slope = np.zeros(len(values))
        if space.marginal_map.columns:
            with np.errstate(over="ignore"):
                slope = space.marginal_map.columns[j].forward(column)[1]
        parts[:, j] = slope - math.log(space.standardizer.scale[j])
    return np.where(np.isfinite(parts), parts, 0.0) + log_widths(model)
