"""Tables read partition by partition: arrays on disk or of many rows, and Dask collections.

A table that is too large to be worked on in memory is read once from end to end, which checks all
of its rows and keeps a random sample of them.  Maps, references and validation need no more than
the sample.  The other rows are read again, in random partitions, while a network is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeGuard

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_array
from torch import Generator
from torch.utils.data import Subset

from sk_itdiffusion._first._table.reading import naming_columns, without_missing_objects
from sk_itdiffusion._first._table.streams import affordable_rows, is_dataset, row_of

__all__ = [
    "DaskPartitions",
    "LocalPartitions",
    "PartitionStream",
    "in_memory",
    "is_dask",
    "partitions_of",
    "parts_of",
    "sample",
]

Array = NDArray[np.float64]

#: Numbers in the partitions of arrays: neighbours in a file are often alike, so partitions are
#: small.
NUMBERS_IN_A_PARTITION = 2**16
#: Numbers that are read, shuffled and mapped at a time in training.
NUMBERS_IN_A_CHUNK = 2**20
#: Numbers in the parts that are scored one after the other.
NUMBERS_IN_A_PART = 2**22


class Partitions(Protocol):
    """A table whose rows come in partitions, which are arrays or data frames."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        ...

    @property
    def n_partitions(self) -> int:
        """Number of partitions."""
        ...

    def read(self, numbers: Sequence[int]) -> list[Any]:
        """Return some of the partitions."""
        ...

    def map(self, function: Callable[[Any, int], Any]) -> list[Any]:
        """Return what a function of a partition and its number returns for each partition."""
        ...


