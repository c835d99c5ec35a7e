r"""From a denoiser and a reference to log-densities.

For a reference q with known log-density and optimal denoiser, and any denoiser of the data,

.. math:: \log p(x) = \log q(x) + \frac12 \int da\; E_\epsilon\left[
    \|\epsilon - \hat\epsilon_q(z, a)\|^2 - \|\epsilon - \hat\epsilon(z, a)\|^2 \right],

the pointwise relation between information and least-squares error (Kong et al. 2023, with
the reference instead of their Gaussian).  Both errors are of the same point and
noise, so the reference is an exact control variate; where it also replaces the denoiser the
integrand vanishes, so the range of the integral can be cut to any interval without making
the estimate too high.

The integral is a stratified Monte-Carlo estimate with one draw in each stratum of the log-SNR: its
position and the noise are keyed by the row (see `sk_itdiffusion._first._immse.cubature`).  The sum of
squares of the differences of consecutive draws would be the variance if draws were independent;
they are better than that, by a factor that `sk_itdiffusion._first._immse.errors` finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._immse.cubature import (
    Keys,
    NoiseRule,
    PiecewiseDensity,
    hash_uniform,
    spawn_keys,
)
from sk_itdiffusion._first._immse.errors import ErrorCalibration, Tolerance
from sk_itdiffusion._first._immse.places import EVALUATIONS_IN_A_TILE, Places
from sk_itdiffusion._first._runtime.memory import retry_with_less_memory
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import current_progress
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_in_range, check_shapes

__all__ = [
    "IntegrationRule",
    "MSECurve",
    "StackedDenoiser",
    "fit_placement",
    "gap_of_chunk",
    "information_gap",
    "paired_draws",
]

Array = NDArray[np.float64]
Denoiser = Callable[[Tensor, Tensor], Tensor]
#: Returns the noise predicted by the reference and by the model.
PairedDenoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: Returns the points (n, r, d) of rows (n, c) for the keys (n, r) of their draws.
PointsOfDraws = Callable[[Array, Keys], Array]
_CHUNKS_IN_A_JOB = 16


@stored()
@dataclass(frozen=True)
class IntegrationRule:
    """Where and with which noise the integral over the log-SNR is evaluated.

    Parameters
    ----------
    placement : PiecewiseDensity
        Density over which the log-SNR is stratified.
    noise : NoiseRule
        Rule for the expectation over the noise.
    n_draws : int
        Draws, an even number, one in each of as many strata of equal probability.
    errors : ErrorCalibration or None, default=None
        How exact the rule is with other numbers of draws, if that was measured.
    far : PiecewiseDensity or None, default=None
        The placement for rows less likely than all those that the errors were measured on, whose
        integrals come from other log-SNRs; None if it is the same.
    """

    placement: PiecewiseDensity
    noise: NoiseRule
    n_draws: int
    errors: ErrorCalibration | None = None
    far: PiecewiseDensity | None = None

    def rungs(
        self, log_density: Array, tolerance: Tolerance
    ) -> Iterator[tuple[Self, NDArray[np.intp]]]:
        """Return the rule with several numbers of draws, and the rows that need as many.

        See `ErrorCalibration.rungs`.
        """
        assert self.errors is not None
        is_far = self.errors.are_far(log_density) & (self.far is not None)
        for n_draws, chosen in self.errors.rungs(log_density, tolerance):
            near, far = chosen[~is_far[chosen]], chosen[is_far[chosen]]
            if len(near):
                yield replace(self, n_draws=n_draws), near
            if len(far):
                assert self.far is not None
                yield replace(self, n_draws=n_draws, placement=self.far), far

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the denoiser for one row."""
        return self.n_draws * self.noise.n_evaluations

    def chunk_shape(self, budget: int, apart: int = EVALUATIONS_IN_A_TILE) -> tuple[int, int]:
        """Return rows and draws in one forward pass of at most about ``budget`` evaluations.

        Rows begin at places that are multiples of ``apart``.
        """
        if self.n_evaluations <= budget:
            return Places.within(budget, self.n_evaluations, apart).n_rows, self.n_draws
        fitting = [n for n in range(1, self.n_draws + 1) if self.n_draws % n == 0]
        affordable = budget // self.noise.n_evaluations
        return 1, max([n for n in fitting if n <= affordable], default=1)

    def draw_keys(self, keys: Keys, first: int, n_draws: int) -> Keys:
        """Return the keys of consecutive draws, (n, n_draws)."""
        return spawn_keys(keys, n_draws, first)

    def draw(self, keys: Keys, first: int, n_draws: int) -> tuple[Array, Array, Array]:
        """Return log-SNRs, noise and coefficients of some consecutive draws.

        Parameters
        ----------
        keys : ndarray of shape (n,), uint64
            Keys of the rows.
        first, n_draws : int
            The first draw, and how many.

        Returns
        -------
        logsnr : ndarray of shape (n, n_draws)
            Positions in the strata.
        eps : ndarray of shape (n, n_draws, m, d)
            Noise.
        coefficient : ndarray of shape (n, n_draws, m)
            Factors with which integrands are summed to the integral.
        """
        within = hash_uniform(self.draw_keys(keys, first, n_draws), 3)
        position = (first + np.arange(n_draws) + within) / self.n_draws
        logsnr = self.placement.quantile(position)
        eps, coefficient = self.noise.draws(keys, first, n_draws)
        return logsnr, eps, coefficient / (self.n_draws * self.placement.density(logsnr))[..., None]

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_in_range(self.n_draws, 2, np.inf, "numbers of draws")


