"""Fitting to a stream of rows, one chunk after the other.

- The first rows, 1000 or 10 for each column, are collected.  From them follow the standardisation
  of the columns (and their maps, if there are any but that) and the range of the log-SNR, which
  then stay.
- A row is one for validation if a hash of its values, which is uniform in (0, 1), is below the
  validation fraction, so that a row that comes again is on the same side.  Of more than 10,000
  such rows those of the least hash stay and the others are trained on.  Rows of discrete columns
  are equal by chance, and so are those all of whose numbers are frequent values of their columns
  among the first rows, such as zeros of amounts; there the hash is also of the number of the row.
- The reference has the mean and the covariance of all rows that have been trained on, exactly, by
  updates of pairs of samples ([1]_), and the frequencies of their categories.
- Each row is in one step of the network, or in one for each time that it comes; rows that do not
  fill a batch wait for the next chunk.  The learning rate is constant for 1000 steps and then falls
  with the root of their number, and the weights are averaged over a tenth of the steps, at most
  1000.
- After each chunk the experts are stacked by their errors on the validation rows.

References
----------
.. [1] T. F. Chan, G. H. Golub, R. J. LeVeque. "Algorithms for computing the sample variance:
   analysis and recommendations". The American Statistician 37, 1983.
"""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import numpy as np
import skorch
from numpy.typing import NDArray
from skorch.callbacks import GradientNormClipping
from torch import Generator

from sk_itdiffusion._first._fit.batches import NoisyRowIterator
from sk_itdiffusion._first._fit.course import rate_without_end
from sk_itdiffusion._first._fit.experts import NETWORKS, Experts, number_of_network
from sk_itdiffusion._first._fit.fitting import fit_table_model
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.networks import (
    build_network,
    cross_entropy_in_data_units,
    density_adapter,
    networks_to_train,
    regularization_for,
    spectrum_of,
    trains_in_one_thread,
)
from sk_itdiffusion._first._fit.optimizers import optimizer_settings
from sk_itdiffusion._first._fit.schema import Schema, check_bounds
from sk_itdiffusion._first._fit.selection import FittedReferences
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import MAX_VALIDATION_ROWS, MappedSplit
from sk_itdiffusion._first._fit.stacking import stacked_model
from sk_itdiffusion._first._fit.training import (
    Averages,
    DenoisingObjective,
    MeanCriterion,
    _Net,
)
from sk_itdiffusion._first._fit.training_control import rates_of, set_rates
from sk_itdiffusion._first._immse.cubature import Keys, PiecewiseDensity, hash_uniform, row_keys
from sk_itdiffusion._first._runtime.generators import CopyableGenerator
from sk_itdiffusion._first._runtime.parallel import run_interruptibly
from sk_itdiffusion._first._table.rows import WeightedRows, column_labels, group_rows
from sk_itdiffusion._first._table.space import ColumnKind, TableSpace
from sk_itdiffusion._first._table.streams import RowDataset
from sk_itdiffusion._first.denoisers import LevelDenoiser
from sk_itdiffusion._first.references import GaussianReference, IndependentReference, Reference
from sk_itdiffusion._first.references.families import BUILT_IN_FAMILIES
from sk_itdiffusion._first.references.families.gaussian import MAX_COLUMNS_FOR_COVARIANCE
from sk_itdiffusion._first.references.gaussian import floor_eigenvalues
from sk_itdiffusion._first.references.latent_class import category_counts, smoothed_frequencies

__all__ = ["IncrementalFit", "Reservoir", "RunningMoments"]

Array = NDArray[np.float64]

ROWS_TO_BEGIN, ROWS_TO_BEGIN_FOR_A_COLUMN = 1_000, 10
MIN_VALIDATION_ROWS = 10
#: Steps in which the learning rate rises, and after which it falls.
N_WARMUP, N_CONSTANT = 50, 1_000
AVERAGING_DECAY = 0.999
GRADIENT_NORM = 1.0
#: Steps after which the importance density is refitted, and again whenever they have doubled.
FIRST_ADAPTATION = 200
#: Nats that a chunk must tell, or chunks might be equal by chance.
MIN_INFORMATION_OF_A_CHUNK = 30.0
#: Rows from which on neither dropout nor weight decay is needed; a stream is taken to have more.
MANY_ROWS = 10**6


