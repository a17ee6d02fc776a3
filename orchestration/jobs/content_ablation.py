"""The job `content_ablation`: what content is worth to the ranker, measured when somebody asks."""

import dagster as dg

content_ablation = dg.define_asset_job(
    "content_ablation",
    selection=dg.AssetSelection.assets(["ranking", "content_ablation"]),
    description="Trains the ranker with and without content, and with placebos, and judges the lifts. Hours of CPU: no "
    "refresh runs it. Finished trainings are kept; the Launchpad takes seeds, arms and split rules.",
    tags={"intent": "experiment", "dagster/max_runtime": "86400"},
)
