r"""Ensembles of density estimators, chosen or weighted at each log-SNR.

For a fixed log-SNR any mixture of denoisers is a denoiser, so with weights :math:`w_i(a)` on the
simplex that may depend on the log-SNR :math:`a`

.. math:: \hat\epsilon(z, a) = \sum_i w_i(a)\, \hat\epsilon_i(z, a)

gives a density by the I-MMSE relation, whose cross-entropy is the lower the less its squared error
is at each log-SNR (Kong et al. 2023: there, all weight on the best).

**One space.**  All denoisers have to see rows through one and the same noise.  If a member's rows
are :math:`u_m = c\, u + b` in terms of the ensemble's rows :math:`u`, with one factor c for all
columns, then the noise that it predicts at :math:`z_m, a_m` is that at :math:`z, a` for

.. math:: a_m = a - 2 \log c, \qquad
    z_m = \sqrt{\sigma(a_m)} \left(\frac{c\, z}{\sqrt{\sigma(a)}} + b\right) .

Any other difference of the spaces would be noise of another shape.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context, clone
from sklearn.ensemble._base import _set_random_states
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Bunch, check_random_state, get_tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import validate_data
from torch import Tensor

from sk_itdiffusion.blocks import in_memory
from sk_itdiffusion.callbacks import FitTasks, with_callbacks
from sk_itdiffusion.channel import signal_scale
from sk_itdiffusion.cubature import row_keys
from sk_itdiffusion.dequantize import Dequantizer
from sk_itdiffusion.encoding import TableEncoder, naming_columns, read_table, without_tensors
from sk_itdiffusion.estimator import (
    CategoricalEstimator,
    ChosenRows,
    DensityEstimator,
    TableEstimator,
    flattened_images,
)
from sk_itdiffusion.experts import MappedSplit, log_likelihoods
from sk_itdiffusion.fitting import (
    LEAST_NOISY_COPIES,
    LEAST_PROFILE_ROWS,
    LEAST_ROWS_TO_SPLIT,
    N_NODES,
    FitSettings,
    check_bounds,
    expert_of_few_rows,
    in_counts,
    n_observations,
    n_profile_rows,
    repeated,
    restrict_profile,
    rows_together,
    scoring_rule,
    split_groups,
    split_independent_rows,
    table_space,
)
from sk_itdiffusion.groups import RowGroups, checked_groups
from sk_itdiffusion.likelihood import Denoiser, ErrorProfile, PairedDenoiser, stacking_weights
from sk_itdiffusion.model import (
    Effort,
    Seeds,
    TableModel,
    covers,
    scoring_noise,
    summarize_profile,
)
from sk_itdiffusion.progress import progress_bar, stretch_of_progress
from sk_itdiffusion.references import ContinuousReference, Reference
from sk_itdiffusion.rows import WeightedRows, group_rows
from sk_itdiffusion.space import ColumnKind, TableSpace
from sk_itdiffusion.validation import mean_and_std

__all__ = ["EnsembleModel", "IMMSEEnsemble", "Transport"]

Array = NDArray[np.float64]

#: Relative tolerance of comparisons of spaces.
SPACE_TOLERANCE = 1e-9
#: Standardised values at which the maps of columns are compared.
PROBES = np.linspace(-4.0, 4.0, 17)
#: Share of their squared errors by which the predictions of equal denoisers may differ.
EQUAL_DENOISERS = 1e-13
#: Keeps the ends of a member's range of the log-SNR in it when they are rounded to float32.
RANGE_TOLERANCE = 1e-4


# -- spaces ----------------------------------------------------------------------------------


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
        assert isinstance(reference, ContinuousReference)  # levels are not shifted
        return reference.standardized(self.shift, np.full_like(self.shift, self.factor))


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
        raise ValueError(incompatible(name, first, "do not model the same columns and levels"))
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
    """Return whether two spaces model the same columns, and embed their levels alike."""
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
        ours.n_levels == theirs.n_levels
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
        "rows with the same marginals='standard' or the same levels."
    )


# -- the model -------------------------------------------------------------------------------


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
    paired = model.stack(experts).paired_with(experts[model.control])
    low, high = model.logsnr[0] - RANGE_TOLERANCE, model.logsnr[-1] + RANGE_TOLERANCE

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        own_z, own = transport(z, logsnr)
        reference, stack = paired(own_z, own)
        return torch.where(((own >= low) & (own <= high))[:, None], stack, reference)

    return denoise


@dataclass
class EnsembleModel(TableModel):
    """A fitted density whose experts are other fitted densities and their references.

    Attributes
    ----------
    members : dict of str to TableModel
        The members' models.
    transports : dict of str to Transport
        Maps from the ensemble's rows to theirs.
    reference_names : dict of str to dict of str to str
        For each member, the names in ``references`` of its own references.
    sole : str or None
        The member that has all the weight because all other experts equal it; then the integral
        is that member's, digit by digit.
    """

    members: dict[str, TableModel] = field(default_factory=dict)
    transports: dict[str, Transport] = field(default_factory=dict)
    reference_names: dict[str, dict[str, str]] = field(default_factory=dict)
    sole: str | None = None

    @property
    def network_names(self) -> Collection[str]:
        """Names of the experts that are no analytic references."""
        return self.members.keys()

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
    """Return what a reference is made from beside tensors and parts; unlike all else if unknown."""
    try:
        config = reference.config()
    except TypeError:  # of a class of the user's own that no file can hold
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


def expert_weights(profile: ErrorProfile, names: Sequence[str], anchor: str, rule: str) -> Array:
    """Return the weights of experts at the nodes, (n_nodes, n_experts).

    Of experts that predict the same only the first has weight.

    Parameters
    ----------
    profile : ErrorProfile
        Products of the residuals on validation rows.
    names : sequence of str
        The experts.
    anchor : str
        The expert to fall back to with few rows.
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
        found = stacking_weights(members, same[anchor])
    weights = np.zeros((len(profile.logsnr), len(names)))
    weights[:, [list(names).index(name) for name in chosen]] = found
    return weights


