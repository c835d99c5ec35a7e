"""Print the public interface: names, and parameters with their annotations and defaults.

After a change that is meant:  python tests/api_snapshot.py > tests/api.txt
"""

import importlib
import inspect

MODULES = [
    "sk_itdiffusion",
    "sk_itdiffusion.datasets",
    "sk_itdiffusion.display",
    "sk_itdiffusion.imputation",
    "sk_itdiffusion.information",
    "sk_itdiffusion.metrics",
    "sk_itdiffusion.pretrained",
    "sk_itdiffusion.references",
    "sk_itdiffusion.schedules",
]


def public_objects():
    """Yield the path and the object of each public name; a name of two modules only once."""
    seen = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if inspect.isclass(value) or callable(value):
                if value in seen:
                    continue
                seen.add(value)
            yield f"{module_name}.{name}", value


def public_members(cls):
    """Yield the name and the descriptor of each public member that the library defines."""
    for name in sorted(dir(cls)):
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        if owner is None or not owner.__module__.startswith("sk_itdiffusion"):
            continue
        member = vars(owner)[name]
        is_own = getattr(member, "__module__", owner.__module__).startswith("sk_itdiffusion")
        if is_own and not name.startswith("_"):
            yield name, member


def parameter_text(parameter):
    """Return a parameter with its annotation and its default."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    return text if parameter.default is parameter.empty else f"{text} = {parameter.default!r}"


def signature_lines(path, function):
    """Return a line for the function, one for each parameter and one for the result."""
    signature = inspect.signature(function)
    parameters = [parameter_text(parameter) for parameter in signature.parameters.values()]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = signature.return_annotation
    told = [] if result in (inspect.Signature.empty, None, "None") else [f"    -> {result}"]
    return [f"{path}()", *(f"    {parameter}" for parameter in parameters), *told]


def member_lines(path, member):
    """Return the lines of a member of a class."""
    if isinstance(member, property):
        return [f"{path}: property"]
    if isinstance(member, classmethod | staticmethod):
        return [f"{path}: {type(member).__name__}", *signature_lines(path, member.__func__)[1:]]
    if inspect.isfunction(member):
        return signature_lines(path, member)
    return [f"{path}: {type(member).__name__}"]


def snapshot():
    """Return the public interface as text."""
    lines = []
    for path, value in public_objects():
        if inspect.isclass(value):
            lines += ["", f"class {path}", *signature_lines(f"{path}.__init__", value)[1:]]
            for name, member in public_members(value):
                lines += member_lines(f"{path}.{name}", member)
        elif callable(value):
            lines += ["", *signature_lines(path, value)]
        else:
            lines += ["", f"{path}: {type(value).__name__}"]
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    print(snapshot(), end="")
