"""Table of caption tokens out of the table of captions."""

import datetime as dt

import polars as pl
import pyarrow as pa

from models.identity import version_of
from models.language.caption_tokens import FeatureHealth, TokenConfig, caption_tokens
from ray_jobs.tables.captions import CAPTION_TOKENS


def tokenize(captions: pa.Table, config: TokenConfig, code_version: str) -> tuple[pa.Table, FeatureHealth]:
    """Tokenizes every caption.

    Args:
        captions: Rows of `captions/item_captions`.
        config: Parameters of the tokens.
        code_version: Version of the logic; part of ``token_version``.

    Raises:
        ValueError: If the captions are of several versions.
    """
    rows = pl.from_arrow(captions)
    assert isinstance(rows, pl.DataFrame)
    versions = sorted(rows["caption_version"].unique())
    if len(versions) > 1:
        raise ValueError(
            f"Captions of several versions cannot be one feature: {', '.join(versions)}; materialize "
            "captions/item_captions again."
        )
    found, health = caption_tokens(rows.select("item_id", "caption", "mood", "tags"), config)
    version = version_of(captions=versions, tokens=config.model_dump(), code=code_version)
    made = (
        found.join(rows.select("item_id", "event_timestamp"), on="item_id")
        .sort("item_id")
        .with_columns(
            pl.lit(version).alias("token_version"), pl.lit(dt.datetime.now(dt.UTC)).alias("created_timestamp")
        )
    )
    return CAPTION_TOKENS.conform(made.select([c.name for c in CAPTION_TOKENS.columns]).to_arrow()), health
