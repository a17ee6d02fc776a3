"""Alerts: one message a problem, to whoever owns it, however often and by however many it is seen.

The ledger holds one row a problem. Whoever inserts the row, or finds it due again, claims the delivery in the
same transaction; everybody else only counts. A delivery that failed is claimed again after `LEASE`.
"""

import dataclasses
import datetime as dt
import json
import os
import re
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from models.identity import version_of
from orchestration.resources.ledger import SqlLedger
from orchestration.settings import Settings

LEASE = dt.timedelta(minutes=2)
QUIET = dt.timedelta(hours=6)
MAX_CAUSE = 400
TIMEOUT_SECONDS = 5.0
ATTEMPTS = 3

_CHANGING = re.compile(
    r"0x[0-9a-f]+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{8,}\b|\d+(?:[.,]\d+)*", re.I
)

Outcome = Literal["delivered", "repeated", "undelivered"]


class DeliveryError(RuntimeError):
    """An alert could not be delivered; it is tried again later."""


@dataclasses.dataclass(frozen=True)
class Alert:
    """One problem.

    Attributes:
        kind: ``run_failure``, ``check``, ``freshness``, ``quarantine``, ``queue``,
            ``personas`` or ``daemon``.
        severity: ``error`` or ``warning``.
        owner: Who has to act, e.g. ``team:ranking``.
        asset: Asset, or ``job <name>`` or ``platform``.
        partition: Partition; empty if there is none.
        cause: First cause in one sentence.
        runbook: Address of the page that says what to do.
        hint: What to try first.
        link: Where to look in Dagster.
        identity: What tells this problem from others of the asset and partition; the cause by default.
    """

    kind: str
    severity: Literal["error", "warning"]
    owner: str
    asset: str
    partition: str
    cause: str
    runbook: str
    hint: str
    link: str
    identity: str = ""

    @property
    def dedupe_key(self) -> str:
        """The same for the same problem: numbers and ids in the cause may differ."""
        return version_of(
            asset=self.asset, partition=self.partition, identity=self.identity or _CHANGING.sub("#", self.cause)
        )

    def text(self) -> str:
        """The alert as one line, for chat."""
        where = self.asset + (f" [{self.partition}]" if self.partition else "")
        return f"{self.severity.upper()} {where} ({self.owner}): {self.cause} | {self.hint} | {self.runbook}"


class Channel(Protocol):
    """Where alerts go."""

    def send(self, payload: dict[str, Any]) -> None:
        """Delivers one alert or raises `DeliveryError`."""


