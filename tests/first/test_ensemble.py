"""Ensembles: what one member, equal members and members elsewhere must give, and the bound."""

import copy
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from seeds import shifted
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.utils import get_tags

from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    load,
)
from sk_itdiffusion._first._estimators import ensemble
from sk_itdiffusion._first._fit import ensemble_model
from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._immse.error_profiles import ErrorProfile
from sk_itdiffusion._first._table.marginals import Standardizer
from sk_itdiffusion._first._table.space import ColumnKind
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.references import GaussianReference
from sk_itdiffusion.datasets import load_density

pytestmark = pytest.mark.usefixtures("brief_fits")

TINY = {
    "hidden_size": 16,
    "n_blocks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "batch_size": 64,
    "score_tol": 0.5,
    "random_state": shifted(0),
}


def tiny(**params):
    plain = {"reference": "gaussian", "marginals": "standard", "n_networks": 1}
    return IMMSEDensity(**TINY | plain | params)


def tiny_levels(**params):
    return IMMSEDiscreteDensity(**TINY | {"reference": "independent"} | params)


def pair(first=0, second=1):
    return [("a", tiny(random_state=first)), ("b", tiny(hidden_size=24, random_state=second))]


@pytest.fixture(scope="module")
def banana():
    return load_density("banana")


@pytest.fixture(scope="module", name="X")
def rows_of_banana(banana):
    return banana.sample(300, random_state=shifted(0))


@pytest.fixture(scope="module", name="T")
def new_rows(banana):
    return banana.sample(100, random_state=shifted(1))


@pytest.fixture(scope="module")
def members(X):
    """Return fitted members that know one side of the data each."""
    space = tiny(max_epochs=0).fit(X)._model.space
    member = tiny(steps_per_epoch=40, dropout=0.0)
    left, right = X[X[:, 0] < 1.2], X[X[:, 0] > -1.2]
    return [
        ("a", clone(member)._fit(left, None, space)),
        ("b", clone(member)._fit(right, None, space)),
    ]


@pytest.fixture(scope="module")
def fitted(X):
    return IMMSEEnsemble(pair(), random_state=shifted(0)).fit(X)


@pytest.fixture(scope="module")
def levels():
    rng = np.random.default_rng(shifted(0))
    first = rng.integers(0, 3, size=400)
    return np.column_stack([first, (first + (rng.random(400) < 0.3)) % 3])


# -- exactness -------------------------------------------------------------------------------


def test_one_member_scores_as_it_does_alone(X, T):
    est = IMMSEEnsemble(pair()[:1], include_references=False, random_state=shifted(3)).fit(X)
    for ours, own in zip(
        est.score_samples(T, return_std=True),
        est.estimators_[0].score_samples(T, return_std=True),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, own)
    np.testing.assert_array_equal(est.logsnr_, est.estimators_[0].logsnr_)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_writing_to_attributes_changes_no_score(is_loaded, T, fitted, tmp_path):
    fitted.save(tmp_path / "file")
    ensemble = load(tmp_path / "file") if is_loaded else copy.deepcopy(fitted)
    for values in (ensemble.logsnr_, *ensemble.member_weights_.values()):
        values[:] = 0.0
    np.testing.assert_array_equal(ensemble.score_samples(T[:50]), fitted.score_samples(T[:50]))


def test_one_fitted_member_scores_as_it_does_alone_whatever_rows_weigh_it(T, members):
    name, member = members[0]
    before = member.score_samples(T)
    est = IMMSEEnsemble(
        [(name, member)], include_references=False, prefit=True, random_state=shifted(0)
    )
    np.testing.assert_array_equal(est.fit(T[:100]).score_samples(T), before)
    frozen = est.set_params(prefit=False, a=FrozenEstimator(member)).fit(T[:60])
    np.testing.assert_array_equal(frozen.score_samples(T), before)
    assert frozen.estimators_ == [member]


def test_one_discrete_member_scores_as_it_does_alone(levels):
    est = IMMSEEnsemble([("a", tiny_levels())], include_references=False, random_state=shifted(0))
    est.fit(levels)
    np.testing.assert_array_equal(
        est.score_samples(levels[:50]), est.estimators_[0].score_samples(levels[:50])
    )


