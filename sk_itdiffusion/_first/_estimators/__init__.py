"""The estimators: scikit-learn's contract around fits and models.

They check parameters, read tables, call `_fit`, and answer in the units of the user.  May import
`_runtime`, `persistence`, `channel`, `distributed`, `layout`, `pretrained`, `_immse`, `schedules`,
`_table`, `references`, `denoisers`, `_fit`, `_conditional` and `_information` of the package.
"""

__all__: list[str] = []
