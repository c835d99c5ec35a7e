"""Arrays, data frames and Parquet files through Dask, and Dask as joblib's engine."""

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

import sk_itdiffusion._first._table.partitions
import sk_itdiffusion._first._table.streams
from sk_itdiffusion import IMMSEDensity, IMMSEMixedDensity, IMMSEOutlierDetector

da = pytest.importorskip("dask.array", reason="needs the extra [dask]")
dd = pytest.importorskip("dask.dataframe", reason="needs the extra [dask]")
distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")

pytestmark = pytest.mark.usefixtures("brief_fits")

TINY = {
    "hidden_size": 16,
    "n_blocks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 10,
    "batch_size": 64,
    "score_tol": 0.5,
    "marginals": "standard",
    "reference": "gaussian",
    "experts": ["network", "gaussian"],
    "n_networks": 1,
    "random_state": 0,
}


@pytest.fixture(scope="module", name="X")
def curved_rows():
    rng = np.random.default_rng(0)
    first = rng.normal(size=900)
    return np.column_stack([first, first**2 + 0.3 * rng.normal(size=900)])


@pytest.fixture(scope="module")
def fitted(X):
    return IMMSEDensity(**TINY).fit(X)


@pytest.fixture
def little_memory(monkeypatch):
    """Hold only 300 rows of 2 columns in memory."""
    monkeypatch.setattr(sk_itdiffusion._first._table.streams, "NUMBERS_IN_MEMORY", 600)


# -- scoring ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_scores_of_blocks_are_those_of_one_call(X, fitted, scheduler):
    blocks = da.from_array(X, chunks=(77, 2))
    scores = blocks.map_blocks(fitted.score_samples, drop_axis=1, dtype=np.float64)
    expected = fitted.score_samples(X)
    np.testing.assert_array_equal(scores.compute(scheduler=scheduler), expected)


def test_collections_are_scored_as_what_they_hold(X, fitted):
    expected, std = fitted.score_samples(X, return_std=True)
    frame = dd.from_pandas(pd.DataFrame(X, columns=["a", "b"]), npartitions=5)
    empty_blocks = frame.to_dask_array()  # of unknown length
    for table in (da.from_array(X, chunks=(100, 1)), empty_blocks[empty_blocks[:, 0] > -9.0]):
        found = fitted.score_samples(table, return_std=True)
        np.testing.assert_array_equal(found, (expected, std))
    assert fitted.score(da.from_array(X)) == fitted.score(X)
    with pytest.raises(ValueError, match="without rows"):
        fitted.score_samples(empty_blocks[empty_blocks[:, 0] > 1e9])
    with pytest.raises(ValueError, match="1 dimensions"):
        fitted.score_samples(da.from_array(X[:, 0]))


def test_outliers_are_found_in_collections(X):
    detector = IMMSEOutlierDetector(contamination=0.1, trim=0.0, random_state=0).fit(X[:200])
    blocks = da.from_array(X, chunks=(200, 2))
    np.testing.assert_array_equal(detector.predict(blocks), detector.predict(X))


# -- fitting ---------------------------------------------------------------------------------------


def test_a_collection_that_fits_into_memory_is_the_array(X, fitted):
    frame = pd.DataFrame(X, columns=["a", "b"])
    from_array = clone(fitted).fit(da.from_array(X, chunks=(250, 1)))
    np.testing.assert_array_equal(from_array.score_samples(X[:9]), fitted.score_samples(X[:9]))
    from_frame = clone(fitted).fit(dd.from_pandas(frame, npartitions=3))
    assert list(from_frame.feature_names_in_) == ["a", "b"]
    np.testing.assert_array_equal(from_frame.score_samples(frame), fitted.score_samples(X))
    with pytest.raises(ValueError, match="sample_weight must be None"):
        clone(fitted).fit(da.from_array(X), sample_weight=np.ones(len(X)))


@pytest.mark.usefixtures("little_memory")
def test_larger_collections_are_streamed(X, fitted):
    blocks = da.from_array(X, chunks=(120, 2))
    streamed = clone(fitted).fit(blocks)
    again = clone(fitted).fit(blocks)
    np.testing.assert_array_equal(streamed.score_samples(X[:50]), again.score_samples(X[:50]))
    gaussian = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.cov(X.T))[1]
    assert streamed.score(X) > 0.5 * (gaussian + fitted.score(X))
    bad = X.copy()
    bad[700, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        clone(fitted).fit(da.from_array(bad, chunks=(120, 2)))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.slow
def test_mixed_tables_come_from_parquet(X, tmp_path):
    colour = np.where(X[:, 0] > 0.0, "red", "blue")
    table = pd.DataFrame({"colour": colour, "size": X[:, 1]})
    for number, part in enumerate(np.array_split(np.arange(len(X)), 4)):
        table.iloc[part].to_parquet(tmp_path / f"{number}.parquet")
    read = dd.read_parquet(tmp_path)
    settings = TINY | {"reference": "independent", "experts": ["network", "independent"]}
    del settings["n_networks"]
    density = IMMSEMixedDensity(**settings).fit(read)
    whole = density.score_samples(table)
    np.testing.assert_array_equal(density.score_samples(read), whole)
    scores = read.map_partitions(density.score_samples, meta=np.empty(0))
    np.testing.assert_array_equal(scores.compute(), whole)
    # A category that the sample lacks, as it is that of a single row.
    rare = table.assign(colour=np.append(colour[:-1], "green"))
    unseen = dd.from_pandas(rare, npartitions=2)
    with pytest.raises(ValueError, match="green"):
        IMMSEMixedDensity(handle_unknown="error", **settings | {"random_state": 1}).fit(unseen)
    with pytest.warns(UserWarning, match="'colour', are not learned from"):
        others = IMMSEMixedDensity(**settings | {"random_state": 1}).fit(unseen)
    assert np.isfinite(others.score_samples(rare[-1:])).all()
    levels = {"colour": ["blue", "red", "green"]}
    known = IMMSEMixedDensity(categories=levels, **settings | {"random_state": 1}).fit(unseen)
    assert np.isfinite(known.score_samples(rare[-1:])).all()


def test_streams_of_collections(X):
    blocks = da.from_array(np.tile(X, (2, 1)), chunks=(600, 2))
    from_blocks = IMMSEDensity(**TINY).partial_fit(blocks)
    one_by_one = IMMSEDensity(**TINY)
    for start in range(0, 1800, 600):
        one_by_one.partial_fit(np.tile(X, (2, 1))[start : start + 600])
    np.testing.assert_array_equal(from_blocks.score_samples(X[:9]), one_by_one.score_samples(X[:9]))


# -- many fits -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.changes_global_state  # Dask sets warning filters of the whole process
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("processes", [False, True])
def test_searches_run_on_a_cluster(X, processes):
    grid = {"schedule": ["adaptive", "uniform"]}
    serial = GridSearchCV(IMMSEDensity(**TINY), grid, cv=2).fit(X[:300])
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        search = GridSearchCV(IMMSEDensity(**TINY), grid, cv=2).fit(X[:300])
        folds = cross_val_score(IMMSEDensity(**TINY), X[:300], cv=3)
    for key in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(search.cv_results_[key], serial.cv_results_[key], rtol=1e-9)
    assert search.best_params_ == serial.best_params_
    np.testing.assert_allclose(folds, cross_val_score(IMMSEDensity(**TINY), X[:300], cv=3))
