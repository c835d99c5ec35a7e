"""The fitted model behind the continuous estimator: maps, references, network, stack, rule."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.cubature import NoiseRule, row_keys
from sk_itdiffusion.experts import (
    log_likelihoods,
)
from sk_itdiffusion.likelihood import (
    Denoiser,
    ErrorProfile,
    IntegrationRule,
    MSECurve,
    PairedDenoiser,
    StackedDenoiser,
    error_profile,
    information_gap,
)
from sk_itdiffusion.marginals import MarginalMap, Standardizer
from sk_itdiffusion.parallel import map_in_workers
from sk_itdiffusion.references import Reference
from sk_itdiffusion.rows import (
    ColumnReport,
)
from sk_itdiffusion.sampling import probability_flow

__all__ = ["NETWORK", "TableModel", "summarize_profile"]

Array = NDArray[np.float64]

NETWORK = "network"
#: Width, relative to its value (or 1), that a column without variation is given.
CONSTANT_WIDTH = 1e-3
#: In standard deviations; what a network says of points farther away means nothing.
LARGEST_NETWORK_INPUT = 1e6
#: Log-density of the reference below which the network adds nothing that float64 resolves.
LEAST_LOG_DENSITY = -1e12
#: Rows whose errors are held in memory at a time.
ROWS_IN_A_PROFILE = 5_000


@dataclass(frozen=True)
class Seeds:
    """Seeds of the parts of a fit."""

    split: int
    mixtures: int
    network: int
    scoring: int

    @classmethod
    def draw(cls, random_state: np.random.RandomState) -> Seeds:
        """Return seeds drawn all at once, so that no choice in a fit shifts another's."""
        return cls(*(int(seed) for seed in random_state.randint(2**31 - 1, size=4)))


@dataclass
class TableModel:
    """A fitted density on rows of a table.

    Attributes
    ----------
    columns : ColumnReport
        Which columns vary; only those enter the denoisers.
    constant_values : ndarray of shape (n_features,)
        Values of the columns without variation.
    standardizer, marginal_map
        Maps of the varying columns to the space of the denoisers.
    references : dict of str to Reference
        Analytic references there.
    control : str
        Name of the reference that is the control variate.
    net : NeuralNet or None
        The trained network.
    logsnr : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_names : sequence of str
        The experts in the stack.
    weights : ndarray of shape (n_nodes, n_experts)
        Their weights at the nodes.
    rule : IntegrationRule or None
        How scoring integrates; None if the stack is the control variate everywhere.
    seeds : Seeds
        Seeds of the split and of the noise in scoring.
    n_fits : int
        Fits so far; more than one with warm starts.
    device : torch.device
        Where the denoisers are.
    entropy : float
        Validation bound, in nats.
    history : list of dict
        Bounds of each epoch.
    curve : MSECurve or None
        Errors on the validation rows.
    """

    columns: ColumnReport
    constant_values: Array
    standardizer: Standardizer
    marginal_map: MarginalMap
    references: dict[str, Reference]
    control: str
    net: skorch.NeuralNet | None
    logsnr: Array
    expert_names: Sequence[str]
    weights: Array
    rule: IntegrationRule | None
    seeds: Seeds
    device: torch.device
    n_fits: int = 1
    entropy: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)
    curve: MSECurve | None = None

    # -- denoisers ---------------------------------------------------------------------------

    @property
    def precision(self) -> torch.dtype:
        """Precision of references and integrals; Apple's devices have no float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def experts(self) -> dict[str, Denoiser]:
        """Return all denoisers by name, on the device, in the space of the mapped columns."""
        denoisers: dict[str, Denoiser] = {
            name: on_device(reference, self.device, self.precision)
            for name, reference in self.references.items()
        }
        if self.net is not None:
            denoisers = {NETWORK: network_denoiser(self.net.module_.averaged), **denoisers}
        return denoisers

    def stack(self, experts: dict[str, Denoiser] | None = None) -> StackedDenoiser:
        """Return the stacked denoiser."""
        denoisers = self.experts() if experts is None else experts
        members = {name: denoisers[name] for name in self.expert_names}
        return StackedDenoiser(members, self.logsnr, self.weights)

    def paired(self) -> PairedDenoiser:
        """Return the control variate and the stack as one function."""
        experts = self.experts()
        return self.stack(experts).paired_with(experts[self.control])

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            self.device = torch.device("cpu")

    @property
    def budget(self) -> int:
        """Evaluations in one forward pass: as many as keep the widest layer in the cache.

        Larger passes are up to three times slower on a CPU, where the mixture's intermediate
        results, one number for each component and feature, no longer fit; GPUs want large ones.
        """
        n_features = len(self.standardizer.center)
        n_components = max(getattr(ref, "n_components", 1) for ref in self.references.values())
        widest = max(n_features * n_components, 9 * n_features, 256)
        cached = 2**18 if self.device.type == "cpu" else 2**24
        return int(2 ** math.floor(math.log2(np.clip(cached // widest, 64, 2**15))))

    # -- density -----------------------------------------------------------------------------

    def log_density(self, X: Array) -> tuple[Array, Array]:
        """Return log-densities in nats, in the units of the data, and their variances."""
        total, variance = self._constant_log_density(X), np.zeros(len(X))
        if not self.columns.varies.any():
            return total, variance
        # Rows so far out that a square overflows have the log-density minus infinity.
        with np.errstate(over="ignore"):
            standardized = self.standardizer.transform(X[:, self.columns.varies])
            mapped, log_slope = self.marginal_map.transform(standardized)
        finite = np.isfinite(mapped).all(axis=1) & np.isfinite(log_slope)
        log_reference = np.full(len(X), -np.inf)
        log_reference[finite] = log_likelihoods(self.references[self.control], mapped[finite])
        total += log_reference + np.where(finite, log_slope, 0.0)
        total -= np.log(self.standardizer.scale).sum()
        near = log_reference > LEAST_LOG_DENSITY
        if self.rule is not None and near.any():
            gap, variance[near] = information_gap(
                mapped[near],
                row_keys(standardized[near], self.seeds.scoring),
                self.paired(),
                self.rule,
                budget=self.budget,
                device=self.device,
                dtype=self.precision,
            )
            total[near] += gap
        return total, variance

    def _constant_log_density(self, X: Array) -> Array:
        """Return the narrow normal densities of the columns without variation."""
        fixed = ~self.columns.varies
        if not fixed.any():
            return np.zeros(len(X))
        values = self.constant_values[fixed]
        width = CONSTANT_WIDTH * np.where(values == 0.0, 1.0, np.abs(values))
        # Contiguous, so that each row's sum is taken in one order, however many rows there are.
        deviation = np.ascontiguousarray((X[:, fixed] - values) / width)
        return np.asarray(
            -0.5 * (deviation**2).sum(axis=1)
            - np.log(width).sum()
            - 0.5 * math.log(2 * math.pi) * fixed.sum()
        )

    def sample(self, n_samples: int, random_state: np.random.RandomState, n_steps: int) -> Array:
        """Return random rows by the deterministic flow from a noised draw of the reference."""
        X = np.tile(self.constant_values, (n_samples, 1))
        if not self.columns.varies.any():
            return X
        reference = self.references[self.control]
        level = torch.full((n_samples,), float(self.logsnr[0]), dtype=torch.float64)
        clean = torch.from_numpy(reference.sample(n_samples, random_state))
        noise = torch.from_numpy(random_state.standard_normal(clean.shape))
        if self.rule is None:
            mapped = clean.numpy()
        else:
            start = add_noise(clean, noise, level).to(self.device, self.precision)
            path = torch.linspace(self.logsnr[0], self.logsnr[-1], n_steps + 1).to(start)
            stack = self.stack()
            blocks = map_in_workers(
                lambda block: probability_flow(stack, block, path),
                start.split(4 * self.budget),
                self.device,
            )
            mapped = torch.cat(blocks).double().cpu().numpy()
        X[:, self.columns.varies] = self.standardizer.inverse(self.marginal_map.inverse(mapped))
        return X

    def mse_curve(self, X: Array) -> MSECurve:
        """Return the errors of the model and its experts on rows."""
        standardized = self.standardizer.transform(X[:, self.columns.varies])
        mapped, _ = self.marginal_map.transform(standardized)
        keys = row_keys(standardized)
        curves, counts = [], []
        for start in range(0, len(X), ROWS_IN_A_PROFILE):
            part = slice(start, start + ROWS_IN_A_PROFILE)
            rows = mapped[part]
            profile = self.profile(rows, np.ones(len(rows)), keys[part])
            curves.append(summarize_profile(profile, self.expert_names, self.weights))
            counts.append(len(rows))
        return MSECurve.pooled(curves, counts)

    def profile(self, mapped: Array, weight: Array, keys: NDArray[np.uint64]) -> ErrorProfile:
        """Return the products of all experts' residuals at the nodes."""
        n_features = mapped.shape[1]
        return error_profile(
            mapped,
            weight,
            keys,
            self.experts(),
            self.logsnr,
            NoiseRule(n_features, min(n_features, 2), central=False, seed=1),
            budget=self.budget,
            device=self.device,
            dtype=self.precision,
        )


