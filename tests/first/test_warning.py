"""Warnings: at the user's line, once for each line and text, from whichever thread."""

import contextlib
import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import KNNImputer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from first.marks import others_slow
from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEMixedDensity, IMMSEOutlierDetector
from sk_itdiffusion._first._fit import course
from sk_itdiffusion._first._fit.course import Course
from sk_itdiffusion._first._fit.training_control import would_go_on_gaining
from sk_itdiffusion._first._runtime.parallel import map_in_workers, run_all_interruptibly
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.reading import read_table

pytestmark = pytest.mark.usefixtures("brief_fits")

rng = np.random.default_rng(0)
QUICK = IMMSEDensity(max_epochs=0, score_tol=0.5, random_state=0)
NORMAL = rng.normal(size=(120, 2))
TIED = np.column_stack([NORMAL[:, 0], np.round(NORMAL[:, 1])])
TIES = "have many equal or coarsely rounded values"


@contextlib.contextmanager
def shown():
    """Collect the warnings that a program shows which changes no filters."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield caught


def here():
    """Return the number of the caller's line."""
    return inspect.currentframe().f_back.f_lineno


CALLS = {
    "fit": lambda: QUICK.fit(TIED),
    "pipeline": lambda: make_pipeline(FunctionTransformer(), QUICK).fit(TIED),
    "cross_val_score": lambda: cross_val_score(QUICK, TIED, cv=2),
    "search": lambda: GridSearchCV(QUICK, {"score_tol": [0.5, 0.4]}, cv=2).fit(TIED),
    "ensemble": lambda: IMMSEEnsemble([("a", QUICK), ("b", QUICK)], random_state=0).fit(TIED),
}


@pytest.mark.parametrize("name", others_slow(CALLS, 3))
def test_warning_is_shown_once_and_at_the_users_line(name):
    with shown() as caught:
        CALLS[name]()
    assert [TIES in str(warning.message) for warning in caught] == [True]
    assert caught[0].filename == __file__
    assert caught[0].lineno == inspect.getsourcelines(CALLS[name])[1]


