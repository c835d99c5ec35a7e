"""
=======================================
Which columns tell of a diagnosis
=======================================

Information between columns of a medical table, and of each with the diagnosis: a dependence of any
shape counts, also one that correlation misses.
"""

# %%
# The table
# ---------
#
# Five of the columns of the breast cancer data of scikit-learn, and whether a tumour is benign.

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

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
columns = ["mean radius", "mean texture", "mean smoothness", "mean symmetry", "worst concave points"]
table = X[columns].assign(benign=y.astype(bool))

# %%
# All pairs
# ---------
#
# One joint fit answers for all pairs.  Numbers go from 0 to 1 as sizes of correlations do; those
# that permutations of the rows explain as well are in brackets.

matrix = dependence_matrix(table, n_permutations=99, cv=3, random_state=0)
DependenceDisplay.from_matrix(matrix)

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
x = rng.normal(size=800)
parabola = x**2 + 0.3 * rng.normal(size=800)
print(f"correlation {np.corrcoef(x, parabola)[0, 1]:.2f}")

estimator = IMMSEMutualInformation(random_state=0).fit(x[:, None], parabola)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
PointwiseInformationDisplay.from_estimator(estimator, x, parabola, ax=axes[0])
InformationCurveDisplay.from_estimator(estimator, ax=axes[1])
axes[0].set(xlabel="x", ylabel="y")
plt.show()