@pytest.mark.parametrize("weights", ["stack", "select"])
def test_a_copy_of_a_member_changes_nothing(X, T, members, weights):
    settings = {"weights": weights, "prefit": True, "random_state": shifted(0)}
    name, member = members[1]
    copy = pickle.loads(pickle.dumps(member))
    plain = IMMSEEnsemble(members, **settings).fit(T)
    copied = IMMSEEnsemble([*members, ("c", copy)], **settings).fit(T)
    np.testing.assert_allclose(copied.score_samples(X), plain.score_samples(X), atol=1e-6)
    assert not copied.member_weights_["c"].any()
    assert plain.member_weights_[name].any()


@pytest.mark.slow
def test_weight_is_repetition_and_order_is_nothing(X, T):
    rng = np.random.default_rng(shifted(0))
    few = X[:150]
    weight = rng.integers(0, 3, size=len(few))
    est = IMMSEEnsemble(pair(), random_state=shifted(0))
    weighted = est.fit(few, sample_weight=weight).score_samples(T)
    repeated = est.fit(rng.permutation(np.repeat(few, weight, axis=0))).score_samples(T)
    np.testing.assert_allclose(repeated, weighted, rtol=1e-9)


def test_same_seeds_give_the_same_scores_and_rows_do_not_matter_to_each_other(X, T, fitted):
    again = clone(fitted).fit(X)
    scores = fitted.score_samples(T)
    np.testing.assert_array_equal(again.score_samples(T), scores)
    np.testing.assert_array_equal(fitted.score_samples(T[7:3:-1]), scores[7:3:-1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).score_samples(T), scores)


def test_density_in_other_units_has_the_factor_of_their_change(X, T, fitted):
    scale = np.array([0.25, 8.0])
    scaled = clone(fitted).fit(X * scale).score_samples(T * scale)
    np.testing.assert_allclose(scaled + np.log(scale).sum(), fitted.score_samples(T), atol=1e-6)


# -- weights and the bound -------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["stack", "select"])
@pytest.mark.parametrize("include_references", [True, False])
def test_weights_are_on_the_simplex_and_never_worse_than_one_expert(
    T, members, weights, include_references
):
    est = IMMSEEnsemble(
        members,
        weights=weights,
        include_references=include_references,
        prefit=True,
        random_state=shifted(0),
    ).fit(T)
    table = np.stack(list(est.member_weights_.values()))
    assert table.shape == (2 + 2 * include_references, len(est.logsnr_))
    assert table.min() >= 0.0
    np.testing.assert_allclose(table.sum(axis=0), 1.0)
    assert est.entropy_ <= min(est.member_entropies_.values()) + 1e-9
    assert est.member_weights_.keys() == est.member_entropies_.keys()
    curve = est.mse_curve()
    assert set(curve.networks) == {"a", "b"}
    errors = curve.networks | curve.references
    best = np.min([errors[name] for name in est.member_weights_], axis=0)
    if weights == "select":
        assert set(np.unique(table)) <= {0.0, 1.0}
        np.testing.assert_allclose(curve.model, best, rtol=1e-12)
    else:
        assert (curve.model <= best * (1 + 1e-9)).all()
        assert (curve.model < best * (1 - 1e-2)).any()


@pytest.mark.parametrize("weights", ["stack", "select"])
def test_truth_is_not_beaten_but_members_are(banana, T, members, weights):
    est = IMMSEEnsemble(members, weights=weights, prefit=True, random_state=shifted(0)).fit(T)
    new = banana.sample(600, random_state=shifted(2))
    log_density, std = est.score_samples(new, return_std=True)

    def mean_and_error(difference):
        spread = difference.var() + 2 * (std**2).mean()
        return difference.mean(), np.sqrt(spread / len(new))

    excess, error = mean_and_error(log_density - banana.log_prob(new))
    assert -3.0 < excess < 3 * error
    for _, member in members:
        gain, error = mean_and_error(log_density - member.score_samples(new))
        assert gain > (0.1 if weights == "stack" else -3 * error)


