"""Outliers of two medical tables: their scores, p-values, and the columns that make them odd.

1. Breast tumours (569 rows, 30 columns, bundled with scikit-learn): the detector learns four
   fifths of the benign ones, and is shown the others and the malignant ones. Printed are the area
   under the ROC curve beside those of two other detectors, and the share of benign ones that are
   rejected, which is to be near the nominal rate.
2. Diabetes patients (442 rows, bundled too): a table of mixed types, since sex is a category. The
   oddest patients are listed with the columns that contribute most to it.

`outlier_detection.png` shows the scores of the tumours, and the contributions of the columns to
that of the oddest patient, less the median contributions.

Run `python examples/outlier_detection.py`, or add `--quick` to see that it runs.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_itdiffusion import IMMSEOutlierDetector

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
RATE = 0.1  # nominal share of inliers that are rejected
N_ODDEST = 3


def detect_tumours(quick):
    """Return the fitted detector, and the scores of new benign and of malignant tumours."""
    table = load_breast_cancer(as_frame=True)
    X, is_benign = table.data, table.target == 1
    if quick:
        X = X.iloc[:, :6]
    train, benign = train_test_split(X[is_benign], test_size=0.2, random_state=0)
    malignant = X[~is_benign]
    detector = IMMSEOutlierDetector(false_alarm_rate=RATE, random_state=0).fit(train)
    scores = detector.score_samples(benign), detector.score_samples(malignant)
    others = {
        "isolation forest": IsolationForest(random_state=0).fit(train),
        "local outlier factor": make_pipeline(
            StandardScaler(), LocalOutlierFactor(novelty=True)
        ).fit(train.to_numpy()),
    }
    print(f"Breast tumours: {len(train)} benign ones to learn, AUROC of new benign and malignant\n")
    print(f"  {'IMMSEOutlierDetector':22} {area(*scores):.3f}")
    for name, other in others.items():
        parts = (benign, malignant)
        if name == "local outlier factor":
            parts = (benign.to_numpy(), malignant.to_numpy())
        print(f"  {name:22} {area(*map(other.score_samples, parts)):.3f}")
    for name, rows in (("new benign", benign), ("malignant", malignant)):
        rejected = np.mean(detector.predict(rows) == -1)
        print(f"  {name} ones rejected at a nominal rate of {RATE:.0%}: {rejected:.1%}")
    return detector, *scores


def area(inlier_scores, outlier_scores):
    """Return the area under the ROC curve."""
    is_outlier = np.r_[np.zeros(len(inlier_scores)), np.ones(len(outlier_scores))]
    return roc_auc_score(is_outlier, -np.r_[inlier_scores, outlier_scores])


def detect_patients(quick):
    """Return contributions to the scores of all patients, the oddest first."""
    X = load_diabetes(as_frame=True, scaled=False).data
    X["sex"] = X["sex"].map({1.0: "first", 2.0: "second"}).astype("category")
    if quick:
        X = X[["age", "sex", "bmi", "bp"]]
    detector = IMMSEOutlierDetector(random_state=0).fit(X)
    scores, p_values = detector.score_samples(X), detector.p_values(X)
    parts = detector.explain(X)
    unusual = parts - parts.median()
    oddest = np.argsort(scores)
    print(f"\nDiabetes patients: the oddest {N_ODDEST} of {len(X)}, with p-values")
    print("and the columns that contribute least to their log-density, less the median, in nats")
    for row in oddest[:N_ODDEST]:
        print(f"\n  row {row}: p = {p_values[row]:.4f}")
        for name, part in unusual.iloc[row].nsmallest(3).items():
            print(f"    {part:+7.1f}  {name} = {X.iloc[row][name]}")
    return unusual.iloc[oddest]


def draw(detector, benign, malignant, unusual, path):
    """Draw histograms of scores beside the threshold, and contributions of columns."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    # Lower scores are drawn at the left end.
    low = detector.offset_ - 6.0 * (np.median(benign) - detector.offset_)
    bins = np.linspace(low, max(benign.max(), malignant.max()), 40)
    for scores, colour, name in ((benign, BLUE, "new benign"), (malignant, ORANGE, "malignant")):
        left.hist(np.maximum(scores, low), bins, color=colour, alpha=0.6, density=True, label=name)
    left.axvline(detector.offset_, color=GREY, ls="--", label=f"threshold for {RATE:.0%}")
    left.set(xlabel="score (nats)", yticks=[], title="Breast tumours")
    left.legend(frameon=False, loc="upper left")
    row = unusual.iloc[0].sort_values()
    right.barh(row.index, row, color=np.where(row < 0, ORANGE, BLUE))
    right.axvline(0, color=GREY, lw=0.8)
    right.set(
        xlabel="contribution to the score, less the median (nats)",
        title=f"Diabetes patient {row.name}",
    )
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)
    plt.close(fig)
    print(f"\nPicture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the picture")
    parser.add_argument("--quick", action="store_true", help="few columns")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    detector, benign, malignant = detect_tumours(args.quick)
    unusual = detect_patients(args.quick)
    draw(detector, benign, malignant, unusual, args.output / "outlier_detection.png")


if __name__ == "__main__":
    main()
