"""Residual multilayer perceptron for rows of tables."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sk_itdiffusion._first._runtime.configured import ConfiguredModule, check_size
from sk_itdiffusion._first._runtime.generators import CopyableGenerator
from sk_itdiffusion._first.denoisers.family import (
    MAX_FOR_ONE_THREAD,
    BackbonePlan,
    NetworkFamily,
    NetworkTask,
)
from sk_itdiffusion._first.denoisers.norm import RMSNorm
from sk_itdiffusion._first.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion._first.persistence import stored

__all__ = ["MLPFamily", "ResidualMLP"]


class LocalDropout(nn.Module):
    """Dropout whose randomness comes from a generator of its own, not from the global one.

    If several processes share a batch each draws for all rows, and takes what is of its own.
    """

    #: The rows of the batch that are here, and how many rows there are in all processes.
    place: tuple[slice, int] | None = None

    def __init__(self, rate: float, generator: Generator) -> None:
        super().__init__()
        self.rate = rate
        self.generator = generator
        self.on_device: dict[torch.device, Generator] = {}

    @property
    def p(self) -> float:
        """The rate, by the name that `torch.nn.Dropout` has for it."""
        return self.rate

    def forward(self, h: Tensor) -> Tensor:
        """Return ``h`` with random entries zeroed in training, unchanged in evaluation."""
        if not self.training or self.rate == 0.0:
            return h
        keep = 1.0 - self.rate
        # Comparing uniform numbers, in place, is cheaper than drawing Bernoulli ones on a CPU.
        source = self.generator_on(h.device)
        place = self.place
        if place is not None and len(h) != place[0].stop - place[0].start:
            place = None
        shape = h.shape if place is None else (place[1], *h.shape[1:])
        # In single precision, where half precision would round the rate.
        uniform = torch.rand(shape, generator=source, dtype=torch.float32, device=h.device)
        if place is not None:
            uniform = uniform[place[0]]
        return h * uniform.lt_(keep).div_(keep).to(h.dtype)

    def generator_on(self, device: torch.device) -> Generator:
        """Return the generator, or one of another device that was seeded by it."""
        if device.type == "cpu":
            return self.generator
        if device not in self.on_device:
            seed = int(torch.randint(2**62, (), generator=self.generator))
            self.on_device[device] = Generator(device).manual_seed(seed)
        return self.on_device[device]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without generators of devices, which copies may not have."""
        return self.__dict__ | {"on_device": {}}


def replace_dropout(network: nn.Module, generator: Generator) -> None:
    """Let all dropout draw from a generator of its own, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, LocalDropout(child.p, generator))


def share_dropout(network: nn.Module, place: tuple[slice, int] | None) -> None:
    """Tell all dropout of a network which rows of how many are here, in place."""
    for module in network.modules():
        if isinstance(module, LocalDropout):
            module.place = place


def linear(n_in: int, n_out: int, generator: Generator, zero: bool = False) -> nn.Linear:
    """Return a linear layer initialised from a local generator (or at zero)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float32)
    with torch.no_grad():
        layer.bias.zero_()
        if zero:
            layer.weight.zero_()
        else:
            layer.weight.normal_(0.0, 1.0 / math.sqrt(n_in), generator=generator)
    return layer


class FourierFeatures(nn.Module):
    """Learned sines and cosines of each feature separately."""

    def __init__(self, n_features: int, n_frequencies: int, generator: Generator) -> None:
        super().__init__()
        base = torch.logspace(-1.5, 1.5, max(n_frequencies, 1), base=2.0, dtype=torch.float32)[
            :n_frequencies
        ]
        jitter = torch.rand(n_features, n_frequencies, generator=generator, dtype=torch.float32)
        self.frequencies = nn.Parameter(2.0 * math.pi * 0.35 * base * (0.75 + 0.5 * jitter))
        self.n_outputs = n_features * (1 + 2 * n_frequencies)

    def forward(self, z: Tensor) -> Tensor:
        """Return the features, then their sines and cosines, shape (B, n_outputs)."""
        angles = (z[..., None] * self.frequencies).flatten(-2)
        return torch.cat([z, angles.sin(), angles.cos()], dim=-1)


class ResidualBlock(nn.Module):
    """Pre-normalised two-layer residual block, scaled and shifted by the log-SNR."""

    def __init__(self, width: int, n_condition: int, dropout: float, generator: Generator) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.condition = linear(n_condition, 2 * width, generator, zero=True)
        self.expand = linear(width, width, generator)
        self.contract = linear(width, width, generator)
        self.dropout = LocalDropout(dropout, generator)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Return ``h`` plus the block's update."""
        scale, shift = self.condition(condition).chunk(2, dim=-1)
        if torch.is_grad_enabled():
            update = self.expand(self.norm(h) * (1.0 + scale) + shift)
            change: Tensor = self.contract(self.dropout(nn.functional.silu(update)))
            return h + change
        # The same in place: to ask for memory takes about as long as to calculate what is in it.
        # Not in that of the points, of which there may be fewer than of conditions.
        update = self.expand((self.norm(h) * scale.add_(1.0)).add_(shift))
        change = self.contract(self.dropout(nn.functional.silu(update, inplace=True)))
        return change.add_(h)


