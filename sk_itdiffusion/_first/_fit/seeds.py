"""Seeds of the parts of a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sk_itdiffusion._first._immse.cubature import MAX_SEED
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_in_range

__all__ = ["Seeds"]


@stored()
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

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        seeds = [self.split, self.mixtures, self.network, self.scoring]
        check_in_range(seeds, 0, MAX_SEED, "seeds")
