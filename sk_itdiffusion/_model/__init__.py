"""A fit is five functions, each with a frozen result, and builds one `Model`.

`split_rows` -> `choose_columns` (maps) -> `fit_references` -> `train_networks` -> `stack_experts`.
"""