def test_weights_of_known_errors():
    """Errors of two experts that are good at either node, and of a copy of the first."""
    residuals = np.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 1.0]]])  # (node, expert)
    residuals = residuals[:, [0, 1, 0]]
    gram = np.repeat((residuals @ residuals.transpose(0, 2, 1))[:, None], 60, axis=1)
    profile = ErrorProfile(("a", "b", "c"), np.array([0.0, 1.0]), gram, np.full(60, 1 / 60))
    select = ensemble_model.expert_weights(profile, ["a", "b", "c"], "select")
    np.testing.assert_array_equal(select, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    stack = ensemble_model.expert_weights(profile, ["a", "b", "c"], "stack")
    np.testing.assert_allclose(stack, [[0.8, 0.2, 0.0], [0.1, 0.9, 0.0]], atol=1e-6)
    np.testing.assert_allclose(
        ensemble_model.expert_weights(profile, ["c", "b"], "stack"), stack[:, :2], atol=1e-6
    )


def test_validation_bound_is_the_mean_score_of_the_rows_that_gave_the_weights(T, members):
    frozen = [(name, FrozenEstimator(member)) for name, member in members]
    est = IMMSEEnsemble(frozen, score_tol=0.05, random_state=shifted(0)).fit(T)
    # The bound is a trapezoidal sum over 41 nodes with other noise.
    assert est.entropy_ == pytest.approx(-est.score(T), abs=0.05)
    for name, member in members:
        assert est.member_entropies_[name] == pytest.approx(-member.score(T), abs=0.08)


def test_held_out_rows_are_other_rows_with_all_of_their_copies(X):
    repeated = np.vstack([X, X[:100]])
    settings = tiny().fit(X[:20])._settings().changed(validation_fraction=0.2)
    rows, space, is_counted = ensemble.grouped_rows(
        repeated, np.ones(len(repeated)), [ColumnKind()] * 2, settings
    )
    seeds = Seeds.draw(np.random.RandomState(shifted(0)))
    (train, weight, _), valid = ensemble.held_out(rows, space, settings, seeds, is_counted)
    ours, theirs = ({tuple(row) for row in part} for part in (train, valid.X))
    assert not ours & theirs
    assert ours | theirs == {tuple(row) for row in X}
    assert len(theirs) == 60
    assert weight.sum() + valid.weight.sum() == len(repeated)


@pytest.mark.slow
def test_members_do_not_see_the_held_out_rows(X, monkeypatch):
    seen = {}
    combine = IMMSEEnsemble._combine

    def spy(self, members, first, valid, *args):
        seen["held_out"] = {tuple(row) for row in valid.X}
        combine(self, members, first, valid, *args)

    fit = IMMSEDensity._fit

    def spy_on_fit(self, X, weight, space, chosen, **options):
        def spied(*read):
            rows, *others = chosen(*read)
            seen.setdefault("fitted", []).append({tuple(row) for row in rows})
            return rows, *others

        return fit(self, X, weight, space, spied, **options)

    monkeypatch.setattr(IMMSEEnsemble, "_combine", spy)
    monkeypatch.setattr(IMMSEDensity, "_fit", spy_on_fit)
    IMMSEEnsemble(pair(), random_state=shifted(0)).fit(X)
    assert len(seen["held_out"]) == 30
    assert len(seen["fitted"]) == 2
    for rows in seen["fitted"]:
        assert rows | seen["held_out"] == {tuple(row) for row in X}
        assert not rows & seen["held_out"]


def test_few_rows_serve_both():
    X = np.random.default_rng(shifted(0)).normal(size=(12, 2))
    est = IMMSEEnsemble(pair(), random_state=shifted(0)).fit(X)
    np.testing.assert_array_equal(est.score_samples(X), tiny().fit(X).score_samples(X))
    assert set(est.member_weights_["a"]) == {1.0}


def test_rows_without_variation_have_the_density_of_any_member():
    X = np.ones((20, 2))
    with pytest.warns(UserWarning, match="are constant"):
        est = IMMSEEnsemble(pair(), random_state=shifted(0)).fit(X)
    np.testing.assert_array_equal(est.score_samples(X), est.estimators_[0].score_samples(X))


@pytest.mark.slow
def test_equal_references_are_experts_once(X):
    plain = tiny(max_epochs=0)
    shared = IMMSEEnsemble([("one", plain), ("gaussian", tiny())], random_state=shifted(0))
    assert list(shared.fit(X).member_weights_) == ["one", "gaussian", "one__gaussian"]
    other = IMMSEEnsemble(
        [("one", plain), ("two", clone(plain).set_params(random_state=shifted(1)))]
    )
    other.set_params(random_state=shifted(0))
    # Each member holds rows of its own out, so their normal distributions differ.
    assert list(other.fit(X).member_weights_) == ["one", "two", "gaussian", "two__gaussian"]


# -- spaces ----------------------------------------------------------------------------------


def points_of(est, X):
    space = est._model.space
    return space.rows(space.standardized(X))[0]


def in_scaled_space(member, X, shift, factor):
    """Return a member fitted in a space whose rows are ``factor`` times its usual ones."""
    usual = member.fit(X)._model.space
    standardizer = Standardizer(
        usual.standardizer.center - shift, usual.standardizer.scale / factor
    )
    return clone(member)._fit(X, None, replace(usual, standardizer=standardizer))


def test_member_in_a_scaled_space_predicts_the_same_noise_of_the_same_rows(X, T):
    member = in_scaled_space(tiny(random_state=shifted(0)), X, shift=3.0, factor=2.0)
    plain = tiny(max_epochs=0).fit(X)
    est = IMMSEEnsemble(
        [("plain", plain), ("scaled", member)], prefit=True, random_state=shifted(0)
    ).fit(T)
    noise = torch.from_numpy(np.random.default_rng(shifted(0)).normal(size=T.shape))
    for level in (-2.0, 0.5, 4.0):
        ours = torch.full((len(T),), level, dtype=torch.float64)
        own = ours - 2 * np.log(2.0)
        x, u = (torch.from_numpy(points_of(model, T)) for model in (est, member))
        found = est._model.experts()["scaled"](add_noise(x, noise, ours), ours)
        expected = member._model.paired()(add_noise(u, noise, own), own)[1]
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)
    reference = est._model.references["scaled__gaussian"]
    volume = len(X[0]) * np.log(2.0)
    torch.testing.assert_close(
        reference.log_prob(x), member.reference_.log_prob(u) + volume, rtol=1e-9, atol=1e-9
    )


