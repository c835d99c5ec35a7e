"""What estimators return of the errors of their denoisers."""

from sk_itdiffusion._first._immse.likelihood import MSECurve

__all__ = ["MSECurve"]
