"""The learning rate of a training, and its end."""

import itertools
import warnings

import numpy as np
import pytest

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._fit import course
from sk_itdiffusion._first._fit.course import Course, Limits, gain_of_a_doubling
from sk_itdiffusion._first._fit.training_control import TrainingControl, UntilItsEnd

pytestmark = pytest.mark.usefixtures("brief_fits")


class Clock:
    """A clock that goes on by as much as it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(limits, bound=None, clock=None, seconds=0.0):
    """Return the course of a training with bounds by epoch, and the factor of each step."""
    followed, factors, best = Course(limits), [], np.inf
    for epoch in itertools.count(1):
        for _ in range(limits.steps_per_epoch):
            factors.append(followed.factor)
            if clock is not None:
                clock.now += seconds
            followed.advance()
            if followed.has_ended:
                return followed, np.array(factors)
        if bound is not None:
            if bound(epoch) < best:
                best, best_epoch = bound(epoch), epoch
            followed.judge([bound(epoch)], epoch - best_epoch)
    raise AssertionError


@pytest.mark.parametrize(("n_epochs", "steps"), [(1, 1), (1, 2), (1, 3), (2, 5), (7, 10), (40, 55)])
def test_the_rate_rises_stays_and_falls_in_the_last_half(n_epochs, steps):
    limits = Limits(n_epochs, steps, n_warmup=min(50, max(1, steps // 2)))
    followed, factor = run(limits)
    assert len(factor) == n_epochs * steps
    assert followed.share_done == 1.0
    n = len(factor)
    n_fall = followed.decay.length
    # The fall begins at the first step at which no more than a half are left.
    assert n / 2 - 1 < n_fall <= max(1, n / 2)
    before, fall = factor[: n - n_fall], factor[n - n_fall :]
    step = np.arange(len(before))
    expected = np.minimum(1.0, (step + 1) / limits.n_warmup) / np.sqrt(np.maximum(1.0, step / 500))
    np.testing.assert_allclose(before, expected)
    np.testing.assert_allclose(fall, fall[0] * (1.0 - np.arange(n_fall) / n_fall))
    assert followed.decay.end == "epochs"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [64, 173, 1000])
def test_gain_of_a_doubling_of_a_power_law(power, n):
    """The gain after the fall, from 2n steps to twice as many, is between its neighbours."""

    def bound(step):
        return 5.0 + 3.0 * np.asarray(step, float) ** -power

    found = gain_of_a_doubling(bound(np.arange(1, n + 1)))
    assert bound(1.5 * n) - bound(3 * n) > found > bound(3 * n) - bound(6 * n)
    assert gain_of_a_doubling(-bound(np.arange(1, n + 1))) == 0.0


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("tol", [0.1, 0.03, 0.01])
def test_training_goes_on_as_long_as_twice_the_steps_gain(power, tol):
    def bound(epoch):
        return 3.0 * epoch**-power

    followed, factor = run(Limits(10_000, 3, tol=tol), bound)
    assert followed.decay.end == "validation"
    n = len(factor) / 3
    if followed.decay.start / 3 > course.MIN_EPOCHS_TO_COMPARE:  # else it could not end earlier
        assert bound(n / 2) - bound(n) > tol
    if n > 80:  # of fewer epochs a doubling is known too roughly
        assert bound(n) - bound(2 * n) < 2 ** (power / 3) * tol
    assert run(Limits(400, 3), bound)[0].decay.end == "epochs"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_training_goes_on_as_long_as_one_kind_of_rows_gains(place):
    def bound(epoch):
        return 3.0 * epoch**-0.7

    def ended(*kinds):
        followed = Course(Limits(2_000, 1, tol=0.05))
        for epoch in itertools.count(1):
            followed.advance()
            followed.judge([kind(epoch) for kind in kinds], 0)
            if followed.decay is not None:
                return epoch

    alone = ended(bound)
    assert alone > course.MIN_EPOCHS_TO_COMPARE
    kinds = [lambda _: 1.0] * 3
    kinds[place] = bound
    assert ended(*kinds) == alone
    # The mean over the kinds gains a third of it.
    assert ended(lambda epoch: sum(kind(epoch) for kind in kinds) / 3) < alone


def test_epochs_without_gain_are_those_of_the_kind_that_gained_last():
    control = TrainingControl(Limits(100, 1))
    control.least_of_kinds = [(5.0, 0), (3.0, 0)]
    epochs = [([4.0, 3.0], 0), ([4.5, 2.5], 0), ([4.0, 2.5], 1), ([4.1, 9.0], 2), ([3.9, 9.0], 0)]
    for epoch, (bounds, n_without) in enumerate(epochs, 1):
        assert control._n_without_gain(bounds, epoch) == n_without


@pytest.mark.parametrize("n_to_compare", [16, 32])
def test_nothing_is_expected_of_so_few_epochs(n_to_compare):
    followed = Course(Limits(1_000, 1, tol=0.1, n_to_compare=n_to_compare))
    while followed.decay is None:
        followed.advance()
        followed.judge([1.0], 0)
    assert followed.step == n_to_compare


def test_training_ends_when_the_bound_has_long_been_no_better():
    def bound(epoch):
        return abs(epoch - 5.0)  # the best epoch is the fifth

    followed, factor = run(Limits(10_000, 4, patience=6), bound)
    assert followed.decay.start == 4 * 11
    assert len(factor) == 88

    def late(epoch):
        return abs(epoch - 80.0)  # 40 epochs are a third of 120

    assert run(Limits(10_000, 4, patience=6), late)[0].decay.start == 4 * 120


@pytest.mark.parametrize("seconds", [0.5, 10.0, 300.0])
def test_training_ends_in_time_with_a_rate_of_zero(monkeypatch, seconds):
    clock = Clock()
    monkeypatch.setattr(course.time, "monotonic", clock)
    followed, factor = run(Limits(1_000, 10, seconds=seconds), clock=clock, seconds=0.25)
    assert followed.decay.end == "time"
    assert clock.now - 100.0 <= seconds + 0.5  # one step to learn how long they take, and one left
    assert len(factor) >= seconds / 0.25 - 1
    assert factor[-1] <= max(1.0 / followed.decay.length, 0.5) * followed.decay.height


def test_a_training_resumes_where_it_was():
    whole, factor = run(Limits(20, 10))
    resumed = Course(Limits(20, 10))
    resumed.resume(80)
    rest = []
    while not resumed.has_ended:
        rest.append(resumed.factor)
        resumed.advance()
    np.testing.assert_array_equal(rest, factor[80:])
    assert resumed.decay == whole.decay
    late = Course(Limits(20, 10))
    late.resume(190)
    assert late.decay.length == 10


def test_the_last_epoch_ends_with_the_training():
    class Control:
        course = Course(Limits(1, 4))

    seen = []
    for batch in UntilItsEnd(range(10), Control):
        Control.course.advance()
        seen.append(batch)
    assert seen == [0, 1, 2, 3]
    assert len(UntilItsEnd(range(10), Control)) == 10


# -- fits -------------------------------------------------------------------------------------

SMALL = {
    "steps_per_epoch": 10,
    "hidden_size": 16,
    "batch_size": 128,
    "n_networks": 1,
    "reference": "gaussian",
    "experts": ["network"],
    "marginals": "standard",
    "random_state": 0,
}


def ring(n=400):
    """Return rows near a circle."""
    r = np.random.default_rng(0)
    angle = r.uniform(0.0, 2.0 * np.pi, n)
    return np.column_stack([np.cos(angle), np.sin(angle)]) + 0.1 * r.normal(size=(n, 2))


@pytest.mark.slow
def test_fits_are_as_long_as_they_gain():
    normal = np.random.default_rng(0).normal(size=(400, 2))
    short = IMMSEDensity(**SMALL).fit(normal)
    # Nothing is to be gained: the first judgement ends it, and the fall is as long.
    assert short.n_iter_ <= course.MIN_EPOCHS_TO_COMPARE * 2 + 1
    long, longer = (IMMSEDensity(**SMALL, tol=tol).fit(ring()) for tol in (0.5, 0.02))
    assert short.n_iter_ < long.n_iter_ < longer.n_iter_
    assert longer.entropy_ < long.entropy_
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        fixed = IMMSEDensity(**SMALL, max_epochs=9, early_stopping=False).fit(normal)
    assert fixed.n_iter_ == 9


@pytest.mark.parametrize("n_networks", [1, 2])
def test_fits_without_time_are_usable_and_say_so(n_networks):
    settings = SMALL | {"n_networks": n_networks, "time_limit": 1e-6}
    density = IMMSEDensity(**settings).fit(ring())
    assert density.n_iter_ == 1
    assert np.isfinite(density.score_samples(ring()[:5])).all()
    # What a fit with much time does the limit does not change.
    long, free = (
        IMMSEDensity(**SMALL | {"max_epochs": 3}, time_limit=limit).fit(ring())
        for limit in (1e6, None)
    )
    np.testing.assert_array_equal(long.score_samples(ring()[:5]), free.score_samples(ring()[:5]))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("tol", -0.1), ("tol", "little"), ("time_limit", 0.0), ("time_limit", "1 h")],
)
def test_wrong_limits_are_named(name, wrong):
    with pytest.raises(ValueError, match=f"The '{name}' parameter of IMMSEDensity must be"):
        IMMSEDensity(**SMALL | {name: wrong}).fit(ring())
