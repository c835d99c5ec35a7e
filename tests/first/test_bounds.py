"""Bounds of columns: maps, choice, scores beyond them, samples within them."""

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEMixedDensity, IMMSEOutlierDetector
from sk_itdiffusion._first._table.bounds import resolve_bounds, rounded_inside, shown_bounds
from sk_itdiffusion._first._table.marginals import BoundMap

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {"max_epochs": 0, "random_state": 0}
#: One normal distribution behind the maps, whose density is known in closed form.
NORMAL = QUICK | {"reference": "gaussian", "experts": ["gaussian"]}
POSITIVE = {
    "lognormal": stats.lognorm(0.6),
    "exponential": stats.expon,
    "gamma": stats.gamma(2.0),
    "pareto": stats.lomax(1.5),
}


def incomes(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "income": rng.lognormal(0.0, 0.6, n),
            "height": rng.normal(170.0, 8.0, n),
            "share": rng.beta(0.8, 0.9, n),
        }
    )


# -- maps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("softness", [0.125, 1.0, np.inf])
@pytest.mark.parametrize("bounds", [(0.0, np.inf), (-np.inf, 2.0), (0.0, 1.0), (-5.0, 20.0)])
def test_intervals_are_mapped_onto_the_real_line(bounds, softness):
    low, high = bounds
    column = BoundMap(low, high, softness)
    u = np.linspace(-30.0, 30.0, 601)
    if np.isfinite(low + high):
        u = np.linspace(-8.0, 8.0, 601) * min(1.0, softness)
    x = column.inverse(u)
    assert ((x >= low) & (x <= high)).all()
    inner = (x > low + 1e-6) & (x < high - 1e-6) & (np.diff(x, prepend=-np.inf) > 0)
    mapped, log_slope = column.forward(x[inner])
    np.testing.assert_allclose(mapped, u[inner], rtol=1e-6, atol=1e-6)
    step = 1e-3 * np.minimum(x[inner] - low, high - x[inner])
    rise = column.forward(x[inner] + step)[0] - column.forward(x[inner] - step)[0]
    # The second difference of a logarithm, relative to its slope, is the square of the step.
    np.testing.assert_allclose(np.log(rise / (2 * step)), log_slope, atol=1e-5)


def test_far_from_its_bound_a_map_is_straight():
    x = np.random.default_rng(0).normal(0.0, 1.0, 2000)
    column = BoundMap.fit(-30.0, np.inf, x, np.ones(2000))
    u, log_slope = column.forward(x)
    np.testing.assert_allclose(u, x + 30.0, rtol=1e-9)
    np.testing.assert_allclose(log_slope, 0.0, atol=1e-9)


def test_lognormal_columns_are_mapped_by_their_logarithm():
    x = np.random.default_rng(0).lognormal(0.0, 1.0, 2000)
    column = BoundMap.fit(0.0, np.inf, x, np.ones(2000))
    np.testing.assert_allclose(column.forward(x)[0], np.log(x))


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (-np.inf, 0.0)])
def test_logarithms_are_straight_well_beyond_the_rows(bounds):
    x = np.random.default_rng(0).lognormal(0.0, 1.0, 2000)
    sign = 1.0 if bounds[0] == 0.0 else -1.0
    column = BoundMap.fit(*bounds, sign * x, np.ones(2000))
    assert 1.4 < column.farthest / x.max() < 1.9  # half a standard deviation, 0.5 +- 0.01
    y = np.append(np.sort(x), np.geomspace(x.max(), 1e9, 100))
    u, log_slope = column.forward(sign * y)
    np.testing.assert_allclose(column.inverse(u), sign * y, rtol=1e-9)
    beyond = y > column.farthest
    np.testing.assert_allclose(np.diff(sign * u[beyond]) / np.diff(y[beyond]), 1 / column.farthest)
    np.testing.assert_allclose(log_slope, -np.log(np.minimum(y, column.farthest)))


# -- what is given, and what rows show -------------------------------------------------------


