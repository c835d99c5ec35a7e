"""
Missing measurements: imputed draws of tumour sizes
===================================================

A laboratory has measured 569 tumours, but every fifth measurement was lost. Means of the columns in
the holes are the usual remedy. They leave the table without holes, but with relations that no
tumour has, and with standard errors that claim to know too much. With
:class:`~sk_itdiffusion.IMMSEImputer` lost measurements are drawn from their distribution given
those of the same tumour.

Run ``python examples/plot_imputation.py``, which saves ``imputation.png``, or add ``--quick`` to
see that it runs.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer

from sk_itdiffusion import IMMSEImputer

BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#BBBBBB"

# sphinx_gallery_start_ignore
parser = argparse.ArgumentParser(description="Imputation of a medical table.")
parser.add_argument("--output", type=Path, default=Path(), help="folder for the picture")
parser.add_argument("--quick", action="store_true", help="few rows")
args = parser.parse_args()
# sphinx_gallery_end_ignore

# %%
# A table with holes
# ------------------
#
# Six measurements of each tumour, and the diagnosis, which is always known. We remove a fifth of
# the measurements completely at random, and keep the true ones to compare with.

bunch = load_breast_cancer(as_frame=True)
names = ["radius", "texture", "area", "smoothness", "concavity", "symmetry"]
table = bunch.data[[f"mean {name}" for name in names]].set_axis(names, axis=1)
table["diagnosis"] = bunch.target.map({0: "malignant", 1: "benign"}).astype("category")
# sphinx_gallery_start_ignore
if args.quick:
    table = table[:150]
# sphinx_gallery_end_ignore

lost = np.random.default_rng(0).random((len(table), len(names))) < 0.2
holes = table.copy()
holes[names] = table[names].mask(lost)
print(f"{lost.mean():.0%} of the measurements are lost; "
      f"{np.mean(~lost.any(axis=1)):.0%} of the tumours have all of theirs")  # fmt: skip

# %%
# Draws for every hole
# --------------------
#
# One fit knows the distribution of any measurement given any others. Each of 100 tables has another
# draw in each hole. About nine of ten true measurements should be between the 5% and the 95%
# quantile of their draws, and the median of the draws should be near to them.

imputer = IMMSEImputer(random_state=0).fit(holes)
draws = np.stack([each[names].to_numpy() for each in imputer.multiple_imputations(holes, 100)])
truth = table[names].to_numpy()
low, median, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
means = SimpleImputer().fit_transform(holes[names])

inside = (low <= truth) & (truth <= high)
print(f"true measurements inside the intervals of 90%: {inside[lost].mean():.1%}")
error, error_of_means = (np.abs(each - truth)[lost] for each in (median, means))
scale = np.broadcast_to(truth.std(axis=0), truth.shape)[lost]
print("mean absolute error, standard deviations of the columns:")
print(f"  medians of draws  {np.mean(error / scale):.3f}")
print(f"  column means      {np.mean(error_of_means / scale):.3f}")

# %%
# Imputed draws beside observed values
# ------------------------------------
#
# The area of a tumour grows with the square of its radius. Tumours of which one of the two was lost
# lie on the same curve as the others if a draw takes its place, and on a cross if the mean does. On
# the right, draws for a lost concavity: the other measurements and the diagnosis tell much about
# it, but not the same for all tumours. Some draws are negative, since the fit does not know that no
# concavity is; the parameter ``bounds`` of a density would tell it.

radius, area = names.index("radius"), names.index("area")
either = lost[:, radius] | lost[:, area]

fig, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for ax, values, title in (
    (axes[0], means, "Column means"),
    (axes[1], draws[0], "Draws"),
):
    ax.scatter(*truth[~either][:, [radius, area]].T, s=8, color=GREY, label="observed")
    ax.scatter(*values[either][:, [radius, area]].T, s=10, color=VERMILION, label="imputed")
    ax.set(title=title, xlabel="radius", ylabel="area")
axes[1].sharex(axes[0])
axes[1].sharey(axes[0])
axes[0].legend(frameon=False, loc="upper left")

column = names.index("concavity")
hidden = np.flatnonzero(lost[:, column])
shown = hidden[np.argsort(median[hidden, column])][:: max(1, len(hidden) // 25)]
place = np.arange(len(shown))
axes[2].vlines(place, low[shown, column], high[shown, column], color=BLUE, lw=3, alpha=0.4)
axes[2].scatter(place, median[shown, column], s=14, color=BLUE, label="median and 90% of draws")
axes[2].scatter(place, truth[shown, column], s=14, color=ORANGE, zorder=3, label="the truth")
axes[2].axhline(means[hidden[0], column], color=GREY, ls="--", label="column mean")
axes[2].set(title="Lost concavities of some tumours", xticks=[], ylabel="concavity")
axes[2].legend(frameon=False, loc="upper left")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)

# sphinx_gallery_start_ignore
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "imputation.png", dpi=130)
# sphinx_gallery_end_ignore

# %%
# What the holes cost
# -------------------
#
# By how much are malignant tumours larger? Column means draw the groups together, and a standard
# error from the completed table takes them for measurements. Multiple imputation repeats the
# analysis for several imputed tables, each from a fit of its own, and pools the results by Rubin's
# rules, so that the standard error includes what is not known of the lost measurements.


def difference(complete):
    """Return the difference of mean radii of both groups, and its squared standard error."""
    groups = [complete["radius"][complete["diagnosis"] == kind] for kind in ("malignant", "benign")]
    return groups[0].mean() - groups[1].mean(), sum(group.var() / len(group) for group in groups)


def as_text(estimate, variance):
    """Return an estimate with its standard error."""
    return f"{estimate:.2f} ± {np.sqrt(variance):.2f}"


pooled = imputer.pooled_estimate(holes, difference, n_imputations=2 if args.quick else 5)
with_means = holes.assign(radius=means[:, radius])
print("difference of mean radii:")
print(f"  no measurement lost  {as_text(*difference(table))}")
print(f"  column means         {as_text(*difference(with_means))}")
print(f"  multiple imputation  {as_text(pooled.estimate, pooled.standard_error**2)}")
