"""What scripts that measure methods on tables have in common: options, and finished records.

This module needs no package but numpy, so that peers can be measured in environments of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from results import ArrayFolder, Record, ResultsFile


def parser_of(
    description: str | None, datasets: Iterable[str], methods: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """Return a parser of tables, seeds, the output and threads, and of methods if there are any.

    Parameters
    ----------
    description : str or None
        The script's documentation.
    datasets : iterable of str
        Names of the tables.
    methods : iterable of str, default=()
        Names of the methods.

    Returns
    -------
    ArgumentParser
        The parser, to which scripts add options of their own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, known = list(datasets), list(methods)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--datasets", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    if known:
        parser.add_argument("--methods", nargs="+", choices=known, default=known)
        parser.add_argument(
            "--again", nargs="+", choices=known, default=[], help="methods to measure once more"
        )
    return parser


class Finished:
    """Records of measurements, each of which is made once, with an array for each of them.

    Parameters
    ----------
    output : str, Path or None
        File of the records; None keeps them in memory only.
    again : iterable of str, default=()
        Methods whose finished records do not count.
    """

    def __init__(self, output: str | Path | None, again: Iterable[str] = ()) -> None:
        self.results, self.folder = ResultsFile(output), ArrayFolder(output)
        self.again = set(again)

    def record(self, key: Record, measure: Callable[[], tuple[Record, Any]]) -> tuple[Record, bool]:
        """Return the record of a key, and whether it was measured just now.

        Parameters
        ----------
        key : dict
            Data set, seed, method and setting.
        measure : callable
            Returns what the record is to hold, and the array that belongs to it.

        Returns
        -------
        record : dict
            The record.
        is_new : bool
            Whether it was not finished.
        """
        record = self.results.find(**key)
        has_rows = record is not None and self.folder.find(**key) is not None
        if record is not None and has_rows and key["method"] not in self.again:
            return record, False
        measured, rows = measure()
        self.folder.add(rows, **key)
        return self.results.add({**key, **measured}), True