def test_a_single_row_of_great_weight_is_no_tie():
    """Nor does it hide a bound; many equal rows do both, whatever their weights."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.exponential(size=200), rng.normal(size=200)])
    weight = rng.uniform(0.5, 1.5, size=200)
    weight[7] = 0.07 * weight.sum()
    with shown() as caught:
        density = clone(QUICK).fit(X, sample_weight=weight)
    assert not [warning.message for warning in caught]
    np.testing.assert_array_equal(density.bounds_, [[0, np.inf], [-np.inf, np.inf]])
    X[:20, 0] = 1.0
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 have many equal"):
        clone(QUICK).fit(X, sample_weight=weight)


def test_each_line_and_each_text_is_shown_and_filters_hold():
    with shown() as caught:
        for text in ("one", "two", "one"):
            warn(text)
        warn("one")
    assert [str(warning.message) for warning in caught] == ["one", "two", "one"]
    for action, n in (("always", 3), ("ignore", 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            for _ in range(3):
                warn("three")
        assert len(caught) == n
    with pytest.raises(FutureWarning, match="four"):  # these tests turn warnings into errors
        warn("four", FutureWarning)


def test_warnings_of_workers_point_at_the_line_that_called_them():
    def nested(number):
        return map_in_workers(lambda _: warn(f"worker {number}"), [0], "cpu")

    line = here() + 2
    with pytest.warns(UserWarning, match="worker") as caught:
        run_all_interruptibly([lambda stop: nested(1), lambda stop: nested(2)])
    assert {str(warning.message) for warning in caught} == {"worker 1", "worker 2"}
    assert {(warning.filename, warning.lineno) for warning in caught} == {(__file__, line)}


# -- integers that identify rows -------------------------------------------------------------


def draws(n):
    """Return columns of integers that are measurements, and some that are identifiers."""
    r = np.random.default_rng(n)
    numbers = {
        "income": np.round(r.lognormal(10.5, 0.7, n)),
        "count": r.poisson(1e4, n),
        "population": np.round(r.lognormal(8.0, 2.0, n)),
        "uniform": r.integers(0, 10 * n, n),
        "wide": r.integers(0, n * n, n),
    }
    identifiers = {
        "shuffled": r.permutation(n),
        "subset": 10_000 + r.choice(2 * n, n, replace=False),
        "nearly": np.r_[np.arange(n - n // 50), np.arange(n // 50)],
    }
    return [{k: v.astype(np.int64) for k, v in each.items()} for each in (numbers, identifiers)]


@pytest.mark.parametrize("n", [100, 1000])
def test_integer_identifiers_are_told_from_measurements(n):
    numbers, identifiers = draws(n)
    mixed = IMMSEMixedDensity(max_epochs=0, random_state=0)
    rest = {"x": np.random.default_rng(0).normal(size=n)}
    # A measurement is taken for an identifier with a chance of at most 1e-4.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed._column_kinds(read_table(pd.DataFrame(rest | numbers)))
        warnings.filterwarnings("ignore", message=f".*{TIES}")
        QUICK._read_first(pd.DataFrame(numbers), None)
    for name, values in identifiers.items():
        X = pd.DataFrame(rest | {name: values})
        with pytest.warns(UserWarning, match=f"'{name}' look like identifiers"):
            mixed._column_kinds(read_table(X))
        with pytest.warns(UserWarning, match=f"'{name}' look like identifiers"):
            QUICK._read_first(X, None)
        mixed.set_params(ordinal_features=[name])._column_kinds(read_table(X))
        mixed.set_params(ordinal_features="from_dtype")
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 look like identifiers"):
        QUICK._read_first(identifiers["shuffled"][:, None], None)


# -- ties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [(0.5, 0.5, 0.5), (0.3, 0.5, 0.6)])
def test_ties_of_booleans_are_told_however_often_rows_come(p):
    B = np.random.default_rng(0).random((1000, 3)) < p
    with pytest.warns(UserWarning, match=rf"Column\(s\) 0, 1, 2 {TIES}"):
        QUICK.fit(B)
    weight = np.random.default_rng(1).uniform(1.0, 2.0, 1000)
    with pytest.warns(UserWarning, match=rf"Column\(s\) 0, 1, 2 {TIES}"):
        QUICK.fit(B, sample_weight=weight)


def test_advice_about_missing_numbers_leads_to_no_ties():
    X = NORMAL.copy()
    X[::3, 1] = np.nan
    with pytest.raises(ValueError, match="IMMSEImputer"):
        IMMSEEnsemble([("a", QUICK)], random_state=0).fit(X)
    QUICK.fit(KNNImputer().fit_transform(X))


def test_p_values_name_the_contamination_of_the_fit():
    detector = IMMSEOutlierDetector(QUICK, contamination=0.1, random_state=0).fit(NORMAL)
    with pytest.raises(ValueError, match=r"only available .* contamination=0\.1"):
        detector.p_values(NORMAL)


# -- short trainings and few rows ------------------------------------------------------------


#: Parameters of quick fits to `circles`.
RINGS = {
    "reference": "gaussian",
    "marginals": "standard",
    "experts": ["network"],
    "hidden_size": 32,
    "batch_size": 256,
}


def circles(seed):
    """Return rows of which a network has much to learn."""
    r = np.random.default_rng(seed)
    angle = r.uniform(0.0, 2.0 * np.pi, 600)
    radius = np.repeat([1.0, 3.0], 300) + 0.1 * r.normal(size=600)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def warnings_of_fit(X, max_epochs, **parameters):
    """Return the fitted estimator, and whether it warned that the training was too short."""
    density = IMMSEDensity(max_epochs=max_epochs, **RINGS, **parameters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        density.fit(X)
    assert all(f"max_epochs={max_epochs} while" in str(each.message) for each in caught)
    assert len(caught) <= 1, "more than one warning of a fit"
    return density, bool(caught)


@pytest.mark.parametrize("n_networks", others_slow([2, 1]))
def test_trainings_that_end_too_early_warn_once(n_networks):
    brief = {"steps_per_epoch": 40, "random_state": 0, "n_networks": n_networks}
    assert warnings_of_fit(circles(0), 4, **brief)[1]
    # A normal distribution is the reference itself, and there is nothing to gain.
    assert not warnings_of_fit(NORMAL, 2, **brief)[1]


@pytest.mark.slow
def test_short_trainings_beside_references_warn():
    r = np.random.default_rng(0)
    X = r.normal(size=(500, 5))
    for j in range(1, 5):  # each column depends on the one before, as a mixture can hardly tell
        X[:, j] = np.sin(2.0 * X[:, j - 1]) + 0.2 * X[:, j]
    with pytest.warns(ConvergenceWarning, match="ended by max_epochs=2 while"):
        IMMSEDensity(max_epochs=2, n_networks=1, random_state=1).fit(X)


def test_trainings_without_time_warn(monkeypatch):
    advance, now = Course.advance, 0.0

    def slow(self):
        nonlocal now
        now += 0.1
        advance(self)

    monkeypatch.setattr(Course, "advance", slow)
    monkeypatch.setattr(course.time, "monotonic", lambda: now)
    brief = {"steps_per_epoch": 40, "random_state": 0, "n_networks": 1, "time_limit": 19.0}
    with pytest.warns(ConvergenceWarning, match=r"ended by time_limit=19.0 while.*time_limit\."):
        IMMSEDensity(**RINGS, **brief).fit(circles(0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_long_trainings_do_not_warn(seed):
    brief = {"steps_per_epoch": 100, "random_state": seed, "n_networks": 1}
    _, warned = warnings_of_fit(circles(seed), 40, **brief)
    assert not warned


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([3.0, 2.0, 1.5, 1.2], True),
        ([3.9, 3.8, 3.78, 3.75], False),  # less than 0.1 nats
        ([3.0, 2.0, 1.9, 1.8], False),  # less than a tenth of the gain
        ([4.0, 4.1, 4.2, 4.3], False),
        ([3.5], True),
        ([np.nan, 3.9, 3.8], False),
    ],
)
def test_gain_of_the_last_quarter_decides(bounds, expected):
    assert would_go_on_gaining([4.0, *bounds]) is expected


def test_fits_to_few_rows_say_once_what_they_are():
    few = NORMAL[:39]
    with pytest.warns(UserWarning, match="fewer than 40 distinct rows.*normal distribution") as w:
        IMMSEDensity(random_state=0).fit(few)
    assert len(w) == 1
    assert "standard errors" not in str(w[0].message)
    with pytest.warns(UserWarning, match="cannot determine the covariance"):
        IMMSEDensity(random_state=0).fit(NORMAL[:2])
    with pytest.warns(UserWarning, match="fewer than 40 rows: the model is independent columns"):
        IMMSEMixedDensity(random_state=0).fit(pd.DataFrame({"a": ["u", "v"] * 10}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IMMSEDensity(max_epochs=0, reference="gaussian", random_state=0).fit(few)
        QUICK.fit(NORMAL[:40])
