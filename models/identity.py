"""Identity of derived data: one rule turns whatever a result depends on into a short version string."""

import dataclasses
import hashlib
import json
from typing import Any

VERSION_LENGTH = 16


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"version_of takes JSON values and dataclasses, not {type(value).__name__}.")


def version_of(**parts: Any) -> str:
    """Returns the version of what is derived from ``parts``.

    Args:
        **parts: Everything that the result depends on: input versions, prompt, code version, model
            revision, parameters. JSON values and dataclasses only, so that the version is the same on
            every machine.

    Returns:
        The first 16 hex digits of the SHA-256 of the canonical JSON of ``parts``.

    Raises:
        TypeError: If a part has no canonical JSON form.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_LENGTH]
