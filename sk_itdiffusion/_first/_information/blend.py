r"""Experts of conditional densities, weighted so that independence is one of them.

Expert k says :math:`p_k(y \mid x)` and :math:`p_k(y)`.  With weights :math:`w_k` and :math:`v_k`
that sum to 1 together,

.. math:: p(y \mid x) = \sum_k w_k\, p_k(y \mid x) + v_k\, p_k(y), \qquad
    p(y) = \sum_k (w_k + v_k)\, p_k(y),

and the pointwise information is the logarithm of their ratio.  What an expert gets wrong of y alone
is in both and cancels.  The weights maximise the likelihood of y given x of rows that no expert has
seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from sk_itdiffusion._first._information.units import mean_over_rows
from sk_itdiffusion._first.references.parts import log_sum
from sk_itdiffusion._first.references.reference_mixture import fitted_log_weights

__all__ = ["Blend"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
#: Gain in nats that may be an error of rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Blend:
    """Weights of experts.

    Attributes
    ----------
    log_weights : ndarray of shape (2, n_experts)
        Logarithms of the weights of conditional and of marginal densities.
    is_independent : bool
        Whether the weights gain less than a standard error, so that y is taken as independent.
    """

    log_weights: Array
    is_independent: bool = False

    @classmethod
    def fit(cls, conditional: Array, marginal: Array, unit: Index | None = None) -> Blend:
        """Return the weights of greatest likelihood.

        Parameters
        ----------
        conditional, marginal : ndarray of shape (n_experts, n)
            Log-densities of rows that the experts have not seen, with and without x.
        unit : ndarray of shape (n,), int, or None, default=None
            Units of rows that are not independent of each other; see `mean_over_rows`.

        Returns
        -------
        Blend
            The weights.
        """
        scores = np.concatenate([conditional, marginal])
        n_rows = scores.shape[1]
        log_weights = fitted_log_weights(scores, np.full(n_rows, 1.0 / n_rows))
        blend = cls(log_weights.reshape(2, -1))
        gain, error = mean_over_rows(blend.information(conditional, marginal), unit)
        return cls(blend.log_weights, gain <= error + _ROUNDING)

    def information(self, conditional: Array, marginal: Array) -> Array:
        """Return the pointwise information of rows, (n,), in nats.

        Parameters
        ----------
        conditional, marginal : ndarray of shape (n_experts, n)
            Log-densities with and without x.

        Returns
        -------
        ndarray of shape (n,)
            Pointwise information; 0 if y is taken as independent.
        """
        if self.is_independent:
            return np.zeros(conditional.shape[1])
        with_x, without_x = self.log_weights[:, :, None]
        total = logsumexp(self.log_weights, axis=0)[:, None]
        given_x = log_sum(np.concatenate([with_x + conditional, without_x + marginal]))
        return np.asarray(given_x - log_sum(total + marginal))
