"""Count the lines of code of the package, without docstrings, comments and blank lines.

    python tests/count_lines.py [FOLDER ...]

A line counts if a token of the code is on it; a string that is a statement of its own is no code.
Prints code and all lines of each folder and of the longest modules, and their sums.
"""

import argparse
import ast
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "sk_itdiffusion"
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def lines_of_code(source: str) -> int:
    """Return the number of lines of a module that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description="Count lines of code.")
    parser.add_argument("folders", nargs="*", type=Path, default=[PACKAGE])
    for folder in parser.parse_args().folders:
        counts: dict[str, tuple[int, int]] = {}
        modules: dict[str, int] = {}
        for path in sorted(folder.rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            room = path.relative_to(folder).parts[0]
            code, total = counts.get(room, (0, 0))
            n_lines = len(source.splitlines())
            counts[room] = code + lines_of_code(source), total + n_lines
            modules[str(path.relative_to(folder))] = n_lines
        for room, (code, total) in counts.items():
            print(f"{room:24}{code:8}{total:8}")
        print(f"{folder.name:24}{sum(c for c, _ in counts.values()):8}{sum(modules.values()):8}")
        for name in sorted(modules, key=modules.get, reverse=True)[:3]:
            print(f"  longest: {name}, {modules[name]} lines")


if __name__ == "__main__":
    main()
