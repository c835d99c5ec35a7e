"""Measure peers of conditional densities, in an environment of their own.

    python -m venv peers && peers/bin/pip install ngboost quantile-forest
    peers/bin/python benchmarks/conditional_peers.py --data-dir DATA --output results/peers.jsonl

The environment needs neither this library nor torch. ``conditional.py --peers results/peers.jsonl``
puts the records alongside those of this library: the sets, the splits and the measures are the
same. All peers have their default parameters; quantile-forest has quantiles, and no density.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from conditional_data import compare, parser_of
from ngboost import NGBClassifier, NGBRegressor
from ngboost.distns import k_categorical
from numpy.typing import NDArray
from quantile_forest import RandomForestQuantileRegressor
from results import ResultsFile
from scipy.stats import norm
from sklearn.preprocessing import LabelEncoder
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]


class NGBoost:
    """Natural-gradient boosting of a normal distribution."""

    def __init__(self, seed: int) -> None:
        self.estimator = NGBRegressor(verbose=False, random_state=seed)

    def fit(self, X: Array, y: Array) -> None:
        """Fit to the training rows."""
        self.estimator.fit(X, y)

    def log_density(self, X: Array, y: Array) -> Array:
        """Return log-densities."""
        return np.asarray(self.estimator.pred_dist(X).logpdf(y))

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        found = self.estimator.pred_dist(X)
        return np.asarray(norm(found.loc[:, None], found.scale[:, None]).ppf(levels))


class QuantileForest:
    """A quantile regression forest."""

    def __init__(self, seed: int) -> None:
        self.estimator = RandomForestQuantileRegressor(random_state=seed)

    def fit(self, X: Array, y: Array) -> None:
        """Fit to the training rows."""
        self.estimator.fit(X, y)

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        return np.asarray(self.estimator.predict(X, quantiles=levels.tolist()))


class NGBoostClasses:
    """Natural-gradient boosting of the probabilities of classes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, X: Array, y: NDArray[np.int_]) -> NGBoostClasses:
        """Fit to the training rows."""
        self.encoder = LabelEncoder().fit(y)
        self.classes_ = self.encoder.classes_
        self.estimator = NGBClassifier(
            Dist=k_categorical(len(self.classes_)), verbose=False, random_state=self.seed
        )
        self.estimator.fit(X, self.encoder.transform(y))
        return self

    def predict_proba(self, X: Array) -> Array:
        """Return the probabilities of the classes."""
        return np.asarray(self.estimator.predict_proba(X))


NUMBERS: dict[str, Callable[[int], Any]] = {"ngboost": NGBoost, "quantile_forest": QuantileForest}
CLASSES: dict[str, Callable[[int], Any]] = {"ngboost": NGBoostClasses}


def main() -> None:
    """Measure what is asked for."""
    parser = parser_of("Measure peers of conditional densities.")
    parser.add_argument("--methods", nargs="+", choices=sorted(NUMBERS))
    arguments = parser.parse_args()
    with threadpool_limits(arguments.threads):
        compare(
            arguments,
            ResultsFile(arguments.output),
            lambda name: CLASSES if name == "wine" else NUMBERS,
        )


if __name__ == "__main__":
    main()
