"""scikit-learn's common checks, with no expected failures."""

import contextlib

import numpy as np
import pandas as pd
import pytest
from seeds import shifted
from sklearn import clone, config_context
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_itdiffusion import (
    IMMSEConditionalDensity,
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEMutualInformation,
    IMMSEOutlierDetector,
    IMMSERegressor,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {
    "hidden_size": 16,
    "n_blocks": 1,
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "batch_size": 64,
    "score_tol": 5.0,
    "random_state": shifted(0),
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
    [("wide", IMMSEDensity(**PLAIN)), ("plain", IMMSEDensity(**PLAIN | {"max_epochs": 0}))],
    random_state=shifted(0),
)
DETECTOR = IMMSEOutlierDetector(
    IMMSEDensity(marginals="standard", reference="gaussian", max_epochs=0, score_tol=5.0),
    contamination=0.1,
    random_state=shifted(0),
)
# Folds take turns, so it is fitted six times, each time with a network.
DETECTOR_WITH_NETWORKS = IMMSEOutlierDetector(
    IMMSEDensity(**PLAIN | {"max_epochs": 1, "hidden_size": 8}), trim=0.0, random_state=shifted(0)
)


TREES = {"n_estimators": 5, "random_state": shifted(0)}
CONDITIONAL = (
    IMMSEConditionalDensity(
        [ExtraTreesRegressor(**TREES), ExtraTreesClassifier(**TREES)], cv=2, random_state=shifted(0)
    ),
    IMMSERegressor(DecisionTreeRegressor(random_state=shifted(0)), cv=2, random_state=shifted(0)),
)
INFORMATION = IMMSEMutualInformation(
    IMMSEMixedDensity(max_epochs=0, marginals="standard", reference="independent"),
    cv=2,
    random_state=shifted(0),
)


@contextlib.contextmanager
def global_generator_restored():
    """Put back the state of numpy's generator, with which one of the checks shuffles."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


# The common checks fit on a handful of unlabelled rows, integers among them.
@pytest.mark.filterwarnings(
    "ignore:Column", "ignore:false_alarm_rate", "ignore:partial_fit", "ignore:The .* rows have"
)
@parametrize_with_checks([*QUICK_ESTIMATORS, ENSEMBLE, DETECTOR, *CONDITIONAL])
def test_common_checks(estimator, check):
    with global_generator_restored():
        check(estimator)


@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate", "ignore:The .* rows have")
@pytest.mark.parametrize(
    "estimator",
    [*QUICK_ESTIMATORS, ENSEMBLE, DETECTOR],
    ids=lambda estimator: type(estimator).__name__,
)
def test_estimators_are_shown_as_html(estimator):
    X = np.random.default_rng(shifted(0)).integers(0, 3, size=(60, 2))
    unfitted, fitted = clone(estimator), clone(estimator).fit(X)
    with config_context(display="diagram"):
        for shown, state in ((unfitted, "Not fitted"), (fitted, "Fitted")):
            page = shown._repr_html_()
            assert type(estimator).__name__ in page
            assert f"<span>{state}</span>" in page
            assert "text/html" in shown._repr_mimebundle_()
    assert "n_features_in_" not in vars(unfitted)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Column", "ignore:false_alarm_rate", "ignore:partial_fit", "ignore:The .* rows have"
)
@parametrize_with_checks(
    [
        *(estimator() for estimator in ESTIMATORS),
        IMMSEOutlierDetector(),
        DETECTOR_WITH_NETWORKS,
        IMMSEConditionalDensity(),
        IMMSERegressor(),
        INFORMATION,
    ]
)
def test_common_checks_with_defaults(estimator, check):
    with global_generator_restored():
        check(estimator)


TROUBLE = {
    "NaN": (np.nan, "contains NaN"),
    "missing": (None, "contains NaN"),
    "infinity": (-np.inf, "contains infinity"),
    "huge": (10**400, "too large"),
}
NUMERIC = [
    IMMSEDensity(random_state=shifted(0)),
    ENSEMBLE,
    IMMSEOutlierDetector(IMMSEDensity(), random_state=shifted(0)),
]
OTHERS = [
    IMMSEDiscreteDensity(random_state=shifted(0)),
    IMMSEMixedDensity(random_state=shifted(0)),
    IMMSEOutlierDetector(random_state=shifted(0)),
]


def broken_tables(value):
    """Return an array and a data frame with a value in the third row of two columns."""
    X = np.random.default_rng(shifted(0)).normal(size=(40, 4)).round(1).astype(object)
    X[2, [1, 3]] = value
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    return [(X, "1, 3"), (frame, "'b', 'd'")]


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("estimator", [*NUMERIC, *OTHERS], ids=lambda each: type(each).__name__)
def test_errors_about_numbers_name_the_columns(estimator, trouble):
    value, message = TROUBLE[trouble]
    if trouble in ("NaN", "missing") and isinstance(estimator, (*ESTIMATORS, IMMSEOutlierDetector)):
        pytest.skip("entries may be missing")
    for X, columns in broken_tables(value):
        with pytest.raises(ValueError, match=rf"{message}.* column\(s\) {columns}\."):
            clone(estimator).fit(X)


@pytest.mark.parametrize("entry", ["1,234", pd.Timestamp("2026-01-31")], ids=["text", "date"])
@pytest.mark.parametrize("estimator", NUMERIC, ids=lambda each: type(each).__name__)
def test_errors_about_texts_name_the_columns_and_an_entry(estimator, entry):
    for X, columns in broken_tables(entry):
        message = rf"strings or dates in column\(s\) {columns}, such as '{str(entry)[:5]}"
        with pytest.raises(ValueError, match=message):
            clone(estimator).fit(X)


@pytest.mark.parametrize("kind", ["datetime64[s]", "timedelta64[s]", "period[D]"])
@pytest.mark.parametrize("estimator", NUMERIC, ids=lambda each: type(each).__name__)
def test_dates_and_durations_are_no_numbers(estimator, kind):
    """NumPy makes -9e18 of a missing one."""
    days = pd.Series(pd.date_range("2026-01-01", periods=40)).to_frame("day")
    days.iloc[3] = pd.NaT
    if kind == "timedelta64[s]":
        days -= days.iloc[0]
    tables = [days.astype(kind)]
    if kind != "period[D]":
        tables.append(tables[0].to_numpy())
    for X in tables:
        with pytest.raises(ValueError, match=r"strings or dates in column\(s\) ('day'|0), such as"):
            clone(estimator).fit(X)


@pytest.mark.parametrize(
    ("estimator", "value", "message"),
    [(ENSEMBLE, np.nan, "NaN"), (DETECTOR, np.inf, "infinity.*")],
    ids=["IMMSEEnsemble", "IMMSEOutlierDetector"],
)
def test_errors_of_scoring_name_the_columns(estimator, value, message):
    frame = pd.DataFrame(np.random.default_rng(shifted(0)).normal(size=(40, 2)), columns=["a", "b"])
    fitted = clone(estimator).fit(frame)
    frame.iloc[3, 1] = value
    with pytest.raises(ValueError, match=rf"{message} in column\(s\) 'b'\."):
        fitted.score_samples(frame)
    with pytest.raises(ValueError, match="feature names"):
        fitted.score_samples(frame.rename(columns={"a": "c"}))
