"""Thresholds of detectors from the scores of held-out rows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._runtime.warning import warn

__all__ = ["threshold", "weighted_quantile"]

Array = NDArray[np.float64]


def threshold(
    calibration_scores: Array, false_alarm_rate: float, weight: Array | None = None
) -> float:
    """Return the score below which rows are rejected at a rate of at most the one asked for.

    Of n sorted held-out scores it is number floor(rate * (n + 1)), below which the score of a
    new row is with that probability divided by n + 1; the lowest if that number is 0.  Weights of
    mean 1 are counted instead of scores.
    """
    n = len(calibration_scores)
    if math.floor(false_alarm_rate * (n + 1) * (1 + 1e-12)) < 1:
        warn(
            f"false_alarm_rate={false_alarm_rate:g} needs at least "
            f"{math.ceil(1.0 / false_alarm_rate) - 1} held-out rows, and there are fewer; the "
            f"threshold is the lowest held-out score, for a rate of about {1.0 / (n + 1):.1g}.",
        )
    counts = np.ones(n) if weight is None else weight
    # Rows are rejected if (weight of scores up to theirs + 1) / (n + 1) is at most the rate.
    most = false_alarm_rate * (n + 1) * (1 + 1e-12) - 1.0
    number = int((np.cumsum(counts) <= most).sum())
    return float(calibration_scores[min(number, n - 1)])


def weighted_quantile(scores: Array, weight: Array, share: float) -> float:
    """Return the quantile of sorted scores, interpolated as `numpy.percentile` does.

    Integer weights are repetitions.
    """
    total = np.cumsum(weight)
    place = share * (total[-1] - 1.0)
    lower = min(math.floor(place), total[-1] - 1.0)
    low, high = (
        scores[min(int(np.searchsorted(total, number, side="right")), len(scores) - 1)]
        for number in (lower, lower + 1.0)
    )
    return float(low + (high - low) * (place - lower))
