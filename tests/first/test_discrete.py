"""The estimators for discrete and mixed tables, as their users see them."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from seeds import shifted
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from first import brief
from first.marks import others_slow
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity, IMMSEMixedDensity
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.schedules import LogisticSchedule

pytestmark = pytest.mark.usefixtures("brief_fits")

SMALL = {
    "hidden_size": 48,
    "max_epochs": 6,
    "steps_per_epoch": 40,
    "batch_size": 256,
    "random_state": shifted(0),
}
TINY = SMALL | {"hidden_size": 16, "n_blocks": 1, "max_epochs": 1, "steps_per_epoch": 5}
TINY |= {"score_tol": 0.5}
SIZES = (2, 3, 4)


@pytest.fixture(scope="module")
def truth():
    return np.random.default_rng(shifted(0)).dirichlet(np.full(24, 0.6)).reshape(SIZES)


@pytest.fixture(scope="module")
def states():
    return np.array(list(np.ndindex(*SIZES)))


def draw(table, n, seed):
    chosen = np.random.default_rng(seed).choice(table.size, size=n, p=table.ravel())
    return np.column_stack(np.unravel_index(chosen, table.shape))


@pytest.fixture(scope="module", name="X")
def rows_of_truth(truth):
    return draw(truth, 3000, 0)


@pytest.fixture(scope="module")
def fitted(X):
    levels = [np.arange(k) for k in SIZES]
    with brief.usual_choices():
        return IMMSEDiscreteDensity(categories=levels, **SMALL).fit(X)


@pytest.fixture(scope="module")
def mixed_table():
    rng = np.random.default_rng(shifted(0))
    n = 1000
    colour = rng.choice(["red", "green", "blue"], size=n, p=[0.5, 0.3, 0.2])
    frame = pd.DataFrame({"colour": colour, "grade": rng.integers(0, 5, size=n)})
    frame["size"] = rng.normal(size=n) + 2.0 * (colour == "red")
    frame["weight"] = np.exp(0.5 * rng.normal(size=n) + 0.3 * frame["grade"])
    return frame


@pytest.fixture(scope="module")
def fitted_mixed(mixed_table):
    return IMMSEMixedDensity(**SMALL).fit(mixed_table)


def corrected_sum(log_p, std):
    """Return the sum of exp, less the factor by which noise raises it, and its error."""
    p = np.exp(log_p - std**2 / 2)
    return p.sum(), np.sqrt(np.sum((p * std) ** 2))


@pytest.mark.parametrize(("kind", "loss"), [("auto", "cross_entropy"), ("nominal", "mse")])
def test_probabilities_of_all_states_sum_to_nearly_one(
    X, states, truth, fitted, kind, loss, usual_fits
):
    est = copy.deepcopy(fitted)
    if (kind, loss) != ("auto", "cross_entropy"):
        est.set_params(kind=kind, loss=loss).fit(X)
    est.set_params(score_tol=0.02)
    log_p, std = est.score_samples(states, return_std=True)
    total, error = corrected_sum(log_p, std)
    assert error < 0.03
    assert 0.93 - 3 * error < total < 1.0 + 3 * error
    divergence = truth.ravel() @ (np.log(truth.ravel()) - log_p)
    # 23 free probabilities cost 23 / (2 * 3000) nats at the least, independent columns 0.41.
    assert -3 * error < divergence < 0.15


@pytest.mark.slow
def test_network_alone_learns_more_than_its_reference(X, states, truth):
    levels = [np.arange(k) for k in SIZES]
    settings = SMALL | {"max_epochs": 15, "dropout": 0.0, "score_tol": 0.02}
    alone = IMMSEDiscreteDensity(
        experts=["network"], reference="independent", categories=levels, **settings
    ).fit(X)
    marginals = [truth.sum(tuple({0, 1, 2} - {j})) for j in range(3)]
    independent = np.einsum("i,j,k->ijk", *marginals).ravel()
    p = truth.ravel()
    gap = p @ np.log(p / independent)
    assert p @ alone.score_samples(states) > p @ np.log(independent) + 0.5 * gap


def test_bound_is_not_beaten_on_new_rows(fitted, truth, X):
    new = draw(truth, 4000, 1)
    distinct, counts = np.unique(new, axis=0, return_counts=True)
    log_p, std = fitted.score_samples(distinct, return_std=True)
    share = counts / counts.sum()
    excess = share @ (log_p - np.log(truth[tuple(distinct.T)]))
    # Equal rows share the error of the integration.
    assert excess < 3 * np.sqrt(share**2 @ std**2)
    assert excess > -0.2


def test_independent_reference_alone_is_the_smoothed_marginals():
    X = np.array([[0, 1], [0, 0], [1, 1], [0, 2]])
    alone = {"max_epochs": 0, "experts": ["independent"], "random_state": shifted(0)}
    est = IMMSEDiscreteDensity(handle_unknown="error", **alone).fit(X)
    first, second = np.array([3.5, 1.5]) / 5, np.array([1.5, 2.5, 1.5]) / 5.5
    states = np.array(list(np.ndindex(2, 3)))
    log_p, std = est.score_samples(states, return_std=True)
    expected = np.log(first)[states[:, 0]] + np.log(second)[states[:, 1]]
    np.testing.assert_allclose(log_p, expected, rtol=1e-12)
    assert (std == 0).all()
    assert np.exp(log_p).sum() == pytest.approx(1.0)


@pytest.mark.slow
def test_independent_columns_are_found_to_be_independent():
    rng = np.random.default_rng(shifted(0))
    X = np.column_stack(
        [rng.integers(0, 3, 4000), rng.random(4000) < 0.2, rng.integers(0, 4, 4000)]
    )
    est = IMMSEDiscreteDensity(**SMALL).fit(X[:2000])
    log_p, std = est.score_samples(X[2000:], return_std=True, score_tol=0.01)
    alone = IMMSEDiscreteDensity(**SMALL | {"max_epochs": 0, "experts": ["independent"]})
    difference = log_p - alone.fit(X[:2000]).score_samples(X[2000:])
    _, first, counts = np.unique(X[2000:], axis=0, return_index=True, return_counts=True)
    share = counts / counts.sum()
    error = np.sqrt(share**2 @ std[first] ** 2 + share**2 @ difference[first] ** 2)
    assert abs(share @ difference[first]) <= 3 * error
    assert error < 0.01


def test_errors_of_equal_rows_are_means_over_many_draws():
    rng = np.random.default_rng(shifted(0))
    states = np.column_stack([rng.integers(0, 2, 1000), rng.integers(0, 3, 1000)])
    density = IMMSEDiscreteDensity(max_epochs=0, random_state=shifted(0)).fit(states[:500])
    curve = density.mse_curve(states[500:])
    reference = density._model.references["independent"]
    points = reference.points_of(torch.from_numpy(states[500:].astype(float))).repeat(20, 1)
    eps = torch.from_numpy(rng.normal(size=points.shape))
    for node in range(0, len(curve.logsnr), 6):
        level = torch.full((len(points),), curve.logsnr[node])
        missed = eps - reference.denoise(add_noise(points, eps, level), level)
        each = missed.square().sum(1)
        # The curve is a mean over 500 rows, with at least one draw for each.
        error = float(each.std()) / np.sqrt(500)
        found = curve.references["independent"][node]
        assert abs(found - float(each.mean())) < 4.5 * error + 1e-6


@pytest.mark.parametrize("frame", others_slow([False, True]))
def test_mixed_estimator_on_continuous_columns_is_the_continuous_one(frame):
    X = np.random.default_rng(shifted(0)).normal(size=(200, 3)) * [1.0, 2.0, 3.0]
    X = pd.DataFrame(X, columns=["a", "b", "c"]) if frame else X
    # Networks of both begin at other random numbers.
    settings = TINY | {"max_epochs": 0}
    plain = IMMSEDensity(**settings).fit(X)
    mixed = IMMSEMixedDensity(**settings).fit(X)
    np.testing.assert_array_equal(mixed.score_samples(X[:100]), plain.score_samples(X[:100]))
    assert mixed.entropy_ == plain.entropy_
    assert mixed.kinds_ == ["continuous"] * 3


def test_mixed_estimator_on_discrete_columns_is_the_discrete_one(X):
    settings = TINY | {"n_blocks": 2, "steps_per_epoch": 20}
    plain = IMMSEDiscreteDensity(**settings).fit(X[:500])
    mixed = IMMSEMixedDensity(**settings).fit(X[:500])
    np.testing.assert_allclose(
        mixed.score_samples(X[:100]), plain.score_samples(X[:100]), atol=1e-6
    )
    assert mixed.entropy_ == pytest.approx(plain.entropy_, abs=1e-6)


def test_permuted_categories_change_nothing(X):
    """Codes follow from frequencies, so that the very same model is fitted."""
    counts = [np.bincount(x) for x in X.T]
    assert all(len(set(c)) == len(c) for c in counts)  # no two categories are equally frequent
    names = [["no", "yes"], ["c", "a", "b"], ["z", "x", "w", "y"]]
    others = [["f", "e"], ["m", "n", "l"], ["p", "q", "r", "o"]]
    first, second = (
        pd.DataFrame({j: np.array(n[j])[X[:, j]] for j in range(3)}).astype(object)
        for n in (names, others)
    )
    first.columns = second.columns = list("abc")
    scores = [
        IMMSEDiscreteDensity(**TINY).fit(part).score_samples(part[:200]) for part in (first, second)
    ]
    np.testing.assert_array_equal(*scores)


def test_order_of_rows_and_repetition_are_weights_and_nothing_else(X):
    few = X[:300]
    distinct, counts = np.unique(few, axis=0, return_counts=True)
    est = IMMSEDiscreteDensity(**TINY)
    plain = clone(est).fit(few).score_samples(distinct)
    weighted = clone(est).fit(distinct, sample_weight=counts).score_samples(distinct)
    shuffled = clone(est).fit(few[::-1]).score_samples(distinct)
    for other in (weighted, shuffled):
        np.testing.assert_array_equal(other, plain)
    with_zero = np.vstack([distinct, [[1, 2, 3]]])
    padded = clone(est).fit(with_zero, sample_weight=np.append(counts, 0.0))
    np.testing.assert_array_equal(padded.score_samples(distinct), plain)


def test_scores_do_not_depend_on_the_other_rows(fitted, fitted_mixed, states, mixed_table):
    whole = fitted.score_samples(states)
    np.testing.assert_array_equal(fitted.score_samples(states[5:6]), whole[5:6])
    np.testing.assert_array_equal(fitted.score_samples(states[::-1])[::-1], whole)
    some = mixed_table[:40]
    whole = fitted_mixed.score_samples(some)
    np.testing.assert_array_equal(fitted_mixed.score_samples(some[7:8]), whole[7:8])
    np.testing.assert_array_equal(fitted_mixed.score_samples(some[::-1])[::-1], whole)


def test_fits_are_reproducible_and_pickle(X, fitted, states):
    one, again = (IMMSEDiscreteDensity(**TINY).fit(X[:500]) for _ in range(2))
    np.testing.assert_array_equal(again.score_samples(states), one.score_samples(states))
    loaded = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(loaded.score_samples(states), fitted.score_samples(states))


def test_standard_errors_are_calibrated(X, fitted, states, truth):
    """Other scoring seeds give other noise on the same model."""
    likely = states[truth.ravel() > 0.01]
    values, errors = [], []
    other = copy.copy(fitted)
    for shift in range(12):
        seeds = replace(fitted._model.seeds, scoring=shift)
        other._model = replace(fitted._model, seeds=seeds)
        value, error = other.score_samples(likely, return_std=True)
        values.append(value)
        errors.append(error)
    spread = np.std(values, axis=0, ddof=1)
    ratio = np.sqrt((spread**2).mean() / (np.array(errors) ** 2).mean())
    assert 0.75 < ratio < 1.3


def test_path_probabilities_sum_to_one(fitted, states, truth):
    est = pickle.loads(pickle.dumps(fitted)).set_params(likelihood="path")
    est.set_params(n_paths=200)
    log_p, std = est.score_samples(states, return_std=True)
    error = np.sqrt(np.sum((np.exp(log_p) * std) ** 2))
    assert error < 0.05
    assert abs(np.exp(log_p).sum() - 1.0) < 4 * error
    exact = fitted.score_samples(states)
    p = truth.ravel()
    assert abs(p @ log_p - p @ exact) < 0.4


def test_one_path_is_a_variational_bound(X, states, truth, fitted):
    est = copy.deepcopy(fitted).set_params(likelihood="path", n_paths=1)
    log_p, std = est.score_samples(X[:500], return_std=True)
    assert np.isnan(std).all()
    assert log_p.mean() < np.log(truth[tuple(X[:500].T)]).mean() + 0.05


def test_unknown_levels_are_unlikely_or_an_error(X):
    text = X.astype(str).astype(object)
    new = text[:1].copy()
    new[0, 2] = "never seen"
    with pytest.raises(ValueError, match="never seen"):
        IMMSEDiscreteDensity(handle_unknown="error", **TINY).fit(text[:100]).score_samples(new)
    est = IMMSEDiscreteDensity(**TINY).fit(text)
    unknown, std = est.score_samples(new, return_std=True)
    assert unknown[0] < -5.0
    assert std[0] == 0.0
    levels = [[*map(str, range(k)), "?"] for k in SIZES]
    grid = np.array(list(np.ndindex(*(k + 1 for k in SIZES))))
    everything = np.array([[levels[j][k] for j, k in enumerate(row)] for row in grid], dtype=object)
    log_p, std = est.score_samples(everything, return_std=True)
    total, error = corrected_sum(log_p, std)
    assert 0.7 < total < 1.0 + 3 * error
    assert not (est.sample(300) == "?").any()


def test_missing_categories_are_a_level(mixed_table):
    frame = mixed_table[:300].copy()
    frame.loc[::5, "colour"] = None
    est = IMMSEMixedDensity(**TINY).fit(frame)
    assert None in est.categories_[0].tolist()
    assert np.isfinite(est.score_samples(frame[:10])).all()
    frame.loc[3, "size"] = np.nan
    est = IMMSEMixedDensity(**TINY, patterns="joint").fit(frame)
    assert est.net_ is None
    assert None in est.categories_[0].tolist()
    assert np.isfinite(est.score_samples(frame[:10])).all()


@pytest.mark.slow
def test_mixed_density_integrates_to_at_most_one():
    rng = np.random.default_rng(shifted(0))
    group = rng.random(1000) < 0.3
    X = pd.DataFrame({"group": group, "x": rng.normal(size=1000) + 3.0 * group})
    est = IMMSEMixedDensity(**SMALL).fit(X)
    grid = np.linspace(-6.0, 9.0, 400)
    step = grid[1] - grid[0]
    total = variance = 0.0
    for level in (False, True):
        rows = pd.DataFrame({"group": [level] * 400, "x": grid})
        log_p, std = est.score_samples(rows, return_std=True)
        mass, error = corrected_sum(log_p, std)
        total, variance = total + step * mass, variance + (step * error) ** 2
        truth = (0.3 if level else 0.7) * stats.norm.pdf(grid - 3.0 * level)
        assert step * np.abs(np.exp(log_p) - truth).sum() < 0.1
    assert 0.93 < total < 1.0 + 3 * np.sqrt(variance) + 1e-3


def test_units_of_continuous_columns_enter_by_their_jacobian(mixed_table):
    few = mixed_table[:150]
    scaled = few.assign(size=4.0 * few["size"])
    moved = IMMSEMixedDensity(**TINY).fit(scaled).score_samples(scaled[:100])
    plain = IMMSEMixedDensity(**TINY).fit(few).score_samples(few[:100])
    np.testing.assert_allclose(moved, plain - np.log(4.0), atol=1e-9)


@pytest.mark.slow
def test_samples_follow_the_model(fitted, X, fitted_mixed, mixed_table):
    rows = fitted.sample(2000, random_state=shifted(1))
    assert rows.dtype == X.dtype
    for j, size in enumerate(SIZES):
        expected = np.bincount(X[:, j], minlength=size) / len(X)
        share = np.bincount(rows[:, j], minlength=size) / 2000
        assert np.abs(share - expected).max() < 0.06
    np.testing.assert_array_equal(rows, fitted.sample(2000, random_state=shifted(1)))
    frame = fitted_mixed.sample(1500, random_state=shifted(0))
    assert list(frame.dtypes) == list(mixed_table.dtypes)
    means = frame.groupby("colour")["size"].mean()
    expected = mixed_table.groupby("colour")["size"].mean()
    assert np.abs(means - expected).max() < 0.4
    assert np.corrcoef(frame["grade"], np.log(frame["weight"].clip(1e-3)))[0, 1] > 0.4


def test_curve_shows_no_expert_better_than_the_stack(fitted, fitted_mixed, mixed_table):
    for est, rows in ((fitted, None), (fitted_mixed, None), (fitted_mixed, mixed_table[:50])):
        curve = est.mse_curve(rows)
        assert set(curve.weights) >= {"network", "independent"}
        if rows is None:
            for error in [*curve.references.values(), *curve.networks.values()]:
                assert (curve.model <= error * (1 + 1e-9) + 1e-12).all()


@pytest.mark.slow
def test_images_share_their_levels_and_are_any_shape():
    images = np.round(load_digits().images[:400] / 4.0)
    rows = images.reshape(400, -1)
    est = IMMSEDiscreteDensity(image_shape=(8, 8), **TINY).fit(images)
    assert set(est.nets_) == {"network", "dense_network"}
    assert all(list(levels) == [0, 1, 2, 3, 4] for levels in est.categories_)
    np.testing.assert_array_equal(est.score_samples(images[:5]), est.score_samples(rows[:5]))
    assert est.sample(3).shape == (3, 64)
    # Pixels with a single value in the data have all the others, too.
    corner = rows[:1].copy()
    corner[0, 0] = 4
    assert est.score_samples(corner)[0] < est.score_samples(rows[:1])[0] - 3.0
    for shape in ((4, 4), (8,), (8, -8), (0, 8)):
        with pytest.raises(ValueError, match="image_shape"):
            IMMSEDiscreteDensity(image_shape=shape, **TINY).fit(rows)
    with pytest.raises(ValueError, match="Pixels are ordinal"):
        IMMSEDiscreteDensity(image_shape=(8, 8), kind="nominal", **TINY).fit(rows)


def test_fractional_levels_are_accepted_up_to_256_of_them():
    rng = np.random.default_rng(shifted(0))
    levels = rng.integers(0, 17, size=(200, 3))
    fractions = IMMSEDiscreteDensity(**TINY).fit(levels / 16)
    whole = IMMSEDiscreteDensity(**TINY).fit(levels)
    np.testing.assert_array_equal(
        fractions.score_samples(levels[:9] / 16), whole.score_samples(levels[:9])
    )
    with pytest.raises(ValueError, match="IMMSEMixedDensity"):
        IMMSEDiscreteDensity(**TINY).fit(rng.normal(size=(300, 1)))


def test_grid_search_over_schedules(X):
    search = GridSearchCV(
        IMMSEDiscreteDensity(**TINY),
        {"schedule": ["uniform", LogisticSchedule(loc=0.0)]},
        cv=2,
        n_jobs=1,
    ).fit(X[:200])
    assert search.best_estimator_.score(X[:50]) < 0.0
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_warm_start_goes_on_and_refuses_other_levels(X):
    est = IMMSEDiscreteDensity(warm_start=True, **TINY).fit(X[:500])
    first = est.net_
    est.fit(X[:500])
    assert est.net_ is not first
    with pytest.raises(ValueError, match="handle_unknown changed"):
        est.set_params(handle_unknown="error").fit(X[:500])
    with pytest.raises(ValueError, match="features"):
        est.set_params(handle_unknown="good_turing").fit(X[:500, :2])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kind": "numeric"}, "kind"),
        ({"kind": ["nominal"]}, "kind"),
        ({"experts": ["gaussian"]}, "experts"),
        ({"reference": "gaussian"}, "reference"),
        ({"loss": "hinge"}, "loss"),
        ({"likelihood": "exact"}, "likelihood"),
        ({"categories": [[0, 1]]}, "categories"),
        ({"handle_unknown": "ignore"}, "handle_unknown"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"preconditioner": "gaussian"}, "preconditioner"),
    ],
)
def test_bad_parameters_are_named(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        IMMSEDiscreteDensity(**TINY | parameters).fit(X)


def test_bad_tables_are_named(X, mixed_table):
    with pytest.raises(ValueError, match="infinity"):
        IMMSEDiscreteDensity(**TINY).fit(np.where(X == 3, np.inf, X.astype(float)))
    with pytest.raises(ValueError, match="minimum of 2"):
        IMMSEDiscreteDensity(**TINY).fit(X[:1])
    with pytest.raises(NotFittedError):
        IMMSEDiscreteDensity().score_samples(X)
    with pytest.raises(ValueError, match="at least one non-zero"):
        IMMSEDiscreteDensity(**TINY).fit(X, sample_weight=np.zeros(len(X)))
    est = IMMSEMixedDensity(handle_unknown="error", **TINY).fit(mixed_table[:200])
    with pytest.raises(ValueError, match="feature names"):
        est.score_samples(mixed_table.rename(columns={"size": "length"}))
    with pytest.raises(ValueError, match="purple"):
        est.score_samples(mixed_table[:2].assign(colour="purple"))
    with pytest.raises(ValueError, match="categorical_features"):
        IMMSEMixedDensity(categorical_features=["shape"], **TINY).fit(mixed_table)


def test_interrupted_fit_leaves_nothing(X, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    est = IMMSEDiscreteDensity(**TINY).fit(X)
    monkeypatch.setattr("sk_itdiffusion._first._fit.networks.train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        est.fit(X)
    with pytest.raises(NotFittedError):
        est.score_samples(X)


@pytest.mark.slow
def test_few_states_with_many_rows_are_modelled_all_the_same():
    """Three states of 500 rows: all their copies count, whatever the least frequent one has."""
    first = np.random.default_rng(shifted(0)).integers(0, 3, size=500)
    X = np.column_stack([first, first == 2])
    est = IMMSEDiscreteDensity(**SMALL | {"score_tol": 0.03}).fit(X)
    assert est.n_iter_ > 0
    log_p, std = est.score_samples(np.array([[0, 0], [1, 0], [2, 1]]), return_std=True)
    share = np.bincount(first) / 500
    assert np.abs(log_p - np.log(share)).max() < 0.15 + 3 * std.max()
    assert est.score_samples([[2, 0]])[0] < -4.0


def test_a_table_repeated_has_as_many_more_observations():
    X = np.random.default_rng(shifted(0)).integers(0, 3, size=(30, 2))
    few = IMMSEDiscreteDensity(**TINY).fit(X)
    many = IMMSEDiscreteDensity(**TINY).fit(np.repeat(X, 10, axis=0))
    assert few.n_iter_ == 0
    assert many.n_iter_ > 0
    weighted = IMMSEDiscreteDensity(**TINY).fit(X, sample_weight=np.full(30, 10.0))
    np.testing.assert_array_equal(weighted.score_samples(X), many.score_samples(X))


@pytest.mark.parametrize("heavy", others_slow([1e25, 1e-25, 1e10, 1e-8], 2))
def test_extreme_weights_do_not_break_the_split(X, heavy):
    weight = np.ones(200)
    weight[7] = heavy
    est = IMMSEDiscreteDensity(**TINY).fit(X[:200], sample_weight=weight)
    assert np.isfinite(est.score_samples(X[:200])).all()


def test_fractional_weights_count_by_their_effective_number(X):
    """A tiny weight must not make thousands of observations of the others."""
    weight = np.ones(30)
    weight[0] = 1e-3
    est = IMMSEDiscreteDensity(**TINY).fit(X[:30], sample_weight=weight)
    assert est.n_iter_ == 0  # fewer than 40 observations: the independent reference
    plain = IMMSEDiscreteDensity(**TINY).fit(X[1:30])
    difference = est.score_samples(X[1:30]) - plain.score_samples(X[1:30])
    assert np.abs(difference).max() < 0.1


@pytest.mark.slow
def test_fractional_weights_of_few_states_are_split_like_counts(X):
    weight = np.random.default_rng(shifted(0)).uniform(0.5, 1.5, size=len(X))
    few = X[:, :2]
    est = IMMSEDiscreteDensity(**SMALL | {"score_tol": 0.03}).fit(few, sample_weight=weight)
    states = np.array(list(np.ndindex(2, 3)))
    share = np.bincount(3 * few[:, 0] + few[:, 1], weights=weight) / weight.sum()
    log_p, std = est.score_samples(states, return_std=True)
    assert est.n_iter_ > 0
    assert share @ (np.log(share) - log_p) < 0.1 + 3 * np.sqrt(share**2 @ std**2)


def test_unseen_values_are_never_drawn_whatever_the_model():
    X = np.random.default_rng(shifted(0)).integers(0, 4, size=(25, 2))
    for rows in (X, np.ones((60, 2), dtype=int)):
        est = IMMSEDiscreteDensity(**TINY).fit(rows)
        assert np.isin(est.sample(400, random_state=shifted(0)), rows).all()


@pytest.mark.slow
def test_paths_follow_the_model_with_a_latent_class_control(X, states, truth):
    est = IMMSEDiscreteDensity(reference="latent_class", **SMALL).fit(X)
    exact = est.set_params(score_tol=0.03).score_samples(states)
    paths = est.set_params(likelihood="path", n_paths=100).score_samples(states)
    p = truth.ravel()
    assert abs(p @ paths - p @ exact) < 0.15


def test_warm_start_with_arrays_and_other_rare_levels(X):
    levels = [np.arange(k) for k in SIZES]
    est = IMMSEDiscreteDensity(
        warm_start=True, kind=np.array(["nominal"] * 3), categories=levels, **TINY
    )
    common = X[X[:, 2] != 3]
    est.fit(common[:400])
    est.set_params(categories=[np.arange(k) for k in SIZES])
    est.fit(X[:800])
    with pytest.raises(ValueError, match="categories changed"):
        est.set_params(categories=[np.arange(5)] * 3).fit(X[:800])


def test_pixels_of_too_many_levels_are_an_error():
    with pytest.raises(ValueError, match="at most 256"):
        IMMSEDiscreteDensity(image_shape=(6, 6), **TINY).fit(
            np.random.default_rng(shifted(0)).random((60, 36))
        )
    with pytest.raises(ValueError, match="dense_network"):
        IMMSEDiscreteDensity(experts=["dense_network"], **TINY).fit(np.eye(4, dtype=int))


@pytest.mark.slow
def test_rare_levels_stay_as_likely_as_the_reference_says(mixed_table):
    """A declared category without rows must not be learned to be impossible."""
    frame = mixed_table[:600].copy()
    levels = ["red", "green", "blue", "black"]
    frame["colour"] = pd.Categorical(frame["colour"], categories=levels)
    est = IMMSEMixedDensity(experts=["network"], **SMALL).fit(frame)
    new = frame[:40].assign(colour=pd.Categorical(["black"] * 40, categories=levels))
    log_p, std = est.score_samples(new, return_std=True)
    plain = IMMSEMixedDensity(experts=["independent"], **SMALL | {"max_epochs": 0}).fit(frame)
    difference = log_p - plain.score_samples(new)
    assert abs(difference.mean()) < 3.0 + 3 * std.mean() / np.sqrt(40)


def test_a_lower_tolerance_after_the_fit_lowers_the_error(fitted, states):
    est = pickle.loads(pickle.dumps(fitted))
    few, std = est.set_params(score_tol=0.5).score_samples(states, return_std=True)
    many, less = est.set_params(score_tol=0.005).score_samples(states, return_std=True)
    assert np.sqrt((less**2).mean() / (std**2).mean()) < 0.4
    assert np.abs((many - few) / np.hypot(std, less)).max() < 6.0
    with pytest.raises(ValueError, match="score_tol"):
        est.set_params(score_tol=0.0).score_samples(states)


@pytest.mark.slow
def test_networks_trained_at_the_same_time_are_those_trained_in_turn():
    X = load_digits().images[:200, 2:6, 2:6] // 8.0
    settings = {**TINY, "image_shape": (4, 4), "reference": "independent"}
    together = IMMSEDiscreteDensity(**settings).fit(X)
    in_turn = IMMSEDiscreteDensity(callbacks=[Callback()], **settings).fit(X)
    assert list(together.nets_) == list(in_turn.nets_) == ["network", "dense_network"]
    np.testing.assert_array_equal(together.score_samples(X[:20]), in_turn.score_samples(X[:20]))
