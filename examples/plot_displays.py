"""
Pictures of a fitted density
============================

What has the model learned, at which scale, when did training stop, do its samples look like the
data, and why is this row an outlier? Each question has a display of `sk_itdiffusion.display`. They
are shown for a real table, six measurements of the 569 tumours of scikit-learn's
``load_breast_cancer``.

``python examples/plot_displays.py`` saves the pictures in a folder (about a minute); ``--quick``
shows that it runs.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble, IMMSEOutlierDetector
from sk_itdiffusion.display import (
    BoundHistoryDisplay,
    DensityContourDisplay,
    EnsembleWeightsDisplay,
    MSECurveDisplay,
    OutlierExplanationDisplay,
    SamplePairDisplay,
)

# sphinx_gallery_start_ignore
parser = argparse.ArgumentParser(description="Pictures of a fitted density.")
parser.add_argument("--output", type=Path, default=Path("displays"), help="folder to fill")
parser.add_argument("--quick", action="store_true", help="few rows and epochs, coarse grids")
args = parser.parse_args()


def two_panels(width=12.0, height=4.6):
    return plt.subplots(1, 2, figsize=(width, height), layout="constrained")[1]


def save(display, name):
    """Save the figure of a display."""
    args.output.mkdir(parents=True, exist_ok=True)
    display.figure_.savefig(args.output / name, dpi=120)


# sphinx_gallery_end_ignore

# %%
# The table, and one density of it
# --------------------------------

settings = {"random_state": 0}
# sphinx_gallery_start_ignore
if args.quick:
    settings |= {"max_epochs": 2, "steps_per_epoch": 10, "hidden_size": 32}
# sphinx_gallery_end_ignore

columns = ["radius", "texture", "smoothness", "compactness", "concavity", "symmetry"]
bunch = load_breast_cancer(as_frame=True)
X = bunch.data[[f"mean {name}" for name in columns]].set_axis(columns, axis=1)
benign = bunch.target.to_numpy() == 1
# sphinx_gallery_start_ignore
if args.quick:
    X, benign = X[::3], benign[::3]
# sphinx_gallery_end_ignore

est = IMMSEDensity(**settings).fit(X)

# %%
# Squared errors per log-SNR
# --------------------------
#
# Half the area between the curve of the Gaussian and that of the model is what the model gains, in
# nats per row; the panel on the right draws the gain itself. Unless rows are passed, the errors are
# those of the validation rows; training rows would make the model look better than it is.

left, right = two_panels()
curve = MSECurveDisplay.from_estimator(est, ax=left)
save(curve.plot(right, quantity="gain"), "mse_curve.png")

# %%
# The bound, epoch by epoch
# -------------------------

save(BoundHistoryDisplay.from_estimator(est), "bound_history.png")

# %%
# The density of two columns
# --------------------------
#
# Left: a density fitted to these two columns only. Right: a slice through the density of all six.

pair = ["radius", "texture"]
n_grid = 16 if args.quick else 60
left, right = two_panels()
plane = IMMSEDensity(**settings).fit(X[pair])
DensityContourDisplay.from_estimator(plane, X[pair], grid_resolution=n_grid, ax=left)
left.set_title("both columns alone", fontsize="small")
cut = DensityContourDisplay.from_estimator(
    est, X, columns=pair, fixed={"concavity": 0.2}, grid_resolution=n_grid, ax=right
)
save(cut, "density_contour.png")

# %%
# Synthetic rows next to real ones
# --------------------------------

samples = SamplePairDisplay.from_estimator(est, X, columns=columns[:4], random_state=0)
save(samples, "sample_pairs.png")

# %%
# Weights per log-SNR
# -------------------
#
# At each log-SNR a density weights its networks and its references (left), and an ensemble weights
# its members (right).

members = [
    ("small", IMMSEDensity(**(settings | {"hidden_size": 16}))),
    ("dropout", IMMSEDensity(**(settings | {"dropout": 0.3}))),
]
ensemble = IMMSEEnsemble(members, random_state=0).fit(X)
left, right = two_panels(13.0)
EnsembleWeightsDisplay.from_estimator(est, ax=left)
left.set_title("experts of one density")
weights = EnsembleWeightsDisplay.from_estimator(ensemble, ax=right)
right.set_title("members of an ensemble")
save(weights, "ensemble_weights.png")

# %%
# What makes a row an outlier
# ---------------------------
#
# The tumour of lowest score under a detector that was fitted to benign ones only: which
# measurements make it unusual?

detector = IMMSEOutlierDetector(contamination=0.05, random_state=0).fit(X[benign])
worst = int(np.argmin(detector.score_samples(X)))
display = OutlierExplanationDisplay.from_estimator(detector, X, worst, name=f"tumour {worst}")
save(display, "outlier_explanation.png")