@dataclass(frozen=True)
class WeightSettings:
    """How the weights of an ensemble are found, and how it scores."""

    rule: str
    include_references: bool
    scoring: FitSettings


def fit_ensemble_model(
    members: Mapping[str, TableModel],
    space: TableSpace,
    transports: Mapping[str, Transport],
    valid: WeightedRows,
    settings: WeightSettings,
    seeds: Seeds,
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

    Returns
    -------
    model : EnsembleModel
        The ensemble.
    entropies : dict of str to float
        Validation bounds in nats.
    """
    names = list(members)
    references, reference_names = distinct_references(members, transports)
    model = EnsembleModel(
        space=space,
        references=references,
        control="",
        preconditioner="",
        nets={},
        logsnr=common_nodes(members, transports),
        expert_names=names,
        weights=np.empty((0, len(names))),
        rule=None,
        seeds=seeds,
        device=members[names[0]].device,
        dequantizer=members[names[0]].dequantizer,
        has_images=any(member.has_images for member in members.values()),
        beyond=next((m.beyond for m in members.values() if m.beyond is not None), None),
        members=dict(members),
        transports=dict(transports),
        reference_names=reference_names,
    )
    if space.is_empty:
        bound = -float(model.log_density(valid.X[:1])[0][0])
        model.entropy, model.entropy_std = bound, 0.0
        return model, dict.fromkeys(names, bound)
    rows = bound_rows(model, valid)
    profile = model.profile(rows.mapped.X, rows.mapped.weight, rows.keys, rows.mapped.source)
    if settings.include_references:
        model.expert_names = [*names, *model.references]
    share = rows.mapped.share
    log_density = {
        name: log_likelihoods(reference, rows.mapped.X)
        for name, reference in model.references.items()
    }
    model.control = max(log_density, key=lambda name: float(share @ log_density[name]))
    set_weights(model, profile, settings.rule)
    baseline = float(share @ (log_density[model.control] + rows.log_slope)) + model.constant_term
    entropies = {
        name: validation_bound(profile, model.control, baseline, profile.vertex(name))
        for name in model.expert_names
    }
    stack = profile.spread(model.expert_names, model.weights)
    model.entropy = validation_bound(profile, model.control, baseline, stack)
    difference = profile.row_errors(profile.vertex(model.control)) - profile.row_errors(stack)
    bounds = log_density[model.control] + rows.log_slope + profile.integral(difference)
    _, model.entropy_std = mean_and_std(bounds, rows.mapped, profile.n_observations)
    model.curve = summarize_profile(profile, model.expert_names, model.weights, model.network_names)
    if model.sole is None:
        few = rows.distinct.take(np.arange(min(len(rows.distinct), 100)))
        model.rule = scoring_rule(model, few, settings.scoring)
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
    distinct : WeightedRows
        Distinct rows.
    mapped : WeightedRows
        The same, but few states are repeated.
    log_slope : ndarray of shape (n,)
        Log-derivatives of the maps of these.
    keys : ndarray of shape (n,), uint64
        Keys of their noise.
    """

    distinct: WeightedRows
    mapped: WeightedRows
    log_slope: Array
    keys: NDArray[np.uint64]


def bound_rows(model: TableModel, valid: WeightedRows) -> BoundRows:
    """Return as many validation rows as the error profile can afford."""
    first = valid.take(np.arange(n_profile_rows(model, len(valid))))
    if model.dequantizer is not None:
        n_rows = n_profile_rows(model, LEAST_NOISY_COPIES)
        first = model.dequantizer.noisy_copies(first, n_rows, n_rows, one=False).rows
    rows = first.with_values(model.space.standardized(first.X))
    split = MappedSplit.behind(model.space, rows, rows)
    keys = row_keys(split.valid.X, model.seeds.scoring + 1)
    if not model.space.is_discrete:
        return BoundRows(split.valid, split.valid, split.valid_log_slope, keys)
    mapped, keys = repeated(split.valid, keys, LEAST_PROFILE_ROWS)
    return BoundRows(split.valid, mapped, np.zeros(len(mapped)), keys)


def set_weights(model: EnsembleModel, profile: ErrorProfile, rule: str) -> None:
    """Set the weights of the experts in place, and the member that all others equal, if any."""
    names = list(model.expert_names)
    model.weights = expert_weights(profile, names, expert_of_few_rows(model), rule)
    if len(set(distinct_experts(profile, names).values())) > 1:
        return
    # Of equal experts the first has the weight, and the first experts are the members.
    sole = model.members[names[0]]
    model.sole, model.rule, model.seeds = names[0], sole.rule, sole.seeds
    model.control = model.reference_names[names[0]][sole.control]


def validation_bound(profile: ErrorProfile, control: str, baseline: float, weights: Array) -> float:
    """Return the negative mean log-density of a stack of experts on validation rows."""
    difference = profile.row_errors(profile.vertex(control)) - profile.row_errors(weights)
    return -baseline - float(profile.row_weight @ profile.integral(difference))


# -- the estimator ---------------------------------------------------------------------------


class IMMSEEnsemble(_BaseComposition, DensityEstimator):
    r"""Ensemble of density estimators that is chosen or weighted at each log-SNR.

    The squared error of a denoiser, integrated over the log-SNR a, is a density (see
    `IMMSEDensity`).  At each log-SNR the denoisers of the members are mixed anew [1]_,

    .. math:: \hat\epsilon(z, a) = \sum_i w_i(a)\, \hat\epsilon_i(z, a), \qquad
        w_i(a) \ge 0, \quad \sum_i w_i(a) = 1,

    with the weights of least squared error on validation rows: a member that is good at fine
    structure has its say at high log-SNRs only.  No average of log-densities does this.

    Parameters
    ----------
    estimators : list of (str, estimator) tuples
        Names and members: `IMMSEDensity`, or `IMMSEDiscreteDensity` and `IMMSEMixedDensity`.  A
        member can be fitted already if it is wrapped in `sklearn.frozen.FrozenEstimator`, and is
        left out if it is set to ``"drop"``.
    weights : {"stack", "select"}, default="stack"
        Weights at each node of the log-SNR: those on the simplex that minimise the validation
        error, never worse than the best member; or all on the expert of least error, as in [1]_.
        Between nodes they are interpolated.  With 50 validation rows or fewer stacked weights are
        drawn back to a plain reference within one standard error.
    include_references : bool, default=True
        Whether the members' analytic references are experts too, equal ones once.
    prefit : bool, default=False
        Whether all members are fitted.  Then `fit` finds the weights only, from all rows that it
        is given, which must not be those that the members were fitted to.  `sklearn.base.clone`,
        as in searches, forgets such fits but not those of frozen members.
    validation_fraction : float, default=0.1
        Share in (0, 1) of the rows, at least 10 and at most 10,000, that are held out for the
        weights while members are fitted to the others.  With fewer than 40 rows (distinct ones if
        columns are continuous) all rows serve both.
    n_strata : int or None, default=None
        Strata of the log-SNR in scoring, at least 2; None takes the most of the members.  This and
        the next two parameters may be changed after `fit`.
    n_draws : int or None, default=None
        Draws in each stratum, at least 2; None takes the most of the members.
    n_directions : int or None, default=None
        Noise directions in a draw, at least 1; None takes the most of the members.
    verbose : int, default=0
        At least 0, which is silent.  With 1 or more `fit` shows one progress bar for all members,
        whatever their own ``verbose`` is, and so do scoring and sampling if they take more than a
        few seconds.
    random_state : int, RandomState or None, default=None
        Seed of the split, of the noise in scoring, and of the members whose ``random_state`` is
        None.

    Attributes
    ----------
    estimators_ : list of estimators
        The fitted members that are not dropped, frozen ones unwrapped.
    named_estimators_ : Bunch
        The same by name.
    member_weights_ : dict of str to ndarray of shape (n_nodes,)
        Weights of the members and references at the nodes.  A reference has the name that its
        member gives it, such as ``"gaussian"``, or ``"<member>__gaussian"`` if another expert has
        that name.
    logsnr_ : ndarray of shape (n_nodes,)
        Nodes of the log-SNR: equidistant ones over all members' ranges, at least 41, as close as
        those of the member with the closest.
    entropy_ : float
        The validation bound of the ensemble: an estimate from above of the entropy of the data,
        in nats, slightly optimistic since the validation rows chose the weights.  NaN if members
        were fitted to fewer than 40 rows, none of which were spared.
    entropy_std_ : float
        Its standard error, in nats, over the validation rows.
    member_entropies_ : dict of str to float
        The bounds of each member and reference alone, on the same rows, noise and nodes.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X had string names.

    See Also
    --------
    IMMSEDensity : A single estimator weights its own network and references in this way.
    sklearn.ensemble.StackingRegressor : Stacking of regressors.

    Notes
    -----
    For a fixed log-SNR any mixture of denoisers is a denoiser, so the estimate is a bound like any
    member's: the mean of ``-score_samples`` on new rows is no less than their entropy, up to the
    error of the integration.

    Values of discrete columns that are no levels have the probabilities that the first fitted
    member gives them, or else the first one.

    All members denoise the same rows.  A member that is fitted here is fitted in the space of the
    first fitted member, or of the first one that fixes its own (by a ``denoiser`` or a `Reference`
    object), or of the first one; the maps of continuous columns (``marginals``, ``bounds``) are
    those of that member.  Fitted members may differ by one common factor of all columns, and by
    shifts; discrete columns have to have the same levels, embedded alike.  Discrete members take
    part with their denoisers whatever their ``likelihood`` is; with ``dequantize`` all need the
    same steps.

    In `mse_curve` the members are among the ``networks``.

    References
    ----------
    .. [1] X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
       https://arxiv.org/abs/2302.03792

    Examples
    --------
    >>> import numpy as np
    >>> from sk_itdiffusion import IMMSEDensity, IMMSEEnsemble
    >>> X = np.random.default_rng(0).normal(size=(600, 2))
    >>> members = [
    ...     ("small", IMMSEDensity(reference="gaussian", hidden_size=16, max_epochs=1)),
    ...     ("large", IMMSEDensity(reference="gaussian", hidden_size=32, max_epochs=1)),
    ... ]
    >>> ensemble = IMMSEEnsemble(members, random_state=0).fit(X)
    >>> ensemble.entropy_ <= min(ensemble.member_entropies_.values())
    True
    >>> ensemble.score_samples(X[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimators": [list],
        "weights": [StrOptions({"stack", "select"})],
        "include_references": ["boolean"],
        "prefit": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_strata": [None, Interval(Integral, 2, None, closed="left")],
        "n_draws": [None, Interval(Integral, 2, None, closed="left")],
        "n_directions": [None, Interval(Integral, 1, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    estimators_: list[TableEstimator]
    _encoder: TableEncoder | None
    _image_shape: Sequence[int] | None
    n_strata: int | None  # type: ignore[assignment]
    n_draws: int | None  # type: ignore[assignment]

    def __init__(
        self,
        estimators: list[tuple[str, Any]],
        *,
        weights: str = "stack",
        include_references: bool = True,
        prefit: bool = False,
        validation_fraction: float = 0.1,
        n_strata: int | None = None,
        n_draws: int | None = None,
        n_directions: int | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimators = estimators
        self.weights = weights
        self.include_references = include_references
        self.prefit = prefit
        self.validation_fraction = validation_fraction
        self.n_strata = n_strata
        self.n_draws = n_draws
        self.n_directions = n_directions
        self.verbose = verbose
        self.random_state = random_state

    # -- parameters --------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, those of the members as ``<name>__<parameter>``.

        Parameters
        ----------
        deep : bool, default=True
            Whether to return the members by name, and their parameters.

        Returns
        -------
        dict
            Names and values.
        """
        return dict(self._get_params("estimators", deep=deep))

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of members as ``<name>__<parameter>``, or members by name.

        Parameters
        ----------
        **params : dict
            Names and values; a member set to ``"drop"`` is left out.

        Returns
        -------
        IMMSEEnsemble
            The ensemble itself.
        """
        self._set_params("estimators", **params)
        return self

    def __sklearn_tags__(self) -> Any:
        """Return the tags: texts and categories are accepted if all members accept them."""
        tags = super().__sklearn_tags__()
        try:
            inputs = [
                get_tags(member).input_tags
                for _, member in self.estimators
                if not is_dropped(member)
            ]
        except (AttributeError, TypeError, ValueError):
            return tags  # `fit` will raise an error that tells more
        tags.input_tags.categorical = bool(inputs) and all(each.categorical for each in inputs)
        tags.input_tags.string = bool(inputs) and all(each.string for each in inputs)
        return tags

    # -- fit ---------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the members to a part of the rows, and the weights to the others.

        Parameters
        ----------
        X : array-like or data frame of shape (n_samples, n_features)
            Rows; at least 2.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a weight of 2 is the same as having the row twice.
        groups : array-like of shape (n_samples,), default=None
            Hashable labels of the groups that rows belong to: all rows of a group are used for
            the members, or all for the weights; and so it is within the members.

        Returns
        -------
        IMMSEEnsemble
            The fitted ensemble.

        Raises
        ------
        ValueError
            If the names or members are not as described, members cannot be combined, X is not
            what they take, or there are too few groups to divide.
        TypeError
            If a member is not an estimator of this library.
        NotFittedError
            If a member that should be fitted is not.
        """
        self._forget_fit()
        members, fitted = self._checked_members()
        random_state = check_random_state(self.random_state)
        seeds = Seeds.draw(random_state)
        for name in members:
            if name not in fitted:
                members[name] = prepared(members[name], random_state)
        order = sorted(
            members, key=lambda name: (name not in fitted, not fixes_space(members[name]))
        )
        first = members[order[0]]
        X = in_memory(X)
        codes = None if groups is None else checked_groups(groups, X)
        X = self._note_columns(X, first)
        self._check_columns(members, fitted, X)
        read = first._read_again if order[0] in fitted else first._read_first
        values, weight, kinds = read(X, sample_weight)
        settings = replace(first._settings(), validation_fraction=self.validation_fraction)
        rows, space, is_counted = grouped_rows(values, weight, kinds, settings)
        needs_fit = [name for name in order if name not in fitted]
        belonging = None
        if codes is not None:
            if len(codes) > len(values):  # rows of weight 0 are not read
                codes = codes[np.asarray(without_tensors(sample_weight)) > 0]
            belonging = RowGroups.of(rows, values, weight, codes)
        train: ChosenRows = rows.X, rows.weight, None
        valid = rows
        if needs_fit:
            train, valid = held_out(rows, space, settings, seeds, is_counted, belonging)
        n_stretches = len(needs_fit) + 1
        tasks = FitTasks.begin(self, len(needs_fit), X, y, sample_weight)
        with progress_bar(type(self).__name__, self.verbose):
            for number, name in enumerate(needs_fit):
                place = number / n_stretches, (number + 1) / n_stretches
                title = f"{name} ({number + 1}/{len(needs_fit)})"
                with stretch_of_progress(*place, title), tasks.subfit(f"fit {name}", members[name]):
                    fit_member(name, members[name], order[0], first, X, sample_weight, train)
            with stretch_of_progress(1.0 - 1.0 / n_stretches, 1.0, "weights"):
                self._combine(members, order[0], valid, settings, seeds)
        if needs_fit and number_of_rows(rows, space, is_counted) < LEAST_ROWS_TO_SPLIT:
            self._forget_bounds()
        tasks.end()
        return self

    def _combine(
        self,
        members: Mapping[str, TableEstimator],
        first: str,
        valid: WeightedRows,
        settings: FitSettings,
        seeds: Seeds,
    ) -> None:
        """Find the weights of fitted members, and set the fitted attributes."""
        models = {name: member._model for name, member in members.items()}
        space = models[first].space
        check_bounds(valid.X, settings, models[first].dequantizer, space)
        check_devices(models)
        check_dequantizers(models, first)
        transports = {
            name: transport_between(space, model.space, name, first)
            for name, model in models.items()
        }
        effort = self._common_effort(list(members.values()), space)
        model, entropies = fit_ensemble_model(
            models,
            space,
            transports,
            valid,
            WeightSettings(
                self.weights,
                self.include_references,
                replace(
                    settings,
                    n_strata=effort.n_strata,
                    n_draws=effort.n_draws,
                    n_directions=effort.n_directions,
                ),
            ),
            seeds,
        )
        self._encoder = getattr(members[first], "_encoder", None)
        self.estimators_ = list(members.values())
        self.named_estimators_ = Bunch(**members)
        self.logsnr_ = model.logsnr
        self.member_weights_ = {
            name: model.weights[:, number] for number, name in enumerate(model.expert_names)
        }
        self.entropy_, self.member_entropies_ = model.entropy, entropies
        self.entropy_std_ = model.entropy_std
        self._model = model

    def _forget_bounds(self) -> None:
        """Let there be no validation bounds, since the members were fitted to the same rows."""
        assert isinstance(self._model, EnsembleModel)
        self._model.entropy = self._model.entropy_std = math.nan
        self.entropy_ = self.entropy_std_ = math.nan
        self.member_entropies_ = dict.fromkeys(self.member_entropies_, math.nan)

    def _checked_members(self) -> tuple[dict[str, TableEstimator], set[str]]:
        """Return the members that are not dropped, and the names of those that are fitted."""
        given = self.estimators
        if not given or not all(
            isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)
            for item in given
        ):
            raise ValueError(
                f"estimators must be a list of at least one (name, estimator) tuple, got {given!r}."
            )
        self._validate_names([name for name, _ in given])
        members: dict[str, TableEstimator] = {}
        fitted = set()
        for name, member in given:
            if is_dropped(member):
                continue
            is_frozen = isinstance(member, FrozenEstimator)
            members[name] = checked_member(name, member.estimator if is_frozen else member)
            if is_frozen or self.prefit:
                check_member_is_fitted(name, members[name])
                fitted.add(name)
        if not members:
            raise ValueError("All estimators are dropped. At least one is required.")
        check_one_kind(members)
        return members, fitted

    def _check_columns(
        self, members: Mapping[str, TableEstimator], fitted: Collection[str], X: Any
    ) -> None:
        """Raise an error if a fitted member has other columns than X."""
        names = [name for name in members if name in fitted]
        for name in names:
            member = members[name]
            if member.n_features_in_ != self.n_features_in_:
                raise ValueError(
                    f"The member {name!r} was fitted to {member.n_features_in_} columns, but X has "
                    f"{self.n_features_in_}."
                )
            validate_data(member, X, reset=False, skip_check_array=True)
        for name in names[1:]:
            check_levels(name, members[name], names[0], members[names[0]])

    # -- rows --------------------------------------------------------------------------------

    def _note_columns(self, X: Any, member: TableEstimator) -> Any:
        """Return X, images flattened, once its columns are valid and noted."""
        self._image_shape = image_shape_of(member)
        X = without_tensors(self._flat(X))
        if isinstance(member, CategoricalEstimator):
            read_table(X)
            validate_data(self, X, skip_check_array=True)
        else:
            with naming_columns(X):
                validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
            if hasattr(X, "columns"):
                self._frame_format = TableEncoder.of_numbers(X)
        return X

    def _flat(self, X: Any) -> Any:
        """Return images as rows; anything else as it is."""
        if self._image_shape is None:
            return X
        return flattened_images(X, tuple(self._image_shape))

    def _read(self, X: Any) -> Array:
        """Return numbers and codes of a table like the one fitted."""
        X = without_tensors(self._flat(X))
        if self._encoder is None:
            with naming_columns(X):
                rows = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
            if self._model.dequantizer is not None:
                self._model.dequantizer.check(rows, getattr(self, "feature_names_in_", None))
            return rows
        table = read_table(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        return self._encoder.encode(table)

    def _write(self, values: Array) -> Any:
        """Return the table of numbers and codes."""
        encoder = self._encoder or getattr(self, "_frame_format", None)
        if encoder is None:
            return values
        return encoder.decode(values, self._model.space.bounds_of_columns())

    # -- effort ------------------------------------------------------------------------------

    def _effort(self) -> Effort:
        """Return how exactly to score; may be changed after the fit."""
        return self._common_effort(self.estimators_, self._model.space)

    def _common_effort(self, members: Sequence[TableEstimator], space: TableSpace) -> Effort:
        """Return the effort asked for, and where none is, the most of the members'."""
        asked = super()._effort()
        own = [member._effort() for member in members]
        images = any(member._model.has_images for member in members)
        directions = [
            scoring_noise(space, 0, each.n_directions, images).n_directions for each in own
        ]
        return Effort(
            asked.n_strata or max(each.n_strata for each in own),
            asked.n_draws or max(2, *(each.n_draws for each in own)),
            asked.n_directions or max(directions),
        )


DROP = "drop"


def image_shape_of(member: TableEstimator) -> Sequence[int] | None:
    """Return the shape of the images that a member takes, or None."""
    given = getattr(getattr(member, "denoiser", None), "image_shape", None)
    found: Sequence[int] | None = getattr(member, "image_shape", None) or given
    return found


def is_dropped(member: object) -> bool:
    """Return whether a member is left out."""
    return isinstance(member, str) and member == DROP


def checked_member(name: str, member: object) -> TableEstimator:
    """Return a member, or raise an error that names it if it cannot be one."""
    if not isinstance(member, TableEstimator):
        what = f"the class {member.__name__}" if isinstance(member, type) else repr(member)
        raise TypeError(
            f"The member {name!r} is {what}; members are instances of IMMSEDensity, "
            "IMMSEDiscreteDensity or IMMSEMixedDensity, or FrozenEstimators of them. Transform X "
            "before the ensemble, as in a Pipeline that ends with it."
        )
    return member


def check_member_is_fitted(name: str, member: TableEstimator) -> None:
    """Raise an error that names the member if it is not fitted."""
    if not hasattr(member, "_model"):
        raise NotFittedError(
            f"The member {name!r} is not fitted; fit it, or let the ensemble do it: with "
            "prefit=False, and without FrozenEstimator."
        )


def check_one_kind(members: Mapping[str, TableEstimator]) -> None:
    """Raise an error if some members read levels and others numbers."""
    reads_levels = {name: isinstance(m, CategoricalEstimator) for name, m in members.items()}
    first = next(iter(members))
    for name, own in reads_levels.items():
        if own != reads_levels[first]:
            raise ValueError(
                f"The members {name!r} ({type(members[name]).__name__}) and {first!r} "
                f"({type(members[first]).__name__}) cannot be combined: one reads numbers, the "
                "other levels. IMMSEMixedDensity does both."
            )


def check_levels(name: str, member: TableEstimator, first: str, other: TableEstimator) -> None:
    """Raise an error if two members do not have the same kinds and levels of columns."""
    if not isinstance(member, CategoricalEstimator) or not isinstance(other, CategoricalEstimator):
        return
    for ours, theirs in zip(member._encoder.columns, other._encoder.columns, strict=True):
        same_levels = (ours.levels is None) == (theirs.levels is None) and (
            ours.levels is None or theirs.levels is None or list(ours.levels) == list(theirs.levels)
        )
        if not same_levels or ours.kind != theirs.kind:
            raise ValueError(
                incompatible(name, first, f"have other levels in the column {ours.label!r}")
            )
        if (ours.unseen is None) != (theirs.unseen is None):
            raise ValueError(
                f"The members {name!r} and {first!r} do not agree whether other values than the "
                f"levels of the column {ours.label!r} are an error. Fit them with the same "
                "handle_unknown and categories."
            )


def check_devices(models: Mapping[str, TableModel]) -> None:
    """Raise an error if members are on different devices."""
    devices = {name: str(model.device) for name, model in models.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"All members must be on one device, got {devices}.")


def check_dequantizers(models: Mapping[str, TableModel], first: str) -> None:
    """Raise an error if members dequantise the columns differently."""

    def steps(dequantizer: Dequantizer | None) -> list[float] | None:
        return None if dequantizer is None else dequantizer.step.tolist()

    for name, model in models.items():
        if steps(model.dequantizer) != steps(models[first].dequantizer):
            raise ValueError(
                f"The members {name!r} and {first!r} add noise of different width to the columns. "
                "Set dequantize to the same steps in all members."
            )


def prepared(member: TableEstimator, random_state: np.random.RandomState) -> TableEstimator:
    """Return an unfitted copy of a member, with a seed if it has none."""
    copied: TableEstimator = clone(member)
    if copied.random_state is None:
        _set_random_states(copied, random_state)
    return copied


def fixes_space(member: TableEstimator) -> bool:
    """Return whether a member cannot be fitted in any space: what it is given has its own."""
    return getattr(member, "denoiser", None) is not None or isinstance(
        member.reference, ContinuousReference
    )


def fit_member(
    name: str,
    member: TableEstimator,
    first: str,
    leader: TableEstimator,
    X: Any,
    sample_weight: ArrayLike | None,
    train: ChosenRows,
) -> None:
    """Fit a member to the training rows, in the space of the first one if that is fitted.

    The member reads all of X, so that levels that the training rows lack are known to it.
    """

    def training_rows(values: Array, weight: Array) -> ChosenRows:
        check_levels(name, member, first, leader)
        return train

    space = None if member is leader else leader._model.space
    if space is not None and fixes_space(member):
        # A Reference object is in the units of X, of which standardisation is known.
        is_plain = space.marginal_map.is_identity
        space = space if is_plain and isinstance(member.reference, ContinuousReference) else None
    with_callbacks(type(member)._fit)(member, X, sample_weight, space, training_rows)


def grouped_rows(
    values: Array, weight: Array, kinds: Sequence[ColumnKind], settings: FitSettings
) -> tuple[WeightedRows, TableSpace, bool]:
    """Return the distinct rows, a space that tells of what kind they are, and if they are counted.

    Rows with probabilities are: equal ones are different observations.
    """
    grouped = group_rows(values, weight)
    space, _ = table_space(grouped, kinds, settings, float(len(weight)))
    is_counted = space.is_discrete
    if settings.dequantize is not False and not settings.has_images:
        step = None if settings.dequantize is True else settings.dequantize
        is_counted = covers(Dequantizer.fit(grouped.X, step, shared=False, seed=0), space)
    if is_counted or settings.dequantize is not False:
        grouped = in_counts(grouped, weight)
    return grouped, space, is_counted


def number_of_rows(rows: WeightedRows, space: TableSpace, is_counted: bool) -> int:
    """Return the number of rows that count: all of those that are counted, or distinct ones."""
    return round(float(rows.weight.sum())) if is_counted else n_observations(rows, space)


def held_out(
    rows: WeightedRows,
    space: TableSpace,
    settings: FitSettings,
    seeds: Seeds,
    is_counted: bool,
    groups: RowGroups | None = None,
) -> tuple[ChosenRows, WeightedRows]:
    """Return rows for the members, with their groups, and rows for the weights.

    Very few rows are both.  Copies of a row are on one side, unless rows have probabilities.
    Scaled by powers of two, which is exact, rows are on the same side in other units of that kind.
    """
    if number_of_rows(rows, space, is_counted) < LEAST_ROWS_TO_SPLIT:
        return (rows.X, rows.weight, None), rows
    exponent = np.frexp(np.abs(rows.X).max(axis=0))[1]
    scaled = WeightedRows(np.ldexp(rows.X, -exponent), rows.weight)
    together = rows_together(scaled, space, settings, groups, is_counted)
    if together is not None:
        chosen = split_groups(together, scaled, settings, seeds.split, is_counted)
        return together.listed(rows, ~chosen), together.part(rows, chosen)
    train, valid = split_independent_rows(scaled, settings, seeds.split, is_counted)
    return (
        (np.ldexp(train.X, exponent), train.weight, None),
        WeightedRows(np.ldexp(valid.X, exponent), valid.weight),
    )
