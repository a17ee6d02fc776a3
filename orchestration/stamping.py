"""Cross-cutting policy, stamped on every asset in one place: owner, location, runbook, freshness, partitions."""

from collections.abc import Callable

import dagster as dg

from assets.policies import FRESH_DAILY
from orchestration.settings import Settings

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
                "runbook": dg.MetadataValue.url(f"{settings.runbook_base}/runbooks/{stage}.md"),
                "mlflow": dg.MetadataValue.url(settings.mlflow_ui),
            }
            | dict(spec.metadata),
            freshness_policy=spec.freshness_policy or FRESH_DAILY,
            partitions_def=days if spec.partitions_def else None,
        )

    return add
