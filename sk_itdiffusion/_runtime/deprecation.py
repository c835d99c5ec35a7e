"""How public names go: with a FutureWarning that says since when, until when and what to use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sk_itdiffusion._runtime.warning import warn

__all__ = ["deprecated", "renamed_parameters", "replaced_parameter"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: Default of a parameter of an estimator that is to be given no more.
NOT_GIVEN = "deprecated"


def announcement(what: str, since: str, removed_in: str, instead: str) -> str:
    """Return the message of a deprecation."""
    return (
        f"{what} is deprecated since sk_itdiffusion {since} and will be removed in {removed_in}; "
        f"use {instead} instead."
    )


def deprecated(
    *, since: str, removed_in: str, instead: str
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator for a function or method that is to be called no more.

    Parameters
    ----------
    since, removed_in : str
        The versions that deprecate and remove it.
    instead : str
        What to use.

    Returns
    -------
    callable
        The decorator.

    Examples
    --------
    >>> from sk_itdiffusion._runtime.deprecation import deprecated
    >>> @deprecated(since="0.2", removed_in="0.4", instead="new()")
    ... def old():
    ...     return 1
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        message = announcement(f"{function.__qualname__}()", since, removed_in, instead)

        @functools.wraps(function)
        def warning(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            warn(message, FutureWarning)
            return function(*args, **kwargs)

        return warning

    return decorate


def renamed_parameters(
    *, since: str, removed_in: str, **new_names: str
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Return a decorator for a function that also takes keywords by their old names.

    It is not for constructors of estimators, whose signature scikit-learn reads; see
    `replaced_parameter`.

    Parameters
    ----------
    since, removed_in : str
        The versions that deprecate and remove the old names.
    **new_names : str
        The new names by the old ones.

    Returns
    -------
    callable
        The decorator.  A call with the old and the new name raises a TypeError.

    Examples
    --------
    >>> from sk_itdiffusion._runtime.deprecation import renamed_parameters
    >>> @renamed_parameters(since="0.2", removed_in="0.4", n="n_samples")
    ... def draw(n_samples=1):
    ...     return n_samples
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def renaming(*args: Any, **kwargs: Any) -> Result:
            for old in kwargs.keys() & new_names.keys():
                new = new_names[old]
                if new in kwargs:
                    raise TypeError(
                        f"{function.__qualname__}() got {new!r} and its old name {old!r}."
                    )
                what = f"The parameter {old!r} of {function.__qualname__}()"
                message = announcement(what, since, removed_in, repr(new))
                warn(message, FutureWarning)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renaming

    return decorate


def replaced_parameter(estimator: Any, old: str, new: str, *, since: str, removed_in: str) -> Any:
    """Return the value of a parameter of an estimator that may be given by its old name.

    The constructor keeps the old parameter with the default ``"deprecated"``; `fit` calls this.

    Parameters
    ----------
    estimator : estimator
        The estimator.
    old, new : str
        The names.
    since, removed_in : str
        The versions that deprecate and remove the old name.

    Returns
    -------
    object
        The value.

    Raises
    ------
    ValueError
        If both are given.
    """
    value = getattr(estimator, old)
    if isinstance(value, str) and value == NOT_GIVEN:
        return getattr(estimator, new)
    usual = inspect.signature(type(estimator).__init__).parameters[new].default
    if getattr(estimator, new) is not usual:
        raise ValueError(f"{new} and its old name {old} are both given; leave {old} out.")
    what = f"The parameter {old!r} of {type(estimator).__name__}"
    message = announcement(what, since, removed_in, repr(new))
    warn(message, FutureWarning)
    return value
