"""A small platform with a user who will be forgotten in every store: real tables, Feast, ledger, MLflow and Dagster."""

import datetime as dt
import itertools
import json
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
from deltalake import write_deltalake
from safetensors.numpy import save_file

from assets.features.item_popularity import item_popularity
from assets.features.online_store import online_store
from assets.features.training_set import training_set
from assets.features.user_activity import user_activity
from assets.interactions.items import items
from assets.interactions.quarantine import quarantine
from assets.interactions.raw_interactions import raw_interactions
from assets.interactions.splits import splits
from assets.interactions.users import users
from orchestration.resources.dataset import ConfiguredDataset
from orchestration.resources.features import features_twin
from orchestration.resources.ledger import SqliteLedger
from orchestration.resources.tables import LocalTables
from orchestration.resources.text_encoder import PackagedTextEncoder
from orchestration.resources.tracking import EmbeddedTracking
from ray_jobs.embedding_store import content_keys
from ray_jobs.personas.lessons import Lesson, put_lessons
from ray_jobs.tables.clusters import EMBEDDING_STORE
from ray_jobs.tables.personas import (
    PERSONA_COVERAGE,
    PERSONA_EXAMINED,
    PERSONA_LESSONS,
    PERSONA_STORE,
    USER_PERSONAS,
)
from ray_jobs.tables.ranking import predictions
from tests.assets.features.seeding import seed_derived

GONE = "user-forget-me-7f3a"
ASSETS = [
    items,
    users,
    raw_interactions,
    quarantine,
    splits,
    item_popularity,
    user_activity,
    training_set,
    online_store,
]
DAYS = ("2026-01-01", "2026-01-20")
CREATED = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
PREDICTIONS = predictions("popularity")


def dataset(home: Path) -> str:
    """A dataset in contract form, which is not below the platform's home: it is its source's."""
    folder = home.parent / "shop"
    folder.mkdir(exist_ok=True)
    ids = [GONE, *(f"u{n:02}" for n in range(11)), "zz"]
    rows = [
        f"{user},i{(n * 7 + event * 3) % 20},2026-01-{1 + (event + n) % 16:02}T10:0{event}:00,rating,{3 + event % 3}"
        for (n, user), event in itertools.product(enumerate(ids), range(8))
    ]
    # Refused: an unknown item, a time that cannot be read, and a line that cannot be taken apart.
    rows += [f"{GONE},nowhere,2026-01-05,rating,4", "u01,i1,never,rating,4", f"{GONE},i1,2026-01-05,rating,4,x,y,z"]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp,action,value\n" + "\n".join(rows) + "\n")
    catalogue = [f"i{n},Title {n},{'a|b' if n % 2 else 'c'}" for n in range(20)]
    (folder / "items.csv").write_text("item_id,title,categories\n" + "\n".join(catalogue) + "\n")
    described = [f"{user},{20 + n}" for n, user in enumerate([*ids, GONE])]  # The last one contradicts the first.
    (folder / "users.csv").write_text("user_id,age\n" + "\n".join(described) + "\n")
    return f"contract:{folder}"


def platform(home: Path) -> dict[str, dg.ConfigurableResource]:
    """The embedded twins below ``home``."""
    return {
        "tables": LocalTables(warehouse_root=f"{home}/warehouse", artifact_root=f"{home}/artifacts"),
        "features": features_twin(
            online_path=f"{home}/feast/online.db",
            redis="",
            registry_url=f"sqlite:///{home}/feast/registry.db",
            offline_root=f"{home}/feast/offline",
            storage_options={},
        ),
        "ledger": SqliteLedger(url=f"sqlite:///{home}/ledger.db"),
        "tracking": EmbeddedTracking(
            tracking_uri=f"sqlite:///{home}/mlflow/mlflow.db", artifact_root=f"file://{home}/mlflow/artifacts"
        ),
        "text_encoder": PackagedTextEncoder(device="cpu"),
        "dataset": ConfiguredDataset(source=dataset(home)),
    }


