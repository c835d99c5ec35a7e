"""Record what some twenty small fits give, and compare two records to the last bit.

    PYTHONPATH=OLD python tests/record.py write old.npz
    PYTHONPATH=NEW python tests/record.py write new.npz
    python tests/record.py compare old.npz new.npz

For changes that are to change no number: run both trees on one machine, with one number of
threads.  A record holds scores, standard errors, samples, weights of the experts, entropies, error
curves, scores and explanations of detectors.  `compare` prints each array that differs, with the
largest difference, and exits with 1 if any does.  Numbers differ between machines, so records are
not kept.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits, load_iris

import sk_itdiffusion
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)
from sk_itdiffusion.references import GaussianReference

QUICK = {
    "hidden_size": 16,
    "max_epochs": 2,
    "steps_per_epoch": 10,
    "batch_size": 64,
    "random_state": 0,
}
N_SCORED = 40


def skewed(n=400, seed=0):
    """Return rows of three dependent, skewed columns."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(2.0, size=n)
    return np.column_stack([x, x**2 + rng.normal(size=n), rng.normal(size=n) * x])


def recurring(n=600, seed=0):
    """Return rows near one of 60 points."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(60, 2))
    return centers[rng.integers(60, size=n)] + 2e-3 * rng.normal(size=(n, 2))


def table(n=400, seed=0):
    """Return a data frame of a nominal, an ordinal, a boolean and two continuous columns."""
    rng = np.random.default_rng(seed)
    color = rng.choice(["red", "green", "blue"], n, p=[0.5, 0.3, 0.2])
    size = rng.normal(3.0 * (color == "red"), 1.0)
    count = rng.integers(0, 5, n) + 2 * (color == "blue")
    return pd.DataFrame(
        {
            "color": color,
            "count": count,
            "flag": size > 1.0,
            "size": size,
            "weight": np.exp(size + rng.normal(size=n)),
        }
    )


class LinearDenoiser(torch.nn.Module):
    """A small network of one's own."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-0.3, 0.3, 12).reshape(3, 4))
            self.layer.bias.zero_()

    def forward(self, z, logsnr):
        return self.layer(torch.cat([z, 0.1 * logsnr[:, None]], dim=1))


def plain():
    X = skewed()
    return IMMSEDensity(**QUICK).fit(X), X


def without_network():
    X = skewed()
    return IMMSEDensity(max_epochs=0, random_state=0).fit(X), X


def weighted():
    X = skewed()
    weight = np.random.default_rng(1).integers(0, 4, len(X)).astype(float)
    return IMMSEDensity(**QUICK).fit(X, sample_weight=weight), X


def warm_start():
    X = skewed()
    density = IMMSEDensity(**QUICK, warm_start=True).fit(X)
    return density.fit(skewed(500, seed=1)), X


def incremental():
    X = skewed(3000)
    density = IMMSEDensity(**QUICK)
    for part in np.array_split(X, 3):
        density.partial_fit(part)
    return density, X


def kernels_kept():
    X = recurring()
    return IMMSEDensity(**QUICK).fit(X), X


def kernels_dropped():
    X = np.random.default_rng(0).normal(size=(500, 2))
    return IMMSEDensity(**QUICK).fit(X), X


def kernels_asked_for():
    X = recurring()
    experts = ["gaussian", "kernel_density"]
    return IMMSEDensity(max_epochs=0, experts=experts, random_state=0).fit(X), X


def dequantized():
    X = np.rint(3.0 * skewed())
    return IMMSEDensity(**QUICK, dequantize=True).fit(X), X


def images():
    X = load_digits().data[:200] + np.random.default_rng(0).uniform(size=(200, 64))
    sizes = {"hidden_size": 8, "n_blocks": 1, "score_tol": 0.5}
    return IMMSEDensity(**QUICK | sizes, image_shape=(8, 8)).fit(X), X


def given_denoiser():
    X = skewed()
    return IMMSEDensity(**QUICK, denoiser=LinearDenoiser()).fit(X), X


def given_reference():
    X = skewed()
    reference = GaussianReference(X.mean(axis=0), 1.5 * np.cov(X.T))
    return IMMSEDensity(**QUICK, reference=reference).fit(X), X


def discrete():
    X = table()[["color", "count", "flag"]]
    return IMMSEDiscreteDensity(**QUICK).fit(X), X


def discrete_paths():
    X = table()[["color", "count", "flag"]]
    return IMMSEDiscreteDensity(max_epochs=0, likelihood="path", random_state=0).fit(X), X


