"""Rankers as the stage `ranking` leaves them: predictions, registered models, the table of rankers."""

import datetime as dt
import json

import numpy as np
import pyarrow as pa

from ray_jobs.tables.ranking import LEADERBOARD, RANKERS, predictions

SLOPE = 2.5
CREATED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def seed_rankers(tables, tracking, skills, *, version="v1", num_users=150, per_user=8, seed=0, lucky=(), bias=0.0):
    """Writes what a night of training leaves behind.

    Args:
        tables: A `Tables` resource.
        tracking: A `Tracking` resource.
        skills: How well each candidate knows the users' taste: 0 nothing, 1 nearly all.
        version: Version of all of them, or of each by name.
        num_users: Users; each has as many valid as test examples.
        per_user: Examples a user and split.
        seed: Seed of the examples; of the noise too.
        lucky: Candidates whose skill shows on validation only.
        bias: Log-odds by which every score is off.
    """
    mlflow = tracking.connect("ranking")
    rng = np.random.default_rng(seed)
    num = num_users * per_user * 2
    user = np.repeat(np.arange(num_users), per_user * 2)
    split = np.where(np.arange(num) % 2, "test", "valid")
    taste = rng.normal(size=num)
    label = (rng.random(num) < 1 / (1 + np.exp(-SLOPE * taste))).astype(np.int8)
    rows = []
    versions = version if isinstance(version, dict) else dict.fromkeys(skills, version)
    for name, skill in sorted(skills.items()):
        version = versions[name]
        # The same version of a candidate is the same model: its noise is its own.
        noise = np.random.default_rng([seed, *f"{name}{version}".encode()]).normal(size=num)
        seen = np.where((split == "test") & (name in lucky), 0.0, skill)
        # A blurred view of the taste, and the chance of a like given that view: calibrated, however blurred.
        view = seen * taste + np.sqrt(1 - seen**2) * noise
        score = 1 / (1 + np.exp(-bias - SLOPE * seen * view / np.sqrt(1 + np.pi / 8 * SLOPE**2 * (1 - seen**2))))
        table = predictions(name)
        tables.write(
            table,
            pa.table(
                {
                    "example_id": [f"x{i}" for i in range(num)],
                    "user_id": [f"u{u}" for u in user],
                    "item_id": [f"i{i % 50}" for i in range(num)],
                    "split": split,
                    "label": pa.array(label, pa.int8()),
                    "score": score,
                    "rank": pa.nulls(num, pa.int64()),
                    "slices": [[]] * num,
                    "ranker_version": [version] * num,
                    "created_timestamp": pa.array([CREATED] * num),
                }
            ),
            version=f"{name}-{version}",
        )
        with mlflow.start_run(run_name=name) as run:
            mlflow.log_dict({"name": name}, "model/constructor.json")
        client = mlflow.MlflowClient()
        if not client.search_registered_models(f"name = 'ranker_{name}'"):
            client.create_registered_model(f"ranker_{name}")
        made = client.create_model_version(f"ranker_{name}", f"runs:/{run.info.run_id}/model", run.info.run_id)
        rows.append(
            {
                "candidate": name,
                "ranker_version": version,
                "artifact": f"rankers/{name}/{version}",
                "feature_service": name,
                "experiment_id": run.info.experiment_id,
                "run_id": run.info.run_id,
                "model_name": f"ranker_{name}",
                "model_version": str(made.version),
                "metrics": json.dumps({"test/auc": skill}),
                "created_timestamp": CREATED,
            }
        )
    tables.write(RANKERS, pa.Table.from_pylist(rows, RANKERS.schema), version=f"rankers-{seed}-{versions}")
    tables.write(LEADERBOARD, LEADERBOARD.schema.empty_table(), version=f"board-{seed}-{versions}")
