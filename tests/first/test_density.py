"""The continuous estimator, as its users see it."""

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import stats
from seeds import shifted
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping

from first import brief
from first.marks import others_slow
from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._table.marginals import Standardizer
from sk_itdiffusion._first._table.rows import copied_columns
from sk_itdiffusion._first.references import GaussianMixtureReference, GaussianReference
from sk_itdiffusion._first.schedules import LogisticSchedule, UniformSchedule
from sk_itdiffusion.datasets import load_density

pytestmark = pytest.mark.usefixtures("brief_fits")

SMALL = {
    "hidden_size": 32,
    "max_epochs": 6,
    "steps_per_epoch": 40,
    "batch_size": 256,
    "score_tol": 0.5,
    "random_state": shifted(0),
}
TINY = SMALL | {"hidden_size": 16, "n_blocks": 1, "max_epochs": 2, "steps_per_epoch": 10}
ONE = TINY | {"n_networks": 1}
PLAIN_CHOICES = {"reference": "gaussian", "marginals": "standard", "n_networks": 1}
PLAIN = TINY | PLAIN_CHOICES


@pytest.fixture(scope="module")
def banana():
    return load_density("banana")


@pytest.fixture(scope="module", name="X")
def rows_of_banana(banana):
    return banana.sample(1000, random_state=shifted(0))


@pytest.fixture(scope="module")
def fitted(X):
    with brief.usual_choices():
        return IMMSEDensity(**SMALL).fit(X)


@pytest.fixture(scope="module")
def quick(X):
    """Return a fit of all parts to 300 rows, briefly trained."""
    return IMMSEDensity(**TINY).fit(X[:300])


@pytest.fixture(scope="module")
def plain(X):
    """Return a fit without choices."""
    return IMMSEDensity(**PLAIN).fit(X)


# -- accuracy and the bound ------------------------------------------------------------------


def test_learns_more_than_its_gaussian_reference(banana, X):
    test = banana.sample(800, random_state=shifted(1))
    alone = IMMSEDensity(**SMALL | PLAIN_CHOICES, experts=["network"])
    gain = alone.fit(X).score_samples(test) - stats.multivariate_normal(
        X.mean(axis=0), np.cov(X.T)
    ).logpdf(test)
    assert gain.mean() > 0.5  # the whole gap is 1.2 nats


def test_bound_is_not_beaten(banana, X, fitted):
    test = banana.sample(500, random_state=shifted(1))
    log_density, std = fitted.score_samples(test, return_std=True)
    excess = log_density - banana.log_prob(test)
    error = np.sqrt(excess.var() / len(test) + (std**2).mean() / len(test))
    assert excess.mean() < 3 * error
    assert excess.mean() > -0.25


def test_mass_is_at_most_one(fitted):
    axis1, axis2 = np.linspace(-4.5, 4.5, 25), np.linspace(-3, 16, 70)
    grid = np.stack(np.meshgrid(axis1, axis2), axis=-1).reshape(-1, 2)
    log_density, std = fitted.score_samples(grid, return_std=True)
    cell = (axis1[1] - axis1[0]) * (axis2[1] - axis2[0])
    # Noise of variance v raises the mean of the exponential by exp(v / 2).
    mass = np.exp(log_density - std**2 / 2) * cell
    error = np.sqrt(np.sum((mass * std) ** 2))
    assert 0.8 < mass.sum() < 1.0 + 3 * error + 0.01


def test_stack_is_no_worse_than_any_expert_on_validation_rows(fitted):
    curve = fitted.mse_curve()
    for error in [*curve.references.values(), *curve.networks.values()]:
        assert (curve.model <= error * (1 + 1e-9) + 1e-12).all()
    total = sum(fitted.expert_weights_.values())
    np.testing.assert_allclose(total, 1.0)


def test_writing_to_attributes_changes_no_score(X, quick):
    density = copy.deepcopy(quick)
    before, curve = density.score_samples(X[:50]), density.mse_curve()
    errors = curve.model.copy()
    for values in (density.logsnr_, curve.model, *density.expert_weights_.values()):
        values[:] = 0.0
    for held in (density.references_, density.nets_, density.expert_weights_):
        held.clear()
    density.history_[0].clear()
    np.testing.assert_array_equal(density.score_samples(X[:50]), before)
    np.testing.assert_array_equal(density.mse_curve().model, errors)
    np.testing.assert_array_equal(
        density.sample(3, random_state=shifted(0)), quick.sample(3, random_state=shifted(0))
    )


