"""Independent columns as experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sk_itdiffusion.references.base import Reference
from sk_itdiffusion.references.discrete import IndependentReference
from sk_itdiffusion.references.families.base import FamilyContext, ReferenceFamily
from sk_itdiffusion.references.gaussian import GaussianReference
from sk_itdiffusion.references.latent_class import smoothed_marginals

if TYPE_CHECKING:
    from sk_itdiffusion._fit.schema import Schema
    from sk_itdiffusion._fit.splitting import MappedSplit

__all__ = ["IndependentFamily"]


class IndependentFamily(ReferenceFamily):
    """Independent discrete columns, beside one normal distribution of the continuous ones.

    It is the plain family of tables with discrete columns.
    """

    name: ClassVar[str] = "independent"
    made_for: ClassVar[str] = "tables with discrete columns"
    is_plain: ClassVar[bool] = True
    is_judged: ClassVar[bool] = False

    def applies(self, schema: Schema) -> bool:
        """Return whether there are discrete columns; see `ReferenceFamily.applies`."""
        return schema.has_levels

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference:
        """Return the frequencies and the normal distribution; see `ReferenceFamily.fit`."""
        layout, normal = split.space.layout, None
        if layout.n_continuous:
            rows = split.continuous_train
            normal = GaussianReference.fit(rows.X, rows.weight)
        return IndependentReference(layout, smoothed_marginals(split.train, layout), normal)
