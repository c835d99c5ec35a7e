"""Densities of five 2-D sets while the network trains
====================================================

For each of the demonstration sets of the paper the script draws log p after more and more epochs,
and the error curve of the last fit alongside that of the Gaussian: half the area between the two is
the information, in nats per row, that the Gaussian misses.

.. image:: /images/two_circles.png
   :alt: Densities of two circles after 1, 3, 10 and 40 epochs, and the error curves of the last

It also writes ``dino_samples.png``: data, density and samples drawn from the model.

.. image:: /images/dino.png
   :alt: Rows of the dino set, the density fitted to them, and samples of the model

Run ``python examples/density_2d.py`` (some minutes), or add ``--quick`` to see that it runs.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from sk_itdiffusion import IMMSEDensity, datasets

SETS = {
    "correlated_gaussian": datasets.make_correlated_gaussian,
    "two_moons": datasets.make_two_moons,
    "square": datasets.make_square,
    "two_circles": datasets.make_two_circles,
    "dino": datasets.make_dino,
}
BLUE, GREY = "#0072B2", "#777777"
DEPTH = 8  # nats below the highest density at which the colours end


def grid_around(X, n):
    """Return coordinate arrays of shape (n, n) around the data, with a margin."""
    low, high = X.min(axis=0), X.max(axis=0)
    margin = 0.12 * (high - low)
    x, y = np.linspace(low - margin, high + margin, n).T
    return np.meshgrid(x, y)


def draw_density(ax, est, grid, X):
    """Fill the contours of log p, from the highest among the rows downwards."""
    xx, yy = grid
    log_p = est.score_samples(np.column_stack([xx.ravel(), yy.ravel()])).reshape(xx.shape)
    top = np.ceil(est.score_samples(X).max())
    levels = np.linspace(top - DEPTH, top, 4 * DEPTH + 1)
    filled = ax.contourf(xx, yy, log_p, levels=levels, cmap="viridis", extend="both")
    bare(ax)
    return filled


def draw_curve(ax, curve):
    """Draw the errors of model and Gaussian per log-SNR and shade the gap."""
    gaussian = curve.references["gaussian"]
    ax.plot(curve.logsnr, gaussian, color=GREY, ls="--", label="Gaussian")
    ax.plot(curve.logsnr, curve.model, color=BLUE, label="model")
    ax.fill_between(curve.logsnr, curve.model, gaussian, color=BLUE, alpha=0.2, lw=0)
    ax.set(xlabel="log signal-to-noise ratio", ylabel=r"$E|\epsilon-\hat\epsilon|^2$")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")


def bare(ax):
    ax.set(xticks=[], yticks=[], aspect="equal")


def figure_of_training(X, X_new, stages, n_grid, path):
    """Draw one set: a panel for each number of epochs, then the error curve of the last fit."""
    grid = grid_around(X, n_grid)
    n = len(stages)
    height, width = np.ptp(grid[1]), np.ptp(grid[0])
    fig, axes = plt.subplots(
        1,
        n + 1,
        figsize=(2.4 * n + 3.4, 2.4 * max(0.8, height / width) + 0.4),
        width_ratios=[1.0] * n + [1.3],
        layout="constrained",
    )
    for ax, epochs in zip(axes[:-1], stages, strict=True):
        # The network alone: with the analytic experts alongside it even the first epoch looks good.
        est = IMMSEDensity(
            reference="gaussian",
            experts=["network"],
            marginals="standard",
            max_epochs=epochs,
            random_state=0,
        ).fit(X)
        draw_density(ax, est, grid, X)
        ax.scatter(*X[:200].T, s=1.5, c="white", alpha=0.6, lw=0)
        unit = "epoch" if epochs == 1 else "epochs"
        ax.set_title(f"{epochs} {unit}: {est.score(X_new):.2f} nats")
    draw_curve(axes[-1], est.mse_curve(X_new))
    fig.savefig(path, dpi=130)
    plt.close(fig)
    print(path)


def figure_of_dino(X, settings, n_grid, path):
    """Draw data, density and samples of the dino side by side."""
    est = IMMSEDensity(random_state=0, **settings).fit(X)
    samples = est.sample(len(X), random_state=0)
    grid = grid_around(X, n_grid)
    fig, axes = plt.subplots(
        1, 3, figsize=(10, 4.2), layout="constrained", sharex=True, sharey=True
    )
    for ax, points, title in (
        (axes[0], X, f"{len(X)} rows of data"),
        (axes[2], samples, f"{len(samples)} samples of the model"),
    ):
        ax.scatter(*points.T, s=3, color=BLUE, alpha=0.5, lw=0)
        ax.set_title(title)
        bare(ax)
    filled = draw_density(axes[1], est, grid, X)
    axes[1].set_title("fitted density")
    top = filled.levels[-1]
    bar = fig.colorbar(filled, ax=axes, label="log p (nats)", shrink=0.8, extend="neither")
    bar.set_ticks(np.arange(top - DEPTH, top + 1, 2))
    fig.savefig(path, dpi=130)
    plt.close(fig)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("density_2d"), help="folder to fill")
    parser.add_argument("--quick", action="store_true", help="few rows, few epochs, coarse grids")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    n_rows, n_grid, stages = (500, 20, (1, 2)) if args.quick else (4000, 80, (1, 3, 10, 40))

    X = datasets.make_dino(n_rows, jitter=1.0, random_state=0)
    settings = {"max_epochs": 2} if args.quick else {}
    figure_of_dino(X, settings, 2 * n_grid, args.output / "dino_samples.png")
    for name, make in SETS.items():
        X, X_new = (make(n_rows, random_state=seed) for seed in (0, 1))
        figure_of_training(X, X_new, stages, n_grid, args.output / f"{name}.png")


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "images/dino.png"
