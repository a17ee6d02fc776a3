"""Records as sets of hashed ids: laws that the ranker and the ablation rely on."""

import math

import polars as pl
import pytest

from models.language import caption_tokens
from models.language.caption_tokens import PADDING, TokenConfig, TokenVocabulary, random_sets, token_id, token_sets
from models.language.words import content_words, words

WORDS = ["river", "king", "garden", "storm", "letter", "train", "mirror", "island", "winter", "harbor"]
DEFAULT = TokenConfig()
WIDE = TokenConfig(max_share=1.0, min_items=1, max_tokens=100, max_trigrams=100)


def records(n=300):
    return pl.DataFrame(
        [
            {
                "item_id": f"i{i:03d}",
                "caption": f"A {WORDS[i % 10]} story about the {WORDS[i // 10 % 10]} and {'x' * (i % 3 + 2)}",
                "subjects": [WORDS[i % 10]],
                "style": "plain",
                "setting": "indoors" if i % 3 else "outdoors",
                "mood": "dark" if i % 2 else "calm",
                "text_in_image": "ON SALE" if i % 10 == 0 else "",
                "tags": ["drama", "night train"] if i % 5 else ["drama"],
            }
            for i in range(n)
        ],
        {"item_id": pl.String} | caption_tokens._RECORD,
    )


def captions(*texts):
    return pl.DataFrame({"item_id": [f"i{i}" for i in range(len(texts))], "caption": texts})


def terms_of(sets):
    return set(sets["tokens"].explode(empty_as_null=False).to_list())


def fitted(found, config=DEFAULT):
    return token_sets(found, found["item_id"], config)


def test_sets_are_sorted_distinct_and_never_padding():
    config = TokenConfig(max_tokens=6, max_trigrams=2)
    sets = fitted(records(), config)
    assert sets.columns == ["item_id", "token_ids", "tokens", "weights"]
    assert sets["item_id"].to_list() == sorted(records()["item_id"].to_list())
    for _, ids, tokens, weights in sets.iter_rows():
        assert ids == sorted(set(ids)) and len(ids) == len(tokens) == len(weights) <= config.most_tokens
        assert all(PADDING < i < config.id_space for i in ids) and all(w > 0 for w in weights)
        assert ids == [token_id(t, config) for t in tokens]


@pytest.mark.parametrize("chunk", [7, 20_000])
def test_neither_the_order_of_rows_nor_the_chunks_matter(chunk, monkeypatch):
    whole = fitted(records(60))
    monkeypatch.setattr(caption_tokens, "CHUNK", chunk)
    assert fitted(records(60).sample(fraction=1.0, shuffle=True, seed=1)).equals(whole)
    assert whole["token_ids"].list.len().min() > 5


def test_terms_that_only_new_items_have_never_enter():
    old, new = records(200), captions(*["zeppelin zeppelin rides over the river"] * 100)
    vocabulary = TokenVocabulary.fit(old, TokenConfig())
    assert vocabulary.num_items == 200
    sets = vocabulary.apply(new)
    assert "caption:zeppelin" not in terms_of(sets) and "caption#:epp" not in terms_of(sets)
    assert "caption#:riv" in terms_of(sets), "trigrams of known words carry over"
    everything = pl.concat([old, new], how="diagonal")
    by_items = token_sets(everything, pl.concat([old["item_id"], pl.Series(["gone"])]), TokenConfig())
    assert by_items.filter(pl.col("item_id").is_in(new["item_id"].implode())).equals(sets)
    assert "caption:zeppelin" in terms_of(fitted(new, WIDE)), "which a vocabulary of its own would have"


def test_weights_are_inverse_document_frequencies_of_the_training_items():
    vocabulary = TokenVocabulary.fit(records(), TokenConfig())
    items = dict(vocabulary.terms.select("term", "items").iter_rows())
    assert items["mood:dark"] == 150 and items["subject:river"] == 30 and items["tag:night train"] == 240
    for tokens, weights in vocabulary.apply(records()).select("tokens", "weights").iter_rows():
        for token, weight in zip(tokens, weights, strict=True):
            assert weight == pytest.approx(math.log(301 / (items[token] + 0.5)), rel=1e-5)


