"""Fidelity and privacy of synthetic rows, alongside resampling and a Gaussian mixture.

    python benchmarks/synthetic.py --output results/synthetic.jsonl

Tables of scikit-learn, in halves: one to fit, the other held out. As many rows as were fitted are
drawn from each model. Fidelity:

- the area under the ROC curve of a classifier (gradient boosting, cross-validated) that is to tell
  synthetic from held-out rows: 0.5 if it cannot;
- the energy distance of synthetic to held-out rows in standardised columns, whose estimate is
  unbiased, so that it may be below 0.

Privacy, by distances in standardised columns to the closest record (DCR):

- the share of synthetic rows that are nearer to a fitted row than to any held-out one: 0.5 if the
  model knows no more of the rows that it was fitted to than of others like them;
- the share of synthetic rows that are nearer to a fitted row than 1% of the held-out rows are:
  0.01 if synthetic rows come as near as new rows do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from results import Record, ResultsFile, describe_runs, format_markdown, pivot_medians
from sampling import energy_distance
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    train_test_split,
)
from sklearn.neighbors import NearestNeighbors

from sk_itdiffusion import IMMSEDensity

Array = NDArray[np.float64]

TABLES = {
    "breast cancer": lambda: load_breast_cancer().data,
    "digits, 10 components": lambda: first_components(load_digits().data, 10),
}
VALUES = {
    "classifier_auc": ("AUC of a classifier", ".2f"),
    "energy_distance": ("energy distance", ".3f"),
    "nearer_to_fitted": ("nearer to fitted rows", ".2f"),
    "too_near": ("nearer than 1% of held-out rows", ".3f"),
    "seconds": ("of processors, s", ".1f"),
}


def first_components(X: Array, n: int) -> Array:
    """Return the projections on the directions of largest variance."""
    centred = X - X.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:n].T


def resampled(X: Array, n: int, seed: int, quick: bool) -> Array:
    """Return fitted rows, drawn again: perfect fidelity, and no privacy."""
    return X[np.random.default_rng(seed).integers(len(X), size=n)]


def mixture(X: Array, n: int, seed: int, quick: bool) -> Array:
    """Return draws of a Gaussian mixture whose settings are cross-validated."""
    grid = {"n_components": [1, 2, 4, 8], "reg_covar": [1e-6, 1e-3, 1e-2]}
    search = GridSearchCV(GaussianMixture(random_state=seed), grid).fit(X)
    return search.best_estimator_.sample(n)[0]


def immse(max_epochs: int | None) -> Callable[[Array, int, int, bool], Array]:
    """Return a function that draws from IMMSEDensity with so many epochs at most."""

    def draw(X: Array, n: int, seed: int, quick: bool) -> Array:
        density = IMMSEDensity(random_state=seed)
        if quick or max_epochs is not None:
            density.set_params(max_epochs=1 if quick else max_epochs)
        return density.fit(X).sample(n, random_state=seed)

    return draw


METHODS = {
    "fitted rows, resampled": resampled,
    "Gaussian mixture": mixture,
    "IMMSEDensity(max_epochs=0)": immse(0),
    "IMMSEDensity": immse(None),
}


def judge(synthetic: Array, fitted: Array, held_out: Array, seed: int) -> Record:
    """Return the measures of fidelity and of privacy."""
    rows = np.concatenate([synthetic, held_out])
    is_real = np.repeat([0, 1], [len(synthetic), len(held_out)])
    classifier = HistGradientBoostingClassifier(random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)  # draws may come in some order
    odds = cross_val_predict(classifier, rows, is_real, cv=folds, method="predict_proba")[:, 1]
    to_fitted, to_held_out = nearest(fitted, synthetic), nearest(held_out, synthetic)
    return {
        "classifier_auc": float(roc_auc_score(is_real, odds)),
        "energy_distance": energy_distance(synthetic, held_out),
        "nearer_to_fitted": float(np.mean(to_fitted < to_held_out)),
        "too_near": float(np.mean(to_fitted < np.quantile(nearest(fitted, held_out), 0.01))),
    }


def nearest(among: Array, rows: Array) -> Array:
    """Return the distance of each row to the closest one of others."""
    return NearestNeighbors(n_neighbors=1).fit(among).kneighbors(rows)[0][:, 0]


def measure(table: str, method: str, seed: int, quick: bool) -> Record:
    """Fit a method to one half of a table, and evaluate what it draws."""
    X = TABLES[table]()
    fitted, held_out = train_test_split(X, test_size=0.5, random_state=seed)
    n = min(len(fitted), len(held_out))
    center, scale = fitted.mean(axis=0), fitted.std(axis=0)
    fitted, held_out = ((rows[:n] - center) / scale for rows in (fitted, held_out))
    start = time.process_time()
    synthetic = METHODS[method](fitted, n, seed, quick)
    seconds = time.process_time() - start
    return {"seconds": seconds, **judge(synthetic, fitted, held_out, seed)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="one table, short fits, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tables, arguments.seeds = ["breast cancer"], [0]
    results = ResultsFile(arguments.output)
    setting = "quick" if arguments.quick else "default"
    records = []
    for table in arguments.tables:
        for method in arguments.methods:
            for seed in arguments.seeds:
                key = {"dataset": table, "seed": seed, "method": method, "setting": setting}
                record = results.find(**key)
                if record is None:
                    record = results.add({**key, **measure(table, method, seed, arguments.quick)})
                print(record, flush=True)
                records.append(record)
    body = []
    medians = {name: pivot_medians(records, name, "dataset", "method") for name in VALUES}
    for table in arguments.tables:
        for method in arguments.methods:
            values = (
                format(medians[name][table][method], style) for name, (_, style) in VALUES.items()
            )
            body.append([table, method, *values])
    print(format_markdown(["table", "rows from", *(title for title, _ in VALUES.values())], body))
    print(describe_runs(records))


if __name__ == "__main__":
    main()
