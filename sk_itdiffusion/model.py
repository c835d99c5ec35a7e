"""The fitted model behind the estimators: maps, references, network, stack, rule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion.channel import add_noise
from sk_itdiffusion.cubature import Keys, NoiseRule, PiecewiseDensity, row_keys, spawn_keys
from sk_itdiffusion.dequantize import Dequantizer, copy_numbers
from sk_itdiffusion.experts import log_likelihoods
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
from sk_itdiffusion.path import PathRule, path_log_probability
from sk_itdiffusion.progress import stretch_of_progress
from sk_itdiffusion.references import IndependentReference, Reference
from sk_itdiffusion.references.discrete import DiscreteReference
from sk_itdiffusion.sampling import probability_flow_in_blocks
from sk_itdiffusion.space import TableSpace

__all__ = [
    "NETWORKS",
    "BeyondBounds",
    "Effort",
    "TableModel",
    "kind_of_expert",
    "names_of_networks",
    "number_of_network",
    "profile_noise",
    "scoring_noise",
    "summarize_profile",
]

Array = NDArray[np.float64]

#: Kinds of networks: the only or convolutional one, and the fully connected one beside the latter.
NETWORKS = ("network", "dense_network")
#: In standard deviations; what a network says of points farther away means nothing.
LARGEST_NETWORK_INPUT = 1e6
#: Log-density of the reference below which the network adds nothing that float64 resolves.
LEAST_LOG_DENSITY = -1e12
#: Numbers in the rows whose errors are held in memory at a time.
NUMBERS_IN_A_PROFILE = 2**22
MOST_ROWS_IN_A_PROFILE = 5_000
#: Numbers in the rows that are scored at a time; the rest waits in the form that the user gave.
NUMBERS_IN_A_PASS = 2**22
#: Noise draws over which the reference's log-density of a dequantised row is averaged.
DEQUANTIZATIONS = 16
#: Numbers, relative to those of a point, that the widest layers make: of tables and of images.
WIDTH_OF_TABLES, WIDTH_OF_IMAGES = 9, 64


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


@dataclass(frozen=True)
class Effort:
    """How many evaluations scoring may take; see `IntegrationRule` and `NoiseRule`."""

    n_strata: int
    n_draws: int
    n_directions: int | None


@dataclass(frozen=True)
class BeyondBounds:
    """The law of rows that are not between bounds which earlier rows showed.

    Attributes
    ----------
    reference : Reference
        Distribution of standardised rows, without bounds.
    share : float
        Probability that is kept for such rows.
    """

    reference: Reference
    share: float


@dataclass
class TableModel:
    """A fitted density on rows of a table.

    Attributes
    ----------
    space : TableSpace
        Maps of the table's columns to the space of the denoisers.
    references : dict of str to Reference
        Analytic references there.
    control : str
        Name of the reference that is the control variate.
    preconditioner : str
        Name of the reference that the network corrects.
    nets : dict of str to NeuralNet
        The trained networks.
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
    entropy, entropy_std : float
        Validation bound, in nats, and its standard error; NaN if no rows were spared for it.
    history : list of dict
        Bounds of each epoch.
    curve : MSECurve or None
        Errors on the validation rows.
    dequantizer : Dequantizer or None
        Noise that is added to the rows before all else.
    has_images : bool
        Whether the network is one of images.
    beyond : BeyondBounds or None
        The law of rows beyond the bounds of the space; None if they are impossible.
    """

    space: TableSpace
    references: dict[str, Reference]
    control: str
    preconditioner: str
    nets: dict[str, skorch.NeuralNet]
    logsnr: Array
    expert_names: Sequence[str]
    weights: Array
    rule: IntegrationRule | None
    seeds: Seeds
    device: torch.device
    n_fits: int = 1
    entropy: float = math.nan
    entropy_std: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)
    curve: MSECurve | None = None
    dequantizer: Dequantizer | None = None
    has_images: bool = False
    beyond: BeyondBounds | None = None

    def without_wide_components(self) -> TableModel:
        """Return the model with references without components for rows unlike all those seen.

        See `Reference.without_wide_components`.  It is the same object if no reference has any.
        """
        kept = {name: each.without_wide_components() for name, each in self.references.items()}
        if all(kept[name] is each for name, each in self.references.items()):
            return self
        return replace(self, references=kept)

    # -- denoisers ---------------------------------------------------------------------------

    @property
    def precision(self) -> torch.dtype:
        """Precision of the references' denoisers; Apple's devices have no float64.

        For levels alone single precision changes a log-probability by less than 1e-3 nats, far
        less than the noise of its integration, and is up to twice as fast.
        """
        single = self.device.type == "mps" or self.space.is_discrete
        return torch.float32 if single else torch.float64

    @property
    def network_names(self) -> Collection[str]:
        """Names of the experts that are no analytic references."""
        return tuple(self.nets)

    def experts(self) -> dict[str, Denoiser]:
        """Return all denoisers by name, on the device, in the space of the mapped columns."""
        denoisers: dict[str, Denoiser] = {
            name: on_device(reference, self.device, self.precision)
            for name, reference in self.references.items()
        }
        networks: dict[str, Denoiser] = {
            name: network_denoiser(net.module_.averaged) for name, net in self.nets.items()
        }
        return networks | denoisers

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
    def widest(self) -> int:
        """Numbers that the widest step of one evaluation makes."""
        widest = max(
            reference.n_fused if self.device.type == "cpu" else reference.n_intermediate
            for reference in self.references.values()
        )
        factor = WIDTH_OF_IMAGES if self.has_images else WIDTH_OF_TABLES
        return max(widest, factor * self.space.layout.n_points, 256)

    @property
    def budget(self) -> int:
        """Evaluations in one forward pass: as many as keep the widest layer in the cache.

        Larger passes are up to three times slower on a CPU, where the mixture's intermediate
        results, one number for each component and feature, no longer fit; GPUs want large ones.
        Of continuous tables passes are larger in any case: below two thousand evaluations Python's
        own work, for which workers wait for each other, takes as long as the networks'.
        """
        widest = self.widest
        cached = 2**18 if self.device.type == "cpu" else 2**27
        # Enough to be worth a pass, but a bounded number of intermediate results.
        least = int(np.clip(16 * cached // widest, 1, 64))
        if not self.space.layout.variables and not self.has_images:
            least = max(least, min(16 * cached // widest, 2048))
        return int(2 ** math.floor(math.log2(np.clip(cached // widest, least, 2**15))))

    # -- density -----------------------------------------------------------------------------

    def scoring_rule(self, effort: Effort | None) -> IntegrationRule | None:
        """Return the rule of the fit, with another number of draws if an effort is given."""
        if self.rule is None or effort is None:
            return self.rule
        noise = scoring_noise(
            self.space, self.rule.noise.seed, effort.n_directions, self.has_images
        )
        return replace(self.rule, noise=noise, n_strata=effort.n_strata, n_draws=effort.n_draws)

    def log_density(self, values: Array, effort: Effort | None = None) -> tuple[Array, Array]:
        """Return log-densities in nats, in the units of the data, and their variances."""
        total, variance = np.empty(len(values)), np.empty(len(values))
        n_rows = max(1, NUMBERS_IN_A_PASS // max(1, values.shape[1]))
        for start in range(0, len(values), n_rows):
            stop = min(start + n_rows, len(values))
            part = slice(start, stop)
            with stretch_of_progress(start / len(values), stop / len(values)):
                total[part], variance[part] = self._log_density(values[part], effort)
        return total, variance

    def _log_density(self, values: Array, effort: Effort | None) -> tuple[Array, Array]:
        """Return what `log_density` does, of rows that are held in memory several times."""
        rule = self.scoring_rule(effort)
        total = self.constant_log_ratios(values).sum(axis=1) + self.constant_term
        total += self.space.unseen_log_odds(values).sum(axis=1)
        variance = np.zeros(len(values))
        if self.space.is_empty:
            return total, variance
        # Rows so far out that a square overflows have the log-density minus infinity.
        with np.errstate(over="ignore"):
            standardized = self.space.standardized(values)
            keys = row_keys(standardized, self.seeds.scoring)
            if self.dequantizer is None:
                rows, log_reference, near = self._log_reference(standardized)
                points = None
            else:
                rows, points = values, self.dequantized_points
                log_reference, variance, near = self._mean_log_reference(values, keys)
        outside = self.space.outside(values)
        # Denoisers know no points of values that are no levels: such rows are the control's.
        near &= ~outside & self.space.is_complete(standardized)
        total += np.where(outside, self._log_density_beyond(standardized), log_reference)
        variance[outside] = 0.0
        if rule is not None and near.any():
            # Equal rows have equal noise and are done once.
            _, first, group = np.unique(keys[near], return_index=True, return_inverse=True)
            seen = rows[near][first]
            gap, squared_error = information_gap(
                self.space.layout.embed_array(seen) if points is None else seen,
                keys[near][first],
                self.paired(),
                rule,
                budget=self.budget,
                device=self.device,
                dtype=self.precision,
                points=points,
            )
            total[near] += gap[group]
            variance[near] += squared_error[group]
        return total, variance

    @property
    def constant_term(self) -> float:
        """What all log-densities of levels and numbers have in common beside the maps' slopes.

        It is that of the values that the columns without variation have.
        """
        term = float(self.greatest_constant_log_densities.sum()) + float(self.space.log_seen.sum())
        if self.dequantizer is not None:
            term += self.dequantizer.log_volume(self.space.continuous)
        if self.beyond is not None:
            term += math.log1p(-self.beyond.share)
        return term

    @property
    def greatest_constant_log_densities(self) -> Array:
        """Logs of densities of columns without variation, or probabilities, at their values."""
        greatest = self.space.greatest_constant_log_densities()
        if self.dequantizer is None:
            return greatest
        has_cell = self.dequantizer.has_cell[self.space.constant]
        return np.where(has_cell, math.log1p(-self.dequantizer.unseen), greatest)

    @property
    def has_probabilities(self) -> bool:
        """Whether rows have probabilities, so that equal ones are different observations."""
        return self.space.is_discrete or (
            not self.has_images and covers(self.dequantizer, self.space)
        )

    def constant_log_ratios(self, values: Array) -> Array:
        """Return by how much entries are less likely than the only value of their column.

        The shape is (n, n_constant), of the columns without variation; in nats.
        """
        ratios = -0.5 * self.space.squared_constant_deviations(values)
        if self.dequantizer is not None:
            has_cell = self.dequantizer.has_cell[self.space.constant]
            found = self.dequantizer.log_ratio(values)[:, self.space.constant]
            ratios = np.where(has_cell, found, ratios)
        # Contiguous, so that each row's sum is taken in one order, however many rows there are.
        return np.ascontiguousarray(ratios)

    def _log_density_beyond(self, standardized: Array) -> Array:
        """Return the log-density of rows beyond the bounds, in the units of the data."""
        if self.beyond is None:
            return np.full(len(standardized), -np.inf)
        share = math.log(self.beyond.share) - math.log1p(-self.beyond.share)
        slope = -float(np.log(self.space.standardizer.scale).sum())
        return log_likelihoods(self.beyond.reference, standardized) + share + slope

    def dequantized_points(self, values: Array, keys: Keys) -> Array:
        """Return the points of rows (n, c) with a new noise for each key (n, s, r)."""
        assert self.dequantizer is not None
        repeated = np.repeat(values, keys[0].size, axis=0)
        noisy = repeated + self.dequantizer.offsets(keys.ravel())
        rows, _ = self.space.rows(self.space.standardized(noisy))
        return self.space.layout.embed_array(rows).reshape(*keys.shape, -1)

    def _mean_log_reference(
        self, values: Array, keys: Keys
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return the mean over the noise of what `_log_reference` gives, and its variance."""
        assert self.dequantizer is not None
        draws = [
            self._log_reference(self.space.standardized(values + offsets))[1:]
            for offsets in self.reference_offsets(keys)
        ]
        near = np.all([draw[1] for draw in draws], axis=0)
        # Each row's draws are contiguous, so that they are summed in one order.
        logs = np.column_stack([draw[0] for draw in draws])
        variance = np.zeros(len(values))
        variance[near] = logs[near].var(axis=1, ddof=1) / DEQUANTIZATIONS
        return logs.mean(axis=1), variance, near

    def reference_offsets(self, keys: Keys) -> list[Array]:
        """Return the noise over which the reference's log-density is averaged, for each draw."""
        assert self.dequantizer is not None
        drawn = spawn_keys(keys, DEQUANTIZATIONS, first=2**20)
        return [self.dequantizer.offsets(column) for column in drawn.T]

    def _log_reference(self, standardized: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return the model's rows, the control's log-density, and which rows it does not rule out.

        The log-density is in the units of the data.
        """
        rows, log_slope = self.space.rows(standardized)
        finite = np.isfinite(rows).all(axis=1) & np.isfinite(log_slope)
        log_reference = np.full(len(rows), -np.inf)
        log_reference[finite] = log_likelihoods(self.references[self.control], rows[finite])
        near = log_reference > LEAST_LOG_DENSITY
        log_reference[finite] += log_slope[finite]
        return rows, log_reference, near

    def path_log_probability(
        self, values: Array, effort: Effort | None = None
    ) -> tuple[Array, Array]:
        """Return log-probabilities of discrete rows from noise paths, and their variances.

        See `sk_itdiffusion.path`.
        """
        total = self.constant_term + self.space.unseen_log_odds(values).sum(axis=1)
        variance = np.zeros(len(values))
        if self.space.is_empty:
            return total, variance
        rows = self.space.standardized(values)
        rule = self.scoring_rule(effort)
        on_paths = self.space.is_complete(rows) if rule is not None else np.zeros(len(rows), bool)
        total[~on_paths] += log_likelihoods(self.references[self.control], rows[~on_paths])
        if rule is not None and on_paths.any():
            found, variance[on_paths] = self._path_log_probability(rows[on_paths], rule)
            total[on_paths] += found
        return total, variance

    def _path_log_probability(self, rows: Array, rule: IntegrationRule) -> tuple[Array, Array]:
        """Return what `path_log_probability` does, of rows that have levels in all columns."""
        strata = (np.arange(rule.n_strata) + 0.5) / rule.n_strata
        levels = np.append(self.path_placement.quantile(strata), self.logsnr[-1])
        independent = self.references["independent"]
        assert isinstance(independent, IndependentReference)
        return path_log_probability(
            rows,
            row_keys(rows, self.seeds.scoring),
            self.space.layout,
            independent.log_priors,
            self.log_posterior,
            PathRule(
                levels, NoiseRule.for_levels(rule.noise.n_features, rule.noise.seed), rule.n_draws
            ),
            budget=self.budget,
            device=self.device,
            dtype=self.precision,
        )

    @property
    def path_placement(self) -> PiecewiseDensity:
        """Density of the log-SNRs of a path, which begins at the independent columns.

        It is highest where the model's errors differ most from those of independent columns,
        whatever the control variate is.
        """
        assert self.curve is not None
        gap = np.maximum(self.curve.references["independent"] - self.curve.model, 0.0)
        return PiecewiseDensity.from_profile(
            self.logsnr, np.sqrt(0.5 * (gap[1:] + gap[:-1])), floor=0.2
        )

    def log_posterior(self, z: Tensor, logsnr: Tensor) -> list[Tensor]:
        """Return log-posteriors of the levels under the stack, for each block, (B, m, K)."""
        experts = self.posteriors()
        weights = StackedDenoiser({}, self.logsnr, self.weights).expert_weights(logsnr)
        mixed: list[Tensor] = []
        for number, name in enumerate(self.expert_names):
            if not self.weights[:, number].any():
                continue
            log_weight = weights[:, number, None, None].log()
            parts = [log_weight + part for part in experts[name](z, logsnr)]
            pairs = zip(mixed, parts, strict=True)
            mixed = [torch.logaddexp(a, b) for a, b in pairs] if mixed else parts
        return mixed

    def posteriors(self) -> dict[str, Callable[[Tensor, Tensor], list[Tensor]]]:
        """Return the experts' log-posteriors of the levels by name."""
        found: dict[str, Callable[[Tensor, Tensor], list[Tensor]]] = {}
        for name, reference in self.references.items():
            moved = on_device(reference, self.device, self.precision)
            assert isinstance(moved, DiscreteReference)
            found[name] = moved.log_posterior
        for name, net in self.nets.items():
            found[name] = network_posterior(net.module_.averaged)
        return found

    def sample(self, n_samples: int, random_state: np.random.RandomState, n_steps: int) -> Array:
        """Return random rows by the deterministic flow from a noised draw of the reference."""
        if self.space.is_empty:
            return self.space.values(np.empty((n_samples, 0)))
        reference, layout = self.references[self.control], self.space.layout
        rows = reference.sample(n_samples, random_state)
        clean = torch.from_numpy(layout.embed_array(rows))
        noise = torch.from_numpy(random_state.standard_normal(clean.shape))
        if self.rule is None:
            return self._values(clean)
        level = torch.full((n_samples,), float(self.logsnr[0]), dtype=torch.float64)
        start = add_noise(clean, noise, level).to(self.device, self.precision)
        path = torch.linspace(self.logsnr[0], self.logsnr[-1], n_steps + 1).to(start)
        points = probability_flow_in_blocks(self.stack(), start, path, budget=4 * self.budget)
        return self._values(points.double().cpu())

    def _values(self, points: Tensor) -> Array:
        """Return the table's values of points, on the lattices of its columns."""
        rows = self.space.layout.nearest_rows(points)
        return self.on_lattice(self.space.values(rows.numpy()))

    def on_lattice(self, values: Array) -> Array:
        """Return the nearest points of the columns' lattices that are between their bounds."""
        if self.dequantizer is None:
            return values
        return self.dequantizer.rounded_inside(values, self.space.bounds_of_columns())

    def mse_curve(self, values: Array) -> MSECurve:
        """Return the errors of the model and its experts on rows."""
        curves, counts = [], []
        if self.dequantizer is not None:
            number = copy_numbers(self.dequantizer.keys(values))
        affordable = NUMBERS_IN_A_PROFILE // max(1, values.shape[1])
        n_rows = int(np.clip(affordable, 1, MOST_ROWS_IN_A_PROFILE))
        for start in range(0, len(values), n_rows):
            part = values[start : start + n_rows]
            if self.dequantizer is not None:
                part = self.dequantizer.noisy(part, number[start : start + n_rows])
            keys = row_keys(self.space.standardized(part))
            rows, _ = self.space.rows(self.space.standardized(part))
            with stretch_of_progress(start / len(values), (start + len(rows)) / len(values)):
                profile = self.profile(rows, np.ones(len(rows)), keys)
            curves.append(
                summarize_profile(profile, self.expert_names, self.weights, self.network_names)
            )
            counts.append(len(rows))
        return MSECurve.pooled(curves, counts)

    def profile(
        self, rows: Array, weight: Array, keys: Keys, source: Keys | None = None
    ) -> ErrorProfile:
        """Return the products of all experts' residuals at the nodes.

        Rows of one source are copies of one observation, with different noise.
        """
        points = self.space.layout.embed_array(rows)
        n_points = points.shape[1]
        if self.space.is_discrete:
            noise = NoiseRule.for_levels(n_points, seed=1)
        else:
            noise = profile_noise(n_points, self.has_images)
        profile = error_profile(
            points,
            weight,
            keys,
            self.experts(),
            self.logsnr,
            noise,
            budget=self.budget,
            device=self.device,
            dtype=self.precision,
        )
        if source is not None:
            return replace(profile, n_observations=weight.sum(), source=source)
        # Equal rows of discrete columns are different observations.
        return replace(profile, n_observations=weight.sum()) if self.space.is_discrete else profile


def covers(dequantizer: Dequantizer | None, space: TableSpace) -> bool:
    """Return whether all columns that vary are on lattices, so that rows have probabilities."""
    if dequantizer is None or len(space.discrete) or not len(space.continuous):
        return False
    return bool((dequantizer.step[space.continuous] > 0).all())


def names_of_networks(n_networks: int) -> list[str]:
    """Return the names of networks of one kind: network, network_2, network_3 and so on."""
    return [NETWORKS[0], *(f"{NETWORKS[0]}_{number + 1}" for number in range(1, n_networks))]


def number_of_network(name: str) -> int:
    """Return the number, from 0 on, of a network of this name."""
    if name in NETWORKS:
        return NETWORKS.index(name)
    return int(name.removeprefix(f"{NETWORKS[0]}_")) - 1


def kind_of_expert(name: str) -> str:
    """Return the name by which the parameter ``experts`` knows an expert: all networks have one."""
    kind, _, number = name.rpartition("_")
    return kind if kind == NETWORKS[0] and number.isdecimal() else name


def scoring_noise(
    space: TableSpace, seed: int, n_directions: int | None, has_images: bool = False
) -> NoiseRule:
    """Return the noise rule that suits the kinds of the columns."""
    n_points = space.layout.n_points
    if has_images:
        n_directions = 1 if n_directions is None else n_directions
    if not space.layout.variables:
        return NoiseRule.for_scoring(n_points, seed, n_directions)
    mirrored = space.layout.is_nearly_continuous
    return NoiseRule.for_levels(n_points, seed, n_directions, mirrored=mirrored)


def profile_noise(n_points: int, has_images: bool) -> NoiseRule:
    """Return the noise rule of error profiles of continuous columns; images get less of it."""
    return NoiseRule(n_points, 1 if has_images else min(n_points, 2), central=False, seed=1)


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
        noise: Tensor = module(bounded.float(), logsnr.float())
        return noise.to(z.dtype)

    return denoise


def network_posterior(module: torch.nn.Module) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Return a float32 network's log-posterior of levels for tensors of any precision."""

    def posterior(z: Tensor, logsnr: Tensor) -> list[Tensor]:
        bounded = z.clamp(-LARGEST_NETWORK_INPUT, LARGEST_NETWORK_INPUT)
        parts = module.log_posterior(bounded.float(), logsnr.float())  # type: ignore[operator]
        return [part.to(z.dtype) for part in parts]

    return posterior


def summarize_profile(
    profile: ErrorProfile,
    expert_names: Sequence[str],
    weights: Array,
    networks: Collection[str],
) -> MSECurve:
    """Return the means and standard errors of a profile, and the experts' weights."""
    names = list(profile.names)
    spread = profile.spread(expert_names, weights)
    stacked = profile.row_errors(spread)
    rows = {name: profile.row_errors(profile.vertex(name)) for name in names}
    means = {name: value @ profile.row_weight for name, value in rows.items()}
    errors = {name: profile.standard_error(value) for name, value in rows.items()}
    return MSECurve(
        logsnr=profile.logsnr,
        model=stacked @ profile.row_weight,
        model_stderr=profile.standard_error(stacked),
        references={name: means[name] for name in names if name not in networks},
        references_stderr={name: errors[name] for name in names if name not in networks},
        networks={name: means[name] for name in names if name in networks},
        networks_stderr={name: errors[name] for name in names if name in networks},
        weights={name: spread[:, names.index(name)] for name in names},
    )
