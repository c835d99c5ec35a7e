"""The fitted model behind the estimators: maps, references, network, stack, rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._fit.experts import Experts, Mixing, network_posterior, on_device
from sk_itdiffusion._first._fit.model_of_parts import (
    DEQUANTIZATIONS,
    MIN_LOG_DENSITY,
    NUMBERS_IN_A_PASS,
    ModelOfParts,
    n_dequantizations,
)
from sk_itdiffusion._first._fit.patterns import PatternStack
from sk_itdiffusion._first._immse.cubature import (
    Keys,
    NoiseRule,
    PiecewiseDensity,
    copy_numbers,
    keys_apart,
    row_keys,
)
from sk_itdiffusion._first._immse.error_profiles import ErrorProfile
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._immse.likelihood import (
    Denoiser,
    IntegrationRule,
    MSECurve,
    PairedDenoiser,
    PointsOfDraws,
    StackedDenoiser,
)
from sk_itdiffusion._first._immse.path import PathRule, path_log_probability
from sk_itdiffusion._first._immse.sampling import probability_flow_in_chunks
from sk_itdiffusion._first._runtime.progress import stretch_of_progress
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.layout import Layout, check_same_layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_in_range,
    check_increasing,
    check_not_negative,
    check_same,
    check_shapes,
)
from sk_itdiffusion._first.references import IndependentReference, Reference
from sk_itdiffusion._first.references.discrete import DiscreteReference
from sk_itdiffusion._first.references.judging import log_likelihoods

__all__ = [
    "TableModel",
    "summarize_profile",
]

Array = NDArray[np.float64]
#: Numbers in the rows whose errors are held in memory at a time.
NUMBERS_IN_A_PROFILE = 2**22
MAX_ROWS_IN_A_PROFILE = 5_000
#: Log-SNRs are within these bounds.
MAX_LOGSNR = 700.0
#: Log-SNRs at which each path is looked at.
PATH_STEPS = 32


@dataclass(frozen=True)
class ControlLogDensity:
    """What the control variate says about rows.

    Attributes
    ----------
    rows : ndarray of shape (n_samples, n_columns)
        The rows that are integrated: mapped ones, or those that are dequantised anew in each draw.
    log_density : ndarray of shape (n_samples,)
        Log-densities of the mapped rows.
    log_slope : ndarray of shape (n_samples,)
        Log of the maps' slopes, which makes them log-densities in the units of the data.
    is_near : ndarray of shape (n_samples,), bool
        Which rows it does not rule out.
    variance : ndarray of shape (n_samples,)
        Variances of the sum of both, if it is a mean over noise.
    """

    rows: Array
    log_density: Array
    log_slope: Array
    is_near: NDArray[np.bool_]
    variance: Array


@stored(is_placed=True)
@dataclass(frozen=True, kw_only=True)
class TableModel(ModelOfParts):
    """A fitted density on rows of a table: experts and their weights.

    Besides the attributes of `ModelOfParts` it has the following.

    Attributes
    ----------
    control : str
        Name of the reference that is the control variate.
    logsnr : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_names : sequence of str
        The experts in the stack.
    weights : ndarray of shape (n_nodes, n_experts)
        Their weights at the nodes.
    rule : IntegrationRule or None
        How scoring integrates; None if the stack is the control variate everywhere.
    entropy, entropy_std : float
        Validation bound, in nats, and its standard error; NaN if no rows were spared for it.
    history : list of dict
        Bounds of each epoch.
    curve : MSECurve or None
        Errors on the validation rows.
    """

    control: str
    logsnr: Array
    expert_names: Sequence[str]
    weights: Array
    rule: IntegrationRule | None
    entropy: float = math.nan
    entropy_std: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)
    curve: MSECurve | None = None

    @classmethod
    def of(cls, experts: Experts, mixing: Mixing, **rest: Any) -> Self:
        """Return the model of weighted experts."""
        parts = {each.name: getattr(experts, each.name) for each in fields(experts)}
        return cls(**parts, **vars(mixing), **rest)

    @property
    def mixing(self) -> Mixing:
        """The experts' weights."""
        return Mixing(self.control, self.logsnr, self.expert_names, self.weights)

    def weights_by_expert(self) -> dict[str, Array]:
        """Return copies of the weights at the nodes, for each expert by its name."""
        return {name: self.weights[:, i].copy() for i, name in enumerate(self.expert_names)}

    def stack(self, experts: Mapping[str, Denoiser] | None = None) -> StackedDenoiser:
        """Return the stacked denoiser."""
        return self.mixing.stack(self.experts() if experts is None else experts)

    def paired(self) -> PairedDenoiser:
        """Return the control variate and the stack as one function."""
        return self.mixing.paired(self.experts())

    def without_wide_components(self) -> TableModel:
        """Return the model with references without components for rows unlike all training rows.

        See `Reference.without_wide_components`.  It is the same object if no reference has any.
        """
        kept = {name: each.without_wide_components() for name, each in self.references.items()}
        if all(kept[name] is each for name, each in self.references.items()):
            return self
        parts = None
        if self.has_missing and self.parts is not None:
            parts = self.parts.without_wide_components()
        return replace(self, references=kept, parts=parts)

    # -- density -----------------------------------------------------------------------------

    def log_density(self, values: Array, tolerance: Tolerance) -> tuple[Array, Array]:
        """Return log-densities in nats, in the units of the data, and their variances."""
        total, variance = np.empty(len(values)), np.empty(len(values))
        width = max(1, values.shape[1])
        if self.dequantizer is not None:
            width = max(width, n_dequantizations(tolerance) // DEQUANTIZATIONS)
        n_rows = max(1, NUMBERS_IN_A_PASS // width)
        for start in range(0, len(values), n_rows):
            stop = min(start + n_rows, len(values))
            part = slice(start, stop)
            with stretch_of_progress(start / len(values), stop / len(values)):
                total[part], variance[part] = self._log_density(values[part], tolerance)
        return total, variance

    def _log_density(self, values: Array, tolerance: Tolerance) -> tuple[Array, Array]:
        """Return what `log_density` does, of rows that are held in memory several times."""
        in_parts = self.answers_by_parts(values)
        if not in_parts.any():
            return self._log_density_of_rows(values, tolerance)
        total, variance = np.empty(len(values)), np.empty(len(values))
        whole = ~in_parts
        if whole.any():
            total[whole], variance[whole] = self._log_density_of_rows(values[whole], tolerance)
        of_parts = self._log_density_of_parts(values[in_parts], tolerance)
        total[in_parts], variance[in_parts] = of_parts
        return total, variance

    def _log_density_of_rows(self, values: Array, tolerance: Tolerance) -> tuple[Array, Array]:
        """Return what `log_density` does, of complete rows."""
        total = self.log_density_of_constants(values)
        variance = np.zeros(len(values))
        if self.space.is_empty:
            return total, variance
        values = np.where(self.space.entries_outside(values), np.nan, values)
        # Rows so far out that a square overflows have the log-density minus infinity.
        with np.errstate(over="ignore"):
            standardized = self.space.standardized(values)
            keys = row_keys(standardized, self.seeds.scoring)
            control = self.control_log_density(values, standardized, keys, tolerance)
        # Denoisers know no points of unknown values: such rows are the control's.
        near = control.is_near & self.space.is_complete(standardized)
        total += control.log_density + control.log_slope
        variance += control.variance
        if self.rule is not None and near.any():
            # Equal rows have equal noise and are done once.
            _, first, group = np.unique(keys[near], return_index=True, return_inverse=True)
            chosen = np.flatnonzero(near)[first]
            if self.dequantizer is None:
                rows, points = self.space.layout.embed_array(control.rows[chosen]), None
            else:
                rows, points = values[chosen], self.dequantized_points
            gap, squared_error = self.integrated_gap(
                self.rule, rows, keys[chosen], control.log_density[chosen], tolerance, points
            )
            total[near] += gap[group]
            variance[near] += squared_error[group]
        return total, variance

    def integrated_gap(
        self,
        rule: IntegrationRule,
        rows: Array,
        keys: Keys,
        log_density: Array,
        tolerance: Tolerance,
        points: PointsOfDraws | None = None,
    ) -> tuple[Array, Array]:
        """Return the integrals over the log-SNR with a given standard error, and their variances.

        Parameters
        ----------
        rule : IntegrationRule
            A calibrated rule.
        rows, keys, points
            See `information_gap`.
        log_density : ndarray of shape (n_samples,)
            Log-densities of the control variate, by which the number of draws is chosen.
        tolerance : Tolerance
            Standard error that each row should have.

        Returns
        -------
        gap, variance : ndarray of shape (n_samples,)
            Integrals, and variances of their errors.
        """
        paired = self.paired()
        assert rule.errors is not None
        gap, variance = np.empty(len(rows)), np.empty(len(rows))
        rungs = list(rule.rungs(log_density, tolerance))
        work = np.cumsum([0, *(each.n_draws * len(chosen) for each, chosen in rungs)])
        for number, (each, chosen) in enumerate(rungs):
            with stretch_of_progress(*(work[number : number + 2] / work[-1])):
                gap[chosen], spread = self.gap(rows[chosen], keys[chosen], paired, each, points)
            variance[chosen] = rule.errors.estimated(log_density[chosen], spread, each.n_draws)
        return gap, variance

    def control_log_density(
        self, values: Array, standardized: Array, keys: Keys, tolerance: Tolerance
    ) -> ControlLogDensity:
        """Return the control variate's log-densities, means over the noise of dequantised rows."""
        if self.dequantizer is None:
            return self._control_log_density(standardized)
        draws = [
            self._control_log_density(self.space.standardized(values + offsets))
            for offsets in self.reference_offsets(keys, tolerance)
        ]
        near = np.all([draw.is_near for draw in draws], axis=0)
        # Each row's draws are contiguous, so that they are summed in one order.
        logs = np.column_stack([draw.log_density for draw in draws])
        slopes = np.column_stack([draw.log_slope for draw in draws])
        variance = np.zeros(len(values))
        variance[near] = (logs + slopes)[near].var(axis=1, ddof=1) / len(draws)
        return ControlLogDensity(values, logs.mean(axis=1), slopes.mean(axis=1), near, variance)

    def _control_log_density(self, standardized: Array) -> ControlLogDensity:
        rows, log_slope = self.space.rows(standardized)
        is_number = np.isfinite(rows) | np.isnan(standardized)
        finite = is_number.all(axis=1) & np.isfinite(log_slope)
        log_density = np.full(len(rows), -np.inf)
        log_density[finite] = log_likelihoods(self.references[self.control], rows[finite])
        near = log_density > MIN_LOG_DENSITY
        slope = np.where(finite, log_slope, 0.0)
        return ControlLogDensity(rows, log_density, slope, near, np.zeros(len(rows)))

    def path_log_probability(
        self, values: Array, n_paths: int, tolerance: Tolerance
    ) -> tuple[Array, Array]:
        """Return log-probabilities of discrete rows from noise paths, and their variances.

        See `sk_itdiffusion._first._immse.path`.  Rows with missing entries have no paths.
        """
        in_parts = self.answers_by_parts(values)
        if in_parts.any():
            total, variance = np.empty(len(values)), np.empty(len(values))
            whole = ~in_parts
            of_parts = self._log_density_of_parts(values[in_parts], tolerance)
            total[in_parts], variance[in_parts] = of_parts
            if whole.any():
                of_paths = self.path_log_probability(values[whole], n_paths, tolerance)
                total[whole], variance[whole] = of_paths
            return total, variance
        total = self.constant_term + self.space.unseen_log_odds(values).sum(axis=1)
        variance = np.zeros(len(values))
        if self.space.is_empty:
            return total, variance
        rows = self.space.standardized(values)
        on_paths = self.space.is_complete(rows) & (self.rule is not None)
        total[~on_paths] += log_likelihoods(self.references[self.control], rows[~on_paths])
        if on_paths.any():
            # Equal rows have equal noise and are done once.
            keys = row_keys(rows[on_paths], self.seeds.scoring)
            _, first, group = np.unique(keys, return_index=True, return_inverse=True)
            seen = rows[on_paths][first]
            found, squared_error = self._path_log_probability(seen, keys[first], n_paths)
            total[on_paths] += found[group]
            variance[on_paths] = squared_error[group]
        return total, variance

    def _path_log_probability(self, rows: Array, keys: Keys, n_paths: int) -> tuple[Array, Array]:
        """Return what `path_log_probability` does, of rows that have categories in all columns."""
        strata = (np.arange(PATH_STEPS) + 0.5) / PATH_STEPS
        levels = np.append(self.path_placement.quantile(strata), self.logsnr[-1])
        plain = self.references[self.plain]
        assert isinstance(plain, IndependentReference)
        return path_log_probability(
            rows,
            keys,
            self.space.layout,
            plain.log_priors,
            self.log_posterior,
            PathRule(
                levels,
                NoiseRule.for_categories(self.space.layout.n_points, self.seeds.scoring),
                n_paths,
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
        gap = np.maximum(self.curve.references[self.plain] - self.curve.model, 0.0)
        return PiecewiseDensity.from_profile(
            self.logsnr, np.sqrt(0.5 * (gap[1:] + gap[:-1])), floor=0.2
        )

    def log_posterior(self, z: Tensor, logsnr: Tensor) -> list[Tensor]:
        """Return log-posteriors of the categories under the stack, for each group, (B, m, K)."""
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
        """Return the experts' log-posteriors of the categories by name."""
        found: dict[str, Callable[[Tensor, Tensor], list[Tensor]]] = {}
        for name, reference in self.references.items():
            moved = on_device(reference, self.device, self.precision)
            assert isinstance(moved, DiscreteReference)
            found[name] = moved.log_posterior
        for name, net in self.nets.items():
            found[name] = network_posterior(net.module_.averaged)
        return found

    def sample(self, n_samples: int, random_state: np.random.RandomState, n_steps: int) -> Array:
        """Return random rows by the deterministic flow from a noised draw of the reference.

        It begins where the stack begins to differ from the control variate, whose own flow carries
        its noised law to any other log-SNR.
        """
        if self.space.is_empty:
            return self.space.values(np.empty((n_samples, 0)))
        if self.patterns is not None and self.has_missing:
            nothing = np.full((n_samples, self.space.n_columns), np.nan)
            drawn = self.complete(nothing, 1, int(random_state.randint(2**31 - 1)))[0]
            return np.asarray(drawn)
        if self.has_missing:
            assert self.parts is not None
            drawn = self.parts.sample(n_samples, random_state)
            return self.on_lattice(self.space.values(drawn))
        reference, layout = self.references[self.control], self.space.layout
        rows = reference.sample(n_samples, random_state)
        clean = torch.from_numpy(layout.embed_array(rows))
        noise = torch.from_numpy(random_state.standard_normal(clean.shape))
        if self.rule is None:
            return self._values(clean)
        placement = self.flow_placement
        level = torch.full((n_samples,), float(placement.edges[0]), dtype=torch.float64)
        start = add_noise(clean, noise, level).to(self.device, self.precision)
        path = torch.from_numpy(placement.quantile(np.linspace(0.0, 1.0, n_steps + 1))).to(start)
        points = probability_flow_in_chunks(self.stack(), start, path, budget=4 * self.budget)
        return self._values(points.double().cpu())

    @property
    def flow_placement(self) -> PiecewiseDensity:
        """Density of the log-SNRs at which samples are evaluated, from where the stack differs on.

        Three quarters are uniform.  The rest follows the fall of the model's error in the data,
        which is how fast its estimate moves; the cube root is what a method of third order needs.
        """
        assert self.curve is not None
        assert self.rule is not None
        inside = self.logsnr >= self.rule.placement.edges[0]
        nodes = self.logsnr[inside]
        fall = -np.diff(self.curve.model[inside] * np.exp(-nodes)) / np.diff(nodes)
        return PiecewiseDensity.from_profile(nodes, np.cbrt(np.maximum(fall, 0.0)), floor=0.75)

    def _values(self, points: Tensor) -> Array:
        """Return the table's values of points, on the lattices of its columns."""
        rows = self.space.layout.nearest_rows(points)
        return self.on_lattice(self.space.values(rows.numpy()))

    def mse_curve(self, values: Array) -> MSECurve:
        """Return the errors of the model and its experts on rows."""
        curves, counts = [], []
        # Equal rows have noise of their own, or the errors would be those of a few draws.
        if self.dequantizer is None:
            all_keys = keys_apart(row_keys(self.space.standardized(values)))
        else:
            number = copy_numbers(self.dequantizer.keys(values))
        affordable = NUMBERS_IN_A_PROFILE // max(1, values.shape[1])
        n_rows = int(np.clip(affordable, 1, MAX_ROWS_IN_A_PROFILE))
        for start in range(0, len(values), n_rows):
            part = values[start : start + n_rows]
            if self.dequantizer is not None:
                part = self.dequantizer.noisy(part, number[start : start + n_rows])
                keys = row_keys(self.space.standardized(part))
            else:
                keys = all_keys[start : start + n_rows]
            rows, _ = self.space.rows(self.space.standardized(part))
            with stretch_of_progress(start / len(values), (start + len(rows)) / len(values)):
                profile = self.profile(rows, np.ones(len(rows)), keys, self.logsnr)
            curves.append(
                summarize_profile(profile, self.expert_names, self.weights, self.network_names)
            )
            counts.append(len(rows))
        return MSECurve.pooled(curves, counts)

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        layout, n_columns = self.space.layout, self.space.n_columns
        for reference in self.references.values():
            check_reference(reference, layout)
        for net in self.nets.values():
            network = net.module_.averaged
            check_same_layout(net.module_.layout, layout)
            check_reference(network.reference, layout)
        for nodes in (self.grid, self.logsnr):
            check_increasing(nodes, "log-SNRs")
            check_in_range(nodes, -MAX_LOGSNR, MAX_LOGSNR, "log-SNRs")
        names = self.expert_names
        check_same(self.weights.shape, (len(self.logsnr), len(names)), "there are other weights")
        check_not_negative(self.weights, "weights of experts")
        if not self.space.is_empty:
            known = {*self.references, *self.network_names}
            if not {*names, self.control} <= known or not {self.control, self.plain} <= {
                *self.references
            }:
                raise ValueError("an expert is none of the model's")
        if self.rule is not None:
            if self.rule.errors is None:
                raise ValueError("the rule of integration has no calibration")
            check_same(self.rule.noise.n_features, layout.n_points, "the noise has other columns")
            edges = self.rule.placement.edges
            check_in_range(edges, -MAX_LOGSNR, MAX_LOGSNR, "edges of strata")
        if self.dequantizer is not None:
            check_shapes(self.dequantizer, {"step": "n"}, n=n_columns)
        if self.parts is not None:
            for reference in self.parts.references:
                check_reference(reference, layout)
        elif self.has_missing and not self.space.is_empty:
            raise ValueError("there is nothing that answers for missing entries")
        if self.patterns is not None:
            self._check_patterns(self.patterns)

    def _check_patterns(self, patterns: PatternStack) -> None:
        """Raise an error if what answers for parts of rows is of other columns or experts."""
        if not self.networks_have_roles:
            raise ValueError("a network that answers for parts of rows has no roles")
        layout, names = self.space.layout, {*self.references, *self.nets}
        if self.parts is None or not {patterns.control, *patterns.expert_names} <= names:
            raise ValueError("an expert for parts of rows is none of the model's")
        if not {patterns.control, self.preconditioner} <= {*self.references}:
            raise ValueError("there is no control variate for parts of rows")
        check_same(len(patterns.drivers), layout.n_columns, "there are other columns")
        check_in_range(patterns.logsnr, -MAX_LOGSNR, MAX_LOGSNR, "log-SNRs")


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


def check_reference(reference: Reference, layout: Layout) -> None:
    """Raise an error if a loaded reference is not one of a layout's columns."""
    check_same(reference.n_features, layout.n_points, "a reference has other columns")
    own = reference.layout if isinstance(reference, DiscreteReference) else Layout(layout.n_points)
    check_same_layout(own, layout)
