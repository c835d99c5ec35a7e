"""Compare the steps of `sample` with a hundred of Heun's, by the samples of the same fitted models.

    python benchmarks/sampling_steps.py --data DATA
    python benchmarks/sampling_steps.py --sources banana ring --seeds 0 1
    python benchmarks/sampling_steps.py --timing

Sources are known densities, tables of a folder of data as in `tabular_data`, and
``abalone-mixed``, seven continuous columns, the number of rings and the sex.  For each source
and seed a model is fitted briefly, and samples are drawn by both methods from the same starting
points.  Each set is compared with as many held-out rows:

- energy distance, each column divided by its standard deviation; unbiased, so that it may be
  below 0;
- classifier two-sample test: area under the ROC curve of gradient boosting that tells samples from
  held-out rows, in five-fold cross-validation; 0.5 is chance.

Other held-out rows are compared in the same way where there are enough of them, as what a perfect
sampler would get.  Differences are those of the two methods for the same seed, with their standard
deviation over seeds.  Also printed is how far a sample is from that of many small steps from the
same start, in standard deviations of the columns, as the median over rows.

``--timing`` draws 10,000 samples of 10 columns by both methods, in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from sampling import energy_distance
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from tabular_data import NOISE_SEED, TABLES, dequantized, load_table
from torch import Tensor

from sk_itdiffusion import IMMSEDensity, IMMSEMixedDensity
from sk_itdiffusion._first._estimators import base
from sk_itdiffusion._first._estimators.base import DensityEstimator
from sk_itdiffusion._first._immse import sampling
from sk_itdiffusion.channel import data_from_noise, signal_scale
from sk_itdiffusion.datasets import DENSITY_NAMES, load_density

Array = NDArray[np.float64]
#: Steps of Heun's method, of two evaluations each, in version 1.
HEUN_STEPS = 100
FINE_STEPS = 300
N_COMPARED_WITH_FINE_STEPS = 200
MIXED = "abalone-mixed"
SOURCES = ("banana", "ring", "spiral", "mixture_10d", "abalone", "power-plant", MIXED)


@torch.no_grad()
def heun(denoiser: Callable[[Tensor, Tensor], Tensor], start: Tensor, logsnr: Tensor) -> Tensor:
    """Return data points by Heun steps; see the function `probability_flow` of the library."""

    def slope(y: Tensor, level: Tensor) -> Tensor:
        return denoiser(signal_scale(level) * y, level.repeat(len(y)))

    y = start / signal_scale(logsnr[0])
    for here, there in pairwise(logsnr):
        step = torch.exp(-0.5 * there) - torch.exp(-0.5 * here)
        first = slope(y, here)
        y = y + 0.5 * step * (first + slope(y + step * first, there))
    z, level = signal_scale(logsnr[-1]) * y, logsnr[-1].repeat(len(y))
    return data_from_noise(z, denoiser(z, level), level)


@contextmanager
def steps_of_heun() -> Iterator[None]:
    """Let `sample` take a hundred steps of Heun's method."""
    with (
        patch.object(base, "N_STEPS", HEUN_STEPS),
        patch.object(sampling, "probability_flow", heun),
    ):
        yield


@contextmanager
def fine_steps() -> Iterator[None]:
    """Let `sample` take many steps."""
    with patch.object(base, "N_STEPS", FINE_STEPS):
        yield


def rows_of(source: str, data_dir: Path | None, n_rows: int, seed: int) -> Array:
    """Return so many rows of a source, or all in another order if there are fewer."""
    if source in DENSITY_NAMES:
        return load_density(source).sample(n_rows, random_state=seed)
    if data_dir is None:
        raise SystemExit(f"{source} needs --data, the folder of the tables.")
    if source == MIXED:
        with np.load(data_dir / "uci" / "abalone.npz", allow_pickle=False) as arrays:
            rings, sex = arrays["X"][:, 7], np.unique(arrays["other"], return_inverse=True)[1]
            X = np.column_stack([dequantized(arrays["X"][:, :7], NOISE_SEED), rings, sex.ravel()])
    else:
        X = load_table(source, data_dir)
    return np.random.default_rng(seed).permutation(X)[:n_rows]


def fitted(source: str, train: Array, max_epochs: int, seed: int) -> DensityEstimator:
    """Return a model of rows."""
    if source == MIXED:
        mixed = IMMSEMixedDensity(
            categorical_features=[8],
            ordinal_features=[7],
            max_epochs=max_epochs,
            random_state=seed,
        )
        return mixed.fit(train)
    return IMMSEDensity(max_epochs=max_epochs, random_state=seed).fit(train)


