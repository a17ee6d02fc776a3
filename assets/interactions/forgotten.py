"""Keeping forgotten users out of what a source repeats of them."""

import re

import polars as pl

from models.forgetting import ForgetList

WORD = r"[^\s,;|\"'\[\]{}()]+"


def about_forgotten(refused: pl.DataFrame, forgotten: ForgetList) -> pl.Series:
    """Whether each refused row is about a forgotten user.

    A payload that is whole JSON tells its user. One that was cut, or a line that could not be taken apart, counts if
    any word of it is a forgotten user's id.

    Args:
        refused: Rows with ``payload``.
        forgotten: The forget-list.
    """
    payload = refused["payload"]
    if not forgotten.digests or refused.is_empty():
        return pl.Series("forgotten", [False], dtype=pl.Boolean).new_from_index(0, len(refused))
    whole = payload.str.starts_with("{") & payload.str.ends_with("}")
    told = refused.select(pl.when(whole).then(pl.col("payload")).str.json_path_match("$.user_id").alias("user"))["user"]
    unclear = [_any_word(text, forgotten) for text in payload.filter(told.is_null())]
    found = forgotten.holds(told).to_list()
    waiting = iter(unclear)
    return pl.Series(
        "forgotten", [next(waiting) if user is None else hit for user, hit in zip(told, found, strict=True)], pl.Boolean
    )


def _any_word(text: str | None, forgotten: ForgetList) -> bool:
    words = pl.Series(re.findall(WORD, text or ""), dtype=pl.String)
    return bool(forgotten.holds(words).any())
