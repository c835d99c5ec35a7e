"""Measure how near training and scoring come to bare loops of torch.

    python benchmarks/throughput.py --output results/throughput.jsonl
    python benchmarks/throughput.py --columns 10 --repeats 9 --threads 1

IMMSEDensity with one network, which the bare loop has too, and else its default parameters is
fitted to 8000 rows far from normal, without early stopping. Compared are

- training: noisy rows per second of the whole training loop (with validation after each epoch,
  averaging of weights, clipping, callbacks) and of a bare loop that draws rows, log-SNRs and noise
  and takes steps with the same network, batch and optimiser. The bare loop runs once in one thread
  and once with the default number of torch; the faster of the two counts;
- scoring: evaluations per second of score_samples, and of nothing but the forward passes of the
  network, and of all denoisers that the model combines, in batches of the same shape and in as many
  workers;
- both: the time of nothing but the matrix products of the network's linear layers (in training
  with those of the backward pass), by torch.mm in one thread, as a share of the time of the library
  for the same work. In scoring, with several workers, the products are done by as many.

Everything is repeated in turn, so that what else the machine does hits all alike; printed are the
medians of the rates, and the medians and ranges of the ratios within the repeats. Finished records
in the output file are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import skorch
import torch
from evaluations import evaluations_of_rows
from numpy.typing import NDArray
from processes import import_late_modules, use_threads
from results import Record, ResultsFile, describe_runs, format_markdown
from skorch.callbacks import Callback
from tabular_data import curved_rows
from torch import Tensor, nn

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._fit.optimizers import MuonAdamW
from sk_itdiffusion._first._runtime.parallel import map_in_workers, run_interruptibly
from sk_itdiffusion.channel import add_noise

Array = NDArray[np.float64]
Product = tuple[int, int, int]

BATCH_SIZE = 512
RATES = {
    "fit_loop": "fit loop",
    "bare_loop_one_thread": "bare loop, one thread",
    "bare_loop": "bare loop",
    "score": "score_samples",
    "forward_network": "forward passes, network",
    "forward_all": "forward passes, all denoisers",
}
RATIOS = {
    "training_ratio": "training / bare loop",
    "training_products": "matrix products in training",
    "scoring_ratio_network": "scoring / network alone",
    "scoring_ratio_all": "scoring / all denoisers alone",
    "scoring_products": "matrix products in scoring",
}


class Stopwatch(Callback):
    """Time of the training loop, without what comes before and after it."""

    def on_train_begin(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_train_end(self, net: skorch.NeuralNet, **_: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.start


def seconds_of(function: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# --- Training -------------------------------------------------------------------------------


def fit(X: Array, n_epochs: int, n_steps: int, seed: int) -> tuple[IMMSEDensity, float]:
    """Return a fitted estimator and the seconds of its training loop."""
    stopwatch = Stopwatch()
    estimator = IMMSEDensity(
        max_epochs=n_epochs,
        steps_per_epoch=n_steps,
        batch_size=BATCH_SIZE,
        n_networks=1,
        early_stopping=False,
        callbacks=[stopwatch],
        random_state=seed,
    )
    estimator.fit(X)
    return estimator, stopwatch.seconds


def bare_training(denoiser: nn.Module, rows: Tensor, n_steps: int) -> None:
    """Take steps as the shortest loop does that trains the denoiser."""
    network = copy.deepcopy(denoiser).train()
    names = ("expand.weight", "contract.weight")
    hidden = [p for name, p in network.named_parameters() if name.endswith(names)]
    rest = [p for name, p in network.named_parameters() if not name.endswith(names)]
    optimizer = MuonAdamW([{"params": hidden, "hidden": True}, {"params": rest}], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        x = rows[torch.randint(len(rows), (BATCH_SIZE,), generator=generator)]
        logsnr = 3.0 * torch.randn(BATCH_SIZE, generator=generator)
        eps = torch.randn(x.shape, generator=generator)
        loss = (eps - network(add_noise(x, eps, logsnr), logsnr)).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# --- Scoring --------------------------------------------------------------------------------


def forward_passes(
    denoiser: Callable[[Tensor, Tensor], Any], z: Tensor, logsnr: Tensor, n_passes: int
) -> None:
    """Evaluate a denoiser on the same batch several times, divided among workers."""

    @torch.no_grad()
    def evaluate(_: int) -> None:
        denoiser(z, logsnr)

    map_in_workers(evaluate, range(n_passes), "cpu")


# --- Matrix products ------------------------------------------------------------------------


def linear_products(denoiser: nn.Module, z: Tensor, logsnr: Tensor) -> list[Product]:
    """Return the sizes (m, k, n) of the products (m, k) by (k, n) of a forward pass."""
    products: list[Product] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        products.append((len(inputs[0]), layer.in_features, layer.out_features))

    layers = [layer for layer in denoiser.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        denoiser(z, logsnr)
    for hook in hooks:
        hook.remove()
    return products


def with_backward(products: list[Product]) -> list[Product]:
    """Return the products and those of their gradients by both factors."""
    return [size for m, k, n in products for size in ((m, k, n), (m, n, k), (k, m, n))]


def multiply(products: list[Product]) -> Callable[[int], None]:
    """Return a function that does the products once, in single precision."""
    factors = [(torch.ones(m, k), torch.ones(k, n)) for m, k, n in products]

    @torch.no_grad()
    def evaluate(_: int) -> None:
        for left, right in factors:
            torch.mm(left, right)

    return evaluate


# --- Measurements ---------------------------------------------------------------------------


def measure(n_columns: int, seed: int, repeats: int, quick: bool) -> Record:
    """Return the rates and the ratios of all repeats."""
    n_epochs, n_steps, n_rows, n_scored = (1, 20, 500, 50) if quick else (20, 100, 8000, 1000)
    X = curved_rows(n_rows + n_scored, n_columns, seed)
    rounds = [measure_once(X[:n_rows], X[n_rows:], n_epochs, n_steps, seed) for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in rounds[0]}


def measure_once(X: Array, X_scored: Array, n_epochs: int, n_steps: int, seed: int) -> Record:
    """Return the rates of one repeat, in noisy rows per second, and their ratios."""
    estimator, loop_seconds = fit(X, n_epochs, n_steps, seed)
    return {
        **training_rates(estimator, X, loop_seconds, n_epochs * n_steps),
        **scoring_rates(estimator, X_scored),
    }


def training_rates(
    estimator: IMMSEDensity, X: Array, loop_seconds: float, n_steps: int
) -> dict[str, float]:
    """Return the rates of training and their ratios."""
    denoiser = estimator.net_.module_.denoiser
    rows = torch.from_numpy(X.astype(np.float32))
    one_thread = run_interruptibly(
        lambda _: seconds_of(lambda: bare_training(denoiser, rows, n_steps))
    )
    several = seconds_of(lambda: bare_training(denoiser, rows, n_steps))
    sizes = linear_products(denoiser, rows[:BATCH_SIZE], torch.zeros(len(rows[:BATCH_SIZE])))
    product = multiply(with_backward([(BATCH_SIZE, k, n) for _, k, n in sizes]))
    products = run_interruptibly(
        lambda _: seconds_of(lambda: [product(step) for step in range(n_steps)])
    )
    n_noisy = n_steps * BATCH_SIZE
    return {
        "fit_loop": n_noisy / loop_seconds,
        "bare_loop_one_thread": n_noisy / one_thread,
        "bare_loop": n_noisy / several,
        "training_ratio": min(one_thread, several) / loop_seconds,
        "training_products": products / loop_seconds,
    }


def scoring_rates(estimator: IMMSEDensity, X: Array) -> dict[str, float]:
    """Return the rates of scoring and their ratios; not a number if nothing is to integrate."""
    model = estimator._model
    rule = model.rule
    names = ("score", "forward_network", "forward_all")
    names = (*names, "scoring_ratio_network", "scoring_ratio_all", "scoring_products")
    if rule is None:
        return dict.fromkeys(names, math.nan)
    n_evaluations = int(evaluations_of_rows(estimator, X).sum())
    batch = min(model.budget, n_evaluations)
    n_passes = math.ceil(n_evaluations / batch)
    z, logsnr = torch.randn(batch, X.shape[1]), torch.zeros(batch)
    network, paired = estimator.net_.module_.averaged, model.paired()
    z_all, logsnr_all = z.to(model.precision), logsnr.to(model.precision)
    product = multiply(linear_products(network, z, logsnr))
    scoring = seconds_of(lambda: estimator.score_samples(X))
    of_network = seconds_of(lambda: forward_passes(network, z, logsnr, n_passes))
    of_all = seconds_of(lambda: forward_passes(paired, z_all, logsnr_all, n_passes))
    products = seconds_of(lambda: map_in_workers(product, range(n_passes), "cpu"))
    rates = [batch * n_passes / seconds for seconds in (scoring, of_network, of_all)]
    ratios = [seconds / scoring for seconds in (of_network, of_all, products)]
    return dict(zip(names, rates + ratios, strict=True))


def format_rates(records: list[Record]) -> str:
    """Return a Markdown table of the median rates, in thousands of noisy rows per second."""
    body = [
        [
            str(record["columns"]),
            *(f"{statistics.median(record[name]) / 1e3:.0f}" for name in RATES),
        ]
        for record in records
    ]
    return format_markdown(["columns", *RATES.values()], body)


def format_ratios(records: list[Record]) -> str:
    """Return a Markdown table of the medians and the ranges of the ratios."""
    body = [
        [str(record["columns"]), *(median_and_range(record[name]) for name in RATIOS)]
        for record in records
    ]
    return format_markdown(["columns", *RATIOS.values()], body)


def median_and_range(values: list[float]) -> str:
    """Return the median of values, with the smallest and the largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", nargs="+", type=int, default=[2, 10, 20])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--threads", type=int, help="threads of torch and of linear algebra")
    parser.add_argument("--quick", action="store_true", help="few rows and steps, as a test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.columns, arguments.repeats = [2], 1
    return arguments


def main() -> None:
    """Measure what the results file lacks and print the tables."""
    arguments = parse_arguments()
    import_late_modules()
    results = ResultsFile(arguments.output)
    records = []
    with use_threads(arguments.threads):
        for n_columns in arguments.columns:
            key = {
                "dataset": f"{n_columns} columns",
                "seed": arguments.seed,
                "method": "throughput",
                "setting": f"{arguments.repeats} repeats, threads {arguments.threads}"
                + (", quick" if arguments.quick else ""),
            }
            record = results.find(**key)
            if record is None:
                measured = measure(n_columns, arguments.seed, arguments.repeats, arguments.quick)
                record = results.add({**key, "columns": n_columns, **measured})
            records.append(record)
    print(
        f"Noisy rows per second, thousands, medians of {arguments.repeats} repeats\n\n"
        f"{format_rates(records)}\n\n"
        f"Ratios, medians (least to greatest)\n\n{format_ratios(records)}\n\n"
        f"{describe_runs(records)}"
    )


if __name__ == "__main__":
    main()