def area_under_roc(samples: Array, rows: Array, seed: int) -> float:
    """Return how well gradient boosting tells samples from rows that it has not seen."""
    X, y = np.vstack([samples, rows]), np.repeat([0, 1], [len(samples), len(rows)])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = HistGradientBoostingClassifier(max_iter=50, random_state=seed)
    return float(cross_val_score(model, X, y, cv=folds, scoring="roc_auc").mean())


@dataclass(frozen=True)
class Comparison:
    """Energy distance and area under the ROC curve of samples and held-out rows."""

    distance: float
    area: float

    @classmethod
    def of(cls, samples: Array, rows: Array, seed: int) -> Comparison:
        """Compare samples and rows."""
        scale = rows.std(axis=0)
        return cls(
            energy_distance(samples / scale, rows / scale), area_under_roc(samples, rows, seed)
        )


def measure(source: str, seed: int, arguments: argparse.Namespace) -> dict[str, Comparison]:
    """Fit to one source, draw by both methods, and return the comparisons by name."""
    n_train, n_drawn = arguments.rows, arguments.samples
    X = rows_of(source, arguments.data, n_train + 2 * n_drawn, seed)
    train, held_out, other = X[:n_train], X[n_train : n_train + n_drawn], X[n_train + n_drawn :]
    density = fitted(source, train, arguments.max_epochs, seed)

    def draw(n_samples: int = len(held_out)) -> Array:
        return np.asarray(density.sample(n_samples, random_state=seed + 1), dtype=np.float64)

    drawn, few = {"now": draw()}, {"now": draw(N_COMPARED_WITH_FINE_STEPS)}
    with steps_of_heun():
        drawn["Heun"], few["Heun"] = draw(), draw(N_COMPARED_WITH_FINE_STEPS)
    with fine_steps():
        fine = draw(N_COMPARED_WITH_FINE_STEPS)
    found = {name: Comparison.of(rows, held_out, seed) for name, rows in drawn.items()}
    if len(other) == len(held_out):
        found["other rows"] = Comparison.of(other, held_out, seed)
    print(f"{source}, seed {seed}, {len(train)} rows, {len(held_out)} samples", flush=True)
    for name, value in found.items():
        text = f"  {name:10}  energy distance {value.distance:.5f}  AUC {value.area:.4f}"
        if name in few:
            apart = np.linalg.norm((few[name] - fine) / held_out.std(axis=0), axis=1)
            text += f"  from fine steps {np.median(apart):.5f}"
        print(text, flush=True)
    return found


def summarize(source: str, found: list[dict[str, Comparison]]) -> None:
    """Print a source's row of the table, means over seeds."""
    cells = [source]
    for quantity, digits in (("distance", 5), ("area", 4)):
        values = {
            name: np.array([getattr(each[name], quantity) for each in found]) for name in found[0]
        }
        cells += [f"{value.mean():.{digits}f}" for value in values.values()]
        difference = values["now"] - values["Heun"]
        spread = difference.std(ddof=1) if len(difference) > 1 else np.nan
        cells.append(f"{difference.mean():+.{digits}f} +- {spread:.{digits}f}")
    print("| " + " | ".join(cells) + " |", flush=True)


def measure_times(n_samples: int, max_epochs: int, repeats: int) -> None:
    """Print how long samples of 10 columns take."""
    X = load_density("mixture_10d").sample(2000, random_state=0)
    density = fitted("mixture_10d", X, max_epochs, 0)
    seconds: dict[str, list[float]] = {"now": [], "Heun": []}
    for repeat in range(repeats):
        start = time.perf_counter()
        density.sample(n_samples, random_state=repeat)
        middle = time.perf_counter()
        with steps_of_heun():
            density.sample(n_samples, random_state=repeat)
        seconds["now"].append(middle - start)
        seconds["Heun"].append(time.perf_counter() - middle)
    texts = [f"{name} {np.median(values):.2f} s" for name, values in seconds.items()]
    share = np.median(seconds["now"]) / np.median(seconds["Heun"])
    threads = torch.get_num_threads()
    print(
        f"{n_samples} samples of 10 columns, {threads} threads, medians of {repeats}: "
        f"{', '.join(texts)}, share {share:.3f}",
        flush=True,
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sources", nargs="+", choices=[*DENSITY_NAMES, *TABLES, MIXED], default=list(SOURCES)
    )
    parser.add_argument("--data", type=Path, default=None, help="folder of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--timing", action="store_true", help="measure times only")
    parser.add_argument("--timed-samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a short fit, and few samples")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.quick:
        quick = {"rows": 200, "samples": 200, "max_epochs": 1, "timed_samples": 50, "repeats": 1}
        vars(arguments).update(quick)
    if arguments.timing:
        measure_times(arguments.timed_samples, arguments.max_epochs, arguments.repeats)
        return
    for source in arguments.sources:
        summarize(source, [measure(source, seed, arguments) for seed in arguments.seeds])


if __name__ == "__main__":
    main()
