"""Tables larger than memory: arrays on disk, arrays of many rows, datasets."""

import threading

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import cross_val_score
from skorch.callbacks import Callback

import sk_itdiffusion._first._table.partitions
import sk_itdiffusion._first._table.streams
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity
from sk_itdiffusion._first._runtime import parallel
from sk_itdiffusion._first._table.partitions import LocalPartitions, partitions_of, parts_of, sample

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


@pytest.fixture
def little_memory(monkeypatch):
    """Hold only 300 rows of 2 columns in memory."""
    monkeypatch.setattr(sk_itdiffusion._first._table.streams, "NUMBERS_IN_MEMORY", 600)
    monkeypatch.setattr(sk_itdiffusion._first._table.partitions, "NUMBERS_IN_A_PARTITION", 100)
    monkeypatch.setattr(sk_itdiffusion._first._table.partitions, "NUMBERS_IN_A_CHUNK", 500)


@pytest.fixture(scope="module", name="X")
def curved_rows():
    rng = np.random.default_rng(0)
    first = rng.normal(size=2000)
    return np.column_stack([first, first**2 + 0.3 * rng.normal(size=2000)])


@pytest.fixture(scope="module")
def fitted(X):
    return IMMSEDensity(**TINY).fit(X)


def sorted_rows(X):
    return X[np.lexsort(X.T)]


def as_numbers(rows):
    return np.asarray(rows, dtype=np.float64)


# -- sample and stream -----------------------------------------------------------------------------


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame, np.float32])
def test_sample_and_stream_are_all_rows(X, container):
    table = container(X)
    rows, _, stream = sample(partitions_of(table), as_numbers, np.random.RandomState(0))
    assert type(rows) is type(table)
    assert 240 < len(rows) < 360
    assert len(rows) + len(stream) == len(X)
    generator = torch.Generator().manual_seed(0)
    chunks = stream.chunks(64, generator)
    for _ in range(2):  # passes
        streamed = np.empty((0, 2))
        while len(streamed) < len(stream):
            streamed = np.vstack([streamed, next(chunks)])
        together = np.vstack([as_numbers(rows), streamed])
        np.testing.assert_array_equal(sorted_rows(together), sorted_rows(as_numbers(table)))
    # Blocks come in another order than that of the table.
    assert not np.array_equal(np.sort(streamed[:200, 0]), np.sort(X[:200, 0]))


@pytest.mark.usefixtures("little_memory")
def test_streamed_rows_come_as_often_as_they_weigh(X):
    weight = np.arange(len(X)) % 3.0
    rows, held, stream = sample(
        partitions_of(X), as_numbers, np.random.RandomState(0), weight=weight
    )
    weight_of = dict(zip(X[:, 0], weight, strict=True))
    np.testing.assert_array_equal(held, [weight_of[x] for x in rows[:, 0]])
    chunks = stream.chunks(64, torch.Generator().manual_seed(0))
    drawn = np.concatenate([next(chunks) for _ in range(40 * 8)])[:, 0]
    share = np.bincount([int(weight_of[x]) for x in drawn]) / len(drawn)
    # About 40 passes of 1000 rows, of which each has another remainder that is drawn.
    assert share[0] == 0.0
    np.testing.assert_allclose(share[1:], [1 / 3, 2 / 3], atol=0.02)


@pytest.mark.usefixtures("little_memory")
def test_rows_without_weight_take_no_places_in_memory(X):
    weight = np.where(np.arange(len(X)) % 10 == 3, 2.0, 0.0)
    rows, held, stream = sample(
        partitions_of(X), as_numbers, np.random.RandomState(0), weight=weight
    )
    np.testing.assert_array_equal(rows, X[3::10])
    np.testing.assert_array_equal(held, np.full(200, 2.0))
    assert stream is None
    most = np.where(np.arange(len(X)) % 2, 2.0, 0.0)
    rows, held, stream = sample(partitions_of(X), as_numbers, np.random.RandomState(0), weight=most)
    assert 240 < len(rows) < 360
    assert len(rows) + len(stream) == len(X) // 2
    np.testing.assert_array_equal(held, np.full(len(rows), 2.0))
    chunks = stream.chunks(64, torch.Generator().manual_seed(0))
    streamed = next(chunks)
    while len(streamed) < len(stream):
        streamed = np.vstack([streamed, next(chunks)])
    # Of equal weight, so that none comes twice in a pass.
    np.testing.assert_array_equal(sorted_rows(np.vstack([rows, streamed])), sorted_rows(X[1::2]))


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_large_tables_give_one_fit_in_any_container(X):
    X, quick = X[:600], TINY | {"max_epochs": 1, "steps_per_epoch": 5}
    expected = IMMSEDensity(**quick).fit(X).score_samples(X[:50])
    frame = pd.DataFrame(X)
    for table in (frame, torch.from_numpy(X), np.asfortranarray(X), frame.astype("Float64")):
        found = IMMSEDensity(**quick).fit(table).score_samples(X[:50])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_rows_that_are_not_in_the_sample_are_trained_on(X, tmp_path):
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    trained_on = []

    class Spy(Callback):
        def on_batch_begin(self, net, batch=None, training=False, **kwargs):
            if training:
                trained_on.append(batch[0]["x"].numpy())

    settings = TINY | {"steps_per_epoch": 50}
    density = IMMSEDensity(callbacks=[Spy()], **settings).fit(mapped)
    n_distinct = len(np.unique(np.concatenate(trained_on), axis=0))
    assert 1_850 < n_distinct < len(X)  # all but some 30 for validation
    in_memory = IMMSEDensity(**settings).fit(X)
    np.testing.assert_array_equal(density.score_samples(X[:50]), in_memory.score_samples(X[:50]))
    weighted = IMMSEDensity(**TINY).fit(mapped, sample_weight=np.ones(len(X)))
    assert np.isfinite(weighted.score_samples(X[:5])).all()


