"""Tables of experiments with models of long histories; they belong to the stage `vista`."""

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import Column, Table

HISTORY_MODELS = Table(
    "vista/history_models",
    "one metric of one model of long histories under one objective, or its paired difference to another model",
    (
        Column("objective", pa.string(), "`next_item` (leave-one-out, full ranking) or `click` (likes)."),
        Column("model", pa.string(), "Family, floor or peer; `*_shuffled` has other users' histories, a placebo."),
        Column("metric", pa.string(), "Metric, e.g. `ndcg_at_10` or `auc`."),
        Column("baseline", pa.string(), "Empty: the metric itself. Else the model it is the difference to."),
        Column("value", pa.float64(), "Mean over seeds, on the test split."),
        Column("low", pa.float64(), "Lower end of the 95% interval (users and seeds resampled)."),
        Column("high", pa.float64(), "Upper end."),
        Column("num_seeds", pa.int32(), "Trainings."),
        Column("num_examples", pa.int64(), "Examples, or targets for the metrics of ranks."),
        Column("num_users", pa.int64(), "Users."),
        Column("trial", pa.string(), "Hyperparameters that validation chose, as a JSON object.", nullable=True),
        Column("train_seconds", pa.float64(), "Mean seconds of a training.", nullable=True),
        Column("verdict", pa.string(), "What the difference says, in one sentence.", nullable=True),
        CREATED,
    ),
    primary_key=("objective", "model", "metric", "baseline"),
)

HISTORY_SWEEPS = Table(
    "vista/history_sweeps",
    "one metric at one point of one sweep over what a summary of a history may cost",
    (
        Column("sweep", pa.string(), "`seeds`, `precision`, `staleness` or `length`."),
        Column("point", pa.string(), "Summary tokens, precision, newest events missed, or events seen."),
        Column("place", pa.float64(), "Where the point stands on its axis."),
        Column("metric", pa.string(), "Metric of likes, e.g. `auc`."),
        Column("value", pa.float64(), "Mean over seeds, on the test split."),
        Column("low", pa.float64(), "Lower end of the 95% interval (users and seeds resampled)."),
        Column("high", pa.float64(), "Upper end."),
        Column("cost_name", pa.string(), "What the point costs, e.g. `bytes_per_user`."),
        Column("cost", pa.float64(), "How much, mean over seeds."),
        Column("num_seeds", pa.int32(), "Trainings."),
        Column("num_examples", pa.int64(), "Examples."),
        Column("num_users", pa.int64(), "Users."),
        CREATED,
    ),
    primary_key=("sweep", "point", "metric"),
)
