"""
One density fitted by several processes together
================================================

Each process works on its share of every batch; the result is that of one process, up to rounding.
Rows of five Gaussians in ten dimensions are drawn, fitted and scored, and the first process
prints the mean log-likelihood of new rows beside that of the true density, and saves
``density.safetensors``::

    torchrun --nproc-per-node 2 examples/distributed_fit.py
    accelerate launch --multi_gpu --num_processes 2 examples/distributed_fit.py

A process takes the GPU of its rank if there are GPUs, and else some of the processor's cores.
Started by ``python``, the script fits in one process. Add ``--quick`` to see that it runs.
"""

import argparse
import time
from pathlib import Path

import torch

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion.datasets import load_density
from sk_itdiffusion.distributed import shared_fit


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("distributed_fit"), help="folder")
    parser.add_argument("--quick", action="store_true", help="few rows, few epochs")
    parser.add_argument("--hidden-size", type=int, default=512, help="units of the hidden layers")
    parser.add_argument("--batch-size", type=int, default=4096, help="rows of all processes")
    args = parser.parse_args()
    if args.quick:
        args.hidden_size, args.batch_size = 32, 256

    truth = load_density("mixture_10d")
    n_rows, n_epochs = (2_000, 2) if args.quick else (100_000, 10)
    X, X_new = (truth.sample(n_rows, random_state=seed) for seed in (0, 1))
    density = IMMSEDensity(
        hidden_size=args.hidden_size,
        batch_size=args.batch_size,
        max_epochs=n_epochs,
        random_state=0,
    )
    with shared_fit() as processes:
        start = time.perf_counter()
        density.fit(X)
        seconds = time.perf_counter() - start
        if processes.rank == 0:
            report(density, truth, X_new[:1000], processes.size, seconds)
            args.output.mkdir(parents=True, exist_ok=True)
            density.save(args.output / "density.safetensors")


def report(density, truth, X_new, n_processes, seconds):
    """Print how well and how fast the density was fitted."""
    print(f"{n_processes} processes of {torch.get_num_threads()} threads: {seconds:.1f} s")
    print(f"mean log-likelihood of new rows: {density.score(X_new):.3f} nats")
    print(f"under the true density:          {truth.log_prob(X_new).mean():.3f} nats")


if __name__ == "__main__":
    main()
