"""The job `distil_personas`: a student that writes personas in one call, made and judged when somebody asks."""

import dagster as dg

distil_personas = dg.define_asset_job(
    "distil_personas",
    selection=dg.AssetSelection.assets(["personas", "persona_student"]),
    description="Has the teacher write lessons, fine-tunes a student on those that pass the gates, and releases it if "
    "it holds up on users that it never saw. Up to hours of CPU: no refresh runs it. Lessons and epochs are kept.",
    tags={"intent": "experiment", "dagster/max_runtime": "86400"},
)
