"""The lines of the scoreboard: what each one fits, and how its rows are scored.

A line is a method on a data set. It returns the scores of rows (larger is better), so that two runs
of the scoreboard can be compared row by row, and the CPU seconds of fit and of scoring:

- joint, discrete, mixed, missing, conditional: log-likelihoods of test rows in nats, of tables of
  numbers in the units in which training rows have standard deviation 1;
- imputation: minus the absolute error of each imputed entry, and minus the Wasserstein distance of
  draws in each column, both in standard deviations of the column;
- detection: for each anomaly the share of inliers that rank below it; their mean is the AUROC;
- information: minus the absolute error of each estimate, in nats.

Estimators have their default parameters, but for those that a line is named after.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, wasserstein_distance
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.neighbors import KernelDensity, NearestNeighbors
from tabular_data import load_table, random_split

import sk_itdiffusion as immse
from sk_itdiffusion.datasets import load_density

Array = NDArray[np.float64]

PARTS = (
    *("small", "joint", "discrete", "mixed", "missing"),
    *("imputation", "conditional", "detection", "information"),
)
MAX_TEST_ROWS = 1_000
MIXTURES = {"n_components": [1, 2, 4, 8, 16, 32, 64]}
BANDWIDTHS = {"bandwidth": np.geomspace(0.02, 1.25, 10)}
#: Where IMMSEDensity is taken from.
density_module = "sk_itdiffusion"
IMPORTS = "import torch, skorch, pandas, scipy.stats"


@dataclass
class Measured:
    """Scores of rows, and CPU seconds of fit and of scoring."""

    rows: Array
    fit: float
    scoring: float


@dataclass(frozen=True)
class Line:
    """A line of the scoreboard.

    Attributes
    ----------
    part, data, method : str
        Its name.
    measure : callable
        Returns what was measured for a seed.
    seeds : tuple of int
        Seeds of splits and fits; the line has the rows of all.
    quick : bool
        Whether it belongs to ``--quick``.
    """

    part: str
    data: str
    method: str
    measure: Callable[[int], Measured]
    seeds: tuple[int, ...] = (0,)
    quick: bool = False

    @property
    def name(self) -> str:
        """Part, data and method."""
        return f"{self.part}/{self.data}/{self.method}"


@dataclass
class Clock:
    """CPU seconds of this process and of those that it started, since the last reading."""

    last: float = field(default_factory=lambda: cpu_seconds())

    def read(self) -> float:
        """Return the seconds since the last reading."""
        before, self.last = self.last, cpu_seconds()
        return self.last - before


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def fit_and_score(estimator: Any, train: Any, test: Any, offset: float = 0.0) -> Measured:
    """Fit a density and return the log-likelihoods of test rows, each plus an offset."""
    clock = Clock()
    estimator.fit(train)
    fitted = clock.read()
    rows = np.asarray(estimator.score_samples(test)) + offset
    return Measured(rows, fitted, clock.read())


# --- Densities of numbers ---------------------------------------------------------------------

Split = tuple[Array, Array]


def small_table(name: str, seed: int) -> Split:
    """Return three quarters of a table of scikit-learn and the rest, standardised."""
    X = getattr(datasets, f"load_{name}")().data
    return standardized(*train_test_split(X, test_size=0.25, random_state=seed))


def standardized(train: Array, test: Array) -> Split:
    """Return rows in units of the mean and standard deviation of the first ones."""
    center, scale = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    return (train - center) / scale, (test - center) / scale


def large_table(data_dir: Path, name: str, seed: int) -> Split:
    """Return nine tenths of a table and the rest, split and standardised as in tabular.py."""
    split = random_split(load_table(name, data_dir), seed)
    return np.concatenate([split.train, split.valid]), split.test


def synthetic_table(name: str, seed: int) -> Split:
    """Return 4,000 rows of a known density and 1,000 more."""
    density = load_density(name)
    return density.sample(4_000, random_state=seed), density.sample(1_000, random_state=seed + 100)


def density(max_epochs: int | None, seed: int) -> Any:
    """Return IMMSEDensity with its default parameters, but for the number of epochs."""
    parameters = {} if max_epochs is None else {"max_epochs": max_epochs}
    make = importlib.import_module(density_module).IMMSEDensity
    return make(random_state=seed, **parameters)


def mixture(seed: int) -> Any:
    """Return scikit-learn's mixture with a cross-validated number of components."""
    mixtures = GaussianMixture(reg_covar=1e-4, random_state=seed)
    return Searched(mixtures, MIXTURES)