def test_error_curve_of_parts_pools_to_that_of_the_whole(X, fitted, monkeypatch):
    whole = fitted.mse_curve(X[:300])
    monkeypatch.setattr("sk_itdiffusion._first._fit.model.MAX_ROWS_IN_A_PROFILE", 70)
    parts = fitted.mse_curve(X[:300])
    np.testing.assert_allclose(parts.model, whole.model, rtol=1e-5)
    np.testing.assert_allclose(parts.model_stderr, whole.model_stderr, rtol=1e-5)
    for name in whole.references:
        np.testing.assert_allclose(parts.references[name], whole.references[name], rtol=1e-7)
        np.testing.assert_allclose(
            parts.references_stderr[name], whole.references_stderr[name], rtol=1e-7
        )


def test_error_curve_of_gaussian_data_is_the_closed_form():
    variances = np.array([1.0, 4.0])
    rng = np.random.default_rng(shifted(0))
    X = rng.normal(size=(2000, 2)) * np.sqrt(variances)
    est = IMMSEDensity(**TINY | {"max_epochs": 0, "marginals": "standard"}).fit(X)
    curve = est.mse_curve(X)
    snr = np.exp(curve.logsnr)
    expected = 2 * snr / (1 + snr)  # in standardised columns
    difference = np.abs(curve.references["gaussian"] - expected)
    assert (difference < 5 * curve.references_stderr["gaussian"] + 5e-3).all()


def test_reference_alone_is_the_reference(X):
    est = IMMSEDensity(reference="gaussian", experts=["gaussian"], marginals="standard", **TINY)
    log_density, std = est.fit(X).score_samples(X, return_std=True)
    reference = est.reference_.log_prob(torch.from_numpy((X - X.mean(0)) / X.std(0))).numpy()
    assert (std == 0).all()
    np.testing.assert_allclose(log_density, reference - np.log(X.std(0)).sum(), rtol=1e-6)


