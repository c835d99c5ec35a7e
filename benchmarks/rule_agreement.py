"""Compare mean log-likelihoods by the rule for scoring and by a plain one, with the same fits.

    python benchmarks/rule_agreement.py --data-dir DATA --output results/rule_agreement.jsonl

The rule for scoring couples the noise of a row's draws, and takes as many draws as the row needs.
The plain rule is the one that versions before it had: 32 independent draws for each row, of eight
orthogonal directions (or as many as there are) and the origin.  Both have the expected value that
defines the log-density, so that their means over test rows may differ by their numerical errors
only.  Estimators have their default parameters, or ``--max-epochs``; data are the densities of
analytic.py, the tables of tabular_data.py and the sets of discrete_data.py.

Printed are both means, in nats per row, their difference, its standard error, from the differences
of the rows, and the ratio of both, which is standard normal if the rules agree.

Finished records in the output file are not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from discrete_data import DATASETS, load_data
from noise_rules import IndependentNoise
from numpy.typing import NDArray
from processes import import_late_modules, use_threads
from results import Record, ResultsFile, describe_runs, format_markdown
from tabular_data import TABLES, load_table, random_split

import sk_itdiffusion
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._immse.likelihood import IntegrationRule
from sk_itdiffusion.datasets import DENSITY_NAMES, load_density

Array = NDArray[np.float64]

N_DRAWS = 32
MAX_DIRECTIONS = 8
N_TRAIN, N_TEST = 4_000, 1_000


def fitted(name: str, data_dir: Path | None, max_epochs: int | None) -> tuple[Any, Any]:
    """Return an estimator fitted to training rows of a data set, and test rows."""
    parameters: dict[str, Any] = {"random_state": 0}
    if max_epochs is not None:
        parameters["max_epochs"] = max_epochs
    if name in DATASETS:
        data = load_data(name, 0, data_dir)
        kind = "IMMSEMixedDensity" if hasattr(data.X, "columns") else "IMMSEDiscreteDensity"
        estimator = getattr(sk_itdiffusion, kind)(**data.parameters, **parameters)
        return estimator.fit(data.X[:N_TRAIN]), data.X_test[:N_TEST]
    if name in TABLES:
        assert data_dir is not None
        split = random_split(load_table(name, data_dir), 0)
        train, test = np.concatenate([split.train, split.valid]), split.test
    else:
        rows = load_density(name).sample(N_TRAIN + N_TEST, random_state=0)
        train, test = rows[:N_TRAIN], rows[N_TRAIN:]
    return sk_itdiffusion.IMMSEDensity(**parameters).fit(train), test[:N_TEST]


class PlainRule(IntegrationRule):
    """A rule that takes as many draws of each row."""

    def rungs(
        self, log_density: Array, tolerance: Tolerance
    ) -> Iterator[tuple[Self, NDArray[np.intp]]]:
        """Return the rule, and all rows; see `IntegrationRule.rungs`."""
        yield self, np.arange(len(log_density))


def plain_scores(estimator: Any, X: Any) -> Array:
    """Return log p of rows by the plain rule and other noise, in nats."""
    model = estimator._model
    noise = model.rule.noise
    n_directions = min(MAX_DIRECTIONS, noise.n_features)
    plain = IndependentNoise(noise.n_features, n_directions, True, noise.seed)
    seeds = replace(model.seeds, scoring=model.seeds.scoring + 1)
    rule = PlainRule(model.rule.placement, plain, N_DRAWS, model.rule.errors)
    estimator._model = replace(model, rule=rule, seeds=seeds)
    try:
        return np.asarray(estimator.score_samples(X))
    finally:
        estimator._model = model


def measure(name: str, arguments: argparse.Namespace) -> Record:
    """Return the means by both rules, and the error of their difference."""
    estimator, X = fitted(name, arguments.data_dir, arguments.max_epochs)
    scores = np.asarray(estimator.score_samples(X))
    if estimator._model.rule is None:
        return {"n_test": len(X), "mean": float(scores.mean())}
    difference = scores - plain_scores(estimator, X)
    return {
        "n_test": len(X),
        "mean": float(scores.mean()),
        "difference": float(difference.mean()),
        "error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
    }


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure what the results file lacks; return all records."""
    records = []
    for name in arguments.datasets:
        key = {"dataset": name, "method": "rule_agreement", "max_epochs": arguments.max_epochs}
        record = results.find(**key)
        if record is None:
            with use_threads(arguments.threads):
                record = results.add({**key, **measure(name, arguments)})
        records.append(record)
        print(format_agreement([record]).splitlines()[-1], flush=True)
    return records


def format_agreement(records: list[Record]) -> str:
    """Return the table."""
    body = [
        [record["dataset"], f"{record['mean']:.3f}"]
        + (
            [
                f"{record['mean'] - record['difference']:.3f}",
                f"{record['difference']:+.4f}",
                f"{record['error']:.4f}",
                f"{record['difference'] / record['error']:+.1f}",
            ]
            if "error" in record
            else ["nothing to integrate", "", "", ""]
        )
        for record in records
    ]
    titles = ["data", "mean", "by the plain rule", "difference", "standard error", "ratio"]
    return format_markdown(titles, body)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*DENSITY_NAMES, *TABLES, *DATASETS)
    parser.add_argument("--datasets", nargs="+", choices=names, default=names)
    parser.add_argument("--data-dir", type=Path, help="folder of the tables")
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--max-epochs", type=int, help="default: that of the estimators")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    return parser.parse_args()


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    import_late_modules()
    records = compare(arguments, ResultsFile(arguments.output))
    print(f"\n{format_agreement(records)}\n\n{describe_runs(records)}")


if __name__ == "__main__":
    main()
