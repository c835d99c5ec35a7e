"""Density estimators to compare with, behind one interface.

Every peer standardises the columns with the training rows, fits there, and adds the Jacobian, so
``score_samples`` returns log-densities in nats and in the units of X. ``fit`` takes training and
validation rows; peers that select by cross-validation or by BIC use both as training rows.

The neural spline flow and the masked autoregressive flow need zuko (extra ``benchmarks``).
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

Array = NDArray[np.float64]


class Peer(ABC):
    """A density estimator for standardised rows; the base class does the standardisation.

    Attributes
    ----------
    name : str
        Name in tables and result files.
    evaluations_per_row : int
        Forward passes of the model for one scored row.
    details_ : dict
        What the fit has chosen.
    """

    name: str
    evaluations_per_row: int = 1

    def fit(self, X_train: Array, X_valid: Array, seed: int) -> Peer:
        """Fit to training rows (n, d); validation rows (m, d) select among fits."""
        self.details_: dict[str, Any] = {}
        self.mean_ = X_train.mean(axis=0)
        scale = X_train.std(axis=0)
        self.scale_ = np.where(scale > 0.0, scale, 1.0)
        self._fit(self._standardize(X_train), self._standardize(X_valid), seed)
        return self

    def score_samples(self, X: Array) -> Array:
        """Return log p of rows (n, d), shape (n,), in nats and the units of X."""
        return self._score(self._standardize(X)) - np.log(self.scale_).sum()

    def _standardize(self, X: Array) -> Array:
        return (X - self.mean_) / self.scale_

    @abstractmethod
    def _fit(self, X_train: Array, X_valid: Array, seed: int) -> None:
        """Fit to standardised rows."""

    @abstractmethod
    def _score(self, X: Array) -> Array:
        """Return the log-density of standardised rows, in standardised units."""


class KernelDensityPeer(Peer):
    """Gaussian kernels; the bandwidth maximises the cross-validated likelihood.

    Each fold is scored on the first ``most_scored`` of its rows, which come in random order, with
    kernels on all rows of the other folds: large tables then take minutes, and the bandwidth still
    suits the number of kernels.
    """

    name = "kernel_density"

    def __init__(
        self, bandwidths: Array | None = None, n_folds: int = 5, most_scored: int = 2000
    ) -> None:
        self.bandwidths = np.geomspace(0.02, 1.25, 16) if bandwidths is None else bandwidths
        self.n_folds = n_folds
        self.most_scored = most_scored

    def _fit(self, X_train: Array, X_valid: Array, seed: int) -> None:
        search = GridSearchCV(
            KernelDensity(),
            {"bandwidth": self.bandwidths},
            scoring=lambda model, fold: model.score(fold[: self.most_scored]),
            cv=KFold(self.n_folds, shuffle=True, random_state=seed),
        )
        self.model_ = search.fit(np.concatenate([X_train, X_valid])).best_estimator_
        self.details_ = {"bandwidth": float(self.model_.bandwidth)}

    def _score(self, X: Array) -> Array:
        return self.model_.score_samples(X)


class GaussianMixturePeer(Peer):
    """Gaussian mixture with full covariances.

    The number of components has the least Bayesian information criterion on all rows
    (``criterion="bic"``) or the maximum likelihood of the validation rows
    (``criterion="validation"``, which also tries more than 64, from one start each instead of
    ``n_init``). The search ends when ``patience`` numbers in a row bring nothing.
    """

    n_components: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)

    def __init__(self, criterion: str = "bic", n_init: int = 3, patience: int = 4) -> None:
        if criterion not in ("bic", "validation"):
            raise ValueError(f"criterion must be 'bic' or 'validation', got {criterion!r}.")
        self.criterion = criterion
        self.n_init = n_init
        self.patience = patience
        self.name = "gaussian_mixture" if criterion == "bic" else "gaussian_mixture_validation"
        if criterion == "validation":
            self.n_components = (*self.n_components, 96, 128, 192, 256)

    def _fit(self, X_train: Array, X_valid: Array, seed: int) -> None:
        if self.criterion == "bic":
            rows = np.concatenate([X_train, X_valid])
            best = self._search(rows, lambda mixture: -mixture.bic(rows), seed)
        else:
            best = self._search(X_train, lambda mixture: mixture.score(X_valid), seed)
        self.model_ = best
        self.details_ = {"n_components": best.n_components}

    def _search(
        self, X: Array, quality: Callable[[GaussianMixture], float], seed: int
    ) -> GaussianMixture:
        best, best_quality, n_worse = None, -np.inf, 0
        for n_components in self.n_components:
            if n_components > len(X) or n_worse == self.patience:
                break
            n_init = self.n_init if n_components <= 64 else 1
            mixture = GaussianMixture(n_components, n_init=n_init, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture.fit(X)
            n_worse += 1
            if quality(mixture) > best_quality:
                best, best_quality, n_worse = mixture, quality(mixture), 0
        return best

    def _score(self, X: Array) -> Array:
        return self.model_.score_samples(X)


class GaussianPeer(GaussianMixturePeer):
    """One Gaussian with the mean and the covariance of all rows."""

    n_components = (1,)

    def __init__(self) -> None:
        super().__init__(n_init=1)
        self.name = "gaussian"


class FlowPeer(Peer):
    """Normalising flow of zuko, with three transforms and hidden layers (128, 128) unless told.

    AdamW with rate 1e-3 and batches of 512; the validation likelihood is computed every 100
    steps, training ends after 1000 steps without a gain, and the best state is restored.
    """

    def __init__(
        self,
        architecture: str = "NSF",
        max_steps: int = 6000,
        n_transforms: int = 3,
        hidden_size: int = 128,
    ) -> None:
        if architecture not in ("NSF", "MAF"):
            raise ValueError(f"architecture must be 'NSF' or 'MAF', got {architecture!r}.")
        self.architecture = architecture
        self.max_steps = max_steps
        self.n_transforms = n_transforms
        self.hidden_size = hidden_size
        self.name = {"NSF": "neural_spline_flow", "MAF": "masked_autoregressive_flow"}[architecture]

    def _fit(self, X_train: Array, X_valid: Array, seed: int) -> None:
        train, valid = to_float32(X_train), to_float32(X_valid)
        self.flow_ = self._build(train.shape[1], seed)
        optimizer = torch.optim.AdamW(self.flow_.parameters(), lr=1e-3)
        batches = minibatches(train, 512, torch.Generator().manual_seed(seed))
        best, best_score, best_step = copy.deepcopy(self.flow_.state_dict()), -math.inf, 0
        for step in range(1, self.max_steps + 1):
            loss = -self.flow_().log_prob(next(batches)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                score = self._log_prob(valid).mean().item()
                if score > best_score:
                    best, best_score, best_step = (
                        copy.deepcopy(self.flow_.state_dict()),
                        score,
                        step,
                    )
                elif step - best_step >= 1000:
                    break
        self.flow_.load_state_dict(best)
        self.details_ = {"n_steps": step, "best_step": best_step}

    def _build(self, n_features: int, seed: int) -> nn.Module:
        import zuko

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            architecture = getattr(zuko.flows, self.architecture)
            hidden = (self.hidden_size,) * 2
            return architecture(n_features, transforms=self.n_transforms, hidden_features=hidden)

    @torch.no_grad()
    def _log_prob(self, rows: Tensor) -> Tensor:
        flow = self.flow_()
        return torch.cat([flow.log_prob(chunk).double() for chunk in rows.split(4096)])

    def _score(self, X: Array) -> Array:
        return self._log_prob(to_float32(X)).numpy()


# --- The published estimator and recipe -----------------------------------------------------


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a scaled number, with frequencies from 1 down to 1 / 10000."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        exponents = torch.linspace(0.0, 1.0, size // 2)
        self.register_buffer("frequencies", scale * 10_000.0**-exponents)

    def forward(self, values: Tensor) -> Tensor:
        """Embed numbers of shape (B, ...) as (B, ..., size)."""
        angles = values[..., None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PublishedDenoiser(nn.Module):
    """Two hidden ReLU layers of 128 on embeddings of size 128 of every column and of log-SNR.

    The published network is wired to two columns. Here each of any number of columns has its own
    embedding, so the first layer has 128 (d + 1) inputs; with two columns it is the published one.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.embed_column = SinusoidalEmbedding(128, scale=100.0)
        self.embed_logsnr = SinusoidalEmbedding(128, scale=50.0)
        self.layers = nn.Sequential(
            nn.Linear(128 * (n_features + 1), 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, n_features),
        )

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Predict the noise (B, d) in noisy rows z (B, d) at log-SNR (B,)."""
        columns = self.embed_column(z).flatten(start_dim=1)
        return self.layers(torch.cat([columns, self.embed_logsnr(logsnr)], dim=1))


def sample_clipped_logistic(
    n: int, generator: torch.Generator, location: float = 0.0, scale: float = 3.0, clip: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Draw log-SNR values from a logistic distribution cut off at ``clip`` scales on either side.

    Returns the values and the reciprocals of their probability density, float64, shape (n,).
    """
    lowest = 1.0 / (1.0 + math.exp(clip))
    mass = 1.0 - 2.0 * lowest
    probability = lowest + mass * torch.rand(n, generator=generator, dtype=torch.float64)
    logsnr = location + scale * torch.logit(probability)
    return logsnr, scale * mass / (probability * (1.0 - probability))


