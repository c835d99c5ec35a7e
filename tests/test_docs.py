"""The documentation: its code runs, its links lead somewhere, and it knows all that is public."""

import ast
import importlib
import inspect
import re
import warnings
from dataclasses import is_dataclass, replace

import pytest
import torch
from documents import IMAGE, LINK, ROOT, code_blocks, local_targets, run_python_blocks
from first import brief

from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEOutlierDetector
from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._estimators.table import TableEstimator
from sk_itdiffusion._first._runtime import documentation
from sk_itdiffusion.schedules import LogisticSchedule

DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
BUILT = ("_build", "auto_examples", "api")
PAGES = [
    path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in BUILT
]
WITH_CODE = [path for path in PAGES if code_blocks(path, "python")]
PUBLIC_MODULES = (
    "channel",
    "datasets",
    "denoisers",
    "display",
    "information",
    "metrics",
    "pretrained",
    "references",
    "schedules",
)


def name_of(path):
    return path.relative_to(DOCS).as_posix()


@pytest.fixture
def short_work(monkeypatch):
    """Make networks small, and trainings, searches and integrals short; all else is as it is."""
    settings, tolerance = TableEstimator._settings, DensityEstimator._tolerance

    def few_steps(estimator, *arguments):
        asked = settings(estimator, *arguments)
        epochs = min(asked.training.max_epochs, 1)
        return asked.changed(max_epochs=epochs, steps_per_epoch=2, hidden_size=8, n_blocks=1)

    def few_evaluations(estimator, score_tol=None):
        asked = tolerance(estimator, score_tol)
        return replace(asked, nats=max(asked.nats, 0.3))

    monkeypatch.setattr(TableEstimator, "_settings", few_steps)
    monkeypatch.setattr(DensityEstimator, "_tolerance", few_evaluations)
    with brief.choices():
        yield


@pytest.mark.slow  # real, if short, fits; .ci/run runs it in a step of its own
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_of_pages_runs(page, short_work, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    # Pages make networks from torch's own generator, and load libraries that add filters.
    with torch.random.fork_rng(), warnings.catch_warnings():
        run_python_blocks(page)
    plt.close("all")


def test_pages_to_learn_from_have_code():
    guide = {"getting_started.md", "own_denoiser.md", "user_guide/continuous.md"}
    assert guide <= {name_of(path) for path in WITH_CODE}


def source_of(target):
    """Return the source of a file that the build makes, or the target itself."""
    parts = target.relative_to(DOCS).parts if target.is_relative_to(DOCS) else ()
    if parts[:1] != ("auto_examples",) or target.stem == "index":
        return target if parts[:1] != ("auto_examples",) else EXAMPLES / "GALLERY_HEADER.rst"
    example = re.sub(r"^sphx_glr_(.*)_\d{3}$", r"\1", target.stem)
    return EXAMPLES / f"{example}.py"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_local_links_of_pages_point_at_files(page):
    targets = local_targets(page, IMAGE) + local_targets(page, LINK)
    missing = [t for t in targets if not source_of((page.parent / t).resolve()).exists()]
    assert not missing


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in PAGES:
        for _, block in code_blocks(page, re.escape("{toctree}")):
            listed |= {(page.parent / line).resolve() for line in block.splitlines() if line}
    missing = [name_of(p) for p in PAGES if p.with_suffix("").resolve() not in listed]
    assert missing == ["index.md"]


# -- the reference ---------------------------------------------------------------------------


def listed_names():
    """Return (module, name) of every object that the page of the reference lists."""
    page = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    module, names = None, []
    for line in page.splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)$", line):
            module = found.group(1)
        elif found := re.match(r"   (\w+)$", line):
            names.append((module, found.group(1)))
    return names


def listed_objects():
    return {name: getattr(importlib.import_module(name[0]), name[1]) for name in listed_names()}


def test_reference_lists_every_public_object():
    listed = {id(each) for each in listed_objects().values()}
    missing = []
    for name in ("sk_itdiffusion", *(f"sk_itdiffusion.{module}" for module in PUBLIC_MODULES)):
        module = importlib.import_module(name)
        public = [each for each in module.__all__ if each != "__version__"]
        missing += [f"{name}.{each}" for each in public if id(getattr(module, each)) not in listed]
    assert not missing
    assert len(listed_names()) == len(set(listed_names()))


