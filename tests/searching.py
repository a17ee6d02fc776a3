"""Looking for a text in every byte that a platform left, as somebody would who wants to find it."""

import sqlite3
from pathlib import Path

import pyarrow.parquet as pq


def places_with(folder: Path, text: str, apart: tuple[Path, ...] = ()) -> list[str]:
    """Files below ``folder`` that hold ``text``: raw, in a parquet file's decoded columns or footer, or in SQLite.

    Args:
        folder: Where to look.
        text: What to look for.
        apart: Folders to leave out.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(other in path.parents for other in apart):
            continue
        try:
            if text.encode() in path.read_bytes() or text in _decoded(path):
                found.append(str(path.relative_to(folder)))
        except sqlite3.DatabaseError as error:
            raise AssertionError(f"{path} cannot be read: {error}") from error
    return found


def _decoded(path: Path) -> str:
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        return f"{file.metadata.to_dict()} {file.schema_arrow.metadata} {file.read().to_pydict()}"
    if path.suffix == ".db":
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            names = [n for (n,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return str([database.execute(f'SELECT * FROM "{n}"').fetchall() for n in names])
    return ""
