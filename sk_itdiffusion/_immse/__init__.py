r"""The mathematics: from a denoiser and a reference to log-densities.

Every coordinate of a point has its own signal-to-noise ratio: targets are noised at log-SNR a,
given coordinates have no noise, missing ones no signal.  With targets T and given coordinates G,

.. math:: \log p(x_T | x_G) = \log q(x_T | x_G) + \frac12 \int da\; E_\epsilon\left[
    \|\epsilon - \hat\epsilon_q(z, a)\|^2 - \|\epsilon - \hat\epsilon(z, a)\|^2 \right],

the pointwise I-MMSE relation (Kong, Brekelmans, Ver Steeg, ICLR 2023) for a reference q with known
log-density and optimal denoiser, and any denoiser of the data.  Both errors are those of the same
point and noise, so the reference is an exact control variate.
"""
