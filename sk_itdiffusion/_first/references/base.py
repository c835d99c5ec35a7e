"""The interface of the analytic references."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.references.parts import (
    checked_columns,
    checked_values,
    evaluated_at_places,
    other_columns,
    rows_by_pattern,
)

__all__ = ["Reference"]


class Reference(nn.Module, ABC):
    """A distribution with exact log-density and exact optimal denoiser.

    A reference plays three roles in the estimators: it preconditions the network, which then
    learns only what the reference lacks; it is the control variate of the likelihood integral;
    and it is an expert among which the estimator chooses at each log-SNR.

    A custom reference derives from `ContinuousReference` and defines its abstract methods; tensors
    are registered as buffers.  The other methods have defaults.  If rows have missing entries, or
    marginals or conditionals are needed, it has to define `marginal` and `given` too.

    A missing entry of a row is NaN.  Columns of rows have numbers: continuous ones come first.

    Attributes
    ----------
    n_features : int
        Dimension d of the points.

    See Also
    --------
    ContinuousReference : Base class of the references on continuous columns.
    PlainReference : Base class of the references that know their columns one by one.
    GaussianReference : Normal distribution.
    GaussianMixtureReference : Mixture of normal distributions.
    KernelDensityReference : Normal kernels around points.

    Examples
    --------
    >>> import torch
    >>> from sk_itdiffusion.references import GaussianReference, Reference
    >>> reference = GaussianReference([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    >>> isinstance(reference, Reference)
    True
    >>> z = torch.ones(1, 2, dtype=torch.float64)
    >>> reference.denoise(z, torch.zeros(1, dtype=torch.float64)).tolist()
    [[0.7071, 0.7071]]
    """

    n_features: int

    def __init__(self) -> None:
        super().__init__()

    # -- the distribution ----------------------------------------------------------------------

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of points.

        Parameters
        ----------
        x : Tensor of shape (B, d)
            Points; with discrete columns rows, whose entries there are codes of categories.

        Returns
        -------
        Tensor of shape (B,)
            Log-densities in nats; log-probabilities where all columns are discrete.
        """

    @abstractmethod
    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the noise that the optimal denoiser predicts.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, d)
            The conditional mean of the noise given ``z``.
        """

    @abstractmethod
    def sample(self, n_samples: int, random_state: np.random.RandomState) -> NDArray[np.float64]:
        """Return random points.

        Parameters
        ----------
        n_samples : int
            Number of points, at least 1.
        random_state : RandomState
            Source of the randomness.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Independent points; with discrete columns rows with codes.
        """

    @property
    def looks_at_tiles(self) -> bool:
        """Whether the noise predicted for a point may depend on the points alongside it in a batch.

        If so, all points of a tile, 32 of a batch, are of one row when rows are scored, so that no
        row's score depends on another.  False by default; a reference that evaluates others says
        what they say.
        """
        return False

    @property
    def shared_background(self) -> Reference | None:
        """Reference whose predictions `denoise_with_background` also returns; None by default."""
        return None

    def denoise_with_background(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the predicted noise, and what the shared background alone predicts.

        Where the background is an expert too, it is evaluated once for both.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        noise : Tensor of shape (B, d)
            What `denoise` returns.
        of_background : Tensor of shape (B, d) or None
            What `denoise` of `shared_background` returns; None if there is none.
        """
        background = self.shared_background
        of_background = None if background is None else background.denoise(z, logsnr)
        return self.denoise(z, logsnr), of_background

    # -- parts of rows -------------------------------------------------------------------------

    @property
    def n_columns(self) -> int:
        """Number of columns of the rows; by default that of the features."""
        return self.n_features

    def marginal(self, columns: Sequence[int]) -> Reference:
        """Return the distribution of some of the columns.

        Parameters
        ----------
        columns : sequence of int
            Increasing numbers of columns, at least one.

        Returns
        -------
        Reference
            Distribution of rows of these columns; the same object if they are all columns.

        Raises
        ------
        ValueError
            If these are no increasing numbers of columns.
        TypeError
            If the class does not define it, and not all columns are asked for.
        """
        if len(self._checked_parts(columns)) == self.n_columns:
            return self
        raise self._undefined("marginal", "the distribution of some of the columns")

    def given(self, columns: Sequence[int], values: ArrayLike) -> Reference:
        """Return the distribution of the other columns, given the values of some.

        Parameters
        ----------
        columns : sequence of int
            Increasing numbers of columns, not all of them.
        values : array-like of shape (n_given,)
            One value for each of them; a code for a discrete column.

        Returns
        -------
        Reference
            Distribution of rows of the other columns, in their order; the same object if none is
            given.

        Raises
        ------
        ValueError
            If these are no increasing numbers of columns, or no other column is left, or values are
            not finite, or no codes of categories.
        TypeError
            If the class does not define it, and a column is given.
        """
        if not self._checked_given(columns, values)[0]:
            return self
        raise self._undefined("given", "the distribution of columns, given others")

    def given_each(self, columns: Sequence[int], values: NDArray[np.float64]) -> nn.Module:
        """Return the optimal denoiser of the other columns, given values of some for each point.

        By default it asks the distributions that `given` returns, one after the other.

        Parameters
        ----------
        columns : sequence of int
            Increasing numbers of columns, not all of them.
        values : ndarray of shape (B, n_given)
            Values of these columns that belong to each of the points.

        Returns
        -------
        Module
            Maps noisy observations of the other columns of B points, and their log-SNRs, to the
            predicted noise, as `denoise` does.

        Raises
        ------
        ValueError
            If these are no increasing numbers of columns, or no other column is left.
        TypeError
            If the class does not define `given`, and a column is given.
        """
        distinct, place = np.unique(values, axis=0, return_inverse=True)
        return OneByOne([self.given(columns, each) for each in distinct], place.ravel())

    def observed_log_prob(self, rows: Tensor) -> Tensor:
        """Return the log-density of the observed entries of rows.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; NaN for what is missing.

        Returns
        -------
        Tensor of shape (B,)
            Log-densities in nats, 0 for a row without any entry.  That of a complete row is what
            `log_prob` returns for it at its place in the batch; that of any other row does not
            depend on the other rows to the last bit.

        Raises
        ------
        TypeError
            If a part of a row is observed, and the class does not define `marginal`.
        """
        missing = rows.isnan()
        is_incomplete = missing.any(1)
        if not bool(is_incomplete.any()):
            return self.log_prob(rows)
        found = rows.new_zeros(len(rows))
        if not bool(is_incomplete.all()):
            # At their places in the batch.
            complete = self.log_prob(rows.masked_fill(is_incomplete[:, None], 0.0))
            found = torch.where(is_incomplete, found, complete)
        is_part = is_incomplete & ~missing.all(1)
        if bool(is_part.any()):
            parts = rows[is_part].detach().cpu().numpy().astype(np.float64)
            found[is_part] = torch.from_numpy(self._log_prob_of_parts(parts)).to(found)
        return found

    def conditional_log_prob(self, rows: Tensor, given: Tensor) -> Tensor:
        """Return the log-density of the observed entries of rows that are not given, given others.

        It is that of `given`, and no difference of log-densities, which would lose digits where
        what is given is far out.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; NaN for what is missing.
        given : Tensor of shape (B, n_columns), bool
            Observed entries that are given.

        Returns
        -------
        Tensor of shape (B,)
            Log-densities in nats, 0 where nothing is observed but what is given.  That of a row
            does not depend on the other rows to the last bit.

        Raises
        ------
        ValueError
            If an entry that is given is missing.
        TypeError
            If the class does not define `marginal` and `given`.
        """
        if bool((given & rows.isnan()).any()):
            raise ValueError("rows must have numbers where entries are given.")
        parts, known = rows.detach().cpu().numpy().astype(np.float64), given.cpu().numpy()
        return torch.from_numpy(self._log_prob_given(parts, known)[1]).to(rows)

    def complete(self, rows: Tensor, uniform: Tensor) -> Tensor:
        """Return rows whose missing entries are drawn, given the observed entries of each.

        What is drawn for a row depends on it and on its numbers alone.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; NaN for what is missing.
        uniform : Tensor of shape (B, n_columns + 2)
            Independent numbers in (0, 1): one that chooses a member of a mixture of references, one
            that chooses a component, and one for each column.

        Returns
        -------
        Tensor of shape (B, n_columns)
            Rows without missing entries; observed ones are as they were.

        Raises
        ------
        ValueError
            If the numbers are of another shape or not in (0, 1).
        TypeError
            If a part of a row is observed, and the class does not define `given`.
        """
        if uniform.shape != (len(rows), self.n_columns + 2):
            raise ValueError(
                f"uniform must have shape {(len(rows), self.n_columns + 2)}, got "
                f"{tuple(uniform.shape)}."
            )
        if not bool(((uniform > 0.0) & (uniform < 1.0)).all()):
            raise ValueError("uniform must be above 0 and below 1.")
        is_incomplete = rows.isnan().any(1)
        found = rows.clone()
        if bool(is_incomplete.any()):
            parts, numbers = (
                part[is_incomplete].detach().cpu().numpy().astype(np.float64)
                for part in (rows, uniform)
            )
            found[is_incomplete] = torch.from_numpy(self._completed(parts, numbers)).to(found)
        return found

    def _log_prob_of_parts(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-densities of rows of which a part is observed, by their marginals."""
        patterns, place = rows_by_pattern(np.isnan(rows))
        found = np.empty(len(rows))
        for number, pattern in enumerate(patterns):
            here = np.flatnonzero(place == number)
            marginal = self.marginal(np.flatnonzero(~pattern).tolist())
            found[here] = evaluated_at_places(marginal.log_prob, rows[here][:, ~pattern])
        return found

    def _log_prob_given(
        self, rows: NDArray[np.float64], given: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log-densities of given entries of rows, and of the others given these.

        By default rows are conditioned one after the other.
        """
        of_given, of_others = np.zeros((2, len(rows)))
        for number, (row, mask) in enumerate(zip(rows, given, strict=True)):
            known = torch.from_numpy(np.where(mask, row, np.nan))[None]
            of_given[number] = float(self.observed_log_prob(known))
            if not np.isnan(row[~mask]).all():
                conditional = self.given(np.flatnonzero(mask).tolist(), row[mask])
                others = torch.from_numpy(row[~mask])[None]
                of_others[number] = float(conditional.observed_log_prob(others))
        return of_given, of_others

    def _completed(
        self, rows: NDArray[np.float64], uniform: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return rows, all with missing entries, completed; one after the other by default."""
        found = rows.copy()
        for row, numbers in zip(found, uniform, strict=True):
            missing = np.isnan(row)
            if missing.all():
                bits = np.ascontiguousarray(numbers).view(np.uint32)
                row[:] = self.sample(1, np.random.RandomState(bits))[0]
                continue
            conditional = self.given(np.flatnonzero(~missing).tolist(), row[~missing])
            kept = torch.from_numpy(numbers[np.concatenate([[True, True], missing])])
            empty = torch.full((1, int(missing.sum())), torch.nan, dtype=torch.float64)
            row[missing] = conditional.complete(empty, kept[None])[0].numpy()
        return found

    def _checked_parts(self, columns: Sequence[int]) -> list[int]:
        """Return the numbers of the columns of a marginal distribution."""
        found = checked_columns(columns, self.n_columns)
        if not found:
            raise ValueError("columns must have at least one column.")
        return found

    def _checked_given(
        self, columns: Sequence[int], values: ArrayLike
    ) -> tuple[list[int], list[int], NDArray[np.float64]]:
        """Return the numbers of columns that are given, those of the others, and the values."""
        found = checked_columns(columns, self.n_columns)
        return found, other_columns(found, self.n_columns), checked_values(values, found)

    def _undefined(self, method: str, what: str) -> TypeError:
        """Return the error that a class does not know something of parts of rows."""
        name = type(self).__name__
        return TypeError(
            f"Marginals and conditionals are not available for a {name}: define {name}.{method}, "
            "which "
            f"returns {what}."
        )

    # -- rows plus noise -----------------------------------------------------------------------

    @abstractmethod
    def smoothed_log_prob(self, rows: Tensor, eps: Tensor, logsnr: float) -> Tensor:
        """Return the log-density of noisy rows under the distribution with as much noise.

        With a variance of ``exp(-logsnr)`` the noisy rows are ``rows + exp(-logsnr / 2) * eps``,
        and their density is that of points of the distribution plus independent normal noise.

        Parameters
        ----------
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
        """

    def noise_moments(self, rows: Tensor, eps: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        r"""Return the mean of the noise and that of its square, given rows plus noise.

        They tell how `smoothed_log_prob` changes with the log-SNR a for fixed noise,
        :math:`\frac12 \sum_j (1 + \epsilon_j E[\epsilon_j \mid z] - E[\epsilon_j^2 \mid z])` for
        continuous columns.  By default they come from `denoise` and its derivatives,
        :math:`\mathrm{Var}(\epsilon_j \mid z) = 1 - \sqrt{\sigma(-a)}\,
        \partial \hat\epsilon_j / \partial z_j`, which torch has to be able to calculate.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; codes in discrete columns.
        eps : Tensor of shape (B, d)
            Noise of the points of the rows.
        logsnr : float
            Finite log-SNR of the noise.

        Returns
        -------
        mean, square : Tensor of shape (B, d)
            The two moments of each coordinate.
        """
        level = torch.full((len(rows),), logsnr, dtype=rows.dtype, device=rows.device)
        noise = noise_scale(level)[:, None]
        with torch.enable_grad():
            z = signal_scale(level)[:, None] * self.points_of(rows) + noise * eps
            z = z.detach().requires_grad_(True)
            mean = self.denoise(z, level)
            # Rows do not depend on each other: the gradient of a sum has the derivatives of all.
            slopes = [
                torch.autograd.grad(column.sum(), z, retain_graph=True)[0][:, j]
                for j, column in enumerate(mean.unbind(1))
            ]
        mean = mean.detach()
        return mean, mean.square() + 1.0 - noise * torch.stack(slopes, dim=1)

    def points_of(self, rows: Tensor) -> Tensor:
        """Return the points of rows, which are the rows where all columns are continuous.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows; codes in discrete columns.

        Returns
        -------
        Tensor of shape (B, d)
            The points, to which noise is added.
        """
        return rows

    def modes(self, rows: Tensor, variance: float) -> NDArray[np.intp] | None:
        """Return the mode that each row belongs to.

        Parameters
        ----------
        rows : Tensor of shape (B, n_columns)
            Rows.
        variance : float
            Variance of normal noise by which the density is smoothed, at least 0.

        Returns
        -------
        ndarray of shape (B,) or None
            Numbers of the modes; None, the default, if the distribution is taken as one mode.
        """
        return None

    def without_wide_components(self) -> Reference:
        """Return the distribution without components for rows unlike all training rows.

        A density needs such components, so that no row is impossible; a score of how unlike a row
        is from the training rows does not.

        Returns
        -------
        Reference
            The other components, with weights that sum to 1; the same object if it has no such
            components.
        """
        return self

    # -- sizes ---------------------------------------------------------------------------------

    def logsnr_range(self, resolution: float) -> tuple[float, float] | None:
        """Return the range of the log-SNR in which a model can differ from continuous columns.

        Parameters
        ----------
        resolution : float
            Largest lattice step of a column, in standard deviations; 0 if there is none.

        Returns
        -------
        tuple of (float, float) or None
            The two ends, which are in reverse order where the columns are coarser than all that the
            distribution knows; None, the default, if there is no continuous column.
        """
        return None

    @property
    def n_intermediate(self) -> int:
        """Numbers that the widest step of one evaluation makes, which sets the size of batches."""
        return self.n_features

    @property
    def n_fused(self) -> int:
        """The same where a CPU's fused operations hold fewer numbers at a time."""
        return self.n_intermediate

    # -- files ---------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return what an empty reference is made from: all that a file holds but the buffers.

        By default these are the names of the buffers as ``"buffers"``, and by their names the
        submodules and all other attributes, which have to be numbers, strings, None, or tuples or
        lists of such.

        Returns
        -------
        dict of str to object
            Arguments of `from_config`.

        Raises
        ------
        TypeError
            If there are other attributes, or parameters; a class that has such defines `config`
            and `from_config`.
        """
        attributes = {name: v for name, v in vars(self).items() if name not in _OF_ALL_MODULES}
        held = dict(self._modules) | attributes
        for name, value in attributes.items():
            items = value if isinstance(value, tuple | list) else [value]
            if not all(item is None or isinstance(item, Real | str) for item in items):
                raise TypeError(
                    f"{type(self).__name__}.{name} is not a number or string: register tensors "
                    "as buffers, or define config and from_config."
                )
        if self._parameters:
            raise TypeError(
                f"{type(self).__name__} has parameters: register them as buffers, or define config "
                "and from_config."
            )
        return {**held, "buffers": list(self._buffers)}

    @classmethod
    def from_config(cls, **config: Any) -> Self:
        """Return a reference with empty places for its buffers.

        It is made without the constructor, which may not give back the same bits.

        Parameters
        ----------
        **config : dict
            What `config` returns.

        Returns
        -------
        Reference
            The reference, whose buffers are None.

        Raises
        ------
        ValueError
            If a name is that of a method.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        for name, value in config.items():
            if name == "buffers":
                continue
            known = inspect.getattr_static(cls, name, None)
            if name in _OF_ALL_MODULES or callable(known) or hasattr(known, "__get__"):
                raise ValueError(f"{name!r} is no attribute of a {cls.__name__}")
            setattr(made, name, value)
        for name in config["buffers"]:
            made.register_buffer(name, None)
        return made

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; a reference is a denoiser like any other.

        Parameters
        ----------
        z : Tensor of shape (B, d)
            Noisy observations.
        logsnr : Tensor of shape (B,)
            Their log signal-to-noise ratios.

        Returns
        -------
        Tensor of shape (B, d)
            What `denoise` returns.
        """
        return self.denoise(z, logsnr)


class OneByOne(nn.Module):
    """Denoiser of points that have references of their own.

    Parameters
    ----------
    references : sequence of Reference
        The references.
    place : ndarray of shape (B,), int
        Numbers of those that the points have.
    """

    def __init__(self, references: Sequence[Reference], place: NDArray[np.intp]) -> None:
        super().__init__()
        self.members = nn.ModuleList(references)
        self.place = place

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`."""
        noise = torch.empty_like(z)
        for number, reference in enumerate(self.members):
            here = torch.from_numpy(np.flatnonzero(self.place == number)).to(z.device)
            noise[here] = reference(z[here], logsnr[here])
        return noise

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Return the predicted noise; see `Reference.denoise`."""
        return self.denoise(z, logsnr)


#: Attributes that modules have whatever their class.
_OF_ALL_MODULES = frozenset(vars(nn.Module()))
