r"""What networks with roles say of parts of rows.

For targets T of a row given columns G the log-density is that of a reference q, the control
variate, plus the integral of what the stacked denoisers gain on it,

.. math:: \log p(x_T \mid x_G) = \log q(x_T \mid x_G) + \tfrac12 \int \mathrm{d}a\; E_\epsilon\left[
    \|\epsilon_T - \hat\epsilon_q(z_T, a; x_G)\|^2 - \|\epsilon_T - \hat\epsilon(z_T, a; x_G)\|^2
    \right].

The references' denoisers of a pattern are those of their conditional distributions, which
`Reference.marginal` and `Reference.given` return for the values of a row.  So each row is evaluated
by itself, with one forward pass of each denoiser.  Weights of the experts depend on the log-SNR and
on the class of the pattern: whether columns are given, and whether more than half are targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from sk_itdiffusion._first._fit.experts import (
    MAX_NETWORK_INPUT,
    Experts,
    Mixing,
    noise_for_layout,
    on_device,
)
from sk_itdiffusion._first._immse.cubature import Keys, hash_uniform, row_keys, spawn_keys
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._immse.likelihood import (
    Denoiser,
    IntegrationRule,
    PairedDenoiser,
    gap_of_chunk,
)
from sk_itdiffusion._first._immse.places import Places
from sk_itdiffusion._first._immse.sampling import N_STEPS, probability_flow
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import current_progress
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.denoisers.role_levels import RoleLevelDenoiser
from sk_itdiffusion._first.denoisers.roles import RoleDenoiser, with_roles
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import (
    check_increasing,
    check_not_negative,
    check_same,
)
from sk_itdiffusion._first.references import Reference
from sk_itdiffusion._first.references.judging import conditional_log_likelihoods
from sk_itdiffusion._first.references.parts import rows_by_pattern

__all__ = [
    "N_CLASSES",
    "PatternStack",
    "PreparedQuestion",
    "Question",
    "class_of_pattern",
    "conditional_log_density",
    "questions_of",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Classes of patterns: without and with given columns, of few and of many targets.
N_CLASSES = 4
#: Rows, of one question or of several, that a worker takes at a time.
ROWS_OF_A_JOB = 16
#: Draws that are moved along the flow together.
DRAWS_IN_A_PASS = 512
#: Stream of a row's keys from which the noise at the start of a flow comes.
STREAM_OF_FLOW = 13


def class_of_pattern(target: Mask, given: Mask) -> NDArray[np.intp]:
    """Return the classes of patterns, (n,), of targets and given columns, both (n, n_columns)."""
    has_many = 2 * target.sum(axis=1) > target.shape[1]
    return np.asarray(2 * given.any(axis=1) + has_many, dtype=np.intp)


@dataclass(frozen=True)
class Question:
    """A part of rows, given another part of them.

    Attributes
    ----------
    target, given : ndarray of shape (n_columns,), bool
        Columns, in the order of a model's rows.
    values : ndarray of shape (1, n_columns) or (n_points, n_columns)
        Values of the given columns, 0 elsewhere: of all points, or of each.
    """

    target: Mask
    given: Mask
    values: Array

    @property
    def asked(self) -> NDArray[np.intp]:
        """Columns that are targets or given."""
        return np.flatnonzero(self.target | self.given)

    def of(self, reference: Reference) -> torch.nn.Module:
        """Return a reference's optimal denoiser of the targets, given the values of others."""
        known = np.flatnonzero(self.given[self.asked]).tolist()
        of_asked = reference.marginal(self.asked.tolist())
        values = self.values[:, self.given]
        if len(values) == 1:
            return of_asked.given(known, values[0])
        return of_asked.given_each(known, values)

    def layout(self, layout: Layout) -> Layout:
        """Return the layout of the targets, from that of all columns."""
        return layout.part(np.flatnonzero(self.target).tolist())

    def of_network(
        self, network: RoleDenoiser | RoleLevelDenoiser, layout: Layout, baseline: Denoiser
    ) -> Denoiser:
        """Return a network as denoiser of the targets, from that of the reference it corrects."""
        columns = layout.columns_of_points()
        target, given = (
            torch.from_numpy(part).expand(len(self.values), -1)
            for part in (self.target, self.given)
        )
        device = next(network.parameters()).device
        points = torch.from_numpy(layout.embed_array(self.values))
        points = points.clamp(-MAX_NETWORK_INPUT, MAX_NETWORK_INPUT).float()
        fixed = with_roles(points, target, given, columns).to(device)
        place = torch.from_numpy(np.flatnonzero(self.target[columns])).to(device)

        def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
            wide = fixed.expand(len(z), -1).clone()
            wide[:, place] = z.clamp(-MAX_NETWORK_INPUT, MAX_NETWORK_INPUT).float()
            correction = network.correction_to(wide, logsnr.float())
            return baseline(z, logsnr) + correction[:, place].to(z.dtype)

        return denoise

    def denoisers(self, experts: Experts, names: Sequence[str]) -> dict[str, Denoiser]:
        """Return the denoisers of experts, by name."""
        known: dict[str, Denoiser] = {}
        for name in dict.fromkeys([*names, experts.preconditioner]):
            if name not in experts.nets:
                of_part = self.of(experts.references[name])
                known[name] = on_device(of_part, experts.device, experts.precision)
        found: dict[str, Denoiser] = {}
        for name in names:
            if name in experts.nets:
                network = experts.nets[name].module_.averaged
                baseline = known[experts.preconditioner]
                found[name] = self.of_network(network, experts.space.layout, baseline)
            else:
                found[name] = known[name]
        return found


