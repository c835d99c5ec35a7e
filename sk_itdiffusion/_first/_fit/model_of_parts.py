"""What a model knows about parts of rows: closed forms of a mixture of its references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sk_itdiffusion._first._fit.experts import Experts
from sk_itdiffusion._first._fit.pattern_gains import PatternGain
from sk_itdiffusion._first._fit.patterns import PatternStack, conditional_log_density
from sk_itdiffusion._first._immse.cubature import (
    Keys,
    hash_uniform,
    keys_apart,
    row_keys,
    spawn_keys,
)
from sk_itdiffusion._first._immse.errors import Tolerance
from sk_itdiffusion._first._runtime.progress import stretch_of_progress
from sk_itdiffusion._first.denoisers.role_levels import RoleLevelDenoiser
from sk_itdiffusion._first.denoisers.roles import RoleDenoiser
from sk_itdiffusion._first.references import ReferenceMixture
from sk_itdiffusion._first.references.judging import conditional_log_likelihoods

__all__ = ["FARTHEST", "MIN_LOG_DENSITY", "ModelOfParts", "n_dequantizations"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Log-density of the reference below which a network adds nothing that float64 resolves.
MIN_LOG_DENSITY = -1e12
#: Numbers in the rows that are scored at a time; the rest waits in the form that the user gave.
NUMBERS_IN_A_PASS = 2**22
#: Draws of a dequantised row's noise that the reference's log-density is averaged over with the
#: usual tolerance or a larger one, and the most.
DEQUANTIZATIONS, MAX_DEQUANTIZATIONS = 16, 4096
#: Size of mapped values from which squared distances may overflow.
FARTHEST = 1e100


def n_dequantizations(tolerance: Tolerance) -> int:
    """Return over how many draws of noise the reference's log-density is averaged.

    The variance falls with the square of the tolerance, as that of the integral does.
    """
    return tolerance.draws_for(DEQUANTIZATIONS, DEQUANTIZATIONS, MAX_DEQUANTIZATIONS)


@dataclass(frozen=True, kw_only=True)
class ModelOfParts(Experts):
    """Experts, and a mixture of the references among them that answers for parts of rows.

    Besides the attributes of `Experts` it has the following.

    Attributes
    ----------
    parts : ReferenceMixture or None
        Mixture of the references that is used for marginal and conditional densities; None if no
        column varies, or there are no such answers.
    has_missing : bool
        Whether rows of the fit lacked entries, so that there is no stack for complete rows alone.
    patterns : PatternStack or None
        How networks with roles answer for parts of rows; None if only the mixture does.
    pattern_gains : sequence of PatternGain
        What networks with roles gain on the mixture, by class of patterns; none without such.
    """

    parts: ReferenceMixture | None = None
    has_missing: bool = False
    patterns: PatternStack | None = None
    pattern_gains: Sequence[PatternGain] = ()

    @property
    def networks_have_roles(self) -> bool:
        """Whether all networks, if there are any, were trained to answer for parts of rows."""
        networks = [net.module_.averaged for net in self.nets.values()]
        return all(isinstance(each, RoleDenoiser | RoleLevelDenoiser) for each in networks)

    @property
    def drivers_of_missingness(self) -> NDArray[np.intp]:
        """Columns of the table given which networks answer for parts of rows."""
        if self.patterns is None:
            return np.empty(0, dtype=np.intp)
        return self.space.in_rows[self.patterns.drivers]

    def answers_by_parts(self, values: Array) -> NDArray[np.bool_]:
        """Return which rows are scored by the mixture of references, since entries are missing."""
        if self.has_missing:
            return np.ones(len(values), dtype=bool)
        return np.asarray(np.isnan(values).any(axis=1))

    def log_density_of_parts(
        self, values: Array, tolerance: Tolerance, given: NDArray[np.bool_]
    ) -> tuple[Array, Array]:
        """Return log-densities of the observed entries of some columns, given those of others.

        Parameters
        ----------
        values : ndarray of shape (n, n_columns)
            Numbers and codes; NaN where they are missing.
        tolerance : Tolerance
            Standard error that each row should have.
        given : ndarray of shape (n_columns,), bool
            Columns that are given.

        Returns
        -------
        log_density, variance : ndarray of shape (n,)
            Log-densities in nats, in the units of the data, and the variances of their errors.
            They are 0 where nothing is observed but what is given.  Of given entries so far out
            that their squares overflow it is the limit.
        """
        total, variance = np.empty(len(values)), np.empty(len(values))
        n_rows = max(1, NUMBERS_IN_A_PASS // max(1, values.shape[1]))
        for start in range(0, len(values), n_rows):
            stop = min(start + n_rows, len(values))
            part = slice(start, stop)
            with stretch_of_progress(start / len(values), stop / len(values)):
                found = self._log_density_of_parts(values[part], tolerance, given)
            total[part], variance[part] = found
        return total, variance

    def _log_density_of_parts(
        self, values: Array, tolerance: Tolerance, given: NDArray[np.bool_] | None = None
    ) -> tuple[Array, Array]:
        """Return what `log_density_of_parts` does, of rows that are held several times."""
        # Equal rows have equal noise and are done once.
        _, first, group = np.unique(row_keys(values), return_index=True, return_inverse=True)
        if len(first) < len(values):
            found = self._log_density_of_parts(values[first], tolerance, given)
            total, variance = (each[group] for each in found)
            return total, variance
        if given is None:
            given = np.zeros(values.shape[1], dtype=bool)
        targets = ~np.isnan(values) & ~given
        # Values that are no categories, or beyond bounds, say nothing of other entries.
        known, ratios = self.space.known(values), self._log_ratios(values)
        total = self.terms_of_parts(targets.astype(np.float64))
        total += np.where(targets, ratios, 0.0).sum(axis=1)
        variance = np.zeros(len(values))
        if not self.space.is_empty:
            usual, variance = self._log_density_of_targets(known, targets, tolerance)
            total += usual
            gain, of_networks = self._gain_of_networks(known, targets, given, tolerance)
            total, variance = total + gain, variance + of_networks
        empty = ~targets.any(axis=1)
        total[empty], variance[empty] = 0.0, 0.0
        return total, variance

    def _gain_of_networks(
        self, values: Array, targets: Mask, given: Mask, tolerance: Tolerance
    ) -> tuple[Array, Array]:
        """Return what networks with roles add to log-densities of parts, and their variances.

        It is 0 where they have no say, and of rows that the references rule out.
        """
        gain, variance = np.zeros(len(values)), np.zeros(len(values))
        if self.patterns is None:
            return gain, variance
        assert self.parts is not None
        columns = self.space.in_rows
        rows, _ = self._rows(values, given)
        is_seen = np.isfinite(rows)
        target, known = self.patterns.with_drivers_given(
            targets[:, columns] & is_seen, given[columns] & is_seen
        )
        is_lost = (~is_seen & ~np.isnan(values[:, columns])).any(axis=1)
        has_say = self.patterns.has_say(target, known) & ~is_lost
        usual = np.full(len(values), -np.inf)
        if has_say.any():
            asked = rows[has_say], target[has_say], known[has_say]
            with np.errstate(over="ignore", invalid="ignore"):
                usual[has_say] = conditional_log_density(self.parts, *asked)
        near = usual > MIN_LOG_DENSITY
        if near.any():
            found, variance[near] = self.patterns.log_densities(
                self, rows[near], target[near], known[near], tolerance
            )
            gain[near] = found - usual[near]
        return gain, variance

    def _log_ratios(self, values: Array) -> Array:
        """Return by how much entries are less likely than usual, without any model, (n, n_columns).

        They are values that no row of the fit has; NaN where entries are missing.
        """
        ratios = np.zeros(values.shape)
        ratios[:, self.space.constant] = self.constant_log_ratios(values)
        ratios[:, self.space.open] += self.space.unseen_log_odds(values)
        return ratios

    def _log_density_of_targets(
        self, values: Array, targets: Mask, tolerance: Tolerance
    ) -> tuple[Array, Array]:
        """Return the references' log-densities of targets given all else that is observed.

        They are means over the noise of lattice targets, with their variances.
        """
        if self.dequantizer is None:
            return self._usual_log_density(values, targets), np.zeros(len(values))
        with np.errstate(over="ignore"):
            keys = row_keys(self.space.standardized(values), self.seeds.scoring)
        draws = [
            self._usual_log_density(values + np.where(targets, offsets, 0.0), targets)
            for offsets in self.reference_offsets(keys, tolerance)
        ]
        logs = np.column_stack(draws)
        variance = np.zeros(len(values))
        finite = np.isfinite(logs).all(axis=1)
        variance[finite] = logs[finite].var(axis=1, ddof=1) / len(draws)
        return logs.mean(axis=1), variance

    def _usual_log_density(self, values: Array, targets: Mask) -> Array:
        """Return the references' log-densities of targets given all else that is observed.

        They are of columns that vary, in their units; those of lattices are densities of noisy
        values.
        """
        assert self.parts is not None
        columns = self.space.in_rows
        given = ~targets[:, columns] & ~np.isnan(values[:, columns])
        rows, log_slope = self._rows(values, ~targets)
        # Targets so far out that a square overflows have the log-density minus infinity.
        is_number = np.isfinite(rows) | np.isnan(values[:, columns])
        finite = is_number.all(axis=1) & np.isfinite(log_slope)
        log_density = np.full(len(rows), -np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            found = conditional_log_likelihoods(self.parts, rows[finite], given[finite])
            found += log_slope[finite]
        log_density[finite] = np.where(np.isnan(found), -np.inf, found)
        return log_density

    def _rows(self, values: Array, given: Mask) -> tuple[Array, Array]:
        """Return a model's rows, and log-derivatives of the maps of what is not given.

        Given entries so far out that squares overflow are moved to where they do not: what they
        tell of the others is the limit.
        """
        columns = self.space.in_rows
        with np.errstate(over="ignore", invalid="ignore"):
            standardized = self.space.standardized(values)
            is_given = np.broadcast_to(given, values.shape)[:, columns] & ~np.isnan(standardized)
            rows, log_slope = self.space.rows(np.where(is_given, np.nan, standardized))
            if is_given.any():
                known, _ = self.space.rows(np.where(is_given, standardized, np.nan))
                # Maps increase, and what they make of an infinite number may be none.
                known = np.where(np.isnan(known), standardized, known)
                rows = np.where(is_given, known.clip(-FARTHEST, FARTHEST), rows)
        return rows, log_slope

    def complete(
        self,
        values: Array,
        n_draws: int,
        seed: int,
        equal_rows_differ: bool = True,
        first: int = 0,
    ) -> Array:
        """Return rows whose missing entries are drawn, given the observed ones.

        Parameters
        ----------
        values : ndarray of shape (n, n_columns)
            Numbers and codes; NaN where they are missing.
        n_draws : int
            How often each row is completed.
        seed : int
            Seed of the draws, which follow from it and the rows' content.
        equal_rows_differ : bool, default=True
            Whether rows that are equal have different draws.  If not a row's draws do not depend on
            the other rows.
        first : int, default=0
            Number of the first draw: draws of the same number, whichever the first, are the same.

        Returns
        -------
        ndarray of shape (n_draws, n, n_columns)
            The rows, with the observed entries as they are.  Values of continuous columns are
            between their bounds, and those of dequantised ones on their lattices.  Observed
            entries beyond the bounds of their columns, like unseen categories, say nothing about
            the other ones; those so far out that their squares overflow say what they say in the
            limit.
        """
        known = self.space.known(values)
        missing = np.isnan(values)
        if self.space.is_empty:
            return np.tile(np.where(missing, self.space.constant_values, values), (n_draws, 1, 1))
        assert self.parts is not None
        rows, _ = self._rows(known, ~missing)
        with np.errstate(over="ignore"):
            keys = row_keys(self.space.standardized(known), seed)
        if equal_rows_differ:
            keys = keys_apart(keys)
        keys = spawn_keys(keys, n_draws, first).T.ravel()
        completed = np.empty((len(keys), values.shape[1]))
        n_rows = max(1, NUMBERS_IN_A_PASS // max(1, values.shape[1]))
        for start in range(0, len(keys), n_rows):
            part = slice(start, start + n_rows)
            row = np.arange(len(keys))[part] % len(values)
            drawn = self._completed(rows[row], keys[part])
            completed[part] = np.where(missing[row], drawn, values[row])
        completed = completed.reshape(n_draws, *values.shape)
        if self.patterns is not None:
            self._draw_by_networks(completed, rows, missing, keys.reshape(n_draws, -1))
        return completed

    def _draw_by_networks(self, completed: Array, rows: Array, missing: Mask, keys: Keys) -> None:
        """Replace draws of entries, in place, where networks with roles have a say.

        Columns on which missingness depends, where they are missing, keep their draws, and are
        given: networks tell of the others.

        Parameters
        ----------
        completed : ndarray of shape (n_draws, n, n_columns)
            Rows that were completed by draws from the mixture of references.
        rows : ndarray of shape (n, n_columns_of_rows)
            The rows, in the space of the references; NaN where entries are not known.
        missing : ndarray of shape (n, n_columns), bool
            Entries to draw.
        keys : ndarray of shape (n_draws, n), uint64
            Keys of the draws.
        """
        patterns, columns = self.patterns, self.space.in_rows
        assert patterns is not None
        target, given = patterns.with_drivers_given(missing[:, columns], ~np.isnan(rows))
        chosen = np.flatnonzero(patterns.has_say(target, given))
        if not len(chosen):
            return
        target, given = target[chosen], given[chosen]
        values = np.tile(np.where(given, rows[chosen], 0.0), (len(keys), 1, 1))
        was_drawn = given & np.isnan(rows[chosen])
        lacking = np.flatnonzero(was_drawn.any(axis=1))
        for own, table in zip(values, completed, strict=True):
            known, _ = self._rows(table[chosen[lacking]], np.ones(table.shape[1], dtype=bool))
            own[lacking] = np.where(was_drawn[lacking], known, own[lacking])
        found = patterns.drawn(self, values, target, given, keys[:, chosen])
        table = self.on_lattice(self.space.values(found.reshape(-1, found.shape[2])))
        entries = np.zeros((len(chosen), missing.shape[1]), dtype=bool)
        entries[:, columns] = target
        kept = completed[:, chosen]
        completed[:, chosen] = np.where(entries, table.reshape(kept.shape), kept)

    @torch.no_grad()
    def _completed(self, rows: Array, keys: Keys) -> Array:
        """Return the table's values of rows whose missing entries are drawn with the noise of keys.

        The shape is (n, n_columns).
        """
        assert self.parts is not None
        uniform = hash_uniform(spawn_keys(keys, rows.shape[1] + 2), 11)
        drawn = self.parts.complete(torch.from_numpy(rows), torch.from_numpy(uniform))
        return self.on_lattice(self.space.values(drawn.numpy()))

    def reference_offsets(self, keys: Keys, tolerance: Tolerance) -> list[Array]:
        """Return the noise over which the reference's log-density is averaged, for each draw."""
        assert self.dequantizer is not None
        drawn = spawn_keys(keys, n_dequantizations(tolerance), first=2**20)
        return [self.dequantizer.offsets(column) for column in drawn.T]
