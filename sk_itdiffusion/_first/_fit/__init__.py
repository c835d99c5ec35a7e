"""A fit: the stages from rows to a model, and the model.

`fitting` calls the stages in turn: `schema`, `splitting` and `map_choice`, `selection`, `networks`,
`stacking`.  `incremental` and `ensemble_model` call the same ones, and `model` scores and samples.
Rows are arrays of numbers here, and settings frozen; nothing knows of an estimator.  May import
`_runtime`, `persistence`, `channel`, `distributed`, `layout`, `pretrained`, `_immse`, `schedules`,
`_table`, `references` and `denoisers` of the package.
"""

__all__: list[str] = []