def published_integrand(
    predict_noise: Callable[[Tensor, Tensor], Tensor], x: Tensor, generator: torch.Generator
) -> Tensor:
    """One-point estimate of -log p for each row of standardised x (n, d), shape (n,).

    -log p(x) = d/2 log(2 pi e) - 1/2 int (mmse of N(0, I) - mse(x, logsnr)) dlogsnr, where both
    errors are those of the noise and the first is d sigmoid(logsnr). The integral has one random
    log-SNR with its importance weight, the mean over the noise one Gaussian draw.
    """
    n, d = x.shape
    logsnr, weight = (values.to(x.dtype) for values in sample_clipped_logistic(n, generator))
    noise = torch.randn(n, d, generator=generator, dtype=x.dtype)
    signal_scale, noise_scale = logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()
    z = signal_scale[:, None] * x + noise_scale[:, None] * noise
    error = (noise - predict_noise(z, logsnr)).square().sum(dim=1)
    entropy_of_standard_normal = 0.5 * d * math.log(2.0 * math.pi * math.e)
    return entropy_of_standard_normal + 0.5 * weight * (error - d * logsnr.sigmoid())


@torch.no_grad()
def published_log_prob(
    predict_noise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    n_points: int,
    generator: torch.Generator,
    chunk_size: int = 20_000,
) -> Array:
    """Estimate log p of standardised rows (n, d) with ``n_points`` random points per row."""
    estimates = []
    for rows in x.split(max(1, chunk_size // n_points)):
        points = published_integrand(predict_noise, rows.repeat_interleave(n_points, 0), generator)
        estimates.append(-points.double().reshape(len(rows), n_points).mean(dim=1))
    return torch.cat(estimates).numpy()


class PublishedRecipe(Peer):
    """Own implementation of the published estimator with the recipe of its 2-D demonstration.

    Kong, Brekelmans and Ver Steeg, "Information-Theoretic Diffusion", ICLR 2023; demonstration
    github.com/gregversteeg/InfoDiffusionSimple. Adam with rate 1e-3, batches of 128, 160 epochs,
    the last state is kept; log-SNR from logistic(0, 3) cut off at four scales; 200 random log-SNR
    values for each scored row. Generalised from two columns to any number (see
    :class:`PublishedDenoiser`). As there, the validation rows (the 10% of the published split)
    steer nothing; they are left unused.
    """

    name = "published_recipe"

    def __init__(self, n_epochs: int = 160, n_points: int = 200) -> None:
        self.n_epochs = n_epochs
        self.n_points = n_points
        self.evaluations_per_row = n_points

    def _fit(self, X_train: Array, X_valid: Array, seed: int) -> None:
        train = to_float32(X_train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.denoiser_ = PublishedDenoiser(train.shape[1])
        self.seed_ = seed
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.denoiser_.parameters(), lr=1e-3)
        batches = minibatches(train, 128, generator)
        for _ in range(self.n_epochs * max(1, len(train) // 128)):
            loss = published_integrand(self.denoiser_, next(batches), generator).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _score(self, X: Array) -> Array:
        generator = torch.Generator().manual_seed(self.seed_ + 1)
        return published_log_prob(self.denoiser_, to_float32(X), self.n_points, generator)


# --- Shared ---------------------------------------------------------------------------------


def to_float32(X: Array) -> Tensor:
    """Copy rows into a float32 tensor."""
    return torch.from_numpy(np.array(X, dtype=np.float32))


def minibatches(rows: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches for ever, in a new order each epoch; an incomplete last batch is dropped."""
    batch_size = min(batch_size, len(rows))
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield rows[order[start : start + batch_size]]


PEERS: dict[str, Callable[..., Peer]] = {
    "kernel_density": KernelDensityPeer,
    "gaussian": GaussianPeer,
    "gaussian_mixture": GaussianMixturePeer,
    "gaussian_mixture_validation": lambda **settings: GaussianMixturePeer("validation", **settings),
    "neural_spline_flow": FlowPeer,
    "wide_neural_spline_flow": lambda **settings: FlowPeer(
        **{"n_transforms": 5, "hidden_size": 256, "max_steps": 20_000, **settings}
    ),
    "masked_autoregressive_flow": lambda **settings: FlowPeer("MAF", **settings),
    "published_recipe": PublishedRecipe,
}

QUICK_SETTINGS: dict[str, dict[str, Any]] = {
    "kernel_density": {"bandwidths": np.array([0.1, 0.2, 0.4])},
    "gaussian": {},
    "gaussian_mixture": {"n_init": 1},
    "gaussian_mixture_validation": {"n_init": 1},
    "neural_spline_flow": {"max_steps": 200},
    "wide_neural_spline_flow": {"max_steps": 20},
    "masked_autoregressive_flow": {"max_steps": 200},
    "published_recipe": {"n_epochs": 5},
}


def make_peer(name: str, *, quick: bool = False) -> Peer:
    """Return an unfitted peer by name, with small settings if ``quick``."""
    if name not in PEERS:
        raise ValueError(f"Unknown peer {name!r}; choose one of {', '.join(PEERS)}.")
    return PEERS[name](**(QUICK_SETTINGS[name] if quick else {}))
