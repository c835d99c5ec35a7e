"""The analytic references of a model, chosen on validation rows: the third stage of a fit."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

from sk_itdiffusion.experts import (
    fit_gaussian_by_validation,
    fit_kernel_density_by_validation,
    fit_latent_class_by_validation,
    fit_mixture_by_validation,
    level_logsnr_range,
    logsnr_range,
    mixture_regularization,
)
from sk_itdiffusion.judging import log_likelihoods
from sk_itdiffusion.latent_class import smoothed_marginals
from sk_itdiffusion.model import BeyondBounds
from sk_itdiffusion.parallel import run_interruptibly
from sk_itdiffusion.references import (
    GaussianReference,
    IndependentReference,
    KernelDensityReference,
    Reference,
)
from sk_itdiffusion.references.discrete import DiscreteReference
from sk_itdiffusion.references.mixture import GaussianMixtureReference
from sk_itdiffusion.rows import WeightedRows
from sk_itdiffusion.settings import FitSettings
from sk_itdiffusion.space import TableSpace
from sk_itdiffusion.splitting import MappedSplit
from sk_itdiffusion.warning import warn

__all__ = []

Array = NDArray[np.float64]
N_NODES = 41
#: Name of the density of kernels among experts and references.
KERNELS = "kernel_density"
_kernels_by_default: ContextVar[bool] = ContextVar("kernels_by_default", default=True)


def law_beyond_bounds(
    space: TableSpace, rows: WeightedRows, settings: FitSettings
) -> BeyondBounds | None:
    """Return the law of rows beyond bounds that none of the rows crosses; None if given ones."""
    if space.bounds is None or settings.bounds is not None:
        return None
    continuous = rows.columns(space.layout.n_continuous)
    gaussian = GaussianReference.fit(continuous.X, continuous.weight)
    reference: Reference = gaussian
    if space.layout.variables:
        marginals = smoothed_marginals(rows, space.layout)
        reference = IndependentReference(space.layout, marginals, gaussian)
    return BeyondBounds(reference, 1.0 / (len(rows) + 2.0))


def fit_references(
    split: MappedSplit,
    step: Array,
    settings: FitSettings,
    seed: int,
    stop: threading.Event,
    judged: bool,
) -> tuple[dict[str, Reference], Array | float]:
    """Return the references that the settings ask for and that validation rows can judge.

    With them comes by how much their choice flatters each of these rows.
    """
    random_state = np.random.RandomState(seed)
    asked = {settings.preconditioner, *asked_experts(settings)}
    if settings_ask_for_kernels(settings):
        asked.add("gaussian_mixture")  # between the kernels

    def wanted(name: str) -> bool:
        return judged and (settings.reference in ("auto", name) or name in asked)

    continuous, optimism = _continuous_references(
        split, step, settings, random_state, stop, wanted, judged
    )
    layout = split.space.layout
    if not layout.variables:
        return continuous, optimism
    marginals = smoothed_marginals(split.train, layout)
    independent = IndependentReference(layout, marginals, continuous.get("gaussian"))
    references: dict[str, Reference] = {"independent": independent}
    if "gaussian_mixture" in continuous:
        mixture = continuous["gaussian_mixture"]
        references["gaussian_mixture"] = IndependentReference(layout, marginals, mixture)
    if wanted("latent_class"):
        classes = fit_latent_class_by_validation(
            split, independent, mixture_regularization(step), random_state, stop
        )
        if classes is not None:
            references["latent_class"] = classes
    return references, optimism


def _continuous_references(
    split: MappedSplit,
    step: Array,
    settings: FitSettings,
    random_state: np.random.RandomState,
    stop: threading.Event,
    wanted: Callable[[str], bool],
    judged: bool,
) -> tuple[dict[str, Reference], Array | float]:
    """Return the references of the continuous columns, and how their choice flatters rows."""
    if not split.n_continuous:
        return {}, 0.0
    train = split.continuous_train
    if settings.has_images:
        valid = split.continuous_valid if judged else None
        gaussian = fit_gaussian_by_validation(train, valid, random_state)
    else:
        gaussian = GaussianReference.fit(train.X, train.weight)
    references: dict[str, Reference] = {"gaussian": gaussian}
    standardizer = split.space.standardizer
    if isinstance(settings.reference, Reference):
        references["reference"] = settings.reference.standardized(
            standardizer.center, standardizer.scale
        )
    elif "reference" in settings.experts:
        raise ValueError(
            "experts names 'reference', which needs a Reference object as the parameter reference."
        )
    optimism: Array | float = 0.0
    if wanted("gaussian_mixture") and not settings.has_images:
        mixture, optimism = fit_mixture_by_validation(
            train, split.continuous_valid, mixture_regularization(step), random_state, stop
        )
        if mixture is not None:
            references["gaussian_mixture"] = mixture
    return references, optimism


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let no estimator have kernels among its experts that does not ask for them.

    Rows of the training set are to be ranked among themselves, and not all of them have a kernel.
    """
    token = _kernels_by_default.set(False)
    try:
        yield
    finally:
        _kernels_by_default.reset(token)


