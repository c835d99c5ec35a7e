r"""How rows with continuous and discrete columns become points of a Euclidean space.

Each category :math:`k` of a discrete variable has an embedding :math:`v_k`: one of :math:`\pm 1`
for two categories, a point of an equidistant lattice for ordered categories, a multiple of a unit
vector for unordered ones.  The noise channel acts on the concatenated embeddings and continuous
columns, and since no category is lost, the relation between information and estimation gives
log-probabilities of categories as it gives log-densities of continuous columns (Kong et al. 2023).

For one variable, seen through the channel as :math:`z`, the categories have the likelihoods

.. math:: p(z \mid k) \propto \exp\left(
    -\frac{\|z - \sqrt{\sigma(a)}\, v_k\|^2}{2\, \sigma(-a)} \right),

and for independent variables the optimal estimate of :math:`v` is the mean under the posterior
:math:`p(k \mid z) \propto \pi_k\, p(z \mid k)`.

In this module ``rows`` have shape ``(B, n_continuous + m)``: continuous columns, then codes of the
m discrete variables; ``points`` have shape ``(B, d)``.  Negative codes stand for what was not
observed: references know the log-probabilities of such rows, but no points of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sk_itdiffusion._first._runtime.configured import ConfiguredModule, check_size
from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_in_range,
    check_increasing,
    check_same,
    check_shapes,
)

__all__ = [
    "LatticeGroup",
    "Layout",
    "OneHotGroup",
    "Variable",
    "check_same_layout",
    "lattice_values",
]

Array = NDArray[np.float64]

#: Length of the one-hot vectors, which makes the distance of two categories that of -1 and 1.
ONE_HOT_LENGTH = math.sqrt(2.0)
#: Categories from which on a lattice is treated much like a continuous column.
FINE_LATTICE = 8
#: Most that the categories of a lattice are apart: as far as those of a binary variable.
MAX_SPACING = 2.0


@stored()
@dataclass(frozen=True)
class Variable:
    """Embedding of a discrete variable.

    Attributes
    ----------
    n_categories : int
        Number of categories, at least 2.
    values : ndarray of shape (n_categories,) or None
        Points on a line; None for unordered categories, which become multiples of unit vectors.
    """

    n_categories: int
    values: Array | None = None

    @property
    def spacing(self) -> float:
        """Smallest distance between the embeddings of two categories."""
        if self.values is None:
            return math.sqrt(2.0) * ONE_HOT_LENGTH
        return float(np.diff(self.values).min())

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_in_range(self.n_categories, 2, np.inf, "numbers of categories")
        if self.values is not None:
            check_shapes(self, {"values": "k"}, k=self.n_categories)
            check_increasing(self.values, "points of categories")


def lattice_values(n_categories: int, center: float, scale: float) -> Array:
    """Return equidistant points for categories 0 to ``n_categories - 1``.

    Parameters
    ----------
    n_categories : int
        Number of categories; two categories become -1 and 1.
    center, scale : float
        Mean and standard deviation of the codes, which the lattice is standardised by; the
        categories are at most 2 apart.

    Returns
    -------
    ndarray of shape (n_categories,)
        Increasing points.
    """
    if n_categories == 2:
        return np.array([-1.0, 1.0])
    width = max(scale, 1.0 / MAX_SPACING)
    return np.asarray((np.arange(n_categories) - center) / width)


class VariableGroup(nn.Module):
    """Discrete variables of one kind and of similar numbers of categories, done together.

    Attributes
    ----------
    columns : list of int
        Numbers of the variables.
    start : int
        First coordinate of the group in the points.
    n_points : int
        Number of its coordinates.
    n_categories : int
        Largest number of categories K; variables with fewer are padded.
    allowed : Tensor of shape (m, K), bool
        Which categories there are.
    """

    allowed: Tensor
    n_points: int

    def __init__(self, variables: Sequence[Variable], columns: Sequence[int], start: int) -> None:
        super().__init__()
        counts = torch.tensor([variable.n_categories for variable in variables])
        self.columns = list(columns)
        self.start = start
        self.n_categories = int(counts.max())
        self.register_buffer("allowed", torch.arange(self.n_categories) < counts[:, None])

    @property
    def n_variables(self) -> int:
        """Number of variables m."""
        return len(self.columns)

    @property
    def coordinates(self) -> slice:
        """Its coordinates in the points."""
        return slice(self.start, self.start + self.n_points)

    def codes(self, rows: Tensor, n_continuous: int) -> Tensor:
        """Return the codes of its variables, (B, m), long."""
        return rows[:, [n_continuous + j for j in self.columns]].long()

    def observed_codes(self, rows: Tensor, n_continuous: int) -> tuple[Tensor, Tensor]:
        """Return codes of rows that may lack some, and which there are, both (B, m).

        Negative entries stand for what was not observed; they get the code 0.
        """
        entries = rows[:, [n_continuous + j for j in self.columns]]
        observed = entries >= 0.0
        return entries.clamp(min=0.0).long(), observed


class LatticeGroup(VariableGroup):
    """Variables whose categories are points on a line."""

    values: Tensor

    def __init__(self, variables: Sequence[Variable], columns: Sequence[int], start: int) -> None:
        super().__init__(variables, columns, start)
        self.n_points = len(variables)
        padded = np.empty((len(variables), self.n_categories))
        for row, variable in zip(padded, variables, strict=True):
            assert variable.values is not None
            row[: variable.n_categories] = variable.values
            row[variable.n_categories :] = variable.values[-1]
        self.register_buffer("values", torch.from_numpy(padded))

    def embed(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the points of codes, both (B, m)."""
        return self.values.gather(1, codes.T).T.to(dtype)

    def log_likelihood(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return log p(z | k) up to a constant in k, (B, m, K), from z (B, m)."""
        return -0.5 * self.standardized(z, logsnr, self.values).square()

    def increment_log_likelihood(self, increment: Tensor, rise: float) -> Tensor:
        """Return log N(increment; rise * v_k, rise) up to a constant in k, (B, m, K)."""
        scaled = increment[:, :, None] / math.sqrt(rise) - math.sqrt(rise) * self.values
        return -0.5 * scaled.square()

    @staticmethod
    def standardized(z: Tensor, logsnr: Tensor, values: Tensor) -> Tensor:
        """Return the noise, in standard deviations, that leads from values to z."""
        inverse_noise = 1.0 / noise_scale(logsnr)
        signal = torch.exp(0.5 * logsnr)
        return (z * inverse_noise[:, None])[:, :, None] - signal[:, None, None] * values

    def mean(self, probability: Tensor) -> Tensor:
        """Return the mean point, (B, m), of probabilities (B, m, K)."""
        return (probability * self.values).sum(2)

    def nearest(self, points: Tensor) -> Tensor:
        """Return the code of the nearest category for points (B, m)."""
        distance = (points[:, :, None] - self.values).abs()
        return distance.masked_fill(~self.allowed, torch.inf).argmin(2)


class OneHotGroup(VariableGroup):
    """Variables whose categories are multiples of unit vectors."""

    gather_index: Tensor
    scatter_index: Tensor

    def __init__(self, variables: Sequence[Variable], columns: Sequence[int], start: int) -> None:
        super().__init__(variables, columns, start)
        self.n_points = int(self.allowed.sum())
        index = torch.zeros(self.allowed.shape, dtype=torch.long)
        index[self.allowed] = torch.arange(self.n_points)
        self.register_buffer("gather_index", index)
        self.register_buffer("scatter_index", self.allowed.flatten().nonzero()[:, 0])

    def embed(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the points (B, n_points) of codes (B, m)."""
        points = torch.zeros(len(codes), self.n_points, device=codes.device, dtype=dtype)
        hit = self.gather_index.gather(1, codes.T).T
        return points.scatter_(1, hit, ONE_HOT_LENGTH)

    def log_likelihood(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return log p(z | k) up to a constant in k, (B, m, K), from z (B, n_points)."""
        factor = ONE_HOT_LENGTH * signal_scale(logsnr) / noise_scale(logsnr).square()
        return (factor[:, None] * z)[:, self.gather_index]

    def increment_log_likelihood(self, increment: Tensor, rise: float) -> Tensor:
        """Return log N(increment; rise * v_k, rise) up to a constant in k, (B, m, K)."""
        return ONE_HOT_LENGTH * increment[:, self.gather_index]

    def mean(self, probability: Tensor) -> Tensor:
        """Return the mean point, (B, n_points), of probabilities (B, m, K)."""
        return ONE_HOT_LENGTH * self.flat(probability)

    def flat(self, by_variable: Tensor) -> Tensor:
        """Return numbers (B, m, K) of the categories that there are as (B, n_points)."""
        return by_variable.flatten(1)[:, self.scatter_index]

    def nearest(self, points: Tensor) -> Tensor:
        """Return the code of the nearest category for points (B, n_points)."""
        return points[:, self.gather_index].masked_fill(~self.allowed, -torch.inf).argmax(2)


@stored()
class Layout(ConfiguredModule):
    """Where the columns of rows are in the points.

    Parameters
    ----------
    n_continuous : int
        Continuous columns; they come first in rows and points, unchanged.
    variables : sequence of Variable, default=()
        The discrete variables.
    """

    def __init__(self, n_continuous: int, variables: Sequence[Variable] = ()) -> None:
        super().__init__()
        self.n_continuous = n_continuous
        self.variables = tuple(variables)
        start = n_continuous
        groups: list[VariableGroup] = []
        for columns in similar_variables(variables):
            members = [variables[j] for j in columns]
            kind = LatticeGroup if members[0].values is not None else OneHotGroup
            groups.append(kind(members, columns, start))
            start += groups[-1].n_points
        self._groups = nn.ModuleList(groups)
        self.n_points = start

    @classmethod
    def least_numbers(cls, **config: Any) -> int:
        """Return how many numbers the references of a layout have at least."""
        sizes = [check_size(variable.n_categories, least=2) for variable in config["variables"]]
        for variable in config["variables"]:
            if variable.values is not None and variable.values.shape != (variable.n_categories,):
                raise ValueError("a variable has other categories than values")
        return check_size(config["n_continuous"]) + sum(sizes)

    @property
    def n_columns(self) -> int:
        """Columns of the rows."""
        return self.n_continuous + len(self.variables)

    @property
    def is_nearly_continuous(self) -> bool:
        """Whether there are continuous columns, or lattices fine enough to be much like them."""
        lattices = [group for group in self.groups if isinstance(group, LatticeGroup)]
        return self.n_continuous > 0 or any(b.n_categories >= FINE_LATTICE for b in lattices)

    @property
    def n_category_points(self) -> int:
        """Categories of all discrete variables, with the padding."""
        return sum(group.allowed.numel() for group in self.groups)

    @property
    def groups(self) -> list[LatticeGroup | OneHotGroup]:
        """The discrete groups."""
        return list(self._groups)  # type: ignore[arg-type]

    def owners(self) -> NDArray[np.intp]:
        """Return which column each coordinate belongs to; -1 for all continuous ones."""
        owner = np.full(self.n_points, -1)
        for group in self.groups:
            sizes = group.allowed.sum(1) if isinstance(group, OneHotGroup) else 1
            owner[group.coordinates] = np.repeat(group.columns, sizes)
        return owner

    def columns_of_points(self) -> NDArray[np.intp]:
        """Return the numbers of the columns of rows that the coordinates belong to, (n_points,)."""
        owner = self.owners()
        continuous = np.arange(self.n_points)
        return np.where(owner < 0, continuous, self.n_continuous + owner)

    def part(self, columns: Sequence[int]) -> Layout:
        """Return the layout of rows of some of the columns, given by increasing numbers."""
        m = self.n_continuous
        n_continuous = sum(j < m for j in columns)
        return Layout(n_continuous, [self.variables[j - m] for j in columns if j >= m])

    def embed(self, rows: Tensor) -> Tensor:
        """Return the points of rows."""
        if not self.variables:
            return rows
        parts = [rows[:, : self.n_continuous]]
        for group in self.groups:
            parts.append(group.embed(group.codes(rows, self.n_continuous), rows.dtype))
        return torch.cat(parts, dim=1)

    def embed_array(self, rows: Array) -> Array:
        """Return the points of rows, as arrays."""
        if not self.variables:
            return rows
        return self.embed(torch.from_numpy(rows)).numpy()

    def nearest_rows(self, points: Tensor) -> Tensor:
        """Return the rows whose points are nearest.

        Parameters
        ----------
        points : Tensor of shape (B, d)
            Points.

        Returns
        -------
        Tensor of shape (B, n_columns)
            Rows.
        """
        rows = torch.empty(len(points), self.n_columns, dtype=points.dtype, device=points.device)
        rows[:, : self.n_continuous] = points[:, : self.n_continuous]
        for group in self.groups:
            codes = group.nearest(points[:, group.coordinates])
            rows[:, [self.n_continuous + j for j in group.columns]] = codes.to(points)
        return rows


def similar_variables(variables: Sequence[Variable]) -> Iterator[list[int]]:
    """Return the numbers of variables that make a group: of one kind and of similar size."""
    members: dict[tuple[bool, int], list[int]] = {}
    for j, variable in enumerate(variables):
        size = math.ceil(0.5 * math.log2(variable.n_categories) - 1e-9)
        members.setdefault((variable.values is None, size), []).append(j)
    yield from (members[key] for key in sorted(members))


def check_same_layout(first: Layout, second: Layout) -> None:
    """Raise an error if columns are not in the same places in the points of two layouts."""
    found, expected = (
        [each.n_continuous, *((v.n_categories, v.values is None) for v in each.variables)]
        for each in (first, second)
    )
    check_same(found, expected, "the layouts of columns differ")
