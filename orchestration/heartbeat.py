"""`python -m orchestration.heartbeat` alerts when Dagster's daemon is dead. Run it from cron."""

import sys

from orchestration.quiet import be_quiet

be_quiet()

import dagster as dg  # noqa: E402
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph  # noqa: E402

from orchestration.alerts import channel_of, raise_alert  # noqa: E402
from orchestration.resources.ledger import ledger_twin  # noqa: E402
from orchestration.settings import Settings  # noqa: E402
from orchestration.watch import Directory, dead_daemons  # noqa: E402


def beat(instance: dg.DagsterInstance, settings: Settings) -> int:
    """Raises an alert for daemons without heartbeat. Returns how many alerts there were to raise."""
    found = dead_daemons(instance, Directory(AssetGraph.from_assets([]), settings))
    for alert in found:
        print(f"{raise_alert(ledger_twin(settings.ledger_url), channel_of(settings), alert)}: {alert.text()}")
    return len(found)


def main() -> int:
    """Exit code 1 when a daemon is dead."""
    with dg.DagsterInstance.get() as instance:
        return min(beat(instance, Settings()), 1)


if __name__ == "__main__":
    sys.exit(main())
