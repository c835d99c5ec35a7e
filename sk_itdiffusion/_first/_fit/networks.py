"""The networks of a model and their training: the fourth stage of a fit."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Generator, Tensor

from sk_itdiffusion._first._fit.course import MIN_EPOCHS_TO_COMPARE, Limits
from sk_itdiffusion._first._fit.experts import (
    Experts,
    kind_of_expert,
    names_of_networks,
    network_denoiser,
    number_of_network,
    on_device,
    profile_noise,
)
from sk_itdiffusion._first._fit.grids import MAX_ROWS_FOR_SPECTRUM
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.pattern_stacking import likeliest_reference
from sk_itdiffusion._first._fit.patterns import Question
from sk_itdiffusion._first._fit.roles import RoleObjective
from sk_itdiffusion._first._fit.schema import check_bounds, holds_out, n_observations
from sk_itdiffusion._first._fit.settings import FitSettings
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._fit.training import (
    DenoisingObjective,
    Network,
    RowDataset,
    TrainingPlan,
    train,
)
from sk_itdiffusion._first._fit.training_report import EpochBoard, TrainingReport
from sk_itdiffusion._first._immse.cubature import PiecewiseDensity
from sk_itdiffusion._first._immse.error_profiles import error_profile
from sk_itdiffusion._first._immse.likelihood import Denoiser
from sk_itdiffusion._first._runtime.generators import CopyableGenerator, seeded
from sk_itdiffusion._first._runtime.parallel import run_all_interruptibly, run_interruptibly
from sk_itdiffusion._first._runtime.progress import current_progress
from sk_itdiffusion._first._runtime.warning import warn
from sk_itdiffusion._first._table.rows import WeightedRows, resample_rows
from sk_itdiffusion._first._table.space import TableSpace
from sk_itdiffusion._first._table.streams import StreamedRows
from sk_itdiffusion._first.denoisers import (
    BackbonePlan,
    LevelDenoiser,
    LogSNREmbedding,
    NetworkFamily,
    NetworkTask,
    PlannedNetwork,
    PreconditionedDenoiser,
    ReferencedDenoiser,
    UsualParameters,
)
from sk_itdiffusion._first.denoisers.levels import n_category_outputs, n_periodic_inputs
from sk_itdiffusion._first.denoisers.mlp import replace_dropout
from sk_itdiffusion._first.denoisers.role_levels import RoleLevelDenoiser, n_role_inputs
from sk_itdiffusion._first.denoisers.roles import RoleDenoiser
from sk_itdiffusion._first.pretrained import PretrainedDenoiser
from sk_itdiffusion._first.references import GaussianReference, IndependentReference, Reference
from sk_itdiffusion._first.references.discrete import DiscreteReference
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.latent_class import category_counts
from sk_itdiffusion.distributed import Processes

__all__ = ["bound_history", "networks_to_train", "train_networks", "warn_if_still_improving"]

Array = NDArray[np.float64]
MIN_VALIDATION_ROWS = 2_000
#: Noisy validation rows that evaluate an epoch of continuous columns.
NOISY_VALIDATION_ROWS = 4_096
#: Rows from which the importance density is refitted; images are expensive.
ROWS_TO_ADAPT, IMAGES_TO_ADAPT = 256, 64
#: Complete ones of them, at least, where others have missing entries.
MIN_ROWS_TO_ADAPT = 20
#: Dropout that is worth the time of its random numbers.
MIN_DROPOUT = 0.01
#: Epochs for which their length is meant where it grows with the rows.
EPOCHS_OF_A_TABLE = 40
#: Steps of an epoch with roles for each one of complete rows, so that a fit takes about twice the
#: time at most.
STEPS_WITH_ROLES = 1.5
#: Share of the rows that are of one kind, at most: for as many of them it takes more steps, which
#: gain less each.
SHARE_OF_A_KIND = 0.5
#: Steps at most in which the learning rate rises.
MAX_WARMUP = 50
#: Share of a progress bar that is for the training; the rest is for the weights of the experts.
SHARE_OF_TRAINING = 0.95


def networks_to_train(settings: FitSettings, n_rows: int) -> list[str]:
    """Return the names of the networks; an untrained one adds nothing to its reference."""
    trained = settings.training.max_epochs > 0 or settings.model.network.is_complete
    by_default = settings.model.experts == "auto" and trained
    is_possible = settings.model.has_roles or not settings.model.has_missing
    if not holds_out(n_rows, settings) or not is_possible:
        return []
    possible = planned_networks(settings)
    return [
        name for name in possible if by_default or kind_of_expert(name) in settings.model.experts
    ]


def planned_networks(settings: FitSettings) -> dict[str, PlannedNetwork]:
    """Return the networks of a fit by name: those of a family, and others alongside them."""
    network = PlannedNetwork(
        settings.model.network, settings.model.hidden_size, settings.model.n_blocks
    )
    names = names_of_networks(number_of_networks(settings))
    return dict.fromkeys(names, network) | dict(settings.model.network.beside(settings.model.task))


def number_of_networks(settings: FitSettings) -> int:
    """Return how many networks of the family are trained.

    A second one justifies its cost where both see rows that are in memory, each with a core.
    Callbacks of the user, such as one that writes checkpoints to a file, may know of one only.
    """
    if settings.model.n_networks is not None:
        return settings.model.n_networks
    in_memory = settings.runtime.stream is None and settings.runtime.processes.size == 1
    may_be_several = in_memory and not settings.training.callbacks
    return settings.model.network.n_networks(settings.model.task) if may_be_several else 1


def train_networks(
    names: Sequence[str],
    experts: Experts,
    split: MappedSplit,
    settings: FitSettings,
    previous: TableModel | None,
    attributes_with: Callable[[dict[str, skorch.NeuralNet]], dict[str, Any]],
) -> dict[str, skorch.NeuralNet]:
    """Return the trained nets, built and trained in workers.

    ``attributes_with`` returns the attributes of an estimator whose fit ended with some nets.

    No torch mode of the calling thread reaches those.  Networks that one thread trains are trained
    at the same time, unless callbacks, which they would share, could be in each other's way, or
    other processes are used.
    """
    strands = current_progress().stretch(0.0, SHARE_OF_TRAINING).strands(len(names))
    board = EpochBoard(has_names=len(names) > 1)
    nets: dict[str, skorch.NeuralNet] = {}

    def attributes_now(name: str, net: skorch.NeuralNet) -> dict[str, Any]:
        """Return the attributes of the estimator if its fit ended with the nets that there are."""
        return attributes_with(nets | {name: net})

    limited = {name: trains_in_one_thread(name, settings) for name in names}
    is_watched = bool(settings.training.callbacks) or settings.runtime.tasks.are_watched
    alone = settings.runtime.processes.size == 1 and not is_watched
    are_together = len(names) > 1 and all(limited.values()) and alone
    jobs = {
        name: partial(
            train_network,
            name,
            experts,
            split,
            settings,
            previous,
            TrainingReport(
                name,
                strand,
                settings.runtime.tasks,
                partial(attributes_now, name),
                len(names) == 1,
                board,
            ),
            1 if are_together else len(names) - number,
        )
        for number, (name, strand) in enumerate(zip(names, strands, strict=True))
    }
    if are_together:
        return dict(zip(names, run_all_interruptibly(list(jobs.values())), strict=True))
    for name, job in jobs.items():
        nets[name] = run_interruptibly(job, limited=limited[name])
    return nets


def warn_if_still_improving(nets: Iterable[skorch.NeuralNet], settings: FitSettings) -> None:
    """Warn once if networks would be better after more epochs, or in more time."""
    limits = {
        "time": f"time_limit={settings.runtime.time_limit}",
        "epochs": f"max_epochs={settings.training.max_epochs}",
    }
    ends = {dict(net.callbacks_)["control"].ended_too_early_by for net in nets}
    for end, limit in limits.items():
        if end in ends:
            warn(
                f"The training ended by {limit} while the validation bound was still improving. "
                f"Increase {limit.partition('=')[0]}.",
                ConvergenceWarning,
            )
            return


def trains_in_one_thread(name: str, settings: FitSettings) -> bool:
    """Return whether a network is so small that more threads would not train it faster."""
    planned = planned_networks(settings)[name]
    is_small = planned.family.trains_in_one_thread(settings.model.task, planned.hidden_size)
    return settings.runtime.device.type == "cpu" and is_small


def cross_entropy_in_data_units(experts: Experts, split: MappedSplit) -> float:
    """Return the preconditioner's mean negative log-likelihood of the validation rows."""
    mapped = log_likelihoods(experts.references[experts.preconditioner], split.valid.X)
    mean = float(split.valid.share @ (mapped + split.valid_log_slope))
    return -mean - experts.constant_term


