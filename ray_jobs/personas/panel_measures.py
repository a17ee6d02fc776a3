"""The measures of one panel of personas: of what they say of the past, and of what they say of what comes later.

Shape letters: U users, C clusters, N items, D embedding, M claims, Q requests, T texts.
"""

import datetime as dt

import numpy as np
import polars as pl
import pydantic

from models.personas.claims import Grounding, ground, reciprocal_ranks, redundancy
from models.personas.exploration import ExplorationConfig
from models.personas.interests import EVIDENCE
from models.personas.measures import OWN, Resampled, Topics, averaged, controls, later_hits, other_rows, rated
from models.personas.retrieval import RetrievalConfig, draw, near_clusters, retrieve
from models.personas.topics import catalogue_of, exploration_validity, population
from models.ranking.bootstrap import user_weights
from ray_jobs.personas.panels import Panel, World

# Values of the largest matrix of users by items that is held at once.
MOST_VALUES = 20_000_000


class Knobs(pydantic.BaseModel, frozen=True):
    """What the measures are cut by."""

    false_accept_rate: float = pydantic.Field(
        0.05, gt=0, lt=1, description="Share of other users' citations that pass for grounded: sets the threshold."
    )
    sporadic_share: float = pydantic.Field(
        0.03, ge=0, lt=1, description="Interests of a smaller part of the likes are sporadic, as are those of one item."
    )
    stale_days: float = pydantic.Field(30, gt=0, description="Interests with no newer evidence are stale.")
    same_claim: float = pydantic.Field(0.8, gt=0, le=1, description="Cosine from which two claims say the same.")
    num_others: int = pydantic.Field(99, ge=1, description="Other users among which an owner is to be found.")
    draws: int = pydantic.Field(5, ge=1, description="Random draws of controls, and requests of each user.")
    resamples: int = pydantic.Field(500, ge=1, description="Bootstrap resamples of users.")
    retrieval: RetrievalConfig = pydantic.Field(RetrievalConfig(), description="From personas to items.")
    seed: int = pydantic.Field(17, description="Seed of draws and resamples.")


def weights(panel: Panel, knobs: Knobs) -> np.ndarray:
    """Draws of the panel's users, (R, U)."""
    return user_weights(panel.users.height, knobs.resamples, knobs.seed).astype(np.float64)


def claims_grounding(world: World, panel: Panel, claim_MD: np.ndarray, knobs: Knobs) -> Grounding:
    """Grounding of the panel's interests, of which each has a claim; what is cited must be a liked item of the user."""
    cited = panel.interests.select("user", EVIDENCE).with_row_index("claim").explode(EVIDENCE)
    cited = cited.with_columns(pl.int_range(pl.len()).over("claim").alias("place"))
    liked = panel.likes.select("user", pl.col("item_id").alias(EVIDENCE), "item")
    cited = cited.join(liked, on=["user", EVIDENCE])
    width = int(cited["place"].max() or 0) + 1  # type: ignore[arg-type]
    cited_MED = np.full((len(claim_MD), width, world.item_ND.shape[1]), np.nan, np.float32)
    cited_MED[cited["claim"].to_numpy(), cited["place"].to_numpy()] = world.item_ND[cited["item"].to_numpy()]
    return ground(
        claim_MD,
        cited_MED,
        panel.interests["user"].to_numpy(),
        false_accept_rate=knobs.false_accept_rate,
        draws=knobs.draws,
        rng=np.random.default_rng(knobs.seed),
    )


