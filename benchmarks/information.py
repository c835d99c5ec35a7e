"""Mutual information on the 40 tasks of benchmark-mi, alongside its own estimators.

The samples are files that ``benchmarks/information_samples.py`` has written, in an environment of
its own:

    python benchmarks/information.py --samples-dir samples --samples 1000 --seeds 0 1

Prints a table in Markdown of errors, estimate less truth in nats, one row for each task, and the
means of their absolute values.  What has been estimated is kept alongside the samples, in
``results.csv``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from sk_itdiffusion import IMMSEMutualInformation

PEERS = ["ksg", "cca", "mine", "infonce"]
KEYS = ["samples", "seed", "task"]


def estimated(path: Path) -> dict[str, object]:
    """Return the estimates of one file."""
    samples, seed = path.parent.name.split("-")
    with np.load(path) as file:
        known = dict(file)
    begin = time.monotonic()
    found = IMMSEMutualInformation(random_state=0).fit(known["x"], known["y"])
    return {
        "samples": int(samples),
        "seed": int(seed),
        "task": path.stem,
        "truth": float(known["truth"]),
        "estimate": found.mutual_information_,
        "standard_error": found.standard_error_,
        "fold_spread": found.fold_spread_,
        "seconds": time.monotonic() - begin,
    }


def with_peers(results: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return results with the estimates of the peers, which are in the files of samples."""
    rows = []
    for row in results.to_dict("records"):
        with np.load(folder / f"{row['samples']}-{row['seed']}" / f"{row['task']}.npz") as file:
            rows.append(row | {name: float(file[name]) for name in PEERS if name in file})
    return pd.DataFrame(rows)


def show(results: pd.DataFrame) -> None:
    """Print the errors of each task, means over seeds, and the means of absolute errors."""
    names = {"estimate": "IMMSEMutualInformation"} | {
        name: name for name in PEERS if name in results
    }
    for n_samples, part in results.groupby("samples"):
        errors = part[list(names)].sub(part["truth"], axis=0).rename(columns=names)
        seeds = ", ".join(map(str, sorted(part["seed"].unique())))
        print(f"\n{n_samples} samples, seeds {seeds}: estimate less truth, nats\n")
        print("| task | truth | " + " | ".join(errors) + " |")
        print("|---|---:|" + "---:|" * errors.shape[1])
        for task, rows in errors.groupby(part["task"]):
            truth = part["truth"][rows.index[0]]
            numbers = " | ".join(f"{value:+.3f}" for value in rows.mean())
            print(f"| {task} | {truth:.3f} | {numbers} |")
        means = " | ".join(f"{value:.3f}" for value in errors.abs().mean())
        print(f"| **mean absolute error** | | {means} |")
        seconds = part["seconds"]
        print(f"\nSeconds: median {seconds.median():.1f}, most {seconds.max():.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples-dir", type=Path, required=True)
    parser.add_argument("--samples", type=int, nargs="*", default=[1_000, 5_000, 10_000])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    arguments = parser.parse_args()
    file = arguments.samples_dir / "results.csv"
    results = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEYS)
    asked = [(n, seed) for n in arguments.samples for seed in arguments.seeds]
    for n_samples, seed in asked:
        for path in sorted((arguments.samples_dir / f"{n_samples}-{seed}").glob("*.npz")):
            known = results[KEYS].astype(str).agg("/".join, axis=1) if len(results) else []
            if f"{n_samples}/{seed}/{path.stem}" in set(known):
                continue
            row = estimated(path)
            error = float(row["estimate"]) - float(row["truth"])  # type: ignore[arg-type]
            print(
                f"{n_samples} {seed} {path.stem}: {error:+.3f} {row['seconds']:.1f} s", flush=True
            )
            results = pd.concat([results, pd.DataFrame([row])], ignore_index=True)
            results.to_csv(file, index=False)
    wanted = pd.MultiIndex.from_tuples(asked)
    index = pd.MultiIndex.from_frame(results[["samples", "seed"]].astype(int))
    show(with_peers(results[index.isin(wanted)], arguments.samples_dir))


if __name__ == "__main__":
    main()
