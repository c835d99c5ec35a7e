"""Estimators in files, without pickle."""

from sk_itdiffusion.persistence.files import SaveMixin, load

__all__ = ["SaveMixin", "load"]
