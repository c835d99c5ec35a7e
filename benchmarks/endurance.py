"""Memory, threads and open files of one process that fits and scores again and again.

    python benchmarks/endurance.py
    python benchmarks/endurance.py --cycles 100 --every 10 --output endurance.jsonl

A cycle takes the next of five estimators (continuous, discrete and mixed columns, an ensemble and
an outlier detector), fits it to new rows, scores and samples, saves and loads it, and pickles it.
Each trains a network; in one of ten cycles of an estimator maps and references are searched for.
Printed is, every so many cycles, what the process holds: resident memory, and what of it the C
library's allocator has given out (as glibc tells it), the rest being programs, gaps and what it
keeps for later.  The exit status is 1 if the resident
memory of the last fifth of the cycles is, in the median, more than 16 MiB above that of the second
fifth, or if there are more threads or open files at the end than then.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from processes import allocated_bytes
from results import Record, ResultsFile, format_markdown

import sk_itdiffusion
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)

NETWORK = {
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "batch_size": 32,
    "hidden_size": 16,
    "n_blocks": 1,
    "score_tol": 0.5,
}
N_ROWS = 100
MAX_GROWTH = 16.0  # MiB; the allocator's pages come and go by about so many
FIELDS = ("resident_mib", "allocated_mib", "threads", "open_files", "objects")


def table(rng: np.random.Generator) -> pd.DataFrame:
    """Return a table of two continuous and two discrete columns."""
    first = rng.normal(size=N_ROWS)
    level = rng.integers(0, 3, N_ROWS)
    return pd.DataFrame(
        {
            "first": first,
            "second": first**2 + rng.normal(size=N_ROWS),
            "level": level,
            "colour": np.array(["red", "green", "blue"])[(level + (first > 0)) % 3],
        }
    )


def subject(number: int, rows: pd.DataFrame) -> tuple[Any, Any]:
    """Return an unfitted estimator and rows for it."""
    # The search for mixtures and maps takes most of the time, and is the same code each time.
    plain = number // 5 % 10 > 0
    settings = NETWORK | {"random_state": number}
    levels = settings | ({"reference": "independent"} if plain else {})
    numbers = settings | ({"reference": "gaussian", "marginals": "standard"} if plain else {})
    density = IMMSEDensity(**numbers)
    members = [("one", density), ("two", density)]
    continuous, discrete = rows[["first", "second"]].to_numpy(), rows[["level", "colour"]]
    return [
        (density, continuous),
        (IMMSEDiscreteDensity(**levels), discrete),
        (IMMSEMixedDensity(**levels, marginals="standard"), rows),
        (IMMSEEnsemble(members, random_state=number), continuous),
        (IMMSEOutlierDetector(density, contamination=0.05, random_state=number), continuous),
    ][number % 5]


def cycle(number: int, folder: Path) -> None:
    """Fit, score, sample, save, load and pickle one estimator, and check that scores agree."""
    rng = np.random.default_rng(number)
    estimator, X = subject(number, table(rng))
    scores = estimator.fit(X).score_samples(X)
    if not np.isfinite(scores).all():
        raise RuntimeError(f"scores of cycle {number} are not finite")
    if hasattr(estimator, "sample"):
        estimator.sample(10, random_state=number)
    path = folder / "model.safetensors"
    estimator.save(path)
    copies = [sk_itdiffusion.load(path), pickle.loads(pickle.dumps(estimator))]
    for copied in copies:
        if not np.array_equal(copied.score_samples(X), scores):
            raise RuntimeError(f"a copy of cycle {number} scores otherwise")


def held() -> Record:
    """Return what the process holds: memory in MiB, threads, open files, objects."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "resident_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "allocated_mib": allocated_bytes() / 2**20,
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
    }


def growth(records: list[Record]) -> dict[str, float]:
    """Return by how much the last fifth of the records exceeds the second fifth, in the median."""
    size = max(1, len(records) // 5)
    before, after = records[size : 2 * size], records[-size:]
    return {
        field: statistics.median(record[field] for record in after)
        - statistics.median(record[field] for record in before)
        for field in FIELDS
    }


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--every", type=int, default=25, help="cycles between two records")
    parser.add_argument("--output", type=Path, help="file of records, JSON lines")
    parser.add_argument("--quick", action="store_true", help="20 cycles, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cycles, arguments.every = 20, 2
    return arguments


def main() -> int:
    """Run the cycles, print the curve and return the exit status."""
    arguments = parse_arguments()
    if not Path("/proc/self/statm").exists():
        raise SystemExit("This benchmark reads /proc, which only Linux has.")
    results = ResultsFile(arguments.output)
    records: list[Record] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.cycles):
            cycle(number, Path(folder))
            if (number + 1) % arguments.every == 0:
                seconds = time.perf_counter() - start
                records.append({"cycles": number + 1, "seconds": seconds, **held()})
                results.add({"setting": f"{arguments.cycles} cycles", **records[-1]})
                print(f"{number + 1} cycles: {records[-1]['resident_mib']:.1f} MiB", flush=True)
    header = ["cycles", "seconds", *FIELDS]
    body = [[format(record[name], ".1f" if name.endswith("mib") else ".0f") for name in header]
            for record in records]  # fmt: skip
    print(format_markdown(header, body))
    grown = growth(records)
    print("growth:", ", ".join(f"{name} {value:+.1f}" for name, value in grown.items()))
    too_much = grown["resident_mib"] > MAX_GROWTH or max(grown["threads"], grown["open_files"]) > 0
    return int(too_much)


if __name__ == "__main__":
    sys.exit(main())
