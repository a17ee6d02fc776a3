"""What tests of persona refreshes share: tables, a model behind a real loopback endpoint, a store in files."""

import dataclasses
import datetime as dt
import json
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.personas.exploration import ExplorationConfig
from models.personas.freshness import ServedPersona
from models.personas.interests import InterestConfig
from ray_jobs.language.engine import LanguageEngineConfig
from ray_jobs.personas.refresh import STORES, Config
from ray_jobs.personas.store import StoreConfig
from ray_jobs.personas.writing import Config as WritingConfig
from ray_jobs.personas.writing import make_stores
from ray_jobs.tables.clusters import CLUSTER_PROFILES, SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.text_encoding import TextEncoderConfig
from tests.factories import CREATED, GENRES, seed_interactions


class FileStore:
    """One JSON file a user, replaced whole: a store that outlives the process that wrote it."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def look_up(self, user_id, most_events):
        return self.read([user_id]).get(user_id), []

    def read(self, user_ids):
        found = {u: self.folder / f"{u}.json" for u in user_ids}
        said = {u: json.loads(path.read_text()) for u, path in found.items() if path.is_file()}
        return {u: ServedPersona(**(s | {"written": dt.datetime.fromisoformat(s["written"])})) for u, s in said.items()}

    def write(self, personas):
        for p in personas:
            beside = self.folder / f"{p.user_id}.{os.getpid()}"
            beside.write_text(json.dumps(dataclasses.asdict(p) | {"written": p.written.isoformat()}))
            os.replace(beside, self.folder / f"{p.user_id}.json")

    def remove(self, user_ids):
        for user in user_ids:
            (self.folder / f"{user}.json").unlink(missing_ok=True)


def seed_tables(tables, num_users=6):
    """Interactions, and two clusters a genre, one of which a user has mostly not seen."""
    seed_interactions(tables, num_users=num_users, num_items=60, events_per_user=14)
    items = tables.read(ITEMS, ["item_id", "categories"]).to_pylist()
    cluster = [GENRES.index(i["categories"][0]) * 2 + int(i["item_id"][1:]) % 2 for i in items]
    ids = [
        {
            "item_id": i["item_id"],
            "codes": [c],
            "collision": n,
            "semantic_id": f"{c}-{n}",
            "cluster": c,
            "codebook_version": "codes-1",
            "event_timestamp": CREATED,
            "created_timestamp": CREATED,
        }
        for n, (i, c) in enumerate(zip(items, cluster, strict=True))
    ]
    tables.write(SEMANTIC_IDS, pa.Table.from_pylist(ids, SEMANTIC_IDS.schema), "codes-1")
    centers = np.random.default_rng(0).normal(size=(len(GENRES), 8)) + 1.0
    profiles = []
    for c in sorted(set(cluster)):
        vector = centers[c // 2] + 0.4 * (c % 2)
        profiles.append(
            {
                "cluster": c,
                "label": f"{'old' if c % 2 else 'new'} {GENRES[c // 2]}",
                "items": cluster.count(c),
                "example_item_ids": [],
                "example_titles": [],
                "centroid": (vector / np.linalg.norm(vector)).tolist(),
                "codebook_version": "codes-1",
                "created_timestamp": CREATED,
            }
        )
    tables.write(CLUSTER_PROFILES, pa.Table.from_pylist(profiles, CLUSTER_PROFILES.schema), "profiles-1")


class Model:
    """What the endpoint answers: usable sentences, first options, ``safe``; and what it was asked.

    Attributes:
        sentences: Prompts of sentences that were answered.
        verdicts: Prompts of the safety filter that were answered.
        before: Called with each prompt before it is answered; may block, or return another answer.
    """

    def __init__(self, before=lambda prompt: None):
        self.sentences, self.verdicts, self.before = [], [], before
        self._lock = threading.Lock()

    def __call__(self, body, number):
        prompt = body["messages"][-1]["content"]
        if (said := self.before(prompt)) is not None:
            return said
        if "response_format" in body:
            if prompt.startswith("<text>"):
                self._note(self.verdicts, prompt)
            schema = body["response_format"]["json_schema"]["schema"]
            return json.dumps({"choice": schema["properties"]["choice"]["enum"][0]})
        self._note(self.sentences, prompt)
        topic = prompt.split("topic: ")[1].splitlines()[0]
        return f"Likes {topic} stories that end well."

    def _note(self, where, prompt):
        with self._lock:
            where.append(prompt)


def refresh_config(tables, queue, url, store: StoreConfig, **more) -> Config:
    """The job's config on tables that are there; writing knobs under ``writing``."""
    make_stores(tables.warehouse(), *STORES)
    writing = WritingConfig(
        **(
            {
                "warehouse": tables.warehouse(),
                "engine": LanguageEngineConfig(kind="openai", model="m", revision="r", base_url=url, max_retries=0),
                "encoder": TextEncoderConfig(),
                "version": "",
                "persona_version": "v1",
                "code_version": "1",
                "interests": InterestConfig(min_events=3, min_likes=2, max_interests=2),
                "exploration": ExplorationConfig(num_anchors=1),
                "users_per_batch": 2,
            }
            | more.pop("writing", {})
        )
    )
    return Config(**({"writing": writing, "queue": queue, "store": store, "owner": "test"} | more))


def files_in(folder: Path) -> StoreConfig:
    """A `FileStore` in a folder."""
    folder.mkdir(exist_ok=True)
    return StoreConfig(factory="tests.ray_jobs.refreshes:FileStore", options={"folder": str(folder)})
