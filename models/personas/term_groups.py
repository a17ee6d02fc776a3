"""The second way from a history to interests: online clustering of each user's likes by salient terms.

*Infinite Concept Personalized Clustering* (arXiv 2305.15498; the grouping by which Google's persona system made its
training data, arXiv 2606.12198): walk a user's likes in the order of time; an item joins the group whose centroid is
nearest by the cosine of shared terms, if it is near enough, and opens a new group otherwise; groups that stay small are
dropped. Groups are the user's own; what they share with the catalogue's clusters is the cluster of most members.

Shape letters: U users, T places in a history, G groups, L likes, V terms.
"""

import numpy as np
import polars as pl
import scipy.sparse as sp

from models.personas.interests import EVIDENCE, InterestConfig, cite, weigh_likes

# Values of the largest array of a block of users: 32 MB.
BLOCK_VALUES = 8_000_000
LABEL_WORDS = 3


def online_groups(gram_UTT: np.ndarray, length_U: np.ndarray, threshold: float) -> np.ndarray:
    """Groups of the items of some users, one place of all their histories at a time.

    A centroid is the sum of its members. Its cosine to an item needs no terms: the products of the members with the
    item are in the Gram matrix.

    Args:
        gram_UTT: Products of the term vectors of each user's items, in the order of time.
        length_U: Items of each user; what is behind them is padding.
        threshold: Least cosine to join.

    Returns:
        Number of the group of each item, from 0 in the order of opening, (U, T); -1 behind the end.
    """
    num_users, longest = gram_UTT.shape[:2]
    product_UGT = np.zeros_like(gram_UTT)
    square_UG = np.zeros((num_users, longest), gram_UTT.dtype)
    opened_U = np.zeros(num_users, np.int64)
    group_UT = np.full((num_users, longest), -1, np.int64)
    for place in range(longest):
        here = np.flatnonzero(length_U > place)
        most = int(opened_U[here].max(initial=0)) + 1
        own_U = gram_UTT[here, place, place]
        product_UG = product_UGT[here, :most, place]
        cosine_UG = product_UG / np.sqrt(np.maximum(square_UG[here, :most] * own_U[:, None], 1e-12))
        # Groups that are not open yet have cosine 0 and come last: the oldest of equally near groups is joined.
        best_U = cosine_UG.argmax(1)
        joins_U = cosine_UG[np.arange(len(here)), best_U] >= threshold
        chosen_U = np.where(joins_U & (best_U < opened_U[here]), best_U, opened_U[here])
        opened_U[here] = np.maximum(opened_U[here], chosen_U + 1)
        square_UG[here, chosen_U] += 2 * product_UG[np.arange(len(here)), chosen_U] + own_U
        product_UGT[here, chosen_U] += gram_UTT[here, place]
        group_UT[here, place] = chosen_U
    return group_UT


