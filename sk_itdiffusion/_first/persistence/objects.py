"""How an object of a declared class becomes a configuration, tensors and attributes, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sk_itdiffusion._first._runtime.generators import seeded
from sk_itdiffusion._first.persistence.checks import check_finite, check_types
from sk_itdiffusion._first.persistence.registry import Declaration, declaration_of, declared_by_user

if TYPE_CHECKING:
    from sk_itdiffusion._first.persistence.encoded import Decoder, Encoder

__all__ = ["Node", "decode_object", "encode_object"]

Node = dict[str, Any]


def encode_object(value: Any, declaration: Declaration, encoder: Encoder) -> Node:
    """Return what an object is made from, its tensors and its attributes."""
    config = declaration.config_of(value)
    if declaration.is_own and hasattr(value, "get_params") and not hasattr(value, "config"):
        others = ", ".join(sorted(vars(value).keys() - config.keys()))
        if others:
            why = f"is a {declaration.name} that has {others} besides its parameters"
            raise encoder.refusal(value, why)
    if declaration.is_placed and (device := config.pop("device", None)) is not None:
        encoder.device = str(device)
    node: Node = {"class": declaration.name} | ({"own": True} if declaration.is_own else {})
    node["config"] = encode_fields(config, declaration, encoder)
    if isinstance(value, nn.Module):
        places = places_of_tensors(value)
        tensors = {name: owner[key] for name, (owner, key) in places.items()}
        node["tensors"] = encoder.fields(value.state_dict() if declaration.given else tensors)
    if declaration.attributes:
        # Not with `getattr`: a frozen estimator has the attributes of another.
        held = {name: vars(value)[name] for name in declaration.attributes if name in vars(value)}
        node["attributes"] = encode_fields(held, declaration, encoder)
    return node


def encode_fields(values: Mapping[str, Any], declaration: Declaration, encoder: Encoder) -> Node:
    """Return named values; generators, and what is code or may be any, are not stored."""
    found: Node = {}
    for name, value in values.items():
        is_generator = isinstance(value, np.random.RandomState)
        if value is None or name in declaration.left_out or is_generator:
            found[name] = None
        elif name in declaration.given:
            found[name] = encoder.given(value)
        elif name in declaration.members:
            found[name] = encoder.at(name, value, encoder.members)
        elif name in declaration.arguments:
            found[name] = encode_fields(value, declaration, encoder)
        else:
            found[name] = encoder.at(name, value)
    return found


def decode_object(node: Node, declaration: Declaration, decoder: Decoder) -> Any:
    """Return the object, once it is known that its parts fit together.

    If the class has a method ``_finish_loading``, this sets what follows from what is stored, and
    raises an error if numbers have other shapes or are in other ranges or orders than they have to.
    """
    cls, name = declaration.cls, declaration.name
    tensors = decoder.fields(node.get("tensors", {}))
    config = decoder.fields(node["config"])
    if declaration.is_placed:
        config["device"] = decoder.device
    if not declaration.is_own and not declaration.attributes:
        check_types(declaration.maker, config, name)
    # Before anything is built that is larger than the file.
    n_numbers = sum(array.size for array in decoder.arrays.values())
    if hasattr(cls, "least_numbers") and cls.least_numbers(**config) > n_numbers:
        raise ValueError(f"a {name} has more numbers than the file")
    with seeded(0):  # modules of torch begin with random numbers
        made = declaration.maker(**config)
    if not isinstance(made, cls):
        raise ValueError(f"from_config of {name} makes a {type(made).__name__}")
    if isinstance(made, nn.Module):
        put_tensors(made, tensors, declaration)
        made.eval()
    attributes = node.get("attributes", {})
    if not attributes.keys() <= {*declaration.attributes}:
        raise ValueError(f"a {name} has no attributes {list(attributes)}")
    for key, value in attributes.items():
        decode = decoder.fields if key in declaration.arguments else decoder.decode
        setattr(made, key, decode(value))
    finish = getattr(cls, "_finish_loading", None)
    if finish is not None and (attributes or not declaration.attributes):
        finish(made)
    return made


# -- tensors -----------------------------------------------------------------------------------


def places_of_tensors(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Return, for each tensor of a module or None instead of one, the dict that holds it.

    With it comes its name there.  Submodules that are stored by themselves are left out.
    """
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for held in (module._parameters, module._buffers):
        found.update({name: (held, name) for name in held})
    for name, child in module._modules.items():
        if child is None or declaration_of(type(child)) or declared_by_user(type(child)):
            continue
        found.update({f"{name}.{key}": at for key, at in places_of_tensors(child).items()})
    return found


def put_tensors(module: nn.Module, tensors: Mapping[str, Any], declaration: Declaration) -> None:
    """Put tensors in their places in a module."""
    if declaration.given:  # code defined by the user, which may have its own way to load them
        try:
            module.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(
                f"the weights do not fit to the denoiser that is given: {error}"
            ) from error
        return
    places = places_of_tensors(module)
    if places.keys() != tensors.keys():
        raise ValueError(f"a {declaration.name} has other tensors than the file")
    for name, (owner, key) in places.items():
        before, tensor, where = owner[key], tensors[name], f"{declaration.name}.{name}"
        check_tensor(tensor, before, where)
        # Numbers of references, whose places are empty, may be infinite, as logarithms are.
        if before is not None and not declaration.is_own:
            check_finite(tensor, f"numbers of {where}")
        owner[key] = nn.Parameter(tensor) if isinstance(before, nn.Parameter) else tensor


def check_tensor(tensor: Any, before: Tensor | None, where: str) -> None:
    """Raise an error if a tensor has no numbers, or cannot take the place of another or of None."""
    if before is None and tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{where} is no tensor")
    if tensor.isnan().any():
        raise ValueError(f"{where} contains NaN")
    if before is None:
        return
    # Modules that are made in double precision may have been brought to single precision.
    is_narrowed = (before.dtype, tensor.dtype) == (torch.float64, torch.float32)
    if tensor.shape != before.shape or (tensor.dtype != before.dtype and not is_narrowed):
        raise ValueError(f"{where} has another shape or dtype")
