r"""Mixtures of references of any kind.

Under noise a mixture :math:`\sum_k w_k q_k` is the mixture of its members under as much noise, so
its optimal denoiser is the average of theirs under the posterior of the members, and parts of rows
are as well known as they are of the members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sk_itdiffusion._first._table.rows import WeightedRows
from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.persistence import stored
from sk_itdiffusion._first.persistence.checks import check_in_range, check_same, check_shapes
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.buffers import as_float_tensor
from sk_itdiffusion._first.references.judging import log_likelihoods
from sk_itdiffusion._first.references.parts import (
    chosen_with_rest,
    log_sum,
    log_sum_given,
    log_sum_of_rows,
)

__all__ = ["ReferenceMixture"]

Array = NDArray[np.float64]

#: Steps of expectation-maximisation, and the gain in nats that ends them.
_MAX_STEPS = 1_000
_TOLERANCE = 1e-7


@stored()
class ReferenceMixture(Reference):
    """Mixture of references of rows of the same columns.

    Parameters
    ----------
    weights : array-like of shape (n_members,)
        Positive weights; scaled to sum to 1.
    references : sequence of Reference
        The members, on rows of the same columns; at least one.

    Raises
    ------
    ValueError
        If a weight is not positive, there is not one for each reference, or the references are of
        different columns.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.references import GaussianReference, ReferenceMixture
    >>> narrow, wide = GaussianReference([0.0], [[1.0]]), GaussianReference([0.0], [[9.0]])
    >>> mixture = ReferenceMixture([0.5, 0.5], [narrow, wide])
    >>> round(mixture.log_prob(torch.zeros(1, 1, dtype=torch.float64)).item(), 4)
    -1.3244
    """

    log_weights: Tensor

    def __init__(self, weights: ArrayLike | Tensor, references: Sequence[Reference]) -> None:
        super().__init__()
        proportions = as_float_tensor(weights, 1, "weights")
        if len(proportions) != len(references) or bool((proportions <= 0).any()):
            raise ValueError("weights must be positive, one for each of the references.")
        if not references or len({(r.n_columns, r.n_features) for r in references}) > 1:
            raise ValueError("references must be one or more, on rows of the same columns.")
        self.n_features = references[0].n_features
        self.members = nn.ModuleList(references)
        self.register_buffer("log_weights", (proportions / proportions.sum()).log())

    @classmethod
    def fit(cls, references: Sequence[Reference], rows: WeightedRows) -> ReferenceMixture:
        """Return the mixture of greatest mean log-likelihood of rows that did not fit its members.

        The weights are found by expectation-maximisation.  Rows may have missing entries (NaN) and
        count by their observed entries; those without any have no influence.

        Parameters
        ----------
        references : sequence of Reference
            The members, which stay as they are.
        rows : WeightedRows
            Validation rows.

        Returns
        -------
        ReferenceMixture
            The mixture; of equal weights if there is no row with an entry.
        """
        scores = np.stack([log_likelihoods(reference, rows.X) for reference in references])
        is_seen = ~np.isnan(rows.X).all(axis=1)
        equal = np.zeros(len(references))
        if not is_seen.any():
            return cls.of_log_weights(equal, references)
        share = rows.weight[is_seen] / rows.weight[is_seen].sum()
        return cls.of_log_weights(fitted_log_weights(scores[:, is_seen], share), references)

    @classmethod
    def of_log_weights(
        cls, log_weights: Array, references: Sequence[Reference]
    ) -> ReferenceMixture:
        """Return a mixture whose weights may be so small that only logarithms are numbers.

        Parameters
        ----------
        log_weights : ndarray of shape (n_members,)
            Logarithms of the weights, up to a constant.
        references : sequence of Reference
            The members.

        Returns
        -------
        ReferenceMixture
            The mixture.
        """
        mixture = cls(np.ones(len(references)), references)
        mixture.log_weights = torch.from_numpy(log_weights).log_softmax(0)
        return mixture

    @property
    def references(self) -> list[Reference]:
        """The members."""
        return list(self.members)  # type: ignore[arg-type]

    @property
    def weights(self) -> Array:
        """Their weights, shape (n_members,), which sum to 1."""
        return np.asarray(self.log_weights.detach().cpu().double().exp().numpy())

    @property
    def n_columns(self) -> int:
        """Number of columns of the rows; see `Reference.n_columns`."""
        return self.references[0].n_columns

    @property
    def layout(self) -> Layout | None:
        """Where the columns are in the points; None if rows are points."""
        return getattr(self.references[0], "layout", None)

    @property
    def looks_at_tiles(self) -> bool:
        """Whether one of the members does; see `Reference.looks_at_tiles`."""
        return any(reference.looks_at_tiles for reference in self.references)

    @property
    def n_intermediate(self) -> int:
        """Numbers that the widest member makes; see `Reference.n_intermediate`."""
        return max(reference.n_intermediate for reference in self.references)

    @property
    def n_fused(self) -> int:
        """The same with fused operations; see `Reference.n_fused`."""
        return max(reference.n_fused for reference in self.references)

    def points_of(self, rows: Tensor) -> Tensor:
        """Return the points of rows; see `Reference.points_of`."""
        return self.references[0].points_of(rows)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats; see `Reference.log_prob`."""
        return self._log_joint(x, torch.zeros_like(x), math.inf).logsumexp(1)

    def _log_joint(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return logarithms of weights times the members' densities of noisy rows, (B, K)."""
        if math.isinf(logsnr):
            found = [reference.log_prob(rows) for reference in self.references]
        else:
            found = [r.smoothed_log_prob(rows, eps, logsnr) for r in self.references]
        return torch.stack(found, dim=1) + self.log_weights

    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows; see `Reference.smoothed_log_prob`."""
        return self._log_joint(rows, eps, logsnr).logsumexp(1)

    def noise_moments(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """Return moments of the noise, given noisy rows; see `Reference.noise_moments`."""
        posterior = self._log_joint(rows, eps, logsnr).softmax(1).T[:, :, None]
        found = [r.noise_moments(rows, eps, logsnr) for r in self.references]
        means, squares = (torch.stack(parts) for parts in zip(*found, strict=True))
        return (posterior * means).sum(0), (posterior * squares).sum(0)

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`.

        A point may be taken as any row plus noise: the density of the noise is the same for all
        members.
        """
        noise = torch.stack([reference.denoise(z, logsnr) for reference in self.references])
        signal, scale = signal_scale(logsnr)[:, None], noise_scale(logsnr)[:, None]
        layout = self.layout
        rows = z / signal if layout is None else layout.nearest_rows(z / signal)
        eps = (z - signal * self.points_of(rows)) / scale
        posterior = z.new_empty(len(z), len(self.members))
        levels, of_level = logsnr.unique(return_inverse=True)
        for number, level in enumerate(levels.tolist()):
            here = of_level == number
            posterior[here] = self._log_joint(rows[here], eps[here], level).softmax(1)
        return (posterior.T[:, :, None] * noise).sum(0)

    def sample(self, n_samples: int, random_state: np.random.RandomState) -> Array:
        """Return random points; see `Reference.sample`."""
        weights = self.weights
        chosen = random_state.choice(len(weights), size=n_samples, p=weights / weights.sum())
        rows = np.empty((n_samples, self.n_columns))
        for number, reference in enumerate(self.references):
            here = np.flatnonzero(chosen == number)
            if len(here):
                rows[here] = reference.sample(len(here), random_state)
        return rows

    def marginal(self, columns: Sequence[int]) -> ReferenceMixture:
        """Return the mixture of the members' marginals; see `Reference.marginal`."""
        kept = self._checked_parts(columns)
        if len(kept) == self.n_columns:
            return self
        parts = [reference.marginal(kept) for reference in self.references]
        return self.of_log_weights(self._log_weights(), parts)

    def given(self, columns: Sequence[int], values: ArrayLike) -> ReferenceMixture:
        """Return the mixture of the members' conditionals; see `Reference.given`.

        Weights are multiplied by the members' densities of what is given.
        """
        known, _, numbers = self._checked_given(columns, values)
        if not known:
            return self
        row = torch.full((1, self.n_columns), torch.nan, dtype=torch.float64)
        row[0, known] = torch.from_numpy(numbers)
        log_weights = self._log_weights() + [
            float(r.observed_log_prob(row)) for r in self.references
        ]
        parts = [reference.given(known, numbers) for reference in self.references]
        return self.of_log_weights(log_weights, parts)

    def _log_weights(self) -> Array:
        """Return the logarithms of the weights."""
        return np.asarray(self.log_weights.detach().cpu().double().numpy())

    def _log_joint_of_parts(self, rows: Array) -> Array:
        """Return logarithms of weights times densities of the observed entries, (K, n_rows)."""
        scores = np.stack([log_likelihoods(reference, rows) for reference in self.references])
        return np.asarray(scores + self._log_weights()[:, None])

    def _log_prob_of_parts(self, rows: Array) -> Array:
        """Return the log-densities of the observed entries of rows."""
        return log_sum(self._log_joint_of_parts(rows))

    def _log_prob_given(self, rows: Array, given: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return log-densities of given entries of rows, and of the others given these."""
        of_members = [reference._log_prob_given(rows, given) for reference in self.references]
        of_given, of_others = (np.stack(parts) for parts in zip(*of_members, strict=True))
        return log_sum_given(of_given + self._log_weights()[:, None], of_others)

    def _completed(self, rows: Array, uniform: Array) -> Array:
        """Return rows with draws instead of missing entries."""
        log_joint = self._log_joint_of_parts(rows)
        chosen, left = chosen_with_rest(uniform[:, 0], log_joint)
        numbers = np.column_stack([left, uniform[:, 1:]])
        found = np.empty_like(rows)
        for number, reference in enumerate(self.references):
            here = np.flatnonzero(chosen == number)
            if len(here):
                parts = (torch.from_numpy(part[here]) for part in (rows, numbers))
                found[here] = reference.complete(*parts).numpy()
        return found

    def without_wide_components(self) -> ReferenceMixture:
        """Return the mixture of the members without them.

        See `Reference.without_wide_components`.
        """
        narrow = [reference.without_wide_components() for reference in self.references]
        if all(one is other for one, other in zip(narrow, self.references, strict=True)):
            return self
        return self.of_log_weights(self._log_weights(), narrow)

    def logsnr_range(self, resolution: float) -> tuple[float, float] | None:
        """Return the range that holds those of all members; see `Reference.logsnr_range`."""
        found = [reference.logsnr_range(resolution) for reference in self.references]
        known = [ends for ends in found if ends is not None]
        if not known:
            return None
        return min(low for low, _ in known), max(high for _, high in known)

    def config(self) -> dict[str, Any]:
        """Return what an empty mixture is made from; see `Reference.config`."""
        return {"references": self.references}

    @classmethod
    def from_config(cls, **config: Any) -> ReferenceMixture:
        """Return a mixture with an empty place for its weights; see `Reference.from_config`."""
        references = config["references"]
        made = cls(np.ones(len(references)), references)
        made.register_buffer("log_weights", None)
        return made

    def extra_repr(self) -> str:
        """Return what `repr` shows.

        Returns
        -------
        str
            The weights.
        """
        return "weights=[" + ", ".join(f"{weight:.3g}" for weight in self.weights) + "]"

    def _finish_loading(self) -> None:
        """Raise an error if parts are inconsistent, or numbers are out of range."""
        check_shapes(self, {"log_weights": "k"}, k=len(self.members))
        check_in_range(self.log_weights, -np.inf, 1e-6, "logarithms of weights")
        sizes = [(r.n_columns, r.n_features) for r in self.references]
        check_same(set(sizes), {sizes[0]}, "references of different columns")


def fitted_log_weights(scores: Array, share: Array) -> Array:
    """Return logarithms of the weights of the largest mean log-likelihood.

    Parameters
    ----------
    scores : ndarray of shape (n_members, n_rows)
        Log-likelihoods of the rows under the members.
    share : ndarray of shape (n_rows,)
        Positive weights of the rows, which sum to 1.

    Returns
    -------
    ndarray of shape (n_members,)
        Logarithms.
    """
    log_weights = np.full(len(scores), -math.log(len(scores)))
    log_share = np.log(share)
    before = -math.inf
    for _ in range(_MAX_STEPS):
        log_row = log_sum(scores + log_weights[:, None])
        now = float(share @ log_row)
        if now - before < _TOLERANCE:
            break
        before = now
        # Each weight is multiplied by how much more likely than the mixture its member is.
        log_weights = log_weights + log_sum_of_rows(scores - log_row + log_share)
    return np.asarray(log_weights)
