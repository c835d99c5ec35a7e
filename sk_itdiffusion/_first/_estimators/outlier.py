"""Outlier and novelty detection by density, with a calibrated rate of false alarms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from sk_itdiffusion._first._estimators.base import DensityEstimator, check_columns, long_call
from sk_itdiffusion._first._estimators.calibration import threshold, weighted_quantile
from sk_itdiffusion._first._estimators.combined_score import (
    ROWS_TO_JUDGE,
    CombinedScore,
    main_member,
)
from sk_itdiffusion._first._estimators.completions import (
    completed_once,
    completed_units,
    read_rows,
    takes_missing,
    with_missing_entries,
)
from sk_itdiffusion._first._estimators.detector_density import (
    REPEATED_WARNINGS,
    default_estimator,
    explain_rows,
    fit_clone,
    image_shape_of,
    is_judged,
    score_rows,
    takes_numbers,
    with_common_lattice,
    with_parameter,
)
from sk_itdiffusion._first._estimators.distinct_rows import DistinctRows, Index, Rows
from sk_itdiffusion._first._estimators.local_score import MAX_ROWS, LocalScore
from sk_itdiffusion._first._estimators.outlier_score import FlooredModel, MappedRows, checked_floors
from sk_itdiffusion._first._estimators.parameters import check_number_of_rows, flattened_images
from sk_itdiffusion._first._estimators.row_score import LogDensityScore, RowScore
from sk_itdiffusion._first._estimators.trimming import copies_left
from sk_itdiffusion._first._runtime.callbacks import CallbackSupportMixin, FitTasks
from sk_itdiffusion._first._runtime.documentation import DocumentationLinkMixin
from sk_itdiffusion._first._runtime.progress import progress_bar, stretch_of_progress
from sk_itdiffusion._first._table.kinds import warn_of_merged_integers
from sk_itdiffusion._first._table.partitions import in_memory, parts_of
from sk_itdiffusion._first._table.reading import (
    naming_columns,
    read_table,
    with_one_nan,
    without_missing_objects,
    without_tensors,
)
from sk_itdiffusion._first.persistence import SaveMixin, checks, stored

__all__ = ["IMMSEOutlierDetector"]

Array = NDArray[np.float64]
#: Rows from which calibration rows are spared; with fewer, folds take turns.
MIN_ROWS_TO_SPARE, MAX_CALIBRATION_ROWS = 1_000, 5_000
N_FOLDS = 5
#: Rows, at least, to leave some out: a fit to fewer chooses nothing by validation.
MIN_ROWS_TO_TRIM = 50
#: Shares of a progress bar at which the fits after trimming begin and end; then rows are scored.
FIT_BEGINS, FIT_ENDS = 0.2, 0.9


@stored(
    attributes=(
        "n_features_in_",
        "feature_names_in_",
        "estimator_",
        "offset_",
        "calibration_scores_",
        "calibration_weights_",
        "noise_floor_",
        "members_",
        "_score",
    ),
    left_out=("callbacks",),
)
class IMMSEOutlierDetector(
    SaveMixin, CallbackSupportMixin, DocumentationLinkMixin, OutlierMixin, BaseEstimator
):
    r"""Outlier and novelty detection by log-densities with a noise floor, and by neighbours.

    The log-density is that of a row plus a little noise, of log-SNR :math:`a_1`, under a model that
    is smoothed by as much noise: with the relation of [1]_ cut at :math:`a_1`,

    .. math:: S_1(x) = E_{z \mid x, a_1}\left[\log q_{a_1}(z)\right] + \frac12
        \int_{-\infty}^{a_1} da\; E_\epsilon\left[ \|\epsilon - \hat\epsilon_q(z, a)\|^2
        - \|\epsilon - \hat\epsilon(z, a)\|^2 \right]
        = E_{z \mid x, a_1}\left[\log p_{a_1}(z)\right].

    Ties, integers and duplicates, which have no density, then do no harm.  The score combines
    members of different kinds:

    - the log-density of the likeliest reference, or of the stack if there is a network;
    - that of the plainest reference, a normal distribution or independent columns, which small
      clusters of outliers among the training rows do not deceive;
    - the dependence of columns: the log-density less that of independent columns, in which
      entries that contradict each other are not hidden by the scatter of unrelated columns;
    - how far a row is from its nearest training rows, compared with how far these are from each
      other: the mean over 10 neighbours of :math:`-\log r_i^2 + \frac12 \log h_i^2`.

    Each is replaced by the share of the training rows left by ``trim`` that score as low under it,
    with a smooth tail, and these are combined by their weighted harmonic mean as p-values are [3]_,
    so that a row that one member alone finds odd is odd.  The weight of a member follows from how
    well it tells training rows from ones whose entries are exchanged: what ignores how columns
    depend on each other has no say where this is what matters.  The first and the third, two views
    of one model, have half of such a weight each.

    The threshold comes from held-out rows, so that new inliers are rejected at a rate
    that is known; with fewer than 1000 rows folds take turns in this, and the rate is known
    approximately.

    Parameters
    ----------
    estimator : density estimator or None, default=None
        Any of the library's density estimators; it is cloned.  None chooses by the columns
        `IMMSEDensity` for numbers, `IMMSEDiscreteDensity` for categories, `IMMSEMixedDensity` for
        both, with ``max_epochs=0``, which trains no network, and ``marginals="standard"``, since
        a map that makes tails normal hides outliers.  Numbers, integers too, are continuous then;
        texts, booleans, objects and categoricals are not.  Rows that are left out or held out may
        be the only ones with a value, so an estimator with ``handle_unknown="error"`` is apt to
        fail here.  It has kernels among its experts only if they name them: rows with a kernel of
        their own would seem likelier than the others that are ranked with them.
    contamination : "auto" or float, default="auto"
        Float in (0, 0.5]: the share of the training rows that are called outliers.  ``"auto"``:
        the threshold is that of ``false_alarm_rate`` on held-out rows.
    false_alarm_rate : float, default=0.05
        Rate in (0, 1) at which new rows from the distribution of the training rows are rejected;
        only for ``contamination="auto"``.
    noise_floor : "auto", None, float or array-like of float, default="auto"
        Finite log-SNR :math:`a_1` of the noise, from -100 to 100, relative to standardised and
        mapped columns; the noise has :math:`e^{-a_1/2}` standard deviations.  ``"auto"`` is 7 (0.03
        standard deviations).  Several: the mean of the scores.  None: no noise in log-densities,
        and that of 7 in distances.
    average : bool, default=True
        Whether the score is that of all members.  If not, it is the log-density of the stack alone,
        whose mixtures are without the wide components that they have for rows unlike all those
        seen; without a noise floor it is that of the estimator as it is.
    trim : float, default=0.1
        Share in [0, 0.5] of the weight of at least 50 training rows that the references of a first
        fit without a network find least likely, combined like the score, and that the final fit
        leaves out, so that outliers among the training rows are not learned; as many of the most
        isolated rows count as no more isolated neighbours than the others. Nothing of fewer rows is
        left out. Of categories, of numbers that come again and lie apart from others (counts), and
        of modes of at least 10 rows and 2.5% of all, half of the rows stay where less than a
        quarter would; so does half of equal rows where all columns are categories or counts. For
        each column that would be constant the likeliest row in which it differs stays.
    calibration_fraction : float, default=0.2
        Share in (0, 0.5] of at least 1000 rows that is held out, at most 5000 rows, for the
        threshold of ``contamination="auto"``.  Of fewer rows, 5 folds are held out in turn from
        further fits.
    verbose : int, default=0
        At least 0, which is silent.  With 1 or more `fit` shows one progress bar for all of its
        fits, whatever ``verbose`` the estimator has, and so does scoring if it takes more than a
        few seconds.
    random_state : int, RandomState or None, default=None
        Seed of the held-out rows and of the estimator.

    Attributes
    ----------
    estimator_ : density estimator
        The fitted density.
    offset_ : float
        Threshold: ``decision_function`` is ``score_samples`` minus it.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Sorted scores of the held-out rows; only for ``contamination="auto"``.
    calibration_weights_ : ndarray of shape (n_calibration,)
        Weights of the held-out rows, of mean 1; only for ``contamination="auto"``.
    noise_floor_ : ndarray of shape (n_floors,) or None
        Log-SNRs of the floors.
    members_ : list of str
        Names of the members: references, or ``"model"`` for the stack, ``"dependence"`` for the
        dependence of columns, and ``"neighbors"`` for the distances.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X had string names.

    See Also
    --------
    sklearn.ensemble.IsolationForest : Outlier detection by random splits.
    sklearn.neighbors.LocalOutlierFactor : Outlier detection by local densities.

    Notes
    -----
    A detector holds up to 5000 of its training rows, and so do its files.

    Scores are integrated as exactly as ``score_tol`` of the estimator asks for; after the fit
    ``estimator_.set_params(score_tol=...)`` changes it, and leaves the threshold as it is.

    With held-out rows the p-values are those of split conformal prediction [2]_: for new rows that
    are exchangeable with the training rows, ``P(p <= alpha) <= alpha``, whatever the density.
    With folds they are approximate; where these leave too few rows to hold some out for validation,
    neither does the fit to all rows.  If training rows are contaminated, the held-out ones are
    too, and the rate is that among rows of the mixture: fewer inliers are rejected.

    Rows may have **missing entries**: NaN, None, pandas' NA or null.  The score of such a row is
    what is expected of the complete row given what was observed, :math:`E[S(x_o, X_m) \mid x_o]`, a
    mean over 12 draws of what is missing, from the references, which follow from the row's content.
    So rows with different missing entries can be compared, and p-values hold as without.  The less
    is observed, the nearer is the score to the mean.  If training rows lack entries, references are
    fitted to the observed parts, without networks; to be neighbours, and to judge the members, each
    training row is completed by one draw.  In columns of strings, booleans and categories that had
    missing entries in `fit`, these are a category of its own, which is unusual if it is rare,
    unless the estimator has ``handle_missing="missing"``.  Ensembles take no missing entries.

    Rows that were trained on score a little higher than new ones.  Which rows are held out follows
    from their content and the seed; equal rows that are not so by chance are held out together.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792
    .. [2] V. Vovk, A. Gammerman, G. Shafer. "Algorithmic Learning in a Random World". Springer,
       2005.
    .. [3] D. J. Wilson. "The harmonic mean p-value for combining dependent tests". PNAS, 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEOutlierDetector
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> detector = IMMSEOutlierDetector(contamination=0.05, random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [6.0, 6.0]])
    array([ 1, -1])
    >>> detector.explain([[0.0, 6.0]]).idxmin(axis=1).item()
    'x1'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [DensityEstimator, None],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "false_alarm_rate": [Interval(Real, 0, 1, closed="neither")],
        "noise_floor": [StrOptions({"auto"}), Real, "array-like", None],
        "average": ["boolean"],
        "trim": [Interval(Real, 0, 0.5, closed="both")],
        "calibration_fraction": [Interval(Real, 0, 0.5, closed="right")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: DensityEstimator | None = None,
        *,
        contamination: str | float = "auto",
        false_alarm_rate: float = 0.05,
        noise_floor: str | float | ArrayLike | None = "auto",
        average: bool = True,
        trim: float = 0.1,
        calibration_fraction: float = 0.2,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.contamination = contamination
        self.false_alarm_rate = false_alarm_rate
        self.noise_floor = noise_floor
        self.average = average
        self.trim = trim
        self.calibration_fraction = calibration_fraction
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Return the tags: texts and categories are accepted where the estimator accepts them."""
        tags = super().__sklearn_tags__()
        given = self.estimator is None or self.estimator.__sklearn_tags__().input_tags.categorical
        tags.input_tags.categorical = tags.input_tags.string = given
        tags.input_tags.allow_nan = takes_missing(self.estimator)
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        # The threshold comes last: an interrupted fit leaves none.
        return hasattr(self, "offset_")

    # -- fit -----------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the density and the threshold.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows; at least 2.  Entries may be missing (see Notes).
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows in the density, in trimming and in the threshold.  An
            integer weight is the same as having the row so many times, and 0 as not having it.
            Multiples of the least weight are numbers of rows too, in units of it; see
            `IMMSEDensity.fit`.  Each row of another weight is one unit.

        Returns
        -------
        IMMSEOutlierDetector
            The fitted detector.

        Raises
        ------
        ValueError
            If the estimator does not take X, a column has no observed value, a weight is negative,
            or a parameter is out of its range.
        """
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        rows = self._checked_rows(in_memory(X), reset=True)
        self.noise_floor_ = checked_floors(self.noise_floor)
        random_state = check_random_state(self.random_state)
        split_seed, fit_seed = (int(seed) for seed in random_state.randint(2**31 - 1, size=2))
        given = DistinctRows.of(rows, sample_weight)
        template = self.estimator
        template = default_estimator(given.rows) if template is None else template
        template = with_common_lattice(template, given.rows)
        given = with_missing_entries(template, given)
        # Each fit may come after one that trims its rows, and folds may be fitted anew.
        tasks = FitTasks.begin(self, 2 * (2 * N_FOLDS + 1), X, y, sample_weight)
        with progress_bar(type(self).__name__, self.verbose):
            scores, weight = self._fit_and_score_others(
                template, given, np.random.default_rng(split_seed), fit_seed, tasks
            )
        order = np.argsort(scores, kind="stable")
        scores, weight = scores[order], weight[order]
        if self.contamination == "auto":
            self.calibration_scores_ = scores
            self.calibration_weights_ = weight / weight.mean()
            self.offset_ = threshold(
                self.calibration_scores_, self.false_alarm_rate, self.calibration_weights_
            )
        else:
            # As in scikit-learn: exactly the share of the training rows, except for equal scores.
            self.offset_ = weighted_quantile(scores, weight, float(self.contamination))
        tasks.end()
        return self

    def _fit_and_score_others(
        self,
        template: DensityEstimator,
        given: DistinctRows,
        generator: np.random.Generator,
        seed: int,
        tasks: FitTasks,
    ) -> tuple[Array, Array]:
        """Fit the density; return the scores that the threshold comes from, and their weights."""
        if self.contamination != "auto":
            trims = given.n_units >= MIN_ROWS_TO_TRIM
            return self._fit_and_score(template, given, given, seed, tasks, trims), given.weight
        if given.n_units >= MIN_ROWS_TO_SPARE:
            n_spared = min(round(self.calibration_fraction * given.n_units), MAX_CALIBRATION_ROWS)
            spared = given.draw(max(n_spared, 1), generator)
            others = given.part(spared)
            left = given.with_all_columns(given.n_copies - spared)
            scores = self._fit_and_score(
                template, given.part(left), others, seed, tasks, trims=True
            )
            return others.repeated(scores), others.repeated(others.unit_weight)
        # Folds and all rows alike, or the threshold would be that of another kind of fit.
        trims = given.n_units - -(-given.n_units // N_FOLDS) >= MIN_ROWS_TO_TRIM
        folds = given.folds(max(1, min(N_FOLDS, given.n_units // 2)), generator)
        may_hold_out = True
        parts = self._fold_scores(template, given, folds, seed, tasks, trims, may_hold_out)
        if not all(judged for *_, judged in parts):
            # Rows without a fold may be too few to choose by validation where all rows are not.
            may_hold_out = False
            if any(judged for *_, judged in parts):
                parts = self._fold_scores(template, given, folds, seed, tasks, trims, may_hold_out)
        with stretch_of_progress(N_FOLDS / (N_FOLDS + 1), 1.0, "all rows"):
            self._fit_density(template, given, seed, tasks, trims, may_hold_out)
        usual, unit = self._score.scale
        scores = usual + unit * np.concatenate([scores for scores, *_ in parts])
        return scores, np.concatenate([weight for _, weight, _ in parts])

    def _fold_scores(
        self,
        template: DensityEstimator,
        given: DistinctRows,
        folds: Sequence[Index],
        seed: int,
        tasks: FitTasks,
        trims: bool,
        may_hold_out: bool,
    ) -> list[tuple[Array, Array, bool]]:
        """Return scores of each fold by a fit without it, weights, and whether that is judged.

        Scores are standardised, as not all fits resolve the values of a lattice.
        """
        parts = []
        for number, fold in enumerate(folds):
            left = given.with_all_columns(given.n_copies - fold)
            # Two or three rows are too few to hold any out.
            others = given.part(left) if left.sum() >= 2 else given
            held_out = given.part(fold)
            place = number / (N_FOLDS + 1), (number + 1) / (N_FOLDS + 1)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", REPEATED_WARNINGS, UserWarning)  # said once
                with stretch_of_progress(*place, f"fold {number + 1}/{len(folds)}"):
                    found = self._fit_and_score(
                        template, others, held_out, seed, tasks, trims, may_hold_out
                    )
            usual, unit = self._score.scale
            found = (found - usual) / unit
            weight = held_out.repeated(held_out.unit_weight)
            parts.append((held_out.repeated(found), weight, is_judged(self.estimator_)))
        return parts

    def _fit_and_score(
        self,
        template: DensityEstimator,
        given: DistinctRows,
        others: DistinctRows,
        seed: int,
        tasks: FitTasks,
        trims: bool,
        may_hold_out: bool = True,
    ) -> Array:
        """Fit the density to rows and return the scores of others, each once."""
        with stretch_of_progress(0.0, FIT_ENDS):
            self._fit_density(template, given, seed, tasks, trims, may_hold_out)
        with stretch_of_progress(FIT_ENDS, 1.0):
            return score_rows(self.estimator_, self._score, others.rows)

    def _fit_density(
        self,
        template: DensityEstimator,
        given: DistinctRows,
        seed: int,
        tasks: FitTasks,
        trims: bool,
        may_hold_out: bool = True,
    ) -> None:
        """Fit the density to the rows that are left of trimming."""
        kept = given = given.with_entries()
        with stretch_of_progress(0.0, FIT_BEGINS):
            if trims:
                kept = self._trimmed(template, given, seed, tasks, may_hold_out)
        with stretch_of_progress(FIT_BEGINS, 1.0):
            quiet = self.noise_floor_ is not None
            self.estimator_ = fit_clone(template, kept, seed, quiet, tasks, may_hold_out)
        model = self.estimator_._model
        self._score: RowScore
        if self.average and not model.space.is_empty:
            members = tuple(dict.fromkeys([model.plain, main_member(model)]))
            local = self._local_score(given)
            self._score = self._combined_score(self.estimator_, members, kept, seed, local)
        else:
            self._score = LogDensityScore(FlooredModel(model, self._floors))
        self.members_ = list(self._score.members)

    def _combined_score(
        self,
        estimator: DensityEstimator,
        members: tuple[str, ...],
        given: DistinctRows,
        seed: int,
        local: LocalScore | None = None,
    ) -> CombinedScore:
        """Return the score of log-densities, and of neighbours, as given rows weight them."""
        values = read_rows(estimator, given.rows)
        complete = completed_units(estimator._model, values, given, ROWS_TO_JUDGE)
        return CombinedScore.fit(
            FlooredModel(estimator._model, self._floors, members, is_wide=True),
            local is not None and estimator._model.space.layout.n_columns > 1,
            local,
            np.asarray(complete.rows),
            complete.weight,
            given.n_rows,
            np.random.default_rng(seed),
            estimator._tolerance(),
        )

    def _local_score(self, given: DistinctRows) -> LocalScore | None:
        """Return the score of neighbours among rows, at the floors or at a fine one."""
        model = self.estimator_._model
        floors = self._floors[np.isfinite(self._floors)]
        if not len(floors):
            floors = np.asarray(checked_floors("auto"))
        values = read_rows(self.estimator_, given.rows)
        complete = completed_units(model, values, given, MAX_ROWS)
        rows = MappedRows.of(model, np.asarray(complete.rows)).mapped
        return LocalScore.of(model.space.layout, rows, complete.n_copies, floors, self.trim)

    def _trimmed(
        self,
        template: DensityEstimator,
        given: DistinctRows,
        seed: int,
        tasks: FitTasks,
        may_hold_out: bool,
    ) -> DistinctRows:
        """Return the rows without those that a quick fit finds least likely."""
        n_trimmed = round(self.trim * given.n_rows)
        if n_trimmed == 0:
            return given
        first = with_parameter(template, "max_epochs", 0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", REPEATED_WARNINGS, UserWarning)  # said once
            first = fit_clone(first, given, seed, False, tasks, may_hold_out)
        model = first._model
        floored = FlooredModel(model, self._floors)
        score: RowScore = LogDensityScore(floored)
        if not model.space.is_empty:
            # The likeliest reference alone, which is quick.
            floored = FlooredModel(model, self._floors, (model.control,))
            score = LogDensityScore(floored)
            if self.average:
                # All of them: a cluster of outliers is part of a mixture, but not of one blob.
                score = self._combined_score(first, tuple(model.references), given, seed)
        scores = score_rows(first, score, given.rows)
        values = read_rows(first, given.rows)
        modes = None if model.space.is_empty else floored.modes(completed_once(model, values))
        discrete = model.space.discrete
        return given.part(copies_left(scores, values, given, n_trimmed, discrete, modes))

    @property
    def _floors(self) -> Array:
        """Log-SNRs of the floors; infinite for none."""
        return np.array([np.inf]) if self.noise_floor_ is None else self.noise_floor_

    # -- scores --------------------------------------------------------------------------------

    def _checked_rows(self, X: Any, reset: bool) -> Rows:
        """Return a data frame or an array, its columns noted or compared with those of `fit`."""
        if hasattr(X, "columns"):
            frame = read_table(X).frame
            validate_data(self, X, reset=reset, skip_check_array=True)
            if reset:
                check_number_of_rows(frame.shape, type(self).__name__)
            return frame
        estimator = self.estimator if reset else self.estimator_
        shape = None if estimator is None else image_shape_of(estimator)
        if shape is not None:
            X = flattened_images(X, shape)
        X = without_tensors(X)
        table = read_table(X)
        kept = table.frame.to_numpy() if table.holds_numbers.all() else X
        dtype = np.float64 if takes_numbers(estimator, table) else None
        is_finite: bool | str = dtype is not None
        if is_finite and takes_missing(estimator):
            kept, is_finite = without_missing_objects(kept), "allow-nan"
        with naming_columns(kept, is_finite == "allow-nan"):
            rows = validate_data(self, kept, reset=reset, dtype=dtype, ensure_all_finite=is_finite)
        if reset:
            check_number_of_rows(rows.shape, type(self).__name__)
            if dtype is not None:
                warn_of_merged_integers(kept)
        return np.asarray(rows) if dtype is None else with_one_nan(np.asarray(rows))

    def score_samples(self, X: ArrayLike) -> Array:
        """Return the score of rows; higher is more normal.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows, which may lack entries.

        Returns
        -------
        ndarray of shape (n_samples,)
            Scores in nats, with respect to the units of continuous columns and to counts for
            discrete ones and those that are dequantised.  With ``average`` ordinary rows have
            about their log-density, and rows far below it scores on a logarithmic scale.  A row's
            score does not depend on the other rows.
        """
        check_is_fitted(self)
        with long_call(self, "score_samples"):
            parts = [
                score_rows(self.estimator_, self._score, self._checked_rows(part, False))
                for part in parts_of(X)
            ]
        return np.concatenate(parts)

    def decision_function(self, X: ArrayLike) -> Array:
        """Return the score minus the threshold; negative for outliers.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Scores above the threshold, in nats.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """Return 1 for inliers and -1 for outliers.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            1 where the decision function is at least 0, else -1.
        """
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def p_values(self, X: ArrayLike) -> Array:
        """Return conformal p-values: how likely inliers score as low.

        With n held-out rows, of which k score no higher than the row, it is (k + 1) / (n + 1); if
        they have weights of mean 1, k is the sum of those.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            P-values in (0, 1]; small for outliers.

        Raises
        ------
        ValueError
            If `contamination` was a number in `fit`, so that no rows were held out.
        """
        check_is_fitted(self)
        if not hasattr(self, "calibration_scores_"):
            raise ValueError(
                "p_values needs held-out rows, which are only available after a fit with "
                "contamination='auto'; this detector was fitted with "
                f"contamination={self.contamination!r}."
            )
        below = np.searchsorted(self.calibration_scores_, self.score_samples(X), side="right")
        up_to = np.append(0.0, np.cumsum(self.calibration_weights_))
        return np.asarray((up_to[below] + 1.0) / (len(self.calibration_scores_) + 1.0))

    def explain(self, X: ArrayLike) -> pd.DataFrame:
        r"""Return the contribution of each column to the rows' scores.

        With independent columns as the reference q, both terms of the log-density are sums over
        columns, and that of column i is

        .. math:: E\left[\log q_{i, a_1}(z_i)\right] + \frac12 \int_{-\infty}^{a_1} da\; E_\epsilon
            \left[ (\epsilon_i - \hat\epsilon_{q, i})^2 - (\epsilon_i - \hat\epsilon_i)^2 \right]:

        how likely the entry is by itself, and what the other columns tell about it.  With
        ``average`` the difference of the score from that of a typical row is divided among the
        columns in proportion to how far these terms are from those of typical rows, and squared
        distances from typical ones; what belongs to no column is divided equally.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        DataFrame of shape (n_samples, n_features)
            Contributions in nats, with the names of the columns (or x0, x1, ...).  A row sums to
            its score up to rounding, on every kind of table, unless it lacks all entries: with the
            same noise, what the columns tell in an interval of the log-SNR is made to sum to what
            the log-densities differ by.  Unknown entries contribute 0, and what is expected of them
            is divided equally among the observed ones, from which it follows.  Single contributions
            have the numerical error of the integral: for ordinary rows that of ``score_tol`` of the
            estimator, for far ones a few percent of the score.  With ``likelihood="path"``, no
            noise floor and no average they sum to the I-MMSE estimate instead.
        """
        check_is_fitted(self)
        rows = self._checked_rows(X, reset=False)
        with long_call(self, "explain"):
            parts = explain_rows(self.estimator_, self._score, rows)
        columns = getattr(self, "feature_names_in_", [f"x{j}" for j in range(parts.shape[1])])
        index = rows.index if isinstance(rows, pd.DataFrame) else None
        return pd.DataFrame(parts, columns=list(columns), index=index)

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        density = self.estimator_
        if not isinstance(density, DensityEstimator) or not isinstance(self._score, RowScore):
            raise ValueError("a detector has no density")
        check_is_fitted(density)
        checks.check_same(
            id(self._score.model.space), id(density._model.space), "the models differ"
        )
        check_columns(self, density._model.space)
        checks.check_finite(self.offset_, "threshold")
        if hasattr(self, "calibration_scores_"):
            n = checks.check_shapes(
                self, {"calibration_scores_": "n", "calibration_weights_": "n"}
            )["n"]
            checks.check_finite(self.calibration_scores_, "scores of held-out rows")
            checks.check_not_negative(np.diff(self.calibration_scores_), "rises of sorted scores")
            checks.check_positive(self.calibration_weights_, "weights of held-out rows")
            checks.check_positive(n, "number of held-out rows")
