"""Compare log-densities of parts of rows with the truth, after fits to rows with missing entries.

    python benchmarks/known_parts.py --output results/known_parts.jsonl
    python benchmarks/known_parts.py --densities normal --methods references

Rows come from densities whose marginals and conditionals are known: a normal distribution and a
mixture of five of them, by scipy's normal densities, and categories of six variables by sums over
all of their states. In half of the fits each entry is missing with probability 0.3 (completely at
random). In the other half the first two columns are complete, and an entry of the others is missing
with a probability that depends on the first one, 0.3 on average (at random). New rows have holes of
the same kind.

Printed is the mean over 1000 new rows, in nats, of the true log-density less the estimated one: the
divergence for observed parts of rows, and for the observed part of one half of the columns given
that of the other half. Estimators have their default parameters, with networks, or without
(``max_epochs=0``). Finished records in the output file are not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from command_line import Finished
from numpy.typing import NDArray
from processes import use_threads
from results import Record, describe_runs, format_markdown
from scipy.special import expit, logsumexp
from scipy.stats import multivariate_normal
from tabular import standard_error, with_error

from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity

Array = NDArray[np.float64]

SHARE = 0.3
MECHANISMS = ("completely at random", "at random")
METHODS = {"references": {"max_epochs": 0}, "with networks": {}}
QUESTIONS = ("observed part", "half given half")
N_TRAIN, N_TEST = 5_000, 1_000


@dataclass(frozen=True)
class Truth:
    """A distribution whose parts are known.

    Attributes
    ----------
    sample : callable
        Returns random rows of a number and a generator.
    log_density : callable
        Returns the log-density of the observed entries of rows; NaN where they are missing.
    estimator : callable
        Makes an estimator of some parameters.
    """

    sample: Callable[[int, np.random.Generator], Array]
    log_density: Callable[[Array], Array]
    estimator: Callable[..., Any]


def mixture(n_components: int, n_columns: int) -> Truth:
    """Return a mixture of normal distributions, alike for all seeds."""
    rng = np.random.default_rng(n_components)
    means = 2.0 * rng.normal(size=(n_components, n_columns)) * (n_components > 1)
    roots = rng.normal(size=(n_components, n_columns, n_columns)) / np.sqrt(n_columns)
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(n_columns)

    def sample(n: int, rng: np.random.Generator) -> Array:
        component = rng.integers(0, n_components, n)
        white = rng.normal(size=(n, n_columns, 1))
        return means[component] + (np.linalg.cholesky(covariances)[component] @ white)[:, :, 0]

    def log_density(X: Array) -> Array:
        found = np.zeros(len(X))
        for i, row in enumerate(X):
            seen = ~np.isnan(row)
            if seen.any():
                logs = [
                    multivariate_normal.logpdf(row[seen], mean[seen], cov[np.ix_(seen, seen)])
                    for mean, cov in zip(means, covariances, strict=True)
                ]
                found[i] = logsumexp(logs) - np.log(n_components)
        return found

    return Truth(sample, log_density, IMMSEDensity)


def categories(n_variables: int, n_categories: int) -> Truth:
    """Return dependent categories: a product of functions of neighbours, summed over all states."""
    rng = np.random.default_rng(0)
    states = np.array(list(itertools.product(range(n_categories), repeat=n_variables)))
    pairs = rng.normal(size=(n_variables - 1, n_categories, n_categories))
    logs = sum(table[states[:, j], states[:, j + 1]] for j, table in enumerate(pairs))
    probability = np.exp(logs - logsumexp(logs))

    def sample(n: int, rng: np.random.Generator) -> Array:
        return states[rng.choice(len(states), size=n, p=probability)].astype(np.float64)

    def log_density(X: Array) -> Array:
        agree = np.isnan(X)[:, None, :] | (X[:, None, :] == states)
        return np.asarray(np.log(agree.all(axis=2) @ probability))

    return Truth(sample, log_density, partial(IMMSEDiscreteDensity, handle_missing="missing"))


TRUTHS = {
    "normal": partial(mixture, 1, 4),
    "mixture": partial(mixture, 5, 5),
    "categories": partial(categories, 6, 3),
}


def with_holes(X: Array, mechanism: str, rng: np.random.Generator) -> Array:
    """Return rows with missing entries."""
    chance = np.full(X.shape, SHARE)
    if mechanism == "at random":
        driver = (X[:, :1] - X[:, 0].mean()) / X[:, 0].std()
        share = expit(2.0 * driver)
        chance = np.where(np.arange(X.shape[1]) < 2, 0.0, SHARE * share / share.mean())
    return np.where(rng.random(X.shape) < chance, np.nan, X)


def measure(density: str, mechanism: str, method: str, seed: int) -> tuple[Record, Array]:
    """Fit one estimator; return times, and losses of the questions, (2, n_test)."""
    truth, rng = TRUTHS[density](), np.random.default_rng(seed)
    train, test = truth.sample(N_TRAIN, rng), truth.sample(N_TEST, rng)
    train, test = (with_holes(X, mechanism, rng) for X in (train, test))
    start = time.perf_counter()
    model = truth.estimator(random_state=seed, **METHODS[method]).fit(train)
    fitted = time.perf_counter()
    given = list(range(0, test.shape[1], 2))
    known = np.full(test.shape, np.nan)
    known[:, given] = test[:, given]
    joint = truth.log_density(test)
    losses = np.stack(
        [
            joint - model.score_samples(test),
            joint - truth.log_density(known) - model.score_samples(test, given=given),
        ]
    )
    return {"fit_seconds": fitted - start, "score_seconds": time.perf_counter() - fitted}, losses


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, known in (("densities", TRUTHS), ("mechanisms", MECHANISMS), ("methods", METHODS)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    return parser.parse_args()


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    finished = Finished(arguments.output)
    records, body = [], []
    combinations = itertools.product(
        arguments.densities, arguments.mechanisms, arguments.methods, arguments.seeds
    )
    with use_threads(arguments.threads):
        for density, mechanism, method, seed in combinations:
            key = {"dataset": density, "seed": seed, "method": method, "setting": mechanism}
            work = partial(measure, density, mechanism, method, seed)
            record, _ = finished.record(key, work)
            records.append(record)
            losses = finished.folder.find(**key)
            assert losses is not None
            cells = [with_error((float(x.mean()), standard_error(x))) for x in losses]
            body.append([density, mechanism, method, str(seed), *cells])
            print(*body[-1], f"fit {record['fit_seconds']:.0f} s", flush=True)
    titles = ["density", "missing", "method", "seed", *QUESTIONS]
    print(f"\nDivergences in nats\n\n{format_markdown(titles, body)}\n\n{describe_runs(records)}")


if __name__ == "__main__":
    main()
