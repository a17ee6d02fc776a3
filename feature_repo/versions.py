"""Published content carries its version, and a reader of whole views refuses another one than it was made for.

A ranker checks the rows that it is given by itself, wherever it reads them: `models.ranking.content`.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.ranking.content import ContentVersionError


def require_content_versions(store: Any, expected: Mapping[str, str]) -> None:
    """Refuses views whose published content is not what the reader was made for.

    Args:
        store: The Feast store.
        expected: Content version by view.

    Raises:
        ContentVersionError: If a view is missing or holds another version.
    """
    found = {view.name: view.tags.get("content_version", "") for view in store.list_feature_views()}
    for view, version in expected.items():
        if view not in found:
            raise ContentVersionError(f"View {view} is not applied to Feast: materialize features/online_store.")
        if found[view] != version:
            raise ContentVersionError(
                f"View {view} serves content version {found[view] or 'none'}, not {version}: use the ranker that was "
                f"trained on {found[view] or 'it'}, or publish version {version} again."
            )


def require_rows_of(version: str, carried: pa.Array | pa.ChunkedArray, what: str) -> None:
    """Refuses rows that carry another version than ``version``; rows without a match carry none.

    Args:
        version: The content version that is expected.
        carried: The column that carries it.
        what: Name of the column, for the message.

    Raises:
        ContentVersionError: If a row carries another version.
    """
    others = [v for v in pc.unique(carried).to_pylist() if v is not None and v != version]
    if others:
        raise ContentVersionError(
            f"{what} carries {', '.join(map(str, others[:3]))} in some rows, not {version}: materialize the asset that "
            "makes them again."
        )
