"""Compare networks that are trained on parts of rows with those of whole rows.

    python benchmarks/patterns.py --data-dir DATA --output results/patterns.jsonl
    python benchmarks/patterns.py --data-dir DATA --datasets kin8nm --rows 3000 --networks 1

Tables are those of tabular.py. Of their rows, in random order, the first ones are fitted, of which
a tenth validate, and some of the others are tested. IMMSEDensity is fitted with
``patterns="joint"`` and with ``patterns="any"``. Test rows are scored as whole rows, and in groups
by one of several random halves of the columns: given the other half, and by themselves. With
"joint" the references answer the latter two questions. All figures are mean log-densities in nats
and standard units; differences of "any" to the others are paired over the test rows. Times are
those of the processor.

A conditional neural spline flow ("flow", of zuko, extra ``benchmarks``) is trained for the second
question alone: the distribution of half of the columns, with what is given, and which columns these
are, as its context. Halves are new for every row of a batch; those of the validation rows are
fixed.

Finished records in the output file are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from functools import partial

import numpy as np
import torch
from command_line import Finished, parser_of
from numpy.typing import NDArray
from peers import minibatches, to_float32
from processes import use_threads
from results import ArrayFolder, Record, describe_runs, format_markdown
from tabular import standard_error, with_error
from tabular_data import TABLES, Split, load_table, random_subsample
from torch import Generator, Tensor

from sk_itdiffusion import IMMSEDensity

Array = NDArray[np.float64]
JOINT, ANY, FLOW = METHODS = ("joint", "any", "flow")
QUESTIONS = WHOLE, GIVEN, ALONE = ("whole rows", "half given half", "half by itself")
HALVES = 10


class HalfGivenHalf:
    """A conditional neural spline flow of half of the columns given the others.

    Its transforms, hidden layers and optimiser are those of the flow of peers.py. The validation
    likelihood is computed every 100 steps, training ends after 1000 steps without a gain, and the
    best state is restored.
    """

    def __init__(self, seed: int, max_steps: int = 20_000) -> None:
        self.seed, self.max_steps = seed, max_steps

    def fit(self, train: Array, valid: Array) -> HalfGivenHalf:
        """Fit to training rows, as long as validation rows become likelier."""
        import zuko

        n_columns = train.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.flow = zuko.flows.NSF(
                n_columns - n_columns // 2, 2 * n_columns, transforms=3, hidden_features=(128, 128)
            )
        generator = Generator().manual_seed(self.seed)
        batches = minibatches(to_float32(train), 512, generator)
        held, held_order = to_float32(valid), random_orders(valid.shape, generator)
        optimizer = torch.optim.AdamW(self.flow.parameters(), lr=1e-3)
        best, best_step, state = -math.inf, 0, copy.deepcopy(self.flow.state_dict())
        for step in range(1, self.max_steps + 1):
            rows = next(batches)
            loss = -self._log_prob(rows, random_orders(rows.shape, generator)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                with torch.no_grad():
                    score = self._log_prob(held, held_order).mean().item()
                if score > best:
                    best, best_step = score, step
                    state = copy.deepcopy(self.flow.state_dict())
                elif step - best_step >= 1000:
                    break
        self.flow.load_state_dict(state)
        self.n_steps = step
        return self

    def _log_prob(self, rows: Tensor, order: Tensor) -> Tensor:
        """Return log-densities of the last columns in random orders, given the first ones."""
        given, target = order.tensor_split([rows.shape[1] // 2], dim=1)
        flags = torch.zeros_like(rows).scatter_(1, given, 1.0)
        # The columns of a half have one order, so that what is given tells which ones they are.
        values = rows.gather(1, target.sort(dim=1).values)
        found: Tensor = self.flow(torch.cat([rows * flags, flags], dim=1)).log_prob(values)
        return found

    @torch.no_grad()
    def score_samples(self, rows: Array, given: NDArray[np.intp]) -> Array:
        """Return the log-densities of the other columns given half of them, in nats."""
        others = np.setdiff1d(np.arange(rows.shape[1]), given)
        order = torch.from_numpy(np.concatenate([given, others])).expand(len(rows), -1)
        return self._log_prob(to_float32(rows), order).double().numpy()


def random_orders(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return a random order of the columns for each row."""
    return torch.rand(tuple(shape), generator=generator).argsort(dim=1)


