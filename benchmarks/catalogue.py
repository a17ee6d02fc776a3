"""Items of a dataset, read as `interactions/items` reads them."""

import datetime as dt

import polars as pl


def items_of(dataset: str) -> pl.DataFrame:
    """The usable items of a dataset that is named as in BELVEDERE_DATASET."""
    from assets.interactions.catalogue import gather
    from assets.interactions.readers.base import open_reader
    from assets.interactions.validation import Limits

    return gather("items", open_reader(dataset).items(), Limits(now=dt.datetime.now(dt.UTC))).kept
