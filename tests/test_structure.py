"""The size and the shape of the library: these numbers may be lowered, never raised."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from count_lines import lines_of_code

import sk_itdiffusion

#: Rooms from the bottom up, each with the lines of code that it may have; rooms of one row share
#: theirs.  A module imports from its own room and from those above it in this table.
ROOMS = [
    (("datasets", "distributed", "metrics", "pretrained", "schedules", "streams"), 1_300),
    (("_runtime",), 350),
    (("persistence",), 450),
    (("_immse",), 900),
    (("_table",), 1_700),
    (("references",), 1_700),
    (("networks",), 1_500),
    (("_model",), 1_500),
    (("_estimators",), 1_600),
    (("outlier",), 500),
    (("imputation",), 400),
    (("_predictive", "conditional"), 1_700),
    (("_information", "information"), 800),
    (("display",), 1_000),
]
#: Rooms of the first row that stand higher: what each may import besides.
HIGHER = {"schedules": {"_immse"}, "pretrained": {"_immse"}, "streams": {"_table"}}
MODULE_LINES, FUNCTION_LINES = 500, 50
#: Parameters of constructors; the discrete and the mixed density have four more for categories.
PARAMETERS = {
    "IMMSEDensity": 18,
    "IMMSEDiscreteDensity": 22,
    "IMMSEMixedDensity": 22,
    "IMMSEConditionalDensity": 9,
    "IMMSERegressor": 9,
    "IMMSEEnsemble": 9,
    "IMMSEImputer": 9,
    "IMMSEMutualInformation": 9,
    "IMMSEOutlierDetector": 9,
}
#: The old rooms, which are left as they are until new ones replace them.
FIRST, FIRST_LINES = "_first", 28_121
#: Old names of the public interface, which go with the old rooms.
OLD_NAMES = {"channel", "cubature", "denoisers", "layout", "likelihood"}

PACKAGE = Path(sk_itdiffusion.__file__).parent
FREE = {"__init__", "_version", FIRST, *OLD_NAMES}


def room_of(path):
    """Return the room of a module, a package or a module at the top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) != FIRST]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def code_of(paths):
    return sum(lines_of_code(path.read_text(encoding="utf-8")) for path in paths)


def test_every_module_has_a_room():
    known = {room for rooms, _ in ROOMS for room in rooms} | FREE
    assert {room_of(path) for path in MODULES} <= known


@pytest.mark.parametrize(("rooms", "budget"), ROOMS, ids=lambda value: str(value)[:40])
def test_rooms_keep_to_their_lines(rooms, budget):
    assert code_of(path for path in MODULES if room_of(path) in rooms) <= budget


def test_all_rooms_together_keep_to_their_lines():
    assert sum(budget for _, budget in ROOMS) == 15_400


def test_old_rooms_only_shrink():
    assert code_of((PACKAGE / FIRST).rglob("*.py")) <= FIRST_LINES


def test_modules_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    lengths.pop(PACKAGE / "datasets.py", None)  # its docstrings are the guide to the data sets
    assert {str(path): n for path, n in lengths.items() if n > MODULE_LINES} == {}


def test_functions_are_short():
    """Docstrings and signatures do not count: these grow with the public interface."""
    long = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and body[-1].end_lineno - body[0].lineno >= FUNCTION_LINES:
                    long.append(f"{path.name}: {node.name}")
    assert long == []


def imported_rooms(path):
    """Return the rooms that a module imports from, type-checking imports included."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("sk_itdiffusion.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    room = room_of(path)
    if room in FREE:
        return
    below = {FIRST, "_version", room} | HIGHER.get(room, set())
    for rooms, _ in ROOMS:
        if room in rooms:
            break
        below |= set(rooms)
    assert imported_rooms(path) - below == set()


@pytest.mark.parametrize("name", PARAMETERS)
def test_constructors_have_few_parameters(name):
    estimator = getattr(importlib.import_module("sk_itdiffusion"), name)
    if not estimator.__module__.startswith(f"sk_itdiffusion.{FIRST}"):
        assert len(inspect.signature(estimator).parameters) <= PARAMETERS[name]
