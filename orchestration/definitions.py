"""The composition root: the lineage, its checks, jobs, schedules and sensors, and the configured resources."""

import dagster as dg

import assets
from orchestration.quiet import be_quiet
from orchestration.settings import Settings
from orchestration.stamping import link_code, stamp

be_quiet()


@dg.definitions
def defs() -> dg.Definitions:
    """The code location ``belvedere``."""
    from orchestration.jobs import JOBS
    from orchestration.persona_watch import persona_sensor
    from orchestration.resources.choice import resources
    from orchestration.schedules import schedules
    from orchestration.sensors import sensors

    settings = Settings()
    add = stamp(settings)
    loaded = [
        link_code(a.map_asset_specs(add), settings)
        for a in dg.load_assets_from_package_module(assets)
        if isinstance(a, dg.AssetsDefinition)
    ]
    return dg.Definitions(
        assets=loaded,
        asset_checks=dg.load_asset_checks_from_package_module(assets),
        jobs=JOBS,
        schedules=schedules(JOBS, settings),
        sensors=[*sensors(settings), persona_sensor(settings)],
        resources=resources(settings),
        executor=dg.in_process_executor,
    )
