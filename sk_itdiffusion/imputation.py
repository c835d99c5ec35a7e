"""Public names of imputation."""

from sk_itdiffusion._first._estimators.imputer import IMMSEImputer, PooledEstimate

__all__ = ["IMMSEImputer", "PooledEstimate"]