def _gram(vectors_LV: sp.csr_matrix, user_L: np.ndarray, place_L: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Gram matrices of the users of a block, (U, T, T): a term of each user is a dimension of its own."""
    found = vectors_LV.tocoo()
    term_of_user = user_L[found.row].astype(np.int64) * vectors_LV.shape[1] + found.col
    own, column = np.unique(term_of_user, return_inverse=True)
    apart_LV = sp.csr_matrix((found.data, (found.row, column)), shape=(len(user_L), max(len(own), 1)))
    product = (apart_LV @ apart_LV.T).tocoo()
    gram_UTT = np.zeros((shape[0], shape[1], shape[1]), np.float32)
    gram_UTT[user_L[product.row], place_L[product.row], place_L[product.col]] = product.data
    return gram_UTT


def group_likes(vectors_LV: sp.csr_matrix, length_U: np.ndarray, threshold: float) -> np.ndarray:
    """Groups of all likes, (L,), numbered for each user; users of like length are grouped together.

    Args:
        vectors_LV: Unit term vectors of the likes, users one after the other, each in the order of time.
        length_U: Likes of each user.
        threshold: Least cosine to join.
    """
    group_L = np.zeros(int(length_U.sum()), np.int64)
    start_U = np.concatenate([[0], np.cumsum(length_U)[:-1]]).astype(np.int64)
    order = np.argsort(length_U, kind="stable")
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and (end + 1 - at) * length_U[order[end]] ** 2 <= BLOCK_VALUES:
            end += 1
        users = order[at:end]
        length = length_U[users]
        user_L = np.repeat(np.arange(len(users)), length)
        place_L = np.arange(len(user_L)) - np.repeat(np.cumsum(length) - length, length)
        rows = start_U[users][user_L] + place_L
        longest = int(length.max(initial=0))
        gram_UTT = _gram(vectors_LV[rows], user_L, place_L, (len(users), longest))
        group_L[rows] = online_groups(gram_UTT, length, threshold)[user_L, place_L]
        at = end
    return group_L


def _label(terms: list[str]) -> str:
    """A few of the strongest terms, without saying a word twice."""
    said: list[str] = []
    for term in terms:
        words = term.split()
        if len(said) + len(words) <= LABEL_WORDS and not set(words) & set(said):
            said += words
    return " ".join(said)


def find_term_interests(history: pl.DataFrame, terms: pl.DataFrame, config: InterestConfig) -> pl.DataFrame:
    """The interests of every user, by salient terms instead of clusters; see `find_interests`.

    Two groups of one user may have most members in the same cluster. The stronger one is kept: an interest is found
    again by user and cluster.

    Args:
        history: As for `find_interests`.
        terms: As `salient_terms` returns them.
        config: Knobs.

    Returns:
        As `find_interests`; the label is made of the group's strongest terms, or is the cluster's where it has none.
    """
    likes = weigh_likes(history, config).group_by("user_id", maintain_order=True).tail(config.terms.max_likes)
    item = terms.select("item_id").unique(maintain_order=True).with_row_index("row")
    term = terms.select("term").unique(maintain_order=True).with_row_index("column")
    cell = terms.join(item, on="item_id").join(term, on="term")
    # The last row is that of items without terms.
    vectors = sp.csr_matrix(
        (cell["weight"].to_numpy().astype(np.float32), (cell["row"].to_numpy(), cell["column"].to_numpy())),
        shape=(item.height + 1, max(term.height, 1)),
    )
    rows = likes.join(item, on="item_id", how="left", maintain_order="left")["row"].fill_null(item.height)
    lengths = likes.group_by("user_id", maintain_order=True).len()["len"].to_numpy().astype(np.int64)
    group = group_likes(vectors[rows.to_numpy()], lengths, config.terms.threshold)
    likes = likes.with_columns(pl.Series("group", group, pl.Int64))
    by = ["user_id", "group"]
    main = (
        likes.group_by(*by, "cluster", "label")
        .len()
        .sort([*by, "len", "cluster"], descending=[False] * 2 + [True, False])
    )
    main = main.unique(by, keep="first", maintain_order=True).select(*by, "cluster", "label")
    found = cite(likes, by, config).join(main, on=by, maintain_order="left")
    found = (
        found.filter(pl.col("num_items") >= config.min_items)
        .sort(["user_id", "share", "group"], descending=[False, True, False])
        .unique(["user_id", "cluster"], keep="first", maintain_order=True)
        .group_by("user_id", maintain_order=True)
        .head(config.max_interests)
    )
    strongest = (
        likes.select(*by, "item_id")
        .join(found.select(by), on=by, how="semi")
        .join(terms, on="item_id")
        .group_by(*by, "term")
        .agg(pl.col("weight").sum())
        .sort([*by, "weight", "term"], descending=[False, False, True, False])
        .group_by(by, maintain_order=True)
        .agg(pl.col("term").head(4 * LABEL_WORDS))
    )
    named = pl.Series("named", [_label(t) for t in strongest["term"].to_list()], pl.String)
    found = found.join(strongest.select(*by, named), on=by, how="left", maintain_order="left")
    label = pl.coalesce("named", "label").alias("label")
    return found.select("user_id", "cluster", label, "share", EVIDENCE, "evidence_titles")
