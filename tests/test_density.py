"""IMMSEDensity on tables of numbers: laws that hold for any fit."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid
from seeds import shifted
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import Callback

from sk_itdiffusion._estimators.density import IMMSEDensity
from sk_itdiffusion._immse.schedules import LogisticSchedule
from sk_itdiffusion.datasets import load_density
from sk_itdiffusion.networks.mlp import MLP
from sk_itdiffusion.networks.training import Training

SMALL = {"network": MLP(hidden_size=16, n_blocks=1), "training": Training(batch_size=64)}


def quick(**parameters):
    return IMMSEDensity(**{"max_epochs": 0, "random_state": shifted(0)} | parameters)


def with_network(**parameters):
    return IMMSEDensity(**{"max_epochs": 6, "random_state": shifted(0)} | SMALL | parameters)


@pytest.fixture(scope="module")
def banana():
    return load_density("banana")


@pytest.fixture(scope="module")
def X(banana):  # noqa: N802
    return banana.sample(1500, random_state=shifted(0))


@pytest.fixture(scope="module")
def fitted(X):
    """Return a fit in which a network has weight."""
    return with_network(experts=["gaussian", "network"], max_epochs=40).fit(X)


@pytest.mark.changes_global_state  # some of the checks draw from NumPy's generator
@parametrize_with_checks([quick(), with_network(max_epochs=1)])
def test_common_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of ties in the data of the checks
        check(estimator)


def test_score_approaches_the_truth(X, banana, fitted):
    test = banana.sample(800, random_state=shifted(1))
    truth = banana.log_prob(test)
    for density, most in ((quick().fit(X), 0.1), (fitted, 0.3)):
        lead = density.score_samples(test) - truth
        assert lead.mean() < 5 * lead.std() / np.sqrt(len(test))
        assert lead.mean() > -most - 5 * lead.std() / np.sqrt(len(test))
    gaussian = quick(experts=["gaussian"], marginals="standard").fit(X)
    gain = fitted.score_samples(test) - gaussian.score_samples(test)
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(test))


def test_mass_is_at_most_one(X, fitted):
    grid = [np.linspace(-6, 6, 61), np.linspace(-4, 20, 121)]
    points = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, 2)
    log_density, std = fitted.score_samples(points, return_std=True)
    values = np.exp(log_density).reshape(61, 121)
    mass = trapezoid(trapezoid(values, grid[1], axis=1), grid[0])
    cell = (grid[0][1] - grid[0][0]) * (grid[1][1] - grid[1][0])
    error = cell * np.sqrt((np.exp(2 * log_density) * std**2).sum())
    # Noise of standard deviation s inflates the mean of exp by exp(s ** 2 / 2).
    inflation = cell * (np.exp(log_density) * std**2).sum()
    assert 0.7 < mass < 1.0 + inflation + 5 * error


def test_rows_do_not_depend_on_each_other(X, fitted):
    rows = X[:60].copy()
    rows[::7, 0] = np.nan
    whole = fitted.score_samples(rows)
    order = np.random.default_rng(shifted(0)).permutation(60)
    np.testing.assert_allclose(fitted.score_samples(rows[order]), whole[order], atol=1e-6)
    halves = [fitted.score_samples(part) for part in (rows[:30], rows[30:])]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-6)
    single = np.concatenate([fitted.score_samples(row[None]) for row in rows[:10]])
    np.testing.assert_allclose(single, whole[:10], atol=1e-6)


def test_conditional_and_marginal_make_the_joint():
    table = load_iris().data + 0.01 * np.random.default_rng(shifted(0)).normal(size=(150, 4))
    density = quick(experts=["gaussian_mixture"]).fit(table)
    for given in ([0], [1, 3], [0, 1, 2]):
        conditional = density.conditional(given).score_samples(table)
        marginal = density.marginal(given).score_samples(table[:, given])
        np.testing.assert_allclose(conditional + marginal, density.score_samples(table), atol=1e-8)
    hidden = table.copy()
    hidden[:, 2] = np.nan
    others = [0, 1, 3]
    expected = density.marginal(others).score_samples(table[:, others])
    np.testing.assert_allclose(density.score_samples(hidden), expected, atol=1e-10)


def test_units_move_the_density_by_the_jacobian(X):
    scale = np.array([100.0, 0.01])
    plain, moved = quick().fit(X), quick().fit(X * scale + 5.0)
    difference = moved.score_samples(X[:100] * scale + 5.0) - plain.score_samples(X[:100])
    np.testing.assert_allclose(difference, -np.log(scale).sum(), atol=1e-5)
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X)
    assert np.isfinite(pipeline.score_samples(X[:5])).all()


def test_weights_are_repetitions_and_order_is_irrelevant(X):
    rng = np.random.default_rng(shifted(0))
    rows, weight = X[:300], rng.integers(0, 3, size=300)
    weighted = quick().fit(rows, sample_weight=weight).score_samples(X[:50])
    repeated = np.repeat(rows, weight, axis=0)
    shuffled = repeated[rng.permutation(len(repeated))]
    np.testing.assert_allclose(quick().fit(shuffled).score_samples(X[:50]), weighted, atol=1e-6)


def test_groups_and_copies_are_held_out_together():
    from sk_itdiffusion._estimators.reading import read_table
    from sk_itdiffusion._model.table import split_rows

    rng = np.random.default_rng(shifted(0))
    rows = np.round(rng.normal(size=(600, 1)), 1)
    labels = rng.integers(100, size=600)
    table = read_table(rows, ["x"], None, labels)
    split = split_rows(table, 0.1, has_networks=True, seed=0)
    for held in split.held.T:
        assert not set(table.unit[held]) & set(table.unit[~held])
    alone = read_table(rows, ["x"], None, None)
    assert len(alone.X) == len(np.unique(rows))


def test_rows_missing_at_random_give_the_mean_of_the_population():
    """Of rows with a positive first column 80% lack the second (correlation 0.8)."""
    rng = np.random.default_rng(shifted(0))
    rows = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 4000)
    rows[(rows[:, 0] > 0) & (rng.random(4000) < 0.8), 1] = np.nan
    density = with_network(max_epochs=2).fit(rows)
    grid = np.linspace(-6, 6, 401)
    p = np.exp(density.marginal(1).score_samples(grid[:, None]))
    # The rows that are seen have the mean -0.43; the error of the estimate is about 0.03.
    assert abs(trapezoid(p * grid, grid) / trapezoid(p, grid)) < 5 * 0.03
    assert trapezoid(p, grid) == pytest.approx(1.0, abs=0.02)


def test_draws_have_the_moments_and_conditional_draws_the_spread(banana, X):
    density = quick().fit(X)
    drawn = density.sample(4000, random_state=shifted(1))
    for power in (1, 2):
        values, others = drawn**power, X**power
        error = np.hypot(values.std(0) / np.sqrt(4000), others.std(0) / np.sqrt(len(X)))
        assert (np.abs(values.mean(0) - others.mean(0)) < 5 * error + 0.02).all()
    given = density.conditional(0).sample(np.array([[1.0, np.nan]]), 2000, random_state=shifted(2))
    assert (given[0, :, 0] == 1.0).all()
    spread = given[0, :, 1]
    # x2 = x1 ** 2 + 0.3 N(0, 1); the fit blurs it a little.
    assert abs(spread.mean() - 1.0) < 0.2
    assert 0.2 < spread.std() < 0.6


def test_bounds_hold_for_draws_and_density():
    rows = np.random.default_rng(shifted(0)).gamma(1.0, size=(400, 2))
    density = quick(bounds={0: (0, None), 1: (0, 20)}).fit(rows)
    assert (density.sample(500, random_state=0) > 0).all()
    assert np.isneginf(density.score_samples([[-1.0, 1.0], [1.0, 21.0]])).all()
    grid = np.linspace(0, 30, 30_001)[1:]
    p = np.exp(density.marginal(0).score_samples(grid[:, None]))
    assert trapezoid(p, grid) == pytest.approx(1.0, abs=0.02)
    found = quick().fit(rows)
    assert (found.sample(500, random_state=0) >= 0).all()
    beyond = found.score_samples([[-0.5, 1.0], [-1.5, 1.0]])
    assert np.isfinite(beyond).all()
    assert beyond[0] > beyond[1]
    with pytest.raises(ValueError, match="column 0 must lie between"):
        quick(bounds=[(0.5, None), None]).fit(rows)


def test_constant_columns_keep_the_rest(X):
    table = np.column_stack([X[:, 0], np.full(len(X), 7.0), X[:, 1]])
    density = quick().fit(table)
    plain = quick().fit(X)
    np.testing.assert_allclose(
        density.score_samples(table[:50]), plain.score_samples(X[:50]), atol=1e-9
    )
    other = table[:1] + np.array([0.0, 1.0, 0.0])
    assert density.score_samples(other) < density.score_samples(table[:1]) - np.log(len(X))
    assert (density.sample(5)[:, 1] == 7.0).all()


def test_frames_keep_their_names(X):
    frame = pd.DataFrame(X, columns=["a", "b"])
    density = quick().fit(frame)
    assert list(density.sample(3).columns) == ["a", "b"]
    np.testing.assert_allclose(
        density.score_samples(frame[:9], given="a"), quick().fit(X).score_samples(X[:9], given=0)
    )
    with pytest.raises(ValueError, match="There is no column 'c'"):
        density.score_samples(frame, given="c")


def test_searches_over_schedules(X):
    grid = {"schedule": ["logistic", LogisticSchedule(loc=2.0)]}
    search = GridSearchCV(with_network(max_epochs=1), grid, cv=2).fit(X[:300])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    deep = {"network__hidden_size": [8, 16], "training__learning_rate": [0.01]}
    assert GridSearchCV(with_network(max_epochs=1), deep, cv=2).fit(X[:300]).best_score_ < 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"schedule": "linear"}, "schedule"),
        ({"experts": ["flow"]}, "experts must be"),
        ({"marginals": "log"}, "marginals"),
        ({"bounds": {"x": (0, 1)}}, "There is no column 'x'"),
        ({"max_epochs": -1}, "max_epochs"),
        ({"score_tol": 0.0}, "score_tol"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
    ],
)
def test_wrong_parameters_are_errors_that_name_them(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        quick(**parameters).fit(X[:100])


def test_wrong_rows_are_errors_that_name_the_column():
    rows = np.random.default_rng(shifted(0)).normal(size=(50, 2))
    with pytest.raises(ValueError, match="Column 1 has no values"):
        quick().fit(np.column_stack([rows[:, 0], np.full(50, np.nan)]))
    with pytest.raises(ValueError, match="Column 0 has numbers beyond"):
        quick().fit(rows * [1e101, 1.0])
    with pytest.raises(ValueError, match="largest sample_weight"):
        quick().fit(rows, sample_weight=np.append(1e-13, np.ones(49)))
    with pytest.raises(ValueError, match="groups must have shape"):
        quick().fit(rows, groups=[1, 2])
    with pytest.warns(UserWarning, match="columns 1 are repeated"):
        quick().fit(np.column_stack([rows[:, 0], np.arange(50) % 3]))


def test_a_lower_tolerance_lowers_the_error(X, fitted):
    _, usual = fitted.score_samples(X[:40], return_std=True)
    sharp = clone(fitted)
    sharp.__dict__.update(vars(fitted) | {"score_tol": 0.02})
    _, less = sharp.score_samples(X[:40], return_std=True)
    assert np.sqrt(np.mean(less**2)) < 0.5 * np.sqrt(np.mean(usual**2))


def test_standard_errors_tell_how_exact_scores_are(X, fitted):
    rows = X[:100]
    scores, std = fitted.score_samples(rows, return_std=True)
    exact = clone(fitted)
    exact.__dict__.update(vars(fitted) | {"score_tol": 0.01})
    reference, other = exact.score_samples(rows, return_std=True)
    z = (scores - reference) / np.hypot(std, other)
    # Squares of 100 rows, of kurtosis 10 at most, and of as many in the calibration.
    assert abs(np.log(z.std())) < 5 * 0.3


def test_equal_seeds_give_equal_fits(X):
    first, again = (with_network(max_epochs=2).fit(X[:200]) for _ in range(2))
    np.testing.assert_array_equal(first.score_samples(X[:20]), again.score_samples(X[:20]))
    drawn = first.sample(3, random_state=1), again.sample(3, random_state=1)
    np.testing.assert_array_equal(*drawn)


def test_interrupts_leave_no_fit(X):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **_):
            raise KeyboardInterrupt

    density = quick().fit(X)
    density.set_params(max_epochs=5, callbacks=[("interrupt", Interrupt())], **SMALL)
    with pytest.raises(KeyboardInterrupt):
        density.fit(X)
    with pytest.raises(NotFittedError):
        density.score_samples(X)


def test_few_rows_are_fitted_and_scored():
    for n in (2, 5, 30):
        rows = np.random.default_rng(shifted(n)).normal(size=(n, 3))
        assert np.isfinite(quick().fit(rows).score_samples(rows)).all()
