"""The backbone of a denoiser of one number that sees others alongside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sk_itdiffusion._first._runtime.configured import ConfiguredModule, check_size
from sk_itdiffusion._first._runtime.generators import CopyableGenerator
from sk_itdiffusion._first.denoisers import LogSNREmbedding
from sk_itdiffusion._first.denoisers.mlp import FourierFeatures, ResidualBlock, linear
from sk_itdiffusion._first.denoisers.norm import RMSNorm
from sk_itdiffusion._first.persistence import stored

__all__ = ["ContextMLP"]


@stored()
class ContextMLP(ConfiguredModule):
    """A wide network for what is given, and a narrow one for the noisy number.

    The wide one sees the log-SNR, and scales and shifts the layers of the narrow one.  At one
    log-SNR it is evaluated once for all noisy numbers of a row.

    Parameters
    ----------
    n_given : int
        Numbers that are given.
    embedding : LogSNREmbedding
        Features of the log-SNR.
    width, head_width : int, default=128, 64
        Units of the hidden layers of the wide and of the narrow network.
    n_blocks : int, default=2
        Residual blocks of each.
    n_frequencies : int, default=4
        Frequencies for the noisy number; each gives a sine and a cosine.
    dropout : float, default=0.0
        Dropout rate in the blocks of the wide network.
    generator : torch.Generator or None, default=None
        Source of the initial weights and of the dropout masks; None makes one with seed 0.
    """

    #: The features of the log-SNR may be given as ``condition``.
    takes_condition = True

    def __init__(
        self,
        n_given: int,
        embedding: LogSNREmbedding,
        *,
        width: int = 128,
        head_width: int = 64,
        n_blocks: int = 2,
        n_frequencies: int = 4,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        source = CopyableGenerator().manual_seed(0) if generator is None else generator
        self.n_given, self.embedding = n_given, embedding
        self.width, self.head_width, self.n_blocks = width, head_width, n_blocks
        self.n_frequencies, self.dropout = n_frequencies, dropout
        self.inlet = linear(n_given, width, source)
        self.trunk = nn.ModuleList(
            ResidualBlock(width, embedding.n_features, dropout, source) for _ in range(n_blocks)
        )
        self.norm = RMSNorm()
        self.features = FourierFeatures(1, n_frequencies, source)
        self.head_inlet = linear(self.features.n_outputs, head_width, source)
        self.head = nn.ModuleList(
            ResidualBlock(head_width, width, 0.0, source) for _ in range(n_blocks)
        )
        self.outlet = linear(head_width, 1, source, zero=True)

    @classmethod
    def least_numbers(cls, **config: Any) -> int:
        """Return how many weights such a network has at least."""
        names = ("n_given", "width", "head_width", "n_blocks")
        n_given, width, head_width, n_blocks = (check_size(config[name]) for name in names)
        n_condition = 2 * check_size(config["embedding"].n_features)
        of_trunk = width * (2 * width + n_condition)
        of_head = head_width * (2 * head_width + 2 * width)
        return width * n_given + n_blocks * (of_trunk + of_head)

    def context(self, given: Tensor, condition: Tensor) -> Tensor:
        """Return what the narrow network is told, (B, width), of what is given and the log-SNR."""
        h = self.inlet(given)
        for block in self.trunk:
            h = block(h, condition)
        found: Tensor = self.norm(h)
        return found

    def values(self, z: Tensor, context: Tensor) -> Tensor:
        """Return the output (..., 1) for noisy numbers (..., 1); the context is broadcast."""
        h = self.head_inlet(self.features(z))
        for block in self.head:
            h = block(h, context)
        output: Tensor = self.outlet(self.norm(h))
        return output

    def forward(self, z: Tensor, logsnr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the output (B, 1) for a noisy number and what is given, (B, 1 + n_given)."""
        if condition is None:
            condition = self.embedding(logsnr)
        return self.values(z[:, :1], self.context(z[:, 1:], condition))

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return 1 + self.n_given, 1
