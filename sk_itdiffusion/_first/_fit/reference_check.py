"""Whether what a family returns is a reference of the table, before anything rests on it."""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first.channel import signal_scale
from sk_itdiffusion._first.references import ContinuousReference, Reference
from sk_itdiffusion._first.references.families import JudgedReference, ReferenceFamily

__all__ = ["check_reference"]

#: Validation rows that references are tried on, and log-SNRs of the noise.
_ROWS_TO_TRY = 8
_LOGSNRS_TO_TRY = (-4.0, 8.0)


def check_reference(family: ReferenceFamily, found: object, split: MappedSplit) -> None:
    """Raise an error if a family has not returned a reference of the table's rows.

    A few validation rows are tried, without noise, so that nothing random is drawn.

    Parameters
    ----------
    family : ReferenceFamily
        The family, whose class the errors name.
    found : object
        What `ReferenceFamily.fit_judged` has returned.
    split : MappedSplit
        Training and validation rows.

    Raises
    ------
    TypeError
        If it is no `JudgedReference` of a `Reference` or None.
    ValueError
        If the reference has another dimension than the points of the table, or its results are of
        another type or shape than they have to be, or not finite.
    """
    kind = type(family).__name__
    if not isinstance(found, JudgedReference):
        raise TypeError(f"{kind}.fit_judged must return a JudgedReference, got {described(found)}.")
    reference, n_valid = found.reference, len(split.valid)
    if np.shape(found.optimism) not in ((), (n_valid,)):
        raise ValueError(
            f"{kind}.fit_judged must return an optimism of shape ({n_valid},) or a number, got "
            f"shape {np.shape(found.optimism)}."
        )
    if reference is None:
        return
    if not isinstance(reference, Reference):
        raise TypeError(
            f"{kind}.fit must return an object of a class derived from "
            f"sk_itdiffusion.references.Reference, or None, got {described(reference)}."
        )
    check_results(kind, reference, split)
    check_range(kind, reference)


def described(value: object) -> str:
    """Return what a value is, for messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"an object of type {type(value).__name__}"


@torch.no_grad()
def check_results(kind: str, reference: Reference, split: MappedSplit) -> None:
    """Raise an error if densities and predictions of a few rows are not what they have to be."""
    layout = split.space.layout
    n_features = getattr(reference, "n_features", None)
    if n_features != layout.n_points:
        raise_reference_error(
            kind,
            reference,
            f"n_features is {n_features!r}, but the rows of this table are points of "
            f"{layout.n_points} dimension(s)",
        )
    rows = np.nan_to_num(split.valid.X[:_ROWS_TO_TRY])  # any values will do for missing ones
    points = torch.from_numpy(layout.embed_array(rows))
    logsnr = torch.linspace(*_LOGSNRS_TO_TRY, len(rows), dtype=torch.float64)
    log_prob = reference.log_prob(torch.from_numpy(rows))
    check_tensor(kind, reference, "log_prob", log_prob, points.shape[:1])
    noise = reference.denoise(signal_scale(logsnr)[:, None] * points, logsnr)
    check_tensor(kind, reference, "denoise", noise, points.shape)


def check_tensor(
    kind: str, reference: Reference, method: str, value: object, shape: tuple[int, ...]
) -> None:
    """Raise an error if a value is not a tensor of finite doubles of a shape."""
    wanted = f"{method} must return a torch.float64 tensor of shape {tuple(shape)} for {shape[0]} "
    wanted += "rows in double precision"
    if not isinstance(value, Tensor):
        raise_reference_error(kind, reference, f"{wanted}, got {described(value)}")
    if value.dtype != torch.float64 or value.shape != shape:
        raise_reference_error(
            kind, reference, f"{wanted}, got {value.dtype} of shape {tuple(value.shape)}"
        )
    if not bool(value.isfinite().all()):
        wrong = "NaN" if bool(value.isnan().any()) else "infinite numbers"
        raise_reference_error(
            kind, reference, f"{method} must be finite on validation rows, got {wrong}"
        )


def check_range(kind: str, reference: Reference) -> None:
    """Raise an error if it is not known over which log-SNRs a reference matters."""
    if isinstance(reference, ContinuousReference):
        variances = reference.variance_range()
        if not are_two_numbers(variances) or not 0.0 < variances[0] <= variances[1]:
            wanted = "a positive least variance and a greatest one that is no less"
            raise_reference_error(
                kind, reference, f"variance_range must return {wanted}, got {variances!r}"
            )
    ends = reference.logsnr_range(0.0)
    if ends is not None and not are_two_numbers(ends):
        raise_reference_error(
            kind, reference, f"logsnr_range must return two finite numbers, got {ends!r}"
        )


def are_two_numbers(values: object) -> bool:
    """Return whether these are two finite numbers."""
    try:
        return len(values) == 2 and all(math.isfinite(value) for value in values)  # type: ignore
    except TypeError:
        return False


def raise_reference_error(kind: str, reference: Reference, what: str) -> NoReturn:
    """Raise the error of a reference that is not as it has to be."""
    name = type(reference).__name__
    raise ValueError(f"{kind}.fit returned a {name} that is not suitable for the table: {what}.")
