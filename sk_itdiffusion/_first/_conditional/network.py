r"""A network that sees the features, in front of the distribution of the standardised residual.

For each x the relation of Kong et al. holds for the conditional distribution of the residual u,

.. math:: \log p(u | x) = \log q(u) + \tfrac12 \int \mathrm{d}a\; E_\epsilon\left[
    |\epsilon - \hat\epsilon_q(z, a)|^2 - |\epsilon - \hat\epsilon(z, a; x)|^2\right],

with the mixture q, which does not see x, as control variate.  What the network adds to the
mixture's guess is known at nodes of the noisy residual, between which it is linear.  The mean over
the noise is then a sum over these nodes, whose coefficients are the same for all rows: the whole
curve of a row over u costs one evaluation at each node and log-SNR.  The density is that curve,
normalised.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from sk_itdiffusion._first._conditional.backbone import ContextMLP
from sk_itdiffusion._first._conditional.curves import NODES, ResidualCurves, at_nodes
from sk_itdiffusion._first._conditional.residual import NormalMixture
from sk_itdiffusion._first._fit.batches import NoisyRows
from sk_itdiffusion._first._fit.course import Limits
from sk_itdiffusion._first._fit.training import DenoisingObjective, TrainingPlan, train
from sk_itdiffusion._first._immse.error_profiles import ErrorProfile, stacking_weights
from sk_itdiffusion._first._runtime.generators import CopyableGenerator
from sk_itdiffusion._first._runtime.parallel import map_in_workers, run_interruptibly
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.streams import RowDataset
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.denoisers import LogSNREmbedding, PreconditionedDenoiser
from sk_itdiffusion._first.denoisers.precondition import check_precision
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_same
from sk_itdiffusion._first.references.judging import mean_and_error
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference
from sk_itdiffusion._first.schedules import resolve_schedule

__all__ = [
    "ContextDenoiser",
    "ContextNetwork",
    "NoiseProducts",
    "fit_context_network",
    "levels_of",
]

Array = NDArray[np.float64]

#: Nodes of the noise, and of the log-SNR.
N_NOISES, N_LEVELS = 12, 17
#: Normal scores of the noisy residual at which the network is evaluated.
NOISY = np.linspace(-4.5, 4.5, 61)
#: Rows that are evaluated at all log-SNRs in one pass.
ROWS_IN_A_PASS = 16
#: Shares of the network's weights that are tried.
SHARES = np.linspace(0.0, 1.0, 11)
_BATCH_SIZE, _LEARNING_RATE, _PATIENCE, _TOL = 512, 0.02, 6, 0.02
_NOISY_VALIDATION_ROWS = 8192


@stored()
class ContextDenoiser(PreconditionedDenoiser):
    """Denoiser of one column that sees others, which are clean, alongside it.

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

    def corrections(self, z: Tensor, logsnr: Tensor, given: Tensor) -> Tensor:
        """Return the corrections of rows at the same noisy numbers.

        Parameters
        ----------
        z : Tensor of shape (n_levels, n_noisy)
            Noisy numbers at each log-SNR.
        logsnr : Tensor of shape (n_levels,)
            Log-SNRs.
        given : Tensor of shape (n_rows, n_given)
            What is given of each row.

        Returns
        -------
        Tensor of shape (n_rows, n_levels, n_noisy)
            Corrections.
        """
        n_rows, n_levels = len(given), len(logsnr)
        features = self.embedding(logsnr)
        assert isinstance(self.backbone, ContextMLP)
        context = self.backbone.context(
            given.repeat_interleave(n_levels, dim=0), features.repeat(n_rows, 1)
        ).unflatten(0, (n_rows, n_levels))
        values = self.backbone.values(z[:, :, None], context[:, :, None, :])
        spread = (torch.sigmoid(logsnr) * torch.sigmoid(-logsnr)).sqrt()
        return (spread * torch.exp(features @ self.gain))[:, None] * values[..., 0]

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

    def errors(self, u: Array, given: Array) -> tuple[Array, Array, Array]:
        """Return squared errors of reference, network and both by their shares, (n_levels, n)."""
        correction = by_rows(self.denoiser, self.products, given, lambda found: found)
        score = self.products.mixture.score(u)
        error, cross, square = self.products.of_rows(correction, score)
        share = self.share[:, None]
        stacked = error - 2.0 * share * cross + share**2 * square
        return error, error - 2.0 * cross + square, stacked

    @cached_property
    def products(self) -> NoiseProducts:
        """Sums over the nodes of the noisy residual."""
        mixture = self.denoiser.reference
        assert isinstance(mixture, GaussianMixtureReference)
        return NoiseProducts.of(mixture, self.logsnr)

    def curves(self, given: Array) -> ResidualCurves:
        """Return the distributions of the residuals of rows.

        Parameters
        ----------
        given : ndarray of shape (n, n_given)
            What the network sees of each row.

        Returns
        -------
        ResidualCurves
            The distributions.
        """
        products = self.products
        linear, square = products.totals(self.share)

        def gain(correction: Array) -> Array:
            flat = correction.reshape(len(correction), -1)
            return np.asarray(flat @ linear - flat**2 @ square)

        found = by_rows(self.denoiser, products, given, gain)
        return ResidualCurves(products.mixture, found)

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        check_same(len(self.logsnr), len(self.share), "there are other nodes")
        if not (np.diff(self.logsnr) > 0.0).all():
            raise ValueError("the log-SNRs are not in order")
        if not ((self.share >= 0.0) & (self.share <= 1.0)).all():
            raise ValueError("a share of a network is out of its range")