def test_bounds_are_given_by_names_numbers_or_order():
    infinite = [-np.inf, np.inf]
    expected = [[0.0, np.inf], infinite, [-1.0, 1.0]]
    for given in (
        {"a": (0, None), "c": (-1, 1)},
        {0: (0, np.inf), 2: [-1, 1]},
        [(0, None), None, (-1, 1)],
    ):
        assert resolve_bounds(given, 3, ["a", "b", "c"]).tolist() == expected


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"wealth": (0, 1)}, "'wealth', which X does not have"),
        ({3: (0, 1)}, "the column 3, which X does not have"),
        ({"income": (1, 0)}, "'income' must be a pair"),
        ({"income": 0.0}, "'income' must be a pair"),
        ([(0, None)], "each of the 3 columns"),
        ({"income": (0.5, None)}, r"Column 'income' has the value 0\.\d+.* bounds 0.5 and inf"),
    ],
)
def test_wrong_bounds_are_an_error_that_names_the_column(bounds, message):
    with pytest.raises(ValueError, match=message):
        IMMSEDensity(bounds=bounds, **QUICK).fit(incomes())


def test_what_rows_show():
    rng = np.random.default_rng(0)
    X = np.column_stack(
        [
            rng.exponential(size=500),
            -rng.exponential(size=500),
            rng.uniform(size=500),
            rng.normal(size=500),
            rng.normal(100.0, 1.0, size=500),
            rng.uniform(3.0, 4.0, size=500),
        ]
    )
    found = shown_bounds(X, np.ones(500), X.min(axis=0), X.max(axis=0))
    inf = np.inf
    expected = [[0, inf], [-inf, 0], [0, 1], [-inf, inf], [-inf, inf], [-inf, inf]]
    assert found.tolist() == expected
    # A further row of another sign, and there is no bound.
    crossed = shown_bounds(X, np.ones(500), np.full(6, -9.0), np.full(6, 9.0))
    assert np.isinf(crossed).all()


# -- densities -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "yeo_johnson", "quantile"])
def test_score_is_that_of_mapped_rows_and_the_derivative(kind):
    X = incomes()[["income", "share"]].to_numpy()
    bounds = [(0.0, None), (0.0, 1.0)]
    density = IMMSEDensity(marginals=kind, bounds=bounds, **NORMAL).fit(X)
    space = density._model.space
    new = incomes(50, seed=1)[["income", "share"]].to_numpy()

    def mapped(rows):
        return space.rows(space.standardized(rows))[0]

    step = 1e-5 * np.minimum(new, 1.0 - np.minimum(new, 0.999))
    slope = (mapped(new + step) - mapped(new - step)) / (2 * step)
    # The normal distribution is fitted to the mapped training rows, and has a closed form.
    reference = density.reference_
    normal = stats.multivariate_normal(reference.mean.numpy(), reference.covariance.numpy())
    expected = normal.logpdf(mapped(new)) + np.log(slope).sum(axis=1)
    # At the knots of quantile maps the second derivative jumps.
    gap = np.abs(density.score_samples(new) - expected)
    assert np.quantile(gap, 0.9) < 1e-4


@pytest.mark.parametrize(
    ("law", "bounds"), [(stats.lognorm(0.6), [(0, None)]), (stats.beta(0.8, 0.9), [(0, 1)])]
)
def test_density_between_given_bounds_integrates_to_one(law, bounds):
    X = law.rvs(size=(300, 1), random_state=0)
    density = IMMSEDensity(bounds=bounds, **NORMAL).fit(X)
    # In the quantile function of the law, in which the density is bounded.
    p = np.linspace(0.0, 1.0, 20_001)[1:-1]
    x = law.ppf(p)
    total = integrate.trapezoid(np.exp(density.score_samples(x[:, None]) - law.logpdf(x)), p)
    assert total == pytest.approx(1.0, abs=0.01)
    beyond = [[-1.0], [0.0]] if len(bounds[0]) == 2 and bounds[0][1] is None else [[0.0], [1.0]]
    assert (density.score_samples(np.array(beyond)) == -np.inf).all()


