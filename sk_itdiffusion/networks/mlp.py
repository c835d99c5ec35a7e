"""Residual multilayer perceptrons for rows of tables."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from sk_itdiffusion.networks.base import LogSNRFeatures, Network

__all__ = ["MLP"]

N_FREQUENCIES = 4


class MLP(Network):
    """Residual multilayer perceptron on Fourier features of each column.

    Parameters
    ----------
    hidden_size : int or "auto", default="auto"
        Width of the hidden layers, at least 1; ``"auto"`` is 128, or 64 for at most 1500 rows.
    n_blocks : int, default=2
        Number of residual blocks, at least 1.
    dropout : float or "auto", default="auto"
        Dropout rate in [0, 1); ``"auto"`` is larger for fewer rows.

    Examples
    --------
    >>> from sk_itdiffusion.networks.mlp import MLP
    >>> MLP(hidden_size=64).get_params()
    {'dropout': 'auto', 'hidden_size': 64, 'n_blocks': 2}
    """

    def __init__(
        self,
        hidden_size: int | str = "auto",
        n_blocks: int = 2,
        dropout: float | str = "auto",
    ) -> None:
        self.hidden_size = hidden_size
        self.n_blocks = n_blocks
        self.dropout = dropout

    def build(
        self, n_columns: int, features: LogSNRFeatures, dropout: float, generator: Generator
    ) -> nn.Module:
        """Return an untrained backbone."""
        width = self.hidden_size
        assert isinstance(width, int)
        return ResidualMLP(n_columns, features.n_features, width, self.n_blocks, dropout, generator)


def linear(n_in: int, n_out: int, generator: Generator, *, zero: bool = False) -> nn.Linear:
    """Return a linear layer initialised from a local generator, or at zero."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float32)
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.zero_()
        if not zero:
            layer.weight.normal_(0.0, 1.0 / math.sqrt(n_in), generator=generator)
    return layer


class SeededDropout(nn.Module):
    """Dropout that draws from a generator of its own, since the global one is the user's."""

    def __init__(self, rate: float, generator: Generator) -> None:
        super().__init__()
        self.rate, self.generator = rate, generator

    def forward(self, h: Tensor) -> Tensor:
        """Return ``h`` with random entries zeroed in training."""
        if not self.training or self.rate == 0.0:
            return h
        keep = 1.0 - self.rate
        uniform = torch.rand(h.shape, generator=self.generator, dtype=torch.float32)
        return h * uniform.lt_(keep).div_(keep)

    def __deepcopy__(self, memo: dict[int, object]) -> SeededDropout:
        """Return a copy with the same generator, which cannot be copied."""
        return SeededDropout(self.rate, self.generator)

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the generator, which only training needs."""
        return self.__dict__ | {"generator": None}


class ResidualBlock(nn.Module):
    """Normalised two-layer residual block, scaled and shifted by the features of the log-SNR."""

    def __init__(self, width: int, n_features: int, dropout: float, generator: Generator) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.condition = linear(n_features, 2 * width, generator, zero=True)
        self.expand = linear(width, width, generator)
        self.contract = linear(width, width, generator)
        self.dropout = SeededDropout(dropout, generator)

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        """Return ``h`` plus the block's update."""
        scale, shift = self.condition(features).chunk(2, dim=-1)
        update = self.expand(self.norm(h) * (1.0 + scale) + shift)
        change: Tensor = self.contract(self.dropout(nn.functional.silu(update)))
        return h + change


class ResidualMLP(nn.Module):
    """Sines and cosines of each column, residual blocks, and a last layer that starts at zero."""

    def __init__(
        self,
        n_columns: int,
        n_features: int,
        width: int,
        n_blocks: int,
        dropout: float,
        generator: Generator,
    ) -> None:
        super().__init__()
        self.n_columns = n_columns
        base = torch.logspace(-1.5, 1.5, N_FREQUENCIES, base=2.0, dtype=torch.float32)
        jitter = torch.rand(n_columns, N_FREQUENCIES, generator=generator, dtype=torch.float32)
        self.frequencies = nn.Parameter(2.0 * math.pi * 0.35 * base * (0.75 + 0.5 * jitter))
        self.inlet = linear(n_columns * (3 + 2 * N_FREQUENCIES), width, generator)
        self.blocks = nn.ModuleList(
            ResidualBlock(width, n_features, dropout, generator) for _ in range(n_blocks)
        )
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.outlet = linear(width, n_columns, generator, zero=True)

    def forward(self, inputs: Tensor, features: Tensor) -> Tensor:
        """Return outputs of shape (B, n_columns)."""
        angles = (inputs[:, : self.n_columns, None] * self.frequencies).flatten(1)
        h = self.inlet(torch.cat([inputs, angles.sin(), angles.cos()], dim=1))
        for block in self.blocks:
            h = block(h, features)
        outputs: Tensor = self.outlet(self.norm(h))
        return outputs
