r"""Tables as points: how columns are read, and the increasing maps that they are seen through.

The I-MMSE relation is applied to u = T(x), with T a smooth, strictly increasing map of each column;
:math:`\log p(x) = \log p_U(T(x)) + \sum_j \log T_j'(x_j)`, where the sum runs over the targets.
"""