def test_rows_beyond_bounds_that_rows_showed_share_a_small_probability():
    X = stats.lognorm(0.6).rvs(size=(300, 1), random_state=0)
    density = IMMSEDensity(**NORMAL).fit(X)
    assert density.bounds_.tolist() == [[0.0, np.inf]]
    # The rows' own deviation is the mean of the exponential distribution of what lies beyond.
    below = np.linspace(0.0, 10.0, 400)
    beyond = density.score_samples(-below[:, None])
    np.testing.assert_allclose(beyond, stats.expon(0.0, X.std()).logpdf(below) - np.log(302))
    u = np.linspace(-8.0, 8.0, 4001)
    inside = density.score_samples(np.exp(u)[:, None])
    assert integrate.trapezoid(np.exp(inside + u), u) == pytest.approx(301 / 302, abs=1e-3)


def test_beyond_bounds_parts_of_rows_are_coherent_too():
    """The chain rule, and conditional densities that integrate to one, whatever is given."""
    rng = np.random.default_rng(0)
    a = rng.lognormal(size=300)
    share = rng.beta(0.8, 0.9, 300)
    X = np.column_stack([a, a**0.5 * rng.lognormal(size=300), share])
    density = IMMSEDensity(**NORMAL).fit(X)
    assert density.bounds_.tolist() == [[0.0, np.inf], [0.0, np.inf], [0.0, 1.0]]
    values = [[-0.5, 1e-6, 1.0, 50.0], [-2.0, 1e-3, 3.0], [-0.1, 0.5, 1.0, 1.3]]
    rows = np.array(np.meshgrid(*values)).reshape(3, -1).T
    joint = density.score_samples(rows)
    for given in [[0], [1, 2]]:
        known = density.marginal(given).score_samples(rows[:, given])
        np.testing.assert_allclose(density.score_samples(rows, given=given), joint - known)
    u = np.linspace(-30.0, 30.0, 6001)
    for first in values[0]:
        for sign, share in [(1.0, 1.0 - 1.0 / 906), (-1.0, 1.0 / 906)]:
            table = np.column_stack([np.full(len(u), first), sign * np.exp(u), u * np.nan])
            log_density = density.score_samples(table, given=[0])
            total = integrate.trapezoid(np.exp(log_density + u), u)
            assert total == pytest.approx(share, rel=1e-3)


def test_given_entries_beyond_bounds_say_nothing_in_scores_and_draws():
    rng = np.random.default_rng(0)
    x = rng.lognormal(size=300)
    X = np.column_stack([x, x * rng.lognormal(0.0, 0.1, 300)])
    density = IMMSEDensity(**NORMAL).fit(X)
    y = np.geomspace(0.01, 100.0, 50)
    beyond = density.score_samples(np.column_stack([np.full(50, -1.0), y]), given=[0])
    np.testing.assert_allclose(beyond, density.marginal([1]).score_samples(y[:, None]))
    drawn = density.conditional([0]).sample([[-1.0]], 2000, random_state=0).ravel()
    quantiles = np.quantile(drawn, [0.1, 0.5, 0.9])
    grid = np.linspace(-12.0, 12.0, 4001)
    log_density = density.marginal([1]).score_samples(np.exp(grid)[:, None])
    cdf = integrate.cumulative_trapezoid(np.exp(log_density + grid), grid, initial=0.0)
    # Three standard errors of quantiles of 2000 draws, and the share that is beyond.
    np.testing.assert_allclose(np.interp(np.log(quantiles), grid, cdf), [0.1, 0.5, 0.9], atol=0.035)


@pytest.mark.parametrize("name", sorted(POSITIVE))
def test_samples_of_positive_columns_are_positive(name):
    law = POSITIVE[name]
    X = law.rvs(size=(250, 1), random_state=0)
    density = IMMSEDensity(**NORMAL).fit(X)
    assert density.sample(5000, random_state=0).min() > 0.0


