"""Means and modes of conditional densities, beside exact ones."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity, IMMSEMixedDensity

pytestmark = pytest.mark.usefixtures("brief_fits")

ANALYTIC = {"max_epochs": 0, "random_state": 0}


def mixed_table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    size = rng.normal(size=n)
    kind = np.where(rng.random(n) < stats.norm.cdf(2.0 * size), "b", "a")
    count = rng.poisson(1.0 + (kind == "b"))
    grade = pd.Categorical(rng.choice(["low", "high"], n), ["low", "high"], ordered=True)
    table = pd.DataFrame({"kind": kind, "count": count, "size": size, "grade": grade})
    return table.assign(weight=size + rng.normal(size=n))


@pytest.fixture(scope="module")
def mixed():
    return IMMSEMixedDensity(marginals="standard", experts=["latent_class"], **ANALYTIC).fit(
        mixed_table()
    )


@pytest.mark.parametrize("marginals", ["standard", "yeo_johnson"])
def test_moments_of_a_number_are_those_of_its_density(marginals):
    """A mixture, in whose middle the mean is and no mode; by integrals over a grid."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    side = np.where(rng.random(1000) < 0.7, 1.0, -1.0)
    X = np.column_stack([x, 10.0 + x + 4.0 * side + rng.normal(size=1000)])
    density = IMMSEDensity(
        reference="gaussian_mixture", experts=["gaussian_mixture"], marginals=marginals, **ANALYTIC
    ).fit(X)
    given, n_draws = [-1.0, 1.0], 2000
    view, grid = density.conditional(0), np.linspace(-5.0, 30.0, 3501)
    means, modes = (call(np.c_[given], n_draws=n_draws) for call in (view.mean, view.mode))
    for value, mean, mode in zip(given, means[:, 0], modes[:, 0], strict=True):
        p = np.exp(view.score_samples(np.column_stack([np.full(len(grid), value), grid])))
        p /= p.sum()
        exact = p @ grid
        error = np.sqrt(p @ (grid - exact) ** 2 / n_draws)
        assert abs(mean - exact) < 4.0 * error
        # Kernels of Scott's width flatten modes: it is near the highest one.
        assert p[np.abs(grid - mode).argmin()] > 0.85 * p.max()
        assert abs(mode - (14.0 + value)) < 1.5


def test_mean_of_a_normal_distribution_is_the_regression_line():
    rng = np.random.default_rng(0)
    covariance = np.array([[1.0, 0.8, 0.3], [0.8, 2.0, -0.4], [0.3, -0.4, 1.5]])
    X = rng.multivariate_normal([1.0, -2.0, 3.0], covariance, size=500)
    density = IMMSEDensity(
        reference="gaussian", experts=["gaussian"], marginals="standard", **ANALYTIC
    ).fit(X)
    space, reference = density._model.space.standardizer, density.reference_
    fitted = reference.covariance.numpy() * np.outer(space.scale, space.scale)
    center = reference.mean.numpy() * space.scale + space.center
    line = fitted[1:, 0] / fitted[0, 0]
    left = np.diag(fitted)[1:] - line * fitted[1:, 0]
    given = np.linspace(-2.0, 4.0, 10)
    exact = center[1:] + np.outer(given - center[0], line)
    view = density.conditional([0])
    found = view.mean(given[:, None])
    z = (found - exact) / np.sqrt(left / 1000)
    assert np.abs(z).max() < 5.0
    assert 0.5 < z.std() < 1.5  # 1 +- 0.16
    mode = view.mode(given[:, None], n_draws=300)
    assert np.sqrt(np.mean((mode - exact) ** 2 / left)) < 0.4
    # A row's values follow from it alone; columns are in the order in which they are named.
    np.testing.assert_array_equal(view.mean(X[3:9]), view.mean(X[:30])[3:9])
    np.testing.assert_array_equal(view.mean(given[:, None], [2, 1]), found[:, ::-1])
    np.testing.assert_array_equal(view.mean(given[:, None], 2), found[:, 1:])


