"""Feature views: named groups of features of one entity, each from one published table.

No view has a time to live. A fact holds until a newer one replaces it: a caption does not expire, a user who
comes back after a year still has a history, and historical datasets are older than any time to live. How old
features may be is watched by the assets' freshness policies instead.
"""

from datetime import timedelta

from feast import FeatureView, Field
from feast.types import Array, Bytes, Float32, Float64, Int32, Int64, String

from feature_repo import sources
from feature_repo.entities import item, user
from feature_repo.owners import CONTENT_UNDERSTANDING, FEATURE_PLATFORM, PERSONALIZATION, RANKING

NO_EXPIRY = timedelta(0)

item_popularity = FeatureView(
    name="item_popularity",
    entities=[item],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.item_popularity_published,
    description="How often an item was chosen and liked, as of the last day that had ended.",
    owner=FEATURE_PLATFORM,
    tags={"owner": FEATURE_PLATFORM},
    schema=[
        Field(name="num_events", dtype=Int64, description="Events of the item until the day's end."),
        Field(name="num_likes", dtype=Int64, description="Of these, how many were liked."),
        Field(name="mean_value", dtype=Float64, description="Mean value so far; null without values."),
    ],
)

item_captions = FeatureView(
    name="item_captions",
    entities=[item],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.item_captions_published,
    description="The item's caption, written by a language model, as a set of categorical features.",
    owner=CONTENT_UNDERSTANDING,
    tags={"owner": CONTENT_UNDERSTANDING},
    schema=[
        Field(name="token_ids", dtype=Array(Int32), description="Ids into the ranker's token table, sorted."),
        Field(
            name="token_version", dtype=String, description="Content version: captions' model and prompt, tokenizer."
        ),
    ],
)

item_semantic_ids = FeatureView(
    name="item_semantic_ids",
    entities=[item],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.item_semantic_ids_published,
    description="The item's semantic ID: one code a level of the residual quantiser, coarse to fine.",
    owner=CONTENT_UNDERSTANDING,
    tags={"owner": CONTENT_UNDERSTANDING},
    schema=[
        Field(name="codes", dtype=Array(Int32), description="One code a level, coarse to fine."),
        Field(name="cluster", dtype=Int32, description="Coarsest code: the item's cluster."),
        Field(name="codebook_version", dtype=String, description="Version of the codebooks."),
    ],
)

user_activity = FeatureView(
    name="user_activity",
    entities=[user],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.user_activity_published,
    description="What the user did before this moment: counts and the last items, newest first.",
    owner=FEATURE_PLATFORM,
    tags={"owner": FEATURE_PLATFORM, "pii": "true"},
    schema=[
        Field(name="num_events", dtype=Int64, description="Events of the user so far."),
        Field(name="num_likes", dtype=Int64, description="Of these, how many were liked."),
        Field(name="mean_value", dtype=Float64, description="Mean value so far; null without values."),
        Field(name="recent_item_ids", dtype=Array(String), description="The last items, newest first."),
        Field(name="recent_labels", dtype=Array(Int32), description="Their labels."),
    ],
)

user_persona = FeatureView(
    name="user_persona",
    entities=[user],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.user_persona_published,
    description="The user's persona, written by a language model from the user's own clusters, as a vector.",
    owner=PERSONALIZATION,
    tags={"owner": PERSONALIZATION, "pii": "true"},
    schema=[
        Field(name="embedding", dtype=Array(Float32), description="Unit-length text embedding of the persona."),
        Field(name="persona_version", dtype=String, description="Codebooks, prompt, model and parameters."),
    ],
)

user_persona_text = FeatureView(
    name="user_persona_text",
    entities=[user],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.user_persona_text_pushed,
    description="The user's persona as requests read it. Written by refreshes, not published from a table.",
    owner=PERSONALIZATION,
    tags={"owner": PERSONALIZATION, "pii": "true"},
    schema=[
        Field(name="persona", dtype=String, description="The persona in natural language."),
        Field(name="interests", dtype=String, description="Existing interests with their evidence, as JSON."),
        Field(name="explorations", dtype=String, description="Novel interests, as JSON."),
        Field(name="clusters", dtype=String, description="Digest of the clusters that it was written for."),
        Field(name="content_key", dtype=String, description="Its text in the store."),
        Field(name="persona_version", dtype=String, description="Codebooks, prompt, model and parameters."),
        Field(name="written_ms", dtype=Int64, description="When it was written or confirmed: milliseconds of 1970."),
        # The key, too: there is no published file to read its type from.
        Field(name="user_id", dtype=String, description="User."),
    ],
)

SUMMARY_SCHEMA = [
    Field(name="summary", dtype=Bytes, description="Values, row-major, tokens x width; their format ends the version."),
    Field(name="scales", dtype=Array(Float32), description="Scales of each token: value = stored value x scale."),
    Field(name="summary_version", dtype=String, description="Content version: the VISTA model and the cache's format."),
]

user_vista = FeatureView(
    name="user_vista",
    entities=[user],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.user_vista_published,
    description="The user's whole history as VISTA summary tokens, int8 by default.",
    owner=RANKING,
    tags={"owner": RANKING, "pii": "true"},
    schema=SUMMARY_SCHEMA,
)

user_vista_held = FeatureView(
    name="user_vista_held",
    entities=[user],
    ttl=NO_EXPIRY,
    online=True,
    source=sources.user_vista_held_published,
    description="The newest summary of the version that the champion reads, while `user_vista` holds another.",
    owner=RANKING,
    tags={"owner": RANKING, "pii": "true"},
    schema=SUMMARY_SCHEMA,
)
