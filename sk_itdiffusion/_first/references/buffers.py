"""Buffers of references: how they are made and checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sk_itdiffusion._first.persistence.checks import (
    check_in_range,
    check_positive,
    check_shapes,
)
from sk_itdiffusion._first.references.base import Reference

__all__ = ["as_float_tensor", "check_buffers", "eigenbasis"]

#: Buffers that are positive in all references.
POSITIVE_BUFFERS = ("variances", "residual", "background_weight")
#: Squares of larger numbers are none.
MAX_NUMBER = 1e150


def as_float_tensor(values: ArrayLike | Tensor, ndim: int, name: str) -> Tensor:
    """Return finite values as a float64 tensor, or raise an error that names the parameter."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array: NDArray[np.float64] = np.array(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite.")
    return torch.from_numpy(array)


def eigenbasis(covariances: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., d) and eigenvectors (..., d, d), or raise if not positive."""
    if covariances.shape[-1] != covariances.shape[-2]:
        raise ValueError(f"{name} must be square, got shape {tuple(covariances.shape)}.")
    variances, basis = torch.linalg.eigh(covariances)
    if bool((variances <= 0).any()):
        raise ValueError(
            f"{name} must be positive definite; its least eigenvalue is {variances.min():.3g}. "
            "Add a small multiple of the identity, or shrink it."
        )
    return variances, basis


def check_buffers(reference: Reference, shapes: Mapping[str, str], **sizes: int) -> dict[str, int]:
    """Raise an error if buffers of a loaded reference have other shapes, or are not numbers.

    Parameters
    ----------
    reference : Reference
        The reference.
    shapes : dict of str to str
        For each buffer a letter for each axis; "d" is `Reference.n_features`.
    **sizes : int
        Other sizes that are known.

    Returns
    -------
    dict of str to int
        All sizes.
    """
    check_in_range(reference.n_features, 1, np.inf, "numbers of features")
    found = check_shapes(reference, shapes, d=reference.n_features, **sizes)
    tensors = {name: getattr(reference, name) for name in shapes}
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"a {type(reference).__name__} has tensors of several dtypes")
    for name, tensor in tensors.items():
        what = f"{name} of a {type(reference).__name__}"
        check_in_range(tensor, -MAX_NUMBER, MAX_NUMBER, what)
        if name in POSITIVE_BUFFERS:
            check_positive(tensor, what)
    return found
