"""Distributions of a target given features: base models, their residuals and probabilities.

Any scikit-learn model gives a location and a scale, or probabilities, out of fold; what is left is
a distribution of few dimensions.  May import `_runtime`, `persistence`, `_immse`,
`_table` and `references` of the package.
"""

__all__: list[str] = []
