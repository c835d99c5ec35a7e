"""Denoising networks."""

from sk_itdiffusion.denoisers.mlp import ResidualMLP
from sk_itdiffusion.denoisers.precondition import PreconditionedDenoiser

__all__ = ["PreconditionedDenoiser", "ResidualMLP"]
