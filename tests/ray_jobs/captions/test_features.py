"""Tokens out of the tables: which items are the training period's, versions, and the health of what comes out."""

import datetime as dt
import json
import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.language.caption_tokens import TokenConfig
from ray_jobs.captions.features import tokenize, training_items
from ray_jobs.captions.health import drift, health, health_rows, informative, likeness, measure, stability
from ray_jobs.tables.captions import CAPTION_CANARIES, CAPTION_HEALTH, CAPTION_TOKENS, CAPTION_VOCABULARY, ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from tests.assets.captions.seeding import record, seed_item_captions
from tests.factories import CREATED, START, seed_interactions


def splits(tables, rows):
    common = {
        "user_id": "u",
        "position": 0,
        "action": "click",
        "value": None,
        "label": 1,
        "leave_one_out": "train",
        "global_time": "train",
        "created_timestamp": CREATED,
    }
    made = [
        common
        | {
            "example_id": f"e{n}",
            "item_id": item,
            "split": split,
            "sampled": sampled,
            "timestamp": START + dt.timedelta(days=day),
        }
        for n, (item, split, sampled, day) in enumerate(rows)
    ]
    tables.write(SPLITS, pa.Table.from_pylist(made, SPLITS.schema), version=f"splits-{len(rows)}")


def available(tables, days):
    seed_interactions(tables, num_items=len(days))
    rows = tables.read(ITEMS).to_pylist()
    for row, day in zip(rows, days, strict=True):
        row["available_from"] = None if day is None else START + dt.timedelta(days=day)
    tables.write(ITEMS, pa.Table.from_pylist(rows, ITEMS.schema), version="available")


def test_items_of_the_training_period_had_an_event_or_were_available(tables):
    #                  i0    i1 i2 i3  i4    i5
    available(tables, [None, 0, 9, 40, None, 10])
    splits(
        tables,
        [("i0", "train", False, 5), ("i3", "train", False, 10), ("i4", "test", False, 20), ("i4", "train", True, 5)],
    )
    # i3 was sold before the catalogue says so; i4 was only drawn as a negative; i5 came with the last event.
    assert training_items(tables.warehouse()).to_list() == ["i0", "i1", "i2", "i3", "i5"]


def test_later_events_leave_the_training_period_as_it_is(tables):
    available(tables, [None, 0, 30])
    events = [("i0", "train", False, 5), ("i1", "valid", False, 20)]
    splits(tables, events)
    before = training_items(tables.warehouse())
    splits(tables, [*events, ("i2", "test", False, 35)])
    assert training_items(tables.warehouse()).equals(before) and before.to_list() == ["i0", "i1"]


def test_without_events_there_is_no_training_period(tables):
    available(tables, [0, 0])
    splits(tables, [])
    assert training_items(tables.warehouse()).is_empty()


@pytest.fixture
def captions(tables):
    seed_interactions(tables)
    seed_item_captions(tables)
    return tables.read(ITEM_CAPTIONS)


def test_rows_are_those_of_the_tables_and_carry_one_version(captions):
    items = pl.Series("item_id", captions["item_id"])
    made = tokenize(captions, items, TokenConfig(), "1")
    assert CAPTION_TOKENS.conform(made.sets).num_rows == 40 and CAPTION_VOCABULARY.conform(made.terms).num_rows > 20
    assert set(made.sets["token_version"].to_pylist()) == {made.token_version}
    fewer = tokenize(captions, items.head(30), TokenConfig(), "1")
    assert fewer.token_version == made.token_version and not fewer.terms.equals(made.terms)
    assert tokenize(captions, items, TokenConfig(), "2").token_version != made.token_version
    assert tokenize(captions, items, TokenConfig(max_trigrams=0), "1").token_version != made.token_version
    other = captions.set_column(captions.column_names.index("caption_version"), "caption_version", pa.array(["w"] * 40))
    assert tokenize(other, items, TokenConfig(), "1").token_version != made.token_version


def test_captions_of_several_versions_and_a_training_period_without_captions_are_refused(captions):
    items = pl.Series("item_id", captions["item_id"])
    index = captions.column_names.index("caption_version")
    mixed = captions.set_column(index, "caption_version", pa.array(["v", "w"] * 20))
    with pytest.raises(ValueError, match="several versions cannot be one feature: v, w"):
        tokenize(mixed, items, TokenConfig(), "1")
    with pytest.raises(ValueError, match="No item of the training period has a caption"):
        tokenize(captions, pl.Series("item_id", ["elsewhere"]), TokenConfig(), "1")


def sets_of(**tokens):
    return pl.DataFrame(
        {"item_id": list(tokens), "tokens": list(tokens.values())}, {"item_id": pl.String, "tokens": pl.List(pl.String)}
    )


def test_informative_tokens_are_those_that_few_have():
    every = {f"i{i}": ["mood:dark", f"tag:{i}", f"caption#:{i}"] for i in range(10)}
    assert informative(sets_of(**every, none=[])).to_list() == [2] * 10 + [0]
    assert informative(sets_of(pieces=["caption#:a", "caption#:b", "caption#:c"])).to_list() == [1]
    assert informative(sets_of(only=["a", "b"])).to_list() == [2], "one item has nothing in common with anybody"
    assert informative(sets_of()).to_list() == []


