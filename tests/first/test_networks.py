"""Several networks in one continuous density."""

import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

import sk_itdiffusion
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity
from sk_itdiffusion._first._fit.experts import kind_of_expert, names_of_networks, number_of_network
from sk_itdiffusion._first._fit.networks import epoch_length

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {
    "hidden_size": 8,
    "n_blocks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "batch_size": 64,
    "score_tol": 0.5,
    "reference": "gaussian",
    "experts": ["network", "gaussian"],
    "marginals": "standard",
    "random_state": 0,
}


@pytest.fixture(scope="module", name="X")
def two_clusters():
    normal = np.random.default_rng(0).normal(size=(200, 2))
    return 0.3 * normal + np.repeat([[-1.0], [1.0]], 100, axis=0)


@pytest.fixture(scope="module")
def fitted(X):
    return IMMSEDensity(**QUICK).fit(X)


def weights_of(estimator, name):
    return estimator.nets_[name].module_.averaged.state_dict()


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_names_and_numbers_of_networks_are_inverse():
    names = names_of_networks(12)
    assert names[:2] == ["network", "network_2"]
    assert [number_of_network(name) for name in names] == list(range(12))
    assert {kind_of_expert(name) for name in names} == {"network"}
    for other in ("gaussian_mixture", "dense_network", "network_a", "a__network_2", "reference"):
        assert kind_of_expert(other) == other


def test_tables_in_memory_get_two_networks_and_other_rows_one(X, fitted):
    assert list(fitted.nets_) == list(fitted.expert_weights_)[:2] == ["network", "network_2"]
    assert fitted.net_ is fitted.nets_["network"]
    streamed = IMMSEDensity(**QUICK | {"experts": "auto"}).partial_fit(np.vstack([X] * 8))
    assert list(streamed.nets_) == ["network"]

    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.share = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, z, logsnr):
            return self.share * z

    assert list(IMMSEDensity(denoiser=Denoiser(), **QUICK).fit(X).nets_) == ["network"]
    assert list(IMMSEDensity(callbacks=[Callback()], **QUICK).fit(X).nets_) == ["network"]
    levels = (X > 0).astype(int)
    known = {k: v for k, v in QUICK.items() if k not in ("reference", "experts", "marginals")}
    assert list(IMMSEDiscreteDensity(**known).fit(levels).nets_) == ["network"]


def test_a_network_is_the_same_whatever_others_are_trained_beside_it(X, fitted):
    alone = IMMSEDensity(**QUICK, n_networks=1).fit(X)
    three = IMMSEDensity(**QUICK, n_networks=3).fit(X)
    assert list(three.nets_) == ["network", "network_2", "network_3"]
    assert same_weights(weights_of(alone, "network"), weights_of(three, "network"))
    assert same_weights(weights_of(fitted, "network_2"), weights_of(three, "network_2"))
    assert not same_weights(weights_of(three, "network"), weights_of(three, "network_3"))
    assert alone.history_ == three.history_


def test_one_thread_gives_the_numbers_of_two(X, fitted):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = IMMSEDensity(**QUICK).fit(X)
        torch.set_num_threads(2)
        double = IMMSEDensity(**QUICK).fit(X)
    finally:
        torch.set_num_threads(before)
    for name in fitted.nets_:
        assert same_weights(weights_of(single, name), weights_of(double, name))
    np.testing.assert_array_equal(single.score_samples(X), double.score_samples(X))


def test_every_other_network_has_half_of_the_automatic_regularisation(X, fitted):
    def of(estimator, name):
        net = estimator.nets_[name]
        rates = {m.rate for m in net.module_.modules() if hasattr(m, "rate")}
        return rates, net

    automatic = [of(fitted, name)[0] for name in ("network", "network_2")]
    (first,), (second,) = automatic
    assert first == pytest.approx(2 * second)
    assert 0.0 < first <= 0.4
    given = IMMSEDensity(**QUICK, dropout=0.25).fit(X)
    assert all(of(given, name)[0] == {0.25} for name in given.nets_)


def test_saved_networks_score_to_the_last_bit(X, fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = sk_itdiffusion.load(tmp_path / "model")
    assert list(loaded.nets_) == list(fitted.nets_)
    np.testing.assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))


def test_warm_start_goes_on_with_each_network_and_adds_new_ones(X):
    density = IMMSEDensity(**QUICK | {"warm_start": True, "n_networks": 1}).fit(X)
    first = density.net_.history[-1]["valid_loss"]
    density.set_params(n_networks=2).fit(X)
    assert list(density.nets_) == ["network", "network_2"]
    assert density.net_.history[-1]["valid_loss"] <= first
    fresh = density.nets_["network_2"].history[0]["train_loss"]
    assert density.nets_["network"].history[0]["train_loss"] < fresh


def test_experts_name_all_networks_at_once(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        only = IMMSEDensity(**QUICK | {"experts": ["network"]}).fit(X)
    assert list(only.expert_weights_) == ["network", "network_2"]
    np.testing.assert_allclose(sum(only.expert_weights_.values()), 1.0, rtol=1e-12)


@pytest.mark.parametrize("n_networks", [0, -1, 1.5, "two", None])
def test_bad_numbers_of_networks_are_errors(X, n_networks):
    with pytest.raises(ValueError, match="'n_networks'"):
        IMMSEDensity(**QUICK, n_networks=n_networks).fit(X)


def test_steps_grow_with_the_rows_of_a_table_between_bounds(X):
    settings = IMMSEDensity()
    settings.n_features_in_ = 2
    steps = [epoch_length(n, False, settings._settings()) for n in (40, 400, 1000, 2000, 5000)]
    # In 40 epochs 400 steps at least, then as many as rows up to 1500, then a third of the rows.
    assert steps == [10, 10, 25, 38, 42]
    steps = [epoch_length(n, False, settings._settings()) for n in (12_000, 19_200, 10**7)]
    assert steps == [100, 160, 160]
