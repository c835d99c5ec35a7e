"""Noise rules for scoring, compared at equal cost with trained networks.

    python benchmarks/noise_rules.py

An exact denoiser behaves well everywhere; a network does not at noise unlike that of its training,
such as none at all, where the spherical-radial rule evaluates it.  So rules are compared by the
errors that they have with trained networks: with one, two, four or eight orthogonal directions in a
draw, with and without the origin, and with draws that are coupled (see
`sk_itdiffusion._first._immse.cubature`) or independent.  Printed is the root of the mean square
error of log p over rows at about 128 evaluations for each, from repetitions with different noise.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from results import format_markdown
from sklearn.datasets import load_breast_cancer

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._immse.cubature import Keys, NoiseRule, row_keys, spawn_keys
from sk_itdiffusion._first._immse.likelihood import IntegrationRule
from sk_itdiffusion.datasets import load_density

Array = NDArray[np.float64]

N_EVALUATIONS = 128
N_REPETITIONS = 6
DIRECTIONS = (1, 2, 4, 8)


@dataclass(frozen=True)
class IndependentNoise(NoiseRule):
    """A rule whose draws are independent."""

    def draws(self, keys: Keys, first: int, n_draws: int) -> tuple[Array, Array]:
        """Return noise and coefficients; see `NoiseRule.draws`."""
        eps, coefficient = self.draw(spawn_keys(keys, n_draws, first).ravel())
        shape = (len(keys), n_draws)
        return eps.reshape(*shape, *eps.shape[1:]), coefficient.reshape(*shape, -1)


def load_rows(name: str) -> Array:
    """Return the rows of a data set."""
    if name == "breast_cancer":
        return np.asarray(load_breast_cancer().data, dtype=np.float64)
    if name == "bimodal":
        rng = np.random.default_rng(0)
        return np.concatenate([rng.normal(-2.0, 0.3, 2000), rng.gamma(2.0, 1.0, 2000)])[:, None]
    if name != "curved_50d":
        return load_density(name).sample(4000, random_state=0)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4000, 8))
    bent = np.tanh(hidden @ rng.normal(size=(8, 50)))
    return bent + 0.3 * rng.normal(size=(4000, 50)) + (hidden @ rng.normal(size=(8, 50))) ** 2 / 16


def true_error(estimator: IMMSEDensity, X: Array, noise: NoiseRule) -> float:
    """Return the root of the mean square error of log p under one rule."""
    model = estimator._model
    standardized = model.space.standardized(X)
    mapped, _ = model.space.rows(standardized)
    n_draws = 2 * max(1, round(N_EVALUATIONS / (2 * noise.n_evaluations)))
    rule = IntegrationRule(model.rule.placement, noise, n_draws)
    gaps = [
        model.gap(mapped, row_keys(standardized, seed), model.paired(), rule)[0]
        for seed in range(N_REPETITIONS)
    ]
    scale = rule.n_evaluations / N_EVALUATIONS
    return float(np.sqrt(np.mean(np.var(gaps, axis=0, ddof=1)) * scale))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("bimodal", "spiral", "mixture_10d", "twonorm", "breast_cancer", "curved_50d")
    parser.add_argument("--datasets", nargs="+", choices=names, default=names)
    parser.add_argument("--max-epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    body = []
    for name in arguments.datasets:
        X = load_rows(name)
        shuffled = np.random.default_rng(1).permutation(X)
        estimator = IMMSEDensity(
            reference="gaussian", max_epochs=arguments.max_epochs, random_state=0
        ).fit(shuffled[:-150])
        n_features = X.shape[1]
        for kind, n_directions, central in product(
            (IndependentNoise, NoiseRule), DIRECTIONS, (False, True)
        ):
            if n_directions > n_features:
                continue
            noise = kind(n_features, n_directions, central, 0)
            coupled = "no" if kind is IndependentNoise else "yes"
            error = f"{true_error(estimator, shuffled[-150:], noise):.3f}"
            body.append([name, coupled, str(n_directions), "yes" if central else "no", error])
            print(*body[-1], flush=True)
    print("\n" + format_markdown(["dataset", "coupled", "directions", "origin", "error"], body))


if __name__ == "__main__":
    main()
