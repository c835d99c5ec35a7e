"""The model of an ensemble: members as experts, in one space, and their weights."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._fit.experts import Experts, Mixing
from sk_itdiffusion._first._fit.grids import N_NODES
from sk_itdiffusion._first._fit.model import TableModel, summarize_profile
from sk_itdiffusion._first._fit.schema import MIN_NOISY_COPIES
from sk_itdiffusion._first._fit.seeds import Seeds
from sk_itdiffusion._first._fit.splitting import MappedSplit
from sk_itdiffusion._first._fit.stacking import (
    MIN_PROFILE_ROWS,
    n_profile_rows,
    repeated_rows,
    restrict_profile,
    scoring_rule,
    variance_of_reference,
)
from sk_itdiffusion._first._fit.validation import codes_of, mean_and_std, with_unseen_values
from sk_itdiffusion._first._immse.error_profiles import ErrorProfile, stacking_weights
from sk_itdiffusion._first._immse.likelihood import Denoiser, PairedDenoiser
from sk_itdiffusion._first._table.groups import groups_of_observations
from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first._table.space import TableSpace
from sk_itdiffusion._first.channel import signal_scale
from sk_itdiffusion._first.layout import check_same_layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_in_range,
    check_positive,
    check_same,
    check_shapes,
)
from sk_itdiffusion._first.references import ContinuousReference, Reference
from sk_itdiffusion._first.references.judging import log_likelihoods

__all__ = [
    "EnsembleExperts",
    "EnsembleModel",
    "Transport",
    "fit_ensemble_model",
    "transport_between",
]

Array = NDArray[np.float64]
#: Relative tolerance of comparisons of spaces.
SPACE_TOLERANCE = 1e-9
#: Standardised values at which the maps of columns are compared.
PROBES = np.linspace(-4.0, 4.0, 17)
#: Share of their squared errors by which the predictions of equal denoisers may differ.
EQUAL_DENOISERS = 1e-13
#: Keeps the ends of a member's range of the log-SNR in it when they are rounded to float32.
RANGE_TOLERANCE = 1e-4


@stored()
@dataclass(frozen=True)
class Transport:
    """The affine map ``u_m = factor * u + shift`` from an ensemble's rows to a member's.

    Attributes
    ----------
    factor : float
        The positive factor c, the same for all columns.
    shift : ndarray of shape (d,)
        The shift b of each column.
    """

    factor: float
    shift: Array

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.factor == 1.0 and not self.shift.any()

    @property
    def rise(self) -> float:
        """By how much a log-SNR of the ensemble exceeds that of the member."""
        return 2.0 * math.log(self.factor)

    def __call__(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy points and log-SNRs as the member knows them."""
        if self.is_identity:
            return z, logsnr
        own = logsnr - self.rise
        shift = torch.from_numpy(self.shift).to(z)
        scale = (signal_scale(own) / signal_scale(logsnr))[:, None]
        return scale * self.factor * z + signal_scale(own)[:, None] * shift, own

    def reference(self, reference: Reference) -> Reference:
        """Return a member's reference as a distribution of the ensemble's rows."""
        if self.is_identity:
            return reference
        assert isinstance(reference, ContinuousReference)  # categories are not shifted
        return reference.standardized(self.shift, np.full_like(self.shift, self.factor))

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_positive(self.factor, "factors of members")
        check_shapes(self, {"shift": "d"})
        # Squares of larger numbers are none.
        check_in_range(self.shift, -1e150, 1e150, "shifts of members")


def transport_between(ensemble: TableSpace, member: TableSpace, name: str, first: str) -> Transport:
    """Return the map between two spaces, found from rows all over the ensemble's.

    Parameters
    ----------
    ensemble, member : TableSpace
        Spaces of the ensemble and of a member.
    name, first : str
        Names of the member, and of the one whose space is the ensemble's, for the message.

    Returns
    -------
    Transport
        The map.

    Raises
    ------
    ValueError
        If the spaces differ by anything but one factor and a shift of each column.
    """
    if not same_columns(ensemble, member):
        raise ValueError(incompatible(name, first, "do not model the same columns and categories"))
    if ensemble is member or ensemble.is_empty:
        return Transport(1.0, np.zeros(ensemble.layout.n_points))
    n_continuous = len(ensemble.continuous)
    probes = np.zeros((len(PROBES), n_continuous + len(ensemble.discrete)))
    probes[:, :n_continuous] = PROBES[:, None]
    values = ensemble.values(probes)
    ours, theirs = (s.rows(s.standardized(values))[0] for s in (ensemble, member))
    ours, theirs = ours[:, :n_continuous], theirs[:, :n_continuous]
    if np.array_equal(ours, theirs):
        return Transport(1.0, np.zeros(ensemble.layout.n_points))
    factor, shift = common_affine_map(ours, theirs)
    size = np.abs(theirs).max()
    fits = np.abs(factor * ours + shift - theirs).max() <= SPACE_TOLERANCE * max(size, 1.0)
    if not fits or ensemble.layout.variables:
        raise ValueError(incompatible(name, first, "see their columns on different scales"))
    return Transport(factor, shift)


