"""Captions as sets of hashed ids: laws that the ranker relies on."""

import polars as pl
import pytest

from models.language.caption_tokens import PADDING, TokenConfig, caption_tokens, token_id

SCHEMA = {"item_id": pl.String, "caption": pl.String, "mood": pl.String, "tags": pl.List(pl.String)}
WORDS = ["river", "king", "garden", "storm", "letter", "train", "mirror", "island", "winter", "harbor"]


def captions(n=300):
    rows = [
        (
            f"i{i:03d}",
            f"A {WORDS[i % 10]} story about the {WORDS[i // 10 % 10]} and {'x' * (i % 3 + 2)}",
            "dark" if i % 2 else "calm",
            ["drama", WORDS[i % 10]],
        )
        for i in range(n)
    ]
    return pl.DataFrame(rows, SCHEMA, orient="row")


def test_sets_are_sorted_distinct_and_never_padding():
    rows, health = caption_tokens(captions(), TokenConfig(max_tokens=6, table_size=512))
    assert rows["item_id"].to_list() == sorted(captions()["item_id"].to_list())
    for ids, tokens in zip(rows["token_ids"].to_list(), rows["tokens"].to_list(), strict=True):
        assert ids == sorted(set(ids)) and len(ids) == len(tokens) <= 6
        assert all(PADDING < i < 512 for i in ids)
        assert ids == [token_id(t, TokenConfig(table_size=512)) for t in tokens]
    assert health.vocabulary > 10 and 0 < health.mean_tokens <= 6 and 0 <= health.duplicate_share <= 1


def test_the_order_of_rows_does_not_matter():
    shuffled = captions().sample(fraction=1.0, shuffle=True, seed=1)
    assert caption_tokens(shuffled, TokenConfig())[0].equals(caption_tokens(captions(), TokenConfig())[0])


def test_frequent_and_rare_terms_are_dropped_but_moods_and_tags_stay():
    rows, _ = caption_tokens(captions(), TokenConfig(min_items=5, max_share=0.2))
    kept = set(rows["tokens"].explode().to_list())
    assert "caption:story" not in kept, "in every caption"
    assert {"mood:dark", "mood:calm", "tag:drama"} <= kept
    one = captions().with_columns(
        pl.when(pl.col("item_id") == "i007").then(pl.lit("unicorn")).otherwise("caption").alias("caption")
    )
    assert "caption:unicorn" not in set(caption_tokens(one, TokenConfig())[0]["tokens"].explode().to_list())


def test_a_word_that_is_a_tag_counts_once():
    rows, _ = caption_tokens(captions(20), TokenConfig(max_share=1.0))
    tokens = rows["tokens"].to_list()[3]
    assert "tag:storm" in tokens and "caption:storm" not in tokens


def test_small_and_empty_catalogues():
    rows, health = caption_tokens(captions(3), TokenConfig())
    assert rows["token_ids"].list.len().min() >= 3 and health.poor_items == 0
    rows, health = caption_tokens(captions(0), TokenConfig())
    assert rows.is_empty() and health.vocabulary == 0
    rows, health = caption_tokens(pl.DataFrame([("a", "", "", [])], SCHEMA, orient="row"), TokenConfig())
    assert rows.height == 1 and health.poor_items == 1


def test_collisions_of_a_small_table_are_resolved_by_weight():
    rows, health = caption_tokens(captions(), TokenConfig(table_size=8))
    assert health.hash_collisions > 0
    for ids, tokens in zip(rows["token_ids"].to_list(), rows["tokens"].to_list(), strict=True):
        assert len(ids) == len(set(ids)) == len(tokens)


@pytest.mark.parametrize("term, found", [("mood:dark", 37479), ("tag:comedy", 26245)])
def test_ids_are_the_same_on_every_machine(term, found):
    assert token_id(term, TokenConfig()) == found
    assert token_id(term, TokenConfig(salt="other")) != found


def test_curly_and_straight_apostrophes_are_one_word():
    two = pl.DataFrame([("a", "the cook’s tale", "sad", []), ("b", "THE COOK'S tale", "sad", [])], SCHEMA, orient="row")
    a, b = caption_tokens(two, TokenConfig(max_share=1.0))[0]["tokens"].to_list()
    assert a == b and "caption:cook's" in a
