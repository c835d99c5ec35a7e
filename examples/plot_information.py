"""
Which columns tell of a diagnosis
=================================

Information between columns of a medical table, and of each with the diagnosis: a dependence of any
shape counts, also one that correlation misses.

Run ``python examples/plot_information.py``, which saves its pictures in a folder, or add
``--quick`` to see that it runs.
"""

# %%
# The table
# ---------
#
# Five of the columns of the breast cancer data of scikit-learn, and whether a tumour is benign.

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

from sk_itdiffusion import IMMSEMutualInformation
from sk_itdiffusion.display import (
    DependenceDisplay,
    InformationCurveDisplay,
    PointwiseInformationDisplay,
)
from sk_itdiffusion.information import dependence_matrix

parser = argparse.ArgumentParser(description="Information between columns.")
parser.add_argument("--output", type=Path, default=Path("information"), help="folder to fill")
parser.add_argument("--quick", action="store_true", help="few rows and permutations")
args = parser.parse_args()
n_rows, n_permutations = (120, 19) if args.quick else (None, 99)


def save(fig, name):
    args.output.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.output / name, dpi=120)


X, y = load_breast_cancer(return_X_y=True, as_frame=True)
columns = [
    "mean radius",
    "mean texture",
    "mean smoothness",
    "mean symmetry",
    "worst concave points",
]
table = X[columns].assign(benign=y.astype(bool))[:n_rows]

# %%
# All pairs
# ---------
#
# One joint fit answers for all pairs.  Numbers go from 0 to 1 as sizes of correlations do; those
# that permutations of the rows explain as well are in brackets.

matrix = dependence_matrix(table, n_permutations=n_permutations, cv=3, random_state=0)
save(DependenceDisplay.from_matrix(matrix).figure_, "dependence.png")

# %%
# Of all five columns together with the diagnosis: the entropy of the diagnosis, about 0.66 nats, is
# the most that there can be.

both = IMMSEMutualInformation(cv=3, random_state=0).fit(table[columns], table["benign"])
print(f"{both.mutual_information_:.2f} +- {both.standard_error_:.2f} nats")

# %%
# What correlation misses
# -----------------------
#
# On a parabola the correlation is zero.  Rows in the arms tell more than those in the middle, where
# any x would have been as likely.

rng = np.random.default_rng(0)
x = rng.normal(size=n_rows or 800)
parabola = x**2 + 0.3 * rng.normal(size=len(x))
print(f"correlation {np.corrcoef(x, parabola)[0, 1]:.2f}")

estimator = IMMSEMutualInformation(random_state=0).fit(x[:, None], parabola)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
PointwiseInformationDisplay.from_estimator(estimator, x, parabola, ax=axes[0])
InformationCurveDisplay.from_estimator(estimator, ax=axes[1])
axes[0].set(xlabel="x", ylabel="y")
save(figure, "parabola.png")