def test_moments_of_a_discrete_table_are_sums_over_its_states():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 500)
    second = (first + (rng.random(500) < 0.3)) % 3
    X = np.column_stack([first, second, 2 * rng.integers(0, 2, 500) + 4 * (second == 1)])
    density = IMMSEDiscreteDensity(**ANALYTIC).fit(X)
    states = np.array(list(itertools.product(*density.categories_)))
    p = np.exp(density.marginal([0, 1, 2]).score_samples(states))
    view = density.conditional(0)
    means, modes = (call([[0], [1], [2]]) for call in (view.mean, view.mode))
    for value in range(3):
        here = states[:, 0] == value
        share = p[here] / p[here].sum()
        np.testing.assert_allclose(means[value], share @ states[here][:, 1:], rtol=1e-9)
        for j in (1, 2):
            weight = [share @ (states[here][:, j] == each) for each in density.categories_[j]]
            assert modes[value, j - 1] == density.categories_[j][np.argmax(weight)]
    assert len(np.unique(modes[:, 0])) > 1


def test_moments_are_in_the_container_and_units_of_the_table(mixed):
    X = mixed_table(5, 1).set_index(pd.Index(list("abcde")))
    view = mixed.conditional(["size", "grade"])
    mean = view.mean(X[["grade", "size"]], ["count", "weight"])
    assert list(mean.columns) == ["count", "weight"]
    assert list(mean.index) == list("abcde")
    assert [each.kind for each in mean.dtypes] == ["f", "f"]
    probability = view.predict_proba(X, "count")
    np.testing.assert_allclose(mean["count"], probability @ mixed.categories_[1].astype(float))
    mode = view.mode(X)
    assert list(mode.columns) == ["kind", "count", "weight"]
    assert list(mode.index) == list("abcde")
    assert mode["count"].dtype == X["count"].dtype
    likeliest = view.predict_proba(X, "kind").argmax(axis=1)
    assert mode["kind"].tolist() == mixed.categories_[0][likeliest].tolist()
    # Other targets count as missing.
    pd.testing.assert_frame_equal(view.mode(X, "kind"), mode[["kind"]])
    assert mixed.conditional("size").mode(X, "grade")["grade"].dtype == X["grade"].dtype


def test_polars_stay_polars():
    polars = pytest.importorskip("polars")
    X = polars.DataFrame({"a": np.random.default_rng(0).normal(size=60), "b": list("xyx") * 20})
    density = IMMSEMixedDensity(marginals="standard", experts=["independent"], **ANALYTIC)
    density.fit(X)
    assert density.conditional("b").mean(X[:2]).columns == ["a"]
    assert density.conditional("a").mode(X[:2])["b"].to_list() == ["x", "x"]


def test_moments_that_do_not_exist_are_errors_that_name_the_column(mixed):
    X, view = mixed_table(2), mixed.conditional("size")
    with pytest.raises(ValueError, match=r"'kind', 'grade' have categories.*name other targets"):
        view.mean(X)
    with pytest.raises(ValueError, match="columns names 'size', which are given"):
        view.mode(X, ["size", "kind"])
    with pytest.raises(ValueError, match="n_draws must be an integer of at least 1, got 0"):
        view.mode(X, n_draws=0)
    with pytest.raises(ValueError, match="does not have: 'age'"):
        view.mean(X, "age")


@pytest.mark.parametrize("is_frame", [False, True])
def test_marginal_of_the_only_column_is_the_density(is_frame):
    X = np.random.default_rng(0).normal(size=(60, 1))
    table = pd.DataFrame(X, columns=["x"]) if is_frame else X
    density = IMMSEDensity(reference="gaussian", max_epochs=0, random_state=0).fit(table)
    found = density.marginal([0]).score_samples(table)
    np.testing.assert_allclose(found, density.score_samples(table))
