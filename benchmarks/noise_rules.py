"""Noise rules for scoring, compared at equal cost with trained networks.

    python benchmarks/noise_rules.py

An exact denoiser behaves well everywhere; a network does not at noise unlike that of its training,
such as none at all, where the spherical-radial rule evaluates it.  So rules are compared by the
standard error that they give to trained networks.  Printed is the root mean square of the standard
errors of log p over rows, scaled to 544 evaluations of the network for each row.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray
from results import format_markdown
from sklearn.datasets import load_breast_cancer

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._immse.cubature import NoiseRule, row_keys
from sk_itdiffusion._immse.likelihood import IntegrationRule, fit_placement, information_gap
from sk_itdiffusion.datasets import load_density

Array = NDArray[np.float64]

N_EVALUATIONS = 544
N_DRAWS = 2
RULES = ((1, False), (4, False), (8, False), (1, True), (4, True), (8, True), (16, True))


def load_rows(name: str) -> Array:
    """Return the rows of a data set."""
    if name == "breast_cancer":
        return np.asarray(load_breast_cancer().data, dtype=np.float64)
    if name != "curved_50d":
        return load_density(name).sample(4000, random_state=0)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4000, 8))
    bent = np.tanh(hidden @ rng.normal(size=(8, 50)))
    return bent + 0.3 * rng.normal(size=(4000, 50)) + (hidden @ rng.normal(size=(8, 50))) ** 2 / 16


def standard_errors(estimator: IMMSEDensity, X: Array, n_directions: int, central: bool) -> Array:
    """Return the standard error of each row's log p under one rule, at equal cost."""
    model = estimator._model
    standardized = model.space.standardized(X)
    mapped, _ = model.space.rows(standardized)
    denoisers = model.paired()
    noise = NoiseRule(mapped.shape[1], min(n_directions, mapped.shape[1]), central, seed=0)
    edges = model.rule.placement.edges
    placement = fit_placement(mapped[:100], row_keys(mapped[:100]), denoisers, noise, edges)
    n_strata = max(2, round(N_EVALUATIONS / (N_DRAWS * noise.n_evaluations)))
    rule = IntegrationRule(placement, noise, n_strata, N_DRAWS)
    keys = row_keys(standardized, seed=1)
    variance = information_gap(mapped, keys, denoisers, rule, budget=model.budget)[1]
    return np.sqrt(variance * rule.n_evaluations / N_EVALUATIONS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("mixture_10d", "twonorm", "breast_cancer", "curved_50d")
    parser.add_argument("--datasets", nargs="+", choices=names, default=names)
    parser.add_argument("--max-epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    body = []
    for name in arguments.datasets:
        X = load_rows(name)
        estimator = IMMSEDensity(
            reference="gaussian", max_epochs=arguments.max_epochs, random_state=0
        ).fit(X)
        for n_directions, central in RULES:
            errors = standard_errors(estimator, X[-150:], n_directions, central)
            size = f"{np.sqrt(np.mean(errors**2)):.3f}"
            body.append([name, str(n_directions), "yes" if central else "no", size])
            print(*body[-1], flush=True)
    print("\n" + format_markdown(["dataset", "directions", "origin", "standard error"], body))


if __name__ == "__main__":
    main()
