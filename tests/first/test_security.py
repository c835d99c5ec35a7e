"""What the library never does: unpickle, execute text, reach for the network unasked."""

import ast
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from seeds import shifted

import sk_itdiffusion
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
    datasets,
)
from sk_itdiffusion._first.pretrained import PretrainedDenoiser

pytestmark = pytest.mark.usefixtures("brief_fits")

PACKAGE = Path(sk_itdiffusion.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

#: Modules that load code, start programs or open connections.
FORBIDDEN_MODULES = {
    "code",
    "ctypes",
    "dill",
    "cloudpickle",
    "ftplib",
    "http",
    "huggingface_hub",
    "joblib",
    "marshal",
    "pickle",
    "requests",
    "runpy",
    "shelve",
    "smtplib",
    "socket",
    "subprocess",
    "urllib",
    "xmlrpc",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
#: Methods of numpy, pandas, torch and os that unpickle or execute.
FORBIDDEN_METHODS = {
    ("np", "load"),
    ("numpy", "load"),
    ("os", "popen"),
    ("os", "system"),
    ("pd", "eval"),
    ("pd", "read_pickle"),
    ("torch", "load"),
    ("torch", "save"),
}


def imported_modules(node):
    """Return the names of the top modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module.split(".")[0]}
    return set()


@pytest.mark.parametrize("source", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES])
def test_source_executes_and_unpickles_nothing(source):
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        assert not imported_modules(node) & FORBIDDEN_MODULES, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name):
            assert function.id not in FORBIDDEN_CALLS, ast.unparse(node)
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            called = (function.value.id, function.attr)
            assert called not in FORBIDDEN_METHODS, ast.unparse(node)


@pytest.fixture
def attempts(monkeypatch):
    """Return the list of the connections that are attempted; none of them succeeds."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("There is no network in this test.")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse, raising=False)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def test_the_network_is_not_asked_for(attempts, tmp_path):
    rng = np.random.default_rng(shifted(0))
    quick = {"max_epochs": 1, "steps_per_epoch": 2, "hidden_size": 8, "random_state": shifted(0)}
    numbers, levels = rng.normal(size=(60, 2)), rng.integers(0, 3, size=(60, 2))
    mixed = pd.DataFrame({"number": numbers[:, 0], "level": levels[:, 0].astype(str)})
    density = IMMSEDensity(**quick)
    subjects = [
        (density, numbers),
        (IMMSEDiscreteDensity(**quick), levels),
        (IMMSEMixedDensity(**quick), mixed),
        (IMMSEEnsemble([("one", density)], random_state=shifted(0)), numbers),
        (IMMSEOutlierDetector(contamination=0.1, random_state=shifted(0)), numbers),
    ]
    for number, (estimator, X) in enumerate(subjects):
        path = tmp_path / f"model {number}"
        scores = estimator.fit(X).score_samples(X)
        estimator.save(path)
        np.testing.assert_array_equal(sk_itdiffusion.load(path).score_samples(X), scores)
        if hasattr(estimator, "sample"):
            estimator.sample(2)
    datasets.load_density("banana").sample(10, random_state=shifted(0))
    assert attempts == []


def test_saved_networks_are_read_without_the_network(attempts, diffusers, tmp_path):
    with torch.random.fork_rng(devices=[]):
        network = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
    network.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    PretrainedDenoiser.from_diffusers(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        PretrainedDenoiser.from_diffusers(tmp_path / "nothing")
    assert attempts == []


@pytest.mark.usefixtures("diffusers")
def test_only_networks_are_made_of_what_a_folder_names(attempts, tmp_path):
    """A configuration may name any class of diffusers, of which some run what they read."""
    (tmp_path / "config.json").write_text('{"_class_name": "DiffusionPipeline", "sample_size": 8}')
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(ValueError, match="'DiffusionPipeline'"):
        PretrainedDenoiser.from_diffusers(tmp_path)
    assert attempts == []
