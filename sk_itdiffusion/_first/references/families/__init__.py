"""Families of references: when each can be used in a fit, and how it is fitted."""

from sk_itdiffusion._first.references.families.base import (
    Demand,
    FamilyContext,
    JudgedReference,
    ReferenceFamily,
)
from sk_itdiffusion._first.references.families.crossed import CrossedMixtureFamily
from sk_itdiffusion._first.references.families.gaussian import GaussianFamily, GivenReferenceFamily
from sk_itdiffusion._first.references.families.independent import IndependentFamily
from sk_itdiffusion._first.references.families.kernel_density import KernelDensityFamily
from sk_itdiffusion._first.references.families.latent_class import LatentClassFamily
from sk_itdiffusion._first.references.families.mixture import GaussianMixtureFamily

__all__ = [
    "BUILT_IN_FAMILIES",
    "CrossedMixtureFamily",
    "Demand",
    "FamilyContext",
    "GaussianFamily",
    "GaussianMixtureFamily",
    "GivenReferenceFamily",
    "IndependentFamily",
    "JudgedReference",
    "KernelDensityFamily",
    "LatentClassFamily",
    "ReferenceFamily",
]

#: The families of the library, in the order in which they are fitted.
BUILT_IN_FAMILIES: tuple[ReferenceFamily, ...] = (
    GaussianFamily(),
    IndependentFamily(),
    GaussianMixtureFamily(),
    LatentClassFamily(),
    CrossedMixtureFamily(),
    KernelDensityFamily(),
)