def discrete_images():
    X = load_digits().data[:300].astype(int)
    sizes = {"hidden_size": 8, "n_blocks": 1, "score_tol": 0.5}
    return IMMSEDiscreteDensity(**QUICK | sizes, image_shape=(8, 8)).fit(X), X


def mixed():
    X = table()
    return IMMSEMixedDensity(**QUICK).fit(X), X


def mixed_without_network():
    X = table()
    return IMMSEMixedDensity(max_epochs=0, random_state=0).fit(X), X


def ensemble():
    X = skewed()
    members = [
        ("first", IMMSEDensity(**QUICK)),
        ("second", IMMSEDensity(**QUICK | {"hidden_size": 8}, reference="gaussian")),
    ]
    return IMMSEEnsemble(members, random_state=0).fit(X), X


def detector():
    X = load_iris().data
    return IMMSEOutlierDetector(random_state=0).fit(X), X


def detector_of_a_table():
    X = table()
    return IMMSEOutlierDetector(random_state=0).fit(X), X


def detector_with_a_network():
    X = skewed()
    estimator = IMMSEDensity(**QUICK)
    return IMMSEOutlierDetector(estimator, noise_floor=[4.0, 7.0], random_state=0).fit(X), X


CASES: dict[str, Callable] = {
    function.__name__: function
    for function in (
        plain,
        without_network,
        weighted,
        warm_start,
        incremental,
        kernels_kept,
        kernels_dropped,
        kernels_asked_for,
        dequantized,
        images,
        given_denoiser,
        given_reference,
        discrete,
        discrete_paths,
        discrete_images,
        mixed,
        mixed_without_network,
        ensemble,
        detector,
        detector_of_a_table,
        detector_with_a_network,
    )
}


def columns_of(name: str, rows) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the columns of rows as arrays that a file without pickles holds."""
    frame = pd.DataFrame(rows)
    for j, column in enumerate(frame):
        values = frame[column].to_numpy()
        is_number = np.issubdtype(values.dtype, np.number)
        yield f"{name}/{j}", values.astype(np.float64) if is_number else values.astype(str)


def quantities_of(estimator, X) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the values of each quantity of a fitted estimator."""
    scored = X[:N_SCORED]
    if isinstance(estimator, IMMSEOutlierDetector):
        yield "score", estimator.score_samples(scored)
        yield "offset", np.array(estimator.offset_)
        yield "p_values", estimator.p_values(scored)
        yield "explanation", estimator.explain(scored).to_numpy()
        return
    score, std = estimator.score_samples(scored, return_std=True)
    yield "score", score
    yield "std", std
    yield "entropy", np.array(estimator.entropy_)
    yield "logsnr", estimator.logsnr_
    names = "member_weights_" if isinstance(estimator, IMMSEEnsemble) else "expert_weights_"
    for name, weight in getattr(estimator, names).items():
        yield f"weight of {name}", weight
    yield from columns_of("sample", estimator.sample(20, random_state=0))
    curve = estimator.mse_curve(scored)
    yield "error curve", curve.model
    for name, errors in (curve.references | curve.networks).items():
        yield f"error curve of {name}", errors
    for row in getattr(estimator, "history_", []):
        yield f"bounds of epoch {row['epoch']}", np.array(list(row.values()))


def record(chosen: list[str]) -> dict[str, np.ndarray]:
    """Return the quantities of the chosen cases by name."""
    found = {}
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for quantity, values in quantities_of(*CASES[name]()):
                found[f"{name}/{quantity}"] = values
    return found


def differences(first, second) -> Iterator[str]:
    """Yield a line for each array that is not the same in both records."""
    for name in sorted(set(first) | set(second)):
        if name not in first or name not in second:
            yield f"{name}: only in the {'first' if name in first else 'second'}"
            continue
        a, b = first[name], second[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            yield f"{name}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            apart = f"{np.abs(a - b).max():.3g}" if a.dtype.kind == "f" else "other texts"
            yield f"{name}: largest difference {apart}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="fit, and write a record")
    write.add_argument("file")
    write.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    compare = commands.add_parser("compare", help="compare two records")
    compare.add_argument("files", nargs=2)
    arguments = parser.parse_args()
    if arguments.command == "write":
        torch.set_num_threads(1)
        np.savez(arguments.file, **record(arguments.cases))
        print(f"record of {sk_itdiffusion.__file__} in {arguments.file}")
        return 0
    lines = list(differences(*(dict(np.load(file)) for file in arguments.files)))
    print("\n".join(lines) if lines else "the same to the last bit")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
