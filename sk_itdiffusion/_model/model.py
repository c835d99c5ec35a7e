"""The fitted model: columns, experts, their stack, and the rule that scores integrate with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_itdiffusion._immse.channel import as_tensor
from sk_itdiffusion._immse.integral import Calibration, Rule, Tolerance
from sk_itdiffusion._immse.noise import row_keys
from sk_itdiffusion._immse.roles import Roles
from sk_itdiffusion._model.stack import Denoiser, Stack
from sk_itdiffusion._table.columns import Columns
from sk_itdiffusion.references.base import Reference

__all__ = ["Model", "Part"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Draws of rows for questions whose errors were not calibrated, at the usual tolerance.
DRAWS_OF_PARTS = 64


@dataclass(frozen=True)
class Part:
    """How one kind of question is answered: by which experts, and with which rule.

    Attributes
    ----------
    stack : Stack
        Weights of the experts.
    rule : Rule or None
        Where the integral is evaluated; None if the control variate is all there is.
    errors : Calibration or None
        How exact it is.
    """

    stack: Stack
    rule: Rule | None = None
    errors: Calibration | None = None


@dataclass(frozen=True)
class Model:
    """A fitted density of tables.

    Attributes
    ----------
    columns : Columns
        Table to points and back.
    references : mapping of str to Reference
        Experts with known log-densities.
    networks : mapping of str to callable
        Other experts.
    joint, parts : Part
        How complete rows, and parts of rows, are answered.
    seed : int
        Seed of the noise in scoring.
    """

    columns: Columns
    references: Mapping[str, Reference]
    networks: Mapping[str, torch.nn.Module]
    joint: Part
    parts: Part
    seed: int

    @property
    def experts(self) -> dict[str, Denoiser]:
        """All denoisers by name."""
        known: dict[str, Denoiser] = {name: each.denoise for name, each in self.references.items()}
        return known | dict(self.networks)

    def part_of(self, roles: Roles) -> Part:
        """Return how a question is answered."""
        return self.joint if roles.is_joint else self.parts

    def log_prob(self, X: Array, given: Mask, tol: Tolerance) -> tuple[Array, Array]:
        """Return log p(x_T | x_G) of rows, and standard errors of the integration.

        Parameters
        ----------
        X : ndarray of shape (n, n_columns)
            Rows; NaN is missing.
        given : ndarray of bool, shape (n_columns,)
            Given columns.
        tol : Tolerance
            Standard error that is asked for.

        Returns
        -------
        log_prob, std : ndarray of shape (n,)
            In nats, in the units of the table.
        """
        points, log_slope = self.columns.points(X)
        roles = Roles.of_rows(X, given)
        target = np.broadcast_to(roles.target, X.shape)
        log_prob = self.columns.log_prob_beyond(X, target)
        log_prob += (log_slope * target[:, self.columns.varies]).sum(axis=1)
        std = np.zeros(len(X))
        if not self.columns.n_points:
            return log_prob, std
        keys = row_keys(X, self.seed)
        for common, index in self.columns.roles(roles).patterns():
            if common.target.any():
                found, error = self._of_points(points[index], keys[index], common, tol)
                log_prob[index] += found
                std[index] = error
        return log_prob, std

    def _of_points(
        self, points: Array, keys: NDArray[np.uint64], roles: Roles, tol: Tolerance
    ) -> tuple[Array, Array]:
        """Return log-densities of points with common roles, and their standard errors."""
        part = self.part_of(roles)
        control = self.references[part.stack.control]
        log_prob = control.log_prob(as_tensor(np.nan_to_num(points)), roles).numpy()
        if part.rule is None or part.stack.is_exact:
            return log_prob, np.zeros(len(points))
        total, variance = log_prob.copy(), np.zeros(len(points))
        pair = part.stack.pair(self.experts)
        for n_draws, rows in self._rungs(part, log_prob, tol):
            gap, spread = part.rule.integrate(points[rows], keys[rows], pair, roles, n_draws)
            total[rows] += gap
            if part.errors is None:
                variance[rows] = spread
            else:
                variance[rows] = part.errors.estimated(log_prob[rows], spread, n_draws)
        return total, np.sqrt(variance)

    def _rungs(
        self, part: Part, log_prob: Array, tol: Tolerance
    ) -> Iterable[tuple[int, NDArray[np.intp]]]:
        """Return numbers of draws and the rows that need as many."""
        if part.errors is not None:
            return part.errors.rungs(log_prob, tol)
        usual = DRAWS_OF_PARTS * (0.1 / tol.nats) ** 2
        n_draws = int(2 ** np.clip(np.round(np.log2(usual)), 3, 11))
        return [(n_draws, np.arange(len(log_prob)))]

    def sample(self, X: Array, given: Mask, rng: np.random.Generator) -> Array:
        """Return rows in which targets are drawn given the given columns.

        Parameters
        ----------
        X : ndarray of shape (n, n_columns)
            Rows; all columns but the given ones are drawn.
        given : ndarray of bool, shape (n_columns,)
            Given columns; missing entries in them are drawn too.
        rng : Generator
            Source of the draws.

        Returns
        -------
        ndarray of shape (n, n_columns)
            Rows.
        """
        known = given & ~np.isnan(X)
        points, _ = self.columns.points(np.where(known, X, np.nan))
        roles = self.columns.roles(Roles(~known, known))
        part = self.part_of(roles)
        control = self.references[part.stack.control]
        drawn = control.sample(as_tensor(np.nan_to_num(points)), roles, rng)
        return np.where(known, X, self.columns.table(drawn.numpy()))

    def denoise(self, z: Tensor, logsnr: Tensor, roles: Roles) -> Tensor:
        """Return E[eps | z] of the targets at log-SNRs (B,)."""
        baseline, correction = self.part_of(roles).stack.pair(self.experts)(z, logsnr, roles)
        return baseline + correction