def refresh(resources: dict, instance: dg.DagsterInstance, assets=ASSETS) -> dg.ExecuteInProcessResult:
    """What a refresh materializes of these stages, derived tables apart."""
    return dg.materialize(
        assets,
        instance=instance,
        resources=resources,
        run_config={"ops": {"features__online_store": {"config": {"measured_requests": 1}}}}
        if online_store in assets
        else None,
        tags={"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[1]},
    )


def build(home: Path, instance: dg.DagsterInstance) -> dict[str, dg.ConfigurableResource]:
    """Fills a home: two published versions of views, personas with texts of their own, predictions, a queue."""
    resources = platform(home)
    tables = resources["tables"]
    refresh(resources, instance, ASSETS[:7])
    for version, assets in (("v1", ASSETS[-1:]), ("v2", ASSETS[-2:])):
        seed_derived(tables, version=version)
        _write_personas(tables, version, resources["text_encoder"].encoder())
        refresh(resources, instance, assets)
    _refresh_a_persona(tables)
    _teach_a_student(tables)
    scored = pl.DataFrame(tables.read(training_set_table(), ["example_id", "user_id", "item_id", "split", "label"]))
    scored = scored.with_columns(
        score=pl.lit(0.5),
        rank=pl.lit(None, pl.Int64),
        slices=pl.lit([], pl.List(pl.String)),
        ranker_version=pl.lit("r"),
        created_timestamp=pl.lit(CREATED),
    )
    tables.write(PREDICTIONS, scored.to_arrow(), "r")
    import sqlalchemy as sa

    with resources["ledger"].session() as session:
        session.execute(sa.text("CREATE TABLE queue (user_id TEXT, payload TEXT)"))
        session.execute(sa.text("INSERT INTO queue VALUES (:u, :p), ('u01', 'x')"), {"u": GONE, "p": f"of {GONE}"})
    example = home / "mlflow/artifacts/ranking/models/m-1/artifacts/input_example.json"
    example.parent.mkdir(parents=True)
    example.write_text(json.dumps({"columns": ["user_id", "item_id"], "data": [[GONE, "i1"], ["u01", "i2"]]}))
    folder = home / "artifacts/rankers/dlrm/1"
    folder.mkdir(parents=True)
    (folder / "preprocessing.json").write_text(json.dumps({"users": ["u01", GONE, "zz"], "items": [GONE[:4]]}))
    save_file({"users.weight": np.ones((4, 2), "float32"), "b": np.ones(3, "float16")}, folder / "weights.safetensors")
    (home / "logs").mkdir()
    (home / "logs" / "run.log").write_text(f"somebody printed {GONE} here\n")
    return resources


def _teach_a_student(tables) -> None:
    """A lesson of the user's and one of somebody else's, in table and file of a training; and what a student said."""
    questions = {GONE: "What somebody watched", "u01": "What u01 watched"}
    rows = [
        {"content_key": f"lesson {n}", "user_id": user, "question": question, "answer": "{}"}
        | {"sentences_asked": 1, "sentences_passed": 1, "created_timestamp": CREATED}
        for n, (user, question) in enumerate(questions.items())
    ]
    tables.write(PERSONA_LESSONS, pa.Table.from_pylist(rows, PERSONA_LESSONS.schema), "append-only")
    blank = {c.name: [] if pa.types.is_list(c.type) else 0 for c in PERSONA_EXAMINED.columns}
    texts = {c.name: "x" for c in PERSONA_EXAMINED.columns if c.type == pa.string()} | {"created_timestamp": CREATED}
    said = [blank | texts | {"user_id": user, "claims": [f"Likes what {user} likes."]} for user in questions]
    tables.write(PERSONA_EXAMINED, pa.Table.from_pylist(said, PERSONA_EXAMINED.schema), "examined")
    put_lessons(tables.artifacts(), {"train": [Lesson(question, "{}") for question in questions.values()]})


def _refresh_a_persona(tables) -> None:
    """A table that nobody declared, in which the user has a text of their own."""
    rows = {
        "user_id": [GONE, "u02"],
        "content_key": ["key of somebody, fresh", "key of u02, fresh"],
        "persona": ["a", "b"],
    }
    write_deltalake(f"{tables.warehouse_root}/personas/refreshed", pa.table(rows))
    spent = {"prompt_tokens": 1, "completion_tokens": 1, "created_timestamp": CREATED}
    lists = dict.fromkeys(["described", "explored", "anchors"], [])
    texts = [{"content_key": k, "text": "t", "attempts": 1} | lists | spent for k in rows["content_key"]]
    tables.warehouse().append(PERSONA_STORE, pa.Table.from_pylist(texts, PERSONA_STORE.schema))


def training_set_table():
    """The contract of the training set."""
    from ray_jobs.tables.features import TRAINING_SET

    return TRAINING_SET


def _write_personas(tables, version: str, encoder) -> None:
    """Gives each persona a text and a key; two users share theirs, as users of the same interests do."""
    rows = tables.read(USER_PERSONAS).to_pylist()
    if all(row["user_id"] != GONE for row in rows):
        rows.append(rows[0] | {"user_id": GONE})
    for row in rows:
        own = "shared" if row["user_id"] in ("u02", "u04") else row["user_id"].replace(GONE, "somebody")
        row |= {"persona": f"likes {own} {version}", "content_key": f"key of {own} {version}"}
    tables.write(USER_PERSONAS, pa.Table.from_pylist(rows, USER_PERSONAS.schema), version=f"personas {version}")
    distinct = {row["content_key"]: row["persona"] for row in rows}
    spent = {"prompt_tokens": 1, "completion_tokens": 1, "created_timestamp": CREATED}
    texts = [
        {"content_key": k, "text": t, "described": [], "explored": [], "anchors": [], "attempts": 1} | spent
        for k, t in distinct.items()
    ]
    tables.warehouse().append(PERSONA_STORE, pa.Table.from_pylist(texts, PERSONA_STORE.schema))
    keys = content_keys(list(distinct.values()), encoder)
    vectors = [{"content_key": k, "embedding": [1.0], "created_timestamp": CREATED} for k in keys]
    tables.warehouse().append(EMBEDDING_STORE, pa.Table.from_pylist(vectors, EMBEDDING_STORE.schema))
    counts = {c.name: "" if c.type == pa.string() else 0 for c in PERSONA_COVERAGE.columns} | {
        "users": 13,
        "users_eligible": len(rows),
        "users_written": len(rows),
        "created_timestamp": CREATED,
    }
    tables.write(
        PERSONA_COVERAGE, pa.Table.from_pylist([counts], PERSONA_COVERAGE.schema), version=f"coverage {version}"
    )
