"""Guards for every test: global state stays as it was, and devices that are absent are skipped."""

import contextlib
import os
import random
import sys
import warnings

# Set before torch and scikit-learn are loaded: the processes of pytest-xdist have more threads
# than there are cores, which by default spin while they wait for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import sklearn
import torch

# Loaded here, before the first test, because loading them adds warning filters
# (torch's optimisers load torch._dynamo at their first use).
import skorch  # noqa: F401  isort: skip
import torch._dynamo  # isort: skip

with contextlib.suppress(ImportError):  # an extra; loading it adds warning filters
    from diffusers import UNet2DModel  # noqa: F401

os.environ.setdefault("MPLBACKEND", "Agg")


def _rcparams():
    """Return matplotlib's settings, or None while matplotlib is not loaded."""
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is None or not hasattr(matplotlib, "rcParams"):
        return None
    # Reading "backend" the ordinary way would choose one and import pyplot.
    params = matplotlib.rcParams
    return {
        key: dict.__getitem__(params, key)
        for key in params
        if key not in ("backend", "backend_fallback")
    }


def _restore_rcparams(saved):
    dict.update(sys.modules["matplotlib"].rcParams, saved)


def _cuda_rng():
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None


def _matmul_precision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 warns of its own function
        return torch.get_float32_matmul_precision()


def _set_filters(saved):
    warnings.filters[:] = saved
    getattr(warnings, "_filters_mutated", lambda: None)()  # empties the cache of decisions


# name: (read, restore)
GLOBAL_STATE = {
    "numpy legacy random state": (np.random.get_state, np.random.set_state),
    "python random state": (random.getstate, random.setstate),
    "torch random state": (torch.get_rng_state, torch.set_rng_state),
    "cuda random state": (_cuda_rng, torch.cuda.set_rng_state_all),
    "torch default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch thread count": (torch.get_num_threads, torch.set_num_threads),
    "torch gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch float32 matmul precision": (
        _matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "numpy error handling": (np.geterr, lambda saved: np.seterr(**saved)),
    "scikit-learn configuration": (sklearn.get_config, lambda saved: sklearn.set_config(**saved)),
    "warning filters": (lambda: list(warnings.filters), _set_filters),
    "matplotlib rcParams": (_rcparams, _restore_rcparams),
}


def _equal(a, b):
    """Compare two snapshots, whatever arrays they contain."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


@pytest.fixture(autouse=True, scope="module")
def generator_guard():
    """Fail a module whose own fixtures draw from a global generator."""
    names = [name for name in GLOBAL_STATE if name.endswith("random state")]
    before = {name: GLOBAL_STATE[name][0]() for name in names}
    yield
    for name, saved in before.items():
        read, restore = GLOBAL_STATE[name]
        if saved is not None and not _equal(saved, read()):
            restore(saved)
            pytest.fail(f"a fixture of the module changed the {name}", pytrace=False)


@pytest.fixture(autouse=True)
def global_state_guard(request):
    """Fail a test that changed global state, and put the state back for the next one.

    A state that did not exist before the test (a library that the test was the first to load,
    a device that it was the first to use) is not compared.
    """
    before = {name: read() for name, (read, _) in GLOBAL_STATE.items()}
    yield
    changed = []
    for name, (read, restore) in GLOBAL_STATE.items():
        saved = before[name]
        if saved is not None and not _equal(saved, read()):
            changed.append(name)
            restore(saved)
    if changed and not request.node.get_closest_marker("changes_global_state"):
        pytest.fail(f"the test changed global state: {', '.join(changed)}", pytrace=False)


@pytest.fixture(scope="session")
def diffusers():
    """Return the package; tests that need it are skipped without it."""
    return pytest.importorskip("diffusers", reason="needs the extra [images]")


def pytest_runtest_setup(item):
    """Skip tests marked `gpu` where no device can run them."""
    if (
        item.get_closest_marker("gpu")
        and not torch.cuda.is_available()
        and not torch.backends.mps.is_available()
    ):
        pytest.skip("needs a CUDA or MPS device")