def halves_of(test: Array, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return groups of test rows, and the columns that are given in each."""
    rng = np.random.default_rng(seed)
    n_columns = test.shape[1]
    return [
        (rows, rng.permutation(n_columns)[: n_columns // 2])
        for rows in np.array_split(np.arange(len(test)), HALVES)
    ]


def scores(density: IMMSEDensity, test: Array, seed: int) -> Array:
    """Return log-densities of test rows, (3, n_test), as whole rows and of random halves."""
    found = np.empty((len(QUESTIONS), len(test)))
    found[0] = density.score_samples(test)
    for rows, given in halves_of(test, seed):
        found[1, rows] = density.score_samples(test[rows], given=given.tolist())
        hidden = test[rows].copy()
        hidden[:, given] = np.nan
        found[2, rows] = density.score_samples(hidden)
    return found


def scores_of_flow(flow: HalfGivenHalf, test: Array, seed: int) -> Array:
    """Return log-densities of test rows, (3, n_test), of which the flow knows those given half."""
    found = np.full((len(QUESTIONS), len(test)), np.nan)
    for rows, given in halves_of(test, seed):
        found[1, rows] = flow.score_samples(test[rows], given)
    return found


def measure(method: str, split: Split, seed: int, n_networks: int | str) -> tuple[Record, Array]:
    """Fit one method and score the test rows; return times and the scores."""
    start = time.perf_counter(), time.process_time()
    if method == FLOW:
        flow = HalfGivenHalf(seed).fit(split.train, split.valid)
        details = {"n_steps": flow.n_steps}
        score = partial(scores_of_flow, flow)
    else:
        density = IMMSEDensity(patterns=method, n_networks=n_networks, random_state=seed)
        density.fit(np.concatenate([split.train, split.valid]))
        details = {"n_epochs": density.n_iter_}
        score = partial(scores, density)
    fitted = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Marginal and conditional densities")
        found = score(split.test, seed)
    record = {
        "fit_seconds": fitted[0] - start[0],
        "fit_cpu_seconds": fitted[1] - start[1],
        "score_cpu_seconds": time.process_time() - fitted[1],
        "n_test": len(split.test),
    }
    return record | details, found


def compare(arguments: argparse.Namespace) -> tuple[list[Record], ArrayFolder]:
    """Measure every combination that the results file lacks; return the records of all."""
    finished = Finished(arguments.output, arguments.again)
    records = []
    for dataset in arguments.datasets:
        X = load_table(dataset, arguments.data_dir)
        for seed in arguments.seeds:
            n_tested = min(arguments.tested, len(X) // 10)
            n_rows = min(arguments.rows, len(X) - n_tested)
            split = random_subsample(X, n_rows, n_tested, seed)
            for method in arguments.methods:
                setting = f"{n_rows} rows, {arguments.networks} network(s)"
                key = {"dataset": dataset, "seed": seed, "method": method, "setting": setting}
                work = partial(measure, method, split, seed, arguments.networks)
                record, is_new = finished.record(key, work)
                records.append(record)
                if is_new:
                    print(dataset, method, f"fit {record['fit_cpu_seconds']:.0f} s", flush=True)
    return records, finished.folder


def format_comparison(records: list[Record], folder: ArrayFolder) -> str:
    """Return a Markdown table, a row for each table, seed and question."""
    groups: dict[tuple[str, int, str], dict[str, Record]] = {}
    for record in records:
        key = record["dataset"], record["seed"], record["setting"]
        groups.setdefault(key, {})[record["method"]] = record
    body = []
    for (dataset, seed, setting), group in groups.items():
        cells = [dataset, setting.partition(",")[0], str(seed)]
        found = {method: folder.find(**record) for method, record in group.items()}
        body += [
            [*cells, question, *cells_of_question(found, number)]
            for number, question in enumerate(QUESTIONS)
        ]
        seconds = [
            f"{group[method]['fit_cpu_seconds']:.0f} s" if method in group else ""
            for method in METHODS
        ]
        body.append([*cells, "time to fit", *seconds, "", ""])
    header = ["table", "rows", "seed", "question", *METHODS, "any less joint", "any less flow"]
    return format_markdown(header, body)


def cells_of_question(found: dict[str, NDArray[np.float32] | None], number: int) -> list[str]:
    """Return means of the methods on a question, and leads of "any", where they are known."""
    answers = {
        method: rows[number].astype(np.float64)
        for method, rows in found.items()
        if rows is not None and not np.isnan(rows[number]).any()
    }
    means = [f"{answers[method].mean():.3f}" if method in answers else "" for method in METHODS]
    leads = []
    for other in (JOINT, FLOW):
        if ANY not in answers or other not in answers:
            leads.append("")
            continue
        lead = answers[ANY] - answers[other]
        leads.append(with_error((float(lead.mean()), standard_error(lead))))
    return [*means, *leads]


def number_or_auto(text: str) -> int | str:
    """Return a number of networks, or "auto"."""
    return text if text == "auto" else int(text)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__, TABLES, METHODS)
    parser.add_argument("--rows", type=int, default=10_000, help="rows to fit, at most")
    parser.add_argument("--tested", type=int, default=500, help="rows to test, at most")
    parser.add_argument("--networks", type=number_or_auto, default="auto", help="see n_networks")
    return parser.parse_args()


def main() -> None:
    """Run the comparison that the command line asks for."""
    arguments = parse_arguments()
    with use_threads(arguments.threads):
        records, folder = compare(arguments)
    print(
        f"\nMean log-density of the test rows, nats in standard units\n\n"
        f"{format_comparison(records, folder)}\n\n{describe_runs(records)}"
    )


if __name__ == "__main__":
    main()
