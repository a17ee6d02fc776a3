"""Tables of the stage `ranking`: what candidates predicted, how they are registered, how they compare."""

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import Column, Table


def predictions(candidate: str) -> Table:
    """The contract of the table ``ranking/<candidate>``, which the asset of that name owns."""
    return Table(
        f"ranking/{candidate}",
        f"one example of the splits `valid` and `test` as `{candidate}` scored it",
        (
            Column("example_id", pa.string(), "Example of `interactions/splits`."),
            Column("user_id", pa.string(), "User.", pii=True),
            Column("item_id", pa.string(), "Item."),
            Column("split", pa.string(), "`valid` or `test`."),
            Column("label", pa.int8(), "1 liked, 0 not."),
            Column("score", pa.float64(), "Calibrated probability of a like."),
            Column(
                "rank",
                pa.int64(),
                "Rank of the item among the whole catalogue, from 1; null for an example that "
                "is no target (not liked, sampled, or an item that the user already had).",
                nullable=True,
            ),
            Column("slices", pa.list_(pa.string()), "Slices that the example belongs to, e.g. `new_items`."),
            Column("ranker_version", pa.string(), "Version of the ranker that scored it."),
            CREATED,
        ),
        primary_key=("example_id",),
    )


RANKERS = Table(
    "ranking/rankers",
    "one candidate as it stands: the trained ranker and its registration in MLflow",
    (
        Column("candidate", pa.string(), "Candidate; also the asset `ranking/<candidate>`."),
        Column("ranker_version", pa.string(), "Inputs, code and parameters that made it."),
        Column("artifact", pa.string(), "The trained ranker in the artifact store."),
        Column("feature_service", pa.string(), "Feast service that gives its inputs when it serves."),
        Column("experiment_id", pa.string(), "MLflow experiment."),
        Column("run_id", pa.string(), "MLflow run."),
        Column("model_name", pa.string(), "Registered model."),
        Column("model_version", pa.string(), "Version of the registered model."),
        Column("metrics", pa.string(), "Every metric with its interval, as a JSON object: the names that MLflow has."),
        CREATED,
    ),
    primary_key=("candidate",),
    partition_by=("candidate",),
)

LEADERBOARD = Table(
    "ranking/leaderboard",
    "one metric of one candidate on one slice, or its paired difference to a baseline",
    (
        Column("candidate", pa.string(), "Candidate."),
        Column("slice", pa.string(), "`all`, or a slice of the test split."),
        Column("metric", pa.string(), "Metric, e.g. `auc`."),
        Column("baseline", pa.string(), "Empty: the metric itself. Else the candidate it is the difference to."),
        Column("value", pa.float64(), "Value."),
        Column("low", pa.float64(), "Lower end of the 95% interval (users resampled)."),
        Column("high", pa.float64(), "Upper end."),
        Column("num_examples", pa.int64(), "Examples, or targets for `hr_at_10` and `ndcg_at_10`."),
        Column("num_users", pa.int64(), "Users."),
        Column("ranker_version", pa.string(), "Version of the candidate."),
        CREATED,
    ),
    primary_key=("candidate", "slice", "metric", "baseline"),
)

CONTENT_ABLATION = Table(
    "ranking/content_ablation",
    "one metric of one arm of the content experiment on one slice and split rule, or its difference to another arm",
    (
        Column("split_rule", pa.string(), "`global_time` or `leave_one_out`."),
        Column("arm", pa.string(), "What the ranker knows of an item's content; placebos are called so."),
        Column("item_ids", pa.bool_(), "Whether items have embeddings of their own beside it."),
        Column("slice", pa.string(), "`all`, or a slice of the test split."),
        Column("metric", pa.string(), "Metric, e.g. `auc`."),
        Column("baseline", pa.string(), "Empty: the metric itself. Else the arm it is the difference to."),
        Column("value", pa.float64(), "Mean over seeds."),
        Column("low", pa.float64(), "Lower end of the 95% interval (users and seeds resampled)."),
        Column("high", pa.float64(), "Upper end."),
        Column("relative", pa.float64(), "A difference over the baseline's metric; else null.", nullable=True),
        Column("num_seeds", pa.int32(), "Trainings."),
        Column("num_examples", pa.int64(), "Examples, or targets for `hr_at_10` and `ndcg_at_10`."),
        Column("num_users", pa.int64(), "Users."),
        Column("counts", pa.bool_(), "Whether a lift in AUC counts; null for what is no such lift.", nullable=True),
        Column("verdict", pa.string(), "Why, in one sentence.", nullable=True),
        CREATED,
    ),
    primary_key=("split_rule", "arm", "item_ids", "slice", "metric", "baseline"),
)
