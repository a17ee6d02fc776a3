"""Real texts for a catalogue of any size: what the installed packages say of their own classes and functions."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SMALLEST, LARGEST = 60, 300


def documents(count: int) -> list[str]:
    """The first ``count`` different texts: qualified name and first paragraph of the docstring, in order of files.

    Args:
        count: How many, spread evenly over all that there are.

    Raises:
        ValueError: If the installed packages do not carry as many.
    """
    root = Path(sysconfig.get_paths()["purelib"])
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        if not {"tests", "testing", "_vendor"} & set(path.parts):
            for name, paragraph in _docstrings(path):
                found.setdefault(
                    paragraph, f"{path.relative_to(root).parts[0].removesuffix('.py')} {name}: {paragraph}"
                )
    if len(found) < count:
        raise ValueError(
            f"The installed packages carry {len(found):,} different documents, not {count:,}: ask for fewer."
        )
    texts = list(found.values())
    return [texts[i * len(texts) // count] for i in range(count)]


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Name and first paragraph of every public class and function of a file that is documented at some length."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if len(paragraph) >= SMALLEST:
                yield node.name, paragraph[:LARGEST]
