"""What a network is worth to a model, by which its training is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.layout import Layout

__all__ = ["Judgement", "unexplained_noise"]

#: Intervals of the log-SNR, of equal numbers of noisy validation rows, that are evaluated apart.
N_INTERVALS = 16


class Judgement:
    """The bound of a network that is mixed with references, on noisy validation rows.

    A model mixes its experts at each log-SNR.  Where a reference predicts the noise better, what a
    network learns is of no use, so that its own bound says little about when it has learned enough.
    In each of some intervals of the log-SNR the network and the best reference get the weights of
    the smallest error.

    Parameters
    ----------
    logsnr : Tensor of shape (n,)
        Log-SNRs of all noisy validation rows.
    offset : float
        Mean negative log-likelihood of the reference that the network corrects, in nats.
    n_kinds : int, default=1
        Kinds of rows that are evaluated apart.
    """

    def __init__(self, logsnr: Tensor, offset: float, n_kinds: int = 1) -> None:
        self.n_kinds = n_kinds
        inner = torch.linspace(0.0, 1.0, N_INTERVALS + 1, dtype=torch.float64)[1:-1]
        self.edges = torch.quantile(logsnr.double().cpu(), inner)
        self.offset = offset
        self._restart()

    def _restart(self) -> None:
        self.n_rows_of = torch.zeros(self.n_kinds, dtype=torch.long)
        self.sums = torch.zeros(self.n_kinds * N_INTERVALS, 4, dtype=torch.float64)

    @property
    def n_rows(self) -> int:
        """Number of noisy rows since the last call of `take`."""
        return int(self.n_rows_of.sum())

    def intervals(self, logsnr: Tensor) -> Tensor:
        """Return the numbers of the intervals of log-SNRs."""
        return torch.bucketize(logsnr.double().cpu(), self.edges)

    def add(
        self,
        logsnr: Tensor,
        importance: Tensor,
        missed: Tensor,
        correction: Tensor,
        unexplained: Tensor,
        kind: Tensor | None = None,
    ) -> None:
        """Take noisy rows into account.

        Parameters
        ----------
        logsnr, importance : Tensor of shape (B,)
            Log-SNRs and their weights.
        missed : Tensor of shape (B, d)
            Noise less the prediction of the reference that the network corrects.
        correction : Tensor of shape (B, d)
            What the network adds to that prediction.
        unexplained : Tensor of shape (B, d)
            Noise less the prediction of the best reference.
        kind : Tensor of shape (B,), int, or None, default=None
            Kinds of the rows; None if there is one.
        """
        kind = torch.zeros_like(logsnr, dtype=torch.long) if kind is None else kind
        gained = unexplained - (missed - correction)
        products = torch.stack(
            [
                (missed * missed).sum(1),
                (unexplained * unexplained).sum(1),
                (unexplained * gained).sum(1),
                (gained * gained).sum(1),
            ],
            dim=1,
        )
        weighted = importance[:, None].double() * products.double()
        place = N_INTERVALS * kind.cpu() + self.intervals(logsnr)
        self.sums.index_add_(0, place, weighted.cpu())
        self.n_rows_of += torch.bincount(kind.cpu(), minlength=self.n_kinds)

    def take(self) -> list[tuple[float, int]]:
        """Return bounds, in nats, and numbers of rows since the last call, and begin anew.

        They are those of each kind of which there were rows.
        """
        baseline, alone, product, square = self.sums.T
        weight = (product / square.clamp(min=torch.finfo(torch.float64).tiny)).clamp(0.0, 1.0)
        least = alone - 2.0 * weight * product + weight**2 * square
        gains = (least - baseline).view(self.n_kinds, N_INTERVALS).sum(1).tolist()
        found = [
            (self.offset + 0.5 * gain / n_rows, n_rows)
            for gain, n_rows in zip(gains, self.n_rows_of.tolist(), strict=True)
            if n_rows
        ]
        self._restart()
        return found


@torch.no_grad()
def unexplained_noise(
    batches: Sequence[dict[str, Tensor]],
    layout: Layout,
    references: Sequence[Callable[[Tensor, Tensor], Tensor]],
    judgement: Judgement,
) -> list[Tensor]:
    """Return what of the noise the best reference of each interval of the log-SNR leaves over.

    Parameters
    ----------
    batches : sequence of dict
        Noisy rows: clean ones ``x``, noise ``eps``, ``logsnr`` and ``importance``.
    layout : Layout
        Where the columns of the rows are in the points.
    references : sequence of callable
        Denoisers.
    judgement : Judgement
        Knows the intervals.

    Returns
    -------
    list of Tensor of shape (B, d)
        The noise that is left, batch by batch.
    """
    left, errors = [], torch.zeros(N_INTERVALS, len(references), dtype=torch.float64)
    for batch in batches:
        eps, logsnr = batch["eps"], batch["logsnr"]
        z = add_noise(layout.embed(batch["x"]), eps, logsnr)
        each = torch.stack([eps - reference(z, logsnr) for reference in references], dim=1)
        weighted = batch["importance"][:, None].double() * (each**2).sum(2).double()
        errors.index_add_(0, judgement.intervals(logsnr), weighted.cpu())
        left.append(each)
    best = errors.argmin(1)
    chosen = [best[judgement.intervals(batch["logsnr"])] for batch in batches]
    return [
        each[torch.arange(len(each)), number.to(each.device)]
        for each, number in zip(left, chosen, strict=True)
    ]
