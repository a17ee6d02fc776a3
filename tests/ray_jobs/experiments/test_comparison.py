"""Evidence for the gate, from the tables and rankers that a night leaves behind."""

import datetime as dt

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.experimentation.gate import decide, judge
from models.ranking.calibration import Platt
from models.ranking.content import ContentVersionError
from models.ranking.examples import Preprocessing
from models.ranking.floors import FLOORS
from models.ranking.metrics import auc
from models.ranking.scoring import Ranker
from ray_jobs.experiments.comparison import Config, Contender, evidence_of, paired, run
from ray_jobs.ranking import training as ranker_training
from ray_jobs.ranking.data import INPUTS
from ray_jobs.ranking.files import write_ranker
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.ranking import predictions
from ray_jobs.training_task import TrainingOptions
from tests.assets.experiments.seeding import seed_rankers
from tests.training_sets import seed_training_set as seed_tastes

CREATED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
POPULARITY, DLRM, WIDE = (
    Contender(name=n, version="v1", artifact=f"rankers/{n}/v1") for n in ("popularity", "dlrm", "wide")
)


@pytest.fixture
def config(tables, tracking):
    """Three candidates of a night: the floor, a better one and a much better one."""
    seed_rankers(tables, tracking, {"popularity": 0.2, "dlrm": 0.7, "wide": 0.95})
    return Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        candidates=[POPULARITY, DLRM, WIDE],
        resamples=200,
    )


def evidence(config, **change):
    result = run(config.model_copy(update=change))
    return evidence_of(result), result


def test_the_best_on_validation_is_compared_with_champion_and_floor(config):
    seen, result = evidence(config, champion=DLRM)
    assert (seen.challenger, seen.champion) == ("wide@v1", "dlrm@v1")
    assert result.valid_auc["popularity"] < result.valid_auc["dlrm"] < result.valid_auc["wide"]
    for difference in (seen.valid_gain, seen.against_champion, seen.against_floor):
        assert 0 < difference.low < difference.value < difference.high
    assert seen.ece < 0.05 and result.num_examples == 1200 and result.num_users == 150
    assert decide(seen).decision == "promote"


def test_the_same_evidence_comes_out_every_time(config):
    assert run(config) == run(config)


def test_test_predictions_are_not_looked_at_while_validation_says_keep(config):
    seen, _ = evidence(config, champion=WIDE)
    assert seen.challenger == seen.champion and np.isnan(seen.test_auc) and seen.against_floor is None
    seen, _ = evidence(config, candidates=[POPULARITY, DLRM], champion=WIDE)
    assert seen.valid_gain.high < 0 and np.isnan(seen.test_auc)
    seen, _ = evidence(config, decided_against={"wide@v1": "rolled back: slow"})
    assert seen.decided_against == "rolled back: slow" and np.isnan(seen.test_auc)


def test_a_named_candidate_is_tested_whatever_validation_says(config):
    seen, _ = evidence(config, champion=WIDE, only=DLRM)
    assert seen.challenger == "dlrm@v1" and seen.against_champion.high < 0 and seen.against_floor.low > 0


def test_a_floor_that_is_missing_is_named(config):
    with pytest.raises(ValueError, match="materialize ranking/popularity"):
        run(config.model_copy(update={"candidates": [DLRM]}))


def test_predictions_of_another_version_are_refused(config):
    with pytest.raises(ValueError, match="holds predictions of v1, not of dlrm@v2"):
        run(config.model_copy(update={"candidates": [POPULARITY, Contender(name="dlrm", version="v2")]}))


def seed_training_set(tables):
    """The examples of `seed_rankers`, with the popularity of their items."""
    rows = []
    predicted = pl.DataFrame(tables.read(predictions("wide")))
    nothing = {c.name: None for c in TRAINING_SET.columns if c.nullable}
    for place, row in enumerate(predicted.iter_rows(named=True)):
        rows.append(
            nothing
            | {
                "example_id": row["example_id"],
                "user_id": row["user_id"],
                "item_id": row["item_id"],
                "event_timestamp": CREATED,
                "label": row["label"],
                "sampled": False,
                "split": row["split"],
                "position": place,
                "item_num_events": 100,
                "item_num_likes": 90 if row["label"] else 10,
                "user_recent_item_ids": [],
                "user_recent_labels": [],
                "created_timestamp": CREATED,
            }
        )
    data = pa.Table.from_pylist(rows, TRAINING_SET.schema)
    tables.write(TRAINING_SET, data, version="t")
    return data


def keep_ranker(tables, tmp_path, data, name):
    """A real ranker in the artifact store: it likes what others liked."""
    items = sorted(set(data["item_id"].to_pylist()))
    fitted = Preprocessing.fit(data, items, num_recent=2)
    arrays = {"likes": np.zeros(len(items) + 1), "rate": np.full(len(items) + 1, 0.5)}
    ranker = Ranker("popularity", {}, fitted, Platt(1.0, 0.0), FLOORS["popularity"](arrays))
    write_ranker(ranker, tmp_path / "ranker")
    tables.artifacts().put(tmp_path / "ranker", name)


def test_a_champion_of_an_earlier_night_scores_todays_examples_itself(config, tables, tmp_path):
    data = seed_training_set(tables)
    keep_ranker(tables, tmp_path, data, "rankers/old/v0")
    old = Contender(name="old", version="v0", artifact="rankers/old/v0", current=False)
    seen, _ = evidence(config, champion=old)
    assert seen.baseline_valid_auc == 1.0, "its one feature gives the label away"
    assert seen.valid_gain.high < 0 and decide(seen).decision == "keep"


