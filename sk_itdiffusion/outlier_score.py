r"""Log-densities with a noise floor, and what each column contributes to them.

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

Values of discrete columns that are no levels have the log-probabilities of their column (see
`sk_itdiffusion.unseen`), and the other columns those of the references, without the network.

With independent columns as q, both terms are sums over columns; these are the contributions.

References
----------
X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion.channel import noise_scale, signal_scale
from sk_itdiffusion.cubature import Keys, NoiseRule, PiecewiseDensity, row_keys, spawn_keys
from sk_itdiffusion.likelihood import (
    Denoiser,
    IntegrationRule,
    PairedDenoiser,
    fit_placement,
    information_gap,
)
from sk_itdiffusion.model import LEAST_LOG_DENSITY, Effort, TableModel, on_device, scoring_noise
from sk_itdiffusion.parallel import map_in_workers
from sk_itdiffusion.progress import current_progress, stretch_of_progress
from sk_itdiffusion.references import (
    GaussianMixtureReference,
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    LatentClassReference,
    LowRankGaussianReference,
    Reference,
)

__all__ = ["FlooredModel", "smoothed_log_prob"]

Array = NDArray[np.float64]

#: Rows whose errors place the strata of the explanation.
ROWS_FOR_PLACEMENT = 100
#: In mapped units; squares of numbers farther out overflow.
FARTHEST = 1e100
#: Share of a progress bar that is for the references' part of a score, if a network has another.
SHARE_OF_REFERENCES = 0.1
#: In nats; information about other columns below the least log-SNR of an explanation.
LEAST_INFORMATION = 0.001
#: Name of the fitted model among the members.
MODEL = "model"
#: Stream of the row's keys from which the noise at the floors comes; strata use lower ones.
FLOOR_STREAM = 2**40


# -- smoothed references ---------------------------------------------------------------------


def smoothed_log_prob(reference: Reference, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
    """Return the log-density of noisy rows under the reference with as much noise.

    Parameters
    ----------
    reference : Reference
        Normal distribution, mixture of them, independent columns or latent classes.
    rows : Tensor of shape (B, n_columns)
        Rows; codes in discrete columns.
    eps : Tensor of shape (B, d)
        Noise of the points of the rows.
    logsnr : float
        Log-SNR of the noise; infinite for none.

    Returns
    -------
    Tensor of shape (B,)
        Log-densities in nats.  That of discrete columns is relative to the density of their
        noise given the row: the log-probability if there is none.

    Raises
    ------
    TypeError
        If the smoothed density of the reference is not known in closed form.
    """
    if math.isinf(logsnr):
        return reference.log_prob(rows)
    variance = math.exp(-logsnr)
    if isinstance(reference, GaussianReference):
        return _smoothed_gaussian(reference, rows + math.sqrt(variance) * eps, variance)
    if isinstance(reference, LowRankGaussianReference):
        noisy = rows + math.sqrt(variance) * eps
        return smoothed_low_rank(reference, variance).log_prob(noisy)
    if isinstance(reference, GaussianMixtureReference):
        noisy = rows + math.sqrt(variance) * eps
        return reference.component_log_prob(noisy, variance).logsumexp(1)
    if isinstance(reference, KernelDensityReference):
        return reference.smoothed_log_prob(rows + math.sqrt(variance) * eps, variance)
    if isinstance(reference, IndependentReference):
        return _smoothed_independent(reference, rows, eps, logsnr)
    if isinstance(reference, LatentClassReference):
        return _smoothed_classes(reference, rows, eps, logsnr)
    raise TypeError(f"{type(reference).__name__} cannot be smoothed in closed form.")


def can_be_smoothed(reference: Reference) -> bool:
    """Return whether `smoothed_log_prob` takes the reference."""
    if isinstance(reference, IndependentReference):
        return reference.continuous is None or can_be_smoothed(reference.continuous)
    known = (
        GaussianReference,
        GaussianMixtureReference,
        KernelDensityReference,
        LatentClassReference,
        LowRankGaussianReference,
    )
    return isinstance(reference, known)


def is_plain_reference(reference: Reference) -> bool:
    """Return whether the reference is a normal distribution, independent levels, or both."""
    if isinstance(reference, IndependentReference):
        return reference.continuous is None or is_plain_reference(reference.continuous)
    return isinstance(reference, GaussianReference | LowRankGaussianReference)


def smoothed_low_rank(
    reference: LowRankGaussianReference, variance: float
) -> LowRankGaussianReference:
    """Return the normal distribution with a variance added in every direction."""
    return LowRankGaussianReference(
        reference.mean,
        reference.basis,
        reference.variances + variance,
        float(reference.residual) + variance,
    )


def column_variances(reference: GaussianReference | LowRankGaussianReference) -> Array:
    """Return the variance of each column."""
    if isinstance(reference, GaussianReference):
        return np.asarray(np.diag(reference.covariance.numpy()))
    along = reference.variances - reference.residual
    return np.asarray((reference.residual + reference.basis.square() @ along).numpy())


def _smoothed_gaussian(reference: GaussianReference, noisy: Tensor, variance: float) -> Tensor:
    spread = reference.variances + variance
    whitened = ((noisy - reference.mean) @ reference.basis) / spread.sqrt()
    constant = reference.n_features * math.log(2 * math.pi) + spread.log().sum()
    return -0.5 * (whitened.square().sum(1) + constant)


def _smoothed_independent(
    reference: IndependentReference, rows: Tensor, eps: Tensor, logsnr: float
) -> Tensor:
    n_continuous = reference.n_continuous
    total = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    if reference.continuous is not None:
        part, noise = rows[:, :n_continuous], eps[:, :n_continuous]
        total = total + smoothed_log_prob(reference.continuous, part, noise, logsnr)
    return total + discrete_log_ratios(reference, rows, eps, logsnr).sum(1)


def discrete_log_ratios(
    reference: IndependentReference, rows: Tensor, eps: Tensor, logsnr: float
) -> Tensor:
    """Return log p(z) - log p(z | x) of each discrete variable by itself, (B, m).

    It is 0 where there is no level.
    """
    layout = reference.layout
    found = rows.new_zeros(len(rows), len(layout.variables))
    for number, likelihood, hit, observed in _level_likelihoods(reference, rows, eps, logsnr):
        block, log_prior = layout.blocks[number], reference.log_priors[number]
        found[:, block.columns] = ((log_prior + likelihood).logsumexp(2) - hit) * observed
    return found


def _level_likelihoods(
    reference: IndependentReference | LatentClassReference,
    rows: Tensor,
    eps: Tensor,
    logsnr: float,
) -> Sequence[tuple[int, Tensor, Tensor, Tensor]]:
    """Return number of block, log p(z | k), log p(z | x), and which x are levels, of each.

    The shapes are (B, m, K), (B, m) and (B, m).
    """
    layout = reference.layout
    level = torch.full((len(rows),), logsnr, dtype=rows.dtype, device=rows.device)
    signal, noise = signal_scale(level)[:, None], noise_scale(level)[:, None]
    found = []
    for number, block in enumerate(layout.blocks):
        codes, observed = block.observed_codes(rows, layout.n_continuous)
        points = block.embed(codes, rows.dtype)
        z = signal * points + noise * eps[:, block.coordinates]
        likelihood = block.log_likelihood(z, level)
        hit = likelihood.gather(2, codes[:, :, None])[:, :, 0]
        found.append((number, likelihood.masked_fill(~block.allowed, -torch.inf), hit, observed))
    return found


def _smoothed_classes(
    reference: LatentClassReference, rows: Tensor, eps: Tensor, logsnr: float
) -> Tensor:
    joint = reference.log_weights.to(rows.dtype).expand(len(rows), -1)
    if reference.continuous is not None:
        n_continuous, variance = reference.n_continuous, math.exp(-logsnr)
        noisy = rows[:, :n_continuous] + math.sqrt(variance) * eps[:, :n_continuous]
        density = reference.continuous.component_log_prob(noisy, variance)
        joint = joint + density - reference.continuous.log_weights
    for number, likelihood, hit, observed in _level_likelihoods(reference, rows, eps, logsnr):
        highest = likelihood.amax(2, keepdim=True)
        scaled = (likelihood - highest).exp().transpose(0, 1)
        by_class = torch.bmm(scaled, reference.tables[number])  # (m, B, C)
        log_ratio = by_class.log() + (highest[:, :, 0] - hit).T[:, :, None]
        joint = joint + (log_ratio * observed.T[:, :, None]).sum(0)
    return joint.logsumexp(1)


# -- the score -------------------------------------------------------------------------------


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
        edges = rule.placement.edges
        top = min(float(floors.max()), float(edges[-1]))
        if top <= edges[0]:
            return None
        inner = np.sort(floors[(floors > edges[0]) & (floors < top)])
        cut = np.unique(np.concatenate([edges[edges < top], inner, [top]]))
        middle = 0.5 * (cut[1:] + cut[:-1])
        # The root of the share is a compromise: contributions shrink with it, their number not.
        height = rule.placement.density(middle) * np.sqrt(share_above(middle, floors))
        kept = height * np.diff(cut)
        placement = PiecewiseDensity(cut, kept / kept.sum())
        return cls(placement, rule.noise, rule.n_strata, rule.n_draws, tuple(map(float, floors)))

    def draw(self, keys: Keys, first: int, n_strata: int) -> tuple[Array, Array, Array]:
        """Return log-SNRs, noise and coefficients; see `IntegrationRule.draw`."""
        logsnr, eps, coefficient = super().draw(keys, first, n_strata)
        share = share_above(logsnr, np.array(self.floors))
        return logsnr, eps, coefficient * share[..., None]


def share_above(logsnr: Array, floors: Array) -> Array:
    """Return the share of the floors that lie above log-SNRs."""
    return np.asarray((floors > np.asarray(logsnr)[..., None]).mean(axis=-1))


@dataclass(frozen=True)
class FlooredModel:
    """A fitted model with noise floors.

    Attributes
    ----------
    model : TableModel
        The model.
    floors : ndarray of shape (n_floors,)
        Log-SNRs of the floors, on the mapped columns; infinite for none.
    members : tuple of str
        References whose log-densities are averaged, and ``MODEL``.
    placement : PiecewiseDensity or None, default=None
        Where explanations evaluate the log-SNR; see `with_placement`.
    """

    model: TableModel
    floors: Array
    members: tuple[str, ...] = (MODEL,)
    placement: PiecewiseDensity | None = None

    # -- references --------------------------------------------------------------------------

    @property
    def control(self) -> str:
        """Name of the control variate: the model's own, or the normal one if it is unknown."""
        own = self.model.control
        return own if can_be_smoothed(self.model.references[own]) else self.plain

    @property
    def plain(self) -> str:
        """Name of the normal distribution, or of that times independent levels.

        Ensembles may call it otherwise than their members do.
        """
        return next(name for name, r in self.model.references.items() if is_plain_reference(r))

    @classmethod
    def averaged(cls, model: TableModel, floors: Array) -> FlooredModel:
        """Return the mean over the references that can be smoothed, and the model's network."""
        names = [name for name, r in model.references.items() if can_be_smoothed(r)]
        # Without a network the model is a stack of the references that are averaged already.
        others = [
            name
            for number, name in enumerate(model.expert_names)
            if name not in names and model.weights[:, number].any()
        ]
        return cls(model, floors, (*names, *([MODEL] if others or not names else [])))

    def independent(self) -> GaussianReference | IndependentReference:
        """Return the reference of independent columns: normal ones and marginals of levels."""
        known = self.model.references[self.plain]
        plain = known.continuous if isinstance(known, IndependentReference) else known
        diagonal = None
        if isinstance(plain, GaussianReference | LowRankGaussianReference):
            diagonal = GaussianReference(plain.mean, np.diag(column_variances(plain)))
        if isinstance(known, IndependentReference):
            return IndependentReference(known.layout, known.marginals(), diagonal)
        assert diagonal is not None
        return diagonal

    @property
    def is_plain(self) -> bool:
        """Whether the score is the log-density of the model as it is."""
        return self.members == (MODEL,) and bool(np.isinf(self.floors).all())

    # -- density -----------------------------------------------------------------------------

    def log_density(self, values: Array, effort: Effort) -> Array:
        """Return the log-density with noise floors of numbers and codes, in nats.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_columns)
            Numbers and codes.
        effort : Effort
            How exactly to integrate.

        Returns
        -------
        ndarray of shape (n_samples,)
            Log-densities, in the units of the data; minus infinity for rows so far out that they
            cannot be standardised.
        """
        model = self.model
        total: Array = constant_parts(model, values).sum(axis=1)
        total += model.space.unseen_log_odds(values).sum(axis=1) + model.space.log_seen.sum()
        if model.space.is_empty:
            return total
        rows = _MappedRows.of(model, values)
        total[~rows.finite] = -np.inf
        near = np.flatnonzero(rows.finite)
        if not len(near):
            return total
        first, group = rows.distinct(near)
        found = self._mean_over_members(rows, near[first], effort)
        total[near] += found[group] + rows.log_slope[near]
        return total

    def _mean_over_members(
        self, rows: _MappedRows, chosen: NDArray[np.intp], effort: Effort
    ) -> Array:
        """Return the mean of the members' log-densities of chosen rows, in the mapped space."""
        names = [self.control if name == MODEL else name for name in self.members]
        rule = self._rule(self.model.scoring_rule(effort)) if MODEL in self.members else None
        share = 1.0 if rule is None else SHARE_OF_REFERENCES
        distinct = list(dict.fromkeys(names))
        smoothed = {}
        for number, name in enumerate(distinct):
            reference = self.model.references[name]
            ends = share * number / len(distinct), share * (number + 1) / len(distinct)
            with stretch_of_progress(*ends):
                smoothed[name] = self._floored_reference(reference, rows, chosen, effort)
        total = np.mean([smoothed[name] for name in names], axis=0)
        near = smoothed.get(self.control, np.empty(0)) > LEAST_LOG_DENSITY
        if len(near):
            near &= self.model.space.is_complete(rows.mapped[chosen])
        if rule is not None and near.any():
            experts = self.model.experts()
            paired = self.model.stack(experts).paired_with(experts[self.control])
            with stretch_of_progress(share, 1.0):
                total[near] += self._gap(rows, chosen[near], paired, rule) / len(names)
        return np.asarray(total)

    def _noise(self, effort: Effort) -> NoiseRule:
        """Return the noise that the model's scores are integrated with."""
        rule = self.model.scoring_rule(effort)
        if rule is not None:
            return rule.noise
        return scoring_noise(self.model.space, self.model.seeds.scoring, effort.n_directions)

    def _gap(
        self, rows: _MappedRows, chosen: NDArray[np.intp], paired: PairedDenoiser, rule: FlooredRule
    ) -> Array:
        return information_gap(
            self.model.space.layout.embed_array(rows.mapped[chosen]),
            rows.keys[chosen],
            paired,
            rule,
            budget=self.model.budget,
            device=self.model.device,
            dtype=self.model.precision,
        )[0]

    def _rule(self, rule: IntegrationRule | None) -> FlooredRule | None:
        """Return the model's rule below the floors."""
        if rule is None and self.control != self.model.control:
            raise TypeError(
                f"noise_floor needs a reference that can be smoothed, and "
                f"{type(self.model.references[self.model.control]).__name__} cannot; set "
                "noise_floor=None."
            )
        return None if rule is None else FlooredRule.within(rule, self.floors)

    def _floored_reference(
        self, reference: Reference, rows: _MappedRows, chosen: NDArray[np.intp], effort: Effort
    ) -> Array:
        """Return the mean over floors and noise of the smoothed log-density."""

        def evaluate(x: Tensor, eps: Tensor, logsnr: float) -> Tensor:
            return smoothed_log_prob(reference, x, eps, logsnr)[:, None]

        return self._floor_means(evaluate, rows, chosen, effort, reference.n_intermediate)[:, 0]

    def _floor_means(
        self,
        evaluate: Callable[[Tensor, Tensor, float], Tensor],
        rows: _MappedRows,
        chosen: NDArray[np.intp],
        effort: Effort,
        width: int,
    ) -> Array:
        """Return means over floors and noise of what is evaluated, (len(chosen), n_values)."""
        noise = self._noise(effort)
        n_draws = max(1, effort.n_strata * effort.n_draws // 8)
        n_rows = max(1, 2**18 // (max(width, 1) * n_draws * noise.n_evaluations))

        @torch.no_grad()
        def block(start: int) -> Array:
            part = chosen[start : start + n_rows]
            # Padded to one shape, so that a row's value is the same in any company.
            part = np.pad(part, (0, n_rows - len(part)), mode="edge")
            total = 0.0
            for number, floor in enumerate(self.floors):
                keys = spawn_keys(rows.keys[part], n_draws, FLOOR_STREAM + number * n_draws)
                eps, coefficient = noise.draw(keys.ravel())
                coefficient = coefficient.reshape(n_rows, -1) / n_draws
                if math.isinf(floor):
                    eps, coefficient = eps[::n_draws, :1], np.ones((n_rows, 1))
                eps = np.ascontiguousarray(eps.reshape(-1, eps.shape[-1]))
                x = np.repeat(rows.mapped[part], coefficient.shape[1], axis=0)
                found = evaluate(torch.from_numpy(x), torch.from_numpy(eps), float(floor)).numpy()
                found = found.reshape(*coefficient.shape, -1)
                total = total + (found * coefficient[:, :, None]).sum(axis=1)
            return np.asarray(total / len(self.floors))

        blocks = map_in_workers(block, range(0, len(chosen), n_rows), "cpu", current_progress())
        return np.concatenate(blocks)[: len(chosen)]

    # -- contributions -----------------------------------------------------------------------

    def with_placement(self, values: Array, effort: Effort) -> FlooredModel:
        """Return the same with the strata of explanations placed by a few rows."""
        space = self.model.space
        if space.is_empty:
            return self
        rows = _MappedRows.of(self.model, values[:ROWS_FOR_PLACEMENT])
        chosen = np.flatnonzero(rows.finite)
        low = min(float(self.model.logsnr[0]), self._least_logsnr())
        nodes = np.linspace(low, float(self.model.logsnr[-1]), 41)
        placement = fit_placement(
            space.layout.embed_array(rows.mapped[chosen]),
            rows.keys[chosen],
            self._paired_with_independent()[-1],
            self._noise(effort),
            nodes,
            budget=self.model.budget,
            device=self.model.device,
            dtype=self.model.precision,
        )
        return replace(self, placement=placement)

    def _least_logsnr(self) -> float:
        """Return the log-SNR below which columns tell nearly nothing about each other."""
        known = self.model.references[self.plain]
        continuous = known.continuous if isinstance(known, IndependentReference) else known
        if not isinstance(continuous, GaussianReference):
            return float(self.model.logsnr[0])
        covariance = continuous.covariance.numpy()
        squares = float((covariance**2).sum() - (np.diag(covariance) ** 2).sum())
        return 0.5 * math.log(4.0 * LEAST_INFORMATION / max(squares, 1e-12))

    def _denoisers(self) -> list[Denoiser]:
        """Return the members' denoisers; below its range the model is its control variate."""
        experts = self.model.experts()
        stack, control = self.model.stack(experts), experts[self.model.control]
        low = float(self.model.logsnr[0])

        def model(z: Tensor, logsnr: Tensor) -> Tensor:
            inside = (logsnr >= low)[:, None]
            return torch.where(inside, stack(z, logsnr), control(z, logsnr))

        return [model if name == MODEL else experts[name] for name in self.members]

    def _paired_with_independent(self) -> list[PairedDenoiser]:
        """Return independent columns beside each member."""
        plain = on_device(self.independent(), self.model.device, self.model.precision)

        def pair(denoiser: Denoiser) -> PairedDenoiser:
            return lambda z, logsnr: (plain(z, logsnr), denoiser(z, logsnr))

        return [pair(denoiser) for denoiser in self._denoisers()]

    def explanation_rule(self, effort: Effort) -> FlooredRule | None:
        """Return the rule of explanations: as many evaluations as scores, and their own strata."""
        assert self.placement is not None
        noise = scoring_noise(self.model.space, self.model.seeds.scoring, effort.n_directions)
        rule = IntegrationRule(self.placement, noise, effort.n_strata, effort.n_draws)
        return FlooredRule.within(rule, self.floors)

    def explained_log_density(self, values: Array, effort: Effort) -> Array:
        """Return the log-density with independent columns as the control variate.

        It differs from `log_density` by the error of the integration only.
        """
        space = self.model.space
        total: Array = constant_parts(self.model, values).sum(axis=1)
        total += space.unseen_log_odds(values).sum(axis=1) + space.log_seen.sum()
        if space.is_empty:
            return total
        rows = _MappedRows.of(self.model, values)
        chosen = np.flatnonzero(rows.finite)
        total[~rows.finite] = -np.inf
        total += rows.log_slope
        complete = space.is_complete(rows.mapped[chosen])
        if not complete.all():
            others = chosen[~complete]
            total[others] += self._mean_over_members(rows, others, effort)
        chosen = chosen[complete]
        if not len(chosen):
            return total
        total[chosen] += self._floored_reference(self.independent(), rows, chosen, effort)
        rule = self.explanation_rule(effort)
        if rule is not None:
            pairs = self._paired_with_independent()
            total[chosen] += np.mean([self._gap(rows, chosen, p, rule) for p in pairs], axis=0)
        return total

    def contributions(self, values: Array, effort: Effort) -> Array:
        """Return each column's part of `explained_log_density`, (n_samples, n_columns).

        Minus infinity for entries so far out that they cannot be standardised.  Where values are
        no levels, what the other columns tell about each other is not integrated but known from
        the references, and is divided equally among them.
        """
        space = self.model.space
        parts = np.zeros((len(values), space.n_columns))
        parts[:, space.constant] = constant_parts(self.model, values)
        parts[:, space.open] = space.unseen_log_odds(values) + space.log_seen[space.open]
        if space.is_empty:
            return parts
        rows = _MappedRows.of(self.model, values)
        columns = np.concatenate([space.continuous, space.discrete])
        parts[:, columns] += np.where(rows.is_near, 0.0, -np.inf)
        parts[:, space.continuous] += slope_parts(self.model, values)
        chosen = np.flatnonzero(rows.finite)
        if not len(chosen):
            return parts
        first, group = rows.distinct(chosen)
        distinct = chosen[first]
        found = self._floored_columns(rows, distinct, effort)
        rule = self.explanation_rule(effort)
        complete = space.is_complete(rows.mapped[distinct])
        if rule is not None and complete.any():
            found[complete] += self._column_gaps(rows, distinct[complete], rule)
        if not complete.all():
            others = distinct[~complete]
            rest = self._mean_over_members(rows, others, effort) - found[~complete].sum(axis=1)
            observed = rows.mapped[others] >= 0.0
            observed[:, : len(space.continuous)] = True
            n_observed = observed.sum(axis=1).clip(min=1)
            found[~complete] += observed * (rest / n_observed)[:, None]
        parts[np.ix_(chosen, columns)] += found[group]
        return parts

    def _floored_columns(
        self, rows: _MappedRows, chosen: NDArray[np.intp], effort: Effort
    ) -> Array:
        """Return the mean smoothed log-density of each modelled column."""
        reference = self.independent()
        known = reference if isinstance(reference, IndependentReference) else None
        normal = reference if known is None else known.continuous
        n_continuous = self.model.space.layout.n_continuous

        def evaluate(x: Tensor, eps: Tensor, logsnr: float) -> Tensor:
            parts = []
            if isinstance(normal, GaussianReference):
                variance = 0.0 if math.isinf(logsnr) else math.exp(-logsnr)
                # The eigenvectors of a diagonal matrix are unit vectors, but in another order.
                spread = normal.covariance.diagonal() + variance
                noisy = x[:, :n_continuous] + math.sqrt(variance) * eps[:, :n_continuous]
                deviation = (noisy - normal.mean).square() / spread
                parts.append(-0.5 * (deviation + spread.log() + math.log(2 * math.pi)))
            if known is not None and math.isinf(logsnr):
                parts.append(discrete_log_marginals(known, x))
            elif known is not None:
                parts.append(discrete_log_ratios(known, x, eps, logsnr))
            return torch.cat(parts, dim=1)

        return self._floor_means(evaluate, rows, chosen, effort, reference.n_intermediate)

    def _column_gaps(self, rows: _MappedRows, chosen: NDArray[np.intp], rule: FlooredRule) -> Array:
        """Return half the integral of each modelled column's difference of squared errors."""
        model = self.model
        layout = model.space.layout
        owner = layout.owners() + layout.n_continuous
        owner[: layout.n_continuous] = np.arange(layout.n_continuous)
        plain = on_device(self.independent(), model.device, model.precision)
        members = self._denoisers()
        points = layout.embed_array(rows.mapped[chosen])
        n_rows, n_strata = rule.block_shape(model.budget)

        def one_block(start: int) -> Array:
            part = np.arange(start, start + n_rows).clip(max=len(points) - 1)
            total = np.zeros((n_rows, layout.n_columns))
            for first in range(0, rule.n_strata, n_strata):
                keys = rows.keys[chosen[part]]
                logsnr, eps, coefficient = rule.draw(keys, first, n_strata)
                gaps = coordinate_gaps(model, plain, members, points[part], logsnr, eps)
                weighted = np.einsum("nsdm,nsdmc->nc", 0.5 * coefficient / rule.n_draws, gaps)
                for coordinate, column in enumerate(owner):
                    total[:, column] += weighted[:, coordinate]
            return total

        starts = range(0, len(points), n_rows)
        blocks = map_in_workers(one_block, starts, model.device, current_progress())
        return np.concatenate(blocks)[: len(points)]


@dataclass(frozen=True)
class _MappedRows:
    """Rows of the table in the space of a model, with the keys of their noise."""

    mapped: Array
    log_slope: Array
    keys: Keys
    finite: NDArray[np.bool_]

    @classmethod
    def of(cls, model: TableModel, values: Array) -> _MappedRows:
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


def coordinate_gaps(
    model: TableModel,
    plain: Denoiser,
    members: Sequence[Denoiser],
    points: Array,
    logsnr: Array,
    eps: Array,
) -> Array:
    """Return the mean difference of squared errors of each coordinate, shaped as the noise."""
    shape = eps.shape
    level = np.broadcast_to(logsnr[..., None], shape[:-1]).reshape(-1)
    clean = np.broadcast_to(points[:, None, None, None, :], shape).reshape(-1, shape[-1])

    def tensor(values: Array) -> Tensor:
        contiguous = np.require(values, requirements=["C", "W"])
        return torch.from_numpy(contiguous).to(device=model.device, dtype=model.precision)

    with torch.no_grad():
        noise, scale = tensor(eps.reshape(-1, shape[-1])), tensor(level)
        signal, width = signal_scale(scale)[:, None], noise_scale(scale)[:, None]
        z = signal * tensor(clean) + width * noise
        baseline = plain(z, scale)
        gaps = torch.zeros_like(z)
        for member in members:
            best = member(z, scale)
            gaps += (best - baseline) * (2.0 * noise - baseline - best) / len(members)
    return np.asarray(gaps.cpu().numpy().astype(np.float64).reshape(shape))


def discrete_log_marginals(reference: IndependentReference, rows: Tensor) -> Tensor:
    """Return the log-probability of each discrete variable, (B, m); 0 where there is no level."""
    layout = reference.layout
    found = rows.new_zeros(len(rows), len(layout.variables))
    for block, log_prior in zip(layout.blocks, reference.log_priors, strict=True):
        codes, observed = block.observed_codes(rows, layout.n_continuous)
        found[:, block.columns] = log_prior.gather(1, codes.T).T * observed
    return found


def slope_parts(model: TableModel, values: Array) -> Array:
    """Return the log-derivative of each continuous column's map, and the width of its cells.

    The shape is (n, n_continuous).
    """
    space = model.space
    with np.errstate(over="ignore"):
        standardized = space.standardized(values)
    parts = np.empty((len(values), len(space.continuous)))
    for j in range(len(space.continuous)):
        column = np.ascontiguousarray(standardized[:, j])
        slope = np.zeros(len(values))
        if space.marginal_map.columns:
            with np.errstate(over="ignore"):
                slope = space.marginal_map.columns[j].forward(column)[1]
        parts[:, j] = slope - math.log(space.standardizer.scale[j])
    return np.where(np.isfinite(parts), parts, 0.0) + log_widths(model)


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
