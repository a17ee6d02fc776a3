"""The job `compare_history_models`: which model of long histories is worth its cost, measured when somebody asks."""

import dagster as dg

compare_history_models = dg.define_asset_job(
    "compare_history_models",
    selection=dg.AssetSelection.assets(["vista", "history_models"]),
    description="Tunes every family of models of long histories on validation, trains it under several seeds and tests "
    "it once beside floors and, if asked, RecBole's SASRec. Hours of CPU: no refresh runs it. Finished trainings are "
    "kept; the Launchpad takes families, objectives, seeds and sizes, so that it can run in parts.",
    tags={"intent": "experiment", "dagster/max_runtime": "86400"},
)
