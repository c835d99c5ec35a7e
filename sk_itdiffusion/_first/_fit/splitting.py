"""Which rows train and which validate: the second stage of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.schema import holds_out, n_observations
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.validation import Optimism, codes_of
from sk_itdiffusion._first._immse.cubature import keys_apart
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.groups import RowGroups, near_copies
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.space import TableSpace

__all__ = [
    "MappedSplit",
    "rows_together",
    "split_groups",
    "split_independent_rows",
    "split_rows",
    "with_observations_apart",
]

Array = NDArray[np.float64]
MAX_VALIDATION_ROWS = 10_000
#: Rows at most that observations which are equal by chance become, of each distinct one.
MAX_OBSERVATIONS_OF_A_ROW = 10_000
#: Share of the rows that near-duplicates of each other may be without making a split impossible.
MAX_SHARE_OF_COPIES = 0.5
#: Complete rows that stand for all where points of rows are needed.
MIN_ROWS_TO_EMBED = 100


def split_rows(
    rows: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    seed: int,
    groups: RowGroups | None = None,
) -> tuple[WeightedRows, WeightedRows]:
    """Return training and validation rows; very few rows serve as both."""
    if not holds_out(n_observations(rows, space), settings):
        return rows, rows
    is_counted = space.is_discrete
    together = rows_together(rows, space, settings, groups, is_counted)
    if together is None:
        return split_independent_rows(rows, settings, seed, is_counted)
    valid = split_groups(together, rows, settings, seed, is_counted)
    return together.part(rows, ~valid), together.part(rows, valid)


def with_observations_apart(
    rows: WeightedRows, groups: RowGroups | None, space: TableSpace
) -> tuple[WeightedRows, RowGroups | None]:
    """Return rows of which those that are equal by chance are single observations, and groups.

    Rows whose continuous entries are all missing or frequent values of their columns, such as
    zeros of amounts, are equal by chance, as rows of discrete tables are: together on one side of
    a split they would be missing on the other.

    Parameters
    ----------
    rows : WeightedRows
        Distinct rows.
    groups : RowGroups or None
        Their groups.
    space : TableSpace
        Their space.

    Returns
    -------
    rows : WeightedRows
        The rows, in random order; the same object if there are none such.
    groups : RowGroups or None
        Their groups.
    """
    if space.is_discrete or space.is_empty or rows.source is not None:
        return rows, groups
    times = np.rint(rows.weight if rows.number is None else rows.number)
    is_apart = times > 1.0
    if is_apart.any():
        is_apart &= rows.columns(space.layout.n_continuous).are_equal_by_chance
    if not is_apart.any():
        return rows, groups
    most = np.minimum(times, MAX_OBSERVATIONS_OF_A_ROW)
    n_parts = np.where(is_apart, most, 1.0).astype(np.intp)
    index = np.repeat(np.arange(len(rows)), n_parts)
    content = keys_apart(rows.keys(0)[index])
    order = np.argsort(content, kind="stable")
    index, content = index[order], content[order]
    found = replace(
        rows.take(index),
        weight=(rows.weight / n_parts)[index],
        content=content,
        number=None if rows.number is None else (rows.number / n_parts)[index],
    )
    return found, None if groups is None else groups.of_parts(rows, index, n_parts)


def split_independent_rows(
    rows: WeightedRows, settings: FitSettings, seed: int, is_counted: bool
) -> tuple[WeightedRows, WeightedRows]:
    """Return training and validation rows of those that are independent.

    ``is_counted`` says whether weights are numbers of observations.
    """
    split = rows.split_copies if is_counted else rows.split
    return split(settings.model.validation_fraction, MAX_VALIDATION_ROWS, seed)


def split_groups(
    groups: RowGroups, rows: WeightedRows, settings: FitSettings, seed: int, is_counted: bool
) -> NDArray[np.bool_]:
    """Return which of the rows that groups list validate."""
    fraction, most = settings.model.validation_fraction, MAX_VALIDATION_ROWS
    return groups.split(rows, fraction, most, seed, in_counts=is_counted)


def rows_together(
    rows: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    groups: RowGroups | None,
    is_counted: bool,
) -> RowGroups | None:
    """Return the groups of rows that have to be on one side of a split, None if there are none.

    They are those given, or near-duplicates of continuous rows.  Equal rows that are counted are
    different observations, which may be in different groups; of other tables groups with a row in
    common are one.
    """
    if is_counted or rows.source is not None:
        return groups
    if groups is not None:
        return groups.joined(rows)
    if not settings.model.near_copies or space.layout.variables or settings.model.has_images:
        return None
    links = near_copies(rows.X, rows.content)
    if not len(links):
        return None
    joined = RowGroups.alone(rows).joined(rows, links)
    warn_about_near_copies()
    # A chain of near-duplicates through all rows leaves nothing to divide.
    return joined if joined.largest_share <= MAX_SHARE_OF_COPIES else None


def warn_about_near_copies() -> None:
    """Warn that rows are not independent, so that new rows may not be like those that validate."""
    warn(
        "Some rows are closer to each other than independent rows would be, as if they had been "
        "measured twice or copied with noise. Where possible they are kept on the same side of "
        "the validation split, but there may be fewer independent rows than there seem to be. "
        "If rows belong together, pass groups to fit, and split them by "
        "group in cross-validation; otherwise remove the near-duplicates."
    )


@dataclass(frozen=True)
class MappedSplit:
    """Training and validation rows of a space.

    Attributes
    ----------
    space : TableSpace
        The space.
    train, valid : WeightedRows
        The rows.
    valid_log_slope : ndarray of shape (n_valid,)
        Log-derivatives of the maps at the validation rows.
    judged : bool, default=True
        Whether validation rows are other rows than those for training.
    optimism : Optimism
        Optimism of the choices that were made on the validation rows.
    train_log_slope : ndarray of shape (n_train,) or float, default=0
        Log-derivatives of the maps at the training rows.
    earlier_codes : sequence of ndarray or None, default=None
        Of each discrete column the sorted codes of all training rows, if there were earlier ones.
    """

    space: TableSpace
    train: WeightedRows
    valid: WeightedRows
    valid_log_slope: Array
    judged: bool = True
    optimism: Optimism = field(default_factory=Optimism)
    train_log_slope: Array | float = 0.0
    earlier_codes: Sequence[Array] | None = None

    @classmethod
    def behind(cls, space: TableSpace, train: WeightedRows, valid: WeightedRows) -> MappedSplit:
        """Return standardised rows after the maps of a space."""
        mapped, train_log_slope = space.rows(train.X)
        mapped_valid, log_slope = space.rows(valid.X)
        return cls(
            space,
            train.with_values(mapped),
            valid.with_values(mapped_valid),
            log_slope,
            judged=train is not valid,
            train_log_slope=train_log_slope,
        )

    @property
    def trained_codes(self) -> Sequence[Array]:
        """Of each discrete column the sorted codes of training rows."""
        if self.earlier_codes is not None:
            return self.earlier_codes
        return codes_of(self.train.X[:, self.n_continuous :])

    @property
    def has_missing(self) -> bool:
        """Whether entries of the rows are missing."""
        return self.train.has_missing or self.valid.has_missing

    @property
    def rows_to_embed(self) -> WeightedRows:
        """Training rows without missing entries; all, with means instead, if few are complete."""
        if not self.train.has_missing:
            return self.train
        kept = np.flatnonzero(~np.isnan(self.train.X).any(axis=1))
        if len(kept) >= MIN_ROWS_TO_EMBED:
            return self.train.take(kept)
        mean = np.nanmean(self.train.X, axis=0)
        mean[self.n_continuous :] = np.rint(mean[self.n_continuous :])
        return replace(self.train, X=np.where(np.isnan(self.train.X), mean, self.train.X))

    @property
    def complete(self) -> MappedSplit:
        """The rows without missing entries; the same object if these are all."""
        if not self.has_missing:
            return self
        kept, kept_valid = (
            np.flatnonzero(~np.isnan(rows.X).any(axis=1)) for rows in (self.train, self.valid)
        )
        train_log_slope = np.broadcast_to(self.train_log_slope, len(self.train))
        return replace(
            self,
            train=self.train.take(kept),
            valid=self.valid.take(kept_valid),
            valid_log_slope=self.valid_log_slope[kept_valid],
            train_log_slope=train_log_slope[kept],
            optimism=Optimism(),
        )

    @property
    def n_continuous(self) -> int:
        """Number of continuous columns."""
        return self.space.layout.n_continuous

    @property
    def largest_variances(self) -> Array:
        """Variances that components may have in the columns; see `MarginalMap`."""
        if not self.space.marginal_map.columns:
            return np.full(self.n_continuous, np.inf)
        return self.space.marginal_map.largest_variances

    @property
    def continuous_train(self) -> WeightedRows:
        """Continuous columns of the training rows."""
        return self.train.columns(self.n_continuous)

    @property
    def continuous_valid(self) -> WeightedRows:
        """Continuous columns of the validation rows."""
        return self.valid.columns(self.n_continuous)
