"""Outlier detection in tables with missing entries."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion._first._estimators import detector_density
from sk_itdiffusion._first._estimators.completions import N_COMPLETIONS, completed_units
from sk_itdiffusion._first._estimators.distinct_rows import DistinctRows
from sk_itdiffusion._first._estimators.trimming import separate_values, varying_again

pytestmark = pytest.mark.usefixtures("brief_fits")

COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 2.0, -0.4], [0.3, -0.4, 1.5]])
NAN = np.nan


def quick_density(**settings):
    """Return a density estimator that is fitted at once: a normal distribution."""
    settings = {"max_epochs": 0, "score_tol": 5.0, "marginals": "standard"} | settings
    return IMMSEDensity(reference="gaussian", experts=["gaussian"], **settings)


def make_detector(estimator=None, **settings):
    return IMMSEOutlierDetector(estimator, **({"random_state": 0, "contamination": 0.1} | settings))


def normal_rows(n, seed=0):
    return np.random.default_rng(seed).multivariate_normal([1.0, -2.0, 3.0], COVARIANCE, size=n)


def hidden(X, share=0.2, seed=0):
    """Return rows of which a share of the entries, chosen completely at random, is missing."""
    X = np.array(X, dtype=np.float64)
    X[np.random.default_rng(seed + 1000).random(X.shape) < share] = NAN
    return X


def mixed_holes(n=60, seed=0):
    rng = np.random.default_rng(seed)
    colour = rng.choice(["red", "green", "blue"], n, p=[0.5, 0.3, 0.2])
    size = rng.normal(3.0 * (colour == "red"), 1.0)
    table = pd.DataFrame({"colour": colour, "count": rng.integers(0, 60, n), "size": size})
    return table.astype({"count": "Int64"}).mask(rng.random(table.shape) < 0.2)


@pytest.fixture(scope="module")
def detector():
    return make_detector(quick_density()).fit(hidden(normal_rows(150)))


# -- scores ------------------------------------------------------------------------------------


def test_score_is_that_expected_of_the_complete_row():
    """Of a normal distribution, whose score is exact, the expectation is known in closed form."""
    detector = make_detector(quick_density(), average=False, noise_floor=3.0, trim=0.0)
    detector.fit(hidden(normal_rows(300)))
    rows = normal_rows(400, 1)
    rows[:, 1] = NAN
    model = detector.estimator_._model
    reference, scale = model.references["gaussian"], model.space.standardizer.scale
    mean = model.space.values(reference.mean.numpy()[None])[0]
    covariance = reference.covariance.numpy() * np.outer(scale, scale)
    seen, noise = [0, 2], math.exp(-3.0) * np.diag(scale**2)
    precision = np.linalg.inv(covariance + noise)
    slope = covariance[1, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
    left = rows - mean
    left[:, 1] = left[:, seen] @ slope
    variance = covariance[1, 1] - slope @ covariance[seen, 1]
    square = np.einsum("ni,ij,nj->n", left, precision, left) + variance * precision[1, 1]
    square += np.trace(precision @ noise)
    log_det = np.linalg.slogdet(2.0 * math.pi * (covariance + noise))[1]
    difference = detector.score_samples(rows) + 0.5 * (log_det + square)
    # The rows' draws are independent: four standard errors of their mean.
    assert abs(difference.mean()) < 4.0 * difference.std() / math.sqrt(len(rows))
    # A squared normal variable, and a linear term, averaged over the draws.
    linear = (left @ precision[:, 1]).std() * math.sqrt(variance)
    expected = np.hypot(linear, variance * precision[1, 1] / math.sqrt(2.0))
    assert difference.std() < 1.3 * expected / math.sqrt(N_COMPLETIONS)


def test_a_row_does_not_depend_on_the_others(detector):
    rows = hidden(normal_rows(12, 1), 0.4)
    rows[3], rows[4] = NAN, rows[5]
    scores = detector.score_samples(rows)
    assert np.isfinite(scores).all()
    assert scores[4] == scores[5]
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(detector.score_samples(rows[order]), scores[order])
    for i in range(6):
        assert detector.score_samples(rows[i : i + 1])[0] == scores[i]
    parts = detector.explain(rows[:9])
    pd.testing.assert_frame_equal(detector.explain(rows[5:6]), parts[5:6].reset_index(drop=True))


def test_complete_rows_are_scored_as_if_no_other_lacked_entries():
    X = normal_rows(120)
    detector = make_detector(quick_density()).fit(X)
    rows = normal_rows(5, 1)
    alone, parts = detector.score_samples(rows), detector.explain(rows)
    rows = np.vstack([rows, hidden(rows, 0.9)])
    np.testing.assert_array_equal(detector.score_samples(rows)[:5], alone)
    np.testing.assert_array_equal(detector.explain(rows)[:5], parts)


def test_rows_without_entries_are_ordinary_and_unexplained(detector):
    empty = np.full((1, 3), NAN)
    score = detector.score_samples(empty)[0]
    # It is a mean over draws of rows: four standard errors, and the model's error.
    scores = detector.score_samples(normal_rows(400, 1))
    assert abs(score - scores.mean()) < 4.0 * scores.std() / math.sqrt(N_COMPLETIONS)
    assert detector.predict(empty)[0] == 1
    assert (detector.explain(empty) == 0.0).all(axis=None)


def test_what_is_missing_makes_no_row_odd(detector):
    """An odd entry is odd without the others, and an ordinary one is ordinary."""
    rows = np.array([[9.0, NAN, NAN], [NAN, NAN, -7.0], [1.0, NAN, NAN], [NAN, -2.0, 3.0]])
    assert detector.predict(rows).tolist() == [-1, -1, 1, 1]
    # Of these two columns the first is odd by itself, and contradicts the second.
    contradiction = np.array([[4.0, -7.0, NAN]])
    assert detector.predict(contradiction)[0] == -1
    parts = detector.explain(np.vstack([rows[:1], contradiction]))
    assert parts.idxmin(axis=1)[0] == "x0"
    assert parts.idxmin(axis=1)[1] in ("x0", "x1")


@pytest.mark.parametrize(
    ("n", "n_held_out", "n_fits"),
    [(1000, 200, 2), pytest.param(150, 150, 8, marks=pytest.mark.slow)],
)
def test_false_alarms_of_new_rows_are_as_frequent_as_promised(n, n_held_out, n_fits):
    rates = []
    for seed in range(n_fits):
        X, new = hidden(normal_rows(n, seed), seed=seed), hidden(normal_rows(300, seed + 10))
        detector = make_detector(quick_density(), contamination="auto", random_state=seed).fit(X)
        p = detector.p_values(new)
        rates.append([(p <= rate).mean() for rate in (0.1, 0.3)])
    # A rate has the errors of the held-out rows and of 300 new ones.
    for rate, found in zip((0.1, 0.3), np.mean(rates, axis=0), strict=True):
        error = math.sqrt(rate * (1.0 - rate) * (1 / n_held_out + 1 / 300) / n_fits)
        assert abs(found - rate) < 4.0 * error


def test_outliers_are_found_nearly_as_well_as_without_missing_entries():
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        factor = rng.normal(size=(300, 1))
        X = factor + 0.3 * rng.normal(size=(300, 6))
        is_odd = np.arange(300) < 20
        X[is_odd, :3] *= -1.0  # ordinary entries that contradict each other
        X[is_odd] += 0.5 * rng.normal(size=(20, 6))
        holes = hidden(X, seed=seed)
        tables = [X, holes, SimpleImputer().fit_transform(holes)]
        detectors = [make_detector(quick_density(), random_state=seed).fit(each) for each in tables]
        scores = [own.score_samples(each) for own, each in zip(detectors, tables, strict=True)]
        found.append([roc_auc_score(is_odd, -each) for each in scores])
    complete, own, imputed = np.mean(found, axis=0)
    # Areas of 20 and 280 rows have errors of about 0.04 that three tables make 0.02.
    assert own > complete - 0.1
    assert own > imputed + 0.05


# -- explanations ------------------------------------------------------------------------------

KINDS = {
    "numbers": (lambda: quick_density(), lambda: hidden(normal_rows(60)), {"average": False}),
    "log-density": (
        lambda: IMMSEDensity(max_epochs=0, marginals="standard"),
        lambda: hidden(normal_rows(60)),
        {"average": False, "noise_floor": None},
    ),
    "lattice": (
        lambda: quick_density(dequantize=True),
        lambda: hidden(normal_rows(60).round(1)),
        {"average": False, "noise_floor": None},
    ),
    "categories": (
        lambda: IMMSEDiscreteDensity(max_epochs=0, reference="independent"),
        lambda: hidden(np.random.default_rng(0).integers(0, 3, size=(60, 3))),
        {"average": False},
    ),
    "mixed": (
        lambda: IMMSEMixedDensity(
            max_epochs=0, handle_missing="missing", reference="independent", marginals="standard"
        ),
        mixed_holes,
        {},
    ),
}


@pytest.mark.parametrize("kind", others_slow(KINDS, 3))
def test_contributions_sum_to_the_score_and_are_zero_where_entries_are_missing(kind, tmp_path):
    estimator, table, settings = KINDS[kind]
    X = table()
    detector = make_detector(estimator(), trim=0.0, **settings).fit(X)
    rows = X[:6]
    scores, parts = detector.score_samples(rows), detector.explain(rows)
    assert isinstance(parts, pd.DataFrame)
    missing = pd.DataFrame(rows).isna().to_numpy()
    assert missing.any(axis=1).sum() >= 2
    assert (parts.to_numpy()[missing] == 0.0).all()
    seen = ~missing.all(axis=1)
    np.testing.assert_allclose(parts.sum(axis=1)[seen], scores[seen], rtol=1e-9)
    detector.save(tmp_path / "detector")
    loaded = sk_itdiffusion.load(tmp_path / "detector")
    pd.testing.assert_frame_equal(loaded.explain(rows), parts)
    for same in (loaded, pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(same.score_samples(rows), scores)


def test_containers_do_not_matter(detector):
    X = hidden(normal_rows(150))
    rows = X[:20]
    as_objects = np.where(np.isnan(rows), None, rows.astype(object))
    expected = detector.score_samples(rows)
    np.testing.assert_array_equal(detector.score_samples(as_objects), expected)
    np.testing.assert_array_equal(detector.score_samples(as_objects.tolist()), expected)
    frame = pd.DataFrame(np.where(np.isnan(X), None, X.astype(object)), columns=["a", "b", "c"])
    fitted = clone(detector).fit(frame)
    np.testing.assert_array_equal(fitted.score_samples(frame[:20]), expected)
    nullable = frame.astype("Float64")
    np.testing.assert_array_equal(fitted.score_samples(nullable[:20]), expected)
    assert fitted.explain(frame[3:5]).index.tolist() == [3, 4]


# -- fits --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:false_alarm_rate")
@pytest.mark.parametrize(("contamination", "average"), [("auto", False), (0.1, True)])
def test_weights_are_repetitions_and_order_does_not_matter(contamination, average):
    X = hidden(normal_rows(60), 0.3)
    X[:3] = NAN
    weight = np.random.default_rng(0).integers(0, 4, size=60)
    repeated = np.repeat(X, weight, axis=0)
    order = np.random.default_rng(1).permutation(len(repeated))
    detector = make_detector(quick_density(), contamination=contamination, average=average)
    weighted = clone(detector).fit(X, sample_weight=weight)
    shuffled = clone(detector).fit(repeated[order])
    assert weighted.offset_ == shuffled.offset_
    rows = hidden(normal_rows(20, 1))
    np.testing.assert_array_equal(weighted.score_samples(rows), shuffled.score_samples(rows))


@pytest.mark.filterwarnings("ignore:false_alarm_rate")
def test_all_fits_are_of_one_kind_if_a_single_entry_is_missing(monkeypatch):
    fits, fit_clone = [], detector_density.fit_clone

    def recorded(*arguments):
        fits.append(fit_clone(*arguments))
        return fits[-1]

    monkeypatch.setattr("sk_itdiffusion._first._estimators.outlier.fit_clone", recorded)
    X = normal_rows(50)
    X[7, 1] = NAN
    network = IMMSEDensity(marginals="standard", n_networks=1, score_tol=0.5)
    make_detector(network, contamination="auto", trim=0.0).fit(X)
    assert len(fits) == 6
    assert all(each._model.has_missing and each.net_ is None for each in fits)


@pytest.mark.filterwarnings("ignore:false_alarm_rate", "ignore:Column")
def test_columns_that_few_rows_have_are_in_every_fit():
    X = normal_rows(60)
    X[2:, 1] = NAN
    detector = make_detector(quick_density(), contamination="auto").fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    X[:, 1] = NAN
    with pytest.raises(ValueError, match=r"no observed values in column\(s\) 1"):
        detector.fit(X)


def test_ensembles_refuse_missing_entries():
    ensemble = IMMSEEnsemble([("one", quick_density()), ("other", quick_density())])
    X = normal_rows(60)
    detector = make_detector(ensemble, trim=0.0)
    assert not detector.__sklearn_tags__().input_tags.allow_nan
    detector.fit(X)
    X[3, 1] = NAN
    with pytest.raises(ValueError, match=r"contains NaN in column\(s\) 1\."):
        detector.score_samples(X)
    with pytest.raises(ValueError, match=r"contains NaN in column\(s\) 1\."):
        detector.fit(X)


# -- training rows -----------------------------------------------------------------------------


def test_units_of_a_row_are_completed_by_different_draws(detector):
    values = np.array([[1.0, NAN, 2.0], [NAN, NAN, NAN], [1.0, -2.0, 3.0]])
    given = DistinctRows(values, np.array([2.5, 1.0, 4.0]), np.array([40, 1, 4]), np.ones(3))
    units = completed_units(detector.estimator_._model, values, given, 10)
    assert units.n_copies.tolist() == [4] * 4 + [3] * 8 + [4]
    assert units.weight.sum() == pytest.approx(6.5)
    assert len(np.unique(units.rows[:-1, 1])) == N_COMPLETIONS == 12
    assert (units.rows[:-1, [0, 2]] == [1.0, 2.0]).all()
    np.testing.assert_array_equal(units.rows[-1], values[2])


def test_trimming_keeps_rows_that_columns_need():
    values = np.array([[0.0, NAN, 1.0], [0.0, NAN, 2.0], [NAN, 5.0, 3.0], [1.0, 6.0, NAN]])
    kept = np.array([True, True, False, False])
    # The first column is constant among the rows kept, the second missing; the last row is best.
    found = varying_again(values, np.array([0.0, 0.0, -2.0, -1.0]), kept)
    assert found.tolist() == [3, 3]


def test_missing_entries_are_in_no_group_of_equal_values():
    values = np.array([[0.0], [NAN], [0.0], [1.0], [1.0], [NAN]])
    ones = np.ones(6)
    given = DistinctRows(values, ones, ones.astype(np.intp), ones)
    (group,) = separate_values(values, given, np.empty(0, dtype=np.intp))
    assert group.tolist() == [0, -1, 0, 1, 1, -1]
