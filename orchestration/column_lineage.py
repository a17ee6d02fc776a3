"""Which columns each column is made of, as Dagster's `dagster/column_lineage`.

Columns that are made of no column of another asset (versions, moments of writing, what a source gives) are left out.
"""

import dagster as dg

from assets.ranking.specs import CANDIDATES, CandidateSpec

_SPLITS, _ITEMS = "interactions/splits", "interactions/items"
_EVENTS = "interactions/raw_interactions"
_IDS, _EMBEDDINGS, _CAPTIONS = "clusters/semantic_ids", "clusters/item_embeddings", "captions/item_captions"
_TRAINING = "features/training_set"

Sources = dict[str, list[str]]


def _of(table: str, columns: str) -> list[str]:
    """Columns of one table, as ``stage/table.column``."""
    return [f"{table}.{column}" for column in columns.split()]


def _same(table: str, columns: str) -> Sources:
    """Columns that are taken over as they are."""
    return {column: [f"{table}.{column}"] for column in columns.split()}


def _each(columns: str, sources: list[str]) -> Sources:
    """Columns that are all made of the same."""
    return dict.fromkeys(columns.split(), sources)


_RECORD = "caption subjects style setting mood text_in_image tags"
_SHOWN = _of(_ITEMS, "title description categories attributes")
_TEXT = [*_of(_ITEMS, "title description categories"), *_of(_CAPTIONS, "caption")]
_HISTORY = _of(_EVENTS, "user_id item_id timestamp sequence action value")
_FITTED = [*_HISTORY, *_of(_SPLITS, "user_id item_id timestamp position label split"), *_of(_IDS, "codes")]
_LIKED = [*_of(_SPLITS, "item_id position label"), *_of(_IDS, "cluster")]
_INTERESTS = [
    *_LIKED,
    *_of("clusters/cluster_profiles", "label"),
    *_of(_ITEMS, "title description categories"),
    *_of(_CAPTIONS, "caption"),
]
_COUNTS = "item_num_events item_num_likes item_mean_value user_num_events user_num_likes user_mean_value"
_RECENT = "user_recent_item_ids user_recent_labels"
_METRICS = {
    name: [f"ranking/{spec.name}.{column}" for spec in CANDIDATES for column in columns.split()]
    for name, columns in {
        "slice": "slices",
        "value": "label score rank slices user_id",
        "num_examples": "label rank slices",
        "num_users": "user_id slices",
        "ranker_version": "ranker_version",
    }.items()
}
_TESTED = [f"ranking/{spec.name}.{column}" for spec in CANDIDATES for column in ("score", "label", "user_id")]
_PUBLISHED = [
    "features/item_popularity.item_id",
    "features/user_activity.user_id",
    "captions/caption_tokens.item_id",
    "clusters/semantic_ids.item_id",
    "personas/user_personas.user_id",
    "vista/user_summaries.user_id",
]


def _scored(spec: CandidateSpec) -> list[str]:
    """What the scores of a candidate are made of."""
    if spec.kind == "popularity":
        return _of(_TRAINING, "item_num_events item_num_likes")
    if spec.is_floor:
        return _of(_TRAINING, f"item_id {_RECENT}")
    read = _of(_TRAINING, f"user_id item_id {_COUNTS} {_RECENT}")
    if "tokens" in spec.inputs:
        read += [
            *_of(_TRAINING, "item_token_ids item_token_version"),
            *_of("captions/caption_tokens", "token_ids weights"),
        ]
    if "summary" in spec.inputs:
        read += _of(_TRAINING, "user_summary user_summary_scales user_summary_version")
    return read


def _predictions(spec: CandidateSpec) -> Sources:
    scored = _scored(spec)
    return _same(_TRAINING, "example_id user_id item_id split label") | {
        "score": scored,
        "rank": [*scored, *_of(_ITEMS, "item_id available_from"), *_of(_TRAINING, "event_timestamp")],
        "slices": _of(_TRAINING, "user_id item_id position split"),
    }


_ABLATED = [
    *_of(_TRAINING, f"user_id item_id label {_COUNTS} {_RECENT}"),
    *_of(_SPLITS, "global_time leave_one_out"),
    *_of(_ITEMS, "title"),
    *_of("captions/caption_tokens", "token_ids"),
    *_of("captions/caption_embeddings", "embedding"),
]

