"""Pictures of a fitted density: all displays on one real table.

The table is scikit-learn's `load_breast_cancer`: 569 tumours, of whose 30 measurements the script
takes six means. It fits a density, an ensemble and an outlier detector, and draws

- `mse_curve.png`: squared errors per log-SNR, and what experts gain over the Gaussian;
- `bound_history.png`: the bound on training and validation rows, epoch by epoch;
- `density_contour.png`: the log-density of two columns, and a cut through that of all six;
- `ensemble_weights.png`: the weights in the density, and those of the members of an ensemble;
- `outlier_explanation.png`: which measurements make a tumour an outlier among benign ones;
- `sample_pairs.png`: samples of the density beside the rows.

Run `python examples/displays.py` (a minute or two), or add `--quick` to see that it runs.
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

COLUMNS = ["radius", "texture", "smoothness", "compactness", "concavity", "symmetry"]
PAIR = ["radius", "texture"]


def measurements():
    """Return six measurements of each tumour as a data frame, and which tumours are benign."""
    bunch = load_breast_cancer(as_frame=True)
    X = bunch.data[[f"mean {name}" for name in COLUMNS]].set_axis(COLUMNS, axis=1)
    return X, bunch.target.to_numpy() == 1


def two_panels(width=12.0, height=4.6):
    return plt.subplots(1, 2, figsize=(width, height), layout="constrained")[1]


def save(display, path):
    """Save the figure of a display."""
    display.figure_.savefig(path, dpi=120)
    plt.close(display.figure_)
    print(path)


def draw_density(est, X, settings, n_grid, output):
    """Draw what one density has: errors, training, contours, samples."""
    left, right = two_panels()
    # Without rows the curve is that on the validation rows; on training rows it would flatter.
    curve = MSECurveDisplay.from_estimator(est, ax=left)
    save(curve.plot(right, quantity="gain"), output / "mse_curve.png")

    save(BoundHistoryDisplay.from_estimator(est), output / "bound_history.png")

    left, right = two_panels()
    plane = IMMSEDensity(**settings).fit(X[PAIR])
    DensityContourDisplay.from_estimator(plane, X[PAIR], grid_resolution=n_grid, ax=left)
    left.set_title("both columns alone", fontsize="small")
    cut = DensityContourDisplay.from_estimator(
        est, X, columns=PAIR, fixed={"concavity": 0.2}, grid_resolution=n_grid, ax=right
    )
    save(cut, output / "density_contour.png")

    samples = SamplePairDisplay.from_estimator(est, X, columns=COLUMNS[:4], random_state=0)
    save(samples, output / "sample_pairs.png")


def draw_weights(est, X, settings, output):
    """Draw the weights of the experts of a density, and of the members of an ensemble."""
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
    save(weights, output / "ensemble_weights.png")


def explain_outlier(X, benign, output):
    """Draw why the malignant tumour of lowest score does not look benign."""
    detector = IMMSEOutlierDetector(contamination=0.05, random_state=0).fit(X[benign])
    worst = int(np.argmin(detector.score_samples(X)))
    display = OutlierExplanationDisplay.from_estimator(detector, X, worst, name=f"tumour {worst}")
    save(display, output / "outlier_explanation.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("displays"), help="folder to fill")
    parser.add_argument("--quick", action="store_true", help="few rows and epochs, coarse grids")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {"random_state": 0}
    if args.quick:
        settings |= {"max_epochs": 2, "steps_per_epoch": 10, "hidden_size": 32}

    X, benign = measurements()
    if args.quick:
        X, benign = X[::3], benign[::3]
    est = IMMSEDensity(**settings).fit(X)
    draw_density(est, X, settings, 16 if args.quick else 60, args.output)
    draw_weights(est, X, settings, args.output)
    explain_outlier(X, benign, args.output)


if __name__ == "__main__":
    main()
