"""Serving personas: reads of requests, and leases of the queue of refreshes, beside what one would write first.

    python -m benchmarks.persona_serving --users 2000 --rows 100000 --repeats 5

Everything is made anew in a temporary folder: Feast's SQLite store with personas, histories and clusters, and queues in
SQLite and, where Debian's binaries are there, in PostgreSQL. Peers, timed in turns with ours in the same process:

* Reads: the same features by Feast's own ``get_online_features``, one call for the user and one for the items'
  clusters, without judging freshness, drawing interests, or asking for refreshes. Texts and clusters have to be equal.
* Leases: a plain ``SELECT ... ORDER BY ... LIMIT`` and an ``UPDATE ... WHERE id IN`` through SQLAlchemy, without
  fences, attempts, generations or rows whose lease ended; then an ``UPDATE`` that ends them. Users and their order have
  to be equal.
"""

import argparse
import datetime as dt
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import alternate, machine
from orchestration.quiet import be_quiet

be_quiet()

ITEMS, CLUSTERS, EVENTS = 1000, 50, 20
PER_LEASE = 256
NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)


def seeded_store(folder: Path, users: list[str]) -> Any:
    """Feast's SQLite store with a fresh persona, a history and clusters of every user."""
    import pyarrow as pa

    from feature_repo import online
    from feature_repo.entities import item, user
    from feature_repo.latest import REMOVED
    from feature_repo.views import item_semantic_ids, user_activity
    from models.personas.freshness import Event, ServedPersona, clusters_digest
    from models.personas.interests import InterestConfig
    from orchestration.resources.features import features_twin

    features = features_twin(
        online_path=f"{folder}/online.db",
        redis="",
        registry_url=f"sqlite:///{folder}/registry.db",
        offline_root=f"{folder}/offline",
        storage_options={},
    )
    opened: Any = features.persona_store().open()
    views = [user_activity.batch_source, user_activity, item_semantic_ids.batch_source, item_semantic_ids]
    opened.store.apply([user, item, *views])

    def rows(key: str, columns: dict[str, Any]) -> Any:
        count = len(columns[key])
        moments = pa.array([NOW] * count, pa.timestamp("us", "UTC"))
        return pa.table(columns | {"event_timestamp": moments, "created_timestamp": moments, REMOVED: [False] * count})

    history = {u: [f"i{(n * 37 + e * 11) % ITEMS}" for e in range(EVENTS)] for n, u in enumerate(users)}
    cluster = {f"i{n}": n % CLUSTERS for n in range(ITEMS)}
    counts = {n: pa.array([EVENTS] * len(users), pa.int64()) for n in ("num_events", "num_likes")}
    activity = {"user_id": users, **counts, "mean_value": [1.0] * len(users)}
    activity |= {"recent_item_ids": list(history.values()), "recent_labels": [[1] * EVENTS] * len(users)}
    online.write(opened.store, "user_activity", [rows("user_id", activity)])
    ids = {"item_id": list(cluster), "codes": [[c] for c in cluster.values()], "cluster": list(cluster.values())}
    online.write(opened.store, "item_semantic_ids", [rows("item_id", ids | {"codebook_version": ["x"] * ITEMS})])
    opened.write(
        [
            ServedPersona(
                user_id=u,
                content_key=f"k{u}",
                persona=f"Likes dark thrillers and slow dramas, says {u}.",
                interests=[{"cluster": n, "label": f"topic {n}", "share": 0.3} for n in range(3)],
                explorations=[{"cluster": 7 + n, "label": f"novel {n}"} for n in range(2)],
                clusters=clusters_digest([Event(i, True, cluster[i]) for i in history[u]], InterestConfig(), EVENTS),
                persona_version="v1",
                written=NOW,
            )
            for u in users
        ]
    )
    return features, opened


def reads(folder: Path, num_users: int, repeats: int) -> None:
    """Requests a second and latencies of the reader, beside Feast's own call."""
    from feature_repo.online_personas import ACTIVITY, CLUSTER, PERSONA
    from orchestration.resources.ledger import ledger_twin
    from ray_jobs.personas.serving import Catalogue, Config, PersonaReader

    users = [f"user-{n}" for n in range(num_users)]
    features, opened = seeded_store(folder, users)
    catalogue = Catalogue(labels={n: f"topic {n}" for n in range(CLUSTERS)}, popular=list(range(CLUSTERS)))
    queue = ledger_twin(f"sqlite:///{folder}/reads.db").persona_queue()
    config = Config(store=features.persona_store(), queue=queue, persona_version="v1", catalogue=catalogue)
    reader = PersonaReader(config, opened)

    def raw(user: str) -> tuple[str, list[int]]:
        wanted = {"features": [*PERSONA, *ACTIVITY], "entity_rows": [{"user_id": user}]}
        found = opened.store.get_online_features(**wanted).to_dict()
        items = [{"item_id": i} for i in found["recent_item_ids"][0]]
        clusters = opened.store.get_online_features(features=[CLUSTER], entity_rows=items).to_dict()
        return found["persona"][0], clusters["cluster"]

    for user in users[:50]:
        answer = reader.read(user, "r", NOW)
        if answer.state != "fresh" or answer.persona is None:
            raise SystemExit(f"{user} is served {answer.state}: the benchmark's store is wrong.")
        if raw(user) != (answer.persona.persona, [e.cluster for e in answer.events]):
            raise SystemExit(f"{user}: the reader and get_online_features differ.")
    print("Reads: texts and clusters of 50 users are equal.")
    taken: dict[str, list[float]] = {"reader": [], "get_online_features": []}

    def timed(name: str, call: Callable[[str], object]) -> Callable[[], None]:
        def run() -> None:
            for user in users:
                started = time.perf_counter()
                call(user)
                taken[name].append(time.perf_counter() - started)

        return run

    contenders = {
        "reader": timed("reader", lambda u: reader.read(u, "r", NOW)),
        "get_online_features": timed("get_online_features", raw),
    }
    timings = alternate(contenders, repeats, warm_up=False)
    for name, timing in timings.items():
        cuts = statistics.quantiles(taken[name], n=100)
        shown = ", ".join(f"p{p} {1000 * cuts[p - 1]:.2f} ms" for p in (50, 95, 99))
        print(f"  {name:<20} {timing.text(num_users, 'reads')}; {shown}")
    print(f"  ratio of CPU time    {timings['get_online_features'].cpu / timings['reader'].cpu:.2f}x")


