r"""Noise for scoring: keyed by the row, integrated by spherical-radial rules.

**Whose noise?**  scikit-learn requires that the score of a row does not depend on the other rows,
so all noise derives from a 64-bit hash of the row's own content.  The scores are deterministic,
the errors of distinct rows nearly independent, and equal rows share theirs.

**Which noise?**  With :math:`q_1, \dots, q_m` orthonormal random directions and
:math:`r^2 \sim \chi^2_{d+2}`,

.. math:: E f(\epsilon) \approx \left(1 - \frac{d}{r^2}\right) f(0)
    + \frac{d}{r^2} \frac{1}{2m} \sum_{i=1}^{m} \left[ f(r q_i) + f(-r q_i) \right]

is unbiased, and with :math:`m = d` exact for cubic functions ([1]_, degree-3 rule).  The origin
is far from typical noise when d is large; for more than a few features plain antithetic directions
are used, with :math:`r \sim \chi_d` and no evaluation at the origin.

**How do the draws of a row differ?**  What an integral over the log-SNR averages is, for the most
part, a quadratic function of the noise that changes slowly with the log-SNR, and its mean is the
mean over all directions of an orthogonal frame.  So the draws of a row, in the order of the
log-SNR, take their directions from one random frame after the other, until each is used up, and
their radii from a van der Corput sequence with a random start.  Each draw by itself has the right
law, so that the rule is unbiased.

References
----------
.. [1] A. Genz, J. Monahan. "Stochastic integration rules for infinite regions". SIAM Journal on
   Scientific Computing 19, 1998.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_in_range,
    check_increasing,
    check_not_negative,
    check_shapes,
)

__all__ = ["NoiseRule", "PiecewiseDensity", "hash_uniform", "row_keys"]

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
#: Largest seed that is drawn, or follows from one.
MAX_SEED = 2**63 - 1

#: Numbers in a bank of directions, and sets of orthogonal ones in it, at least.
NUMBERS_IN_A_BANK = 2**20
MIN_FRAMES = 64
#: Directions in a draw, and features up to which the origin is evaluated as well.
USUAL_DIRECTIONS = 2
MAX_FEATURES_WITH_ORIGIN = 5

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(keys: Keys) -> Keys:
    """Return the finaliser of the SplitMix64 generator applied to each key."""
    keys = (keys ^ (keys >> np.uint64(30))) * _MIX_1
    keys = (keys ^ (keys >> np.uint64(27))) * _MIX_2
    return keys ^ (keys >> np.uint64(31))


def row_keys(X: Array, seed: int = 0) -> Keys:
    """Return a 64-bit hash of each row.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features), float64
        Rows; -0.0 counts as 0.0.
    seed : int, default=0
        Seed of the hash.

    Returns
    -------
    ndarray of shape (n_samples,), uint64
        Keys, equal for equal rows and, except for chance of about 2**-64, different otherwise.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion._first._immse.cubature import row_keys
    >>> keys = row_keys(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
    >>> bool(keys[0] == keys[1]), bool(keys[0] == keys[2])
    (True, False)
    """
    bits = np.ascontiguousarray(X + 0.0).view(np.uint64)
    start = _mix(np.array([seed], dtype=np.uint64) + _GOLDEN)
    keys = np.broadcast_to(start, (len(X),)).copy()
    for column in bits.T:
        keys = _mix((keys + _GOLDEN) ^ _mix(column + _GOLDEN))
    return keys


def hash_uniform(keys: Keys, stream: int) -> Array:
    """Return numbers uniform in (0, 1), one for each key; streams are independent.

    Parameters
    ----------
    keys : ndarray of uint64
        Keys.
    stream : int
        Number of the stream, at least 0.

    Returns
    -------
    ndarray of float64
        Numbers, of the same shape; equal for equal keys.
    """
    offset = _mix(np.array([stream + 1], dtype=np.uint64) * _GOLDEN)
    return ((_mix(keys ^ offset) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def spawn_keys(keys: Keys, n_streams: int, first: int = 0) -> Keys:
    """Return independent keys of shape (n, n_streams), derived from keys of shape (n,)."""
    numbers = np.arange(first + 1, first + n_streams + 1, dtype=np.uint64)
    return _mix(keys[:, None] ^ _mix(numbers * _GOLDEN))


def keys_of_copies(keys: Keys, number: NDArray[np.intp]) -> Keys:
    """Return a key for each copy of a row from the row's key; copy 0 has the row's own."""
    # Numbers far from those of the streams that `spawn_keys` derives from the result.
    numbers = number.astype(np.uint64) + np.uint64(2**32 - 1)
    return np.where(number > 0, numbered_keys(keys, numbers), keys)


def copy_numbers(keys: Keys) -> NDArray[np.intp]:
    """Return for each row how many before it have its key."""
    order = np.argsort(keys, kind="stable")
    _, first, size = np.unique(keys[order], return_index=True, return_counts=True)
    number = np.empty(len(keys), dtype=np.intp)
    number[order] = np.arange(len(keys)) - np.repeat(first, size)
    return number


def keys_apart(keys: Keys) -> Keys:
    """Return keys of which those that are equal become those of copies, in their order."""
    return keys_of_copies(keys, copy_numbers(keys))


def numbered_keys(keys: Keys, numbers: NDArray[np.uint64]) -> Keys:
    """Return a key derived from each key and a number of its own, both of shape (n,)."""
    return _mix(keys ^ _mix((numbers + np.uint64(1)) * _GOLDEN))


def sums_over_sources(values: Array, source: Keys | None) -> Array:
    """Return the sums, along the last axis, of the values of each source; None for one each."""
    if source is None:
        return values
    _, group = np.unique(source, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    first = np.flatnonzero(np.diff(group.ravel()[order], prepend=-1))
    return np.asarray(np.add.reduceat(values[..., order], first, axis=-1))


def hash_signs(keys: Keys, stream: int, n_columns: int) -> Array:
    """Return independent random signs of shape (n, n_columns)."""
    signs = np.empty((len(keys), n_columns))
    shifts = np.arange(64, dtype=np.uint64)
    for chunk, start in enumerate(range(0, n_columns, 64)):
        offset = _mix(np.array([stream + 1], dtype=np.uint64) * _GOLDEN + np.uint64(chunk))
        bits = (_mix(keys ^ offset)[:, None] >> shifts) & np.uint64(1)
        stop = min(start + 64, n_columns)
        signs[:, start:stop] = 2.0 * bits[:, : stop - start] - 1.0
    return signs


def van_der_corput(numbers: NDArray[np.intp]) -> Array:
    """Return numbers with their binary digits mirrored at the point, in [0, 1)."""
    bits = (numbers[..., None] >> np.arange(32)) & 1
    return np.asarray(bits @ 0.5 ** np.arange(1, 33))


@lru_cache(maxsize=8)
def _direction_bank(n_features: int, n_directions: int, size: int, seed: int) -> Array:
    """Return orthonormal directions of shape (size, n_directions, n_features), read-only."""
    generator = np.random.default_rng(seed)
    gaussian = generator.standard_normal((size, n_features, n_directions))
    orthogonal, triangular = np.linalg.qr(gaussian)
    orthogonal *= np.sign(np.einsum("bii->bi", triangular))[:, None, :]
    bank = np.ascontiguousarray(np.swapaxes(orthogonal, 1, 2))
    bank.setflags(write=False)
    return bank


@stored()
@dataclass(frozen=True)
class NoiseRule:
    """Unbiased rule for expectations over standard normal noise.

    Parameters
    ----------
    n_features : int
        Dimension d of the noise.
    n_directions : int
        Orthogonal directions m, at most d; each is used with both signs.
    central : bool
        Whether the origin is evaluated as well (degree-3 rule) or not (antithetic pairs only).
    seed : int
        Seed of the bank of directions.
    mirrored : bool, default=True
        Whether each direction is used with both signs; with the origin it has to be.
    """

    n_features: int
    n_directions: int
    central: bool
    seed: int
    mirrored: bool = True

    @classmethod
    def for_scoring(cls, n_features: int, seed: int, n_directions: int | None = None) -> NoiseRule:
        """Return the rule with the smallest error for its cost, as measured with trained networks.

        It has two directions in a draw, and the origin with up to 5 features
        (``benchmarks/noise_rules.py``).

        Parameters
        ----------
        n_features : int
            Dimension of the noise.
        seed : int
            Seed of the bank of directions.
        n_directions : int or None, default=None
            Directions, if not the usual number; at most ``n_features`` are taken.

        Returns
        -------
        NoiseRule
            The rule.
        """
        most = USUAL_DIRECTIONS if n_directions is None else n_directions
        central = n_features <= MAX_FEATURES_WITH_ORIGIN
        return cls(n_features, min(n_features, most), central, seed)

    @classmethod
    def for_categories(
        cls,
        n_features: int,
        seed: int,
        n_directions: int | None = None,
        *,
        mirrored: bool = False,
    ) -> NoiseRule:
        """Return the rule for discrete columns: one direction unless another number is given.

        The errors of categories are no polynomials of the noise: opposite noise brings nothing but
        for continuous columns alongside them and for fine lattices (then ``mirrored``), and more
        log-SNRs bring more than more directions.

        Parameters
        ----------
        n_features : int
            Dimension of the noise.
        seed : int
            Seed of the bank of directions.
        n_directions : int or None, default=None
            Directions; None is 1, and at most ``n_features`` are taken.
        mirrored : bool, default=False
            Whether each direction is used with both signs.

        Returns
        -------
        NoiseRule
            The rule.
        """
        most = 1 if n_directions is None else n_directions
        return cls(n_features, min(n_features, most), False, seed, mirrored=mirrored)

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the integrand in one draw."""
        return (1 + int(self.mirrored)) * self.n_directions + int(self.central)

    @property
    def _bank(self) -> Array:
        affordable = NUMBERS_IN_A_BANK // (self.n_features * self.n_directions)
        size = int(np.clip(affordable, MIN_FRAMES, 8192))
        return _direction_bank(self.n_features, self.n_directions, size, self.seed)

    @property
    def _frames(self) -> Array:
        """Frames of orthonormal directions, complete ones unless there are many features."""
        affordable = NUMBERS_IN_A_BANK // (MIN_FRAMES * self.n_features)
        n_directions = int(np.clip(affordable, self.n_directions, self.n_features))
        size = int(np.clip(NUMBERS_IN_A_BANK // (self.n_features * n_directions), MIN_FRAMES, 8192))
        return _direction_bank(self.n_features, n_directions, size, self.seed)

    def draw(self, keys: Keys) -> tuple[Array, Array]:
        """Return noise and coefficients for one draw for each key.

        Parameters
        ----------
        keys : ndarray of shape (n,), uint64
            Keys of the draws.

        Returns
        -------
        eps : ndarray of shape (n, n_evaluations, n_features)
            Noise.
        coefficient : ndarray of shape (n, n_evaluations)
            Coefficients, which sum to 1 in each row.
        """
        bank = self._bank
        index = (hash_uniform(keys, 0) * len(bank)).astype(np.intp)
        signs = hash_signs(keys, 2, self.n_features)
        return self._nodes(bank[index] * signs[:, None, :], hash_uniform(keys, 1))

    def draws(self, keys: Keys, first: int, n_draws: int) -> tuple[Array, Array]:
        """Return noise and coefficients of consecutive draws for each key.

        Parameters
        ----------
        keys : ndarray of shape (n,), uint64
            Keys of the rows.
        first, n_draws : int
            The first draw, and how many.

        Returns
        -------
        eps : ndarray of shape (n, n_draws, n_evaluations, n_features)
            Noise.
        coefficient : ndarray of shape (n, n_draws, n_evaluations)
            Coefficients, which sum to 1 in each draw.
        """
        frames = self._frames
        number = first + np.arange(n_draws)
        direction = number[:, None] * self.n_directions + np.arange(self.n_directions)
        frame, place = np.divmod(direction, frames.shape[1])
        # A frame is begun anywhere, so that each draw may have any of the directions.
        begin = (hash_uniform(keys, 4) * frames.shape[1]).astype(np.intp)
        place = (place + begin[:, None, None]) % frames.shape[1]
        n_frames = int(frame[-1, -1] - frame[0, 0]) + 1
        # Another stream than that of the draws' positions.
        own = spawn_keys(keys, n_frames, first=2**33 + int(frame[0, 0]))
        index = (hash_uniform(own, 0) * len(frames)).astype(np.intp)
        signs = hash_signs(own.ravel(), 2, self.n_features).reshape(*own.shape, -1)
        frame -= frame[0, 0]
        directions = frames[index[:, frame], place] * signs[:, frame]
        start = hash_uniform(keys, 1)[:, None]
        position = ((van_der_corput(number) + start) % 1.0).clip(2.0**-54, 1.0 - 2.0**-53)
        eps, coefficient = self._nodes(
            directions.reshape(-1, *directions.shape[2:]), position.ravel()
        )
        shape = (len(keys), n_draws)
        return eps.reshape(*shape, *eps.shape[1:]), coefficient.reshape(*shape, -1)

    def _nodes(self, directions: Array, position: Array) -> tuple[Array, Array]:
        """Return noise and coefficients of directions (n, m, d), and quantiles (n,) of the radius.

        The shapes are (n, n_evaluations, d) and (n, n_evaluations).
        """
        n = len(directions)
        freedom = self.n_features + 2 * int(self.central)
        radius2 = 2.0 * gammaincinv(0.5 * freedom, position)
        spokes = np.sqrt(radius2)[:, None, None] * directions
        if not self.mirrored:
            return spokes, np.full((n, self.n_directions), 1.0 / self.n_directions)
        coefficient = np.full((n, self.n_evaluations), 0.5 / self.n_directions)
        if not self.central:
            return np.concatenate([spokes, -spokes], axis=1), coefficient
        ratio = self.n_features / radius2
        coefficient *= ratio[:, None]
        coefficient[:, 0] = 1.0 - ratio
        origin = np.zeros((n, 1, self.n_features))
        return np.concatenate([origin, spokes, -spokes], axis=1), coefficient

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_in_range(self.n_directions, 1, self.n_features, "directions of the noise")
        check_in_range(self.seed, 0, MAX_SEED, "seeds")
        if self.central and not self.mirrored:
            raise ValueError("noise with the origin is not mirrored")


@stored()
@dataclass(frozen=True)
class PiecewiseDensity:
    """Probability density that is constant between given edges.

    Parameters
    ----------
    edges : ndarray of shape (n_cells + 1,)
        Increasing edges.
    mass : ndarray of shape (n_cells,)
        Positive probability of each cell; sums to 1.
    """

    edges: Array
    mass: Array

    @classmethod
    def from_profile(cls, edges: Array, profile: Array, floor: float = 0.1) -> PiecewiseDensity:
        """Return a density proportional to a profile, mixed with a uniform one.

        Parameters
        ----------
        edges : ndarray of shape (n_cells + 1,)
            Increasing edges.
        profile : ndarray of shape (n_cells,)
            Non-negative height in each cell.
        floor : float, default=0.1
            Share of the uniform density, in (0, 1].

        Returns
        -------
        PiecewiseDensity
            The mixture.
        """
        widths = np.diff(edges)
        uniform = widths / widths.sum()
        area = profile * widths
        shape = area / area.sum() if area.sum() > 0 else uniform
        return cls(np.asarray(edges), (1 - floor) * shape + floor * uniform)

    @classmethod
    def mean_of(cls, densities: Sequence[PiecewiseDensity]) -> PiecewiseDensity:
        """Return the mixture, of equal proportions, of densities with the same edges."""
        return cls(densities[0].edges, np.mean([each.mass for each in densities], axis=0))

    def quantile(self, probability: Array) -> Array:
        """Return the points below which the given probabilities lie.

        Parameters
        ----------
        probability : ndarray
            Probabilities in [0, 1].

        Returns
        -------
        ndarray
            Points, of the same shape.
        """
        cumulative = np.concatenate([[0.0], np.cumsum(self.mass)])
        return np.interp(probability, cumulative / cumulative[-1], self.edges)

    def density(self, points: Array) -> Array:
        """Return the density at points between the first and the last edge.

        Parameters
        ----------
        points : ndarray
            Points.

        Returns
        -------
        ndarray
            Densities, of the same shape.
        """
        cell = np.searchsorted(self.edges, points, side="right") - 1
        cell = np.clip(cell, 0, len(self.mass) - 1)
        return (self.mass / np.diff(self.edges))[cell]

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_increasing(self.edges, "edges of strata")
        check_not_negative(self.mass, "masses of strata")
        check_shapes(self, {"mass": "c"}, c=len(self.edges) - 1)
        if not self.mass.any():
            raise ValueError("the masses of strata are zero")
