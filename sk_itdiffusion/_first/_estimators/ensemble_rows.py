"""Which rows members of an ensemble are fitted to, and which their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._estimators.table import ChosenRows
from sk_itdiffusion._first._fit.experts import covers
from sk_itdiffusion._first._fit.schema import (
    grouped_and_counted,
    holds_out,
    n_observations,
    table_space,
)
from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import (
    rows_together,
    split_groups,
    split_independent_rows,
    with_observations_apart,
)
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first._table.groups import RowGroups
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.space import ColumnKind, TableSpace

__all__ = ["grouped_rows", "has_counts", "held_out", "number_of_rows", "observations_apart"]

Array = NDArray[np.float64]


def grouped_rows(
    values: Array, weight: Array, kinds: Sequence[ColumnKind], settings: FitSettings
) -> tuple[WeightedRows, TableSpace, bool]:
    """Return the distinct rows, a space that tells of what kind they are, and if they are counted.

    Rows with probabilities are: equal ones are different observations.
    """
    per_weight = settings.model.observations_per_weight
    grouped, counted = grouped_and_counted(values, weight, per_weight)
    space, _ = table_space(grouped, kinds, settings, float(len(weight)))
    is_counted = space.is_discrete
    if settings.model.dequantize is not False and not settings.model.has_images:
        step = None if settings.model.dequantize is True else settings.model.dequantize
        is_counted = covers(Dequantizer.fit(grouped.X, step, shared=False, seed=0), space)
    return counted if has_counts(settings, is_counted) else grouped, space, is_counted


def has_counts(settings: FitSettings, is_counted: bool) -> bool:
    """Return whether the weights of the distinct rows are numbers of observations."""
    return is_counted or settings.model.dequantize is not False


def number_of_rows(rows: WeightedRows, space: TableSpace, is_counted: bool) -> int:
    """Return the number of rows that count: all of those that are counted, or distinct ones."""
    return round(float(rows.weight.sum())) if is_counted else n_observations(rows, space)


def observations_apart(
    rows: WeightedRows, groups: RowGroups | None, space: TableSpace, is_counted: bool
) -> tuple[WeightedRows, RowGroups | None]:
    """Return rows of which those that are equal by chance are single observations, and groups."""
    if is_counted:
        return rows, groups
    scaled, exponent = in_units_of_one(rows)
    scaled, groups = with_observations_apart(scaled, groups, space)
    return scaled.with_values(np.ldexp(scaled.X, exponent)), groups


def in_units_of_one(rows: WeightedRows) -> tuple[WeightedRows, NDArray[np.intc]]:
    """Return rows with columns divided by powers of two, which is exact, and the exponents.

    So they have the same keys in other units of that kind.
    """
    exponent = np.frexp(np.abs(rows.X).max(axis=0))[1]
    return rows.with_values(np.ldexp(rows.X, -exponent)), exponent


def held_out(
    rows: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    seeds: Seeds,
    is_counted: bool,
    groups: RowGroups | None = None,
) -> tuple[ChosenRows, WeightedRows]:
    """Return rows for the members, with their groups, and rows for the weights.

    Very few rows are both.  Copies of a row are on one side, unless rows have probabilities.
    """
    if not holds_out(number_of_rows(rows, space, is_counted), settings):
        return (rows.X, rows.weight, None), rows
    scaled, exponent = in_units_of_one(rows)
    together = rows_together(scaled, space, settings, groups, is_counted)
    if together is not None:
        chosen = split_groups(together, scaled, settings, seeds.split, is_counted)
        return together.listed(rows, ~chosen), together.part(rows, chosen)
    train, valid = split_independent_rows(scaled, settings, seeds.split, is_counted)
    return (
        (np.ldexp(train.X, exponent), train.weight, None),
        valid.with_values(np.ldexp(valid.X, exponent)),
    )
