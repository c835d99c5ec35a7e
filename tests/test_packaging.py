"""The package as an installer, an importer and a citing reader meet it."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement):
    """Return the normalised distribution name of a requirement."""
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")


def run_python(code):
    """Run code in a new interpreter in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_base_dependencies_are_exactly_the_allowed_ones():
    numbers = {"numpy", "pandas", "scikit-learn", "skorch", "torch"}
    allowed = numbers | {"joblib", "safetensors", "scipy", "tqdm"}
    assert {name_of(r) for r in PROJECT["dependencies"]} == allowed


def test_every_dependency_has_a_lower_bound():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [r for group in groups for r in group]
    unbounded = [r for r in requirements if ">=" not in r and name_of(r) != "sk-itdiffusion"]
    assert not unbounded


def test_oldest_tested_versions_are_the_lower_bounds():
    text = (ROOT / "constraints" / "minimum.txt").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in text.split() if "==" in line)
    optional = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *optional["plot"], *optional["images"]]:
        bound = requirement.split(">=")[1]
        assert f"{pinned[name_of(requirement)]}.".startswith(f"{bound}."), requirement


def test_installed_versions_satisfy_the_declared_bounds():
    packaging = pytest.importorskip("packaging.requirements")
    for text in PROJECT["dependencies"]:
        requirement = packaging.Requirement(text)
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), text


def test_version_is_written_once():
    import sk_itdiffusion

    assert "version" in PROJECT["dynamic"]
    assert importlib.metadata.version("sk_itdiffusion") == sk_itdiffusion.__version__
    pattern = re.compile(r"^__version__\s*=", re.MULTILINE)
    sources = (ROOT / "sk_itdiffusion").rglob("*.py")
    definitions = [p.name for p in sources if pattern.search(p.read_text(encoding="utf-8"))]
    assert definitions == ["_version.py"]


def test_installed_package_is_marked_as_typed():
    import sk_itdiffusion

    assert (Path(sk_itdiffusion.__file__).parent / "py.typed").exists()


@pytest.mark.slow
def test_no_fit_imports_the_compiler():
    """PyTorch's own optimisers do, which takes longer than a small fit."""
    result = run_python(
        """
import warnings; warnings.simplefilter("ignore")
import sys
import numpy as np
from sk_itdiffusion import IMMSEDensity

X = np.random.default_rng(0).normal(size=(100, 2))
density = IMMSEDensity(max_epochs=1, steps_per_epoch=2, random_state=0).fit(X)
assert list(density.nets_) == ["network", "network_2"]
print([name for name in sys.modules if name.startswith("torch._dynamo")])
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_import_is_silent_changes_no_global_state_and_leaves_matplotlib_alone():
    """Warnings and settings of the libraries below are theirs: they are loaded first, quietly."""
    result = run_python(
        """
import os, random, signal, sys, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import logging
    import numpy as np, pandas, scipy.stats, sklearn.mixture, skorch, torch
    import sklearn.covariance, sklearn.neighbors, sklearn.preprocessing, sklearn.utils.validation

def snapshot():
    return {
        "random": hash(random.getstate()),
        "numpy": np.random.get_state()[1].tobytes() + bytes(np.random.get_state()[2]),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "torch seed": torch.initial_seed(),
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "cuda": torch.cuda.is_initialized(),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "geterr": np.geterr(),
        "printoptions": str(np.get_printoptions()),
        "sklearn": sklearn.get_config(),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "environment": dict(os.environ),
        "interrupt": signal.getsignal(signal.SIGINT),
        "excepthook": sys.excepthook,
        "path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
    }

before = snapshot()
import sk_itdiffusion, sk_itdiffusion.datasets, sk_itdiffusion.display
after = snapshot()
assert [name for name in before if before[name] != after[name]] == []
assert [name for name in sys.modules if name.split(".")[0] == "matplotlib"] == []
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""


def test_citation_names_the_paper():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    try:
        import yaml
    except ImportError:
        assert re.search(r"^\s+value: \"arXiv:2302\.03792\"$", text, re.MULTILINE)
        assert re.search(r"^cff-version: ", text, re.MULTILINE)
        return
    citation = yaml.safe_load(text)
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    preferred = citation["preferred-citation"]
    assert "arXiv:2302.03792" in {i["value"] for i in preferred["identifiers"]}
    authors = [a["family-names"] for a in preferred["authors"]]
    assert authors == ["Kong", "Brekelmans", "Ver Steeg"]


def test_changelog_knows_the_version():
    """A release has its own section; a development version collects under Unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = importlib.metadata.version("sk_itdiffusion")
    heading = "Unreleased" if ".dev" in version else re.escape(version)
    assert re.search(rf"^## {heading}\b", text, re.MULTILINE)
