"""
Mutual information with a diagnosis
===================================

The mutual information between the columns of a medical table, and between each column and the
diagnosis. It measures dependence of any form, including dependence that correlation misses.

Run ``python examples/plot_information.py``, which saves its pictures in a folder, or add
``--quick`` to see that it runs.
"""

# %%
# The table
# ---------
#
# Five columns of scikit-learn's breast cancer data, and whether the tumour is benign.

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
# A single joint fit covers all pairs. Mutual information is shown on the scale of absolute
# correlations, from 0 to 1; values that are not significant in a permutation test are in brackets.

matrix = dependence_matrix(table, n_permutations=n_permutations, cv=3, random_state=0)
save(DependenceDisplay.from_matrix(matrix).figure_, "dependence.png")

# %%
# The mutual information between all five columns together and the diagnosis is at most the entropy
# of the diagnosis, about 0.66 nats.

both = IMMSEMutualInformation(cv=3, random_state=0).fit(table[columns], table["benign"])
print(f"{both.mutual_information_:.2f} +- {both.standard_error_:.2f} nats")

# %%
# What correlation misses
# -----------------------
#
# On a parabola the correlation is zero, but not the mutual information. Rows in the arms contribute
# more than rows in the middle. The curve on the right shows the mutual information of the columns
# with noise added, against the log-SNR.

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
