"""Cluster profiles: inputs are semantic IDs, embeddings, captions and items."""

import dagster as dg
import polars as pl
import pyarrow as pa

from assets.clusters.semantic_ids import semantic_ids_version
from assets.failures import data_errors_are_final
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import CLUSTER_PROFILES, ITEM_EMBEDDINGS, SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS

CODE_VERSION = "2"


@dg.asset(
    key=["clusters", "cluster_profiles"],
    group_name="clusters",
    kinds={"polars", "deltalake"},
    deps=[
        ["clusters", "semantic_ids"],
        ["clusters", "item_embeddings"],
        ["captions", "item_captions"],
        ["interactions", "items"],
    ],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(CLUSTER_PROFILES),
)
@data_errors_are_final
def cluster_profiles(context: dg.AssetExecutionContext, tables: Tables) -> dg.MaterializeResult:
    """Coarse clusters as a person would describe them: a distinct label, size, and the items in the middle.

    One row a cluster that has items. Personas speak in these labels and measure relatedness by the centroids.
    If this is red: labels or titles are missing; look at `captions/item_captions`, then run `rematerialize_failed`.
    """
    import datetime as dt

    from models.semantic_ids.profiles import ProfileConfig, profiles
    from ray_jobs.embedding_store import as_matrix

    report, knobs = Report(CLUSTER_PROFILES), ProfileConfig()
    version = version_of(
        ids=tables.version(SEMANTIC_IDS),
        embeddings=tables.version(ITEM_EMBEDDINGS),
        captions=tables.version(ITEM_CAPTIONS),
        items=tables.version(ITEMS),
        knobs=knobs,
        code=CODE_VERSION,
    )
    if tables.is_current(CLUSTER_PROFILES, version):
        return report.unchanged(tables, version)
    ids = tables.read(SEMANTIC_IDS, ["item_id", "cluster", "codebook_version"])
    codebooks = ids["codebook_version"][0].as_py()
    if tables.version(SEMANTIC_IDS) != semantic_ids_version(
        embeddings=tables.version(ITEM_EMBEDDINGS), codebooks=codebooks
    ):
        raise dg.Failure(
            "The semantic IDs were not made of today's embeddings: materialize clusters/semantic_ids.",
            allow_retries=False,
        )
    vectors = tables.read(ITEM_EMBEDDINGS, ["item_id", "embedding"]).sort_by("item_id")
    captions = tables.read(ITEM_CAPTIONS, ["item_id", "mood", "tags"])
    items = tables.read(ITEMS, ["item_id", "title", "categories"])
    known = pl.DataFrame(vectors.select(["item_id"])).join(pl.DataFrame(ids), on="item_id", maintain_order="left")
    for more in (items, captions):
        known = known.join(pl.DataFrame(more), on="item_id", how="left", maintain_order="left")
    words = pl.concat_list(pl.col("mood").fill_null(""), *(pl.col(c).fill_null([]) for c in ("tags", "categories")))
    named = pl.element().filter(pl.element() != "").str.to_lowercase()
    known = known.with_columns(words.list.eval(named).alias("terms"))
    moods = frozenset(captions["mood"].unique().drop_null().to_pylist())
    genres = frozenset(known["categories"].explode().drop_nulls().str.to_lowercase().to_list())
    made = profiles(known, as_matrix(vectors["embedding"]), knobs, moods, genres - moods)
    data = made.with_columns(
        pl.lit(codebooks).alias("codebook_version"), pl.lit(dt.datetime.now(dt.UTC)).alias("created_timestamp")
    ).to_arrow()
    table = CLUSTER_PROFILES.conform(data.select([c.name for c in CLUSTER_PROFILES.columns]))
    written = tables.write(CLUSTER_PROFILES, table, version)
    return report.result(
        version=version,
        data=table,
        committed=written.committed,
        metadata={
            "clusters": table.num_rows,
            "largest_cluster": max(made["items"].to_list(), default=0),
            "page": page(table),
        },
    )


def page(table: pa.Table) -> dg.MetadataValue:
    """Every cluster on one page: size, label, examples; the largest first."""
    lines = ["| cluster | items | label | examples |", "|---|---|---|---|"]
    for row in table.sort_by([("items", "descending"), ("cluster", "ascending")]).slice(0, 300).to_pylist():
        titles = "; ".join(row["example_titles"]).replace("|", "/")
        lines.append(f"| {row['cluster']} | {row['items']} | {row['label']} | {titles} |")
    return dg.MetadataValue.md("\n".join(lines))
