"""Bringing the online store to the newest publications: what changed, and only that."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from assets.features.published_views import BY_NAME, VIEWS
from assets.resources import Features, Tables
from feature_repo.publications import Publication, Publications
from models.identity import version_of
from ray_jobs.progress import note
from ray_jobs.tables.features import ONLINE_PUBLICATIONS


def standing(tables: Tables, features: Features) -> dict[str, dict[str, Any]]:
    """What the online store is known to hold, by view; nothing if it was emptied or is another store."""
    if not tables.warehouse().exists(ONLINE_PUBLICATIONS) or features.online_is_empty():
        return {}
    rows = tables.read(ONLINE_PUBLICATIONS).to_pylist()
    return {r["view"]: r for r in rows if r["online_store"] == features.online_store_name()}


def outdated(
    published: Mapping[str, Publication], held: Mapping[str, Mapping[str, Any]], now: dt.datetime
) -> list[str]:
    """Views that the store does not hold in the published version, or of which rows have become due."""
    return [
        name
        for name, p in published.items()
        if name not in held
        or held[name]["version"] != p.version
        or (held[name]["next_due"] is not None and held[name]["next_due"] <= now)
    ]


def moment(wanted: str, now: dt.datetime) -> dt.datetime:
    """The moment that the online store should hold.

    Raises:
        ValueError: If it lies in the future: Feast would count everything until then as published, and leave out
            what is written in between.
    """
    if not wanted:
        return now
    end = dt.datetime.fromisoformat(wanted)
    end = end.replace(tzinfo=end.tzinfo or dt.UTC)
    if end > now:
        raise ValueError(f"end {end.isoformat()} lies in the future: leave it empty for now, or name a past moment.")
    return end


def bring_online(
    store: Any,
    publications: Publications,
    published: Mapping[str, Publication],
    held: Mapping[str, Mapping[str, Any]],
    views: list[str],
    *,
    end: dt.datetime,
    online_store: str,
    batch_rows: int,
) -> pa.Table:
    """Writes the changes of ``views`` to the online store and returns what it holds then.

    Args:
        store: The Feast store.
        publications: The published views.
        published: What is published, by view.
        held: What the store holds, by view.
        views: Views to bring up to date.
        end: The moment that the store shall hold.
        online_store: Name of the online store.
        batch_rows: Entities that are written at once.

    Returns:
        Rows of `features/online_store`.
    """
    from feature_repo import latest, online

    services = {
        name: sorted(
            s.name for s in store.list_feature_services() if name in {p.name for p in s.feature_view_projections}
        )
        for name in published
    }
    rows = []
    for view in VIEWS:
        name, before = view.name, held.get(view.name)
        if before is not None and name not in views:
            rows.append(dict(before) | {"services": services[name]})
            continue
        found = published[name]
        known = None
        if before is not None and publications.exists(name, before["version"]):
            known = (before["version"], before["published_at"])
        else:
            # Whoever is in the store and not in the view any more could not be found otherwise.
            online.empty(store, name)
        changed = latest.changes(
            publications, name, view.key, version=found.version, until=end, before=known, batch_rows=batch_rows
        )
        written, removed = online.write(store, name, changed)
        entities, next_due = latest.sizes(publications, name, view.key, version=found.version, until=end)
        note("online store", name, entities=entities, written=written, removed=removed)
        rows.append(
            {
                "view": name,
                "version": found.version,
                "content_version": found.content_version,
                "online_store": online_store,
                "rows": entities,
                "rows_written": written,
                "rows_removed": removed,
                "services": services[name],
                "published_at": end,
                "next_due": next_due,
                "created_timestamp": dt.datetime.now(dt.UTC),
            }
        )
    return pa.Table.from_pylist(rows, ONLINE_PUBLICATIONS.schema)


def table_version(rows: pa.Table) -> str:
    """Version of `features/online_store`: what is held where, and what still waits."""
    return version_of(
        views=[{k: str(r[k]) for k in ("view", "version", "online_store", "next_due")} for r in rows.to_pylist()]
    )


def requests(publications: Publications, published: Mapping[str, Publication], size: int) -> list[dict[str, str]]:
    """Join keys of requests for features of a user and an item, for measuring."""
    from feature_repo import latest

    users, items = (
        latest.sample_keys(publications, name, BY_NAME[name].key, version=published[name].version, size=size)
        for name in ("user_activity", "item_popularity")
    )
    return [{"user_id": users[i % len(users)], "item_id": items[i % len(items)]} for i in range(size)]
