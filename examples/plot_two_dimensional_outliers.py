"""
Outlier detectors on two-dimensional sets
=========================================

In the style of scikit-learn's comparison of outlier detectors: each row of the picture is a set of
inliers with 15% uniform outliers, each column a detector that is told this share. Lines are the
borders between inliers and outliers, the colours of the points the detector's verdicts, the numbers
the seconds of fitting. The last column is the detector of this library with a network of a few
epochs.

Run ``python examples/plot_two_dimensional_outliers.py``, which saves
``two_dimensional_outliers.png``, or add ``--quick`` to see that it runs.
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_blobs, make_moons
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from sk_itdiffusion import IMMSEDensity, IMMSEOutlierDetector

BLUE, ORANGE = "#0072B2", "#D55E00"
SHARE = 0.15  # of outliers

parser = argparse.ArgumentParser(description="Outlier detectors on two-dimensional sets.")
parser.add_argument("--output", type=Path, default=Path(), help="folder for the picture")
parser.add_argument("--quick", action="store_true", help="few rows, two sets, coarse grids")
args = parser.parse_args()
n_rows, n_grid, n_epochs = (120, 20, 1) if args.quick else (300, 80, 5)
n_outliers = round(SHARE * n_rows)
n_inliers = n_rows - n_outliers

# %%
# Five sets of inliers
# --------------------

settings = {"n_samples": n_inliers, "n_features": 2, "random_state": 0}
rng = np.random.default_rng(42)
sets = {
    "one blob": make_blobs(centers=[[0, 0], [0, 0]], cluster_std=0.5, **settings)[0],
    "two blobs": make_blobs(centers=[[2, 2], [-2, -2]], cluster_std=[0.5, 0.5], **settings)[0],
    "unequal blobs": make_blobs(centers=[[2, 2], [-2, -2]], cluster_std=[1.5, 0.3], **settings)[0],
    "moons": 4.0 * (make_moons(n_samples=n_inliers, noise=0.05, random_state=0)[0] - [0.5, 0.25]),
    "uniform": 14.0 * (rng.random((n_inliers, 2)) - 0.5),
}
if args.quick:
    sets = {name: sets[name] for name in ("two blobs", "moons")}

# %%
# Five detectors
# --------------

network = IMMSEDensity(marginals="standard", max_epochs=n_epochs)
detectors = {
    "one-class SVM": OneClassSVM(nu=SHARE, gamma=0.1),
    "isolation forest": IsolationForest(contamination=SHARE, random_state=42),
    "local outlier factor": LocalOutlierFactor(n_neighbors=35, contamination=SHARE, novelty=True),
    "IMMSE": IMMSEOutlierDetector(contamination=SHARE, random_state=0),
    "IMMSE, network": IMMSEOutlierDetector(network, contamination=SHARE, random_state=0),
}

# %%
# All of them
# -----------


def draw(ax, detector, X, grid):
    """Fit a detector, draw its border and its verdicts, and write the seconds that it took."""
    xx, yy = grid
    start = time.perf_counter()
    detector.fit(X)
    seconds = time.perf_counter() - start
    verdicts = detector.predict(X)
    border = detector.decision_function(np.column_stack([xx.ravel(), yy.ravel()]))
    if border.min() < 0 < border.max():
        ax.contour(xx, yy, border.reshape(xx.shape), levels=[0], linewidths=1.5, colors="black")
    ax.scatter(*X.T, s=4, c=np.where(verdicts == 1, BLUE, ORANGE), lw=0)
    ax.set(xlim=(-7, 7), ylim=(-7, 7), xticks=[], yticks=[], aspect="equal")
    ax.text(0.98, 0.02, f"{seconds:.1f} s", transform=ax.transAxes, ha="right", size=9)


axis = np.linspace(-7, 7, n_grid)
grid = np.meshgrid(axis, axis)
size = (2.2 * len(detectors), 2.2 * len(sets) + 0.3)
fig, axes = plt.subplots(len(sets), len(detectors), figsize=size, layout="constrained")
for ax, name in zip(axes[0], detectors, strict=True):
    ax.set_title(name, size=11)
for row, (set_name, inliers) in zip(axes, sets.items(), strict=True):
    outliers = np.random.default_rng(18).uniform(-6, 6, size=(n_outliers, 2))
    X = np.vstack([inliers, outliers])
    row[0].set_ylabel(set_name)
    for ax, detector in zip(row, detectors.values(), strict=True):
        draw(ax, detector, X, grid)

args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "two_dimensional_outliers.png", dpi=130)
