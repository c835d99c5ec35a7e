"""Densities of five 2-D sets while the network trains, and what it gains per log-SNR.

For each of the demonstration sets of the paper the script draws the contours of log p after more
and more epochs, and the error curve of the last fit beside that of the Gaussian: half the area
between the two is the information, in nats per row, that the Gaussian misses. It also writes
`dino.png`, the picture in the README: data, density and samples drawn from the model.

Run `python examples/density_2d.py` (some minutes) or add `--quick` (small and coarse).
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
DEPTH = 8.0  # nats below the highest density at which the colours end


def grid_around(X, n):
    """Return (n, n) coordinate arrays that cover the data with a margin, and the flat points."""
    low, high = X.min(axis=0), X.max(axis=0)
    margin = 0.15 * (high - low)
    axes = [np.linspace(a, b, n) for a, b in zip(low - margin, high + margin, strict=True)]
    xx, yy = np.meshgrid(*axes)
    return xx, yy, np.column_stack([xx.ravel(), yy.ravel()])


def draw_density(ax, est, grid, X=None):
    """Fill the contours of log p; overlay the data where given."""
    xx, yy, points = grid
    log_p = est.score_samples(points).reshape(xx.shape)
    top = log_p.max()
    filled = ax.contourf(
        xx,
        yy,
        np.maximum(log_p, top - DEPTH),
        levels=np.linspace(top - DEPTH, top, 17),
        cmap="viridis",
    )
    if X is not None:
        ax.scatter(*X[:300].T, s=2, c="white", alpha=0.6, lw=0)
    bare(ax)
    return filled


def draw_curve(ax, curve):
    """Draw the model's and the Gaussian's error per log-SNR and shade the gap."""
    gaussian = curve.references["gaussian"]
    ax.plot(curve.logsnr, gaussian, color=GREY, ls="--", label="Gaussian")
    ax.plot(curve.logsnr, curve.model, color=BLUE, label="model")
    ax.fill_between(curve.logsnr, curve.model, gaussian, color=BLUE, alpha=0.2, lw=0)
    ax.set(xlabel="log signal-to-noise ratio", ylabel=r"$E|\epsilon-\hat\epsilon|^2$")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")


def bare(ax):
    ax.set(xticks=[], yticks=[], aspect="equal")


def figure_of_training(name, X, stages, n_grid, path):
    """Draw one set: a panel for each number of epochs, then the error curve of the last fit."""
    grid = grid_around(X, n_grid)
    fig, axes = plt.subplots(
        1,
        len(stages) + 1,
        figsize=(2.6 * len(stages) + 3.6, 3.0),
        width_ratios=[1.0] * len(stages) + [1.3],
        layout="constrained",
    )
    for ax, epochs in zip(axes, stages, strict=False):
        # The network alone: with the analytic experts beside it even the first epoch looks good.
        est = IMMSEDensity(
            max_epochs=epochs,
            reference="gaussian",
            marginals="standard",
            experts=["network"],
            random_state=0,
        ).fit(X)
        draw_density(ax, est, grid, X)
        ax.set_title(f"{epochs} epoch{'s' if epochs > 1 else ''}: {est.score(X):.2f} nats")
    draw_curve(axes[-1], est.mse_curve(X))
    fig.suptitle(name.replace("_", " "))
    fig.savefig(path, dpi=130)
    plt.close(fig)
    print(path)


def figure_of_dino(X, settings, n_grid, path):
    """Draw data, density and samples of the dino side by side."""
    est = IMMSEDensity(random_state=0, **settings).fit(X)
    samples = est.sample(len(X), random_state=0)
    grid = grid_around(X, n_grid)
    fig, axes = plt.subplots(
        1, 3, figsize=(10.5, 4.0), layout="constrained", sharex=True, sharey=True
    )
    for ax, points, title in (
        (axes[0], X, f"{len(X)} rows of data"),
        (axes[2], samples, f"{len(samples)} samples of the model"),
    ):
        ax.scatter(*points.T, s=3, color=BLUE, lw=0)
        ax.set_title(title)
        bare(ax)
    filled = draw_density(axes[1], est, grid)
    axes[1].set_title("log-density")
    fig.colorbar(filled, ax=axes, label="log p (nats)", shrink=0.8)
    fig.savefig(path, dpi=130)
    plt.close(fig)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("density_2d"), help="folder for the pictures"
    )
    parser.add_argument("--quick", action="store_true", help="few rows, few epochs, coarse grids")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    n_rows, n_grid = (500, 24) if args.quick else (4000, 90)
    stages = (1, 2) if args.quick else (1, 3, 10, 40)

    for name, make in SETS.items():
        X = make(n_rows, random_state=0)
        figure_of_training(name, X, stages, n_grid, args.output / f"{name}.png")
    X = datasets.make_dino(n_rows, random_state=0)
    settings = {"max_epochs": 2} if args.quick else {}
    figure_of_dino(X, settings, n_grid, args.output / "dino_samples.png")


if __name__ == "__main__":
    main()
