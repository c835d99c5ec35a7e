"""Samples come in a table of the kind that was fitted: container, columns, dtypes."""

import builtins
import pickle

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_series_equal

import sk_itdiffusion
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {"max_epochs": 0, "score_tol": 0.5, "random_state": 0}
N_ROWS = 120
rng = np.random.default_rng(0)
# The columns are not in the order of the alphabet.
NUMBERS = pd.DataFrame(
    {
        "width": rng.normal(size=N_ROWS),
        "age": rng.normal(size=N_ROWS).astype(np.float32),
        "income": rng.lognormal(10.0, 0.5, N_ROWS).astype(np.int64),
        "count": pd.array(rng.poisson(1e8, N_ROWS), dtype="Int32"),
    },
    index=np.arange(N_ROWS) + 7,
)
LEVELS = pd.DataFrame(
    {
        "size": pd.Categorical(rng.choice(["s", "m", "l"], N_ROWS), ["s", "m", "l"], ordered=True),
        "name": rng.choice(["ann", "bob"], N_ROWS),
        "is_new": rng.random(N_ROWS) < 0.4,
        "rank": rng.integers(0, 4, N_ROWS).astype(np.int8),
    },
    index=NUMBERS.index,
)
SUBJECTS = {
    "density": (IMMSEDensity(**QUICK), NUMBERS),
    "discrete": (IMMSEDiscreteDensity(**QUICK), LEVELS),
    "mixed": (IMMSEMixedDensity(**QUICK), pd.concat([NUMBERS[["width", "age"]], LEVELS], axis=1)),
    "ensemble": (IMMSEEnsemble([("one", IMMSEDensity(**QUICK))], random_state=0), NUMBERS),
    "ensemble of categories": (
        IMMSEEnsemble([("one", IMMSEDiscreteDensity(**QUICK))], random_state=0),
        LEVELS,
    ),
}


def as_polars(frame):
    """Return the frame in polars, with its own dtypes for texts and categories."""
    pl = pytest.importorskip("polars")
    columns = []
    for name, column in frame.items():
        if name == "size":
            columns.append(pl.Series(name, list(column), dtype=pl.Enum(["s", "m", "l"])))
        elif name == "name":
            columns.append(pl.Series(name, list(column), dtype=pl.Categorical))
        else:
            columns.append(pl.Series(name, column.to_numpy()))
    return pl.DataFrame(columns)


def copies(estimator, path):
    """Return the estimator, from a pickle and from a file too."""
    estimator.save(path)
    return [estimator, pickle.loads(pickle.dumps(estimator)), sk_itdiffusion.load(path)]


@pytest.mark.parametrize("name", SUBJECTS)
def test_frames_of_pandas_give_frames_of_pandas(name, tmp_path):
    estimator, X = SUBJECTS[name]
    for each in copies(estimator.fit(X), tmp_path / "estimator"):
        drawn = each.sample(5, random_state=0)
        assert isinstance(drawn, pd.DataFrame)
        assert list(drawn.columns) == list(X.columns)
        assert list(drawn.dtypes) == list(X.dtypes)
        assert list(drawn.index) == list(range(5))
        # They can be scored, and their numbers are those of an array except for the rounding.
        assert np.isfinite(each.score_samples(drawn)).all()


@pytest.mark.parametrize("name", SUBJECTS)
def test_frames_of_polars_give_frames_of_polars(name, tmp_path):
    pl = pytest.importorskip("polars")
    estimator, frame = SUBJECTS[name]
    X = as_polars(frame)
    for each in copies(estimator.fit(X), tmp_path / "estimator"):
        drawn = each.sample(5, random_state=0)
        assert isinstance(drawn, pl.DataFrame)
        assert drawn.schema == X.schema
        assert np.isfinite(each.score_samples(drawn)).all()
    if "size" in frame:  # the categories of an Enum are nominal
        frame = frame.assign(size=frame["size"].cat.as_unordered())
    as_pandas = estimator.fit(frame).sample(5, random_state=0)
    for column in frame.columns:
        found = pd.Series(drawn[column].to_list(), name=column)
        expected = as_pandas[column].astype(found.dtype)
        assert_series_equal(found, expected, check_dtype=False)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_arrays_give_arrays(dtype):
    X = (100.0 * NUMBERS[["width", "age"]].to_numpy()).astype(dtype)
    density = IMMSEDensity(**QUICK).fit(NUMBERS[["width", "age"]]).fit(X)
    drawn = density.sample(5, random_state=0)
    assert isinstance(drawn, np.ndarray)
    assert drawn.dtype == np.float64
    ensemble = IMMSEEnsemble([("one", IMMSEDensity(**QUICK))], random_state=0)
    ensemble.fit(NUMBERS).fit(X)
    assert isinstance(ensemble.sample(5, random_state=0), np.ndarray)


def test_numbers_that_are_read_from_texts_or_categories_are_sampled_as_numbers():
    X = pd.DataFrame({"text": NUMBERS["width"].astype(str), "x": NUMBERS["age"]})
    X["category"] = pd.Categorical(NUMBERS["width"].to_numpy()[::-1])
    drawn = IMMSEDensity(**QUICK).fit(X).sample(5, random_state=0)
    assert list(drawn.dtypes) == [np.float64, np.float32, np.float64]


def test_names_that_are_no_texts_and_missing_levels_are_kept():
    pl = pytest.importorskip("polars")
    X = NUMBERS[["width", "age"]].set_axis([3, 1], axis=1)
    assert list(IMMSEDensity(**QUICK).fit(X).sample(2).columns) == [3, 1]
    X = pl.DataFrame({"level": ["a", "b", None] * 40, "flag": [True, None, False, True] * 30})
    drawn = IMMSEDiscreteDensity(**QUICK).fit(X).sample(200, random_state=0)
    assert drawn.schema == X.schema
    assert set(drawn["level"].to_list()) == {"a", "b", None}
    assert set(drawn["flag"].to_list()) == {True, False, None}


def test_without_polars_its_rows_are_those_of_pandas(monkeypatch):
    density = IMMSEDensity(**QUICK).fit(as_polars(NUMBERS[["width", "age"]]))
    usual = builtins.__import__

    def without_polars(name, *args, **kwargs):
        if name.partition(".")[0] == "polars":
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_polars)
    with pytest.warns(UserWarning, match="polars is not installed"):
        drawn = density.sample(3, random_state=0)
    assert isinstance(drawn, pd.DataFrame)


def test_rows_of_dask_give_frames_of_pandas():
    dask = pytest.importorskip("dask.dataframe")
    X = NUMBERS[["width", "age"]]
    drawn = IMMSEDensity(**QUICK).fit(dask.from_pandas(X, npartitions=2)).sample(3)
    assert list(drawn.dtypes) == list(X.dtypes)
