r"""Deterministic sampler in the log-SNR.

In the variable :math:`y = z / \sqrt{\sigma(a)} = x + s\,\epsilon` with :math:`s = e^{-a/2}` the
probability-flow equation is :math:`dy / ds = \hat\epsilon(z, a)`.  In terms of the denoiser's
estimate of the data, :math:`\hat x = y - s\,\hat\epsilon`, its solution is

.. math:: \frac{y(a')}{s(a')} = \frac{y(a)}{s(a)}
    + \frac12 \int_a^{a'} e^{b/2}\, \hat x(b)\, db.

Along the flow the estimate changes slowly with the log-SNR, so it is replaced by the quadratic
through its last three values, and the integral is exact for that: an exponential integrator of
the Adams type ([1]_), of third order.  Each new value first repeats the step that led to it, with
the quadratic that it is part of ([2]_), and then takes the next one, so that a step costs one
evaluation of the denoiser.

References
----------
.. [1] C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu. "DPM-Solver++: Fast Solver for Guided
   Sampling of Diffusion Probabilistic Models". Machine Intelligence Research 22, 2025.
   https://arxiv.org/abs/2211.01095
.. [2] W. Zhao, L. Bai, Y. Rao, J. Zhou, J. Lu. "UniPC: A Unified Predictor-Corrector Framework for
   Fast Sampling of Diffusion Models". NeurIPS 2023. https://arxiv.org/abs/2302.04867
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._runtime.memory import retry_with_less_memory
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import current_progress
from sk_itdiffusion._first.channel import data_from_noise, signal_scale

__all__ = ["N_STEPS", "probability_flow", "probability_flow_in_chunks"]

Array = NDArray[np.float64]
#: One evaluation fewer than a row takes; see ``benchmarks/sampling_steps.py``.
N_STEPS = 29
#: Values of the estimate that a step is computed from.
_N_KNOWN = 3
#: Nodes and weights on [-1, 1], far more than are needed for a quadratic times an exponential.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@retry_with_less_memory
def probability_flow_in_chunks(
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
    chunks = map_in_workers(
        lambda chunk: probability_flow(denoiser, chunk, logsnr),
        start.split(budget),
        start.device,
        current_progress(),
    )
    return torch.cat(chunks)


@torch.no_grad()
def probability_flow(
    denoiser: Callable[[Tensor, Tensor], Tensor], start: Tensor, logsnr: Tensor
) -> Tensor:
    """Return data points from noisy ones, by steps along the probability flow.

    The denoiser is evaluated once at each log-SNR; its estimate of the data at the last one is
    returned.

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
    levels = logsnr.cpu().double().numpy()
    corrected = predicted = start / signal_scale(logsnr[0])
    estimates: list[Tensor] = []
    for last, level in enumerate(logsnr):
        z, repeated = signal_scale(level) * predicted, level.repeat(len(start))
        newest = data_from_noise(z, denoiser(z, repeated), repeated)
        estimates = [*estimates, newest][-_N_KNOWN:]
        known = levels[: last + 1][-_N_KNOWN:]
        if last > 0:
            corrected = point_at_logsnr(corrected, estimates, known, levels[last - 1], levels[last])
        if last + 1 < len(levels):
            predicted = point_at_logsnr(corrected, estimates, known, levels[last], levels[last + 1])
    return newest


def point_at_logsnr(
    point: Tensor, estimates: Sequence[Tensor], known: Array, here: float, there: float
) -> Tensor:
    """Return a point of the flow at another log-SNR.

    Parameters
    ----------
    point : Tensor of shape (B, d)
        Observations divided by the factor of the data in them.
    estimates : sequence of Tensor of shape (B, d)
        Estimates of the data.
    known : ndarray of shape (n_known,)
        Their log-SNRs.
    here, there : float
        Log-SNRs of the point and of the one that is returned.

    Returns
    -------
    Tensor of shape (B, d)
        The point there, exact if the estimate is the polynomial through those that are given.
    """
    coefficients = estimate_coefficients(known, here, there)
    point = math.exp(0.5 * (here - there)) * point
    for coefficient, estimate in zip(coefficients, estimates, strict=True):
        point = point + float(coefficient) * estimate
    return point


def estimate_coefficients(known: Array, here: float, there: float) -> Array:
    """Return the factors of the estimates at known log-SNRs in a step of the flow.

    They are those with which the integral of ``exp((b - there) / 2) / 2`` times a polynomial in b,
    from here to there, is the sum of the polynomial's known values.
    """
    half = 0.5 * (there - here)
    offsets = half * (_NODES - 1.0)
    weights = 0.5 * half * _WEIGHTS * np.exp(0.5 * offsets)
    moments = weights @ np.vander(offsets, len(known), increasing=True)
    return np.asarray(np.linalg.solve(np.vander(known - there, increasing=True).T, moments))
