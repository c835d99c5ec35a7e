r"""Which rows of a table belong together, so that the validation split does not separate them.

Rows belong together because the user says so (``groups``), because they are equal, or because they
are nearer to each other than independent rows would be: one object measured twice, or a copy with
noise.  If one of two such rows trains and the other validates, a model that remembers its training
rows looks good and is useless for new rows.

**Near-duplicates.**  Around a point of a smooth density in any number m of dimensions, the
distances :math:`r_1 < r_2 < \dots` to the nearest neighbours satisfy

.. math:: j\, m \log(r_{j+1} / r_j) \sim \mathrm{Exp}(1), \quad j = 1, 2, \dots

independently of each other: the volumes :math:`r_j^m` are the points of a Poisson process, and
these are the normalised spacings of its logarithms [1]_.  Each of them, divided by the mean of
those that follow it, therefore has an F distribution whatever the density and the dimension are.
That gives an exact p-value for a gap between a row's j nearest neighbours and all others.

**Copies or places.**  Independent rows too are near to each other if the density has many narrow
peaks; then new rows fall on the same peaks, and a model that finds them is right.  What tells the
two cases apart are the numbers :math:`N_k` of clusters of k rows.  Of independent rows they are
mixed Poisson numbers, so :math:`k! N_k` are moments of a positive measure, and by the inequality of
Cauchy and Schwarz their expectations satisfy

.. math:: k\, N_k^2 \le (k + 1)\, N_{k-1} N_{k+1}, \quad k = 2, 3, \dots

A thousand rows that are five hundred pairs violate it.  See `near_copies`.

References
----------
.. [1] A. Renyi. "On the theory of order statistics". Acta Mathematica Hungarica 4, 1953.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri, rel_entr
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_consistent_length

from sk_itdiffusion._first._immse.cubature import Keys, hash_uniform, numbered_keys, row_keys
from sk_itdiffusion._first._table.reading import without_tensors
from sk_itdiffusion._first._table.rows import (
    MIN_TRAINING_ROWS,
    MIN_VALIDATION_ROWS,
    WeightedRows,
    in_common_units,
    too_few_rows,
)

__all__ = ["RowGroups", "checked_groups", "near_copies"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

#: Neighbours whose distances are compared, and near-duplicates of a row that can be found.
N_NEIGHBORS, MAX_COPIES = 24, 8
#: Rows between which near-duplicates are looked for.
MIN_ROWS, MAX_ROWS = 40, 100_000
#: Rows that are looked at first; the others follow if there are near-duplicates among these.
ROWS_TO_TEST = 1_000
#: A table has near-duplicates if this share of its rows is found at this rate of false discoveries,
#: and those found at the last rate are then called so.
CATEGORIES = ((0.3, 0.1, 0.2), (0.01, 1e-6, 1e-2))
#: Standard errors by which the numbers of clusters are impossible for independent rows.
IMPOSSIBLE = 4.0
#: Quantiles through which a column is mapped to normal scores.
N_KNOTS = 65


def checked_groups(groups: Any, X: Any) -> Index:
    """Return the number of each row's group, from 0 on.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        Hashable labels.
    X : array-like of shape (n_samples, n_features)
        The rows.

    Returns
    -------
    ndarray of shape (n_samples,), int
        Numbers of the groups in the order of their appearance.

    Raises
    ------
    ValueError
        If there is not one label for each row, or one is missing.
    """
    labels = without_tensors(groups)
    if not hasattr(labels, "ndim"):
        labels = pd.Series(list(labels), dtype=object)
    if labels.ndim != 1:
        raise ValueError(f"groups must be one-dimensional, got {labels.ndim} dimensions.")
    check_consistent_length(X, labels)
    codes, _ = pd.factorize(labels)
    if (codes < 0).any():
        raise ValueError(
            f"groups has {int((codes < 0).sum())} missing labels. Give each row that belongs to "
            "no group its own label."
        )
    return np.asarray(codes, dtype=np.intp)


@dataclass(frozen=True)
class RowGroups:
    """Groups of distinct rows.

    A row of which there are equal ones in several groups is listed once for each of these.

    Attributes
    ----------
    row : ndarray of shape (n,), int
        Numbers of rows, in order.
    group : ndarray of shape (n,), int
        Their groups, from 0 on.
    weight : ndarray of shape (n,)
        Weight of the row in the group.
    """

    row: Index
    group: Index
    weight: Array

    @classmethod
    def of(cls, rows: WeightedRows, values: Array, weight: Array, groups: Index) -> RowGroups:
        """Return the groups of the distinct rows of a table.

        Parameters
        ----------
        rows : WeightedRows
            The distinct rows of positive weight.
        values : ndarray of shape (n_samples, n_columns)
            All rows.
        weight : ndarray of shape (n_samples,)
            Their weights.
        groups : ndarray of shape (n_samples,), int
            Their groups.

        Returns
        -------
        RowGroups
            The groups, with the weights of the distinct rows divided among them.  Their numbers
            follow from what rows they have.
        """
        kept = weight > 0
        number = places_of(values[kept], rows.X)
        units = in_common_units(weight[kept])
        pairs = pd.DataFrame({"row": number, "group": groups[kept], "weight": units})
        total = pairs.groupby(["row", "group"], as_index=False, sort=True)["weight"].sum()
        row, group = (total[name].to_numpy(dtype=np.intp) for name in ("row", "group"))
        group = numbers_by_content(row, group, total["weight"].to_numpy())
        order = np.lexsort((group, row))
        row, group, share = row[order], group[order], total["weight"].to_numpy()[order]
        share = share / np.bincount(row, weights=share, minlength=len(rows))[row]
        found = share * rows.weight[row]
        counts = np.rint(found)
        is_close = np.allclose(found, counts, rtol=1e-9, atol=0.0) and counts.min() >= 1.0
        return cls(row, group, counts if is_close else found)

    def of_observations(
        self, rows: WeightedRows, index: Index, observation: Index
    ) -> NDArray[np.intp]:
        """Return the groups of single observations of rows whose weights are counts of them.

        Parameters
        ----------
        rows : WeightedRows
            The rows.
        index : ndarray of shape (m,), int
            Numbers of the rows of which they are observations.
        observation : ndarray of shape (m,), int
            Number, from 0 on, of the observation of that row.  If there are fewer than its weight
            says, each stands for as many.

        Returns
        -------
        ndarray of shape (m,), int
            The groups.
        """
        end = np.cumsum(self.weight)  # the listed rows are in order
        begin = np.cumsum(rows.weight) - rows.weight
        n_observations = np.ones(len(rows))
        np.maximum.at(n_observations, index, observation + 1.0)
        each = np.maximum(1.0, rows.weight / n_observations)[index]
        within = np.minimum((observation + 0.5) * each, 0.999 * rows.weight[index])
        listed = np.minimum(np.searchsorted(end, begin[index] + within), len(end) - 1)
        return np.asarray(self.group[listed])

    def of_parts(self, rows: WeightedRows, index: Index, times: Index) -> RowGroups:
        """Return the groups of rows of which some are divided into single observations.

        Parameters
        ----------
        rows : WeightedRows
            The rows that the groups list.
        index : ndarray of shape (m,), int
            Numbers of the rows that the parts are of.
        times : ndarray of shape (n_rows,), int
            How many parts there are of each row.

        Returns
        -------
        RowGroups
            The groups of the parts.
        """
        order = np.argsort(index, kind="stable")
        place = np.empty(len(index), dtype=np.intp)
        start = np.cumsum(times) - times
        place[order] = np.arange(len(index)) - start[index[order]]
        part = np.flatnonzero(times[index] > 1)
        group = self.of_observations(rows, index[part], place[part])
        new = np.empty(len(rows), dtype=np.intp)
        new[index] = np.arange(len(index))
        whole = times[self.row] == 1
        listed = np.concatenate([new[self.row[whole]], part])
        groups = np.concatenate([self.group[whole], group])
        weight = np.concatenate([self.weight[whole], (rows.weight / times)[index[part]]])
        order = np.lexsort((groups, listed))
        return RowGroups(listed[order], groups[order], weight[order])

    @classmethod
    def within(cls, rows: WeightedRows) -> RowGroups:
        """Return the groups among which the weights of rows are divided."""
        assert rows.group_shares is not None
        listed = rows.group_shares.tocoo()
        row, group = listed.row.astype(np.intp), listed.col.astype(np.intp)
        return cls(row, group, listed.data * rows.weight[row])

    @classmethod
    def alone(cls, rows: WeightedRows) -> RowGroups:
        """Return a group for each row."""
        return cls(np.arange(len(rows)), np.arange(len(rows)), rows.weight)

    @property
    def largest_share(self) -> float:
        """Share of the listed rows that are in the largest group."""
        return float(np.bincount(self.group).max() / len(self.row))

    def joined(self, rows: WeightedRows, links: NDArray[np.intp] | None = None) -> RowGroups:
        """Return the groups that remain if those with a row in common, or linked rows, are one.

        Parameters
        ----------
        rows : WeightedRows
            The rows.
        links : ndarray of shape (n_links, 2), int, or None, default=None
            Pairs of rows.

        Returns
        -------
        RowGroups
            Groups of which each row is in one.
        """
        n_rows = len(rows)
        pairs = np.column_stack([self.row, n_rows + self.group])
        if links is not None:
            pairs = np.vstack([pairs, links])
        size = n_rows + int(self.group.max()) + 1
        graph = coo_array(
            (np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), (size,) * 2
        )
        _, component = connected_components(graph, directed=False)
        group = np.unique(component[:n_rows], return_inverse=True)[1]
        return RowGroups(np.arange(n_rows), group.astype(np.intp), rows.weight)

    def split(
        self, rows: WeightedRows, fraction: float, most: int, seed: int, in_counts: bool
    ) -> NDArray[np.bool_]:
        """Return which of the listed rows validate: all of a group or none.

        Groups come in an order that follows from their rows and the seed, not from their labels or
        the order of the rows.  Each validates if that brings the number of rows that do nearer to
        the number asked for.

        Parameters
        ----------
        rows : WeightedRows
            The rows.
        fraction : float
            Share of the rows that validate.
        most : int
            Most rows that validate.
        seed : int
            Seed of the order.
        in_counts : bool
            Whether rows are counted with their weights.

        Returns
        -------
        ndarray of shape (n,), bool
            Whether each listed row validates.

        Raises
        ------
        ValueError
            If there are fewer than 2 groups, or fewer than 10 rows would be left for training.
        """
        _, group = np.unique(self.group, return_inverse=True)
        counted = self.weight if in_counts else np.ones(len(group))
        sizes = np.bincount(group, weights=counted).astype(np.float64)
        if len(sizes) < 2:
            raise ValueError(
                "groups must contain at least 2 groups without common rows, since some are used "
                "for training and others for validation, but all rows form one group. Omit "
                "groups, or use finer ones."
            )
        n_rows = float(sizes.sum())
        wanted = float(np.clip(round(fraction * n_rows), MIN_VALIDATION_ROWS, most))
        order = np.argsort(self._keys(rows, group, seed), kind="stable")
        chosen = whole_groups(sizes[order], wanted)
        left = n_rows - float(sizes[order][chosen].sum())
        if left < MIN_TRAINING_ROWS:
            raise ValueError(
                too_few_rows(fraction, int(left), int(n_rows), f"rows in {len(sizes)} groups")
            )
        validates = np.zeros(len(sizes), dtype=bool)
        validates[order] = chosen
        return np.asarray(validates[group])

    def part(self, rows: WeightedRows, chosen: NDArray[np.bool_]) -> WeightedRows:
        """Return the distinct rows of some of those listed, with their groups."""
        weight: Array = np.zeros(len(rows))
        np.add.at(weight, self.row[chosen], self.weight[chosen])
        there = np.flatnonzero(weight)
        if np.array_equal(self.row, np.arange(len(rows))):
            return replace(rows.take(there), weight=weight[there], group=self.group[there])
        row, group = self.row[chosen], self.group[chosen]
        size = len(rows), int(self.group.max()) + 1
        shares = csr_array((self.weight[chosen] / weight[row], (row, group)), shape=size)
        shared = replace(rows, weight=weight, group_shares=shares)
        return shared.take(there)

    def listed(
        self, rows: WeightedRows, chosen: NDArray[np.bool_]
    ) -> tuple[Array, Array, NDArray[np.intp]]:
        """Return some of the listed rows, equal ones of several groups apart: as `fit` has them."""
        return rows.X[self.row[chosen]], self.weight[chosen], self.group[chosen]

    def _keys(self, rows: WeightedRows, group: Index, seed: int) -> Keys:
        """Return a key of each group that follows from what rows it has."""
        own = rows.keys(seed)[self.row]
        content = np.zeros(int(group.max()) + 1, dtype=np.uint64)
        np.add.at(content, group, numbered_keys(own, np.zeros(len(own), dtype=np.uint64)))
        # Groups of the same states are distinguished by their number among these.
        weighted = np.bincount(group, weights=self.weight * hash_uniform(own, 0))
        order = np.lexsort((weighted, content))
        first = np.append(True, np.diff(content[order]) != 0)
        start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        number = np.empty(len(order), dtype=np.uint64)
        number[order] = np.arange(len(order)) - start
        return numbered_keys(content, number)


def numbers_by_content(row: Index, group: Index, weight: Array) -> NDArray[np.intp]:
    """Return numbers of groups, from 0 on, that follow from their rows and these rows' weights.

    Groups of equal content have consecutive numbers, and it makes no difference which has which.

    Parameters
    ----------
    row, group : ndarray of shape (n,), int
        Numbers of distinct rows, which do not depend on the order of the rows of the table, and
        any numbers of their groups.
    weight : ndarray of shape (n,)
        Weights of the rows in the groups.

    Returns
    -------
    ndarray of shape (n,), int
        The new numbers of the groups.
    """
    _, old = np.unique(group, return_inverse=True)
    content = np.zeros(int(old.max()) + 1, dtype=np.uint64)
    np.add.at(content, old, row_keys(np.column_stack([row, weight])))
    number = np.empty(len(content), dtype=np.intp)
    number[np.argsort(content, kind="stable")] = np.arange(len(content))
    return number[old]


def groups_of_observations(
    rows: WeightedRows, index: Index, observation: Index
) -> NDArray[np.intp] | None:
    """Return the groups of single observations of rows, None if they have none.

    Parameters
    ----------
    rows, index, observation
        See `RowGroups.of_observations`.

    Returns
    -------
    ndarray of shape (m,), int, or None
        The groups.
    """
    if rows.group_shares is None:
        return None if rows.group is None else rows.group[index]
    return RowGroups.within(rows).of_observations(rows, index, observation)


def whole_groups(sizes: Array, wanted: float) -> NDArray[np.bool_]:
    """Return which groups are taken, in the order given, to have about a wanted number of rows."""
    chosen, total = np.zeros(len(sizes), dtype=bool), 0.0
    for number, size in enumerate(sizes):
        if total >= wanted:
            break
        if size <= 2.0 * (wanted - total):
            chosen[number] = True
            total += size
    for number in np.argsort(sizes, kind="stable"):
        if total >= MIN_VALIDATION_ROWS:
            break
        if not chosen[number]:
            chosen[number] = True
            total += sizes[number]
    return chosen


def places_of(X: Array, distinct: Array) -> Index:
    """Return the number of each row among distinct ones."""
    own, known = row_keys(X), row_keys(distinct)
    order = np.argsort(known)
    found = order[np.minimum(np.searchsorted(known[order], own), len(order) - 1)]
    if not np.array_equal(distinct[found], X, equal_nan=True):  # two rows with one hash
        together = np.unique(np.vstack([distinct, X]), axis=0, return_inverse=True)[1].ravel()
        number = np.empty(len(distinct), dtype=np.intp)
        number[together[: len(distinct)]] = np.arange(len(distinct))
        return number[together[len(distinct) :]]
    return np.asarray(found, dtype=np.intp)


# -- near-duplicates -----------------------------------------------------------------------------


def near_copies(X: Array, keys: Keys | None = None) -> NDArray[np.intp]:
    """Return pairs of rows that are nearer to each other than independent rows would be.

    Equal values of a column are spread over their share of the rows before distances are taken, so
    that what rounding explains is no near-duplicate.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Distinct rows; those with missing entries have no distances, and are in no pair.
    keys : ndarray of shape (n_samples,), uint64, or None, default=None
        Keys of the rows, by which equal values are spread; None for those of their values.

    Returns
    -------
    ndarray of shape (n_pairs, 2), int
        Pairs of rows; none of fewer than 40 rows or more than 100,000, none if hardly any rows are
        too near to others, and none if independent rows could form such clusters.
    """
    none = np.empty((0, 2), dtype=np.intp)
    is_complete = ~np.isnan(X).any(axis=1)
    if not is_complete.all():
        number = np.flatnonzero(is_complete)
        keys = None if keys is None else keys[number]
        return number[near_copies(X[number], keys)] if len(number) else none
    X = X[:, X.min(axis=0) < X.max(axis=0)]
    if not MIN_ROWS <= len(X) <= MAX_ROWS or X.shape[1] == 0:
        return none
    keys = row_keys(X) if keys is None else keys
    scores = np.column_stack([normal_scores(x, keys, stream) for stream, x in enumerate(X.T)])
    neighbors = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(X) - 1)).fit(scores)
    order = np.argsort(keys)
    tested = order[:ROWS_TO_TEST]
    found = neighbors_too_near(neighbors, scores, tested)
    threshold = significant(found.p_value)
    if threshold is None:
        return none
    others = order[ROWS_TO_TEST:]
    parts = [found, *(neighbors_too_near(neighbors, scores, others) for _ in others[:1])]
    links = np.concatenate([part.pairs(threshold) for part in parts])
    graph = coo_array((np.ones(len(links), dtype=bool), links.T), (len(X), len(X)))
    _, cluster = connected_components(graph, directed=False)
    return none if could_be_independent(np.bincount(np.bincount(cluster))) else links


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbours of some rows, of which the first may be too near.

    Attributes
    ----------
    row : ndarray of shape (n,), int
        Numbers of the rows.
    p_value : ndarray of shape (n,)
        Probability of a gap as wide as that behind the first neighbours.
    n_near : ndarray of shape (n,), int
        How many neighbours are before the gap.
    index : ndarray of shape (n, k), int
        Numbers of the neighbours.
    """

    row: Index
    p_value: Array
    n_near: Index
    index: NDArray[np.intp]

    def pairs(self, threshold: float) -> NDArray[np.intp]:
        """Return rows and neighbours before gaps whose p-values are at most a threshold."""
        near = np.arange(self.index.shape[1]) < self.n_near[:, None]
        here, there = np.nonzero(near & (self.p_value <= threshold)[:, None])
        return np.column_stack([self.row[here], self.index[here, there]])


