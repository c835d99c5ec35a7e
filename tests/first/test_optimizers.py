import copy

import pytest
import torch

from sk_itdiffusion._first._fit.optimizers import (
    OneCallAdamW,
    SinglePrecisionMuon,
    clip_norm,
    orthogonalized,
)

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def random_matrices(n, rows, columns, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randn(n, rows, columns, generator=generator, dtype=dtype)


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (1, 3)])
def test_steps_apply_the_polynomial_to_the_singular_values(shape):
    matrices = random_matrices(3, *shape)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.square().sum(-1, keepdim=True).sqrt()
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(4):
        values = linear * values + cubic * values**3 + quintic * values**5
    expected = left @ (values[..., None] * right)
    found = orthogonalized(matrices, COEFFICIENTS, 4, 1e-7)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0.0)


def test_a_gradient_of_zero_moves_nothing():
    found = orthogonalized(torch.zeros(1, 3, 3), COEFFICIENTS, 5, 1e-7)
    assert torch.equal(found, torch.zeros(1, 3, 3))


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch_up_to_its_rounding(nesterov):
    settings = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    shapes = [(16, 16), (16, 16), (24, 8), (8, 24)]
    start = [
        random_matrices(1, *shape, dtype=torch.float32)[0] + n for n, shape in enumerate(shapes)
    ]
    parameters = [[torch.nn.Parameter(p.clone()) for p in start] for _ in range(2)]
    ours, theirs = (
        SinglePrecisionMuon(parameters[0], **settings),
        torch.optim.Muon(parameters[1], **settings),
    )
    n_steps, generator = 5, torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        for pair in zip(*parameters, strict=True):
            gradient = torch.randn(pair[0].shape, generator=generator)
            for parameter in pair:
                parameter.grad = gradient.clone()
        ours.step()
        theirs.step()
    # Entries of a step are at most about 1.2 times the rate and sqrt(24 / 8); bfloat16 has 8 bits,
    # and five Newton-Schulz steps, each of slope up to 3.4, enlarge what they lose.
    largest = n_steps * settings["lr"] * 1.2 * 3**0.5
    for mine, other, first in zip(*parameters, start, strict=True):
        torch.testing.assert_close(mine, other, atol=2.0**-5 * largest, rtol=0.0)
        assert (mine - first).abs().max() > 0.1 * largest


def test_matrices_of_a_size_do_not_depend_on_each_other():
    start = random_matrices(3, 12, 12, dtype=torch.float32)

    def moved(chosen):
        parameters = [torch.nn.Parameter(start[i].clone()) for i in chosen]
        optimizer = SinglePrecisionMuon(parameters, lr=0.1, weight_decay=0.0)
        for parameter, i in zip(parameters, chosen, strict=True):
            parameter.grad = start[i].flip(0)
        optimizer.step()
        return [p.detach() for p in parameters]

    torch.testing.assert_close(moved([0, 1, 2])[1:2], moved([1]), atol=1e-6, rtol=0.0)


def test_the_state_of_muon_goes_on_where_it_was():
    def optimizer_of(parameter):
        return SinglePrecisionMuon([parameter], lr=0.1)

    def step(optimizer, parameter, seed):
        parameter.grad = random_matrices(1, 4, 4 + seed, dtype=torch.float32)[0][:, :4]
        optimizer.step()

    first = torch.nn.Parameter(torch.eye(4))
    optimizer = optimizer_of(first)
    step(optimizer, first, 1)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = optimizer_of(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in ((optimizer, first), (resumed, second)):
        step(*each, 2)
    assert torch.equal(first, second)


def test_one_call_of_adamw_is_that_of_torch():
    start = [random_matrices(1, 3, n, dtype=torch.float32)[0] for n in (1, 2, 5)]
    parameters = [[torch.nn.Parameter(p.clone()) for p in start] for _ in range(2)]
    settings = {"lr": 0.1, "betas": (0.8, 0.95)}

    def groups(members):
        return [{"params": members[:2], "weight_decay": 0.3}, {"params": members[2:]}]

    optimizers = (
        OneCallAdamW(groups(parameters[0]), **settings),
        torch.optim.AdamW(groups(parameters[1]), **settings),
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        for number, pair in enumerate(zip(*parameters, strict=True)):
            gradient = torch.randn(pair[0].shape, generator=generator)
            for parameter in pair:  # the second has none at first, and so fewer steps
                parameter.grad = None if number == 1 and step == 0 else gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, first in zip(*parameters, start, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
        assert (mine - first).abs().max() > 0.1
    optimizers[0].zero_grad()
    assert all(parameter.grad is None for parameter in parameters[0])


@pytest.mark.parametrize("most", [1e-3, 1.0, 1e3])
def test_norms_are_clipped_as_by_torch(most):
    gradients = [random_matrices(1, n, 4)[0] for n in (1, 3, 6)]
    before = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, most)
    clip_norm(gradients, most)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=0.0, rtol=1e-12)
    after = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    assert after == pytest.approx(min(before, most), rel=2e-6 / before)
