"""What the ledger keeps of forgotten users, as plain values. None of it holds a user's id."""

import dataclasses
import datetime as dt
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class StoreErasure:
    """What was done in one store.

    Attributes:
        store: Table, view or other store, e.g. ``table interactions/splits``.
        rows_removed: Rows (of an online store: entities) that were removed for good.
        versions_vacuumed: Old table versions, or other copies, that can no longer bring them back.
        verified: What the search for the ids found at the end; ``nothing``, or what was not searched and why.
    """

    store: str
    rows_removed: int
    versions_vacuumed: int
    verified: str


@dataclasses.dataclass(frozen=True)
class ForgetRequest:
    """A request that was begun. It is in the ledger before anything is removed.

    Attributes:
        request_id: Its id.
        users: Keyed digests of the users.
        reason: Why.
        requested_by: Who asked.
        created: When (UTC).
        done: Rows and versions by store, as far as an attempt got; a killed attempt is counted once.
        models: Models that learned from the users.
    """

    request_id: str
    users: tuple[str, ...]
    reason: str
    requested_by: str
    created: dt.datetime
    done: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ForgetCertificate:
    """That users were removed, and where from; appended once, never changed.

    Attributes:
        request_id: The request.
        users: Keyed digests of the users.
        reason: Why.
        requested_by: Who asked.
        requested: When (UTC).
        completed: When the search had found nothing (UTC).
        stores: What was done, store by store.
        models: Models that learned from the users and were not trained again.
        note: What the certificate says in one sentence.
        code_version: Source revision that did it.
        dagster_run_id: Run that did it.
    """

    request_id: str
    users: tuple[str, ...]
    reason: str
    requested_by: str
    requested: dt.datetime
    completed: dt.datetime
    stores: tuple[StoreErasure, ...]
    models: tuple[str, ...]
    note: str
    code_version: str
    dagster_run_id: str

    @property
    def rows_removed(self) -> int:
        """Rows of all stores."""
        return sum(store.rows_removed for store in self.stores)

    def to_json(self) -> str:
        """The certificate as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, default=str)
