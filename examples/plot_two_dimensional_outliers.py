"""
Five outlier detectors on five two-dimensional data sets
========================================================

What shape does a detector consider normal? In the style of scikit-learn's comparison of outlier
detectors, each row of the picture is a data set with 15% uniform outliers, and each column is a
detector that is told this share. Black lines are decision boundaries, orange points are those
predicted to be outliers, and the numbers are seconds of fitting. The last two columns are
:class:`~sk_itdiffusion.IMMSEOutlierDetector` without a network and with one that is trained for a
few epochs.

``python examples/plot_two_dimensional_outliers.py`` saves ``two_dimensional_outliers.png``;
``--quick`` shows that it runs.
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

# sphinx_gallery_start_ignore
parser = argparse.ArgumentParser(description="Outlier detectors on two-dimensional sets.")
parser.add_argument("--output", type=Path, default=Path(), help="folder for the picture")
parser.add_argument("--quick", action="store_true", help="few rows, two sets, coarse grids")
args = parser.parse_args()
# sphinx_gallery_end_ignore
n_rows, n_grid, n_epochs = 300, 80, 5
# sphinx_gallery_start_ignore
if args.quick:
    n_rows, n_grid, n_epochs = 120, 20, 1
# sphinx_gallery_end_ignore
n_outliers = round(SHARE * n_rows)
n_inliers = n_rows - n_outliers

# %%
# Five data sets
# --------------

settings = {"n_samples": n_inliers, "n_features": 2, "random_state": 0}
rng = np.random.default_rng(42)
sets = {
    "one blob": make_blobs(centers=[[0, 0], [0, 0]], cluster_std=0.5, **settings)[0],
    "two blobs": make_blobs(centers=[[2, 2], [-2, -2]], cluster_std=[0.5, 0.5], **settings)[0],
    "unequal blobs": make_blobs(centers=[[2, 2], [-2, -2]], cluster_std=[1.5, 0.3], **settings)[0],
    "moons": 4.0 * (make_moons(n_samples=n_inliers, noise=0.05, random_state=0)[0] - [0.5, 0.25]),
    "uniform": 14.0 * (rng.random((n_inliers, 2)) - 0.5),
}
# sphinx_gallery_start_ignore
if args.quick:
    sets = {name: sets[name] for name in ("two blobs", "moons")}
# sphinx_gallery_end_ignore

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
# All of them in one picture
# --------------------------


def draw(ax, detector, X, grid):
    """Fit a detector; draw its decision boundary, its predictions, and the seconds it took."""
    xx, yy = grid
    start = time.perf_counter()
    detector.fit(X)
    seconds = time.perf_counter() - start
    labels = detector.predict(X)
    boundary = detector.decision_function(np.column_stack([xx.ravel(), yy.ravel()]))
    if boundary.min() < 0 < boundary.max():
        ax.contour(xx, yy, boundary.reshape(xx.shape), levels=[0], linewidths=1.5, colors="black")
    ax.scatter(*X.T, s=4, c=np.where(labels == 1, BLUE, ORANGE), lw=0)
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

# sphinx_gallery_start_ignore
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "two_dimensional_outliers.png", dpi=130)
# sphinx_gallery_end_ignore
