"""The mixture of references that is used for marginal and conditional densities.

Networks know rows that are complete.  References are distributions, of which all marginals and
conditionals are known in closed form, and so are those of a mixture of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.references import Reference, ReferenceMixture
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.optimism import fold_weights
from sk_itdiffusion._first.references.parts import log_sum
from sk_itdiffusion._first.references.reference_mixture import fitted_log_weights

__all__ = ["crossfitted_log_density", "fit_parts"]

Array = NDArray[np.float64]


def fit_parts(
    references: Mapping[str, Reference],
    names: Sequence[str],
    control: str,
    split: MappedSplit,
    most: int | None = None,
) -> ReferenceMixture:
    """Return the mixture of references that is used for marginal and conditional densities.

    Its weights maximise the likelihood of the validation rows.  If no rows are held out, which is
    if there are few and the plain reference is the only one, it is that.

    Parameters
    ----------
    references : mapping of str to Reference
        References by name.
    names : sequence of str
        Names of those that may be used, besides networks.
    control : str
        Name of the control variate, which is used if no others do.
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
    """Return log-densities of validation rows under mixtures that other folds have weighted.

    Parameters
    ----------
    parts : ReferenceMixture
        The mixture whose members are weighted.
    valid : WeightedRows
        Validation rows, each with an observed entry.
    in_counts : bool
        Whether weights are numbers of observations.

    Returns
    -------
    ndarray of shape (n_valid,)
        The log-densities.
    """
    folds = fold_weights(valid, in_counts)
    if len(parts.references) == 1 or len(folds) < 2:
        return log_likelihoods(parts, valid.X)
    scores = np.stack([log_likelihoods(reference, valid.X) for reference in parts.references])
    total = folds.sum(axis=0)
    log_density = np.zeros(len(valid))
    for fold in folds:
        here, others = fold > 0, total - fold
        left = others > 0
        log_weights = fitted_log_weights(scores[:, left], others[left] / others.sum())
        found = log_sum(scores[:, here] + log_weights[:, None])
        log_density[here] += fold[here] / total[here] * found
    return log_density
