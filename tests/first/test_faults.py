"""Faults on purpose: interrupts, losses that are no numbers, too little memory, full disks."""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from seeds import shifted
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from threadpoolctl import threadpool_info

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion._first._fit import training
from sk_itdiffusion._first._immse import likelihood, sampling
from sk_itdiffusion._first._runtime import files, memory

pytestmark = pytest.mark.usefixtures("brief_fits")


@pytest.fixture(autouse=True)
def heard_interrupts():
    """Let Ctrl-C raise KeyboardInterrupt, which processes in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


N_EPOCHS, N_STEPS = 2, 3
TINY = {
    "max_epochs": N_EPOCHS,
    "steps_per_epoch": N_STEPS,
    "batch_size": 16,
    "hidden_size": 8,
    "n_blocks": 1,
    "score_tol": 0.5,
    "experts": ["network"],
    "random_state": shifted(0),
}
CONTINUOUS = TINY | {"marginals": "standard", "reference": "gaussian", "n_networks": 1}
DISCRETE = TINY | {"reference": "independent"}

rng = np.random.default_rng(shifted(0))
first = rng.normal(size=60)
NUMBERS = np.round(np.column_stack([first, first**2 + 0.3 * rng.normal(size=60)]), 3)
LEVELS = np.repeat(rng.integers(0, 3, size=(60, 1)), 2, axis=1)
MIXED = pd.DataFrame({"number": NUMBERS[:, 0], "level": np.array(list("abc"))[LEVELS[:, 0]]})


def subjects(callbacks=None):
    """Return an estimator of each kind whose training calls the callbacks, and rows for it."""
    density = IMMSEDensity(callbacks=callbacks, **CONTINUOUS)
    return {
        "density": (density, NUMBERS),
        "discrete": (IMMSEDiscreteDensity(callbacks=callbacks, **DISCRETE), LEVELS),
        "mixed": (IMMSEMixedDensity(callbacks=callbacks, **DISCRETE), MIXED),
        "ensemble": (IMMSEEnsemble([("one", density)], random_state=shifted(0)), NUMBERS),
        "detector": (
            IMMSEOutlierDetector(density, contamination=0.1, trim=0.0, random_state=shifted(0)),
            NUMBERS,
        ),
    }


NAMES = list(subjects())
DENSITIES = NAMES[:4]


@pytest.fixture(scope="module")
def density_once():
    return subjects()["density"][0].fit(NUMBERS)


@pytest.fixture
def fitted_density(density_once):
    """Return a copy of one fit, which the test may change."""
    return copy.deepcopy(density_once)


def kept(estimator):
    """Return what a fit must leave as it was: threads, and how many each library may use."""
    return threading.active_count(), [library["num_threads"] for library in threadpool_info()]


# -- interrupts ------------------------------------------------------------------------------


class PressControlC(Callback):
    """Interrupts the main thread, as the terminal does, after some batches of training."""

    def __init__(self, after):
        self.after = after

    def on_batch_end(self, net, training=False, **_):
        self.after -= training
        if self.after == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("name", others_slow(NAMES))
def test_interrupt_at_any_batch_leaves_no_fit_and_no_threads(name):
    plain, X = subjects()[name]
    expected = plain.fit(X).score_samples(X)
    for batch in range(1, N_EPOCHS * N_STEPS + 1):
        estimator, _ = subjects([PressControlC(batch)])[name]
        before = kept(estimator)
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(X)
        assert kept(estimator) == before
        with pytest.raises(NotFittedError):
            estimator.score_samples(X)
    again = clone(plain).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("name", others_slow(DENSITIES[:3]))
def test_interrupt_of_a_warm_start_leaves_the_earlier_fit(name):
    estimator, X = subjects()[name]
    estimator.set_params(warm_start=True)
    expected = estimator.fit(X).score_samples(X)
    for batch in (1, N_STEPS, N_STEPS + 1):
        estimator.set_params(callbacks=[PressControlC(batch)])
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(X)
        np.testing.assert_array_equal(estimator.score_samples(X), expected)
    # Long enough that some epoch is better than the earlier fit.
    estimator.set_params(callbacks=None, max_epochs=20).fit(X)
    assert np.abs(estimator.score_samples(X) - expected).max() > 0.0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_interrupt_of_scoring_leaves_the_estimator_as_it_was(fitted_density, monkeypatch):
    estimator, X = fitted_density, NUMBERS
    expected = estimator.score_samples(X)
    before = kept(estimator)

    pending = [signal.SIGINT]

    def interrupted(*arguments, **named):
        if pending:
            signal.pthread_kill(threading.main_thread().ident, pending.pop())
        return difference(*arguments, **named)

    difference = likelihood.paired_difference
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "paired_difference", interrupted)
        with pytest.raises(KeyboardInterrupt):
            estimator.score_samples(X)
    # A worker that the interrupt met while it was started ends by itself, a moment later.
    deadline = time.monotonic() + 10.0
    while kept(estimator) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kept(estimator) == before
    np.testing.assert_array_equal(estimator.score_samples(X), expected)


class Fail(Callback):
    def on_batch_end(self, net, training=False, **_):
        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("name", others_slow(NAMES))
def test_error_of_a_callback_is_raised_and_leaves_no_fit(name):
    estimator, X = subjects([Fail()])[name]
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        estimator.fit(X)
    with pytest.raises(NotFittedError):
        estimator.score_samples(X)


# -- losses that are no numbers --------------------------------------------------------------


@pytest.mark.parametrize("value", others_slow([np.nan, np.inf, -np.inf]))
@pytest.mark.parametrize("name", others_slow(DENSITIES))
def test_loss_that_is_no_number_ends_in_the_best_state_or_an_error(name, value, monkeypatch):
    forward = training.DenoisingObjective.forward
    for poisoned in range(1, N_EPOCHS * N_STEPS + 1):
        batches = iter(range(1, 1000))

        def poison(objective, *arguments, poisoned=poisoned, batches=batches, **named):
            loss = forward(objective, *arguments, **named)
            is_now = objective.training and next(batches) == poisoned
            return loss * value if is_now else loss

        estimator, X = subjects()[name]
        with monkeypatch.context() as patch:
            patch.setattr(training.DenoisingObjective, "forward", poison)
            was_saved = fitted_in_spite_of_divergence(estimator, X)
        if was_saved:
            assert poisoned > N_STEPS
            assert np.isfinite(estimator.score_samples(X)).all()
        else:
            with pytest.raises(NotFittedError):
                estimator.score_samples(X)


def fitted_in_spite_of_divergence(estimator, X):
    """Return whether a good epoch saved a fit whose training diverges."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            estimator.fit(X)
        except FloatingPointError:
            return False
    assert [warning.category for warning in said] == [ConvergenceWarning]
    return True


