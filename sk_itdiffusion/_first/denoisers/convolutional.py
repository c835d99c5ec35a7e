"""Small convolutional network for images of discrete pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sk_itdiffusion._first._runtime.configured import ConfiguredModule, check_size
from sk_itdiffusion._first._runtime.generators import CopyableGenerator
from sk_itdiffusion._first.denoisers.family import (
    BackbonePlan,
    NetworkFamily,
    NetworkTask,
    PlannedNetwork,
    UsualParameters,
)
from sk_itdiffusion._first.denoisers.mlp import LocalDropout, MLPFamily, linear
from sk_itdiffusion._first.denoisers.norm import RMSNorm
from sk_itdiffusion._first.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion._first.persistence import stored

__all__ = ["ConvolutionalFamily", "ConvolutionalNetwork"]

#: Positions up to which each pixel is one; larger images are cut into patches of 2 x 2, 4 x 4, ...
MAX_POSITIONS = 256
#: The fully connected network that is trained alongside one on images of discrete pixels.
NETWORK_BESIDE = "dense_network"
WIDTH_BESIDE, BLOCKS_BESIDE = 256, 2


class ConvolutionalBlock(nn.Module):
    """Depthwise convolution, then a two-layer network at each position, with a residual path."""

    def __init__(
        self, width: int, n_condition: int, kernel: int, dropout: float, generator: Generator
    ) -> None:
        super().__init__()
        self.kernel = nn.utils.skip_init(
            nn.Conv2d, width, width, kernel, padding=kernel // 2, groups=width, dtype=torch.float32
        )
        with torch.no_grad():
            self.kernel.bias.zero_()
            self.kernel.weight.normal_(0.0, 1.0 / kernel, generator=generator)
        self.norm = RMSNorm()
        self.condition = linear(n_condition, 2 * width, generator, zero=True)
        self.expand = linear(width, 2 * width, generator)
        self.contract = linear(2 * width, width, generator)
        self.dropout = LocalDropout(dropout, generator)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Return ``h`` (B, width, height, columns) plus the block's update."""
        scale, shift = self.condition(condition)[:, None, None, :].chunk(2, dim=3)
        mixed = self.norm(self.kernel(h).permute(0, 2, 3, 1)) * (1.0 + scale) + shift
        update: Tensor = self.contract(self.dropout(nn.functional.silu(self.expand(mixed))))
        return h + update.permute(0, 3, 1, 2)