class Peer:
    """The lease that one would write first.

    Args:
        url: The database.
    """

    def __init__(self, url: str):
        from ray_jobs.databases import shared_engine

        self.engine = shared_engine(url)

    def lease(self, most: int) -> list[Any]:
        """Takes waiting rows."""
        import sqlalchemy as sa

        from ray_jobs.personas.sql_queue import PERSONA_REFRESH, C

        with self.engine.begin() as connection:
            due = sa.select(PERSONA_REFRESH).where(C.state == "queued").order_by(C.priority, C.enqueued, C.id)
            rows = list(connection.execute(due.limit(most).with_for_update(skip_locked=True)))
            taken = sa.update(PERSONA_REFRESH).where(C.id.in_([r.id for r in rows])).values(state="leased")
            connection.execute(taken)
        return rows

    def complete(self, rows: list[Any]) -> None:
        """Ends them."""
        import sqlalchemy as sa

        from ray_jobs.personas.sql_queue import PERSONA_REFRESH, C

        with self.engine.begin() as connection:
            done = sa.update(PERSONA_REFRESH).where(C.id.in_([r.id for r in rows])).values(state="done", finished=NOW)
            connection.execute(done)


def leases(name: str, url: str, rows: int, repeats: int) -> None:
    """Leases a second of the queue, from a table of ``rows``, beside the plain one."""
    import sqlalchemy as sa

    from orchestration.resources.ledger import ledger_twin
    from ray_jobs.databases import shared_engine
    from ray_jobs.personas.queue import REFRESHED
    from ray_jobs.personas.sql_queue import PERSONA_REFRESH, C

    queue, peer, at_once, later = ledger_twin(url).persona_queue(), Peer(url), 8, NOW + dt.timedelta(seconds=60)
    queue.stats()
    fresh = {"state": "queued", "attempts": 0, "fence": 0, "lease_owner": None, "lease_until": None, "finished": None}
    row = {"reason": "stale", "priority": 1, "clusters": "c", "persona_version": "v1", "generation": 1}
    row |= {"enqueued": NOW, "not_before": NOW, "outcome": "", "error": ""} | fresh
    with shared_engine(url).begin() as connection:
        for start in range(0, rows, 10_000):
            more = [row | {"user_id": f"u{n}", "priority": n % 2} for n in range(start, min(start + 10_000, rows))]
            connection.execute(sa.insert(PERSONA_REFRESH), more)

    def reset() -> None:
        with shared_engine(url).begin() as connection:
            connection.execute(sa.update(PERSONA_REFRESH).where(C.state != "queued").values(**fresh))

    def ours() -> list[str]:
        got = []
        for _ in range(at_once):
            held = queue.lease(PER_LEASE, "w", 60, later)
            queue.complete([(lease, REFRESHED, "") for lease in held], later)
            got += [lease.user_id for lease in held]
        return got

    def plain() -> list[str]:
        got = []
        for _ in range(at_once):
            found = peer.lease(PER_LEASE)
            peer.complete(found)
            got += [r.user_id for r in found]
        return got

    first = ours()
    reset()
    if first != plain():
        raise SystemExit(f"{name}: the queue and the plain query lease other users.")
    reset()
    # Every turn takes rows that nobody has had yet: bringing them back would be timed as well.
    if rows < 2 * repeats * len(first):
        raise SystemExit(
            f"{rows:,} rows are too few for {repeats} repeats: give {2 * repeats * len(first):,} by --rows."
        )
    print(f"Leases, {name}, {rows:,} rows: the same {at_once * PER_LEASE:,} users in the same order.")
    timings = alternate({"queue": ours, "plain": plain}, repeats, warm_up=False)
    for contender, timing in timings.items():
        print(f"  {contender:<20} {timing.text(at_once * PER_LEASE, 'rows leased and completed')}")
    print(f"  ratio                {timings['plain'].median / timings['queue'].median:.2f}x")
    shared_engine(url).dispose()


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """An empty database of each kind, by name."""
    import psycopg

    from tests.services import PostgresServer

    found = {"SQLite": f"sqlite:///{folder}/ledger.db"}
    with ExitStack() as stack:
        try:
            # Not below the folder: the server runs as another user.
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="belvedere-postgres-")))
            server = PostgresServer(place)
            stack.enter_context(server.running())
            admin = stack.enter_context(psycopg.connect(f"{server.url}/postgres", autocommit=True))
            admin.execute("CREATE DATABASE leases")
            # Or the server would wait for pooled connections before it ends.
            stack.callback(admin.execute, "DROP DATABASE leases WITH (FORCE)")
            found["PostgreSQL"] = f"{server.url}/leases"
        except RuntimeError as error:
            print(f"PostgreSQL is left out: {error}")
        yield found


def main() -> None:
    """Prints both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as found:
        reads(Path(folder), asked.users, asked.repeats)
        for name, url in found.items():
            leases(name, url, asked.rows, asked.repeats)


if __name__ == "__main__":
    main()
