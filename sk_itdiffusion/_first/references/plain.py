"""The reference of the fewest assumptions that each table has."""

from __future__ import annotations

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.discrete import IndependentReference
from sk_itdiffusion._first.references.gaussian import GaussianReference
from sk_itdiffusion._first.references.latent_class import smoothed_marginals

__all__ = ["fit_plain_reference"]


def fit_plain_reference(rows: WeightedRows, layout: Layout) -> Reference:
    """Return one normal distribution, independent discrete columns, or both, of rows.

    Parameters
    ----------
    rows : WeightedRows
        Rows of the layout.
    layout : Layout
        Where the columns are.

    Returns
    -------
    Reference
        The fitted reference.
    """
    normal = None
    if layout.n_continuous or not layout.variables:
        continuous = rows.columns(layout.n_continuous)
        normal = GaussianReference.fit(continuous.X, continuous.weight)
        if not layout.variables:
            return normal
    return IndependentReference(layout, smoothed_marginals(rows, layout), normal)
