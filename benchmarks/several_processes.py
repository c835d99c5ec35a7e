"""Throughput of fitting and scoring, and what two processes bring.

    python benchmarks/several_processes.py

Measured are, on this machine,

- the rows that one process reads and checks, trains on and scores in a second,
- one fit in one process and in two (``torchrun``), each with one thread,
- four fits of a search one after the other and two at a time, in processes and in threads,
- scores of the same rows with one thread and with two.

The last table extrapolates to a billion rows by these numbers: reading and scoring grow with the
rows, training does not, since an epoch is a number of steps.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from results import describe_machine, describe_runs, describe_versions, format_markdown
from sklearn.model_selection import GridSearchCV

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._estimators.density import as_numbers
from sk_itdiffusion._first._table import blocks
from sk_itdiffusion.distributed import shared_fit

Array = NDArray[np.float64]

N_COLUMNS = 10
#: The network's size and the batch of a fit that several processes are for, and the usual ones.
SIZES = ((128, 512), (512, 4096))


def rows(n: int) -> Array:
    """Return rows of a curved density."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, N_COLUMNS))
    X[:, 1:] += 0.5 * X[:, :-1] ** 2
    return X


def seconds(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def network_alone(hidden_size: int, batch_size: int, n_steps: int) -> IMMSEDensity:
    """Return an estimator that takes a number of steps, and little time for all else."""
    return IMMSEDensity(
        hidden_size=hidden_size,
        batch_size=batch_size,
        max_epochs=1,
        steps_per_epoch=n_steps,
        reference="gaussian",
        marginals="standard",
        random_state=0,
    )


def seconds_of_steps(hidden_size: int, batch_size: int, n_steps: int) -> float:
    """Return the seconds of some steps: the difference of a longer and a shorter fit."""
    X = rows(20_000)
    short, long = (
        min(seconds(lambda n=n: network_alone(hidden_size, batch_size, n).fit(X)) for _ in range(2))
        for n in (n_steps // 10, n_steps)
    )
    return (long - short) / (n_steps - n_steps // 10) * n_steps


def run_worker(n_processes: int, *arguments: object) -> float:
    """Return what this script prints when it is started as one or several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, *launcher, __file__, "--worker", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return float(output.stdout.split()[-1])


def work(hidden_size: int, batch_size: int, n_steps: int) -> None:
    """Print the seconds of some steps in the processes that run this script."""
    with shared_fit() as processes:
        taken = seconds_of_steps(hidden_size, batch_size, n_steps)
        if processes.rank == 0:
            print(taken)


def search_seconds(backend: str, n_jobs: int, max_epochs: int) -> float:
    """Return the seconds of a search of four fits."""
    X = rows(4_000)
    estimator = IMMSEDensity(max_epochs=max_epochs, early_stopping=False, random_state=0)
    search = GridSearchCV(estimator, {"schedule": ["adaptive", "uniform"]}, cv=2, refit=False)
    with joblib.parallel_config(backend, n_jobs=n_jobs):
        return seconds(lambda: search.fit(X))


def throughput(n_scored: int) -> dict[str, float]:
    """Return rows in a second of reading, training (one thread) and scoring (all threads)."""
    X = rows(2_000_000)
    table = blocks.LocalPartitions(X, 2**16 // N_COLUMNS)
    state = np.random.RandomState(0)
    reading = seconds(lambda: blocks.sample(table, as_numbers, state, numbers_only=True))
    training = seconds_of_steps(128, 512, 400) / (400 * 512)
    density = IMMSEDensity(max_epochs=2, random_state=0).fit(X[:5_000])
    scoring = seconds(lambda: density.score_samples(X[:n_scored])) / n_scored
    return {"read and check": len(X) / reading, "train": 1 / training, "score": 1 / scoring}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    n_steps, n_epochs, n_scored = (20, 1, 500) if args.quick else (300, 10, 10_000)

    print(describe_runs([{"machine": describe_machine(), "versions": describe_versions()}]))
    speed = throughput(n_scored)
    print(
        format_markdown(["rows a second", *speed], [["", *(f"{v:,.0f}" for v in speed.values())]])
    )

    body = []
    for hidden_size, batch_size in SIZES:
        n = max(20, n_steps // (batch_size // 512))
        one, two = (run_worker(k, hidden_size, batch_size, n) for k in (1, 2))
        name = f"one fit, {hidden_size} units, batches of {batch_size}"
        body.append(
            [name, f"{one / n * 1000:.1f} ms a step", f"{two / n * 1000:.1f} ms a step", one / two]
        )
    one = search_seconds("loky", 1, n_epochs)
    for backend in ("loky", "threading"):
        two = search_seconds(backend, 2, n_epochs)
        body.append(
            [f"a search of four fits, {backend}", f"{one:.1f} s", f"{two:.1f} s", one / two]
        )
    table = [[*row[:3], f"{row[3]:.2f}"] for row in body]
    print(format_markdown(["", "one process", "two processes", "speed-up"], table))

    minutes = {n: n / speed["read and check"] / 60 for n in (10**7, 10**8, 10**9)}
    hours = {n: n / speed["score"] / 3600 for n in minutes}
    table = [[f"{n:,}", f"{minutes[n]:.1f}", f"{hours[n]:,.1f}"] for n in minutes]
    header = ["rows", "minutes to read and check", "hours to score all of them"]
    print(format_markdown(header, table))


if __name__ == "__main__":
    main()
