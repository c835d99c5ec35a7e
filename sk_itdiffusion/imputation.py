"""Public names of imputation."""

from sk_itdiffusion._estimators.imputer import IMMSEImputer, PooledEstimate

__all__ = ["IMMSEImputer", "PooledEstimate"]
