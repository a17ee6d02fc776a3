"""What runs in MLflow say of their inputs: datasets by version, days, split and codebooks."""

from typing import Any

import dagster as dg
import polars as pl

from assets.resources import Tables
from ray_jobs.tables.clusters import CODEBOOKS
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.warehouse import Table

TIE_RULE = "timestamp, then input order"


def split_rule(tables: Tables) -> str:
    """Which of the two splits is in force, as the table of splits itself says."""
    rules = ["global_time", "leave_one_out"]
    for part in tables.warehouse().batches(SPLITS, ["split", *rules]):
        data = pl.DataFrame(part)
        rules = [rule for rule in rules if data["split"].equals(data[rule].rename("split"))]
    return rules[0] if rules else "custom"


def codebook_widths(tables: Tables) -> dict[str, str]:
    """Codes of each level of the semantic IDs in force, coarse to fine, as a parameter of a run."""
    if not tables.warehouse().exists(CODEBOOKS):
        return {"semantic_id_widths": "none"}
    sizes = pl.DataFrame(tables.read(CODEBOOKS, columns=["level"])).group_by("level").len().sort("level")
    return {"semantic_id_widths": "x".join(str(n) for n in sizes["len"])}


def partition_tag(context: dg.AssetExecutionContext) -> dict[str, str]:
    """The days that the Dagster run was for, as a tag of a run."""
    ends = [context.run.tags.get(f"dagster/asset_partition_range_{end}", "") for end in ("start", "end")]
    return {"dagster.partition": "...".join(ends) if all(ends) else context.run.tags.get("dagster/partition", "none")}


def log_dataset(mlflow: Any, tables: Tables, table: Table, contexts: tuple[str, ...]) -> None:
    """Logs a table, by location and version, as the dataset of the active run, once for each use of it."""
    from mlflow.data.delta_dataset_source import DeltaDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    for context in contexts:
        # MLflow takes digests of at most 36 characters.
        dataset = MetaDataset(  # type: ignore[abstract]
            DeltaDatasetSource(path=tables.uri(table)),
            name=f"{table.name.split('/')[1]}/{context}",
            digest=f"{tables.version(table)}-{context}"[:36],
        )
        mlflow.log_input(dataset, context=context)
