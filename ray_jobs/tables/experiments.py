"""Tables of the stage `experiments`: candidates, arms, what the gate decided, who is champion."""

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import TIMESTAMP, Column, Table

EXPERIMENT_CANDIDATES = Table(
    "experiments/candidates",
    "one trained candidate that the ledger knows",
    (
        Column("candidate", pa.string(), "Candidate, e.g. `dlrm_captions`."),
        Column("candidate_version", pa.string(), "Identity of what was trained: inputs, code and parameters."),
        Column("model_name", pa.string(), "Registered MLflow model."),
        Column("model_version", pa.string(), "Its version in the registry."),
        Column("run_id", pa.string(), "MLflow run."),
        Column("artifact", pa.string(), "The trained ranker in the artifact store."),
        Column("status", pa.string(), "`candidate`, `rejected` or `promoted`, as of when the row was written."),
        Column("status_reason", pa.string(), "Why, in one sentence; empty where nothing was decided."),
        Column("is_current", pa.bool_(), "Whether it is the newest version of its candidate."),
        Column("metrics", pa.string(), "Every metric, as a JSON object."),
        Column("first_seen", TIMESTAMP, "When the ledger first saw it (UTC)."),
        CREATED,
    ),
    primary_key=("candidate", "candidate_version"),
)

ASSIGNMENT = Table(
    "experiments/assignment",
    "one arm of one experiment",
    (
        Column("experiment", pa.string(), "Experiment."),
        Column("arm", pa.string(), "Arm."),
        Column("salt", pa.string(), "Salt of the experiment's hash."),
        Column("phase", pa.int32(), "Phase of the experiment, from 1; a change of weights begins one."),
        Column("weight", pa.float64(), "Share of users that the arm is meant to have."),
        Column("num_users", pa.int64(), "Known users whose hash falls into the arm."),
        Column("share", pa.float64(), "Their share."),
        Column("p_value", pa.float64(), "Sample ratio test of the experiment (chi-square)."),
        CREATED,
    ),
    primary_key=("experiment", "arm"),
)

ASSIGNED_USERS = Table(
    "experiments/assigned_users",
    "one known user in one experiment; written only where it is asked for",
    (
        Column("experiment", pa.string(), "Experiment."),
        Column("user_id", pa.string(), "User.", pii=True),
        Column("arm", pa.string(), "Arm."),
        CREATED,
    ),
    primary_key=("experiment", "user_id"),
)

CHALLENGER = Table(
    "experiments/challenger",
    "the decision of the gate about the best candidate (one row)",
    (
        Column("decision", pa.string(), "`promote`, `keep` or `reject`."),
        Column("reason", pa.string(), "Why, in one sentence."),
        Column("challenger", pa.string(), "Best candidate on validation.", nullable=True),
        Column("challenger_version", pa.string(), "Its version.", nullable=True),
        Column(
            "champion",
            pa.string(),
            "Champion that it was compared with; null without one, and for one that cannot read today's features.",
            nullable=True,
        ),
        Column("champion_version", pa.string(), "Its version.", nullable=True),
        Column("floor", pa.string(), "Floor that it was compared with."),
        Column("valid_auc", pa.float64(), "AUC of the challenger on validation.", nullable=True),
        Column(
            "baseline_valid_auc",
            pa.float64(),
            "AUC of that champion, or else of the floor, on the same.",
            nullable=True,
        ),
        Column("valid_gain", pa.float64(), "Validation AUC, challenger minus that baseline.", nullable=True),
        Column("valid_gain_low", pa.float64(), "Lower end of its paired interval.", nullable=True),
        Column("valid_gain_high", pa.float64(), "Upper end.", nullable=True),
        Column("test_auc", pa.float64(), "AUC of the challenger on test.", nullable=True),
        Column("ece", pa.float64(), "Expected calibration error of the challenger on test.", nullable=True),
        Column("gain", pa.float64(), "Test AUC, challenger minus champion.", nullable=True),
        Column("gain_low", pa.float64(), "Lower end of its paired interval.", nullable=True),
        Column("gain_high", pa.float64(), "Upper end.", nullable=True),
        Column("floor_gain", pa.float64(), "Test AUC, challenger minus floor.", nullable=True),
        Column("floor_gain_low", pa.float64(), "Lower end of its paired interval.", nullable=True),
        Column("floor_gain_high", pa.float64(), "Upper end.", nullable=True),
        Column("num_examples", pa.int64(), "Test examples of the comparison."),
        Column("num_users", pa.int64(), "Users of the comparison; they are what is resampled."),
        Column("rules", pa.string(), "Every rule with threshold and observed value, as JSON."),
        CREATED,
    ),
    primary_key=("decision",),
)

CHAMPION = Table(
    "experiments/champion",
    "one alias of the registered model `ranker`",
    (
        Column("alias", pa.string(), "`champion`, `previous` or `challenger`."),
        Column("registry_version", pa.string(), "Version of the registered model `ranker`."),
        Column("candidate", pa.string(), "Candidate behind it."),
        Column("candidate_version", pa.string(), "Its version."),
        Column("since", TIMESTAMP, "When the champion last moved (UTC)."),
        Column("reason", pa.string(), "Why it moved, in one sentence."),
        CREATED,
    ),
    primary_key=("alias",),
)
