"""The analytic references of a model, chosen on validation rows: the third stage of a fit."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.grids import (
    N_NODES,
    category_logsnr_range,
    lowest_with_given,
    model_range,
    with_more_nodes,
)
from sk_itdiffusion._first._fit.reference_check import check_reference
from sk_itdiffusion._first._fit.schema import Schema
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._runtime.parallel import run_interruptibly
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references import ContinuousReference, Reference
from sk_itdiffusion._first.references.families import (
    BUILT_IN_FAMILIES,
    Demand,
    FamilyContext,
    ReferenceFamily,
)
from sk_itdiffusion._first.references.judging import log_likelihoods

__all__ = ["FittedReferences", "choose_control", "families_of", "fit_references"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FittedReferences:
    """The analytic references of a model, and what follows from them.

    Attributes
    ----------
    references : dict of str to Reference
        References by the names of their families.
    plain : str
        Name of the one of the fewest assumptions.
    preconditioner : str
        Name of the one that networks correct.
    control : str
        Name of the one that is the control variate.
    grid : ndarray of shape (n_nodes,)
        Nodes of the log-SNR between which networks are trained.
    logsnr : ndarray of shape (n_nodes,)
        Nodes of the weights: the grid, and more where a reference needs them.
    """

    references: dict[str, Reference]
    plain: str
    preconditioner: str
    control: str
    grid: Array
    logsnr: Array


def demand_of(settings: FitSettings) -> Demand:
    """Return what the settings ask of the families of references."""
    given = isinstance(settings.model.reference, ContinuousReference)
    return Demand(
        reference=None if given else str(settings.model.reference),
        automatic=settings.model.experts == "auto",
        names=(*settings.model.asked, settings.model.preconditioner),
        with_networks=settings.training.max_epochs > 0,
        ranks_training_rows=settings.model.ranks_training_rows,
    )


def families_of(
    families: Iterable[ReferenceFamily], schema: Schema, demand: Demand, judged: bool = True
) -> list[ReferenceFamily]:
    """Return the families that are used in a fit, in the order in which they are fitted.

    Parameters
    ----------
    families : iterable of ReferenceFamily
        Those that there are.
    schema : Schema
        What the columns are.
    demand : Demand
        What the fit asks for.
    judged : bool, default=True
        Whether validation rows evaluate them.

    Returns
    -------
    list of ReferenceFamily
        The families.
    """
    possible = {
        family.name: family
        for family in families
        if family.applies(schema) and (judged or not family.is_judged)
    }
    chosen: dict[str, ReferenceFamily] = {}

    def choose_family(family: ReferenceFamily) -> None:
        """Choose a family, after those that it needs and that are possible."""
        if family.name in chosen or family.name not in waiting:
            return
        waiting.remove(family.name)
        for name in family.needs:
            if name in possible:
                choose_family(possible[name])
        chosen[family.name] = family

    waiting = set(possible)
    for family in possible.values():
        if family.is_plain or demand.asks_for(family.name) or family.by_default(demand):
            choose_family(family)
    return list(chosen.values())


def fit_families(
    families: Iterable[ReferenceFamily], split: MappedSplit, context: FamilyContext, seed: int
) -> tuple[dict[str, Reference], dict[str, Array | float]]:
    """Return the references of families by name, and the optimism of their choice.

    Each family has a seed of its own, so that another one alongside it shifts no randomness.
    """
    references, optimism = dict(context.references), {}
    for family in families:
        own = np.random.RandomState(seed_of_family(seed, family.name))
        known = replace(context, references=MappingProxyType(dict(references)), random_state=own)
        # Families defined by the user know nothing of missing entries.
        taught = split if family in BUILT_IN_FAMILIES else split.complete
        found = family.fit_judged(taught, known)
        check_reference(family, found, taught)
        is_of_all = np.ndim(found.optimism) == 0 or len(taught.valid) == len(split.valid)
        optimism[family.name] = found.optimism if is_of_all else 0.0
        if found.reference is not None:
            references[family.name] = found.reference
    return references, optimism


def seed_of_family(seed: int, name: str) -> int:
    """Return the seed of a family."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1)[0])


def check_reference_is_given(n_continuous: int, settings: FitSettings) -> None:
    """Raise an error if an object that is not given is asked for as an expert."""
    given = isinstance(settings.model.reference, ContinuousReference)
    if n_continuous and not given and "reference" in settings.model.asked:
        raise ValueError(
            "experts names 'reference', which requires a ContinuousReference object as the "
            "parameter reference."
        )


@dataclass(frozen=True)
class EarlierReferences:
    """The references of an earlier fit that is gone on with.

    Attributes
    ----------
    references : mapping of str to Reference
        The references.
    preconditioner, control : str
        Names of those that the networks correct, and of the control variate.
    grid : ndarray of shape (n_nodes,)
        Nodes between which the networks were trained.
    """

    references: Mapping[str, Reference]
    preconditioner: str
    control: str
    grid: Array