def test_rows_beyond_bounds_are_not_in_the_curve_of_errors():
    X = np.random.default_rng(0).lognormal(size=(300, 2))
    density = IMMSEDensity(**NORMAL).fit(X)
    rows = np.vstack([X[:50], [[-1.0, 1.0]]])
    with pytest.warns(
        UserWarning, match=r"beyond the bounds of column\(s\) 0 are not in the curve"
    ):
        found = density.mse_curve(rows)
    np.testing.assert_array_equal(found.model, density.mse_curve(rows[:50]).model)


def test_detectors_rank_rows_by_how_far_they_are_beyond_the_others():
    X = np.random.default_rng(0).lognormal(size=(100, 2))
    settings = {"average": False, "trim": 0.0, "noise_floor": None, "random_state": 0}
    detector = IMMSEOutlierDetector(IMMSEDensity(**NORMAL), **settings).fit(X)
    assert np.isinf(detector.estimator_.bounds_).all()
    rows = np.array([[1.0, 1.0], [-1.0, 1.0], [-2.0, 1.0]])
    scores = detector.score_samples(rows)
    assert (np.diff(scores) < 0.0).all()
    np.testing.assert_allclose(detector.explain(rows).sum(axis=1), scores)


def test_a_row_beyond_the_others_does_not_spoil_a_mean():
    """As in cross-validation, when the only zero of a column is in the other fold."""
    table = incomes()
    new = incomes(seed=1)
    new.loc[7, "income"] = 0.0
    density = IMMSEDensity(**NORMAL).fit(table)
    assert density.bounds_[0].tolist() == [0.0, np.inf]
    assert np.isfinite(density.score(new))


@pytest.mark.slow
def test_bounds_reach_all_that_is_fitted(tmp_path):
    table = incomes().assign(colour=np.random.default_rng(1).choice(["red", "blue"], 300))
    new = table.iloc[:3].copy()
    new.loc[new.index[0], "income"] = -1.0
    plain = QUICK | {"reference": "independent", "experts": ["independent"]}
    bounds = {"income": (0, None), "share": (0, 1)}
    mixed = IMMSEMixedDensity(bounds=bounds, **plain).fit(table)
    assert mixed.bounds_[0].tolist() == [0.0, np.inf]
    assert mixed.score_samples(new)[0] == -np.inf
    assert np.isfinite(mixed.score_samples(new)[1:]).all()
    assert mixed.sample(500, random_state=0)["income"].min() > 0.0
    with pytest.raises(ValueError, match="'colour', which are not continuous"):
        IMMSEMixedDensity(bounds={"colour": (0, 1)}, **QUICK).fit(table)
    mixed.save(tmp_path / "mixed")
    loaded = sk_itdiffusion.load(tmp_path / "mixed")
    assert loaded.bounds == mixed.bounds
    np.testing.assert_array_equal(loaded.score_samples(new), mixed.score_samples(new))

    numbers = table.drop(columns="colour")
    quick = IMMSEDensity(max_epochs=0, reference="gaussian", experts=["gaussian"])
    ensemble = IMMSEEnsemble([("a", quick), ("b", quick)], random_state=0)
    ensemble.fit(numbers)
    assert np.isfinite(ensemble.score_samples(new.drop(columns="colour"))).all()
    assert np.asarray(ensemble.sample(500, random_state=0))[:, 0].min() > 0.0
    ensemble.save(tmp_path / "ensemble")
    np.testing.assert_array_equal(
        sk_itdiffusion.load(tmp_path / "ensemble").score_samples(numbers[:5]),
        ensemble.score_samples(numbers[:5]),
    )


def test_later_rows_have_to_be_between_the_bounds():
    table = incomes(400)
    beyond = table.iloc[:60].copy()
    beyond.loc[3, "income"] = -1.0
    warm = IMMSEDensity(warm_start=True, **NORMAL).fit(table)
    with pytest.raises(ValueError, match="'income' has the value -1"):
        warm.fit(beyond)
    stream = IMMSEDensity(
        bounds={"income": (0, None)}, **QUICK | {"reference": "gaussian"}
    ).partial_fit(table)
    assert stream.bounds_[0].tolist() == [0.0, np.inf]
    with pytest.raises(ValueError, match="'income' has the value -1"):
        stream.partial_fit(beyond)


