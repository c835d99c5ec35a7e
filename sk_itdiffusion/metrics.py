"""Scores of predicted distributions and of samples.

The functions with ``_scorer`` in their name are passed as ``scoring`` to
`sklearn.model_selection.GridSearchCV` or `sklearn.model_selection.cross_val_score`; greater is
better.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import OneHotEncoder

__all__ = [
    "crps_of_normal_mixture",
    "distance_to_closest_record",
    "log_density_scorer",
    "neg_crps_scorer",
]

Array = NDArray[np.float64]
#: Quantiles by which an integral over probabilities is a sum.
N_QUANTILES = 400


def log_density_scorer(
    estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Return the mean log-density of targets.

    Parameters
    ----------
    estimator : estimator
        Fitted, with a method ``score_samples(X, y)`` such as that of
        `sk_itdiffusion.IMMSEConditionalDensity`; or a pipeline that ends with one.
    X : array-like or data frame of shape (n_samples, n_features)
        Features.
    y : array-like or data frame of shape (n_samples,) or (n_samples, n_targets)
        Targets.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights.

    Returns
    -------
    float
        Mean log-density in nats per row; greater is better.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sk_itdiffusion import IMMSERegressor
    >>> from sk_itdiffusion.metrics import log_density_scorer
    >>> X, y = load_diabetes(return_X_y=True)
    >>> regressor = IMMSERegressor(random_state=0).fit(X[:300], y[:300])
    >>> -6.0 < log_density_scorer(regressor, X[300:], y[300:]) < -5.0
    True
    """
    if hasattr(estimator, "steps"):  # the method of a pipeline takes no y
        X, estimator = estimator[:-1].transform(X), estimator[-1]
    log_density = np.asarray(estimator.score_samples(X, y), dtype=np.float64)
    return weighted_mean(log_density, sample_weight)