@dataclass
class RunningMoments:
    """Mean and covariance of all rows so far.

    Attributes
    ----------
    mean : ndarray of shape (d,)
        Mean.
    scatter : ndarray of shape (d, d)
        Sum of the products of deviations from the mean.
    n : int
        Number of rows.
    """

    mean: Array
    scatter: Array
    n: int = 0

    @classmethod
    def of_none(cls, n_columns: int) -> RunningMoments:
        """Return the moments before the first row."""
        return cls(np.zeros(n_columns), np.zeros((n_columns, n_columns)))

    def update(self, X: Array) -> None:
        """Take rows of shape (n, d) in."""
        if not len(X):
            return
        center = X.mean(axis=0)
        deviation, shift = X - center, center - self.mean
        share = len(X) / (self.n + len(X))
        self.scatter += deviation.T @ deviation + self.n * share * np.outer(shift, shift)
        self.mean += share * shift
        self.n += len(X)

    def gaussian(self) -> GaussianReference:
        """Return the normal distribution with these moments."""
        return GaussianReference(self.mean, floor_eigenvalues(self.scatter / self.n))


@dataclass
class Reservoir:
    """The rows for validation: those whose hash is below a threshold, which falls with time.

    Attributes
    ----------
    threshold : float
        Hashes of the rows are below it.
    most : int
        Most rows to keep.
    rows : ndarray of shape (n, d)
        The rows.
    log_slope : ndarray of shape (n,)
        Log-derivatives of their maps.
    position : ndarray of shape (n,)
        Their hashes, in (0, 1).
    """

    threshold: float
    most: int
    rows: Array
    log_slope: Array
    position: Array = field(default_factory=lambda: np.empty(0))

    def exchange(self, rows: Array, log_slope: Array, position: Array) -> Array:
        """Keep new rows of low hash, and return all rows, new or kept so far, that are not."""
        low = position < self.threshold
        self.rows = np.concatenate([self.rows, rows[low]])
        self.log_slope = np.concatenate([self.log_slope, log_slope[low]])
        self.position = np.concatenate([self.position, position[low]])
        # Rows of equal hash are one observation.
        self._keep(np.sort(np.unique(self.position, return_index=True)[1]))
        evicted = self.rows[:0]
        if len(self.rows) > self.most:
            self.threshold = float(np.partition(self.position, self.most)[self.most])
            evicted = self.rows[self.position >= self.threshold]
            self._keep(np.flatnonzero(self.position < self.threshold))
        return np.concatenate([rows[~low], evicted])

    def _keep(self, index: NDArray[np.intp]) -> None:
        self.rows, self.log_slope = self.rows[index], self.log_slope[index]
        self.position = self.position[index]


@dataclass
class StreamedNetwork:
    """A network in training, and what belongs to it.

    Attributes
    ----------
    net : NeuralNet
        The net, with the moments of its optimiser.
    base, density : PiecewiseDensity
        Importance density of the log-SNR at the start, and now.
    generator : torch.Generator
        Source of the noise.
    rates : list of float
        Learning rates of the optimiser's groups at the start.
    n_steps : int
        Steps so far.
    adapted_at : int
        Steps at which the density was last refitted.
    """

    net: skorch.NeuralNet
    base: PiecewiseDensity
    density: PiecewiseDensity
    generator: Generator
    rates: list[float]
    n_steps: int = 0
    adapted_at: int = FIRST_ADAPTATION // 2

    @property
    def objective(self) -> DenoisingObjective:
        """The module in training."""
        objective: DenoisingObjective = self.net.module_
        return objective

    def step(self, batch: object, averages: Averages) -> float:
        """Take one step and return its loss."""
        set_rates(self.net, self.rates, rate_without_end(self.n_steps, N_WARMUP, N_CONSTANT))
        loss = float(self.net.train_step(batch)["loss"].detach())
        self.objective.update_average(averages)
        self.n_steps += 1
        return loss

    def train(self, rows: Array, settings: FitSettings, stop: threading.Event) -> float:
        """Take as many steps as the rows fill batches, and return the mean loss."""
        dataset = RowDataset(rows, np.ones(len(rows)), settings.runtime.device)
        n_batches = len(rows) // settings.training.batch_size
        n_points = self.objective.layout.n_points
        batches = NoisyRowIterator(
            dataset, settings.training.batch_size, n_batches, self.density, self.generator, n_points
        )
        before = copy.deepcopy(self.objective.state_dict())
        averages, total = self.objective.averages(), 0.0
        try:
            for batch in batches:
                if stop.is_set():
                    raise KeyboardInterrupt
                total += self.step(batch, averages)
                if not math.isfinite(total):
                    self.objective.load_state_dict(before)
                    self.net.optimizer_.clear_state()
                    raise FloatingPointError(
                        "Training diverged: the loss is not finite. The weights are those before "
                        "this call. Lower learning_rate, or check the rows for extreme values."
                    )
        finally:
            self.objective.eval()
        return total / n_batches

    def correct(self, reference: Reference, counts: Sequence[Array]) -> None:
        """Let the network correct another reference of the same kind, in place."""
        for network in (self.objective.denoiser, self.objective.averaged):
            network.reference.load_state_dict(reference.state_dict())
            if isinstance(network, LevelDenoiser):
                network.mark_rare_categories(counts)
        self.objective.to(self.net.device)

    def trained(self) -> skorch.NeuralNet:
        """Return the net as it is now, which no later step changes.

        Both of its networks are one copy of the averaged one, and it has no optimiser.
        """
        averaged = copy.deepcopy(self.objective.averaged)
        networks = {id(self.objective.denoiser): averaged, id(self.objective.averaged): averaged}
        objective = copy.deepcopy(self.objective, networks).eval()
        net: skorch.NeuralNet = object.__new__(type(self.net))
        vars(net).update(vars(self.net) | {"module": objective, "module_": objective})
        del net.optimizer_
        return net


