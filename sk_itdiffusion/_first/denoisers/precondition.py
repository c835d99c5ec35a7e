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

from sk_itdiffusion._first._runtime.configured import ConfiguredModule, check_size
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_finite, check_in_range, check_same
from sk_itdiffusion._first.persistence.registry import declaration_of
from sk_itdiffusion._first.references.base import Reference

__all__ = [
    "LogSNREmbedding",
    "PreconditionedDenoiser",
    "ReferencedDenoiser",
    "check_backbone",
    "check_precision",
]

#: Beyond it single precision knows no signal, or no noise.
MAX_LOGSNR = 80.0


def check_backbone(
    backbone: nn.Module, n_inputs: int, n_outputs: int, n_periodic: int | None = None
) -> None:
    """Raise an error if a loaded backbone is of another size, unless it is the user's own."""
    if declaration_of(type(backbone)) is None:
        return
    check_same(backbone.sizes, (n_inputs, n_outputs), "a network is of another size")
    expected = n_inputs if n_periodic is None else n_periodic
    check_same(getattr(backbone, "n_periodic", expected), expected, "a network has other inputs")


def check_precision(network: nn.Module) -> None:
    """Raise an error if a loaded network is not in one precision, with its references."""
    tensors = [*network.parameters(), *network.buffers()]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    check_same(len(dtypes), 1, "a network has numbers of several precisions")


@stored()
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

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_finite([self.low, self.high], "ends of the range of the log-SNR")
        check_in_range(self.low, -MAX_LOGSNR, self.high - 1e-6, "ends of the range of the log-SNR")


@stored()
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

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        n_features = self.reference.n_features
        check_backbone(self.backbone, n_features, n_features)
        check_precision(self)


#: Relative difference of what a denoiser predicts from what it did when it was saved.
PROBE_TOLERANCE = 0.05
PROBE_LOGSNRS = (-1.0, 2.0)


class ReferencedDenoiser(ConfiguredModule):
    """A denoiser that predicts the noise by itself, alongside a reference that it is compared with.

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

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Return the noise that the denoiser predicts at two points, (2, d)."""
        place = next(iter(self.state_dict().values())).device
        n_features = self.reference.n_features
        options: dict[str, Any] = {"device": place, "dtype": torch.float32}
        points = torch.linspace(-1.5, 1.5, 2 * n_features, **options).reshape(2, n_features)
        with torch.random.fork_rng(devices=[]):
            noise: Tensor = self.denoiser(points, torch.tensor(PROBE_LOGSNRS, **options))
        return noise.float().cpu()


def probed_config(network: ReferencedDenoiser) -> dict[str, Any]:
    """Return what a network is made from, and what it predicts if that is reproducible."""
    first, second = network.probe(), network.probe()
    return network.config() | {"probe": first if torch.equal(first, second) else None}


def probed(denoiser: nn.Module, reference: Reference, probe: Tensor | None) -> ReferencedDenoiser:
    """Return a network, once it is known that it predicts what the one saved did."""
    network = ReferencedDenoiser(denoiser, reference).eval()
    if probe is not None:
        difference = float((network.probe() - probe).norm())
        if not difference <= PROBE_TOLERANCE * float(probe.norm()):
            raise ValueError(
                "the denoiser that is given takes the weights, but then predicts something else "
                "than the one that was saved"
            )
    return network


stored(config=probed_config, make=probed)(ReferencedDenoiser)
