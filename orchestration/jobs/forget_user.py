"""The job `forget_user`: users who ask for it leave every store, and a certificate says so."""

import datetime as dt
import time
from pathlib import Path

import dagster as dg
import pydantic
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from assets.failures import data_errors_are_final
from assets.forget_records import ForgetCertificate
from assets.knobs import Knobs
from assets.resources import Features, Ledger, Tables, TextEncoder, Tracking

POLL_SECONDS = 5.0


class ForgetConfig(Knobs):
    """Whom to forget, and why. Ids come in a file: Dagster keeps a run's config for ever."""

    users_file: str = pydantic.Field(
        description="File or URL with one user id a line, outside of BELVEDERE_HOME; delete it afterwards."
    )
    reason: str = pydantic.Field(
        min_length=5, description="Why, in one sentence and without the id; stands in the certificate."
    )
    requested_by: str = pydantic.Field("", description="Who asked, e.g. a ticket; whoever starts the run by default.")
    wait_minutes: float = pydantic.Field(
        60.0, ge=0, description="How long to wait for other runs to end: nothing may write while tables are vacuumed."
    )
    certificate_file: str = pydantic.Field("", description="File or URL that the certificate is written to as JSON.")


def users_in(users_file: str, home: str) -> list[str]:
    """The ids in a file, one a line.

    Raises:
        ValueError: If the file cannot be used.
    """
    from upath import UPath

    path = UPath(users_file).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no file {users_file}: write one user id a line, and name it.")
    if path.protocol in ("", "file") and Path(path.path).resolve().is_relative_to(Path(home).resolve()):
        raise ValueError("The list of users lies below BELVEDERE_HOME, which is searched for them: put it elsewhere.")
    try:
        # Editors of Windows put a mark before the first id.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"The file {users_file} is not UTF-8: save it as such.") from None
    # Not `splitlines`, which also cuts where an id may have a rare character: the parts may be other users.
    return [line.strip() for line in text.split("\n") if line.strip()]


class Quiet:
    """Waits until no other run is at work, and tells whether one was since the last time.

    Of two runs that forget, the later one waits: if each waited for the other, none would ever work.

    Args:
        instance: Where runs are recorded.
        run_id: The run that waits.
        wait_minutes: The longest wait.
    """

    def __init__(self, instance: dg.DagsterInstance, run_id: str, wait_minutes: float):
        self.instance, self.run_id, self.seconds = instance, run_id, wait_minutes * 60
        self.since: dt.datetime | None = None

    def __call__(self) -> bool:
        """Returns False if a run was at work since the last call.

        Raises:
            dagster.Failure: If another run goes on for too long.
        """
        from orchestration.refresh import reap_lost_runs

        deadline = time.monotonic() + self.seconds
        reap_lost_runs(self.instance)
        while others := self._others(statuses=IN_PROGRESS_RUN_STATUSES):
            if time.monotonic() >= deadline:
                raise dg.Failure(
                    f"Run {others[0].run_id[:8]} of {others[0].job_name} is still at work, and nothing may write while "
                    "users are removed: launch forget_user again when it has ended; the request stands.",
                    allow_retries=False,
                )
            time.sleep(POLL_SECONDS)
        before, self.since = self.since, dt.datetime.now(dt.UTC)
        return before is None or not [r for r in self._others(updated_after=before) if r.is_finished]

    def _others(self, **which: object) -> list[dg.DagsterRun]:
        mine = self.instance.get_run_record_by_id(self.run_id)
        others = []
        for found in self.instance.get_run_records(dg.RunsFilter(**which)):  # type: ignore[arg-type]
            run = found.dagster_run
            waits_for_mine = (
                mine is not None
                and run.job_name == mine.dagster_run.job_name
                and (found.create_timestamp, run.run_id) > (mine.create_timestamp, self.run_id)
            )
            if run.run_id != self.run_id and not waits_for_mine:
                others.append(run)
        return others


def certificate_markdown(certificate: ForgetCertificate) -> str:
    """The certificate as people read it."""
    lines = ["| store | rows removed | older versions gone | the search found |", "|---|---|---|---|"]
    lines += [
        f"| {s.store} | {s.rows_removed:,} | {s.versions_vacuumed:,} | {s.verified} |" for s in certificate.stores
    ]
    if certificate.models:
        lines += ["", "Learned from them, and not trained again:", "", *(f"- {m}" for m in certificate.models)]
    return "\n".join(lines)


@dg.op(description="Removes users from every store and appends a certificate.")
@data_errors_are_final
def forget_users(
    context: dg.OpExecutionContext,
    config: ForgetConfig,
    tables: Tables,
    features: Features,
    ledger: Ledger,
    tracking: Tracking,
    text_encoder: TextEncoder,
) -> None:
    """See the description."""
    from upath import UPath

    from assets.experiments.records import started_by
    from orchestration.forgetting import Platform, forget
    from orchestration.settings import Settings

    settings = Settings()
    certificate = forget(
        Platform(
            tables,
            features,
            ledger,
            tracking,
            text_encoder,
            settings.home,
            settings.dataset.partition(":")[2].split("?")[0],
        ),
        users_in(config.users_file, str(settings.home)),
        reason=config.reason,
        requested_by=config.requested_by or started_by(context.run),
        run_id=context.run.run_id,
        say=context.log.info,
        wait_for_others=Quiet(context.instance, context.run.run_id, config.wait_minutes),
    )
    if config.certificate_file:
        UPath(config.certificate_file).expanduser().write_text(certificate.to_json())
    context.add_output_metadata(
        {
            "request": certificate.request_id,
            "users": len(certificate.users),
            "rows_removed": certificate.rows_removed,
            "note": certificate.note,
            "stores": dg.MetadataValue.md(certificate_markdown(certificate)),
            "models_not_trained_again": dg.MetadataValue.json(list(certificate.models)),
            "certificate": dg.MetadataValue.json(_plain(certificate)),
        }
    )


def _plain(certificate: ForgetCertificate) -> dict[str, object]:
    import json

    return dict(json.loads(certificate.to_json()))


@dg.job(
    description="Removes users from tables and their history, personas, published views, the online store, queues and "
    "logs; keeps them away from later ingestions; appends a certificate. Waits until no other run is at work. Models "
    "that learned from them are named, not trained again.",
    tags={"intent": "erase", "dagster/max_runtime": "14400"},
)
def forget_user() -> None:
    """See the description."""
    forget_users()
