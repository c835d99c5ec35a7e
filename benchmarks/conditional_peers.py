"""Measure peers of conditional densities, in an environment of their own.

    python -m venv peers && peers/bin/pip install ngboost quantile-forest
    peers/bin/python benchmarks/conditional_peers.py --data-dir DATA --output results/peers.jsonl

The environment does not need this library. ``conditional.py --peers results/peers.jsonl`` puts the
records alongside those of this library: the sets, the splits and the measures are the same. Peers
that are not installed are left out: lightgbmlss, which pins torch, can have an environment of its
own and add to the same file. All peers have their default parameters, but for the rounds of
lightgbmlss, which end by validation rows; quantile-forest has quantiles, and no density.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from conditional_data import compare, parser_of
from numpy.typing import NDArray
from results import ResultsFile
from scipy.stats import norm
from sklearn.preprocessing import LabelEncoder
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]


class NGBoost:
    """Natural-gradient boosting of a normal distribution."""

    def __init__(self, seed: int) -> None:
        from ngboost import NGBRegressor

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
        from quantile_forest import RandomForestQuantileRegressor

        self.estimator = RandomForestQuantileRegressor(random_state=seed)

    def fit(self, X: Array, y: Array) -> None:
        """Fit to the training rows."""
        self.estimator.fit(X, y)

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        return np.asarray(self.estimator.predict(X, quantiles=levels.tolist()))


class LightGBMLSS:
    """Gradient boosting of the mean and the scale of a normal distribution, with LightGBM.

    The parameters are the defaults, from the best constant ones on, and rounds end by a tenth of
    the training rows: a fixed number of them would be too large for some sets, and too small for
    others.
    """

    def __init__(self, seed: int, most_rounds: int = 2000, patience: int = 50) -> None:
        self.seed, self.most_rounds, self.patience = seed, most_rounds, patience

    def fit(self, X: Array, y: Array) -> None:
        """Fit to nine tenths of the training rows, as long as the others become likelier."""
        import lightgbm
        from lightgbmlss.distributions.Gaussian import Gaussian
        from lightgbmlss.model import LightGBMLSS as Model

        order = np.random.default_rng(self.seed).permutation(len(y))
        n_valid = max(10, len(y) // 10)
        valid, train = order[:n_valid], order[n_valid:]
        rows = lightgbm.Dataset(X[train], label=y[train])
        self.model = Model(Gaussian(initialize=True))
        self.model.train(
            {"seed": self.seed, "num_threads": 1, "verbosity": -1},
            rows,
            num_boost_round=self.most_rounds,
            valid_sets=[lightgbm.Dataset(X[valid], label=y[valid], reference=rows)],
            callbacks=[lightgbm.early_stopping(self.patience, verbose=False)],
        )

    def log_density(self, X: Array, y: Array) -> Array:
        """Return log-densities."""
        return np.asarray(norm(*self._parameters(X)).logpdf(y))

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        loc, scale = self._parameters(X)
        return np.asarray(norm(loc[:, None], scale[:, None]).ppf(levels))

    def _parameters(self, X: Array) -> tuple[Array, Array]:
        import pandas as pd

        found = self.model.predict(pd.DataFrame(X))
        return found["loc"].to_numpy(), found["scale"].to_numpy()


class NGBoostClasses:
    """Natural-gradient boosting of the probabilities of classes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, X: Array, y: NDArray[np.int_]) -> NGBoostClasses:
        """Fit to the training rows."""
        from ngboost import NGBClassifier
        from ngboost.distns import k_categorical

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


NUMBERS: dict[str, Callable[[int], Any]] = {
    "ngboost": NGBoost,
    "quantile_forest": QuantileForest,
    "lightgbmlss": LightGBMLSS,
}
CLASSES: dict[str, Callable[[int], Any]] = {"ngboost": NGBoostClasses}


def methods_of(name: str) -> dict[str, Callable[[int], Any]]:
    """Return the methods for a set that are installed."""
    known = CLASSES if name == "wine" else NUMBERS
    return {key: make for key, make in known.items() if importlib.util.find_spec(key)}


def main() -> None:
    """Measure what is asked for."""
    parser = parser_of("Measure peers of conditional densities.")
    parser.add_argument("--methods", nargs="+", choices=sorted(NUMBERS))
    arguments = parser.parse_args()
    with threadpool_limits(arguments.threads):
        compare(arguments, ResultsFile(arguments.output), methods_of)


if __name__ == "__main__":
    main()
