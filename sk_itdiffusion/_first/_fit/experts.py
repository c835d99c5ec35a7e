"""The fitted denoisers behind a model, and their weights."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._immse.cubature import Keys, NoiseRule
from sk_itdiffusion._first._immse.error_profiles import ErrorProfile, error_profile
from sk_itdiffusion._first._immse.likelihood import (
    Denoiser,
    IntegrationRule,
    PairedDenoiser,
    PointsOfDraws,
    StackedDenoiser,
    information_gap,
)
from sk_itdiffusion._first._immse.places import EVALUATIONS_IN_A_TILE, SINGLE_APART
from sk_itdiffusion._first._table.dequantize import Dequantizer
from sk_itdiffusion._first._table.space import TableSpace
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references import Reference

__all__ = [
    "NETWORKS",
    "Experts",
    "Mixing",
    "covers",
    "kind_of_expert",
    "names_of_networks",
    "network_denoiser",
    "noise_for_layout",
    "number_of_network",
    "profile_noise",
    "scoring_noise",
]

Array = NDArray[np.float64]
Module = TypeVar("Module", bound=torch.nn.Module)
#: Kinds of networks: the only or convolutional one, and the fully connected one next to the latter.
NETWORKS = ("network", "dense_network")
#: In standard deviations; what a network says of points farther away means nothing.
MAX_NETWORK_INPUT = 1e6
#: Numbers, relative to those of a point, that the widest layers make: of tables and of images.
WIDTH_OF_TABLES, WIDTH_OF_IMAGES = 9, 64
#: Numbers of a layer on a CPU.  The memory of more is given back to the system after each use, and
#: asked for again, which may take as long as the layer.
NUMBERS_OF_A_LAYER = 2**18


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The denoisers that are fitted to the rows of a table, before they are weighted.

    Attributes
    ----------
    space : TableSpace
        Maps of the table's columns to the space of the denoisers.
    references : dict of str to Reference
        Analytic references there.
    plain : str
        Name of the reference of the fewest assumptions: one normal distribution, independent
        discrete columns, or both.
    preconditioner : str
        Name of the reference that the networks correct.
    nets : dict of str to NeuralNet
        The trained networks.
    grid : ndarray of shape (n_nodes,)
        Nodes of the log-SNR between which the networks are trained.
    seeds : Seeds
        Seeds of the split and of the noise in scoring.
    device : torch.device
        Where the denoisers are.
    n_fits : int
        Fits so far; more than one with warm starts.
    dequantizer : Dequantizer or None
        Noise that is added to the rows before all else.
    has_images : bool
        Whether the rows are images of continuous pixels.
    """

    space: TableSpace
    references: dict[str, Reference]
    plain: str
    preconditioner: str
    nets: dict[str, skorch.NeuralNet]
    grid: Array
    seeds: Seeds
    device: torch.device
    n_fits: int = 1
    dequantizer: Dequantizer | None = None
    has_images: bool = False

    @property
    def precision(self) -> torch.dtype:
        """Precision of the references' denoisers; Apple's devices have no float64.

        For categories alone single precision changes a log-probability by less than 1e-3 nats, far
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            self.__dict__["device"] = torch.device("cpu")

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
        Of tables passes are larger in any case: below two thousand evaluations of continuous
        columns, and a few hundred of categories, Python's own work, for which workers wait for each
        other, takes as long as the networks'.
        """
        widest = self.widest
        cached = 2**18 if self.device.type == "cpu" else 2**27
        # Enough to be worth a pass, but a bounded number of intermediate results.
        least = int(np.clip(16 * cached // widest, 1, 64))
        if not self.has_images:
            enough = 512 if self.space.layout.variables else 2048
            least = max(least, min(16 * cached // widest, enough))
        return int(2 ** math.floor(math.log2(np.clip(cached // widest, least, 2**15))))

    @property
    def constant_term(self) -> float:
        """What all log-densities of categories and numbers have in common besides the maps' slopes.

        It is that of the values that the columns without variation have.
        """
        term = float(self.greatest_constant_log_densities.sum()) + float(self.space.log_known.sum())
        if self.dequantizer is not None:
            term += self.dequantizer.log_volume(self.space.continuous)
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
    def terms_of_columns(self) -> Array:
        """What each column that is observed adds to the log-densities, (n_columns,), in nats.

        Their sum is `constant_term`.
        """
        terms = self.space.log_known
        terms[self.space.constant] += self.greatest_constant_log_densities
        if self.dequantizer is not None:
            on_lattice = self.space.continuous[self.dequantizer.step[self.space.continuous] > 0]
            terms[on_lattice] += np.log(self.dequantizer.step[on_lattice])
        return terms

    def terms_of_parts(self, seen: Array) -> Array:
        """Return what columns add to log-densities of parts of rows, alongside maps and references.

        Parameters
        ----------
        seen : ndarray of shape (n, n_columns)
            Which columns are observed, 0 or 1, or with which probability.

        Returns
        -------
        ndarray of shape (n,)
            The terms, in nats; 0 where no column is observed.
        """
        return np.asarray(np.where(seen > 0, seen * self.terms_of_columns, 0.0).sum(axis=1))

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

    def log_density_of_constants(self, values: Array) -> Array:
        """Return the part of log-densities that no denoiser is asked for, in nats.

        It is that of columns without variation, of values that no row of the fit has, and of values
        beyond bounds.
        """
        total = self.constant_log_ratios(values).sum(axis=1) + self.constant_term
        total += self.space.unseen_log_odds(values).sum(axis=1)
        return np.asarray(total)

    def dequantized_points(self, values: Array, keys: Keys) -> Array:
        """Return the points of rows (n, c) with a new noise for each key (n, r)."""
        assert self.dequantizer is not None
        repeated = np.repeat(values, keys[0].size, axis=0)
        noisy = repeated + self.dequantizer.offsets(keys.ravel())
        rows, _ = self.space.rows(self.space.standardized(noisy))
        return self.space.layout.embed_array(rows).reshape(*keys.shape, -1)

    def rows_to_integrate(self, mapped: Array) -> tuple[Array, PointsOfDraws | None]:
        """Return rows of the space of the denoisers as `gap` takes them, and their points."""
        if self.dequantizer is None:
            return self.space.layout.embed_array(mapped), None
        return self.on_lattice(self.space.values(mapped)), self.dequantized_points

    def on_lattice(self, values: Array) -> Array:
        """Return the nearest points of the columns' lattices that are between their bounds."""
        if self.dequantizer is None:
            return values
        return self.dequantizer.rounded_inside(values, self.space.bounds_of_columns())

    @property
    def evaluations_apart(self) -> int:
        """Places at multiples of which rows begin; see `sk_itdiffusion._first._immse.places`."""
        in_tiles = any(reference.looks_at_tiles for reference in self.references.values())
        return EVALUATIONS_IN_A_TILE if in_tiles else SINGLE_APART

    def gap(
        self,
        rows: Array,
        keys: Keys,
        paired: PairedDenoiser,
        rule: IntegrationRule,
        points: PointsOfDraws | None = None,
    ) -> tuple[Array, Array]:
        """Return `information_gap` on the experts' device, in their precision."""
        return information_gap(
            rows,
            keys,
            paired,
            rule,
            budget=self.budget,
            device=self.device,
            dtype=self.precision,
            points=points,
            apart=self.evaluations_apart,
        )

    def profile_noise(self, n_points: int) -> NoiseRule:
        """Return the noise rule of error profiles for so many coordinates."""
        if self.space.is_discrete:
            return NoiseRule.for_categories(n_points, seed=1)
        return profile_noise(n_points, self.has_images)

    def profile(
        self, rows: Array, weight: Array, keys: Keys, logsnr: Array, source: Keys | None = None
    ) -> ErrorProfile:
        """Return the products of all experts' residuals at nodes of the log-SNR.

        Rows of one source are copies of one observation, with different noise.
        """
        points = self.space.layout.embed_array(rows)
        noise = self.profile_noise(points.shape[1])
        profile = error_profile(
            points,
            weight,
            keys,
            self.experts(),
            logsnr,
            noise,
            budget=self.budget,
            device=self.device,
            dtype=self.precision,
        )
        if source is not None:
            return replace(profile, n_observations=weight.sum(), source=source)
        # Equal rows of discrete columns are different observations.
        return replace(profile, n_observations=weight.sum()) if self.space.is_discrete else profile


@dataclass(frozen=True)
class Mixing:
    """Weights of experts at nodes of the log-SNR.

    Attributes
    ----------
    control : str
        Name of the reference that is the control variate.
    logsnr : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_names : sequence of str
        The experts.
    weights : ndarray of shape (n_nodes, n_experts)
        Their weights at the nodes.
    """

    control: str
    logsnr: Array
    expert_names: Sequence[str]
    weights: Array

    def stack(self, experts: Mapping[str, Denoiser]) -> StackedDenoiser:
        """Return the stacked denoiser."""
        members = {name: experts[name] for name in self.expert_names}
        return StackedDenoiser(members, self.logsnr, self.weights)

    def paired(self, experts: Mapping[str, Denoiser]) -> PairedDenoiser:
        """Return the control variate and the stack as one function."""
        control = experts[self.control]
        needed = {self.control: control}
        for name, weights in zip(self.expert_names, self.weights.T, strict=True):
            if name != self.control:
                needed[name] = where_it_counts(experts[name], self.logsnr, weights)
        background = control.shared_background if isinstance(control, Reference) else None
        if isinstance(control, Reference) and background is not None:
            shared = _SharedBackground(control, background)
            needed[self.control] = shared.denoise
            for name in needed:
                if is_same_reference(experts[name], background):
                    needed[name] = shared.of_background
        return self.stack(needed).paired_with(needed[self.control])


class _SharedBackground:
    """A reference and its background, which are evaluated once for both.

    Parameters
    ----------
    reference : Reference
        The reference.
    background : Reference
        Its `Reference.shared_background`.
    """

    def __init__(self, reference: Reference, background: Reference) -> None:
        self.reference = reference
        self.background = background
        self.of_thread = threading.local()

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the noise that the reference predicts."""
        noise, of_background = self.reference.denoise_with_background(z, logsnr)
        self.of_thread.last = z, logsnr, of_background
        return noise

    def of_background(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the noise that the background predicts; known if the reference came first."""
        last = getattr(self.of_thread, "last", (None, None, z))
        if last[0] is z and last[1] is logsnr:
            found: Tensor = last[2]
            return found
        return self.background.denoise(z, logsnr)


def is_same_reference(denoiser: Denoiser, reference: Reference) -> bool:
    """Return whether a denoiser is a reference of the same kind and the same numbers."""
    if not isinstance(denoiser, Reference) or type(denoiser) is not type(reference):
        return False
    first, second = dict(denoiser.named_buffers()), dict(reference.named_buffers())
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


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


def scoring_noise(space: TableSpace, seed: int, has_images: bool = False) -> NoiseRule:
    """Return the noise rule that suits the kinds of the columns."""
    return noise_for_layout(space.layout, seed, has_images)


def noise_for_layout(layout: Layout, seed: int, has_images: bool = False) -> NoiseRule:
    """Return the noise rule for scoring points of a layout."""
    if not layout.variables:
        return NoiseRule.for_scoring(layout.n_points, seed, 1 if has_images else None)
    mirrored = layout.is_nearly_continuous
    return NoiseRule.for_categories(layout.n_points, seed, mirrored=mirrored)


def profile_noise(n_points: int, has_images: bool) -> NoiseRule:
    """Return the noise rule of error profiles of continuous columns; images get less of it."""
    return NoiseRule(n_points, 1 if has_images else min(n_points, 2), central=False, seed=1)


def on_device(reference: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """Return the reference, or a copy of it where it has to move."""
    if device.type == "cpu" and dtype == torch.float64:
        return reference
    return copy.deepcopy(reference).to(device=device, dtype=dtype)


def network_denoiser(module: torch.nn.Module) -> Denoiser:
    """Return a float32 network as a denoiser for tensors of any precision.

    Points beyond all data are seen by the network at a bound, where float32 still squares them.
    Any function of the noisy point is a denoiser, so the bound on the likelihood holds.
    """
    size = evaluations_in_a_part(module)

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        bounded = z.clamp(-MAX_NETWORK_INPUT, MAX_NETWORK_INPUT)
        parts = bounded.float(), logsnr.float()
        if size is None or len(z) <= size or z.device.type != "cpu":
            noise: Tensor = module(*parts)
        else:
            pairs = zip(*(part.split(size) for part in parts), strict=True)
            noise = torch.cat([module(*pair) for pair in pairs])
        return noise.to(z.dtype)

    return denoise


def evaluations_in_a_part(module: torch.nn.Module) -> int | None:
    """Return how many evaluations keep the layers of a network small; None if it is not known.

    It is known of networks whose layers are all fully connected.
    """
    weights = [weight for weight in module.parameters() if weight.ndim > 1]
    if not weights or any(weight.ndim > 2 for weight in weights):
        return None
    widest = max(len(weight) for weight in weights)
    n_tiles = NUMBERS_OF_A_LAYER // (EVALUATIONS_IN_A_TILE * widest)
    return EVALUATIONS_IN_A_TILE * max(1, n_tiles)


def where_it_counts(expert: Denoiser, nodes: Array, weights: Array) -> Denoiser:
    """Return a denoiser that is zero instead of the expert where its weight is zero.

    Parameters
    ----------
    expert : callable
        Maps ``z`` (B, d) and ``logsnr`` (B,) to the predicted noise (B, d).
    nodes : ndarray of shape (n_nodes,)
        Increasing log-SNRs.
    weights : ndarray of shape (n_nodes,)
        The expert's weights there; they are linear between them, and constant beyond.

    Returns
    -------
    callable
        The same where the weights are positive.  On a CPU tiles of evaluations without a weight
        are left out.
    """
    counts = torch.from_numpy((weights[:-1] > 0.0) | (weights[1:] > 0.0))
    edges = torch.from_numpy(nodes)

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        if z.device.type != "cpu" or len(z) % EVALUATIONS_IN_A_TILE:
            return expert(z, logsnr)
        interval = torch.searchsorted(edges, logsnr.double()).clamp_(1, len(edges) - 1) - 1
        # Whole tiles, at which experts may look.
        tiles = (-1, EVALUATIONS_IN_A_TILE)
        used = counts[interval].unflatten(0, tiles).any(1).nonzero()[:, 0]
        noise = torch.zeros_like(z)
        groups = [part.unflatten(0, tiles) for part in (z, logsnr, noise)]
        if len(used) == len(groups[0]):
            return expert(z, logsnr)
        if len(used) > 0:
            found = expert(*(part[used].flatten(0, 1) for part in groups[:2]))
            groups[2][used] = found.unflatten(0, tiles)
        return noise

    return denoise


def network_posterior(module: torch.nn.Module) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Return a float32 network's log-posterior of categories for tensors of any precision."""

    def posterior(z: Tensor, logsnr: Tensor) -> list[Tensor]:
        bounded = z.clamp(-MAX_NETWORK_INPUT, MAX_NETWORK_INPUT)
        parts = module.log_posterior(bounded.float(), logsnr.float())  # type: ignore[operator]
        return [part.to(z.dtype) for part in parts]

    return posterior