@pytest.mark.slow
def test_streaming_loses_little(X, monkeypatch):
    settings = TINY | {"hidden_size": 32, "max_epochs": 4, "steps_per_epoch": 40}
    whole = IMMSEDensity(**settings).fit(X[:1500])
    monkeypatch.setattr(sk_itdiffusion._first._table.streams, "NUMBERS_IN_MEMORY", 1500)
    streamed = IMMSEDensity(**settings).fit(X[:1500])
    assert len(streamed._model.nets) == 1
    gaussian = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.cov(X.T))[1]
    loss = whole.score(X[1500:]) - streamed.score(X[1500:])
    assert abs(loss) < 0.3 * (whole.score(X[1500:]) - gaussian)


@pytest.mark.usefixtures("little_memory")
def test_all_rows_are_checked_also_those_not_trained_on(X):
    bad = X.copy()
    bad[1234, 1] = np.inf
    with pytest.raises(ValueError, match="Input X contains infinity"):
        IMMSEDensity(**TINY).fit(bad)
    with pytest.raises(ValueError, match="Negative"):
        IMMSEDensity(**TINY).fit(X, sample_weight=-np.ones(len(X)))


def test_small_tables_have_no_blocks(X):
    assert partitions_of(X) is None
    assert partitions_of(X.tolist()) is None
    assert partitions_of(np.broadcast_to(0.0, (2**20, 2))) is None
    assert isinstance(partitions_of(np.broadcast_to(0.0, (2**20 + 1, 2))), LocalPartitions)
    assert isinstance(partitions_of(np.broadcast_to(0.0, (2**16 + 1, 2**10))), LocalPartitions)


# -- scoring ---------------------------------------------------------------------------------------


class Items(torch.utils.data.Dataset):
    def __init__(self, X):
        self.X = X

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return self.X[index]


def test_scores_of_parts_are_those_of_the_whole(X, fitted, monkeypatch, tmp_path):
    np.save(tmp_path / "rows.npy", X[:500])
    tables = {
        "on disk": (np.load(tmp_path / "rows.npy", mmap_mode="r"), X[:500]),
        "single precision": (X[:500].astype(np.float32),) * 2,
        "dataset": (Items(X[:500]), X[:500]),
    }
    whole = {name: fitted.score_samples(table) for name, (_, table) in tables.items()}
    curves = {name: fitted.mse_curve(table).model for name, (_, table) in tables.items()}
    monkeypatch.setattr(sk_itdiffusion._first._table.partitions, "NUMBERS_IN_A_PART", 2 * 77)
    for name, (table, _) in tables.items():
        assert [len(part) for part in parts_of(table)] == 6 * [77] + [38]
        np.testing.assert_array_equal(fitted.score_samples(table), whole[name])
        np.testing.assert_allclose(fitted.mse_curve(table).model, curves[name], rtol=1e-6)
    with pytest.raises(ValueError, match="X has 3 features"):
        fitted.score_samples(np.zeros((500, 3), dtype=np.float32))


def test_streams_of_datasets_are_those_of_arrays(X):
    from_items = IMMSEDensity(**TINY).partial_fit(Items(X[:300]))
    from_array = IMMSEDensity(**TINY).partial_fit(X[:300])
    np.testing.assert_array_equal(from_items.score_samples(X[:9]), from_array.score_samples(X[:9]))


def test_scores_of_parts_of_codes_are_those_of_the_whole(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 3, size=(400, 2))
    density = IMMSEDiscreteDensity(max_epochs=0, random_state=0).fit(codes)
    whole = density.score_samples(codes)
    monkeypatch.setattr(sk_itdiffusion._first._table.partitions, "NUMBERS_IN_A_PART", 2 * 77)
    np.testing.assert_array_equal(density.score_samples(codes), whole)


# -- threads ---------------------------------------------------------------------------------------


def test_threads_that_call_at_the_same_time_share_the_cores(monkeypatch):
    """However many threads fit or score, no more workers are active than there are cores."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    all_here, lock = threading.Barrier(4), threading.Lock()
    active, most = [0], [0]

    def work(_):
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        threading.Event().wait(0.002)
        with lock:
            active[0] -= 1

    def call():
        with parallel._callers():  # as a fit does, in which the workers are asked for
            all_here.wait()
            parallel.run_interruptibly(lambda stop: parallel.map_in_workers(work, range(20), "cpu"))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 4
    assert parallel._callers.number == 0
    most[0] = 0
    parallel.map_in_workers(work, range(20), "cpu")
    assert most[0] == 4  # alone, a call has them all


# scikit-learn and skorch silence warnings in threads, which is a setting of the whole process.
@pytest.mark.changes_global_state
def test_folds_in_threads_score_as_one_after_the_other(X):
    serial = cross_val_score(IMMSEDensity(**TINY), X[:150], cv=2)
    with joblib.parallel_config("threading", n_jobs=2):
        np.testing.assert_array_equal(cross_val_score(IMMSEDensity(**TINY), X[:150], cv=2), serial)