def kernels_by_default() -> bool:
    """Return whether kernels may be experts here without being asked for."""
    return _kernels_by_default.get()


def kernel_reference(
    split: MappedSplit, references: dict[str, Reference], step: Array, settings: FitSettings
) -> dict[str, Reference]:
    """Return the density of kernels by its name, if it is wanted and better than the mixture.

    A fit without networks is meant to be quick, and gets it only if it is asked for.
    """
    judged = not np.array_equal(split.valid.X, split.train.X)
    if not judged or not kernels_may_be_experts(split.space, settings):
        return {}
    plain = references.get("gaussian_mixture", references["gaussian"])
    assert isinstance(plain, GaussianReference | GaussianMixtureReference)

    def fitted(stop: threading.Event) -> KernelDensityReference | None:
        resolution = float(step.max(initial=0.0))
        return fit_kernel_density_by_validation(split.train, split.valid, plain, resolution, stop)

    density = settings.processes.from_first(lambda: run_interruptibly(fitted))
    return {} if density is None else {KERNELS: density}


def kernels_may_be_experts(space: TableSpace, settings: FitSettings) -> bool:
    """Return whether the columns and the settings allow kernels among the experts."""
    by_default = (settings.reference, settings.experts) == ("auto", "auto")
    by_default = by_default and settings.kernels and settings.max_epochs > 0
    # Apple's devices have no double precision, which narrow kernels need.
    possible = not settings.has_images and settings.device.type != "mps"
    possible = possible and not space.layout.variables
    return possible and (settings_ask_for_kernels(settings) or by_default)


def settings_ask_for_kernels(settings: FitSettings) -> bool:
    """Return whether kernels are no choice of the library."""
    return settings.reference == KERNELS or KERNELS in asked_experts(settings)


def asked_experts(settings: FitSettings) -> Collection[str]:
    """Return the names of the experts that are asked for."""
    return () if settings.experts == "auto" else settings.experts


def with_nodes_for_kernels(logsnr: Array, references: dict[str, Reference], step: Array) -> Array:
    """Return the nodes, with more of them beyond the network's where kernels need it."""
    if KERNELS not in references:
        return logsnr
    _, high = logsnr_range([references[KERNELS]], float(step.max(initial=0.0)))
    n_more = max(0, math.ceil((high - logsnr[-1]) / (logsnr[1] - logsnr[0])))
    return np.append(logsnr, np.linspace(logsnr[-1], high, n_more + 1)[1:])


def plain_reference(references: dict[str, Reference]) -> str:
    """Return the name of the smoothest reference: independent columns, or one Gaussian."""
    return "independent" if "independent" in references else "gaussian"


def choose_control(
    references: dict[str, Reference], valid: WeightedRows, settings: FitSettings
) -> str:
    """Return the name of the control variate: the one asked for, else the likeliest expert."""
    if isinstance(settings.reference, Reference):
        return "reference"
    if settings.reference in references:
        return str(settings.reference)
    plain = plain_reference(references)
    if settings.reference != "auto":
        warn(
            f"reference={settings.reference!r} is not better than the plain reference "
            f"({plain!r}) on the validation rows, or these columns do not allow it; the plain one "
            "is used.",
        )
        return plain
    stacked = [
        name for name in references if settings.experts == "auto" or name in settings.experts
    ]
    share = valid.share
    # Without references in the stack, the smoothest one: the others' errors vary far from the data.
    return max(
        stacked or [plain],
        key=lambda name: float(share @ log_likelihoods(references[name], valid.X)),
    )


def choose_preconditioner(references: dict[str, Reference], settings: FitSettings) -> str:
    """Return the name of the reference that the network corrects."""
    asked, plain = settings.preconditioner, plain_reference(references)
    if asked in references:
        return asked
    if asked != "independent":
        warn(
            f"preconditioner={asked!r} is not better than {plain!r} on the validation rows, or "
            "these columns do not allow it; the latter is used.",
        )
    return plain


def model_range(
    split: MappedSplit, references: dict[str, Reference], step: Array
) -> tuple[float, float]:
    """Return the range of the log-SNR in which a model can differ from its references."""
    layout = split.space.layout
    ranges = []
    if split.n_continuous:
        parts = [
            reference.continuous if isinstance(reference, DiscreteReference) else reference
            for reference in references.values()
        ]
        known = [part for part in parts if part is not None]
        ranges.append(logsnr_range(known, float(step.max(initial=0.0))))
    if layout.variables:
        ranges.append(level_logsnr_range(layout, split.train))
    return min(low for low, _ in ranges), max(high for _, high in ranges)
