"""Batches of noisy rows, and what is computed of them once and for all."""

import numpy as np
import pytest
import torch

from sk_itdiffusion._first._fit.batches import NoisyRowIterator
from sk_itdiffusion._first._fit.training import DenoisingObjective, RowDataset
from sk_itdiffusion._first._immse.cubature import PiecewiseDensity
from sk_itdiffusion._first.denoisers import PreconditionedDenoiser, ResidualMLP
from sk_itdiffusion._first.denoisers.precondition import LogSNREmbedding
from sk_itdiffusion._first.layout import Layout
from sk_itdiffusion._first.references import GaussianMixtureReference

pytestmark = pytest.mark.usefixtures("brief_fits")

N_ROWS, BATCH_SIZE, N_BATCHES = 40, 16, 5
DENSITY = PiecewiseDensity(np.array([-2.0, 0.0, 1.0, 5.0]), np.array([0.2, 0.7, 0.1]))


def iterator(n_at_once, share=slice(None), prepare=None):
    rows = np.column_stack([np.arange(N_ROWS), np.sqrt(np.arange(N_ROWS))])
    return NoisyRowIterator(
        RowDataset(rows, np.ones(N_ROWS), torch.device("cpu")),
        BATCH_SIZE,
        N_BATCHES,
        DENSITY,
        torch.Generator().manual_seed(0),
        2,
        share,
        n_at_once,
        prepare,
    )


@pytest.mark.parametrize("n_at_once", [1, 2, 3, 100])
def test_rows_are_seen_in_turn_with_stratified_noise_however_many_batches_are_made(n_at_once):
    batches = [batch for batch, _ in iterator(n_at_once)]
    assert len(batches) == N_BATCHES
    numbers = torch.cat([batch["x"][:, 0] for batch in batches]).int().tolist()
    for start in range(0, N_BATCHES * BATCH_SIZE, N_ROWS):
        assert sorted(numbers[start : start + N_ROWS]) == list(range(N_ROWS))
    below = np.concatenate([[0.0], np.cumsum(DENSITY.mass)])
    heights = DENSITY.mass / np.diff(DENSITY.edges)
    orders = set()
    for batch in batches:
        assert len(batch["x"]) == len(batch["eps"]) == BATCH_SIZE
        logsnr = batch["logsnr"].double().numpy()
        # One value falls into each stratum: the least distance to a bound is far above rounding.
        stratum = np.floor(np.interp(logsnr, DENSITY.edges, below) * BATCH_SIZE).astype(int)
        assert sorted(stratum) == list(range(BATCH_SIZE))
        orders.add(tuple(stratum))
        cell = np.searchsorted(DENSITY.edges, logsnr) - 1
        np.testing.assert_allclose(batch["importance"].numpy(), 1.0 / heights[cell], rtol=1e-6)
    assert len(orders) == N_BATCHES
    noise = torch.cat([batch["eps"].flatten() for batch in batches])
    assert len(noise.unique()) == len(noise)


@pytest.mark.parametrize("n_at_once", [1, 2])
def test_processes_share_the_batches(n_at_once):
    whole = [batch for batch, _ in iterator(n_at_once)]
    shares = [list(iterator(n_at_once, share)) for share in (slice(0, 5), slice(5, 16))]
    for batch, (first, _), (second, target) in zip(whole, *shares, strict=True):
        assert len(target) == 11
        for key, value in batch.items():
            assert torch.equal(value, torch.cat([first[key], second[key]]))


def objective():
    generator = torch.Generator().manual_seed(0)
    embedding = LogSNREmbedding(-2.0, 5.0)
    backbone = ResidualMLP(2, embedding, width=8, n_blocks=1, generator=generator)
    mixture = GaussianMixtureReference(
        [0.3, 0.7], [[0.0, 0.0], [20.0, 4.0]], [np.eye(2), [[9.0, 1.0], [1.0, 4.0]]]
    )
    module = DenoisingObjective(
        PreconditionedDenoiser(backbone, mixture.float(), embedding), Layout(2, ())
    )
    with torch.no_grad():
        for parameter in module.parameters():  # the outlet and the gain start at zero
            parameter.normal_(0.0, 0.3, generator=generator)
    return module


@pytest.mark.parametrize("training", [True, False])
def test_prepared_rows_have_the_bound_and_the_gradient_of_the_rows(training):
    module = objective().train(training)
    plain, ready = (list(iterator(3, prepare=do)) for do in (None, module.with_constants))
    for (batch, _), (known, _) in zip(plain, ready, strict=True):
        results = []
        for arguments in (batch, known):
            module.zero_grad()
            bound = module(**arguments)
            if training:
                bound.mean().backward()
            gradients = [p.grad.clone() for p in module.denoiser.parameters()] if training else []
            results.append([bound.detach(), *gradients])
        # The reference is computed for other numbers of rows at a time, and so rounds otherwise.
        for expected, found in zip(*results, strict=True):
            scale = float(expected.abs().max())
            assert scale > 0.0
            torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5 * scale)


def test_rows_without_weight_in_single_precision_do_not_validate():
    rows, cpu = np.array([[0.0], [np.inf], [2.0]]), torch.device("cpu")
    found = RowDataset(rows, np.array([1e60, 1.0, 1e60]), cpu).with_weight
    assert found.rows.flatten().tolist() == [0.0, 2.0]
    assert found.weight.tolist() == [1e60, 1e60]
    assert len(RowDataset(rows, np.array([1e30, 1.0, 1e30]), cpu).with_weight) == 3
