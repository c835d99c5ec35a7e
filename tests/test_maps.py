"""Maps of columns: bijections with the right derivative, and tails."""

import math

import numpy as np
import pytest
from scipy import integrate, stats
from seeds import shifted

from sk_itdiffusion._table.maps import fit_map
from sk_itdiffusion._table.tails import Tail

SAMPLES = {
    "normal": lambda rng: rng.normal(3.0, 2.0, 1000),
    "lognormal": lambda rng: rng.lognormal(size=1000),
    "cauchy": lambda rng: rng.standard_cauchy(1000),
    "bimodal": lambda rng: np.append(rng.normal(-4, 1, 500), rng.normal(4, 0.3, 500)),
    "uniform": lambda rng: rng.uniform(0.01, 0.99, 1000),
}
BOUNDS = {
    "none": (-math.inf, math.inf),
    "below": (0.0, math.inf),
    "above": (-math.inf, 1.0),
    "both": (0.0, 1.0),
}
KINDS = ("standard", "yeo_johnson", "quantile")


def column(sample, seed=0):
    return SAMPLES[sample](np.random.default_rng(shifted(seed)))


def cases():
    for kind in KINDS:
        yield from ((kind, sample, "none") for sample in SAMPLES)
        yield from ((kind, "uniform", bounds) for bounds in ("below", "above", "both"))
        yield kind, "lognormal", "below"


@pytest.mark.parametrize(("kind", "sample", "bounds"), list(cases()))
def test_maps_are_bijections_with_their_derivative(kind, sample, bounds):
    x = column(sample)
    found = fit_map(kind, x, np.ones(len(x)), BOUNDS[bounds])
    low, high = BOUNDS[bounds]
    spread = np.quantile(x, 0.9) - np.quantile(x, 0.1)
    grid = np.linspace(np.quantile(x, 0.001) - spread, np.quantile(x, 0.999) + spread, 501)
    grid = grid[(grid > low + 1e-3) & (grid < high - 1e-3)]
    u, log_slope = found.forward(grid)
    assert (np.diff(u) > 0).all()
    np.testing.assert_allclose(found.inverse(u), grid, rtol=1e-7, atol=1e-7 * spread)
    step = 1e-6 * spread
    slope = (found.forward(grid + step)[0] - found.forward(grid - step)[0]) / (2 * step)
    np.testing.assert_allclose(np.exp(log_slope), slope, rtol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_units_move_the_map_by_the_jacobian(kind):
    x = column("bimodal")
    first = fit_map(kind, x, np.ones(len(x))).forward(x)
    second = fit_map(kind, 1e5 * x - 3.0, np.ones(len(x))).forward(1e5 * x - 3.0)
    np.testing.assert_allclose(second[0], first[0], atol=1e-6)
    np.testing.assert_allclose(second[1] + math.log(1e5), first[1], atol=1e-5)


@pytest.mark.parametrize("shape", [None, 0.3, 1.2])
def test_tails_have_their_mass_and_survival(shape):
    tail = Tail(1.5, 0.8, shape)

    def density(y):
        u, log_slope = tail.forward(np.array([y]))
        return float(np.exp(log_slope[0] - 0.5 * u[0] ** 2) / math.sqrt(2 * math.pi))

    mass = integrate.quad(density, 0, 10)[0] + integrate.quad(density, 10, math.inf)[0]
    assert mass == pytest.approx(stats.norm.sf(1.5), rel=1e-6)
    y = np.array([0.1, 1.0, 10.0, 50.0])
    if shape is not None:
        survival = stats.norm.sf(tail.forward(y)[0])
        ratio = survival / stats.norm.sf(1.5)
        scale = shape * y[0] / (ratio[0] ** -shape - 1)
        np.testing.assert_allclose(ratio, (1 + shape * y / scale) ** (-1 / shape), rtol=1e-6)


def test_heavy_tails_are_seen_and_light_ones_are_not():
    for sample, is_heavy in (("cauchy", True), ("normal", False), ("uniform", False)):
        x = column(sample)
        last = fit_map("quantile", x, np.ones(len(x))).maps[-1]
        assert last.is_heavy == is_heavy


def test_tied_and_few_values_are_standardised():
    for x in (np.repeat([0.0, 1.0], 50), np.arange(10.0)):
        u, _ = fit_map("quantile", x, np.ones(len(x))).forward(x)
        np.testing.assert_allclose([u.mean(), u.std()], [0.0, 1.0], atol=1e-12)