def common_affine_map(ours: Array, theirs: Array) -> tuple[float, Array]:
    """Return the factor and the shifts that map increasing columns to others, if there are any."""
    factor = float((theirs[-1, 0] - theirs[0, 0]) / (ours[-1, 0] - ours[0, 0]))
    middle = len(ours) // 2
    return factor, theirs[middle] - factor * ours[middle]


def same_columns(first: TableSpace, second: TableSpace) -> bool:
    """Return whether two spaces model the same columns, and embed their categories alike."""
    if first.n_columns != second.n_columns:
        return False
    pairs = [
        (first.continuous, second.continuous),
        (first.discrete, second.discrete),
        (first.constant, second.constant),
        (first.constant_values[first.constant], second.constant_values[second.constant]),
    ]
    if not all(np.array_equal(ours, theirs) for ours, theirs in pairs):
        return False
    variables = zip(first.layout.variables, second.layout.variables, strict=True)
    return all(
        ours.n_categories == theirs.n_categories
        and (ours.values is None) == (theirs.values is None)
        and (
            ours.values is None
            or theirs.values is None
            or np.allclose(ours.values, theirs.values, rtol=SPACE_TOLERANCE, atol=SPACE_TOLERANCE)
        )
        for ours, theirs in variables
    )


def incompatible(name: str, first: str, what: str) -> str:
    """Return the message that two members cannot be combined."""
    return (
        f"The members {name!r} and {first!r} {what}, so their denoisers see different noise and "
        "cannot be combined. Let the ensemble fit them (prefit=False), or fit both to the same "
        "rows with the same marginals='standard' or the same categories."
    )


class SharedDenoiser:
    """A denoiser that several members have: they call it with the same points, it works once.

    Parameters
    ----------
    denoiser : callable
        The denoiser.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self._last = threading.local()

    def __call__(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; that of the thread's last call if the tensors are those."""
        last: tuple[Tensor, Tensor, Tensor] | None = getattr(self._last, "call", None)
        if last is None or last[0] is not z or last[1] is not logsnr:
            last = z, logsnr, self.denoiser(z, logsnr)
            self._last.call = last
        return last[2]


def member_denoiser(
    model: TableModel, transport: Transport, shared: Mapping[str, Denoiser]
) -> Denoiser:
    """Return a member's complete model as a denoiser of the ensemble's noisy rows.

    Outside of the member's range of the log-SNR it is the member's control variate.

    Parameters
    ----------
    model : TableModel
        The member.
    transport : Transport
        The map from the ensemble's rows to its own.
    shared : dict of str to callable
        Those of its experts that are evaluated for others too, of its own rows.

    Returns
    -------
    callable
        The denoiser.
    """
    experts = {**model.experts(), **shared}
    paired = model.mixing.paired(experts)
    low, high = model.logsnr[0] - RANGE_TOLERANCE, model.logsnr[-1] + RANGE_TOLERANCE

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        own_z, own = transport(z, logsnr)
        reference, stack = paired(own_z, own)
        return torch.where(((own >= low) & (own <= high))[:, None], stack, reference)

    return denoise


