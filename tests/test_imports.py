"""Which module may import which: rooms in one direction, and no circles.

Imports inside functions count, those for the type checker alone do not.
"""

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

import sk_itdiffusion

PACKAGE = Path(sk_itdiffusion.__file__).parent
NAME = PACKAGE.name
CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"

#: What a room, a package or a module at the top, may import alongside itself.  The same table is in
#: CONTRIBUTING.md, which says what each room is for.
MAY_IMPORT = {
    "_version": "",
    "_runtime": "",
    "persistence": "_version _runtime",
    "channel": "",
    "datasets": "",
    "distributed": "",
    "layout": "_runtime persistence channel",
    "pretrained": "_runtime persistence channel",
    "_immse": "_runtime persistence channel layout",
    "schedules": "_runtime persistence _immse",
    "_table": "_runtime persistence channel layout _immse",
    "references": "_runtime persistence channel layout _immse _table",
    "denoisers": "_runtime persistence channel layout pretrained references",
    "_fit": (
        "_runtime persistence channel distributed layout pretrained _immse schedules _table "
        "references denoisers"
    ),
    "_conditional": (
        "_runtime persistence channel layout _immse schedules _table references denoisers _fit"
    ),
    "_information": "channel layout _immse references",
    "_estimators": (
        "_runtime persistence channel distributed layout pretrained _immse schedules _table "
        "references denoisers _fit _conditional _information"
    ),
    "display": "_runtime _table _fit",
    "metrics": "",
    "cubature": "_immse",
    "imputation": "_estimators",
    "information": "_estimators _information",
    "likelihood": "_immse",
    "streams": "_table",
}

#: Imports against the direction that are still there.  None may be added, and one that has gone
#: has to go from here too.
STILL_THERE: dict[str, str] = {}


def name_of(path):
    """Return the name of a module within the package; that of the package itself is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def statements(node):
    """Yield all nodes of a module but those that only the type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from statements(other)
        else:
            yield child
            yield from statements(child)


def within(name):
    """Return the name within the package, or None of a name from elsewhere."""
    return name.removeprefix(NAME).lstrip(".") if name.split(".")[0] == NAME else None


def imported(source):
    """Return the modules of the package that a source imports."""
    found = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {within(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            module = within(node.module)
            if module is not None:
                names = {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
                found |= {name if name in MODULES else module for name in names}
    return found - {None}


@functools.cache
def edges():
    """Return (module, what it imports) for all imports of the package."""
    return {
        (name, other)
        for name, path in MODULES.items()
        for other in imported(path.read_text(encoding="utf-8"))
    }


def still_there():
    return {(name, other) for name, others in STILL_THERE.items() for other in others.split()}


def is_allowed(name, other):
    room, other_room = name.split(".")[0], other.split(".")[0]
    return not room or room == other_room or other_room in MAY_IMPORT[room].split()


def test_imports_are_read():
    source = """
from __future__ import annotations
import numpy, sk_itdiffusion._fit.model
from typing import TYPE_CHECKING
from sk_itdiffusion import load
from sk_itdiffusion._table import rows
from sk_itdiffusion.references import Reference
if TYPE_CHECKING:
    from sk_itdiffusion._fit.schema import Schema
def function():
    from sk_itdiffusion.channel import add_noise
"""
    assert imported(source) == {"_fit.model", "", "_table.rows", "references", "channel"}


def test_every_module_has_a_room():
    assert {name.split(".")[0] for name in MODULES} - {""} == set(MAY_IMPORT)


def test_rooms_import_in_one_direction():
    against = {edge for edge in edges() if not is_allowed(*edge)}
    assert against == still_there()


def test_modules_for_users_are_there_after_one_import():
    """Nothing in the package imports them: they give public names to what is in other rooms."""
    for_users = {"cubature", "imputation", "information", "likelihood", "streams"}
    importers = {name for name, other in edges() if other in for_users}
    assert importers == {""}
    assert for_users <= {other for name, other in edges() if name == ""}


def test_there_are_no_circles():
    graph = {name: set() for name in MODULES}
    for name, other in edges() - still_there():
        graph[name].add(other)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names a circle


def test_the_direction_itself_has_no_circles():
    graph = {room: set(others.split()) for room, others in MAY_IMPORT.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if (PACKAGE / room).is_dir()])
def test_packages_say_what_they_may_import(room):
    """In the docstring, or in a comment where the docstring is a page of the documentation."""
    head = MODULES[room].read_text(encoding="utf-8").split("__all__")[0]
    text = " ".join(head.replace("#", " ").split())
    (sentence,) = re.findall(r"May import (nothing|[^.]*) of the package\.", text)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(MAY_IMPORT[room].split())


def test_contributing_has_the_same_table():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    table = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    told = {
        room: set(re.findall(r"`(\w+)`", allowed))
        for rooms, allowed in table
        for room in re.findall(r"`(\w+)`", rooms)
    }
    expected = {room: set(others.split()) for room, others in MAY_IMPORT.items()}
    assert told == expected