def on_device(reference: Reference, device: torch.device, dtype: torch.dtype) -> Reference:
    """Return the reference, or a copy of it where it has to move."""
    if device.type == "cpu" and dtype == torch.float64:
        return reference
    return copy.deepcopy(reference).to(device=device, dtype=dtype)


def network_denoiser(module: torch.nn.Module) -> Denoiser:
    """Return a float32 network as a denoiser for tensors of any precision.

    Points beyond all data are seen by the network at a bound, where float32 still squares them.
    Any function of the noisy point is a denoiser, so the bound on the likelihood holds.
    """

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        bounded = z.clamp(-LARGEST_NETWORK_INPUT, LARGEST_NETWORK_INPUT)
        return module(bounded.float(), logsnr.float()).to(z.dtype)

    return denoise


def summarize_profile(
    profile: ErrorProfile, expert_names: Sequence[str], weights: Array
) -> MSECurve:
    """Return the means and standard errors of a profile, and the experts' weights."""
    names = list(profile.names)
    spread = np.zeros((len(profile.logsnr), len(names)))
    for column, name in enumerate(expert_names):
        spread[:, names.index(name)] = weights[:, column]
    stacked = profile.row_errors(spread)
    rows = {name: profile.row_errors(profile.vertex(name)) for name in names}
    means = {name: value @ profile.row_weight for name, value in rows.items()}
    errors = {name: profile.standard_error(value) for name, value in rows.items()}
    return MSECurve(
        logsnr=profile.logsnr,
        model=stacked @ profile.row_weight,
        model_stderr=profile.standard_error(stacked),
        references={name: means[name] for name in names if name != NETWORK},
        references_stderr={name: errors[name] for name in names if name != NETWORK},
        networks={name: means[name] for name in names if name == NETWORK},
        networks_stderr={name: errors[name] for name in names if name == NETWORK},
        weights={name: spread[:, names.index(name)] for name in names},
    )
