"""Log-densities of a real table, beside two classical estimators.

The table is scikit-learn's `load_breast_cancer`: 569 tumours, 30 measurements each. The script

1. holds out a quarter of the rows and prints their mean log-likelihood, in nats per row and in the
   units of the columns, under `IMMSEDensity` (as it comes, on the raw columns), `KernelDensity` and
   `GaussianMixture` (both on standardised columns, their settings chosen by cross-validation);
2. fits a second density to benign tumours only, and asks how far malignant ones lie outside it;
3. saves a picture of both, `quickstart.png`.

Run `python examples/quickstart.py`; `--quick` trains for a few epochs only, to see that it runs.
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sk_itdiffusion import IMMSEDensity

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"  # told apart by colour-blind eyes too


def classical(density, grid):
    """Search the grid by cross-validation, on standardised columns."""
    pipeline = Pipeline([("scale", StandardScaler()), ("density", density)])
    return GridSearchCV(pipeline, {f"density__{name}": values for name, values in grid.items()})


def log_density(search, X):
    """Log-density in the units of X: the standardisation's Jacobian is added."""
    pipeline = search.best_estimator_
    return pipeline.score_samples(X) - np.log(pipeline["scale"].scale_).sum()


def compare(X_train, X_test, settings):
    """Fit the three estimators and return them with the log-densities of the held-out rows."""
    searches = {
        "KernelDensity": classical(KernelDensity(), {"bandwidth": np.geomspace(0.1, 2.0, 16)}),
        "GaussianMixture": classical(
            GaussianMixture(random_state=0),
            {
                "n_components": [1, 2, 3, 4, 6, 8],
                "covariance_type": ["full", "tied", "diag"],
                "reg_covar": [1e-6, 1e-3, 1e-2],
            },
        ),
    }
    scores, seconds = {}, {}
    for name, search in searches.items():
        start = time.perf_counter()
        scores[name] = log_density(search.fit(X_train), X_test)
        seconds[name] = time.perf_counter() - start
    start = time.perf_counter()
    model = IMMSEDensity(random_state=0, **settings).fit(X_train)
    scores["IMMSEDensity"] = model.score_samples(X_test)
    seconds["IMMSEDensity"] = time.perf_counter() - start
    return model, scores, seconds


def report(scores, seconds):
    """Print the held-out means, and how far each is behind the first, row by row."""
    ours = scores["IMMSEDensity"]
    print(f"Mean log-likelihood of {len(ours)} held-out rows, nats per row (+- standard error)\n")
    print(f"  {'':16} {'mean':>8} {'':8} {'IMMSEDensity is better by':>27} {'seconds':>9}")
    for name in ("IMMSEDensity", "GaussianMixture", "KernelDensity"):
        mean, error = scores[name].mean(), standard_error(scores[name])
        gain = ours - scores[name]
        by = f"{gain.mean():.2f} +- {standard_error(gain):.2f}" if name != "IMMSEDensity" else ""
        print(f"  {name:16} {mean:8.2f} +- {error:5.2f} {by:>27} {seconds[name]:9.1f}")


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


def draw(curve, benign, malignant, auc, path):
    """Draw the error curves and the scores of the two kinds of tumours."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    reference = curve.references["gaussian"]
    left.plot(curve.logsnr, reference, color=GREY, ls="--", label="best linear denoiser (Gaussian)")
    left.plot(curve.logsnr, curve.model, color=BLUE, label="model")
    left.fill_between(curve.logsnr, curve.model, reference, color=BLUE, alpha=0.2, lw=0)
    left.set(
        xlabel="log signal-to-noise ratio",
        ylabel=r"squared error $E|\epsilon-\hat\epsilon|^2$",
        title="Half the shaded area: nats gained over a Gaussian",
    )
    left.legend(frameon=False)

    low = np.percentile(benign, 1) - 100  # what lies below goes into the first bin
    bins = np.linspace(low, max(benign.max(), malignant.max()), 41)
    for values, colour, label in (
        (benign, BLUE, f"benign, held out ({len(benign)})"),
        (malignant, ORANGE, f"malignant ({len(malignant)})"),
    ):
        right.hist(np.clip(values, low, None), bins, color=colour, alpha=0.65, label=label)
    right.set(
        xlabel=f"log-density fitted to benign tumours (nats; below {low:.0f} in the first bin)",
        ylabel="tumours",
        title=f"Malignant tumours are improbable: area under ROC {auc:.3f}",
    )
    right.legend(frameon=False, loc="upper left")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(), help="folder for quickstart.png")
    parser.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    args = parser.parse_args()
    settings = {"max_epochs": 3} if args.quick else {}

    X, y = load_breast_cancer(return_X_y=True, as_frame=True)  # y: 1 is benign
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

    model, scores, seconds = compare(X_train, X_test, settings)
    report(scores, seconds)

    normal = IMMSEDensity(random_state=0, **settings).fit(X_train[y_train == 1])
    log_p = normal.score_samples(X_test)
    auc = roc_auc_score(y_test, log_p)
    print(f"\nDensity of benign tumours alone: it ranks benign above malignant with AUC {auc:.3f}")

    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "quickstart.png"
    draw(model.mse_curve(X_test), log_p[y_test == 1], log_p[y_test == 0], auc, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