@dataclass(frozen=True)
class NoiseProducts:
    """Means over the noise, as sums over nodes of the noisy residual.

    Attributes
    ----------
    mixture : NormalMixture
        The reference.
    logsnr : ndarray of shape (n_levels,)
        Log-SNRs.
    z : ndarray of shape (n_levels, n_noisy)
        Nodes of the noisy residual.
    error : ndarray of shape (n_levels, n_nodes)
        Mean squared errors of the reference's guess for the residuals at the nodes of the curves.
    cross : ndarray of shape (n_levels, n_noisy, n_nodes)
        Matrices that make means of error times correction of corrections at the nodes ``z``.
    square : ndarray of shape (n_levels, n_noisy, n_nodes)
        Matrices that make means of squared corrections of squared corrections there.
    """

    mixture: NormalMixture
    logsnr: Array
    z: Array
    error: Array
    cross: Array
    square: Array

    @property
    def step(self) -> Array:
        """Weights of the levels in the trapezoidal rule, (n_levels,)."""
        width = np.diff(self.logsnr, prepend=self.logsnr[0], append=self.logsnr[-1])
        return np.asarray(0.5 * (width[:-1] + width[1:]))

    def totals(self, share: Array) -> tuple[Array, Array]:
        """Return what makes gains of corrections, and of their squares, of these shares.

        Both have the shape (n_levels * n_noisy, n_nodes).
        """
        weight = (self.step * share)[:, None, None]
        square = 0.5 * weight * share[:, None, None] * self.square
        return (weight * self.cross).reshape(-1, len(NODES)), square.reshape(-1, len(NODES))

    def of_rows(self, correction: Array, score: Array) -> tuple[Array, Array, Array]:
        """Return means over the noise, for residuals of these normal scores.

        Parameters
        ----------
        correction : ndarray of shape (n, n_levels, n_noisy)
            Corrections at the nodes ``z``.
        score : ndarray of shape (n,)
            Scores of the residuals.

        Returns
        -------
        error, cross, square : ndarray of shape (n_levels, n)
            Squared error of the reference, error times correction, squared correction.
        """
        n_levels = len(self.logsnr)
        error, cross, square = np.empty((3, n_levels, len(score)))
        for k in range(n_levels):
            own = correction[:, k]
            reference = np.broadcast_to(self.error[k], (len(score), len(NODES)))
            error[k] = at_nodes(reference, score)
            cross[k] = at_nodes(own @ self.cross[k], score)
            square[k] = at_nodes(own**2 @ self.square[k], score)
        return error, cross, square

    @classmethod
    def of(cls, reference: GaussianMixtureReference, logsnr: Array) -> NoiseProducts:
        """Return the sums for a reference and levels."""
        mixture = NormalMixture.of_reference(reference)
        levels = [products_at(reference, mixture, level) for level in logsnr]
        return cls(mixture, logsnr, *map(np.stack, zip(*levels, strict=True)))


