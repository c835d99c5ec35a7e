"""
Pictures of a fitted density
============================

All displays on one real table: scikit-learn's ``load_breast_cancer``, 569 tumours, of whose 30
measurements six means are taken. A density, an ensemble and an outlier detector are fitted, and
their displays are saved as pictures in a folder.

Run ``python examples/plot_displays.py`` (about a minute), or add ``--quick`` to see that it runs.
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


# %%
# The table, and one density of it
# --------------------------------

settings = {"random_state": 0}
if args.quick:
    settings |= {"max_epochs": 2, "steps_per_epoch": 10, "hidden_size": 32}

columns = ["radius", "texture", "smoothness", "compactness", "concavity", "symmetry"]
bunch = load_breast_cancer(as_frame=True)
X = bunch.data[[f"mean {name}" for name in columns]].set_axis(columns, axis=1)
benign = bunch.target.to_numpy() == 1
if args.quick:
    X, benign = X[::3], benign[::3]

est = IMMSEDensity(**settings).fit(X)

# %%
# Squared errors per log-SNR
# --------------------------
#
# Half the area between the curve of the Gaussian and that of the model is what the model gains in
# nats per row; on the right the same as a gain over the Gaussian. Without rows the curve is that on
# the validation rows; on training rows it would flatter.

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
# On the left a density fitted to both columns alone, on the right a cut through that of all six.

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
# Samples beside the rows
# -----------------------

samples = SamplePairDisplay.from_estimator(est, X, columns=columns[:4], random_state=0)
save(samples, "sample_pairs.png")

# %%
# Weights per log-SNR
# -------------------
#
# Each density weights its network and its references anew at each log-SNR (left), and an ensemble
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
# The malignant tumour of lowest score, under a density of the benign ones.

detector = IMMSEOutlierDetector(contamination=0.05, random_state=0).fit(X[benign])
worst = int(np.argmin(detector.score_samples(X)))
display = OutlierExplanationDisplay.from_estimator(detector, X, worst, name=f"tumour {worst}")
save(display, "outlier_explanation.png")
