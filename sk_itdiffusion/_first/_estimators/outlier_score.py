r"""Log-densities with a noise floor.

The density at the finest log-SNR is a poor outlier score for columns with ties, integers and
duplicates: the finer a model resolves them, the more it says about rounding.  Rows are therefore
seen through the channel at a log-SNR :math:`a_1`, the *noise floor*.  With :math:`q_{a_1}` the
reference q smoothed by that noise (for a normal distribution: :math:`e^{-a_1} I` added to its
covariance) the pointwise relation of Kong et al. (2023), cut at :math:`a_1`, gives

.. math:: S_{a_1}(x) = E_{z \mid x, a_1}\left[\log q_{a_1}(z)\right] + \frac12
    \int_{-\infty}^{a_1} da\; E_\epsilon\left[ \|\epsilon - \hat\epsilon_q(z, a)\|^2
    - \|\epsilon - \hat\epsilon(z, a)\|^2 \right]
    = E_{z \mid x, a_1}\left[\log p_{a_1}(z)\right],

the mean log-density, under the smoothed model, of the row plus noise, in nats.  For discrete
columns :math:`q_{a_1}(z)` is divided by the density :math:`p(z \mid x)` of the noise, so that
their part becomes the log-probability as :math:`a_1` grows.  With several floors the score is the
mean of theirs, which is one integral whose integrand is multiplied by the share of floors above
a.

Columns that the model dequantises are seen at the middle of their cells, and the logarithm of the
cell's width is added: the score is on the scale of log-probabilities and does not depend on units.

Alone, the references are those of the model without the components that stand for rows unlike all
those seen.  A density needs these, so that no row is impossible; but their tail is heavy, whereas
the question here is how unlike a row is from those seen.  As members of a score alongside others
(`sk_itdiffusion._first._estimators.combined_score`) they keep them: how far a row is out is then measured
by the rows that are about as far, and by its neighbours.

Values of discrete columns that are no categories have the log-probabilities of their column (see
`sk_itdiffusion._first._table.unseen`), and the other columns those of the references, without the network.
What each column contributes to a score is in `sk_itdiffusion._first._estimators.contributions`.

References
----------
X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._first._estimators.parameters import numbers_in
from sk_itdiffusion._first._fit.experts import scoring_noise
from sk_itdiffusion._first._fit.model import TableModel
from sk_itdiffusion._first._fit.model_of_parts import FARTHEST, MIN_LOG_DENSITY
from sk_itdiffusion._first._immse.cubature import (
    Keys,
    NoiseRule,
    PiecewiseDensity,
    row_keys,
    spawn_keys,
)
from sk_itdiffusion._first._immse.errors import LADDER, Tolerance
from sk_itdiffusion._first._immse.likelihood import IntegrationRule
from sk_itdiffusion._first._immse.places import DOUBLE_APART, MAX_ROWS_TO_PAD, Places
from sk_itdiffusion._first._runtime.parallel import map_in_workers
from sk_itdiffusion._first._runtime.progress import current_progress, stretch_of_progress
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_in_range, check_shapes
from sk_itdiffusion._first.references import PlainReference, Reference
from sk_itdiffusion._first.references.judging import log_likelihoods

__all__ = ["MIN_SCORE", "MODEL", "FlooredModel", "MappedRows", "checked_floors"]

#: Log-SNR of the automatic noise floor: noise of 0.03 standard deviations.
AUTOMATIC_FLOOR = 7.0
#: Log-SNRs beyond which nothing but noise, or none, can be told from one another.
MAX_FLOOR = 100.0

Array = NDArray[np.float64]

#: Share of a progress bar that is for the references' part of a score, if a network has another.
SHARE_OF_REFERENCES = 0.1
#: Least score, so that differences of scores are finite.
MIN_SCORE = -1e300
#: Name of the fitted model among the members.
MODEL = "model"
#: Name of the mixture of references that is the stack if rows of the fit lacked entries.
MIXTURE = "mixture of references"
#: Features up to which the noise at the floors has a node at its center.
MAX_FEATURES_WITH_CENTER = 100
#: Draws of noise at each floor with the default tolerance, and the least number.
FLOOR_DRAWS, MIN_FLOOR_DRAWS = 4, 2
#: Stream of the row's keys from which the noise at the floors comes; strata use lower ones.
FLOOR_STREAM = 2**40


@dataclass(frozen=True)
class FlooredRule(IntegrationRule):
    """Integration rule whose integrand is multiplied by the share of floors above the log-SNR.

    Parameters
    ----------
    floors : tuple of float
        Log-SNRs of the noise floors.
    """

    floors: tuple[float, ...] = (math.inf,)

    @classmethod
    def within(cls, rule: IntegrationRule, floors: Array) -> FlooredRule | None:
        """Return the rule below the highest floor; None if nothing of it is left."""
        placement = below_floors(rule.placement, floors)
        if placement is None:
            return None
        far = None if rule.far is None else below_floors(rule.far, floors)
        changed = {"placement": placement, "far": far, "floors": tuple(map(float, floors))}
        parts = {each.name: getattr(rule, each.name) for each in fields(rule)}
        return cls(**parts | changed)

    def draw(self, keys: Keys, first: int, n_draws: int) -> tuple[Array, Array, Array]:
        """Return log-SNRs, noise and coefficients; see `IntegrationRule.draw`."""
        logsnr, eps, coefficient = super().draw(keys, first, n_draws)
        share = share_above(logsnr, np.array(self.floors))
        return logsnr, eps, coefficient * share[..., None]


def below_floors(placement: PiecewiseDensity, floors: Array) -> PiecewiseDensity | None:
    """Return a density of log-SNRs below the highest floor; None if nothing of it is left."""
    edges = placement.edges
    top = min(float(floors.max()), float(edges[-1]))
    if top <= edges[0]:
        return None
    inner = np.sort(floors[(floors > edges[0]) & (floors < top)])
    cut = np.unique(np.concatenate([edges[edges < top], inner, [top]]))
    middle = 0.5 * (cut[1:] + cut[:-1])
    # The root of the share is a compromise: contributions shrink with it, their number not.
    height = placement.density(middle) * np.sqrt(share_above(middle, floors))
    kept = height * np.diff(cut)
    return PiecewiseDensity(cut, kept / kept.sum())


def n_floor_draws(tolerance: Tolerance) -> int:
    """Return the draws of noise at each floor."""
    return tolerance.draws_for(FLOOR_DRAWS, MIN_FLOOR_DRAWS, LADDER[-1])


def share_above(logsnr: Array, floors: Array) -> Array:
    """Return the share of the floors that lie above log-SNRs."""
    return np.asarray((floors > np.asarray(logsnr)[..., None]).mean(axis=-1))


@stored()
@dataclass(frozen=True)
class FlooredModel:
    """A fitted model with noise floors.

    Attributes
    ----------
    model : TableModel
        The model, with references without components for rows unlike all those seen, unless the
        score is the log-density of the model as it is.
    floors : ndarray of shape (n_floors,)
        Log-SNRs of the floors, on the mapped columns; infinite for none.
    members : tuple of str
        References whose log-densities are averaged, and ``MODEL``.
    is_wide : bool, default=False
        Whether the references keep their components for rows unlike all those seen.
    """

    model: TableModel
    floors: Array
    members: tuple[str, ...] = (MODEL,)
    is_wide: bool = False

    def __post_init__(self) -> None:
        if not self.is_wide and not self.is_plain:
            object.__setattr__(self, "model", self.model.without_wide_components())

    # -- references --------------------------------------------------------------------------

    @property
    def control(self) -> str:
        """Name of the control variate, the model's own.

        The stack of a fit to rows with missing entries is the mixture of its references.
        """
        return MIXTURE if self.model.has_missing else self.model.control

    def reference(self, name: str) -> Reference:
        """Return the reference of a name."""
        if name == MIXTURE:
            assert self.model.parts is not None
            return self.model.parts
        return self.model.references[name]

    @property
    def plain(self) -> PlainReference:
        """The smoothest reference, of which it is known what each column tells by itself."""
        return cast(PlainReference, self.model.references[self.model.plain])

    @property
    def is_plain(self) -> bool:
        """Whether the score is the log-density of the model as it is."""
        return self.members == (MODEL,) and bool(np.isinf(self.floors).all())

    # -- density -----------------------------------------------------------------------------

    def log_density(self, values: Array, tolerance: Tolerance) -> Array:
        """Return the log-density with noise floors of numbers and codes, in nats.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_columns)
            Numbers and codes.
        tolerance : Tolerance
            Standard error that the integral of a row should have.

        Returns
        -------
        ndarray of shape (n_samples,)
            Log-densities, in the units of the data; minus infinity for rows so far out that they
            cannot be standardised.
        """
        model = self.model
        total: Array = constant_parts(model, values).sum(axis=1)
        total += model.space.unseen_log_odds(values).sum(axis=1) + model.space.log_known.sum()
        if model.space.is_empty:
            return total
        rows = MappedRows.of(model, values)
        total[~rows.finite] = -np.inf
        near = np.flatnonzero(rows.finite)
        if not len(near):
            return total
        first, group = rows.distinct(near)
        found = self._mean_over_members(rows, near[first], tolerance)
        total[near] += found[group] + rows.log_slope[near]
        return total

    def _mean_over_members(
        self, rows: MappedRows, chosen: NDArray[np.intp], tolerance: Tolerance
    ) -> Array:
        """Return the mean of the members' log-densities of chosen rows, in the mapped space."""
        names = [self.control if name == MODEL else name for name in self.members]
        rule = self.rule(self.model.rule) if MODEL in self.members else None
        share = 1.0 if rule is None else SHARE_OF_REFERENCES
        distinct = list(dict.fromkeys(names))
        smoothed = {}
        for number, name in enumerate(distinct):
            reference = self.reference(name)
            ends = share * number / len(distinct), share * (number + 1) / len(distinct)
            with stretch_of_progress(*ends):
                smoothed[name] = self.floored_reference(reference, rows, chosen, tolerance)
        total = np.mean([smoothed[name] for name in names], axis=0)
        near = smoothed.get(self.control, np.empty(0)) > MIN_LOG_DENSITY
        if len(near):
            near &= self.model.space.is_complete(rows.mapped[chosen])
        if rule is not None and near.any():
            with stretch_of_progress(share, 1.0):
                total[near] += self._gap(rows, chosen[near], rule, tolerance) / len(names)
        return np.asarray(total)

    @property
    def noise(self) -> NoiseRule:
        """The noise at the floors, which only references see.

        Unlike networks they can be evaluated without noise as well, so that a few draws of many
        directions are exact for normal distributions.
        """
        model = self.model
        noise = scoring_noise(model.space, model.seeds.scoring, model.has_images)
        if model.space.layout.variables or noise.n_features > MAX_FEATURES_WITH_CENTER:
            return noise
        n_directions = 8 if noise.n_features <= 20 else 4
        return NoiseRule(noise.n_features, min(noise.n_features, n_directions), True, noise.seed)

    def _gap(
        self, rows: MappedRows, chosen: NDArray[np.intp], rule: FlooredRule, tolerance: Tolerance
    ) -> Array:
        return self.model.integrated_gap(
            rule,
            self.model.space.layout.embed_array(rows.mapped[chosen]),
            rows.keys[chosen],
            self.control_log_density(rows, chosen),
            tolerance,
        )[0]

    def control_log_density(self, rows: MappedRows, chosen: NDArray[np.intp]) -> Array:
        """Return the control variate's log-density of chosen rows, in the mapped space."""
        return log_likelihoods(self.reference(self.control), rows.mapped[chosen])

    def rule(self, rule: IntegrationRule | None) -> FlooredRule | None:
        """Return the model's rule below the floors."""
        return None if rule is None else FlooredRule.within(rule, self.floors)

    def floored_reference(
        self, reference: Reference, rows: MappedRows, chosen: NDArray[np.intp], tolerance: Tolerance
    ) -> Array:
        """Return the mean over floors and noise of the smoothed log-density."""

        def evaluate(x: Tensor, eps: Tensor, logsnr: float) -> Tensor:
            return reference.smoothed_log_prob(x, eps, logsnr)[:, None]

        return self.floor_means(evaluate, rows, chosen, tolerance, reference.n_intermediate)[:, 0]

    def floor_means(
        self,
        evaluate: Callable[[Tensor, Tensor, float], Tensor],
        rows: MappedRows,
        chosen: NDArray[np.intp],
        tolerance: Tolerance,
        width: int,
    ) -> Array:
        """Return means over floors and noise of what is evaluated, (len(chosen), n_values)."""
        noise, n_draws = self.noise, n_floor_draws(tolerance)
        n_rows = 2**18 // (max(width, 1) * n_draws * noise.n_evaluations)
        n_rows = int(np.clip(n_rows, 1, MAX_ROWS_TO_PAD))

        @torch.no_grad()
        def chunk(start: int) -> Array:
            part = chosen[start : start + n_rows]
            # Padded to one shape, so that a row's value is independent of the other rows.
            part = np.pad(part, (0, n_rows - len(part)), mode="edge")
            total = 0.0
            for number, floor in enumerate(self.floors):
                keys = spawn_keys(rows.keys[part], 1, FLOOR_STREAM + number).ravel()
                eps, coefficient = noise.draws(keys, 0, n_draws)
                coefficient = coefficient.reshape(n_rows, -1) / n_draws
                if math.isinf(floor):
                    eps, coefficient = eps[:, :1, :1], np.ones((n_rows, 1))
                eps = np.ascontiguousarray(eps.reshape(-1, eps.shape[-1]))
                x = np.repeat(rows.mapped[part], coefficient.shape[1], axis=0)
                places = Places(n_rows, coefficient.shape[1], DOUBLE_APART)
                points, noisy = (torch.from_numpy(places.spread(v)) for v in (x, eps))
                found = places.gathered(evaluate(points, noisy, float(floor))).numpy()
                found = found.reshape(*coefficient.shape, -1)
                total = total + (found * coefficient[:, :, None]).sum(axis=1)
            return np.asarray(total / len(self.floors))

        chunks = map_in_workers(chunk, range(0, len(chosen), n_rows), "cpu", current_progress())
        return np.concatenate(chunks)[: len(chosen)]

    def modes(self, values: Array) -> NDArray[np.intp] | None:
        """Return the mode of the control variate that each row belongs to; None if it has but one.

        Rows that cannot be standardised are taken for those in the middle.
        """
        rows = MappedRows.of(self.model, values)
        near = np.where(rows.finite[:, None], rows.mapped, 0.0)
        variance = math.exp(-float(self.floors.max()))
        return self.model.references[self.model.control].modes(torch.from_numpy(near), variance)

    def _finish_loading(self) -> None:
        """Raise an error if parts do not fit together, or numbers are out of range."""
        check_shapes(self, {"floors": "f"})
        check_in_range(self.floors, -MAX_FLOOR, np.inf, "noise floors")
        known = {MODEL, *self.model.references}
        if not len(self.floors) or not self.members or not known >= {*self.members}:
            raise ValueError("a noise floor, or a member, is none of the model's")


