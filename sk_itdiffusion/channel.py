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

from sk_itdiffusion._first.channel import (
    add_noise,
    data_from_noise,
    noise_from_data,
    noise_scale,
    signal_scale,
)

__all__ = [
    "add_noise",
    "data_from_noise",
    "noise_from_data",
    "noise_scale",
    "signal_scale",
]
