"""Models of rows with missing entries, in place of the fifth stage of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._fit.experts import Experts, Mixing
from sk_itdiffusion._fit.model import TableModel
from sk_itdiffusion._fit.parts import crossfitted_log_density, fit_parts
from sk_itdiffusion._fit.selection import FittedReferences
from sk_itdiffusion._fit.splitting import MappedSplit
from sk_itdiffusion._fit.stacking import variance_of_reference
from sk_itdiffusion._fit.validation import mean_and_std

__all__ = ["model_of_parts"]

Array = NDArray[np.float64]


def model_of_parts(
    experts: Experts,
    references: FittedReferences,
    names: Sequence[str],
    split: MappedSplit,
    seen_constants: Array,
) -> TableModel:
    """Return the model of rows with missing entries, which is a mixture of references.

    Parameters
    ----------
    experts : Experts
        The references, without networks.
    references : FittedReferences
        What follows from them.
    names : sequence of str
        Names of those that are used.
    split : MappedSplit
        Training and validation rows.
    seen_constants : ndarray of shape (n_columns,)
        Shares of the rows of the fit in which the columns are observed.

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
    mixing = Mixing(references.control, references.logsnr, used, np.empty((0, len(used))))
    return TableModel.of(
        experts,
        mixing,
        rule=None,
        entropy=entropy,
        entropy_std=entropy_std,
        parts=parts,
        has_missing=True,
    )


def terms_of_rows(experts: Experts, rows: Array, seen_constants: Array) -> Array:
    """Return what log-densities of rows have besides those of the references, (n,), in nats.

    Of columns without variation, which the model's rows lack, it is the mean over the fit.
    """
    space = experts.space
    seen = np.tile(seen_constants, (len(rows), 1))
    seen[:, np.concatenate([space.continuous, space.discrete])] = ~np.isnan(rows)
    return experts.terms_of_parts(seen)
