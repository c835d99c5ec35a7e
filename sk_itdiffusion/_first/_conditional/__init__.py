"""Distributions of a target given features: base models, their residuals and probabilities.

Any scikit-learn model gives a location and a scale, or probabilities, out of fold; what is left is
a distribution of few dimensions, in front of which a network sees the features.  May import
`_runtime`, `persistence`, `channel`, `layout`, `_immse`, `schedules`, `_table`, `references`,
`denoisers` and `_fit` of the package.
"""

__all__: list[str] = []
