"""scikit-learn's contract: parameters, validation of input, and results in the user's units.

Estimators validate and delegate: what is fitted is a `Model`, and everything that is asked of it is
`Model.log_prob`, `Model.sample` or `Model.denoise`.
"""