def kernels(seed: int) -> Any:
    """Return scikit-learn's kernel density with a cross-validated bandwidth."""
    return Searched(KernelDensity(), BANDWIDTHS)


@dataclass
class Searched:
    """A density whose parameter is searched by cross-validation, on 3,000 rows at most."""

    model: Any
    grid: dict[str, Any]

    def fit(self, X: Array) -> Searched:
        """Search and fit again to all rows."""
        few = np.random.default_rng(0).permutation(X)[:3_000]
        search = GridSearchCV(self.model, self.grid, cv=KFold(3), refit=False).fit(few)
        self.model.set_params(**search.best_params_).fit(X)
        return self

    def score_samples(self, X: Array) -> Array:
        """Return log-densities."""
        return np.asarray(self.model.score_samples(X))


DENSITIES = {
    "immse, max_epochs=0": partial(density, 0),
    "immse": partial(density, None),
    "GaussianMixture": mixture,
    "KernelDensity": kernels,
}


def joint(load: Callable[[int], Split], make: Callable[[int], Any], seed: int) -> Measured:
    """Fit a density to a table and score new rows."""
    return fit_and_score(make(seed), *load(seed))


def truth(name: str, seed: int) -> Measured:
    """Score new rows by the density that they were drawn from."""
    _, test = synthetic_table(name, seed)
    return Measured(load_density(name).log_prob(test), 0.0, 0.0)


def import_time(statement: str, seed: int) -> Measured:
    """Return minus the CPU seconds of an import, the median of five fresh processes."""
    seconds = []
    for _ in range(5):
        clock = Clock()
        subprocess.run([sys.executable, "-c", statement], check=True)
        seconds.append(clock.read())
    return Measured(-np.array([np.median(seconds)]), float(np.median(seconds)), 0.0)


def lines_of_joint(data_dir: Path) -> Iterator[Line]:
    """Yield the lines of complete tables of numbers."""
    for name, statement in {"sk_itdiffusion": "import sk_itdiffusion", "torch": IMPORTS}.items():
        yield Line("small", "import", name, partial(import_time, statement), quick=True)
    for name in ("iris", "wine", "breast_cancer"):
        for method, make in DENSITIES.items():
            measure = partial(joint, partial(small_table, name), make)
            quick = method != "immse" or name == "iris"
            yield Line("small", name, method, measure, seeds=(0, 1, 2), quick=quick)
    tables = ("power-plant", "kin8nm", "magic", "twonorm", "abalone", "phoneme")
    loads = {name: partial(large_table, data_dir, name) for name in tables}
    synthetic = ("spiral", "mixture_10d", "student_t", "lognormal_cauchy")
    loads |= {name: partial(synthetic_table, name) for name in synthetic}
    for name, load in loads.items():
        for method, make in DENSITIES.items():
            quick = "max_epochs" in method
            yield Line("joint", name, method, partial(joint, load, make), quick=quick)
        if name in synthetic:
            yield Line("joint", name, "truth", partial(truth, name), quick=True)


# --- Tables with missing entries --------------------------------------------------------------

SHARE_MISSING = 0.3
COVARIANCE = np.array([[0.8 ** abs(i - j) for j in range(5)] for i in range(5)])


def with_holes(X: Array, share: float, seed: int) -> Array:
    """Return rows with entries that are missing completely at random."""
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


def gaussian_with_holes(seed: int) -> Split:
    """Return 2,000 rows of a Gaussian with missing entries, and 1,000 more."""
    X = np.random.default_rng(seed).multivariate_normal(np.zeros(5), COVARIANCE, 3_000)
    X = with_holes(X, SHARE_MISSING, seed + 1)
    return X[:2_000], X[2_000:]


def table_with_holes(data_dir: Path, name: str, seed: int) -> Split:
    """Return a table with missing entries."""
    train, test = large_table(data_dir, name, seed)
    return with_holes(train, SHARE_MISSING, seed + 1), with_holes(test, SHARE_MISSING, seed + 2)


def true_marginals(seed: int) -> Measured:
    """Score the observed entries of new rows by the Gaussian that they were drawn from."""
    _, test = gaussian_with_holes(seed)
    rows = [observed_log_density(row, ~np.isnan(row)) for row in test]
    return Measured(np.array(rows), 0.0, 0.0)


def observed_log_density(row: Array, observed: NDArray[np.bool_]) -> float:
    """Return the log-density of the observed entries of a row of the Gaussian."""
    if not observed.any():
        return 0.0
    return float(multivariate_normal(cov=COVARIANCE[observed][:, observed]).logpdf(row[observed]))