@stored()
class ResidualMLP(ConfiguredModule):
    """Residual MLP on per-feature Fourier features, conditioned on the log-SNR.

    Parameters
    ----------
    n_features : int
        Inputs, and outputs unless ``n_outputs`` is given.
    embedding : LogSNREmbedding
        Features of the log-SNR.
    width : int, default=128
        Units of the hidden layers.
    n_blocks : int, default=2
        Residual blocks.
    n_frequencies : int, default=4
        Frequencies for each periodic input; each gives a sine and a cosine.
    dropout : float, default=0.0
        Dropout rate in the blocks.
    generator : torch.Generator or None, default=None
        Source of the initial weights and of the dropout masks; None makes one with seed 0.
    n_periodic : int or None, default=None
        How many inputs, from the first on, have sines and cosines; None means all.
    n_outputs : int or None, default=None
        Outputs; None means as many as inputs.
    """

    #: Whether the features of the log-SNR may be given as ``condition``.
    takes_condition = True

    def __init__(
        self,
        n_features: int,
        embedding: LogSNREmbedding,
        *,
        width: int = 128,
        n_blocks: int = 2,
        n_frequencies: int = 4,
        dropout: float = 0.0,
        generator: Generator | None = None,
        n_periodic: int | None = None,
        n_outputs: int | None = None,
    ) -> None:
        super().__init__()
        source = CopyableGenerator().manual_seed(0) if generator is None else generator
        self.n_features = n_features
        self.embedding = embedding
        self.width, self.n_blocks, self.n_frequencies = width, n_blocks, n_frequencies
        self.dropout = dropout
        self.n_periodic = n_features if n_periodic is None else n_periodic
        self.n_outputs = n_features if n_outputs is None else n_outputs
        self.features = FourierFeatures(self.n_periodic, n_frequencies, source)
        n_plain = n_features - self.n_periodic
        self.inlet = linear(self.features.n_outputs + n_plain, width, source)
        n_condition = embedding.n_features
        self.blocks = nn.ModuleList(
            ResidualBlock(width, n_condition, dropout, source) for _ in range(n_blocks)
        )
        self.norm = RMSNorm()
        self.outlet = linear(width, self.n_outputs, source, zero=True)

    @classmethod
    def least_numbers(cls, **config: Any) -> int:
        """Return how many weights such a network has at least."""
        names = ("n_features", "n_frequencies", "n_periodic", "n_outputs", "n_blocks", "width")
        n_features, n_frequencies, n_periodic, n_outputs, n_blocks, width = (
            check_size(config[name]) for name in names
        )
        n_inputs = n_features + 2 * n_frequencies * n_periodic
        n_condition = 2 * check_size(config["embedding"].n_features)
        return width * (n_inputs + n_blocks * (2 * width + n_condition) + n_outputs)

    def forward(self, z: Tensor, logsnr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the outputs, (B, n_outputs), for inputs z (B, n_features) and logsnr (B,).

        The features of the log-SNR are computed unless they are given as ``condition``.
        """
        if condition is None:
            condition = self.embedding(logsnr)
        features = self.features(z[:, : self.n_periodic])
        if self.n_periodic < self.n_features:
            features = torch.cat([features, z[:, self.n_periodic :]], dim=1)
        h = self.inlet(features)
        for block in self.blocks:
            h = block(h, condition)
        outputs: Tensor = self.outlet(self.norm(h))
        return outputs

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return self.n_features, self.n_outputs


@stored()
class MLPFamily(NetworkFamily):
    """Fully connected residual networks, for any table.

    See Also
    --------
    ResidualMLP : The networks.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> from sk_itdiffusion.denoisers import MLPFamily
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> density = IMMSEDensity(network=MLPFamily(), max_epochs=1, random_state=0).fit(X)
    >>> type(density.net_.module_.denoiser.backbone).__name__
    'ResidualMLP'
    """

    name = "mlp"

    def build(self, plan: BackbonePlan) -> ResidualMLP:
        """Return an untrained network; see `NetworkFamily.build`."""
        return ResidualMLP(
            plan.n_inputs,
            plan.embedding,
            width=plan.hidden_size,
            n_blocks=plan.n_blocks,
            n_frequencies=plan.n_frequencies,
            dropout=plan.dropout,
            generator=plan.generator,
            n_periodic=plan.n_periodic,
            n_outputs=plan.n_outputs,
        )

    def trains_in_one_thread(self, task: NetworkTask, hidden_size: int) -> bool:
        """Return whether the layers are small; see `NetworkFamily.trains_in_one_thread`."""
        return hidden_size <= MAX_FOR_ONE_THREAD