@dataclass(frozen=True, kw_only=True)
class EnsembleExperts(Experts):
    """Other fitted densities and their references, as experts.

    Attributes
    ----------
    members : dict of str to TableModel
        The members' models.
    transports : dict of str to Transport
        Maps from the ensemble's rows to theirs.
    reference_names : dict of str to dict of str to str
        For each member, the names in ``references`` of its own references.
    """

    members: dict[str, TableModel]
    transports: dict[str, Transport]
    reference_names: dict[str, dict[str, str]]

    @property
    def network_names(self) -> Collection[str]:
        """Names of the experts that are no analytic references."""
        return self.members.keys()

    @property
    def evaluations_apart(self) -> int:
        """Places at multiples of which rows begin, for all members."""
        return max(model.evaluations_apart for model in self.members.values())

    def experts(self) -> dict[str, Denoiser]:
        """Return all denoisers by name: the members' and the references'."""
        references: dict[str, Denoiser] = {
            name: SharedDenoiser(denoiser) for name, denoiser in super().experts().items()
        }
        members: dict[str, Denoiser] = {}
        for name, model in self.members.items():
            transport = self.transports[name]
            own = self.reference_names[name] if transport.is_identity else {}
            shared = {theirs: references[ours] for theirs, ours in own.items()}
            members[name] = member_denoiser(model, transport, shared)
        return members | references


@stored(is_placed=True)
@dataclass(frozen=True, kw_only=True)
class EnsembleModel(TableModel, EnsembleExperts):
    """A fitted density whose experts are other fitted densities and their references.

    Attributes
    ----------
    sole : str or None
        The member that has all the weight because all other experts equal it; then the integral
        is that member's, digit by digit.
    """

    sole: str | None = None

    def without_wide_components(self) -> TableModel:
        """Return the ensemble with such references, and with members that have such."""
        members = {name: each.without_wide_components() for name, each in self.members.items()}
        kept = super().without_wide_components()
        assert isinstance(kept, EnsembleModel)
        if all(members[name] is each for name, each in self.members.items()):
            return kept
        return replace(kept, members=members)

    def paired(self) -> PairedDenoiser:
        """Return the control variate and the stack as one function."""
        return super().paired() if self.sole is None else self.members[self.sole].paired()

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        super()._finish_loading()
        names = [self.transports.keys(), self.reference_names.keys()]
        check_same(names, 2 * [self.members.keys()], "there are other members")
        for name, model in self.members.items():
            check_same_layout(model.space.layout, self.space.layout)
            check_same(model.device, self.device, "the devices of members differ")
            check_shapes(self.transports[name], {"shift": "d"}, d=self.space.layout.n_points)
            theirs = self.reference_names[name]
            if not theirs.keys() <= model.references.keys() or not (
                {*theirs.values()} <= self.references.keys()
            ):
                raise ValueError(f"the references of the member {name!r} are others")
        if self.sole is not None and self.sole not in self.members:
            raise ValueError("an expert is none of the model's")


def distinct_references(
    members: Mapping[str, TableModel], transports: Mapping[str, Transport]
) -> tuple[dict[str, Reference], dict[str, dict[str, str]]]:
    """Return the members' references in the ensemble's space, and how each member calls them.

    Equal ones are there once.  A reference keeps its name if no other expert has it, else the
    member's name is put before it.
    """
    found: dict[str, Reference] = {}
    names: dict[str, dict[str, str]] = {}
    for member, model in members.items():
        names[member] = {}
        for own_name, own in model.references.items():
            reference = transports[member].reference(own)
            equal = [name for name, other in found.items() if equal_references(reference, other)]
            is_free = own_name not in found and own_name not in members
            name = equal[0] if equal else own_name if is_free else f"{member}__{own_name}"
            found.setdefault(name, reference)
            names[member][own_name] = name
    return found, names


def equal_references(first: Reference, second: Reference) -> bool:
    """Return whether two references are the same distribution, number by number."""
    if first is second:
        return True
    ours, theirs = first.state_dict(), second.state_dict()
    return (
        type(first) is type(second)
        and ours.keys() == theirs.keys()
        and all(torch.equal(value, theirs[name]) for name, value in ours.items())
        and sizes_of(first) == sizes_of(second)
    )


def sizes_of(reference: Reference) -> object:
    """Return what a reference is made from, tensors and parts aside; unlike all else if unknown."""
    try:
        config = reference.config()
    except TypeError:  # of a class defined by the user that no file can hold
        return object()
    return {name: v for name, v in config.items() if not isinstance(v, torch.nn.Module)}


