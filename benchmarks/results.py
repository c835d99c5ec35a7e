"""Results of benchmarks: one JSON line per finished record, so that a run can be resumed."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]

KEY_FIELDS = ("dataset", "seed", "method", "setting")
PACKAGES = (
    "sk_itdiffusion",
    "scikit-learn",
    "torch",
    "skorch",
    "numpy",
    "scipy",
    "zuko",
    "ngboost",
    "quantile-forest",
)


class ResultsFile:
    """Finished records, identified by data set, seed, method and setting.

    Parameters
    ----------
    path : str, Path or None
        File with one JSON object per line, created when the first record is added. Its
        records are read at once. With None, records are kept in memory only.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.records: list[Record] = []
        if self.path is not None and self.path.exists():
            self.records = read_json_lines(self.path)

    def find(self, **key: Any) -> Record | None:
        """Return the newest record whose key fields have these values, or None."""
        for record in reversed(self.records):
            if all(record.get(field) == key.get(field) for field in KEY_FIELDS):
                return record
        return None

    def add(self, record: Record) -> Record:
        """Append a record, with the machine and the versions, and return it."""
        record = {**record, "machine": describe_machine(), "versions": describe_versions()}
        self.records.append(record)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        return record


class ArrayFolder:
    """Arrays that belong to records, a .npy file in single precision for each.

    Parameters
    ----------
    results : str, Path or None
        File of the records; the folder alongside it is named after it, with ``_rows`` at the end.
        With None, arrays are kept in memory only.
    """

    def __init__(self, results: str | Path | None) -> None:
        path = None if results is None else Path(results)
        self.folder = None if path is None else path.with_name(f"{path.stem}_rows")
        self._kept: dict[str, NDArray[np.float32]] = {}

    def find(self, **key: Any) -> NDArray[np.float32] | None:
        """Return the array of the record with these key fields, or None."""
        name = self._file_name(key)
        if name not in self._kept and self.folder is not None and (self.folder / name).exists():
            self._kept[name] = np.load(self.folder / name, allow_pickle=False)
        return self._kept.get(name)

    def add(self, array: NDArray[Any], **key: Any) -> None:
        """Keep an array, instead of an earlier one; add it before its record."""
        name = self._file_name(key)
        self._kept[name] = np.asarray(array, dtype=np.float32)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(self.folder / name, self._kept[name], allow_pickle=False)

    @staticmethod
    def _file_name(key: Record) -> str:
        parts = [re.sub(r"[^\w.-]+", "-", str(key.get(field))) for field in KEY_FIELDS]
        return "__".join(parts) + ".npy"


def read_json_lines(path: Path) -> list[Record]:
    """Read the records of a file; a last line cut off by an interruption is removed from it."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        path.write_text(complete, encoding="utf-8")
    return [json.loads(line) for line in complete.splitlines() if line.strip()]


def describe_machine() -> Record:
    """Return the processor, the number of usable cores and torch's threads, without a host name.

    Scripts for peers in environments of their own do without torch.
    """
    torch = sys.modules.get("torch")
    on_device = torch is not None and torch.cuda.is_available()
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return {
        "processor": processor_name(),
        "system": platform.system(),
        "cores": len(usable),
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch and on_device else None,
    }


def processor_name() -> str:
    """Return the model name of the processor where the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_versions() -> Record:
    """Return the versions of Python and of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_runs(records: Iterable[Record]) -> str:
    """Return one line for each machine, with versions, on which some of the records were made."""
    lines = dict.fromkeys(
        "{processor}, {cores} cores, {torch_threads} threads of torch; ".format(**record["machine"])
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        for record in records
    )
    return "\n".join(lines)


def pivot_medians(
    records: Iterable[Record], value: str, rows: str = "dataset", columns: str = "method"
) -> dict[Any, dict[Any, float]]:
    """Return the median over all other fields (the seeds) as ``table[row][column]``."""
    groups: dict[Any, dict[Any, list[float]]] = {}
    for record in records:
        if value in record:
            cells = groups.setdefault(record[rows], {})
            cells.setdefault(record[columns], []).append(record[value])
    return {
        row: {column: statistics.median(values) for column, values in cells.items()}
        for row, cells in groups.items()
    }


def markdown_table(
    records: Iterable[Record],
    value: str,
    rows: str = "dataset",
    columns: str = "method",
    number_format: str = ".3f",
) -> str:
    """Return a Markdown table of medians over the seeds; rows and columns in order of arrival."""
    table = pivot_medians(records, value, rows, columns)
    names = list(dict.fromkeys(name for cells in table.values() for name in cells))
    body = [
        [str(row), *(format(cells[name], number_format) if name in cells else "" for name in names)]
        for row, cells in table.items()
    ]
    return format_markdown([rows, *(str(name) for name in names)], body)


def format_markdown(header: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table, the first column aligned left, the others right."""
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, alignment, *body])
