"""Samples of the tasks of benchmark-mi, and what that package's own estimators say of them.

The package needs old versions of jax, scipy and scikit-learn, so this script runs in an environment
of its own and exchanges samples by files:

    python3.11 -m venv bmi
    bmi/bin/pip install "jax==0.4.25" "jaxlib==0.4.25" "scipy<1.13" "scikit-learn<1.5" benchmark-mi
    bmi/bin/python benchmarks/information_samples.py --samples-dir samples --peers ksg cca

Each file holds the samples of a task as ``x`` and ``y``, its information in nats as ``truth``, and
the estimates of each peer; files that exist are kept, and peers they lack are added.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import bmi
import numpy as np


def peer(name: str) -> Any:
    """Return an estimator of the package, with its defaults."""
    if name == "ksg":
        return bmi.estimators.KSGEnsembleFirstEstimator(neighborhoods=(10,))
    classes = {
        "cca": bmi.estimators.CCAMutualInformationEstimator,
        "mine": bmi.estimators.MINEEstimator,
        "infonce": bmi.estimators.InfoNCEEstimator,
    }
    return classes[name]()


def write(path: Path, task: Any, n_samples: int, seed: int, peers: list[str]) -> None:
    """Write the samples of a task and the estimates of peers."""
    known: dict[str, Any] = {}
    if path.exists():
        with np.load(path) as file:
            known = dict(file)
    else:
        x, y = task.sample(n_samples, seed)
        known = {
            "x": np.asarray(x, dtype=np.float64),
            "y": np.asarray(y, dtype=np.float64),
            "truth": np.array(task.mutual_information),
        }
    for name in peers:
        if name not in known:
            begin = time.monotonic()
            found = peer(name).estimate(known["x"], known["y"])
            known[name] = np.array(float(found))
            known[f"{name}_seconds"] = np.array(time.monotonic() - begin)
    np.savez(path, **known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples-dir", type=Path, required=True, help="where the files lie")
    parser.add_argument("--samples", type=int, nargs="*", default=[1_000, 5_000, 10_000])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--peers", nargs="*", default=[], help="ksg, cca, mine, infonce")
    arguments = parser.parse_args()
    for n_samples in arguments.samples:
        for seed in arguments.seeds:
            folder = arguments.samples_dir / f"{n_samples}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, task in sorted(bmi.benchmark.BENCHMARK_TASKS.items()):
                write(folder / f"{name}.npz", task, n_samples, seed, arguments.peers)
                print(n_samples, seed, name, flush=True)


if __name__ == "__main__":
    main()
