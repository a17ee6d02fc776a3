"""Forgetting users: from the request in the ledger, over every store, to the certificate.

The order makes every kill harmless. The request and the forget-list come first, so that from then on no ingestion
brings the users back. Then each store is erased, what is about to go noted before it goes. The certificate comes last,
and only after a search has found nothing. A killed attempt leaves a request without a certificate, and another call
with the same users goes on with it.
"""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assets.forget_records import ForgetCertificate, ForgetRequest, StoreErasure
from assets.resources import Features, Ledger, Tables, TextEncoder, Tracking
from assets.source_revision import source_revision
from feature_repo import erasure as published
from models.forgetting import ForgetList, names
from orchestration.forget_model_files import LessonFiles, ModelFiles, StagedExports
from orchestration.forget_stores import (
    DISTINCTIVE,
    NOTHING,
    DeltaRows,
    LedgerRows,
    Logs,
    OnlineStore,
    PublishedView,
    Quarantine,
    Scratch,
    Store,
    persona_keys,
)
from ray_jobs import erasure
from ray_jobs.erasure import USER_COLUMN
from ray_jobs.tables.clusters import EMBEDDING_STORE
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import QUARANTINE, RAW_INTERACTIONS, SPLITS
from ray_jobs.tables.personas import PERSONA_DEAD_LETTERS, PERSONA_STORE

# Registered models that learn from items alone.
OF_ITEMS = ("semantic_ids",)
PASSES = 5
IS_PROMPT = "mlflow.prompt.is_prompt"
TOLD_BY = {
    "training_set": TRAINING_SET,
    "splits_version": SPLITS,
    "raw_interactions_version": RAW_INTERACTIONS,
}


class StillFoundError(ValueError):
    """The search found users after they had been removed; there is no certificate."""


@dataclasses.dataclass(frozen=True)
class Platform:
    """Where users are.

    Attributes:
        tables: The warehouse.
        features: Published views and the online store.
        ledger: The platform's own records.
        tracking: MLflow.
        text_encoder: Whose embeddings of personas are kept.
        home: Folder of the embedded twins, with logs.
        dataset: Location of the source, which is not the platform's to change.
    """

    tables: Tables
    features: Features
    ledger: Ledger
    tracking: Tracking
    text_encoder: TextEncoder
    home: Path
    dataset: str


def stores(platform: Platform, users: list[str], only: ForgetList, note: str) -> list[Store]:
    """Every store, in the order in which users leave them.

    Tables are found by their columns as they stand, so a table that nobody declared is among them.

    Args:
        platform: Where users are.
        users: Ids.
        only: A forget-list of these users alone.
        note: Stands in the tables' commits.
    """
    warehouse, names = platform.tables.warehouse(), erasure.table_names(platform.tables.warehouse())
    texts, vectors = persona_keys(warehouse, users, platform.text_encoder.encoder())
    # Before `personas/user_personas`, which tells whose these are.
    by_content = ((PERSONA_STORE, texts), (PERSONA_DEAD_LETTERS, texts), (EMBEDDING_STORE, vectors))
    found: list[Store] = [LessonFiles(warehouse, platform.tables.artifacts(), users)]
    found += [
        DeltaRows(warehouse, table.name, "content_key", keys, note, always=False)
        for table, keys in by_content
        if table.name in names
    ]
    if QUARANTINE.name in names:
        found.append(Quarantine(warehouse, only, note))
    found += [
        DeltaRows(warehouse, name, USER_COLUMN, users, note, always=True)
        for name in names
        if USER_COLUMN in erasure.columns(warehouse, name)
    ]
    publications = platform.features.publications()
    found += [PublishedView(publications, view, users) for view in published.views(publications, USER_COLUMN)]
    artifacts, root = platform.tables.artifacts(), str(getattr(platform.tracking, "artifact_root", ""))
    return [
        *found,
        OnlineStore(platform.features, users),
        LedgerRows(platform.ledger, users),
        ModelFiles("models in the artifact store", artifacts.root, artifacts.storage_options, users),
        ModelFiles("models in MLflow", root, artifacts.storage_options, users),
        StagedExports(artifacts),
        Scratch(),
        Logs(platform.home, platform.dataset, users),
    ]


def models_of(platform: Platform, users: list[str]) -> tuple[str, ...]:
    """Registered models that learned from data with the users in it; none if no events of theirs stand.

    A model is told by the data versions in its tags. One that was trained on an older version, or tells none, is named
    too, as nobody can say that it did not see them.
    """
    warehouse = platform.tables.warehouse()
    known = [t for t in TOLD_BY.values() if warehouse.exists(t)]
    if not any(erasure.count(warehouse, t.name, USER_COLUMN, users) for t in known):
        return ()
    mlflow = platform.tracking.connect("ranking")
    found = []
    for version in mlflow.MlflowClient().search_model_versions():
        tags = dict(version.tags or {})
        if version.name in OF_ITEMS or IS_PROMPT in tags:
            continue
        told = [t for tag, t in TOLD_BY.items() if t in known and tags.get(tag) == warehouse.version(t)]
        how = f"on {told[0].name} {warehouse.version(told[0])}" if told else "on older data, which may have held them"
        found.append(f"{version.name} version {version.version}, trained {how}")
    return tuple(sorted(found))


