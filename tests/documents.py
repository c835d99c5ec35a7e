"""Code and links of the project's Markdown files."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE = r"!\[[^]]*\]\(([^)#]+)(?:#[^)]*)?\)"
LINK = r"(?<!!)\[[^]]*\]\(([^)#]+)(?:#[^)]*)?\)"


def code_blocks(path, language):
    """Return (line number, code) of every fenced block in this language."""
    text = path.read_text(encoding="utf-8")
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in fence.finditer(text)]


def run_python_blocks(path):
    """Run a file's Python blocks one after the other, as one program."""
    namespace = {"__name__": path.stem}
    for line, code in code_blocks(path, "python"):
        # Blank lines in front make a traceback point at the file's own line numbers.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)


def local_targets(path, pattern):
    """Return the targets of a file's links or images that are not on the network."""
    targets = re.findall(pattern, path.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target]