@retry_with_less_memory
def information_gap(
    X: Array,
    keys: Keys,
    denoisers: PairedDenoiser,
    rule: IntegrationRule,
    *,
    budget: int = 4096,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    points: PointsOfDraws | None = None,
    apart: int = EVALUATIONS_IN_A_TILE,
) -> tuple[Array, Array]:
    """Return half the integral of the difference of squared errors, for each row.

    Every forward pass has one and the same shape, the last chunk being padded, and rows are at
    places that are alike, so that a row's value does not depend on the other rows to the last bit.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows, in the space of the denoisers.
    keys : ndarray of shape (n_samples,), uint64
        Keys of the rows' noise.
    denoisers : callable
        Maps ``z`` (B, d) and ``logsnr`` (B,) to the noise predicted by the reference and by the
        model, both (B, d).
    rule : IntegrationRule
        Nodes and noise.
    budget : int, default=4096
        Evaluations in one forward pass.
    device : torch.device or str, default="cpu"
        Where to evaluate.
    dtype : torch.dtype, default=torch.float64
        Precision of the tensors given to the denoisers.
    points : callable or None, default=None
        Returns the points of rows in each draw, if they differ from draw to draw; the rows are then
        in any space.
    apart : int, default=32
        Places at multiples of which rows begin; see `sk_itdiffusion._first._immse.places`.

    Returns
    -------
    gap : ndarray of shape (n_samples,)
        log p(x) - log q(x), in nats.
    spread : ndarray of shape (n_samples,)
        Sum of the squared differences of consecutive draws: the variance of the gap if draws were
        independent.
    """
    n_rows, n_draws = rule.chunk_shape(budget, apart)
    gap, spread = np.empty(len(X)), np.empty(len(X))

    def score_chunk(start: int) -> None:
        stop = min(start + n_rows, len(X))
        padding = n_rows - (stop - start)
        rows = np.pad(X[start:stop], ((0, padding), (0, 0)))
        row_keys = np.pad(keys[start:stop], (0, padding))
        found = gap_of_chunk(rows, row_keys, denoisers, rule, n_draws, device, dtype, points, apart)
        gap[start:stop], spread[start:stop] = (part[: stop - start] for part in found)

    def score_chunks(first: int) -> None:
        for start in range(first, min(first + _CHUNKS_IN_A_JOB * n_rows, len(X)), n_rows):
            score_chunk(start)

    jobs = range(0, len(X), _CHUNKS_IN_A_JOB * n_rows)
    map_in_workers(score_chunks, jobs, device, current_progress())
    return gap, spread