def _said(
    panel: Panel,
    claim_MD: np.ndarray,
    persona_UD: np.ndarray | None,
    grounding: Grounding,
    planned_U: np.ndarray,
    weight_RU: np.ndarray,
    knobs: Knobs,
) -> list[Resampled]:
    """Grounding, redundancy and specificity."""
    rng = np.random.default_rng(knobs.seed)
    size = panel.users.height
    user_M = panel.interests["user"].to_numpy()
    claims_U = np.bincount(user_M, minlength=size)

    def by_user(value_M: np.ndarray) -> np.ndarray:
        return np.bincount(user_M, value_M, minlength=size)

    found = []
    for measure, own_M in (
        ("grounding_precision", grounding.one_M),
        ("grounding_precision_two_items", grounding.two_M),
    ):
        found.append(rated(measure, OWN, by_user(own_M), claims_U, weight_RU))
    found.append(rated("grounding_precision", "other_user", by_user(grounding.shuffled_M), claims_U, weight_RU))
    found.append(rated("grounding_precision_all_rows", OWN, by_user(grounding.one_M), planned_U, weight_RU))
    has = np.flatnonzero(claims_U)
    dense_M = np.searchsorted(has, user_M)
    shuffled_M = rng.permutation(len(user_M))
    for arm, order_M in ((OWN, np.arange(len(user_M))), ("other_user", shuffled_M)):
        for measure, parts in redundancy(claim_MD[order_M], dense_M, knobs.same_claim).items():
            above_U, below_U = np.zeros(size), np.zeros(size)
            above_U[has], below_U[has] = parts
            found.append(rated(measure, arm, above_U, below_U, weight_RU))
    if persona_UD is None:
        persona_UD = np.zeros((size, claim_MD.shape[1]))
        np.add.at(persona_UD, user_M, claim_MD)
    one_U = np.zeros(size)
    one_U[has] = 1.0
    ranks = reciprocal_ranks(persona_UD[has], panel.history_UD[has], knobs.num_others, rng)
    for arm, rank in zip((OWN, "other_user"), ranks, strict=True):
        above_U = np.zeros(size)
        above_U[has] = rank
        found.append(rated("owner_mrr", arm, above_U, one_U, weight_RU))
    named = panel.interests.group_by("user", maintain_order=True).agg(pl.col("label").sort())
    key = named.select("user", pl.col("label").list.join("|").is_duplicated().alias("twin"))
    twin_U = np.zeros(size)
    twin_U[key["user"].to_numpy()] = key["twin"].to_numpy()
    found.append(rated("duplicate_personas", OWN, twin_U, one_U, weight_RU))
    return found


def _rests_on(panel: Panel, weight_RU: np.ndarray, knobs: Knobs) -> list[Resampled]:
    """Sporadic evidence, staleness and coverage; the control of coverage is as many clusters of anything else."""
    rng = np.random.default_rng(knobs.seed)
    size = panel.users.height
    user_M = panel.interests["user"].to_numpy()
    claims_U = np.bincount(user_M, minlength=size)
    # What the user liked last of all, as the moment from which evidence is looked back at.
    times = panel.likes.select("user", pl.col("item_id").alias(EVIDENCE), "timestamp")
    newest = times.group_by("user").agg(pl.col("timestamp").max().alias("last"))
    cited = panel.interests.select("user", EVIDENCE, "share").with_row_index("claim")
    shown = cited.explode(EVIDENCE).join(times, on=["user", EVIDENCE], how="left")
    shown = shown.group_by("claim").agg(pl.col("timestamp").max()).sort("claim")
    age = cited.join(shown, on="claim").join(newest, on="user", how="left").sort("claim")
    old_M = ((age["last"] - age["timestamp"]) > dt.timedelta(days=knobs.stale_days)).fill_null(True).to_numpy()
    thin_M = ((cited[EVIDENCE].list.len() < 2) | (cited["share"] < knobs.sporadic_share)).to_numpy()
    found = [
        rated("sporadic_evidence", OWN, np.bincount(user_M, thin_M, minlength=size), claims_U, weight_RU),
        rated("stale_interests", OWN, np.bincount(user_M, old_M, minlength=size), claims_U, weight_RU),
    ]
    # A cluster of the user's own history, drawn as a careless persona would name it.
    raw_UC = np.where(panel.share_UC > 0, rng.random(panel.share_UC.shape), -np.inf)
    drawn_UC = (np.argsort(np.argsort(-raw_UC, 1), 1) < claims_U[:, None]) & np.isfinite(raw_UC)
    thin_UC = drawn_UC & (panel.share_UC < knobs.sporadic_share)
    found.append(rated("sporadic_evidence", "random_cluster", thin_UC.sum(1), drawn_UC.sum(1), weight_RU))
    whole_U = panel.share_UC.sum(1) * (claims_U > 0)
    arms = controls(panel.topics, panel.share_UC, panel.share_UC.sum(0), knobs.draws, rng)
    for arm, drawn in {OWN: [panel.topics], **arms}.items():
        kept_U = np.mean([(panel.share_UC * t.known_UC).sum(1) for t in drawn], axis=0)
        found.append(rated("history_coverage", arm, kept_U, whole_U, weight_RU))
    return found


