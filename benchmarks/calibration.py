"""Look for scores that beat the truth, among many fits to few rows of known densities.

    python benchmarks/calibration.py --output results/calibration.jsonl
    python benchmarks/calibration.py --max-epochs 40 --seeds 4 --sizes 100

IMMSEDensity (without networks unless told) is fitted to few rows of each density of
sk_itdiffusion.datasets and scores 1000 fresh ones. Printed are, for each density,

- the mean and the median over the fits of the score minus the mean true log p of the same rows:
  below zero except for errors of integration and sampling, since the estimate is a bound;
- in how many fits it exceeds zero by more than two standard errors, those of its paired
  differences over rows, which contain the errors of the integration;
- in how many fits the standard error of the score that comes from the integration exceeds 0.02
  nats, and the largest of all;
- the largest lead of a row over its true log p.

Finished records in the output file are not measured again.
"""

from __future__ import annotations

import argparse

import numpy as np
from processes import use_threads
from results import Record, ResultsFile, describe_runs, format_markdown

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion.datasets import DENSITY_NAMES, load_density

SIZES = (50, 100, 200, 400)
N_SCORED = 1000
NOTABLE_ERROR = 0.02


def measure(dataset: str, size: int, seed: int, max_epochs: int) -> Record:
    """Fit to rows of a density, and compare scores of fresh rows with the truth."""
    density = load_density(dataset)
    train = density.sample(size, random_state=seed)
    fresh = density.sample(N_SCORED, random_state=100_000 + seed)
    estimator = IMMSEDensity(max_epochs=max_epochs, random_state=seed).fit(train)
    log_density, error = estimator.score_samples(fresh, return_std=True)
    lead = log_density - density.log_prob(fresh)
    return {
        "lead": float(lead.mean()),
        "standard_error": float(lead.std(ddof=1)) / np.sqrt(N_SCORED),
        "integration_error": float(np.linalg.norm(error)) / N_SCORED,
        "greatest_lead": float(lead.max()),
    }


def compare(arguments: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Measure the fits that the results file lacks; return the records of all."""
    records = []
    for dataset in arguments.densities:
        for size in arguments.sizes:
            for seed in range(arguments.seeds):
                method = f"max_epochs={arguments.max_epochs}"
                key = {
                    "dataset": dataset,
                    "seed": seed,
                    "method": method,
                    "setting": f"{size} rows",
                }
                record = results.find(**key)
                if record is None:
                    measured = measure(dataset, size, seed, arguments.max_epochs)
                    record = results.add({**key, **measured})
                records.append(record)
    return records


def beats_the_truth(record: Record) -> bool:
    """Return whether a score exceeds the truth by more than two standard errors."""
    return bool(record["lead"] > 2.0 * record["standard_error"])


def format_fits(records: list[Record]) -> str:
    """Return a Markdown table, a row for each density and one for all."""
    body = []
    for dataset in [*dict.fromkeys(record["dataset"] for record in records), "all"]:
        fits = [record for record in records if dataset in ("all", record["dataset"])]
        leads = [record["lead"] for record in fits]
        errors = np.array([record["integration_error"] for record in fits])
        body.append(
            [
                dataset,
                str(len(fits)),
                f"{np.mean(leads):.3f}",
                f"{np.median(leads):.3f}",
                str(sum(map(beats_the_truth, fits))),
                str(int((errors > NOTABLE_ERROR).sum())),
                f"{errors.max():.4f}",
                f"{max(record['greatest_lead'] for record in fits):.1f}",
            ]
        )
    titles = ["density", "fits", "mean lead", "median", "beat the truth"]
    titles += [f"error above {NOTABLE_ERROR:g}", "greatest error", "greatest lead of a row"]
    return format_markdown(titles, body)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--densities", nargs="+", choices=DENSITY_NAMES, default=list(DENSITY_NAMES)
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=7, help="fits of each density and size")
    parser.add_argument("--max-epochs", type=int, default=0, help="0 trains no networks")
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="two fits of 50 rows, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.seeds = [50], 2
    return arguments


def main() -> None:
    """Measure what the results file lacks and print the table."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records = compare(arguments, ResultsFile(arguments.output))
    print(f"Nats\n\n{format_fits(records)}\n\n{describe_runs(records)}")


if __name__ == "__main__":
    main()