@pytest.mark.filterwarnings("ignore:.*many equal or coarsely rounded")
def test_bounds_of_lattice_columns_leave_room_for_their_cells():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.poisson(1.0, 300), rng.poisson(6.0, 300)]).astype(float)
    density = IMMSEDensity(dequantize=True, bounds=[(0, None), (0, 30)], **NORMAL).fit(X)
    samples = density.sample(2000, random_state=0)
    assert samples.min() == 0.0
    assert np.isfinite(density.score_samples(np.array([[0.0, 0.0], [3.0, 30.0]]))).all()
    assert density.score_samples(np.array([[-1.0, 3.0]]))[0] == -np.inf


def check_samples(density):
    """Assert that samples are between the bounds and possible, after they have been rounded."""
    samples = density.sample(2000, random_state=0)
    low, high = density.bounds_.T
    values = np.asarray(samples, dtype=np.float64)
    assert ((values > low) & (values < high)).all()
    assert np.isfinite(density.score_samples(samples)).all()
    return samples


@pytest.mark.filterwarnings("ignore:.*many equal or coarsely rounded")
@pytest.mark.parametrize("estimator", [IMMSEDensity, IMMSEMixedDensity])
@pytest.mark.parametrize("dtype", others_slow(["int8", "Float32", "int64", "Int32", "float32"], 2))
def test_samples_are_between_bounds_in_the_dtype_of_their_column(estimator, dtype):
    rng = np.random.default_rng(0)
    shares = np.clip(rng.beta(0.2, 0.2, 300), 1e-7, 1.0 - 1e-7)
    counts = np.ceil(20.0 * shares - 1e-6)  # from 1 to 20
    is_whole = "int" in dtype.lower()
    X = pd.DataFrame({"x": counts if is_whole else shares, "y": rng.normal(size=300)})
    X["x"] = X["x"].astype(dtype)
    high = 21 if is_whole else 1
    plain = QUICK | {"reference": "gaussian", "experts": ["gaussian"]}
    if estimator is IMMSEMixedDensity:
        plain |= {"ordinal_features": None}
    density = estimator(bounds={"x": (0, high)}, **plain).fit(X)
    samples = check_samples(density)
    assert samples["x"].dtype == dtype
    ensemble = IMMSEEnsemble([("a", density), ("b", density)], random_state=0).fit(X)
    samples = ensemble.sample(500, random_state=0)
    assert samples["x"].between(0, high, inclusive="neither").all()


@pytest.mark.filterwarnings("ignore:.*many equal or coarsely rounded")
@pytest.mark.parametrize("step", [1.0, 0.1])
@pytest.mark.parametrize("ends", [(-0.5, 3.5), (-0.3, 3.2), (0.0, 3.0), (-0.5, np.inf)])
def test_samples_of_lattice_columns_are_between_bounds(step, ends):
    numbers = np.minimum(np.random.default_rng(0).poisson(1.0, (300, 1)), 3)
    bounds = [(step * ends[0], step * ends[1])]
    density = IMMSEDensity(dequantize=True, bounds=bounds, **NORMAL).fit(step * numbers)
    check_samples(density)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint64"])
def test_the_nearest_number_of_a_dtype_between_bounds(dtype):
    values = np.array([-1e5, 0.0, 1e-9, 0.7, 99.5, 100.0, 1e5])
    rounded = rounded_inside(values, np.dtype(dtype), 0.0, 100.0)
    assert ((rounded > 0) & (rounded < 100)).all()
    ends = np.array([[0, 100], [1, 99]], dtype)
    least, greatest = ends[1] if "int" in dtype else np.nextafter(*ends)
    assert rounded[[0, 1, -2, -1]].tolist() == [least, least, greatest, greatest]
    if "float" in dtype:
        free = rounded_inside(np.array([-np.inf, 0.5, np.inf]), np.dtype(dtype), -np.inf, np.inf)
        assert free.tolist() == [-np.inf, 0.5, np.inf]