def _explores(
    world: World, panel: Panel, config: ExplorationConfig, weight_RU: np.ndarray, knobs: Knobs
) -> list[Resampled]:
    rng = np.random.default_rng(knobs.seed)
    user_E, anchor_E, cluster_E = (panel.explorations[c].to_numpy() for c in ("user", "anchor", "column"))
    if not len(user_E):
        return []
    quantiles = (config.lower_quantile, config.upper_quantile)
    cluster_N = world.items["column"].to_numpy()
    catalogue = catalogue_of(world.centroid_CD, world.item_ND, cluster_N, quantiles, config.min_items)
    head_C = np.argsort(-panel.share_UC.sum(0), kind="stable")
    place_E = np.arange(len(user_E)) - np.searchsorted(user_E, user_E)
    arms = {
        OWN: cluster_E,
        "random_cluster": rng.integers(0, len(head_C), len(user_E)),
        "popular": head_C[place_E % len(head_C)],
    }
    if len(np.unique(user_E)) > 1:
        arms["other_user"] = cluster_E[other_rows(user_E, 1, rng)[0]]
    return [
        rated(measure, arm, *parts, weight_RU)
        for arm, explored_E in arms.items()
        for measure, parts in exploration_validity(user_E, anchor_E, explored_E, panel.touched_UC, catalogue).items()
    ]


def measure_past(
    world: World,
    panel: Panel,
    claim_MD: np.ndarray,
    config: ExplorationConfig,
    knobs: Knobs,
    *,
    grounding: Grounding,
    persona_UD: np.ndarray | None = None,
    planned_U: np.ndarray | None = None,
) -> list[Resampled]:
    """Everything that is measured against the history that the personas saw.

    Args:
        world: The catalogue.
        panel: Personas of at least two users.
        claim_MD: Vector of what each interest of the panel claims.
        config: Knobs of the explorations.
        knobs: Knobs of the measures.
        grounding: As `claims_grounding` returns it.
        persona_UD: Vectors of whole texts; the mean of the claims by default.
        planned_U: Interests that each persona should have had; those that it has by default.
    """
    weight_RU = weights(panel, knobs)
    if planned_U is None:
        planned_U = np.bincount(panel.interests["user"].to_numpy(), minlength=panel.users.height)
    found = _said(panel, claim_MD, persona_UD, grounding, planned_U, weight_RU, knobs)
    found += _rests_on(panel, weight_RU, knobs)
    found += _explores(world, panel, config, weight_RU, knobs)
    found += population("interests", OWN, panel.topics.known_UC, weight_RU)
    found += population("interests", "raw_clusters", panel.share_UC, weight_RU)
    return found + population("explorations", OWN, panel.topics.explored_UC, weight_RU)


def measure_refresh(before: Panel, after: Panel, changed_U: np.ndarray, knobs: Knobs) -> list[Resampled]:
    """How much of the interests of users stays when later events come in: Jaccard of clusters.

    Args:
        before: Personas that saw the training part.
        after: Personas of the same users that saw everything.
        changed_U: Whether any event came in.
        knobs: Knobs of the measures.
    """
    weight_RU = weights(before, knobs)
    rows = np.arange(before.users.height)
    (donor_U,) = other_rows(rows, 1, np.random.default_rng(knobs.seed))
    found = []
    for arm, order_U in ((OWN, rows), ("other_user", donor_U)):
        old_UC, new_UC = before.topics.known_UC[order_U], after.topics.known_UC
        union_U = (old_UC | new_UC).sum(1)
        jaccard_U = (old_UC & new_UC).sum(1) / np.maximum(union_U, 1)
        counts_U = changed_U & (union_U > 0)
        found.append(rated("refresh_jaccard", arm, jaccard_U * counts_U, counts_U, weight_RU))
    return found


class _Near:
    """The clusters that a cluster of a persona stands for: those near to its text, or to its centroid."""

    def __init__(
        self,
        world: World,
        panel: Panel,
        label_CD: np.ndarray,
        claim_MD: np.ndarray,
        by_text: bool,
        config: RetrievalConfig,
    ):
        text_TD = np.concatenate([label_CD, claim_MD]) if by_text else world.centroid_CD
        self.near_TC = near_clusters(text_TD, world.centroid_CD, config)
        size = len(label_CD)
        self.place_UC = np.tile(np.arange(size), (panel.users.height, 1))
        if by_text:
            cells = panel.interests["user"].to_numpy(), panel.interests["column"].to_numpy()
            self.place_UC[cells] = size + np.arange(len(claim_MD))

    def __call__(self, topics: Topics, rows_Q: np.ndarray, drawn_Q: np.ndarray) -> np.ndarray:
        place_Q = drawn_Q if topics.source_U is None else self.place_UC[topics.source_U[rows_Q], drawn_Q]
        return self.near_TC[place_Q] & (drawn_Q >= 0)[:, None]


