"""Parameters and rows that estimators are given, resolved and checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import _check_sample_weight, check_array

from sk_itdiffusion._first._fit.experts import NETWORKS
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._runtime.devices import resolve_device
from sk_itdiffusion._first._table.reading import without_tensors
from sk_itdiffusion._first._table.streams import Stream, without_ones
from sk_itdiffusion._first.denoisers import NetworkFamily
from sk_itdiffusion._first.references import ContinuousReference
from sk_itdiffusion._first.references.families import (
    BUILT_IN_FAMILIES,
    GivenReferenceFamily,
    ReferenceFamily,
)
from sk_itdiffusion.distributed import Processes

__all__ = [
    "are_equal",
    "check_number_of_rows",
    "check_objects",
    "checked_image_shape",
    "checked_weight",
    "flattened_images",
    "numbers_in",
    "resolve_device",
    "resolve_experts",
    "shared_settings",
    "value_or_usual",
]

Array = NDArray[np.float64]
#: Names, other than those of families and networks, that stand for something else.
OTHER_RESERVED_NAMES = ("auto", "model", "reference")
#: Orders of magnitude between weights, of which the square is a number.
MAX_WEIGHT_EXPONENT = 100


def resolve_experts(
    experts: Any, possible: Sequence[str], reference: str | ContinuousReference
) -> dict[str, Any]:
    """Return the settings that follow from the parameter ``experts``.

    Parameters
    ----------
    experts : "auto" or sequence of str and ReferenceFamily
        The parameter.
    possible : sequence of str
        Names that an estimator knows.
    reference : str or Reference
        The control variate, which is an expert if it is an object.

    Returns
    -------
    dict of str to Any
        Settings by name.

    Raises
    ------
    ValueError
        If a name is unknown or reserved, two experts have one name, or a family needs what there
        is not.
    """
    items = ["auto"] if isinstance(experts, str) else list(experts)
    given = [own_family(item) for item in items if isinstance(item, ReferenceFamily)]
    texts = [item for item in items if not isinstance(item, ReferenceFamily)]
    for item in texts:
        check_is_no_class(item, "experts", ReferenceFamily, "experts=['auto', {name}()]")
    unknown = [
        item for item in texts if not isinstance(item, str) or item not in ("auto", *possible)
    ]
    if unknown or not items:
        raise ValueError(
            f"experts must be 'auto' or a list of names from {list(possible)}, 'auto', or custom "
            f"families of references, got {experts!r}."
        )
    names = [family.name for family in given]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"experts has several families with the name {name!r}. Set their attribute name "
                "to different ones."
            )
    known = [family for family in BUILT_IN_FAMILIES if family.name in possible]
    if isinstance(reference, ContinuousReference):
        known.insert(1, GivenReferenceFamily(reference))
    families = (*known, *given)
    check_needs(families)
    named = tuple(text for text in texts if text != "auto")
    is_automatic = "auto" in texts
    return {
        "experts": "auto" if is_automatic else [*named, *names],
        "families": families,
        "passed": tuple(names),
        "asked": named if is_automatic else (*named, *names),
    }


def own_family(family: ReferenceFamily) -> ReferenceFamily:
    """Return a copy of a family of the user's, or raise an error if its name cannot be used.

    The copy is for one fit, so that what the family stores then does not change the parameter.
    """
    copied: ReferenceFamily = clone(family)
    kind, name = type(family).__name__, getattr(copied, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"The family {kind} needs a name: set its class attribute name to a string, got "
            f"{name!r}."
        )
    if name != family.name:
        raise ValueError(
            f"The family {kind} has the name {family.name!r}, but its clone {name!r}: set name as "
            "a class attribute, or take it as a parameter."
        )
    built_in = [each.name for each in BUILT_IN_FAMILIES]
    reserved = sorted({*built_in, *NETWORKS, *OTHER_RESERVED_NAMES})
    if name in reserved or name.startswith(NETWORKS[0]) or "__" in name:
        raise ValueError(
            f"experts has a family with the name {name!r}, which is reserved: {kind} needs another "
            f"one than those of the library, {reserved}, that does not begin with {NETWORKS[0]!r} "
            "and has no double underscore. Set its class attribute name."
        )
    return copied


def check_needs(families: Sequence[ReferenceFamily]) -> None:
    """Raise an error if families need what there is not, or each other in a circle."""
    known = {family.name for family in (*BUILT_IN_FAMILIES, *families)}
    for family in families:
        kind, needs = type(family).__name__, family.needs
        is_sequence = isinstance(needs, tuple | list)
        if not is_sequence or not all(isinstance(name, str) for name in needs):
            raise ValueError(f"{kind}.needs must be a tuple of names of families, got {needs!r}.")
        unknown = [name for name in needs if name not in known]
        if unknown:
            raise ValueError(
                f"{kind}.needs names {unknown}, but the families that there are, those of experts "
                f"included, are {sorted(known)}."
            )
    try:
        TopologicalSorter({family.name: family.needs for family in families}).prepare()
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ValueError(f"Families of experts require each other in a cycle: {circle}.") from None


def check_is_no_class(value: object, parameter: str, kind: type, example: str) -> None:
    """Raise an error if a class is given where an object of it is meant."""
    if inspect.isclass(value) and issubclass(value, kind):
        raise ValueError(
            f"{parameter} has the class {value.__name__}, but it takes an object: "
            f"{example.format(name=value.__name__)}."
        )


def check_objects(parameters: Mapping[str, Any]) -> None:
    """Raise an error where families are given in a form that is nearly right.

    Parameters
    ----------
    parameters : mapping of str to Any
        Parameters of an estimator.

    Raises
    ------
    ValueError
        If a class or a module stands for an object, or a family for a list.
    """
    experts, network = parameters["experts"], parameters["network"]
    check_is_no_class(experts, "experts", ReferenceFamily, "experts=['auto', {name}()]")
    check_is_no_class(network, "network", NetworkFamily, "network={name}()")
    if isinstance(experts, ReferenceFamily):
        raise ValueError(
            f"experts must be a list: experts=['auto', {type(experts).__name__}(...)] adds the "
            "family to the experts that there are."
        )
    is_module = isinstance(network, torch.nn.Module)
    if is_module or (inspect.isclass(network) and issubclass(network, torch.nn.Module)):
        name = network.__name__ if inspect.isclass(network) else type(network).__name__
        hint = (
            ", or pass a trained denoiser as the parameter denoiser"
            if "denoiser" in parameters
            else ""
        )
        raise ValueError(
            f"network must be a name or a sk_itdiffusion.denoisers.NetworkFamily, got {name}, a "
            "torch.nn.Module. Derive from NetworkFamily and return untrained modules of this kind "
            f"from build{hint}."
        )


def are_equal(first: Any, second: Any) -> bool:
    """Return whether two parameter values are the same, arrays and modules included."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.nn.Module):
        ours, theirs = first.state_dict(), second.state_dict()
        if getattr(first, "settings", None) != getattr(second, "settings", None):
            return False
        return ours.keys() == theirs.keys() and all(
            torch.equal(value, theirs[name]) for name, value in ours.items()
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(are_equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(are_equal, first, second))
    if isinstance(first, BaseEstimator):
        return are_equal(vars(first), vars(second))
    if hasattr(first, "shape"):
        return np.array_equal(np.asarray(first), np.asarray(second))
    return bool(first == second)


def check_groups_are_held(codes: NDArray[np.intp] | None, stream: Stream | None) -> None:
    """Raise an error if there are groups of rows that are not all in memory."""
    if codes is not None and stream is not None:
        raise ValueError(
            "groups must be None if X has more rows than are kept in memory (see Notes)."
        )


def check_number_of_rows(shape: tuple[int, ...], name: str) -> None:
    """Raise scikit-learn's error if there are fewer than 2 rows."""
    check_array(np.broadcast_to(0.0, shape), ensure_min_samples=2, estimator=name)


def shared_settings(settings: FitSettings, processes: Processes) -> FitSettings:
    """Return the settings of one of several processes, or raise an error if they do not share."""
    batch_size = settings.training.batch_size
    if batch_size % processes.size:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of the number of processes that "
            f"share a batch, {processes.size}."
        )
    verbose = settings.runtime.verbose if processes.rank == 0 else 0
    device = processes.placed(settings.runtime.device)
    return settings.changed(processes=processes, verbose=verbose, device=device)


