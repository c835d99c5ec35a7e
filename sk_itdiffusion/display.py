"""Pictures of fitted densities, in the style of scikit-learn's Display classes.

Each display is made from arrays, or by its ``from_estimator`` from a fitted estimator; ``plot``
draws it on given axes or in a new figure and returns the display, whose artists are attributes.
matplotlib is imported when something is drawn; it comes with ``pip install
"sk_itdiffusion[plot]"``.  Colours are chosen for colour-blind readers, and line styles,
markers and hatches work without colour.
"""

from sk_itdiffusion._first.display import (
    BoundHistoryDisplay,
    DensityContourDisplay,
    DependenceDisplay,
    EnsembleWeightsDisplay,
    InformationCurveDisplay,
    MSECurveDisplay,
    OutlierExplanationDisplay,
    PointwiseInformationDisplay,
    PredictionIntervalDisplay,
    PredictiveFanDisplay,
    ProbabilityIntegralDisplay,
    SamplePairDisplay,
)

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
