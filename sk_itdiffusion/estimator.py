"""What the estimators have in common: validation of parameters, fit, scores, samples."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_is_fitted,
    validate_data,
)

from sk_itdiffusion.blocks import blocks_of, is_dask, parts_of, sample
from sk_itdiffusion.bounds import resolve_bounds
from sk_itdiffusion.callbacks import CallbackSupportMixin, FitTasks
from sk_itdiffusion.denoisers import NetworkFamily, NetworkTask
from sk_itdiffusion.denoisers.built_in import resolve_family
from sk_itdiffusion.distributed import Processes, current_processes
from sk_itdiffusion.documentation import DocumentationLinkMixin
from sk_itdiffusion.encoding import (
    Kind,
    Table,
    TableEncoder,
    columns_of_learned_levels,
    read_table,
    without_tensors,
)
from sk_itdiffusion.experts import NETWORKS
from sk_itdiffusion.fitting import fit_table_model
from sk_itdiffusion.groups import checked_groups
from sk_itdiffusion.incremental import IncrementalFit
from sk_itdiffusion.likelihood import MSECurve
from sk_itdiffusion.model import Effort, TableModel
from sk_itdiffusion.networks import networks_to_train
from sk_itdiffusion.persistence import SaveMixin
from sk_itdiffusion.progress import SECONDS_UNTIL_A_BAR, Progress, progress_bar
from sk_itdiffusion.references import ContinuousReference
from sk_itdiffusion.references.families import (
    BUILT_IN_FAMILIES,
    GivenReferenceFamily,
    ReferenceFamily,
)
from sk_itdiffusion.rows import column_labels
from sk_itdiffusion.schedules import SCHEDULES, Schedule, resolve_schedule
from sk_itdiffusion.schema import LEAST_ROWS_TO_SPLIT
from sk_itdiffusion.settings import FitSettings
from sk_itdiffusion.space import ColumnKind, TableSpace
from sk_itdiffusion.streams import Stream, is_dataset, without_ones
from sk_itdiffusion.warning import warn

__all__ = [
    "CategoricalEstimator",
    "DensityEstimator",
    "TableEstimator",
    "automatic",
    "checked_image_shape",
    "flattened_images",
    "long_call",
    "numbers_in",
    "resolve_device",
]

Array = NDArray[np.float64]
#: Numbers and codes of rows to fit to, their weights, and the numbers of their groups.
ChosenRows = tuple[Array, Array, NDArray[np.intp] | None]


class DensityEstimator(
    SaveMixin, CallbackSupportMixin, DocumentationLinkMixin, DensityMixin, BaseEstimator
):
    """Base class of all density estimators: what a fitted one does with rows."""

    _model: TableModel
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_strata": [Interval(Integral, 2, None, closed="left")],
        "n_draws": [Interval(Integral, 2, None, closed="left")],
        "n_directions": [None, Interval(Integral, 1, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    # Declared for the type checker; subclasses set them.
    n_strata: int
    n_draws: int
    n_directions: int | None
    verbose: int
    random_state: int | np.random.RandomState | None
    n_features_in_: int

    @abstractmethod
    def _read(self, X: Any) -> Array:
        """Return numbers and codes of a table like the one fitted."""

    @abstractmethod
    def _fit_to_rank(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to rows that will be ranked among themselves, as by a detector.

        No expert takes part by default that is made of some of the rows: these would be likely.
        """

    def _read_levels(self, X: Any, what: str = "learned from") -> Array:
        """Return numbers and codes of the rows that have no other values than levels.

        There is a warning if other rows are left out, which says what the rows are not.
        """
        values = self._read(X)
        return values[has_levels_only(self, values, what)]

    def _write(self, values: Array) -> Any:
        """Return the table of numbers and codes."""
        return values

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    def _forget_fit(self) -> None:
        """Remove the fitted state, so that an interrupted fit leaves none."""
        for name in [name for name in vars(self) if name.endswith("_") or name in _PRIVATE_STATE]:
            delattr(self, name)

    def _effort(self) -> Effort:
        """Return how exactly to score; may be changed after the fit."""
        for name in ("n_strata", "n_draws", "n_directions"):
            validate_parameter_constraints(
                {name: self._parameter_constraints[name]},
                {name: getattr(self, name)},
                type(self).__name__,
            )
        return Effort(self.n_strata, self.n_draws, self.n_directions)

    def score_samples(self, X: ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Return the log-density, or log-probability, of each row.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.  Arrays on disk, torch datasets and Dask collections are read in parts.
        return_std : bool, default=False
            Whether to return standard errors too.

        Returns
        -------
        log_density : ndarray of shape (n_samples,)
            Log-densities in nats, with respect to the units of continuous columns, and to counts
            for discrete ones.  A row's value does not depend on the other rows.  It is minus
            infinity for rows so far from all others that the square of their distance is no number.
        std : ndarray of shape (n_samples,)
            Standard errors of the numerical integration, in nats (NaN where there is a single
            noise path).  Only if ``return_std``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If X is not finite, its columns are not those of `fit`, or a value of a discrete
            column has no probability: with ``handle_unknown="error"``, in columns whose levels
            ``categories`` gives, and in those of numpy's boolean dtype, all values but the
            levels.
        MemoryError
            If there is too little memory, even at an eighth of the usual number of evaluations at
            a time, which is tried once and warns.
        """
        check_is_fitted(self)
        with long_call(self, "score_samples"):
            scored = [self._log_density(self._read(part)) for part in parts_of(X)]
        log_density, variance = map(np.concatenate, zip(*scored, strict=True))
        return (log_density, np.sqrt(variance)) if return_std else log_density

    def _log_density(self, values: Array) -> tuple[Array, Array]:
        """Return log-densities of numbers and codes, and their variances."""
        return self._model.log_density(values, self._effort())

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean log-density of rows.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        float
            Mean log-density in nats per row; higher is better.

        Warns
        -----
        UserWarning
            If the standard error of the mean that comes from the numerical integration exceeds
            0.05 nats.
        """
        log_density, std = self.score_samples(X, return_std=True)
        if integration_error(log_density, std) > LARGEST_INTEGRATION_ERROR:
            warn(
                f"The score has a standard error of more than {LARGEST_INTEGRATION_ERROR:g} nats "
                "from the numerical integration: raise n_strata or n_draws, which needs no new "
                "fit; score_samples(X, return_std=True) tells which rows cause it."
            )
        return float(np.mean(log_density))

    def bits_per_dim(self, X: ArrayLike) -> float:
        """Return the mean negative log-density of rows in bits per column.

        It is ``-score(X) / (n_features_in_ * log(2))``.  Of probabilities (discrete columns, or
        ``dequantize``) this is the number of bits that a code needs for a column, such as a pixel.
        Of densities it depends on the units: divided by 127.5, 8-bit pixels have log2(127.5) =
        6.99 bits less than they have as integers.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        float
            Bits per column; lower is better.
        """
        mean = float(np.mean(self.score_samples(X)))
        return -mean / (self.n_features_in_ * math.log(2.0))

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> Any:
        """Draw random rows from the model.

        Noise is drawn at the least log-SNR and carried to the greatest by the deterministic
        probability flow of the stacked denoiser.

        Parameters
        ----------
        n_samples : int, default=1
            Rows to draw, at least 1.
        random_state : int, RandomState or None, default=None
            Seed; None takes the estimator's ``random_state``.

        Returns
        -------
        ndarray or DataFrame of shape (n_samples, n_features)
            Random rows, in the units and levels of X, in a table of the kind that `fit` was given:
            a data frame of pandas or polars with the same columns and dtypes, where columns of
            integers are rounded, or an array, which for `IMMSEDensity` is one of 64-bit numbers.
            Entries beyond the largest 64-bit number are infinite.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If ``n_samples`` is not a positive integer.
        MemoryError
            If there is too little memory, even for an eighth of the usual number of rows at a
            time, which is tried once and warns.

        Notes
        -----
        The samples follow a slightly other law than the density of `score_samples`: the flow and
        the integral use the same denoiser in different ways, which agree exactly only if it is
        optimal.  On two known densities, 1000 rows each, the mean log-density of samples was 0.02
        and 0.12 nats below that under the density of the scores (standard errors 0.04;
        ``benchmarks/sampling.py``).
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
        seed = self.random_state if random_state is None else random_state
        with long_call(self, "sample"):
            values = self._model.sample(int(n_samples), check_random_state(seed), n_steps=100)
        return self._write(values)

    def mse_curve(self, X: ArrayLike | None = None) -> MSECurve:
        """Return mean squared errors of the model and its references against the log-SNR.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features), default=None
            Rows.  None gives the curve on the validation rows of `fit`.  Rows with values of
            discrete columns that `fit` has not seen are left out, with a warning.

        Returns
        -------
        MSECurve
            Errors with standard errors at each node of the log-SNR.

        Raises
        ------
        ValueError
            If all rows of the fit were equal, or no row of X is left.
        """
        check_is_fitted(self)
        if self._model.curve is None:
            raise ValueError("There is no error curve: all rows of the fit were equal.")
        if X is None:
            return self._model.curve
        curves, counts = [], []
        with long_call(self, "mse_curve"):
            for part in parts_of(X):
                values = self._read_levels(part, "in the curve")
                if len(values):
                    curves.append(self._model.mse_curve(values))
                    counts.append(len(values))
        if not curves:
            raise ValueError("There is no error curve: all rows have values that fit has not seen.")
        return curves[0] if len(curves) == 1 else MSECurve.pooled(curves, counts)


class TableEstimator(DensityEstimator):
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
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "warm_start": ["boolean"],
        "callbacks": [None, list, tuple],
    }

    # Declared for the type checker; subclasses set them.
    reference: str | ContinuousReference
    experts: str | Sequence[str | ReferenceFamily]
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
    n_iter_no_change: int
    device: str
    warm_start: bool
    callbacks: Sequence[Any] | None

    @abstractmethod
    def _read_first(
        self, X: Any, weight: ArrayLike | None
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return numbers and codes, weights and kinds of the columns of a table to be fitted."""

    @abstractmethod
    def _network_task(self) -> NetworkTask:
        """Return the kind of table that networks are for."""

    def _network_family(self, task: NetworkTask) -> NetworkFamily:
        """Return the family of the networks."""
        return resolve_family(self.network, task)

    def _specific_settings(self) -> dict[str, Any]:
        """Return settings that only some estimators have."""
        return {}

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
            If a parameter is unknown, or one of an object is given while there is a string.
        """
        examples = {
            "schedule": "sk_itdiffusion.schedules.LogisticSchedule()",
            "network": "a sk_itdiffusion.denoisers.NetworkFamily of your own",
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
            Rows; at least 2.  Collections of Dask may be larger than memory, and for
            `IMMSEDensity` arrays on disk (`numpy.memmap`) and torch datasets too.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a weight of 2 is the same as having the row twice.  Weights that
            are no integers are relative: a common factor changes nothing.  Where rows have
            probabilities (discrete or dequantised columns only) the number of rows matters too:
            multiples of a unit, fewer than 1000 of it, are counts, and others are worth as many
            rows as Kish's effective sample size says.  Neither Dask collections nor datasets have
            weights.
        groups : array-like of shape (n_samples,), default=None
            Hashable labels of the groups that rows belong to, such as the person measured: all
            rows of a group are used for training, or all for validation.  Groups that have equal
            rows are one group, unless all columns are discrete.  None if rows are independent.
            Rows that are not all held in memory cannot have groups.

        Returns
        -------
        object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X has fewer than 2 rows, is not finite or holds what the estimator does not take, if
            a weight is negative, a group has no label, there are too few groups to divide, or a
            parameter is out of its range.
        FloatingPointError
            If training diverges before any epoch was good.
        MemoryError
            If there is too little memory, even for an eighth of the rows at a time, which is tried
            once and warns.

        Warns
        -----
        ConvergenceWarning
            If the training ends after ``max_epochs`` while the validation bound is still falling,
            or diverges after some good epochs.
        UserWarning
            If there are fewer than 40 rows (distinct ones if columns are continuous), so that
            neither networks nor other experts are fitted, and about columns without a density.

        Notes
        -----
        Of more than a million rows (2**20), or 67 million numbers, a random sample of so many is
        worked on in memory: maps, references and validation are those of the sample, and the other
        rows are read in random order while the network is trained.  Equal rows are then no longer
        found, so that a weight is the same as repetition on average only.  Tables of
        `IMMSEDiscreteDensity` and `IMMSEMixedDensity` that are in memory are never sampled; of
        Dask collections rows with levels that the sample lacks are not learned from, with a
        warning: they need ``categories``, or a categorical dtype.
        """
        return self._fit(X, sample_weight, y=y, groups=groups)

    @_fit_context(prefer_skip_nested_validation=True)
    def _fit_to_rank(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to rows that will be ranked among themselves; see `DensityEstimator`."""
        return self._fit(X, sample_weight, ranks_training_rows=True)

    def _fit(
        self,
        X: Any,
        sample_weight: ArrayLike | None,
        space: TableSpace | None = None,
        chosen: Callable[[Array, Array], ChosenRows] | None = None,
        y: object = None,
        groups: ArrayLike | None = None,
        ranks_training_rows: bool = False,
    ) -> Self:
        """Fit, in the space of another model if one is given, to chosen rows of those read.

        ``chosen`` takes the numbers and codes and their weights, and returns those to fit to, with
        their groups.  ``ranks_training_rows`` says that these will be ranked among themselves.
        """
        codes = None if groups is None else self._checked_groups(X, groups)
        # Several processes need one seed.
        random_state = current_processes().from_first(lambda: check_random_state(self.random_state))
        previous = self._model if self.warm_start and hasattr(self, "_model") else None
        stream = None
        if previous is None:
            self._forget_fit()
        elif hasattr(self, "_increments"):
            del self._increments
        if chosen is None:
            X, sample_weight, stream = self._held_in_memory(X, sample_weight, random_state)
            check_groups_are_held(codes, stream)
        if previous is None:
            values, weight, kinds = self._read_first(X, sample_weight)
        else:
            values, weight, kinds = self._read_again(X, sample_weight)
        # Rows that are held out of this fit will be scored.
        counted = (weight > 0)[:, None]
        least = values.min(axis=0, where=counted, initial=np.inf)
        extent = least, values.max(axis=0, where=counted, initial=-np.inf)
        if codes is not None and len(codes) > len(values):  # rows of weight 0 are not read
            codes = codes[np.asarray(without_tensors(sample_weight)) > 0]
        if chosen is not None:
            values, weight, codes = chosen(values, weight)
        settings = shared(self._settings().changed(stream=stream), current_processes())
        self._check_warm_start(previous)
        self._kinds = kinds
        self.schedule_ = settings.training.schedule
        n_networks = len(networks_to_train(settings, LEAST_ROWS_TO_SPLIT))
        tasks = FitTasks.begin(self, n_networks * self.max_epochs, X, y, sample_weight)
        settings = settings.changed(
            tasks=tasks,
            attributes_of=self._attributes_of,
            extent=extent,
            ranks_training_rows=ranks_training_rows,
        )
        with progress_bar(type(self).__name__, self.verbose):
            self._model = fit_table_model(
                values, weight, kinds, settings, random_state, previous, space, codes
            )
        self._publish()
        tasks.end()
        return self

    def _checked_groups(self, X: Any, groups: ArrayLike) -> NDArray[np.intp]:
        """Return the numbers of the rows' groups."""
        if is_dask(X) or is_dataset(X):
            kind = "Dask collection" if is_dask(X) else "dataset"
            raise ValueError(f"groups must be None if X is a {kind}.")
        return checked_groups(groups, X)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fit the density to more rows, those of a stream.

        The first rows, at least 1000 and 10 for each column, fix the standardisation of the
        columns and the levels; before there are so many the density is that of the reference.
        Then each call takes one pass through its rows, the reference keeps the mean and the
        covariance of all rows so far, and the weights of the experts are found anew, which takes
        about a second: rows in chunks of 10,000 and more cost least.  Rows may come again, and on
        long streams need not.  Rows for validation are chosen by a hash of their values, at most
        10,000; see ``sk_itdiffusion.incremental``.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows, at least 2 in the first call, in an order that tells nothing.  Discrete columns
            have the levels of ``categories`` or of a categorical dtype, else those of the first
            call, with a warning; later rows with other values are not learned from, with a warning
            too, and have the probability that the first rows give them.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter asks for what streams do not have, X is not what `fit` takes, its
            columns are not those of the first call, one varies that did not in the first rows, or
            ``handle_unknown="error"`` and a level is unknown.
        FloatingPointError
            If training diverges.

        Notes
        -----
        ``reference`` and ``experts`` know no mixtures or kernels here, ``marginals="auto"`` is
        standardisation only, ``dropout`` and ``weight_decay`` are 0 unless given, and
        ``max_epochs``, ``steps_per_epoch``, ``early_stopping`` and ``callbacks`` are of no account
        (but with ``max_epochs=0`` there is no network).
        """
        if hasattr(self, "_model") and not hasattr(self, "_increments"):
            warn(
                "partial_fit begins anew: it goes on from its own earlier calls only, not from "
                "fit or a file.",
            )
        for part in parts_of(X):
            self._learn(part)
        return self

    def _learn(self, X: Any) -> None:
        """Fit to the rows of a chunk too."""
        if hasattr(self, "_increments"):
            values = self._read_levels(X)
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
        blocks = blocks_of(X, weight)
        assert blocks is not None
        return sample(blocks, self._read_levels, random_state)

    def _read_again(
        self, X: Any, sample_weight: ArrayLike | None
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return what `_read_first` does, of a table with the columns of the earlier fit."""
        values = self._read(X)
        check_number_of_rows(values.shape, type(self).__name__)
        return values, checked_weight(sample_weight, values), self._kinds

    def _check_warm_start(self, previous: TableModel | None) -> None:
        """Raise an error if a warm start would ignore a changed parameter."""
        kept = {name: copy.deepcopy(getattr(self, name)) for name in self._fixed_at_warm_start}
        if previous is not None:
            changed = [name for name, value in kept.items() if not alike(self._kept[name], value)]
            if changed:
                raise ValueError(
                    f"warm_start keeps the maps and references of the earlier fit, but "
                    f"{', '.join(changed)} changed. Set warm_start=False to fit anew."
                )
        self._kept = kept

    def _settings(self) -> FitSettings:
        """Return the parameters in the form that the model takes."""
        task = self._network_task()
        network = self._network_family(task)
        usual = network.usual(task)
        hidden_size = automatic(self.hidden_size, usual.hidden_size)
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
            "n_blocks": automatic(self.n_blocks, usual.n_blocks),
            "n_frequencies": 4,
            "dropout": None if self.dropout == "auto" else float(self.dropout),
            "weight_decay": None if self.weight_decay == "auto" else float(self.weight_decay),
            "max_epochs": self.max_epochs,
            "steps_per_epoch": None
            if self.steps_per_epoch == "auto"
            else int(self.steps_per_epoch),
            "batch_size": automatic(self.batch_size, usual.batch_size),
            "learning_rate": float(rate),
            "patience": self.n_iter_no_change if self.early_stopping else None,
            "validation_fraction": self.validation_fraction,
            "n_strata": self.n_strata,
            "n_draws": self.n_draws,
            "n_directions": self.n_directions,
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
        self.nets_ = model.nets
        self.net_ = next(iter(model.nets.values()), None)
        self.references_ = model.references
        self.reference_ = model.references.get(model.control)
        self.logsnr_ = model.logsnr
        self.expert_weights_ = {
            name: model.weights[:, number] for number, name in enumerate(model.expert_names)
        }
        self.history_ = model.history
        self.entropy_ = model.entropy
        self.entropy_std_ = model.entropy_std
        self.n_iter_ = len(model.history)


class CategoricalEstimator(TableEstimator):
    """Base class of the estimators for tables with discrete columns."""

    categories: Any
    handle_unknown: str
    preconditioner: str
    loss: str
    _encoder: TableEncoder
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TableEstimator._parameter_constraints,
        "hidden_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "categories": [StrOptions({"auto"}), list, tuple, dict, np.ndarray],
        "handle_unknown": [StrOptions({"good_turing", "error"})],
        "preconditioner": [StrOptions({"auto", "independent", "latent_class"})],
        "loss": [StrOptions({"mse", "cross_entropy"})],
    }

    def __sklearn_tags__(self) -> Any:
        """Return the tags: texts and categories are accepted."""
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    @abstractmethod
    def _column_kinds(self, table: Table) -> list[Kind]:
        """Return the kinds of the table's columns."""

    def _table(self, X: Any, reset: bool) -> Table:
        """Return the table, its columns noted or compared with those of the fit."""
        X = without_tensors(X)
        table = read_table(X)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return table

    def _read_first(
        self, X: Any, weight: ArrayLike | None
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return codes, weights and kinds; levels are learned from rows of positive weight."""
        table, checked = self._weighted_table(X, weight, reset=True)
        self._encoder = TableEncoder.fit(
            table,
            kinds=self._column_kinds(table),
            categories=self.categories,
            handle_unknown=self.handle_unknown,
            shared_levels=self._shares_levels(),
            sample_weight=checked,
        )
        self.categories_ = [column.levels for column in self._encoder.columns]
        self.kinds_ = [column.kind for column in self._encoder.columns]
        kinds = [
            ColumnKind(c.n_levels, c.kind == "ordinal", c.log_seen) for c in self._encoder.columns
        ]
        return self._encoder.encode(table), checked, kinds

    def _read_again(
        self, X: Any, sample_weight: ArrayLike | None
    ) -> tuple[Array, Array, list[ColumnKind]]:
        """Return what `_read_first` does, of a table with the columns of the earlier fit."""
        table, weight = self._weighted_table(X, sample_weight, reset=False)
        values = self._encoder.encode(table)
        kept = has_levels_only(self, values, "learned from")
        check_number_of_rows(values[kept].shape, type(self).__name__)
        return values[kept], weight[kept], self._kinds

    def _read_first_of_stream(self, X: Any) -> tuple[Array, list[ColumnKind]]:
        """Return the codes of the first chunk and the kinds of its columns."""
        table = self._table(X, reset=True)
        learned = columns_of_learned_levels(table, self._column_kinds(table), self.categories)
        if learned.any():
            warn(
                f"partial_fit knows only the levels of the first rows of column(s) "
                f"{column_labels(learned, table.labels)}; set categories, or give a categorical "
                "dtype.",
            )
        return super()._read_first_of_stream(X)

    def _weighted_table(self, X: Any, weight: ArrayLike | None, reset: bool) -> tuple[Table, Array]:
        """Return the rows of positive weight, and their weights."""
        table = self._table(X, reset)
        check_number_of_rows(table.frame.shape, type(self).__name__)
        checked = checked_weight(weight, np.empty((len(table.frame), 1)))
        kept = checked > 0
        return (table if kept.all() else replace(table, frame=table.frame[kept])), checked[kept]

    def _read(self, X: Any) -> Array:
        """Return numbers and codes of a table like the one fitted."""
        return self._encoder.encode(self._table(X, reset=False))

    def _write(self, values: Array) -> Any:
        """Return a table with the fitted levels."""
        return self._encoder.decode(values, self._model.space.bounds_of_columns())

    def _specific_settings(self) -> dict[str, Any]:
        """Return the settings of discrete columns."""
        asked = self.preconditioner
        return {
            "preconditioner": "independent" if asked == "auto" else asked,
            "loss": self.loss,
        }

    def _shares_levels(self) -> bool:
        """Return whether all columns have the same levels."""
        return False


def resolve_experts(
    experts: Any, possible: Sequence[str], reference: str | ContinuousReference
) -> dict[str, Any]:
    """Return the settings that follow from the parameter ``experts``.

    Parameters
    ----------
    experts : "auto" or sequence of str and ReferenceFamily
        The parameter.
    possible : sequence of str
        Names that an estimator knows.
    reference : str or Reference
        The control variate, which is an expert if it is an object.

    Returns
    -------
    dict of str to Any
        Settings by name.

    Raises
    ------
    ValueError
        If a name is unknown, or two experts have one name.
    """
    items = ["auto"] if isinstance(experts, str) else list(experts)
    given = [item for item in items if isinstance(item, ReferenceFamily)]
    texts = [item for item in items if not isinstance(item, ReferenceFamily)]
    unknown = [item for item in texts if item not in ("auto", *possible)]
    if unknown or not items:
        raise ValueError(
            f"experts must be 'auto' or a list of names from {list(possible)}, or of families of "
            f"references of your own, with 'auto' or without, got {experts!r}."
        )
    names = [family.name for family in given]
    for name in names:
        if name in (*NETWORKS, "reference") or name in possible or names.count(name) > 1:
            raise ValueError(
                f"experts has a family with the name {name!r}, which another expert has. Set its "
                "attribute name to another one."
            )
    known = [family for family in BUILT_IN_FAMILIES if family.name in possible]
    if isinstance(reference, ContinuousReference):
        known.insert(1, GivenReferenceFamily(reference))
    named = tuple(text for text in texts if text != "auto")
    is_automatic = "auto" in texts
    return {
        "experts": "auto" if is_automatic else [*named, *names],
        "families": (*known, *given),
        "asked": named if is_automatic else (*named, *names),
    }


def alike(first: Any, second: Any) -> bool:
    """Return whether two parameter values are the same, arrays and modules included."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.nn.Module):
        ours, theirs = first.state_dict(), second.state_dict()
        if getattr(first, "settings", None) != getattr(second, "settings", None):
            return False
        return ours.keys() == theirs.keys() and all(
            torch.equal(value, theirs[name]) for name, value in ours.items()
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(alike(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, BaseEstimator):
        return alike(vars(first), vars(second))
    if hasattr(first, "shape"):
        return np.array_equal(np.asarray(first), np.asarray(second))
    return bool(first == second)


def has_levels_only(estimator: DensityEstimator, values: Array, what: str) -> NDArray[np.bool_]:
    """Return which rows have no other values than levels, and warn of others, which are not."""
    encoder: TableEncoder | None = getattr(estimator, "_encoder", None)
    if encoder is None:
        return np.ones(len(values), dtype=bool)
    unseen = encoder.unseen(values)
    if unseen.any():
        labels = [column.label for column in encoder.columns]
        columns = np.asarray(unseen.any(axis=0))
        warn(
            f"Rows with values that fit has not seen, in column(s) {column_labels(columns, labels)}"
            f", are not {what}. Give all levels by categories, or a categorical dtype.",
        )
    return np.asarray(~unseen.any(axis=1))


def integration_error(log_density: Array, std: Array) -> float:
    """Return the standard error of the mean over rows that comes from the integration, in nats.

    Equal rows, which have equal values, share their error.
    """
    _, first, count = np.unique(log_density, return_index=True, return_counts=True)
    return float(np.linalg.norm(count * std[first])) / len(log_density)


def check_groups_are_held(codes: NDArray[np.intp] | None, stream: Stream | None) -> None:
    """Raise an error if there are groups of rows that are not all in memory."""
    if codes is not None and stream is not None:
        raise ValueError(
            "groups must be None if X has more rows than are held in memory (see Notes)."
        )


def long_call(estimator: Any, name: str) -> AbstractContextManager[Progress]:
    """Show a bar during a call of a method of a verbose estimator, if it takes long."""
    title = f"{type(estimator).__name__}.{name}"
    return progress_bar(title, estimator.verbose, delay=SECONDS_UNTIL_A_BAR)


#: Standard error of a score, in nats, beyond which the integration should be made more exact.
LARGEST_INTEGRATION_ERROR = 0.05
#: Orders of magnitude between weights, of which the square is a number.
MOST_EXTREME_WEIGHTS = 100

_PRIVATE_STATE = ("_model", "_kinds", "_encoder", "_frame_format", "_increments")


def check_number_of_rows(shape: tuple[int, ...], name: str) -> None:
    """Raise scikit-learn's error if there are fewer than 2 rows."""
    check_array(np.broadcast_to(0.0, shape), ensure_min_samples=2, estimator=name)


def shared(settings: FitSettings, processes: Processes) -> FitSettings:
    """Return the settings of one of several processes, or raise an error if they do not share."""
    batch_size = settings.training.batch_size
    if batch_size % processes.size:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of the number of processes that "
            f"share a batch, {processes.size}."
        )
    verbose = settings.runtime.verbose if processes.rank == 0 else 0
    device = processes.placed(settings.runtime.device)
    return settings.changed(processes=processes, verbose=verbose, device=device)


def checked_weight(sample_weight: ArrayLike | None, rows: Array) -> Array:
    """Return non-negative weights, of which at least one is positive."""
    weight = _check_sample_weight(
        without_tensors(sample_weight),
        rows,
        dtype=np.float64,
        ensure_non_negative=True,
        ensure_same_device=False,
    )
    positive = weight[weight > 0]
    if not len(positive):
        raise ValueError("sample_weight must have at least one non-zero weight.")
    if math.log10(positive.max()) - math.log10(positive.min()) > MOST_EXTREME_WEIGHTS:
        raise ValueError(
            f"sample_weight must not have weights more than 1e{MOST_EXTREME_WEIGHTS} times others, "
            f"got {positive.min():g} and {positive.max():g}. Give rows that count for nothing "
            "weight 0."
        )
    return np.asarray(weight)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a parameter value names, or raise an error that names it."""
    if device != "auto":
        try:
            found = torch.empty(0, device=device).device
            if found.type == "meta":
                raise AssertionError("it holds no numbers")
            return found
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                "device must be 'auto' or a device that torch has here, such as 'cpu' or 'cuda', "
                f"got {device!r}."
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def automatic(value: int | str, usual: int) -> int:
    """Return the value, or the usual one for "auto"."""
    return usual if value == "auto" else int(value)


def numbers_in(value: Any) -> Array:
    """Return a parameter value as an array of numbers, NaN if it is none."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def flattened_images(X: Any, shape: tuple[int, ...]) -> Any:
    """Return images of the given trailing shape as rows; anything else as it is."""
    if getattr(X, "ndim", 2) > 2 and without_ones(X.shape[1:]) == without_ones(shape):
        return np.asarray(X).reshape(len(X), -1)
    return X


def checked_image_shape(image_shape: Any, n_columns: int | None = None) -> tuple[int, ...]:
    """Return the parameter as a tuple, or raise an error that names it.

    With the number of columns of a table it is also compared with that of the pixels.
    """
    shape = tuple(image_shape)
    if len(shape) not in (2, 3) or not all(
        isinstance(size, Integral) and int(size) >= 1 for size in shape
    ):
        raise ValueError(
            "image_shape must be (height, width) or (channels, height, width), got "
            f"{image_shape!r}."
        )
    if n_columns is not None and math.prod(shape) != n_columns:
        raise ValueError(
            f"image_shape={image_shape!r} has {math.prod(shape)} pixels, X has {n_columns} columns."
        )
    return shape