# -- memory ----------------------------------------------------------------------------------

#: What is raised where memory lacks: by numpy, by torch on a GPU, a CPU and Apple's devices.
OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate "
                        "memory: you tried to allocate 8589934592 bytes."),
    "numpy": MemoryError("Unable to allocate 8.00 GiB for an array"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB)"),
}  # fmt: skip


def with_memory_for(most, function, error, position=0):
    """Return the function, which raises the error for tensors of more rows than there is room."""

    def limited(*arguments, **named):
        if len(arguments[position]) > most:
            raise error
        return function(*arguments, **named)

    return limited


@pytest.mark.parametrize("device", others_slow(OUT_OF_MEMORY, 2))
def test_scoring_goes_on_with_less_memory(device, fitted_density, monkeypatch):
    estimator, X = fitted_density, NUMBERS
    expected, expected_std = estimator.score_samples(X, return_std=True)
    full = estimator._model.budget
    released = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(1))
    limited = with_memory_for(full // 4, likelihood.paired_difference, OUT_OF_MEMORY[device])
    monkeypatch.setattr(likelihood, "paired_difference", limited)
    with pytest.warns(UserWarning, match=f"too little memory for {full} evaluations"):
        found, std = estimator.score_samples(X, return_std=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(std, expected_std, atol=1e-6)
    assert bool(released) == (device == "cuda")


@pytest.mark.parametrize("device", others_slow(OUT_OF_MEMORY))
def test_scoring_without_memory_is_a_clear_error(device, fitted_density, monkeypatch):
    estimator, X = fitted_density, NUMBERS
    expected = estimator.score_samples(X)
    limited = with_memory_for(0, likelihood.paired_difference, OUT_OF_MEMORY[device])
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "paired_difference", limited)
        with (
            pytest.warns(UserWarning, match="too little memory"),
            pytest.raises(MemoryError, match=r"too little memory even for .*fewer rows"),
        ):
            estimator.score_samples(X)
    np.testing.assert_array_equal(estimator.score_samples(X), expected)


@pytest.mark.parametrize("name", others_slow(["discrete", "mixed", "ensemble"]))
def test_other_estimators_go_on_with_less_memory(name, monkeypatch):
    estimator, X = subjects()[name]
    expected = estimator.fit(X).score_samples(X)
    limited = with_memory_for(
        estimator._model.budget // 4, likelihood.paired_difference, OUT_OF_MEMORY["numpy"]
    )
    monkeypatch.setattr(likelihood, "paired_difference", limited)
    with pytest.warns(UserWarning, match="too little memory"):
        found = estimator.score_samples(X)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", others_slow(DENSITIES))
def test_sampling_goes_on_with_less_memory_or_is_a_clear_error(name, monkeypatch):
    estimator, X = subjects()[name]
    estimator.fit(X)
    monkeypatch.setattr(type(estimator._model), "budget", 16)
    n_fitting, n_rows = 4 * 16 // memory.LESS, 40
    expected = estimator.sample(n_rows, random_state=shifted(0))
    flow = sampling.probability_flow
    limited = with_memory_for(n_fitting, flow, OUT_OF_MEMORY["cuda"], position=1)
    monkeypatch.setattr(sampling, "probability_flow", limited)
    with pytest.warns(UserWarning, match="too little memory"):
        found = estimator.sample(n_rows, random_state=shifted(0))
    if name in ("density", "ensemble"):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    else:  # a category may turn by rounding
        assert np.mean(np.asarray(found)[:, -1] == np.asarray(expected)[:, -1]) > 0.9
    limited = with_memory_for(0, flow, OUT_OF_MEMORY["cuda"], position=1)
    monkeypatch.setattr(sampling, "probability_flow", limited)
    with (
        pytest.warns(UserWarning, match="too little memory"),
        pytest.raises(MemoryError, match=r"too little memory even for .*draw fewer rows"),
    ):
        estimator.sample(n_rows)


def test_other_errors_are_tried_only_once():
    calls = []

    @memory.retry_with_less_memory
    def fail(*, budget=64):
        calls.append(budget)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        fail()
    assert calls == [64]


@pytest.mark.parametrize("device", others_slow(OUT_OF_MEMORY))
def test_training_goes_on_with_less_memory(device, monkeypatch):
    """A batch in parts has the gradient of the batch."""
    estimator, X = subjects()["density"]
    estimator.set_params(dropout=0.0)
    plain = clone(estimator).fit(X)
    forward = training.DenoisingObjective.forward

    def limited(objective, logsnr, **named):
        if objective.training and len(logsnr) > 2:
            raise OUT_OF_MEMORY[device]
        return forward(objective, logsnr, **named)

    monkeypatch.setattr(training.DenoisingObjective, "forward", limited)
    with pytest.warns(UserWarning, match="too little memory to train on 16 rows"):
        estimator.fit(X)
    np.testing.assert_allclose(estimator.score_samples(X), plain.score_samples(X), atol=1e-3)
    with (
        pytest.warns(UserWarning, match="too little memory to train on 32 rows"),
        pytest.raises(MemoryError, match=r"train on 4 rows.*micro_batch_size"),
    ):
        estimator.set_params(micro_batch_size=None, batch_size=32).fit(X)
    with pytest.raises(NotFittedError):
        estimator.score_samples(X)


# -- disks -----------------------------------------------------------------------------------


def test_disk_that_fills_up_leaves_the_old_file_whole(tmp_path):
    """The system itself refuses to write more, as it does where a disk is full."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "model"
    estimator, X = subjects()["density"]
    estimator.fit(X).save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        with pytest.raises(OSError, match=r"too large|space"):
            clone(estimator).set_params(random_state=shifted(1)).fit(X).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]
    scores = sk_itdiffusion.load(path).score_samples(X)
    np.testing.assert_array_equal(scores, estimator.score_samples(X))


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes with names")
def test_what_is_no_file_is_not_replaced(tmp_path):
    """Whoever saves to a device such as /dev/null must not lose the device."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no file"):
        files.write_atomically(tmp_path / "pipe", b"content")
    assert (tmp_path / "pipe").is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


