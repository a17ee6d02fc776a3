import polars as pl
import pytest

from models.personas.salient_terms import TermConfig, salient_terms

ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{n}" for n in range(6)],
        "title": ["Night Train", "Night River", "The King of Storms", "King", "Garden", "Garden"],
        "description": [None, "a river", None, None, None, None],
        "categories": [["film", "Film Noir"], ["film", "film noir"], ["film"], ["film"], [], ["film"]],
        "caption": ["A dark night train.", "A dark night boat.", None, "The king.", "Plants", None],
    },
    schema_overrides={"description": pl.String, "caption": pl.String},
)


def terms_of(item, **knobs):
    found = salient_terms(ITEMS, TermConfig(max_share=0.5, **knobs)).filter(pl.col("item_id") == item)
    return dict(found.select("term", "weight").iter_rows())


def test_terms_are_words_and_pairs_that_several_items_share_and_not_all():
    found = terms_of("i0")
    assert {"night", "dark", "dark night", "film noir", "noir"} == set(found)
    assert "film" not in found, "nearly every item has it"
    assert "train" not in found, "no other item has it"
    assert sum(w**2 for w in found.values()) == pytest.approx(1)
    assert found["night"] > found["dark"], "said twice, by title and caption"


def test_an_item_without_a_shared_term_has_none_and_the_most_salient_are_kept():
    assert set(terms_of("i2")) == {"king"}
    assert len(terms_of("i0", max_terms=2)) == 2
    assert set(terms_of("i4")) == {"garden"}
    assert salient_terms(ITEMS.head(1), TermConfig()).is_empty()
