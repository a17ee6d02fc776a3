"""Evidence for the gate: candidates on validation, then the best one against champion and floor on test.

The best candidate is chosen by AUC on validation. Only its predictions of the test split are read, and those
of what it is compared with, so that the choice itself does not use up the test examples.

A champion of an earlier night scores today's examples itself. If its content is gone (VISTA was trained again, captions
are of another prompt), it refuses them here and refuses today's online features as well. It is not scored on foreign
content, and it must not stand in the way of what can serve: it is left out, the floor stands in for it, and the note
says so. Scores that it gave on an earlier night are no substitute. The same recipe on new content is rarely *surely*
better than itself, so a rule that asks for that would keep a champion that answers no request.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from models.experimentation.gate import Difference, Evidence
from models.ranking.bootstrap import interval, resampled_auc, user_weights
from models.ranking.content import ContentVersionError
from models.ranking.metrics import auc, calibration_error, equal_mass_bins
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.progress import note
from ray_jobs.tables.ranking import predictions
from ray_jobs.warehouse import Warehouse

VALID, TEST = "valid", "test"


class Contender(pydantic.BaseModel, frozen=True):
    """A trained ranker.

    Attributes:
        name: Candidate.
        version: Its version.
        artifact: The trained ranker in the artifact store.
        current: Whether the table ``ranking/<name>`` holds this very version's predictions.
    """

    name: str
    version: str
    artifact: str = ""
    current: bool = True

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name}@{self.version}"


class Config(pydantic.BaseModel, frozen=True):
    """What to compare.

    Attributes:
        warehouse: Tables.
        artifacts: Trained rankers.
        candidates: Those that may challenge, in the order in which ties are broken.
        champion: The champion; None while there is none.
        floor: The floor, one of ``candidates``.
        decided_against: Labels of versions that were rejected or rolled back, with the reason.
        resamples: Bootstrap resamples of users.
        max_users: Users that are resampled at most; more are sampled down, which widens intervals.
        level: Level of the intervals.
        seed: Seed of the draws.
        only: Put this one to the test, whatever it did on validation; None for the nightly choice.
    """

    warehouse: Warehouse
    artifacts: ArtifactStore
    candidates: list[Contender]
    champion: Contender | None = None
    floor: str = "popularity"
    decided_against: dict[str, str] = {}
    resamples: int = 1000
    max_users: int = 20_000
    level: float = 0.95
    seed: int = 0
    only: Contender | None = None


class Result(pydantic.BaseModel, frozen=True):
    """The evidence.

    Attributes:
        evidence: See `models.experimentation.gate.Evidence`, as JSON values.
        valid_auc: AUC on validation, by candidate.
        num_examples: Test examples of the comparison.
        num_users: Their users.
        note: What stood in the way of a comparison, in one sentence; empty if nothing did.
    """

    evidence: dict
    valid_auc: dict[str, float]
    num_examples: int = 0
    num_users: int = 0
    note: str = ""


def evidence_of(result: Result) -> Evidence:
    """The result's evidence as the gate takes it."""
    kept: dict[str, Any] = dict(result.evidence)
    for name in ("against_champion", "against_floor", "valid_gain"):
        kept[name] = None if kept[name] is None else Difference(*kept[name])
    for name in ("valid_auc", "baseline_valid_auc", "test_auc", "ece"):
        kept[name] = float("nan") if kept[name] is None else kept[name]
    return Evidence(**kept)


def _stored(config: Config, contender: Contender, split: str) -> pl.DataFrame:
    """Example, user, label and score of one split, from the candidate's own table."""
    table = predictions(contender.name)
    found = config.warehouse.read(
        table,
        columns=["example_id", "user_id", "label", "score", "ranker_version"],
        filters=pc.field("split") == split,
    )
    versions = pc.unique(found["ranker_version"]).to_pylist()
    if versions and versions != [contender.version]:
        raise ValueError(
            f"Table {table.name} holds predictions of {versions[0]}, not of {contender.label}: "
            "materialize ranking/leaderboard again."
        )
    return pl.DataFrame(found.drop_columns(["ranker_version"]))