class IncrementalFit:
    """A fit to the rows so far.

    Parameters
    ----------
    kinds : sequence of ColumnKind
        Kinds of the columns.
    seed : int
        Seed of all randomness.
    """

    def __init__(self, kinds: Sequence[ColumnKind], seed: int) -> None:
        self.kinds = kinds
        self.seed = seed
        self.waiting: list[tuple[Array, Array]] = []
        self.first_numbers: dict[bytes, int] = {}
        self.n_numbered = self.n_rows = 0
        self.model: TableModel | None = None
        self.networks: dict[str, StreamedNetwork] = {}
        self.history: list[dict[str, float]] = []
        self.frequent: dict[int, Array] = {}

    def learn(self, values: Array, settings: FitSettings) -> TableModel:
        """Return the model of all rows so far, new ones included.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_columns)
            Numbers of continuous columns, codes of discrete ones.
        settings : FitSettings
            Parameters.

        Returns
        -------
        TableModel
            The model.

        Raises
        ------
        ValueError
            If the settings ask for what a stream does not have, there are too many columns, or a
            column varies that did not in the first rows.
        FloatingPointError
            If training diverges.
        """
        check_settings(settings)
        number = self._numbers(values)
        if self.model is None:
            self.waiting.append((values, number))
            values, number = map(np.concatenate, zip(*self.waiting, strict=True))
            model = first_model(values, self.kinds, settings, self.seed)
            self.frequent = frequent_values(values, self.kinds)
            if not self._can_begin(values, number, model, settings):
                return model
            self._begin(model, settings)
            self.waiting = []
        self.model = self._updated(values, number, settings)
        return self.model

    def _numbers(self, values: Array) -> Array:
        """Return numbers of the rows of a chunk, which tell equal ones apart, (n,).

        A chunk that has come before, which is not so by chance, is another pass over the same
        observations, whose numbers are those of the first time.
        """
        first = self.n_numbered
        self.n_numbered += len(values)
        count = np.unique(row_keys(np.nan_to_num(values)), return_counts=True)[1]
        if float(count @ np.log(len(values) / count)) > MIN_INFORMATION_OF_A_CHUNK:
            content = np.ascontiguousarray(values).tobytes()
            key = hashlib.blake2b(content, digest_size=16).digest()
            first = self.first_numbers.setdefault(key, first)
        return first + np.arange(len(values), dtype=np.float64)

    def _can_begin(
        self, values: Array, number: Array, model: TableModel, settings: FitSettings
    ) -> bool:
        """Return whether there are enough rows, some of them for validation."""
        least = max(ROWS_TO_BEGIN, ROWS_TO_BEGIN_FOR_A_COLUMN * values.shape[1])
        if len(values) < least or model.space.is_empty:
            return False
        positions = self._positions(model, values, number)
        n_valid = int((positions < settings.model.validation_fraction).sum())
        return MIN_VALIDATION_ROWS <= n_valid <= len(values) - MIN_VALIDATION_ROWS

    def _begin(self, model: TableModel, settings: FitSettings) -> None:
        """Fix the space, and count from here on."""
        self.model = model
        space = model.space
        self.moments = RunningMoments.of_none(space.layout.n_continuous)
        self.counts = [np.zeros(variable.n_categories) for variable in space.layout.variables]
        self.reservoir = Reservoir(
            settings.model.validation_fraction,
            MAX_VALIDATION_ROWS,
            np.empty((0, space.layout.n_columns)),
            np.empty(0),
        )
        self.pending = np.empty((0, space.layout.n_columns))

    def _positions(self, model: TableModel, values: Array, number: Array) -> Array:
        """Return the hashes of rows, in (0, 1)."""
        space = model.space
        content = values[:, space.in_rows]
        frequent = {} if model.has_probabilities else self.frequent
        if all(map(len, frequent.values())):
            are_equal_by_chance = np.ones(len(values), dtype=bool)
            for j, known in frequent.items():
                are_equal_by_chance &= np.isin(values[:, j], known)
            content = np.column_stack([content, np.where(are_equal_by_chance, number, -1.0)])
        keys: Keys = row_keys(content, model.seeds.split)
        return hash_uniform(keys, 0)

    def _updated(self, values: Array, number: Array, settings: FitSettings) -> TableModel:
        """Return the model once the rows have been counted and trained on."""
        assert self.model is not None
        previous, space = self.model, self.model.space
        check_constant_columns(values, space, settings)
        check_bounds(values, settings, previous.dequantizer, space)
        position = self._positions(previous, values, number)
        numbers = self.n_rows + np.arange(len(values))
        self.n_rows += len(values)
        if previous.dequantizer is not None:
            values = previous.dequantizer.noisy(values, numbers)
        rows, log_slope = space.rows(space.standardized(values))
        train = self.reservoir.exchange(rows, log_slope, position)
        self.moments.update(train[:, : space.layout.n_continuous])
        new = WeightedRows(train, np.ones(len(train)))
        for total, counts in zip(self.counts, category_counts(new, space.layout), strict=True):
            total += counts
        schema = Schema(
            space, np.zeros(0), previous.dequantizer, previous.has_images, previous.device
        )
        experts, references = self._experts(previous)
        valid = WeightedRows(self.reservoir.rows, np.ones(len(self.reservoir.rows)))
        codes = [np.flatnonzero(total).astype(np.float64) for total in self.counts]
        split = MappedSplit(space, new, valid, self.reservoir.log_slope, earlier_codes=codes)
        losses = self._train(experts, split, settings)
        nets = {name: network.trained() for name, network in self.networks.items()}
        experts = replace(experts, nets=nets)
        model = stacked_model(experts, references, split, schema, settings)
        if losses:
            self._note(model, split, losses)
        return replace(model, history=list(self.history))

    def _experts(self, previous: TableModel) -> tuple[Experts, FittedReferences]:
        """Return the reference of all training rows so far, as the only expert yet."""
        plain = previous.plain
        references = self._references(previous.space)
        parts = {each.name: getattr(previous, each.name) for each in fields(Experts)}
        parts |= {"references": references, "preconditioner": plain, "nets": {}}
        grid = previous.grid
        return Experts(**parts), FittedReferences(references, plain, plain, plain, grid, grid)

    def _references(self, space: TableSpace) -> dict[str, Reference]:
        """Return the reference of all training rows so far."""
        gaussian = self.moments.gaussian() if space.layout.n_continuous else None
        if not space.layout.variables:
            assert gaussian is not None
            return {"gaussian": gaussian}
        marginals = [smoothed_frequencies(counts) for counts in self.counts]
        return {"independent": IndependentReference(space.layout, marginals, gaussian)}

    def _train(
        self, experts: Experts, split: MappedSplit, settings: FitSettings
    ) -> dict[str, float]:
        """Train the networks on the rows that fill batches, and return the mean losses."""
        rows = np.concatenate([self.pending, split.train.X])
        n_used = len(rows) // settings.training.batch_size * settings.training.batch_size
        self.pending = rows[n_used:]
        losses: dict[str, float] = {}
        settings = settings.changed(n_networks=settings.model.n_networks or 1)
        for name in networks_to_train(settings, MANY_ROWS):
            if name not in self.networks:
                self.networks[name] = new_network(name, experts, split, settings)
            network = self.networks[name]
            network.correct(experts.references[experts.preconditioner], self.counts)
            network.objective.offset = cross_entropy_in_data_units(experts, split)
            if n_used == 0:
                continue
            losses[name] = run_interruptibly(
                partial(network.train, rows[:n_used], settings),
                limited=trains_in_one_thread(name, settings),
            )
            if settings.training.schedule.adaptive and network.n_steps >= 2 * network.adapted_at:
                adapt = density_adapter(experts, split, network.base, settings.runtime.processes)
                network.density = adapt(network.objective.averaged)
                network.adapted_at = network.n_steps
        return losses

    def _note(self, model: TableModel, split: MappedSplit, losses: dict[str, float]) -> None:
        """Add the bounds of the first network after this chunk to the history."""
        name = next(iter(losses))
        curve = model.curve
        assert curve is not None
        gap = curve.references[model.preconditioner] - curve.networks[name]
        bound = cross_entropy_in_data_units(model, split)
        bound -= 0.5 * float(np.trapezoid(gap, curve.logsnr))
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "train_bound": losses[name],
                "valid_bound": bound,
            }
        )


