"""Everything of the feature repository in one place; Feast's CLI and the platform apply the same objects."""

import copy
from collections.abc import Mapping
from typing import Any

from feast import Entity, FeatureService, FeatureView

from feature_repo import sources
from feature_repo.entities import item, user
from feature_repo.publications import Publication
from feature_repo.services import (
    ranker_dlrm_captions_v1,
    ranker_dlrm_v1,
    ranker_dlrm_vista_v1,
    ranker_item_knn_v1,
    ranker_markov_chain_v1,
    ranker_popularity_v1,
)
from feature_repo.views import (
    item_captions,
    item_popularity,
    item_semantic_ids,
    user_activity,
    user_persona,
    user_persona_text,
    user_vista,
    user_vista_held,
)

ENTITIES: list[Entity] = [user, item]
VIEWS: list[FeatureView] = [
    item_popularity,
    item_captions,
    item_semantic_ids,
    user_activity,
    user_persona,
    user_persona_text,
    user_vista,
    user_vista_held,
]
# Written row by row while the platform serves; no publication stands behind them.
PUSHED = {user_persona_text.name}
SERVICES: list[FeatureService] = [
    ranker_popularity_v1,
    ranker_item_knn_v1,
    ranker_markov_chain_v1,
    ranker_dlrm_v1,
    ranker_dlrm_captions_v1,
    ranker_dlrm_vista_v1,
]


def bound(publications: Mapping[str, Publication]) -> list[Any]:
    """Returns the objects to apply: views read the published versions, and say which in their tags.

    Views that are not published yet are left out, and so are the services that need them. Pushed views are always in.

    Args:
        publications: What is published, by view.
    """
    made: dict[str, FeatureView] = {}
    for view in VIEWS:
        if view.name in PUSHED:
            made[view.name] = view
            continue
        if (publication := publications.get(view.name)) is None:
            continue
        version = {"version": publication.version}
        if publication.content_version:
            version["content_version"] = publication.content_version
        there = copy.copy(view)
        there.batch_source = sources.published(view.name, publication.uri)
        there.tags = dict(view.tags) | version
        made[view.name] = there
    served = []
    for service in SERVICES:
        if made.keys() >= {p.name for p in service.feature_view_projections}:
            there_too = copy.deepcopy(service)
            for projection in there_too.feature_view_projections:
                projection.batch_source = made[projection.name].batch_source
            served.append(there_too)
    return [*ENTITIES, *[v.batch_source for v in made.values()], *made.values(), *served]
