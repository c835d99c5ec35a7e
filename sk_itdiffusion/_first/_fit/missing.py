"""Models of rows with missing entries, in place of the fifth stage of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.experts import Experts, Mixing
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.parts import crossfitted_log_density, fit_parts
from sk_itdiffusion._first._fit.pattern_stacking import fit_pattern_stack
from sk_itdiffusion._first._fit.patterns import PatternStack, conditional_log_density
from sk_itdiffusion._first._fit.selection import FittedReferences
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._fit.stacking import variance_of_reference
from sk_itdiffusion._first._fit.validation import mean_and_std
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references import ReferenceMixture
from sk_itdiffusion._first.references.judging import mean_and_error

__all__ = ["model_of_parts"]

Array = NDArray[np.float64]
#: Validation rows that tell by how much networks are better than references.
MAX_ROWS_OF_GAIN = 200


def model_of_parts(
    experts: Experts,
    references: FittedReferences,
    names: Sequence[str],
    split: MappedSplit,
    seen_constants: Array,
    settings: FitSettings,
    history: Sequence[dict[str, float]] = (),
) -> TableModel:
    """Return the model of rows with missing entries: a mixture of references, or networks too.

    Parameters
    ----------
    experts : Experts
        The references, and networks with roles if there are any.
    references : FittedReferences
        What follows from them.
    names : sequence of str
        Names of those that are used.
    split : MappedSplit
        Training and validation rows.
    seen_constants : ndarray of shape (n_columns,)
        Shares of the rows of the fit in which the columns are observed.
    settings : FitSettings
        Parameters.
    history : sequence of dict, default=()
        Bounds of each epoch of the training.

    Returns
    -------
    TableModel
        The model, whose entropy is the mean negative log-density of the observed parts of the
        validation rows.
    """
    parts = fit_parts(experts.references, names, references.control, split)
    entropy = entropy_std = math.nan
    if split.judged:
        valid = split.valid
        log_density = crossfitted_log_density(parts, valid, experts.space.is_discrete)
        log_density += split.valid_log_slope + terms_of_rows(experts, valid.X, seen_constants)
        counted = experts.space.is_discrete or valid.source is not None
        n = float(valid.weight.sum()) if counted else None
        variance = variance_of_reference(parts, split, n)
        mean, entropy_std = mean_and_std(log_density, valid, n, variance)
        entropy = -mean
    used = [name for name in names if name in experts.references] or [references.control]
    mixing = Mixing(references.control, np.empty(0), used, np.empty((0, len(used))))
    without = settings.model.beyond_the_grid
    patterns, gains = fit_pattern_stack(experts, parts, names, split, without)
    if patterns is not None:
        gain, gain_std = gain_on_observed(patterns, experts, parts, split.valid)
        entropy, entropy_std = entropy - gain, math.hypot(entropy_std, gain_std)
    return TableModel.of(
        experts,
        mixing,
        rule=None,
        entropy=entropy,
        entropy_std=entropy_std,
        history=list(history),
        parts=parts,
        has_missing=True,
        patterns=patterns,
        pattern_gains=gains,
    )


def gain_on_observed(
    patterns: PatternStack, experts: Experts, parts: ReferenceMixture, valid: WeightedRows
) -> tuple[float, float]:
    """Return by how much networks raise the mean log-density of what is observed of rows.

    Returns
    -------
    mean, std : float
        The difference of the means, in nats, and its standard error.
    """
    rows = valid.take(np.arange(min(len(valid), MAX_ROWS_OF_GAIN)))
    seen = ~np.isnan(rows.X)
    target, given = patterns.with_drivers_given(seen, np.zeros_like(seen))
    has_say = patterns.has_say(target, given)
    gain = np.zeros(len(rows))
    if has_say.any():
        asked = rows.X[has_say], target[has_say], given[has_say]
        tolerance = Tolerance.usual(rows.X.shape[1], False)
        found, _ = patterns.log_densities(experts, *asked, tolerance)
        gain[has_say] = found - conditional_log_density(parts, *asked)
    return mean_and_error(gain, rows.share, source=rows.unit)


def terms_of_rows(experts: Experts, rows: Array, seen_constants: Array) -> Array:
    """Return what log-densities of rows have besides those of the references, (n,), in nats.

    Of columns without variation, which the model's rows lack, it is the mean over the fit.
    """
    space = experts.space
    seen = np.tile(seen_constants, (len(rows), 1))
    seen[:, space.in_rows] = ~np.isnan(rows)
    return experts.terms_of_parts(seen)
