"""Batches of rows with noise, for training and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from sk_itdiffusion._first._immse.cubature import PiecewiseDensity
from sk_itdiffusion._first._table.streams import RowDataset, StreamedRows

__all__ = ["FixedNoiseIterator", "NoisyRowIterator", "StreamedRowIterator"]

#: Rows ``x`` with noise ``eps``, ``logsnr`` and its weight ``importance``, or what
#: `DenoisingObjective.prepared` returns for them.
NoisyRows = dict[str, Tensor]
Batches = list[tuple[NoisyRows, Tensor]]


class NoisyRowIterator:
    """Batches of rows with log-SNRs and noise, made in memory.

    An epoch is a fixed number of batches; passes through the shuffled rows go on across epochs.
    A pass takes rows in proportion to their weights, by systematic sampling, so that rows of equal
    weight are all taken once.  Log-SNRs are stratified over each batch.

    Parameters
    ----------
    dataset : RowDataset
        Rows.
    batch_size : int
        Rows in a batch; they repeat, with other noise, if there are fewer.
    n_batches : int
        Batches in an epoch.
    density : PiecewiseDensity
        Importance density of the log-SNR; may be replaced between epochs.
    generator : torch.Generator
        Source of all randomness.
    n_points : int
        Dimension of the noise.
    share : slice, default=slice(None)
        The part of each batch that is made; the others are those of other processes.
    n_at_once : int, default=1
        Batches that are made together, in fewer and larger operations.
    prepare : callable or None, default=None
        Returns a batch, or several one after the other, in the form that the network wants.
    """

    def __init__(
        self,
        dataset: RowDataset,
        batch_size: int,
        n_batches: int,
        density: PiecewiseDensity,
        generator: Generator,
        n_points: int,
        share: slice = slice(None),
        n_at_once: int = 1,
        prepare: Callable[[NoisyRows], NoisyRows] | None = None,
    ) -> None:
        self.rows = dataset.rows
        self.n_at_once = n_at_once
        self.prepare = prepare
        self.share = share
        self.width = dataset.width
        self.n_points = n_points
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.generator = generator
        self._share = torch.from_numpy(np.cumsum(dataset.weight) / dataset.weight.sum())
        self._queue = torch.empty(0, dtype=torch.long)
        self.set_density(density)

    def set_density(self, density: PiecewiseDensity) -> None:
        """Use another importance density from the next batch on."""
        self.density = density
        self._cumulative = torch.from_numpy(np.concatenate([[0.0], np.cumsum(density.mass)]))
        self._edges = torch.from_numpy(density.edges)
        self._heights = torch.from_numpy(density.mass / np.diff(density.edges))

    def __len__(self) -> int:
        return self.n_batches

    def _next_indices(self) -> Tensor:
        if 8 * len(self.rows) < self.batch_size:
            return self._systematic(self.batch_size)
        while len(self._queue) < self.batch_size:
            self._queue = torch.cat([self._queue, self._systematic(len(self.rows))])
        indices, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return indices

    def _systematic(self, n: int) -> Tensor:
        """Return n rows in proportion to their weights, shuffled."""
        offset = torch.rand((), generator=self.generator, dtype=torch.float64)
        marks = (torch.arange(n, dtype=torch.float64) + offset) / n
        taken = torch.searchsorted(self._share, marks).clamp(max=len(self.rows) - 1)
        return taken[torch.randperm(n, generator=self.generator)]

    def draw_logsnr(self, n: int, n_batches: int = 1) -> tuple[Tensor, Tensor]:
        """Return log-SNRs, stratified in each batch and in random order, and their weights."""
        shape = (n_batches, n)
        within = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        order = torch.rand(shape, generator=self.generator, dtype=torch.float64).argsort(dim=1)
        position = ((order + within) / n).flatten() * self._cumulative[-1]
        cell = torch.searchsorted(self._cumulative, position, right=True) - 1
        cell = cell.clamp(0, len(self._heights) - 1)
        width = self._edges[cell + 1] - self._edges[cell]
        mass = self._cumulative[cell + 1] - self._cumulative[cell]
        logsnr = self._edges[cell] + width * (position - self._cumulative[cell]) / mass
        return logsnr.float(), (1.0 / self._heights[cell]).float()

    def batches(self, rows: Tensor, n_batches: int = 1) -> Batches:
        """Return this process's shares of batches of rows, in the form that skorch passes on."""
        n = len(rows) // n_batches
        logsnr, importance = self.draw_logsnr(n, n_batches)
        shape = (len(rows), self.n_points)
        eps = torch.randn(shape, generator=self.generator, dtype=rows.dtype)
        noise = {"eps": eps, "logsnr": logsnr, "importance": importance}
        if self.width is not None:
            uniform = torch.rand(rows.shape, generator=self.generator, dtype=rows.dtype) - 0.5
            rows = rows + (uniform * self.width).to(rows.device)
        together = {
            key: value.unflatten(0, (n_batches, n))[:, self.share].flatten(0, 1).to(rows.device)
            for key, value in ({"x": rows} | noise).items()
        }
        if self.prepare is not None:
            together = self.prepare(together)
        parts = zip(*(value.chunk(n_batches) for value in together.values()), strict=True)
        target = torch.zeros(len(together["logsnr"]) // n_batches, device=rows.device)
        return [(dict(zip(together, part, strict=True)), target) for part in parts]

    def __iter__(self) -> Iterator[tuple[NoisyRows, Tensor]]:
        for start in range(0, self.n_batches, self.n_at_once):
            n_batches = min(self.n_at_once, self.n_batches - start)
            indices = torch.cat([self._next_indices() for _ in range(n_batches)])
            yield from self.batches(self.rows[indices.to(self.rows.device)], n_batches)


class StreamedRowIterator(NoisyRowIterator):
    """Noisy batches of rows in memory, of which each then gives its place to one of a stream.

    So the order of the stream matters little: its rows are mixed with those of long before.
    """

    def __init__(self, source: StreamedRows, *arguments: Any) -> None:
        super().__init__(source.memory, *arguments)
        self._chunks = source.chunks(self.batch_size, self.generator)
        self._streamed = self.rows[:0]
        while len(self.rows) < self.batch_size:
            self.rows = torch.cat([self.rows, next(self._chunks)])

    def _next_indices(self) -> Tensor:
        """Return places in memory, none of them twice."""
        if len(self._queue) < self.batch_size:
            self._queue = torch.randperm(len(self.rows), generator=self.generator)
        indices, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return indices

    def _next_streamed(self) -> Tensor:
        """Return as many rows of the stream as are in a batch."""
        while len(self._streamed) < self.batch_size:
            self._streamed = torch.cat([self._streamed, next(self._chunks)])
        rows = self._streamed[: self.batch_size]
        self._streamed = self._streamed[self.batch_size :]
        return rows

    def __iter__(self) -> Iterator[tuple[NoisyRows, Tensor]]:
        for _ in range(self.n_batches):
            places = self._next_indices().to(self.rows.device)
            rows = self.rows[places]
            self.rows[places] = self._next_streamed()
            yield from self.batches(rows)


class FixedNoiseIterator:
    """The same noisy validation batches in every epoch, so that epochs compare."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[NoisyRows, Tensor]]:
        return iter(self.batches)
