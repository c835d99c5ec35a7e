"""The flow of samples: its order on exact flows, its cost, and where it begins."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.integrate import quad

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._immse.likelihood import StackedDenoiser
from sk_itdiffusion._first._immse.sampling import N_STEPS, estimate_coefficients, probability_flow
from sk_itdiffusion._first.channel import data_from_noise, signal_scale
from sk_itdiffusion._first.references import GaussianMixtureReference, GaussianReference

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from sampling_steps import heun

pytestmark = pytest.mark.usefixtures("brief_fits")

LOW, HIGH = -4.0, 12.0


def evenly(n_steps, dtype=torch.float64):
    return torch.linspace(LOW, HIGH, n_steps + 1, dtype=dtype)


def unevenly(n_steps):
    """Steps whose lengths change by a factor of about 4 in all, smoothly."""
    share = np.linspace(0.0, 1.0, n_steps + 1)
    return torch.from_numpy(LOW + (HIGH - LOW) * (share + 0.2 * np.sin(np.pi * share) ** 2))


def gaussian(n=50):
    """Return a normal distribution of uneven axes, noisy rows of it, and where they belong."""
    mean, axes = np.array([0.5, -1.0, 0.0]), np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2)[0]
    variance = np.array([2.0, 0.3, 0.01])
    reference = GaussianReference(mean, axes @ np.diag(variance) @ axes.T)
    before, after = np.exp(-LOW), np.exp(-HIGH)
    normal = np.random.default_rng(0).standard_normal((n, 3))
    start = mean + (normal * np.sqrt(variance + before)) @ axes.T
    # The flow keeps the standard scores along the axes; the estimate shrinks them.
    data = mean + (normal * variance / np.sqrt(variance + after)) @ axes.T
    z = torch.from_numpy(start) * signal_scale(torch.tensor(LOW, dtype=torch.float64))
    return reference, z, torch.from_numpy(data)


def mixture(n=60):
    """Return a mixture in one dimension, noisy points of it, and where they belong.

    The flow keeps the order of the points, so it keeps their probabilities under the noised law.
    """
    weight, mean, scale = np.array([0.5, 0.3, 0.2]), np.array([-1.0, 0.4, 2.0]), [0.4, 0.1, 0.3]
    reference = GaussianMixtureReference(weight, mean[:, None], np.square(scale)[:, None, None])

    def cdf(y, logsnr):
        return weight @ stats.norm.cdf(y, mean, np.sqrt(np.square(scale) + np.exp(-logsnr)))

    start = np.random.default_rng(0).uniform(-12.0, 12.0, n)
    end = [
        optimize.brentq(lambda y, p: cdf(y, HIGH) - p, -9.0, 9.0, (cdf(before, LOW),), xtol=1e-13)
        for before in start
    ]
    level = torch.full((n,), HIGH, dtype=torch.float64)
    z = torch.tensor(end, dtype=torch.float64)[:, None] * signal_scale(level)[:, None]
    data = data_from_noise(z, reference(z, level), level)
    begin = torch.from_numpy(start)[:, None] * signal_scale(torch.tensor(LOW, dtype=torch.float64))
    return reference, begin, data


def error(found, exact):
    return (found - exact).square().mean().sqrt().item()


# -- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [evenly, unevenly])
@pytest.mark.parametrize("law", [gaussian, mixture])
def test_the_error_falls_with_the_third_power_of_the_steps(law, path):
    """A method of second order would come to 4 for each doubling, one of third order to 8."""
    reference, start, exact = law()
    errors = [
        error(probability_flow(reference, start, path(n)), exact) for n in (50, 100, 200, 400)
    ]
    factors = np.divide(errors[:-1], errors[1:])
    assert (factors > 6.0).all()
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("law", [gaussian, mixture])
def test_the_default_is_more_exact_than_heun_at_three_times_the_cost(law):
    reference, start, exact = law()
    found = error(probability_flow(reference, start, evenly(N_STEPS)), exact)
    assert found < error(heun(reference, start, evenly(3 * N_STEPS // 2)), exact)


@pytest.mark.parametrize("n_known", [1, 2, 3])
@pytest.mark.parametrize(("here", "there"), [(-1.0, 0.3), (-1.7, -1.0)])
def test_steps_are_exact_for_polynomials_of_the_log_snr(n_known, here, there):
    known = np.array([-3.0, -1.7, -1.0])[-n_known:]
    found = estimate_coefficients(known, here, there)
    for power in range(n_known):
        expected = quad(lambda b, k=power: 0.5 * np.exp((b - there) / 2) * b**k, here, there)[0]
        np.testing.assert_allclose(found @ known**power, expected, rtol=1e-10)


# -- cost and invariances --------------------------------------------------------------------------


def test_a_row_takes_thirty_evaluations_from_where_the_stack_differs_on(monkeypatch):
    """Below, the stack is the control variate, and its flow keeps the law of the start."""
    X = np.random.default_rng(0).normal(size=(300, 2))
    X[:, 1] += X[:, 0] ** 2
    settings = {"hidden_size": 16, "max_epochs": 2, "steps_per_epoch": 10}
    density = IMMSEDensity(**settings, random_state=0).fit(X)
    levels, call = [], StackedDenoiser.__call__

    def noted(self, z, logsnr):
        levels.extend(logsnr.tolist())
        return call(self, z, logsnr)

    monkeypatch.setattr(StackedDenoiser, "__call__", noted)
    density.sample(7, random_state=0)
    assert len(levels) == 7 * (N_STEPS + 1) <= 7 * 30
    ends = density._model.rule.placement.edges[0], density.logsnr_[-1]
    np.testing.assert_allclose([min(levels), max(levels)], ends, rtol=1e-6)
    # Three quarters of the steps are spread evenly, so that none is longer than a third more.
    steps = np.diff(levels[::7])
    assert 0.0 < steps.min() <= steps.max() < 1.34 * (ends[1] - ends[0]) / N_STEPS


def test_rows_do_not_depend_on_those_beside_them():
    reference, start, _ = mixture()
    whole = probability_flow(reference, start, evenly(N_STEPS))
    for chosen in (slice(0, 1), slice(10, 30)):
        part = probability_flow(reference, start[chosen], evenly(N_STEPS))
        torch.testing.assert_close(part, whole[chosen], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("law", [gaussian, mixture])
def test_single_precision_is_as_good_as_the_steps(law):
    reference, start, exact = law()
    expected = probability_flow(reference, start, evenly(N_STEPS))
    found = probability_flow(reference.float(), start.float(), evenly(N_STEPS, torch.float32))
    assert found.dtype == torch.float32
    assert error(found, expected) < error(expected, exact)


def test_one_step_is_enough_for_the_estimate():
    reference, start, _ = gaussian()
    assert probability_flow(reference, start, evenly(1)).isfinite().all()
    level = evenly(0)
    at = level.repeat(len(start))
    assert torch.equal(
        probability_flow(reference, start, level),
        data_from_noise(start, reference(start, at), at),
    )