def distinct_experts(profile: ErrorProfile, names: Sequence[str]) -> dict[str, str]:
    """Return, for each expert, the first one of those named that predicts the same."""
    gram = profile.mean_gram
    index = {name: list(profile.names).index(name) for name in names}
    same: dict[str, str] = {}
    for name in names:
        i = index[name]
        for other in dict.fromkeys(same.values()):
            j = index[other]
            total = gram[:, i, i] + gram[:, j, j]
            difference = np.abs(total - gram[:, i, j] - gram[:, j, i])
            if (difference <= EQUAL_DENOISERS * total).all():
                same[name] = other
                break
        else:
            same[name] = name
    return same


def expert_weights(profile: ErrorProfile, names: Sequence[str], rule: str) -> Array:
    """Return the weights of experts at the nodes, (n_nodes, n_experts).

    Of experts that predict the same only the first has weight.

    Parameters
    ----------
    profile : ErrorProfile
        Products of the residuals on validation rows.
    names : sequence of str
        The experts.
    rule : {"stack", "select"}
        Whether the weights minimise the error, or are all on the best expert.

    Returns
    -------
    ndarray of shape (n_nodes, n_experts)
        Non-negative weights; rows sum to 1.
    """
    same = distinct_experts(profile, names)
    chosen = list(dict.fromkeys(same.values()))
    members = restrict_profile(profile, chosen)
    if rule == "select":
        errors = np.diagonal(members.mean_gram, axis1=1, axis2=2)
        found = np.eye(len(chosen))[errors.argmin(axis=1)]
    else:
        found = stacking_weights(members)
    weights = np.zeros((len(profile.logsnr), len(names)))
    weights[:, [list(names).index(name) for name in chosen]] = found
    return weights


@dataclass(frozen=True)
class WeightSettings:
    """How the weights of an ensemble are found, and how it scores."""

    rule: str
    include_references: bool


def fit_ensemble_model(
    members: Mapping[str, TableModel],
    space: TableSpace,
    transports: Mapping[str, Transport],
    valid: WeightedRows,
    settings: WeightSettings,
    seeds: Seeds,
    train: WeightedRows | None = None,
) -> tuple[EnsembleModel, dict[str, float]]:
    """Return the weighted ensemble, and the validation bound of each expert alone.

    Parameters
    ----------
    members : dict of str to TableModel
        Fitted models.
    space : TableSpace
        The ensemble's space.
    transports : dict of str to Transport
        Maps from it to the members' spaces.
    valid : WeightedRows
        Rows, in the units of the data, that none of the members was fitted to.
    settings : WeightSettings
        Parameters.
    seeds : Seeds
        Seeds of the noise.
    train : WeightedRows or None, default=None
        Rows, in the units of the data, that members were fitted to; None if these are not known.

    Returns
    -------
    model : EnsembleModel
        The ensemble.
    entropies : dict of str to float
        Validation bounds in nats.
    """
    names = list(members)
    references, reference_names = distinct_references(members, transports)
    first = members[names[0]]
    experts = EnsembleExperts(
        space=space,
        references=references,
        plain="" if space.is_empty else reference_names[names[0]][first.plain],
        preconditioner="",
        nets={},
        grid=common_nodes(members, transports),
        seeds=seeds,
        device=first.device,
        dequantizer=first.dequantizer,
        has_images=any(member.has_images for member in members.values()),
        members=dict(members),
        transports=dict(transports),
        reference_names=reference_names,
    )
    if space.is_empty:
        bound = -float(experts.log_density_of_constants(valid.X[:1])[0])
        mixing = Mixing("", experts.grid, names, np.empty((0, len(names))))
        model = EnsembleModel.of(experts, mixing, rule=None, entropy=bound)
        return model, dict.fromkeys(names, bound)
    rows = bound_rows(experts, valid, train)
    profile = experts.profile(
        rows.mapped.X, rows.mapped.weight, rows.keys, experts.grid, rows.mapped.source
    )
    chosen = [*names, *references] if settings.include_references else names
    share = rows.mapped.share
    log_density = {
        name: log_likelihoods(reference, rows.mapped.X) for name, reference in references.items()
    }
    likeliest = max(log_density, key=lambda name: float(share @ log_density[name]))
    weights = expert_weights(profile, chosen, settings.rule)
    mixing = Mixing(likeliest, experts.grid, chosen, weights)
    sole = sole_member(experts, profile, chosen)
    if sole is not None:
        member = members[sole]
        mixing = replace(mixing, control=reference_names[sole][member.control])
        experts = replace(experts, seeds=member.seeds)
    control = mixing.control
    known = log_density[control] + rows.log_slope
    if train is not None:
        codes = codes_of(train.X[:, space.discrete])
        known = with_unseen_values(known, rows.mapped, codes, space, references[control])
    baseline = float(share @ known) + experts.constant_term
    entropies = {
        name: validation_bound(profile, control, baseline, profile.vertex(name)) for name in chosen
    }
    stack = profile.spread(chosen, weights)
    difference = profile.row_errors(profile.vertex(control)) - profile.row_errors(stack)
    bounds = known + profile.integral(difference)
    n, variance = profile.n_observations, 0.0
    if train is not None:
        variance = variance_of_reference(references[control], rows.split, n)
    if sole is None:
        paired = mixing.paired(experts.experts())
        rule = scoring_rule(experts, mixing, paired, rows.split.valid)
    else:
        rule = members[sole].rule
    model = EnsembleModel.of(
        experts,
        mixing,
        rule=rule,
        entropy=validation_bound(profile, control, baseline, stack),
        entropy_std=mean_and_std(bounds, rows.mapped, n, variance)[1],
        curve=summarize_profile(profile, chosen, weights, experts.network_names),
        sole=sole,
    )
    return model, entropies


