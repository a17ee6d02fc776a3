"""Personas as matrices: what a set of users is known for, what they explore, and what they did, by cluster.

Shape letters: U users, C clusters, N items, D embedding.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from models.identity import version_of
from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig, eligible_users, weigh_likes
from models.personas.measures import Topics
from ray_jobs.embedding_store import as_matrix
from ray_jobs.personas.planning import Found
from ray_jobs.personas.writers import WriterKind
from ray_jobs.tables.clusters import CLUSTER_PROFILES, ITEM_EMBEDDINGS, SEMANTIC_IDS
from ray_jobs.tables.personas import PERSONA_COVERAGE, PERSONA_STORE
from ray_jobs.warehouse import Warehouse

TRAIN = "train"


class World(NamedTuple):
    """The catalogue.

    Attributes:
        items: Columns ``item_id``, ``item`` (row of the arrays), ``column`` (of its cluster).
        item_ND: Unit embeddings of the items.
        clusters: Columns ``cluster`` (its number), ``column``, ``label``.
        centroid_CD: Unit vectors of the clusters.
    """

    items: pl.DataFrame
    item_ND: np.ndarray
    clusters: pl.DataFrame
    centroid_CD: np.ndarray


class Parameters(NamedTuple):
    """What `personas/user_personas` was planned with; see `persona_writing.parameters`."""

    interests: InterestConfig
    exploration: ExplorationConfig
    token_budget: int
    max_new_tokens: int
    writer: WriterKind
    identity: dict[str, Any]


class Panel(NamedTuple):
    """Personas of some users.

    Attributes:
        users: Columns ``user_id``, ``user`` (row of the matrices).
        interests: Columns ``user``, ``column``, ``label``, ``share``, ``evidence_item_ids``, ``evidence_titles``.
        explorations: Columns ``user``, ``anchor`` and ``column``.
        topics: The same as matrices.
        likes: Liked items with ``user``, ``item``, ``column``, ``share``, ``timestamp``.
        met: Items of any event, with ``user`` and ``item``.
        share_UC: Part of each user's likes in each cluster, later likes weighing more.
        touched_UC: Clusters of any event.
        history_UD: Mean embedding of the liked items, weighted alike, unit length.
    """

    users: pl.DataFrame
    interests: pl.DataFrame
    explorations: pl.DataFrame
    topics: Topics
    likes: pl.DataFrame
    met: pl.DataFrame
    share_UC: np.ndarray
    touched_UC: np.ndarray
    history_UD: np.ndarray


def read_world(warehouse: Warehouse) -> World:
    """Reads items with embeddings and clusters, and the clusters."""
    profiles = pl.DataFrame(warehouse.read(CLUSTER_PROFILES, ["cluster", "label", "centroid"])).sort("cluster")
    clusters = profiles.select("cluster", "label").with_row_index("column")
    vectors = warehouse.read(ITEM_EMBEDDINGS, ["item_id", "embedding"]).sort_by("item_id")
    placed = pl.DataFrame(warehouse.read(SEMANTIC_IDS, ["item_id", "cluster"]))
    ids = pl.DataFrame({"item_id": vectors["item_id"].to_pylist()}).with_row_index("row")
    items = ids.join(placed, on="item_id").join(clusters.select("cluster", "column"), on="cluster").sort("row")
    item_ND = as_matrix(vectors["embedding"])[items["row"].to_numpy()]
    items = items.with_row_index("item").select("item_id", "item", "column")
    return World(items, item_ND, clusters, np.array(profiles["centroid"].to_list(), np.float32))


def read_parameters(warehouse: Warehouse) -> Parameters:
    """Reads what the personas were planned with."""
    (row,) = warehouse.read(PERSONA_COVERAGE, ["parameters"]).to_pylist()
    said = json.loads(row["parameters"])
    interests, exploration = interests_of(said.pop("interests")), ExplorationConfig(**said.pop("exploration"))
    return Parameters(interests, exploration, **said)


def interests_of(said: dict[str, Any]) -> InterestConfig:
    """Knobs of the interests out of their JSON."""
    terms = InterestConfig().terms.__class__(**said["terms"])
    return InterestConfig(**said | {"terms": terms})


def before(history: pl.DataFrame, rule: str, config: InterestConfig) -> pl.DataFrame:
    """The training part of each history, of users who had enough by then: all that a persona may see.

    Args:
        history: As `read_history` returns it.
        rule: Column of the split.
        config: Knobs of the interests.

    Raises:
        ValueError: If an event of the training part comes after a later one of the same user.
    """
    last = history.filter(pl.col(rule) == TRAIN).group_by("user_id").agg(pl.col("position").max().alias("last"))
    later = history.filter(pl.col(rule) != TRAIN).join(last, on="user_id")
    if (later["first"] <= later["last"]).any():
        raise ValueError(
            f"The split {rule} puts training events of a user behind later ones: materialize interactions/splits again."
        )
    past = history.filter(pl.col(rule) == TRAIN)
    activity = past.group_by("user_id").agg(
        pl.col("times").sum().alias("events"), pl.col("times").filter("liked").sum().alias("likes")
    )
    return past.join(eligible_users(activity, config).select("user_id"), on="user_id", how="semi")


def choose(warehouse: Warehouse, found: Found, identity: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """The explorations without asking a model: what it chose for the same content, else the most similar candidate.

    Args:
        warehouse: Where the store of personas is.
        found: What histories say.
        identity: What decides a text beside its content.

    Returns:
        Columns ``user_id``, ``anchor_cluster``, ``cluster``; and the users whose choice was in the store.
    """
    top = found.candidates.unique(["user_id", "anchor_cluster"], keep="first", maintain_order=True)
    top = top.select("user_id", "anchor_cluster", "cluster")
    keys = {u: version_of(request=r.model_dump(), **identity) for u, r in found.requests.items()}
    if not warehouse.exists(PERSONA_STORE):
        return top, 0
    wanted = pc.field("content_key").isin(pa.array(list(keys.values()), pa.string()))
    store = pl.DataFrame(warehouse.read(PERSONA_STORE, ["content_key", "explored", "anchors"], wanted))
    users = pl.DataFrame(
        {"user_id": list(keys), "content_key": list(keys.values())},
        schema_overrides={"user_id": pl.String, "content_key": pl.String},
    )
    stored = users.join(store.unique("content_key", keep="first"), on="content_key")
    chosen = stored.select("user_id", pl.col("anchors").alias("anchor_cluster"), pl.col("explored").alias("cluster"))
    chosen = chosen.explode("anchor_cluster", "cluster").drop_nulls()
    rest = top.join(stored.select("user_id"), on="user_id", how="anti", maintain_order="left")
    return pl.concat([rest, chosen.cast(rest.schema)]), stored.height


def make_panel(
    world: World,
    users: list[str],
    history: pl.DataFrame,
    interests: pl.DataFrame,
    explorations: pl.DataFrame,
    config: InterestConfig,
) -> Panel:
    """Puts personas of users into matrices; rows in the order of ``users``.

    Args:
        world: The catalogue.
        users: Users, those without a persona included.
        history: What the personas saw.
        interests: As `find_interests` returns them.
        explorations: Columns ``user_id``, ``anchor_cluster``, ``cluster``.
        config: Knobs of the interests: how likes are weighed.
    """
    rows = pl.DataFrame({"user_id": users}, schema={"user_id": pl.String}).with_row_index("user")
    column = world.clusters.select(pl.col("cluster").cast(pl.Int32), "column")
    shape = (len(users), world.clusters.height)

    def put(frame: pl.DataFrame, value: str | None = None) -> np.ndarray:
        made = np.zeros(shape, np.float64 if value else bool)
        cells = frame["user"].to_numpy(), frame["column"].to_numpy()
        if value:
            np.add.at(made, cells, frame[value].to_numpy())
        else:
            made[cells] = True
        return made

    events = history.select("user_id", "item_id", "timestamp", "position", "value", "liked", "title").join(
        rows, on="user_id"
    )
    events = events.join(world.items, on="item_id")
    likes = weigh_likes(events, config)
    known = interests.with_columns(pl.col("cluster").cast(pl.Int32)).join(column, on="cluster").join(rows, on="user_id")
    known = known.sort("user", "share", descending=[False, True], maintain_order=True)
    explored = (
        explorations.with_columns(pl.col("cluster", "anchor_cluster").cast(pl.Int32))
        .join(column, on="cluster")
        .join(column.rename({"cluster": "anchor_cluster", "column": "anchor"}), on="anchor_cluster")
        .join(rows, on="user_id")
        .sort("user", maintain_order=True)
    )
    share_UC = put(likes, "share")
    cells = likes["user"].to_numpy(), likes["item"].to_numpy()
    share_UN = sp.csr_matrix((likes["share"].to_numpy(), cells), shape=(len(users), len(world.item_ND)))
    history_UD = np.asarray(share_UN @ world.item_ND, np.float64)
    history_UD /= np.maximum(np.linalg.norm(history_UD, axis=1, keepdims=True), 1e-9)
    topics = Topics(put(known), put(explored), np.arange(len(users)))
    explored = explored.select("user", "anchor", "column")
    return Panel(rows, known, explored, topics, likes, events.select("user", "item"), share_UC, put(events), history_UD)


def later_likes(world: World, panel: Panel, history: pl.DataFrame, rule: str, period: str) -> pl.DataFrame:
    """What users of a panel liked in a later period and had not met before: ``user``, ``item``, ``column``.

    Args:
        world: The catalogue.
        panel: Personas that saw the training part only.
        history: Whole histories.
        rule: Column of the split.
        period: ``valid`` or ``test``.
    """
    met = history.filter(pl.col(rule) == TRAIN).select("user_id", "item_id")
    later = history.filter((pl.col(rule) == period) & pl.col("liked")).select("user_id", "item_id").unique()
    later = later.join(met, on=["user_id", "item_id"], how="anti")
    return (
        later.join(panel.users, on="user_id")
        .join(world.items, on="item_id")
        .select("user", "item", "column")
        .sort("user", "item")
    )
