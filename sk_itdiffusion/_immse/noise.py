r"""Noise for scoring: keyed by the row, integrated by spherical-radial rules.

scikit-learn requires that the score of a row does not depend on the other rows, so all noise
derives from a 64-bit hash of the row's content.  With :math:`q_i` orthonormal random directions and
:math:`r^2 \sim \chi^2_{d+2}`,

.. math:: E f(\epsilon) \approx \left(1 - \frac{d}{r^2}\right) f(0)
    + \frac{d}{r^2} \frac{1}{2m} \sum_{i=1}^{m} \left[ f(r q_i) + f(-r q_i) \right]

is unbiased, and for m = d exact for cubic functions (Genz, Monahan, SIAM Journal on Scientific
Computing 19, 1998).  The origin is far from typical noise where d is large; for more than five
targets it is left out, with :math:`r \sim \chi_d`.  The draws of a row, in the order of the
log-SNR, take their directions from one random frame after the other, and their radii from a van der
Corput sequence with a random start, since the integrand is mostly a quadratic function of the noise
that changes slowly with the log-SNR.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv
from scipy.stats import ortho_group

__all__ = ["NoiseRule", "child_keys", "row_keys", "uniform"]

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MAX_WITH_ORIGIN = 5
_NUMBERS_IN_FRAMES = 2**20
_MAX_COMPLETE_FRAME = 128


def _mix(keys: Keys) -> Keys:
    """Return the finaliser of the SplitMix64 generator."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def row_keys(X: Array, seed: int) -> Keys:
    """Return a 64-bit hash of each row; -0.0 counts as 0.0, and all NaN are alike."""
    bits = np.where(np.isnan(X), np.nan, X + 0.0).view(np.uint64)
    keys = np.full(len(X), _mix(np.array([seed], dtype=np.uint64) + _GOLDEN)[0])
    for column in bits.T:
        keys = _mix((keys + _GOLDEN) ^ _mix(column + _GOLDEN))
    return keys


def child_keys(keys: Keys, numbers: NDArray[np.intp]) -> Keys:
    """Return independent keys of shape (n, m), one for each key and number."""
    return _mix(keys[:, None] ^ _mix((numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN))


def uniform(keys: Keys, stream: int) -> Array:
    """Return numbers uniform in (0, 1), one for each key; streams are independent."""
    offset = _mix(np.array([stream + 1], dtype=np.uint64) * _GOLDEN)
    bits = (_mix(keys ^ offset) >> np.uint64(11)).astype(np.float64)
    return np.asarray((bits + 0.5) * 2.0**-53, dtype=np.float64)


def _signs(keys: Keys, n_columns: int) -> Array:
    """Return independent random signs of shape (*keys.shape, n_columns)."""
    words = child_keys(keys.ravel(), np.arange(-(-n_columns // 64)) + 2**20)
    bits = (words[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    signs = 2.0 * bits.reshape(*keys.shape, -1).astype(np.float64) - 1.0
    return np.asarray(signs[..., :n_columns])


@lru_cache(maxsize=8)
def _frames(n_features: int, seed: int) -> Array:
    """Return orthonormal directions of shape (n_frames, n_directions, n_features)."""
    rng = np.random.default_rng(seed)
    n_directions = min(n_features, _MAX_COMPLETE_FRAME)
    n_frames = int(np.clip(_NUMBERS_IN_FRAMES // (n_features * n_directions), 16, 4096))
    if n_features == 1:
        return np.ones((1, 1, 1))
    if n_features <= _MAX_COMPLETE_FRAME:
        return np.reshape(
            ortho_group(n_features, seed=rng).rvs(n_frames), (n_frames, -1, n_features)
        )
    basis = np.linalg.qr(rng.standard_normal((n_frames, n_features, n_directions)))[0]
    return np.ascontiguousarray(np.swapaxes(basis, 1, 2))


def _van_der_corput(numbers: NDArray[np.intp]) -> Array:
    """Return numbers with their binary digits mirrored at the point, in [0, 1)."""
    bits = (numbers[:, None] >> np.arange(24)) & 1
    return np.asarray(bits @ 0.5 ** np.arange(1, 25), dtype=np.float64)


class NoiseRule:
    """Unbiased rule for expectations over standard normal noise in d dimensions.

    Parameters
    ----------
    n_features : int
        Dimension of the noise, the number of targets.
    seed : int
        Seed of the directions.
    """

    def __init__(self, n_features: int, seed: int) -> None:
        self.n_features, self.seed = n_features, seed
        self.n_directions = min(2, n_features)
        self.has_origin = n_features <= _MAX_WITH_ORIGIN
        self.n_evaluations = 2 * self.n_directions + int(self.has_origin)

    def draws(self, keys: Keys, n_draws: int) -> tuple[Array, Array]:
        """Return noise and coefficients of consecutive draws.

        Returns
        -------
        eps : ndarray of shape (n, n_draws, m, d)
            Noise.
        coefficient : ndarray of shape (n, n_draws, m)
            Coefficients, which sum to 1 in each draw.
        """
        frames = _frames(self.n_features, self.seed)
        number = np.arange(n_draws * self.n_directions)
        frame, place = np.divmod(number, frames.shape[1])
        # A frame is begun anywhere, so that each draw may have any of the directions.
        begin = (uniform(keys, 0) * frames.shape[1]).astype(np.intp)
        place = (place + begin[:, None]) % frames.shape[1]
        own = child_keys(keys, frame)
        index = (uniform(own, 1) * len(frames)).astype(np.intp)
        spokes = frames[index, place] * _signs(own, self.n_features)
        start = uniform(keys, 2)[:, None]
        position = (_van_der_corput(np.arange(n_draws)) + start) % 1.0
        freedom = self.n_features + 2 * int(self.has_origin)
        squared = 2.0 * gammaincinv(0.5 * freedom, position.clip(1e-15, 1.0 - 1e-15))
        spokes = spokes.reshape(len(keys), n_draws, self.n_directions, -1)
        spokes = np.sqrt(squared)[..., None, None] * spokes
        coefficient = np.full((*squared.shape, 2 * self.n_directions), 0.5 / self.n_directions)
        eps = np.concatenate([spokes, -spokes], axis=2)
        if not self.has_origin:
            return eps, coefficient
        ratio = (self.n_features / squared)[..., None]
        origin = np.zeros((*squared.shape, 1, self.n_features))
        return (
            np.concatenate([origin, eps], axis=2),
            np.concatenate([1.0 - ratio, ratio * coefficient], axis=2),
        )
