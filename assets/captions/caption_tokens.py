"""Caption tokens: inputs are the captions; the version is theirs with the tokenizer's parameters."""

import dagster as dg
import pydantic

from assets.captions.charts import examples_markdown, histogram
from assets.failures import data_errors_are_final
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.tables.captions import CAPTION_TOKENS, ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS

CODE_VERSION = "1"


class Tokens(dg.Config):
    """Parameters of the tokens; each of them is part of the version."""

    table_size: int = pydantic.Field(1 << 16, description="Rows of the ranker's token table; id 0 is padding.")
    max_tokens: int = pydantic.Field(24, description="Most tokens of an item.")
    min_items: int = pydantic.Field(5, description="Fewest items of a term; less in a small catalogue.")
    max_share: float = pydantic.Field(0.2, description="Largest share of the items that a caption's term may be in.")


@dg.asset(
    key=["captions", "caption_tokens"],
    group_name="captions",
    kinds={"polars", "deltalake"},
    deps=[["captions", "item_captions"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(CAPTION_TOKENS),
)
@data_errors_are_final
def caption_tokens(config: Tokens, tables: Tables) -> dg.MaterializeResult:
    """Caption of every item as a set of categorical features: words, pairs of words, mood and tags as hashed ids.

    One row an item. The item view of `features` and the ranker with caption tokens read it.
    If this is red: the captions are missing or of another form; materialize `captions/item_captions` first.
    """
    from models.language.caption_tokens import TokenConfig
    from ray_jobs.caption_features import tokenize

    report = Report(CAPTION_TOKENS)
    parameters = TokenConfig(**config.model_dump())
    version = version_of(captions=tables.version(ITEM_CAPTIONS), tokens=parameters.model_dump(), code=CODE_VERSION)
    if tables.is_current(CAPTION_TOKENS, version):
        return report.unchanged(tables, version)
    captions = tables.read(ITEM_CAPTIONS)
    data, health = tokenize(captions, parameters, CODE_VERSION)
    written = tables.write(CAPTION_TOKENS, data, version)
    items = tables.read(ITEMS, ["item_id", "title"])
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    tokens = dict(zip(data["item_id"].to_pylist(), data["tokens"].to_pylist(), strict=True))
    sizes = data["token_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata={
            **{name: round(value, 4) for name, value in health._asdict().items()},
            "table_size": parameters.table_size,
            "examples": dg.MetadataValue.md(examples_markdown(captions, titles, tokens)),
            "tokens_per_item": histogram(sizes, title="Tokens of an item", label="tokens"),
        },
    )
