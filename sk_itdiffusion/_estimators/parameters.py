"""Parameters and rows that estimators are given, resolved and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_array

from sk_itdiffusion._fit.experts import NETWORKS
from sk_itdiffusion._fit.settings import FitSettings
from sk_itdiffusion._runtime.devices import resolve_device
from sk_itdiffusion._table.encoding import without_tensors
from sk_itdiffusion._table.streams import Stream, without_ones
from sk_itdiffusion.distributed import Processes
from sk_itdiffusion.references import ContinuousReference
from sk_itdiffusion.references.families import (
    BUILT_IN_FAMILIES,
    GivenReferenceFamily,
    ReferenceFamily,
)

__all__ = [
    "alike",
    "automatic",
    "check_number_of_rows",
    "checked_image_shape",
    "checked_weight",
    "flattened_images",
    "numbers_in",
    "resolve_device",
    "resolve_experts",
    "shared",
]

Array = NDArray[np.float64]
#: Orders of magnitude between weights, of which the square is a number.
MOST_EXTREME_WEIGHTS = 100


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
        If a name is unknown, or two experts have one name.
    """
    items = ["auto"] if isinstance(experts, str) else list(experts)
    given = [item for item in items if isinstance(item, ReferenceFamily)]
    texts = [item for item in items if not isinstance(item, ReferenceFamily)]
    unknown = [item for item in texts if item not in ("auto", *possible)]
    if unknown or not items:
        raise ValueError(
            f"experts must be 'auto' or a list of names from {list(possible)}, or of families of "
            f"references of your own, with 'auto' or without, got {experts!r}."
        )
    names = [family.name for family in given]
    for name in names:
        if name in (*NETWORKS, "reference") or name in possible or names.count(name) > 1:
            raise ValueError(
                f"experts has a family with the name {name!r}, which another expert has. Set its "
                "attribute name to another one."
            )
    known = [family for family in BUILT_IN_FAMILIES if family.name in possible]
    if isinstance(reference, ContinuousReference):
        known.insert(1, GivenReferenceFamily(reference))
    named = tuple(text for text in texts if text != "auto")
    is_automatic = "auto" in texts
    return {
        "experts": "auto" if is_automatic else [*named, *names],
        "families": (*known, *given),
        "asked": named if is_automatic else (*named, *names),
    }


def alike(first: Any, second: Any) -> bool:
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
        return first.keys() == second.keys() and all(alike(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, BaseEstimator):
        return alike(vars(first), vars(second))
    if hasattr(first, "shape"):
        return np.array_equal(np.asarray(first), np.asarray(second))
    return bool(first == second)


def check_groups_are_held(codes: NDArray[np.intp] | None, stream: Stream | None) -> None:
    """Raise an error if there are groups of rows that are not all in memory."""
    if codes is not None and stream is not None:
        raise ValueError(
            "groups must be None if X has more rows than are held in memory (see Notes)."
        )


def check_number_of_rows(shape: tuple[int, ...], name: str) -> None:
    """Raise scikit-learn's error if there are fewer than 2 rows."""
    check_array(np.broadcast_to(0.0, shape), ensure_min_samples=2, estimator=name)


def shared(settings: FitSettings, processes: Processes) -> FitSettings:
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
    """Return non-negative weights, of which at least one is positive."""
    weight = _check_sample_weight(
        without_tensors(sample_weight),
        rows,
        dtype=np.float64,
        ensure_non_negative=True,
        ensure_same_device=False,
    )
    positive = weight[weight > 0]
    if not len(positive):
        raise ValueError("sample_weight must have at least one non-zero weight.")
    if math.log10(positive.max()) - math.log10(positive.min()) > MOST_EXTREME_WEIGHTS:
        raise ValueError(
            f"sample_weight must not have weights more than 1e{MOST_EXTREME_WEIGHTS} times others, "
            f"got {positive.min():g} and {positive.max():g}. Give rows that count for nothing "
            "weight 0."
        )
    return np.asarray(weight)


def automatic(value: int | str, usual: int) -> int:
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