def test_too_rare_and_too_common_terms_are_no_tokens_but_fields_stay():
    rows = records().with_columns(
        pl.when(pl.col("item_id") < "i004").then(pl.lit("unicorn")).otherwise("caption").alias("caption")
    )
    vocabulary = TokenVocabulary.fit(rows, TokenConfig(min_items=5, max_share=0.2))
    kept = terms_of(vocabulary.apply(rows))
    # 300 items: at least three of them are asked for.
    assert "caption:unicorn" in kept and "caption:story" not in kept
    assert {"mood:dark", "mood:calm", "setting:indoors", "tag:night train"} <= kept
    assert not {"style:plain", "tag:drama"} & kept, "what every item has tells nothing"
    known = vocabulary.terms.filter(~pl.col("kept"))["term"].to_list()
    assert {"caption:story", "style:plain", "tag:drama"} <= set(known)
    rarer = rows.with_columns(
        pl.when(pl.col("item_id") < "i002").then("caption").otherwise(pl.lit("")).alias("caption")
    )
    assert "caption:unicorn" not in terms_of(fitted(rarer))


def test_bounds_are_mild_in_small_catalogues():
    assert fitted(records(3))["token_ids"].list.len().min() >= 3
    one = fitted(records(1))
    assert one.height == 1 and {"caption:story", "tag:drama", "style:plain"} <= terms_of(one)


def test_empty_inputs():
    nothing = records(0)
    assert fitted(nothing).is_empty() and fitted(nothing).schema == pl.Schema(caption_tokens.SETS)
    silent = fitted(captions("", "  ", "the of and"))
    assert silent["token_ids"].to_list() == [[], [], []] and silent["weights"].to_list() == [[], [], []]
    unseen = token_sets(records(2), pl.Series("item_id", [], pl.String), TokenConfig())
    assert unseen.height == 2 and unseen["token_ids"].to_list() == [[], []]
    nulls = pl.DataFrame(
        {"item_id": ["a"], "caption": [None], "tags": [None]},
        {"item_id": pl.String, "caption": pl.String, "tags": pl.List(pl.String)},
    )
    assert fitted(nulls)["tokens"].to_list() == [[]]
    assert random_sets(silent, 0).equals(silent)


def test_trigrams_have_places_of_their_own_and_choices_always_have_one():
    long = " ".join(f"{a}{b}" for a in WORDS for b in WORDS)
    rows = records(50).with_columns(pl.lit(long).alias("caption"))
    config = TokenConfig(max_tokens=5, max_trigrams=3, max_share=1.0)
    for tokens in fitted(rows, config)["tokens"]:
        grams = [t for t in tokens if "#:" in t]
        assert len(grams) == 3 and len(tokens) == 8
        assert {t.split(":")[0] for t in tokens} >= {"mood", "setting"}
    without = fitted(rows, config.model_copy(update={"max_trigrams": 0}))
    assert not [t for t in terms_of(without) if "#:" in t] and without["token_ids"].list.len().max() == 5


def test_a_field_is_part_of_a_term_and_a_word_of_a_caption_that_is_a_tag_or_subject_counts_once():
    rows = pl.DataFrame(
        {
            "item_id": ["a"],
            "caption": ["A red train and a storm in winter"],
            "subjects": [["red train"]],
            "text_in_image": ["Storm"],
            "tags": [["storm", "Old Harbor"]],
            "mood": [" Dark "],
        }
    )
    found = {t for t in terms_of(fitted(rows, WIDE)) if "#:" not in t}
    assert found == {
        *("caption:red train", "caption:train storm", "caption:storm winter", "caption:winter"),
        *("subject:red train", "subject:red", "subject:train"),
        *("tag:storm", "tag:old harbor", "tag:old", "tag:harbor"),
        *("text:storm", "mood:dark"),
    }
    assert {"caption#:_st", "text#:_st"} <= terms_of(fitted(rows, WIDE))


def test_pairs_do_not_join_two_items():
    assert not [t for t in terms_of(fitted(captions("river", "king"), WIDE)) if " " in t]


def test_missing_fields_count_as_empty_so_that_titles_are_enough():
    titles = captions("Toy Story", "Heat")
    assert {"caption:toy", "caption:story", "caption:toy story", "caption:heat"} <= terms_of(fitted(titles, WIDE))


@pytest.mark.parametrize(
    "opened, same",
    [
        ("The image shows a red boat", "a red boat"),
        ("A photo of a red boat", "red boat"),
        ("This is a picture of a red boat", "red boat"),
        ("In this image, a red boat", "a red boat"),
    ],
)
def test_openers_are_no_content(opened, same):
    assert fitted(captions(opened), WIDE)["tokens"].to_list() == fitted(captions(same), WIDE)["tokens"].to_list()
    assert content_words(opened) == content_words(same) == ["red", "boat"]


