"""Clusters as a person would describe them: a label out of telling terms, and the items in the middle.

Shape letters: N items, D embedding, C clusters.
"""

import dataclasses

import numpy as np
import polars as pl

UNNAMED = "mixed"
STEM = 5
# Terms beyond the first that a cluster may fall back on before it is named after an item.
FURTHER = 5


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Knobs of the profiles.

    Attributes:
        label_terms: Terms of a label, before it is made distinct from its siblings.
        min_share: Least share of the cluster's items that a term of the label stands for.
        num_examples: Items nearest to the centroid that are named.
    """

    label_terms: int = 3
    min_share: float = 0.15
    num_examples: int = 5


def telling_terms(items: pl.DataFrame) -> pl.DataFrame:
    """Weighs terms by how much they tell a cluster from its siblings.

    The weight is tf-idf with both parts relative: the share of the cluster's items that have the term, times the
    logarithm of that share over the term's share of all items (the term's part in the Kullback-Leibler divergence).

    Args:
        items: Columns ``item_id``, ``cluster``, ``terms`` (list of strings).

    Returns:
        Columns ``cluster``, ``term``, ``share``, ``weight``; heaviest first in each cluster.
    """
    exploded = items.select("item_id", "cluster", pl.col("terms").alias("term")).explode("term")
    exploded = exploded.drop_nulls("term").unique()
    sizes = items.group_by("cluster").agg(pl.len().alias("size"))
    everywhere = exploded.group_by("term").agg((pl.len() / max(items.height, 1)).alias("prior"))
    weighed = (
        exploded.group_by("cluster", "term")
        .len()
        .join(sizes, on="cluster")
        .join(everywhere, on="term")
        .with_columns((pl.col("len") / pl.col("size")).alias("share"))
    )
    return (
        weighed.with_columns((pl.col("share") * (pl.col("share") / pl.col("prior")).log()).alias("weight"))
        .sort(
            ["cluster", pl.col("weight").round(9), "share", pl.col("term").str.len_chars(), "term"],
            descending=[False, True, True, True, False],
        )
        .select("cluster", "term", "share", "weight")
    )


def _alike(a: str, b: str) -> bool:
    """Whether two terms are forms of one word (`ship`, `ship's`; `animation`, `animated`; `sci`, `sci-fi`)."""
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a in b or b in a or shared >= STEM


def _label_terms(names: list[str], shares: list[float], config: ProfileConfig, nouns: frozenset[str]) -> list[str]:
    """The cluster's terms as a label takes them in turn: no two forms of a word, one noun among the first."""
    strong = [n for n, s in zip(names, shares, strict=True) if s >= config.min_share] or names[:1]
    kept: list[str] = []
    for name in [*strong, *(n for n in names if n not in strong)]:
        if not any(_alike(name, other) for other in kept):
            kept.append(name)
    last = config.label_terms - 1
    noun = next((n for n in kept if n in nouns), None)
    if noun is not None and kept.index(noun) > last:
        kept.remove(noun)
        kept.insert(last, noun)
    return kept


def distinct_labels(
    terms: pl.DataFrame,
    clusters: list[int],
    fallback: dict[int, str],
    config: ProfileConfig,
    adjectives: frozenset[str] = frozenset(),
    nouns: frozenset[str] = frozenset(),
) -> dict[int, str]:
    """A label for each cluster, different from every other.

    A label is the cluster's heaviest terms. Where a larger cluster has taken it, the cluster takes a further term;
    where there is none left, the title of its middle item in brackets.

    Args:
        terms: As `telling_terms` returns them.
        clusters: Clusters in the order in which they choose; the largest first.
        fallback: Title of the middle item of each cluster.
        config: Knobs.
        adjectives: Terms that stand in front of the others (`tense crime thriller`).
        nouns: Terms that stand at the end, and of which a label has one if the cluster has any: the categories.
    """
    ranked = terms.filter(pl.col("weight") > 0).group_by("cluster", maintain_order=True).agg("term", "share")
    rows = {cluster: (names, shares) for cluster, names, shares in ranked.iter_rows()}
    labels: dict[int, str] = {}

    def phrase(words: list[str]) -> str:
        return " ".join(sorted(words, key=lambda word: (word not in adjectives, word in nouns)))

    for cluster in clusters:
        taken = set(labels.values())
        words = _label_terms(*rows.get(cluster, ([], [])), config, nouns)
        front, further = words[: config.label_terms], words[config.label_terms : config.label_terms + FURTHER]
        options = [front] + [
            [*(w for w in front if w != out), extra] for extra in further for out in reversed(front) if out not in nouns
        ]
        label = next((said for said in map(phrase, options) if said and said not in taken), "")
        if not label:
            named = phrase(front) or UNNAMED
            label = f"{named} ({fallback[cluster]})"
            label = f"{named} ({fallback[cluster]}, {cluster})" if label in taken else label
        labels[cluster] = label
    return labels


def profiles(
    items: pl.DataFrame,
    x_ND: np.ndarray,
    config: ProfileConfig,
    adjectives: frozenset[str] = frozenset(),
    nouns: frozenset[str] = frozenset(),
) -> pl.DataFrame:
    """Describes every cluster that has items.

    Args:
        items: Columns ``item_id``, ``title``, ``cluster``, ``terms``; row ``i`` belongs to ``x_ND[i]``.
        x_ND: Unit embeddings.
        config: Knobs.
        adjectives: As in `distinct_labels`.
        nouns: As in `distinct_labels`.

    Returns:
        Columns ``cluster``, ``label``, ``items``, ``example_item_ids``, ``example_titles``, ``centroid``, by cluster.
    """
    clusters_C, member_N = np.unique(items["cluster"].to_numpy(), return_inverse=True)
    sums_CD = np.zeros((len(clusters_C), x_ND.shape[1]))
    np.add.at(sums_CD, member_N, x_ND)
    centroids_CD = sums_CD / np.maximum(np.linalg.norm(sums_CD, axis=1, keepdims=True), 1e-9)
    similarity_N = np.einsum("nd,nd->n", x_ND, centroids_CD[member_N])
    nearest = (
        items.select("item_id", "title", "cluster")
        .with_columns(pl.Series("similarity", similarity_N))
        .sort(["cluster", "similarity", "item_id"], descending=[False, True, False])
        .group_by("cluster", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("items"),
            pl.col("item_id").head(config.num_examples).alias("example_item_ids"),
            pl.col("title").head(config.num_examples).alias("example_titles"),
        )
    )
    fallback = {cluster: titles[0] for cluster, titles in nearest.select("cluster", "example_titles").iter_rows()}
    by_size = nearest.sort(["items", "cluster"], descending=[True, False])["cluster"].to_list()
    labels = distinct_labels(telling_terms(items), by_size, fallback, config, adjectives, nouns)
    return nearest.with_columns(
        pl.col("cluster").replace_strict(labels, return_dtype=pl.String).alias("label"),
        pl.Series("centroid", centroids_CD.astype(np.float32).tolist(), pl.List(pl.Float32)),
    )
