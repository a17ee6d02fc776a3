"""From a retrained VISTA through the rollout to the refusal: real training, export, Feast, a registered ranker."""

import dagster as dg
import pytest
from mlflow.exceptions import MlflowException

from assets.features.item_popularity import item_popularity
from assets.features.online_store import online_store
from assets.features.training_set import training_set
from assets.features.user_activity import user_activity
from assets.ranking import candidates
from assets.ranking.specs import CANDIDATES
from assets.vista.summarizer import summarizer
from assets.vista.user_summaries import user_summaries
from models.ranking.content import ContentVersionError
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.experiments.comparison import Config, Contender, evidence_of
from ray_jobs.experiments.comparison import run as compare
from ray_jobs.ranking.serving_signature import request_of
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.ranking import RANKERS
from ray_jobs.tables.vista import HELD_SUMMARIES, USER_SUMMARIES
from ray_jobs.vista.summary_rollout import release
from tests.assets.features.test_lineage import world

VISTA = {"num_seeds": 2, "width": 8, "epochs": 1, "block_examples": 4}
RANKER = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 256, "width": 8, "resamples": 20}
SPECS = {spec.name: spec for spec in CANDIDATES}


def materialize(resources, instance, assets, **ops):
    config = {"ops": {name: {"config": values} for name, values in ops.items()}}
    return dg.materialize(assets, resources=resources, instance=instance, run_config=config, raise_on_error=False)


def content(resources, instance, **vista):
    """Trains VISTA, exports summaries and publishes them; returns their version."""
    assets = [summarizer, user_summaries, item_popularity, user_activity, training_set, online_store]
    assert materialize(resources, instance, assets, vista__summarizer=VISTA | vista).success
    (version,) = set(resources["tables"].read(USER_SUMMARIES, ["summary_version"])["summary_version"].to_pylist())
    return version


def train(resources, instance):
    """Trains floor and ranker; returns their rows, the floor's first."""
    assets = [candidates.popularity, candidates.dlrm_vista]
    ops = {"ranking__popularity": RANKER, "ranking__dlrm_vista": RANKER}
    assert materialize(resources, instance, assets, **ops).success
    return sorted(resources["tables"].read(RANKERS).to_pylist(), key=lambda row: row["candidate"], reverse=True)


def served(resources, row):
    """What the registered ranker says of two users, with what Feast serves online at this moment."""
    spec = SPECS[row["candidate"]]
    store = resources["features"].store()
    columns = store.get_online_features(
        features=store.get_feature_service(row["feature_service"]),
        entity_rows=[{"user_id": user, "item_id": "i1"} for user in ("u0", "u1", "nobody")],
        full_feature_names=True,
    ).to_dict()
    mlflow = resources["tracking"].connect("ranking")
    model = mlflow.pyfunc.load_model(f"models:/{row['model_name']}/{row['model_version']}")
    scores = model.predict(request_of(columns, spec.kind, spec.inputs))["score"]
    return scores, model.unwrap_python_model().counts.as_dict()


@pytest.mark.ray
def test_a_ranker_refuses_the_summaries_of_another_vista(tmp_path, tracking, instance, ray_cluster):
    resources = world(tmp_path, num_users=40) | {"tracking": tracking, "ray_jobs": LocalRayJobs()}
    first = content(resources, instance)
    floor, ranker = train(resources, instance)
    tables = resources["tables"]
    release(tables.warehouse(), wanted=first)  # as when the alias champion moves to the ranker
    before, outcomes = served(resources, ranker)
    assert before.between(0, 1).all() and outcomes == {"newest": 2, "held": 0, "missing": 1}
    assert served(resources, floor)[0].between(0, 1).all()

    second = content(resources, instance, seed=1)
    assert second != first
    # Until the champion moves, both versions are online: the ranker reads on what it has learned from.
    during, outcomes = served(resources, ranker)
    assert during.equals(before) and outcomes == {"newest": 0, "held": 2, "missing": 1}
    assert set(tables.read(HELD_SUMMARIES, ["summary_version"])["summary_version"].to_pylist()) == {first}

    assert release(tables.warehouse(), wanted=second)
    assert materialize(resources, instance, [online_store]).success
    sentence = f"trained on VISTA summaries of version {first} and is given version {second}: train it again on these"
    with pytest.raises((ContentVersionError, MlflowException), match=sentence):
        served(resources, ranker)
    assert served(resources, floor)[0].between(0, 1).all(), "what reads no content serves on"

    again = train(resources, instance)
    scores, outcomes = served(resources, again[1])
    assert scores.between(0, 1).all() and outcomes == {"newest": 2, "held": 0, "missing": 1}
    champion, *tonight = (
        Contender(name=r["candidate"], version=r["ranker_version"], artifact=r["artifact"], current=r is not ranker)
        for r in (ranker, *again)
    )
    compared = compare(
        Config(
            warehouse=tables.warehouse(),
            artifacts=tables.artifacts(),
            candidates=tonight,
            champion=champion,
            only=tonight[1],
            resamples=100,
        )
    )
    assert sentence in compared.note and evidence_of(compared).champion is None
    assert evidence_of(compared).against_floor is not None
    carried = set(tables.read(TRAINING_SET, ["user_summary_version"])["user_summary_version"].to_pylist())
    assert carried == {None, second}