def test_writing_of_one_word_in_several_ways():
    same = captions("the cook’s ｆｉｎｅ Cafe\u0301", "THE COOK'S ﬁne CAFÉ")
    a, b = fitted(same, WIDE)["tokens"].to_list()
    assert a == b and {"caption:cook's", "caption:fine", "caption:café"} <= set(a)


def test_scripts_with_marks_and_without_spaces():
    hindi = fitted(captions("हिन्दी किताब"), WIDE)
    assert {"caption:हिन्दी", "caption:किताब"} <= terms_of(hindi) and words("हिन्दी किताब") == ["हिन्दी", "किताब"]
    # Whole phrases are rare; what they share is found by their trigrams, and one character may be a word.
    places = ["東京駅", "京都駅", "大阪城", "富士山"]
    japanese = captions(*[f"{places[i % 4]}の近くの静かな宿{i}、猫" for i in range(40)])
    sets = fitted(japanese, TokenConfig(min_items=5, max_share=0.5))
    for i, tokens in enumerate(sets.sort(pl.col("item_id").str.slice(1).cast(pl.Int32))["tokens"]):
        others = {p for p in places if f"caption#:{p}" in tokens}
        assert others == {places[i % 4]}
    assert "caption:猫" in terms_of(fitted(japanese, WIDE))


def test_inflections_and_misspellings_stay_near():
    rows = records()
    vocabulary = TokenVocabulary.fit(rows, TokenConfig(max_share=1.0))
    one = pl.DataFrame({"item_id": ["x"], "caption": ["gardens of misstorm"]})
    found = terms_of(vocabulary.apply(one))
    assert {"caption#:gar", "caption#:den"} & found and "caption#:orm" in found
    assert not terms_of(TokenVocabulary.fit(rows, TokenConfig(max_share=1.0, max_trigrams=0)).apply(one))


def test_colliding_terms_share_one_id_and_stay_a_set():
    sets = fitted(records(), TokenConfig(id_space=8))
    assert all(len(ids) == len(set(ids)) == len(tokens) <= 7 for _, ids, tokens, _ in sets.iter_rows())


@pytest.mark.parametrize("term, found", [("mood:dark", 1861118424), ("caption#:東京駅", 952831925)])
def test_ids_are_the_same_on_every_machine(term, found):
    assert token_id(term, TokenConfig()) == found
    assert token_id(term, TokenConfig(salt="other")) != found


def test_the_golden_set():
    item, ids, tokens, weights = fitted(records(30), TokenConfig(max_tokens=5, max_trigrams=2)).row(3)
    assert item == "i003"
    assert dict(zip(tokens, ids, strict=True)) == {
        "subject:storm": 331147885,
        "caption#:rm_": 632198929,
        "caption#:orm": 857298316,
        "caption:storm story": 1190196836,
        "setting:outdoors": 1740518279,
        "mood:dark": 1861118424,
        "caption:river xx": 1913516669,
    }
    assert weights == pytest.approx([math.log(31 / (n + 0.5)) for n in (3, 3, 3, 3, 10, 15, 4)], rel=1e-5)


def test_the_vocabulary_tells_strange_words_from_common_ones():
    vocabulary = TokenVocabulary.fit(records(), TokenConfig())
    assert vocabulary.unknown_share(captions("a story")) == 0, "too common, but known"
    assert vocabulary.unknown_share(captions("a zeppelin story")) == 0.5
    assert math.isnan(vocabulary.unknown_share(records(0)))


def test_random_sets_are_as_large_and_of_the_same_ids():
    sets = fitted(records())
    random = random_sets(sets, 3)
    assert random.schema == sets.schema and random["item_id"].equals(sets["item_id"])
    assert random["token_ids"].list.len().equals(sets["token_ids"].list.len())
    assert terms_of(random) <= terms_of(sets) and not random["token_ids"].equals(sets["token_ids"])
    for _, ids, tokens, _ in random.iter_rows():
        assert ids == sorted(set(ids)) == [token_id(t, TokenConfig()) for t in tokens]
    assert random.equals(random_sets(sets, 3)) and not random.equals(random_sets(sets, 4))
