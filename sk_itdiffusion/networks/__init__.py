r"""Networks that correct a reference's denoiser, and their training.

.. math:: \hat\epsilon(z, a) = \hat\epsilon_{ref}(z, a)
    + \sqrt{s(a)\, s(-a)}\; e^{g(a)}\, F(z, a, \text{roles})

The last layer of F starts at zero, so that an untrained network is the reference; g is a learned
gain.  F sees the noisy point, the log-SNR, and two flags for each column, target and given, so that
one network answers all questions that it was trained on.
"""
