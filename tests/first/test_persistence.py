"""Saved estimators are the same after loading, and damaged files never load as something else."""

import ast
import contextlib
import copy
import dataclasses
import datetime
import decimal
import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import skorch
import torch
from seeds import shifted
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import sk_itdiffusion
from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
    PretrainedDenoiser,
)
from sk_itdiffusion._first.persistence import files, stored
from sk_itdiffusion._first.persistence.encoded import Decoder, Encoder
from sk_itdiffusion._first.persistence.registry import DECLARED, declaration_of
from sk_itdiffusion._first.pretrained import DiscreteTimeNoise, NoiseSchedule, import_diffusers
from sk_itdiffusion._first.references import GaussianMixtureReference
from sk_itdiffusion._first.schedules import LogisticSchedule

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {
    "hidden_size": 16,
    "n_blocks": 1,
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "batch_size": 64,
    "score_tol": 0.5,
    "random_state": shifted(0),
}
ONE = QUICK | {"n_networks": 1}
PLAIN = ONE | {"reference": "gaussian", "marginals": "standard"}
ALL_ANALYTIC = ["network", "gaussian", "gaussian_mixture"]


class Own(torch.nn.Module):
    """A user's module with a buffer and parameters, called with points and log-SNRs."""

    def __init__(self, width=8, factor=1.0):
        super().__init__()
        self.inner = torch.nn.Linear(3, width)
        self.outer = torch.nn.Linear(width, 2)
        self.register_buffer("count", torch.tensor(3))
        self.factor = factor

    def forward(self, z, logsnr):
        features = torch.cat([z, 0.1 * logsnr[:, None]], dim=1)
        return torch.sigmoid(-logsnr)[:, None] * z + self.factor * self.outer(
            torch.tanh(self.inner(features))
        )


def own_module(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shifted(0))
        return Own(**options)


