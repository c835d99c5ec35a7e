"""Seeds of the parts of a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Seeds"]


@dataclass(frozen=True)
class Seeds:
    """Seeds of the parts of a fit."""

    split: int
    mixtures: int
    network: int
    scoring: int

    @classmethod
    def draw(cls, random_state: np.random.RandomState) -> Seeds:
        """Return seeds drawn all at once, so that no choice in a fit shifts another's."""
        return cls(*(int(seed) for seed in random_state.randint(2**31 - 1, size=4)))
