r"""A network that sees the features, in front of the distribution of the standardised residual.

For each x the relation of Kong et al. holds for the conditional distribution of the residual u,

.. math:: \log p(u | x) = \log q(u) + \tfrac12 \int \mathrm{d}a\; E_\epsilon\left[
    |\epsilon - \hat\epsilon_q(z, a)|^2 - |\epsilon - \hat\epsilon(z, a; x)|^2\right],

with the mixture q, which does not see x, as control variate.  The noise of one dimension is that of
Gauss-Hermite nodes, so that a score is a sum without random numbers.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, ndtr
from torch import Tensor

from sk_itdiffusion._conditional.residual import NormalMixture
from sk_itdiffusion._fit.batches import NoisyRows
from sk_itdiffusion._fit.course import Limits
from sk_itdiffusion._fit.training import DenoisingObjective, TrainingPlan, train
from sk_itdiffusion._immse.error_profiles import ErrorProfile, stacking_weights
from sk_itdiffusion._immse.sampling import N_STEPS, probability_flow
from sk_itdiffusion._runtime.generators import CopyableGenerator
from sk_itdiffusion._runtime.parallel import map_in_workers, run_interruptibly
from sk_itdiffusion._table.rows import WeightedRows
from sk_itdiffusion._table.streams import RowDataset
from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.denoisers import LogSNREmbedding, PreconditionedDenoiser
from sk_itdiffusion.denoisers.mlp import ResidualMLP
from sk_itdiffusion.denoisers.precondition import check_precision
from sk_itdiffusion.layout import Layout
from sk_itdiffusion.persistence import stored
from sk_itdiffusion.persistence.checks import check_same
from sk_itdiffusion.references.judging import mean_and_error
from sk_itdiffusion.references.mixture import GaussianMixtureReference
from sk_itdiffusion.schedules import resolve_schedule

__all__ = ["ContextDenoiser", "ContextNetwork", "fit_context_network"]

Array = NDArray[np.float64]

#: Nodes of the noise, and of the log-SNR.
N_NOISES, N_LEVELS = 12, 25
#: Rows in a pass of the network, with all their noise, and points of the flow.
ROWS_IN_A_PASS, POINTS_IN_A_PASS = 64, 1024
#: Shares of the network's weights that are tried.
SHARES = np.linspace(0.0, 1.0, 11)
_WIDTH, _N_BLOCKS, _N_FREQUENCIES = 128, 2, 4
_BATCH_SIZE, _LEARNING_RATE, _PATIENCE, _TOL = 512, 0.02, 6, 0.02
_NOISY_VALIDATION_ROWS = 8192


@stored()
class ContextDenoiser(PreconditionedDenoiser):
    """Denoiser of one column that sees others, which are clean, beside it.

    Points are the noisy column and what is given, shape (B, 1 + n_given); the noise is that of the
    first column, (B, 1).  See `PreconditionedDenoiser` for the parameters.
    """

    def constants(self, z: Tensor, logsnr: Tensor) -> dict[str, Tensor]:
        """Return what of a prediction does not depend on the weights.

        See `PreconditionedDenoiser.constants`.
        """
        return {
            "baseline": self.reference.denoise(z[:, :1], logsnr),
            "spread": (torch.sigmoid(logsnr) * torch.sigmoid(-logsnr)).sqrt(),
            "features": self.embedding(logsnr),
        }

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        check_same(self.reference.n_features, 1, "a network has another reference")
        sizes: tuple[int, int] = self.backbone.sizes  # type: ignore[assignment]
        check_same(sizes[1], 1, "a network is of another size")
        check_precision(self)


class ContextObjective(DenoisingObjective):
    """The bound for one column given others: the noise is on the first column of the rows only."""

    @torch.no_grad()
    def with_constants(self, batch: NoisyRows) -> NoisyRows:
        """Return noisy rows with all computed that does not depend on the weights."""
        assert isinstance(self.denoiser, ContextDenoiser)
        noisy = add_noise(batch["x"][:, :1], batch["eps"], batch["logsnr"])
        z = torch.cat([noisy, batch["x"][:, 1:]], dim=1)
        known = {"z": z, "logsnr": batch["logsnr"], "importance": batch["importance"]}
        constants = self.denoiser.constants(z, batch["logsnr"])
        return known | {"missed": batch["eps"] - constants.pop("baseline")} | constants


@stored()
@dataclass(frozen=True)
class ContextNetwork:
    """A trained network, and its share at each log-SNR.

    Attributes
    ----------
    denoiser : ContextDenoiser
        The network, in single precision.
    logsnr : ndarray of shape (n_nodes,)
        Nodes of the integral, increasing.
    share : ndarray of shape (n_nodes,)
        Weight of the network's correction to the reference, from 0 to 1.
    """

    denoiser: ContextDenoiser
    logsnr: Array
    share: Array

    def gain(self, u: Array, given: Array) -> Array:
        """Return log p(u | x) less the log-density of the reference, shape (n,), in nats."""
        _, cross, square = noise_moments(self.denoiser, u, given, self.logsnr, self.share > 0.0)
        per_node = 2.0 * self.share[:, None] * cross - self.share[:, None] ** 2 * square
        # Each row by itself: sums over a first axis depend on the number of rows in the last bit.
        of_rows = np.ascontiguousarray(per_node.T)
        return np.asarray(0.5 * np.trapezoid(of_rows, self.logsnr, axis=1))

    def flow(self, normal: Array, given: Array) -> Array:
        """Return residuals that normal numbers become along the probability flow.

        It is an increasing map for each row, so that a quantile of a normal distribution becomes
        that of the residual.

        Parameters
        ----------
        normal : ndarray of shape (n, n_points)
            Numbers of a standard normal distribution, increasing along each row.
        given : ndarray of shape (n, n_given)
            What the network sees of each row.

        Returns
        -------
        ndarray of shape (n, n_points)
            Residuals.
        """
        levels = torch.linspace(float(self.logsnr[0]), float(self.logsnr[-1]), N_STEPS + 1)
        chunks = range(0, len(normal), max(1, POINTS_IN_A_PASS // normal.shape[1]))
        n_rows = chunks.step

        def chunk(start: int) -> Array:
            own, seen = normal[start : start + n_rows], given[start : start + n_rows]
            missing = ((0, n_rows - len(own)), (0, 0))
            found = self._flow(np.pad(own, missing), np.pad(seen, missing), levels)
            return found[: len(own)]

        found = np.concatenate(map_in_workers(chunk, chunks, "cpu"))
        return np.asarray(np.maximum.accumulate(found, axis=1))

    @torch.no_grad()
    def _flow(self, normal: Array, given: Array, levels: Tensor) -> Array:
        n_rows, n_points = normal.shape
        context = torch.from_numpy(given).float().repeat_interleave(n_points, dim=0)

        def predicted(z: Tensor, logsnr: Tensor) -> Tensor:
            baseline, correction = self.denoiser.parts(torch.cat([z, context], dim=1), logsnr)
            share = float(np.interp(float(logsnr[0]), self.logsnr, self.share))
            return baseline + share * correction

        low = float(self.logsnr[0])
        signal, noise = expit(low), expit(-low)
        mixture = self.denoiser.reference
        assert isinstance(mixture, GaussianMixtureReference)
        begin = smoothed(mixture, signal, noise)
        z = torch.from_numpy(begin.quantile(ndtr(normal))).float().reshape(-1, 1)
        # At the first log-SNR the network may know of a shift already.
        center = torch.full_like(z, float(begin.moments[0]))
        level = torch.full((len(z),), low)
        _, correction = self.denoiser.parts(torch.cat([center, context], dim=1), level)
        z = z - math.sqrt(noise) * float(self.share[0]) * correction
        return probability_flow(predicted, z, levels).double().numpy().reshape(n_rows, n_points)

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        check_same(len(self.logsnr), len(self.share), "there are other nodes")
        if not (np.diff(self.logsnr) > 0.0).all():
            raise ValueError("the log-SNRs are not in order")
        if not ((self.share >= 0.0) & (self.share <= 1.0)).all():
            raise ValueError("a share of a network is out of its range")


def smoothed(mixture: GaussianMixtureReference, signal: float, noise: float) -> NormalMixture:
    """Return the distribution of points of a mixture with noise, of these powers."""
    weight = mixture.log_weights.double().exp()
    return NormalMixture(
        (weight / weight.sum()).numpy(),
        math.sqrt(signal) * mixture.means.double().numpy()[:, 0],
        np.sqrt(signal * mixture.variances.double().numpy()[:, 0] + noise),
    )


def noise_moments(
    denoiser: ContextDenoiser, u: Array, given: Array, logsnr: Array, chosen: NDArray[np.bool_]
) -> Array:
    """Return means, over the noise, of products of the reference's error and the correction.

    Parameters
    ----------
    denoiser : ContextDenoiser
        The network.
    u : ndarray of shape (n,)
        Residuals.
    given : ndarray of shape (n, n_given)
        What the network sees of each row.
    logsnr : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    chosen : ndarray of shape (n_nodes,), bool
        Nodes that are evaluated; the results of the others are 0.

    Returns
    -------
    ndarray of shape (3, n_nodes, n)
        Squared error of the reference, error times correction, squared correction.
    """
    nodes, weight = np.polynomial.hermite_e.hermegauss(N_NOISES)
    factor = torch.from_numpy(weight / weight.sum())
    # Parts of one shape, so that no row depends on the others.
    starts = range(0, len(u), ROWS_IN_A_PASS)
    rows = np.column_stack([u, given])
    rows = np.pad(rows, ((0, -len(rows) % ROWS_IN_A_PASS), (0, 0)))
    points = torch.from_numpy(rows).float()
    noise = torch.from_numpy(nodes).float().repeat(ROWS_IN_A_PASS)[:, None]

    @torch.no_grad()
    def at_node(node: int) -> Array:
        found = np.zeros((3, len(points)))
        level = torch.full((len(noise),), float(logsnr[node]))
        for start in starts if chosen[node] else ():
            own = points[start : start + ROWS_IN_A_PASS].repeat_interleave(N_NOISES, dim=0)
            z = torch.cat([add_noise(own[:, :1], noise, level), own[:, 1:]], dim=1)
            baseline, correction = denoiser.parts(z, level)
            missed = noise - baseline
            products = torch.stack([missed.square(), missed * correction, correction.square()])
            per_row = products[..., 0].double().unflatten(1, (ROWS_IN_A_PASS, N_NOISES))
            found[:, start : start + ROWS_IN_A_PASS] = (per_row * factor).sum(-1).numpy()
        return found[:, : len(u)]

    return np.stack(map_in_workers(at_node, range(len(logsnr)), "cpu"), axis=1)


def fit_context_network(
    train_rows: WeightedRows,
    valid_rows: WeightedRows,
    reference: GaussianMixtureReference,
    max_epochs: int,
    seed: int,
) -> ContextNetwork | None:
    """Return a network in front of a reference, None if it is no better by a standard error.

    Parameters
    ----------
    train_rows, valid_rows : WeightedRows
        Residuals, in the first column, and what is given of each row.
    reference : GaussianMixtureReference
        Distribution of the residuals.
    max_epochs : int
        Epochs at most, at least 1.
    seed : int
        Seed of the weights and of the noise in training.

    Returns
    -------
    ContextNetwork or None
        The network.
    """
    low, high = reference.logsnr_range(0.0)
    embedding = LogSNREmbedding(low, high)
    generator = CopyableGenerator().manual_seed(seed)
    n_columns, n_rows = train_rows.X.shape[1], len(train_rows)
    scarcity = float(np.clip(math.log(30_000.0 / n_rows) / math.log(30.0), 0.0, 1.0))
    backbone = ResidualMLP(
        n_columns,
        embedding,
        width=_WIDTH,
        n_blocks=_N_BLOCKS,
        n_frequencies=_N_FREQUENCIES,
        dropout=0.4 * scarcity**3,
        generator=generator,
        n_outputs=1,
    )
    denoiser = ContextDenoiser(backbone, copy.deepcopy(reference).float(), embedding)
    n_steps = round(float(np.clip(max(min(n_rows, 1_500), n_rows / 3), 400, 6_400)) / 40)
    plan = TrainingPlan(
        density=resolve_schedule("adaptive").density(low, high, np.ones(1)),
        adaptive=False,
        batch_size=_BATCH_SIZE,
        limits=Limits(max_epochs, n_steps, _TOL, _PATIENCE, n_warmup=min(50, n_steps)),
        learning_rate=_LEARNING_RATE,
        weight_decay=0.3 * scarcity**3,
        n_validation_noises=int(np.clip(_NOISY_VALIDATION_ROWS // len(valid_rows), 4, 64)),
    )
    device = torch.device("cpu")
    net = run_interruptibly(
        lambda stop: train(
            ContextObjective(denoiser, Layout(1)),
            RowDataset(train_rows.X, train_rows.weight, device),
            RowDataset(valid_rows.X, valid_rows.weight, device),
            plan,
            generator,
            interrupted=stop,
        ),
        limited=True,
    )
    return weighted_network(net.module_.averaged, valid_rows, np.linspace(low, high, N_LEVELS))


def weighted_network(
    denoiser: ContextDenoiser, valid_rows: WeightedRows, logsnr: Array
) -> ContextNetwork | None:
    """Return the network with its shares, stacked per log-SNR on validation rows.

    All shares are drawn towards the reference as far as the gain stays within a standard error of
    the greatest.
    """
    u, given = valid_rows.X[:, 0], valid_rows.X[:, 1:]
    everywhere = np.ones(len(logsnr), dtype=bool)
    error, cross, square = noise_moments(denoiser, u, given, logsnr, everywhere)
    of_both = error - cross
    gram = np.array([[error, of_both], [of_both, of_both - cross + square]])
    profile = ErrorProfile(
        ("reference", "network"), logsnr, np.moveaxis(gram, (0, 1), (2, 3)), valid_rows.share
    )
    weight = stacking_weights(profile, "reference")[:, 1]
    gains = []
    for share in SHARES:
        own = share * weight[:, None]
        gains.append(profile.integral(2.0 * own * cross - own**2 * square))
    best = int(np.argmax([valid_rows.share @ each for each in gains]))
    for share, each in zip(SHARES, gains, strict=True):
        mean, spread = mean_and_error(gains[best] - each, valid_rows.share, source=valid_rows.unit)
        if mean <= spread:
            return None if share == 0.0 else ContextNetwork(denoiser, logsnr, share * weight)
    return ContextNetwork(denoiser, logsnr, SHARES[best] * weight)