@dataclass(frozen=True)
class LocalPartitions:
    """Partitions of consecutive rows of an array, in memory or on disk, or of a data frame.

    Attributes
    ----------
    X : ndarray or DataFrame of shape (n_rows, n_columns)
        The rows.
    n_rows_in_partition : int
        Rows in each partition but the last.
    """

    X: Any
    n_rows_in_partition: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.X)

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return int(self.X.shape[1])

    @property
    def n_partitions(self) -> int:
        """Number of partitions."""
        return -(-self.n_rows // self.n_rows_in_partition)

    def place(self, number: int) -> slice:
        """Return the rows of a partition."""
        return slice(number * self.n_rows_in_partition, (number + 1) * self.n_rows_in_partition)

    def read(self, numbers: Sequence[int]) -> list[Any]:
        """Return some of the partitions."""
        return [chosen_rows(self.X, self.place(number)) for number in numbers]

    def map(self, function: Callable[[Any, int], Any]) -> list[Any]:
        """Return what a function of a partition and its number returns for each partition."""
        return [function(self.read([number])[0], number) for number in range(self.n_partitions)]


@dataclass(frozen=True)
class DaskPartitions:
    """The partitions of a Dask data frame, or the chunks of rows of a Dask array.

    Attributes
    ----------
    delayed : sequence of Delayed
        The partitions.
    n_rows, n_columns : int
        Size of the table.
    """

    delayed: Sequence[Any]
    n_rows: int
    n_columns: int

    @classmethod
    def of(cls, X: Any) -> DaskPartitions:
        """Return the partitions of a collection; its rows are counted if that is not known."""
        if X.ndim != 2:
            raise ValueError(f"X is a Dask array with {X.ndim} dimensions; it must have 2.")
        if not hasattr(X, "columns"):
            X = X.rechunk({1: -1})
        return cls(list(np.ravel(X.to_delayed())), counted_rows(X), int(X.shape[1]))

    @property
    def n_partitions(self) -> int:
        """Number of partitions."""
        return len(self.delayed)

    def read(self, numbers: Sequence[int]) -> list[Any]:
        """Return some of the partitions."""
        import dask

        return list(dask.compute(*(self.delayed[number] for number in numbers)))

    def map(self, function: Callable[[Any, int], Any]) -> list[Any]:
        """Return what a function of a partition and its number returns for each partition.

        It is called where the partition is, so that only what it returns is sent here.
        """
        import dask

        there = dask.delayed(function, pure=False)
        return list(
            dask.compute(*(there(partition, i) for i, partition in enumerate(self.delayed)))
        )


def counted_rows(X: Any) -> int:
    """Return the number of rows of a Dask collection."""
    if hasattr(X, "columns"):
        return len(X)
    if np.isnan(X.shape[0]):
        X = X.compute_chunk_sizes()
    return int(X.shape[0])


def is_dask(X: Any) -> TypeGuard[Any]:
    """Return whether X is an array or a data frame of Dask, which need not be installed."""
    return callable(getattr(X, "__dask_graph__", None)) and hasattr(X, "to_delayed")


def in_memory(X: Any) -> Any:
    """Return the array or pandas data frame that a Dask collection holds, other X as it is.

    For methods that need all rows several times.
    """
    return X.compute() if is_dask(X) else X


def chosen_rows(X: Any, index: Any) -> Any:
    """Return some of the rows of an array or a data frame; all columns."""
    return X.iloc[index] if hasattr(X, "iloc") else X[index]


def joined(partitions: Sequence[Any]) -> Any:
    """Return partitions one below the other."""
    if len(partitions) == 1:
        return partitions[0]
    frames = isinstance(partitions[0], pd.DataFrame)
    return pd.concat(partitions, ignore_index=True) if frames else np.concatenate(partitions)


def partitions_of(X: Any, weight: Any = None) -> Partitions | None:
    """Return the partitions of a table that is not to be worked on in memory, None of others.

    Parameters
    ----------
    X : object
        Anything; tables are arrays, pandas data frames, and Dask collections.
    weight : object, default=None
        Weights of the rows, of which Dask collections have none.

    Returns
    -------
    LocalPartitions, DaskPartitions or None
        The partitions.  Dask collections always have partitions.

    Raises
    ------
    ValueError
        If a Dask collection has weights, or no rows.
    """
    if is_dask(X):
        if weight is not None:
            raise ValueError("sample_weight must be None if X is a Dask collection.")
        return DaskPartitions.of(X)
    if not isinstance(X, np.ndarray | pd.DataFrame) or X.ndim != 2 or X.shape[1] == 0:
        return None
    if len(X) <= affordable_rows(X.shape[1]):
        return None
    return LocalPartitions(X, max(1, NUMBERS_IN_A_PARTITION // X.shape[1]))


@dataclass(frozen=True)
class Selection:
    """Which rows of each partition are in the sample: it follows from the number of the partition.

    Attributes
    ----------
    share : float
        Probability of each row of positive weight; others never are.
    seed : int
        Seed.
    weight : ndarray of shape (n_samples,) or None, default=None
        Weights of all rows of the table; None if they are equal.
    n_rows_in_partition : int, default=0
        Rows in each partition but the last; ignored without weights.
    """

    share: float
    seed: int
    weight: Array | None = None
    n_rows_in_partition: int = 0

    def mask(self, number: int, n_rows: int) -> NDArray[np.bool_]:
        """Return which rows of a partition are in the sample."""
        drawn = np.random.default_rng([self.seed, number]).random(n_rows) < self.share
        return drawn if self.weight is None else drawn & (self.weight_of(number) > 0.0)

    def weight_of(self, number: int) -> Array:
        """Return the weights of the rows of a partition."""
        assert self.weight is not None
        start = number * self.n_rows_in_partition
        return self.weight[start : start + self.n_rows_in_partition]

    @cached_property
    def mean_weight(self) -> float:
        """The mean of the positive weights."""
        assert self.weight is not None
        return float(self.weight.mean(where=self.weight > 0.0))


@dataclass(frozen=True)
class PartitionStream:
    """The rows of partitions that are not in the sample, read while a network is trained.

    Attributes
    ----------
    partitions : Partitions
        The table.
    selection : Selection
        Which rows are in the sample.
    n_rows : int
        Rows of positive weight that are not.
    read : callable
        Returns the numbers and codes of a partition, of those of its rows that can be trained on.
    """

    partitions: Partitions
    selection: Selection
    n_rows: int
    read: Callable[[Any], Array]

    def __len__(self) -> int:
        return self.n_rows

    def chunks(self, batch_size: int, generator: Generator) -> Iterator[Array]:
        """Return endless shuffled chunks of rows, of any length; rows come as often as they weigh.

        Parameters
        ----------
        batch_size : int
            Not used.
        generator : torch.Generator
            Source of the order.

        Yields
        ------
        ndarray of shape (n, n_columns)
            Numbers and codes.
        """
        rows_in_partition = max(1, self.partitions.n_rows // self.partitions.n_partitions)
        n_together = max(1, NUMBERS_IN_A_CHUNK // (rows_in_partition * self.partitions.n_columns))
        while True:
            order = torch.randperm(self.partitions.n_partitions, generator=generator).tolist()
            for start in range(0, len(order), n_together):
                numbers = order[start : start + n_together]
                rows = joined(
                    [
                        self._others(partition, number, generator)
                        for partition, number in zip(
                            self.partitions.read(numbers), numbers, strict=True
                        )
                    ]
                )
                if len(rows):
                    shuffled = torch.randperm(len(rows), generator=generator).numpy()
                    values = self.read(chosen_rows(rows, shuffled))
                    if len(values):
                        yield values

    def _others(self, partition: Any, number: int, generator: Generator) -> Any:
        """Return the rows of a partition that are not in the sample."""
        others = np.flatnonzero(~self.selection.mask(number, len(partition)))
        if self.selection.weight is not None:
            expected = self.selection.weight_of(number)[others] / self.selection.mean_weight
            drawn = torch.rand(len(others), generator=generator, dtype=torch.float64).numpy()
            others = np.repeat(others, np.floor(expected + drawn).astype(np.intp))
        return chosen_rows(partition, others)


def has_missing_entries(partitions: Partitions) -> bool:
    """Return whether entries of a table are missing, which is read once."""
    return any(partitions.map(lambda part, _: bool(np.any(pd.isna(part)))))


def sample(
    partitions: Partitions,
    read: Callable[[Any], Array],
    random_state: np.random.RandomState,
    *,
    weight: Array | None = None,
    numbers_only: bool = False,
    allow_missing: bool = False,
) -> tuple[Any, Array | None, PartitionStream | None]:
    """Return a random sample of rows that fits into memory, its weights, and the others.

    Parameters
    ----------
    partitions : Partitions
        The table; all of it is read once.
    read : callable
        Returns numbers and codes of a partition in training.
    random_state : RandomState
        Source of the sample.
    weight : ndarray of shape (n_samples,) or None, default=None
        Weights of the rows; only of local partitions.
    numbers_only : bool, default=False
        Whether all values have to be finite numbers.
    allow_missing : bool, default=False
        Whether numbers may be missing all the same.

    Returns
    -------
    rows : ndarray or DataFrame
        The sample.
    weight : ndarray or None
        Weights of its rows.
    stream : PartitionStream or None
        The other rows; None if there are none.

    Raises
    ------
    ValueError
        If there are no rows, or a value is not a finite number though it has to be.
    """
    if partitions.n_rows == 0:
        raise ValueError("X is a Dask collection without rows.")
    n_rows, n_held = partitions.n_rows, affordable_rows(partitions.n_columns)
    rows_in_partition = 0
    if weight is not None:
        assert isinstance(partitions, LocalPartitions)
        n_rows, rows_in_partition = int(np.count_nonzero(weight)), partitions.n_rows_in_partition
    share, seed = 1.0, 0
    if n_rows > n_held:
        share, seed = n_held / n_rows, int(random_state.randint(2**31 - 1))
    selection = Selection(share, seed, weight, rows_in_partition)
    function = partial(
        checked_sample,
        selection=selection,
        numbers_only=numbers_only,
        allow_missing=allow_missing,
    )
    rows = joined([part for part in partitions.map(function) if len(part)])
    kept = None
    if weight is not None:
        weights = [selection.weight_of(number) for number in range(partitions.n_partitions)]
        kept = np.concatenate([w[selection.mask(i, len(w))] for i, w in enumerate(weights)])
    stream = PartitionStream(partitions, selection, n_rows - len(rows), read)
    return rows, kept, stream if len(stream) else None


def checked_sample(
    partition: Any,
    number: int,
    *,
    selection: Selection,
    numbers_only: bool,
    allow_missing: bool = False,
) -> Any:
    """Return the rows of a partition that are in the sample, once all of its rows are valid."""
    if numbers_only and len(partition):
        if allow_missing:
            partition = without_missing_objects(partition)
        all_finite = "allow-nan" if allow_missing else True
        with naming_columns(partition, allow_missing):
            check_array(partition, dtype=np.float64, input_name="X", ensure_all_finite=all_finite)
    return chosen_rows(partition, selection.mask(number, len(partition)))


def parts_of(X: Any) -> Iterator[Any]:
    """Return the parts of a table that are scored one after the other.

    A table that needs no conversion, or only a small one, is its own only part.

    Parameters
    ----------
    X : object
        A torch dataset, a Dask collection, or anything else.

    Yields
    ------
    object
        Datasets, arrays, data frames, or X itself.
    """
    if is_dataset(X) and hasattr(X, "__len__") and len(X):
        n_rows = max(1, NUMBERS_IN_A_PART // max(1, row_of(X[0]).size))
        for start in range(0, len(X), n_rows):
            yield Subset(X, range(start, min(start + n_rows, len(X))))
    elif is_dask(X):
        partitions = DaskPartitions.of(X)
        if partitions.n_rows == 0:
            raise ValueError("X is a Dask collection without rows.")
        for number in range(partitions.n_partitions):
            partition = partitions.read([number])[0]
            if len(partition):
                yield partition
    elif is_converted(X) and X.size > NUMBERS_IN_A_PART:
        n_rows = max(1, NUMBERS_IN_A_PART // (X.size // len(X)))
        for start in range(0, len(X), n_rows):
            yield X[start : start + n_rows]
    else:
        yield X


def is_converted(X: Any) -> bool:
    """Return whether X is an array that is on disk, or of which conversion makes a copy."""
    if not isinstance(X, np.ndarray) or X.ndim < 2:
        return False
    return X.dtype.kind in "biuf" and (isinstance(X, np.memmap) or X.dtype != np.float64)