def forget(
    platform: Platform,
    users: list[str],
    *,
    reason: str,
    requested_by: str,
    run_id: str,
    say: Callable[[str], None],
    wait_for_others: Callable[[], bool] = lambda: True,
) -> ForgetCertificate:
    """Removes users from every store and appends the certificate.

    Args:
        platform: Where users are.
        users: Their ids.
        reason: Why; must not name them.
        requested_by: Who asks; must not name them either.
        run_id: Dagster run that does it.
        say: Takes one sentence for the log, without ids.
        wait_for_others: Waits until no other run is at work. Called before each store is erased and after all were
            searched; False says that another run was at work since the call before, and may have written the users
            again.

    Raises:
        ValueError: If there is nobody to forget, or reason or requester names somebody.
        StillFoundError: If the search finds them in the end.
    """
    users = sorted({user.strip() for user in users} - {""})
    if not users:
        raise ValueError("There is no user to forget: write one id a line.")
    if any(_is_named(user, text) for user in users for text in (reason, requested_by)):
        raise ValueError("The reason or the requester names the user: leave the id out, both stand in the certificate.")
    known = platform.ledger.forget_list()
    only = ForgetList(known.key, frozenset(known.digest(user) for user in users))
    asked = ForgetRequest(uuid.uuid4().hex, tuple(sorted(only.digests)), reason, requested_by, dt.datetime.now(dt.UTC))
    request = platform.ledger.begin_forgetting(asked)
    say(
        f"Request {request.request_id} of {_users(len(users))} is in the ledger"
        + ("." if request is asked else ": it was begun before and goes on.")
    )
    wait_for_others()
    done: dict[str, Any] = dict(request.done)
    models = tuple(sorted({*request.models, *models_of(platform, users)}))
    platform.ledger.note_forgetting(request.request_id, done, models)
    for _ in range(PASSES):
        todo, quiet = stores(platform, users, only, request.request_id), True
        for store in todo:
            # A run that began meanwhile may have files in a table that no commit names yet: a vacuum would take them.
            quiet &= wait_for_others()
            _erase(platform.ledger, request, store, done, models, say)
        verified = {store.name: store.search() for store in todo}
        if wait_for_others() and quiet:
            break
        say("Another run was at work meanwhile and may have written them again: erasing once more.")
    else:
        raise StillFoundError(
            "There is no certificate, because other runs were at work each time: pause the schedules, and launch "
            "forget_user again."
        )
    if left := {
        name: said for name, said in verified.items() if said.split(";")[0] != NOTHING and "not searched" not in said
    }:
        name, said = next(iter(left.items()))
        raise StillFoundError(
            f"There is no certificate, because {name} still has {said}: remove it there, and launch forget_user again."
        )
    certificate = _certificate(request, done, verified, models, run_id)
    platform.ledger.append_certificate(certificate)
    say(certificate.note)
    return certificate


def _erase(
    ledger: Ledger,
    request: ForgetRequest,
    store: Store,
    done: dict[str, Any],
    models: tuple[str, ...],
    say: Callable[[str], None],
) -> None:
    before = done.get(store.name, {"rows": 0, "versions": 0})
    # Noted before it goes: a killed attempt would find nothing the next time. The larger number is the true one.
    rows = max(store.held(), before["rows"])
    done[store.name] = {"rows": rows, "versions": before["versions"]}
    ledger.note_forgetting(request.request_id, done, models)
    versions = before["versions"] + store.erase()
    done[store.name] = {"rows": rows, "versions": versions}
    ledger.note_forgetting(request.request_id, done, models)
    if rows or versions:
        say(f"{store.name}: {rows:,} rows removed, {versions:,} older versions gone.")


def _is_named(user: str, text: str) -> bool:
    return names(text.encode(), user.encode()) if DISTINCTIVE.fullmatch(user) else user in text.split()


def _users(number: int) -> str:
    return f"{number:,} user" + "s" * (number != 1)


def _certificate(
    request: ForgetRequest, done: dict[str, Any], verified: dict[str, str], models: tuple[str, ...], run_id: str
) -> ForgetCertificate:
    erased = tuple(
        StoreErasure(name, done[name]["rows"], done[name]["versions"], verified.get(name, NOTHING)) for name in done
    )
    rows = sum(store.rows_removed for store in erased)
    told = (
        f"{rows:,} rows of {_users(len(request.users))} were removed from "
        f"{sum(bool(store.rows_removed) for store in erased)} of {len(erased)} stores"
        if rows
        else f"Nothing was found of {_users(len(request.users))} in {len(erased)} stores"
    )
    unsearched = [store.store for store in erased if "not searched" in store.verified]
    partly = f" (with exceptions in: {', '.join(unsearched)})" if unsearched else ""
    trained = f"; {len(models)} models learned from them and were not trained again" if models else ""
    return ForgetCertificate(
        request.request_id,
        request.users,
        request.reason,
        request.requested_by,
        request.created,
        dt.datetime.now(dt.UTC),
        erased,
        models,
        f"{told}, and a search found nothing of them{partly}{trained}.",
        source_revision(),
        run_id,
    )