def test_methods_that_the_reference_names_exist():
    page = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`", page.split("Files\n=====")[0])
    assert "set_fit_request" in named
    for name in named:
        estimator = IMMSEOutlierDetector if name == "fit_predict" else IMMSEDensity
        assert hasattr(estimator, name), name


#: Sections that need not be there: see also, extended summary, examples.
OPTIONAL = {"SA01", "ES01", "EX01"}


def checked_docstrings():
    """Return all listed objects, and the methods that estimators and displays have."""
    names = []
    for (module, name), each in listed_objects().items():
        if callable(each):
            names.append(f"{module}.{name}")
        if inspect.isclass(each) and (module == "sk_itdiffusion" or name.endswith("Display")):
            names += [
                f"{module}.{name}.{method}"
                for method, function in inspect.getmembers(each, callable)
                if not method.startswith("_") and defined_here(function)
            ]
    return names


def defined_here(function):
    return (getattr(function, "__module__", None) or "").startswith("sk_itdiffusion")


def test_docstrings_are_complete():
    """Numpydoc's validation: every parameter and result of what is public is described."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that numpydoc loads
        validate = pytest.importorskip("numpydoc.validate").validate
        errors = [
            f"{name}: {code} {message}"
            for name in checked_docstrings()
            for code, message in validate(name)["errors"]
            if code not in OPTIONAL and not (code == "PR01" and needs_no_parameters(name))
        ]
    assert not errors


def needs_no_parameters(name):
    """Return whether the object is abstract, or a dataclass, whose parameters are attributes."""
    each = listed_objects().get(tuple(name.rsplit(".", 1)))
    return is_dataclass(each) or inspect.isabstract(each)


# -- the gallery -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_fit_into_the_gallery(path):
    """Each has a title and the options of all examples, and its committed pictures exist."""
    source = path.read_text(encoding="utf-8")
    title, line, *_ = ast.get_docstring(ast.parse(source)).splitlines()
    assert re.fullmatch(r"=+", line)
    assert len(line) >= len(title)
    assert '"--quick"' in source
    assert '"--output"' in source
    pictures = re.findall(r"^\.\. image:: /(\S+)$", source, re.MULTILINE)
    pictures += re.findall(r'^# sphinx_gallery_thumbnail_path = "(\S+)"$', source, re.MULTILINE)
    assert not [picture for picture in pictures if not (DOCS / picture).exists()]


# -- links from estimators -------------------------------------------------------------------

URL = "https://example.org/docs"


@pytest.fixture
def declared_url(monkeypatch):
    class Metadata:
        def get_all(self, name):
            return ["Source, https://example.org", f"Documentation, {URL}/"]

    monkeypatch.setattr(documentation.importlib.metadata, "metadata", lambda name: Metadata())
    documentation.documentation_url.cache_clear()
    yield
    documentation.documentation_url.cache_clear()


@pytest.mark.parametrize(
    "estimator",
    [IMMSEDensity(), IMMSEEnsemble([("one", IMMSEDensity())]), IMMSEOutlierDetector()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_representation_links_to_the_reference(estimator, declared_url):
    page = f"{URL}/api/generated/sk_itdiffusion.{type(estimator).__name__}.html"
    assert f'href="{page}"' in estimator._repr_html_()


def test_pages_linked_to_are_those_of_the_reference(declared_url):
    pages = {f"{URL}/api/generated/{module}.{name}.html" for module, name in listed_names()}
    linked = {each._get_doc_link() for each in (LogisticSchedule(), IMMSEDensity())}
    assert linked <= pages


def test_subclasses_of_users_have_no_page(declared_url):
    class Own(IMMSEDensity):
        pass

    assert Own()._get_doc_link() == ""


def test_without_a_declared_url_there_is_no_link(monkeypatch):
    monkeypatch.setattr(documentation, "documentation_url", lambda: "")
    assert IMMSEDensity()._get_doc_link() == ""
    assert "/api/generated/" not in IMMSEDensity()._repr_html_()