def build_network(
    name: str,
    experts: Experts,
    rows: WeightedRows,
    settings: FitSettings,
    dropout: float,
    generator: Generator,
) -> Network:
    """Return a network that corrects the preconditioner: untrained, or a copy of the one given."""
    planned = planned_networks(settings)[name]
    layout = experts.space.layout
    low, high = map(float, experts.grid[[0, -1]])
    has_roles = settings.model.has_roles
    plan = BackbonePlan(
        n_inputs=n_role_inputs(layout) if has_roles else layout.n_points,
        n_outputs=layout.n_continuous + n_category_outputs(layout),
        n_periodic=n_periodic_inputs(layout),
        embedding=LogSNREmbedding(low, high),
        logsnr_range=(low, high),
        hidden_size=planned.hidden_size,
        n_blocks=planned.n_blocks,
        n_frequencies=settings.model.n_frequencies,
        dropout=dropout,
        generator=generator,
        task=settings.model.task,
        layout=layout,
    )
    reference = copy.deepcopy(experts.references[experts.preconditioner]).float()
    backbone = build_backbone(planned.family, plan)
    if has_roles:
        if not isinstance(reference, IndependentReference):
            return RoleDenoiser(backbone, reference, plan.embedding)
        counts = category_counts(rows, layout)
        return RoleLevelDenoiser(backbone, reference, plan.embedding, counts)
    if planned.family.is_complete:
        return ReferencedDenoiser(backbone, reference)
    if not isinstance(reference, DiscreteReference):
        return PreconditionedDenoiser(backbone, reference, plan.embedding)
    inputs: Reference = reference
    if experts.preconditioner != experts.plain:
        inputs = copy.deepcopy(experts.references[experts.plain]).float()
    assert isinstance(inputs, IndependentReference)
    counts = category_counts(rows, layout)
    return LevelDenoiser(backbone, reference, inputs, plan.embedding, counts)


