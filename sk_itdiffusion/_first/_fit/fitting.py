"""How the model behind the estimators is fitted: a pipeline of stages.

1. `sk_itdiffusion._first._fit.schema`: rows are grouped, and the columns standardised;
2. `sk_itdiffusion._first._fit.splitting` and `sk_itdiffusion._first._fit.map_choice`: rows are divided for
   training and validation, which chooses the maps of the columns;
3. `sk_itdiffusion._first._fit.selection`: families of references are fitted;
4. `sk_itdiffusion._first._fit.networks`: networks are trained on what the references lack;
5. `sk_itdiffusion._first._fit.stacking`: at each log-SNR the experts are weighted by their validation
   errors.

Each stage returns a frozen object, and the model is built once, from all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import skorch
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.experts import Experts, Mixing, kind_of_expert
from sk_itdiffusion._first._fit.map_choice import choose_map
from sk_itdiffusion._first._fit.missing import model_of_parts
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.networks import (
    SHARE_OF_TRAINING,
    bound_history,
    networks_to_train,
    train_networks,
    warn_if_still_improving,
)
from sk_itdiffusion._first._fit.pattern_gains import text_of_gains
from sk_itdiffusion._first._fit.pattern_stacking import fit_pattern_stack
from sk_itdiffusion._first._fit.schema import (
    KnownColumns,
    Schema,
    n_observations,
    read_schema,
    warn_of_few_rows,
)
from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._fit.selection import EarlierReferences, fit_references
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import MappedSplit, split_rows, with_observations_apart
from sk_itdiffusion._first._fit.stacking import chosen_experts, stacked_model
from sk_itdiffusion._first._runtime.progress import current_progress, stretch_of_progress
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.space import ColumnKind, TableSpace

__all__ = ["fit_table_model"]

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
        Finite numbers of continuous columns, codes of discrete ones; NaN where they are missing.
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
    known = known_columns(previous, given_space)
    schema, observed = read_schema(values, weight, kinds, settings, seeds, known, groups)
    if schema.space.is_empty:
        return empty_model(schema, seeds)
    rows = observed.rows.with_values(schema.space.standardized(observed.rows.X))
    rows, own_groups = with_observations_apart(rows, observed.groups, schema.space)
    warn_of_few_rows(n_observations(rows, schema.space), schema.space, settings)
    train, valid = split_rows(rows, schema.space, settings, seeds.split, own_groups)
    if previous is None:
        current_progress().show(0.0, "references")
        split = choose_map(schema, train, valid, settings, seeds.mixtures)
    else:
        split = MappedSplit.behind(schema.space, train, valid)
    split, references = fit_references(
        split, schema, settings, seeds.mixtures, earlier_references(previous)
    )
    experts = Experts(
        space=split.space,
        references=references.references,
        plain=references.plain,
        preconditioner=references.preconditioner,
        nets={},
        grid=references.grid,
        seeds=seeds,
        device=settings.runtime.device,
        n_fits=1 if previous is None else previous.n_fits + 1,
        dequantizer=schema.dequantizer,
        has_images=schema.has_images,
    )

    def finished(
        so_far: Experts, now: FitSettings, history: Sequence[dict[str, float]]
    ) -> TableModel:
        """Return the model of experts, with the fifth stage."""
        if not now.model.has_missing:
            model = stacked_model(so_far, references, split, schema, now, history)
            return with_patterns(model, split, now)
        names = chosen_experts(so_far, references.control, split, schema, now)
        seen = observed.rows.share @ ~np.isnan(observed.rows.X)
        return model_of_parts(so_far, references, names, split, seen, now, history)

    experts, history = with_networks(experts, split, settings, rows, previous, finished)
    with stretch_of_progress(SHARE_OF_TRAINING if experts.nets else 0.0, 1.0):
        model = finished(experts, settings, history)
    extent = "none"
    if len(model.logsnr):
        extent = "from {:.2f} to {:.2f}".format(*model.logsnr[[0, -1]])
    logger.info(
        "fitted to %d rows: control variate %r of %s, %r maps, log-SNRs %s, "
        "validation bound %.4f nats per row",
        len(rows),
        model.control,
        sorted(model.references),
        model.space.marginal_map.kind,
        extent,
        model.entropy,
    )
    if model.pattern_gains:
        text = text_of_gains(model.pattern_gains)
        logger.info(text)
        current_progress().tell(text)
    return model


def known_columns(
    previous: TableModel | None, given_space: TableSpace | None
) -> KnownColumns | None:
    """Return what an earlier model, or the space of other models, tells of the columns."""
    if previous is not None:
        return KnownColumns(previous.space, previous.dequantizer)
    return None if given_space is None else KnownColumns(given_space, must_vary_alike=False)


def earlier_references(previous: TableModel | None) -> EarlierReferences | None:
    """Return the references of an earlier model."""
    if previous is None:
        return None
    return EarlierReferences(
        previous.references, previous.preconditioner, previous.control, previous.grid
    )


def with_networks(
    experts: Experts,
    split: MappedSplit,
    settings: FitSettings,
    rows: WeightedRows,
    previous: TableModel | None,
    finished: Callable[[Experts, FitSettings, Sequence[dict[str, float]]], TableModel],
) -> tuple[Experts, list[dict[str, float]]]:
    """Return the experts with the trained networks, and the bounds of each epoch."""

    def attributes_with(nets: dict[str, skorch.NeuralNet]) -> dict[str, Any]:
        """Return the attributes of an estimator whose fit ended with some nets."""
        assert settings.runtime.attributes_of is not None
        so_far = replace(experts, nets=nets)
        asked = settings.model.experts
        if asked != "auto":  # no warning that some are not trained yet
            there = set(map(kind_of_expert, so_far.experts()))
            asked = [expert for expert in asked if expert in there]
        history = bound_history(next(iter(nets.values())))
        return settings.runtime.attributes_of(
            finished(so_far, settings.changed(experts=asked), history)
        )

    names = networks_to_train(settings, n_observations(rows, split.space))
    nets = train_networks(names, experts, split, settings, previous, attributes_with)
    if not nets:
        return experts, []
    warn_if_still_improving(nets.values(), settings)
    return replace(experts, nets=nets), bound_history(next(iter(nets.values())))


def with_patterns(model: TableModel, split: MappedSplit, settings: FitSettings) -> TableModel:
    """Return the model with networks that answer for parts of rows, if they have roles."""
    if not settings.model.has_roles or model.parts is None:
        return model
    patterns, gains = fit_pattern_stack(
        model, model.parts, model.expert_names, split, settings.model.beyond_the_grid
    )
    return replace(model, patterns=patterns, pattern_gains=gains)


def empty_model(schema: Schema, seeds: Seeds) -> TableModel:
    """Return the model of rows without columns that vary, which has no validation bound."""
    experts = Experts(
        space=schema.space,
        references={},
        plain="",
        preconditioner="",
        nets={},
        grid=np.empty(0),
        seeds=seeds,
        device=schema.device,
        dequantizer=schema.dequantizer,
    )
    return TableModel.of(experts, Mixing("", np.empty(0), (), np.empty((0, 0))), rule=None)
