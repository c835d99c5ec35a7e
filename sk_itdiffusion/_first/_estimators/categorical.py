"""What the estimators of tables with discrete columns have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

from sk_itdiffusion._first._estimators.base import has_categories_only
from sk_itdiffusion._first._estimators.parameters import check_number_of_rows, checked_weight
from sk_itdiffusion._first._estimators.table import TableEstimator
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.categories import columns_of_learned_categories
from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.kinds import Kind
from sk_itdiffusion._first._table.reading import Table, read_table, without_tensors
from sk_itdiffusion._first._table.rows import column_labels
from sk_itdiffusion._first._table.space import ColumnKind

__all__ = [
    "CategoricalEstimator",
]

Array = NDArray[np.float64]


class CategoricalEstimator(TableEstimator):
    """Base class of the estimators for tables with discrete columns."""

    categories: Any
    handle_unknown: str
    handle_missing: str
    preconditioner: str
    loss: str
    _encoder: TableEncoder
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TableEstimator._parameter_constraints,
        "hidden_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "categories": [StrOptions({"auto"}), list, tuple, dict, np.ndarray],
        "handle_unknown": [StrOptions({"good_turing", "error"})],
        "handle_missing": [StrOptions({"category", "missing"})],
        "preconditioner": [StrOptions({"auto", "independent", "latent_class"})],
        "loss": [StrOptions({"mse", "cross_entropy"})],
    }

    def __sklearn_tags__(self) -> Any:
        """Return the tags: strings and categories are accepted."""
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    @abstractmethod
    def _column_kinds(self, table: Table, allow_missing: bool = False) -> list[Kind]:
        """Return the kinds of the table's columns, whose numbers may be missing if allowed."""

    def _table(self, X: Any, reset: bool) -> Table:
        """Return the table, its columns noted or compared with those of the fit."""
        X = without_tensors(X)
        table = read_table(X)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return table

    def _read_first(
        self,
        X: Any,
        weight: ArrayLike | None,
        squared_weight: Array | None = None,
        allow_missing: bool = False,
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return codes, weights and kinds; categories are learned from rows of positive weight."""
        table, checked = self._weighted_table(X, weight, reset=True)
        if squared_weight is not None:
            squared_weight = squared_weight[np.asarray(weight) > 0]
        self._encoder = TableEncoder.fit(
            table,
            kinds=self._column_kinds(table, allow_missing),
            categories=self.categories,
            handle_unknown=self.handle_unknown,
            shared_categories=self._shares_categories(),
            sample_weight=checked,
            squared_weight=squared_weight,
            allow_missing=allow_missing,
            handle_missing=self.handle_missing,
        )
        self._publish_columns()
        kinds = [
            ColumnKind(c.n_categories, c.kind == "ordinal", c.log_seen)
            for c in self._encoder.columns
        ]
        return self._encoder.encode(table, allow_missing), checked, kinds

    def _publish_columns(self) -> None:
        """Set the public fitted attributes from the encoder."""
        self.categories_ = [column.categories for column in self._encoder.columns]
        self.kinds_ = [column.kind for column in self._encoder.columns]

    def _finish_loading(self) -> None:
        """Check the stored attributes for consistency, and set those that follow from them."""
        super()._finish_loading()
        self._publish_columns()

    def _read_again(
        self, X: Any, sample_weight: ArrayLike | None, allow_missing: bool = False
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return what `_read_first` does, of a table with the columns of the earlier fit."""
        table, weight = self._weighted_table(X, sample_weight, reset=False)
        values = self._encoder.encode(table, allow_missing)
        kept = has_categories_only(self, values, "learned from")
        check_number_of_rows(values[kept].shape, type(self).__name__)
        return values[kept], weight[kept], self._kinds

    def _read_first_of_stream(self, X: Any) -> tuple[Array, list[ColumnKind]]:
        """Return the codes of the first chunk and the kinds of its columns."""
        table = self._table(X, reset=True)
        learned = columns_of_learned_categories(table, self._column_kinds(table), self.categories)
        if learned.any():
            warn(
                f"partial_fit only knows the categories of the first rows in column(s) "
                f"{column_labels(learned, table.labels)}; set categories, or use a categorical "
                "dtype.",
            )
        return super()._read_first_of_stream(X)

    def _weighted_table(self, X: Any, weight: ArrayLike | None, reset: bool) -> tuple[Table, Array]:
        """Return the rows of positive weight, and their weights."""
        table = self._table(X, reset)
        check_number_of_rows(table.frame.shape, type(self).__name__)
        checked = checked_weight(weight, np.empty((len(table.frame), 1)))
        kept = checked > 0
        return (table if kept.all() else replace(table, frame=table.frame[kept])), checked[kept]

    def _read(self, X: Any, allow_missing: bool = False) -> Array:
        """Return numbers and codes of a table like the one fitted, NaN for missing entries."""
        return self._encoder.encode(self._table(X, reset=False), allow_missing)

    def _write(self, values: Array) -> Any:
        """Return a table with the fitted categories."""
        return self._encoder.decode(values, self._model.space.bounds_of_columns())

    def _specific_settings(self) -> dict[str, Any]:
        """Return the settings of discrete columns."""
        asked = self.preconditioner
        return {
            "preconditioner": "independent" if asked == "auto" else asked,
            "loss": self.loss,
        }

    def _shares_categories(self) -> bool:
        """Return whether all columns have the same categories."""
        return False