@dataclass(frozen=True)
class PreparedQuestion:
    """What the integrals of a question are computed with.

    Attributes
    ----------
    target : ndarray of shape (n_columns,), bool
        Columns, in the order of a model's rows.
    layout : Layout
        Where the targets are in the points.
    paired : PairedDenoiser
        The control variate and the stacked denoisers.
    rule : IntegrationRule
        How they are integrated.
    """

    target: Mask
    layout: Layout
    paired: PairedDenoiser
    rule: IntegrationRule


def questions_of(rows: Array, target: Mask, given: Mask) -> list[tuple[Question, NDArray[np.intp]]]:
    """Return the distinct questions about rows, and which rows they are about.

    Parameters
    ----------
    rows : ndarray of shape (n, n_columns)
        A model's rows; NaN where entries are missing.
    target, given : ndarray of shape (n, n_columns), bool
        Observed columns that are asked for, and that are given.

    Returns
    -------
    list of (Question, ndarray of int)
        Questions with numbers of rows.
    """
    values = np.where(given, rows, 0.0)
    _, first, place = np.unique(
        row_keys(np.hstack([values, target, given])), return_index=True, return_inverse=True
    )
    order = np.argsort(place, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(place[order])) + 1)
    return [
        (Question(target[i], given[i], values[i : i + 1]), part)
        for i, part in zip(first, parts, strict=True)
    ]


def conditional_log_density(reference: Reference, rows: Array, target: Mask, given: Mask) -> Array:
    """Return a reference's log-densities of parts of rows given other parts, (n,), in nats."""
    known = np.where(target | given, rows, np.nan)
    return conditional_log_likelihoods(reference, known, given)


