r"""Preconditioning of a backbone by an analytic reference.

.. math:: \hat\epsilon(z, a) = \hat\epsilon_{ref}(z, a)
    + \sqrt{\sigma(a)\,\sigma(-a)}\; e^{g(a)}\, F(z, a)

The backbone :math:`F` sees the noisy point and the log-SNR and nothing else.  Its last layer
starts at zero, so that an untrained model is the reference; :math:`g` is a learned gain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sk_itdiffusion._runtime.configured import ConfiguredModule, check_size
from sk_itdiffusion.references.base import Reference

__all__ = ["LogSNREmbedding", "PreconditionedDenoiser", "ReferencedDenoiser"]


class LogSNREmbedding(ConfiguredModule):
    """Smooth features of the log-SNR: itself and bumps over the range in use.

    Parameters
    ----------
    low, high : float
        The range.
    n_bumps : int, default=12
        Bumps, at least 2.
    """

    centers: Tensor

    def __init__(self, low: float, high: float, n_bumps: int = 12) -> None:
        super().__init__()
        self.low, self.high, self.n_bumps = low, high, n_bumps
        self.register_buffer("centers", torch.linspace(low, high, n_bumps, dtype=torch.float32))
        self.spacing = (high - low) / (n_bumps - 1)
        self.middle = 0.5 * (low + high)
        self.half_width = 0.5 * (high - low)
        self.n_features = n_bumps + 1

    @classmethod
    def least_numbers(cls, **config: Any) -> int:
        """Return how many centers there are."""
        return check_size(config["n_bumps"], least=2)

    def forward(self, logsnr: Tensor) -> Tensor:
        """Return features of shape (B, n_features)."""
        bumps = torch.exp(-0.5 * ((logsnr[:, None] - self.centers) / self.spacing).square())
        return torch.cat([(logsnr[:, None] - self.middle) / self.half_width, bumps], dim=1)


class PreconditionedDenoiser(ConfiguredModule):
    """Denoiser that adds a scaled backbone to a reference.

    Parameters
    ----------
    backbone : nn.Module
        Called as ``backbone(z, logsnr)`` with shapes (B, d) and (B,); returns (B, d).  If it has a
        true attribute ``takes_condition``, and its attribute ``embedding`` is the one below, the
        features are given as ``condition`` too.
    reference : Reference
        Analytic reference on the same d features.
    embedding : LogSNREmbedding
        Features from which the gain is linear.
    """

    def __init__(
        self, backbone: nn.Module, reference: Reference, embedding: LogSNREmbedding
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.reference = reference
        self.embedding = embedding
        self.gain = nn.Parameter(torch.zeros(embedding.n_features, dtype=torch.float32))

    def constants(self, z: Tensor, logsnr: Tensor) -> dict[str, Tensor]:
        """Return what of a prediction does not depend on the weights.

        It is the reference's prediction ``baseline`` (B, d), the factor ``spread`` (B,) of the
        correction and the ``features`` (B, n_features) of the log-SNR.
        """
        return {
            "baseline": self.reference.denoise(z, logsnr),
            "spread": (torch.sigmoid(logsnr) * torch.sigmoid(-logsnr)).sqrt(),
            "features": self.embedding(logsnr),
        }

    def correction(self, z: Tensor, logsnr: Tensor, spread: Tensor, features: Tensor) -> Tensor:
        """Return the network's correction to the reference, given what `constants` returns."""
        gain = torch.exp(features @ self.gain)
        # A backbone with the same embedding need not compute it once more.
        takes = getattr(self.backbone, "takes_condition", False)
        shares = takes and getattr(self.backbone, "embedding", None) is self.embedding
        condition = {"condition": features} if shares else {}
        correction: Tensor = (spread * gain)[:, None] * self.backbone(z, logsnr, **condition)
        return correction

    def parts(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reference's prediction of the noise and the network's correction to it."""
        constants = self.constants(z, logsnr)
        baseline = constants.pop("baseline")
        return baseline, self.correction(z, logsnr, **constants)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise, shape (B, d)."""
        baseline, correction = self.parts(z, logsnr)
        return baseline + correction


class ReferencedDenoiser(ConfiguredModule):
    """A denoiser that predicts the noise by itself, beside a reference that it is compared with.

    Parameters
    ----------
    denoiser : nn.Module
        Called as ``denoiser(z, logsnr)`` with shapes (B, d) and (B,); returns the noise (B, d).
    reference : Reference
        Analytic reference on the same d features.
    """

    def __init__(self, denoiser: nn.Module, reference: Reference) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.reference = reference

    def parts(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reference's prediction of the noise and the denoiser's difference to it."""
        baseline = self.reference.denoise(z, logsnr)
        return baseline, self.denoiser(z, logsnr) - baseline

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise, shape (B, d)."""
        noise: Tensor = self.denoiser(z, logsnr)
        return noise
