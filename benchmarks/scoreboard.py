"""One table that says whether anything got worse: accuracy and CPU seconds of the whole library.

    python benchmarks/scoreboard.py --data-dir DATA --output results/scoreboard.json
    python benchmarks/scoreboard.py --data-dir DATA --compare benchmarks/baseline.json
    python benchmarks/scoreboard.py --data-dir DATA --part joint,missing --quick

A line is a method on a data set (scoreboard_lines.py): its mean score, the standard error of the
mean over rows, and the CPU seconds of fit and of scoring, with one thread. Each line is measured in
a process of its own and printed as soon as it is known. Lines that the output file holds are not
measured again, so an interrupted run goes on where it ended; ``--again`` measures them once more.

``--compare FILE`` prints, for each line of this library, the paired difference to an earlier result
with its standard error over rows, marks with "<<" what is worse by more than two standard errors,
and prints the ratio of CPU seconds; the sums over each part follow. Differences of CPU seconds
are meaningful for results of the same machine only.

``--quick`` leaves out the slow lines, mostly those with networks on large tables. The others are
the same as in a full run, so that the two can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from results import describe_machine, describe_versions  # noqa: E402

Array = NDArray[np.float64]
Record = dict[str, Any]

LIBRARY = ("immse", "sk_itdiffusion")
HEADER = f"{'line':58}{'score':>9}{'+-':>8}{'fit, s':>9}{'scoring, s':>12}"


def standard_error(rows: Array) -> float:
    """Return the standard error of a mean over rows; 0 of one row."""
    return float(np.std(rows, ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else 0.0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the data")
    parser.add_argument("--part", help="parts, separated by commas; all by default")
    parser.add_argument("--only", help="lines whose name contains this text")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--compare", type=Path, help="earlier results")
    parser.add_argument("--again", action="store_true", help="measure finished lines once more")
    parser.add_argument("--quick", action="store_true", help="leave out the slow lines")
    parser.add_argument(
        "--density-from", default="sk_itdiffusion", help="module that IMMSEDensity is taken from"
    )
    parser.add_argument("--line", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_here(arguments: argparse.Namespace) -> None:
    """Measure one line in this process, and write its record to the output file."""
    import warnings

    import scoreboard_lines
    import torch
    from scoreboard_lines import all_lines

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    scoreboard_lines.density_module = arguments.density_from
    line = next(line for line in all_lines(arguments.data_dir) if line.name == arguments.line)
    measured = [line.measure(seed) for seed in line.seeds]
    rows = np.concatenate([each.rows for each in measured])
    record: Record = {
        "score": float(rows.mean()),
        "standard_error": standard_error(rows),
        "fit": float(np.mean([each.fit for each in measured])),
        "scoring": float(np.mean([each.scoring for each in measured])),
    }
    if line.method.startswith(LIBRARY):
        record["rows"] = [round(float(score), 3) for score in rows]
    arguments.output.write_text(json.dumps(record))


def measure(name: str, arguments: argparse.Namespace) -> Record | None:
    """Measure a line in a process of its own; None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "record.json"
        command = [sys.executable, __file__, "--data-dir", str(arguments.data_dir)]
        command += ["--density-from", arguments.density_from]
        run = subprocess.run([*command, "--line", name, "--output", str(output)], check=False)
        return json.loads(output.read_text()) if run.returncode == 0 else None


def names_of(arguments: argparse.Namespace) -> list[str]:
    """Return the names of the lines that are asked for."""
    from scoreboard_lines import PARTS, all_lines

    parts = arguments.part.split(",") if arguments.part else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"Unknown part {min(unknown)!r}; choose among {', '.join(PARTS)}.")
    return [
        line.name
        for line in all_lines(arguments.data_dir)
        if line.part in parts
        and (line.quick or not arguments.quick)
        and (arguments.only or "") in line.name
    ]


def format_line(name: str, record: Record) -> str:
    """Return a line of the table."""
    return (
        f"{name:58}{record['score']:9.3f}{record['standard_error']:8.3f}"
        f"{record['fit']:9.2f}{record['scoring']:12.2f}"
    )


def read(path: Path | None) -> dict[str, Record]:
    """Return the lines of a file of results, none if there is no such file."""
    if path is None or not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))["lines"]


def write(path: Path, lines: dict[str, Record]) -> None:
    """Write results, and on which machine they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": describe_machine(), "versions": describe_versions()}
    body = ",\n".join(f"{json.dumps(name)}: {json.dumps(line)}" for name, line in lines.items())
    path.write_text(f'{{"about": {json.dumps(about)},\n"lines": {{\n{body}\n}}}}\n', "utf-8")


def run(arguments: argparse.Namespace) -> dict[str, Record]:
    """Measure and print the lines that are asked for."""
    lines = read(arguments.output)
    asked: dict[str, Record] = {}
    print(HEADER, flush=True)
    for name in names_of(arguments):
        if name not in lines or arguments.again:
            record = measure(name, arguments)
            if record is None:
                print(f"{name:58} failed", flush=True)
                continue
            lines = read(arguments.output) | {name: record}
            if arguments.output is not None:
                write(arguments.output, lines)
        asked[name] = lines[name]
        print(format_line(name, lines[name]), flush=True)
    return asked


def difference(new: Record, old: Record) -> tuple[float, float]:
    """Return the mean difference of the scores of rows, and its standard error."""
    rows = np.array(new["rows"]) - np.array(old["rows"])
    return float(rows.mean()), standard_error(rows)


def compare(new: dict[str, Record], old: dict[str, Record]) -> None:
    """Print paired differences to earlier results, and their sums over each part."""
    names = [name for name in new if name in old and name.split("/")[2].startswith(LIBRARY)]
    print(f"\n{'line':58}{'difference':>11}{'+-':>8}{'fit':>8}{'scoring':>9}   (ratios of CPU s)")
    parts: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        gain, error = difference(new[name], old[name])
        parts.setdefault(name.split("/")[0], []).append((gain, error))
        mark = "  <<" if gain < -2.0 * error and gain < 0 else ""
        ratios = (ratio(new[name], old[name], clock) for clock in ("fit", "scoring"))
        print(f"{name:58}{gain:+11.3f}{error:8.3f}{''.join(ratios)}{mark}")
    for part, gains in parts.items():
        total, error = sum(gain for gain, _ in gains), np.hypot.reduce([each for _, each in gains])
        print(f"{part + ', sum':58}{total:+11.3f}{error:8.3f}")
    missing = [name for name in names_missing(new, old) if name.split("/")[2].startswith(LIBRARY)]
    if missing:
        print(f"Not in the earlier results: {', '.join(missing)}")


def names_missing(new: Iterable[str], old: Iterable[str]) -> list[str]:
    """Return the names that the earlier results lack."""
    return [name for name in new if name not in set(old)]


def ratio(new: Record, old: Record, clock: str) -> str:
    """Return the ratio of CPU seconds, or blanks."""
    width = {"fit": 8, "scoring": 9}[clock]
    if old[clock] < 1e-3:
        return " " * width
    return f"{new[clock] / old[clock]:{width}.2f}"


def main() -> None:
    """Run the scoreboard, or one line of it."""
    arguments = parse_arguments()
    if arguments.line is not None:
        measure_here(arguments)
        return
    lines = run(arguments)
    if arguments.compare is not None:
        compare(lines, read(arguments.compare))


if __name__ == "__main__":
    main()