def measure_later(
    world: World, panel: Panel, later: pl.DataFrame, label_CD: np.ndarray, claim_MD: np.ndarray, knobs: Knobs
) -> list[Resampled]:
    """Everything that is measured against what comes after the history that the personas saw.

    Args:
        world: The catalogue.
        panel: Personas.
        later: As `later_likes` returns it.
        label_CD: Vectors of the clusters' labels.
        claim_MD: Vectors of the labels of the panel's interests.
        knobs: Knobs of the measures.
    """
    rng = np.random.default_rng(knobs.seed)
    later_UC = np.zeros(panel.share_UC.shape)
    np.add.at(later_UC, (later["user"].to_numpy(), later["column"].to_numpy()), 1)
    # Only users whose persona says something, and of whom something is to be found.
    counts_U = np.asarray(panel.topics.known_UC.any(1) & (later_UC > 0).any(1))
    later_UC *= counts_U[:, None]
    weight_RU = weights(panel, knobs)
    arms = {OWN: [panel.topics], **controls(panel.topics, panel.share_UC, panel.share_UC.sum(0), knobs.draws, rng)}
    found = []
    for arm, drawn in arms.items():
        hits = [later_hits(t, later_UC, panel.touched_UC) for t in drawn]
        for measure in hits[0]:
            found.append(rated(measure, arm, *averaged([h[measure] for h in hits]), weight_RU))
    for by_text in (True, False):
        near = _Near(world, panel, label_CD, claim_MD, by_text, knobs.retrieval)
        for (measure, arm), parts in _recalls(world, panel, later, arms, near, counts_U, knobs).items():
            name = f"{measure}_at_{knobs.retrieval.budget}" + ("" if by_text else "_by_centroid")
            found.append(rated(name, arm, *parts, weight_RU))
    return found


def _recalls(
    world: World,
    panel: Panel,
    later: pl.DataFrame,
    arms: dict[str, list[Topics]],
    near: _Near,
    counts_U: np.ndarray,
    knobs: Knobs,
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Parts of recall for each arm, over all later likes and over those of clusters that were new."""
    size, (num_items, cluster_N) = panel.users.height, (len(world.item_ND), world.items["column"].to_numpy())
    parts: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    rows = np.flatnonzero(counts_U)
    step = max(1, MOST_VALUES // max(num_items, 1))
    for start in range(0, len(rows), step):
        rows_Q = rows[start : start + step]
        # Seeded by the chunk: the same requests for text and centroid.
        rng = np.random.default_rng([knobs.seed, start])
        order_QN = np.argsort(-(panel.history_UD[rows_Q] @ world.item_ND.T), axis=1, kind="stable")
        open_QN, wanted_QN = np.ones(order_QN.shape, bool), np.zeros(order_QN.shape, bool)
        place_U = np.full(size, -1)
        place_U[rows_Q] = np.arange(len(rows_Q))
        for frame, mask_QN, value in ((panel.met, open_QN, False), (later, wanted_QN, True)):
            place = place_U[frame["user"].to_numpy()]
            mask_QN[place[place >= 0], frame["item"].to_numpy()[place >= 0]] = value
        open_QN, wanted_QN = (np.take_along_axis(m, order_QN, 1) for m in (open_QN, wanted_QN))
        cluster_QN = cluster_N[order_QN]
        new_QN = wanted_QN & ~np.take_along_axis(panel.touched_UC[rows_Q], cluster_QN, 1)
        whole_QN = np.ones_like(open_QN)
        taken = {"unrestricted": [retrieve(whole_QN, ~whole_QN, open_QN, knobs.retrieval)]}
        for arm, drawn in arms.items():
            taken[arm] = []
            for turn in range(knobs.draws):
                topics = drawn[turn % len(drawn)]
                # Raw clusters explore nothing: both halves come out of the history.
                second_UC = topics.known_UC if arm == "raw_clusters" else topics.explored_UC
                drawn_2Q = [draw(offered_UC[rows_Q], rng) for offered_UC in (topics.known_UC, second_UC)]
                near_2QC = [near(topics, rows_Q, drawn_Q) for drawn_Q in drawn_2Q]
                known_QN, explored_QN = (np.take_along_axis(n, cluster_QN, 1) for n in near_2QC)
                taken[arm].append(retrieve(known_QN, explored_QN, open_QN, knobs.retrieval))
        for measure, relevant_QN in (("recall", wanted_QN), ("recall_unseen", new_QN)):
            number_Q = relevant_QN.sum(1)
            for arm, sets in taken.items():
                share_Q = np.mean([(t & relevant_QN).sum(1) for t in sets], axis=0) / np.maximum(number_Q, 1)
                above_U, below_U = parts.setdefault((measure, arm), (np.zeros(size), np.zeros(size)))
                above_U[rows_Q], below_U[rows_Q] = share_Q, number_Q > 0
    return parts