def frequent_values(values: Array, kinds: Sequence[ColumnKind]) -> dict[int, Array]:
    """Return the frequent values of each continuous column, by its number."""
    rows = group_rows(values, np.ones(len(values)))
    continuous = [j for j, kind in enumerate(kinds) if kind.n_categories == 0]
    return {j: np.unique(rows.X[rows.is_frequent(rows.X[:, j]), j]) for j in continuous}


def first_model(
    values: Array, kinds: Sequence[ColumnKind], settings: FitSettings, seed: int
) -> TableModel:
    """Return the model of the first rows: their plain reference alone."""
    plain = "independent" if any(kind.n_categories > 1 for kind in kinds) else "gaussian"
    marginals = "standard" if settings.model.marginals == "auto" else settings.model.marginals
    alone = settings.changed(
        reference=plain,
        experts=[plain],
        asked=(plain,),
        preconditioner="independent",
        marginals=marginals,
        max_epochs=0,
        near_copies=False,
    )
    weight = np.ones(len(values))
    return fit_table_model(values, weight, kinds, alone, np.random.RandomState(seed))


def new_network(
    name: str, experts: Experts, split: MappedSplit, settings: FitSettings
) -> StreamedNetwork:
    """Return an untrained network."""
    generator = CopyableGenerator().manual_seed(experts.seeds.network + number_of_network(name))
    has_categories = bool(split.space.layout.variables)
    dropout, weight_decay = regularization_for(name, MANY_ROWS, has_categories, settings)
    denoiser = build_network(name, experts, split.train, settings, dropout, generator)
    objective = DenoisingObjective(
        denoiser,
        copy.deepcopy(split.space.layout).float(),
        decay=AVERAGING_DECAY,
        loss=settings.training.loss,
    )
    net = _Net(
        objective.to(settings.runtime.device),
        criterion=MeanCriterion,
        **optimizer_settings(settings.training.learning_rate, weight_decay),
        callbacks=[("clip", GradientNormClipping(GRADIENT_NORM))],
        callbacks__print_log=None,
        train_split=None,
        verbose=0,
        device=settings.runtime.device,
    )
    net.micro_batch_size = settings.training.micro_batch_size
    net.initialize()
    net.module_.eval()
    low, high = float(experts.grid[0]), float(experts.grid[-1])
    base = settings.training.schedule.density(low, high, spectrum_of(split, experts))
    return StreamedNetwork(net, base, base, generator, rates_of(net))


