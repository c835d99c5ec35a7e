"""Distributions whose log-density and optimal denoiser are known in closed form.

A family of references says when a kind of distribution is used in a fit, and how it is fitted.
"""

# May import `_runtime`, `persistence`, `channel`, `layout`, `_immse` and `_table` of the package.

from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.classes import LatentClassReference
from sk_itdiffusion._first.references.continuous import ContinuousReference, PlainReference
from sk_itdiffusion._first.references.crossed import CrossedMixtureReference
from sk_itdiffusion._first.references.discrete import IndependentReference
from sk_itdiffusion._first.references.families import ReferenceFamily
from sk_itdiffusion._first.references.gaussian import GaussianReference
from sk_itdiffusion._first.references.kernel_density import KernelDensityReference
from sk_itdiffusion._first.references.low_rank import LowRankGaussianReference
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference
from sk_itdiffusion._first.references.reference_mixture import ReferenceMixture

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
