"""The variational bound of the benchmark: exact for what is known in closed form, and a bound."""

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from variational_bound import (
    HALF_BIN,
    Chain,
    bound_terms,
    decoder_log_likelihood,
    dequantised,
    evaluate,
    fitted_variances,
    fixed_variances,
    image_bounds,
    log_normal_mass,
    scaled_pixels,
    stratum_edges,
)

from first.marks import others_slow

SPREAD = torch.tensor([2.0, 1.0, 0.3, 0.05], dtype=torch.float64)  # variances of the data


def gaussian_rows(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, len(SPREAD), generator=generator, dtype=torch.float64)
    return SPREAD.sqrt() * noise


def exact_denoiser(z, logsnr):
    """Predict the noise in noisy versions of rows with the variances `SPREAD`."""
    share = logsnr[:, None].sigmoid()
    return (1 - share).sqrt() * z / (share * SPREAD + 1 - share)


def ddpm_chain(n_steps=1000):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return Chain((1.0 - betas).cumprod(0)).respaced(n_steps)


def even_chain(n_steps):
    """Return a chain whose steps are even in log-SNR."""
    return Chain(torch.linspace(9.0, -9.0, n_steps, dtype=torch.float64).sigmoid())


def expected_terms(chain, variances):
    """Return the mean terms of the bound for the exact denoiser, in closed form."""
    share = chain.alphas_cumprod[:, None]
    # E (x - x_hat)^2 of each column at each step.
    mmse = SPREAD * (1 - share) / (share * SPREAD + 1 - share)
    last = share[-1]
    prior = 0.5 * (last * SPREAD - last - torch.log1p(-last)).sum()
    ratio = (chain.posterior_variances / variances)[1:, None]
    factor = (chain.data_coefficients.square() / variances)[1:, None]
    transitions = 0.5 * (ratio - 1 - ratio.log() + factor * mmse[1:]).sum()
    decoder = 0.5 * (mmse[0] / variances[0] + torch.log(2 * math.pi * variances[0])).sum()
    return prior.item(), transitions.item(), decoder.item()


def entropy():
    return 0.5 * torch.log(2 * math.pi * math.e * SPREAD).sum().item()


def z_score(values, expected):
    return ((values.mean() - expected) / (values.std() / math.sqrt(len(values)))).item()


def bound_of_gaussian(chain, variances, n=1000, **settings):
    x = gaussian_rows(n)
    generator = torch.Generator().manual_seed(1)
    evaluations = evaluate(x, exact_denoiser, chain, generator, **settings)
    return evaluations, bound_terms(evaluations, chain, variances)


# --- The chain ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [2, 10, 100, 1000])
def test_a_respaced_chain_keeps_its_ends_and_composes_its_steps(n_steps):
    full, chain = ddpm_chain(), ddpm_chain(n_steps)
    assert chain.n_steps == n_steps
    assert chain.alphas_cumprod[[0, -1]].tolist() == full.alphas_cumprod[[0, -1]].tolist()
    assert (chain.betas > 0).all()
    np.testing.assert_allclose((1 - chain.betas).cumprod(0), chain.alphas_cumprod, rtol=1e-12)


def test_the_posterior_of_a_step_is_bayes_rule():
    # q(z_s | z_t, x) from the precision-weighted sum of q(z_t | z_s) and q(z_s | x).
    chain = ddpm_chain(10)
    t = torch.arange(1, 10)
    alpha, beta = 1 - chain.betas[t], chain.betas[t]
    before = chain.alphas_cumprod[t - 1]
    precision = alpha / beta + 1 / (1 - before)
    np.testing.assert_allclose(chain.posterior_variances[t], 1 / precision, rtol=1e-10)
    coefficient = before.sqrt() / (1 - before) / precision
    np.testing.assert_allclose(chain.data_coefficients[t], coefficient, rtol=1e-10)


# --- The bound of normal rows, in closed form -----------------------------------------------


@pytest.mark.parametrize("kind", ["posterior", "beta"])
@pytest.mark.parametrize("n_steps", [5, 50])
def test_each_term_has_its_expectation(kind, n_steps):
    chain = ddpm_chain(n_steps)
    variances = fixed_variances(chain, kind)
    _, terms = bound_of_gaussian(chain, variances)
    prior, transitions, decoder = expected_terms(chain, variances)
    assert abs(z_score(terms.prior, prior)) < 4
    assert abs(z_score(terms.transitions, transitions)) < 4
    assert abs(z_score(terms.decoder, decoder)) < 4


@pytest.mark.parametrize("kind", ["posterior", "beta", "fitted"])
@pytest.mark.parametrize("n_steps", others_slow([3, 10, 100], 2))
def test_the_bound_is_not_less_than_the_entropy(kind, n_steps):
    chain = ddpm_chain(n_steps)
    if kind == "fitted":
        # For any variances, wherever they come from.
        other, _ = bound_of_gaussian(chain, fixed_variances(chain, "beta"), n=50)
        variances = fitted_variances(other, chain)
    else:
        variances = fixed_variances(chain, kind)
    assert sum(expected_terms(chain, variances)) > entropy()
    _, terms = bound_of_gaussian(chain, variances)
    assert z_score(terms.total, entropy()) > -3


