r"""Importance densities of the log-SNR in training.

The objective is an integral over the log-SNR; training draws log-SNRs from a density and divides
by it, so that every schedule has the same optimum and only the noise of the gradient differs
(Kong et al. 2023).  Scoring has a rule of its own, so that
scores of estimators trained with different schedules compare.

A schedule is a scikit-learn style parameter object: it can be cloned, and its parameters searched
with ``GridSearchCV(est, {"schedule__loc": [...]})``.
"""

from sk_itdiffusion._first.schedules import (
    SCHEDULES,
    AdaptiveSchedule,
    CosineSchedule,
    DDPMLinearSchedule,
    LogisticSchedule,
    Schedule,
    TruncatedNormalSchedule,
    UniformSchedule,
    resolve_schedule,
)

__all__ = [
    "SCHEDULES",
    "AdaptiveSchedule",
    "CosineSchedule",
    "DDPMLinearSchedule",
    "LogisticSchedule",
    "Schedule",
    "TruncatedNormalSchedule",
    "UniformSchedule",
    "resolve_schedule",
]
