"""Verbose calls show one bar, all others nothing; the log and scikit-learn's callbacks are told."""

import contextlib
import functools
import io
import logging
import re
import threading
import time

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion._first._estimators import base as estimator_module
from sk_itdiffusion._first._fit.training_report import EpochBoard
from sk_itdiffusion._first._runtime import parallel
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import (
    Bar,
    Progress,
    current_progress,
    progress_bar,
    stretch_of_progress,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {
    "hidden_size": 8,
    "n_blocks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 3,
    "batch_size": 32,
    "score_tol": 0.5,
    "reference": "gaussian",
    "experts": ["network"],
    "marginals": "standard",
    "n_networks": 1,
    "random_state": 0,
}
CONTINUOUS_ONLY = ("reference", "experts", "marginals", "n_networks")
DISCRETE = {k: v for k, v in QUICK.items() if k not in CONTINUOUS_ONLY}
DISCRETE |= {"reference": "independent", "experts": ["network"]}
# Two clusters, so that a network learns something.
X = 0.3 * np.random.default_rng(0).normal(size=(100, 2)) + np.repeat([[-1.0], [1.0]], 50, axis=0)
LEVELS = np.random.default_rng(0).integers(0, 2, size=(100, 4))
LAST_EPOCH = r"epoch 2/2, train -?\d+\.\d{3}, valid -?\d+\.\d{3}\n"

ESTIMATORS = {
    "density": (IMMSEDensity(**QUICK), X),
    "discrete": (IMMSEDiscreteDensity(**DISCRETE), LEVELS),
    "two networks": (
        IMMSEDiscreteDensity(
            **DISCRETE | {"image_shape": (2, 2), "experts": ["network", "dense_network"]}
        ),
        LEVELS,
    ),
    "detector": (
        IMMSEOutlierDetector(IMMSEDensity(**QUICK), contamination=0.1, random_state=0),
        X,
    ),
    "two networks of numbers": (IMMSEDensity(**QUICK | {"n_networks": 2}), X),
    "mixed": (
        IMMSEMixedDensity(**DISCRETE, marginals="standard", categorical_features=[1]),
        np.column_stack([X[:, 0], LEVELS[:, 0]]),
    ),
    "ensemble": (
        IMMSEEnsemble(
            [("small", IMMSEDensity(**QUICK)), ("other", IMMSEDensity(**QUICK))], random_state=0
        ),
        X,
    ),
}


def lines_of(text):
    """Return what a terminal has shown on each of its lines, one after the other."""
    return [line.split("\r") for line in text.split("\n") if line]


def frames(capsys):
    """Return what a terminal has shown since the last call."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return lines_of(captured.err)


@functools.cache
def fitted_once(name, verbose):
    """Return an estimator that is fitted once for all tests, and what the fit has shown."""
    estimator, rows = ESTIMATORS[name]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        fitted = clone(estimator).set_params(verbose=verbose).fit(rows)
    assert out.getvalue() == ""
    return fitted, err.getvalue()


@pytest.mark.parametrize("name", others_slow(ESTIMATORS, 4))
def test_verbose_shows_one_bar_and_changes_nothing(name, capsys):
    rows = ESTIMATORS[name][1]
    silent, shown = fitted_once(name, verbose=0)
    expected = silent.score_samples(rows[:9])
    assert shown == ""
    assert frames(capsys) == []
    verbose, shown = fitted_once(name, verbose=1)
    lines = lines_of(shown)
    assert len(lines) == 1, "more than one bar"
    shares = [int(share) for share in re.findall(r": +(\d+)%\|", "\n".join(lines[0]))]
    assert shares[0] == 0
    assert shares[-1] == 100
    np.testing.assert_array_equal(verbose.score_samples(rows[:9]), expected)
    assert frames(capsys) == [], "scoring takes no time"


@pytest.mark.parametrize("name", ["density", "discrete", "mixed", "ensemble", "detector"])
def test_bar_names_the_epoch_and_both_bounds(name):
    fitted, text = fitted_once(name, verbose=1)
    assert re.search(LAST_EPOCH, text)
    history = getattr(fitted, "history_", None)
    if history is not None:
        last = history[-1]
        assert f"train {last['train_bound']:.3f}, valid {last['valid_bound']:.3f}" in text
    if name == "ensemble":
        assert "small (1/2):" in text
        assert "other (2/2):" in text


NUMBER = r"-?\d+\.\d{3}"


def test_networks_at_the_same_time_share_the_text_of_the_bar(capsys, monkeypatch):
    """The text tells of both, and does not change from one to the other and back."""
    monkeypatch.setattr(parallel, "_available", lambda: 2)
    tell, both = EpochBoard.tell, threading.Barrier(2, timeout=60.0)

    def tell_together(*arguments):  # so that neither has ended before the other begins
        both.wait()
        tell(*arguments)
        both.wait()

    monkeypatch.setattr(EpochBoard, "tell", tell_together)
    estimator, rows = ESTIMATORS["two networks of numbers"]
    fitted = clone(estimator).set_params(verbose=1, max_epochs=4, n_iter_no_change=9).fit(rows)
    assert len(fitted.nets_) == 2
    (shown,) = frames(capsys)
    pattern = rf"epoch (\d)/4, train {NUMBER} and {NUMBER}, valid {NUMBER} and {NUMBER}"
    epochs = [int(found[1]) for frame in shown for found in [re.search(pattern, frame)] if found]
    assert epochs
    assert epochs == sorted(epochs), "the epoch goes back"
    # Each frame is whole: the frames are not written into each other.
    assert all(re.fullmatch(r"[^|]+: +\d+%\|[^|]+\| \d\d:\d\d<.*", f) for f in shown if f.strip())


def test_networks_one_after_the_other_are_named(capsys, monkeypatch):
    monkeypatch.setattr(parallel, "_available", lambda: 1)
    estimator, rows = ESTIMATORS["two networks"]
    clone(estimator).set_params(verbose=1).fit(rows)
    (shown,) = frames(capsys)
    texts = [re.search(r"([a-z_]+), epoch 2/2, train", frame) for frame in shown]
    names = [match[1] for match in texts if match]
    assert list(dict.fromkeys(names)) == ["network", "dense_network"]
    assert names == sorted(names, reverse=True), "the bar goes back to the first"


def test_the_epoch_shown_is_that_of_the_network_behind():
    shown = []

    class Shown(Progress):
        def show(self, share, text=None):
            shown.append(text)

    board = EpochBoard(has_names=True)
    for name, epoch, bounds in (
        ("a", (1, 9), None),
        ("b", (1, 9), None),
        ("b", (2, 9), (2.0, 3.0)),
        ("a", (3, 9), (1.0, 1.5)),
    ):
        board.tell(Shown(), 0.5, name, epoch, bounds)
    board.ended("a")
    board.tell(Shown(), 0.5, "b", (3, 9), (2.0, 2.5))
    EpochBoard().tell(Shown(), 0.5, "network", (1, 9))
    assert shown == [
        "a, epoch 1/9",
        "epoch 1/9",
        "epoch 1/9, train 2.000, valid 3.000",
        "epoch 2/9, train 1.000 and 2.000, valid 1.500 and 3.000",
        "b, epoch 3/9, train 2.000, valid 2.500",
        "epoch 1/9",
    ]


def test_folds_are_parts_of_one_bar(capsys):
    IMMSEOutlierDetector(false_alarm_rate=0.1, trim=0.0, random_state=0, verbose=1).fit(X[:40])
    (shown,) = frames(capsys)
    titles = [frame.split(":")[0] for frame in shown]
    expected = [*(f"fold {number}/5" for number in range(1, 6)), "all rows"]
    assert [title for title in dict.fromkeys(titles) if title in expected] == expected


@pytest.mark.slow
def test_verbose_member_of_a_silent_ensemble_has_a_bar_of_its_own(capsys):
    members = [("a", IMMSEDensity(**QUICK, verbose=1)), ("b", IMMSEDensity(**QUICK))]
    IMMSEEnsemble(members, random_state=0).fit(X)
    (shown,) = frames(capsys)
    assert shown[-1].startswith("IMMSEDensity: 100%")


def test_early_stopping_ends_at_one_hundred_percent(capsys):
    class Stop(Callback):
        def on_epoch_end(self, net, **_):
            raise KeyboardInterrupt

    density = IMMSEDensity(**QUICK | {"callbacks": [Stop()], "verbose": 1}).fit(X)
    assert density.n_iter_ == 1
    assert re.search(r"100%.*epoch 1/2, train .*, valid .*\n$", capsys.readouterr().err)


@pytest.mark.slow
def test_long_scoring_shows_a_bar(capsys, monkeypatch):
    density = IMMSEDensity(**QUICK).fit(X)
    expected = density.score_samples(X)
    monkeypatch.setattr(estimator_module, "SECONDS_UNTIL_A_BAR", 0.0)
    density.score_samples(X)
    assert frames(capsys) == []
    density.set_params(verbose=1)
    for method in ("score_samples", "mse_curve"):
        found = getattr(density, method)(X)
        (shown,) = frames(capsys)
        assert shown[-1].startswith(f"IMMSEDensity.{method}: 100%")
        if method == "score_samples":
            np.testing.assert_array_equal(found, expected)
    density.sample(5, random_state=0)
    assert "IMMSEDensity.sample: 100%" in frames(capsys)[0][-1]
    detector = IMMSEOutlierDetector(IMMSEDensity(**QUICK), contamination=0.1, random_state=0)
    detector.fit(X).set_params(verbose=True).predict(X)
    assert "IMMSEOutlierDetector.score_samples: 100%" in frames(capsys)[0][-1]
    detector.explain(X)
    assert "IMMSEOutlierDetector.explain: 100%" in frames(capsys)[0][-1]


def test_interrupt_closes_the_bar(capsys):
    class Press(Callback):
        def on_batch_end(self, net, training=False, **_):
            if net.history[-1]["epoch"] == 2:
                raise KeyboardInterrupt

    density = IMMSEDensity(**QUICK | {"callbacks": [Press()], "verbose": 1})
    with pytest.raises(KeyboardInterrupt):
        density.fit(X)
    text = capsys.readouterr().err
    assert text.endswith("\n"), "the cursor is on a line of its own"
    assert "100%" not in text
    assert current_progress().bar is None
    IMMSEDensity(**QUICK, verbose=1).fit(X)
    assert len(frames(capsys)) == 1, "the next bar is where the first one was"


def test_interrupt_of_workers_is_not_held_up_by_what_waits():
    def slow(number):
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)

    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        map_in_workers(slow, range(1000), "cpu", Progress())
    assert time.perf_counter() - begin < 10.0


def test_estimator_of_a_verbose_fit_can_be_pickled_and_saved(tmp_path, capsys):
    density = IMMSEDensity(**QUICK, verbose=1).fit(X)
    expected = density.score_samples(X[:5])
    stream = io.BytesIO()
    joblib.dump(density, stream)
    stream.seek(0)
    density.save(tmp_path / "density")
    for again in (joblib.load(stream), sk_itdiffusion.load(tmp_path / "density")):
        assert again.verbose == 1
        np.testing.assert_array_equal(again.score_samples(X[:5]), expected)


def test_no_thread_outlives_a_bar():
    before = threading.active_count()
    with progress_bar("call", 1) as progress:
        progress.show(0.5)
    assert threading.active_count() == before


# -- the bar -------------------------------------------------------------------------------------


def test_parts_of_a_call_share_its_bar(capsys):
    with progress_bar("outer", 1):
        for number in range(2):
            with stretch_of_progress(number / 2, (number + 1) / 2, f"part {number}"):
                with progress_bar("inner", 1) as inner:
                    inner.show(0.5, "half of it")
                assert inner.bar._shown.n == pytest.approx(number / 2 + 0.25)
    (shown,) = frames(capsys)
    assert any(frame.startswith("part 1:  75%") for frame in shown)
    assert not any("inner" in frame for frame in shown)


def test_delayed_bar_is_written_only_if_the_call_takes_long(capsys):
    for seconds in (0.0, 0.4):
        with progress_bar("call", 1, delay=0.3) as progress:
            progress.show(0.5)
            time.sleep(seconds)
        shown = frames(capsys)
        assert bool(shown) == (seconds > 0.3)
    assert shown[0][-1].startswith("call: 100%")


def test_bar_never_goes_backward_and_strands_are_averaged():
    bar = Bar("strands")
    first, second = Progress(bar).stretch(0.0, 0.5).strands(2)
    first.show(1.0)
    assert bar._shown.n == pytest.approx(0.25)
    second.show(0.5)
    assert bar._shown.n == pytest.approx(0.375)
    second.show(0.1)
    assert bar._shown.n == pytest.approx(0.375)
    bar.close()


def test_silent_progress_does_nothing(capsys):
    with progress_bar("silent", 0) as progress, stretch_of_progress(0.0, 0.5) as part:
        progress.show(0.5, "text")
        part.strands(2)[1].show(1.0)
        part.restart()
    assert frames(capsys) == []


# -- the log -------------------------------------------------------------------------------------


def test_log_tells_of_epochs_and_prints_nothing_by_itself(caplog, capsys):
    assert any(
        isinstance(handler, logging.NullHandler)
        for handler in logging.getLogger("sk_itdiffusion").handlers
    )
    with caplog.at_level(logging.DEBUG, logger="sk_itdiffusion"):
        density = IMMSEDensity(**QUICK).fit(X)
    epochs = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
    assert len(epochs) == 2
    assert f"validation bound {density.history_[-1]['valid_bound']:.4f}" in epochs[-1]
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert any("trained for 2 of at most 2 epochs" in message for message in told)
    assert any("control variate 'gaussian'" in message for message in told)
    assert capsys.readouterr().out == ""


# -- callbacks -----------------------------------------------------------------------------------


def test_callbacks_of_skorch_see_the_last_epoch():
    class Seen(Callback):
        def __init__(self):
            self.epochs = []

        def on_epoch_end(self, net, **_):
            self.epochs.append(net.history[-1]["epoch"])

    seen = Seen()
    IMMSEDensity(**QUICK | {"callbacks": [seen]}).fit(X)
    assert seen.epochs == [1, 2]
    diverging = QUICK | {"callbacks": [Seen()], "learning_rate": 1e20, "max_epochs": 4}
    with pytest.raises((FloatingPointError, ConvergenceWarning), match="diverged"):
        IMMSEDensity(**diverging).fit(X)


class Recorder:
    """A callback of scikit-learn that is handed on to the estimators within."""

    max_propagation_depth = None

    def __init__(self, stop_at=None):
        self.events, self.fitted = [], []
        self.stop_at = stop_at

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.estimator_name} {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.events.append(f"end {context.estimator_name} {context.task_name}")
        self.fitted.append(fitted_estimator)
        return context.task_name == self.stop_at


@pytest.fixture
def sklearn_callback():
    return pytest.importorskip("sklearn.callback")


@pytest.mark.usefixtures("sklearn_callback")
def test_callbacks_of_scikit_learn_see_each_epoch():
    recorder = Recorder()
    density = IMMSEDensity(**QUICK).set_callbacks(recorder).fit(X)
    epochs = [f"{kind} IMMSEDensity epoch {n}/2" for n in (1, 2) for kind in ("begin", "end")]
    assert recorder.events == [
        "setup",
        "begin IMMSEDensity fit",
        *epochs,
        "end IMMSEDensity fit",
        "teardown",
    ]
    plain = IMMSEDensity(**QUICK).fit(X)
    np.testing.assert_array_equal(density.score_samples(X), plain.score_samples(X))
    # After one epoch the estimator is what a fit of that epoch alone with this plan would be.
    first, second, last = recorder.fitted
    assert [each.n_iter_ for each in recorder.fitted] == [1, 2, 2]
    assert not np.array_equal(first.score_samples(X), plain.score_samples(X))
    for each in (second, last):
        np.testing.assert_array_equal(each.score_samples(X), plain.score_samples(X))
    left = [name for name in vars(density) if "callback" in name]
    assert left == ["callbacks", "_skl_callbacks"]


@pytest.mark.usefixtures("sklearn_callback")
def test_callback_of_scikit_learn_can_stop_the_training():
    recorder = Recorder(stop_at="epoch 1/2")
    density = IMMSEDensity(**QUICK).set_callbacks(recorder).fit(X)
    assert density.n_iter_ == 1
    assert recorder.events[-2:] == ["end IMMSEDensity fit", "teardown"]


@pytest.mark.usefixtures("sklearn_callback")
@pytest.mark.parametrize("name", others_slow(["ensemble", "detector", "pipeline", "search"], 3))
def test_callbacks_of_scikit_learn_reach_the_estimators_within(name):
    density = IMMSEDensity(**QUICK)
    within = {
        "pipeline": make_pipeline(StandardScaler(), density),
        "search": GridSearchCV(density, {"hidden_size": [8]}, cv=2),
    }
    estimator = clone(within[name] if name in within else ESTIMATORS[name][0])
    recorder = Recorder()
    estimator.set_callbacks(recorder).fit(X)
    assert recorder.events[0] == "setup"
    assert recorder.events[-1] == "teardown"
    assert recorder.events.count("setup") == recorder.events.count("teardown") == 1
    assert "end IMMSEDensity epoch 2/2" in recorder.events
    begun = [event.split(" ", 1)[1] for event in recorder.events if event.startswith("begin")]
    ended = [event.split(" ", 1)[1] for event in recorder.events if event.startswith("end")]
    assert sorted(begun) == sorted(ended)


@pytest.mark.slow
@pytest.mark.usefixtures("sklearn_callback")
def test_both_networks_are_seen_one_after_the_other():
    estimator, rows = ESTIMATORS["two networks"]
    recorder = Recorder()
    fitted = clone(estimator).set_callbacks(recorder).fit(rows)
    epochs = [event for event in recorder.events if event.startswith("end") and "epoch" in event]
    assert [event.split(" ", 2)[2] for event in epochs] == [
        "network, epoch 1/2",
        "network, epoch 2/2",
        "dense_network, epoch 1/2",
        "dense_network, epoch 2/2",
    ]
    plain, _ = fitted_once("two networks", verbose=0)
    np.testing.assert_array_equal(fitted.score_samples(rows[:9]), plain.score_samples(rows[:9]))


def test_progress_bar_of_scikit_learn_runs(sklearn_callback, capsys):
    pytest.importorskip("rich")
    IMMSEDensity(**QUICK).set_callbacks(sklearn_callback.ProgressBar()).fit(X)
    assert "IMMSEDensity - fit" in capsys.readouterr().out
