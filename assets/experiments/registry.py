"""The registry of promoted models: one registered model `ranker`, whose aliases say which version serves.

MLflow's aliases live on one registered model, and every candidate is registered under its own name. So
whatever challenges is copied (`copy_model_version`: a new version of `ranker` that points at the same run and
files, nothing is uploaded), and serving knows one name: ``models:/ranker@champion``.
"""

import json
from typing import Any

import dagster as dg

from assets.experiments.readable import why_unreadable
from assets.experiments.records import AB_EXPERIMENT, CandidateRecord, Pointer, PromotionRecord
from assets.resources import Ledger, Tables, Tracking

REGISTERED = "ranker"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
EXPERIMENT = "ranking"
PROBE_SECONDS = 5.0
MAX_TAG = 4000


class Registry:
    """The registered model `ranker`.

    Args:
        tracking: MLflow.

    Raises:
        dagster.Failure: If MLflow does not answer; nothing was changed then.
    """

    def __init__(self, tracking: Tracking):
        try:
            mlflow = self._connect(tracking)
            self.client = mlflow.MlflowClient()
            self.aliases()
        except Exception as error:
            # Whatever the client raises when its server or database is away: HTTP, SQL or MLflow errors.
            if not self._unreachable(error):
                raise
            raise dg.Failure(
                "Promotion is refused because MLflow does not answer; nothing was changed. Start MLflow "
                "(`make ui`, or the tracking server) and launch the job again. "
                f"First cause: {str(error).splitlines()[0][:200]}"
            ) from error

    @staticmethod
    def _connect(tracking: Tracking) -> Any:
        uri = str(getattr(tracking, "tracking_uri", ""))
        if uri.startswith("http"):
            import httpx

            # MLflow's own client tries for minutes before it gives up.
            httpx.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).raise_for_status()
        return tracking.connect(EXPERIMENT)

    @staticmethod
    def _unreachable(error: Exception) -> bool:
        import httpx
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        return isinstance(error, httpx.HTTPError | MlflowException | SQLAlchemyError | OSError)

    def aliases(self) -> dict[str, Pointer]:
        """What each alias points to."""
        found = self.client.search_registered_models(f"name = '{REGISTERED}'")
        return {alias: self.version(str(number)) for alias, number in found[0].aliases.items()} if found else {}

    def version(self, number: str) -> Pointer:
        """One version of `ranker`.

        Raises:
            KeyError: If there is none of that number.
        """
        from mlflow.exceptions import MlflowException

        try:
            tags = self.client.get_model_version(REGISTERED, number).tags
        except MlflowException as error:
            raise KeyError(f"The registered model {REGISTERED} has no version {number}.") from error
        return Pointer(str(number), tags.get("candidate", ""), tags.get("candidate_version", ""))

    def publish(self, record: CandidateRecord) -> Pointer:
        """Returns the candidate's version of `ranker`, which is made on first use."""
        for known in self.client.search_model_versions(f"name = '{REGISTERED}'"):
            if (known.tags.get("candidate"), known.tags.get("candidate_version")) == (
                record.name,
                record.version,
            ):
                return Pointer(str(known.version), record.name, record.version)
        made = self.client.copy_model_version(f"models:/{record.model_name}/{record.model_version}", REGISTERED)
        number = str(made.version)
        for key, value in {
            "feature_service": record.feature_service,
            "artifact": record.artifact,
            "candidate_version": record.version,
            "candidate": record.name,
        }.items():
            self.client.set_model_version_tag(REGISTERED, number, key, value)
        self.client.update_model_version(
            REGISTERED,
            number,
            description=f"{record.label}, copied from {record.model_name}/{record.model_version}.",
        )
        return Pointer(number, record.name, record.version)

    def note_verdict(self, record: CandidateRecord, pointer: Pointer, passed: bool, report: dict[str, Any]) -> None:
        """Tags the version with the gate's report, and the candidate's run with its status."""
        self.client.set_model_version_tag(
            REGISTERED, pointer.registry_version, "validation", "passed" if passed else "failed"
        )
        self.client.set_model_version_tag(
            REGISTERED, pointer.registry_version, "gate_report", json.dumps(report, sort_keys=True)[:MAX_TAG]
        )
        if passed:
            self.client.set_tag(record.mlflow_run_id, "ab_experiment", AB_EXPERIMENT)
        else:
            self.client.set_tag(record.mlflow_run_id, "status", "rejected")

    def point(self, alias: str, pointer: Pointer | None) -> None:
        """Moves an alias, or removes it."""
        if pointer is None:
            self.client.delete_registered_model_alias(REGISTERED, alias)
        else:
            self.client.set_registered_model_alias(REGISTERED, alias, pointer.registry_version)


def champion_of(ledger: Ledger) -> PromotionRecord | None:
    """The move that made today's champion; None while there is none."""
    moves = ledger.promotions()
    return moves[-1] if moves else None


def find_candidate(ledger: Ledger, name: str, version: str) -> CandidateRecord:
    """A candidate of the ledger.

    Raises:
        KeyError: If the ledger has no such candidate.
    """
    for record in ledger.candidates():
        if (record.name, record.version) == (name, version):
            return record
    raise KeyError(f"The ledger has no candidate {name}@{version}.")