SOURCES: dict[str, Sources] = {
    "interactions/items": {},
    "interactions/users": {},
    "interactions/raw_interactions": _same(_ITEMS, "item_id"),
    "interactions/quarantine": {},
    "interactions/splits": _same(_EVENTS, "user_id item_id timestamp action value")
    | {
        "example_id": _of(_EVENTS, "event_id"),
        "position": _of(_EVENTS, "user_id timestamp sequence"),
        "label": _of(_EVENTS, "action value"),
        "leave_one_out": _of(_EVENTS, "user_id timestamp sequence"),
        "global_time": _of(_EVENTS, "timestamp"),
        "split": _of(_EVENTS, "user_id timestamp sequence"),
    },
    "captions/item_images": _same(_ITEMS, "item_id image_uri")
    | _each("fingerprint pixel_digest format width height reason detail", _of(_ITEMS, "image_uri")),
    "captions/item_captions": _same(_ITEMS, "item_id")
    | _each(f"content_key {_RECORD}", [*_SHOWN, *_of("captions/item_images", "pixel_digest")])
    | _same("captions/item_images", "pixel_digest")
    | {"event_timestamp": _of(_ITEMS, "available_from")},
    "captions/caption_tokens": _same(_CAPTIONS, "item_id event_timestamp")
    | _each("token_ids tokens weights", [*_of(_CAPTIONS, _RECORD), *_of(_SPLITS, "item_id split")])
    | {"token_version": _of(_CAPTIONS, "caption_version")},
    "captions/caption_embeddings": _same(_CAPTIONS, "item_id event_timestamp")
    | {"embedding": _of(_CAPTIONS, "caption"), "embedding_version": _of(_CAPTIONS, "caption_version")},
    "ranking/content_ablation": _each("value low high relative verdict counts", _ABLATED),
    "clusters/item_embeddings": _same(_ITEMS, "item_id")
    | {
        "embedding": _TEXT,
        "embedding_version": _of(_CAPTIONS, "caption_version"),
        "event_timestamp": _of(_ITEMS, "available_from"),
    },
    "clusters/codebooks": _each("level code centroid items", _of(_EMBEDDINGS, "embedding"))
    | {"codebook_version": _of(_EMBEDDINGS, "embedding_version")},
    "clusters/semantic_ids": _same(_EMBEDDINGS, "item_id event_timestamp")
    | _each(
        "codes collision semantic_id cluster",
        [*_of(_EMBEDDINGS, "embedding"), *_of("clusters/codebooks", "centroid")],
    )
    | _same("clusters/codebooks", "codebook_version"),
    "clusters/cluster_descriptions": _same("clusters/cluster_profiles", "cluster")
    | _each(
        "name description",
        [
            *_of("clusters/cluster_profiles", "label example_item_ids example_titles"),
            *_of(_CAPTIONS, "item_id caption"),
        ],
    ),
    "clusters/quantiser_comparison": _each(
        "used utilisation entropy entropy_ratio error held_error unique_rate collided largest_group",
        _of(_EMBEDDINGS, "item_id embedding"),
    ),
    "clusters/cluster_profiles": _same(_IDS, "cluster codebook_version")
    | {
        "label": [*_of(_CAPTIONS, "mood tags"), *_of(_ITEMS, "categories"), *_of(_IDS, "cluster")],
        "items": _of(_IDS, "item_id cluster"),
        "example_item_ids": [*_of(_IDS, "item_id cluster"), *_of(_EMBEDDINGS, "embedding")],
        "example_titles": _of(_ITEMS, "title"),
        "centroid": _of(_EMBEDDINGS, "embedding"),
    },
    "personas/user_personas": _same(_SPLITS, "user_id")
    | {
        "interests": _INTERESTS,
        "explorations": [*_LIKED, *_of("clusters/cluster_profiles", "cluster label centroid")],
        "num_events": _of(_SPLITS, "user_id sampled"),
        "event_timestamp": _of(_SPLITS, "timestamp"),
    }
    | _each("content_key persona embedding", _INTERESTS),
    "personas/persona_measures": _each(
        "value low high num_users",
        [
            *_of("personas/user_personas", "persona interests explorations embedding"),
            *_of(_SPLITS, "user_id item_id position label leave_one_out global_time"),
            *_of(_ITEMS, "title description categories"),
            *_of(_CAPTIONS, "caption"),
            *_of(_IDS, "cluster"),
            *_of("clusters/cluster_profiles", "label centroid"),
            *_of(_EMBEDDINGS, "embedding"),
        ],
    ),
    "personas/persona_student": _each(
        "ifr grounding coverage exploration_validity next_cluster_recall next_cluster_hit next_novel_hit "
        "exploration_agreement artifact",
        [*_INTERESTS, *_of("clusters/cluster_profiles", "centroid")],
    )
    | _each("users users_with_later_likes", _of(_SPLITS, "user_id label position")),
    "vista/summarizer": _each(
        "artifact valid_auc valid_auc_low valid_auc_high valid_logloss test_auc best_epoch epochs metrics", _FITTED
    )
    | {"valid_examples": _of(_SPLITS, "split"), "event_timestamp": _of(_EVENTS, "timestamp")},
    "vista/history_models": _each("value low high trial train_seconds verdict", _FITTED),
    "vista/history_sweeps": _each("value low high cost", _FITTED),
    "vista/user_summaries": _same(_EVENTS, "user_id")
    | _each("summary scales", [*_HISTORY, *_of("vista/summarizer", "artifact")])
    | {
        "num_events": _of(_EVENTS, "user_id timestamp"),
        "is_latest": _of(_EVENTS, "user_id timestamp"),
        "event_timestamp": _of(_EVENTS, "timestamp"),
        "summary_version": _of("vista/summarizer", "model_version"),
    },
    "features/item_popularity": _same(_SPLITS, "item_id")
    | {
        "num_events": _of(_SPLITS, "item_id timestamp sampled"),
        "num_likes": _of(_SPLITS, "item_id timestamp label sampled"),
        "mean_value": _of(_SPLITS, "item_id timestamp value sampled"),
        "event_timestamp": _of(_SPLITS, "timestamp"),
    },
    "features/user_activity": _same(_SPLITS, "user_id")
    | {
        "num_events": _of(_SPLITS, "user_id timestamp sampled"),
        "num_likes": _of(_SPLITS, "user_id timestamp label sampled"),
        "mean_value": _of(_SPLITS, "user_id timestamp value sampled"),
        "recent_item_ids": _of(_SPLITS, "user_id item_id timestamp position sampled"),
        "recent_labels": _of(_SPLITS, "user_id label timestamp position sampled"),
        "event_timestamp": _of(_SPLITS, "timestamp"),
    },
    "features/training_set": _same(_SPLITS, "example_id user_id item_id label sampled split position")
    | {"event_timestamp": _of(_SPLITS, "timestamp")}
    | {f"item_{name}": _of("features/item_popularity", name) for name in ("num_events", "num_likes", "mean_value")}
    | {
        f"user_{name}": _of("features/user_activity", name)
        for name in ("num_events", "num_likes", "mean_value", "recent_item_ids", "recent_labels")
    }
    | {
        "item_token_ids": _of("captions/caption_tokens", "token_ids"),
        "item_token_version": _of("captions/caption_tokens", "token_version"),
        "item_codes": _of(_IDS, "codes"),
        "user_summary": _of("vista/user_summaries", "summary"),
        "user_summary_scales": _of("vista/user_summaries", "scales"),
        "user_summary_version": _of("vista/user_summaries", "summary_version"),
    },
    "features/online_store": _each("rows rows_written rows_removed", _PUBLISHED)
    | {
        "content_version": [
            "captions/caption_tokens.token_version",
            "clusters/semantic_ids.codebook_version",
            "personas/user_personas.persona_version",
            "vista/user_summaries.summary_version",
        ]
    },
    **{f"ranking/{spec.name}": _predictions(spec) for spec in CANDIDATES},
    "ranking/leaderboard": _METRICS | {"low": _METRICS["value"], "high": _METRICS["value"]},
    "experiments/candidates": _same("ranking/leaderboard", "candidate")
    | {
        "candidate_version": _of("ranking/leaderboard", "ranker_version"),
        "is_current": _of("ranking/leaderboard", "ranker_version"),
        "metrics": [f"ranking/{spec.name}.{column}" for spec in CANDIDATES for column in ("label", "score", "rank")],
    },
    "experiments/assignment": _each("num_users share p_value", _of(_SPLITS, "user_id")),
    "experiments/challenger": _each(
        "decision reason rules valid_auc baseline_valid_auc valid_gain valid_gain_low valid_gain_high test_auc ece "
        "gain gain_low gain_high floor_gain floor_gain_low floor_gain_high num_examples num_users",
        _TESTED,
    )
    | {
        "challenger": _of("experiments/candidates", "candidate"),
        "challenger_version": _of("experiments/candidates", "candidate_version"),
        "champion": _of("experiments/candidates", "candidate"),
        "champion_version": _of("experiments/candidates", "candidate_version"),
        "floor": _of("experiments/candidates", "candidate"),
    },
    "experiments/champion": {
        "candidate": _of("experiments/challenger", "challenger"),
        "candidate_version": _of("experiments/challenger", "challenger_version"),
        "reason": _of("experiments/challenger", "reason"),
    },
}


def column_lineage(table: str) -> dg.TableColumnLineage:
    """Lineage of the columns of the asset ``stage/table``.

    Raises:
        KeyError: If nobody has said what the asset's columns are made of.
    """
    return dg.TableColumnLineage(
        {
            column: [
                dg.TableColumnDep(dg.AssetKey(source.rsplit(".", 1)[0].split("/")), source.rsplit(".", 1)[1])
                for source in sources
            ]
            for column, sources in SOURCES[table].items()
        }
    )