def clusters(n=300, d=2):
    rng = np.random.default_rng(shifted(0))
    near = rng.normal(size=(n // 2, d)) @ np.array([[1.0, 0.4], [0.0, 0.7]])[:d, :d]
    return np.vstack([near, 6.0 + 0.4 * rng.normal(size=(n - n // 2, d))])


def levels(n=300):
    """A data frame with categories of many types, missing ones too."""
    rng = np.random.default_rng(shifted(1))
    group = rng.integers(0, 2, n)
    sizes = pd.CategoricalDtype(["small", "medium", "large"], ordered=True)
    return pd.DataFrame(
        {
            "text": np.where(group, "yes", np.where(rng.random(n) < 0.3, "no", "perhaps")),
            "missing": np.where(rng.random(n) < 0.3, None, "there"),
            "truth": (rng.random(n) < 0.2 + 0.6 * group),
            "count": rng.poisson(2.0 + 3.0 * group),
            "number": rng.choice([0.5, 1.5, np.pi], n),
            "size": pd.Categorical(rng.choice(sizes.categories, n), dtype=sizes),
            "kind": pd.Categorical.from_codes(rng.integers(-1, 3, n), [3, "three", (3, "tuple")]),
        }
    )


def mixed():
    frame = levels().drop(columns=["number", "kind"])
    frame["value"] = (
        np.random.default_rng(shifted(2)).normal(size=len(frame)) + 3.0 * frame["truth"]
    )
    return frame


def images(n=60):
    rng = np.random.default_rng(shifted(3))
    return (rng.integers(0, 2, (n, 1)) * 2 + rng.integers(0, 2, (n, 16))).astype(float)


def reference_object():
    covariances = np.array([[[1.0, 0.2], [0.2, 0.5]], [[0.2, 0.0], [0.0, 0.2]]])
    return GaussianMixtureReference([0.5, 0.5], [[0.0, 0.0], [6.0, 6.0]], covariances)


def frozen_ensemble():
    member = IMMSEDensity(**PLAIN).fit(clusters()[::2])
    members = [
        ("frozen", FrozenEstimator(member)),
        ("wide", IMMSEDensity(**ONE | {"random_state": None}, marginals="standard")),
        ("none", "drop"),
    ]
    return IMMSEEnsemble(members, random_state=shifted(0))


CASES = {
    "density": lambda: (IMMSEDensity(**QUICK, experts=ALL_ANALYTIC), clusters()),
    "frame": lambda: (
        IMMSEDensity(**PLAIN | {"marginals": "quantile"}),
        pd.DataFrame(clusters(), columns=["a", "b"]),
    ),
    "power": lambda: (IMMSEDensity(**PLAIN | {"marginals": "yeo_johnson"}), clusters()),
    "objects": lambda: (
        IMMSEDensity(**ONE, reference=reference_object(), schedule=LogisticSchedule(loc=1.0)),
        clusters(),
    ),
    "lattice": lambda: (IMMSEDensity(**PLAIN, dequantize=True), np.rint(2 * clusters())),
    "steps": lambda: (
        IMMSEDensity(**PLAIN, dequantize=np.array([0.5, 0.0])),
        np.column_stack([np.rint(clusters()[:, 0]), clusters()[:, 1]]),
    ),
    "few": lambda: (IMMSEDensity(**QUICK), clusters(20)),
    "constant": lambda: (IMMSEDensity(**QUICK), np.ones((20, 2))),
    "untrained": lambda: (IMMSEDensity(max_epochs=0, random_state=shifted(0)), clusters()),
    "pictures": lambda: (
        IMMSEDensity(**QUICK | {"image_shape": (1, 4, 4), "hidden_size": 8}),
        images(44),
    ),
    "levels": lambda: (IMMSEDiscreteDensity(**QUICK), levels()),
    "path": lambda: (IMMSEDiscreteDensity(**QUICK, likelihood="path"), levels()),
    "classes": lambda: (
        IMMSEDiscreteDensity(**QUICK, preconditioner="latent_class"),
        levels()[["text", "truth", "count"]],
    ),
    "texts": lambda: (
        IMMSEDiscreteDensity(**QUICK, kind={0: "nominal"}, categories=[["b", "a", "c"], None]),
        np.array([["a", "yes"], ["b", "no"], ["a", "no"], ["b", "no"]] * 30),
    ),
    "pixels": lambda: (IMMSEDiscreteDensity(**QUICK, image_shape=(4, 4)), images().astype(int)),
    "mixed": lambda: (IMMSEMixedDensity(**QUICK), mixed()),
    "mixed classes": lambda: (
        IMMSEMixedDensity(
            **QUICK,
            preconditioner="latent_class",
            marginals="quantile",
            categorical_features=pd.Index(["text", "truth"]),
        ),
        mixed()[["text", "truth", "value"]],
    ),
    "ensemble": lambda: (
        IMMSEEnsemble(
            [("a", IMMSEDensity(**QUICK)), ("b", IMMSEDensity(**PLAIN | {"hidden_size": 8}))],
            random_state=shifted(0),
        ),
        clusters(),
    ),
    "ensemble of categories": lambda: (
        IMMSEEnsemble(
            [("a", IMMSEMixedDensity(**QUICK))], weights="select", random_state=shifted(0)
        ),
        mixed(),
    ),
    "frozen": lambda: (frozen_ensemble(), clusters()),
    "detector": lambda: (IMMSEOutlierDetector(random_state=shifted(0), trim=0.0), clusters(100)),
    "detector of categories": lambda: (
        IMMSEOutlierDetector(contamination=0.1, noise_floor=[3.0, 7.0], random_state=shifted(0)),
        mixed(),
    ),
}

#: The cases of the quick tests, one of each class.
QUICK_CASES = ("density", "levels", "mixed", "ensemble", "detector")


#: Cases whose parts are all in others too.
MIXTURES_OF_CASES = ("pixels", "path", "mixed classes", "ensemble of categories")
KINDS_OF_PARTS = sorted(CASES, key=lambda name: name in MIXTURES_OF_CASES)


def first_the_quick(names):
    """Return names to parametrise with, all but those of the quick cases marked slow."""
    ordered = sorted(names, key=lambda name: name not in QUICK_CASES)
    return others_slow(ordered, sum(name in QUICK_CASES for name in ordered))


@pytest.fixture(scope="module")
def fitted():
    """Return a function that fits each case once."""
    with contextlib.suppress(ImportError):
        import_diffusers().UNet2DModel  # noqa: B018  loading it adds warning filters
    known = {}

    def fit(name):
        if name not in known:
            if name == "pictures":
                pytest.importorskip("diffusers")
            estimator, X = CASES[name]()
            known[name] = estimator.fit(X), X
        return known[name]

    return fit


def saved_and_loaded(estimator, folder, **options):
    path = folder / "model.safetensors"
    estimator.save(path)
    return sk_itdiffusion.load(path, **options)


def identical(first, second):
    """Compare any two values bit by bit, types included."""
    if isinstance(first, skorch.NeuralNet):
        return identical(first.module_, second.module_) and identical(
            [epoch(row) for row in first.history], [epoch(row) for row in second.history]
        )
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        same_layout = first.stride() == second.stride() and first.dtype == second.dtype
        return same_layout and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, torch.nn.Module):
        ours, theirs = first.state_dict(), second.state_dict()
        return repr(first) == repr(second) and identical(dict(ours), dict(theirs))
    if isinstance(first, np.ndarray):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        if first.dtype == object:
            return identical(first.ravel().tolist(), second.ravel().tolist())
        # The order of the axes in memory decides how matrices are multiplied.
        same_order = np.array_equal(np.argsort(first.strides), np.argsort(second.strides))
        return same_order and first.tobytes() == second.tobytes()
    if isinstance(first, dict):
        return list(first) == list(second) and all(identical(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(identical, first, second))
    if isinstance(first, pd.Index | pd.Series):
        return type(first) is type(second) and first.equals(second) and first.name == second.name
    if dataclasses.is_dataclass(first) or hasattr(first, "get_params"):
        ours, theirs = vars(first), vars(second)
        return identical(dict(sorted(ours.items())), dict(sorted(theirs.items())))
    if isinstance(first, float):
        return np.float64(first).tobytes() == np.float64(second).tobytes()
    return bool(first == second)


def epoch(row):
    return {key: value for key, value in row.items() if key in ("epoch", "valid_loss")}


# -- laws ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate")
@pytest.mark.parametrize("name", first_the_quick(CASES))
def test_loaded_estimator_is_the_saved_one(name, fitted, tmp_path):
    estimator, X = fitted(name)
    loaded = saved_and_loaded(estimator, tmp_path)
    assert type(loaded) is type(estimator)
    rows = X[:40]
    assert identical(loaded.score_samples(rows), estimator.score_samples(rows))
    different = [
        key
        for key in vars(estimator).keys() | vars(loaded).keys()
        if not identical(vars(estimator).get(key), vars(loaded).get(key))
    ]
    assert not different


@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate")
@pytest.mark.parametrize("name", first_the_quick(n for n in CASES if "detector" not in n))
def test_loaded_density_does_all_that_the_saved_one_does(name, fitted, tmp_path):
    estimator, X = fitted(name)
    loaded = saved_and_loaded(estimator, tmp_path)
    rows = X[:20]
    assert identical(
        loaded.score_samples(rows, return_std=True), estimator.score_samples(rows, return_std=True)
    )
    drawn, expected = (
        loaded.sample(5, random_state=shifted(1)),
        estimator.sample(5, random_state=shifted(1)),
    )
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(drawn, expected)
        assert drawn.columns.equals(expected.columns)
    else:
        assert identical(drawn, expected)
    if name != "constant":
        assert identical(loaded.mse_curve(), estimator.mse_curve())
        assert identical(loaded.mse_curve(rows), estimator.mse_curve(rows))


@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate")
@pytest.mark.parametrize("name", others_slow(["detector", "detector of categories"]))
def test_loaded_detector_does_all_that_the_saved_one_does(name, fitted, tmp_path):
    estimator, X = fitted(name)
    loaded = saved_and_loaded(estimator, tmp_path)
    assert identical(loaded.predict(X[:20]), estimator.predict(X[:20]))
    if name == "detector":
        assert identical(loaded.p_values(X[:20]), estimator.p_values(X[:20]))
    pd.testing.assert_frame_equal(loaded.explain(X[:5]), estimator.explain(X[:5]))


def test_detector_of_a_loaded_density_is_that_of_the_saved_one(fitted, tmp_path):
    """Which components are for rows unlike all others is stored."""
    density, X = fitted("untrained")
    loaded = saved_and_loaded(density, tmp_path)
    references = loaded._model.references
    assert references["gaussian_mixture"].n_wide == 3
    far = np.vstack([X[:3], [[30.0, -40.0]]])
    ours, theirs = (
        IMMSEOutlierDetector(
            IMMSEEnsemble([("frozen", FrozenEstimator(each))]),
            average=False,
            contamination=0.1,
            trim=0.0,
            random_state=shifted(0),
        ).fit(X)
        for each in (density, loaded)
    )
    assert np.array_equal(ours.score_samples(far), theirs.score_samples(far))
    assert ours.score_samples(far)[-1] < density.score_samples(far)[-1] - 100.0


@pytest.mark.filterwarnings("ignore:Column", "ignore:false_alarm_rate")
@pytest.mark.parametrize("name", others_slow(KINDS_OF_PARTS, len(CASES) - len(MIXTURES_OF_CASES)))
def test_saving_again_gives_the_same_content(name, fitted, tmp_path):
    estimator, _ = fitted(name)
    first, second = tmp_path / "first", tmp_path / "second"
    estimator.save(first)
    sk_itdiffusion.load(first).save(second)
    assert metadata_of(first)["sha256"] == metadata_of(second)["sha256"]


@pytest.mark.slow
def test_scores_are_the_same_in_a_fresh_process(fitted, tmp_path):
    names = ["frame", "levels", "mixed", "ensemble"]
    for name in names:
        estimator, X = fitted(name)
        estimator.save(tmp_path / name)
        pd.to_pickle(X[:30], tmp_path / f"{name}.pkl")
    code = (
        "import sys, numpy as np, pandas as pd, sk_itdiffusion\n"
        "folder = sys.argv[1]\n"
        "for name in sys.argv[2:]:\n"
        "    X = pd.read_pickle(f'{folder}/{name}.pkl')\n"
        "    loaded = sk_itdiffusion.load(f'{folder}/{name}')\n"
        "    np.save(f'{folder}/{name}.npy', loaded.score_samples(X))\n"
        "assert 'pickle' not in vars(sk_itdiffusion._first.persistence.files)\n"
    )
    result = run_fresh(code, tmp_path, *names)
    assert result.returncode == 0, result.stderr
    for name in names:
        estimator, X = fitted(name)
        assert identical(np.load(tmp_path / f"{name}.npy"), estimator.score_samples(X[:30]))


def run_fresh(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_objects_are_shared_as_they_were(fitted, tmp_path):
    loaded = saved_and_loaded(fitted("frozen")[0], tmp_path)
    assert loaded.estimators[0][1].estimator is loaded.estimators_[0]
    assert loaded._model.members["frozen"] is loaded.estimators_[0]._model
    assert loaded.named_estimators_["wide"] is loaded.estimators_[1]


def test_effort_may_be_changed_after_loading(fitted, tmp_path):
    estimator, X = fitted("density")
    loaded = saved_and_loaded(estimator, tmp_path).set_params(score_tol=0.07)
    other = clone(estimator).set_params(score_tol=0.07)
    other.__dict__.update({k: v for k, v in vars(estimator).items() if k not in other.__dict__})
    assert identical(loaded.score_samples(X[:10]), other.score_samples(X[:10]))


@pytest.mark.parametrize("name", others_slow(["density", "mixed"]))
def test_warm_start_goes_on_after_loading(name, fitted, tmp_path):
    estimator, X = fitted(name)
    estimator = copy.deepcopy(estimator)
    loaded = saved_and_loaded(estimator, tmp_path)
    for each in (estimator, loaded):
        each.set_params(warm_start=True).fit(X)
    assert identical(loaded.score_samples(X[:20]), estimator.score_samples(X[:20]))
    with pytest.raises(ValueError, match=r"warm_start keeps .* but experts changed"):
        loaded.set_params(experts=["network"]).fit(X)


def test_loaded_estimator_can_be_fitted_cloned_and_pickled(fitted, tmp_path):
    import pickle

    estimator, X = fitted("density")
    loaded = saved_and_loaded(estimator, tmp_path)
    assert identical(clone(loaded).fit(X).score_samples(X[:5]), estimator.score_samples(X[:5]))
    again = pickle.loads(pickle.dumps(loaded))
    assert identical(again.score_samples(X[:5]), estimator.score_samples(X[:5]))


def test_net_has_no_optimizer_but_a_history(fitted, tmp_path):
    estimator, _ = fitted("density")
    loaded = saved_and_loaded(estimator, tmp_path)
    assert not hasattr(loaded.net_, "optimizer_")
    assert loaded.net_.history[:, "valid_loss"] == estimator.net_.history[:, "valid_loss"]
    assert not any(p.requires_grad for p in loaded.net_.module_.averaged.parameters())
    assert not loaded.net_.module_.training


def test_generators_and_callbacks_are_left_out(tmp_path):
    class Silent(skorch.callbacks.Callback):
        pass

    options = PLAIN | {"random_state": np.random.RandomState(shifted(0)), "callbacks": [Silent()]}
    estimator = IMMSEDensity(**options).fit(clusters())
    loaded = saved_and_loaded(estimator, tmp_path)
    assert loaded.random_state is None
    assert loaded.callbacks is None
    assert identical(loaded.score_samples(clusters()[:5]), estimator.score_samples(clusters()[:5]))


def test_saving_and_loading_leave_no_trace_in_global_generators(fitted, tmp_path):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    saved_and_loaded(fitted("density")[0], tmp_path)
    assert identical(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


# -- devices -------------------------------------------------------------------------------------


def test_device_that_is_absent_gives_way_to_the_cpu(tmp_path):
    estimator = IMMSEDensity(max_epochs=0, random_state=shifted(0)).fit(clusters())
    expected = estimator.score_samples(clusters()[:5])
    estimator._model = dataclasses.replace(estimator._model, device=torch.device("cuda:7"))
    loaded = saved_and_loaded(estimator, tmp_path)
    assert loaded._model.device == torch.device("cpu")
    assert identical(loaded.score_samples(clusters()[:5]), expected)
    with pytest.raises(ValueError, match=r"device must be 'auto' or a device .* got 'cuda:7'"):
        sk_itdiffusion.load(tmp_path / "model.safetensors", device="cuda:7")


@pytest.mark.gpu
def test_what_was_fitted_on_a_gpu_loads_on_the_cpu(tmp_path):
    path = tmp_path / "model"
    X = clusters()
    estimator = IMMSEDensity(**QUICK, device="auto").fit(X)
    estimator.save(path)
    on_gpu = sk_itdiffusion.load(path)
    assert on_gpu._model.device == estimator._model.device != torch.device("cpu")
    assert identical(on_gpu.score_samples(X[:20]), estimator.score_samples(X[:20]))
    on_cpu = sk_itdiffusion.load(path, device="cpu")
    assert next(on_cpu.net_.module_.averaged.parameters()).device.type == "cpu"
    np.testing.assert_allclose(
        on_cpu.score_samples(X[:20]), estimator.score_samples(X[:20]), rtol=1e-3, atol=1e-3
    )


# -- modules of one's own ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own():
    """Return a density with a module of the user's own."""
    options = {k: v for k, v in PLAIN.items() if k not in ("hidden_size", "n_blocks")}
    return IMMSEDensity(**options, denoiser=own_module(), learning_rate=0.01).fit(clusters())


def test_own_module_is_given_again(own, tmp_path):
    given = own_module()
    with torch.no_grad():
        given.inner.weight.zero_()  # its weights do not matter
    loaded = saved_and_loaded(own, tmp_path, denoiser=given)
    assert loaded.denoiser is given
    assert float(given.inner.weight.detach().abs().sum()) == 0.0
    assert identical(loaded.score_samples(clusters()[:20]), own.score_samples(clusters()[:20]))
    again = tmp_path / "again"
    loaded.save(again)
    assert metadata_of(again)["sha256"] == metadata_of(tmp_path / "model.safetensors")["sha256"]


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (None, "denoiser must be the module that was fitted: a Own"),
        (own_module(width=9), "the weights do not fit to the denoiser that is given"),
        (torch.nn.Linear(2, 2), "the weights do not fit to the denoiser that is given"),
        (own_module(factor=3.0), "takes the weights, but then predicts something else"),
        ("Own", r"denoiser must be a torch.nn.Module, got str"),
        ({"other": own_module()}, "denoiser must be the module that was fitted"),
        (PretrainedDenoiser(own_module()), "has another noise_schedule"),
    ],
)
def test_other_modules_are_refused(denoiser, message, own, tmp_path):
    path = tmp_path / "model"
    own.save(path)
    with pytest.raises(ValueError, match=message) as caught:
        sk_itdiffusion.load(path, denoiser=denoiser)
    assert repr(str(path)) in str(caught.value)


def test_warm_start_of_an_own_module_goes_on_after_loading(own, tmp_path):
    estimator = clone(own).fit(clusters())
    loaded = saved_and_loaded(estimator, tmp_path, denoiser=own_module())
    for each in (estimator, loaded):
        each.set_params(warm_start=True).fit(clusters())
    assert identical(loaded.score_samples(clusters()[:9]), estimator.score_samples(clusters()[:9]))


def test_module_that_nobody_asked_for_is_refused(fitted, tmp_path):
    with pytest.raises(ValueError, match="the estimator was fitted without one"):
        saved_and_loaded(fitted("density")[0], tmp_path, denoiser=own_module())


class Steps(torch.nn.Module):
    """A module in discrete time."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, z, time):
        return self.factor * z + 0.0 * time[:, None]


def test_pretrained_denoiser_is_called_as_before(tmp_path):
    options = {k: v for k, v in PLAIN.items() if k not in ("hidden_size", "n_blocks")}
    denoiser = PretrainedDenoiser(Steps(), noise_schedule="cosine")
    estimator = IMMSEDensity(**options, denoiser=denoiser).fit(clusters())
    given = PretrainedDenoiser(Steps(), noise_schedule=DiscreteTimeNoise.cosine())
    loaded = saved_and_loaded(estimator, tmp_path, denoiser=given)
    X = clusters()[:20]
    assert identical(loaded.score_samples(X), estimator.score_samples(X))
    for wrong in (Steps(), PretrainedDenoiser(Steps())):
        with pytest.raises(ValueError, match="another noise_schedule"):
            saved_and_loaded(estimator, tmp_path, denoiser=wrong)
    wrong = PretrainedDenoiser(Steps(), noise_schedule="cosine", prediction_type="sample")
    with pytest.raises(ValueError, match="another prediction_type"):
        saved_and_loaded(estimator, tmp_path, denoiser=wrong)


class OwnNoise(NoiseSchedule):
    def network_input(self, z, logsnr):
        return z, -logsnr


def test_noise_schedule_of_ones_own_is_given_again(tmp_path):
    options = {k: v for k, v in PLAIN.items() if k not in ("hidden_size", "n_blocks")}
    denoiser = PretrainedDenoiser(Steps(), noise_schedule=OwnNoise())
    estimator = IMMSEDensity(**options, denoiser=denoiser).fit(clusters())
    loaded = saved_and_loaded(estimator, tmp_path, denoiser=denoiser)
    X = clusters()[:20]
    assert identical(loaded.score_samples(X), estimator.score_samples(X))
    with pytest.raises(ValueError, match="another noise_schedule"):
        saved_and_loaded(estimator, tmp_path, denoiser=Steps())


def test_modules_of_several_members_are_given_by_name(own, tmp_path):
    other = (
        clone(own).set_params(random_state=shifted(1), denoiser=own_module(width=4)).fit(clusters())
    )
    ensemble = IMMSEEnsemble([("a", own), ("b", FrozenEstimator(other))], random_state=shifted(0))
    ensemble.set_params(prefit=True).fit(clusters())
    modules = {"a": own_module(), "b": own_module(width=4)}
    loaded = saved_and_loaded(ensemble, tmp_path, denoiser=modules)
    X = clusters()[:20]
    assert identical(loaded.score_samples(X), ensemble.score_samples(X))
    with pytest.raises(ValueError, match=r"a dict with modules for the members \['a', 'b'\]"):
        saved_and_loaded(ensemble, tmp_path, denoiser=own_module())
    with pytest.raises(ValueError, match="a Own for the member 'a', a Own for the member 'b'"):
        saved_and_loaded(ensemble, tmp_path)


def test_modules_of_members_that_an_ensemble_has_fitted_are_given_by_name(own, tmp_path):
    members = [("a", clone(own)), ("b", clone(own).set_params(denoiser=own_module(width=4)))]
    ensemble = IMMSEEnsemble(members, random_state=shifted(0)).fit(clusters())
    modules = {"a": own_module(), "b": own_module(width=4)}
    loaded = saved_and_loaded(ensemble, tmp_path, denoiser=modules)
    X = clusters()[:20]
    assert identical(loaded.score_samples(X), ensemble.score_samples(X))


# -- classes ---------------------------------------------------------------------------------------


def imported_from_the_package(source):
    """Return the modules of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sk_itdiffusion"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names if each.name.startswith("sk_itdiffusion")}
    return found


def test_persistence_imports_nothing_above_it():
    below = {"_version", "_runtime.devices", "_runtime.files", "_runtime.generators"}
    allowed = {f"sk_itdiffusion.{name}" for name in below}
    folder = Path(files.__file__).parent
    for source in folder.glob("*.py"):
        for module in imported_from_the_package(source):
            assert module in allowed or module.startswith("sk_itdiffusion._first.persistence"), (
                source
            )
    for name in below:
        path = folder.parent / f"{name.replace('.', '/')}.py"
        assert not imported_from_the_package(path)


def test_classes_are_declared_where_they_are_defined_under_names_of_their_own():
    for name, declaration in DECLARED.items():
        known = declaration_of(declaration.cls)
        assert known is declaration
        assert name == declaration.cls.__name__.removeprefix("_")
        assert declaration_of(type(name, (declaration.cls,), {})) in (
            (known,) if declaration.has_derived else (None,)
        )
    other = type("AffineMap", (), {"__module__": "elsewhere"})
    with pytest.raises(TypeError, match="Two classes are stored by the name AffineMap"):
        stored()(other)


def test_class_keeps_the_name_that_files_have_for_it():
    @dataclasses.dataclass(frozen=True)
    class Renamed:
        size: int

    stored(name="FormerName")(Renamed)
    try:
        encoder = Encoder()
        node = encoder.encode(Renamed(3))
        assert encoder.objects[0]["class"] == "FormerName"
        decoder = Decoder(encoder.arrays, encoder.objects, {}, torch.device("cpu"))
        assert decoder.decode(node) == Renamed(3)
        encoder.objects[0]["config"]["size"] = "3"
        decoder = Decoder(encoder.arrays, encoder.objects, {}, torch.device("cpu"))
        with pytest.raises(ValueError, match="size of a FormerName is not of the type"):
            decoder.decode(node)
    finally:
        del DECLARED["FormerName"]


# -- what cannot be saved ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator", [IMMSEDensity(), IMMSEEnsemble([("a", IMMSEDensity())]), IMMSEOutlierDetector()]
)
def test_unfitted_estimators_are_not_saved(estimator, tmp_path):
    with pytest.raises(NotFittedError):
        estimator.save(tmp_path / "model")
    assert not os.listdir(tmp_path)


def test_objects_that_do_not_tell_what_they_are_made_from_are_not_saved(tmp_path):
    class OwnSchedule:
        adaptive = False
        density = LogisticSchedule().density

    class OwnDensity(IMMSEDensity):
        pass

    estimator = IMMSEDensity(max_epochs=0, random_state=shifted(0)).fit(clusters())
    estimator.schedule = OwnSchedule()
    with pytest.raises(TypeError, match=r"IMMSEDensity\.schedule is of type .*OwnSchedule"):
        estimator.save(tmp_path / "model")
    own = OwnDensity(max_epochs=0, random_state=shifted(0)).fit(clusters())
    with pytest.raises(TypeError, match="OwnDensity cannot be saved"):
        own.save(tmp_path / "model")
    detector = IMMSEOutlierDetector(own, contamination=0.1, trim=0.0, random_state=shifted(0))
    detector.fit(clusters())
    with pytest.raises(TypeError, match=r"OwnDensity that has .*_model.* besides its parameters"):
        detector.save(tmp_path / "model")
    assert not os.listdir(tmp_path)


# -- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """Return a small fitted density, rows, their scores, and the content of its file."""
    estimator = IMMSEDensity(**PLAIN | {"hidden_size": 2, "n_frequencies": 1}).fit(clusters())
    X = clusters()[:3]
    return X, estimator.score_samples(X), files.encoded_file(estimator)


def metadata_of(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def with_metadata(content, change, sign=True):
    """Return a file with other metadata, and a checksum that is right for it."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    arrays = safetensors.numpy.load(content)
    change(metadata)
    if sign:
        metadata["sha256"] = files.checksum(arrays, metadata)
    return safetensors.numpy.save(arrays, metadata)


def refuse(content, folder, message):
    path = folder / "changed.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        sk_itdiffusion.load(path)
    assert "changed.safetensors" in str(caught.value)


def test_changed_parameter_is_noticed(small, tmp_path):
    def change(metadata):
        assert '"score_tol":0.5' in metadata["config"]
        metadata["config"] = metadata["config"].replace('"score_tol":0.5', '"score_tol":0.4')

    refuse(with_metadata(small[2], change, sign=False), tmp_path, "SHA-256 checksum does not match")


def test_changed_weight_is_noticed(small, tmp_path):
    content = bytearray(small[2])
    content[-1] ^= 1
    refuse(bytes(content), tmp_path, "altered after it had been saved .*SHA-256")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.5, 0.9999])
def test_truncated_file_is_refused(share, small, tmp_path):
    refuse(small[2][: int(share * len(small[2]))], tmp_path, "truncated")


def test_newer_format_asks_for_an_upgrade(small, tmp_path):
    def change(metadata):
        metadata["format_version"] = "3"
        metadata["library_version"] = "9.1"

    changed = with_metadata(small[2], change)
    refuse(changed, tmp_path, r"version is 3, of sk_itdiffusion 9\.1.*Upgrade")


def test_earlier_format_asks_for_a_new_fit(small, tmp_path):
    changed = with_metadata(small[2], lambda metadata: metadata.update(format_version="1"))
    refuse(changed, tmp_path, "its format version is 1, .* Fit and save")


@pytest.mark.parametrize("version", ["", "0", "-1", "1.5", "one", "٣", "9" * 5000])
def test_meaningless_versions_are_refused(version, small, tmp_path):
    changed = with_metadata(small[2], lambda metadata: metadata.update(format_version=version))
    refuse(changed, tmp_path, "no format version")


def test_foreign_files_are_refused(tmp_path):
    other = safetensors.numpy.save({"weight": np.ones(3)}, {"format": "pt"})
    refuse(other, tmp_path, "was not saved by the method save")
    refuse(safetensors.numpy.save({"weight": np.ones(3)}), tmp_path, "was not saved by")
    refuse(b"PK\x03\x04" + bytes(200), tmp_path, "not a safetensors file")
    refuse((100).to_bytes(8, "little") + b"[" * 100, tmp_path, "not a safetensors file")
    refuse(b"a,b\n1,2\n" * 50, tmp_path, "not a safetensors file")
    deep = b'{"__metadata__":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    refuse(len(deep).to_bytes(8, "little") + deep, tmp_path, "not a safetensors file")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        sk_itdiffusion.load(tmp_path / "none")
    with pytest.raises(ValueError, match="it is no file"):
        sk_itdiffusion.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is no file"):
        sk_itdiffusion.load(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"class":"AffineMap"', '"class":"os.system"', "there is no class 'os.system'"),
        ('"class":"IMMSEDensity"', '"class":"AffineMap"', "it holds no estimator"),
        ('"$":"tuple"', '"$":"eval"', "there is no kind 'eval' of values"),
        ('"score_tol":0.5', '"score_tols":0.5', "is inconsistent"),
        ('"number":0}', '"number":99999}', "is inconsistent"),
        ('"number":0}', '"number":[0]}', "is inconsistent"),
        ('"dtype":"<f8"', '"dtype":"os"', "is no simple dtype"),
        (
            '"width":2',
            '"width":{"$":"tuple","parts":[[2]]}',
            "width of a ResidualMLP is not of the type",
        ),
        ('"n_updates":', '"n_updates":"1","more":', "n_updates of a Net is not of the type"),
        ('"n_continuous":2', '"n_continuous":{"$":"object","number":0}', "is a part of itself"),
    ],
)
def test_signed_nonsense_is_refused(old, new, message, small, tmp_path):
    def change(metadata):
        assert old in metadata["config"]
        metadata["config"] = metadata["config"].replace(old, new)

    refuse(with_metadata(small[2], change), tmp_path, message)


def with_number(content, name, place, number):
    """Return a file with another number in an array, and the checksum that is right for it."""
    arrays = dict(safetensors.numpy.load(content))
    (key,) = [key for key in arrays if key.endswith(name)]
    arrays[key] = arrays[key].copy()
    arrays[key].reshape(-1)[place] = number
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    metadata["sha256"] = files.checksum(arrays, metadata)
    return safetensors.numpy.save(arrays, metadata)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("_model.grid", 1e3, "do not increase"),
        ("_model.weights", -0.5, "weights of experts are negative"),
        ("_model.weights", np.nan, "weights of experts are negative, or no numbers"),
        ("rule.placement.mass", np.inf, "masses of strata are negative, or no numbers"),
        ("standardizer.scale", -1.0, "scales of columns are not positive"),
        ("standardizer.scale", np.nan, "scales of columns are not positive, or no numbers"),
        ("references.gaussian.mean", np.nan, "mean contains NaN"),
        ("network.network.gain", np.nan, "gain contains NaN"),
    ],
)
def test_signed_numbers_that_are_none_are_refused(name, number, message, small, tmp_path):
    refuse(with_number(small[2], name, 0, number), tmp_path, message)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("space.discrete", 1e6, "numbers of columns are out of range"),
        ("space.discrete", -1, "numbers of columns are out of range"),
        ("space.continuous", 0, "a column is there twice"),
    ],
)
def test_signed_numbers_of_other_columns_are_refused(name, number, message, fitted, tmp_path):
    content = files.encoded_file(fitted("mixed")[0])
    refuse(with_number(content, name, 0, number), tmp_path, message)


@pytest.mark.parametrize("place", [0, -1])
def test_signed_thresholds_that_are_none_are_refused(place, fitted, tmp_path):
    content = files.encoded_file(fitted("detector")[0])
    changed = with_number(content, "calibration_scores_", place, np.nan)
    refuse(changed, tmp_path, "scores of held-out rows are infinite, or no numbers")


def test_signed_members_that_are_no_numbers_are_refused(fitted, tmp_path):
    content = files.encoded_file(fitted("ensemble")[0])
    changed = with_number(content, "named_estimators_.b.1._model.weights", 0, np.nan)
    refuse(changed, tmp_path, "weights of experts")


@pytest.mark.parametrize("config", ["", "{", "[" * 100_000, "null", "{}"])
def test_signed_file_without_configuration_is_refused(config, small, tmp_path):
    changed = with_metadata(small[2], lambda metadata: metadata.update(config=config))
    refuse(changed, tmp_path, "no configuration|is inconsistent")


# -- writing -------------------------------------------------------------------------------------


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_whole(step, fitted, tmp_path, monkeypatch):
    path = tmp_path / "model"
    fitted("density")[0].save(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, full_disk)
        with pytest.raises(OSError, match="No space left"):
            fitted("levels")[0].save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]


def test_file_is_replaced(fitted, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    path.chmod(0o640)
    fitted("density")[0].save(str(path))
    assert path.stat().st_mode & 0o777 == 0o640
    assert type(sk_itdiffusion.load(str(path))) is IMMSEDensity
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_link_stays_a_link(fitted, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "model")
    fitted("density")[0].save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "model").is_file()


def test_folder_is_no_place_for_a_file(fitted, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        fitted("density")[0].save(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        fitted("density")[0].save(tmp_path / "none" / "model")
    assert os.listdir(tmp_path) == ["folder"]


# -- values --------------------------------------------------------------------------------------


VALUES = [
    None,
    True,
    0,
    -(2**80),
    -0.0,
    math.nan,
    -math.inf,
    "ä\ud800\x00",
    (1, [2.5, "x"]),
    {1: "a", "1": "b", (2, None): [True]},
    range(3, 0, -1),
    b"\x00\xff",
    decimal.Decimal("1.10"),
    datetime.date(2020, 2, 29),
    datetime.datetime(2020, 2, 29, 1, 2, 3, 4),
    pd.Timestamp("2020-01-01 12:00:00.000000001"),
    pd.Timestamp("2020-01-01", tz="Europe/Berlin"),
    pd.Timedelta("1D 00:00:01"),
    pd.Period("2020Q1", freq="Q"),
    pd.Interval(0.5, 1.5, closed="both"),
    np.float32(0.1),
    np.float64(np.nan),
    np.int8(-3),
    np.bool_(True),
    np.str_("text"),
    np.datetime64("2020-01-01", "D"),
    np.dtype("<U7"),
    np.dtype("datetime64[ns]"),
    pd.Int8Dtype(),
    pd.BooleanDtype(),
    pd.Float64Dtype(),
    pd.StringDtype("python"),
    pd.CategoricalDtype(["b", "a"], ordered=True),
    pd.CategoricalDtype(pd.IntervalIndex.from_breaks([0.0, 1.0, 2.0])),
    pd.DatetimeTZDtype("ns", "UTC"),
    pd.Index(["a", "b"], name="letters"),
    pd.Index([1, 2.5, "x", None, (1, 2)], dtype=object, tupleize_cols=False),
    pd.RangeIndex(2, 8, 3),
    pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None]),
    pd.Series([1, 3], index=["p", "q"], name="s"),
    torch.device("cuda:1"),
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(24.0, dtype=np.float32).reshape(2, 3, 4).transpose(1, 2, 0),
    np.array(3.5),
    np.empty((0, 4)),
    np.array([True, False]),
    np.array([1, 2], dtype=">i4"),
    np.array(["ab", "c"]),
    np.array([b"ab", b"c"]),
    np.array([[None, "x"], [1, 2.0]], dtype=object),
    np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
    torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
    torch.tensor(3),
    torch.empty(0, 2),
]


def through_json(value):
    encoder = Encoder()
    node = json.loads(json.dumps(encoder.encode(value), allow_nan=False))
    arrays = safetensors.numpy.load(safetensors.numpy.save(encoder.arrays))
    return Decoder(arrays, encoder.objects, {}, torch.device("cpu")).decode(node)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_stay_what_they_are(value):
    found = through_json(value)
    assert identical(found, value)


@pytest.mark.parametrize("value", [pd.NA, pd.NaT], ids=repr)
def test_missing_values_stay_what_they_are(value):
    assert through_json(value) is value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        1j,
        lambda: 0,
        int,
        np.array([1j]),
        np.zeros(2, dtype="i4,f8"),
        np.longdouble(1.0),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.eye(2).to_sparse(),
        pd.DataFrame({"a": [1]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match="cannot be saved"):
        Encoder().encode([value])


def test_equal_arrays_are_stored_once():
    array = np.arange(3.0)
    encoder = Encoder()
    encoder.encode([array, array, array[:2], array.copy()])
    assert len(encoder.arrays) == 3


# -- mutations -----------------------------------------------------------------------------------


def mutated(content, rng):
    """Return a file with a random change, in the header half of the time."""
    length = int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    end = 8 + length if rng.random() < 0.5 else len(content)
    kind = rng.integers(6)
    if kind == 0:
        for place in rng.integers(0, end, rng.integers(1, 4)):
            changed[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        del changed[rng.integers(0, end) :]
    elif kind == 2:
        place = rng.integers(0, end)
        changed[place:place] = rng.bytes(rng.integers(1, 9))
    elif kind == 3:
        place = rng.integers(0, end)
        del changed[place : place + rng.integers(1, 9)]
    else:
        header = edited_header(content[8 : 8 + length], rng)
        keeps_length = kind == 4
        changed[8 : 8 + length] = header.ljust(length)[:length] if keeps_length else header
        if not keeps_length:
            changed[:8] = len(header).to_bytes(8, "little")
    return bytes(changed)


def edited_header(header, rng):
    """Return a header with one part exchanged for another that might be there."""
    parts = [b"0", b"1", b"-1", b"99999999999", b"F64", b"F32", b"I64", b"null", b"{}", b"[]"]
    parts += [b'"', b",", b" ", b"AffineMap", b"tuple", b"NaN", b"__metadata__", b"", b"\\u0000"]
    place = int(rng.integers(0, len(header)))
    cut = int(rng.integers(0, 6))
    return header[:place] + parts[rng.integers(len(parts))] + header[place + cut :]


def loaded_or_refused(path):
    """Return the estimator of a file, or None if it is refused with its name."""
    try:
        return sk_itdiffusion.load(path)
    except ValueError as error:
        if path.name not in str(error):
            raise
        return None


def check_mutations(small, path, n_mutations, seed):
    """Load changed files: each is refused, or is the same model."""
    X, scores, content = small
    rng = np.random.default_rng(seed)
    n_loaded, slowest = 0, 0.0
    for _ in range(n_mutations):
        path.write_bytes(mutated(content, rng))
        start = time.perf_counter()
        loaded = loaded_or_refused(path)
        if loaded is not None:
            n_loaded += 1
            assert identical(loaded.score_samples(X), scores)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 60.0
    return n_loaded


def test_mutations_are_refused_or_harmless(small, tmp_path):
    assert check_mutations(small, tmp_path / "mutated", 300, 0) < 100


@pytest.mark.slow
def test_ten_thousand_mutations_are_refused_or_harmless(small, tmp_path):
    assert check_mutations(small, tmp_path / "mutated", 10_000, 1) < 3_000


def signed_mutation(content, rng):
    """Return a file with a random change of its configuration, and the right checksum."""

    def change(metadata):
        config = metadata["config"].encode()
        while metadata["config"].encode() == config:
            metadata["config"] = edited_header(config, rng).decode(errors="replace")

    return with_metadata(content, change)


def test_signed_mutations_are_refused_or_load(small, tmp_path):
    """Whoever writes a file can sign it, too: it may give another model, but no other error."""
    rng = np.random.default_rng(shifted(3))
    n_refused = 0
    for _ in range(200):
        path = tmp_path / "signed"
        path.write_bytes(signed_mutation(small[2], rng))
        n_refused += loaded_or_refused(path) is None
    assert 100 < n_refused <= 200


def test_nothing_is_executed(small, tmp_path):
    folder = os.path.dirname(__file__)
    (tmp_path / "whole").write_bytes(small[2])
    code = (
        "import sys, warnings\n"
        "import numpy as np\n"
        f"sys.path.insert(0, {folder!r})\n"
        "import sk_itdiffusion, test_persistence as tests\n"
        "path = sys.argv[1] + '/whole'\n"
        "content = open(path, 'rb').read()\n"
        "sk_itdiffusion.load(path)\n"  # imports what loading needs
        "forbidden = ('compile', 'exec', 'pickle.find_class', 'os.system', 'os.exec',\n"
        "             'subprocess.Popen', 'socket.connect', 'ctypes.dlopen')\n"
        "def audit(event, arguments):\n"
        "    if event in forbidden and armed:\n"
        "        print('FORBIDDEN', event, arguments, file=sys.stderr)\n"
        "armed = True\n"
        "sys.addaudithook(audit)\n"
        "rng = np.random.default_rng(shifted(2))\n"
        "for mutate in 10 * [tests.mutated, tests.signed_mutation]:\n"
        "    with open(path, 'wb') as file:\n"
        "        file.write(mutate(content, rng))\n"
        "    try:\n"
        "        sk_itdiffusion.load(path)\n"
        "    except ValueError:\n"
        "        pass\n"
        "armed = False\n"
    )
    result = run_fresh(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "FORBIDDEN" not in result.stderr