def gap_of_chunk(
    rows: Array,
    keys: Keys,
    denoisers: PairedDenoiser,
    rule: IntegrationRule,
    n_draws: int,
    device: torch.device | str,
    dtype: torch.dtype,
    points: PointsOfDraws | None = None,
    apart: int = EVALUATIONS_IN_A_TILE,
) -> tuple[Array, Array]:
    """Return what `information_gap` does, of rows that are evaluated together.

    ``n_draws`` is the number of draws in a forward pass; see `IntegrationRule.chunk_shape`.
    """
    parts = [
        _contributions(rows, keys, denoisers, rule, first, n_draws, device, dtype, points, apart)
        for first in range(0, rule.n_draws, n_draws)
    ]
    drawn = np.concatenate(parts, axis=1)
    return drawn.sum(axis=1), ((drawn[:, ::2] - drawn[:, 1::2]) ** 2).sum(axis=1)


def _contributions(
    rows: Array,
    keys: Keys,
    denoisers: PairedDenoiser,
    rule: IntegrationRule,
    first: int,
    n_draws: int,
    device: torch.device | str,
    dtype: torch.dtype,
    points: PointsOfDraws | None,
    apart: int,
) -> Array:
    """Return the contribution of each draw to the integral, (n, n_draws)."""
    difference, coefficient = paired_draws(
        rows,
        keys,
        denoisers,
        rule,
        first,
        n_draws,
        device,
        dtype,
        points,
        apart,
        by_coordinate=False,
    )
    return np.asarray((0.5 * difference * coefficient).sum(axis=-1))


