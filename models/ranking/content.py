"""Content versions: a ranker reads generated content of the version that it was trained on, and refuses any other.

Token ids of another prompt and summaries of another model have the same shape and another meaning: what is scored on
them is noise that nothing else would notice.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc


class ContentVersionError(ValueError):
    """Content is of another version than its reader was made for."""


class Content(NamedTuple):
    """Generated content in feature rows.

    Attributes:
        column: Column that holds it.
        version: Column that carries its version; also its name among a ranker's content versions.
        what: What it is called.
        table: Table that it comes from.
    """

    column: str
    version: str
    what: str
    table: str


TOKENS = Content("item_token_ids", "item_token_version", "caption tokens", "captions/caption_tokens")
SUMMARY = Content("user_summary", "user_summary_version", "VISTA summaries", "vista/user_summaries")
HELD = {f"user_{name}": f"held_{name}" for name in ("summary", "summary_scales", "summary_version")}
"""Columns of a request that carry the summary of the champion's version during a rollout, by those of the newest."""


def carried(data: pa.Table, content: Content) -> list[str]:
    """Versions that rows carry, sorted; empty for a row that has the content and no version. Rows without it: none."""
    if content.column not in data.column_names or pa.types.is_null(data[content.column].type):
        return []
    column = data[content.column]
    size = pc.binary_length(column) if pa.types.is_binary(column.type) else pc.list_value_length(column)
    present = pc.fill_null(pc.greater(size, 0), False)
    if content.version not in data.column_names:
        return [""] if pc.any(present).as_py() else []
    versions = pc.fill_null(data[content.version].filter(present).cast(pa.string()), "")
    return sorted(pc.unique(versions).to_pylist())


def only_version(versions: list[str], content: Content, where: str) -> str:
    """The one version of rows that a ranker is trained on; empty if no row has the content.

    Args:
        versions: What `carried` found.
        content: The content.
        where: Table of the rows.

    Raises:
        ContentVersionError: If rows carry several versions, or none.
    """
    if len(versions) > 1 or versions == [""]:
        raise ContentVersionError(
            f"{where} carries {content.what} of {' and '.join(v or 'no version' for v in versions[:3])}, so that no "
            f"ranker can be trained on them: materialize {content.table}, then {where}."
        )
    return versions[0] if versions else ""


def require_content(data: pa.Table, content: Content, trained_on: Mapping[str, str]) -> None:
    """Refuses rows whose content is of another version than the ranker's.

    Args:
        data: Feature rows.
        content: Content that the ranker reads.
        trained_on: The ranker's content versions, by version column.

    Raises:
        ContentVersionError: If a row carries another version.
    """
    expected = trained_on.get(content.version, "")
    foreign = [version for version in carried(data, content) if not version or version != expected]
    if not foreign:
        return
    again = "train it again on these (materialize its asset in ranking)"
    raise ContentVersionError(
        f"The ranker was trained on {content.what} of version {expected or '(not recorded)'} and is given "
        f"version {foreign[0] or '(not carried)'}: {again}"
        + (f", or bring {content.table} back to version {expected}." if expected else ".")
    )


def readable_summaries(data: pa.Table, wanted: str) -> tuple[pa.Table, dict[str, int]]:
    """Lets every row carry the summary that a ranker can read: the newest, or the held one of its own version.

    Args:
        data: Rows of a request, with the columns of `HELD`.
        wanted: Content version that the ranker was trained on.

    Returns:
        The rows without the columns of `HELD`, and of how many the summary is the ``newest``, ``held``, or ``missing``
        (the ranker's fallback: none at all). Rows with another version only stay as they are, for it to refuse.
    """
    newest, held = (pc.fill_null(data[name], "") for name in (SUMMARY.version, HELD[SUMMARY.version]))
    is_newest = pc.and_(pc.equal(newest, wanted), pc.not_equal(newest, ""))
    is_held = pc.and_(pc.and_(pc.equal(held, wanted), pc.not_equal(held, "")), pc.invert(is_newest))
    num = data.num_rows
    rows = pc.if_else(is_held, pa.array(range(num, 2 * num), pa.int64()), pa.array(range(num), pa.int64()))
    for name, other in HELD.items():
        both = pa.chunked_array([*data[name].chunks, *data[other].chunks], data[name].type)
        data = data.set_column(data.column_names.index(name), name, both.take(rows)).drop_columns([other])
    there = pc.greater(pc.fill_null(pc.binary_length(data[SUMMARY.column]), 0), 0)
    foreign = pc.and_(pc.and_(pc.not_equal(newest, ""), pc.invert(is_newest)), pc.invert(is_held))
    count = lambda mask: int(pc.sum(mask).as_py() or 0)  # noqa: E731
    return data, {
        "newest": count(pc.and_(is_newest, there)),
        "held": count(pc.and_(is_held, there)),
        "missing": count(pc.and_(pc.invert(there), pc.invert(foreign))),
    }
