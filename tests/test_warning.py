"""Warnings: at the user's line, once for each line and text, from whichever thread."""

import contextlib
import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.impute import KNNImputer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEMixedDensity, IMMSEOutlierDetector
from sk_itdiffusion.encoding import read_table
from sk_itdiffusion.parallel import map_in_workers, run_all_interruptibly
from sk_itdiffusion.warning import warn

rng = np.random.default_rng(0)
QUICK = IMMSEDensity(max_epochs=0, n_strata=4, random_state=0)
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
    "cross_val_score": lambda: cross_val_score(QUICK, TIED, cv=4),
    "search": lambda: GridSearchCV(QUICK, {"n_strata": [4, 5]}, cv=3).fit(TIED),
    "ensemble": lambda: IMMSEEnsemble([("a", QUICK), ("b", QUICK)], random_state=0).fit(TIED),
}


@pytest.mark.parametrize("name", CALLS)
def test_warning_is_shown_once_and_at_the_users_line(name):
    with shown() as caught:
        CALLS[name]()
    assert [TIES in str(warning.message) for warning in caught] == [True]
    assert caught[0].filename == __file__
    assert caught[0].lineno == inspect.getsourcelines(CALLS[name])[1]


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
    with pytest.raises(ValueError, match="KNNImputer"):
        QUICK.fit(X)
    QUICK.fit(KNNImputer().fit_transform(X))


def test_p_values_name_the_contamination_of_the_fit():
    detector = IMMSEOutlierDetector(QUICK, contamination=0.1, random_state=0).fit(NORMAL)
    with pytest.raises(ValueError, match=r"only available .* contamination=0\.1"):
        detector.p_values(NORMAL)
