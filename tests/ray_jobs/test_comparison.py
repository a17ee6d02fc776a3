"""Evidence for the gate, from the tables and rankers that a night leaves behind."""

import datetime as dt

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.experimentation.gate import decide
from models.ranking.calibration import Platt
from models.ranking.examples import Preprocessing
from models.ranking.floors import FLOORS
from models.ranking.metrics import auc
from models.ranking.scoring import Ranker
from ray_jobs.comparison import Config, Contender, evidence_of, paired, run
from ray_jobs.ranker_files import write_ranker
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.ranking import predictions
from tests.assets.experiments.seeding import seed_rankers

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
