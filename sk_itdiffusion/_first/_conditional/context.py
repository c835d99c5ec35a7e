"""What a network sees of a row besides the noisy residual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._conditional.base_model import BaseModel, LocationScale, as_numbers
from sk_itdiffusion._first._conditional.features import Features
from sk_itdiffusion._first.persistence import stored

__all__ = ["ContextEncoder"]

Array = NDArray[np.float64]


@stored()
@dataclass(frozen=True)
class ContextEncoder:
    """Features as numbers of about unit size, with location and scale of the target.

    Attributes
    ----------
    numbers : BaseModel
        Fitted transformer: imputed and standardised numbers, indicators of categories.
    center, width : float
        Of the target.
    log_scale : float
        Mean logarithm of the scales.
    """

    numbers: BaseModel
    center: float
    width: float
    log_scale: float

    @classmethod
    def fit(cls, features: Features, model: LocationScale, log_scale: Array) -> ContextEncoder:
        """Return the encoder of the training rows."""
        transformer = as_numbers(features.nominal).fit(features.encoded)
        numbers = BaseModel(transformer, sees_raw=False)
        return cls(numbers, model.center, model.width, float(log_scale.mean()))

    def of_rows(self, features: Features, location: Array, log_scale: Array) -> Array:
        """Return what the network sees, shape (n, n_given)."""
        numbers = np.asarray(self.numbers.estimator.transform(features.encoded))
        place = (location - self.center) / self.width
        return np.column_stack([numbers, place, log_scale - self.log_scale])
