"""The README's code runs as it stands, and its commands are those that the project defines."""

import pytest
from documents import IMAGE, LINK, ROOT, code_blocks, local_targets, run_python_blocks

PATH = ROOT / "README.md"
README = PATH.read_text(encoding="utf-8")


@pytest.mark.slow  # real fits; .ci/run runs it in a step of its own
def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code_blocks(PATH, "python"), "the README shows no Python code"
    run_python_blocks(PATH)


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
