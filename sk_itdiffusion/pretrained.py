r"""Networks that others have trained, as denoisers in the log-SNR.

A diffusion model of images knows a time, not a log-SNR, and may predict the noise, the image or a
mixture of both.  With :math:`z = \sqrt{\sigma(a)}\, x + \sqrt{\sigma(-a)}\, \epsilon` the noise
follows from any of them,

.. math:: \hat\epsilon = \frac{z - \sqrt{\sigma(a)}\, \hat x}{\sqrt{\sigma(-a)}}
    = \sqrt{\sigma(-a)}\, z + \sqrt{\sigma(a)}\, \hat v, \qquad
    v = \sqrt{\sigma(a)}\, \epsilon - \sqrt{\sigma(-a)}\, x ,

and the time follows from :math:`a = \log \bar\alpha_t - \log (1 - \bar\alpha_t)` (Kong et al.
2023; Salimans and Ho 2022 for v; Karras et al. 2022 for networks in the noise level).
"""

from sk_itdiffusion._first.pretrained import (
    DiscreteTimeNoise,
    EDMNoise,
    LogSNRNoise,
    NoiseSchedule,
    PretrainedDenoiser,
    SigmaNoise,
)

__all__ = [
    "DiscreteTimeNoise",
    "EDMNoise",
    "LogSNRNoise",
    "NoiseSchedule",
    "PretrainedDenoiser",
    "SigmaNoise",
]