@dataclasses.dataclass(frozen=True)
class FileChannel:
    """One JSON line an alert."""

    path: Path

    def send(self, payload: dict[str, Any]) -> None:
        """See `Channel.send`. One write to a file opened for appending, so that lines stay whole."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            target = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(target, (json.dumps(payload) + "\n").encode())
            finally:
                os.close(target)
        except OSError as error:
            raise DeliveryError(f"The alert file {self.path} cannot be written: {error.strerror}.") from error


@dataclasses.dataclass(frozen=True)
class WebhookChannel:
    """One JSON POST an alert; `text` is what chat tools show."""

    url: str
    pause_seconds: float = 0.5

    def send(self, payload: dict[str, Any]) -> None:
        """See `Channel.send`. Transport errors, 429 and 5xx are tried again; the key marks repeats."""
        import httpx

        seen = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.pause_seconds * 2 ** (attempt - 1))
            try:
                answer = httpx.post(
                    self.url,
                    json=payload,
                    timeout=TIMEOUT_SECONDS,
                    headers={"Idempotency-Key": f"{payload['key']}-{payload['delivery']}"},
                )
            except httpx.HTTPError as error:
                seen = type(error).__name__
                continue
            if answer.is_success:
                return
            seen = f"HTTP {answer.status_code}"
            if answer.status_code != 429 and answer.status_code < 500:
                break
        # The path of a webhook is a secret: name its host only.
        raise DeliveryError(f"The alert webhook at {httpx.URL(self.url).host} refused: {seen}.")


def channel_of(settings: Settings) -> Channel:
    """The configured channel: the webhook, or `alerts.jsonl` below ``home``."""
    if settings.alert_webhook:
        return WebhookChannel(settings.alert_webhook)
    return FileChannel(settings.home / "alerts.jsonl")


def _update(session: Any, statement: Any) -> int:
    """Runs an update and returns how many rows it changed."""
    return int(session.execute(statement, execution_options={"synchronize_session": False}).rowcount)


def _claim(session: Any, alert: Alert, now: dt.datetime, quiet: dt.timedelta) -> bool:
    """Notes that ``alert`` was seen. Returns whether the caller has to deliver it."""
    import sqlalchemy as sa

    from orchestration.ledger.models import Alert as Row
    from orchestration.resources.ledger import insert_once

    said = {f.name: getattr(alert, f.name) for f in dataclasses.fields(alert) if f.name != "identity"}
    said["cause"] = alert.cause[:MAX_CAUSE]
    if insert_once(
        session,
        Row,
        said
        | {
            "dedupe_key": alert.dedupe_key,
            "first_seen": now,
            "last_seen": now,
            "count": 1,
            "deliveries": 1,
            "claimed": now,
            "delivered": None,
        },
        ["dedupe_key"],
    ):
        return True
    this = Row.dedupe_key == alert.dedupe_key
    _update(session, sa.update(Row).where(this).values(count=Row.count + 1, last_seen=now))
    again = (
        sa.update(Row)
        .where(this, Row.delivered <= now - quiet)
        .values(said | {"claimed": now, "delivered": None, "deliveries": Row.deliveries + 1})
    )
    lost = (
        sa.update(Row).where(this, Row.delivered.is_(None), Row.claimed <= now - LEASE).values(said | {"claimed": now})
    )
    return bool(_update(session, again) or _update(session, lost))


def _deliver(ledger: SqlLedger, channel: Channel, key: str, now: dt.datetime) -> None:
    import sqlalchemy as sa

    from orchestration.ledger.models import Alert as Row

    with ledger.session() as session:
        row = session.scalar(sa.select(Row).where(Row.dedupe_key == key))
        shown = (
            "kind",
            "severity",
            "owner",
            "asset",
            "partition",
            "cause",
            "runbook",
            "hint",
            "link",
            "count",
        )
        payload = {name: getattr(row, name) for name in shown} | {
            "key": key,
            "delivery": row.deliveries,
            "first_seen": row.first_seen.isoformat(),
            "last_seen": row.last_seen.isoformat(),
        }
    identity = {f.name for f in dataclasses.fields(Alert)} - {"identity"}
    payload["text"] = Alert(**{name: payload[name] for name in identity}).text()
    channel.send(payload)
    with ledger.session() as session:
        session.execute(sa.update(Row).where(Row.dedupe_key == key).values(delivered=now))


def raise_alert(
    ledger: SqlLedger, channel: Channel, alert: Alert, *, now: dt.datetime | None = None, quiet: dt.timedelta = QUIET
) -> Outcome:
    """Delivers an alert unless the same was delivered within ``quiet``.

    Args:
        ledger: Where what was seen is kept.
        channel: Where the alert goes.
        alert: The alert.
        now: The moment; the clock's by default.
        quiet: How long a delivered alert keeps repeats of itself quiet.

    Returns:
        ``delivered``; ``repeated`` if somebody delivered it already (or is at it); ``undelivered`` if the
        channel refused, in which case `redeliver` or the next sighting tries again.
    """
    now = now or dt.datetime.now(dt.UTC)
    with ledger.session() as session:
        mine = _claim(session, alert, now, quiet)
    if not mine:
        return "repeated"
    try:
        _deliver(ledger, channel, alert.dedupe_key, now)
    except DeliveryError:
        return "undelivered"
    return "delivered"


def redeliver(ledger: SqlLedger, channel: Channel, *, now: dt.datetime | None = None) -> int:
    """Delivers what could not be delivered when it was seen.

    Returns:
        How many alerts went out.

    Raises:
        DeliveryError: If the channel still refuses.
    """
    import sqlalchemy as sa

    from orchestration.ledger.models import Alert as Row

    now = now or dt.datetime.now(dt.UTC)
    due = sa.and_(Row.delivered.is_(None), Row.claimed <= now - LEASE)
    with ledger.session() as session:
        keys = list(session.scalars(sa.select(Row.dedupe_key).where(due).order_by(Row.id)))
    sent = 0
    for key in keys:
        with ledger.session() as session:
            mine = _update(session, sa.update(Row).where(Row.dedupe_key == key, due).values(claimed=now))
        if mine:
            _deliver(ledger, channel, key, now)
            sent += 1
    return sent
