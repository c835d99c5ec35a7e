"""The mixture of references that answers questions about parts of rows.

Networks know rows that are complete.  References are distributions, of which all marginals and
conditionals are known in closed form, and so are those of a mixture of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._fit.splitting import MappedSplit
from sk_itdiffusion._table.rows import WeightedRows
from sk_itdiffusion.references import Reference, ReferenceMixture
from sk_itdiffusion.references.judging import log_likelihoods
from sk_itdiffusion.references.optimism import fold_weights

__all__ = ["crossfitted_log_density", "fit_parts"]

Array = NDArray[np.float64]
#: Steps, at most, in which the proportions are found, and the gain in nats of the last one.
MAX_STEPS, LEAST_GAIN = 500, 1e-9


def fit_parts(
    references: Mapping[str, Reference],
    names: Sequence[str],
    control: str,
    split: MappedSplit,
    most: int | None = None,
) -> ReferenceMixture:
    """Return the mixture of references that answers questions about parts of rows.

    Its weights maximise the likelihood of the validation rows.  If no rows are held out, which is
    if there are few and the plain reference is the only one, it is that.

    Parameters
    ----------
    references : mapping of str to Reference
        References by name.
    names : sequence of str
        Names of those that may take part, beside networks.
    control : str
        Name of the control variate, which takes part if no others do.
    split : MappedSplit
        Training and validation rows.
    most : int or None, default=None
        Validation rows that are used at most.

    Returns
    -------
    ReferenceMixture
        The mixture.
    """
    chosen = [name for name in names if name in references]
    if not split.judged and len(chosen) > 1:
        chosen = [control]
    members = [references[name] for name in chosen or [control]]
    if len(members) == 1:
        return ReferenceMixture([1.0], members)
    valid = split.valid.take(np.arange(min(most or len(split.valid), len(split.valid))))
    return ReferenceMixture.fit(members, valid)


def crossfitted_log_density(parts: ReferenceMixture, valid: WeightedRows, in_counts: bool) -> Array:
    """Return log-densities of validation rows under mixtures that other folds have weighted."""
    scores = np.stack([log_likelihoods(reference, valid.X) for reference in parts.references])
    folds = fold_weights(valid, in_counts)
    total = folds.sum(axis=0)
    if len(scores) == 1 or len(folds) < 2:
        return log_mixture(scores, np.asarray(parts.weights))
    log_density = np.zeros(len(valid))
    for fold in folds:
        here, others = fold > 0, total - fold
        weights = proportions(scores, others / others.sum())
        log_density[here] += fold[here] / total[here] * log_mixture(scores[:, here], weights)
    return log_density


def log_mixture(scores: Array, weights: Array) -> Array:
    """Return the log-densities (n,) of a mixture of references with log-densities (K, n)."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.logaddexp.reduce(scores + np.log(weights)[:, None], axis=0))


def proportions(scores: Array, share: Array) -> Array:
    """Return the weights (K,) that maximise the mean log-density over rows of shares (n,)."""
    weights = np.full(len(scores), 1.0 / len(scores))
    relative = np.exp(scores - scores.max(axis=0))
    before = -math.inf
    for _ in range(MAX_STEPS):
        density = weights @ relative
        after = float(share @ np.log(density))
        weights = weights * (relative @ (share / density))
        if after - before < LEAST_GAIN:
            break
        before = after
    return np.asarray(weights / weights.sum())
