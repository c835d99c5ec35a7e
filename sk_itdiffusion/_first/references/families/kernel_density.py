"""Kernels around training rows as experts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sk_itdiffusion._first._table.rows import MIN_TRAINING_ROWS, WeightedRows
from sk_itdiffusion._first.references.base import Reference
from sk_itdiffusion._first.references.families.base import (
    Demand,
    FamilyContext,
    ReferenceFamily,
)
from sk_itdiffusion._first.references.gaussian import GaussianReference
from sk_itdiffusion._first.references.judging import first_rows, log_likelihoods, mean_and_error
from sk_itdiffusion._first.references.kernel_density import KernelDensityReference
from sk_itdiffusion._first.references.kernel_fit import fit_kernel_density
from sk_itdiffusion._first.references.mixture import GaussianMixtureReference, as_mixture

if TYPE_CHECKING:
    from sk_itdiffusion._first._fit.schema import Schema
    from sk_itdiffusion._first._fit.splitting import MappedSplit

__all__ = ["KernelDensityFamily", "fit_kernel_density_by_validation"]

_KERNELS_FOR_MAPS = 3_000
#: Kernels in a density of kernels, and columns beyond which they are too many.
_MAX_KERNELS = 10_000
_MAX_COLUMNS_FOR_KERNELS = 50
#: Variance of a kernel, in standardised units, that the highest log-SNR still resolves.
_MIN_KERNEL_VARIANCE = 1e-7


def complete_rows(rows: WeightedRows) -> WeightedRows | None:
    """Return the complete rows, around which alone kernels can be; None if too few."""
    is_complete = ~np.isnan(rows.X).any(axis=1)
    if is_complete.all():
        return rows
    kept = np.flatnonzero(is_complete)
    return rows.take(kept) if len(kept) >= MIN_TRAINING_ROWS else None


def _quick_kernels(rows: WeightedRows, plain: Reference, resolution: float) -> Reference | None:
    """Return kernels around a few of the training rows; None if too few are complete."""
    assert isinstance(plain, GaussianReference | GaussianMixtureReference)
    complete = complete_rows(rows.without_copies())
    if complete is None:
        return None
    rows = first_rows(complete, _KERNELS_FOR_MAPS)
    floor = np.clip(resolution**2 / 12.0, _MIN_KERNEL_VARIANCE, 1e-2)
    return fit_kernel_density(rows.X, rows.share, as_mixture(plain), floor)


def fit_kernel_density_by_validation(
    train: WeightedRows,
    valid: WeightedRows,
    plain: GaussianReference | GaussianMixtureReference,
    resolution: float,
    stop: threading.Event | None = None,
) -> KernelDensityReference | None:
    """Return kernels around the training rows, or None if they are no better than none.

    The covariance that the kernels share and the weight of what lies between them are those of
    maximum likelihood of training rows, each without the kernel around itself, by
    expectation-maximisation.  The density must beat the plain one on the validation rows by more
    than one standard error.  Of rows with missing entries (NaN) there are no kernels, but they are
    evaluated by their observed entries; with fewer than 10 complete rows there is no density.

    Parameters
    ----------
    train, valid : WeightedRows
        Mapped rows, distinct and in random order.
    plain : GaussianReference or GaussianMixtureReference
        Distribution that stands for what lies far from all rows.
    resolution : float
        Largest lattice step of a column, which kernels shall not resolve; 0 if there is none.
    stop : threading.Event or None, default=None
        Ends the fit by a KeyboardInterrupt once it is set.

    Returns
    -------
    KernelDensityReference or None
        The density; of more than 50 columns there is none.
    """
    complete = complete_rows(train.without_copies())
    if complete is None or train.X.shape[1] > _MAX_COLUMNS_FOR_KERNELS:
        return None
    rows = first_rows(complete, _MAX_KERNELS)
    density = fit_kernel_density(
        rows.X,
        rows.share,
        as_mixture(plain),
        np.clip(resolution**2 / 12.0, _MIN_KERNEL_VARIANCE, 1e-2),
        stopped=lambda: stop is not None and stop.is_set(),
    )
    gain = log_likelihoods(density, valid.X) - log_likelihoods(plain, valid.X)
    mean, error = mean_and_error(gain, valid.share, source=valid.unit)
    return density if mean > error else None


class KernelDensityFamily(ReferenceFamily):
    """Kernels around training rows, for values and rows that nearly come again."""

    name: ClassVar[str] = "kernel_density"
    needs: ClassVar[tuple[str, ...]] = ("gaussian_mixture",)  # between the kernels
    holds_rows: ClassVar[bool] = True
    shares_grid: ClassVar[bool] = False
    least_gain: ClassVar[float] = 0.02
    made_for: ClassVar[str] = (
        "tables of at most 50 varying columns, all continuous and not pixels, and devices with "
        "double precision"
    )
    has_to_be: ClassVar[str] = "better than the mixture, or there are more than 50 columns"

    def applies(self, schema: Schema) -> bool:
        """Return whether kernels can be evaluated; see `ReferenceFamily.applies`."""
        # Apple's devices have no double precision, which narrow kernels need.
        return super().applies(schema) and schema.device.type != "mps"

    def by_default(self, demand: Demand) -> bool:
        """Return whether nothing is said of the experts; see `ReferenceFamily.by_default`."""
        return super().by_default(demand) and demand.is_open and demand.automatic

    def fit(self, split: MappedSplit, context: FamilyContext) -> Reference | None:
        """Return kernels that are better than what is between them; see `ReferenceFamily.fit`."""
        known = context.references
        plain = known.get("gaussian_mixture", known["gaussian"])
        assert isinstance(plain, GaussianReference | GaussianMixtureReference)
        return fit_kernel_density_by_validation(
            split.train, split.valid, plain, context.schema.resolution, context.stop
        )

    def guide(self, rows: WeightedRows, plain: Reference, resolution: float) -> Reference | None:
        """Return kernels around a few of the rows; see `ReferenceFamily.guide`."""
        if rows.X.shape[1] > _MAX_COLUMNS_FOR_KERNELS:
            return None
        return _quick_kernels(rows, plain, resolution)