def build_backbone(family: NetworkFamily, plan: BackbonePlan) -> torch.nn.Module:
    """Return a family's backbone in single precision, from random numbers of the plan only."""
    with seeded(plan.generator.initial_seed()):
        backbone = family.build(plan)
        if not isinstance(backbone, torch.nn.Module):
            raise TypeError(
                f"{type(family).__name__}.build must return a torch.nn.Module, got {backbone!r}."
            )
        backbone = backbone.float()
        replace_dropout(backbone, plan.generator)
        if not family.is_complete:
            check_backbone(backbone, plan)
    return backbone


@torch.no_grad()
def check_backbone(backbone: torch.nn.Module, plan: BackbonePlan) -> None:
    """Raise an error if the outputs of a backbone have another shape or type than planned."""
    was_training = backbone.training
    inputs = torch.zeros(2, plan.n_inputs, dtype=torch.float32)
    outputs = backbone.eval()(inputs, torch.tensor(plan.logsnr_range, dtype=torch.float32))
    backbone.train(was_training)
    wanted = (2, plan.n_outputs)
    if not isinstance(outputs, torch.Tensor) or outputs.shape != wanted:
        found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else outputs
        raise ValueError(
            f"{type(backbone).__name__} must return outputs of shape {wanted} for inputs of shape "
            f"{tuple(inputs.shape)}, got {found!r}."
        )
    if outputs.dtype != torch.float32:
        raise ValueError(
            f"{type(backbone).__name__} must return 32-bit numbers, got {outputs.dtype}."
        )


class GivenFamily(NetworkFamily):
    """Copies of a denoiser that is given, which predicts the noise by itself.

    Parameters
    ----------
    denoiser : PretrainedDenoiser
        The denoiser.
    """

    is_complete = True

    def __init__(self, denoiser: PretrainedDenoiser) -> None:
        self.denoiser = denoiser

    def build(self, plan: BackbonePlan) -> PretrainedDenoiser:
        """Return a copy whose weights, if all are frozen, can be trained."""
        given = copy.deepcopy(self.denoiser)
        if not any(parameter.requires_grad for parameter in given.parameters()):
            given.requires_grad_(True)
        return given

    def usual(self, task: NetworkTask) -> UsualParameters:
        """Return what "auto" stands for; sizes are those of the denoiser."""
        batch_size = 64 if task.has_continuous_images else 512
        return UsualParameters(128, n_blocks=2, batch_size=batch_size, learning_rate=0.001)

    def is_costly(self, task: NetworkTask) -> bool:
        """Return True: it is one network, of any size."""
        return True


