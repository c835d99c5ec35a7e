"""Seeds of data and fits in the tests, which an option of the suite shifts.

A law that holds with one seed only is a limit that was read off one draw; ``--seed-offset`` finds
those.
"""

_offset = 0


def set_offset(offset: int) -> None:
    """Shift all seeds by a number."""
    global _offset
    _offset = offset


def shifted(number: int = 0) -> int:
    """Return a seed, shifted by ``--seed-offset``."""
    return number + 1_000 * _offset
