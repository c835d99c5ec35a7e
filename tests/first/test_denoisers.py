"""Laws of the networks' parts."""

import pytest
import torch

from sk_itdiffusion._first.denoisers.mlp import LocalDropout
from sk_itdiffusion._first.denoisers.norm import RMSNorm


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 6)])
def test_normalisation_is_torchs(shape):
    h = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for norm in (RMSNorm(), torch.nn.RMSNorm(shape[-1], eps=1e-6, elementwise_affine=False)):
        inputs = h.clone().requires_grad_(True)
        outputs = norm(inputs)
        (outputs * direction).sum().backward()
        found.append((outputs.detach(), inputs.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_dropout_keeps_the_mean_and_draws_from_its_own_generator():
    h = torch.full((400, 500), 2.0)
    state = torch.random.get_rng_state()
    dropped = LocalDropout(0.3, torch.Generator().manual_seed(0))(h)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert dropped.unique().tolist() == pytest.approx([0.0, 2.0 / 0.7])
    # The standard deviation of an entry is 2 sqrt(0.3 / 0.7).
    error = 2.0 * (0.3 / 0.7) ** 0.5 / h.numel() ** 0.5
    assert abs(float(dropped.mean()) - 2.0) < 5.0 * error
    assert torch.equal(LocalDropout(0.3, torch.Generator()).eval()(h), h)