def test_the_bound_converges_to_the_entropy_as_steps_become_small():
    excess = []
    for n_steps in (20, 80, 320, 1280):
        chain = even_chain(n_steps)
        variances = chain.posterior_variances
        variances[0] = 1 - chain.alphas_cumprod[0]
        excess.append(sum(expected_terms(chain, variances)) - entropy())
    assert all(0 < later < earlier / 3 for earlier, later in pairwise(excess))
    # The excess falls like 1 / T; what is left without that part vanishes.
    assert abs(4 * excess[-1] - excess[-2]) / 3 < 0.005


def test_fitted_variances_are_the_best_ones():
    chain = ddpm_chain(20)
    evaluations, _ = bound_of_gaussian(chain, fixed_variances(chain, "beta"), n=4000)
    variances = fitted_variances(evaluations, chain)
    best = sum(expected_terms(chain, variances))
    for kind in ("posterior", "beta"):
        assert best < sum(expected_terms(chain, fixed_variances(chain, kind)))
    for factor in (0.9, 1.1):
        assert best < sum(expected_terms(chain, factor * variances))


# --- Strata of the steps --------------------------------------------------------------------


@pytest.mark.parametrize(("n", "n_strata"), [(999, 32), (999, 1), (9, 9), (9, 20), (40, None)])
def test_strata_cover_all_steps(n, n_strata):
    edges = stratum_edges(n, n_strata)
    assert edges[0] == 0
    assert edges[-1] == n
    assert (edges.diff() > 0).all()
    assert len(edges) - 1 == min(n, n_strata or n)


@pytest.mark.slow
def test_a_stratified_choice_of_steps_has_the_mean_of_all_steps():
    chain = ddpm_chain(200)
    variances = fixed_variances(chain, "posterior")
    _, some = bound_of_gaussian(chain, variances, n=1500, n_strata=10)
    _, every = bound_of_gaussian(chain, variances, n=1500)
    difference = some.transitions - every.transitions
    assert abs(z_score(difference, 0.0)) < 4
    assert abs(z_score(some.transitions, expected_terms(chain, variances)[1])) < 4


# --- The decoder ----------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1e-6, 1e-4, 1e-1])
def test_the_masses_of_all_levels_sum_to_one(variance):
    levels = scaled_pixels(np.arange(256)[:, None])
    for mean in (-1.2, -1.0, 0.3, 1.0):
        log_mass = decoder_log_likelihood(
            levels, torch.full_like(levels, mean), torch.tensor(variance), HALF_BIN
        )
        assert torch.logsumexp(log_mass, 0).item() == pytest.approx(0.0, abs=1e-9)


def test_masses_are_exact_far_in_both_tails():
    lower = torch.tensor([-40.0, 30.0, -1.0, -math.inf, 5.0], dtype=torch.float64)
    upper = torch.tensor([-30.0, 40.0, 1.0, math.inf, math.inf], dtype=torch.float64)
    tail = -454.3212439937  # log Phi(-30)
    expected = [tail, tail, math.log(0.6826894921370859), 0.0, -15.0649983939887]
    np.testing.assert_allclose(log_normal_mass(lower, upper), expected, rtol=1e-10)


def test_discrete_and_continuous_bound_agree_on_fine_levels():
    # Where categories are fine compared with the decoder, mass is density times distance.
    mean = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)[None]
    x = scaled_pixels(np.array([[30, 60, 100, 128, 140, 190, 230]]))
    variance = torch.tensor(0.04, dtype=torch.float64)
    mass = decoder_log_likelihood(x, mean, variance, HALF_BIN)
    density = decoder_log_likelihood(x, mean, variance, None) + 7 * math.log(2 * HALF_BIN)
    assert mass.item() == pytest.approx(density.item(), abs=1e-3)


# --- Images ---------------------------------------------------------------------------------


def test_bounds_of_images_are_not_less_than_the_entropy_of_their_pixels():
    # Independent pixels of two levels, denoised exactly: one bit for each pixel.
    generator = np.random.default_rng(0)
    images = generator.choice([64, 192], size=(200, 1, 2, 3))
    values = scaled_pixels(np.array([64, 192]))

    def denoiser(z, logsnr):
        share = logsnr[:, None, None].sigmoid()
        distance = (z[..., None] - share.sqrt() * values.ravel()).square() / (1 - share)
        x_hat = (torch.softmax(-0.5 * distance, -1) * values.ravel()).sum(-1)
        return (z - share[..., 0].sqrt() * x_hat) / (1 - share[..., 0]).sqrt()

    for discrete in (False, True):
        scored = images if discrete else dequantised(images, seed=1)
        bounds = image_bounds(
            scored[:100],
            scored[100:],
            denoiser,
            ddpm_chain(100),
            torch.Generator().manual_seed(0),
            discrete=discrete,
        )
        for values_of_images in bounds.values():
            standard_error = values_of_images.std() / math.sqrt(len(values_of_images))
            assert values_of_images.mean() > 1.0 - 3 * standard_error
        assert bounds["fitted"].mean() < bounds["posterior"].mean()
        if discrete:
            assert bounds["fitted"].mean() < 1.2
