"""Jobs that measure models of long histories when somebody asks: `compare_history_models`, `sweep_summaries`."""

import dagster as dg

compare_history_models = dg.define_asset_job(
    "compare_history_models",
    selection=dg.AssetSelection.assets(["vista", "history_models"]),
    description="Tunes every family of models of long histories on validation, trains it under several seeds and tests "
    "it once beside floors and, if asked, RecBole's SASRec. Hours of CPU: no refresh runs it. Finished trainings are "
    "kept; the Launchpad takes families, objectives, seeds and sizes, so that it can run in parts.",
    tags={"intent": "experiment", "dagster/max_runtime": "86400"},
)

sweep_summaries = dg.define_asset_job(
    "sweep_summaries",
    selection=dg.AssetSelection.assets(["vista", "history_sweeps"]),
    description="What a summary of a history may cost: trains VISTA with other numbers of seeds and lengths, "
    "and tests it with kept summaries in other precisions and with newest events missed. Hours of CPU: no refresh runs "
    "it. Finished trainings are kept; the Launchpad takes sweeps, their points and seeds.",
    tags={"intent": "experiment", "dagster/max_runtime": "86400"},
)
