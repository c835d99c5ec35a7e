"""Denoising networks."""

from sk_itdiffusion.denoisers.convolutional import ConvolutionalNetwork
from sk_itdiffusion.denoisers.levels import LevelDenoiser
from sk_itdiffusion.denoisers.mlp import ResidualMLP
from sk_itdiffusion.denoisers.precondition import PreconditionedDenoiser, ReferencedDenoiser
from sk_itdiffusion.denoisers.unet import UNetBackbone

__all__ = [
    "ConvolutionalNetwork",
    "LevelDenoiser",
    "PreconditionedDenoiser",
    "ReferencedDenoiser",
    "ResidualMLP",
    "UNetBackbone",
]
