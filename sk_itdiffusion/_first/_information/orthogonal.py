r"""Information as the squared difference of two denoisers.

If both are optimal, the information that x has of y is

.. math:: I(x; y) = \tfrac12 \int \mathrm{d}a\; E\, \|\hat\epsilon(z_y, a) - \hat\epsilon(z_y, a; x)
    \|^2,

since the difference of the optimal errors is the squared distance of the predictions [1]_.

References
----------
.. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._immse.cubature import NoiseRule, row_keys, spawn_keys
from sk_itdiffusion._first._information.roles import Roles
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.references import Reference

__all__ = ["squared_differences"]

Array = NDArray[np.float64]
#: Draws of the noise for a row at each log-SNR.
_N_DRAWS = 16


@torch.no_grad()
def squared_differences(density: Any, values: Array, roles: Roles, logsnr: Array) -> Array:
    """Return half the integral of the squared differences of predictions with and without x.

    Parameters
    ----------
    density : density estimator
        Density of all columns, without networks.
    values : ndarray of shape (n, n_columns)
        Its rows, without missing entries.
    roles : Roles
        Which columns are on which side.
    logsnr : ndarray of shape (n_nodes,)
        Log-SNRs, increasing, outside of which the differences are negligible.

    Returns
    -------
    ndarray of shape (n,)
        Integrals in nats, at least 0.
    """
    model = density._model
    standardized = model.space.standardized(values)
    rows = model.space.rows(standardized)[0]
    place = {int(j): n for n, j in enumerate(model.space.in_rows)}
    target, without_x, every = (
        sorted(place[int(j)] for j in columns if int(j) in place)
        for columns in (roles.y, roles.without("x"), roles.without(""))
    )
    if not target:
        return np.zeros(len(values))
    clean = model.space.layout.part(target).embed_array(rows[:, target])
    n_points = clean.shape[1]
    noise = NoiseRule(n_points, min(n_points, 2), central=False, seed=1)
    keys = spawn_keys(row_keys(standardized, model.seeds.scoring), len(logsnr))
    level = torch.from_numpy(np.repeat(logsnr, _N_DRAWS * noise.n_evaluations))
    with_x, alone = (
        Predictor(model.parts.marginal(known), known, target) for known in (every, without_x)
    )
    found = np.empty(len(values))
    for i, row in enumerate(rows):
        drawn, coefficient = noise.draws(keys[i], 0, _N_DRAWS)
        eps = torch.from_numpy(drawn.reshape(-1, n_points))
        z = add_noise(torch.from_numpy(clean[i]).expand_as(eps), eps, level)
        difference = alone.noise(row, z, level) - with_x.noise(row, z, level)
        squares = difference.square().sum(1).numpy().reshape(coefficient.shape)
        at_nodes = (squares * coefficient).sum(axis=(1, 2)) / _N_DRAWS
        found[i] = 0.5 * np.trapezoid(at_nodes, logsnr)
    return found


@dataclass(frozen=True)
class Predictor:
    """Denoiser of targets that knows other columns of a row.

    Attributes
    ----------
    reference : Reference
        Distribution of all of these columns.
    known : list of int
        Numbers of the columns of a row that they are, targets included.
    target : list of int
        Numbers of the targets.
    """

    reference: Reference
    known: list[int]
    target: list[int]

    def noise(self, row: Array, z: Tensor, level: Tensor) -> Tensor:
        """Return the noise that is predicted for noisy targets (B, d) of a row."""
        given = [place for place, column in enumerate(self.known) if column not in self.target]
        values = [row[self.known[place]] for place in given]
        return self.reference.given(given, values).denoise(z, level)
