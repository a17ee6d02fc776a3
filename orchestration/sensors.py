"""Sensors: alerts about failed runs, alerts about everything else, and the automation of assets."""

import datetime as dt

import dagster as dg

from orchestration.alerts import DeliveryError, channel_of, raise_alert, redeliver
from orchestration.persona_watch import persona_looks
from orchestration.resources.ledger import ledger_twin
from orchestration.settings import Settings
from orchestration.watch import Cursor, Directory, failed_run, looks


def sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Every sensor of the code location."""
    ledger, channel = ledger_twin(settings.ledger_url), channel_of(settings)

    @dg.run_failure_sensor(
        name="failed_runs",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        # Runs of `make run` and rematerialize_failed are no daemon's: only so are they seen.
        monitor_all_code_locations=True,
        description="Sends one alert a failed asset, partition and first cause: owner, cause in one "
        "sentence, runbook and what to do. The same alert stays quiet for six hours after it "
        "was delivered.",
    )
    def failed_runs(context: dg.RunFailureSensorContext) -> None:
        graph = context.repository_def.asset_graph  # type: ignore[union-attr]
        for alert in failed_run(
            context.instance, context.dagster_run, context.failure_event, Directory(graph, settings)
        ):
            outcome = raise_alert(ledger, channel, alert)
            context.log.info(f"{outcome}: {alert.text()}")

    @dg.sensor(
        name="alerts",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
        description="Sends alerts about failed checks, assets that are too old, a growing quarantine, runs and "
        "persona refreshes that wait too long, and sends again what could not be delivered.",
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = dt.datetime.now(dt.UTC)
        cursor = Cursor.read(context.cursor)
        directory = Directory(context.repository_def.asset_graph, settings)  # type: ignore[union-attr]
        found = [
            *looks(context.instance, directory, cursor, now),
            *persona_looks(ledger, directory, cursor.personas, now),
        ]
        outcomes = [raise_alert(ledger, channel, alert, now=now) for alert in found]
        context.update_cursor(cursor.text())
        try:
            sent = redeliver(ledger, channel, now=now)
        except DeliveryError as error:
            return dg.SkipReason(f"Alerts are waiting: {error}")
        return dg.SkipReason(
            f"{outcomes.count('delivered') + sent} alerts delivered, {outcomes.count('repeated')} already "
            f"known, {outcomes.count('undelivered')} waiting."
        )

    return [failed_runs, alerts, automation(settings)]


def automation(settings: Settings) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the automation conditions of all assets.

    It and the schedule `refresh_daily` are two ways to drive the lineage, so one of the two is on: the
    schedule on a laptop, automation where Dagster keeps its records in PostgreSQL.
    """
    return dg.AutomationConditionSensorDefinition(
        name="automation",
        target=dg.AssetSelection.all(),
        minimum_interval_seconds=60,
        default_status=(
            dg.DefaultSensorStatus.RUNNING if settings.dagster_postgres_url else dg.DefaultSensorStatus.STOPPED
        ),
        description="Requests assets when their automation condition holds (nightly, or when an input "
        "changed). Stopped on a laptop, where the schedule refresh_daily drives the lineage: "
        "turn on one of the two.",
    )
