"""Networks are judged as parts of the models that they will be in."""

import numpy as np
import pytest
import torch

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first._fit.judgement import N_INTERVALS, Judgement, unexplained_noise
from sk_itdiffusion._first.channel import add_noise
from sk_itdiffusion._first.layout import Layout

pytestmark = pytest.mark.usefixtures("brief_fits")

N_ROWS, N_COLUMNS, OFFSET = 640, 3, 1.5


def noisy_rows(seed=0):
    """Return noisy rows, and what two denoisers predict of their noise."""
    generator = torch.Generator().manual_seed(seed)
    eps, first, second = torch.randn(3, N_ROWS, N_COLUMNS, generator=generator)
    logsnr = torch.linspace(-8.0, 8.0, N_ROWS)[torch.randperm(N_ROWS, generator=generator)]
    importance = 0.5 + torch.rand(N_ROWS, generator=generator)
    return logsnr, importance, eps, 0.8 * eps + 0.6 * first, 0.9 * eps + 0.3 * second


def judged(parts=1):
    """Return the bound of the first denoiser, mixed with the second, which corrects zero."""
    logsnr, importance, eps, network, reference = noisy_rows()
    judgement = Judgement(logsnr, OFFSET)
    columns = (logsnr, importance, eps, network, eps - reference)
    for part in zip(*(each.chunk(parts) for each in columns), strict=True):
        judgement.add(*part)
    assert judgement.n_rows == N_ROWS
    ((bound, n_rows),) = judgement.take()
    assert n_rows == N_ROWS
    assert judgement.n_rows == 0
    return bound


def error(importance, eps, prediction):
    """Return half the weighted sum of squared errors."""
    return 0.5 * float((importance * ((eps - prediction) ** 2).sum(1)).sum())


def test_bound_is_that_of_the_best_mixture_in_each_interval():
    logsnr, importance, eps, network, reference = noisy_rows()
    total = 0.0
    for rows in np.array_split(np.argsort(logsnr.numpy()), N_INTERVALS):

        def mixed(w, rows=rows):
            return error(importance[rows], eps[rows], w * network[rows] + (1 - w) * reference[rows])

        # The error is a parabola of the weight.
        square, slope, _ = np.polyfit([0.0, 0.5, 1.0], [mixed(w) for w in (0.0, 0.5, 1.0)], 2)
        total += mixed(float(np.clip(-0.5 * slope / square, 0.0, 1.0)))
    expected = OFFSET + (total - error(importance, eps, torch.zeros_like(eps))) / N_ROWS
    assert judged() == pytest.approx(expected, abs=1e-5)
    assert judged(parts=7) == pytest.approx(judged(), abs=1e-9)
    alone = [error(importance, eps, each) for each in (network, reference)]
    assert expected < OFFSET + (min(alone) - error(importance, eps, 0.0 * eps)) / N_ROWS


def test_network_that_knows_less_than_the_reference_has_no_weight():
    logsnr, importance, eps, _, reference = noisy_rows()
    judgement = Judgement(logsnr, OFFSET)
    # It makes the errors of the reference, and as large ones of its own.
    generator = torch.Generator().manual_seed(1)
    worse = reference + (reference - eps) * torch.rand(N_ROWS, 1, generator=generator)
    judgement.add(logsnr, importance, eps, worse, eps - reference)
    alone = error(importance, eps, reference) - error(importance, eps, 0.0 * eps)
    assert judgement.take()[0][0] == pytest.approx(OFFSET + alone / N_ROWS, abs=1e-6)


def test_kinds_of_rows_are_judged_apart():
    logsnr, importance, eps, network, reference = noisy_rows()
    columns = (logsnr, importance, eps, network, eps - reference)
    together = Judgement(logsnr, OFFSET, n_kinds=3)
    kind = 2 * (torch.arange(N_ROWS) % 4 == 0).long()
    together.add(*columns, kind)
    found = together.take()
    assert [n_rows for _, n_rows in found] == [3 * N_ROWS // 4, N_ROWS // 4]
    for number, (bound, _) in zip((0, 2), found, strict=True):
        apart = Judgement(logsnr, OFFSET)
        apart.add(*(column[kind == number] for column in columns))
        assert bound == pytest.approx(apart.take()[0][0], abs=1e-9)


def test_best_reference_of_each_interval_is_chosen():
    generator = torch.Generator().manual_seed(0)
    layout = Layout(n_continuous=N_COLUMNS)
    eps = torch.randn(N_ROWS, N_COLUMNS, generator=generator)
    logsnr = torch.linspace(-6.0, 6.0, N_ROWS)
    rows = {"x": 0.0 * eps, "eps": eps, "logsnr": logsnr, "importance": torch.ones(N_ROWS)}
    halves = [{key: value[i::2] for key, value in rows.items()} for i in range(2)]

    def noise(z, level):
        return z / add_noise(torch.zeros_like(z), torch.ones_like(z), level)  # rows are zero

    def low(z, level):
        return torch.where(level[:, None] < 0.0, noise(z, level), 0.0)

    def high(z, level):
        return torch.where(level[:, None] > 0.0, noise(z, level), 0.0)

    left = unexplained_noise(halves, layout, [low, high], Judgement(logsnr, 0.0))
    assert [each.shape for each in left] == [(N_ROWS // 2, N_COLUMNS)] * 2
    assert all(float(each.abs().max()) < 1e-5 for each in left)


def test_training_ends_where_the_references_know_all():
    """A mixture of the right form leaves nothing to gain, though the network alone goes on."""
    r = np.random.default_rng(0)
    X = r.normal(size=(400, 2)) * 0.3 + 3.0 * r.integers(0, 2, 400)[:, None]
    settings = {"steps_per_epoch": 10, "hidden_size": 16, "batch_size": 128, "n_networks": 1}
    settings |= {"max_epochs": 60, "marginals": "standard", "random_state": 0}
    together = IMMSEDensity(**settings, experts=["network", "gaussian", "gaussian_mixture"]).fit(X)
    alone = IMMSEDensity(**settings, experts=["network"], reference="gaussian").fit(X)
    assert together.n_iter_ < alone.n_iter_
