"""The members of a detector: how they are weighted, and the local score among them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import sk_itdiffusion
from sk_itdiffusion import IMMSEDensity, IMMSEOutlierDetector
from sk_itdiffusion._first._estimators.combined_score import (
    DEPENDENCE,
    LOCAL,
    CombinedScore,
    told_apart,
)
from sk_itdiffusion._first._estimators.local_score import LocalScore
from sk_itdiffusion._first._estimators.outlier_score import FlooredModel
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first.layout import Layout, Variable

pytestmark = pytest.mark.usefixtures("brief_fits")

TOLERANCE = Tolerance(0.02)


def category_and_number(n, rng, n_odd=0):
    """Return a category and a number around its mean; odd rows have another category."""
    code = rng.integers(3, size=n)
    number = 6.0 * code + rng.normal(size=n)
    code[:n_odd] = (code[:n_odd] + rng.integers(1, 3, size=n_odd)) % 3
    return pd.DataFrame({"kind": np.array(list("abc"), dtype=object)[code], "x": number})


@pytest.fixture(scope="module")
def detector():
    return IMMSEOutlierDetector(random_state=0).fit(
        category_and_number(1000, np.random.default_rng(0))
    )


def local_of(rows, floors=(7.0,), n_copies=None, layout=None):
    copies = np.ones(len(rows), dtype=np.intp) if n_copies is None else np.array(n_copies)
    return LocalScore.of(layout or Layout(rows.shape[1]), rows, copies, np.array(floors))


def test_contradictions_are_caught(detector):
    """Each entry is ordinary by itself; of 200 that are six standard deviations apart 90% are."""
    rows = category_and_number(400, np.random.default_rng(1), n_odd=200)
    scores = detector.score_samples(rows)
    assert roc_auc_score(np.arange(400) < 200, -scores) > 0.99
    assert (detector.predict(rows[:200]) == -1).mean() > 0.9
    # Five standard errors of the rate of 5%, of 200 calibration and 200 test rows.
    assert (detector.predict(rows[200:]) == -1).mean() < 0.05 + 5.0 * 0.022
    parts = detector.explain(rows[:5])
    np.testing.assert_allclose(parts.sum(axis=1), scores[:5], rtol=1e-9)


def test_score_of_a_row_depends_on_it_alone_and_files_keep_it(detector, tmp_path):
    rows = category_and_number(12, np.random.default_rng(2), n_odd=4)
    rows.loc[0, "kind"], rows.loc[1, "x"] = "unknown", 1e200
    scores = detector.score_samples(rows)
    assert np.isfinite(scores).all()
    alone = [detector.score_samples(rows.iloc[[i]])[0] for i in range(3)]
    np.testing.assert_array_equal(alone, scores[:3])
    np.testing.assert_array_equal(detector.score_samples(rows[::-1]), scores[::-1])
    detector.save(tmp_path / "detector.safetensors")
    loaded = sk_itdiffusion.load(tmp_path / "detector.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(rows), scores)
    pd.testing.assert_frame_equal(loaded.explain(rows[:3]), detector.explain(rows[:3]))
    assert loaded.members_ == ["independent", "latent_class", DEPENDENCE, LOCAL]


def test_members_without_a_say_on_dependence_have_little():
    """Independent columns do not tell exchanged entries: their weight is the least there is."""
    X = category_and_number(500, np.random.default_rng(0))
    detector = IMMSEOutlierDetector(contamination=0.1, trim=0.0, random_state=0).fit(X)
    model, values = detector.estimator_._model, detector.estimator_._read(X)
    found = CombinedScore.fit(
        FlooredModel(model, np.array([7.0]), ("independent", "latent_class"), is_wide=True),
        False,
        None,
        values,
        np.ones(500),
        500,
        np.random.default_rng(0),
        TOLERANCE,
    )
    assert found.members == ("independent", "latent_class")
    # Two standard errors of a rank statistic of 500 rows each, and four for the estimate itself.
    error = 2.0 / np.sqrt(6.0 * 500)
    assert found.weight[0] / found.weight[1] < 6.0 * error / 0.5
    np.testing.assert_allclose(found.weight.sum(), 1.0)


def test_two_views_of_one_model_share_its_weight(detector):
    """Where all members but independent columns tell exchanged entries equally well."""
    _, likeliest, dependence, neighbors = detector._score.weight
    # Four standard errors of Somers' D of 500 rows each, which is above 0.5 here.
    error = 4.0 * 2.0 / np.sqrt(6.0 * 500) / 0.5
    assert likeliest + dependence == pytest.approx(neighbors, rel=error)


def test_rows_left_out_by_trimming_make_no_tails_heavy():
    """With outliers that trimming finds, members have the tails of clean rows, or lighter ones."""
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(400, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0, 0, 1]])
    X = np.vstack([clean, 30.0 * rng.normal(size=(30, 3))])
    mixed, ordinary = (
        IMMSEOutlierDetector(contamination=0.1, random_state=0).fit(rows)._score
        for rows in (X, clean)
    )
    # Standard errors of the mean of about 80 exponential numbers, three of each fit.
    assert (mixed.tail < ordinary.tail * (1.0 + 3.0 * np.sqrt(2.0 / 80))).all()


def test_surprise_is_the_share_of_training_rows_that_score_as_low():
    """Of new ordinary rows too, at the median, the lowest fifth and, by the tail, beyond."""
    training, rows = (category_and_number(n, np.random.default_rng(n)) for n in (1000, 2000))
    # Trimmed rows would not be counted.
    detector = IMMSEOutlierDetector(contamination=0.1, trim=0.0, random_state=0).fit(training)
    found, density = detector._score, detector.estimator_
    surprise = found._surprise(found.of_members(density._read(rows), TOLERANCE))
    for share in (0.5, 0.2, 0.05):
        reached = (np.exp(-surprise) <= share).mean(axis=0)
        # Shares of 500 training rows and 2000 new ones, four standard errors; the tail has two
        # parameters, and members are discrete in part.
        error = 4.0 * np.sqrt(share * (1.0 - share) * (1 / 500 + 1 / 2000))
        assert (np.abs(reached[1:] - share) < error + 0.3 * share).all()


def test_score_is_the_harmonic_mean_of_shares(detector):
    """In the units of the log-density, which ordinary rows have."""
    density = detector.estimator_
    values = density._read(category_and_number(50, np.random.default_rng(4)))
    found = detector._score
    shares = np.exp(-found._surprise(found.of_members(values, density._tolerance())))
    mean = 1.0 / (found.weight / shares).sum(axis=1)
    unit = found.width[1] / np.log(0.5 / 0.2)
    expected = found.center[1] + unit * np.log(2.0 * mean)
    np.testing.assert_allclose(found.scores(density, values), expected, rtol=1e-9)


@pytest.mark.slow
def test_p_values_hold_where_fits_differ_in_what_they_resolve():
    """The values of a count are peaks of the density of all rows, and not of all folds."""

    def rows(n, seed):
        rng = np.random.default_rng(seed)
        return pd.DataFrame({"x": rng.normal(size=n), "k": rng.poisson(2, n)})

    detector = IMMSEOutlierDetector(random_state=0).fit(rows(400, 103))
    p_values = detector.p_values(rows(1000, 0))
    # Five standard errors of 400 calibrating rows and 1000 new ones, and as much for the fits.
    np.testing.assert_allclose((p_values <= 0.5).mean(), 0.5, atol=0.3)


def test_exchanged_rows_are_told_apart_as_somers_says():
    rng = np.random.default_rng(0)
    own, mixed = rng.normal(size=(2, 50, 1))
    share = np.full(50, 1 / 50)
    pairs = np.sign(own - mixed.T).mean()
    assert told_apart(own, mixed, share)[0] == pytest.approx(pairs, abs=1e-12)


# -- the local score ---------------------------------------------------------------------------


def by_brute_force(X, copies, row, n_neighbors, variance):
    """Return the local score from all distances."""
    points = np.repeat(X, copies, axis=0)

    def logs(x):
        squares = np.sort(((points - x) ** 2).sum(axis=1))
        order = np.argsort(((points - x) ** 2).sum(axis=1), kind="stable")
        skipped = int(squares[0] == 0.0)
        chosen = slice(skipped, skipped + n_neighbors)
        return np.log(squares[chosen] + X.shape[1] * variance), order[chosen]

    own, index = logs(row)
    spread = np.array([logs(points[i])[0].mean() for i in index])
    return -(own - 0.5 * spread).mean()


def test_local_score_is_that_of_all_distances():
    """A training row is not its own neighbour, and a copy of it is."""
    rng = np.random.default_rng(0)
    X, copies = rng.normal(size=(60, 3)), np.ones(60, dtype=np.intp)
    copies[:3] = 2
    local = local_of(X, n_copies=copies)
    assert local.n_neighbors == 10
    rows = np.vstack([X[:2], X[10:12], rng.normal(size=(3, 3)), [[50.0, 0.0, 0.0]]])
    expected = [by_brute_force(X, copies, row, 10, np.exp(-7.0)) for row in rows]
    np.testing.assert_allclose(local.scores(rows), expected, rtol=1e-12)
    order = rng.permutation(len(rows))
    np.testing.assert_array_equal(local.scores(rows[order]), local.scores(rows)[order])


def test_copies_are_repetitions():
    rng = np.random.default_rng(0)
    X, copies = rng.normal(size=(40, 2)), rng.integers(1, 4, size=40)
    once, repeated = local_of(X, n_copies=copies), local_of(np.repeat(X, copies, axis=0))
    rows = np.vstack([X[:5], rng.normal(size=(5, 2))])
    np.testing.assert_allclose(once.scores(rows), repeated.scores(rows), rtol=1e-12)


def test_rotations_change_no_local_score_and_units_shift_it():
    """Scores are logarithms of squared distances, of which those of neighbours count by half."""
    rng = np.random.default_rng(0)
    X, rows = rng.normal(size=(200, 3)), 3.0 * rng.normal(size=(20, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    first = local_of(X, (40.0,)).scores(rows)
    turned = local_of(X @ rotation, (40.0,)).scores(rows @ rotation)
    larger = local_of(4.0 * X, (40.0,)).scores(4.0 * rows)
    np.testing.assert_allclose(turned, first, atol=1e-9)
    np.testing.assert_allclose(larger, first - 0.5 * np.log(16.0), atol=1e-9)


def test_clusters_of_different_scale_have_their_own_distances():
    """The same distance is farther from a tight cluster than from a wide one."""
    rng = np.random.default_rng(0)
    tight, wide = 0.1 * rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 20.0
    local = local_of(np.vstack([tight, wide]))
    beside_tight, beside_wide = local.scores(np.array([[3.0, 0.0], [23.0, 20.0]]))
    assert beside_tight < beside_wide


def test_local_contributions_name_the_column_and_add_up():
    rng = np.random.default_rng(0)
    layout = Layout(2, [Variable(3)])
    X = np.column_stack([rng.normal(size=(300, 2)), np.arange(300) % 3])
    local = local_of(X, layout=layout)
    rows = np.array([[6.0, 0.0, 1.0], [0.0, -6.0, 1.0], [0.0, 0.0, -1.0], [1e200, 0.0, 0.0]])
    parts = local.contributions(rows)
    assert list(parts.argmin(axis=1)[[0, 1, 3]]) == [0, 1, 0]
    # What is left of the score is the spread of the neighbours, which no column has.
    nearest = local._row_of_point[local._neighbors(local._points_of(rows))[1]]
    spread = 0.5 * local.log_spread[nearest].mean(axis=1)
    typical = -local._logs(local.typical.sum())
    np.testing.assert_allclose(parts.sum(axis=1) + typical + spread, local.scores(rows), rtol=1e-9)


def test_the_most_isolated_rows_count_as_the_others_do():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(90, 2)), 100.0 * rng.normal(size=(10, 2))])
    copies, floors = np.ones(100, dtype=np.intp), np.array([7.0])
    free, trimmed = (
        LocalScore.of(Layout(2), X, copies, floors, trim).log_spread for trim in (0.0, 0.1)
    )
    np.testing.assert_allclose(trimmed, np.minimum(free, np.sort(free)[89]))


@pytest.mark.slow
def test_local_structure_is_found_that_a_mixture_misses():
    """Points off a thin spiral, between its arms, are near none of its rows."""
    rng = np.random.default_rng(0)

    def spiral(n):
        angle = np.sqrt(rng.uniform(0.0, 1.0, n)) * 9.0 * np.pi
        return np.column_stack([angle * np.cos(angle), angle * np.sin(angle)])

    X, rows = spiral(400), spiral(200)
    radius = np.linalg.norm(rows[:100], axis=1, keepdims=True)
    rows[:100] *= 1.0 + np.pi / radius
    is_off = np.arange(200) < 100
    areas = {}
    for average in (False, True):
        detector = IMMSEOutlierDetector(
            IMMSEDensity(marginals="standard", max_epochs=0),
            average=average,
            contamination=0.1,
            random_state=0,
        ).fit(X)
        areas[average] = roc_auc_score(is_off, -detector.score_samples(rows))
    assert areas[True] > areas[False] + 0.02
