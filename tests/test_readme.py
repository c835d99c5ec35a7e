"""The README's code runs as it stands, and its commands are those that the project defines."""

import math

import pytest
from documents import IMAGE, LINK, ROOT, check_values, code_blocks, local_targets, run_python_blocks

PATH = ROOT / "README.md"
README = PATH.read_text(encoding="utf-8")


#: What the blocks show, with values that make sense: bits of 17 categories, nats next to the
#: entropy of a normal distribution with the covariance of the rows, probabilities, finite sums.
PLAUSIBLE = {
    "est.score(X_test)": (-13.0, -7.0),
    "search.best_score_": (-14.0, -7.0),
    "mixed.score_samples(table[400:])": (-30.0, 5.0),
    'discrete.score_samples(thirds[["radius", "target"]][:5])': (-8.0, math.log(0.6)),
    "density.score_samples(holes)": (-25.0, 0.0),
    "density.score_samples(table, given=given)": (-12.0, 1.5),
    "est.bits_per_dim(pixels[500:])": (1.5, math.log2(17)),
    "ensemble.score(pixels[500:])": (-8 * math.log(17), -8.0),
    'ensemble.member_weights_["small"]': (0.0, 1.0),
    "information.mutual_information_": (0.5, 1.5),
    "detector.p_values(wine[150:])": (0.0, 1.0),
    "detector.explain(wine[150:151])": (-100.0, 20.0),
}


@pytest.mark.slow  # real fits; .ci/run runs it in a step of its own
def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code_blocks(PATH, "python"), "the README shows no Python code"
    run_python_blocks(PATH, PLAUSIBLE)


def test_implausible_values_are_errors():
    """An image of 17 levels does not need 900 bits for a pixel."""
    expression = "est.bits_per_dim(pixels[500:])"
    for value in (904.5, math.nan, -1.0):
        with pytest.raises(AssertionError, match=r"est\.bits_per_dim"):
            check_values(expression, value, *PLAUSIBLE[expression])


def test_first_two_commands_set_up_the_main_job_and_the_tests():
    """The first shell blocks are complete: each from nothing to its result."""
    (_, main_job), (_, tests) = code_blocks(PATH, "sh")[:2]
    for command in (main_job, tests):
        assert command.startswith("python -m venv .venv && . .venv/bin/activate && ")
    assert main_job.rstrip().endswith("python examples/quickstart.py")
    assert tests.rstrip().endswith("&& pytest -n 2 --dist worksteal")
    assert README.index(main_job) < README.index("```python")


@pytest.mark.parametrize("pattern", [IMAGE, LINK])
def test_local_links_point_at_files(pattern):
    targets = local_targets(PATH, pattern)
    assert targets
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert not missing