def common_nodes(members: Mapping[str, TableModel], transports: Mapping[str, Transport]) -> Array:
    """Return nodes of the log-SNR over all members' ranges, in the ensemble's space.

    They are as close as those of a member are at the closest.
    """
    nodes = [model.logsnr + transports[name].rise for name, model in members.items()]
    nodes = [each for each in nodes if len(each)]
    if not nodes:
        return np.empty(0)
    low, high = min(each[0] for each in nodes), max(each[-1] for each in nodes)
    closest = min(each[1] - each[0] for each in nodes)
    return np.linspace(low, high, max(N_NODES, math.ceil((high - low) / closest - 1e-6) + 1))


@dataclass(frozen=True)
class BoundRows:
    """Validation rows as the denoisers see them.

    Attributes
    ----------
    split : MappedSplit
        Distinct rows, and those for training, or the same if these are not known.
    mapped : WeightedRows
        The distinct validation rows, but few states are repeated.
    log_slope : ndarray of shape (n,)
        Log-derivatives of the maps of these.
    keys : ndarray of shape (n,), uint64
        Keys of their noise.
    """

    split: MappedSplit
    mapped: WeightedRows
    log_slope: Array
    keys: NDArray[np.uint64]


def bound_rows(experts: Experts, valid: WeightedRows, train: WeightedRows | None) -> BoundRows:
    """Return as many validation rows as the error profile can afford."""
    rows = rows_as_seen(experts, valid)
    others = rows if train is None else rows_as_seen(experts, train)
    split = MappedSplit.behind(experts.space, others, rows)
    keys = split.valid.keys(experts.seeds.scoring + 1)
    if not experts.space.is_discrete:
        return BoundRows(split, split.valid, split.valid_log_slope, keys)
    mapped, keys = repeated_rows(split.valid, keys, MIN_PROFILE_ROWS)
    return BoundRows(split, mapped, np.zeros(len(mapped)), keys)


def rows_as_seen(experts: Experts, rows: WeightedRows) -> WeightedRows:
    """Return the first rows, as many as the error profile can afford, standardised and noisy."""
    first = rows.take(np.arange(n_profile_rows(experts, len(experts.grid), len(rows))))
    if experts.dequantizer is not None:
        n_rows = n_profile_rows(experts, len(experts.grid), MIN_NOISY_COPIES)
        copies = experts.dequantizer.noisy_copies(first, n_rows, n_rows, one=False)
        group = groups_of_observations(first, copies.index, copies.observation)
        first = replace(copies.rows, group=group)
    return first.with_values(experts.space.standardized(first.X))


def sole_member(
    experts: EnsembleExperts, profile: ErrorProfile, names: Sequence[str]
) -> str | None:
    """Return the member that all other experts equal; None if they are not all the same."""
    if len(set(distinct_experts(profile, names).values())) > 1:
        return None
    # Of equal experts the first has the weight, and the first experts are the members.
    return next(iter(experts.members))


def validation_bound(profile: ErrorProfile, control: str, baseline: float, weights: Array) -> float:
    """Return the negative mean log-density of a stack of experts on validation rows."""
    difference = profile.row_errors(profile.vertex(control)) - profile.row_errors(weights)
    return -baseline - float(profile.row_weight @ profile.integral(difference))
