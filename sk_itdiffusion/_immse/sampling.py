r"""Deterministic sampler in the log-SNR.

In the variable :math:`y = z / \sqrt{\sigma(a)} = x + e^{-a/2}\epsilon` the probability-flow
equation is :math:`dy / ds = \hat\epsilon(z, a)` with :math:`s = e^{-a/2}`.  It is integrated by
Heun's method from a draw of the noised reference at the low end of the log-SNR to the high end,
where the denoiser's estimate of the data is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sk_itdiffusion._runtime.memory import retry_with_less_memory
from sk_itdiffusion._runtime.parallel import map_in_workers
from sk_itdiffusion._runtime.progress import current_progress
from sk_itdiffusion.channel import data_from_noise, signal_scale

__all__ = ["probability_flow", "probability_flow_in_blocks"]


@retry_with_less_memory
def probability_flow_in_blocks(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    logsnr: Tensor,
    *,
    budget: int = 4096,
) -> Tensor:
    """Return what `probability_flow` does, of so many rows at a time as there is memory for.

    Parameters
    ----------
    denoiser : callable
        Maps ``z`` (B, d) and ``logsnr`` (B,) to the predicted noise (B, d).
    start : Tensor of shape (n, d)
        Observations at the first log-SNR.
    logsnr : Tensor of shape (n_steps + 1,)
        Increasing log-SNRs.
    budget : int, default=4096
        Rows at a time.

    Returns
    -------
    Tensor of shape (n, d)
        Data points.

    Raises
    ------
    MemoryError
        If there is too little memory, even for an eighth of the rows at a time.
    """
    blocks = map_in_workers(
        lambda block: probability_flow(denoiser, block, logsnr),
        start.split(budget),
        start.device,
        current_progress(),
    )
    return torch.cat(blocks)


@torch.no_grad()
def probability_flow(
    denoiser: Callable[[Tensor, Tensor], Tensor], start: Tensor, logsnr: Tensor
) -> Tensor:
    """Return data points from noisy ones, by Heun steps of the probability flow.

    Parameters
    ----------
    denoiser : callable
        Maps ``z`` (B, d) and ``logsnr`` (B,) to the predicted noise (B, d).
    start : Tensor of shape (B, d)
        Observations at the first log-SNR.
    logsnr : Tensor of shape (n_steps + 1,)
        Increasing log-SNRs.

    Returns
    -------
    Tensor of shape (B, d)
        Data points.
    """
    z = start

    def level(value: Tensor) -> Tensor:
        return value.repeat(len(start))

    for here, there in pairwise(logsnr):
        step = torch.exp(-0.5 * there) - torch.exp(-0.5 * here)
        now, then = signal_scale(here), signal_scale(there)
        slope = denoiser(z, level(here))
        guess = then * (z / now + step * slope)
        slope = 0.5 * (slope + denoiser(guess, level(there)))
        z = then * (z / now + step * slope)
    return data_from_noise(z, denoiser(z, level(logsnr[-1])), level(logsnr[-1]))