# -- threads and processes -------------------------------------------------------------------


@pytest.mark.parametrize("name", others_slow(NAMES))
def test_threads_that_share_an_estimator_score_as_one(name):
    estimator, X = subjects()[name]
    estimator.fit(X)
    parts = [np.arange(start, len(X), 7) for start in range(7)]
    rows = [X.iloc[part] if isinstance(X, pd.DataFrame) else X[part] for part in parts]
    serial = [estimator.score_samples(part) for part in rows]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(estimator.score_samples, rows))
    for ours, theirs in zip(found, serial, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_threads_that_fit_different_estimators_fit_as_one():
    kinds = subjects()
    serial = {name: clone(est).fit(X).score_samples(X) for name, (est, X) in kinds.items()}
    with ThreadPoolExecutor(len(kinds)) as pool:
        fits = {name: pool.submit(clone(est).fit, X) for name, (est, X) in kinds.items()}
        for name, fit in fits.items():
            np.testing.assert_array_equal(fit.result().score_samples(kinds[name][1]), serial[name])


def score_and_refit(estimator, X):
    """Return scores of a fitted estimator, and of a refit."""
    return estimator.score_samples(X), clone(estimator).fit(X).score_samples(X)


def run_in_fork(function, *arguments):
    """Return what a function returns in a fork of this process, which may take a minute."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: sender.send(function(*arguments))
    )
    with warnings.catch_warnings():
        # Newer versions of Python warn of forks while there are threads.
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        child.start()
    try:
        assert receiver.poll(60.0), "the child hangs"
        return receiver.recv()
    finally:
        child.kill()
        child.join()


@pytest.mark.skipif(sys.platform != "linux", reason="forks are safe on Linux only")
@pytest.mark.parametrize("name", others_slow(NAMES, 0))
def test_forks_after_a_fit_score_and_fit_as_their_parent(name):
    """In an interpreter of its own, where no earlier test has left threads or locks."""
    script = f"from test_faults import check_fork; check_fork({name!r})"
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=True)


def check_fork(name):
    """Raise an error if a fork does not give the scores of its parent."""
    estimator, X = subjects()[name]
    expected = estimator.fit(X).score_samples(X)
    for scores in run_in_fork(score_and_refit, estimator, X):
        np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(estimator.score_samples(X), expected)


@pytest.mark.slow
def test_spawned_processes_score_and_fit_as_their_parent():
    fitted = [(estimator.fit(X), X) for estimator, X in subjects().values()]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for estimator, X in fitted:
            expected = estimator.score_samples(X)
            for scores in pool.submit(score_and_refit, estimator, X).result():
                np.testing.assert_array_equal(scores, expected)


class KillWorker(Callback):
    """Kills the process that trains, unless it is the parent."""

    def __init__(self, parent):
        self.parent = parent

    def on_batch_end(self, net, training=False, **_):
        if os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_killed_worker_of_a_grid_search_is_an_error_that_the_parent_survives():
    estimator, _ = subjects([KillWorker(os.getpid())])["density"]
    X = np.random.default_rng(shifted(0)).normal(size=(120, 2))  # so many that folds train networks
    grid = {"learning_rate": [0.01, 0.02]}
    with pytest.raises(TerminatedWorkerError, match="terminated"):
        GridSearchCV(estimator, grid, cv=2, n_jobs=2).fit(X)
    expected = estimator.fit(X).score_samples(X)
    search = GridSearchCV(clone(estimator).set_params(callbacks=None), grid, cv=2, n_jobs=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    np.testing.assert_array_equal(estimator.score_samples(X), expected)


# -- warnings --------------------------------------------------------------------------------

#: What the libraries below warn about while they are imported; not this library's to repair.
WARNINGS_OF_OTHERS: list[str] = []


@pytest.mark.slow
def test_nothing_warns_where_warnings_are_errors(tmp_path):
    """In a new interpreter, from the import on, with the warnings of others by name."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_faults, sk_itdiffusion\n"
        "for name, (estimator, X) in test_faults.subjects().items():\n"
        "    scores = estimator.fit(X).score_samples(X)\n"
        "    estimator.save(sys.argv[1])\n"
        "    assert (sk_itdiffusion.load(sys.argv[1]).score_samples(X) == scores).all()\n"
        "    if hasattr(estimator, 'sample'):\n"
        "        estimator.sample(3)\n"
        "        estimator.mse_curve(X)\n"
        "print('done')\n"
    )
    filters = [item for text in WARNINGS_OF_OTHERS for item in ("-W", text)]
    result = subprocess.run(
        [sys.executable, "-W", "error", *filters, "-c", code, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr
    assert result.stderr == ""