@stored()
@dataclass(frozen=True)
class PatternStack:
    """The experts' weights for parts of rows, and how their integrals are evaluated.

    Attributes
    ----------
    control : str
        Name of the reference that is the control variate.
    logsnr : ndarray of shape (n_nodes,)
        Nodes of the log-SNR.
    expert_names : sequence of str
        The experts.
    weights : ndarray of shape (n_classes, n_nodes, n_experts)
        Their weights at the nodes, for each class of patterns.
    rules : sequence of IntegrationRule or None
        How patterns of each class are integrated; None where the mixture of references is better.
    drivers : ndarray of shape (n_columns,), bool
        Columns, in the order of a model's rows, on which it depends what of the rows of the fit was
        observed.  The networks are only used where these are given.
    """

    control: str
    logsnr: Array
    expert_names: Sequence[str]
    weights: Array
    rules: Sequence[IntegrationRule | None]
    drivers: Mask

    def mixing(self, number: int) -> Mixing:
        """Return the weights of a class of patterns."""
        return Mixing(self.control, self.logsnr, self.expert_names, self.weights[number])

    def has_say(self, target: Mask, given: Mask) -> Mask:
        """Return for which patterns, (n,), networks are used."""
        has_rule = np.array([rule is not None for rule in self.rules])
        is_known = (given | ~self.drivers).all(axis=1)
        return target.any(axis=1) & is_known & has_rule[class_of_pattern(target, given)]

    def with_drivers_given(self, target: Mask, given: Mask) -> tuple[Mask, Mask]:
        """Return targets and given columns, with targets on which missingness depends given.

        Networks tell of the other targets given these, of which the references tell.
        """
        return target & ~self.drivers, given | (target & self.drivers)

    def log_densities(
        self, experts: Experts, rows: Array, target: Mask, given: Mask, tolerance: Tolerance
    ) -> tuple[Array, Array]:
        """Return log-densities of parts of rows, in the space of the rows, and their variances.

        Parameters
        ----------
        experts : Experts
            The denoisers.
        rows : ndarray of shape (n, n_columns)
            A model's rows; NaN where entries are missing.
        target, given : ndarray of shape (n, n_columns), bool
            Observed columns that are asked for, and that are given, in patterns in which networks
            are used.
        tolerance : Tolerance
            Standard error that each row should have.

        Returns
        -------
        log_density, variance : ndarray of shape (n,)
            Log-densities, in nats, and the variances of their errors.
        """
        log_density = conditional_log_density(experts.references[self.control], rows, target, given)
        points = np.where(target, rows, 0.0)
        keys = row_keys(np.hstack([points, np.where(given, rows, 0.0), target, given]))
        n_draws = self._numbers_of_draws(log_density, target, given, tolerance)

        def integrate(part: tuple[Question, NDArray[np.intp]]) -> tuple[Array, Array]:
            question, numbers = part
            prepared = self.prepared(experts, question)
            return self.gaps(experts, prepared, points[numbers], keys[numbers], n_draws[numbers])

        jobs = [
            (question, numbers[start : start + ROWS_OF_A_JOB])
            for question, numbers in questions_of(rows, target, given)
            for start in range(0, len(numbers), ROWS_OF_A_JOB)
        ]
        found = map_in_workers(integrate, jobs, experts.device, current_progress())
        variance = np.zeros(len(rows))
        classes = class_of_pattern(target, given)
        for (_, numbers), (gap, spread) in zip(jobs, found, strict=True):
            for row, own_gap, own_spread in zip(numbers, gap, spread, strict=True):
                errors = self._rule(classes[row]).errors
                assert errors is not None
                at = log_density[row : row + 1]
                estimate = errors.estimated(at, np.array([own_spread]), int(n_draws[row]))
                variance[row] = estimate[0]
                log_density[row] += own_gap
        return log_density, variance

    def _rule(self, number: int) -> IntegrationRule:
        rule = self.rules[number]
        assert rule is not None
        return rule

    def _numbers_of_draws(
        self, log_density: Array, target: Mask, given: Mask, tolerance: Tolerance
    ) -> NDArray[np.intp]:
        """Return with how many draws rows are integrated, (n,)."""
        classes = class_of_pattern(target, given)
        n_draws = np.empty(len(classes), dtype=np.intp)
        for number in np.unique(classes):
            here = np.flatnonzero(classes == number)
            for rule, chosen in self._rule(number).rungs(log_density[here], tolerance):
                n_draws[here[chosen]] = rule.n_draws
        return n_draws

    def prepared(self, experts: Experts, question: Question) -> PreparedQuestion:
        """Return what integrals of a question are computed with."""
        number = int(class_of_pattern(question.target[None], question.given[None])[0])
        mixing = self.mixing(number)
        names = tuple(dict.fromkeys([self.control, *used_experts(mixing)]))
        paired = used_mixing(mixing, names).paired(question.denoisers(experts, names))
        layout = question.layout(experts.space.layout)
        noise = noise_for_layout(layout, experts.seeds.scoring)
        rule = replace(self._rule(number), noise=noise)
        return PreparedQuestion(question.target, layout, paired, rule)

    def gaps(
        self,
        experts: Experts,
        prepared: PreparedQuestion,
        rows: Array,
        keys: Keys,
        n_draws: NDArray[np.intp],
    ) -> tuple[Array, Array]:
        """Return the integrals of rows about which a question is asked, one after the other.

        Parameters
        ----------
        experts : Experts
            The denoisers.
        prepared : PreparedQuestion
            The question.
        rows : ndarray of shape (n, n_columns)
            Rows, of which the targets are looked at.
        keys : ndarray of shape (n,), uint64
            Keys of their noise.
        n_draws : ndarray of shape (n,), int
            How many draws they take.

        Returns
        -------
        gap, spread : ndarray of shape (n,)
            See `information_gap`.
        """
        apart = experts.evaluations_apart
        gap, spread = np.empty((2, len(rows)))
        points = prepared.layout.embed_array(rows[:, prepared.target])
        for i, point in enumerate(points):
            own = replace(prepared.rule, n_draws=int(n_draws[i]))
            budget = min(experts.budget, own.n_evaluations)
            at_once = own.chunk_shape(budget, apart)[1]
            found = gap_of_chunk(
                point[None],
                keys[i : i + 1],
                prepared.paired,
                own,
                at_once,
                experts.device,
                experts.precision,
                apart=apart,
            )
            gap[i], spread[i] = (float(part[0]) for part in found)
        return gap, spread

    def drawn(self, experts: Experts, rows: Array, target: Mask, given: Mask, keys: Keys) -> Array:
        """Return rows whose targets are drawn; see `draws`.

        Those of a row do not depend on the other rows.

        Parameters
        ----------
        experts : Experts
            The denoisers.
        rows : ndarray of shape (n_draws, n, n_columns)
            A model's rows: values of given columns, which may differ between the draws of a row,
            and numbers in the others.
        target, given : ndarray of shape (n, n_columns), bool
            Columns to draw and those that are given, in patterns in which networks are used.
        keys : ndarray of shape (n_draws, n), uint64
            Keys of the draws.

        Returns
        -------
        ndarray of shape (n_draws, n, n_columns)
            The rows.
        """
        found, apart = rows.copy(), experts.evaluations_apart

        def draw(job: tuple[NDArray[np.intp], slice]) -> None:
            """Draw the targets of rows of one pattern, which begin at places that are alike."""
            here, part = job
            of_target = target[here[0]]
            own = rows[part, here].swapaxes(0, 1)
            places = Places(len(here), own.shape[1], apart)
            values = places.spread(own.reshape(-1, own.shape[2]))
            question = Question(of_target, given[here[0]], values)
            drawn = self.draws(experts, question, places.spread(keys[part, here].T.ravel()))
            targets = places.gathered(torch.from_numpy(drawn)).numpy()
            own[:, :, of_target] = targets.reshape(*own.shape[:2], -1)
            found[part, here] = own.swapaxes(0, 1)

        jobs = []
        _, place = rows_by_pattern(np.hstack([target, given]))
        for here in (np.flatnonzero(place == number) for number in np.unique(place)):
            for first in range(0, len(keys), DRAWS_IN_A_PASS):
                part = slice(first, min(first + DRAWS_IN_A_PASS, len(keys)))
                size = Places.within(DRAWS_IN_A_PASS, part.stop - first, apart).n_rows
                jobs += [(here[i : i + size], part) for i in range(0, len(here), size)]
        map_in_workers(draw, jobs, experts.device, current_progress())
        return found

    @torch.no_grad()
    def draws(self, experts: Experts, question: Question, keys: Keys) -> Array:
        """Return draws of the targets by the probability flow with the given columns fixed.

        It begins at noised draws from the control variate, where the stack begins to differ from
        it.

        Parameters
        ----------
        experts : Experts
            The denoisers.
        question : Question
            The question, in a pattern in which networks are used.
        keys : ndarray of shape (n_draws,), uint64
            Keys of the draws, as many as the question is of points if it is of several.

        Returns
        -------
        ndarray of shape (n_draws, n_targets)
            The draws.
        """
        number = int(class_of_pattern(question.target[None], question.given[None])[0])
        mixing = self.mixing(number)
        names = used_experts(mixing)
        stack = used_mixing(mixing, names).stack(question.denoisers(experts, names))
        layout = question.layout(experts.space.layout)
        n_points, asked = layout.n_points, question.asked
        uniform = hash_uniform(spawn_keys(keys, n_points + len(asked) + 2), STREAM_OF_FLOW)
        rows = np.where(question.given, question.values, np.nan)[:, asked]
        rows = np.tile(rows, (len(keys) // len(rows), 1))
        reference = experts.references[self.control].marginal(asked.tolist())
        drawn = reference.complete(
            torch.from_numpy(rows), torch.from_numpy(uniform[:, n_points:].copy())
        )
        clean = layout.embed(drawn[:, torch.from_numpy(question.target[asked])])
        noise = torch.from_numpy(ndtri(uniform[:, :n_points]))
        first = self._rule(number).placement.edges[0]
        path = torch.from_numpy(np.linspace(first, self.logsnr[-1], N_STEPS + 1))
        start = add_noise(clean, noise, path[:1].expand(len(keys)))
        start = start.to(experts.device, experts.precision)
        found = probability_flow(stack, start, path.to(start))
        return np.asarray(layout.nearest_rows(found.double().cpu()).numpy())

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_increasing(self.logsnr, "log-SNRs")
        shape = (N_CLASSES, len(self.logsnr), len(self.expert_names))
        check_same(self.weights.shape, shape, "there are other weights of parts of rows")
        check_same(len(self.rules), N_CLASSES, "there are other rules for parts of rows")
        check_not_negative(self.weights, "weights of experts")
        if self.drivers.dtype != bool:
            raise ValueError("it is not known on which columns missingness depends")
        if any(rule is not None and rule.errors is None for rule in self.rules):
            raise ValueError("the rule of integration has no calibration")


def used_experts(mixing: Mixing) -> tuple[str, ...]:
    """Return the names of the experts that have a weight somewhere."""
    columns = zip(mixing.expert_names, mixing.weights.T, strict=True)
    return tuple(name for name, weights in columns if weights.any())


def used_mixing(mixing: Mixing, names: Sequence[str]) -> Mixing:
    """Return the weights of some of the experts."""
    known = list(mixing.expert_names)
    kept = [name for name in known if name in names]
    return replace(
        mixing, expert_names=kept, weights=mixing.weights[:, [known.index(name) for name in kept]]
    )
