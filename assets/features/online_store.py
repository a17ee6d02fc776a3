"""The asset `features/online_store`."""

import datetime as dt

import dagster as dg
import numpy as np
import pydantic

from assets.failures import data_errors_are_final
from assets.features.published_views import VIEWS, publish
from assets.features.publishing import bring_online, moment, outdated, requests, standing, table_version
from assets.features.summary_coverage import summary_coverage
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Features, Tables
from ray_jobs.tables.features import ONLINE_PUBLICATIONS

CODE_VERSION = "2"
MEASURED_SERVICE = "ranker_dlrm_vista_v1"


class OnlineStoreConfig(Knobs):
    """How the online store is brought up to date."""

    end: str = pydantic.Field(
        "", description="Moment that the store shall hold, ISO 8601; now by default. The future is refused."
    )
    rebuild: bool = pydantic.Field(False, description="Empty the views and write them whole.")
    batch_rows: int = pydantic.Field(10_000, ge=1, description="Entities that are written at once.")
    measured_requests: int = pydantic.Field(100, ge=1, description="Requests that the latency is measured on.")


@dg.asset(
    key=["features", "online_store"],
    group_name="features",
    kinds={"feast", "deltalake"},
    deps=[
        ["features", "item_popularity"],
        ["features", "user_activity"],
        ["captions", "caption_tokens"],
        ["clusters", "semantic_ids"],
        ["personas", "user_personas"],
        ["vista", "user_summaries"],
    ],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(ONLINE_PUBLICATIONS),
    tags={"tier": "gold", "pii": "true"},
)
@data_errors_are_final
def online_store(
    context: dg.AssetExecutionContext, config: OnlineStoreConfig, tables: Tables, features: Features
) -> dg.MaterializeResult:
    """What Feast's online store holds: for each view the published version, its entities and the watermark.

    Grain: one view. Rankers are served from the store through their FeatureService; this table is the record of it.
    Only entities that changed are written.

    If this is red: serving goes on with what was published before. `offline_equals_online` names the entities that
    differ (users are masked); materialize this asset with `rebuild: true` to write everything anew.
    """
    report = Report(ONLINE_PUBLICATIONS)
    now = dt.datetime.now(dt.UTC)
    end = moment(config.end, now)
    published = publish(tables, features, VIEWS)
    held = {} if config.rebuild else standing(tables, features)
    views = outdated(published, held, end)
    if not views:
        return report.unchanged(tables, tables.version(ONLINE_PUBLICATIONS))
    from feature_repo import online

    store = features.store()
    rows = bring_online(
        store,
        features.publications(),
        published,
        held,
        views,
        end=end,
        online_store=features.online_store_name(),
        batch_rows=config.batch_rows,
    )
    version = table_version(rows)
    written = tables.write(ONLINE_PUBLICATIONS, rows, version)
    taken = online.latency(
        store, MEASURED_SERVICE, requests(features.publications(), published, config.measured_requests)
    )
    return report.result(
        version=version,
        data=rows,
        committed=written.committed,
        metadata={
            "online_store": features.online_store_name(),
            "watermark": dg.MetadataValue.timestamp(end),
            "views_written": len(views),
            "latency_p50_ms": round(float(np.percentile(taken, 50)), 3),
            "latency_p99_ms": round(float(np.percentile(taken, 99)), 3),
            "latency_of": MEASURED_SERVICE,
            "feature_services": sorted(s.name for s in store.list_feature_services()),
            **summary_coverage(tables.warehouse()),
            **{f"rows_{r['view']}": r["rows"] for r in rows.to_pylist()},
        },
    )