def test_members_of_one_column_can_be_fitted_elsewhere():
    rng = np.random.default_rng(shifted(0))
    X, T = rng.normal(size=(2, 400, 1)) ** 3 + 5.0
    good = tiny(steps_per_epoch=40).fit(X)
    bad = tiny(max_epochs=0).fit(20.0 * X)
    est = IMMSEEnsemble([("bad", bad), ("good", good)], include_references=False, prefit=True)
    log_density, std = (
        est.set_params(random_state=shifted(0)).fit(T).score_samples(X, return_std=True)
    )
    own, own_std = good.score_samples(X, return_std=True)
    assert est.member_entropies_["good"] < est.member_entropies_["bad"] - 0.5
    error = np.sqrt((std**2 + own_std**2).mean() / len(X))
    assert log_density.mean() > own.mean() - 4 * error - 0.05


@pytest.mark.parametrize("marginals", ["standard", "quantile"])
def test_spaces_of_other_scales_are_an_error(X, marginals):
    quick = tiny(max_epochs=0, marginals=marginals)
    members = [("one", clone(quick).fit(X)), ("two", clone(quick).fit(X[:200]))]
    with pytest.raises(ValueError, match=r"'two' and 'one' see their columns on different scales"):
        IMMSEEnsemble(members, prefit=True, random_state=shifted(0)).fit(X)
    same = clone(quick).fit(X)
    IMMSEEnsemble([members[0], ("same", same)], prefit=True, random_state=shifted(0)).fit(X)


