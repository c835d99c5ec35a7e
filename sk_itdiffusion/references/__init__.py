"""Distributions whose log-density and optimal denoiser are known in closed form.

A family of references says when a kind of distribution is used in a fit, and how it is fitted.
"""

from sk_itdiffusion._first.references import (
    ContinuousReference,
    CrossedMixtureReference,
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LatentClassReference,
    LowRankGaussianReference,
    PlainReference,
    Reference,
    ReferenceFamily,
    ReferenceMixture,
)

__all__ = [
    "ContinuousReference",
    "CrossedMixtureReference",
    "GaussianMixtureReference",
    "GaussianReference",
    "IndependentReference",
    "KernelDensityReference",
    "LatentClassReference",
    "LowRankGaussianReference",
    "PlainReference",
    "Reference",
    "ReferenceFamily",
    "ReferenceMixture",
]
