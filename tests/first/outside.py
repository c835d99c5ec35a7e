"""What a user might keep outside the package: a reference with what it needs, and its family."""

import math

import numpy as np
import torch
from scipy import stats

from sk_itdiffusion._first.channel import noise_scale, signal_scale
from sk_itdiffusion._first.references import ContinuousReference, GaussianReference, ReferenceFamily


class StudentTReference(ContinuousReference):
    """Multivariate Student-t distribution as a mixture of normal ones of proportional covariances.

    A Student-t variable is a normal one whose variance is multiplied by an inverse-gamma variable;
    of this the medians of equally probable parts are taken.
    """

    def __init__(self, mean, shape, degrees, n_nodes=16):
        super().__init__()
        share = (np.arange(n_nodes) + 0.5) / n_nodes
        variances, basis = np.linalg.eigh(np.atleast_2d(shape))
        self.n_features = len(basis)
        self.degrees = degrees
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("variances", torch.from_numpy(variances))
        self.register_buffer("basis", torch.from_numpy(basis))
        self.register_buffer("scales", torch.from_numpy(degrees / stats.chi2.ppf(share, degrees)))

    @property
    def n_intermediate(self):
        return self.n_features * len(self.scales)

    def node_log_prob(self, x, signal, variance):
        """Return log-densities (B, K) of noisy points under each node, and whitened residuals.

        Signal and variance of the noise have shape (B, 1) or (1, 1).
        """
        residual = ((x - signal * self.mean) @ self.basis)[:, None]
        spread = signal.square()[:, None] * self.scales[:, None] * self.variances  # (B, K, d)
        spread = spread + variance[:, None]
        squares = residual.square() / spread + (2 * math.pi * spread).log()
        return -0.5 * squares.sum(2) - math.log(len(self.scales)), residual / spread

    def log_prob(self, x):
        one = x.new_ones(1, 1)
        return self.node_log_prob(x, one, 0.0 * one)[0].logsumexp(1)

    def smoothed_log_prob(self, rows, eps, logsnr):
        variance = rows.new_full((1, 1), math.exp(-logsnr))
        noisy = rows + variance.sqrt() * eps
        return self.node_log_prob(noisy, torch.ones_like(variance), variance)[0].logsumexp(1)

    def denoise(self, z, logsnr):
        signal, noise = signal_scale(logsnr)[:, None], noise_scale(logsnr)[:, None]
        log_joint, whitened = self.node_log_prob(z, signal, noise.square())
        return noise * (log_joint.softmax(1)[:, :, None] * whitened).sum(1) @ self.basis.T

    def sample(self, n_samples, random_state):
        scale = random_state.choice(self.scales.numpy(), n_samples)
        white = random_state.standard_normal((n_samples, self.n_features))
        root = (self.basis * self.variances.sqrt()).numpy()
        return self.mean.numpy() + np.sqrt(scale)[:, None] * white @ root.T

    def standardized(self, center, scale):
        shape = ((self.basis * self.variances) @ self.basis.T).numpy()
        mean = (self.mean.numpy() - center) / scale
        shape = shape / np.outer(scale, scale)
        return StudentTReference(mean, shape, self.degrees, len(self.scales))

    def variance_range(self):
        least = float(self.scales.min() * self.variances.min())
        return least, float(self.scales.mean() * self.variances.max())


class StudentTFamily(ReferenceFamily):
    """Student-t distributions with the degrees of freedom of greatest validation likelihood."""

    name = "student_t"

    def __init__(self, degrees=(2.5, 4.0, 8.0)):
        self.degrees = degrees

    def fit(self, split, context):
        rows, valid = split.continuous_train, split.continuous_valid
        found = [fit_student(rows.X, rows.share, degrees) for degrees in self.degrees]
        candidates = [GaussianReference.fit(rows.X, rows.weight), *found]
        x = torch.from_numpy(valid.X)
        best = max(candidates, key=lambda each: float(each.log_prob(x).numpy() @ valid.share))
        return None if best is candidates[0] else best


def fit_student(X, share, degrees, n_steps=30):
    """Return the t distribution of greatest likelihood, by expectation-maximisation."""
    d = X.shape[1]
    mean, shape = share @ X, np.atleast_2d(np.cov(X.T, aweights=share, ddof=0))
    for _ in range(n_steps):
        residual = X - mean
        squares = np.einsum("nd,nd->n", residual @ np.linalg.inv(shape), residual)
        weight = share * (degrees + d) / (degrees + squares)
        mean = weight @ X / weight.sum()
        shape = (weight[:, None] * (X - mean)).T @ (X - mean)
    return StudentTReference(mean, shape, degrees)
