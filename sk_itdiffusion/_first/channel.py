r"""The Gaussian noise channel, in terms of its log signal-to-noise ratio.

A data point :math:`x` is observed through

.. math:: z = \sqrt{\sigma(a)}\, x + \sqrt{\sigma(-a)}\, \epsilon, \qquad \epsilon \sim N(0, I),

where :math:`a` (``logsnr``) is the logarithm of the signal-to-noise ratio and :math:`\sigma` the
logistic function ([1]_).  A denoiser may predict the data (``x_hat``) or the noise
(``eps_hat``); the two errors are proportional,

.. math:: \|\epsilon - \hat\epsilon\|^2 = e^{a}\, \|x - \hat x\|^2 .

Networks are given :math:`a`, never :math:`e^a`, which overflows where :math:`a` does not.

In this module ``logsnr`` has shape ``(B,)`` and all points have shape ``(B, d)``.

References
----------
.. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
"""

import torch
from torch import Tensor

__all__ = ["add_noise", "data_from_noise", "noise_from_data", "noise_scale", "signal_scale"]


def signal_scale(logsnr: Tensor) -> Tensor:
    """Return the factor of the data in the channel, ``sqrt(sigmoid(logsnr))``.

    Parameters
    ----------
    logsnr : Tensor
        Log signal-to-noise ratios.

    Returns
    -------
    Tensor
        Factors in (0, 1), of the same shape.
    """
    return torch.sigmoid(logsnr).sqrt()


def noise_scale(logsnr: Tensor) -> Tensor:
    """Return the factor of the noise in the channel, ``sqrt(sigmoid(-logsnr))``.

    Parameters
    ----------
    logsnr : Tensor
        Log signal-to-noise ratios.

    Returns
    -------
    Tensor
        Factors in (0, 1), of the same shape.
    """
    return torch.sigmoid(-logsnr).sqrt()


def add_noise(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """Return the channel's output for data ``x`` and noise ``eps``.

    Parameters
    ----------
    x, eps : Tensor of shape (B, d)
        Data and standard normal noise.
    logsnr : Tensor of shape (B,)
        Log signal-to-noise ratios.

    Returns
    -------
    Tensor of shape (B, d)
        The noisy observations.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.channel import add_noise
    >>> add_noise(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1)).square().item()
    0.5...
    """
    return signal_scale(logsnr)[:, None] * x + noise_scale(logsnr)[:, None] * eps


def data_from_noise(z: Tensor, eps_hat: Tensor, logsnr: Tensor) -> Tensor:
    """Return the prediction of the data that belongs to a prediction of the noise.

    Parameters
    ----------
    z, eps_hat : Tensor of shape (B, d)
        Noisy observations, and the noise predicted from them.
    logsnr : Tensor of shape (B,)
        Log signal-to-noise ratios.

    Returns
    -------
    Tensor of shape (B, d)
        The predicted data.
    """
    return (z - noise_scale(logsnr)[:, None] * eps_hat) / signal_scale(logsnr)[:, None]


def noise_from_data(z: Tensor, x_hat: Tensor, logsnr: Tensor) -> Tensor:
    """Return the prediction of the noise that belongs to a prediction of the data.

    Parameters
    ----------
    z, x_hat : Tensor of shape (B, d)
        Noisy observations, and the data predicted from them.
    logsnr : Tensor of shape (B,)
        Log signal-to-noise ratios.

    Returns
    -------
    Tensor of shape (B, d)
        The predicted noise.
    """
    return (z - signal_scale(logsnr)[:, None] * x_hat) / noise_scale(logsnr)[:, None]
