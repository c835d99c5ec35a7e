"""Estimators in files, without pickle.

May import `_version` and `_runtime` of the package.
"""

from sk_itdiffusion.persistence.files import SaveMixin, load

__all__ = ["SaveMixin", "load"]
