"""The correction of a reference by a network, with the log-SNR and the roles as its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion.references.base import Reference

__all__ = ["CorrectedReference", "LogSNRFeatures", "Network"]

N_BUMPS = 12


class Network(BaseEstimator, ABC):
    """What a backbone is made of: parameters that are stored, cloned and searched."""

    @abstractmethod
    def build(
        self, n_columns: int, features: LogSNRFeatures, dropout: float, generator: torch.Generator
    ) -> nn.Module:
        """Return a backbone, called with (B, 3 * n_columns) inputs and (B, n) features."""


class LogSNRFeatures(nn.Module):
    """Smooth features of the log-SNR: itself, and bumps over the range in use."""

    centers: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(low, high, N_BUMPS, dtype=torch.float32))
        self.spacing = (high - low) / (N_BUMPS - 1)
        self.middle, self.half_width = 0.5 * (low + high), 0.5 * (high - low)
        self.n_features = N_BUMPS + 1

    def forward(self, logsnr: Tensor) -> Tensor:
        """Return features of shape (B, n_features)."""
        bumps = torch.exp(-0.5 * ((logsnr[:, None] - self.centers) / self.spacing).square())
        return torch.cat([(logsnr[:, None] - self.middle) / self.half_width, bumps], dim=1)


class CorrectedReference(nn.Module):
    """A reference's denoiser plus the scaled output of a backbone.

    Parameters
    ----------
    reference : Reference
        The reference.
    backbone : nn.Module
        Returns (B, d) for inputs (B, 3 d) and features of the log-SNR.
    features : LogSNRFeatures
        Features of the log-SNR.
    """

    def __init__(self, reference: Reference, backbone: nn.Module, features: LogSNRFeatures) -> None:
        super().__init__()
        self.reference, self.backbone, self.features = reference, backbone, features
        self.gain = nn.Parameter(torch.zeros(features.n_features))

    def correction(self, z: Tensor, logsnr: Tensor, target: Tensor, given: Tensor) -> Tensor:
        """Return what is added to the reference, (B, d), in single precision."""
        features = self.features(logsnr)
        flags = torch.cat([z, target, given], dim=1)
        spread = (torch.sigmoid(logsnr) * torch.sigmoid(-logsnr)).sqrt()
        gain = spread * torch.exp(features @ self.gain)
        found: Tensor = gain[:, None] * self.backbone(flags, features) * target
        return found

    def forward(self, z: Tensor, logsnr: Tensor, roles: Roles) -> Tensor:
        """Return the predicted noise of the targets, zero elsewhere, in the precision of ``z``."""
        baseline = self.reference.denoise(z, logsnr, roles)
        target, given = (
            torch.from_numpy(mask).float().expand_as(z) for mask in (roles.target, roles.given)
        )
        return baseline + self.correction(z.float(), logsnr.float(), target, given).to(z)
