"""scikit-learn's callbacks, where the installed version has them (from 1.9 on, experimental).

Nothing of that interface is called unless an estimator has callbacks, so that fits without them do
not depend on how it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn 1.8

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """There are no callbacks to support."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


__all__ = ["CallbackSupportMixin", "FitTasks", "with_callbacks"]


class FitTasks:
    """The tasks of one fit, as scikit-learn's callbacks see them.

    Parameters
    ----------
    estimator : estimator or None, default=None
        The estimator that is fitted.
    context : CallbackContext or None, default=None
        The fit; None if there is no callback to tell of it.
    arguments : dict or None, default=None
        What the fit was given.
    """

    def __init__(
        self, estimator: Any = None, context: Any = None, arguments: dict[str, Any] | None = None
    ) -> None:
        self.context = context
        self._task: Any = None
        self._arguments = {"estimator": estimator, **(arguments or {})}

    @classmethod
    def begin(
        cls, estimator: Any, n_tasks: int, X: Any, y: object = None, sample_weight: Any = None
    ) -> FitTasks:
        """Tell the estimator's callbacks that a fit of at most n tasks begins."""
        if not getattr(estimator, "_skl_callbacks", None):
            return cls()
        context = estimator._init_callback_context(max_subtasks=n_tasks)
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        tasks = cls(estimator, context, {"X": X, "y": y, "metadata": metadata})
        context.call_on_fit_task_begin(**tasks._arguments)
        return tasks

    @property
    def are_watched(self) -> bool:
        """Whether there is a callback."""
        return self.context is not None

    def end(self) -> None:
        """Tell that the fit has ended; the estimator is fitted."""
        if self.context is not None:
            self.context.call_on_fit_task_end(**self._arguments, reconstruction_attributes={})

    def begin_task(self, name: str) -> None:
        """Tell that a task of the fit begins."""
        if self.context is not None:
            self._task = self.context.subcontext(task_name=name)
            self._task.call_on_fit_task_begin(**self._arguments)

    def end_task(self, attributes: Callable[[], dict[str, Any] | None] | None = None) -> bool:
        """Tell that the task has ended, and return whether a callback asks to end the fit.

        Parameters
        ----------
        attributes : callable or None, default=None
            Returns the attributes of the estimator as if its fit had ended now, None if they are
            not known; called only if a callback asks for them.
        """
        task, self._task = self._task, None
        if task is None:
            return False
        return bool(
            task.call_on_fit_task_end(**self._arguments, reconstruction_attributes=attributes)
        )

    @contextmanager
    def subfit(self, name: str, estimator: Any) -> Iterator[None]:
        """Tell of the fit of another estimator, which is a task of this one."""
        if self.context is None:
            yield
            return
        task = self.context.subcontext(task_name=name)
        with task.propagate_callback_context(estimator):
            task.call_on_fit_task_begin(**self._arguments)
            yield
            task.call_on_fit_task_end(**self._arguments)