@pytest.mark.slow
def test_maps_are_those_of_the_first_fitted_member(X):
    first = IMMSEDensity(**TINY | {"marginals": "quantile", "reference": "gaussian"}).fit(X)
    est = IMMSEEnsemble(
        [("plain", tiny()), ("mapped", FrozenEstimator(first))], random_state=shifted(0)
    )
    est.fit(load_density("banana").sample(200, random_state=shifted(3)))
    assert [member.marginals_ for member in est.estimators_] == ["quantile", "quantile"]
    assert est.estimators_[1] is first


@pytest.mark.slow
def test_member_with_a_reference_object_gives_the_space(X, T):
    reference = GaussianReference([0.0, 1.0], np.diag([1.0, 3.0]))
    mapped = IMMSEDensity(**TINY | {"marginals": "quantile", "reference": "gaussian"})
    members = [("mapped", mapped), ("given", tiny(reference=reference))]
    est = IMMSEEnsemble(members, random_state=shifted(0)).fit(X)
    assert est.estimators_[0].marginals_ == "standard"
    center, scale = (getattr(est._model.space.standardizer, n) for n in ("center", "scale"))
    x = torch.from_numpy((T - center) / scale)
    torch.testing.assert_close(
        est._model.references["reference"].log_prob(x) - np.log(scale).sum(),
        reference.log_prob(torch.from_numpy(T)),
    )


def test_beyond_its_range_a_member_is_its_control_variate(T, members):
    member = members[0][1]._model
    identity = ensemble_model.Transport(1.0, np.zeros(2))
    denoise = ensemble_model.member_denoiser(member, identity, {})
    z = torch.from_numpy(T)
    for level, is_inside in [(member.logsnr[-1] + 1.0, False), (1.0, True)]:
        logsnr = torch.full((len(T),), level, dtype=torch.float64)
        reference = member.references["gaussian"](z, logsnr)
        assert torch.equal(denoise(z, logsnr), reference) != is_inside


@pytest.mark.slow
def test_dequantized_members_bound_probabilities_of_the_lattice():
    marginal = stats.binom(30, 0.5)
    X, new = marginal.rvs(size=(2, 300, 3), random_state=shifted(0)).astype(float)
    members = [("a", tiny(dequantize=1.0)), ("b", tiny(dequantize=1.0, random_state=shifted(1)))]
    alone = IMMSEEnsemble(members[:1], include_references=False, random_state=shifted(0)).fit(X)
    np.testing.assert_array_equal(alone.score_samples(new), alone.estimators_[0].score_samples(new))
    both = IMMSEEnsemble(members, random_state=shifted(0)).fit(X)
    excess = both.score_samples(new) - marginal.logpmf(new).sum(axis=1)
    assert -0.5 < excess.mean() < 3 * excess.std() / np.sqrt(len(new))
    with pytest.raises(ValueError, match="not on the lattice"):
        both.score_samples(new + 0.5)
    half = tiny(dequantize=0.5, max_epochs=0).fit(X)
    with pytest.raises(ValueError, match="'a' and 'half' add noise of different width"):
        IMMSEEnsemble([members[0], ("half", FrozenEstimator(half))], random_state=shifted(0)).fit(X)


def test_references_of_several_members_work_once(T, members, monkeypatch):
    shared = pickle.loads(pickle.dumps(members[0][1]))  # its reference is another, equal object
    est = IMMSEEnsemble([members[0], ("c", shared)], prefit=True, random_state=shifted(0)).fit(T)
    calls = []
    denoise = GaussianReference.denoise

    def spy(self, z, logsnr):
        calls.append(self)
        return denoise(self, z, logsnr)

    experts = est._model.experts()
    monkeypatch.setattr(GaussianReference, "denoise", spy)
    z, logsnr = torch.from_numpy(T), torch.zeros(len(T), dtype=torch.float64)
    found = [experts[name](z, logsnr) for name in ("gaussian", "a", "c")]
    assert calls.count(est._model.references["gaussian"]) == 1
    expected = members[0][1]._model.stack()(z, logsnr)
    torch.testing.assert_close(found[1], expected, rtol=0.0, atol=1e-9)
    again = experts["gaussian"](2.0 * z, logsnr)
    torch.testing.assert_close(again, denoise(est._model.references["gaussian"], 2.0 * z, logsnr))


