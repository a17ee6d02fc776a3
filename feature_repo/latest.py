"""The newest row of each entity in a publication, and what changed between two publications.

An online store holds only these. Everything runs in DuckDB over parquet, so that it spills instead of failing.
"""

import contextlib
import datetime as dt
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pyarrow.dataset

from feature_repo.publications import Publications, filesystem_of
from feature_repo.sources import CREATED_TIMESTAMP, EVENT_TIMESTAMP

REMOVED = "__removed"


@contextlib.contextmanager
def _connected(**datasets: pyarrow.dataset.Dataset) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, dataset in datasets.items():
            connection.register(name, dataset)
        yield connection


def _newest(rows: str, key: str, until: dt.datetime) -> str:
    # Which row is the newest is settled on the two times alone: with their features all rows would be sorted.
    times = f"row({EVENT_TIMESTAMP}, {CREATED_TIMESTAMP})"
    return (
        f"(SELECT r.* FROM {rows} r SEMI JOIN (SELECT {key}, max({times}) AS newest FROM {rows} "
        f"WHERE {EVENT_TIMESTAMP} <= TIMESTAMPTZ '{until.isoformat()}' GROUP BY {key}) m "
        f"ON r.{key} = m.{key} AND row(r.{EVENT_TIMESTAMP}, r.{CREATED_TIMESTAMP}) = m.newest "
        f"QUALIFY row_number() OVER (PARTITION BY r.{key}) = 1)"
    )


def _rows(publications: Publications, view: str, version: str) -> pyarrow.dataset.Dataset:
    files, path = filesystem_of(publications.uri(view, version), publications.storage_options)
    return pyarrow.dataset.dataset(path, filesystem=files, format="parquet")


def changes(
    publications: Publications,
    view: str,
    key: str,
    *,
    version: str,
    until: dt.datetime,
    before: tuple[str, dt.datetime] | None,
    batch_rows: int,
) -> Iterator[pa.Table]:
    """Yields what an online store has to write to hold a view as of ``until``.

    Args:
        publications: The published views.
        view: Name of the view.
        key: Its join key.
        version: Version to hold.
        until: Rows of later events stay out.
        before: Version that the store holds now and its ``until``; None if it holds nothing.
        batch_rows: Most rows of one table.

    Yields:
        Rows with the columns of the publication and ``__removed``: true where the entity is no longer in the view;
        its features are null then.
    """
    new = _rows(publications, view, version)
    columns = new.schema.names
    features = [c for c in columns if c not in (key, EVENT_TIMESTAMP, CREATED_TIMESTAMP)]
    query = f"SELECT *, false AS {REMOVED} FROM {_newest('new', key, until)}"
    datasets = {"new": new}
    if before is not None:
        datasets["old"] = _rows(publications, view, before[0])
        differs = " OR ".join(f"n.{f} IS DISTINCT FROM o.{f}" for f in features)
        at = f"TIMESTAMPTZ '{until.isoformat()}'"
        gone = ", ".join(
            f"o.{c}" if c == key else f"{at} AS {c}" if c in (EVENT_TIMESTAMP, CREATED_TIMESTAMP) else f"NULL AS {c}"
            for c in columns
        )
        query = (
            f"WITH n AS {_newest('new', key, until)}, o AS {_newest('old', key, before[1])} "
            f"SELECT n.*, false AS {REMOVED} FROM n LEFT JOIN o USING ({key}) WHERE o.{key} IS NULL OR {differs} "
            f"UNION ALL SELECT {gone}, true AS {REMOVED} FROM o ANTI JOIN n USING ({key})"
        )
    schema = new.schema.append(pa.field(REMOVED, pa.bool_())).remove_metadata()
    with _connected(**datasets) as connection:
        for batch in connection.sql(query).to_arrow_reader(batch_rows):
            yield (
                pa.Table.from_batches([batch])
                .select(schema.names)
                .cast(pa.schema([f.with_nullable(True) for f in schema]))
            )


def sizes(
    publications: Publications, view: str, key: str, *, version: str, until: dt.datetime
) -> tuple[int, dt.datetime | None]:
    """Returns how many entities a view has as of ``until``, and when its next row becomes due (None: never)."""
    with _connected(new=_rows(publications, view, version)) as connection:
        at = f"TIMESTAMPTZ '{until.isoformat()}'"
        found = connection.sql(
            f"SELECT count(DISTINCT {key}) FILTER ({EVENT_TIMESTAMP} <= {at}) AS entities, "
            f"min({EVENT_TIMESTAMP}) FILTER ({EVENT_TIMESTAMP} > {at}) AS next FROM new"
        ).to_arrow_table()
    return found["entities"][0].as_py(), found["next"][0].as_py()


def sample_keys(publications: Publications, view: str, key: str, *, version: str, size: int) -> list[str]:
    """Returns up to ``size`` entities of a view; the same ones every time, spread over the key's hash."""
    with _connected(new=_rows(publications, view, version)) as connection:
        return (
            connection.sql(f"SELECT DISTINCT {key} AS k FROM new ORDER BY hash({key}), {key} LIMIT {int(size)}")
            .to_arrow_table()["k"]
            .to_pylist()
        )
