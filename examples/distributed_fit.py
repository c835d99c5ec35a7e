"""
One density fitted by several processes
=======================================

A wide network takes long to train on one device. Here several processes share one fit: each works
on its part of every batch, and the result is that of one process, up to rounding. The script draws
rows from five Gaussians in ten dimensions and fits them; the first process prints the mean
log-likelihood of new rows alongside that of the true density, and saves ``density.safetensors`` and
a picture of both log-densities::

    torchrun --nproc-per-node 2 examples/distributed_fit.py
    accelerate launch --multi_gpu --num_processes 2 examples/distributed_fit.py

.. image:: /images/distributed_fit.png
   :alt: Estimated against true log-densities of new rows

The picture is that of two processes on a CPU, with ``--hidden-size 128 --batch-size 512``. Each
process takes the GPU of its rank if there are GPUs, and some of the cores of the CPU otherwise.
Started by ``python``, the script fits in one process. Add ``--quick`` to see that it runs.
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
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
            args.output.mkdir(parents=True, exist_ok=True)
            report(density, truth, X_new[:1000], processes.size, seconds)
            draw(density, truth, X_new[:1000], args.output / "distributed_fit.png")
            density.save(args.output / "density.safetensors")


def report(density, truth, X_new, n_processes, seconds):
    """Print how well and how fast the density was fitted."""
    print(f"{n_processes} processes of {torch.get_num_threads()} threads: {seconds:.1f} s")
    print(f"mean log-likelihood of new rows: {density.score(X_new):.3f} nats")
    print(f"under the true density:          {truth.log_prob(X_new).mean():.3f} nats")


def draw(density, truth, X_new, path):
    """Draw the estimated against the true log-densities."""
    exact, estimated = truth.log_prob(X_new), density.score_samples(X_new)
    fig, ax = plt.subplots(figsize=(5, 4.5), layout="constrained")
    ax.scatter(exact, estimated, s=8, color="#0072B2", alpha=0.6, lw=0)
    ax.axline((exact.mean(), exact.mean()), slope=1.0, color="#777777", ls="--", lw=1)
    ax.set(xlabel="true log-density of new rows (nats)", ylabel="estimated log-density (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=100)
    plt.close(fig)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "images/distributed_fit.png"
