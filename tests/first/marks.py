"""Marks that several test files share."""

import pytest


def others_slow(values, n_quick=1):
    """Return values to parametrise with, all but the first few of them marked slow."""
    values = list(values)
    return values[:n_quick] + [pytest.param(v, marks=pytest.mark.slow) for v in values[n_quick:]]