def lines_of_missing(data_dir: Path) -> Iterator[Line]:
    """Yield the lines of tables with missing entries."""
    loads = {
        "gaussian": gaussian_with_holes,
        "abalone": partial(table_with_holes, data_dir, "abalone"),
    }
    for name, load in loads.items():
        for method in ("immse, max_epochs=0", "immse"):
            measure = partial(joint, load, DENSITIES[method])
            yield Line("missing", name, method, measure, quick=method != "immse")
    yield Line("missing", "gaussian", "truth", true_marginals, quick=True)


# --- Categories -------------------------------------------------------------------------------


def digits(data_dir: Path, seed: int) -> tuple[Any, Any]:
    """Return four fifths of scikit-learn's digits and the rest."""
    X = datasets.load_digits().data.astype(np.int64)
    order = np.random.RandomState(seed).permutation(len(X))
    n_train = round(0.8 * len(X))
    return X[np.sort(order[:n_train])], X[np.sort(order[n_train:])]


def binary(name: str, data_dir: Path, seed: int) -> tuple[Any, Any]:
    """Return the training and validation rows of a binary table, and test rows."""
    with np.load(data_dir / "debd" / f"{name}.npz") as parts:
        train = np.concatenate([parts["train"], parts["valid"]]).astype(np.int64)
        return train, few_rows(parts["test"].astype(np.int64), MAX_TEST_ROWS)


def few_rows(X: Any, n: int) -> Any:
    """Return random rows of an array or a frame, the same in every run."""
    order = np.random.default_rng(0).permutation(len(X))[:n]
    return X.iloc[order] if isinstance(X, pd.DataFrame) else X[order]


def adult(data_dir: Path, seed: int) -> tuple[Any, Any]:
    """Return 6,000 rows of adult, 8 categories and 6 numbers of which two are continuous."""
    with np.load(data_dir / "categorical" / "adult.npz") as parts:
        names = json.loads(str(parts["vocab_json"]))
        noise = np.random.default_rng(0).uniform(size=len(parts["X_num"]))
        numbers = dict(zip(parts["num_names"].tolist(), parts["X_num"].T, strict=True))
        table = {
            name: column + noise if name in ("age", "fnlwgt") else column.astype(np.int64)
            for name, column in numbers.items()
        }
        for name, codes in zip(parts["cat_names"].tolist(), parts["X_cat"].T, strict=True):
            table[name] = pd.Categorical.from_codes(codes.astype(np.int64), names[name])
    frame = few_rows(pd.DataFrame(table), 6_000 + MAX_TEST_ROWS)
    return frame.iloc[:6_000], frame.iloc[6_000:]


def categories(
    load: Callable[[int], tuple[Any, Any]], estimator: str, parameters: dict[str, Any], seed: int
) -> Measured:
    """Fit a density of categories and score new rows."""
    make = getattr(immse, estimator)
    return fit_and_score(make(random_state=seed, **parameters), *load(seed))


def lines_of_categories(data_dir: Path) -> Iterator[Line]:
    """Yield the lines of discrete and of mixed tables."""
    levels = {"kind": "ordinal", "categories": [np.arange(17)] * 64}
    known: dict[str, tuple[Callable[..., tuple[Any, Any]], str, dict[str, Any]]] = {
        "digits": (digits, "IMMSEDiscreteDensity", {"image_shape": (8, 8), **levels}),
        "plants": (partial(binary, "plants"), "IMMSEDiscreteDensity", {}),
        "nltcs": (partial(binary, "nltcs"), "IMMSEDiscreteDensity", {}),
        "adult": (adult, "IMMSEMixedDensity", {}),
    }
    for name, (load, estimator, parameters) in known.items():
        part = "mixed" if name == "adult" else "discrete"
        for method, epochs in (("immse, max_epochs=0", {"max_epochs": 0}), ("immse", {})):
            measure = partial(categories, partial(load, data_dir), estimator, parameters | epochs)
            quick = bool(epochs) and name in ("nltcs", "adult")
            yield Line(part, name, method, measure, quick=quick)


# --- Users of densities -----------------------------------------------------------------------


def imputation(table: Callable[[], Array], values: str, seed: int) -> Measured:
    """Impute a fifth of the entries, by medians or by draws."""
    X = table()
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    holes = with_holes(X, 0.2, seed)
    missing = np.isnan(holes)
    clock = Clock()
    imputer = immse.IMMSEImputer(random_state=seed).fit(holes)
    fitted = clock.read()
    if values == "medians":
        rows = -np.abs(imputer.transform(holes) - X)[missing]
    else:
        draws = np.stack([np.asarray(each) for each in imputer.multiple_imputations(holes, 5)])
        rows = np.array(
            [
                -wasserstein_distance(draws[:, missing[:, j], j].ravel(), X[missing[:, j], j])
                for j in range(X.shape[1])
            ]
        )
    return Measured(rows, fitted, clock.read())