def fit_references(
    split: MappedSplit,
    schema: Schema,
    settings: FitSettings,
    seed: int,
    earlier: EarlierReferences | None = None,
) -> tuple[MappedSplit, FittedReferences]:
    """Return the references that the settings ask for and that validation rows can evaluate.

    Parameters
    ----------
    split : MappedSplit
        Training and validation rows, after the maps of the columns.
    schema : Schema
        What the columns are.
    settings : FitSettings
        Parameters.
    seed : int
        Seed of the families.
    earlier : EarlierReferences or None, default=None
        References of an earlier fit, which are kept except for those that are built from its rows.

    Returns
    -------
    split : MappedSplit
        The same rows, with the optimism of the choice of the references.
    references : FittedReferences
        The references.
    """
    demand = demand_of(settings)
    families = families_of(settings.model.families, schema, demand, split.judged)
    kept: dict[str, Reference] = {}
    if earlier is not None:
        families = [family for family in families if family.holds_rows]
        held = {family.name for family in settings.model.families if family.holds_rows}
        kept = {name: r for name, r in earlier.references.items() if name not in held}
    else:
        check_reference_is_given(schema.n_continuous, settings)

    def fitted(stop: threading.Event) -> tuple[dict[str, Reference], dict[str, Array | float]]:
        context = FamilyContext(schema, kept, stop=stop)
        return fit_families(families, split, context, seed)

    references, optimism = settings.runtime.processes.from_first(lambda: run_interruptibly(fitted))
    fitted_now = families if earlier is not None else settings.model.families
    warn_of_absent_families(fitted_now, references, split, schema, settings)
    split = replace(split, optimism=replace(split.optimism, families=optimism))
    beyond = settings.model.beyond_the_grid
    coarse = {name: r for name, r in references.items() if name not in beyond}
    if settings.model.has_missing and not settings.model.has_roles:  # nothing is integrated
        grid = np.empty(0)
        preconditioner = plain_reference(references, settings.model.families)
    elif earlier is None:
        layout = split.space.layout
        rows = split.rows_to_embed
        low, high = model_range(coarse.values(), layout, rows, schema.resolution)
        preconditioner = choose_preconditioner(coarse, settings)
        if settings.model.has_roles:
            preconditioner = plain_reference(references, settings.model.families)
            if layout.variables:
                low = min(low, lowest_with_given(category_logsnr_range(layout, rows)[0]))
        grid = np.linspace(low, high, N_NODES)
    else:
        grid, preconditioner = earlier.grid, earlier.preconditioner
    if earlier is not None and earlier.control in references and references.keys() == kept.keys():
        control = earlier.control
    else:
        control = choose_control(references, split.valid, settings)
    fine = [references[name] for name in references if name in beyond]
    return split, FittedReferences(
        references,
        plain_reference(references, settings.model.families),
        preconditioner,
        control,
        grid,
        with_more_nodes(grid, fine, schema.resolution) if len(grid) else grid,
    )


def warn_of_absent_families(
    families: Iterable[ReferenceFamily],
    references: Mapping[str, Reference],
    split: MappedSplit,
    schema: Schema,
    settings: FitSettings,
) -> None:
    """Warn of families that are passed as objects but have no reference, and say why."""
    for family in families:
        name = family.name
        if name in references or name not in settings.model.passed:
            continue
        if settings.model.experts == "auto" or name in settings.model.experts:
            reason = family.why_absent(schema, demand_of(settings), split.judged)
            warn(f"The family {name!r} of experts is not used in this fit: {reason}.")


def plain_reference(
    references: Mapping[str, Reference], families: Iterable[ReferenceFamily]
) -> str:
    """Return the name of the reference of the fewest assumptions."""
    return next(f.name for f in families if f.is_plain and f.name in references)


def choose_control(
    references: Mapping[str, Reference], valid: WeightedRows, settings: FitSettings
) -> str:
    """Return the name of the control variate: the one asked for, else the most likely expert."""
    if isinstance(settings.model.reference, ContinuousReference):
        return "reference"
    if settings.model.reference in references:
        return str(settings.model.reference)
    plain = plain_reference(references, settings.model.families)
    if settings.model.reference != "auto":
        warn(
            f"reference={settings.model.reference!r} is not better than the simplest reference "
            f"({plain!r}) on the validation rows, or not possible for these columns; the "
            "simplest one is used.",
        )
        return plain
    stacked = [
        name
        for name in references
        if settings.model.experts == "auto" or name in settings.model.experts
    ]
    share = valid.share
    # Without references in the stack, the smoothest one: the others' errors vary far from the data.
    return max(
        stacked or [plain],
        key=lambda name: float(share @ log_likelihoods(references[name], valid.X)),
    )


def choose_preconditioner(references: Mapping[str, Reference], settings: FitSettings) -> str:
    """Return the name of the reference that the networks correct."""
    asked = settings.model.preconditioner
    plain = plain_reference(references, settings.model.families)
    if asked in references:
        return asked
    if asked != "independent":
        warn(
            f"preconditioner={asked!r} is not better than {plain!r} on the validation rows, or "
            "not possible for these columns; the latter is used.",
        )
    return plain
