"""Public names of information: functions of tables, and what they and estimators return."""

from sk_itdiffusion._first._estimators.information_functions import (
    DependenceMatrix,
    dependence_matrix,
    entropy,
    mutual_info_immse,
    mutual_information,
    total_correlation,
)
from sk_itdiffusion._first._information.curve import InformationCurve

__all__ = [
    "DependenceMatrix",
    "InformationCurve",
    "dependence_matrix",
    "entropy",
    "mutual_info_immse",
    "mutual_information",
    "total_correlation",
]