def train_network(
    name: str,
    experts: Experts,
    split: MappedSplit,
    settings: FitSettings,
    previous: TableModel | None,
    report: TrainingReport,
    n_left: int,
    stop: threading.Event,
) -> skorch.NeuralNet:
    """Return the trained skorch net, the first of those that are left to share the time."""
    # Warm starts go on with other noise.
    generator = CopyableGenerator().manual_seed(
        experts.seeds.network + experts.n_fits - 1 + 1_000_003 * number_of_network(name)
    )
    low, high = map(float, experts.grid[[0, -1]])
    n_rows = n_observations(split.train, split.space)
    if settings.runtime.stream is not None:
        n_rows += len(settings.runtime.stream)
    has_categories = bool(split.space.layout.variables)
    dropout, weight_decay = regularization_for(name, n_rows, has_categories, settings)
    denoiser = build_network(name, experts, split.train, settings, dropout, generator)
    if previous is not None and name in previous.nets:
        _copy_weights(previous.nets[name].module_.averaged, denoiser)
    plan = TrainingPlan(
        density=settings.training.schedule.density(low, high, spectrum_of(split, experts)),
        adaptive=settings.training.schedule.adaptive,
        batch_size=settings.training.batch_size,
        limits=limits_of(n_rows, split.space, settings, n_left),
        learning_rate=settings.training.learning_rate,
        weight_decay=weight_decay,
        n_validation_noises=n_validation_noises(len(split.valid), split.space, settings),
        verbose=settings.runtime.verbose,
        micro_batch_size=settings.training.micro_batch_size,
        processes=settings.runtime.processes,
    )
    layout = copy.deepcopy(split.space.layout).float()
    offset = cross_entropy_in_data_units(experts, split)
    partners = partners_of_networks(experts, settings)
    if isinstance(denoiser, RoleDenoiser | RoleLevelDenoiser):
        source = CopyableGenerator().manual_seed(generator.initial_seed())
        objective: DenoisingObjective = RoleObjective(
            denoiser,
            layout,
            source,
            offset,
            settings.training.loss,
            partial(denoiser_of_part, experts, likeliest_partner(experts, split, settings)),
        )
        if split.has_missing:
            # Of each row other entries are observed, so that references would be asked row by row.
            partners = []
    else:
        objective = DenoisingObjective(denoiser, layout, offset=offset, loss=settings.training.loss)
    whole, adapt = split.complete, None
    if len(whole.valid) >= MIN_ROWS_TO_ADAPT or not split.has_missing:
        adapt = density_adapter(experts, whole, plan.density, settings.runtime.processes)
    net = train(
        objective,
        training_rows(experts, split, settings),
        RowDataset(split.valid.X, split.valid.weight, settings.runtime.device),
        plan,
        generator,
        references=partners,
        adapt=adapt,
        callbacks=list(settings.training.callbacks),
        device=settings.runtime.device,
        interrupted=stop,
        report=report,
    )
    net.forget_training()
    return net