def neg_crps_scorer(
    estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Return minus the mean continuous ranked probability score of one continuous target.

    The score of a distribution with the quantile function q is twice the integral of the pinball
    loss of y at q(p) over p, which is a sum over 400 quantiles here.

    Parameters
    ----------
    estimator : estimator
        Fitted, with ``predict(X, quantiles=...)`` that returns one column for each quantile, such
        as `sk_itdiffusion.IMMSEConditionalDensity`.
    X : array-like or data frame of shape (n_samples, n_features)
        Features.
    y : array-like of shape (n_samples,)
        Targets.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights.

    Returns
    -------
    float
        Minus the mean score, in the units of y; greater is better.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sk_itdiffusion import IMMSERegressor
    >>> from sk_itdiffusion.metrics import neg_crps_scorer
    >>> X, y = load_diabetes(return_X_y=True)
    >>> regressor = IMMSERegressor(random_state=0).fit(X[:300], y[:300])
    >>> -40.0 < neg_crps_scorer(regressor, X[300:], y[300:]) < -20.0
    True
    """
    probability = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    quantiles = np.asarray(estimator.predict(X, quantiles=probability), dtype=np.float64)
    error = np.asarray(y, dtype=np.float64).reshape(-1, 1) - quantiles
    loss = 2.0 * np.mean(np.maximum(probability * error, (probability - 1.0) * error), axis=1)
    return -weighted_mean(loss, sample_weight)


def crps_of_normal_mixture(
    y: ArrayLike, weights: ArrayLike, means: ArrayLike, stds: ArrayLike
) -> Array:
    r"""Return the continuous ranked probability score of mixtures of normal distributions.

    It is :math:`E|Y - y| - \frac12 E|Y - Y'|` for independent draws Y, Y' of a mixture, which is
    known in closed form.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Targets.
    weights : array-like of shape (n_samples, n_components) or (n_components,)
        Weights of the components, which sum to 1.
    means : array-like of shape (n_samples, n_components) or (n_components,)
        Means.
    stds : array-like of shape (n_samples, n_components) or (n_components,)
        Positive standard deviations.

    Returns
    -------
    ndarray of shape (n_samples,)
        Scores in the units of y; lower is better.

    Examples
    --------
    >>> from sk_itdiffusion.metrics import crps_of_normal_mixture
    >>> float(crps_of_normal_mixture([0.0], [1.0], [0.0], [1.0])[0])
    0.2337
    """
    target = np.asarray(y, dtype=np.float64)[:, None]
    weight, mean, std = (
        np.atleast_2d(np.asarray(a, dtype=np.float64)) for a in (weights, means, stds)
    )
    apart = np.sum(weight * mean_absolute(target - mean, std), axis=1)
    between = mean_absolute(
        mean[:, :, None] - mean[:, None, :], np.hypot(std[:, :, None], std[:, None, :])
    )
    pairs = weight[:, :, None] * weight[:, None, :]
    return np.asarray(apart - 0.5 * np.sum(pairs * between, axis=(1, 2)))


def mean_absolute(mean: Array, std: Array) -> Array:
    """Return the mean absolute value of normal numbers."""
    ratio = mean / std
    density = np.exp(-0.5 * ratio**2) / np.sqrt(2.0 * np.pi)
    return np.asarray(mean * (2.0 * ndtr(ratio) - 1.0) + 2.0 * std * density)


def weighted_mean(values: Array, sample_weight: ArrayLike | None) -> float:
    """Return the mean of values with weights, which are equal if there are none."""
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    return float(np.average(values, weights=weight))


def distance_to_closest_record(
    X: ArrayLike, records: ArrayLike, *, scale_by: ArrayLike | None = None
) -> Array:
    """Return the distance of each row to the closest one of a table.

    Synthetic rows that are nearer to the rows that a model was fitted to than to other rows of the
    same distribution, and as many, reveal rows of the fit.

    Parameters
    ----------
    X : array-like or data frame of shape (n_rows, n_columns)
        Rows, such as samples of a density.
    records : array-like or data frame of shape (n_records, n_columns)
        Records with the same columns, without missing entries.
    scale_by : array-like or data frame of shape (n_others, n_columns), default=None
        Table whose standard deviations are the units of numerical columns; None for ``records``.
        Distances to two tables are comparable if the units are the same.

    Returns
    -------
    ndarray of shape (n_rows,)
        Distances, at least 0: the root of the sum of the squared differences of numbers, in
        standard deviations, and of the number of other columns (strings, categoricals, booleans)
        whose values differ.

    Raises
    ------
    ValueError
        If a table has no rows, the tables have different columns or a column is of numbers in one
        and not in another, or entries are missing or infinite.

    See Also
    --------
    sklearn.neighbors.NearestNeighbors : Finds which records are closest.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity
    >>> from sk_itdiffusion.metrics import distance_to_closest_record
    >>> rows = np.random.default_rng(0).normal(size=(1000, 3))
    >>> fitted, held_out = rows[:500], rows[500:]
    >>> density = IMMSEDensity(max_epochs=0, random_state=0).fit(fitted)
    >>> samples = density.sample(500, random_state=0)
    >>> to_fitted, to_held_out = (
    ...     distance_to_closest_record(samples, table, scale_by=fitted)
    ...     for table in (fitted, held_out)
    ... )
    >>> bool(0.4 < np.mean(to_fitted < to_held_out) < 0.6)  # 0.5 if no row is revealed
    True
    """
    asked = {"X": X, "records": records} | ({} if scale_by is None else {"scale_by": scale_by})
    tables = {name: as_frame(table, name) for name, table in asked.items()}
    rows, known = tables["X"], tables["records"]
    is_number = {name: is_numerical(known, name) for name in known.columns}
    for name, table in tables.items():
        check_like_records(table, name, is_number)
    numbers = [name for name, is_one in is_number.items() if is_one]
    scale = tables.get("scale_by", known)[numbers].to_numpy(np.float64).std(axis=0)
    scale[scale == 0.0] = 1.0
    both = pd.concat([known, rows], ignore_index=True)
    points = both[numbers].to_numpy(np.float64) / scale
    if len(numbers) < len(is_number):
        texts = both.drop(columns=numbers).astype(str)
        flags = OneHotEncoder(sparse_output=False).fit_transform(texts)
        points = np.hstack([points, np.sqrt(0.5) * flags])
    # A tree takes differences of points, while brute force loses digits in those of their squares.
    nearest = NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(points[: len(known)])
    return np.asarray(nearest.kneighbors(points[len(known) :])[0][:, 0])


def as_frame(table: Any, parameter: str) -> pd.DataFrame:
    """Return a table as a data frame of pandas, whose columns are numbered if they have no name."""
    if isinstance(table, pd.DataFrame):
        if not table.columns.is_unique:
            raise ValueError(f"{parameter} must not have two columns of the same name.")
        return table
    if hasattr(table, "columns"):
        return pd.DataFrame({name: table[name].to_list() for name in table.columns})
    array = np.asarray(table)
    if array.ndim != 2:
        raise ValueError(f"{parameter} must be a table with rows and columns, got {array.ndim}D.")
    return pd.DataFrame(array).infer_objects()


def is_numerical(table: pd.DataFrame, name: Any) -> bool:
    """Return whether a column is of numbers."""
    dtype = table[name].dtype
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def check_like_records(table: pd.DataFrame, parameter: str, is_number: dict[Any, bool]) -> None:
    """Raise a ValueError unless a table has rows, and columns like the records'.

    Parameters
    ----------
    table : DataFrame
        The table.
    parameter : str
        Its name.
    is_number : dict of column to bool
        The columns of the records, and which are of numbers.
    """
    if not len(table):
        raise ValueError(f"{parameter} must have at least one row.")
    names, wanted = list(table.columns), list(is_number)
    if names != wanted:
        lacking = [name for name in wanted if name not in names]
        extra = [name for name in names if name not in wanted]
        what = "has them in another order"
        if lacking or extra:
            what = f"lacks {lacking}" if lacking else f"has {extra} too"
        raise ValueError(f"{parameter} must have the same columns as records, but it {what}.")
    for name, is_one in is_number.items():
        if is_numerical(table, name) != is_one:
            kinds = "numbers" if is_one else "categories", table[name].dtype
            raise ValueError(
                f"Column {name!r} of {parameter} must hold {kinds[0]} as that of records does, got "
                f"dtype {kinds[1]}."
            )
        if table[name].isna().any():
            raise ValueError(f"Column {name!r} of {parameter} must not have missing entries.")
        if is_one and not np.isfinite(table[name].to_numpy(np.float64)).all():
            raise ValueError(f"Column {name!r} of {parameter} must be finite.")