def test_reference_object_is_in_the_units_of_the_data():
    truth = GaussianMixtureReference(
        [0.5, 0.5], [[-30.0, 0.0], [30.0, 1.0]], [np.diag([4.0, 0.01])] * 2
    )
    X = truth.sample(400, np.random.RandomState(shifted(0)))
    est = IMMSEDensity(reference=truth, experts=["reference"], **TINY).fit(X)
    expected = truth.log_prob(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(est.score_samples(X), expected, rtol=1e-9)
    # And with the network alongside it, the validation bound hardly moves.
    both = IMMSEDensity(reference=truth, **TINY).fit(X)
    assert abs(both.score(X) - expected.mean()) < 0.15


@pytest.mark.slow
def test_heavy_tails_and_skew_are_mapped():
    density = load_density("lognormal_cauchy")
    X = density.sample(1200, random_state=shifted(0))
    test = density.sample(1000, random_state=shifted(1))
    est = IMMSEDensity(**TINY).fit(X)
    assert est.bounds_.tolist() == [[0.0, np.inf], [-np.inf, np.inf]]
    assert est.column_marginals_[1] == "quantile"
    excess = est.score_samples(test) - density.log_prob(test)
    assert -0.2 < excess.mean() < 3 * excess.std() / np.sqrt(len(test))


# -- invariances -----------------------------------------------------------------------------


def test_rows_do_not_depend_on_each_other(X, fitted):
    scores = fitted.score_samples(X[:64])
    np.testing.assert_array_equal(fitted.score_samples(X[:64][::-1])[::-1], scores)
    np.testing.assert_array_equal(fitted.score_samples(X[10:13]), scores[10:13])
    np.testing.assert_array_equal(fitted.score_samples(X[5:6]), scores[5:6])
    doubled = fitted.score_samples(np.repeat(X[:2], 3, axis=0))
    np.testing.assert_array_equal(doubled[::3], scores[:2])


@pytest.mark.slow
def test_results_do_not_depend_on_threads(X, quick, tmp_path):
    """In another process: setting torch's threads here would outlast the test."""
    np.save(tmp_path / "rows.npy", X)
    script = f"""
import numpy as np
from sk_itdiffusion import IMMSEDensity
X = np.load({str(tmp_path / "rows.npy")!r})
est = IMMSEDensity(**{TINY!r}).fit(X[:300])
np.save({str(tmp_path / "scores.npy")!r}, est.score_samples(X[:200]))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), quick.score_samples(X[:200]))


@pytest.mark.filterwarnings("ignore:Column")
def test_rows_do_not_depend_on_each_other_in_constant_columns(X):
    constant = np.tile(np.linspace(-3, 3, 20), (len(X), 1))
    est = IMMSEDensity(**PLAIN).fit(np.hstack([X, constant]))
    moved = np.hstack(
        [X[:60], constant[:60] + np.random.default_rng(shifted(0)).normal(size=(60, 20))]
    )
    alone = np.concatenate([est.score_samples(row[None]) for row in moved])
    np.testing.assert_array_equal(est.score_samples(moved), alone)


def test_equal_seeds_give_equal_fits_and_others_do_not(X, quick):
    again = clone(quick).fit(X[:300])
    np.testing.assert_array_equal(again.score_samples(X[:50]), quick.score_samples(X[:50]))
    assert again.history_ == quick.history_
    other = clone(quick).set_params(random_state=shifted(1)).fit(X[:300])
    assert np.abs(other.score_samples(X[:50]) - quick.score_samples(X[:50])).max() > 1e-6


def test_order_of_rows_is_irrelevant(X, quick):
    shuffled = np.random.default_rng(shifted(0)).permutation(X[:300])
    again = clone(quick).fit(shuffled)
    np.testing.assert_array_equal(again.score_samples(X[:50]), quick.score_samples(X[:50]))


def test_weight_is_repetition(X):
    rows = X[:150]
    weight = np.random.default_rng(shifted(0)).integers(0, 4, size=150)
    weighted = IMMSEDensity(**ONE).fit(rows, sample_weight=weight)
    repeated = IMMSEDensity(**ONE).fit(np.repeat(rows, weight, axis=0))
    scores = weighted.score_samples(X[:100])
    np.testing.assert_array_equal(scores, repeated.score_samples(X[:100]))
    unweighted = IMMSEDensity(**ONE).fit(rows)
    assert np.abs(unweighted.score_samples(X[:100]) - scores).max() > 0.01


@pytest.mark.filterwarnings("ignore:Column")
@pytest.mark.parametrize("factor", others_slow([1 / 300, 0.7, 1e300], 0))
def test_common_factor_of_the_weights_is_nothing(X, factor):
    rows = np.column_stack([X[:300], np.random.default_rng(shifted(0)).poisson(3.0, 300)])
    weight = np.random.default_rng(shifted(1)).integers(1, 4, size=300).astype(float)
    plain = IMMSEDensity(**ONE).fit(rows, sample_weight=weight)
    scaled = IMMSEDensity(**ONE).fit(rows, sample_weight=factor * weight)
    np.testing.assert_array_equal(scaled.score_samples(rows), plain.score_samples(rows))


@pytest.mark.parametrize("marginals", others_slow(["quantile", "standard", "yeo_johnson"]))
def test_powers_of_two_move_the_density_by_the_jacobian_exactly(X, marginals):
    factors = np.array([2.0**-40, 2.0**21])
    rows = X[:200]
    plain = IMMSEDensity(marginals=marginals, **ONE).fit(rows)
    scaled = IMMSEDensity(marginals=marginals, **ONE).fit(rows * factors)
    jacobian = np.log(factors).sum()
    np.testing.assert_allclose(
        scaled.score_samples(rows * factors),
        plain.score_samples(rows) - jacobian,
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.slow
def test_other_factors_move_a_refit_within_the_spread_of_seeds(X, fitted):
    factors = np.array([0.37, 1234.5])
    scaled = clone(fitted).fit(X * factors)
    other = clone(fitted).set_params(random_state=shifted(5)).fit(X)
    moved = scaled.score_samples(X * factors) + np.log(factors).sum()
    spread = np.std(other.score_samples(X) - fitted.score_samples(X))
    assert np.std(moved - fitted.score_samples(X)) < 2 * spread


def test_other_factors_move_a_fixed_model_within_the_scoring_error(X, fitted):
    factors = np.array([0.37, 1234.5])
    scaled = copy.deepcopy(fitted)
    space = scaled._model.space
    rescaled = Standardizer(space.standardizer.center * factors, space.standardizer.scale * factors)
    scaled._model = replace(scaled._model, space=replace(space, standardizer=rescaled))
    moved, std1 = scaled.score_samples(X * factors, return_std=True)
    plain, std2 = fitted.score_samples(X, return_std=True)
    error = moved + np.log(factors).sum() - plain
    noisy = std1 + std2 > 1e-6
    z = error[noisy] / np.sqrt(std1**2 + std2**2)[noisy]
    assert 0.7 < z.std() < 1.4


def test_rotation_of_the_gaussian_reference(X):
    Q = np.linalg.qr(np.random.default_rng(shifted(0)).normal(size=(2, 2)))[0]
    U = (X - X.mean(axis=0)) / X.std(axis=0)
    plain, turned = GaussianReference.fit(U), GaussianReference.fit(U @ Q.T)
    np.testing.assert_allclose(
        turned.log_prob(torch.from_numpy(U @ Q.T)), plain.log_prob(torch.from_numpy(U)), rtol=1e-9
    )


# -- input -----------------------------------------------------------------------------------


def test_containers_and_dtypes_agree(X):
    rows = X[:100].astype(np.float32)
    expected = IMMSEDensity(**PLAIN).fit(rows.astype(np.float64)).score_samples(rows[:20])
    frame = pd.DataFrame(rows, columns=["a", "b"])
    read_only = np.asfortranarray(rows)
    read_only.setflags(write=False)
    for container in (rows, read_only, frame, pl.from_pandas(frame), rows.tolist()):
        est = IMMSEDensity(**PLAIN).fit(container)
        np.testing.assert_array_equal(est.score_samples(container[:20]), expected)
        names = getattr(est, "feature_names_in_", None)
        assert (names is not None) == hasattr(container, "columns")
        assert names is None or list(names) == ["a", "b"]


def test_memory_mapped_rows(X, tmp_path, plain):
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    again = clone(plain).fit(mapped)
    np.testing.assert_array_equal(again.score_samples(mapped[:9]), plain.score_samples(X[:9]))


def test_bad_input_is_refused_by_name(X, fitted):
    frame = pd.DataFrame(X[:50], columns=["a", "b"])
    named = IMMSEDensity(**PLAIN).fit(frame)
    with pytest.raises(ValueError, match="feature names"):
        named.score_samples(frame.rename(columns={"a": "c"}))
    with pytest.raises(ValueError, match="3 features"):
        fitted.score_samples(np.zeros((2, 3)))
    broken = X.copy()
    broken[3, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        clone(fitted).fit(broken)
    with pytest.raises(ValueError, match="infinity"):
        fitted.score_samples(broken)
    with pytest.raises(ValueError, match="minimum of 2"):
        clone(fitted).fit(X[:1])
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        clone(fitted).fit(X, sample_weight=-np.ones(len(X)))
    with pytest.raises(ValueError, match=r"at least one (positive|non-zero)"):
        clone(fitted).fit(X, sample_weight=np.zeros(len(X)))
    for method in ("score_samples", "score", "sample", "mse_curve"):
        with pytest.raises(NotFittedError):
            getattr(clone(fitted), method)(*([] if method == "sample" else [X]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"schedule": "cosin"}, "'schedule' parameter"),
        ({"schedule": LogisticSchedule(scale=-2.0)}, "scale must be a positive"),
        ({"reference": "normal"}, "'reference' parameter"),
        ({"reference": GaussianReference([0.0], [[1.0]])}, "reference has 1 features"),
        ({"experts": ["nets"]}, "experts must be"),
        ({"experts": []}, "experts must be"),
        ({"marginals": "log"}, "'marginals' parameter"),
        ({"dropout": 1.0}, "'dropout' parameter"),
        ({"learning_rate": 0.0}, "'learning_rate' parameter"),
        ({"score_tol": 0.0}, "'score_tol' parameter"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
        ({"validation_fraction": 0.999}, "validation_fraction=0.999 leaves . of 200"),
        ({"device": "gpu"}, "device must be 'auto'"),
        ({"schedule": LogisticSchedule(loc=np.nan)}, "loc must be a finite number"),
        ({"schedule": LogisticSchedule(loc="a")}, "loc must be a finite number"),
    ],
)
def test_bad_parameters_are_refused_by_name(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        IMMSEDensity(**TINY | parameters).fit(X[:200])


def test_reference_object_refuses_constant_columns(X):
    reference = GaussianReference(np.zeros(3), np.eye(3))
    frame = pd.DataFrame(X[:50], columns=["a", "b"]).assign(c=1.0)
    with pytest.raises(ValueError, match="'c' are constant"):
        IMMSEDensity(**TINY | {"reference": reference}).fit(frame)


def test_reference_object_refuses_nonlinear_maps(X):
    reference = GaussianReference(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="marginals"):
        IMMSEDensity(**TINY | {"reference": reference, "marginals": "quantile"}).fit(X)


def test_schedule_string_has_no_parameters_to_search():
    with pytest.raises(ValueError, match="schedule"):
        IMMSEDensity().set_params(schedule__loc=1.0)


# -- degenerate data -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scores_of_few(X):
    return IMMSEDensity(**ONE).fit(X[:100]).score_samples(X[:100])


@pytest.mark.parametrize("exponent", others_slow([-990, 990, -40, 40], 2))
def test_extreme_scales(X, scores_of_few, exponent):
    scale = 2.0**exponent
    moved = IMMSEDensity(**ONE).fit(X[:100] * scale).score_samples(X[:100] * scale)
    np.testing.assert_allclose(moved, scores_of_few - 2 * np.log(scale), rtol=1e-12)


def test_constant_columns_warn_by_name_and_keep_the_rest(X):
    frame = pd.DataFrame(X[:200], columns=["a", "b"]).assign(c=7.0)
    est = IMMSEDensity(**PLAIN)
    with pytest.warns(UserWarning, match="'c' are constant"):
        est.fit(frame)
    rest = IMMSEDensity(**PLAIN).fit(frame[["a", "b"]])
    width = 7.0e-3
    peak = -np.log(width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(
        est.score_samples(frame), rest.score_samples(frame[["a", "b"]]) + peak, rtol=1e-9
    )
    off = frame.assign(c=7.0 + 2 * width)
    np.testing.assert_allclose(est.score_samples(off), est.score_samples(frame) - 2.0, rtol=1e-6)
    assert (est.sample(5, random_state=shifted(0))["c"] == 7.0).all()


def test_all_rows_equal():
    with pytest.warns(UserWarning, match="constant"):
        est = IMMSEDensity(**TINY).fit(np.full((30, 2), 3.0))
    near, far = est.score_samples([[3.0, 3.0], [3.0, 4.0]])
    assert np.isfinite([near, far]).all()
    assert near > far
    assert (est.sample(3) == 3.0).all()
    with pytest.raises(ValueError, match="no error curve"):
        est.mse_curve()


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: rng.normal(size=(2, 3)),
        lambda rng: rng.normal(size=(30, 1)),
        lambda rng: rng.normal(size=(10, 40)),
        pytest.param(lambda rng: rng.normal(size=(50, 60)), marks=pytest.mark.slow),
        pytest.param(
            lambda rng: np.repeat(rng.normal(size=(200, 1)), 3, axis=1),
            marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*are copies of column")],
        ),
        lambda rng: rng.normal(size=(100, 2)) @ rng.normal(size=(2, 5)),
    ],
    ids=["2 rows", "1 column", "n < d, no network", "n < d", "duplicate", "collinear"],
)
def test_degenerate_tables_give_finite_and_sensible_densities(make):
    data = make(np.random.default_rng(shifted(0)))
    est = IMMSEDensity(**ONE).fit(data)
    log_density = est.score_samples(data)
    assert np.isfinite(log_density).all()
    assert np.isfinite(est.entropy_) == (len(data) >= 40)  # of which some validate
    assert np.isfinite(est.sample(4, random_state=shifted(0))).all()
    # A few of them: far away all of the draws are needed, which takes time.
    far = est.score_samples((data + 100 * (1 + np.abs(data)))[:3])
    assert np.isfinite(far).all()
    assert far.max() < log_density.min()


def test_copies_of_columns_are_named():
    rng = np.random.default_rng(shifted(0))
    x, y = rng.normal(size=(2, 100))
    frame = pd.DataFrame({"kelvin": 293.0 + x, "y": y, "near": x + 1e-4 * y})
    frame["fahrenheit"] = 1.8 * (frame["kelvin"] - 273.15) + 32.0
    frame.loc[::3, "kelvin"] = np.nan
    frame.loc[::4, "fahrenheit"] = np.nan
    model = IMMSEDensity(**PLAIN)
    with pytest.warns(UserWarning, match=r"\) 'fahrenheit' are copies of column\(s\) 'kelvin'"):
        model.fit(frame)
    # No warning without the copy, nor of two rows, which are on a line in any case.
    model.fit(frame.drop(columns="fahrenheit"))
    # Correlations of 1 in the rows that are compared are no copies if another row differs.
    many = rng.normal(size=5000)
    other = -many
    other[np.argmax(many)] += 1.0
    assert copied_columns(np.column_stack([many, -3e300 * many, other])) == [(0, 1)]
    holes = np.where(rng.random(5000) < 0.2, np.nan, many)
    # Where both are observed, which need not be the same rows.
    others = np.where(rng.random(5000) < 0.5, np.nan, 1e6 - 3.0 * many)
    assert copied_columns(np.column_stack([many, holes, others])) == [(0, 1), (0, 2)]
    assert copied_columns(np.column_stack([holes, other + 1e-3 * holes, others])) == [(0, 2)]
    apart = np.where(np.isnan(holes), many, np.nan)
    apart[:10] = many[:10]
    assert copied_columns(np.column_stack([holes, apart])) == []
    far = np.column_stack([many, rng.normal(size=5000)])
    far[7] = 1e9  # one row that all others are on a line with
    assert copied_columns(far) == []
    assert copied_columns(np.column_stack([far[:, 0], 1.8 * far[:, 0] + 32.0])) == [(0, 1)]


def test_ties_warn_only_where_they_matter(X):
    rng = np.random.default_rng(shifted(0))
    coarse = pd.DataFrame({"fine": X[:500, 0], "count": rng.poisson(3.0, 500).astype(float)})
    with pytest.warns(UserWarning, match="'count' have many equal"):
        est = IMMSEDensity(**PLAIN).fit(coarse)
    # Resolution: noise of half a step, in standard deviations of the column.
    step = 1.0 / coarse["count"].std(ddof=0)
    assert est.logsnr_[-1] == pytest.approx(-2 * np.log(0.5 * step))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)  # of short trainings
        IMMSEDensity(**PLAIN).fit(np.round(X[:500], 2))


@pytest.mark.parametrize("n_rows", others_slow([20, 30, 60, 100]))
@pytest.mark.parametrize("n_features", [1, 3])
def test_few_rows_are_not_worse_than_a_gaussian(n_rows, n_features, usual_fits):
    """Choices on a handful of validation rows must not cost much, whatever the seed."""
    losses = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(n_rows, n_features))
        test = rng.normal(size=(500, n_features))
        settings = TINY | {"random_state": seed}
        alone = IMMSEDensity(
            reference="gaussian", experts=["gaussian"], marginals="standard", **settings
        )
        est = IMMSEDensity(**settings).fit(rows)
        losses.append(alone.fit(rows).score(test) - est.score(test))
    assert max(losses) < 0.5


@pytest.mark.parametrize("size", [1e6, 1e39, 1e154, 1e300])
def test_points_beyond_all_data_are_scored_without_nan(X, fitted, size):
    near, far = fitted.score_samples([X[0], [size, -size]])
    assert np.isfinite(near)
    assert not np.isnan(far)
    assert far < near


# -- scikit-learn ----------------------------------------------------------------------------


@pytest.mark.slow
def test_grid_search_over_schedules(X):
    grid = {"schedule": ["logistic", "uniform", LogisticSchedule(loc=2.0)]}
    search = GridSearchCV(IMMSEDensity(**TINY), grid, cv=2).fit(X[:300])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(X) == pytest.approx(search.best_estimator_.score(X))
    nested = GridSearchCV(
        IMMSEDensity(**TINY | {"schedule": LogisticSchedule()}),
        {"schedule__loc": [0.0, 3.0]},
        cv=2,
    ).fit(X[:300])
    scores = nested.cv_results_["mean_test_score"]
    assert scores[0] != scores[1]


def test_pipeline_moves_the_density_by_its_jacobian(X, plain):
    pipeline = make_pipeline(StandardScaler(), clone(plain)).fit(X)
    scores = plain.score_samples(X[:300])
    moved = pipeline.score_samples(X[:300]) - np.log(X.std(axis=0)).sum()
    other = clone(plain).set_params(random_state=shifted(5)).fit(X)
    spread = np.std(other.score_samples(X[:300]) - scores)
    assert np.std(moved - scores) < 2 * spread


@pytest.mark.slow
def test_cross_validation(X):
    scores = cross_val_score(IMMSEDensity(**ONE), X[:300], cv=2)
    baseline = cross_val_score(
        IMMSEDensity(experts=["gaussian"], reference="gaussian", marginals="standard", **TINY),
        X[:300],
        cv=2,
    )
    assert (scores > baseline).all()


@pytest.mark.slow
def test_grid_search_on_a_real_table_in_two_processes():
    table = load_breast_cancer(as_frame=True).data.iloc[:, :6]
    grid = {"schedule": ["adaptive", "logistic", "uniform"]}
    search = GridSearchCV(IMMSEDensity(**TINY), grid, cv=2, n_jobs=2, refit=True).fit(table)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    serial = cross_val_score(IMMSEDensity(**TINY | search.best_params_), table, cv=2)
    assert search.best_score_ == pytest.approx(serial.mean(), abs=1e-9)
    assert list(search.best_estimator_.feature_names_in_) == list(table.columns)


def test_score_is_the_mean(X, fitted):
    assert fitted.score(X[:100]) == pytest.approx(fitted.score_samples(X[:100]).mean())


# -- copies ----------------------------------------------------------------------------------


def test_copies_score_alike(X, quick, tmp_path):
    expected, drawn = quick.score_samples(X[:20]), quick.sample(3, random_state=shifted(1))
    joblib.dump(quick, tmp_path / "est.joblib")
    copies = [
        pickle.loads(pickle.dumps(quick)),
        copy.deepcopy(quick),
        joblib.load(tmp_path / "est.joblib"),
    ]
    for other in copies:
        np.testing.assert_array_equal(other.score_samples(X[:20]), expected)
        np.testing.assert_array_equal(other.sample(3, random_state=shifted(1)), drawn)


def test_pickles_hold_no_training_data_and_no_optimiser_state(X):
    rows = np.tile(X, (4, 1)) + np.random.default_rng(shifted(0)).normal(size=(4 * len(X), 2))
    few, many = (len(pickle.dumps(IMMSEDensity(**PLAIN).fit(r))) for r in (rows[:200], rows))
    assert many < few + 20_000
    est = IMMSEDensity(**PLAIN).fit(X)
    assert not est.net_.optimizer_.state


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_model_of_an_absent_device_scores_on_the_cpu(X, fitted):
    moved = copy.deepcopy(fitted)
    moved._model = replace(moved._model, device=torch.device("cuda"))
    loaded = pickle.loads(pickle.dumps(moved))
    np.testing.assert_array_equal(loaded.score_samples(X[:5]), fitted.score_samples(X[:5]))


@pytest.mark.gpu
def test_gpu_and_cpu_agree(X):
    device = "cuda" if torch.cuda.is_available() else "mps"
    est = IMMSEDensity(device=device, **TINY).fit(X)
    expected, std = est.score_samples(X[:50], return_std=True)
    np.testing.assert_array_equal(est.score_samples(X[:50]), expected)
    moved = pickle.loads(pickle.dumps(est))
    moved.net_.module_.to("cpu")
    moved._model = replace(moved._model, device=torch.device("cpu"))
    # The same noise, so that only rounding differs.
    np.testing.assert_allclose(moved.score_samples(X[:50]), expected, atol=1e-3 + 0.1 * std.max())


# -- training --------------------------------------------------------------------------------


def test_history_is_in_nats_and_falls(banana, X, fitted):
    bounds = [row["valid_bound"] for row in fitted.history_]
    assert [row["epoch"] for row in fitted.history_] == list(range(1, fitted.n_iter_ + 1))
    assert min(bounds) < bounds[0]
    truth = -banana.log_prob(banana.sample(20_000, random_state=shifted(3))).mean()
    assert truth - 0.3 < fitted.entropy_ < truth + 0.5
    assert truth - 0.3 < min(bounds) < truth + 1.0


def test_untrained_network_is_the_gaussian_reference(X):
    settings = TINY | {"max_epochs": 0, "experts": ["network"], "reference": "gaussian"}
    est = IMMSEDensity(**settings | {"marginals": "standard"}).fit(X)
    gaussian = est.reference_.log_prob(torch.from_numpy((X - X.mean(0)) / X.std(0))).numpy()
    expected = gaussian - np.log(X.std(axis=0)).sum()
    np.testing.assert_allclose(est.score_samples(X), expected, atol=1e-5)


def test_warm_start_goes_on(X):
    est = IMMSEDensity(**SMALL | PLAIN_CHOICES | {"max_epochs": 1, "warm_start": True}).fit(X)
    first = est.history_[0]["valid_bound"]
    for _ in range(3):
        est.fit(X)
    assert est.history_[-1]["valid_bound"] < first - 0.05
    est.set_params(hidden_size=8)
    with pytest.raises(ValueError, match="same size"):
        est.fit(X)


def test_warm_start_refuses_what_it_would_ignore(X):
    rows = np.column_stack([X[:200], np.zeros(200)])
    with pytest.warns(UserWarning, match="constant"):
        est = IMMSEDensity(warm_start=True, **ONE).fit(rows)
    with pytest.raises(ValueError, match="warm_start requires the same columns"):
        est.fit(rows[:, [2, 0, 1]])
    est.set_params(marginals="quantile")
    with pytest.raises(ValueError, match="marginals changed"):
        est.fit(rows)


def test_failed_refit_leaves_the_estimator_unfitted(X):
    est = IMMSEDensity(**PLAIN).fit(X[:100])
    with pytest.raises(ValueError, match="experts"):
        est.set_params(experts=[]).fit(np.hstack([X, X])[:100])
    with pytest.raises(NotFittedError):
        est.score_samples(X)


def test_modes_and_defaults_of_torch_do_not_matter(X, quick):
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode():
            again = clone(quick).fit(X[:300])
            scores = again.score_samples(X[:20])
    finally:
        torch.set_default_dtype(default)
    np.testing.assert_array_equal(scores, quick.score_samples(X[:20]))


def test_named_experts_that_cannot_be_had_are_not_dropped_silently(X):
    with pytest.raises(ValueError, match="requires a ContinuousReference"):
        IMMSEDensity(**TINY | {"experts": ["reference"]}).fit(X)
    few = np.random.default_rng(shifted(0)).normal(size=(12, 2))
    with pytest.warns(UserWarning, match=r"experts names \['network'\]"):
        IMMSEDensity(**TINY | {"experts": ["network", "gaussian"]}).fit(few)


def test_early_stopping_ends_training():
    X = np.random.default_rng(shifted(0)).normal(size=(60, 4))
    settings = ONE | {"max_epochs": 200, "steps_per_epoch": 10, "n_iter_no_change": 2}
    est = IMMSEDensity(**settings).fit(X)
    assert est.n_iter_ < 100


class Interrupt(Callback):
    def __init__(self, after):
        self.after = after

    def on_batch_end(self, net, training=False, **_):
        self.after -= training
        if self.after == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 15])
def test_interrupt_leaves_no_half_fitted_estimator(X, after):
    est = IMMSEDensity(callbacks=[Interrupt(after)], **PLAIN)
    with pytest.raises(KeyboardInterrupt):
        est.fit(X)
    with pytest.raises(NotFittedError):
        est.score_samples(X)
    est.set_params(callbacks=None).fit(X)
    assert np.isfinite(est.score_samples(X[:10])).all()


def test_callbacks_of_skorch_can_stop(X):
    stop = EarlyStopping(monitor="valid_loss", patience=1, threshold=10.0)
    est = IMMSEDensity(callbacks=[("stop", stop)], **PLAIN | {"max_epochs": 50}).fit(X)
    assert est.n_iter_ < 5


class Poison(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, training=False, **_):
        if training and len(net.history) == self.epoch:
            with torch.no_grad():
                net.module_.denoiser.backbone.outlet.bias.fill_(float("nan"))


def test_divergence_falls_back_to_the_best_state_or_raises(X):
    with pytest.warns(ConvergenceWarning, match="diverged"):
        est = IMMSEDensity(callbacks=[Poison(3)], **PLAIN | {"max_epochs": 4}).fit(X)
    good = IMMSEDensity(**PLAIN | {"max_epochs": 2}).fit(X)
    assert abs(est.score(X[:500]) - good.score(X[:500])) < 0.3
    with pytest.raises(FloatingPointError, match="learning_rate"):
        IMMSEDensity(callbacks=[Poison(1)], **PLAIN | {"max_epochs": 4}).fit(X)


@pytest.mark.slow
def test_schedules_reach_the_same_optimum(X):
    scores = [
        IMMSEDensity(**SMALL | {"schedule": schedule}).fit(X).score(X)
        for schedule in ("adaptive", "logistic", UniformSchedule())
    ]
    assert np.ptp(scores) < 0.1


# -- samples ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_follow_the_model(X, fitted):
    drawn = fitted.sample(1500, random_state=shifted(0))
    few = fitted.sample(9, random_state=shifted(0))
    np.testing.assert_array_equal(few, fitted.sample(9, random_state=shifted(0)))
    assert np.abs(few - fitted.sample(9, random_state=shifted(1))).max() > 0.1
    for projection in ([1.0, 0.0], [0.0, 1.0], [1.0, 0.5]):
        distance = stats.ks_2samp(drawn @ projection, X @ projection).statistic
        assert distance < 1.95 * np.sqrt(2 / 1500) + 0.05
    # The mean score of samples is minus the model's entropy, near that of the data.
    assert abs(fitted.score(drawn) - fitted.score(X)) < 0.25
    with pytest.raises(ValueError, match="n_samples"):
        fitted.sample(0)


def test_buffers_survive_a_stream(X, fitted):
    stream = io.BytesIO()
    joblib.dump(fitted, stream)
    stream.seek(0)
    loaded = joblib.load(stream)
    np.testing.assert_array_equal(loaded.score_samples(X[:5]), fitted.score_samples(X[:5]))


def test_score_of_many_rows_is_the_mean_within_the_errors(usual_fits):
    """Rows are then integrated less exactly: each may have 0.005 times the root of their number."""
    X = np.random.default_rng(shifted(0)).standard_normal((400, 4))
    X[:, 1:] += np.sin(2.0 * X[:, :1])
    density = IMMSEDensity(
        max_epochs=0,
        reference="gaussian",
        experts=["gaussian_mixture", "gaussian"],
        random_state=shifted(0),
    ).fit(X[:400])
    exact = density.score_samples(X, score_tol=0.02)
    found = density.score(X)
    assert found != pytest.approx(float(exact.mean()), abs=1e-9)
    assert found == pytest.approx(float(exact.mean()), abs=5 * 0.005)
    assert density.bits_per_dim(X) == pytest.approx(-found / (4 * np.log(2.0)))
    binding = density.set_params(score_tol=0.02)
    assert binding.score(X[:300]) == pytest.approx(float(exact[:300].mean()), abs=1e-12)


@pytest.mark.parametrize("score_tol", [0.0, -1.0, np.nan, np.inf, "exact"])
def test_score_tol_is_checked_in_a_call_as_well(score_tol, fitted):
    with pytest.raises(ValueError, match="score_tol"):
        fitted.score_samples(np.zeros((2, fitted.n_features_in_)), score_tol=score_tol)
