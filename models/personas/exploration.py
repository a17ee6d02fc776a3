"""Novel interests: clusters that a history never touched, near to what the user likes, and present in the catalogue.

The candidates hold by construction what `spec/content-and-personas.md` 3.2 asks of a good exploration (novel, related
to its anchor, groundable), so that a model which only picks among them cannot break it.

Shape letters: C clusters, D embedding.
"""

import dataclasses

import numpy as np
import polars as pl


@dataclasses.dataclass(frozen=True)
class ExplorationConfig:
    """Knobs of the explorations.

    Attributes:
        num_anchors: Interests that get one exploration each: the strongest ones next to which something is novel.
        num_candidates: Candidates of an anchor, the most similar first.
        lower_quantile: Similarities below this quantile of the catalogue's own are unrelated.
        upper_quantile: Similarities above this quantile say the same in other words.
        min_items: Least number of items of a cluster that is worth exploring.
    """

    num_anchors: int = 2
    num_candidates: int = 4
    lower_quantile: float = 0.5
    upper_quantile: float = 0.97
    min_items: int = 3


def relatedness(clusters: pl.DataFrame, config: ExplorationConfig) -> pl.DataFrame:
    """Pairs of clusters whose similarity lies in the band, seen from the anchor.

    The band is cut at quantiles of the similarities between clusters, because their level depends on the encoder:
    between any two clusters of films MiniLM sees 0.36 to 0.96.

    Args:
        clusters: Columns ``cluster``, ``label``, ``items``, ``centroid`` (unit vectors).
        config: Knobs.

    Returns:
        Columns ``anchor_cluster``, ``cluster``, ``label``, ``similarity``; the most similar first for each anchor.
    """
    if clusters.height < 2:
        return pl.DataFrame(
            schema={"anchor_cluster": pl.Int32, "cluster": pl.Int32, "label": pl.String, "similarity": pl.Float64}
        )
    centroids_CD = np.array(clusters["centroid"].to_list(), np.float64)
    similarity_CC = centroids_CD @ centroids_CD.T
    apart_CC = ~np.eye(clusters.height, dtype=bool)
    low, high = np.quantile(similarity_CC[apart_CC], [config.lower_quantile, config.upper_quantile])
    present_C = (clusters["items"] >= config.min_items).to_numpy()
    # Two clusters have one similarity: the band is closed, so that the only pair of a tiny catalogue counts.
    rows, columns = np.nonzero(apart_CC & (similarity_CC >= low) & (similarity_CC <= high) & present_C[None])
    number, label = clusters["cluster"].cast(pl.Int32).to_numpy(), clusters["label"].to_numpy()
    pairs = pl.DataFrame(
        {
            "anchor_cluster": number[rows],
            "cluster": number[columns],
            "label": label[columns],
            "similarity": similarity_CC[rows, columns],
        },
        schema_overrides={"label": pl.String},
    )
    return pairs.sort(["anchor_cluster", "similarity", "cluster"], descending=[False, True, False])


def find_candidates(
    interests: pl.DataFrame, touched: pl.DataFrame, related: pl.DataFrame, config: ExplorationConfig
) -> pl.DataFrame:
    """Candidates for exploration of every user.

    Args:
        interests: Columns ``user_id``, ``cluster``; the strongest first for each user.
        touched: Columns ``user_id``, ``cluster``: every cluster of the history, disliked items included.
        related: As `relatedness` returns it.
        config: Knobs.

    Returns:
        Columns ``user_id``, ``anchor_cluster``, ``cluster``, ``label``, ``similarity``: for each anchor the most
        similar first, in the order of the anchors; without anchors that have no candidate.
    """
    anchors = interests.select("user_id", pl.col("cluster").alias("anchor_cluster")).with_columns(
        pl.int_range(pl.len()).over("user_id").alias("rank")
    )
    novel = anchors.join(related, on="anchor_cluster").join(
        touched.select("user_id", "cluster").unique(), on=["user_id", "cluster"], how="anti"
    )
    # One cluster next to two interests is one thing to explore: the nearer interest has it.
    novel = (
        novel.sort(["user_id", "similarity", "rank", "cluster"], descending=[False, True, False, False])
        .unique(["user_id", "cluster"], keep="first", maintain_order=True)
        .sort(["user_id", "rank", "similarity", "cluster"], descending=[False, False, True, False])
        .with_columns(pl.col("rank").rank("dense").over("user_id").alias("place"))
        .filter(pl.col("place") <= config.num_anchors)
    )
    return (
        novel.group_by("user_id", "rank", maintain_order=True)
        .head(config.num_candidates)
        .select("user_id", "anchor_cluster", "cluster", "label", "similarity")
    )
