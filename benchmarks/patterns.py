"""Compare networks that are trained on parts of rows with those of whole rows.

    python benchmarks/patterns.py --data-dir DATA --output results/patterns.jsonl
    python benchmarks/patterns.py --data-dir DATA --datasets kin8nm --rows 3000 --networks 1

Tables and their split are those of tabular.py, of the first rows in random order. IMMSEDensity is
fitted to the complete training and validation rows with ``patterns="joint"`` and with
``patterns="any"``. Test rows are scored as whole rows, and in groups by one of several random
halves of the columns: given the other half, and by themselves. With "joint" the references answer
the latter two questions. All figures are mean log-densities in nats and standard units; differences
of "any" to "joint" are paired over the test rows.

Finished records in the output file are not measured again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial

import numpy as np
from command_line import Finished, parser_of
from numpy.typing import NDArray
from processes import use_threads
from results import ArrayFolder, Record, describe_runs, format_markdown
from tabular import standard_error, with_error
from tabular_data import TABLES, Split, load_table, random_split

from sk_itdiffusion import IMMSEDensity

Array = NDArray[np.float64]
MODES = ("joint", "any")
QUESTIONS = ("whole rows", "half given half", "half by itself")
HALVES = 10


def scores(density: IMMSEDensity, test: Array, seed: int) -> Array:
    """Return log-densities of test rows, (3, n_test), as whole rows and of random halves."""
    rng = np.random.default_rng(seed)
    found = np.empty((len(QUESTIONS), len(test)))
    found[0] = density.score_samples(test)
    for rows in np.array_split(np.arange(len(test)), HALVES):
        given = rng.permutation(test.shape[1])[: test.shape[1] // 2]
        found[1, rows] = density.score_samples(test[rows], given=given.tolist())
        hidden = test[rows].copy()
        hidden[:, given] = np.nan
        found[2, rows] = density.score_samples(hidden)
    return found


def measure(mode: str, split: Split, seed: int, n_networks: int | str) -> tuple[Record, Array]:
    """Fit with networks of one kind and score the test rows; return times and the scores."""
    start = time.perf_counter()
    density = IMMSEDensity(patterns=mode, n_networks=n_networks, random_state=seed)
    density.fit(np.concatenate([split.train, split.valid]))
    fitted = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Marginal and conditional densities")
        found = scores(density, split.test, seed)
    record = {
        "fit_seconds": fitted - start,
        "score_seconds": time.perf_counter() - fitted,
        "n_epochs": density.n_iter_,
        "n_test": len(split.test),
    }
    return record, found


def compare(arguments: argparse.Namespace) -> tuple[list[Record], ArrayFolder]:
    """Measure every combination that the results file lacks; return the records of all."""
    finished = Finished(arguments.output)
    records = []
    for dataset in arguments.datasets:
        X = load_table(dataset, arguments.data_dir)
        for seed in arguments.seeds:
            rows = np.random.default_rng(seed).permutation(X)[: arguments.rows]
            split = random_split(rows, seed)
            for mode in MODES:
                setting = f"{len(rows)} rows, {arguments.networks} network(s)"
                key = {"dataset": dataset, "seed": seed, "method": mode, "setting": setting}
                work = partial(measure, mode, split, seed, arguments.networks)
                record, _ = finished.record(key, work)
                records.append(record)
                print(record["dataset"], mode, f"fit {record['fit_seconds']:.0f} s", flush=True)
    return records, finished.folder


def format_comparison(records: list[Record], folder: ArrayFolder) -> str:
    """Return a Markdown table, a row for each table, seed and question."""
    body = []
    for joint, other in zip(records[::2], records[1::2], strict=True):
        first, second = (folder.find(**record) for record in (joint, other))
        assert first is not None
        assert second is not None
        for name, one, two in zip(QUESTIONS, first, second, strict=True):
            lead = float((two - one).mean()), standard_error(two - one)
            cells = [joint["dataset"], str(joint["seed"]), name, f"{one.mean():.3f}"]
            body.append([*cells, f"{two.mean():.3f}", with_error(lead)])
        ratio = other["fit_seconds"] / joint["fit_seconds"]
        body.append([joint["dataset"], str(joint["seed"]), "time to fit", "1", f"{ratio:.2f}", ""])
    return format_markdown(["table", "seed", "question", *MODES, "difference"], body)


def number_or_auto(text: str) -> int | str:
    """Return a number of networks, or "auto"."""
    return text if text == "auto" else int(text)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__, TABLES)
    parser.add_argument("--rows", type=int, default=10_000, help="rows at most of a table")
    parser.add_argument("--networks", type=number_or_auto, default="auto", help="see n_networks")
    return parser.parse_args()


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records, folder = compare(arguments)
    print(
        f"\nMean log-density of the test rows, nats in standard units\n\n"
        f"{format_comparison(records, folder)}\n\n{describe_runs(records)}"
    )


if __name__ == "__main__":
    main()
