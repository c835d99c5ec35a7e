"""How many evaluations of the denoisers the scores of rows take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion._first._immse.cubature import row_keys
from sk_itdiffusion._first._immse.errors import Tolerance


def evaluations_of_rows(estimator: Any, X: Any, score_tol: float | None = None) -> NDArray[np.intp]:
    """Return the evaluations of the denoisers for each row; zero if there is nothing to integrate.

    ``score_tol`` is that of the estimator unless another one is given.
    """
    model, values = estimator._model, estimator._read(X)
    rule = model.rule
    found = np.zeros(len(values), dtype=np.intp)
    if rule is None:
        return found
    tolerance = estimator._tolerance() if score_tol is None else Tolerance(score_tol)
    standardized = model.space.standardized(values)
    keys = row_keys(standardized, model.seeds.scoring)
    control = model.control_log_density(values, standardized, keys, tolerance)
    for each, chosen in rule.rungs(control.log_density, tolerance):
        found[chosen] = each.n_evaluations
    return found
