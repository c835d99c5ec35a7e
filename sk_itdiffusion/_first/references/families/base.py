"""What a family of references is: one kind of analytic distribution, as an expert of a fit.

A family says for which tables it is made, when it is used without being asked for, how it is
fitted, and what it costs.  It is one object with everything about its kind: a fit knows no names.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first.references.base import Reference

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.schema import Schema
    from sk_itdiffusion._first._fit.splitting import MappedSplit
    from sk_itdiffusion._first._table.rows import WeightedRows

__all__ = ["Demand", "FamilyContext", "JudgedReference", "ReferenceFamily"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Demand:
    """What a fit asks of the families of references.

    Attributes
    ----------
    reference : str or None
        Name of the control variate that is asked for, ``"auto"`` if any will do; None if it is an
        object that is given.
    automatic : bool
        Whether all experts that are experts by default may be used.
    names : tuple of str
        Names of experts that are asked for.
    with_networks : bool
        Whether networks are trained: a fit without them is meant to be quick.
    ranks_training_rows : bool
        Whether the training rows will be ranked among themselves, so that no expert may stand on
        some of them.
    """

    reference: str | None = "auto"
    automatic: bool = True
    names: tuple[str, ...] = ()
    with_networks: bool = True
    ranks_training_rows: bool = False

    @property
    def is_open(self) -> bool:
        """Whether any control variate will do."""
        return self.reference == "auto"

    def asks_for(self, name: str) -> bool:
        """Return whether an expert is asked for by its name."""
        return name in self.names or name == self.reference


@dataclass(frozen=True)
class FamilyContext:
    """What is known when a family is fitted.

    Attributes
    ----------
    schema : Schema
        What the columns are.
    references : mapping of str to Reference
        References that have been fitted before, by their families' names; it cannot be changed.
    random_state : RandomState
        Source of the family's randomness.
    stop : threading.Event
        Set if the fit is to end; a family that takes long then raises `KeyboardInterrupt`.
    """

    schema: Schema
    references: Mapping[str, Reference] = field(default_factory=dict)
    random_state: np.random.RandomState = field(
        default_factory=lambda: np.random.RandomState(0)  # only for direct calls
    )
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class JudgedReference:
    """A reference, and the optimism of its choice on the validation rows.

    Attributes
    ----------
    reference : Reference or None
        The reference; None if it is not useful.
    optimism : ndarray of shape (n_valid,) or float, default=0
        In nats, for each validation row; see `sk_itdiffusion.references.optimism`.
    """

    reference: Reference | None
    optimism: Array | float = 0.0


class ReferenceFamily(DocumentationLinkMixin, BaseEstimator, ABC):
    """One kind of analytic distribution, as an expert of density estimators.

    Derive from this class to let a custom distribution be used in fits: pass an object as
    ``experts=["auto", MyFamily()]``.  Its reference is then an expert like any other, and the
    control variate where it is the most likely of them.  A family takes its parameters like an
    estimator of scikit-learn: ``__init__`` stores them as attributes of the same names.

    Attributes
    ----------
    name : str
        Name of the expert, in ``expert_weights_`` and ``references_``.
    is_plain : bool, default=False
        Whether it is the family that each table has, of the fewest assumptions.
    is_judged : bool, default=True
        Whether validation rows have to evaluate it; with fewer than 40 rows it then is not used.
        If not, `by_default` still says whether it is used.
    needs : tuple of str, default=()
        Names of families that are fitted before it whenever it is used, asked for or not.  Their
        references may be missing from ``context.references`` all the same: if the family is not
        made for the table, rows are too few to evaluate it, or its `fit` returns None.
    holds_rows : bool, default=False
        Whether the reference is built from the training rows themselves.  It is then refitted at
        warm starts, and is not used by default where training rows are ranked.
    shares_grid : bool, default=True
        Whether networks are trained over the range of the log-SNR in which the reference differs
        from a normal distribution; if not only the weights reach so far.
    made_for : str
        For which tables `applies` says that it is made, for messages.
    has_to_be : str
        What its reference has to be on validation rows, or else `fit` returns None, for messages.
    least_gain : float, default=0.0
        Gain of the validation bound, in nats per row, that justifies the cost of its evaluation: if
        the stack gains less by it, or less than a standard error, it is left out again, unless it
        is asked for by its name.

    See Also
    --------
    sk_itdiffusion.references.ContinuousReference : What a distribution has to know.
    sk_itdiffusion.IMMSEDensity : Takes families as ``experts``.

    Notes
    -----
    What the methods are given:

    - ``split``, the rows after the maps of the columns.  ``split.continuous_train`` and
      ``split.continuous_valid`` hold the continuous columns of training and validation rows, and
      ``split.train`` and ``split.valid`` all columns, where codes of discrete ones come last.  Each
      has the rows as ``X``, of shape (n_rows, n_columns), their positive weights as ``weight``, of
      shape (n_rows,), and as ``share`` the weights scaled to sum to 1.  ``split.judged`` is False
      if training rows serve as validation rows too, and ``split.space.layout`` is the
      `sk_itdiffusion.layout.Layout` of the columns.
    - ``schema``, what the columns are: ``n_continuous``, the number of continuous ones;
      ``has_categories``, whether discrete ones vary; ``has_images``, whether rows are images of
      continuous pixels; ``resolution``, the largest step of a lattice of values in standard
      deviations, 0 if there is none; ``device``, where the denoisers will be.
    - ``context``: ``schema``; ``references``, those fitted before by their families' names;
      ``random_state``, the RandomState of the family, which depends on its name alone; ``stop``,
      an event (of the module threading) after whose setting a long fit raises KeyboardInterrupt.
    - ``demand``, what the fit asks for: ``reference``, the name of the control variate, "auto" or
      None for an object; ``is_open``, whether it is "auto"; ``automatic``, whether ``experts`` are
      or hold "auto"; ``names`` of experts that are asked for; ``with_networks``, whether networks
      are trained; ``ranks_training_rows``, whether these are ranked, as detectors do.

    A reference has as many ``n_features`` as the layout has ``n_points``, which for continuous
    columns is their number, and a few rows are tried after each fit.  If a family that is passed
    has no reference in a fit, a warning says why.

    A family is cloned before each fit.  Names such as ``"auto"``, ``"model"``, those of the
    library's families and all that begin with ``"network"`` or have a double underscore are
    reserved.  There are no nested parameters for the families in the list ``experts``: search
    over lists of whole families, ``{"experts": [["auto", MyFamily(2)], ["auto", MyFamily(4)]]}``.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> from sk_itdiffusion.references import GaussianReference, ReferenceFamily
    >>> class WideFamily(ReferenceFamily):
    ...     name = "wide"
    ...
    ...     def fit(self, split, context):
    ...         rows = split.continuous_train
    ...         normal = GaussianReference.fit(rows.X, rows.weight)
    ...         return GaussianReference(normal.mean, 1.5 * normal.covariance)
    >>> X = np.random.default_rng(0).standard_t(5, size=(300, 2))
    >>> density = IMMSEDensity(experts=["auto", WideFamily()], max_epochs=0, random_state=0)
    >>> "wide" in density.fit(X).expert_weights_
    True
    """

    name: ClassVar[str]
    is_plain: ClassVar[bool] = False
    is_judged: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    holds_rows: ClassVar[bool] = False
    shares_grid: ClassVar[bool] = True
    least_gain: ClassVar[float] = 0.0
    made_for: ClassVar[str] = "tables whose varying columns are continuous and not pixels"
    has_to_be: ClassVar[str] = "useful: its fit returned None"

    def applies(self, schema: Schema) -> bool:
        """Return whether the family is made for a table.

        Parameters
        ----------
        schema : Schema
            What the columns are.

        Returns
        -------
        bool
            Whether it is, by default if all columns that vary are continuous and are not pixels.
        """
        return not schema.has_categories and not schema.has_images

    def by_default(self, demand: Demand) -> bool:
        """Return whether the family is used in a fit that does not ask for it.

        Parameters
        ----------
        demand : Demand
            What the fit asks for.

        Returns
        -------
        bool
            Whether it does.  By default it does, except for one that is built from the training
            rows only if networks are trained and no training rows are ranked.
        """
        if not self.holds_rows:
            return True
        return demand.with_networks and not demand.ranks_training_rows

    def why_absent(self, schema: Schema, demand: Demand, judged: bool) -> str:
        """Return why the family has no reference in a fit, for messages.

        Parameters
        ----------
        schema : Schema
            What the columns are.
        demand : Demand
            What the fit asks for.
        judged : bool
            Whether validation rows can evaluate it.

        Returns
        -------
        str
            The reason, which begins with "it" or "there" and ends without a full stop.
        """
        if not self.applies(schema):
            return f"it is made for {self.made_for}"
        if self.is_judged and not judged:
            return (
                "there are fewer than 40 rows (distinct ones if columns are continuous), none of "
                "which are held out to evaluate it"
            )
        if self.is_plain or demand.asks_for(self.name) or self.by_default(demand):
            return f"it is, on the validation rows, not {self.has_to_be}"
        if self.holds_rows and demand.ranks_training_rows:
            return "it contains the training rows, which will be ranked among themselves"
        if self.holds_rows and not demand.with_networks:
            return 'it contains the training rows, which "auto" allows only in fits with networks'
        return "it is not used by default in such a fit (by_default)"

    @abstractmethod
    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference | None:
        """Return the reference that is fitted to training rows.

        Parameters
        ----------
        split : MappedSplit
            Training and validation rows, after the maps of the columns.
        context : FamilyContext
            What else is known.

        Returns
        -------
        Reference or None
            The reference, of rows after the maps; None if the validation rows say that it is not
            useful.
        """

    def fit_judged(self, split: MappedSplit, context: FamilyContext) -> JudgedReference:
        """Return the reference, and the optimism of its choice on the validation rows.

        Parameters
        ----------
        split : MappedSplit
            Training and validation rows, after the maps of the columns.
        context : FamilyContext
            What else is known.

        Returns
        -------
        JudgedReference
            What `fit` returns, without optimism unless a family overrides it.
        """
        return JudgedReference(self.fit(split, context))

    def guide(self, rows: WeightedRows, plain: Reference, resolution: float) -> Reference | None:
        """Return a quick version of the reference, to help in the choice of maps of columns.

        Parameters
        ----------
        rows : WeightedRows
            Mapped continuous columns of training rows.
        plain : Reference
            Normal distribution or mixture that has been fitted to them.
        resolution : float
            Largest lattice step of a column in standard deviations; 0 if there is none.

        Returns
        -------
        Reference or None
            The reference; None, by default, if it is no guide.
        """
        return None