def checked_weight(sample_weight: ArrayLike | None, rows: Array) -> Array:
    """Return non-negative weights, of which at least one is positive, as an array of their own."""
    weight = _check_sample_weight(
        without_tensors(sample_weight),
        rows,
        dtype=np.float64,
        ensure_non_negative=True,
        ensure_same_device=False,
        copy=True,
    )
    positive = weight[weight > 0]
    if not len(positive):
        raise ValueError("sample_weight must have at least one non-zero weight.")
    if math.log10(positive.max()) - math.log10(positive.min()) > MAX_WEIGHT_EXPONENT:
        raise ValueError(
            f"sample_weight must not have weights more than 1e{MAX_WEIGHT_EXPONENT} times others, "
            f"got {positive.min():g} and {positive.max():g}. Give rows that should not count "
            "weight 0."
        )
    return np.asarray(weight)


def value_or_usual(value: int | str, usual: int) -> int:
    """Return the value, or the usual one for "auto"."""
    return usual if value == "auto" else int(value)


def numbers_in(value: Any) -> Array:
    """Return a parameter value as an array of numbers, NaN if it is none."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def flattened_images(X: Any, shape: tuple[int, ...]) -> Any:
    """Return images of the given trailing shape as rows; anything else as it is."""
    if getattr(X, "ndim", 2) > 2 and without_ones(X.shape[1:]) == without_ones(shape):
        return np.asarray(X).reshape(len(X), -1)
    return X


def checked_image_shape(image_shape: Any, n_columns: int | None = None) -> tuple[int, ...]:
    """Return the parameter as a tuple, or raise an error that names it.

    With the number of columns of a table it is also compared with that of the pixels.
    """
    shape = tuple(image_shape)
    if len(shape) not in (2, 3) or not all(
        isinstance(size, Integral) and int(size) >= 1 for size in shape
    ):
        raise ValueError(
            "image_shape must be (height, width) or (channels, height, width), got "
            f"{image_shape!r}."
        )
    if n_columns is not None and math.prod(shape) != n_columns:
        raise ValueError(
            f"image_shape={image_shape!r} has {math.prod(shape)} pixels, X has {n_columns} columns."
        )
    return shape
