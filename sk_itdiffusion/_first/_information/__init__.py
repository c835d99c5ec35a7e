"""Information between groups of columns: what estimates it from rows, without any table.

Rows are matrices of numbers and codes.  Each continuous column is seen through its normal scores,
which changes no information and removes heavy tails; experts then say how likely the columns of one
side are given those of the other, and by themselves.  May import `channel`, `layout`, `_immse` and
`references` of the package.
"""

__all__: list[str] = []
