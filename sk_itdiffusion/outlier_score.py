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

The references are those of the model without the components that stand for rows unlike all those
seen.  A density needs these, so that no row is impossible; but their tail is heavy, whereas the
question here is how unlike a row is from those seen.

Values of discrete columns that are no levels have the log-probabilities of their column (see
`sk_itdiffusion.unseen`), and the other columns those of the references, without the network.

**Contributions.**  With independent columns q the difference of a member and q is followed from no
signal, where it is 0, to the floor, along the paths :math:`z_a = x + e^{-a/2} \epsilon` of fixed
noise.  On such a path

.. math:: \frac{d}{da} \log p_a(z_a) = \frac12 \sum_j \left( 1
    + \epsilon_j E[\epsilon_j \mid z_a] - E[\epsilon_j^2 \mid z_a] \right),

which follows from the heat equation and is, averaged over the noise, the relation of Kong et al.
column by column: the expectation of each term is :math:`(1 - (\epsilon_j -
\hat\epsilon_j)^2) / 2`.  The left side is known at both ends of each interval, so the terms of an
interval are averaged such that their sum is what the log-densities differ by, whatever the rows.
Where values are no levels, what the other columns tell about each other is known from the
references, and is divided equally among them.

References
----------
X. Kong, R. Brekelmans, G. Ver Steeg. "Information-Theoretic Diffusion". ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from sk_itdiffusion.channel import noise_scale, signal_scale
from sk_itdiffusion.cubature import Keys, NoiseRule, PiecewiseDensity, row_keys, spawn_keys
from sk_itdiffusion.likelihood import (
    IntegrationRule,
    PairedDenoiser,
    PointsOfDraws,
    information_gap,
    paired_draws,
)
from sk_itdiffusion.model import LEAST_LOG_DENSITY, Effort, TableModel, scoring_noise
from sk_itdiffusion.noise_moments import noise_moments
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

#: Nodes of the log-SNR at which the paths of explanations are evaluated, and draws of their noise.
PATH_NODES = 24
PATH_DRAWS = 2
#: By how much the paths begin below the log-SNR at which columns tell little about one another:
#: what they tell grows with the squared distance of rows.
ROOM_FOR_FAR_ROWS = 6.0
#: In mapped units; squares of numbers farther out overflow.
FARTHEST = 1e100
#: Share of a progress bar that is for the references' part of a score, if a network has another.
SHARE_OF_REFERENCES = 0.1
#: Intervals of the log-SNR that are longer lie beyond the model's range.
LONGEST_INTERVAL = 5.0
#: In nats; information about other columns below the least log-SNR of an explanation.
LEAST_INFORMATION = 0.001
#: Factor by which the density between two modes is lower than in the lesser one, and the number of
#: points at which it is looked at.
VALLEY = math.e
POINTS_BETWEEN_MODES = 9
ROWS_IN_A_PASS = 4096
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


def smoothed_slopes(
    reference: Reference, rows: Tensor, eps: Tensor, logsnr: float
) -> tuple[Tensor, Tensor]:
    """Return what `smoothed_log_prob` does, and its derivative in the log-SNR for fixed noise.

    Parameters
    ----------
    reference : Reference
        A reference that can be smoothed.
    rows : Tensor of shape (B, n_columns)
        Rows; codes in discrete columns.
    eps : Tensor of shape (B, d)
        Noise of the points of the rows.
    logsnr : float
        Log-SNR of the noise; infinite for none.

    Returns
    -------
    log_prob : Tensor of shape (B,)
        Log-densities in nats.
    slopes : Tensor of shape (B, d)
        Terms of the derivative, one for each coordinate, up to one half of those of discrete
        columns, which all references have in common.  Zero where there is no noise.
    """
    height = smoothed_log_prob(reference, rows, eps, logsnr)
    if math.isinf(logsnr):
        return height, torch.zeros_like(eps)
    mean, square = noise_moments(reference, rows, eps, logsnr)
    return height, 0.5 * (1.0 + eps * mean - square)


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


