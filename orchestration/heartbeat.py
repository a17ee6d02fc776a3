"""`python -m orchestration.heartbeat` alerts when Dagster's daemon is dead. Run it from cron."""

import dataclasses
import sys

from orchestration.quiet import be_quiet

be_quiet()

import dagster as dg  # noqa: E402
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph  # noqa: E402

from orchestration.alerts import Alert, channel_of, raise_alert  # noqa: E402
from orchestration.resources.ledger import ledger_twin  # noqa: E402
from orchestration.settings import Settings  # noqa: E402
from orchestration.watch import Directory, dead_daemons, unreadable_records  # noqa: E402


def tell(settings: Settings, alert: Alert) -> None:
    """Delivers an alert: once, or, where the ledger that knows of repeats is away as well, at every beat."""
    channel = channel_of(settings)
    try:
        outcome: str = raise_alert(ledger_twin(settings.ledger_url), channel, alert)
    except Exception as error:
        channel.send(dataclasses.asdict(alert) | {"text": alert.text(), "key": alert.dedupe_key, "delivery": 1})
        outcome = f"delivered without the ledger ({type(error).__name__})"
    print(f"{outcome}: {alert.text()}")


def beat(instance: dg.DagsterInstance, settings: Settings) -> int:
    """Raises an alert for daemons without heartbeat. Returns how many alerts there were to raise."""
    found = dead_daemons(instance, Directory(AssetGraph.from_assets([]), settings))
    for alert in found:
        tell(settings, alert)
    return len(found)


def main() -> int:
    """Exit code 1 when a daemon is dead, or when nobody can know."""
    settings = Settings()
    try:
        with dg.DagsterInstance.get() as instance:
            return min(beat(instance, settings), 1)
    except Exception as error:
        tell(settings, unreadable_records(Directory(AssetGraph.from_assets([]), settings), error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