# -- categories and mixed tables -----------------------------------------------------------------


def test_probabilities_of_all_states_sum_to_about_one(levels):
    members = [
        ("a", tiny_levels(random_state=shifted(0))),
        ("b", tiny_levels(loss="mse", random_state=shifted(1))),
    ]
    est = IMMSEEnsemble(members, validation_fraction=0.3, score_tol=0.03, random_state=shifted(0))
    est.fit(levels)
    states = np.array(list(np.ndindex(3, 3)))
    log_p, std = est.score_samples(states, return_std=True)
    p = np.exp(log_p - std**2 / 2)
    assert 0.85 < p.sum() < 1.0 + 3 * np.sqrt(np.sum((p * std) ** 2))
    assert est.entropy_ <= min(est.member_entropies_.values()) + 1e-9
    assert set(np.unique(est.sample(20, random_state=shifted(0)))) <= {0, 1, 2}


def steps_of_four_levels(n, seed):
    """Return rows of two columns, all states, and the probabilities of these."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 4, size=n)
    rows = np.column_stack([first, (first + (rng.random(n) < 0.2)) % 4])
    states = np.array(list(np.ndindex(4, 4)))
    step = (states[:, 1] - states[:, 0]) % 4
    return rows, states, np.choose(step, [0.2, 0.05, 0.0, 0.0])


WEIGHTS = ["two", "gamma", "multiples", "balanced"]
KINDS = ["discrete", "dequantized"]


@pytest.mark.parametrize("case", others_slow(itertools.product([False, True], KINDS, WEIGHTS)))
def test_weights_are_worth_their_effective_number_of_rows(case, recwarn, usual_fits):
    """The expected divergence of frequencies from the truth is (states - 1) / (2 n) = 0.006.

    With few rows for validation, the mass of states that were not seen, and errors of integration
    it had the mean 0.027 and the standard deviation 0.008 in 16 fits to discrete columns, and 0.127
    and 0.03 in 8 fits to dequantised ones; it was above 0.86 where states were taken for rows.
    """
    grouped, kind, weights = case
    n = 600
    rows, states, truth = steps_of_four_levels(n, seed=1)
    rng = np.random.default_rng(shifted(2))
    weight = {
        "two": rng.choice([1.0, 1.5], size=n),
        "gamma": rng.gamma(4.0, size=n) + 0.1,
        "multiples": 0.37 * rng.integers(2, 6, size=n),
        "balanced": 0.25 / np.bincount(rows[:, 0])[rows[:, 0]],
    }[weights]
    member = tiny_levels(max_epochs=0, reference="auto", score_tol=0.1)
    if kind == "dequantized":
        member = IMMSEDensity(dequantize=True, max_epochs=0, score_tol=0.1)
    groups = np.arange(n) // 20 if grouped else None
    est = IMMSEEnsemble([("a", member)], random_state=shifted(0))
    est.fit(rows.astype(float) if kind == "dequantized" else rows, None, weight, groups)
    assert not [each for each in recwarn if "fewer than 40" in str(each.message)]
    seen = truth > 0
    log_p = est.score_samples(states[seen])
    divergence = truth[seen] @ (np.log(truth[seen]) - log_p)
    assert divergence < {"discrete": 0.1, "dequantized": 0.3}[kind]
    entropy = -truth[seen] @ np.log(truth[seen])
    assert est.entropy_ < entropy + divergence + 4.0 * est.entropy_std_


@pytest.mark.parametrize("weights", ["two", "gamma"])
def test_one_state_is_as_likely_as_the_effective_number_of_rows_says(weights):
    rng = np.random.default_rng(shifted(0))
    weight = {"two": rng.choice([1.0, 1.5], size=300), "gamma": rng.gamma(2.0, size=300)}[weights]
    n = weight.sum() ** 2 / (weight**2).sum()
    X = np.ones((300, 2))
    est = IMMSEEnsemble([("a", tiny(dequantize=True, max_epochs=0))], random_state=shifted(0))
    found = est.fit(X, sample_weight=weight).score_samples(X[:1])
    # Weights are rounded to 24 bits.
    np.testing.assert_allclose(found, 2.0 * np.log((n + 1.0) / (n + 2.0)), rtol=1e-6)


def test_texts_and_levels_of_one_row_are_read_by_all_members():
    rng = np.random.default_rng(shifted(0))
    colour = rng.choice(["red", "green"], size=80).astype(object)
    colour[7] = "blue"
    frame = pd.DataFrame({"colour": colour, "size": rng.normal(size=80)})
    small = TINY | {"reference": "independent", "marginals": "standard"}
    members = [
        (name, IMMSEMixedDensity(**small | {"max_epochs": n})) for n, name in enumerate("ab")
    ]
    for seed in range(2):  # the row is held out, or not
        est = IMMSEEnsemble(members, validation_fraction=0.4, random_state=seed).fit(frame)
        assert np.isfinite(est.score_samples(frame)).all()
    assert list(est.feature_names_in_) == ["colour", "size"]
    assert list(est.sample(3, random_state=shifted(0)).columns) == ["colour", "size"]
    with pytest.raises(ValueError, match="size"):
        est.score_samples(frame[["colour"]])


def test_other_levels_are_an_error_that_names_the_member(levels):
    known = [[0, 1, 2], [0, 1, 2]]
    more = [[0, 1, 2], [0, 1, 2, 3]]
    members = [("a", tiny_levels(categories=known)), ("b", tiny_levels(categories=more))]
    with pytest.raises(ValueError, match="'b' and 'a' have other categories in the column '1'"):
        IMMSEEnsemble(members, random_state=shifted(0)).fit(levels)
    fitted = [(name, member.set_params(max_epochs=0).fit(levels)) for name, member in members]
    with pytest.raises(ValueError, match="'b' and 'a' have other categories in the column '1'"):
        IMMSEEnsemble(fitted, prefit=True, random_state=shifted(0)).fit(levels)


def test_other_embeddings_of_the_same_levels_are_an_error(levels):
    known = {"categories": [[0, 1, 2]] * 2, "kind": "ordinal", "max_epochs": 0}
    members = [
        ("a", tiny_levels(**known).fit(levels)),
        ("b", tiny_levels(**known).fit(levels[:200])),
    ]
    with pytest.raises(ValueError, match="do not model the same columns and categories"):
        IMMSEEnsemble(members, prefit=True, random_state=shifted(0)).fit(levels)


# -- scikit-learn ----------------------------------------------------------------------------


@pytest.mark.slow
def test_nested_parameters_can_be_searched_and_members_dropped(X):
    grid = {"a__max_epochs": [0, 1], "b": ["drop"], "weights": ["select"]}
    search = GridSearchCV(IMMSEEnsemble(pair(), random_state=shifted(0)), grid, cv=2).fit(X[:120])
    first, second = search.cv_results_["mean_test_score"]
    assert abs(first - second) > 1e-6
    assert search.best_estimator_.estimators_[0].max_epochs == search.best_params_["a__max_epochs"]
    assert list(search.best_estimator_.named_estimators_) == ["a"]
    assert len(search.best_estimator_.estimators_) == 1


def test_parameters_are_those_of_the_members_by_name():
    est = IMMSEEnsemble(pair())
    assert est.get_params()["b__hidden_size"] == 24
    est.set_params(b__hidden_size=7, a=tiny(hidden_size=5), score_tol=0.2)
    assert [member.hidden_size for _, member in est.estimators] == [5, 7]
    assert est.score_tol == 0.2
    with pytest.raises(ValueError, match="Invalid parameter 'c'"):
        est.set_params(c__hidden_size=7)


@pytest.mark.slow
def test_seeds_of_members_follow_from_the_seed_of_the_ensemble_unless_given(X, T):
    def fit(seed):
        quick = {"max_epochs": 1, "steps_per_epoch": 1}
        members = [("a", tiny(random_state=None, **quick)), ("b", tiny(random_state=None, **quick))]
        members.append(("c", tiny(random_state=shifted(4), max_epochs=0)))
        return IMMSEEnsemble(members, random_state=seed).fit(X[:60])

    first, again, other = (fit(seed) for seed in (0, 0, 1))
    seeds = [[m.random_state for m in est.estimators_] for est in (first, again, other)]
    assert seeds[0] == seeds[1]
    assert seeds[0][2] == seeds[2][2] == 4
    assert len({seeds[0][0], seeds[0][1], seeds[2][0], seeds[2][1]}) == 4
    np.testing.assert_array_equal(first.score_samples(T), again.score_samples(T))


def test_tolerance_is_the_least_of_the_members_and_can_be_changed(X, T, fitted):
    quick = {"max_epochs": 0}
    members = [("a", tiny(**quick | {"score_tol": 0.5})), ("b", tiny(**quick | {"score_tol": 0.2}))]
    est = IMMSEEnsemble(members, random_state=shifted(0)).fit(X[:60])
    least = est.score_samples(T)
    np.testing.assert_array_equal(est.set_params(score_tol=0.2).score_samples(T), least)
    changed = pickle.loads(pickle.dumps(fitted))
    coarse = changed.score_samples(T, return_std=True)[1].mean()
    fine = changed.set_params(score_tol=0.005).score_samples(T, return_std=True)[1].mean()
    assert fine < 0.6 * coarse
    with pytest.raises(ValueError, match="score_tol"):
        changed.set_params(score_tol=0.0).score_samples(T)


def test_tags_follow_the_members():
    numbers, texts = IMMSEEnsemble(pair()), IMMSEEnsemble([("a", tiny_levels()), ("b", "drop")])
    assert not get_tags(numbers).input_tags.categorical
    assert get_tags(texts).input_tags.categorical
    assert get_tags(texts).input_tags.string
    assert not get_tags(IMMSEEnsemble(3)).input_tags.string


def test_interrupted_fit_leaves_no_fit(X, T, members, monkeypatch):
    est = IMMSEEnsemble(members, prefit=True, random_state=shifted(0)).fit(T)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ensemble, "fit_ensemble_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        est.fit(X)
    with pytest.raises(NotFittedError):
        est.score_samples(X)
    assert not hasattr(est, "estimators_")


@pytest.mark.parametrize(
    ("estimators", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ([tiny()], ValueError, "at least one"),
        ([("a", "drop")], ValueError, "All estimators are dropped"),
        ([("a", tiny()), ("a", tiny())], ValueError, "not unique"),
        ([("weights", tiny())], ValueError, "conflict with constructor arguments"),
        ([("a__b", tiny())], ValueError, "must not contain __"),
        ([("a", KernelDensity())], TypeError, "'a' is KernelDensity"),
        ([("a", IMMSEDensity)], TypeError, "'a' is the class IMMSEDensity"),
        ([("a", FrozenEstimator(tiny()))], NotFittedError, "'a' is not fitted"),
        (
            [("a", tiny()), ("b", tiny_levels())],
            ValueError,
            "one reads numbers, the other categories",
        ),
    ],
)
def test_errors_of_members(X, estimators, error, message):
    with pytest.raises(error, match=message):
        IMMSEEnsemble(estimators, random_state=shifted(0)).fit(X)


def test_errors_of_fitted_members(X):
    with pytest.raises(NotFittedError, match="'a' is not fitted"):
        IMMSEEnsemble(pair(), prefit=True, random_state=shifted(0)).fit(X)
    member = tiny(max_epochs=0).fit(X)
    with pytest.raises(ValueError, match="'a' was fitted to 2 columns, but X has 1"):
        IMMSEEnsemble([("a", member)], prefit=True, random_state=shifted(0)).fit(X[:, :1])


def test_wrong_columns_are_an_error(X, fitted):
    with pytest.raises(ValueError, match="IMMSEEnsemble is expecting 2 features"):
        fitted.score_samples(X[:, :1])