def test_a_champion_that_cannot_be_compared_is_not_replaced_by_itself(config):
    gone = Contender(name="old", version="v0", artifact="rankers/old/v0", current=False)
    seen, result = evidence(config, champion=gone)
    assert seen.against_champion is None and "no longer kept" in result.note
    assert decide(seen).decision == "reject"


NETWORK = ranker_training.Network(width=16, hidden=32, dropout=0.2, unknown_user=0.8)
OPTIONS = TrainingOptions(epochs=8, patience=8, learning_rate=1e-2, weight_decay=1e-2)


def night(tables, version, content, extra):
    """A night of real training on tables of ``version``; two candidates, one of which reads generated content."""
    seed_tastes(tables, num_users=300, num_items=24, version=version, content=content)
    for name, inputs in (("popularity", ()), (f"dlrm_{extra}", (extra,))):
        ranker_training.run(
            ranker_training.Config(
                warehouse=tables.warehouse(),
                artifacts=tables.artifacts(),
                candidate=name,
                version=version,
                kind="dlrm" if inputs else name,
                inputs=inputs,
                training=OPTIONS,
                batch_size=256,
                resamples=20,
                network=NETWORK,
            )
        )
    return [
        Contender(name=n, version=version, artifact=f"rankers/{n}/{version}") for n in ("popularity", f"dlrm_{extra}")
    ]


@pytest.mark.parametrize("extra", ["tokens", "summary"])
def test_a_champion_whose_content_is_gone_is_left_out_and_does_not_stand_in_the_way(tables, extra):
    champion = night(tables, "n1", "content-1", extra)[1].model_copy(update={"current": False})
    common = {"warehouse": tables.warehouse(), "artifacts": tables.artifacts(), "resamples": 200, "champion": champion}

    same = run(Config(candidates=night(tables, "n2", "content-1", extra), **common))
    assert same.note == "" and evidence_of(same).champion == champion.label
    assert evidence_of(same).valid_gain.low <= 0, (
        "on its own content the champion is compared, and equals its successor"
    )
    assert decide(evidence_of(same)).decision == "keep"

    tonight = night(tables, "n3", "content-2", extra)
    other = run(Config(candidates=tonight, **common))
    seen = evidence_of(other)
    what = "caption tokens" if extra == "tokens" else "VISTA summaries"
    assert other.note.startswith(
        f"The champion dlrm_{extra}@n1 was left out and the floor popularity stood in for it, because it cannot read "
        f"today's features: The ranker was trained on {what} of version content-1 and is given version content-2: train"
    )
    assert seen.champion is None and seen.against_champion is None and seen.valid_gain.low > 0
    assert seen.left_out == champion.label
    assert decide(seen, max_ece=0.2).decision == "promote", "what serves refuses today's features: the gate goes on"

    by_hand = run(Config(candidates=tonight, only=tonight[1], **common))
    assert by_hand.note == other.note and judge(evidence_of(by_hand), max_ece=0.2).decision == "promote"
    floor = run(Config(candidates=tonight[:1], **common))
    assert decide(evidence_of(floor)).decision == "keep" and floor.note == other.note
    assert f"{champion.label} stays champion" in decide(evidence_of(floor)).reason
    with pytest.raises(ContentVersionError, match="is given version content-2: train it again"):
        run(Config(candidates=tonight, only=champion, **common))


def test_content_that_only_test_examples_have_is_refused_there(tables):
    champion = night(tables, "n1", "content-1", "summary")[1].model_copy(update={"current": False})
    tonight = night(tables, "n2", "content-2", "summary")
    data = pl.DataFrame(tables.read(TRAINING_SET))
    bare = [pl.when(pl.col("split") == "test").then(pl.col(n)).alias(n) for n in INPUTS["summary"]]
    tables.write(TRAINING_SET, TRAINING_SET.conform(data.with_columns(bare).to_arrow()), "bare")
    result = run(
        Config(
            warehouse=tables.warehouse(),
            artifacts=tables.artifacts(),
            candidates=tonight,
            champion=champion,
            only=tonight[1],
            resamples=200,
        )
    )
    assert evidence_of(result).champion is None and "is given version content-2" in result.note


def test_the_paired_interval_is_narrower_than_that_of_unrelated_scores(config):
    rng = np.random.default_rng(0)
    num = 2000
    label = (rng.random(num) < 0.5).astype(np.int8)
    base = rng.normal(size=num) + label
    frame = pl.DataFrame(
        {
            "example_id": [str(i) for i in range(num)],
            "user_id": [f"u{i % 200}" for i in range(num)],
            "label": label,
            "score": base,
        }
    )
    twin = frame.with_columns(score=pl.Series(base + rng.normal(scale=0.1, size=num)))
    stranger = frame.with_columns(score=pl.Series(rng.normal(size=num) + label))
    close, num_examples, num_users = paired(frame, twin, config)
    far, _, _ = paired(frame, stranger, config)
    assert (num_examples, num_users) == (2000, 200)
    assert close.high - close.low < (far.high - far.low) / 2
    assert close.value == pytest.approx(float((auc(base, label) - auc(twin["score"].to_numpy(), label))[0]))


def test_examples_of_one_class_or_of_too_many_users_do_not_crash(config):
    frame = pl.DataFrame({"example_id": ["a", "b"], "user_id": ["u", "u"], "label": [1, 1], "score": [0.1, 0.9]})
    assert paired(frame, frame, config) == (None, 2, 1)
    assert paired(frame.head(0), frame, config)[0] is None
    many = pl.DataFrame(
        {
            "example_id": [str(i) for i in range(100)],
            "user_id": [f"u{i}" for i in range(100)],
            "label": [i % 2 for i in range(100)],
            "score": [float(i) for i in range(100)],
        }
    )
    difference, num_examples, num_users = paired(many, many, config.model_copy(update={"max_users": 10}))
    assert num_users == 10 == num_examples and difference.value == 0
