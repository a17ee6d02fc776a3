"""Prompts are files with versions; a prompt's digest is part of the identity of everything it made."""

import functools
import hashlib
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@functools.cache
def prompt_text(name: str) -> str:
    """The text of the prompt file ``name``.

    Raises:
        FileNotFoundError: If there is no such prompt.
    """
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise FileNotFoundError(f"There is no prompt {name}: known are {known}.")
    return path.read_text(encoding="utf-8").replace("\r\n", "\n")


def load_prompt(name: str) -> dict[str, Any]:
    """The prompt file ``name`` as nested values."""
    return tomllib.loads(prompt_text(name))


def prompt_digest(name: str) -> str:
    """Digest of the prompt file ``name``: any changed character changes it."""
    return hashlib.sha256(prompt_text(name).encode()).hexdigest()[:16]
