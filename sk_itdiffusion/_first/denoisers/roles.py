r"""Denoiser that is told which columns are noisy, which are given, and which are missing.

Each column of a row has its own signal-to-noise ratio: that of a *target* is the one of the noise
channel, that of a *given* column infinite, and that of a *missing* one zero.  For targets T and
given columns G

.. math:: \log p(x_T \mid x_G) = \log q(x_T \mid x_G) + \tfrac12 \int \mathrm{d}a\; E_\epsilon\left[
    \|\epsilon_T - \hat\epsilon_q(z_T, a; x_G)\|^2 - \|\epsilon_T - \hat\epsilon(z_T, a; x_G)\|^2
    \right],

which is the relation of Kong et al. (2023) for the conditional distribution.  The network corrects
the prediction of a normal distribution of the targets given x_G, as `PreconditionedDenoiser` does
for complete rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.denoisers.precondition import (
    PreconditionedDenoiser,
    check_backbone,
    check_precision,
)
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.references.gaussian import GaussianReference

__all__ = ["RoleDenoiser", "with_roles"]

#: Inputs of the network for each column: its value and two flags.
INPUTS_OF_A_COLUMN = 3
#: Flags that are read as one number.
FLAGS_OF_A_NUMBER = 30


def with_roles(
    values: Tensor, target: Tensor, given: Tensor, columns: NDArray[np.intp] | None = None
) -> Tensor:
    """Return what a network with roles sees of rows.

    Parameters
    ----------
    values : Tensor of shape (B, d)
        Noisy values of targets, clean ones of given columns, anything elsewhere.
    target, given : Tensor of shape (B, n_columns), bool
        Which columns are targets, and which are given.
    columns : ndarray of shape (d,), int, or None, default=None
        The column that each value is of; None if each is a column.

    Returns
    -------
    Tensor of shape (B, d + 2 * n_columns)
        Values, 0 for columns that are neither, then the two flags.
    """
    is_seen = target | given
    if columns is not None:
        is_seen = is_seen[:, torch.from_numpy(columns).to(is_seen.device)]
    seen = torch.where(is_seen, values, torch.zeros_like(values))
    return torch.cat([seen, target.to(values), given.to(values)], dim=1)


@stored()
class RoleDenoiser(PreconditionedDenoiser):
    """Denoiser of some columns of a row that are noisy, given others that are not.

    The inputs are values and flags, shape (B, 3 * d), see `with_roles`; what is predicted for
    columns that are no targets is zero.  Called with noisy points (B, d), as other denoisers are,
    all columns are targets.  See `PreconditionedDenoiser` for the parameters; the reference is a
    `GaussianReference`, and the backbone has 3 d inputs.
    """

    def constants(self, z: Tensor, logsnr: Tensor) -> dict[str, Tensor]:
        """Return what of a prediction does not depend on the weights.

        See `PreconditionedDenoiser.constants`.
        """
        constants = super().constants(z[:, : self.reference.n_features], logsnr)
        assert isinstance(self.reference, GaussianReference)
        return constants | {"baseline": conditional_noise(self.reference, z, logsnr)}

    def correction(self, z: Tensor, logsnr: Tensor, spread: Tensor, features: Tensor) -> Tensor:
        """Return the network's correction of the targets, given what `constants` returns."""
        _, target, _ = z.chunk(INPUTS_OF_A_COLUMN, dim=1)
        return target * super().correction(z, logsnr, spread, features)

    def correction_to(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the network's correction of the targets, (B, d), of inputs (B, 3 * d)."""
        constants = super().constants(z[:, : self.reference.n_features], logsnr)
        constants.pop("baseline")
        return self.correction(z, logsnr, **constants)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise of points of which all columns are targets, (B, d)."""
        constants = super().constants(z, logsnr)
        baseline = constants.pop("baseline")
        everywhere = torch.ones_like(z, dtype=torch.bool)
        wide = with_roles(z, everywhere, ~everywhere)
        return baseline + self.correction(wide, logsnr, **constants)

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        d = self.reference.n_features
        if not isinstance(self.reference, GaussianReference):
            raise ValueError("a network with roles corrects another reference than a normal one")
        check_backbone(self.backbone, INPUTS_OF_A_COLUMN * d, d, d)
        check_precision(self)


@torch.no_grad()
def conditional_noise(reference: GaussianReference, z: Tensor, logsnr: Tensor) -> Tensor:
    """Return the noise of the targets that a normal distribution predicts, given other columns.

    Parameters
    ----------
    reference : GaussianReference
        Distribution of d columns.
    z : Tensor of shape (B, 3 * d)
        Values and roles; see `with_roles`.  The work grows with the number of different roles.
    logsnr : Tensor of shape (B,)
        Log-SNRs of the targets.

    Returns
    -------
    Tensor of shape (B, d)
        The noise, 0 of columns that are no targets.
    """
    precision = torch.float32 if z.device.type == "mps" else torch.float64
    d = reference.n_features
    values, target, given = z.to(precision).chunk(INPUTS_OF_A_COLUMN, dim=1)
    first, of_row = distinct_rows(z[:, d:] > 0)
    targets, knowns = target[first], given[first]
    mean = reference.mean.to(precision)
    basis, variances = reference.basis.to(precision), reference.variances.to(precision)
    covariance = (basis * variances) @ basis.T
    identity = torch.eye(d, dtype=precision, device=z.device)
    # Columns that are not asked for are independent ones of variance 1.
    of_given = identity + knowns[:, :, None] * knowns[:, None, :] * (covariance - identity)
    across = knowns[:, :, None] * covariance
    slopes = torch.linalg.solve(of_given, across).mT
    left = covariance - slopes @ across
    of_targets = identity + targets[:, :, None] * targets[:, None, :] * (left - identity)
    spread, directions = torch.linalg.eigh(of_targets)
    spread = spread.clamp(min=float(variances.min()))
    pull = given * (values - mean)
    center = mean + (slopes[of_row] @ pull[:, :, None])[:, :, 0]
    level = logsnr.to(precision)
    signal, noise = signal_scale(level)[:, None], noise_scale(level)[:, None]
    deviation = (target * (values - signal * center))[:, None, :]
    towards = directions[of_row]
    shrunk = noise * (deviation @ towards)[:, 0] / (signal**2 * spread[of_row] + noise**2)
    found: Tensor = target * (towards @ shrunk[:, :, None])[:, :, 0]
    return found.to(z.dtype)


def distinct_rows(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return a row of each group of equal ones, and the group of each row.

    Numbers are sorted where `Tensor.unique` would compare rows, which takes several times as long.

    Parameters
    ----------
    flags : Tensor of shape (B, n), bool
        The rows.

    Returns
    -------
    first : Tensor of shape (n_groups,), int
        The number of a row of each group.
    group : Tensor of shape (B,), int
        The group of each row.
    """
    group = torch.zeros(len(flags), dtype=torch.long, device=flags.device)
    for part in flags.split(FLAGS_OF_A_NUMBER, dim=1):
        places = torch.arange(part.shape[1], device=flags.device)
        number = (part.long() << places).sum(1) + (group << FLAGS_OF_A_NUMBER)
        group = number.unique(return_inverse=True)[1]
    first = torch.empty(int(group.max()) + 1 if len(group) else 0, dtype=torch.long)
    first = first.to(flags.device).index_copy_(0, group, torch.arange(len(flags)).to(flags.device))
    return first, group
