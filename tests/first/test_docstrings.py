"""Docstrings of public names are complete, and say what the code does."""

import inspect
import re
from numbers import Integral, Real

import pytest
from api_snapshot import public_members, public_objects
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate
from sklearn.utils._param_validation import Interval, StrOptions

import sk_itdiffusion
from sk_itdiffusion.references import Reference

#: Left to judgement: extended summaries, sections "See Also", and names of returned values.
NOT_NEEDED = {"ES01", "RT02", "SA01"}
#: Methods need no example where their class has one.
NOT_NEEDED_OF_METHODS = NOT_NEEDED | {"EX01"}
#: Methods that another class describes; their docstrings name it.
DESCRIBED_ELSEWHERE = {"PR01", "RT01"}

CALLABLES = [(path, value) for path, value in public_objects() if callable(value)]
CLASSES = [(path, value) for path, value in CALLABLES if inspect.isclass(value)]
METHODS = [
    f"{path}.{name}"
    for path, cls in CLASSES
    for name, member in public_members(cls)
    if inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property)
]
ESTIMATORS = [
    getattr(sk_itdiffusion, name)
    for name in sk_itdiffusion.__all__
    if hasattr(getattr(sk_itdiffusion, name), "_parameter_constraints")
]


def mistakes(path, ignored):
    return [
        f"{path}: {code} {text}" for code, text in validate(path)["errors"] if code not in ignored
    ]


@pytest.mark.parametrize("path", [path for path, _ in CALLABLES])
def test_docstring_of_a_class_or_function_is_valid(path):
    assert not mistakes(path, NOT_NEEDED)


def test_docstrings_of_methods_are_valid():
    found = []
    for path in METHODS:
        named = re.search(r"[Ss]ee\s+`(\w+)\.(\w+)`", validate(path)["docstring"])
        elsewhere = DESCRIBED_ELSEWHERE if named and path.endswith(f".{named[2]}") else set()
        found += mistakes(path, NOT_NEEDED_OF_METHODS | elsewhere)
    assert not found


def test_methods_that_others_describe_are_described_there():
    described = {
        f"{base.__name__}.{name}"
        for base in (Reference, *Reference.__subclasses__())
        for name, member in public_members(base)
        if isinstance(member, property) or "Returns\n" in inspect.getdoc(member)
    }
    for _, cls in CLASSES:
        for name, member in public_members(cls) if issubclass(cls, Reference) else ():
            named = re.search(r"[Ss]ee `(\w+\.\w+)`", inspect.getdoc(member) or "")
            assert named is None or named[1] in described, f"{cls.__name__}.{name}"


def documented_parameters(function):
    """Return the type line and the description of each documented parameter."""
    found = {}
    for entry in NumpyDocString(inspect.getdoc(function))["Parameters"]:
        for name in entry.name.split(", "):
            found[name.lstrip("*")] = entry.type, " ".join(entry.desc)
    return found


def functions_with_docstrings():
    for path, value in CALLABLES:
        yield path, value, inspect.signature(value)
        if inspect.isclass(value):
            for name, member in public_members(value):
                function = getattr(member, "__func__", member)
                if inspect.isfunction(function) and not name.startswith("_"):
                    yield f"{path}.{name}", function, inspect.signature(function)


def is_written(default, text):
    """Return whether a text is a default, or of those of several parameters in order one is."""
    written = [part.strip('"') for part in (text, *text.split(", "))]
    if isinstance(default, float):
        return any(float(part) == default for part in written)
    return str(default) in written


def test_documented_defaults_are_those_of_the_signature():
    wrong = []
    for path, function, signature in functions_with_docstrings():
        for name, (kind, _) in documented_parameters(function).items():
            default = signature.parameters[name].default
            if kind == "Ignored":
                continue
            if default is inspect.Parameter.empty:
                if "default" in kind:
                    wrong.append(f"{path}({name}) has no default")
                continue
            if not is_written(default, kind.partition("default=")[2]):
                wrong.append(f"{path}({name}={default!r}), documented as {kind!r}")
    assert not wrong


def range_of(interval):
    """Return how a docstring writes an interval."""
    if interval.right is None:
        if interval.closed in ("left", "both"):
            return f"at least {interval.left}"
        return "positive" if interval.left == 0 else f"more than {interval.left}"
    opening = "[" if interval.closed in ("left", "both") else "("
    closing = "]" if interval.closed in ("right", "both") else ")"
    return f"{opening}{interval.left}, {interval.right}{closing}"


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.__name__)
def test_parameters_of_estimators_have_ranges_and_defaults(estimator):
    documented = documented_parameters(estimator)
    signature = inspect.signature(estimator)
    assert list(documented) == list(signature.parameters)
    missing = []
    for name, (kind, description) in documented.items():
        if signature.parameters[name].default is not inspect.Parameter.empty:
            assert "default=" in kind, name
        text = f"{kind} {description}"
        for constraint in estimator._parameter_constraints[name]:
            if isinstance(constraint, Interval) and range_of(constraint) not in text:
                missing.append(f"{name}: {range_of(constraint)}")
            if isinstance(constraint, StrOptions):
                missing += [
                    f"{name}: {o}" for o in sorted(constraint.options) if f'"{o}"' not in text
                ]
            if constraint in ("verbose", Real, Integral) and not re.search(
                "[Aa]t least|[Ff]inite", text
            ):
                missing.append(f"{name}: its range")
    assert not missing
