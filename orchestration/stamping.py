"""Cross-cutting policy, stamped on every asset in one place: owner, location, links, lineage, freshness, partitions."""

import inspect
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from assets.policies import FRESH_DAILY
from orchestration.column_lineage import column_lineage
from orchestration.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

OWNERS = {
    "interactions": "team:data-platform",
    "captions": "team:content-understanding",
    "clusters": "team:content-understanding",
    "personas": "team:personalization",
    "vista": "team:ranking",
    "features": "team:feature-platform",
    "ranking": "team:ranking",
    "experiments": "team:experimentation",
}
DEFAULT_TAGS = {"tier": "silver", "pii": "false", "cost-class": "cpu", "slo": "daily"}


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """The days of the configured dataset."""
    first, end = settings.days()
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), end_date=end.isoformat() if end else None)


def stamp(settings: Settings) -> Callable[[dg.AssetSpec], dg.AssetSpec]:
    """Returns the function that adds to a spec what is the same for every asset."""
    days = daily_partitions(settings)

    def add(spec: dg.AssetSpec) -> dg.AssetSpec:
        stage = spec.key.path[0]
        name = spec.key.to_user_string()
        return spec.replace_attributes(
            owners=[OWNERS[stage]],
            tags=DEFAULT_TAGS | dict(spec.tags),
            metadata={
                "dagster/table_name": name,
                "dagster/uri": f"{settings.warehouse}/{name}",
                "dagster/column_lineage": column_lineage(name),
                "runbook": dg.MetadataValue.url(f"{settings.runbook_base}/runbooks/{stage}.md"),
                "mlflow": dg.MetadataValue.url(settings.mlflow_ui),
            }
            | dict(spec.metadata),
            freshness_policy=spec.freshness_policy or FRESH_DAILY,
            partitions_def=days if spec.partitions_def else None,
        )

    return add


def link_code(asset: dg.AssetsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """Links an asset to its code: the file for an editor on this machine, and the page of the repository."""
    # Not Dagster's `with_source_code_references`, which would link the decorator that guards the function.
    body = inspect.unwrap(asset.op.compute_fn.decorated_fn)  # type: ignore[union-attr]
    file, line = Path(inspect.getfile(body)), inspect.getsourcelines(body)[1]
    page = f"{settings.source_base}/{file.relative_to(ROOT).as_posix()}#L{line}"
    references = dg.CodeReferencesMetadataValue(
        code_references=[
            dg.LocalFileCodeReference(file_path=str(file), line_number=line),
            dg.UrlCodeReference(url=page, label="repository"),
        ]
    )
    return asset.map_asset_specs(
        lambda spec: spec.replace_attributes(metadata={**spec.metadata, "dagster/code_references": references})
    )