@dataclass(frozen=True)
class MappedRows:
    """Rows of the table in the space of a model, with the keys of their noise."""

    mapped: Array
    log_slope: Array
    keys: Keys
    finite: NDArray[np.bool_]

    @classmethod
    def of(cls, model: TableModel, values: Array) -> MappedRows:
        """Return the rows of numbers and codes."""
        # Rows so far out that a square overflows have the log-density minus infinity.
        with np.errstate(over="ignore"):
            standardized = model.space.standardized(values)
            mapped, log_slope = model.space.rows(standardized)
        finite = (np.abs(mapped) < FARTHEST).all(axis=1) & np.isfinite(log_slope)
        log_slope = log_slope + log_widths(model).sum()
        keys = row_keys(standardized, model.seeds.scoring)
        return cls(mapped, np.where(finite, log_slope, 0.0), keys, finite)

    @property
    def is_near(self) -> NDArray[np.bool_]:
        """Whether an entry is near enough for a density, (n, n_continuous + m)."""
        return np.asarray(np.abs(self.mapped) < FARTHEST)

    def distinct(self, chosen: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return one row of each group of equal ones, and the rows' groups."""
        _, first, group = np.unique(self.keys[chosen], return_index=True, return_inverse=True)
        return first, group


def log_widths(model: TableModel) -> Array:
    """Return the log-width of the cells of each continuous column, 0 where it has none."""
    if model.dequantizer is None:
        return np.zeros(len(model.space.continuous))
    step = model.dequantizer.step[model.space.continuous]
    return np.log(np.where(step > 0.0, step, 1.0))


def constant_parts(model: TableModel, values: Array) -> Array:
    """Return the log-density of each continuous column without variation, (n, n_constant).

    With dequantised columns it is the log-probability of a cell.
    """
    return model.constant_log_ratios(values) + model.greatest_constant_log_densities


def checked_floors(noise_floor: Any) -> Array | None:
    """Return the log-SNRs of the floors, or raise an error that names the parameter."""
    if noise_floor is None:
        return None
    if isinstance(noise_floor, str):
        return np.array([AUTOMATIC_FLOOR])
    floors = np.sort(np.atleast_1d(numbers_in(noise_floor)))
    if floors.ndim != 1 or not len(floors) or not (np.abs(floors) <= MAX_FLOOR).all():
        raise ValueError(
            "noise_floor must be 'auto', None, or one or several log-SNRs from "
            f"{-MAX_FLOOR:g} to {MAX_FLOOR:g}, got {noise_floor!r}."
        )
    return floors
