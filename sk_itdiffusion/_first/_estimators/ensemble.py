r"""Ensembles of density estimators, selected or weighted at each log-SNR.

A convex combination of denoisers is a denoiser, so with weights :math:`w_i(a)` that may depend on
the log-SNR :math:`a`

.. math:: \hat\epsilon(z, a) = \sum_i w_i(a)\, \hat\epsilon_i(z, a)

defines a density by the I-MMSE relation, whose cross-entropy decreases with its squared error at
each log-SNR (Kong et al., 2023, put all weight on the best).

**One space.**  All denoisers have to see rows with the same noise.  If a member's rows
are :math:`u_m = c\, u + b` in terms of the ensemble's rows :math:`u`, with one factor c for all
columns, then the noise that it predicts at :math:`z_m, a_m` is that at :math:`z, a` for

.. math:: a_m = a - 2 \log c, \qquad
    z_m = \sqrt{\sigma(a_m)} \left(\frac{c\, z}{\sqrt{\sigma(a)}} + b\right) .

Any other difference between the spaces would change the shape of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Bunch, check_random_state, get_tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import validate_data

from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._estimators.categorical import CategoricalEstimator
from sk_itdiffusion._first._estimators.ensemble_rows import (
    grouped_rows,
    has_counts,
    held_out,
    number_of_rows,
    observations_apart,
)
from sk_itdiffusion._first._estimators.membership import (
    check_categories,
    check_dequantizers,
    check_devices,
    check_integrate,
    check_member_is_fitted,
    check_one_kind,
    checked_member,
    fixes_space,
    image_shape_of,
    is_dropped,
    unfitted_copy,
)
from sk_itdiffusion._first._estimators.parameters import checked_image_shape, flattened_images
from sk_itdiffusion._first._estimators.table import ChosenRows, CountedRows, TableEstimator
from sk_itdiffusion._first._fit.ensemble_model import (
    EnsembleModel,
    WeightSettings,
    fit_ensemble_model,
    transport_between,
)
from sk_itdiffusion._first._fit.schema import check_bounds, holds_out
from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import rows_together
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._runtime.callbacks import FitTasks, with_callbacks
from sk_itdiffusion._first._runtime.progress import progress_bar, stretch_of_progress
from sk_itdiffusion._first._table.encoding import TableEncoder
from sk_itdiffusion._first._table.groups import RowGroups, checked_groups
from sk_itdiffusion._first._table.partitions import in_memory
from sk_itdiffusion._first._table.reading import naming_columns, read_table, without_tensors
from sk_itdiffusion._first._table.rows import WeightedRows, observations_per_weight
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_same
from sk_itdiffusion._first.references import ContinuousReference

__all__ = ["IMMSEEnsemble"]

Array = NDArray[np.float64]

stored()(FrozenEstimator)


@stored(
    attributes=(
        "n_features_in_",
        "feature_names_in_",
        "_encoder",
        "_frame_format",
        "_image_shape",
        "named_estimators_",
        "_model",
        "member_entropies_",
    ),
    members=("estimators", "named_estimators_"),
    left_out=("callbacks",),
)
class IMMSEEnsemble(_BaseComposition, DensityEstimator):
    r"""Ensemble of density estimators with weights at each log-SNR.

    The squared error of a denoiser, integrated over the log-SNR a, defines a density (see
    `IMMSEDensity`).  At each log-SNR the denoisers of the members are combined [1]_,

    .. math:: \hat\epsilon(z, a) = \sum_i w_i(a)\, \hat\epsilon_i(z, a), \qquad
        w_i(a) \ge 0, \quad \sum_i w_i(a) = 1,

    with weights that minimise the squared error on validation rows: a member that is good at fine
    structure gets weight at high log-SNRs only.  An average of log-densities cannot do this.

    Parameters
    ----------
    estimators : list of (str, estimator) tuples
        Names and members: `IMMSEDensity`, or `IMMSEDiscreteDensity` and `IMMSEMixedDensity`.  A
        fitted member is wrapped in `sklearn.frozen.FrozenEstimator`; a member that is set to
        ``"drop"`` is ignored.
    weights : {"stack", "select"}, default="stack"
        Weights at each node of the log-SNR: the convex combination of smallest validation error,
        which is never worse than the best member; or all weight on the expert of smallest error, as
        in [1]_.  They are interpolated between nodes.  With 50 validation rows or fewer, stacked
        weights are shrunk towards a simple reference within one standard error.
    include_references : bool, default=True
        Whether the analytic references of the members are experts as well (equal ones once).
    prefit : bool, default=False
        Whether all members are already fitted.  Then `fit` only finds the weights, from all rows it
        is given, which must not be the training rows of the members.  `sklearn.base.clone`, as in
        searches, discards such fits, but not those of frozen members.
    validation_fraction : float, default=0.1
        Fraction in (0, 1) of the rows, at least 10 and at most 10,000, that is held out for the
        weights while members are fitted to the others.  With fewer than 40 rows (distinct ones if
        columns are continuous) all rows are used for both.
    score_tol : float, "auto" or None, default=None
        Target standard error of the numerical integration for each row, in nats, positive; see
        `IMMSEDensity`.  None uses the smallest of the members.  It may be changed after `fit`.
    verbose : int, default=0
        Verbosity, at least 0 (silent).  With 1 or more, `fit` shows one progress bar for all
        members, whatever their own ``verbose`` is; scoring and sampling show one if they take more
        than a few seconds.
    random_state : int, RandomState or None, default=None
        Seed of the split, of the noise in scoring, and of the members whose ``random_state`` is
        None.

    Attributes
    ----------
    estimators_ : list of estimators
        The fitted members that are not dropped, frozen ones unwrapped.
    named_estimators_ : Bunch
        The same by name.
    member_weights_ : dict of str to ndarray of shape (n_nodes,)
        Weights of the members and references at the nodes.  A reference has the name that its
        member gives it, such as ``"gaussian"``, or ``"<member>__gaussian"`` if another expert has
        that name.
    logsnr_ : ndarray of shape (n_nodes,)
        Nodes of the log-SNR: equidistant over the ranges of all members, at least 41, and as close
        as those of the member with the closest ones.
    entropy_ : float
        The validation bound of the ensemble: an upper estimate of the entropy of the data, in nats,
        slightly optimistic since the weights were chosen on the same rows.  NaN if members were
        fitted to fewer than 40 rows, none of which were held out.
    entropy_std_ : float
        Its standard error, in nats, over the validation rows.
    member_entropies_ : dict of str to float
        The bound of each member and reference alone, with the same rows, noise and nodes.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X had string names.

    See Also
    --------
    IMMSEDensity : A single estimator weights its own network and references in this way.
    sklearn.ensemble.StackingRegressor : Stacking of regressors.

    Notes
    -----
    A convex combination of denoisers is a denoiser, so the estimate is a bound like those of the
    members: up to the error of the integration, the mean of ``-score_samples`` over new rows is at
    least the entropy of their distribution.

    Unseen values of discrete columns have the probabilities of the first fitted member, or else of
    the first member.

    All members denoise the same rows.  A member that is fitted here is fitted in the space of the
    first fitted member, or of the first one that fixes its own (by a ``denoiser`` or a `Reference`
    object), or of the first one; the maps of continuous columns (``marginals``, ``bounds``) are
    those of that member.  Fitted members may differ by one common factor of all columns, and by
    shifts; discrete columns have to have the same categories, embedded alike.  Discrete members
    be used with their denoisers whatever their ``likelihood`` is; with ``dequantize`` all need
    the same steps.

    In `mse_curve` the members are among the ``networks``.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble
    >>> X = np.random.default_rng(0).normal(size=(600, 2))
    >>> members = [
    ...     ("small", IMMSEDensity(reference="gaussian", hidden_size=16, max_epochs=1)),
    ...     ("large", IMMSEDensity(reference="gaussian", hidden_size=32, max_epochs=1)),
    ... ]
    >>> ensemble = IMMSEEnsemble(members, random_state=0).fit(X)
    >>> ensemble.entropy_ <= min(ensemble.member_entropies_.values())
    True
    >>> ensemble.score_samples(X[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimators": [list],
        "weights": [StrOptions({"stack", "select"})],
        "include_references": ["boolean"],
        "prefit": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "score_tol": [None, StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    estimators_: list[TableEstimator]
    _encoder: TableEncoder | None
    _image_shape: Sequence[int] | None
    score_tol: float | str | None  # type: ignore[assignment]

    def __init__(
        self,
        estimators: list[tuple[str, Any]],
        *,
        weights: str = "stack",
        include_references: bool = True,
        prefit: bool = False,
        validation_fraction: float = 0.1,
        score_tol: float | str | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimators = estimators
        self.weights = weights
        self.include_references = include_references
        self.prefit = prefit
        self.validation_fraction = validation_fraction
        self.score_tol = score_tol
        self.verbose = verbose
        self.random_state = random_state

    # -- parameters --------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, those of the members as ``<name>__<parameter>``.

        Parameters
        ----------
        deep : bool, default=True
            Whether to return the members by name, and their parameters.

        Returns
        -------
        dict
            Names and values.
        """
        return dict(self._get_params("estimators", deep=deep))

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of members as ``<name>__<parameter>``, or members by name.

        Parameters
        ----------
        **params : dict
            Names and values; a member set to ``"drop"`` is ignored.

        Returns
        -------
        IMMSEEnsemble
            The ensemble itself.
        """
        self._set_params("estimators", **params)
        return self

    def __sklearn_tags__(self) -> Any:
        """Return the tags: strings and categories are accepted if all members accept them."""
        tags = super().__sklearn_tags__()
        try:
            inputs = [
                get_tags(member).input_tags
                for _, member in self.estimators
                if not is_dropped(member)
            ]
        except (AttributeError, TypeError, ValueError):
            return tags  # `fit` will raise an error that tells more
        tags.input_tags.categorical = bool(inputs) and all(each.categorical for each in inputs)
        tags.input_tags.string = bool(inputs) and all(each.string for each in inputs)
        return tags

    # -- fit ---------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the members to some of the rows, and the weights to the others.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows; at least 2.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a weight of 2 is the same as having the row twice.
        groups : array-like of shape (n_samples,), default=None
            Hashable labels of the groups that rows belong to: all rows of a group are used for the
            members, or all for the weights; the same holds within the members.

        Returns
        -------
        IMMSEEnsemble
            The fitted ensemble.

        Raises
        ------
        ValueError
            If the names or members are invalid, members cannot be combined, X is not valid for
            them, or there are too few groups to split.
        TypeError
            If a member is not an estimator of this library.
        NotFittedError
            If a member that should be fitted is not.
        """
        return self._fit(X, y, sample_weight, groups)

    @_fit_context(prefer_skip_nested_validation=False)
    def _fit_to_rank(
        self,
        X: ArrayLike,
        sample_weight: ArrayLike | None = None,
        may_hold_out: bool = True,
        squared_weight: Array | None = None,
    ) -> Self:
        """Fit to rows that will be ranked among themselves; see `DensityEstimator`."""
        return self._fit(
            X,
            sample_weight=sample_weight,
            ranks_training_rows=True,
            may_hold_out=may_hold_out,
            squared_weight=squared_weight,
        )

    def _fit(
        self,
        X: Any,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        ranks_training_rows: bool = False,
        may_hold_out: bool = True,
        squared_weight: Array | None = None,
    ) -> Self:
        """Fit the members and the weights."""
        self._forget_fit()
        members, fitted = self._checked_members()
        random_state = check_random_state(self.random_state)
        seeds = Seeds.draw(random_state)
        for name in members:
            if name not in fitted:
                members[name] = unfitted_copy(members[name], random_state)
        order = sorted(
            members, key=lambda name: (name not in fitted, not fixes_space(members[name]))
        )
        first = members[order[0]]
        X = in_memory(X)
        codes = None if groups is None else checked_groups(groups, X)
        X = self._note_columns(X, first)
        self._check_columns(members, fitted, X)
        if order[0] in fitted:
            values, weight, kinds = first._read_again(X, sample_weight)
        else:
            values, weight, kinds = first._read_first(X, sample_weight, squared_weight)
        per_weight = None
        if sample_weight is not None and squared_weight is not None:
            per_weight = observations_per_weight(np.asarray(sample_weight), squared_weight)
        settings = first._settings().changed(
            validation_fraction=self.validation_fraction,
            may_hold_out=may_hold_out,
            observations_per_weight=per_weight,
        )
        rows, space, is_counted = grouped_rows(values, weight, kinds, settings)
        needs_fit = [name for name in order if name not in fitted]
        belonging = None
        if codes is not None:
            if len(codes) > len(values):  # rows of weight 0 are not read
                codes = codes[np.asarray(without_tensors(sample_weight)) > 0]
            belonging = RowGroups.of(rows, values, weight, codes)
        rows, belonging = observations_apart(rows, belonging, space, is_counted)
        train: ChosenRows = rows.X, rows.weight, None
        valid = rows
        if needs_fit:
            train, valid = held_out(rows, space, settings, seeds, is_counted, belonging)
        elif belonging is not None:
            together = rows_together(rows, space, settings, belonging, is_counted)
            assert together is not None
            valid = together.part(rows, np.ones(len(together.row), dtype=bool))
        n_stretches = len(needs_fit) + 1
        tasks = FitTasks.begin(self, len(needs_fit), X, y, sample_weight)
        with progress_bar(type(self).__name__, self.verbose):
            for number, name in enumerate(needs_fit):
                place = number / n_stretches, (number + 1) / n_stretches
                title = f"{name} ({number + 1}/{len(needs_fit)})"
                with stretch_of_progress(*place, title), tasks.subfit(f"fit {name}", members[name]):
                    fit_member(
                        name,
                        members[name],
                        order[0],
                        first,
                        X,
                        sample_weight,
                        squared_weight,
                        train,
                        1.0 if has_counts(settings, is_counted) else None,
                        ranks_training_rows,
                        may_hold_out,
                    )
            with stretch_of_progress(1.0 - 1.0 / n_stretches, 1.0, "weights"):
                known = WeightedRows(*train[:2]) if needs_fit else None
                self._combine(members, order[0], valid, settings, seeds, known)
        if needs_fit and not holds_out(number_of_rows(rows, space, is_counted), settings):
            self._forget_bounds()
        tasks.end()
        return self

    def _combine(
        self,
        members: Mapping[str, TableEstimator],
        first: str,
        valid: WeightedRows,
        settings: FitSettings,
        seeds: Seeds,
        train: WeightedRows | None,
    ) -> None:
        """Find the weights of fitted members, and set the fitted attributes."""
        models = {name: member._model for name, member in members.items()}
        space = models[first].space
        check_bounds(valid.X, settings, models[first].dequantizer, space)
        check_devices(models)
        check_integrate(models)
        check_dequantizers(models, first)
        transports = {
            name: transport_between(space, model.space, name, first)
            for name, model in models.items()
        }
        model, entropies = fit_ensemble_model(
            models,
            space,
            transports,
            valid,
            WeightSettings(self.weights, self.include_references),
            seeds,
            train,
        )
        self._encoder = getattr(members[first], "_encoder", None)
        self.named_estimators_ = Bunch(**members)
        self.member_entropies_ = entropies
        self._model = model
        self._publish()

    def _publish(self) -> None:
        """Set the public fitted attributes from the model and the members."""
        model = self._model
        self.estimators_ = list(self.named_estimators_.values())
        # Copies: the model must not change when these are written to.
        self.logsnr_ = model.logsnr.copy()
        self.member_weights_ = model.weights_by_expert()
        self.entropy_, self.entropy_std_ = model.entropy, model.entropy_std

    def _finish_loading(self) -> None:
        """Check the stored attributes for consistency, and set those that follow from them."""
        self.named_estimators_ = Bunch(**dict(self.named_estimators_))
        self._check_loaded()
        model = self._model
        members = model.members.items() if isinstance(model, EnsembleModel) else []
        check_same(
            [(name, id(member._model)) for name, member in self.named_estimators_.items()],
            [(name, id(member)) for name, member in members],
            "the members are not those of the model",
        )
        if self._image_shape is not None:
            checked_image_shape(self._image_shape, self.n_features_in_)
        self._publish()

    def _forget_bounds(self) -> None:
        """Remove the validation bounds, since the members were fitted to the same rows."""
        self._model = replace(self._model, entropy=math.nan, entropy_std=math.nan)
        self.entropy_ = self.entropy_std_ = math.nan
        self.member_entropies_ = dict.fromkeys(self.member_entropies_, math.nan)

    def _checked_members(self) -> tuple[dict[str, TableEstimator], set[str]]:
        """Return the members that are not dropped, and the names of those that are fitted."""
        given = self.estimators
        if not given or not all(
            isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)
            for item in given
        ):
            raise ValueError(
                f"estimators must be a list of at least one (name, estimator) tuple, got {given!r}."
            )
        self._validate_names([name for name, _ in given])
        members: dict[str, TableEstimator] = {}
        fitted = set()
        for name, member in given:
            if is_dropped(member):
                continue
            is_frozen = isinstance(member, FrozenEstimator)
            members[name] = checked_member(name, member.estimator if is_frozen else member)
            if is_frozen or self.prefit:
                check_member_is_fitted(name, members[name])
                fitted.add(name)
        if not members:
            raise ValueError("All estimators are dropped. At least one is required.")
        check_one_kind(members)
        return members, fitted

    def _check_columns(
        self, members: Mapping[str, TableEstimator], fitted: Collection[str], X: Any
    ) -> None:
        """Raise an error if a fitted member has other columns than X."""
        names = [name for name in members if name in fitted]
        for name in names:
            member = members[name]
            if member.n_features_in_ != self.n_features_in_:
                raise ValueError(
                    f"The member {name!r} was fitted to {member.n_features_in_} columns, but X has "
                    f"{self.n_features_in_}."
                )
            validate_data(member, X, reset=False, skip_check_array=True)
        for name in names[1:]:
            check_categories(name, members[name], names[0], members[names[0]])

    # -- rows --------------------------------------------------------------------------------

    def _note_columns(self, X: Any, member: TableEstimator) -> Any:
        """Return X, images flattened, once its columns are valid and noted."""
        self._image_shape = image_shape_of(member)
        X = without_tensors(self._flat(X))
        if isinstance(member, CategoricalEstimator):
            read_table(X)
            validate_data(self, X, skip_check_array=True)
        else:
            with naming_columns(X):
                validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
            if hasattr(X, "columns"):
                self._frame_format = TableEncoder.of_numbers(X)
        return X

    def _flat(self, X: Any) -> Any:
        """Return images as rows; anything else as it is."""
        if self._image_shape is None:
            return X
        return flattened_images(X, tuple(self._image_shape))

    def _read(self, X: Any) -> Array:
        """Return numbers and codes of a table like the one fitted."""
        X = without_tensors(self._flat(X))
        if self._encoder is None:
            with naming_columns(X):
                rows = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
            if self._model.dequantizer is not None:
                self._model.dequantizer.check(rows, getattr(self, "feature_names_in_", None))
            return rows
        table = read_table(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        return self._encoder.encode(table)

    def _write(self, values: Array) -> Any:
        """Return the table of numbers and codes."""
        encoder = self._encoder or getattr(self, "_frame_format", None)
        if encoder is None:
            return values
        return encoder.decode(values, self._model.space.bounds_of_columns())

    def _tolerance(self, score_tol: float | str | None = None) -> Tolerance:
        """Return the standard error that scores should have; without one the members' least."""
        if score_tol is not None or self.score_tol is not None:
            return super()._tolerance(score_tol)
        own = [member._tolerance() for member in self.estimators_]
        return min(own, key=lambda tolerance: tolerance.nats)


def fit_member(
    name: str,
    member: TableEstimator,
    first: str,
    leader: TableEstimator,
    X: Any,
    sample_weight: ArrayLike | None,
    squared_weight: Array | None,
    train: ChosenRows,
    per_weight: float | None,
    ranks_training_rows: bool,
    may_hold_out: bool,
) -> None:
    """Fit a member to the training rows, in the space of the first one if that is fitted.

    The member reads all of X, so that categories that the training rows lack are known to it.
    ``per_weight`` is the number of observations that a weight of 1 of a training row stands for.
    """

    def training_rows(values: Array, weight: Array) -> CountedRows:
        check_categories(name, member, first, leader)
        return *train, per_weight

    space = None if member is leader else leader._model.space
    if space is not None and fixes_space(member):
        # A Reference object is in the units of X, of which standardisation is known.
        is_plain = space.marginal_map.is_identity
        space = space if is_plain and isinstance(member.reference, ContinuousReference) else None
    fit = with_callbacks(type(member)._fit)
    fit(
        member,
        X,
        sample_weight,
        space,
        training_rows,
        ranks_training_rows=ranks_training_rows,
        may_hold_out=may_hold_out,
        squared_weight=squared_weight,
    )
