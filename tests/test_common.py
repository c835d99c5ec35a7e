"""scikit-learn's common checks, with no expected failures."""

import numpy as np
import pytest
from sklearn import clone, config_context
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)

QUICK = {
    "hidden_size": 16,
    "n_blocks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "batch_size": 64,
    "n_strata": 4,
    "random_state": 0,
}
# Without what takes longest: the checks know nothing of it.
PLAIN = QUICK | {"reference": "gaussian", "marginals": "standard", "n_networks": 1}
QUICK_ESTIMATORS = (
    IMMSEDensity(**PLAIN),
    IMMSEDiscreteDensity(**QUICK, reference="independent"),
    IMMSEMixedDensity(**QUICK, reference="independent", marginals="standard"),
)
ESTIMATORS = (IMMSEDensity, IMMSEDiscreteDensity, IMMSEMixedDensity)
ENSEMBLE = IMMSEEnsemble(
    [("wide", IMMSEDensity(**PLAIN)), ("narrow", IMMSEDensity(**PLAIN | {"hidden_size": 8}))],
    random_state=0,
)
DETECTORS = [
    # Folds take turns, so the detector is fitted six times.
    IMMSEOutlierDetector(
        IMMSEDensity(**PLAIN | {"max_epochs": 1, "hidden_size": 8}),
        trim=0.0,
        random_state=0,
    ),
    IMMSEOutlierDetector(contamination=0.1, random_state=0),
]


# One of the checks shuffles with the global generator of numpy.
pytestmark = pytest.mark.changes_global_state


# The common checks fit on a handful of unlabelled rows, integers among them.
@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate", "ignore:partial_fit")
@parametrize_with_checks([*QUICK_ESTIMATORS, ENSEMBLE, *DETECTORS])
def test_common_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate")
@pytest.mark.parametrize(
    "estimator",
    [*QUICK_ESTIMATORS, ENSEMBLE, DETECTORS[1]],
    ids=lambda estimator: type(estimator).__name__,
)
def test_estimators_are_shown_as_html(estimator):
    X = np.random.default_rng(0).integers(0, 3, size=(60, 2))
    unfitted, fitted = clone(estimator), clone(estimator).fit(X)
    with config_context(display="diagram"):
        for shown, state in ((unfitted, "Not fitted"), (fitted, "Fitted")):
            page = shown._repr_html_()
            assert type(estimator).__name__ in page
            assert f"<span>{state}</span>" in page
            assert "text/html" in shown._repr_mimebundle_()
    assert "n_features_in_" not in vars(unfitted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate", "ignore:partial_fit")
@parametrize_with_checks([*(estimator() for estimator in ESTIMATORS), IMMSEOutlierDetector()])
def test_common_checks_with_defaults(estimator, check):
    check(estimator)
