"""Rows from torch datasets and image folders, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Subset

__all__ = [
    "ImageFolder",
    "RowDataset",
    "RowStream",
    "Stream",
    "StreamedRows",
    "affordable_rows",
    "is_dataset",
    "read_rows",
    "without_ones",
]

Array = NDArray[np.float64]

#: Numbers and rows of a table that is worked on in memory, where it takes several copies; of a
#: larger one a sample of that size is: maps, references and validation need no more.
NUMBERS_IN_MEMORY, MAX_ROWS_IN_MEMORY = 2**26, 2**20
ROWS_IN_A_READ = 256


def affordable_rows(n_columns: int) -> int:
    """Return how many rows are held in memory, all of a table or a sample of more."""
    n_rows = max(ROWS_IN_A_READ, NUMBERS_IN_MEMORY // max(1, n_columns))
    return min(n_rows, MAX_ROWS_IN_MEMORY)


def is_dataset(X: Any) -> TypeGuard[Dataset[Any]]:
    """Return whether X is a torch dataset, whose items are rows, images or (image, label) pairs."""
    return isinstance(X, Dataset)


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without axes of length 1, such as a single channel."""
    return tuple(size for size in shape if size != 1)


def row_of(item: Any, shape: Sequence[int] | None = None) -> NDArray[Any]:
    """Return an item of a dataset as one row; what follows the image in a tuple is left out.

    Parameters
    ----------
    item : array-like, Tensor or tuple
        The item.
    shape : sequence of int or None, default=None
        Shape that items of more than one axis must have, except for axes of length 1.

    Returns
    -------
    ndarray of shape (d,)
        The row.

    Raises
    ------
    ValueError
        If the shape differs.
    """
    first = item[0] if isinstance(item, tuple | list) else item
    array = first.numpy() if isinstance(first, Tensor) else np.asarray(first)
    if shape is not None and array.ndim > 1 and without_ones(array.shape) != without_ones(shape):
        raise ValueError(
            f"X is a dataset with items of shape {array.shape}, not {tuple(shape)}. Put channels "
            "first, and resize images beforehand."
        )
    return array.reshape(-1)


