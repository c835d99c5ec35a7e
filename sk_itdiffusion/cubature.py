"""Densities of the log-SNR, and the noise that scores are integrated with."""

from sk_itdiffusion._first._immse.cubature import (
    NoiseRule,
    PiecewiseDensity,
    hash_uniform,
    row_keys,
)

__all__ = ["NoiseRule", "PiecewiseDensity", "hash_uniform", "row_keys"]
