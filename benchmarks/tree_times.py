"""Compare the times of fit and score of two versions of the library, in alternating runs.

    python benchmarks/tree_times.py OLD NEW --data-dir DATA --tables abalone kin8nm phoneme

OLD and NEW are folders that hold ``sk_itdiffusion``, such as two checkouts. Each run is a process
of its own, which imports one of them, fits `IMMSEDensity` to 90% of the rows of a table (those of
tabular.py) and scores up to 500 of the others; the two take turns, also in who is first. Printed
are the median ratios NEW / OLD, with their smallest and largest, of the seconds of fit and score
and of the processors' seconds, which tell more where other programs run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from results import format_markdown
from tabular_data import load_table, random_split

QUANTITIES = ("fit", "fit, processors", "score", "score, processors")
MAX_SCORED = 500


def measure(table: str, data_dir: Path, max_epochs: int | None, seed: int) -> dict[str, float]:
    """Return the seconds of a fit and of scores by the library that is imported."""
    from sk_itdiffusion import IMMSEDensity

    split = random_split(load_table(table, data_dir), seed)
    rows = np.concatenate([split.train, split.valid])
    parameters = {} if max_epochs is None else {"max_epochs": max_epochs}
    estimator = IMMSEDensity(random_state=seed, **parameters)
    found = {}
    for name, call in (
        ("fit", lambda: estimator.fit(rows)),
        ("score", lambda: estimator.score_samples(split.test[:MAX_SCORED])),
    ):
        start, processors = time.perf_counter(), time.process_time()
        call()
        found[name] = time.perf_counter() - start
        found[f"{name}, processors"] = time.process_time() - processors
    return found


def run(tree: Path, arguments: argparse.Namespace, table: str, seed: int) -> dict[str, float]:
    """Return what `measure` returns in a process that imports a tree."""
    # Without the folder of this script: the tables are those of the tree.
    command = [sys.executable, "-P", __file__, str(tree), str(tree), "--measure", table]
    command += ["--data-dir", str(arguments.data_dir), "--seed", str(seed)]
    if arguments.max_epochs is not None:
        command += ["--max-epochs", str(arguments.max_epochs)]
    path = os.pathsep.join([str(tree), str(tree / "benchmarks")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=["abalone", "kin8nm", "phoneme"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--max-epochs", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = measure(arguments.measure, arguments.data_dir, arguments.max_epochs, arguments.seed)
        print(json.dumps(found))
        return
    lines = []
    for table in arguments.tables:
        ratios: dict[str, list[float]] = {name: [] for name in QUANTITIES}
        for number in range(arguments.repetitions):
            order = [arguments.old, arguments.new]
            if number % 2:
                order.reverse()
            found = {tree: run(tree, arguments, table, number) for tree in order}
            for name in QUANTITIES:
                ratios[name].append(found[arguments.new][name] / found[arguments.old][name])
        cells = [
            f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
            for each in ratios.values()
        ]
        lines.append([table, *cells])
        print(*lines[-1], sep="  ", file=sys.stderr, flush=True)
    print(format_markdown(["table", *QUANTITIES], lines))


if __name__ == "__main__":
    main()
