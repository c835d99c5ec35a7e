"""One fit in two processes on a CPU."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from sk_itdiffusion import IMMSEDensity
from sk_itdiffusion._first.denoisers.mlp import LocalDropout
from sk_itdiffusion.distributed import Processes, shared_fit

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)

SCRIPT = """
import json, sys
import numpy as np
from sk_itdiffusion import IMMSEDensity, IMMSEDiscreteDensity
from sk_itdiffusion.distributed import shared_fit

rng = np.random.default_rng(0)
first = rng.normal(size=1500)
X = np.column_stack([first, first**2 + 0.3 * rng.normal(size=1500)])
settings = {
    "n_networks": 1, "hidden_size": 32, "batch_size": 96, "dropout": 0.2, "score_tol": 0.5,
    "random_state": 0,
}
found = {}
with shared_fit() as processes:
    one_step = IMMSEDensity(max_epochs=1, steps_per_epoch=1, **settings).fit(X)
    longer = IMMSEDensity(max_epochs=3, steps_per_epoch=20, **settings).fit(X)
    seedless = IMMSEDensity(max_epochs=0, random_state=None).fit(X)
    images = IMMSEDiscreteDensity(
        image_shape=(2, 2), hidden_size=8, n_blocks=1, max_epochs=1, steps_per_epoch=2,
        score_tol=0.5, random_state=0,
    ).fit(rng.integers(0, 3, size=(300, 4)))
    try:
        IMMSEDensity(**settings | {"batch_size": 97}).fit(X)
    except ValueError as error:
        found["error"] = str(error)
    # An error of the process that fits the references is one of all.
    try:
        IMMSEDensity(experts=["reference"], max_epochs=0, random_state=0).fit(X)
    except ValueError as error:
        found["error of the first"] = str(error)
found |= {
    "size": processes.size,
    "first loss": one_step.history_[0],
    "history": [list(row.values()) for row in longer.history_],
    "scores": longer.score_samples(X[:50]).tolist(),
    "seedless": seedless.score_samples(X[:5]).tolist(),
    "images": images.score_samples([[0, 1, 2, 0]]).tolist(),
}
with open(f"{sys.argv[1]}-{processes.size}-{processes.rank}.json", "w") as file:
    json.dump(found, file)
"""


def run_script(script, folder, *launcher):
    path = folder / "script.py"
    path.write_text(script)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *launcher, str(path), str(folder / "found")],
        check=True,
        env=environment,
        timeout=570,
    )


def read(folder, size, rank):
    return json.loads((folder / f"found-{size}-{rank}.json").read_text())


@pytest.mark.slow
def test_two_processes_fit_as_one(tmp_path):
    run_script(SCRIPT, tmp_path)
    run_script(
        SCRIPT, tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    )
    alone, first, second = (read(tmp_path, *key) for key in ((1, 0), (2, 0), (2, 1)))
    assert (alone["size"], first["size"]) == (1, 2)
    # The same batch: except for rounding in single precision the first loss is the same.
    assert first["first loss"]["train_bound"] == pytest.approx(
        alone["first loss"]["train_bound"], rel=1e-5
    )
    # Gradients are summed in another order, so that the weights drift apart by rounding; other
    # noise would change the bounds of so short a training by several hundredths.
    np.testing.assert_allclose(first["history"], alone["history"], atol=2e-3)
    np.testing.assert_allclose(first["scores"], alone["scores"], atol=2e-2)
    # All processes have the same estimator, also if none was told the seed.
    for key in ("history", "scores", "seedless", "images"):
        assert first[key] == second[key]
    assert "batch_size=97 must be a multiple" in first["error"]
    assert "error" not in alone
    assert first["error of the first"] == second["error of the first"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes would need two GPUs")
def test_accelerate_launches_the_example(tmp_path):
    pytest.importorskip("accelerate", reason="needs the extra [distributed]")
    example = os.path.join(os.path.dirname(__file__), "..", "examples", "distributed_fit.py")
    subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
         "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
         example, "--quick", "--output", str(tmp_path)],
        check=True,
        timeout=570,
    )  # fmt: skip
    assert (tmp_path / "density.safetensors").exists()


@pytest.mark.parametrize("n", [1, 7, 96])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_all_items(n, size):
    shares = [list(range(n))[Processes(rank, size).share(n)] for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shared_dropout_is_that_of_the_whole_batch():
    h = torch.ones(8, 5)
    whole = LocalDropout(0.5, torch.Generator().manual_seed(0))(h)
    parts = []
    for rank in range(2):
        dropout = LocalDropout(0.5, torch.Generator().manual_seed(0))
        dropout.place = (Processes(rank, 2).share(8), 8)
        parts.append(dropout(h[:4]))
        assert torch.equal(dropout.generator.get_state(), dropout.generator.get_state())
    assert torch.equal(torch.cat(parts), whole)


def test_without_a_launcher_nothing_changes():
    X = np.random.default_rng(0).normal(size=(60, 2))
    density = IMMSEDensity(max_epochs=0, random_state=0)
    expected = density.fit(X).score_samples(X)
    with shared_fit() as processes:
        assert (processes.rank, processes.size) == (0, 1)
        np.testing.assert_array_equal(density.fit(X).score_samples(X), expected)
    assert not torch.distributed.is_initialized()