def neighbors_too_near(neighbors: NearestNeighbors, scores: Array, chosen: Index) -> Neighbors:
    """Return the nearest neighbours of chosen rows, with the widest gap between their distances."""
    k = neighbors.n_neighbors
    distance, index = neighbors.kneighbors(scores[chosen], n_neighbors=k + 1)
    is_itself = index == chosen[:, None]
    is_itself[~is_itself.any(axis=1), -1] = True  # so many at one place that it is not among them
    distance, index = (a[~is_itself].reshape(len(chosen), k) for a in (distance, index))
    steps = np.diff(np.log(np.maximum(distance, 1e-300)), axis=1) * np.arange(1, k)
    p_value = np.ones(len(chosen))
    n_near = np.zeros(len(chosen), dtype=np.intp)
    n_gaps = min(MAX_COPIES, k // 2)
    for j in range(n_gaps):
        after = steps[:, j + 1 :].sum(axis=1)
        ratio = np.divide(steps[:, j], after, out=np.zeros(len(chosen)), where=after > 0)
        p = n_gaps * (1.0 + ratio) ** -float(k - 2 - j)  # of an F distribution, Bonferroni's
        better = p < p_value
        p_value[better], n_near[better] = p[better], j + 1
    return Neighbors(chosen, p_value, n_near, index)


def significant(p_value: Array) -> float | None:
    """Return the largest p-value of near-duplicates, None if there are none.

    The rates of false discoveries are those of Benjamini and Hochberg.  Real tables have some rows
    that are nearer to each other than a smooth density makes them, which do no harm: there have to
    be many such rows, or some with no doubt.
    """
    ordered = np.sort(p_value)
    rate = ordered * len(ordered) / np.arange(1, len(ordered) + 1)

    def n_found(category: float) -> int:
        return int(np.flatnonzero(rate <= category).max(initial=-1)) + 1

    for least_share, decisive, category in CATEGORIES:
        if n_found(decisive) >= least_share * len(ordered):
            return float(ordered[n_found(category) - 1])
    return None


def could_be_independent(n_clusters: NDArray[np.intp]) -> bool:
    """Return whether independent rows could form such numbers of clusters of 0, 1, 2, ... rows.

    Each inequality of three numbers is tested by the likelihood ratio of Poisson numbers, of which
    the largest with equality have the same sums of a and b / 2, and of c and b / 2.
    """
    n = np.zeros(MAX_COPIES + 2)
    known = n_clusters[: len(n)]
    n[: len(known)] = known
    k = np.arange(2.0, MAX_COPIES + 1)
    a, b, c = n[1:-2], n[2:-1], n[3:]
    surplus = k * b**2 - (k + 1.0) * a * c
    # The smaller root of k (b - 2 t)^2 = (k + 1) (a + t) (c + t).
    half = 0.5 * (4.0 * k * b + (k + 1.0) * (a + c))
    t = surplus / (half + np.sqrt(np.maximum(half**2 - (3.0 * k - 1.0) * surplus, 0.0)) + 1e-300)
    expected = np.stack([a + t, b - 2.0 * t, c + t])
    deviance = 2.0 * rel_entr(np.stack([a, b, c]), expected).sum(axis=0)
    return bool((deviance[surplus > 0] <= IMPOSSIBLE**2).all())


def normal_scores(x: Array, keys: Keys, stream: int) -> Array:
    """Return a column as normal scores, smooth between quantiles, equal values spread.

    Differences between values that occur once are kept, up to a local scale; equal values get
    ranks drawn from those that they share, so that neither rounding nor a frequent value brings
    rows nearer to each other than chance does.
    """
    n = len(x)
    values, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    low = np.where(counts > 1, below, below + 0.5)
    high = np.where(counts > 1, below + counts, below + 0.5)
    knots = np.unique(np.linspace(0, len(values) - 1, N_KNOTS).round().astype(np.intp))
    ranks = np.column_stack([low[knots], high[knots]]).ravel()
    scores = np.interp(x, np.repeat(values[knots], 2), rank_scores(ranks, n))
    tied = counts[inverse] > 1
    drawn = (below[inverse] + counts[inverse] * hash_uniform(keys, stream))[tied]
    scores[tied] = rank_scores(drawn, n)
    return np.asarray(scores)


def rank_scores(ranks: Array, n: int) -> Array:
    """Return the normal scores of ranks from 0 to n."""
    return np.asarray(ndtri(np.clip(ranks, 0.5, n - 0.5) / n))
