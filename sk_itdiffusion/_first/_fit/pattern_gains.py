"""What networks with roles gain on the references, by class of patterns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_in_range

__all__ = ["PatternGain", "text_of_gains"]


@stored()
@dataclass(frozen=True)
class PatternGain:
    """What networks gain on the mixture of references in a class of patterns.

    Attributes
    ----------
    has_given, has_many : bool
        Whether columns are given, and whether more than half of all columns are targets.
    n_rows : int
        Validation rows, with a random pattern each, that tell.
    gain, gain_std : float
        Gain of the mean log-density in nats, and its standard error; NaN without rows.
    is_used : bool
        Whether networks answer for these patterns.
    """

    has_given: bool
    has_many: bool
    n_rows: int
    gain: float
    gain_std: float
    is_used: bool

    def as_row(self) -> dict[str, bool | int | float]:
        """Return the entries that users see."""
        return {
            "given": self.has_given,
            "most_columns": self.has_many,
            "n_rows": self.n_rows,
            "gain": self.gain,
            "gain_std": self.gain_std,
            "networks": self.is_used,
        }

    def __str__(self) -> str:
        size = "most columns" if self.has_many else "few columns"
        name = f"{size} given others" if self.has_given else size
        if math.isnan(self.gain):
            return f"{name} not judged"
        used = "used" if self.is_used else "not used"
        return f"{name} {self.gain:+.3f} +- {self.gain_std:.3f} ({used})"

    def _finish_loading(self) -> None:
        """Raise an error if numbers are out of range."""
        check_in_range(self.n_rows, 0, 2**31, "number of rows of a class of patterns")


def text_of_gains(gains: Sequence[PatternGain]) -> str:
    """Return a line about the gains."""
    return f"Gain of networks for parts of rows, in nats: {', '.join(map(str, gains))}"
