"""Which revision of the platform's source is running."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def source_revision() -> str:
    """Returns the short git revision of the checkout, or ``unknown`` outside of one."""
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
