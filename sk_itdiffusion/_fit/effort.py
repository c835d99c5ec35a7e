"""How exactly scores are integrated."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Effort"]


@dataclass(frozen=True)
class Effort:
    """How many evaluations scoring may take; see `IntegrationRule` and `NoiseRule`."""

    n_strata: int
    n_draws: int
    n_directions: int | None
