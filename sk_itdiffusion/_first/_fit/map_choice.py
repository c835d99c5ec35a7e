"""Which maps the continuous columns are seen through, chosen on validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.schema import Schema
from sk_itdiffusion._first._fit.selection import demand_of, families_of
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._fit.validation import Optimism
from sk_itdiffusion._first._immse.cubature import Keys
from sk_itdiffusion._first._runtime.parallel import map_in_workers, run_interruptibly
from sk_itdiffusion._first._table.marginals import (
    MARGINAL_KINDS,
    ColumnMap,
    first_map,
    fit_marginal_map,
    heavy_columns,
)
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.space import TableSpace
from sk_itdiffusion._first.references import ContinuousReference, GaussianReference, Reference
from sk_itdiffusion._first.references.families import ReferenceFamily
from sk_itdiffusion._first.references.families.mixture import is_affordable, mixture_regularization
from sk_itdiffusion._first.references.judging import log_likelihoods, mean_and_error, rows_to_fit
from sk_itdiffusion._first.references.mixture_fit import fit_gaussian_mixture
from sk_itdiffusion._first.references.optimism import choice_optimism

__all__ = ["choose_map"]

Array = NDArray[np.float64]
_COMPONENTS_FOR_MAPS = (6, 20)
_EM_STEPS_FOR_MAPS = 60
_MAX_ROWS_FOR_MAPS = 5_000
#: Columns up to which rows with missing entries are no fewer.
_COLUMNS_WITH_ALL_ROWS_FOR_MAPS = 3
_MAX_ROWS_TO_FIT_MAPS = 50_000


def map_split(
    kind: str, space: TableSpace, train: WeightedRows, valid: WeightedRows
) -> MappedSplit:
    """Return standardised rows behind the map of one kind, fitted to the training rows."""
    sample = _rows_for_maps(space, train)
    before = _first_maps(space, sample)
    marginal_map = fit_marginal_map(kind, sample.X, sample.weight, before=before)
    return MappedSplit.behind(space.behind(marginal_map), train, valid)


def tame_split(
    plain: MappedSplit, space: TableSpace, train: WeightedRows, valid: WeightedRows
) -> MappedSplit:
    """Return rows behind the same kind of map, but columns with heavy tails by their quantiles.

    Validation rows help to tell whether tails are heavy: no mean over them can tell.
    """
    kind = plain.space.marginal_map.kind
    sample, more = (_rows_for_maps(space, rows) for rows in (train, valid))
    X, weight = np.concatenate([sample.X, more.X]), np.append(sample.weight, more.weight)
    heavy = heavy_columns(plain.space.marginal_map, X, weight)
    if kind == "quantile" or not any(heavy):
        return plain
    kind = "quantile" if all(heavy) else kind
    before = _first_maps(space, sample)
    marginal_map = fit_marginal_map(kind, sample.X, sample.weight, heavy, before)
    return MappedSplit.behind(space.behind(marginal_map), train, valid)


def _rows_for_maps(space: TableSpace, rows: WeightedRows) -> WeightedRows:
    """Return the continuous columns of as many rows as maps are fitted to."""
    # Canonical order is random in all but name, so the first rows are a fair sample.
    sample = rows.take(np.arange(min(len(rows), _MAX_ROWS_TO_FIT_MAPS)))
    return sample.columns(space.layout.n_continuous)


def _first_maps(space: TableSpace, rows: WeightedRows) -> list[ColumnMap | None]:
    """Return the maps of columns that are standardised around a bound; None for the others."""
    bounds = space.standardized_bounds()
    return [
        first_map(np.ascontiguousarray(rows.X[:, j]), rows.weight, *map(float, bounds[j]))
        if j in space.anchored
        else None
        for j in range(space.layout.n_continuous)
    ]


def choose_marginal_map(
    kinds: Sequence[str],
    spaces: Sequence[TableSpace],
    train: WeightedRows,
    valid: WeightedRows,
    regularization: float,
    seed: int,
    families: Sequence[ReferenceFamily] = (),
    resolution: float = 0.0,
) -> MappedSplit:
    """Return the rows behind the map whose Gaussian or mixture validates best.

    A mixture is a cheap guide: where a map makes the mixture better it makes the network better.
    A map other than plain standardisation must gain more than one standard error.  Where a map
    leaves tails heavy, mean and error say little, and columns are mapped by their quantiles unless
    it gains more than two.

    Parameters
    ----------
    kinds : sequence of str
        Kinds of maps to choose from; the first is preferred.
    spaces : sequence of TableSpace
        Spaces whose continuous columns are mapped, which differ in their bounds only; the others
        must gain more than two standard errors.
    train, valid : WeightedRows
        Standardised rows.
    regularization : float
        Added to the mixture's variances.
    seed : int
        Seed of the mixture.
    families : sequence of ReferenceFamily, default=()
        Families that are used in the fit, and may be guides too.
    resolution : float, default=0.0
        Largest lattice step of a column in standard deviations; 0 if there is none.

    Returns
    -------
    MappedSplit
        The chosen map and the mapped rows.
    """
    if len(kinds) * len(spaces) == 1 or spaces[0].layout.n_continuous == 0:
        return map_split(kinds[0], spaces[0], train, valid)
    groups = [_candidates(kinds, space, train, valid) for space in spaces]
    splits = [split for group in groups for split, _ in group]
    scores = map_in_workers(
        lambda split: _guide_score(split, regularization, seed, families, resolution), splits, "cpu"
    )
    least = [n_errors for group in groups for _, n_errors in group]

    ends = np.cumsum([0, *map(len, groups)]).tolist()

    def choose(scores: Array, share: Array, source: Keys | None) -> int:
        """Return the number of the best map behind the best space."""

        def best(numbers: Sequence[int], least: Sequence[float]) -> int:
            chosen = numbers[0]
            for number in numbers[1:]:
                mean, error = mean_and_error(scores[number] - scores[chosen], share, source=source)
                if mean > least[number] * error:
                    chosen = number
            return chosen

        winners = [best(range(a, b), least) for a, b in pairwise(ends)]
        return best(winners, [2.0] * len(scores))

    guided, plain = (np.stack(part) for part in zip(*scores, strict=True))
    optimism = Optimism(
        plain=choice_optimism(guided, valid, choose, plain),
        others=choice_optimism(guided, valid, choose),
    )
    return replace(splits[choose(guided, valid.share, valid.unit)], optimism=optimism)


def _candidates(
    kinds: Sequence[str], space: TableSpace, train: WeightedRows, valid: WeightedRows
) -> list[tuple[MappedSplit, float]]:
    """Return rows behind maps, and by how many standard errors each must beat those before it."""
    plain = [map_split(kind, space, train, valid) for kind in kinds]
    tame = [tame_split(split, space, train, valid) for split in plain]
    wild = [split for split in plain if all(split is not other for other in tame)]
    return [(split, 1.0) for split in tame] + [(split, 2.0) for split in wild]


def _guide_score(
    split: MappedSplit,
    regularization: float,
    seed: int,
    families: Sequence[ReferenceFamily],
    resolution: float,
) -> tuple[Array, Array]:
    """Return the validation rows' log-likelihood under the best of a few quick references.

    Besides it is that under the first of them, a single Gaussian.
    """
    random_state = np.random.RandomState(seed)
    train = rows_to_fit(split.continuous_train, _MAX_ROWS_FOR_MAPS, _COLUMNS_WITH_ALL_ROWS_FOR_MAPS)
    guides: list[Reference] = [GaussianReference.fit(train.X, train.weight)]
    guides += [
        fit_gaussian_mixture(
            train.X,
            n_components,
            random_state,
            regularization,
            _EM_STEPS_FOR_MAPS,
            train.weight,
            split.largest_variances,
        )
        for n_components in _COMPONENTS_FOR_MAPS
        if (train.n_observations or len(train)) >= 10 * n_components
        and is_affordable(n_components, train.X.shape[1])
    ]
    plain = guides[-1]
    complete = split.continuous_train.complete
    more = (family.guide(complete, plain, resolution) for family in families if len(complete))
    guides += [guide for guide in more if guide is not None]
    share = split.valid.share
    valid = split.continuous_valid.X
    scores = [log_likelihoods(guide, valid) + split.valid_log_slope for guide in guides]
    return max(scores, key=lambda score: float(share @ score)), scores[0]


def marginal_kinds(marginals: str) -> Sequence[str]:
    """Return the kinds of maps that a parameter value allows."""
    return MARGINAL_KINDS if marginals == "auto" else (marginals,)


def choose_map(
    schema: Schema, train: WeightedRows, valid: WeightedRows, settings: FitSettings, seed: int
) -> MappedSplit:
    """Return standardised rows after the maps that the settings ask for.

    Parameters
    ----------
    schema : Schema
        What the columns are.
    train, valid : WeightedRows
        Standardised rows, the same if they are too few to be divided.
    settings : FitSettings
        Parameters.
    seed : int
        Seed of what guides the choice.

    Returns
    -------
    MappedSplit
        The mapped rows.
    """
    space = schema.space
    if space.is_mapped:
        return MappedSplit.behind(space, train, valid)
    kinds = marginal_kinds(settings.model.marginals)
    if isinstance(settings.model.reference, ContinuousReference) or valid is train:
        kinds = kinds[:1]
    is_choice = space.bounds is not None and settings.model.bounds is None
    spaces = [space, replace(space, bounds=None)] if is_choice else [space]
    families = families_of(settings.model.families, schema, demand_of(settings))
    regularization = mixture_regularization(schema.resolution)

    def mapped() -> MappedSplit:
        return run_interruptibly(
            lambda _: choose_marginal_map(
                kinds, spaces, train, valid, regularization, seed, families, schema.resolution
            )
        )

    if settings.runtime.processes.size == 1:
        return mapped()

    def found_by_one() -> tuple[TableSpace, Optimism]:
        split = mapped()
        return split.space, split.optimism

    chosen, optimism = settings.runtime.processes.from_first(found_by_one)
    return replace(MappedSplit.behind(chosen, train, valid), optimism=optimism)
