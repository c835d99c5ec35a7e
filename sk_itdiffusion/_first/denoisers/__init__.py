"""Denoising networks."""

# May import `_runtime`, `persistence`, `channel`, `layout`, `pretrained` and `references` of the
# package.

from sk_itdiffusion._first.denoisers.convolutional import ConvolutionalFamily, ConvolutionalNetwork
from sk_itdiffusion._first.denoisers.family import (
    BackbonePlan,
    NetworkFamily,
    NetworkTask,
    PlannedNetwork,
    UsualParameters,
)
from sk_itdiffusion._first.denoisers.levels import LevelDenoiser
from sk_itdiffusion._first.denoisers.mlp import MLPFamily, ResidualMLP
from sk_itdiffusion._first.denoisers.precondition import (
    LogSNREmbedding,
    PreconditionedDenoiser,
    ReferencedDenoiser,
)
from sk_itdiffusion._first.denoisers.unet import UNetBackbone, UNetFamily

__all__ = [
    "BackbonePlan",
    "ConvolutionalFamily",
    "ConvolutionalNetwork",
    "LevelDenoiser",
    "LogSNREmbedding",
    "MLPFamily",
    "NetworkFamily",
    "NetworkTask",
    "PlannedNetwork",
    "PreconditionedDenoiser",
    "ReferencedDenoiser",
    "ResidualMLP",
    "UNetBackbone",
    "UNetFamily",
    "UsualParameters",
]
