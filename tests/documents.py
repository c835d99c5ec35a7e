"""Code and links of the project's Markdown files."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGE = r"!\[[^]]*\]\(([^)#]+)(?:#[^)]*)?\)"
LINK = r"(?<!!)\[[^]]*\]\(([^)#]+)(?:#[^)]*)?\)"


def code_blocks(path, language):
    """Return (line number, code) of every fenced block in this language."""
    text = path.read_text(encoding="utf-8")
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in fence.finditer(text)]


def run_python_blocks(path, plausible=()):
    """Run a file's Python blocks one after the other, as one program, and check what they show.

    Parameters
    ----------
    path : Path
        The file.
    plausible : dict of str to (float, float)
        Expressions as they stand in a block, with the least and the greatest value that make sense
        for what they are after it.  All values have to be finite.
    """
    namespace = {"__name__": path.stem}
    pending = dict(plausible)
    for line, code in code_blocks(path, "python"):
        # Blank lines in front make a traceback point at the file's own line numbers.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
        for expression in [each for each in pending if each in code]:
            check_values(expression, eval(expression, namespace), *pending.pop(expression))
    assert not pending, "no block has these expressions"


def check_values(expression, found, least, greatest):
    """Raise an error if values are not finite or do not make sense."""
    values = np.asarray(found, dtype=np.float64)
    assert np.isfinite(values).all(), f"{expression} has values that are not finite"
    within = least <= values.min() and values.max() <= greatest
    assert within, f"{expression} has values from {values.min():.4g} to {values.max():.4g}"


def local_targets(path, pattern):
    """Return the targets of a file's links or images that are not on the network."""
    targets = re.findall(pattern, path.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target]
