r"""The Gaussian channel :math:`z = \sqrt{s(a)}\, x + \sqrt{s(-a)}\, \epsilon` at log-SNR a.

Networks and integrals see the log-SNR, never the SNR, which overflows where its logarithm does not.
Shapes are (B,) for the log-SNR and (B, d) for points.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._immse.roles import Roles

__all__ = ["as_tensor", "noise_scale", "noised", "signal_scale"]


def signal_scale(logsnr: Tensor) -> Tensor:
    """Return the factor of the data."""
    return torch.sigmoid(logsnr).sqrt()


def noise_scale(logsnr: Tensor) -> Tensor:
    """Return the factor of the noise."""
    return torch.sigmoid(-logsnr).sqrt()


def noised(x: Tensor, eps: Tensor, logsnr: Tensor, roles: Roles) -> Tensor:
    """Return points whose targets are noised, given coordinates clean, and missing ones zero."""
    z = signal_scale(logsnr)[:, None] * x + noise_scale(logsnr)[:, None] * eps
    if roles.is_joint:
        return z
    target, given = (torch.from_numpy(mask).to(x.device) for mask in (roles.target, roles.given))
    return torch.where(target, z, torch.where(given, x, torch.zeros_like(x)))


def as_tensor(X: NDArray[np.float64], device: torch.device | str = "cpu") -> Tensor:
    """Return an array as a tensor in double precision; the array may be read-only."""
    return torch.from_numpy(np.require(X, np.float64, ["C", "W"])).to(device)