def read_rows(
    dataset: Dataset[Any],
    indices: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> Array:
    """Return items of a dataset, all by default, as rows of a float64 array.

    Parameters
    ----------
    dataset : Dataset
        With `__len__` and `__getitem__`.
    indices : sequence of int or None, default=None
        The items.
    shape : sequence of int or None, default=None
        Shape of images; see `row_of`.

    Returns
    -------
    ndarray of shape (n, d)
        Rows.

    Raises
    ------
    ValueError
        If items have different sizes; the message names the first that differs.
    """
    if indices is None:
        indices = range(len(dataset))  # type: ignore[arg-type]
    rows = [row_of(dataset[int(index)], shape) for index in indices]
    for index, row in zip(indices, rows, strict=True):
        if row.shape != rows[0].shape:
            raise ValueError(
                f"X is a dataset whose items differ in size: item {indices[0]} has "
                f"{rows[0].size} numbers, item {index} has {row.size}. Resize them first."
            )
    return np.stack(rows).astype(np.float64) if rows else np.empty((0, 0))


class RowDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Rows and their weights, in memory.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Rows.
    weight : ndarray of shape (n,)
        Positive weights.
    device : torch.device
        Where to hold them.
    width : ndarray of shape (d,) or None, default=None
        Width of the uniform noise that rows get anew in each batch.
    """

    def __init__(
        self, X: Array, weight: Array, device: torch.device, width: Array | None = None
    ) -> None:
        self.width = None if width is None else torch.from_numpy(np.float32(width))
        self.rows = torch.from_numpy(np.array(X, dtype=np.float32)).to(device)
        self.weight = np.asarray(weight, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index], torch.zeros(())

    def first(self, n: int) -> RowDataset:
        """Return the first n rows, on the same device."""
        return self if n >= len(self) else self._part(slice(n))

    @property
    def with_weight(self) -> RowDataset:
        """The rows with a weight in single precision, beyond the range of which others may be."""
        has_weight = np.float32(self.weight / self.weight.mean()) > 0.0
        return self if has_weight.all() else self._part(np.flatnonzero(has_weight))

    def _part(self, index: slice | NDArray[np.intp]) -> RowDataset:
        """Return some of the rows, on the same device."""
        return RowDataset(self.rows[index].cpu().numpy(), self.weight[index], self.rows.device)


@dataclass(frozen=True)
class RowStream:
    """Items of a dataset that are read while a network is trained on them.

    Attributes
    ----------
    dataset : Dataset
        The dataset.
    indices : ndarray of int
        The items.
    num_workers : int
        Processes that read them; with 0 the training process does.
    shape : tuple of int or None
        Shape of images; see `row_of`.
    """

    dataset: Dataset[Any]
    indices: NDArray[np.intp]
    num_workers: int
    shape: tuple[int, ...] | None = None

    @classmethod
    def beyond_memory(
        cls,
        dataset: Dataset[Any],
        num_workers: int,
        random_state: np.random.RandomState,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[Array, RowStream | None]:
        """Return a random sample of rows that fits into memory, and the others as a stream.

        The stream is None if all rows fit.
        """
        if not hasattr(dataset, "__len__"):
            raise ValueError("X is a dataset without a length, which cannot be fitted.")
        n_rows = len(dataset)
        if n_rows == 0:
            raise ValueError("X is a dataset without items.")
        n_columns = row_of(dataset[0]).size
        n_held = affordable_rows(n_columns)
        if n_rows <= n_held:
            return read_rows(dataset, shape=shape), None
        order = random_state.permutation(n_rows)
        return read_rows(dataset, np.sort(order[:n_held]).tolist(), shape), cls(
            dataset, np.sort(order[n_held:]), num_workers, shape
        )

    def __len__(self) -> int:
        return len(self.indices)

    def chunks(self, batch_size: int, generator: Generator) -> Iterator[Array]:
        """Return endless shuffled batches of rows (B, d)."""
        loader: DataLoader[Any] = DataLoader(
            Subset(self.dataset, self.indices.tolist()),
            batch_size=min(batch_size, len(self.indices)),
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
            collate_fn=partial(stacked, shape=self.shape),
            generator=generator,
        )
        while True:
            yield from loader


def stacked(items: list[Any], shape: tuple[int, ...] | None) -> Array:
    """Return items of a dataset as rows; a function of the module, for workers of any kind."""
    return np.stack([row_of(item, shape) for item in items]).astype(np.float64)


class Stream(Protocol):
    """Rows that are read while a network is trained."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def chunks(self, batch_size: int, generator: Generator) -> Iterator[Array]:
        """Return endless chunks of rows in random order, of the size of batches or any other."""
        ...


@dataclass(frozen=True)
class StreamedRows:
    """Rows to train on, of which some are in memory and the others come from a stream.

    Attributes
    ----------
    stream : RowStream or PartitionStream
        The stream.
    prepare : callable
        Checks values of the table (n, c) and maps them to rows of the model (n, d).
    memory : RowDataset
        The rows in memory, of equal weight.
    """

    stream: Stream
    prepare: Callable[[Array], Array]
    memory: RowDataset

    def chunks(self, batch_size: int, generator: Generator) -> Iterator[Tensor]:
        """Return endless chunks of the stream's rows on the device of those in memory."""
        for values in self.stream.chunks(batch_size, generator):
            yield torch.from_numpy(self.prepare(values).astype(np.float32)).to(
                self.memory.rows.device
            )


class ImageFolder(Dataset[NDArray[np.uint8]]):
    """The images of a folder, in the order of their names, as 8-bit arrays.

    Needs Pillow, which the extra ``sk_itdiffusion[images]`` installs.

    Parameters
    ----------
    folder : str or Path
        The folder; subfolders are searched too.
    image_shape : tuple of int
        Channels (1 or 3), height and width of all images.
    extensions : sequence of str, default=(".png", ".jpg", ".jpeg", ".bmp", ".webp")
        Endings of the names, in small letters.

    Raises
    ------
    ValueError
        If there is no such folder or no image in it, or image_shape is no shape of images; when an
        item is read, if the image has another size.

    Examples
    --------
    >>> from sk_itdiffusion._first._table.streams import ImageFolder
    >>> images = ImageFolder("photos", (3, 32, 32))  # doctest: +SKIP
    >>> IMMSEDensity(image_shape=(3, 32, 32), dequantize=True).fit(images)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        image_shape: tuple[int, int, int],
        extensions: Sequence[str] = (".png", ".jpg", ".jpeg", ".bmp", ".webp"),
    ) -> None:
        if len(image_shape) != 3 or image_shape[0] not in (1, 3):
            raise ValueError(
                "image_shape must be (channels, height, width) with 1 or 3 channels, got "
                f"{image_shape!r}."
            )
        self.image_shape = tuple(image_shape)
        self.paths = sorted(
            path for path in Path(folder).rglob("*") if path.suffix.lower() in extensions
        )
        if not self.paths:
            raise ValueError(f"folder {str(folder)!r} holds no images ending in {extensions}.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            pixels = np.asarray(image.convert("L" if self.image_shape[0] == 1 else "RGB"))
        channels_first = np.atleast_3d(pixels).transpose(2, 0, 1)
        if channels_first.shape != self.image_shape:
            raise ValueError(
                f"The image {str(self.paths[index])!r} has shape {channels_first.shape}, not "
                f"{self.image_shape}. Resize it first."
            )
        return np.ascontiguousarray(channels_first)
