import copy
import gc
import math
import pickle
import sys
from pathlib import Path

import pytest
import torch

from sk_itdiffusion._first._runtime.generators import CopyableGenerator
from sk_itdiffusion._first.denoisers.mlp import LocalDropout

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from processes import allocated_bytes

pytestmark = pytest.mark.usefixtures("brief_fits")

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_go_on_with_the_same_numbers_and_stay_shared(copied):
    generator = CopyableGenerator().manual_seed(3)
    torch.rand(5, generator=generator)
    first, second = copied([generator, generator])
    assert first is second
    assert torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=generator))
    # From then on they are apart.
    torch.rand(1, generator=first)
    assert not torch.equal(first.get_state(), generator.get_state())


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_of_dropout_give_their_memory_back(copied):
    if math.isnan(allocated_bytes()):
        pytest.skip("needs glibc")

    def given_out():
        gc.collect()
        return allocated_bytes()

    dropout = LocalDropout(0.5, CopyableGenerator().manual_seed(0))
    for _ in range(20):
        copied(dropout)
    before = given_out()
    for _ in range(500):
        copied(dropout)
    # A state is five kilobytes; of 500 lost ones there would be more than a megabyte.
    assert given_out() - before < 200_000
