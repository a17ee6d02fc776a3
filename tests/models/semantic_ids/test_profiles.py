import numpy as np
import polars as pl

from models.semantic_ids.profiles import ProfileConfig, distinct_labels, profiles, telling_terms


def frame(rows):
    return pl.DataFrame(
        rows,
        schema={"item_id": pl.String, "title": pl.String, "cluster": pl.Int32, "terms": pl.List(pl.String)},
        orient="row",
    )


def test_a_term_that_all_clusters_share_tells_nothing():
    items = frame([("a", "A", 0, ["film", "crime"]), ("b", "B", 0, ["film", "crime"]), ("c", "C", 1, ["film", "war"])])
    first = telling_terms(items).group_by("cluster", maintain_order=True).first()
    assert first["term"].to_list() == ["crime", "war"]
    film = telling_terms(items).filter(pl.col("term") == "film")
    assert film["weight"].abs().max() == 0


def test_labels_differ_even_when_clusters_are_alike():
    rows = [(f"{c}{i}", f"T{c}{i}", c, ["tense", "crime", "night"]) for c in range(3) for i in range(2)]
    items = frame([*rows, ("z", "Z", 9, ["war"])])
    x = np.eye(7, dtype=np.float32)
    found = profiles(items, x, ProfileConfig(), frozenset({"tense"}))
    labels = dict(found.select("cluster", "label").iter_rows())
    assert len(set(labels.values())) == 4 and labels[9] == "war"
    assert labels[0] == "tense crime night"
    assert labels[1] == "tense crime night (T10)"


def test_a_smaller_sibling_takes_its_next_term():
    terms = pl.DataFrame(
        {
            "cluster": [0, 0, 1, 1],
            "term": ["crime", "noir", "crime", "heist"],
            "share": [0.9, 0.5, 0.9, 0.4],
            "weight": [0.8, 0.4, 0.8, 0.3],
        }
    )
    assert distinct_labels(terms, [0, 1], {0: "X", 1: "Y"}, ProfileConfig(label_terms=1)) == {0: "crime", 1: "heist"}


def test_without_terms_the_middle_item_gives_the_name():
    items = frame([("a", "Alpha", 0, []), ("b", "Beta", 1, [])])
    found = profiles(items, np.eye(2, dtype=np.float32), ProfileConfig())
    assert found["label"].to_list() == ["mixed (Alpha)", "mixed (Beta)"]


def test_examples_are_the_items_nearest_to_the_centroid():
    x = np.array([[1, 0], [0.96, 0.28], [0, 1], [0.8, 0.6]], np.float32)
    items = frame([("a", "A", 0, ["x"]), ("b", "B", 0, ["x"]), ("c", "C", 0, ["x"]), ("d", "D", 0, ["x"])])
    found = profiles(items, x, ProfileConfig(num_examples=2)).row(0, named=True)
    assert found["items"] == 4 and found["example_titles"] == ["D", "B"]
    assert np.isclose(np.linalg.norm(found["centroid"]), 1)


def test_forms_of_one_word_count_once_and_a_category_stands_at_the_end():
    terms = pl.DataFrame(
        {
            "cluster": [0] * 6,
            "term": ["sci-fi", "ship", "ship's", "sci", "classic", "war"],
            "share": [0.9, 0.5, 0.5, 0.9, 0.4, 0.2],
            "weight": [0.9, 0.8, 0.7, 0.6, 0.5, 0.1],
        }
    )
    nouns = frozenset({"war"})
    assert distinct_labels(terms, [0], {0: "X"}, ProfileConfig(), nouns=nouns) == {0: "sci-fi ship war"}
    assert distinct_labels(terms, [0], {0: "X"}, ProfileConfig(), frozenset({"classic"})) == {0: "classic sci-fi ship"}
