"""Rows that are read when they are needed."""

from sk_itdiffusion._table.streams import ImageFolder

__all__ = ["ImageFolder"]