def paired_draws(
    rows: Array,
    keys: Keys,
    denoisers: PairedDenoiser,
    rule: IntegrationRule,
    first: int,
    n_draws: int,
    device: torch.device | str,
    dtype: torch.dtype,
    points: PointsOfDraws | None,
    apart: int = EVALUATIONS_IN_A_TILE,
    *,
    by_coordinate: bool = True,
) -> tuple[Array, Array]:
    """Return the reference's squared error minus the model's in some consecutive draws.

    Parameters
    ----------
    rows, keys, denoisers, rule, device, dtype, points, apart
        See `information_gap`.
    first, n_draws : int
        The first draw, and how many.
    by_coordinate : bool, default=True
        Whether the differences are those of each coordinate or their sum.

    Returns
    -------
    difference : ndarray of shape (n, n_draws, m) or (n, n_draws, m, d)
        Differences of squared errors.
    coefficient : ndarray of shape (n, n_draws, m)
        Factors with which they are summed to the integral.
    """
    logsnr, eps, coefficient = rule.draw(keys, first, n_draws)
    shape = coefficient.shape
    repeated = np.broadcast_to(logsnr[..., None], shape)
    if points is None:
        drawn_points = rows[:, None, :]
    else:
        drawn_points = points(rows, rule.draw_keys(keys, first, n_draws))
    x = np.broadcast_to(drawn_points[..., None, :], eps.shape)
    places = Places(len(rows), coefficient.size // len(rows), apart)
    found = paired_difference(
        _tensor(places.spread(x.reshape(-1, eps.shape[-1])), device, dtype),
        _tensor(places.spread(eps.reshape(-1, eps.shape[-1])), device, dtype),
        _tensor(places.spread(repeated.reshape(-1)), device, dtype),
        denoisers,
        by_coordinate=by_coordinate,
    )
    difference = places.gathered(found)
    return difference.cpu().numpy().reshape(*shape, *difference.shape[1:]), coefficient


def _tensor(values: Array, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    # A broadcast array is read-only, which torch warns about.
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).to(
        device=device, dtype=dtype
    )


@torch.no_grad()
def paired_difference(
    x: Tensor,
    eps: Tensor,
    logsnr: Tensor,
    denoisers: PairedDenoiser,
    *,
    by_coordinate: bool = False,
) -> Tensor:
    """Return the reference's squared error minus the model's without cancellation.

    They are those of each coordinate, (B, d), or their sums, (B,).
    """
    reference, model = denoisers(add_noise(x, eps, logsnr), logsnr)
    difference = (model - reference) * (2.0 * eps - reference - model)
    return difference if by_coordinate else difference.sum(1)


@retry_with_less_memory
def fit_placement(
    X: Array,
    keys: Keys,
    denoisers: PairedDenoiser,
    noise: NoiseRule,
    logsnr: Array,
    *,
    budget: int = 4096,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> PiecewiseDensity:
    """Return the density of the log-SNR over which scoring is stratified.

    It is proportional to the spread between draws, which no stratification removes, plus half the
    root mean square of the integrand, both scaled to their sum, with a uniform share of 10%.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows not used in training.
    keys : ndarray of shape (n_samples,), uint64
        Keys of the rows' noise.
    denoisers : callable
        See `information_gap`.
    noise : NoiseRule
        Rule that scoring will use.
    logsnr : ndarray of shape (n_nodes,)
        Increasing edges of the cells.
    budget, device, dtype
        See `information_gap`.

    Returns
    -------
    PiecewiseDensity
        The placement.
    """

    def measure(node: int) -> tuple[float, float]:
        level = float(logsnr[node])
        first, second = (
            _integrand_at(X, keys, denoisers, noise, level, stream, budget, device, dtype)
            for stream in (2 * node, 2 * node + 1)
        )
        spread = np.sqrt(np.mean((first - second) ** 2) / 2)
        return float(spread), math.sqrt(max(float(np.mean(first * second)), 0.0))

    spread, size = np.array(map_in_workers(measure, range(len(logsnr)), device)).T
    height = spread / max(spread.sum(), 1e-300) + 0.5 * size / max(size.sum(), 1e-300)
    middle = 0.5 * (height[1:] + height[:-1])
    return PiecewiseDensity.from_profile(logsnr, middle, floor=0.1)


def _integrand_at(
    X: Array,
    keys: Keys,
    denoisers: PairedDenoiser,
    noise: NoiseRule,
    logsnr: float,
    stream: int,
    budget: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Array:
    """Return one draw of the difference of squared errors at a log-SNR, for each row."""
    values = np.empty(len(X))
    n_rows = max(1, budget // noise.n_evaluations)
    for start in range(0, len(X), n_rows):
        rows = slice(start, min(start + n_rows, len(X)))
        eps, coefficient = noise.draw(spawn_keys(keys[rows], 1, first=stream).ravel())
        x = np.broadcast_to(X[rows, None, :], eps.shape)
        difference = paired_difference(
            _tensor(x.reshape(-1, X.shape[1]), device, dtype),
            _tensor(eps.reshape(-1, X.shape[1]), device, dtype),
            torch.full((coefficient.size,), logsnr, device=device, dtype=dtype),
            denoisers,
        )
        integrand = difference.cpu().numpy().reshape(coefficient.shape)
        values[rows] = (integrand * coefficient).sum(axis=1)
    return values


class StackedDenoiser:
    """Mixture of denoisers with weights that are piecewise linear in the log-SNR.

    For a fixed log-SNR any mixture of denoisers is a denoiser, so the bound holds for it.

    Parameters
    ----------
    experts : mapping of str to callable
        Denoisers, each called as ``expert(z, logsnr)``.
    logsnr : ndarray of shape (n_nodes,)
        Increasing nodes.
    weights : ndarray of shape (n_nodes, n_experts)
        Non-negative weights that sum to 1 at each node.
    """

    def __init__(self, experts: Mapping[str, Denoiser], logsnr: Array, weights: Array) -> None:
        self.experts = dict(experts)
        self.logsnr = logsnr
        self.weights = weights

    def expert_weights(self, logsnr: Tensor) -> Tensor:
        """Return the experts' weights, shape (B, n_experts); constant beyond the nodes."""
        nodes = torch.from_numpy(self.logsnr).to(logsnr)
        table = torch.from_numpy(self.weights).to(logsnr)
        upper = torch.searchsorted(nodes, logsnr).clamp(1, len(nodes) - 1)
        left, right = nodes[upper - 1], nodes[upper]
        share = ((logsnr - left) / (right - left)).clamp(0.0, 1.0)[:, None]
        return (1.0 - share) * table[upper - 1] + share * table[upper]

    def paired_with(self, reference: Denoiser) -> PairedDenoiser:
        """Return a function of z and log-SNR that predicts with the reference and the stack."""
        used = [
            (number, expert)
            for number, expert in enumerate(self.experts.values())
            if self.weights[:, number].any()
        ]

        def denoisers(z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
            baseline = reference(z, logsnr)
            weights = self.expert_weights(logsnr)
            # Written as the reference plus weighted differences: exactly the reference where it
            # has all the weight.
            mixture = baseline.clone()
            for number, expert in used:
                if expert is not reference:
                    difference = expert(z, logsnr) - baseline
                    mixture += weights[:, number, None] * difference
            return baseline, mixture

        return denoisers

    def __call__(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise, shape (B, d)."""
        weights = self.expert_weights(logsnr)
        predictions = [
            weights[:, number, None] * expert(z, logsnr)
            for number, expert in enumerate(self.experts.values())
            if self.weights[:, number].any()
        ]
        return torch.stack(predictions).sum(0)


@stored()
@dataclass(frozen=True)
class MSECurve:
    """Mean squared errors of the noise prediction against the log-SNR.

    All errors are of ``|eps - eps_hat|**2``, summed over columns, which is ``exp(logsnr)`` times
    that of ``|x - x_hat|**2`` in the standardised, mapped columns; half the area between a
    reference's curve and the model's is the difference of their log-likelihoods in nats.

    Attributes
    ----------
    logsnr : ndarray of shape (n_nodes,)
        Log signal-to-noise ratios.
    model, model_stderr : ndarray of shape (n_nodes,)
        Error of the model (the stack of the experts), and its standard error over rows.
    references, references_stderr : dict of str to ndarray of shape (n_nodes,)
        Errors of the analytic references, and their standard errors.
    networks, networks_stderr : dict of str to ndarray of shape (n_nodes,)
        Errors of the networks alone, and their standard errors.
    weights : dict of str to ndarray of shape (n_nodes,)
        Weights of the experts in the stack.
    """

    logsnr: Array
    model: Array
    model_stderr: Array
    references: dict[str, Array]
    references_stderr: dict[str, Array]
    networks: dict[str, Array]
    networks_stderr: dict[str, Array]
    weights: dict[str, Array]

    @classmethod
    def pooled(cls, curves: Sequence[MSECurve], counts: Sequence[int]) -> MSECurve:
        """Return the curve of all rows from those of parts of them, exactly.

        Parameters
        ----------
        curves : sequence of MSECurve
            Curves on disjoint sets of rows of equal weight.
        counts : sequence of int
            Numbers of rows.

        Returns
        -------
        MSECurve
            Means and standard errors over all rows.
        """
        n = np.asarray(counts, dtype=np.float64)[:, None]

        def pool(means: Sequence[Array], errors: Sequence[Array]) -> tuple[Array, Array]:
            mean = (n * np.stack(means)).sum(axis=0) / n.sum()
            squares = (n * np.stack(errors)) ** 2 + n * (np.stack(means) - mean) ** 2
            return mean, np.sqrt(squares.sum(axis=0)) / n.sum()

        def pool_all(kind: str) -> tuple[dict[str, Array], dict[str, Array]]:
            pooled = {
                name: pool(
                    [getattr(curve, kind)[name] for curve in curves],
                    [getattr(curve, f"{kind}_stderr")[name] for curve in curves],
                )
                for name in getattr(curves[0], kind)
            }
            means = {name: pair[0] for name, pair in pooled.items()}
            return means, {name: pair[1] for name, pair in pooled.items()}

        model = pool([c.model for c in curves], [c.model_stderr for c in curves])
        return cls(
            curves[0].logsnr,
            *model,
            *pool_all("references"),
            *pool_all("networks"),
            curves[0].weights,
        )

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        shapes = {"logsnr": "n", "model": "n", "model_stderr": "n"}
        n_nodes = check_shapes(self, shapes)["n"]
        for errors in (self.references, self.networks, self.weights):
            if any(error.shape != (n_nodes,) for error in errors.values()):
                raise ValueError("an error curve has other errors than log-SNRs")
