"""Diffusion denoisers as scikit-learn density estimators.

Implements X. Kong, R. Brekelmans, G. Ver Steeg, "Information-Theoretic Diffusion", ICLR 2023:
log-densities from the least-squares errors of a denoiser, by the I-MMSE relation.
"""

import logging

# Public modules that nothing else here imports.
from sk_itdiffusion import cubature as cubature
from sk_itdiffusion import imputation as imputation
from sk_itdiffusion import information as information
from sk_itdiffusion import likelihood as likelihood
from sk_itdiffusion import streams as streams
from sk_itdiffusion._first._estimators.conditional import IMMSEConditionalDensity
from sk_itdiffusion._first._estimators.conditional_view import ConditionalDensity
from sk_itdiffusion._first._estimators.density import IMMSEDensity
from sk_itdiffusion._first._estimators.discrete import IMMSEDiscreteDensity
from sk_itdiffusion._first._estimators.ensemble import IMMSEEnsemble
from sk_itdiffusion._first._estimators.imputer import IMMSEImputer
from sk_itdiffusion._first._estimators.information import IMMSEMutualInformation
from sk_itdiffusion._first._estimators.mixed import IMMSEMixedDensity
from sk_itdiffusion._first._estimators.outlier import IMMSEOutlierDetector
from sk_itdiffusion._first._estimators.regressor import IMMSERegressor
from sk_itdiffusion._first._estimators.views import MarginalDensity
from sk_itdiffusion._version import __version__
from sk_itdiffusion.persistence import load
from sk_itdiffusion.pretrained import PretrainedDenoiser

__all__ = [
    "ConditionalDensity",
    "IMMSEConditionalDensity",
    "IMMSEDensity",
    "IMMSEDiscreteDensity",
    "IMMSEEnsemble",
    "IMMSEImputer",
    "IMMSEMixedDensity",
    "IMMSEMutualInformation",
    "IMMSEOutlierDetector",
    "IMMSERegressor",
    "MarginalDensity",
    "PretrainedDenoiser",
    "__version__",
    "load",
]

# Nothing is printed unless the user asks for it.
logging.getLogger(__name__).addHandler(logging.NullHandler())
