"""Networks as a parameter: those of the library, and one that is kept outside of it."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import sk_itdiffusion
from first.outside_network import SmallBackbone, SmallFamily
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity, IMMSEMixedDensity
from sk_itdiffusion._first._fit.networks import planned_networks
from sk_itdiffusion._first.denoisers import (
    ConvolutionalFamily,
    ConvolutionalNetwork,
    MLPFamily,
    NetworkFamily,
    NetworkTask,
    ResidualMLP,
    UNetFamily,
)
from sk_itdiffusion._first.denoisers.built_in import NETWORK_FAMILIES, resolve_family

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {
    "hidden_size": 8,
    "n_blocks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "batch_size": 64,
    "score_tol": 0.5,
    "random_state": 0,
}
PLAIN = QUICK | {"reference": "gaussian", "experts": ["network", "gaussian"]}
PLAIN |= {"marginals": "standard"}
IMAGES = NetworkTask(image_shape=(1, 8, 8))
PIXEL_LEVELS = NetworkTask(has_categories=True, has_continuous=False, image_shape=(8, 8))


@pytest.fixture(scope="module", name="X")
def two_clusters():
    normal = np.random.default_rng(0).normal(size=(200, 2))
    return 0.3 * normal + np.repeat([[-1.0], [1.0]], 100, axis=0)


def backbone_of(estimator, name="network"):
    return estimator.nets_[name].module_.averaged.backbone


# -- those of the library ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "families"),
    [
        (NetworkTask(), [MLPFamily]),
        (NetworkTask(has_categories=True), [MLPFamily]),
        (IMAGES, [UNetFamily, ConvolutionalFamily, MLPFamily]),
        (PIXEL_LEVELS, [ConvolutionalFamily, MLPFamily]),
    ],
)
def test_auto_is_the_first_family_that_applies(task, families):
    applying = [cls for cls in NETWORK_FAMILIES.values() if cls().applies(task)]
    assert applying == families
    assert type(resolve_family("auto", task)) is families[0]
    for name, cls in NETWORK_FAMILIES.items():
        if cls in families:
            assert type(resolve_family(name, task)) is cls
        else:
            with pytest.raises(ValueError, match=f"network='{name}' needs .*images"):
                resolve_family(name, task)


def planned(estimator):
    estimator.n_features_in_ = 64
    return planned_networks(estimator._settings())


def test_which_networks_are_trained_follows_from_the_family():
    assert list(planned(IMMSEDensity())) == ["network", "network_2"]
    assert list(planned(IMMSEDensity(network=SmallFamily()))) == ["network", "network_2"]
    assert list(planned(IMMSEDensity(image_shape=(8, 8)))) == ["network"]
    assert list(planned(IMMSEDensity(image_shape=(8, 8), n_networks=3)))[1:] == [
        "network_2",
        "network_3",
    ]
    for network in ("auto", "convolutional", ConvolutionalFamily()):
        found = planned(IMMSEDiscreteDensity(image_shape=(8, 8), network=network))
        sizes = {name: (type(p.family), p.hidden_size, p.n_blocks) for name, p in found.items()}
        assert sizes == {
            "network": (ConvolutionalFamily, 64, 3),
            "dense_network": (MLPFamily, 256, 2),
        }
    found = planned(IMMSEDiscreteDensity(image_shape=(8, 8), network="mlp"))
    assert {name: p.hidden_size for name, p in found.items()} == {"network": 256}


def usual(estimator, kinds=None):
    estimator.n_features_in_ = 64
    if kinds is not None:
        estimator.kinds_ = kinds
    settings = estimator._settings()
    model, training = settings.model, settings.training
    return model.hidden_size, model.n_blocks, training.batch_size, training.learning_rate


def test_classes_and_modules_are_no_families(X):
    for cls in (IMMSEDensity, IMMSEMixedDensity, IMMSEDiscreteDensity):
        for network, message in [
            (SmallFamily, r"class SmallFamily, .*network=SmallFamily\(\)"),
            (torch.nn.Identity(), "got Identity, a torch.nn.Module. Derive from NetworkFamily"),
            (torch.nn.Identity, "got Identity, a torch.nn.Module. Derive from NetworkFamily"),
        ]:
            with pytest.raises(ValueError, match=message) as caught:
                cls(network=network).fit(X)
            has_hint = "parameter denoiser" in str(caught.value)
            assert has_hint == (cls is IMMSEDensity and network is not SmallFamily)


def test_what_a_family_stores_does_not_change_the_parameter(X):
    class Storing(SmallFamily):
        def build(self, plan):
            self.plan_ = plan
            return super().build(plan)

    estimator = IMMSEDensity(network=Storing(), **PLAIN, n_networks=1).fit(X)
    assert vars(estimator.network) == vars(Storing())


def test_automatic_parameters_follow_from_the_family():
    images = {"image_shape": (8, 8)}
    assert usual(IMMSEDensity()) == (128, 2, 512, 0.03)
    assert usual(IMMSEDensity(**images)) == (32, 1, 64, 0.007)
    denoiser = torch.nn.Identity()
    assert usual(IMMSEDensity(denoiser=denoiser)) == (128, 2, 512, 0.001)
    assert usual(IMMSEDensity(denoiser=denoiser, **images)) == (128, 2, 64, 0.001)
    assert usual(IMMSEDiscreteDensity()) == (256, 2, 512, 0.02)
    assert usual(IMMSEDiscreteDensity(**images)) == (64, 3, 128, 0.02)
    assert usual(IMMSEMixedDensity(), ["continuous", "nominal"]) == (256, 2, 512, 0.02)
    assert usual(IMMSEMixedDensity(), ["continuous"]) == (128, 2, 512, 0.02)
    given = {"hidden_size": 24, "n_blocks": 5, "batch_size": 7, "learning_rate": 0.5}
    for estimator in (IMMSEDensity, IMMSEDiscreteDensity):
        assert usual(estimator(**images, **given)) == (24, 5, 7, 0.5)


def test_named_family_is_what_auto_takes(X):
    auto, named, given = (
        IMMSEDensity(**PLAIN, network=network).fit(X) for network in ("auto", "mlp", MLPFamily())
    )
    np.testing.assert_array_equal(auto.score_samples(X), named.score_samples(X))
    np.testing.assert_array_equal(auto.score_samples(X), given.score_samples(X))


@pytest.mark.parametrize("kind", [IMMSEDensity, IMMSEDiscreteDensity])
@pytest.mark.parametrize(
    ("network", "backbone"), [("mlp", ResidualMLP), ("convolutional", ConvolutionalNetwork)]
)
def test_images_of_any_kind_take_either_network(kind, network, backbone):
    X = np.random.default_rng(0).integers(0, 3, size=(80, 16)).astype(float)
    if kind is IMMSEDensity:
        X += np.random.default_rng(1).normal(size=X.shape)
    density = kind(**QUICK, network=network, image_shape=(4, 4)).fit(X)
    assert type(backbone_of(density)) is backbone
    assert np.isfinite(density.score_samples(X)).all()


def test_networks_that_do_not_apply_are_errors(X):
    for network in ("unet", "convolutional"):
        with pytest.raises(ValueError, match=f"network='{network}' needs .* image_shape"):
            IMMSEDensity(**PLAIN, network=network).fit(X)
    levels = (X > 0).astype(int)
    with pytest.raises(ValueError, match=r"'convolutional'.* needs .* image_shape"):
        IMMSEDiscreteDensity(**QUICK, network="convolutional").fit(levels)
    for density in (IMMSEDiscreteDensity, IMMSEMixedDensity):
        with pytest.raises(ValueError, match="'network' parameter"):
            density(**QUICK, network="unet").fit(levels)
        with pytest.raises(ValueError, match=r"UNetFamily.* needs .* continuous pixels"):
            density(**QUICK, network=UNetFamily()).fit(levels)
    experts = {"experts": ["dense_network"], "image_shape": (1, 2)}
    with pytest.raises(ValueError, match="'dense_network', which needs"):
        IMMSEDiscreteDensity(**QUICK, network="mlp", **experts).fit(levels)


def test_given_denoisers_need_automatic_networks(X):
    class Denoiser(torch.nn.Module):
        def forward(self, z, logsnr):
            return torch.sigmoid(-logsnr).sqrt()[:, None] * z

    for network in ("mlp", SmallFamily()):
        with pytest.raises(ValueError, match="network must be 'auto'"):
            IMMSEDensity(denoiser=Denoiser(), network=network, max_epochs=0).fit(X)


# -- one's own ---------------------------------------------------------------------------------


def test_own_network_is_trained_scored_and_stacked(X):
    before = torch.random.get_rng_state()
    longer = PLAIN | {"max_epochs": 8, "steps_per_epoch": 50}
    density = IMMSEDensity(**longer, network=SmallFamily(32)).fit(X)
    assert list(density.expert_weights_) == ["network", "network_2", "gaussian"]
    assert type(backbone_of(density)) is SmallBackbone
    assert backbone_of(density).config()["width"] == 32
    # The automatic dropout, which every other network has half of.
    first, second = (backbone_of(density, name) for name in density.nets_)
    assert 0.0 < second.config()["dropout"] == pytest.approx(0.5 * first.config()["dropout"])
    # A normal distribution does not know the clusters; with other seeds the gain is 0.25 to 0.27.
    plain = IMMSEDensity(**PLAIN | {"experts": ["gaussian"]}).fit(X)
    assert density.score(X) > plain.score(X) + 0.1
    again = IMMSEDensity(**longer, network=SmallFamily(32)).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), density.score_samples(X))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_untrained_network_of_ones_own_is_the_reference(X):
    settings = PLAIN | {"max_epochs": 0}
    alone = IMMSEDensity(**settings | {"experts": ["network"]}, network=SmallFamily()).fit(X)
    plain = IMMSEDensity(**settings | {"experts": ["gaussian"]}).fit(X)
    np.testing.assert_allclose(alone.score_samples(X), plain.score_samples(X), atol=1e-4)


def test_own_network_denoises_mixed_and_discrete_tables(X):
    table = pd.DataFrame({"side": np.where(X[:, 0] > 0, "right", "left"), "size": X[:, 1]})
    mixed = IMMSEMixedDensity(**QUICK, network=SmallFamily()).fit(table)
    assert backbone_of(mixed).config()["n_outputs"] == 1 + 1
    assert np.isfinite(mixed.score_samples(table)).all()
    discrete = IMMSEDiscreteDensity(**QUICK, network=SmallFamily()).fit(table[["side"]])
    total = np.exp(discrete.score_samples(pd.DataFrame({"side": ["left", "right"]}))).sum()
    assert total == pytest.approx(1.0, abs=0.1)
    assert type(backbone_of(discrete)) is SmallBackbone


def test_own_network_clones_pickles_and_copies(X):
    density = IMMSEDensity(**PLAIN, network=SmallFamily(12))
    copied = clone(density)
    assert copied.network is not density.network
    assert copied.network.get_params() == {"width": 12}
    assert copied.get_params()["network__width"] == 12
    density.fit(X)
    for again in (pickle.loads(pickle.dumps(density)), copy.deepcopy(density)):
        np.testing.assert_array_equal(again.score_samples(X), density.score_samples(X))


def test_own_network_is_saved_with_its_class(X, tmp_path):
    table = pd.DataFrame({"side": np.where(X[:, 0] > 0, "right", "left"), "size": X[:, 1]})
    mixed = IMMSEMixedDensity(**QUICK, network=SmallFamily(3)).fit(table)
    density = IMMSEDensity(**PLAIN, network=SmallFamily(12)).fit(X)
    before = torch.random.get_rng_state()
    for estimator, rows in ((density, X), (mixed, table)):
        estimator.save(tmp_path / "file")
        loaded = sk_itdiffusion.load(tmp_path / "file", classes=[SmallFamily, SmallBackbone])
        assert loaded.network.get_params() == estimator.network.get_params()
        np.testing.assert_array_equal(loaded.score_samples(rows), estimator.score_samples(rows))
        everything = r"classes=\[Small\w+, Small\w+\]"
        for classes, missing in (([], everything), ([SmallFamily], r"classes=\[SmallBackbone\]")):
            with pytest.raises(ValueError, match=missing):
                sk_itdiffusion.load(tmp_path / "file", classes=classes)
    assert torch.equal(torch.random.get_rng_state(), before)


class Untold(torch.nn.Linear):
    """A backbone that does not tell what it is made from."""

    def forward(self, inputs, logsnr):
        return super().forward(inputs)


class UntoldFamily(NetworkFamily):
    def build(self, plan):
        return Untold(plan.n_inputs, plan.n_outputs)


def test_error_of_a_network_that_cannot_be_saved_says_what_it_lacks(X, tmp_path):
    density = IMMSEDensity(**PLAIN, network=UntoldFamily()).fit(X)
    with pytest.raises(TypeError, match=r"Untold, which cannot be saved.* config.* from_config"):
        density.save(tmp_path / "file")


def test_families_of_the_library_are_saved(X, tmp_path):
    density = IMMSEDensity(**PLAIN, network=MLPFamily()).fit(X)
    density.save(tmp_path / "file")
    loaded = sk_itdiffusion.load(tmp_path / "file")
    assert isinstance(loaded.network, MLPFamily)
    np.testing.assert_array_equal(loaded.score_samples(X), density.score_samples(X))


@pytest.mark.slow
def test_own_network_is_searched_in_worker_processes(X):
    density = IMMSEDensity(**PLAIN, network=SmallFamily())
    search = GridSearchCV(density, {"network__width": [2, 12]}, cv=2, n_jobs=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert backbone_of(best).config()["width"] == search.best_params_["network__width"]
    with pytest.raises(ValueError, match="network__width needs network to be an object"):
        IMMSEDensity().set_params(network__width=3)


def test_own_network_goes_on_in_a_warm_start_and_in_partial_fits(X):
    density = IMMSEDensity(**PLAIN, network=SmallFamily(12), warm_start=True).fit(X)
    first = backbone_of(density).state_dict()
    # Another object of the same parameters.
    density.set_params(network=SmallFamily(12), max_epochs=0).fit(X)
    for name, value in backbone_of(density).state_dict().items():
        assert torch.equal(value, first[name])
    for other in (SmallFamily(13), "mlp"):
        with pytest.raises(ValueError, match="network changed"):
            density.set_params(network=other).fit(X)
    streamed = IMMSEDensity(**QUICK, network=SmallFamily()).partial_fit(np.vstack([X] * 8))
    assert type(backbone_of(streamed)) is SmallBackbone


class ConstantFamily(NetworkFamily):
    """Returns whatever it is told as a backbone."""

    def __init__(self, returned):
        self.returned = returned

    def build(self, plan):
        return self.returned


class Wrong(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs, logsnr):
        return self.outputs(inputs)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "ConstantFamily.build must return a torch.nn.Module, got None"),
        (Wrong(lambda z: z[:, :1]), ValueError, r"outputs of shape \(2, 2\) .* got \(2, 1\)"),
        (Wrong(lambda z: None), ValueError, "outputs of shape .* got None"),
        (Wrong(lambda z: z.double()), ValueError, "32-bit numbers, got torch.float64"),
    ],
)
def test_wrong_networks_are_errors_that_say_so(X, returned, error, message):
    with pytest.raises(error, match=message):
        IMMSEDensity(**PLAIN, network=ConstantFamily(returned)).fit(X)


def test_families_have_to_build():
    with pytest.raises(TypeError, match="abstract"):
        NetworkFamily()


def test_networks_of_few_rows_are_narrow_and_stay_so_in_warm_starts(X, tmp_path):
    few = {name: PLAIN[name] for name in PLAIN if name != "hidden_size"} | {"max_epochs": 1}
    rows = np.concatenate([X] * 8) + 1e-3 * np.arange(1600)[:, None]
    first = IMMSEDensity(**few, warm_start=True).fit(rows[:200])
    assert backbone_of(first).width == 64
    first.save(tmp_path / "narrow.immse")
    for narrow in (first, sk_itdiffusion.load(tmp_path / "narrow.immse")):
        assert backbone_of(narrow.fit(rows)).width == 64
    assert backbone_of(IMMSEDensity(**few).fit(rows)).width == 128