def lines_of_imputation(data_dir: Path) -> Iterator[Line]:
    """Yield the lines of imputation."""

    def concrete() -> Array:
        with np.load(data_dir / "conditional" / "concrete.npz") as file:
            table = np.column_stack([file["X"], file["y"].ravel()]).astype(np.float64)
        return few_rows(np.unique(table, axis=0), 500)

    for name, table in {"iris": lambda: datasets.load_iris().data, "concrete": concrete}.items():
        for values in ("medians", "draws"):
            measure = partial(imputation, table, values)
            seeds = (0, 1, 2) if name == "iris" else (0,)
            quick = (name, values) == ("iris", "medians")
            yield Line("imputation", name, f"immse, {values}", measure, seeds, quick)


def conditional(path: Path, seed: int) -> Measured:
    """Fit p(y | x) to a published split, and score its test rows in the units of y."""
    with np.load(path) as file:
        X, y, test = file["X"].astype(np.float64), file["y"].ravel(), file["test"][seed]
    test = test[test >= 0]
    train = np.setdiff1d(np.arange(len(X)), test)
    clock = Clock()
    model = immse.IMMSEConditionalDensity(random_state=seed).fit(X[train], y[train])
    fitted = clock.read()
    return Measured(model.score_samples(X[test], y[test]), fitted, clock.read())


def lines_of_conditional(data_dir: Path) -> Iterator[Line]:
    """Yield the lines of predictive distributions."""
    splits = {"yacht": (0, 1, 2), "boston": (0, 1), "concrete": (0, 1), "kin8nm": (0,)}
    for name, seeds in splits.items():
        measure = partial(conditional, data_dir / "conditional" / f"{name}.npz")
        yield Line("conditional", name, "immse", measure, seeds, quick=name == "yacht")


class NeighborDistance(NearestNeighbors):
    """Minus the distance to the fifth neighbour."""

    def score_samples(self, X: Array) -> Array:
        """Return minus the distance; a training row is its own first neighbour."""
        return -self.kneighbors(X)[0][:, -1]


DETECTORS: dict[str, Callable[[int], Any]] = {
    "immse": lambda seed: immse.IMMSEOutlierDetector(random_state=seed),
    "5 neighbours": lambda seed: NeighborDistance(n_neighbors=5),
    "IsolationForest": lambda seed: IsolationForest(random_state=seed),
}


def detection(
    load: Callable[[str], tuple[Array, Array, Array]],
    protocol: str,
    make: Callable[[int], Any],
    seed: int,
) -> Measured:
    """Return, for each anomaly among the test rows, the share of inliers that rank below it."""
    train, test, is_anomaly = load(protocol)
    measured = fit_and_score(make(seed), *standardized_where_varying(train, test))
    inliers = np.sort(-measured.rows[~is_anomaly])
    anomalies = -measured.rows[is_anomaly]
    below = [np.searchsorted(inliers, anomalies, side=side) for side in ("left", "right")]
    measured.rows = np.mean(below, axis=0) / len(inliers)
    return measured


def standardized_where_varying(train: Array, test: Array) -> Split:
    """Return rows in standard units, without the columns that are constant in training rows."""
    varies = train.std(axis=0) > 0
    return standardized(train[:, varies], test[:, varies])


def adbench(path: Path, protocol: str) -> tuple[Array, Array, Array]:
    """Return training rows, test rows and which of these are anomalies."""
    with np.load(path) as file:
        X, y = file["X"].astype(np.float64), file["y"].astype(bool)
    return split_for_detection(X, y, protocol)


