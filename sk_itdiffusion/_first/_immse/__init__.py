"""The mathematics: from a denoiser to log-densities, probabilities, errors and samples.

Noise that is keyed by the row and its rules, the integral over the log-SNR, profiles of errors and
the weights of experts that follow from them, noise paths of discrete rows, and the sampler.
Denoisers are callables here, and rows are arrays.  May import `_runtime`, `persistence`, `channel`
and `layout` of the package.
"""

__all__: list[str] = []
