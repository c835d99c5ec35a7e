"""Fitting to streams by `partial_fit`."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

import sk_itdiffusion
import sk_itdiffusion._first._fit.incremental
from first.outside import StudentTFamily
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity, IMMSEEnsemble, IMMSEMixedDensity
from sk_itdiffusion._first._fit.incremental import Reservoir, RunningMoments
from sk_itdiffusion._first._immse.cubature import hash_uniform, row_keys
from sk_itdiffusion.datasets import load_density

pytestmark = pytest.mark.usefixtures("brief_fits")

TINY = {
    "hidden_size": 16,
    "n_blocks": 1,
    "batch_size": 128,
    "max_epochs": 2,
    "score_tol": 0.5,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def banana():
    return load_density("banana")


@pytest.fixture(scope="module", name="X")
def rows_of_banana(banana):
    return banana.sample(4000, random_state=0)


def learned(X, n_chunks, estimator=None):
    """Return an estimator that has been given rows in chunks of unequal size."""
    estimator = IMMSEDensity(**TINY) if estimator is None else estimator
    for chunk in np.array_split(X, n_chunks):
        estimator.partial_fit(chunk)
    return estimator


@pytest.fixture(scope="module")
def streamed(X):
    return learned(X, 3)


# -- what is kept of the rows so far ---------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 2, 997), (500, 500), (0, 1000)])
def test_running_moments_are_those_of_all_rows(sizes):
    X = np.random.default_rng(0).normal(size=(1000, 3)) @ np.triu(np.ones((3, 3))) + 1e4
    moments = RunningMoments.of_none(3)
    for part in np.split(X, np.cumsum(sizes)[:-1]):
        moments.update(part)
    # The rounding of numbers near 1e4 is 2e-12, times the root of their number.
    np.testing.assert_allclose(moments.mean, X.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(moments.scatter / 1000, np.cov(X.T, bias=True), atol=1e-9)


def test_reservoir_keeps_the_rows_of_least_hash():
    rows = np.arange(1000.0)[:, None]
    position = hash_uniform(row_keys(rows), 0)
    reservoir = Reservoir(0.3, 40, np.empty((0, 1)), np.empty(0))
    trained = [
        reservoir.exchange(rows[part], np.zeros(part.stop - part.start), position[part])
        for part in (slice(0, 100), slice(100, 400), slice(400, 1000))
    ]
    least = np.sort(np.argsort(position)[:40])
    np.testing.assert_array_equal(np.sort(reservoir.rows[:, 0]), least)
    # All others, and only those, have been trained on, each once.
    trained = np.sort(np.concatenate(trained)[:, 0])
    np.testing.assert_array_equal(trained, np.setdiff1d(np.arange(1000), least))
    again = reservoir.exchange(rows, np.zeros(1000), position)
    assert len(reservoir.rows) == 40
    assert not np.isin(again, reservoir.rows).any()


def test_reference_is_that_of_the_rows_that_are_not_for_validation(X, streamed):
    space, reservoir = streamed._model.space, streamed._increments.reservoir
    mapped = space.rows(space.standardized(X))[0]
    held_out = np.isin(mapped[:, 0], reservoir.rows[:, 0])
    assert 300 < held_out.sum() == len(reservoir.rows) < 500
    train = mapped[~held_out]
    gaussian = streamed.references_["gaussian"]
    np.testing.assert_allclose(gaussian.mean, train.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, np.cov(train.T, bias=True), atol=1e-12)


def test_validation_rows_do_not_depend_on_the_chunks(X, streamed):
    other = learned(X, 2, clone(streamed).set_params(max_epochs=0))
    ours, theirs = (e._model.space.values(e._increments.reservoir.rows) for e in (streamed, other))
    np.testing.assert_allclose(np.sort(ours, axis=0), np.sort(theirs, axis=0), rtol=1e-12)
    # Rows that come again stay on their side.
    other.partial_fit(X[:2000])
    assert len(other._increments.reservoir.rows) == len(ours)


def test_each_training_row_is_in_one_step(X, streamed):
    increments = streamed._increments
    n_train = len(X) - len(increments.reservoir.rows)
    n_steps = increments.networks["network"].n_steps
    assert n_steps * TINY["batch_size"] + len(increments.pending) == n_train


# -- the result is an estimator like any other -----------------------------------------------------


@pytest.mark.slow
def test_streams_are_learned(banana, X, streamed):
    test = banana.sample(1000, random_state=1)
    gaussian = IMMSEDensity(experts=["gaussian"], reference="gaussian", marginals="standard")
    baseline = gaussian.set_params(random_state=0).fit(X).score(test)
    longer = learned(np.tile(X, (6, 1)), 6, clone(streamed).set_params(hidden_size=32))
    assert longer.score(test) > baseline + 0.2  # the whole gap is 1.2 nats
    bounds = [row["valid_bound"] for row in longer.history_]
    assert bounds[-1] < bounds[0] - 0.2
    excess = longer.score_samples(test) - banana.log_prob(test)
    assert excess.mean() < 3 * excess.std() / np.sqrt(len(test))


def test_streams_go_on_from_a_pickle(X, streamed):
    resumed = pickle.loads(pickle.dumps(streamed))
    direct = pickle.loads(pickle.dumps(resumed)).partial_fit(X[:600])
    np.testing.assert_array_equal(
        resumed.partial_fit(X[:600]).score_samples(X[:9]), direct.score_samples(X[:9])
    )
    assert not np.array_equal(direct.score_samples(X[:9]), streamed.score_samples(X[:9]))


def test_streamed_estimators_are_saved(X, streamed, tmp_path):
    streamed.save(tmp_path / "density.safetensors")
    loaded = sk_itdiffusion.load(tmp_path / "density.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(X[:9]), streamed.score_samples(X[:9]))
    assert loaded.sample(3, random_state=0).shape == (3, 2)
    with pytest.warns(UserWarning, match="partial_fit starts from scratch"):
        loaded.partial_fit(X[:100])
    assert loaded.net_ is None


@pytest.mark.slow
def test_few_rows_have_the_density_of_the_reference(X):
    density = IMMSEDensity(**TINY).partial_fit(X[:300]).partial_fit(X[300:600])
    assert density.net_ is None
    alone = IMMSEDensity(
        experts=["gaussian"],
        reference="gaussian",
        marginals="standard",
        max_epochs=0,
        random_state=0,
    )
    expected = alone.fit(X[:600]).score_samples(X[:50])
    # The rows for validation differ: the mean of 540 rows has an error of 0.04 deviations.
    np.testing.assert_allclose(density.score_samples(X[:50]), expected, atol=0.7)
    assert density.partial_fit(X[600:1100]).net_ is not None
    with pytest.warns(UserWarning, match="partial_fit starts from scratch"):
        density.fit(X[:60]).partial_fit(X[:60])


def test_maps_of_columns_are_those_of_the_first_rows():
    X = np.random.default_rng(0).lognormal(size=(2500, 2))
    density = IMMSEDensity(marginals="quantile", max_epochs=0, random_state=0)
    density.partial_fit(X[:1200])
    first = density._model.space
    density.partial_fit(X[1200:])
    assert density._model.space is first
    assert density.marginals_ == "quantile"
    exact = -np.log(X).sum(1) - 0.5 * (np.log(X) ** 2).sum(1) - np.log(2 * np.pi)
    assert abs((density.score_samples(X) - exact).mean()) < 0.05


# -- models of before ------------------------------------------------------------------------------


def mixed_chunks():
    """Return two chunks of a category and a number."""
    level = np.random.default_rng(0).integers(0, 3, size=2400)
    number = np.random.default_rng(1).normal(4.0 * level)
    table = pd.DataFrame({"level": level, "number": number})
    return table[:1200], table[1200:]


@pytest.mark.parametrize("kind", ["continuous", "mixed"])
def test_a_built_model_does_not_change_when_the_stream_goes_on(kind, X):
    if kind == "continuous":
        density, chunks = IMMSEDensity(**TINY), (X[:1500], X[1500:] + 1.0)
    else:
        categories = {"level": range(3)}
        density, chunks = IMMSEMixedDensity(categories=categories, **TINY), mixed_chunks()
    rows = chunks[0][:50]
    old = copy.copy(density.partial_fit(chunks[0]))
    scores, drawn = old.score_samples(rows), np.asarray(old.sample(20, random_state=0))
    curve = old.mse_curve(rows)
    weights = copy.deepcopy(old.net_.module_.state_dict())
    density.partial_fit(chunks[1])
    np.testing.assert_array_equal(old.score_samples(rows), scores)
    np.testing.assert_array_equal(np.asarray(old.sample(20, random_state=0)), drawn)
    np.testing.assert_array_equal(old.mse_curve(rows).model, curve.model)
    assert all(
        (value == weights[name]).all() for name, value in old.net_.module_.state_dict().items()
    )
    assert np.abs(density.score_samples(rows) - scores).max() > 1e-3


def test_a_prefit_ensemble_does_not_change_when_its_member_goes_on(X):
    member = IMMSEDensity(**TINY).partial_fit(X[:1500])
    ensemble = IMMSEEnsemble([("a", member)], prefit=True, random_state=0).fit(X[1500:2000])
    scores = ensemble.score_samples(X[:50])
    member.partial_fit(X[2000:] + 1.0)
    np.testing.assert_array_equal(ensemble.score_samples(X[:50]), scores)


def test_nets_of_streams_are_pickled_and_saved_without_what_training_needs(streamed, X, tmp_path):
    scores = streamed.score_samples(X[:20])
    nets = pickle.loads(pickle.dumps(streamed.nets_))
    networks = {name: network.net for name, network in streamed._increments.networks.items()}
    assert len(pickle.dumps(nets)) < 0.5 * len(pickle.dumps(networks))
    streamed.save(tmp_path / "file")
    loaded = sk_itdiffusion.load(tmp_path / "file")
    np.testing.assert_array_equal(loaded.score_samples(X[:20]), scores)
    for net in (nets["network"], loaded.net_):
        assert not net.module_.training
        for name, value in streamed.net_.module_.state_dict().items():
            assert (net.module_.state_dict()[name] == value).all()


# -- discrete and mixed columns --------------------------------------------------------------------


@pytest.mark.slow
def test_levels_are_learned_from_streams():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, size=6000)
    X = np.column_stack([first, (first + (rng.random(6000) < 0.1)) % 3])
    settings = TINY | {"hidden_size": 32}
    density = IMMSEDiscreteDensity(categories=[range(3)] * 2, kind="nominal", **settings)
    learned(X, 4, density)
    counts = density._increments.counts[0]
    assert counts.sum() == len(X) - len(density._increments.reservoir.rows)
    entropy = np.log(3) - 0.9 * np.log(0.9) - 0.1 * np.log(0.1)
    # Equal rows share their error.
    density.set_params(score_tol=0.02)
    assert density.score(X[:1000]) > -2 * np.log(3) + 0.3
    assert density.entropy_ > entropy - 0.1
    assert density.score_samples([[0, 2]])[0] < density.score_samples([[0, 0]])[0] - 0.5


@pytest.mark.slow
def test_mixed_streams_know_their_levels_in_advance():
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "blue"], size=3000)
    table = pd.DataFrame({"colour": colour, "size": rng.normal(3.0 * (colour == "red"))})
    with pytest.warns(UserWarning, match="categories of the first rows in column\\(s\\) 'colour'"):
        IMMSEMixedDensity(**TINY).partial_fit(table[:50])
    given = IMMSEMixedDensity(categories={"colour": ["blue", "red"]}, **TINY)
    typed = table.assign(colour=table["colour"].astype(pd.CategoricalDtype(["blue", "red"])))
    scores = []
    for density, frame in ((given, table), (IMMSEMixedDensity(**TINY), typed)):
        for _ in range(2):
            density.partial_fit(frame[:1500]).partial_fit(frame[1500:])
        scores.append(density.score_samples(frame[:100]))
    # A categorical dtype has room for what is missing, or has another category.
    np.testing.assert_allclose(scores[1], scores[0] + np.log1p(-1 / 1502), rtol=0, atol=1e-12)
    # Of independent columns the mean is -2.70 nats, of the true density -2.11.
    assert -2.5 < given.score(table) < -2.05
    unknown = pd.DataFrame({"colour": ["green"], "size": [0.0]})
    with pytest.raises(ValueError, match="green"):
        given.partial_fit(unknown)


def test_entropy_of_a_stream_does_not_depend_on_the_values_of_the_last_chunk():
    rng = np.random.default_rng(0)
    names = pd.CategoricalDtype([f"n{i}" for i in range(20)])
    table = pd.DataFrame({"k": names.categories[rng.integers(20, size=1040)]}).astype(names)
    density = IMMSEDiscreteDensity(max_epochs=0, random_state=0).partial_fit(table[:1000])
    before = density.entropy_, density.entropy_std_
    for first in range(1000, 1040, 2):
        density.partial_fit(table[first : first + 2])
        after = density.entropy_, density.entropy_std_
        # Twenty categories alike: no row tells more than another, and there are few new ones.
        np.testing.assert_allclose(after[0], before[0], rtol=0.01)
        np.testing.assert_allclose(after[1], before[1], rtol=0.2)
    for number in range(10):  # rows that are for training, and rows that validate
        density.partial_fit(table[number : number + 1])


def test_another_pass_over_the_same_chunks_trains_on_no_validation_row():
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, [6, 6, 2], size=(400, 3)) for _ in range(4)]
    categories = [list(range(6)), list(range(6)), [0, 1]]
    density = IMMSEDiscreteDensity(max_epochs=0, categories=categories, random_state=0)
    for chunk in chunks:
        density.partial_fit(chunk)
    increments = density._increments
    held_out, counts = len(increments.reservoir.rows), increments.counts[0].copy()
    for chunk in chunks:
        density.partial_fit(chunk)
    assert len(increments.reservoir.rows) == held_out
    np.testing.assert_array_equal(increments.counts[0], 2 * counts)
    # Other rows, and so few that they may be equal by chance, are other observations.
    density.partial_fit(chunks[0][::-1])
    density.partial_fit(chunks[0][:1]).partial_fit(chunks[0][:1])
    assert increments.n_numbered == increments.n_rows == 2 * 1600 + 400 + 2
    assert len(increments.reservoir.rows) > held_out + 20


def test_chunks_may_be_of_one_row(X):
    density = IMMSEDensity(max_epochs=0, random_state=0).partial_fit(X[:300])
    for number in range(300, 320):
        density.partial_fit(X[number : number + 1])
    assert density.entropy_std_ < 1.0


def test_later_rows_of_unseen_values_are_not_learned_from():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.integers(0, 3, size=1500), rng.integers(0, 4, size=1500)])
    later = np.vstack([X[:200], [[3, 0], [0, 9]]])
    densities = []
    for chunk in (X[:200], later):
        with pytest.warns(UserWarning, match="first rows"):
            density = IMMSEDiscreteDensity(**TINY | {"max_epochs": 0}).partial_fit(X)
        if len(chunk) > 200:
            with pytest.warns(
                UserWarning, match=r"not occur in fit, in column\(s\) '0', '1', are not lea"
            ):
                density.partial_fit(chunk)
            with pytest.warns(UserWarning, match="not occur"):
                density.partial_fit(chunk[200:])
        else:
            density.partial_fit(chunk)
        densities.append(density)
    first, second = (density.score_samples(later) for density in densities)
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reference": "gaussian_mixture"}, "reference must be 'auto'"),
        ({"experts": ["network", "gaussian_mixture"]}, r"experts names \['gaussian_mixture'\]"),
        ({"experts": ["auto", "kernel_density"]}, r"experts names \['kernel_density'\]"),
        ({"experts": ["auto", StudentTFamily()]}, r"experts names \['student_t'\]"),
        ({"experts": ["gaussian", StudentTFamily()]}, r"experts names \['student_t'\]"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_streams_do_not_have_is_refused_by_name(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        IMMSEDensity(**TINY | parameters).partial_fit(X)


def test_preconditioners_that_streams_do_not_have_are_refused():
    codes = np.zeros((50, 2), dtype=int)
    density = IMMSEDiscreteDensity(
        categories=[range(2)] * 2, preconditioner="latent_class", random_state=0
    )
    with pytest.raises(ValueError, match="preconditioner"):
        density.partial_fit(codes)


def test_columns_that_begin_to_vary_are_refused_by_name(X):
    table = pd.DataFrame(X[:1300], columns=["a", "b"]).assign(c=1.0)
    density = IMMSEDensity(max_epochs=0, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        density.partial_fit(table)
    with pytest.raises(ValueError, match="'c' were constant in the first rows"):
        density.partial_fit(table.assign(c=X[:1300, 0]))
    with pytest.raises(ValueError, match="feature names"):
        density.partial_fit(table[["a", "c", "b"]])
    assert np.isfinite(density.score_samples(table[:5])).all()


def test_divergence_leaves_the_weights_of_before(X, streamed):
    diverging = pickle.loads(pickle.dumps(streamed))
    for group in range(len(diverging._increments.networks["network"].rates)):
        diverging._increments.networks["network"].rates[group] = np.inf
    before = diverging.score_samples(X[:9])
    with pytest.raises(FloatingPointError, match="Lower learning_rate"):
        diverging.partial_fit(X[:1000])
    np.testing.assert_array_equal(diverging.score_samples(X[:9]), before)