@stored()
class ConvolutionalNetwork(ConfiguredModule):
    """Residual convolutional network on the posterior means of an image's pixels.

    Parameters
    ----------
    image_shape : tuple of int
        Height and width, or channels, height and width.
    n_outputs : int
        Numbers for each pixel (and channel).
    embedding : LogSNREmbedding
        Features of the log-SNR.
    width : int, default=64
        Channels of the hidden layers.
    n_blocks : int, default=3
        Residual blocks.
    dropout : float, default=0.0
        Dropout rate in the blocks.
    generator : torch.Generator or None, default=None
        Source of the initial weights and of the dropout masks; None makes one with seed 0.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        n_outputs: int,
        embedding: LogSNREmbedding,
        *,
        width: int = 64,
        n_blocks: int = 3,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        source = CopyableGenerator().manual_seed(0) if generator is None else generator
        self.image_shape = tuple(image_shape)
        self.width, self.n_blocks, self.dropout = width, n_blocks, dropout
        self.channels, self.height, self.columns = (1, *image_shape)[-3:]
        self.n_outputs = n_outputs
        self.embedding = embedding
        self.patch = patch_size(self.height, self.columns)
        rows, columns = math.ceil(self.height / self.patch), math.ceil(self.columns / self.patch)
        self.grid = (rows, columns)
        area = self.channels * self.patch**2
        self.inlet = linear(area, width, source)
        self.position = nn.Parameter(
            0.1 * torch.randn(width, rows, columns, generator=source, dtype=torch.float32)
        )
        kernel = 5 if min(self.grid) >= 5 else 3
        self.blocks = nn.ModuleList(
            ConvolutionalBlock(width, embedding.n_features, kernel, dropout, source)
            for _ in range(n_blocks)
        )
        self.norm = RMSNorm()
        self.outlet = linear(width, area * n_outputs, source, zero=True)

    @classmethod
    def least_numbers(cls, **config: Any) -> int:
        """Return how many weights such a network has at least."""
        sizes = [check_size(size, least=1) for size in config["image_shape"]]
        channels, height, columns = (1, *sizes)[-3:]
        width = check_size(config["width"])
        area = channels * patch_size(height, columns) ** 2
        n_condition = 2 * check_size(config["embedding"].n_features)
        in_blocks = check_size(config["n_blocks"]) * (4 * width + n_condition)
        return width * (area * (1 + check_size(config["n_outputs"])) + in_blocks)

    def to_patches(self, pixels: Tensor) -> Tensor:
        """Return pixels (B, channels * height * width) as (B, rows, columns, area)."""
        images = pixels.reshape(-1, self.channels, self.height, self.columns)
        rows, columns = self.grid
        padding = (0, columns * self.patch - self.columns, 0, rows * self.patch - self.height)
        images = nn.functional.pad(images, padding)
        patches = nn.functional.pixel_unshuffle(images, self.patch)
        return patches.permute(0, 2, 3, 1)

    def to_pixels(self, patches: Tensor) -> Tensor:
        """Return patches (B, rows, columns, area * n_outputs) as (B, n_pixels * n_outputs)."""
        images = nn.functional.pixel_shuffle(patches.permute(0, 3, 1, 2), self.patch)
        images = images[:, :, : self.height, : self.columns]
        by_pixel = images.reshape(len(images), self.channels, self.n_outputs, -1)
        return by_pixel.permute(0, 1, 3, 2).flatten(1)

    def forward(self, inputs: Tensor, logsnr: Tensor) -> Tensor:
        """Return (B, n_pixels * n_outputs) for posterior means (B, n_pixels)."""
        condition = self.embedding(logsnr)
        h = self.inlet(self.to_patches(inputs)).permute(0, 3, 1, 2) + self.position
        for block in self.blocks:
            h = block(h, condition)
        return self.to_pixels(self.outlet(self.norm(h.permute(0, 2, 3, 1))))

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs."""
        n_pixels = math.prod(self.image_shape)
        return n_pixels, n_pixels * self.n_outputs


def patch_size(height: int, width: int) -> int:
    """Return the side of the patches: 1, and larger powers of two for larger images."""
    size = 1
    while math.ceil(height / size) * math.ceil(width / size) > MAX_POSITIONS:
        size *= 2
    return size


@stored()
class ConvolutionalFamily(NetworkFamily):
    """Small convolutional networks, for images.

    Besides a network on discrete pixels a fully connected one of 2 blocks of 256 units is trained,
    which is called ``"dense_network"``.

    See Also
    --------
    ConvolutionalNetwork : The networks.

    Examples
    --------
    >>> from sk_itdiffusion.denoisers import ConvolutionalFamily, NetworkTask
    >>> family = ConvolutionalFamily()
    >>> family.applies(NetworkTask(image_shape=(8, 8))), family.applies(NetworkTask())
    (True, False)
    """

    name = "convolutional"
    needs = "images: IMMSEDiscreteDensity or IMMSEDensity with image_shape"

    def build(self, plan: BackbonePlan) -> ConvolutionalNetwork:
        """Return an untrained network; see `NetworkFamily.build`."""
        assert plan.task.image_shape is not None
        return ConvolutionalNetwork(
            plan.task.image_shape,
            plan.n_outputs // math.prod(plan.task.image_shape),
            plan.embedding,
            width=plan.hidden_size,
            n_blocks=plan.n_blocks,
            dropout=plan.dropout,
            generator=plan.generator,
        )

    def applies(self, task: NetworkTask) -> bool:
        """Return whether columns are pixels; see `NetworkFamily.applies`."""
        return task.image_shape is not None

    def usual(self, task: NetworkTask) -> UsualParameters:
        """Return what "auto" stands for; see `NetworkFamily.usual`."""
        return UsualParameters(64, n_blocks=3, batch_size=128, learning_rate=0.02)

    def beside(self, task: NetworkTask) -> dict[str, PlannedNetwork]:
        """Return the fully connected network; see `NetworkFamily.beside`."""
        if not task.has_categories:
            return {}
        return {NETWORK_BESIDE: PlannedNetwork(MLPFamily(), WIDTH_BESIDE, BLOCKS_BESIDE)}
