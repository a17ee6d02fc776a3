"""One FeatureService a ranker version: the contract between what a ranker was trained on and what it is served.

Each lists exactly what its ranker reads. The version of generated content is among it, so that the ranker can refuse
content that it was not trained on.
"""

from feast import FeatureService

from feature_repo.owners import RANKING
from feature_repo.views import item_captions, item_popularity, user_activity, user_vista, user_vista_held

ranker_popularity_v1 = FeatureService(
    name="ranker_popularity_v1",
    features=[item_popularity[["num_events", "num_likes"]]],
    owner=RANKING,
    description="Ranks by popularity as of yesterday.",
    tags={"owner": RANKING, "version": "1"},
)

ranker_item_knn_v1 = FeatureService(
    name="ranker_item_knn_v1",
    features=[user_activity[["recent_item_ids", "recent_labels"]]],
    owner=RANKING,
    description="Cosine neighbours of the user's recent likes.",
    tags={"owner": RANKING, "version": "1"},
)

ranker_markov_chain_v1 = FeatureService(
    name="ranker_markov_chain_v1",
    features=[user_activity[["recent_item_ids", "recent_labels"]]],
    owner=RANKING,
    description="Transition counts from the user's last item.",
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
    features=[item_popularity, user_activity, item_captions],
    owner=RANKING,
    description="`ranker_dlrm_v1` and the item's caption tokens.",
    tags={"owner": RANKING, "version": "1"},
)

ranker_dlrm_vista_v1 = FeatureService(
    name="ranker_dlrm_vista_v1",
    features=[item_popularity, user_activity, user_vista, user_vista_held],
    owner=RANKING,
    description="`ranker_dlrm_v1` and the user's VISTA summary, of the version that it was trained on.",
    tags={"owner": RANKING, "version": "1"},
)
