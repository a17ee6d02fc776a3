"""One FeatureService a ranker version: the contract between what a ranker was trained on and what it is served."""

from feast import FeatureService

from feature_repo.owners import RANKING
from feature_repo.views import item_captions, item_popularity, item_semantic_ids, user_activity, user_vista

ranker_popularity_v1 = FeatureService(
    name="ranker_popularity_v1",
    features=[item_popularity],
    owner=RANKING,
    description="Ranks by popularity as of yesterday.",
    tags={"owner": RANKING, "version": "1"},
)

ranker_dlrm_v1 = FeatureService(
    name="ranker_dlrm_v1",
    features=[item_popularity, user_activity],
    owner=RANKING,
    description="DLRM-style ranker on ids, counts and the last items.",
    tags={"owner": RANKING, "version": "1"},
)

ranker_dlrm_captions_v1 = FeatureService(
    name="ranker_dlrm_captions_v1",
    features=[item_popularity, user_activity, item_captions, item_semantic_ids],
    owner=RANKING,
    description="`ranker_dlrm_v1` and the item's caption tokens and semantic ID.",
    tags={"owner": RANKING, "version": "1"},
)

ranker_dlrm_vista_v1 = FeatureService(
    name="ranker_dlrm_vista_v1",
    features=[item_popularity, user_activity, user_vista],
    owner=RANKING,
    description="`ranker_dlrm_v1` and the user's VISTA summary.",
    tags={"owner": RANKING, "version": "1"},
)