def limits_of(n_rows: int, space: TableSpace, settings: FitSettings, n_left: int) -> Limits:
    """Return what ends the training of the first of the networks that are left in turn."""
    training = settings.training
    has_categories = bool(space.layout.variables)
    n_steps = training.steps_per_epoch or epoch_length(n_rows, has_categories, settings)
    tol, n_to_compare = training.tol_of(space.layout.n_columns), MIN_EPOCHS_TO_COMPARE
    if settings.model.has_roles:
        if training.steps_per_epoch is None:
            n_steps = round(STEPS_WITH_ROLES * n_steps)
        n_to_compare = round(n_to_compare / (SHARE_OF_A_KIND * STEPS_WITH_ROLES))
        tol = None if tol is None else SHARE_OF_A_KIND * tol
    seconds = settings.runtime.seconds_to_train()
    return Limits(
        n_epochs=training.max_epochs,
        steps_per_epoch=n_steps,
        tol=tol,
        patience=training.patience,
        seconds=None if seconds is None else seconds / n_left,
        n_warmup=int(np.clip(n_steps // 2, 1, MAX_WARMUP)),
        n_to_compare=n_to_compare,
    )


def training_rows(
    experts: Experts, split: MappedSplit, settings: FitSettings
) -> RowDataset | StreamedRows:
    """Return the rows to train on; the noise of dequantisation is new in each step if it can be."""
    dequantizer, space, device = experts.dequantizer, split.space, settings.runtime.device

    def mapped(values: Array) -> Array:
        return space.rows(space.standardized(values))[0]

    n_seen = 0

    def prepared(values: Array) -> Array:
        nonlocal n_seen
        if values.shape[1] != space.n_columns or not np.isfinite(values).all():
            raise ValueError(
                f"X has rows or items that do not consist of {space.n_columns} finite numbers."
            )
        if dequantizer is not None:
            dequantizer.check(values, settings.runtime.feature_names)
        check_bounds(values, settings, dequantizer, space)
        if fresh or dequantizer is None:
            return mapped(values)
        numbers = n_seen + np.arange(len(values))
        n_seen += len(values)
        return mapped(dequantizer.noisy(values, numbers))

    # Behind other maps the width of a cell varies, so there each row has one noise for good.
    fresh = dequantizer is not None and space.marginal_map.is_identity
    rows, width = split.train.X, None
    if dequantizer is not None and fresh:
        rows = mapped(dequantizer.rounded(space.values(rows)))
        width = dequantizer.step[space.continuous] / space.standardizer.scale
    if settings.runtime.stream is None:
        return RowDataset(rows, split.train.weight, device, width)
    # The stream's rows, which take the places of these, have no weights.
    alike = resample_rows(
        WeightedRows(rows, split.train.weight),
        2 * len(rows),
        np.random.RandomState(experts.seeds.network),
    )
    return StreamedRows(
        settings.runtime.stream, prepared, RowDataset(alike, np.ones(len(alike)), device, width)
    )


def spectrum_of(split: MappedSplit, experts: Experts) -> Array:
    """Return the eigenvalues of the covariance of the training points, at least 1e-6.

    With missing entries in continuous columns they are those of the plain reference.
    """
    plain = experts.references[experts.plain]
    if split.has_missing and isinstance(plain, GaussianReference):
        return np.asarray(np.maximum(plain.variances.cpu().double().numpy(), 1e-6))
    sample = split.rows_to_embed
    if split.space.layout.variables:
        sample = sample.take(np.arange(min(len(sample), MAX_ROWS_FOR_SPECTRUM)))
    points = split.space.layout.embed_array(sample.X)
    if points.shape[1] > len(points):
        # The eigenvalues other than 0 are those of the smaller matrix of products of rows.
        points = (np.sqrt(sample.share)[:, None] * (points - sample.share @ points)).T
        return np.asarray(np.maximum(np.linalg.eigvalsh(points.T @ points), 1e-6))
    # One row may have all the weight that numbers can tell.
    ddof = 0 if float((sample.share**2).sum()) >= 1.0 else 1
    covariance = np.atleast_2d(np.cov(points.T, aweights=sample.weight, ddof=ddof))
    return np.asarray(np.maximum(np.linalg.eigvalsh(covariance), 1e-6))


def _copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy the weights of an earlier network of the same size."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(
            "warm_start needs a network of the same size as in the earlier fit; keep hidden_size, "
            "n_blocks and n_frequencies, or set warm_start=False."
        ) from error


def regularization_for(
    name: str, n_rows: int, has_categories: bool, settings: FitSettings
) -> tuple[float, float]:
    """Return dropout and weight decay, stronger for fewer rows and for discrete columns.

    Of the networks of a table every other one has half of it: which of them is right differs
    between log-SNRs, where the validation rows weigh them.
    """
    scarcity = float(np.clip(math.log(30_000.0 / n_rows) / math.log(30.0), 0.0, 1.0))
    if has_categories:
        strength, most = scarcity**2, 0.6
    else:
        share = 0.5 if number_of_network(name) % 2 else 1.0
        strength, most = share * scarcity**3, 0.4
    usual = most * strength if most * strength >= MIN_DROPOUT else 0.0
    dropout = usual if settings.training.dropout is None else settings.training.dropout
    decay = (
        0.3 * strength if settings.training.weight_decay is None else settings.training.weight_decay
    )
    return dropout, decay


def epoch_length(n_rows: int, has_categories: bool, settings: FitSettings) -> int:
    """Return the steps of an epoch: fewer where few rows are soon memorised."""
    if has_categories or settings.model.network.is_costly(settings.model.task):
        return int(np.clip(round(100 * math.sqrt(n_rows / 5000)), 20, 100))
    steps = np.clip(max(min(n_rows, 1_500), n_rows / 3), 400, 6_400)
    return round(float(steps) / EPOCHS_OF_A_TABLE)


def n_validation_noises(n_rows: int, space: TableSpace, settings: FitSettings) -> int:
    """Return with how many noises an epoch sees each validation row."""
    if space.layout.variables or settings.model.network.is_costly(settings.model.task):
        # Few states, each of many rows, are seen with more noise.
        return max(16, math.ceil(MIN_VALIDATION_ROWS / n_rows) if space.is_discrete else 0)
    # The epochs of a table are short, and their judgement is not to take much of their time.
    return int(np.clip(math.ceil(NOISY_VALIDATION_ROWS / n_rows), 4, 32))


def partners_of_networks(experts: Experts, settings: FitSettings) -> list[Denoiser]:
    """Return the references that are experts too, as denoisers of single precision."""
    asked = settings.model.experts
    denoisers = experts.experts()
    return [
        partial(denoised, denoisers[name], experts.precision)
        for name in experts.references
        if asked == "auto" or name in asked
    ]


def likeliest_partner(experts: Experts, split: MappedSplit, settings: FitSettings) -> str:
    """Return the name of the reference that parts of rows are evaluated with.

    It is the likeliest one of those that are used, but for those that are too expensive to evaluate
    anew for each row.
    """
    asked, beyond = settings.model.experts, settings.model.beyond_the_grid
    possible = [
        name
        for name in experts.references
        if name not in beyond and (asked == "auto" or name in asked)
    ]
    return likeliest_reference(experts, possible, split)


def denoiser_of_part(experts: Experts, name: str, question: Question) -> Denoiser:
    """Return a reference's denoiser of a part of rows, of single precision."""
    of_part = on_device(question.of(experts.references[name]), experts.device, experts.precision)
    return partial(denoised, of_part, experts.precision)


def denoised(reference: Denoiser, precision: torch.dtype, z: Tensor, logsnr: Tensor) -> Tensor:
    """Return the noise that a reference of some precision predicts, in that of the points."""
    return reference(z.to(precision), logsnr.to(precision)).to(z.dtype)


def density_adapter(
    experts: Experts, split: MappedSplit, base: PiecewiseDensity, processes: Processes
) -> Callable[[Network], PiecewiseDensity]:
    """Return a function that refits the importance density to the validation gap."""
    most = IMAGES_TO_ADAPT if experts.has_images else ROWS_TO_ADAPT
    few = split.valid.take(np.arange(min(len(split.valid), most)))
    keys = few.keys(1)
    points = split.space.layout.embed_array(few.X)
    noise = replace(profile_noise(points.shape[1], experts.has_images), seed=2)
    plain, nodes = experts.preconditioner, experts.grid

    def adapt(network: Network) -> PiecewiseDensity:
        network.eval()
        profile = error_profile(
            points,
            few.weight,
            keys,
            {"network": network_denoiser(network), plain: experts.experts()[plain]},
            nodes,
            noise,
            budget=experts.budget,
            device=experts.device,
            dtype=experts.precision,
        )
        gap = profile.row_errors(profile.vertex(plain)) - profile.row_errors(
            profile.vertex("network")
        )
        height = np.sqrt(gap**2 @ profile.row_weight)
        centers = 0.5 * (base.edges[1:] + base.edges[:-1])
        measured = PiecewiseDensity.from_profile(
            base.edges, np.interp(centers, nodes, height), floor=0.1
        )
        return PiecewiseDensity(base.edges, 0.5 * base.mass + 0.5 * measured.mass)

    return lambda network: processes.from_first(lambda: adapt(network))


def bound_history(net: skorch.NeuralNet) -> list[dict[str, float]]:
    """Return the bounds of each epoch, in nats per row."""
    return [
        {
            "epoch": int(row["epoch"]),
            "train_bound": float(row["train_loss"]),
            "valid_bound": float(row["valid_loss"]),
        }
        for row in net.history
        if "valid_loss" in row
    ]
