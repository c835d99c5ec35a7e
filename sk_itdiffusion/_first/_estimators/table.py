"""Common base of the estimators of tables: parameters, fit, streams, warm starts."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._estimators.parameters import (
    are_equal,
    check_groups_are_held,
    check_number_of_rows,
    check_objects,
    checked_weight,
    resolve_device,
    resolve_experts,
    shared_settings,
    value_or_usual,
)
from sk_itdiffusion._first._estimators.parts import DensityOfParts
from sk_itdiffusion._first._fit.fitting import fit_table_model
from sk_itdiffusion._first._fit.incremental import IncrementalFit
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.networks import networks_to_train
from sk_itdiffusion._first._fit.schema import MIN_ROWS_TO_SPLIT
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._runtime.callbacks import FitTasks
from sk_itdiffusion._first._runtime.progress import progress_bar
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.bounds import resolve_bounds
from sk_itdiffusion._first._table.groups import checked_groups
from sk_itdiffusion._first._table.partitions import is_dask, partitions_of, parts_of, sample
from sk_itdiffusion._first._table.reading import check_complete, check_observed, without_tensors
from sk_itdiffusion._first._table.rows import has_missing, observations_per_weight
from sk_itdiffusion._first._table.space import ColumnKind, TableSpace
from sk_itdiffusion._first._table.streams import Stream, is_dataset
from sk_itdiffusion._first.denoisers import NetworkFamily, NetworkTask
from sk_itdiffusion._first.denoisers.built_in import resolve_family
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.references import ContinuousReference
from sk_itdiffusion._first.references.families import ReferenceFamily
from sk_itdiffusion._first.schedules import SCHEDULES, Schedule, resolve_schedule
from sk_itdiffusion.distributed import current_processes

__all__ = ["TableEstimator", "stored_table"]

Array = NDArray[np.float64]
#: Continuous columns of which each pattern of roles needs a decomposition of the covariance in
#: training: at most, and where nearly each row has a pattern of its own.
MAX_COLUMNS_WITH_ROLES, MAX_COLUMNS_WITH_HOLES = 64, 30
#: Numbers and codes of rows to fit to, their weights, and the numbers of their groups.
ChosenRows = tuple[Array, Array, NDArray[np.intp] | None]
#: The same, and the number of observations that a weight of 1 stands for, None if the weights imply
#: it.
CountedRows = tuple[*ChosenRows, float | None]

#: Declares what of a fitted estimator is stored.  The encoder comes before all that names
#: categories.
stored_table = stored(
    attributes=(
        "n_features_in_",
        "feature_names_in_",
        "_encoder",
        "_frame_format",
        "_model",
        "_kinds",
        "schedule_",
        "_kept",
    ),
    arguments=("_kept",),
    left_out=("callbacks",),
    given=("denoiser",),
)


class TableEstimator(DensityOfParts):
    """Base class of the density estimators for tables.

    Subclasses store the parameters, read tables into numbers and codes, and write samples back.
    """

    _kept: dict[str, Any]
    _increments: IncrementalFit
    _experts: ClassVar[tuple[str, ...]]
    #: Parameters that a warm start must not change.
    _fixed_at_warm_start: ClassVar[tuple[str, ...]] = ("reference", "experts", "network")
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **DensityEstimator._parameter_constraints,
        "experts": [StrOptions({"auto"}), list, tuple],
        "patterns": [StrOptions({"auto", "joint", "any"})],
        "schedule": [StrOptions(set(SCHEDULES)), Schedule],
        "hidden_size": [Interval(Integral, 1, None, closed="left")],
        "n_blocks": [Interval(Integral, 1, None, closed="left")],
        "dropout": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="left")],
        "weight_decay": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "steps_per_epoch": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "tol": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "time_limit": [Interval(Real, 0, None, closed="neither"), None],
        "device": [str, torch.device],
        "warm_start": ["boolean"],
        "callbacks": [None, list, tuple],
    }

    # Declared for the type checker; subclasses set them.
    reference: str | ContinuousReference
    experts: str | Sequence[str | ReferenceFamily]
    patterns: str
    network: str | NetworkFamily
    schedule: str | Schedule
    hidden_size: int | str
    n_blocks: int | str
    dropout: float | str
    weight_decay: float | str
    max_epochs: int
    steps_per_epoch: int | str
    batch_size: int | str
    learning_rate: float | str
    early_stopping: bool
    validation_fraction: float
    tol: float | str
    n_iter_no_change: int
    time_limit: float | None
    device: str
    warm_start: bool
    callbacks: Sequence[Any] | None

    def __sklearn_tags__(self) -> Any:
        """Return the tags: entries may be missing."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    @abstractmethod
    def _read_first(
        self,
        X: Any,
        weight: ArrayLike | None,
        squared_weight: Array | None = None,
        allow_missing: bool = False,
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return numbers and codes, weights and kinds of the columns of a table to be fitted.

        Sums of weights come with the sums of their squares; see `DensityEstimator._fit_to_rank`.
        Missing entries are NaN if they are allowed.
        """

    @abstractmethod
    def _network_task(self) -> NetworkTask:
        """Return the kind of table that networks are for."""

    def _network_family(self, task: NetworkTask) -> NetworkFamily:
        """Return the family of the networks."""
        return resolve_family(self.network, task)

    def _specific_settings(self) -> dict[str, Any]:
        """Return settings that only some estimators have."""
        return {}

    def _validate_params(self) -> None:
        """Check the parameters, with advice where objects are nearly right."""
        check_objects(self.get_params(deep=False))
        super()._validate_params()

    def set_params(self, **params: Any) -> Self:
        """Set parameters, nested ones of objects as ``schedule__<name>`` and ``network__<name>``.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        object
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is unknown, or a nested parameter is set where there is a string instead
            of an object.
        """
        examples = {
            "schedule": "sk_itdiffusion.schedules.LogisticSchedule()",
            "network": "a custom sk_itdiffusion.denoisers.NetworkFamily",
        }
        for holder, example in examples.items():
            value = params.get(holder, getattr(self, holder))
            nested = [name for name in params if name.startswith(f"{holder}__")]
            if nested and isinstance(value, str):
                raise ValueError(
                    f"{nested[0]} needs {holder} to be an object, such as {example}, not the "
                    f"string {value!r}."
                )
        super().set_params(**params)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the density to rows.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows; at least 2. Entries may be missing: NaN, None, pandas' NA or null (see Notes).
            Dask collections may be larger than memory, and for `IMMSEDensity` so may arrays on disk
            (`numpy.memmap`) and torch datasets.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a weight of 2 is the same as having the row twice.  For densities
            only the ratios of the weights matter.  For probabilities (only discrete or dequantised
            columns) the number of observations matters too.  It is given by integer weights.  Other
            weights may have any common factor: if they are multiples, below 1000, of the smallest
            weight, these multiples are numbers of observations; so are multiples below 1000 of any
            unit for fewer than 40 rows at least half of which differ in weight, such as relative
            frequencies of a few states.  Other weights, such as class or survey weights, count as
            many rows as Kish's effective sample size.  Dask collections and datasets cannot have
            weights.
        groups : array-like of shape (n_samples,), default=None
            Hashable labels of the groups that rows belong to, such as the person measured: all rows
            of a group are used for training, or all for validation.  Groups that share equal rows
            are merged, unless all columns are discrete.  None if rows are independent.  Groups are
            not supported if the rows are not all in memory.

        Returns
        -------
        object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X has fewer than 2 rows, infinite numbers, a column without any observed value, or
            values that the estimator does not accept, if a weight is negative, a group label is
            missing, there are too few groups to split, or a parameter is out of range.
        FloatingPointError
            If training diverges in the first epoch.
        MemoryError
            If there is too little memory, even after a retry with an eighth of the rows at a time,
            of which a warning informs.

        Warns
        -----
        ConvergenceWarning
            If the training ends by ``max_epochs`` or ``time_limit`` while the validation bound is
            still improving, or diverges later.
        UserWarning
            If there are fewer than 40 rows (distinct ones if columns are continuous), in which case
            neither networks nor other experts are fitted, and about columns without a density.

        Notes
        -----
        If there are more than a million rows (2**20), or 67 million numbers, a random sample of
        this size is kept in memory: maps, references and validation use the sample, and the other
        rows are read in random order while the network is trained.  Duplicates are then not merged,
        so a weight equals repetition only on average.  Tables in memory are never sampled by
        `IMMSEDiscreteDensity` and `IMMSEMixedDensity`; rows of Dask collections with categories
        that do not occur in the sample are ignored, with a warning, unless ``categories`` or a
        categorical dtype lists them.

        If rows have **missing entries**, maps are fitted to the observed values of each column, and
        references to the observed entries of all rows (kernels to the complete rows).  This is
        valid if entries are missing at random, that is, if whether an entry is missing depends on
        observed entries only.  Networks are trained on the observed entries (see ``patterns``; not
        with ``dequantize``), and are used where they are better than a mixture
        of the references on validation rows.  If the values of some columns tell which entries are
        missing, what a network learns is only valid given those columns: it is used where they are
        given, as in imputation, and otherwise the references are.  Rows without any observed entry
        are ignored.
        Dask collections, and rows for custom denoisers, must be complete.  Integers with missing
        values are categories only in a nullable dtype such as pandas' Int64, or if they are listed
        in ``ordinal_features``.
        """
        return self._fit(X, sample_weight, y=y, groups=groups)

    @_fit_context(prefer_skip_nested_validation=True)
    def _fit_to_rank(
        self,
        X: ArrayLike,
        sample_weight: ArrayLike | None = None,
        may_hold_out: bool = True,
        squared_weight: Array | None = None,
        lacks_entries: bool = False,
    ) -> Self:
        """Fit to rows that will be ranked among themselves; see `DensityEstimator`.

        ``lacks_entries`` means that some of the ranked rows have missing entries.
        """
        return self._fit(
            X,
            sample_weight,
            ranks_training_rows=True,
            may_hold_out=may_hold_out,
            squared_weight=squared_weight,
            lacks_entries=lacks_entries,
        )

    def _fit(
        self,
        X: Any,
        sample_weight: ArrayLike | None,
        space: TableSpace | None = None,
        chosen: Callable[[Array, Array], CountedRows] | None = None,
        y: object = None,
        groups: ArrayLike | None = None,
        ranks_training_rows: bool = False,
        may_hold_out: bool = True,
        squared_weight: Array | None = None,
        lacks_entries: bool = False,
    ) -> Self:
        """Fit, in the space of another model if one is given, to chosen rows of those read.

        ``chosen`` takes the numbers and codes and their weights, and returns those to fit to, with
        their groups, and how many observations a weight of 1 stands for.  ``ranks_training_rows``
        means that these will be ranked among themselves, and ``may_hold_out`` that some of them may
        be used for validation.  For ``squared_weight`` see `_fit_to_rank`. ``lacks_entries``
        requests the type of fit for rows with missing entries.
        """
        started = time.monotonic()
        codes = None if groups is None else self._checked_groups(X, groups)
        # Several processes need the same seed.
        random_state = current_processes().from_first(lambda: check_random_state(self.random_state))
        per_weight = None
        if sample_weight is not None and squared_weight is not None:
            per_weight = observations_per_weight(np.asarray(sample_weight), squared_weight)
        previous = self._model if self.warm_start and hasattr(self, "_model") else None
        stream = None
        if previous is None:
            self._forget_fit()
        elif hasattr(self, "_increments"):
            del self._increments
        if chosen is None:
            allow_missing = not is_dask(X) and self._may_lack_entries
            X, sample_weight, stream = self._held_in_memory(X, sample_weight, random_state)
            check_groups_are_held(codes, stream)
        else:
            allow_missing = False
        if previous is None:
            values, weight, kinds = self._read_first(
                X, sample_weight, squared_weight, allow_missing=allow_missing
            )
        else:
            values, weight, kinds = self._read_again(X, sample_weight, allow_missing=allow_missing)
        # Rows that are held out of this fit will be scored.
        counted = (weight > 0)[:, None] & ~np.isnan(values)
        least = values.min(axis=0, where=counted, initial=np.inf)
        extent = least, values.max(axis=0, where=counted, initial=-np.inf)
        if codes is not None and len(codes) > len(values):  # rows of weight 0 are not read
            codes = codes[np.asarray(without_tensors(sample_weight)) > 0]
        if chosen is not None:
            values, weight, codes, per_weight = chosen(values, weight)
        if has_missing(values[weight > 0]):
            lacks_entries = True
            self._check_missing(values[weight > 0], previous)
            # Rows without any observed entry are ignored.
            kept = ~np.isnan(values).all(axis=1)
            values, weight, stream = values[kept], weight[kept], None
            codes = None if codes is None else codes[kept]
        lacks_entries = lacks_entries or (previous is not None and previous.has_missing)
        # Networks of a warm start are as large as before.
        n_rows = int(np.count_nonzero(weight)) if stream is None else None
        n_rows = n_rows if previous is None else self._kept.get("n_rows")
        settings = self._settings(n_rows).changed(stream=stream)
        settings = shared_settings(settings, current_processes())
        if self._has_roles(kinds, lacks_entries, ranks_training_rows):
            settings = settings.changed(has_missing=lacks_entries, has_roles=True)
        elif lacks_entries:
            settings = settings.changed(has_missing=True, max_epochs=0)
        self._check_warm_start(previous, n_rows)
        self._kinds = kinds
        self.schedule_ = settings.training.schedule
        n_networks = len(networks_to_train(settings, MIN_ROWS_TO_SPLIT))
        n_epochs = n_networks * settings.training.max_epochs
        tasks = FitTasks.begin(self, n_epochs, X, y, sample_weight)
        settings = settings.changed(
            tasks=tasks,
            started=started,
            attributes_of=self._attributes_of,
            extent=extent,
            ranks_training_rows=ranks_training_rows,
            may_hold_out=may_hold_out,
            observations_per_weight=per_weight,
        )
        with progress_bar(type(self).__name__, self.verbose):
            self._model = fit_table_model(
                values, weight, kinds, settings, random_state, previous, space, codes
            )
        self._publish()
        tasks.end()
        return self

    def _check_missing(self, values: Array, previous: TableModel | None) -> None:
        """Raise an error if rows with missing entries (NaN) are not supported."""
        names = getattr(self, "feature_names_in_", None)
        check_observed(np.asarray(np.isnan(values).all(axis=0)), names)
        if getattr(self, "denoiser", None) is not None:
            check_complete(values, names, "a denoiser of your own")
        if previous is not None and previous.nets and not previous.networks_have_roles:
            check_complete(values, names, "warm starts of networks; set warm_start=False")

    def _has_roles(
        self, kinds: Sequence[ColumnKind], lacks_entries: bool, ranks_training_rows: bool
    ) -> bool:
        """Return whether networks are trained on parts of rows, or raise an error if they cannot.

        Detectors of outliers, which rank the rows of the fit, use the references only.
        """
        is_asked = self.patterns == "any" or (self.patterns == "auto" and lacks_entries)
        if not is_asked or ranks_training_rows or self.max_epochs == 0:
            return False
        obstacle = self._obstacle_to_roles()
        most = MAX_COLUMNS_WITH_HOLES if lacks_entries else MAX_COLUMNS_WITH_ROLES
        if obstacle is None and sum(kind.n_categories == 0 for kind in kinds) > most:
            holes = " with missing entries" if lacks_entries else ""
            obstacle = f"more than {most} continuous columns{holes}"
        if obstacle is not None and self.patterns == "any":
            raise ValueError(
                f"patterns='any' is not supported for {obstacle}. Set patterns to 'auto' or "
                "'joint': the references then answer for parts of rows."
            )
        return obstacle is None

    def _obstacle_to_roles(self) -> str | None:
        """Return why networks cannot be trained on parts of rows; None if they can."""
        return None if getattr(self, "image_shape", None) is None else "images"

    def _checked_groups(self, X: Any, groups: ArrayLike) -> NDArray[np.intp]:
        """Return the numbers of the rows' groups."""
        if is_dask(X) or is_dataset(X):
            kind = "Dask collection" if is_dask(X) else "dataset"
            raise ValueError(f"groups must be None if X is a {kind}.")
        return checked_groups(groups, X)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Update the density with more rows, as from a stream.

        The first rows, at least 1000 and 10 per column, determine the standardisation of the
        columns and the categories; until then the density is that of the reference.  Each call
        makes one pass through its rows, updates the mean and the covariance of the reference, and
        recomputes the weights of the experts, which takes about a second: chunks of 10,000 rows or
        more are most efficient.  Rows may be repeated, but on long streams need not be.  Validation
        rows, at most 10,000, are chosen by a hash of their values; see
        ``sk_itdiffusion._first._fit.incremental``.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows in random order, at least 2 in the first call.  The categories of discrete columns
            are those of ``categories`` or of a categorical dtype, and otherwise those of the first
            call, with a warning; later rows with other values are ignored, with a warning too, and
            have the probability of unseen values under the first rows.  So are later rows with a
            missing category in a column that lacked none in the first call, unless ``categories``
            lists None; when they are scored, the category is unknown.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter is not supported for streams, X is not valid for `fit`, its columns are
            not those of the first call, a column varies that was constant in the first rows, or
            ``handle_unknown="error"`` and a category is unknown.
        FloatingPointError
            If training diverges.

        Notes
        -----
        Mixtures, kernels and custom families of references are not available here.
        ``marginals="auto"`` only standardises, ``dropout`` and ``weight_decay`` are 0 unless given,
        and ``max_epochs``, ``steps_per_epoch``, ``early_stopping``, ``time_limit`` and
        ``callbacks`` are ignored (but with ``max_epochs=0`` there is no network).
        """
        if hasattr(self, "_model") and not hasattr(self, "_increments"):
            warn(
                "partial_fit starts from scratch: it continues its own earlier calls only, not "
                "fit or a loaded file.",
            )
        for part in parts_of(X):
            self._learn(part)
        return self

    def _learn(self, X: Any) -> None:
        """Fit to the rows of a chunk too."""
        if self.patterns == "any":
            raise ValueError("partial_fit needs patterns='auto' or 'joint', got 'any'.")
        if hasattr(self, "_increments"):
            values = self._read_categories(X)
            if not len(values):
                return
        else:
            self._forget_fit()
            values, self._kinds = self._read_first_of_stream(X)
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            self._increments = IncrementalFit(self._kinds, seed)
        settings = self._settings()
        self._model = self._increments.learn(values, settings)
        self._check_warm_start(None)
        self.schedule_ = settings.training.schedule
        self._publish()

    def _read_first_of_stream(self, X: Any) -> tuple[Array, list[ColumnKind]]:
        """Return the numbers and codes of the first chunk, and the kinds of its columns."""
        values, _, kinds = self._read_first(X, None)
        return values, kinds

    def _held_in_memory(
        self, X: Any, weight: ArrayLike | None, random_state: np.random.RandomState
    ) -> tuple[Any, ArrayLike | None, Stream | None]:
        """Return the rows to hold in memory, their weights, and the other rows if there are any."""
        if not is_dask(X):
            return X, weight, None
        partitions = partitions_of(X, weight)
        assert partitions is not None
        return sample(partitions, self._read_categories, random_state)

    def _read_again(
        self, X: Any, sample_weight: ArrayLike | None, allow_missing: bool = False
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return what `_read_first` does, of a table with the columns of the earlier fit."""
        values = self._read(X, allow_missing)
        check_number_of_rows(values.shape, type(self).__name__)
        return values, checked_weight(sample_weight, values), self._kinds

    def _check_warm_start(self, previous: TableModel | None, n_rows: int | None = None) -> None:
        """Raise an error if a warm start would ignore a changed parameter.

        What has to stay the same is kept, and how many rows networks were planned for.
        """
        kept = {name: copy.deepcopy(getattr(self, name)) for name in self._fixed_at_warm_start}
        if previous is not None:
            changed = [
                # Files of earlier versions do not have all parameters.
                name
                for name, value in kept.items()
                if name in self._kept and not are_equal(self._kept[name], value)
            ]
            if changed:
                raise ValueError(
                    f"warm_start keeps the maps and references of the earlier fit, but "
                    f"{', '.join(changed)} changed. Set warm_start=False to refit from scratch."
                )
        self._kept = kept | {"n_rows": n_rows}

    def _settings(self, n_rows: int | None = None) -> FitSettings:
        """Return the parameters in the form that the model takes, for so many rows if known."""
        task = replace(self._network_task(), n_rows=n_rows)
        network = self._network_family(task)
        usual = network.usual(task)
        hidden_size = value_or_usual(self.hidden_size, usual.hidden_size)
        network.check(task, hidden_size)
        rate = usual.learning_rate if self.learning_rate == "auto" else self.learning_rate
        settings: dict[str, Any] = {
            "reference": self.reference,
            **resolve_experts(self.experts, self._experts, self.reference),
            "marginals": "standard",
            "schedule": resolve_schedule(self.schedule),
            "network": network,
            "task": task,
            "hidden_size": hidden_size,
            "n_blocks": value_or_usual(self.n_blocks, usual.n_blocks),
            "n_frequencies": 4,
            "dropout": None if self.dropout == "auto" else float(self.dropout),
            "weight_decay": None if self.weight_decay == "auto" else float(self.weight_decay),
            "max_epochs": self.max_epochs,
            "steps_per_epoch": None
            if self.steps_per_epoch == "auto"
            else int(self.steps_per_epoch),
            "batch_size": value_or_usual(self.batch_size, usual.batch_size),
            "learning_rate": float(rate),
            "tol": self.tol if self.early_stopping else None,
            "patience": self.n_iter_no_change if self.early_stopping else None,
            "time_limit": self.time_limit,
            "validation_fraction": self.validation_fraction,
            "device": resolve_device(self.device),
            "callbacks": tuple(self.callbacks or ()),
            "verbose": int(self.verbose),
            "feature_names": getattr(self, "feature_names_in_", None),
        }
        return FitSettings.of(**(settings | self._specific_settings()))

    def _bounds_settings(self, bounds: Any) -> dict[str, Any]:
        """Return the settings that follow from the parameter ``bounds``."""
        if bounds is None or isinstance(bounds, str):
            return {"finds_bounds": bounds == "auto"}
        names = getattr(self, "feature_names_in_", None)
        return {"bounds": resolve_bounds(bounds, self.n_features_in_, names)}

    def _attributes_of(self, model: TableModel) -> dict[str, Any]:
        """Return the attributes that the estimator has with a model."""
        fitted = copy.copy(self)
        fitted._model = model
        fitted._publish()
        return dict(vars(fitted))

    def _publish(self) -> None:
        """Set the public fitted attributes from the model."""
        model = self._model
        # Copies: a model must not change when its estimator's attributes are written to.
        self.nets_ = dict(model.nets)
        self.net_ = next(iter(model.nets.values()), None)
        self.references_ = dict(model.references)
        self.reference_ = model.references.get(model.control)
        self.logsnr_ = model.logsnr.copy()
        self.expert_weights_ = model.weights_by_expert()
        self.history_ = copy.deepcopy(model.history)
        self.entropy_ = model.entropy
        self.entropy_std_ = model.entropy_std
        self.n_iter_ = len(model.history)
        self.pattern_gains_ = [gain.as_row() for gain in model.pattern_gains]
        names = getattr(self, "feature_names_in_", None)
        drivers = model.drivers_of_missingness
        self.missingness_columns_ = [int(j) if names is None else names[j] for j in drivers]

    def _finish_loading(self) -> None:
        """Check the stored attributes for consistency, and set those that follow from them."""
        self._check_loaded()
        self._publish()
