"""The state that a decision of the gate is made in, and how its evidence becomes a row."""

import datetime as dt
import json
import math
from typing import Any, NamedTuple

import pydantic

from assets.experiments.candidates import rankers
from assets.experiments.records import CandidateRecord, Pointer
from assets.knobs import Knobs
from assets.resources import Ledger, Tables
from ray_jobs.tables.experiments import CHALLENGER

REFUSED, PROMOTED = "reject", "promote"


class GateConfig(Knobs):
    """What the gate asks for."""

    max_ece: float = pydantic.Field(0.05, gt=0, le=1, description="Largest expected calibration error on test.")
    level: float = pydantic.Field(0.95, gt=0, lt=1, description="Level of the bootstrap intervals.")
    resamples: int = pydantic.Field(1000, ge=100, description="Bootstrap resamples of users.")
    max_users: int = pydantic.Field(20_000, ge=2, description="Users that are resampled at most.")
    floor: str = pydantic.Field("popularity", description="Candidate that every champion must beat.")


class State(NamedTuple):
    """What was decided so far.

    Attributes:
        champion: Today's champion.
        decided_against: Candidates that were rejected or rolled back, with the reason.
    """

    champion: Pointer | None
    decided_against: dict[str, str]

    def identity(self) -> list[Any]:
        """The state as part of a version."""
        return [self.champion.label if self.champion else None, sorted(self.decided_against)]


def standing_row(tables: Tables) -> dict[str, Any] | None:
    """The row of `experiments/challenger`, or None."""
    rows = tables.read(CHALLENGER).to_pylist() if tables.warehouse().exists(CHALLENGER) else []
    return rows[0] if rows else None


def label_of(row: dict[str, Any]) -> str:
    """Name and version of a row's challenger."""
    return f"{row['challenger']}@{row['challenger_version']}"


def is_carried(row: dict[str, Any]) -> bool:
    """Whether every rule that was put to a challenger holds; without rules nothing is carried."""
    rules = json.loads(row["rules"])
    return bool(rules) and all(r["ok"] for r in rules)


def state_now(ledger: Ledger) -> State:
    """The state that a new decision would be made in."""
    moves = ledger.promotions()
    return State(
        moves[-1].after if moves else None,
        {c.label: c.status_reason for c in ledger.candidates() if c.status == "rejected"},
    )


def state_before(tables: Tables, ledger: Ledger) -> State:
    """The state that the standing decision was made in: without what came of it.

    A decision that was carried out changed the champion, or ruled its challenger out. That must not make the
    decision look outdated, or every promotion would be followed by another night's worth of the same work.
    """
    now, row = state_now(ledger), standing_row(tables)
    if row is None:
        return now
    moves = ledger.promotions()
    if moves and moves[-1].report.get("decision_version") == tables.version(CHALLENGER):
        now = now._replace(champion=moves[-1].before)
    if row["decision"] == REFUSED:
        now.decided_against.pop(label_of(row), None)
    return now


def comparison_config(
    tables: Tables, ledger: Ledger, state: State, gate: GateConfig, only: CandidateRecord | None = None
) -> Any:
    """Config of the job `ray_jobs.experiments.comparison` for today's candidates, or for one that was named."""
    from ray_jobs.experiments.comparison import Config, Contender

    contenders = [
        Contender(name=r["candidate"], version=r["ranker_version"], artifact=r["artifact"]) for r in rankers(tables)
    ]
    current = {c.label for c in contenders}

    def contender(record: CandidateRecord) -> Contender:
        return Contender(
            name=record.name, version=record.version, artifact=record.artifact, current=record.label in current
        )

    champions = [c for c in ledger.candidates() if state.champion and c.label == state.champion.label]
    return Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        candidates=contenders,
        champion=contender(champions[0]) if champions else None,
        floor=gate.floor,
        level=gate.level,
        decided_against=state.decided_against,
        resamples=gate.resamples,
        max_users=gate.max_users,
        only=contender(only) if only else None,
    )


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def decision_row(result: Any, verdict: Any, floor: str) -> dict[str, Any]:
    """The row of `experiments/challenger` for a comparison and its verdict."""
    from ray_jobs.experiments.comparison import evidence_of

    seen = evidence_of(result)
    split = {
        name: (label.split("@", 1) if label else [None, None])
        for name, label in (("challenger", seen.challenger), ("champion", seen.champion))
    }
    row: dict[str, Any] = {
        "decision": verdict.decision,
        "reason": f"{verdict.reason} {result.note}".strip(),
        "floor": floor,
        "challenger": split["challenger"][0],
        "challenger_version": split["challenger"][1],
        "champion": split["champion"][0],
        "champion_version": split["champion"][1],
        "num_examples": result.num_examples,
        "num_users": result.num_users,
        "rules": json.dumps([r._asdict() for r in verdict.rules]),
        "created_timestamp": dt.datetime.now(dt.UTC),
    }
    for name in ("valid_auc", "baseline_valid_auc", "test_auc", "ece"):
        row[name] = _number(getattr(seen, name))
    for prefix, difference in (
        ("valid_gain", seen.valid_gain),
        ("gain", seen.against_champion),
        ("floor_gain", seen.against_floor),
    ):
        for suffix, value in zip(("", "_low", "_high"), difference or (None, None, None), strict=True):
            row[prefix + suffix] = _number(value)
    return row


def rules_markdown(row: dict[str, Any]) -> str:
    """The gate's rules as a table for the UI."""
    lines = [
        f"**{row['decision']}**: {row['reason']}",
        "",
        "| rule | asked | observed | holds |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {r['threshold']} | {r['observed']} | {'yes' if r['ok'] else '**no**'} |"
        for r in json.loads(row["rules"])
    ]
    return "\n".join(lines if len(lines) > 4 else lines[:1])
