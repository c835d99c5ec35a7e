"""U-Net of the diffusers package as the backbone for images."""

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
    UsualParameters,
)
from sk_itdiffusion._first.denoisers.mlp import replace_dropout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.pretrained import first_output, half_precision, import_diffusers

__all__ = ["UNetBackbone", "UNetFamily", "unet_channels"]

#: Time steps over the range of the log-SNR, in the units of the network's time embedding.
N_TIMES = 1000.0
MIN_SIDE = 4
GROUPS = 8


@stored()
class UNetBackbone(ConfiguredModule):
    """`diffusers.UNet2DModel` on flat images, called with the log-SNR.

    Its last layer starts at zero, and its weights come from a local generator.

    Parameters
    ----------
    image_shape : tuple of int
        Channels, height and width.
    low, high : float
        Range of the log-SNR.
    width : int, default=32
        Channels at full resolution, a multiple of 8; twice as many below.
    n_blocks : int, default=1
        Residual blocks at each resolution.
    dropout : float, default=0.0
        Dropout rate.
    generator : torch.Generator or None, default=None
        Source of the initial weights; None makes one with seed 0.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        low: float,
        high: float,
        *,
        width: int = 32,
        n_blocks: int = 1,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.low, self.high = low, high
        self.width, self.n_blocks, self.dropout = width, n_blocks, dropout
        channels = unet_channels(image_shape, width)
        side = 2 ** (len(channels) - 1)
        height, columns = image_shape[1:]
        self.padding = (-columns % side, -height % side)
        unet = import_diffusers().UNet2DModel
        # Built without numbers, because its own initialisation draws from the global generator.
        with torch.device("meta"):
            network = unet(
                sample_size=(height + self.padding[1], columns + self.padding[0]),
                in_channels=image_shape[0],
                out_channels=image_shape[0],
                layers_per_block=n_blocks,
                block_out_channels=channels,
                down_block_types=("DownBlock2D",) * len(channels),
                up_block_types=("UpBlock2D",) * len(channels),
                norm_num_groups=GROUPS,
                attention_head_dim=GROUPS,
                dropout=dropout,
            )
        self.network = network.to_empty(device="cpu")
        source = CopyableGenerator().manual_seed(0) if generator is None else generator
        initialize(self.network, source)
        replace_dropout(self.network, source)
        with torch.no_grad():
            self.network.conv_out.weight.zero_()

    @classmethod
    def least_numbers(cls, **config: Any) -> int:
        """Return how many weights such a network has at least: those of its widest blocks."""
        channels = check_size(config["image_shape"][0], least=1)
        width = check_size(config["width"])
        return width * (9 * channels + check_size(config["n_blocks"]) * 9 * width)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return (B, d) for flat images z (B, d) and logsnr (B,)."""
        images = z.reshape(-1, *self.image_shape)
        images = nn.functional.pad(images, (0, self.padding[0], 0, self.padding[1]))
        if z.device.type == "cuda":  # on a CPU it is slower
            images = images.contiguous(memory_format=torch.channels_last)
        time = N_TIMES * (self.high - logsnr) / (self.high - self.low)
        with half_precision(z.device, True):
            output = first_output(self.network(images, time))
        height, columns = self.image_shape[1:]
        return output[:, :, :height, :columns].flatten(1).to(z.dtype)

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs."""
        n_pixels = math.prod(self.image_shape)
        return n_pixels, n_pixels


def unet_channels(image_shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Return the channels at each resolution; the coarsest has at least 4 pixels a side."""
    side = min(image_shape[1:])
    n_halvings = int(min(3, max(1, math.floor(math.log2(max(side, 1) / MIN_SIDE)))))
    return (width, *(2 * width,) * n_halvings)


@torch.no_grad()
def initialize(network: nn.Module, generator: Generator) -> None:
    """Set all weights of convolutions, linear layers and norms, in place."""
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        if weight is None:
            continue
        if weight.ndim == 1:
            weight.fill_(1.0)
        else:
            scale = 1.0 / math.sqrt(weight[0].numel())
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        if own.get("bias") is not None:
            own["bias"].zero_()


@stored()
class UNetFamily(NetworkFamily):
    """U-Nets of the diffusers package, for images of continuous pixels.

    See Also
    --------
    UNetBackbone : The networks.

    Examples
    --------
    >>> from sk_itdiffusion.denoisers import NetworkTask, UNetFamily
    >>> family = UNetFamily()
    >>> family.applies(NetworkTask(image_shape=(1, 8, 8))), family.applies(NetworkTask())
    (True, False)
    """

    name = "unet"
    needs = "images of continuous pixels: IMMSEDensity with image_shape"

    def build(self, plan: BackbonePlan) -> UNetBackbone:
        """Return an untrained network; see `NetworkFamily.build`."""
        assert plan.task.image_shape is not None
        return UNetBackbone(
            plan.task.image_shape,
            *plan.logsnr_range,
            width=plan.hidden_size,
            n_blocks=plan.n_blocks,
            dropout=plan.dropout,
            generator=plan.generator,
        )

    def applies(self, task: NetworkTask) -> bool:
        """Return whether columns are continuous pixels; see `NetworkFamily.applies`."""
        return task.has_continuous_images

    def check(self, task: NetworkTask, hidden_size: int) -> None:
        """Raise an error if channels make no groups of 8; see `NetworkFamily.check`."""
        if hidden_size % GROUPS:
            raise ValueError(
                f"With image_shape, hidden_size must be a multiple of {GROUPS}, got "
                f"{hidden_size!r}."
            )

    def usual(self, task: NetworkTask) -> UsualParameters:
        """Return what "auto" stands for; see `NetworkFamily.usual`."""
        return UsualParameters(32, n_blocks=1, batch_size=64, learning_rate=0.007)