def products_at(
    reference: GaussianMixtureReference, mixture: NormalMixture, logsnr: float
) -> tuple[Array, Array, Array, Array]:
    """Return nodes and matrices of `NoiseProducts` at one level."""
    noise, weight = np.polynomial.hermite_e.hermegauss(N_NOISES)
    weight = weight / weight.sum()
    signal_power, noise_power = expit(logsnr), expit(-logsnr)
    noisy = mixture.smoothed(signal_power, noise_power)
    u = mixture.of_score(NODES)
    points = math.sqrt(signal_power) * u[:, None] + math.sqrt(noise_power) * noise
    z = torch.from_numpy(points.reshape(-1, 1)).to(reference.means.dtype)
    guess = reference.denoise(z, torch.full((len(z),), logsnr, dtype=z.dtype))
    missed = noise - guess.double().numpy().reshape(points.shape)
    place = np.clip((noisy.score(points) - NOISY[0]) / (NOISY[1] - NOISY[0]), 0.0, len(NOISY) - 1.0)
    node = np.minimum(place.astype(np.intp), len(NOISY) - 2)
    part = place - node
    cross, square = np.zeros((2, len(NOISY), len(NODES)))
    column = np.broadcast_to(np.arange(len(NODES))[:, None], node.shape)
    for shift, share in ((0, 1.0 - part), (1, part)):
        np.add.at(square, (node + shift, column), weight * share)
        np.add.at(cross, (node + shift, column), weight * share * missed)
    return noisy.of_score(NOISY), missed**2 @ weight, cross, square


def by_rows(
    denoiser: ContextDenoiser,
    products: NoiseProducts,
    given: Array,
    function: Callable[[Array], Array],
) -> Array:
    """Return a function of the corrections, (n_rows, n_levels, n_noisy), of all rows.

    Rows come in parts of one shape, so that none depends on the others.
    """
    rows = torch.from_numpy(np.pad(given, ((0, -len(given) % ROWS_IN_A_PASS), (0, 0)))).float()
    z = torch.from_numpy(products.z).float()
    levels = torch.from_numpy(products.logsnr).float()

    @torch.no_grad()
    def part(start: int) -> Array:
        found = denoiser.corrections(z, levels, rows[start : start + ROWS_IN_A_PASS])
        return function(found.double().numpy())

    parts = map_in_workers(part, range(0, len(rows), ROWS_IN_A_PASS), "cpu")
    return np.concatenate(parts)[: len(given)]


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
    dropout = 0.4 * scarcity**3
    backbone = ContextMLP(n_columns - 1, embedding, dropout=dropout, generator=generator)
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
    return weighted_network(net.module_.averaged, valid_rows, levels_of(reference))


def levels_of(reference: GaussianMixtureReference) -> Array:
    """Return the nodes of the integral over the log-SNR."""
    return np.linspace(*reference.logsnr_range(0.0), N_LEVELS)


def weighted_network(
    denoiser: ContextDenoiser, valid_rows: WeightedRows, logsnr: Array
) -> ContextNetwork | None:
    """Return the network with its shares, stacked per log-SNR on validation rows.

    All shares are drawn towards the reference as far as the gain stays within a standard error of
    the greatest.
    """
    u, given = valid_rows.X[:, 0], valid_rows.X[:, 1:]
    reference = denoiser.reference
    assert isinstance(reference, GaussianMixtureReference)
    products = NoiseProducts.of(reference, logsnr)
    correction = by_rows(denoiser, products, given, lambda found: found)
    score = products.mixture.score(u)

    error, cross, square = products.of_rows(correction, score)
    of_both = error - cross
    gram = np.array([[error, of_both], [of_both, of_both - cross + square]])
    profile = ErrorProfile(
        ("reference", "network"), logsnr, np.moveaxis(gram, (0, 1), (2, 3)), valid_rows.share
    )
    weight = stacking_weights(profile)[:, 1]
    flat = correction.reshape(len(u), -1)
    linear, square = (
        part @ total for part, total in zip((flat, flat**2), products.totals(weight), strict=True)
    )
    logs = [
        ResidualCurves(products.mixture, share * linear - share**2 * square).log_density(u)
        for share in SHARES
    ]
    best = int(np.argmax([valid_rows.share @ each for each in logs]))
    lost = (
        mean_and_error(logs[best] - each, valid_rows.share, source=valid_rows.unit) for each in logs
    )
    number = next(k for k, (mean, error) in enumerate(lost) if mean <= error)
    share = SHARES[number]
    return None if share == 0.0 else ContextNetwork(denoiser, logsnr, share * weight)
