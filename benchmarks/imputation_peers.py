"""Measure miceforest, in an environment of its own.

    python -m venv peers && peers/bin/pip install miceforest "lightgbm<4.6" scikit-learn
    peers/bin/python benchmarks/imputation_peers.py --data-dir DATA --output results/mice.jsonl

The environment needs neither this library nor torch. ``imputation.py --peers results/mice.jsonl``
puts the records alongside those of other methods: tables, missing entries and measures are the
same. Parameters are the defaults of miceforest, with 5 data sets of 5 iterations each.
"""

from __future__ import annotations

import miceforest
import numpy as np
from imputation_data import Imputed, Mask, Table, arguments_of, compare
from threadpoolctl import threadpool_limits

N_TABLES, N_ITERATIONS = 5, 5


def mice(table: Table, missing: Mask, seed: int, quick: bool) -> Imputed:
    """Impute by chained gradient boosting with predictive mean matching."""
    frame = table.frame(missing)
    kernel = miceforest.ImputationKernel(frame, num_datasets=N_TABLES, random_state=seed)
    kernel.mice(1 if quick else N_ITERATIONS, num_threads=1)
    tables = [table.numbers(kernel.complete_data(i)) for i in range(N_TABLES)]
    return Imputed(np.stack(tables))


METHODS = {"miceforest": mice}


def main() -> None:
    """Measure what is asked for."""
    arguments = arguments_of(__doc__, METHODS).parse_args()
    with threadpool_limits(arguments.threads):
        compare(arguments, METHODS)


if __name__ == "__main__":
    main()