def n_floor_draws(effort: Effort) -> int:
    """Return the draws of noise at each floor."""
    return max(1, effort.n_strata * effort.n_draws // 8)


def share_above(logsnr: Array, floors: Array) -> Array:
    """Return the share of the floors that lie above log-SNRs."""
    return np.asarray((floors > np.asarray(logsnr)[..., None]).mean(axis=-1))


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
    """

    model: TableModel
    floors: Array
    members: tuple[str, ...] = (MODEL,)

    def __post_init__(self) -> None:
        if not self.is_plain:
            object.__setattr__(self, "model", self.model.without_wide_components())

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
        n_draws = n_floor_draws(effort)
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

    def modes(self, values: Array) -> NDArray[np.intp] | None:
        """Return the mode of the control variate that each row belongs to; None if it has but one.

        Components of a mixture are of one mode if the density between their means is nowhere
        lower than at the lower of the two, by a factor of `VALLEY`.
        """
        mixture = self.model.references[self.control]
        if not isinstance(mixture, GaussianMixtureReference):
            return None
        rows = _MappedRows.of(self.model, values)
        variance = math.exp(-float(self.floors.max()))
        near = np.where(rows.finite[:, None], rows.mapped, 0.0)
        own = mixture.component_log_prob(torch.from_numpy(near), variance).argmax(1)
        return np.asarray(joined_components(mixture, variance)[own.numpy()])

    # -- contributions -----------------------------------------------------------------------

    def contributions(self, values: Array, effort: Effort) -> Array:
        """Return each column's part of `log_density`, (n_samples, n_columns).

        Without floors and average they are those of the model's own log-density.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_columns)
            Numbers and codes.
        effort : Effort
            How exactly to integrate.

        Returns
        -------
        ndarray of shape (n_samples, n_columns)
            Contributions in nats; minus infinity for entries so far out that they cannot be
            standardised.
        """
        model, space = self.model, self.model.space
        parts = np.zeros((len(values), space.n_columns))
        parts[:, space.constant] = constant_parts(model, values)
        parts[:, space.open] = space.unseen_log_odds(values) + space.log_seen[space.open]
        if space.is_empty:
            return parts
        columns = np.concatenate([space.continuous, space.discrete])
        # All that is known of a row are its values: equal ones are done once.
        _, first, group = np.unique(values, axis=0, return_index=True, return_inverse=True)
        distinct = values[first]
        with stretch_of_progress(0.0, 0.5):
            found, near = self._columns_of_references(self._points_seen(distinct), effort)
        # One after the other: the points of each row, of which most models see one.
        found = found.reshape(-1, *distinct.shape[:1], len(columns)).mean(axis=0)
        near = np.asarray(near.reshape(-1, len(distinct)).all(axis=0))
        if MODEL in self.members:
            with stretch_of_progress(0.5, 1.0):
                self._add_columns_of_model(found, distinct, near, effort)
        parts[:, columns] += found[group.ravel()]
        return parts

    def _points_seen(self, values: Array) -> Array:
        """Return the points over which the references' part of a score is averaged.

        They are the rows, or as many times so many: all rows with one noise after the other.
        """
        dequantizer = self.model.dequantizer
        if dequantizer is None or not self.is_plain:
            return values
        keys = row_keys(self.model.space.standardized(values), self.model.seeds.scoring)
        return np.concatenate([values + noise for noise in self.model.reference_offsets(keys)])

    def _columns_of_references(
        self, values: Array, effort: Effort
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Return the parts that need no network, and whether the network has a say in a row."""
        model, space = self.model, self.model.space
        rows = _MappedRows.of(model, values)
        parts = np.where(rows.is_near, 0.0, -np.inf)
        near = rows.finite.copy()
        chosen = np.flatnonzero(rows.finite)
        if not len(chosen):
            return parts, near
        parts[:, : len(space.continuous)] += slope_parts(model, values)
        names = [self.control if name == MODEL else name for name in self.members]
        distinct = list(dict.fromkeys(names))
        alone = self._floored_columns(rows, chosen, effort)
        references = [model.references[name] for name in distinct]
        complete = space.is_complete(rows.mapped[chosen])
        gaps: list[tuple[Array, Array]] = []
        if complete.any():
            gaps = self._path_gaps(references, rows, chosen[complete], effort)
        for number, name in enumerate(distinct):
            total = self._floored_reference(references[number], rows, chosen, effort)
            rest = total - alone.sum(axis=1)
            found = shared_by_levels(rest, rows.mapped[chosen], len(space.continuous))
            if gaps:
                # The paths have fewer draws of noise than the score; nothing else is left over.
                gap, spread = gaps[number]
                found[complete] = reconciled(gap, rest[complete], spread)
            parts[chosen] += names.count(name) / len(names) * (alone + found)
            if name == self.control:
                near[chosen] = complete & (total > LEAST_LOG_DENSITY)
        return parts, near

    def _add_columns_of_model(
        self, parts: Array, values: Array, near: NDArray[np.bool_], effort: Effort
    ) -> None:
        """Add what the stack says beyond its control variate, by the draws of the score."""
        rule = self._rule(self.model.scoring_rule(effort))
        if rule is None or not near.any():
            return
        experts = self.model.experts()
        paired = self.model.stack(experts).paired_with(experts[self.control])
        rows, chosen = _MappedRows.of(self.model, values), np.flatnonzero(near)
        points = None
        if self.is_plain and self.model.dequantizer is not None:
            points = self.model.dequantized_points
        parts[chosen] += self._column_gaps(rows, values, chosen, paired, rule, points) / len(
            self.members
        )

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

    def _path_nodes(self) -> Array:
        """Return the log-SNRs of the paths' nodes, the floors among them."""
        low = min(float(self.model.logsnr[0]), self._least_logsnr()) - ROOM_FOR_FAR_ROWS
        low = min(low, float(self.floors.min()))
        high = max(low, min(float(self.floors.max()), float(self.model.logsnr[-1])))
        return np.unique(np.append(np.linspace(low, high, PATH_NODES), self.floors))

    def _least_logsnr(self) -> float:
        """Return the log-SNR below which columns tell nearly nothing about each other."""
        known = self.model.references[self.plain]
        continuous = known.continuous if isinstance(known, IndependentReference) else known
        if not isinstance(continuous, GaussianReference):
            return float(self.model.logsnr[0])
        covariance = continuous.covariance.numpy()
        squares = float((covariance**2).sum() - (np.diag(covariance) ** 2).sum())
        return 0.5 * math.log(4.0 * LEAST_INFORMATION / max(squares, 1e-12))

    def _path_gaps(
        self,
        references: Sequence[Reference],
        rows: _MappedRows,
        chosen: NDArray[np.intp],
        effort: Effort,
    ) -> list[tuple[Array, Array]]:
        """Return what paths say about each column, and its variance between two draws of noise.

        For each reference it is the log-density less that of independent columns.
        """
        model, nodes, noise = self.model, self._path_nodes(), self._noise(effort)
        layout = model.space.layout
        owner = layout.owners() + layout.n_continuous
        owner[: layout.n_continuous] = np.arange(layout.n_continuous)
        to_columns = (owner[:, None] == np.arange(layout.n_columns)).astype(np.float64)
        plain = self.independent()
        share = share_above(np.append(-np.inf, nodes[:-1]), self.floors)
        widest = max(reference.n_intermediate for reference in (plain, *references))
        n_draws = min(PATH_DRAWS, n_floor_draws(effort))
        # Not too large, since few rows are padded to as many.
        n_rows = max(1, 2**17 // (max(widest, 1) * n_draws * noise.n_evaluations))

        @torch.no_grad()
        def block(start: int) -> Array:
            part = chosen[start : start + n_rows]
            # Padded to one shape, so that a row's value is the same in any company.
            part = np.pad(part, (0, n_rows - len(part)), mode="edge")
            keys = spawn_keys(rows.keys[part], n_draws, FLOOR_STREAM)
            eps, coefficient = noise.draw(keys.ravel())
            noisy = torch.from_numpy(np.ascontiguousarray(eps.reshape(-1, eps.shape[-1])))
            x = torch.from_numpy(np.repeat(rows.mapped[part], noisy.shape[0] // n_rows, axis=0))
            factor = coefficient.reshape(n_rows, n_draws, -1)

            def mean(found: Tensor) -> Array:
                """Return the mean over the noise of a draw, (n_rows, n_draws, n_values)."""
                values = found.numpy().reshape(*factor.shape, -1)
                return np.asarray(np.einsum("ndm,ndmc->ndc", factor, values))

            heights = np.empty((len(references), n_rows, n_draws, len(nodes)))
            slopes = np.zeros((*heights.shape, layout.n_columns))
            for number, node in enumerate(nodes):
                base, base_slope = smoothed_slopes(plain, x, noisy, float(node))
                for r, reference in enumerate(references):
                    height, slope = smoothed_slopes(reference, x, noisy, float(node))
                    heights[r, :, :, number] = mean(height - base)[..., 0]
                    slopes[r, :, :, number] = mean(slope - base_slope) @ to_columns
            return path_contributions(nodes, share, heights, slopes)

        starts = range(0, len(chosen), n_rows)
        blocks = map_in_workers(block, starts, "cpu", current_progress())
        found = np.concatenate(blocks, axis=1)[:, : len(chosen)]
        return [(each.mean(axis=1), each.var(axis=1)) for each in found]

    def _column_gaps(
        self,
        rows: _MappedRows,
        values: Array,
        chosen: NDArray[np.intp],
        paired: PairedDenoiser,
        rule: FlooredRule,
        points: PointsOfDraws | None,
    ) -> Array:
        """Return half the integral of each modelled column's difference of squared errors."""
        model = self.model
        layout = model.space.layout
        owner = layout.owners() + layout.n_continuous
        owner[: layout.n_continuous] = np.arange(layout.n_continuous)
        seen = layout.embed_array(rows.mapped[chosen]) if points is None else values[chosen]
        n_rows, n_strata = rule.block_shape(model.budget)

        def one_block(start: int) -> Array:
            part = np.arange(start, start + n_rows).clip(max=len(seen) - 1)
            total = np.zeros((n_rows, layout.n_columns))
            for first in range(0, rule.n_strata, n_strata):
                differences, coefficient = paired_draws(
                    seen[part],
                    rows.keys[chosen[part]],
                    paired,
                    rule,
                    first,
                    n_strata,
                    model.device,
                    model.precision,
                    points,
                )
                factor = 0.5 * coefficient / rule.n_draws
                weighted = np.einsum("nsdm,nsdmc->nc", factor, differences)
                for coordinate, column in enumerate(owner):
                    total[:, column] += weighted[:, coordinate]
            return total

        starts = range(0, len(seen), n_rows)
        blocks = map_in_workers(one_block, starts, model.device, current_progress())
        return np.concatenate(blocks)[: len(seen)]


def joined_components(mixture: GaussianMixtureReference, variance: float) -> NDArray[np.intp]:
    """Return the mode of each component of a mixture that is smoothed by a variance."""

    def log_density(points: Tensor) -> Tensor:
        parts = points.split(ROWS_IN_A_PASS)
        return torch.cat(
            [mixture.component_log_prob(part, variance).logsumexp(1) for part in parts]
        )

    means = mixture.means
    first, second = np.triu_indices(len(means), 1)
    peaks = log_density(means)
    share = torch.linspace(0.0, 1.0, POINTS_BETWEEN_MODES + 2, dtype=means.dtype)[1:-1]
    between = torch.lerp(means[first, None], means[second, None], share[:, None])
    lowest = log_density(between.flatten(0, 1)).reshape(len(first), -1).amin(1)
    is_joined = (lowest > torch.minimum(peaks[first], peaks[second]) - math.log(VALLEY)).numpy()
    edges = (np.ones(is_joined.sum()), (first[is_joined], second[is_joined]))
    graph = coo_array(edges, shape=(len(means), len(means)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.intp)


def path_contributions(nodes: Array, share: Array, heights: Array, slopes: Array) -> Array:
    """Return the contributions of columns (..., c) to a difference of log-densities.

    Parameters
    ----------
    nodes : ndarray of shape (n_nodes,)
        Increasing log-SNRs; the last may be infinite.
    share : ndarray of shape (n_nodes,)
        Factors of the intervals that end at the nodes; the first begins at no signal.
    heights : ndarray of shape (..., n_nodes)
        Differences of log-densities at the nodes.
    slopes : ndarray of shape (..., n_nodes, n_columns)
        The columns' terms of their derivatives.

    Returns
    -------
    ndarray of shape (..., n_columns)
        Contributions in nats.
    """
    # Below the first node the difference grows with the square of the signal.
    total = share[0] * reconciled(0.5 * slopes[..., 0, :], heights[..., 0])
    for number in range(1, len(nodes)):
        left, right = slopes[..., number - 1, :], slopes[..., number, :]
        change = heights[..., number] - heights[..., number - 1]
        width = nodes[number] - nodes[number - 1]
        if width > LONGEST_INTERVAL:  # beyond the model's range the slopes fall with the noise
            part = reconciled(left, change)
        else:
            part = width * intermediate(left, right, change / width)
        total = total + share[number] * part
    return np.asarray(total)


def intermediate(left: Array, right: Array, total: Array) -> Array:
    """Return terms between those at the ends of an interval whose sum is the given one.

    They are the mean of the ends where the terms change evenly; where another component of a
    mixture takes over, and the terms jump, the ends are weighted by the parts before and after.
    """
    step = right - left
    rise = step.sum(axis=-1)
    missing = total - 0.5 * (left + right).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(rise != 0.0, missing / rise, 0.0).clip(-0.5, 0.5)
    between = 0.5 * (left + right) + shift[..., None] * step
    return reconciled(between, total, np.abs(left) + np.abs(right))


def reconciled(parts: Array, total: Array, weight: Array | None = None) -> Array:
    """Return parts whose sum is the total: what is missing is shared in proportion to a weight.

    Without a weight, and where all weights are 0, it is shared in proportion to the parts' sizes.
    """
    size = np.abs(parts)
    if weight is not None:
        size = np.where(weight.sum(axis=-1, keepdims=True) > 0.0, weight, size)
    size = size / size.max(axis=-1, keepdims=True).clip(min=np.finfo(np.float64).tiny)
    size = np.where(size.any(axis=-1, keepdims=True), size, 1.0)
    missing = total - parts.sum(axis=-1)
    return np.asarray(parts + missing[..., None] * size / size.sum(axis=-1, keepdims=True))


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


def shared_by_levels(values: Array, mapped: Array, n_continuous: int) -> Array:
    """Return values (n,) in equal parts for the columns whose entries are numbers or levels."""
    observed = mapped >= 0.0
    observed[:, :n_continuous] = True
    return np.asarray(observed * (values / observed.sum(axis=1).clip(min=1))[:, None])


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