def _scored(config: Config, contender: Contender, split: str) -> pl.DataFrame:
    """The same for a version that is no longer in its table: the kept ranker scores today's examples.

    Raises:
        ContentVersionError: If it was trained on other content than today's features hold.
        ValueError: If the ranker is gone, or cannot read today's features for another reason.
    """
    from ray_jobs.ranking.data import INPUTS, read_examples
    from ray_jobs.ranking.files import read_ranker

    try:
        with config.artifacts.local(contender.artifact) as folder:
            ranker = read_ranker(folder)
    except FileNotFoundError as error:
        raise ValueError(f"The trained ranker of {contender.label} is no longer kept.") from error
    data = read_examples(config.warehouse, tuple(INPUTS), splits=(split,))
    return pl.DataFrame(
        {
            "example_id": data["example_id"],
            "user_id": data["user_id"],
            "label": data["label"],
            "score": pa.array(ranker.score(data)),
        }
    )


def _read(config: Config, contender: Contender, split: str) -> pl.DataFrame:
    return (_stored if contender.current else _scored)(config, contender, split)


def _auc(rows: pl.DataFrame) -> float:
    return float(auc(rows["score"].to_numpy(), rows["label"].to_numpy())[0]) if rows.height else float("nan")


def paired(ours: pl.DataFrame, theirs: pl.DataFrame, config: Config) -> tuple[Difference | None, int, int]:
    """Paired difference in AUC over the examples that both scored; users are resampled.

    Returns:
        The difference (None where the examples do not hold both classes), examples and users.
    """
    joined = ours.join(theirs.select("example_id", other="score"), on="example_id", how="inner").sort("example_id")
    users = joined["user_id"].unique().sort()
    if users.len() > config.max_users:
        kept = users.sample(config.max_users, seed=config.seed).sort()
        joined, users = joined.filter(pl.col("user_id").is_in(kept.implode())), kept
    label_N, user_N = joined["label"].to_numpy(), users.search_sorted(joined["user_id"]).to_numpy()
    if not joined.height or label_N.min() == label_N.max():
        return None, joined.height, users.len()
    weight_RU = user_weights(users.len(), config.resamples, config.seed)
    ours_N, theirs_N = joined["score"].to_numpy(), joined["other"].to_numpy()
    drawn = resampled_auc(ours_N, label_N, user_N, weight_RU) - resampled_auc(theirs_N, label_N, user_N, weight_RU)
    found = interval(float(auc(ours_N, label_N)[0] - auc(theirs_N, label_N)[0]), drawn, config.level)
    return Difference(found.value, found.low, found.high), joined.height, users.len()


def run(config: Config) -> Result:
    """Chooses the challenger on validation and compares it on test.

    Raises:
        ValueError: If the floor is not among the candidates.
    """
    by_name = {c.name: c for c in config.candidates}
    if config.floor not in by_name:
        raise ValueError(
            f"The gate needs the floor {config.floor} among the candidates ({', '.join(by_name) or 'none'}): "
            f"materialize ranking/{config.floor}."
        )
    if config.only is not None:
        return _named(config, config.only)
    valid = {name: _stored(config, contender, VALID) for name, contender in by_name.items()}
    valid_auc = {name: _auc(rows) for name, rows in valid.items()}
    usable = {name: value for name, value in valid_auc.items() if np.isfinite(value)}
    champion = config.champion
    label = champion.label if champion else None
    plain = Evidence(None, label, config.floor)
    if not usable:
        return Result(evidence=_json(plain), valid_auc={}, note="The validation split does not hold both classes.")
    best = by_name[max(usable, key=usable.__getitem__)]
    note("experiments", f"best on validation is {best.label}", auc=f"{usable[best.name]:.4f}")
    seen = plain._replace(
        challenger=best.label,
        challenger_is_floor=best.name == config.floor,
        valid_auc=usable[best.name],
        decided_against=config.decided_against.get(best.label, ""),
    )
    if best.label == label or seen.decided_against:
        return Result(evidence=_json(seen), valid_auc=usable)
    baseline = _baseline(config)
    seen = _without(seen, config) if not baseline.is_champion else seen
    if seen.challenger_is_floor and not baseline.is_champion:
        return Result(evidence=_json(seen), valid_auc=usable, note=baseline.note)
    if baseline.valid is not None:
        gain, num_examples, num_users = paired(valid[best.name], baseline.valid, config)
        seen = seen._replace(baseline_valid_auc=_auc(baseline.valid), valid_gain=gain)
        if gain is not None and gain.low <= 0:
            return Result(
                evidence=_json(seen),
                valid_auc=usable,
                num_examples=num_examples,
                num_users=num_users,
                note=baseline.note,
            )
    return _on_test(config, best, seen, usable, baseline)


