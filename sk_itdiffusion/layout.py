r"""How rows with continuous and discrete columns become points of a Euclidean space.

Each category :math:`k` of a discrete variable has an embedding :math:`v_k`: one of :math:`\pm 1`
for two categories, a point of an equidistant lattice for ordered categories, a multiple of a unit
vector for unordered ones.  The noise channel acts on the concatenated embeddings and continuous
columns, and since no category is lost, the relation between information and estimation gives
log-probabilities of categories as it gives log-densities of continuous columns (Kong et al. 2023).

For one variable, seen through the channel as :math:`z`, the categories have the likelihoods

.. math:: p(z \mid k) \propto \exp\left(
    -\frac{\|z - \sqrt{\sigma(a)}\, v_k\|^2}{2\, \sigma(-a)} \right),

and for independent variables the optimal estimate of :math:`v` is the mean under the posterior
:math:`p(k \mid z) \propto \pi_k\, p(z \mid k)`.

In this module ``rows`` have shape ``(B, n_continuous + m)``: continuous columns, then codes of the
m discrete variables; ``points`` have shape ``(B, d)``.  Negative codes stand for what was not
observed: references know the log-probabilities of such rows, but no points of them.
"""

from sk_itdiffusion._first.layout import (
    LatticeGroup,
    Layout,
    OneHotGroup,
    Variable,
    check_same_layout,
    lattice_values,
)

__all__ = [
    "LatticeGroup",
    "Layout",
    "OneHotGroup",
    "Variable",
    "check_same_layout",
    "lattice_values",
]
