"""Estimators in files, without pickle.

Nothing above this package is imported here: classes whose objects are stored are declared with
`stored` where they are defined, and check what is loaded with the functions of
`sk_itdiffusion.persistence.checks`.

May import `_version` and `_runtime` of the package.
"""

from sk_itdiffusion._first.persistence.files import SaveMixin, load
from sk_itdiffusion._first.persistence.registry import stored

__all__ = ["SaveMixin", "load", "stored"]