class Baseline(NamedTuple):
    """What a challenger is compared with.

    Attributes:
        is_champion: Whether that is the champion; else the floor alone.
        valid: Its scores of validation; None if a champion that must be beaten cannot be compared.
        note: What stood in the way of a comparison with the champion.
    """

    is_champion: bool
    valid: pl.DataFrame | None
    note: str = ""


def _baseline(config: Config) -> Baseline:
    if config.champion is None:
        return Baseline(False, _floor(config, VALID))
    try:
        return Baseline(True, _read(config, config.champion, VALID))
    except ValueError as error:
        return _without_champion(config, config.champion, error)


def _without_champion(config: Config, champion: Contender, error: ValueError) -> Baseline:
    if not isinstance(error, ContentVersionError):
        return Baseline(True, None, f"The champion {champion.label} cannot be compared: {error}")
    told = (
        f"The champion {champion.label} was left out and the floor {config.floor} stood in for it, because it cannot "
        f"read today's features: {error}"
    )
    return Baseline(False, _floor(config, VALID), told)


def _without(seen: Evidence, config: Config) -> Evidence:
    return seen._replace(champion=None, left_out=config.champion.label if config.champion else "")


def _floor(config: Config, split: str) -> pl.DataFrame:
    return _stored(config, next(c for c in config.candidates if c.name == config.floor), split)


def _on_test(
    config: Config, best: Contender, seen: Evidence, valid_auc: dict[str, float], baseline: Baseline
) -> Result:
    ours = _read(config, best, TEST)
    score_N, label_N = ours["score"].to_numpy(), ours["label"].to_numpy()
    seen = seen._replace(
        test_auc=_auc(ours),
        ece=calibration_error(score_N, label_N, equal_mass_bins(score_N)) if ours.height else float("nan"),
    )
    num_examples, num_users = ours.height, ours["user_id"].n_unique()
    if config.champion is not None and baseline.is_champion and baseline.valid is not None:
        try:
            difference, num_examples, num_users = paired(ours, _read(config, config.champion, TEST), config)
            seen = seen._replace(against_champion=difference)
        except ValueError as error:
            baseline = _without_champion(config, config.champion, error)
    if not baseline.is_champion:
        seen = _without(seen, config)
    if best.name != config.floor:
        seen = seen._replace(against_floor=paired(ours, _floor(config, TEST), config)[0])
    return Result(
        evidence=_json(seen),
        valid_auc=valid_auc,
        num_examples=num_examples,
        num_users=num_users,
        note=baseline.note,
    )


def _json(evidence: Evidence) -> dict:
    """The evidence as JSON values: NaN has none."""

    def plain(value: object) -> object:
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return {name: plain(value) for name, value in evidence._asdict().items()}


def _named(config: Config, chosen: Contender) -> Result:
    seen = Evidence(
        chosen.label,
        config.champion.label if config.champion else None,
        config.floor,
        challenger_is_floor=chosen.name == config.floor,
        valid_auc=_auc(_read(config, chosen, VALID)),
    )
    return _on_test(config, chosen, seen, {chosen.name: seen.valid_auc}, _baseline(config))


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
