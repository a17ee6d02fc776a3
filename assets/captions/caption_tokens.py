"""Caption tokens: inputs are captions and training period; the version is theirs with the tokenizer's parameters."""

import math

import dagster as dg
import pydantic

from assets.captions.token_charts import fields_markdown, token_figures, tokens_markdown
from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.tables.captions import CAPTION_HEALTH, CAPTION_TOKENS, CAPTION_VOCABULARY, ITEM_CAPTIONS

CODE_VERSION = "2"


class Tokens(Knobs):
    """Parameters of the tokens; each of them is part of the version."""

    max_tokens: int = pydantic.Field(24, description="Most tokens of an item that are words, pairs of words or fields.")
    max_trigrams: int = pydantic.Field(8, description="Most tokens of an item that are character trigrams.")
    min_items: int = pydantic.Field(5, description="Fewest items of a term; less in a small catalogue.")
    max_share: float = pydantic.Field(0.2, description="Largest share of the items that a text's term may be in.")


@dg.asset(
    key=["captions", "caption_tokens"],
    group_name="captions",
    kinds={"polars", "deltalake"},
    deps=[["captions", "item_captions"], ["interactions", "splits"], ["interactions", "items"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(CAPTION_TOKENS),
)
@data_errors_are_final
def caption_tokens(config: Tokens, tables: Tables) -> dg.MaterializeResult:
    """Caption of every item as a set of categorical features: words, pairs, trigrams and fields as hashed ids.

    One row an item. The item view of `features` and the rankers with caption tokens read it. Terms, their frequencies
    and bounds are of the training period's items only (`captions/caption_vocabulary`); new events leave the tokens as
    they are until they bring an item into the training period. Health is kept in `captions/caption_health`.
    If this is red: the captions are missing or of several versions, or no captioned item is in the training period;
    the error says which.
    """
    from models.language.caption_tokens import TokenConfig
    from ray_jobs.captions import features as caption_features
    from ray_jobs.captions import health as caption_health

    report = Report(CAPTION_TOKENS)
    parameters = TokenConfig(**config.model_dump())
    trained = caption_features.training_items(tables.warehouse())
    version = version_of(
        captions=tables.version(ITEM_CAPTIONS),
        training_items=trained.to_list(),
        tokens=parameters.model_dump(),
        code=CODE_VERSION,
    )
    if tables.is_current(CAPTION_TOKENS, version):
        return report.unchanged(tables, version)
    captions = tables.read(ITEM_CAPTIONS)
    made = caption_features.tokenize(captions, trained, parameters, CODE_VERSION)
    measured = caption_health.measure(tables.warehouse(), captions, trained, made)
    # Before the tokens, so that a run that is killed in between measures again.
    tables.warehouse().append(CAPTION_HEALTH, caption_health.health_rows(measured, version, made.token_version))
    tables.write(CAPTION_VOCABULARY, made.terms, version)
    written = tables.write(CAPTION_TOKENS, made.sets, version)
    shown = {n: "not measured" if math.isnan(v) else round(v, 4) for n, v in measured.items()}
    return report.result(
        version=version,
        data=made.sets,
        committed=written.committed,
        metadata={
            **shown,
            "token_version": made.token_version,
            "fields": dg.MetadataValue.md(fields_markdown(made.terms, made.sets)),
            "examples": dg.MetadataValue.md(tokens_markdown(tables, captions, made.sets)),
            **token_figures(made.terms, made.sets),
        },
    )
