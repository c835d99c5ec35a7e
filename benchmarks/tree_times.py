"""Compare the times of two versions of the library, in alternating runs.

    python benchmarks/tree_times.py OLD NEW --data-dir DATA --tables abalone kin8nm phoneme

OLD and NEW are folders that hold ``sk_itdiffusion``, such as two checkouts. Each run is a process
of its own, which imports one of them, fits `IMMSEDensity` to 90% of the rows of a table (those of
tabular.py, or ``curved``, 1000 generated rows of 5 columns), and scores up to 500 rows (or
``--most-scored``; test rows first, then training rows), by ``score_samples`` and by ``score``; with
``--samples`` it draws rows as well. The two take turns, also in who is first. ``--keep FOLDER``
keeps fitted estimators in files, as pickles, and fits no other where there is one.

Printed are the medians over the repetitions, and the median ratio NEW / OLD with its least and
greatest: of the seconds, of the processors' seconds, which tell more where other programs run, and
of the median standard error of the scores in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from processes import import_late_modules
from results import format_markdown
from tabular_data import TABLES, curved_rows, load_table, random_split

#: A generated table, with 1000 rows to fit.
CURVED = "curved"


def load_rows(table: str, data_dir: Path) -> NDArray[np.float64]:
    """Return the rows of a table."""
    return curved_rows(1_111, 5, seed=0) if table == CURVED else load_table(table, data_dir)


def timed(found: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    """Return the result of a call, whose seconds are noted."""
    start, processors = time.perf_counter(), time.process_time()
    result = call()
    found[f"{name}, s"] = time.perf_counter() - start
    found[f"{name}, processors' s"] = time.process_time() - processors
    return result


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Return what was measured of the library that is imported."""
    from sk_itdiffusion import IMMSEDensity

    import_late_modules()
    table, seed = arguments.measure, arguments.seed
    split = random_split(load_rows(table, arguments.data_dir), seed)
    rows = np.concatenate([split.train, split.valid])
    scored = np.concatenate([split.test, rows])[: arguments.most_scored]
    parameters = {} if arguments.max_epochs is None else {"max_epochs": arguments.max_epochs}
    estimator = IMMSEDensity(random_state=seed, **parameters)
    found: dict[str, float] = {}
    kept = None
    if arguments.keep is not None:
        tree = "_".join(arguments.old.resolve().parts[1:])
        kept = arguments.keep / f"{table}_{seed}_{arguments.max_epochs}_{tree}.pickle"
    if kept is not None and kept.exists():
        estimator, fitting = pickle.loads(kept.read_bytes())
        found.update(fitting)
    else:
        timed(found, "fit", lambda: estimator.fit(rows))
        if kept is not None:
            kept.write_bytes(pickle.dumps((estimator, found.copy())))
    _, error = timed(
        found, "score_samples", lambda: estimator.score_samples(scored, return_std=True)
    )
    found["median error, nats"] = float(np.median(error))
    timed(found, "score", lambda: estimator.score(scored))
    if arguments.samples:
        timed(found, "sample", lambda: estimator.sample(arguments.samples))
    return found


def run(tree: Path, arguments: argparse.Namespace, table: str, seed: int) -> dict[str, float]:
    """Return what `measure` returns in a process that imports a tree."""
    # Without the folder of this script: the tables are those of the tree.
    command = [sys.executable, "-P", __file__, str(tree), str(tree), "--measure", table]
    command += ["--data-dir", str(arguments.data_dir), "--seed", str(seed)]
    command += ["--most-scored", str(arguments.most_scored), "--samples", str(arguments.samples)]
    for name in ("max_epochs", "keep"):
        if getattr(arguments, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    path = os.pathsep.join([str(tree), str(tree / "benchmarks")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def describe(old: list[dict[str, float]], new: list[dict[str, float]]) -> list[list[str]]:
    """Return a line for each quantity: medians and ratios."""
    lines = []
    for name in old[0]:
        before, after = ([each[name] for each in runs] for runs in (old, new))
        # Scores are exact where nothing is integrated.
        ratios = [b / a if a else math.nan for a, b in zip(before, after, strict=True)]
        medians = [f"{statistics.median(values):.3g}" for values in (before, after)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append([name, *medians, ratio])
    return lines


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    usual = ["abalone", "kin8nm", "phoneme"]
    parser.add_argument("--tables", nargs="+", choices=(*TABLES, CURVED), default=usual)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--same-seed", action="store_true", help="repetitions differ in nothing")
    parser.add_argument("--most-scored", type=int, default=500)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="folder of fitted estimators")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    lines = []
    for table in arguments.tables:
        found: dict[Path, list[dict[str, float]]] = {arguments.old: [], arguments.new: []}
        for number in range(arguments.repetitions):
            order = [arguments.old, arguments.new]
            if number % 2:
                order.reverse()
            seed = 0 if arguments.same_seed else number
            for tree in order:
                found[tree].append(run(tree, arguments, table, seed))
                print(table, tree, found[tree][-1], file=sys.stderr, flush=True)
        each = describe(found[arguments.old], found[arguments.new])
        lines += [[table, *line] for line in each]
    print(format_markdown(["table", "quantity", "OLD", "NEW", "NEW / OLD"], lines))


if __name__ == "__main__":
    main()
