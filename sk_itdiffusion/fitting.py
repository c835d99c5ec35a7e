"""How the model behind the estimators is fitted.

Rows are grouped and split, the columns are standardised and mapped, references are fitted, the
network is trained on what they lack, and at each log-SNR the experts are stacked by their
validation errors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion.dequantize import Dequantizer
from sk_itdiffusion.experts import choose_marginal_map, marginal_kinds, mixture_regularization
from sk_itdiffusion.groups import RowGroups
from sk_itdiffusion.model import Seeds, TableModel
from sk_itdiffusion.networks import (
    SHARE_OF_TRAINING,
    bound_history,
    networks_to_train,
    train_networks,
    warn_if_still_improving,
)
from sk_itdiffusion.parallel import run_interruptibly
from sk_itdiffusion.progress import current_progress, stretch_of_progress
from sk_itdiffusion.references import Reference
from sk_itdiffusion.rows import WeightedRows, group_rows
from sk_itdiffusion.schema import (
    check_bounds,
    check_varying_columns,
    groups_of_copies,
    in_counts,
    make_dequantizer,
    n_observations,
    noise_steps,
    noisy_copies,
    table_space,
    warn_about_columns,
    warn_of_few_rows,
)
from sk_itdiffusion.selection import (
    KERNELS,
    N_NODES,
    choose_control,
    choose_preconditioner,
    fit_references,
    kernel_reference,
    kernels_may_be_experts,
    law_beyond_bounds,
    model_range,
    with_nodes_for_kernels,
)
from sk_itdiffusion.settings import FitSettings
from sk_itdiffusion.space import ColumnKind, TableSpace
from sk_itdiffusion.splitting import MappedSplit, split_rows
from sk_itdiffusion.stacking import finish_stacking
from sk_itdiffusion.validation import Optimism

__all__ = []

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]


def fit_table_model(
    values: Array,
    weight: Array,
    kinds: Sequence[ColumnKind],
    settings: FitSettings,
    random_state: np.random.RandomState,
    previous: TableModel | None = None,
    given_space: TableSpace | None = None,
    groups: NDArray[np.intp] | None = None,
) -> TableModel:
    """Return a model fitted to rows.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_columns)
        Finite numbers of continuous columns, codes of discrete ones.
    weight : ndarray of shape (n_samples,)
        Non-negative weights.
    kinds : sequence of ColumnKind
        Kinds of the columns.
    settings : FitSettings
        Parameters.
    random_state : RandomState
        Source of all randomness.
    previous : TableModel or None, default=None
        Model whose maps and references are kept and whose network is trained further.
    given_space : TableSpace or None, default=None
        Space of other models with the same columns, if they shall be combined.
    groups : ndarray of shape (n_samples,), int, or None, default=None
        Groups of the rows, of each of which all rows train or all validate.

    Returns
    -------
    TableModel
        The fitted model.
    """
    seeds = Seeds.draw(random_state) if previous is None else previous.seeds
    grouped = group_rows(values, weight)
    counted = in_counts(grouped, weight)
    dequantizer = make_dequantizer(counted, settings, seeds, previous)
    known_space = given_space if previous is None else previous.space
    check_bounds(grouped.X, settings, dequantizer, known_space)
    if dequantizer is not None:
        copies = noisy_copies(counted, dequantizer, settings)
        grouped = copies.rows
    n_weighted = float(counted.weight.sum())
    space, report = table_space(grouped, kinds, settings, n_weighted, dequantizer)
    if given_space is not None:
        space = given_space
    check_varying_columns(space, settings, previous)
    warn_about_columns(report, space, dequantizer, settings.feature_names)
    if space.is_discrete:
        grouped = counted
    belonging = None
    if groups is not None:
        source = grouped if dequantizer is None else counted
        belonging = RowGroups.of(source, values, weight, groups)
        if dequantizer is not None:
            belonging = groups_of_copies(belonging, counted, copies)
    if space.is_empty:
        return _empty_model(grouped, space, settings, seeds, dequantizer)
    step = report.step[space.continuous]
    if dequantizer is not None:
        step = noise_steps(dequantizer, space)
    warn_of_few_rows(n_observations(grouped, space), space, settings)
    if previous is not None:
        step = step * space.standardizer.scale / previous.space.standardizer.scale
        rows = grouped.with_values(previous.space.standardized(grouped.X))
        split = MappedSplit.behind(
            previous.space, *split_rows(rows, previous.space, settings, seeds.split, belonging)
        )
        # Its kernels may stand on rows that now validate.
        references = {name: r for name, r in previous.references.items() if name != KERNELS}
        logsnr, preconditioner = previous.logsnr[:N_NODES], previous.preconditioner
    else:
        rows = grouped.with_values(space.standardized(grouped.X))
        train_rows, valid_rows = split_rows(rows, space, settings, seeds.split, belonging)
        current_progress().show(0.0, "references")
        split, references = fit_analytic_side(
            space, train_rows, valid_rows, step, settings, seeds.mixtures
        )
        preconditioner = choose_preconditioner(references, settings)
        logsnr = np.linspace(*model_range(split, references, step), N_NODES)
    references |= kernel_reference(split, references, step, settings)
    logsnr = with_nodes_for_kernels(logsnr, references, step)
    if previous is not None and previous.control in references and KERNELS not in references:
        control = previous.control
    else:
        control = choose_control(references, split.valid, settings)
    model = TableModel(
        space=split.space,
        references=references,
        control=control,
        preconditioner=preconditioner,
        nets={},
        logsnr=logsnr,
        expert_names=(),
        weights=np.empty((len(logsnr), 0)),
        rule=None,
        seeds=seeds,
        device=settings.device,
        n_fits=1 if previous is None else previous.n_fits + 1,
        dequantizer=dequantizer,
        has_images=settings.has_images,
        beyond=law_beyond_bounds(split.space, rows, settings)
        if previous is None
        else previous.beyond,
    )
    model.nets = train_networks(
        networks_to_train(settings, n_observations(rows, space)),
        model,
        split,
        settings,
        previous,
    )
    if model.nets:
        model.history = bound_history(next(iter(model.nets.values())))
        warn_if_still_improving(model.nets.values(), settings)
    with stretch_of_progress(SHARE_OF_TRAINING if model.nets else 0.0, 1.0):
        finish_stacking(model, split, settings)
    logger.info(
        "fitted to %d rows: control variate %r of %s, %r maps, log-SNRs from %.2f to %.2f, "
        "validation bound %.4f nats per row",
        len(rows),
        model.control,
        sorted(model.references),
        model.space.marginal_map.kind,
        *model.logsnr[[0, -1]],
        model.entropy,
    )
    return model


def fit_analytic_side(
    space: TableSpace,
    train_rows: WeightedRows,
    valid_rows: WeightedRows,
    step: Array,
    settings: FitSettings,
    seed: int,
) -> tuple[MappedSplit, dict[str, Reference]]:
    """Return the mapped rows and the references; the first of several processes finds them."""

    def mapped_and_fitted(stop: threading.Event) -> tuple[MappedSplit, dict[str, Reference]]:
        split = _map_columns(space, train_rows, valid_rows, step, settings, seed)
        references, optimism = fit_references(split, step, settings, seed, stop, split.judged)
        return replace(split, optimism=replace(split.optimism, mixture=optimism)), references

    if settings.processes.size == 1:
        return run_interruptibly(mapped_and_fitted)

    def found_by_one() -> tuple[TableSpace, dict[str, Reference], Optimism]:
        split, references = run_interruptibly(mapped_and_fitted)
        return split.space, references, split.optimism

    space, references, optimism = settings.processes.from_first(found_by_one)
    split = MappedSplit.behind(space, train_rows, valid_rows)
    return replace(split, optimism=optimism), references


def _map_columns(
    space: TableSpace,
    train_rows: WeightedRows,
    valid_rows: WeightedRows,
    step: Array,
    settings: FitSettings,
    seed: int,
) -> MappedSplit:
    """Return the rows behind the chosen marginal map."""
    if space.is_mapped:
        return MappedSplit.behind(space, train_rows, valid_rows)
    kinds = marginal_kinds(settings.marginals)
    if isinstance(settings.reference, Reference) or valid_rows is train_rows:
        kinds = kinds[:1]
    regularization = mixture_regularization(step)
    is_choice = space.bounds is not None and settings.bounds is None
    spaces = [space, replace(space, bounds=None)] if is_choice else [space]
    resolution = None
    if kernels_may_be_experts(space, settings):
        resolution = float(step.max(initial=0.0))
    return choose_marginal_map(
        kinds, spaces, train_rows, valid_rows, regularization, seed, resolution
    )


def _empty_model(
    grouped: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    seeds: Seeds,
    dequantizer: Dequantizer | None,
) -> TableModel:
    """Return the model of rows without columns that vary."""
    if dequantizer is not None:
        lattice = dequantizer.rounded(space.constant_values[None])[0]
        space = replace(space, constant_values=lattice)
    model = TableModel(
        space=space,
        references={},
        control="",
        preconditioner="",
        nets={},
        logsnr=np.empty(0),
        expert_names=(),
        weights=np.empty((0, 0)),
        rule=None,
        seeds=seeds,
        device=settings.device,
        dequantizer=dequantizer,
    )
    model.entropy = -float(model.log_density(space.constant_values[None])[0][0])
    model.entropy_std = 0.0
    return model