def promote(
    registry: Registry,
    tables: Tables,
    ledger: Ledger,
    record: CandidateRecord,
    *,
    key: str,
    report: dict[str, Any],
    who: str,
    reason: str,
    dagster_run_id: str,
    forced: bool = False,
) -> bool:
    """Makes a candidate champion: aliases first, the record after them.

    Repeating it after a crash at any point ends in the same state: an alias that already stands is not moved,
    and the record of a key is appended once.

    Returns:
        Whether anything moved.

    Raises:
        dagster.Failure: If somebody moved the alias by hand, so that the ledger does not know the champion, or the
            candidate cannot read the content that is served.
    """
    pointer, aliases, last = registry.publish(record), registry.aliases(), champion_of(ledger)
    standing, before = aliases.get(CHAMPION), aliases.get(CHAMPION)
    if standing is not None and standing == pointer:
        if last is not None and last.after == pointer:
            return False
        before = aliases.get(PREVIOUS)
    elif standing != (last.after if last else None):
        raise dg.Failure(
            f"The alias champion points to version {standing.registry_version if standing else 'none'} of "
            f"{REGISTERED}, but the ledger says {last.after.registry_version if last else 'none'}: "
            "somebody moved it by hand. Name the right version in the job rollback_model first.",
            allow_retries=False,
        )
    elif (refused := why_unreadable(tables, ledger, pointer)) is not None:
        raise dg.Failure(refused, allow_retries=False)
    else:
        registry.point(PREVIOUS, standing)
        registry.point(CHAMPION, pointer)
    if aliases.get(CHALLENGER) == pointer:
        registry.point(CHALLENGER, None)
    registry.client.set_tag(record.mlflow_run_id, "status", "promoted")
    ledger.append_promotion(
        PromotionRecord(
            key=key,
            kind="promote",
            model=REGISTERED,
            before=before,
            after=pointer,
            previous=before,
            who=who,
            reason=reason,
            report=report,
            dagster_run_id=dagster_run_id,
            forced=forced,
        )
    )
    ledger.set_status(record.name, record.version, "promoted", reason)
    return True


def roll_back(
    registry: Registry, ledger: Ledger, tables: Tables, *, to_version: str, reason: str, who: str, dagster_run_id: str
) -> PromotionRecord:
    """Moves the alias `champion` back.

    Args:
        registry: The registry.
        ledger: The ledger.
        tables: Where the content is that the model has to read.
        to_version: ``previous``, or the number of a version of `ranker`.
        reason: Why.
        who: Who asked for it.
        dagster_run_id: Run that does it; the same run moves the alias once.

    Returns:
        The record.

    Raises:
        dagster.Failure: If there is nothing to roll back to, the version is the champion already, or it cannot read
            today's content.
    """
    aliases, key = registry.aliases(), f"rollback:{dagster_run_id}"
    done = [move for move in ledger.promotions() if move.key == key]
    if done:
        return done[0]
    standing = aliases.get(CHAMPION)
    if to_version == PREVIOUS:
        wanted = aliases.get(PREVIOUS)
        if wanted is None:
            last = champion_of(ledger)
            told = (
                "there has never been a champion"
                if last is None
                else (
                    f"the last rollback, by {last.who} ({last.reason}), already went back"
                    if last.kind == "rollback"
                    else "the champion is the first one"
                )
            )
            raise dg.Failure(
                f"There is no previous model to roll back to: {told}. Name the version of {REGISTERED} "
                "that shall serve in to_version.",
                allow_retries=False,
            )
    else:
        try:
            wanted = registry.version(to_version)
        except KeyError as error:
            raise dg.Failure(
                f"{error.args[0]} See the promotions in the asset experiments/champion.", allow_retries=False
            ) from error
    last = champion_of(ledger)
    before = standing
    if wanted == standing:
        if last is not None and last.after == wanted:
            raise dg.Failure(
                f"Version {wanted.registry_version} ({wanted.label}) is the champion already.",
                allow_retries=False,
            )
        # The alias moved without a record: an attempt died in between, or somebody moved it by hand.
        before = last.after if last else None
    if (refused := why_unreadable(tables, ledger, wanted)) is not None:
        raise dg.Failure(refused, allow_retries=False)
    registry.point(CHAMPION, wanted)
    # Without an alias `previous`, a second rollback cannot bring the bad model back by accident.
    registry.point(PREVIOUS, None)
    record = PromotionRecord(
        key=key,
        kind="rollback",
        model=REGISTERED,
        before=before,
        after=wanted,
        previous=None,
        who=who,
        reason=reason,
        report={},
        dagster_run_id=dagster_run_id,
    )
    ledger.append_promotion(record)
    for bad in ledger.candidates():
        if before is not None and (bad.name, bad.version) == (before.candidate, before.candidate_version):
            ledger.set_status(bad.name, bad.version, "rejected", f"rolled back: {reason}")
            registry.client.set_tag(bad.mlflow_run_id, "status", "rejected")
    return record
