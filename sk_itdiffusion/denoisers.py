"""Denoising networks."""

from sk_itdiffusion._first.denoisers import (
    BackbonePlan,
    ConvolutionalFamily,
    ConvolutionalNetwork,
    LevelDenoiser,
    LogSNREmbedding,
    MLPFamily,
    NetworkFamily,
    NetworkTask,
    PlannedNetwork,
    PreconditionedDenoiser,
    ReferencedDenoiser,
    ResidualMLP,
    UNetBackbone,
    UNetFamily,
    UsualParameters,
)

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
