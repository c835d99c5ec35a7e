"""Rows that are read when they are needed."""

from sk_itdiffusion._first._table.streams import ImageFolder

__all__ = ["ImageFolder"]
