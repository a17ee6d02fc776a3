"""Alerts: one delivery a problem, however often it is seen; nothing is lost while the receiver is away."""

import concurrent.futures
import datetime as dt
import http.server
import json
import threading

import pytest

from orchestration.alerts import (
    LEASE,
    QUIET,
    Alert,
    DeliveryError,
    FileChannel,
    WebhookChannel,
    channel_of,
    raise_alert,
    redeliver,
)
from orchestration.ledger.database import ready_engine
from orchestration.resources.ledger import ledger_twin
from orchestration.settings import Settings

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
ALERT = Alert(
    kind="run_failure",
    severity="error",
    owner="team:ranking",
    asset="ranking/dlrm",
    partition="2026-11-21",
    cause="Run 5f3a9c1d77 saw 17 rows.",
    runbook="http://docs/ranking.md",
    hint="Try again.",
    link="http://ui/runs/5",
)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def ledger(request, tmp_path):
    """An empty ledger of each kind."""
    url = f"sqlite:///{tmp_path}/ledger.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    yield ledger_twin(url)
    ready_engine(url).dispose()
    ready_engine.cache_clear()


@pytest.fixture
def receiver():
    """A real HTTP server that keeps what was posted and answers as told."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.got.append((self.path, dict(self.headers), body))
                status = server.answers.pop(0) if server.answers else 200
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.answers, server.lock = [], [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/hook/secret"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def rows(ledger):
    import sqlalchemy as sa

    from orchestration.ledger.models import Alert as Row

    with ledger.session() as session:
        return [(r.asset, r.count, r.deliveries, r.delivered) for r in session.scalars(sa.select(Row).order_by(Row.id))]


def test_the_same_problem_has_the_same_key():
    same = Alert(**(vars(ALERT) | {"cause": "Run 99aabbccdd saw 3 rows.", "link": "http://ui/runs/6"}))
    assert same.dedupe_key == ALERT.dedupe_key
    for change in (
        {"cause": "No rows."},
        {"asset": "ranking/other"},
        {"partition": "2026-11-20"},
        {"identity": "check gate"},
    ):
        assert Alert(**(vars(ALERT) | change)).dedupe_key != ALERT.dedupe_key, change


def test_an_alert_says_all_that_on_call_needs(ledger, receiver):
    assert raise_alert(ledger, WebhookChannel(receiver.url), ALERT, now=NOW) == "delivered"
    path, headers, body = receiver.got[0]
    assert path == "/hook/secret" and headers["Idempotency-Key"] == f"{ALERT.dedupe_key}-1"
    assert {
        k: body[k] for k in ("owner", "asset", "partition", "cause", "runbook", "hint", "link", "severity", "count")
    } == {
        "owner": "team:ranking",
        "asset": "ranking/dlrm",
        "partition": "2026-11-21",
        "cause": ALERT.cause,
        "severity": "error",
        "runbook": "http://docs/ranking.md",
        "hint": "Try again.",
        "link": "http://ui/runs/5",
        "count": 1,
    }
    for part in ("team:ranking", "ranking/dlrm", "2026-11-21", ALERT.cause, "http://docs/ranking.md"):
        assert part in body["text"]
    assert body["first_seen"] == NOW.isoformat()


def test_repeats_are_counted_and_delivered_again_only_after_the_quiet_time(ledger, receiver):
    channel = WebhookChannel(receiver.url)
    moments = [
        NOW,
        NOW + dt.timedelta(minutes=1),
        NOW + QUIET - dt.timedelta(seconds=1),
        NOW + QUIET,
        NOW + QUIET * 1.5,
    ]
    assert [raise_alert(ledger, channel, ALERT, now=m) for m in moments] == [
        "delivered",
        "repeated",
        "repeated",
        "delivered",
        "repeated",
    ]
    assert [body["count"] for _, _, body in receiver.got] == [1, 4]
    assert rows(ledger) == [("ranking/dlrm", 5, 2, NOW + QUIET)]


def test_many_who_see_it_at_once_deliver_it_once(ledger, receiver):
    channel = WebhookChannel(receiver.url)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: raise_alert(ledger, channel, ALERT, now=NOW), range(16)))
    assert sorted(set(outcomes)) == ["delivered", "repeated"] and outcomes.count("delivered") == 1
    assert len(receiver.got) == 1
    assert rows(ledger)[0][1] == 16


def test_a_receiver_that_stumbles_is_tried_again_at_once(ledger, receiver):
    receiver.answers = [503, 429]
    assert raise_alert(ledger, WebhookChannel(receiver.url, pause_seconds=0.01), ALERT, now=NOW) == "delivered"
    assert len(receiver.got) == 3 and len({h["Idempotency-Key"] for _, h, _ in receiver.got}) == 1


def test_a_receiver_that_refuses_is_not_pestered(receiver):
    receiver.answers = [400]
    with pytest.raises(DeliveryError, match="127.0.0.1 refused: HTTP 400") as refused:
        WebhookChannel(receiver.url).send({"key": "k", "delivery": 1})
    assert len(receiver.got) == 1
    assert "secret" not in str(refused.value)


def test_an_alert_that_could_not_be_delivered_is_delivered_later_and_once(ledger, receiver):
    away = WebhookChannel("http://127.0.0.1:9/hook", pause_seconds=0.01)
    here = WebhookChannel(receiver.url)
    assert raise_alert(ledger, away, ALERT, now=NOW) == "undelivered"
    assert raise_alert(ledger, here, ALERT, now=NOW + LEASE / 2) == "repeated", (
        "whoever holds the claim may still be at it"
    )
    assert redeliver(ledger, here, now=NOW + LEASE / 2) == 0
    with pytest.raises(DeliveryError, match="ConnectError"):
        redeliver(ledger, away, now=NOW + LEASE)
    assert redeliver(ledger, here, now=NOW + LEASE * 2) == 1
    assert redeliver(ledger, here, now=NOW + LEASE * 4) == 0
    assert [body["count"] for _, _, body in receiver.got] == [2]


def test_without_a_webhook_alerts_go_to_a_file(ledger, tmp_path):
    channel = channel_of(Settings(home=tmp_path / "home"))
    assert isinstance(channel, FileChannel)
    other = Alert(**(vars(ALERT) | {"asset": "ranking/other"}))
    assert [raise_alert(ledger, channel, a, now=NOW) for a in (ALERT, ALERT, other)] == [
        "delivered",
        "repeated",
        "delivered",
    ]
    lines = [json.loads(line) for line in (tmp_path / "home/alerts.jsonl").read_text().splitlines()]
    assert [line["asset"] for line in lines] == ["ranking/dlrm", "ranking/other"]


def test_a_file_that_cannot_be_written_keeps_the_alert_waiting(ledger, tmp_path):
    (tmp_path / "taken").write_text("no folder")
    assert raise_alert(ledger, FileChannel(tmp_path / "taken" / "alerts.jsonl"), ALERT, now=NOW) == "undelivered"
    assert rows(ledger)[0][3] is None


def test_the_webhook_is_chosen_by_the_settings(tmp_path):
    assert channel_of(Settings(home=tmp_path, alert_webhook="http://chat/hook")) == WebhookChannel("http://chat/hook")
