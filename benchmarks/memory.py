"""Memory that fitting and scoring take beyond the rows themselves.

    python benchmarks/memory.py                       # 10 million rows of 10 columns, in memory
    python benchmarks/memory.py --source disk         # the same rows as an array on disk
    python benchmarks/memory.py --dtype float32

A thread looks at the memory of this process every few milliseconds.  Counted are pages of its own
(Linux: RssAnon), not those of files that the system can drop at any time.  Printed are the largest
numbers beyond what the process had when the rows were there and the library was loaded, in MiB.
The system must be Linux.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from results import format_markdown

from sk_itdiffusion import IMMSEDensity

Array = NDArray[np.float64]

ROWS_AT_A_TIME = 100_000
SECONDS_BETWEEN_LOOKS = 0.005


def own_memory() -> int:
    """Return the bytes of this process's own pages."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status has no RssAnon; the system must be Linux.")
    return 1024 * int(found.group(1))


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Append the largest number of bytes in use meanwhile, less those in use before."""
    before, largest, done = own_memory(), [0], threading.Event()
    found: list[int] = []

    def look() -> None:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            largest[0] = max(largest[0], own_memory())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.append(max(largest[0], own_memory()) - before)


def fill(X: Array) -> Array:
    """Fill an array with rows of a curved density, and return it."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.standard_normal((X.shape[1], X.shape[1])))[0]
    for start in range(0, len(X), ROWS_AT_A_TIME):
        part = X[start : start + ROWS_AT_A_TIME]
        latent = rng.standard_normal(part.shape)
        latent[:, 1:] += 0.5 * latent[:, :-1] ** 2
        part[:] = latent @ mixing
    return X


def rows_at(source: str, shape: tuple[int, int], dtype: str, folder: str) -> Any:
    """Return rows in memory, as an array or a data frame, or on disk."""
    if source != "disk":
        X = fill(np.empty(shape, dtype))
        return X if source == "memory" else pd.DataFrame(X, copy=False)
    path = Path(folder) / "rows.npy"
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    fill(written)
    written.flush()
    del written
    return np.load(path, mmap_mode="r")


def measured(action: Callable[[], Any]) -> tuple[int, float]:
    """Return the bytes and the seconds that an action takes."""
    start = time.perf_counter()
    with watched_memory() as bytes_taken:
        action()
    return bytes_taken[0], time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=["memory", "frame", "disk"], default="memory")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--weighted", action="store_true", help="random weights")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--scored", type=int, default=1_000_000, help="rows to score, 0 for none")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--most", type=int, default=None, help="MiB; fail if a fit takes more")
    args = parser.parse_args()

    warm_up = np.random.default_rng(0).standard_normal((200, args.columns))
    IMMSEDensity(max_epochs=1, random_state=0).fit(warm_up).score_samples(warm_up)
    density = IMMSEDensity(max_epochs=args.epochs, score_tol=1.0, random_state=0)
    with tempfile.TemporaryDirectory() as folder:
        X = rows_at(args.source, (args.rows, args.columns), args.dtype, folder)
        buffer = args.rows * args.columns * np.dtype(args.dtype).itemsize
        weight = np.random.default_rng(1).exponential(size=len(X)) if args.weighted else None
        fitted = measured(lambda: density.fit(X, sample_weight=weight))
        results = [("fit", args.rows, *fitted)]
        if args.scored:
            scored = X[: args.scored]
            results.append(("score_samples", len(scored), *measured(lambda: density.score(scored))))
    body = [
        [name, f"{n:,}", f"{taken / 2**20:.0f}", f"{seconds:.0f}"]
        for name, n, taken, seconds in results
    ]
    print(
        f"{args.rows:,} rows of {args.columns} columns, {args.dtype}"
        f"{', weighted' if args.weighted else ''}, {buffer / 2**20:.0f} MiB, {args.source}"
    )
    print(format_markdown(["method", "rows", "MiB beyond the rows", "seconds"], body))
    if args.most is not None and fitted[0] > args.most * 2**20:
        raise SystemExit(f"fit took more than {args.most} MiB beyond the rows.")


if __name__ == "__main__":
    main()
