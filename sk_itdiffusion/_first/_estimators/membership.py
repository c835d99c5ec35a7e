"""Which estimators can be members of an ensemble, and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.base import clone
from sklearn.ensemble._base import _set_random_states
from sklearn.exceptions import NotFittedError

from sk_itdiffusion._first._estimators.categorical import CategoricalEstimator
from sk_itdiffusion._first._estimators.table import TableEstimator
from sk_itdiffusion._first._fit.ensemble_model import incompatible
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first.references import ContinuousReference

__all__ = [
    "check_categories",
    "check_dequantizers",
    "check_devices",
    "check_integrate",
    "checked_member",
    "fixes_space",
    "is_dropped",
    "unfitted_copy",
]

DROP = "drop"


def image_shape_of(member: TableEstimator) -> Sequence[int] | None:
    """Return the shape of the images that a member takes, or None."""
    given = getattr(getattr(member, "denoiser", None), "image_shape", None)
    found: Sequence[int] | None = getattr(member, "image_shape", None) or given
    return found


def is_dropped(member: object) -> bool:
    """Return whether a member is left out."""
    return isinstance(member, str) and member == DROP


def checked_member(name: str, member: object) -> TableEstimator:
    """Return a member, or raise an error that names it if it cannot be one."""
    if not isinstance(member, TableEstimator):
        what = f"the class {member.__name__}" if isinstance(member, type) else repr(member)
        raise TypeError(
            f"The member {name!r} is {what}; members are instances of IMMSEDensity, "
            "IMMSEDiscreteDensity or IMMSEMixedDensity, or FrozenEstimators of them. Transform X "
            "before the ensemble, as in a Pipeline that ends with it."
        )
    return member


def check_member_is_fitted(name: str, member: TableEstimator) -> None:
    """Raise an error that names the member if it is not fitted."""
    if not hasattr(member, "_model"):
        raise NotFittedError(
            f"The member {name!r} is not fitted; fit it, or let the ensemble do it: with "
            "prefit=False, and without FrozenEstimator."
        )


def check_one_kind(members: Mapping[str, TableEstimator]) -> None:
    """Raise an error if some members read categories and others numbers."""
    reads_categories = {name: isinstance(m, CategoricalEstimator) for name, m in members.items()}
    first = next(iter(members))
    for name, own in reads_categories.items():
        if own != reads_categories[first]:
            raise ValueError(
                f"The members {name!r} ({type(members[name]).__name__}) and {first!r} "
                f"({type(members[first]).__name__}) cannot be combined: one reads numbers, the "
                "other categories. IMMSEMixedDensity does both."
            )


def check_categories(name: str, member: TableEstimator, first: str, other: TableEstimator) -> None:
    """Raise an error if two members do not have the same kinds and categories of columns."""
    if not isinstance(member, CategoricalEstimator) or not isinstance(other, CategoricalEstimator):
        return
    for ours, theirs in zip(member._encoder.columns, other._encoder.columns, strict=True):
        same_categories = (ours.categories is None) == (theirs.categories is None) and (
            ours.categories is None
            or theirs.categories is None
            or list(ours.categories) == list(theirs.categories)
        )
        if not same_categories or ours.kind != theirs.kind:
            raise ValueError(
                incompatible(name, first, f"have other categories in the column {ours.label!r}")
            )
        if (ours.unseen is None) != (theirs.unseen is None):
            raise ValueError(
                f"The members {name!r} and {first!r} do not agree whether other values than the "
                f"categories of the column {ours.label!r} are an error. Fit them with the same "
                "handle_unknown and categories."
            )


def check_devices(models: Mapping[str, TableModel]) -> None:
    """Raise an error if members are on different devices."""
    devices = {name: str(model.device) for name, model in models.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"All members must be on one device, got {devices}.")


def check_integrate(models: Mapping[str, TableModel]) -> None:
    """Raise an error if members were fitted to rows with missing entries, and have no denoisers."""
    lacking = [name for name, model in models.items() if model.has_missing]
    if lacking:
        raise ValueError(
            f"The members {lacking} were fitted to rows with missing entries, which ensembles do "
            "not support. Fit them to complete rows."
        )


def check_dequantizers(models: Mapping[str, TableModel], first: str) -> None:
    """Raise an error if members dequantise the columns differently."""

    def steps(dequantizer: Dequantizer | None) -> list[float] | None:
        return None if dequantizer is None else dequantizer.step.tolist()

    for name, model in models.items():
        if steps(model.dequantizer) != steps(models[first].dequantizer):
            raise ValueError(
                f"The members {name!r} and {first!r} add noise of different width to the columns. "
                "Set dequantize to the same steps in all members."
            )


def unfitted_copy(member: TableEstimator, random_state: np.random.RandomState) -> TableEstimator:
    """Return an unfitted copy of a member, with a seed if it has none."""
    copied: TableEstimator = clone(member)
    if copied.random_state is None:
        _set_random_states(copied, random_state)
    return copied


def fixes_space(member: TableEstimator) -> bool:
    """Return whether a member cannot be fitted in any space: what it is given has its own."""
    return getattr(member, "denoiser", None) is not None or isinstance(
        member.reference, ContinuousReference
    )
