"""The README's code runs as it stands, and its commands are those that the project defines."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language):
    """Return (line number, code) of every fenced block in this language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(README.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in fence.finditer(README)]


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks("python")
    assert blocks, "the README shows no Python code"
    namespace = {"__name__": "readme"}
    for line, code in blocks:
        # Blank lines in front make a traceback point at the README's own line numbers.
        exec(compile("\n" * (line - 1) + code, str(ROOT / "README.md"), "exec"), namespace)


def test_first_two_commands_set_up_the_main_job_and_the_tests():
    """The first shell blocks are complete: each from nothing to its result."""
    (_, main_job), (_, tests) = code_blocks("sh")[:2]
    for command in (main_job, tests):
        assert command.startswith("python -m venv .venv && . .venv/bin/activate && ")
    assert main_job.rstrip().endswith("python examples/quickstart.py")
    assert tests.rstrip().endswith("&& pytest -n 2 --dist worksteal")
    assert README.index(main_job) < README.index("```python")


@pytest.mark.parametrize("pattern", [r"!\[[^]]*\]\(([^)]+)\)", r"(?<!!)\[[^]]*\]\(([^)#]+)\)"])
def test_local_links_point_at_files(pattern):
    targets = [t for t in re.findall(pattern, README) if "://" not in t]
    assert targets
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert not missing
