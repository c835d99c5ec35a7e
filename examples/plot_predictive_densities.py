"""
Predictive distributions of travel times
========================================

How long will the commute take? A mean is of little use to somebody who must not be late. Here
travel times depend on the hour, on rain and on frost: rain makes the delay long-tailed, and in
frost a bridge may be closed, so that there are two likely times and hardly any in between. The
times are simulated, so the true distribution is known.

Run ``python examples/plot_predictive_densities.py``, which saves ``predictive_densities.png``, or
add ``--quick`` to see that it runs.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats
from sklearn.ensemble import HistGradientBoostingRegressor

from sk_itdiffusion import IMMSEConditionalDensity
from sk_itdiffusion.display import PredictiveFanDisplay, ProbabilityIntegralDisplay

BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#BBBBBB"

parser = argparse.ArgumentParser(description="Predictive densities of travel times.")
parser.add_argument("--output", type=Path, default=Path(), help="folder for the picture")
parser.add_argument("--quick", action="store_true", help="few rows")
args = parser.parse_args()

# %%
# Simulated days
# --------------
#
# Rain in millimetres, degrees of frost and the hour of departure, and the true distribution of the
# travel time given these.


def draw_days(n, seed):
    """Return what is known in the morning of n days."""
    rng = np.random.default_rng(seed)
    rain = np.where(rng.random(n) < 0.5, 0.0, rng.gamma(1.5, 3.0, n))
    return pd.DataFrame(
        {"hour": rng.uniform(6.0, 10.0, n), "rain": rain, "frost": rng.uniform(0.0, 10.0, n)}
    )


def parts_of_law(days):
    """Return the distribution without the detour, and the probability of the detour."""
    usual = 25.0 + 8.0 * np.exp(-(((days["hour"] - 8.0) / 0.6) ** 2))
    delay = stats.gamma(4.0, usual.to_numpy(), (0.6 + 0.35 * days["rain"]).to_numpy())
    return delay, (0.5 * days["frost"] / 10.0).to_numpy()


DETOUR = 22.0  # minutes


def true_density(days, minutes):
    """Return the density of travel times, one for each day."""
    delay, closed = parts_of_law(days)
    return (1.0 - closed) * delay.pdf(minutes) + closed * delay.pdf(minutes - DETOUR)


def draw_minutes(days, seed):
    """Return a travel time for each day."""
    delay, closed = parts_of_law(days)
    rng = np.random.default_rng(seed)
    return delay.rvs(random_state=rng) + DETOUR * (rng.random(len(days)) < closed)


n_train = 300 if args.quick else 3000
days, new_days = draw_days(n_train, 0), draw_days(1000, 1)
minutes, new_minutes = draw_minutes(days, 2), draw_minutes(new_days, 3)

# %%
# Three models
# ------------
#
# Gradient boosting with normally distributed residuals has the same spread on all days. Quantile
# gradient boosting, with one model for each of nineteen quantiles, gives a density of steps. The
# conditional density requires no choice of quantiles or of a distribution.

density = IMMSEConditionalDensity(random_state=0).fit(days, minutes)

mean = HistGradientBoostingRegressor(random_state=0).fit(days, minutes)
half = len(days) // 2  # the width from rows that the model has not seen
other = HistGradientBoostingRegressor(random_state=0).fit(days[:half], minutes[:half])
width = np.std(minutes[half:] - other.predict(days[half:]))

levels = np.arange(1, 20) / 20.0
boosted = [
    HistGradientBoostingRegressor(loss="quantile", quantile=level, max_iter=50, random_state=0).fit(
        days, minutes
    )
    for level in levels
]


def boosted_quantiles(rows):
    """Return the quantiles of gradient boosting, sorted, which by themselves they need not be."""
    return np.sort(np.column_stack([model.predict(rows) for model in boosted]), axis=1)


# %%
# Densities are compared by the mean log-density of new days, and the nineteen quantiles by the
# pinball loss. No model is better than the truth, except by chance.

truth = np.log(true_density(new_days, new_minutes)).mean()
normal = stats.norm(mean.predict(new_days), width)
print("mean log-density of new days, nats:")
print(f"  the truth               {truth:.3f}")
print(f"  conditional density     {density.score(new_days, new_minutes):.3f}")
print(f"  a normal residual       {normal.logpdf(new_minutes).mean():.3f}")

error = {
    "conditional density": density.predict(new_days, quantiles=levels),
    "boosted quantiles": boosted_quantiles(new_days),
    "a normal residual": stats.norm(mean.predict(new_days)[:, None], width).ppf(levels),
}
print("mean pinball loss of 19 quantiles, minutes:")
for name, quantiles in error.items():
    gap = new_minutes[:, None] - quantiles
    loss = np.maximum(levels * gap, (levels - 1.0) * gap).mean()
    print(f"  {name:<22}  {loss:.3f}")

# %%
# Densities for three days
# ------------------------

three = pd.DataFrame({"hour": [8.0, 8.0, 6.5], "rain": [0.0, 12.0, 0.0], "frost": [0.5, 0.5, 9.5]})
titles = ["a dry day, at eight", "rain, at eight", "frost, at half past six"]
grid = np.linspace(20.0, 85.0, 400)

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharex=True, layout="constrained")
for ax, title, (_, day) in zip(axes, titles, three.iterrows(), strict=True):
    rows = pd.DataFrame([day] * len(grid))
    ax.fill_between(grid, true_density(rows, grid), color=GREY, label="the truth")
    fitted = np.exp(density.score_samples(rows, grid))
    ax.plot(grid, fitted, color=BLUE, lw=2.0, label="conditional density")
    bell = stats.norm(mean.predict(rows[:1])[0], width)
    ax.plot(grid, bell.pdf(grid), color=ORANGE, ls="--", label="normal residual")
    ends = boosted_quantiles(rows[:1])[0]
    ax.stairs(0.05 / np.maximum(np.diff(ends), 0.25), ends, color=VERMILION, label="quantiles")
    ax.set(title=title, xlabel="minutes", ylim=(0.0, 1.3 * true_density(rows, grid).max()))
axes[0].set_ylabel("density per minute")
axes[0].legend(frameon=False)

path = args.output / "predictive_densities.png"
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"saved {path}")

# %%
# Intervals and calibration
# -------------------------
#
# The fan shows prediction intervals against frost, with typical rain and at a typical hour. The
# upper end jumps where the detour becomes more probable than the part outside the interval. The
# histogram of the probability integral transform is flat, within the band, if the model is
# calibrated; here the last bar is too high: the longest delays, in heavy rain, are somewhat
# underestimated.

figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
PredictiveFanDisplay.from_estimator(
    density, new_days, "frost", y=new_minutes, target_name="minutes", ax=axes[0]
)
ProbabilityIntegralDisplay.from_estimator(density, new_days, new_minutes, ax=axes[1])
figure.savefig(args.output / "fan_and_calibration.png", dpi=120)
