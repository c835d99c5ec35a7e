"""Information between columns that are seen through the noise channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from sk_itdiffusion._first._immse.cubature import hash_uniform, keys_apart, row_keys, spawn_keys
from sk_itdiffusion._first._information.roles import Roles
from sk_itdiffusion._first._information.units import mean_over_rows
from sk_itdiffusion._first.layout import Layout

__all__ = ["InformationCurve", "curve_of_rows", "noisy_information"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class InformationCurve:
    """Information between x and y that are seen through noise of a log-SNR.

    It never falls, as noise only takes away, and ends at what the joint densities of the fit say of
    the information without noise.

    Parameters
    ----------
    logsnr : ndarray of shape (n_nodes,)
        Log-SNRs, increasing.
    information : ndarray of shape (n_nodes,)
        Information in nats.
    standard_error : ndarray of shape (n_nodes,)
        Standard errors over rows, in nats.

    See Also
    --------
    sk_itdiffusion.IMMSEMutualInformation : Its ``information_curve_`` is one.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion.information import InformationCurve
    >>> curve = InformationCurve(np.array([-1.0, 1.0]), np.array([0.1, 0.4]), np.full(2, 0.01))
    >>> float(curve.information[-1])
    0.4
    """

    logsnr: Array
    information: Array
    standard_error: Array


def curve_of_rows(logsnr: Array, pointwise: Array, unit: Index | None) -> InformationCurve:
    """Return the curve of the pointwise information of rows, (n_nodes, n), of some units."""
    mean, error = np.transpose([mean_over_rows(each, unit) for each in pointwise])
    return InformationCurve(logsnr, mean, error)


def coordinates(layout: Layout) -> list[Index]:
    """Return which coordinates of points each column of rows has."""
    owner = layout.owners()
    continuous = [np.array([j]) for j in range(layout.n_continuous)]
    return continuous + [np.flatnonzero(owner == j) for j in range(len(layout.variables))]


@torch.no_grad()
def noisy_information(
    density: Any, values: Array, roles: Roles, logsnr: Array, apart: bool = True
) -> Array:
    """Return the pointwise information of noisy rows under a density's references.

    Parameters
    ----------
    density : density estimator
        Density of all columns, without networks.
    values : ndarray of shape (n, n_columns)
        Its rows, without missing entries.
    roles : Roles
        Which columns are on which side.
    logsnr : ndarray of shape (n_nodes,)
        Log-SNRs of the noise, which is one draw for each row, the same at all log-SNRs.
    apart : bool, default=True
        Whether equal rows are different observations, which have noise of their own; otherwise they
        are copies, and share it.

    Returns
    -------
    ndarray of shape (n_nodes, n)
        log p(x, y | given) - log p(x | given) - log p(y | given) of noisy rows, in nats.
    """
    model = density._model
    standardized = model.space.standardized(values)
    rows = torch.from_numpy(model.space.rows(standardized)[0])
    place = {int(j): n for n, j in enumerate(model.space.in_rows)}
    own = coordinates(model.space.layout)
    keys = row_keys(standardized, model.seeds.scoring)
    keys = keys_apart(keys) if apart else keys
    keys = spawn_keys(keys, model.space.layout.n_points)
    eps = torch.from_numpy(ndtri(hash_uniform(keys, 12)))

    def smoothed(columns: Sequence[int] | Index) -> Array:
        """Return log-densities of noisy columns, (n_nodes, n)."""
        kept = sorted(place[int(j)] for j in columns if int(j) in place)
        if not kept:
            return np.zeros((len(logsnr), len(rows)))
        reference = model.parts.marginal(kept)
        noise = torch.empty(len(rows), reference.n_features, dtype=eps.dtype)
        parts = coordinates(reference.layout or Layout(len(kept)))
        for column, there in zip(kept, parts, strict=True):
            noise[:, there] = eps[:, own[column]]
        x = rows[:, kept]
        found = [reference.smoothed_log_prob(x, noise, float(a)) for a in logsnr]
        return np.stack([each.numpy() for each in found])

    of_sides = smoothed(roles.without("y")) + smoothed(roles.without("x"))
    return np.asarray(smoothed(roles.without("")) - of_sides + smoothed(roles.given))