def check_settings(settings: FitSettings) -> None:
    """Raise an error that names a parameter if it asks for what a stream does not have."""
    plain = ("gaussian", "independent")
    if not isinstance(settings.model.reference, str) or settings.model.reference not in (
        "auto",
        *plain,
    ):
        raise ValueError(
            "partial_fit has only one reference, a normal distribution times independent "
            "discrete columns: reference must be 'auto' or name it, got "
            f"{settings.model.reference!r}."
        )
    if settings.model.preconditioner != "independent":
        raise ValueError(
            "partial_fit needs preconditioner='auto' or 'independent', got "
            f"{settings.model.preconditioner!r}."
        )
    own = {
        family.name
        for family in settings.model.families
        if not any(family is built_in for built_in in BUILT_IN_FAMILIES)
    }
    unknown = set(settings.model.asked) - {*NETWORKS, *plain} | own
    if unknown:
        raise ValueError(
            f"partial_fit only has networks and its reference as experts; experts names "
            f"{sorted(unknown)}."
        )


def check_constant_columns(values: Array, space: TableSpace, settings: FitSettings) -> None:
    """Raise an error if columns vary that did not in the first rows, or if there are too many."""
    if space.layout.n_continuous > MAX_COLUMNS_FOR_COVARIANCE:
        raise ValueError(
            f"partial_fit takes at most {MAX_COLUMNS_FOR_COVARIANCE} continuous columns, got "
            f"{space.layout.n_continuous}."
        )
    varies = np.zeros(space.n_columns, dtype=bool)
    constant = space.constant
    varies[constant] = (values[:, constant] != space.constant_values[constant]).any(axis=0)
    if varies.any():
        raise ValueError(
            f"Column(s) {column_labels(varies, settings.runtime.feature_names)} were constant in "
            "the first rows, but are not now. Start with rows in which all columns vary."
        )
