"""Pictures of fitted densities, in the style of scikit-learn's Display classes.

Each display is made from arrays, or by its ``from_estimator`` from a fitted estimator; ``plot``
draws it on given axes or in a new figure and returns the display, whose artists are attributes.
matplotlib is imported when something is drawn; it comes with ``pip install
"sk_itdiffusion[plot]"``.  Colours are chosen for colour-blind readers, and line styles,
markers and hatches work without colour.
"""

# May import `_runtime`, `_table` and `_fit` of the package.

from sk_itdiffusion._first.display.bounds import BoundHistoryDisplay
from sk_itdiffusion._first.display.conditional import (
    PredictionIntervalDisplay,
    PredictiveFanDisplay,
    ProbabilityIntegralDisplay,
)
from sk_itdiffusion._first.display.contours import DensityContourDisplay
from sk_itdiffusion._first.display.curves import MSECurveDisplay
from sk_itdiffusion._first.display.explanation import OutlierExplanationDisplay
from sk_itdiffusion._first.display.information import (
    DependenceDisplay,
    InformationCurveDisplay,
    PointwiseInformationDisplay,
)
from sk_itdiffusion._first.display.pairs import SamplePairDisplay
from sk_itdiffusion._first.display.stacks import EnsembleWeightsDisplay

__all__ = [
    "BoundHistoryDisplay",
    "DensityContourDisplay",
    "DependenceDisplay",
    "EnsembleWeightsDisplay",
    "InformationCurveDisplay",
    "MSECurveDisplay",
    "OutlierExplanationDisplay",
    "PointwiseInformationDisplay",
    "PredictionIntervalDisplay",
    "PredictiveFanDisplay",
    "ProbabilityIntegralDisplay",
    "SamplePairDisplay",
]
