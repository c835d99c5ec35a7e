"""Independent columns as experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.families.base import FamilyContext, ReferenceFamily
from sk_itdiffusion._first.references.plain import fit_plain_reference

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.schema import Schema
    from sk_itdiffusion._first._fit.splitting import MappedSplit

__all__ = ["IndependentFamily"]


class IndependentFamily(ReferenceFamily):
    """Independent discrete columns, alongside one normal distribution of the continuous ones.

    It is the plain family of tables with discrete columns.
    """

    name: ClassVar[str] = "independent"
    made_for: ClassVar[str] = "tables with discrete columns"
    is_plain: ClassVar[bool] = True
    is_judged: ClassVar[bool] = False

    def applies(self, schema: Schema) -> bool:
        """Return whether there are discrete columns; see `ReferenceFamily.applies`."""
        return schema.has_categories

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference:
        """Return the frequencies and the normal distribution; see `ReferenceFamily.fit`."""
        return fit_plain_reference(split.train, split.space.layout)