def test_likeness_is_the_mean_jaccard_index_of_items_in_both():
    before = sets_of(a=["x", "y"], b=["x"], c=[], gone=["x"])
    found = likeness(before, sets_of(a=["y", "z"], b=["x"], c=[], new=["x"]))
    assert found.items == 3 and found.jaccard == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert math.isnan(likeness(before, sets_of(new=["x"])).jaccard)


def test_health_counts_what_is_there(captions):
    items = pl.Series("item_id", captions["item_id"])
    rows = captions.to_pylist()
    rows[1] |= {n: rows[0][n] for n in ("caption", "subjects", "setting", "mood", "tags")}
    rows[39] |= {"caption": "A zeppelin flies", "subjects": [], "tags": ["aviation"]}
    changed = pa.Table.from_pylist(rows, ITEM_CAPTIONS.schema)
    trained = items.filter(items != rows[39]["item_id"])
    made = tokenize(changed, trained, TokenConfig(), "1")
    found = health(pl.DataFrame(changed), trained, made.vocabulary, pl.DataFrame(made.sets))
    assert (found.items, found.training_items) == (40, 39)
    assert found.duplicate_captions == 2 / 40 and found.duplicate_sets >= 2 / 40
    assert found.vocabulary + found.too_common == made.terms.num_rows and found.hash_collisions == 0
    assert found.unknown_share < 0.05 and found.unknown_share_new == 3 / 6, (
        "zeppelin, flies, aviation, beside style, setting and mood"
    )
    assert found.poor_items == 1 and 0 < found.trigram_share < 1 and found.top_100_mass == pytest.approx(1, abs=0.5)
    assert found.p10_tokens <= found.mean_tokens <= found.p90_tokens
    crowded = tokenize(changed, trained, TokenConfig(id_space=16), "1")
    assert health(pl.DataFrame(changed), trained, crowded.vocabulary, pl.DataFrame(crowded.sets)).hash_collisions > 20


def test_health_of_nothing_has_no_values():
    from models.language.caption_tokens import SETS, TokenVocabulary

    empty = pl.DataFrame(schema={"item_id": pl.String, "caption": pl.String})
    nothing = TokenVocabulary.fit(empty, TokenConfig())
    found = health(empty, pl.Series("item_id", [], pl.String), nothing, pl.DataFrame(schema=SETS))
    assert found.items == found.poor_items == found.vocabulary == 0
    assert math.isnan(found.mean_tokens) and math.isnan(found.unknown_share) and math.isnan(found.duplicate_sets)
    assert "mean_tokens" not in health_rows(found._asdict(), "t", "v")["measure"].to_pylist()


def canaries(tables, rows):
    made = [
        {
            "caption_version": version,
            "kind": kind,
            "item_id": item,
            "original": json.dumps(original),
            "changed": json.dumps(changed) if changed else "",
            "passed": True,
            "detail": "",
            "created_timestamp": CREATED,
        }
        for version, kind, item, original, changed in rows
    ]
    tables.write(CAPTION_CANARIES, pa.Table.from_pylist(made, CAPTION_CANARIES.schema), version=f"c{len(rows)}")


def said(caption, tags):
    names = ("caption", "subjects", "style", "setting", "mood", "text_in_image", "tags")
    known = record("i0", "The Night of Crime 0", "crime") | {"caption": caption, "tags": tags}
    return {name: known[name] for name in names}


def test_stability_is_measured_on_recaptioned_canaries_of_this_version(tables, captions):
    made = tokenize(captions, pl.Series("item_id", captions["item_id"]), TokenConfig(max_share=1.0), "1")
    assert math.isnan(stability(tables.warehouse(), made.vocabulary, "v").jaccard), "no table"
    crime, war = said("A crime tale of night", ["crime"]), said("A war tale of night", ["war"])
    canaries(tables, [("older", "recaption", "i0", crime, war), ("v", "blank_image", "i0", crime, war)])
    assert stability(tables.warehouse(), made.vocabulary, "v") == pytest.approx((0, math.nan), nan_ok=True)
    canaries(
        tables,
        [
            ("v", "recaption", "i0", crime, crime),
            ("v", "recaption", "i1", crime, war),
            ("v", "recaption", "i2", crime, None),
        ],
    )
    found = stability(tables.warehouse(), made.vocabulary, "v")
    assert found.items == 2 and 0.5 < found.jaccard < 1


def test_measures_hold_drift_against_what_was_there(tables, captions):
    items, warehouse = pl.Series("item_id", captions["item_id"]), tables.warehouse()
    made = tokenize(captions, items, TokenConfig(), "1")
    assert math.isnan(drift(warehouse, pl.DataFrame(made.sets)).jaccard)
    tables.write(CAPTION_TOKENS, made.sets, version="first")
    assert measure(warehouse, captions, items, made)["previous_jaccard"] == 1
    fewer = tokenize(captions, items, TokenConfig(max_trigrams=0), "1")
    found = measure(warehouse, captions, items, fewer)
    assert (
        0 < found["previous_jaccard"] < 1 and found["recaptioned_items"] == 0 and math.isnan(found["recaption_jaccard"])
    )
    rows = CAPTION_HEALTH.conform(health_rows(found, "second", fewer.token_version))
    measured = dict(zip(rows["measure"].to_pylist(), rows["value"].to_pylist(), strict=True))
    assert measured["previous_jaccard"] == found["previous_jaccard"] and "recaption_jaccard" not in measured
    assert np.isfinite(list(measured.values())).all()