def split_for_detection(X: Array, y: Array, protocol: str) -> tuple[Array, Array, Array]:
    """Train on the first half of the inliers and test on the rest, or use all rows for both."""
    if protocol == "all rows":
        return X, X, y
    inliers = np.flatnonzero(~y)
    first = inliers[: len(inliers) // 2]
    others = np.setdiff1d(np.arange(len(X)), first)
    return X[first], X[others], y[others]


def iris_anomalies(protocol: str) -> tuple[Array, Array, Array]:
    """Return the overlapping classes of iris, one as inliers and a tenth of the other."""
    X, target = datasets.load_iris(return_X_y=True)
    X = np.concatenate([X[target == 1], X[target == 2][::5]])
    return split_for_detection(X, np.arange(len(X)) >= 50, protocol)


def lines_of_detection(data_dir: Path) -> Iterator[Line]:
    """Yield the lines of anomaly detection."""
    names = ("fault", "letter", "thyroid", "vowels", "Wilt", "cardio")
    paths = {path.stem.split("_")[1]: path for path in (data_dir / "adbench").glob("*.npz")}
    loads = {"iris": iris_anomalies} | {name: partial(adbench, paths[name]) for name in names}
    for name, load in loads.items():
        for protocol in ("inliers", "all rows"):
            for method, make in DETECTORS.items():
                measure = partial(detection, load, protocol, make)
                quick = name in ("iris", "vowels") or method != "immse"
                yield Line("detection", f"{name}, {protocol}", method, measure, quick=quick)


# --- Information ------------------------------------------------------------------------------

N_PAIRS = 2_000


def normal_pairs(n_columns: int, correlations: list[float], rng: Any) -> tuple[Array, Array, float]:
    """Return pairs of normal rows of which the first columns are correlated."""
    x, y = rng.normal(size=(2, N_PAIRS, n_columns))
    for j, rho in enumerate(correlations):
        y[:, j] = rho * x[:, j] + np.sqrt(1.0 - rho**2) * y[:, j]
    return x, y, float(-0.5 * np.log1p(-np.square(correlations)).sum())


def spiral_pairs(rng: Any) -> tuple[Array, Array, float]:
    """Return pairs of which each side is rotated by its radius, which keeps the information."""
    x, y, information = normal_pairs(2, [0.8, 0.6], rng)
    return rotated(x), rotated(y), information


def rotated(x: Array) -> Array:
    """Rotate points of the plane by their distance to the origin."""
    point = (x[:, 0] + 1j * x[:, 1]) * np.exp(1j * np.hypot(x[:, 0], x[:, 1]))
    return np.column_stack([point.real, point.imag])


def uniform_pairs(rng: Any) -> tuple[Array, Array, float]:
    """Return a uniform number and the same with uniform noise of one and a half times its width."""
    x = rng.uniform(size=(N_PAIRS, 1))
    return x, x + rng.uniform(-0.75, 0.75, size=x.shape), 1.0 / 3.0


def class_pairs(rng: Any) -> tuple[Any, Array, float]:
    """Return a name out of three and a normal number around its mean."""
    code = rng.integers(3, size=N_PAIRS)
    grid = np.linspace(-8.0, 12.0, 4_001)
    p = np.exp(-0.5 * (grid[:, None] - 2.0 * np.arange(3)) ** 2) / np.sqrt(2.0 * np.pi)
    mean = p.mean(axis=1)
    information = np.trapezoid((p * np.log(p / mean[:, None])).mean(axis=1), grid)
    names = pd.DataFrame({"name": pd.Categorical.from_codes(code, ["a", "b", "c"])})
    return names, (2.0 * code + rng.normal(size=N_PAIRS))[:, None], float(information)


PAIRS: dict[str, Callable[[Any], tuple[Any, Array, float]]] = {
    "independent": partial(normal_pairs, 1, []),
    "normal": partial(normal_pairs, 1, [0.75]),
    "normal, 5 + 5": partial(normal_pairs, 5, [0.8, 0.8]),
    "spiral, 2 + 2": spiral_pairs,
    "uniform": uniform_pairs,
    "category": class_pairs,
}


def information(make: Callable[[Any], tuple[Any, Array, float]], seed: int) -> Measured:
    """Return minus the absolute error of an estimate of mutual information."""
    x, y, known = make(np.random.default_rng(seed))
    clock = Clock()
    found = immse.IMMSEMutualInformation(random_state=seed).fit(x, y)
    return Measured(np.array([-abs(found.mutual_information_ - known)]), clock.read(), 0.0)


def lines_of_information(data_dir: Path) -> Iterator[Line]:
    """Yield the lines of mutual information."""
    for name, make in PAIRS.items():
        measure = partial(information, make)
        quick = name in ("normal", "category")
        yield Line("information", name, "immse", measure, seeds=(0, 1), quick=quick)


def all_lines(data_dir: Path) -> list[Line]:
    """Return the lines of all parts."""
    kinds = (
        *(lines_of_joint, lines_of_missing, lines_of_categories, lines_of_imputation),
        *(lines_of_conditional, lines_of_detection, lines_of_information),
    )
    return [line for lines in kinds for line in lines(data_dir)]
