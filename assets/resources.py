"""What the lineage needs of the outside world, as abstract resources.

Every external system has one class here and two twins in `orchestration/resources/`: one embedded, one for
production. Assets annotate the abstract class; configuration picks the twin.
"""

import contextlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
import pyarrow as pa
import pydantic

from ray_jobs.warehouse import Table, Warehouse, Written

if TYPE_CHECKING:
    from feast import FeatureStore as FeastStore

    from assets.experiments.records import CandidateRecord, ExperimentRecord, PromotionRecord
    from assets.forget_records import ForgetCertificate, ForgetRequest
    from assets.interactions.readers.base import Reader
    from feature_repo.publications import Publications
    from models.forgetting import ForgetList
    from ray_jobs.artifacts import ArtifactStore
    from ray_jobs.interpretation.interpreter import InterpreterConfig
    from ray_jobs.language.engine import LanguageEngineConfig
    from ray_jobs.personas.sql_queue import PersonaQueue
    from ray_jobs.personas.store import StoreConfig
    from ray_jobs.text_encoding import TextEncoderConfig

PROCESS_TAG = "belvedere/process"


def tag_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Tags a run with its process, so that a run whose process was killed can be told from a slow one."""
    process = f"{socket.gethostname()}:{os.getpid()}"
    # A run that is executed again carries the tags of the lost one.
    if run.tags.get(PROCESS_TAG) != process:
        instance.add_run_tags(run.run_id, {PROCESS_TAG: process})


class Tables(dg.ConfigurableResource, ABC):
    """The warehouse of Delta tables, and the store of artifacts (checkpoints, models) beside it."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Tags the run with its process."""
        if context.instance is not None and context.run is not None:
            tag_process(context.instance, context.run)

    @abstractmethod
    def warehouse(self) -> Warehouse:
        """The warehouse, as a plain value that a Ray job's config can carry."""

    @abstractmethod
    def artifacts(self) -> "ArtifactStore":
        """The artifact store, as a plain value that a Ray job's config can carry."""

    def uri(self, table: Table) -> str:
        """Location of a table."""
        return self.warehouse().uri(table)

    def version(self, table: Table) -> str:
        """Version of a table's content.

        Raises:
            FileNotFoundError: If the table was never written.
        """
        found = self.warehouse().version(table)
        if found is None:
            raise FileNotFoundError(f"Table {table.name} does not exist yet: materialize the asset {table.name} first.")
        return found

    def is_current(self, table: Table, version: str) -> bool:
        """Whether the table already holds ``version``, so that there is nothing to do."""
        return self.warehouse().version(table) == version

    def read(
        self, table: Table, columns: list[str] | None = None, filters: Any = None, expect_version: str | None = None
    ) -> pa.Table:
        """Reads rows of a table; see `Warehouse.read`."""
        return self.warehouse().read(table, columns, filters, expect_version)

    def write(self, table: Table, data: pa.Table, version: str, replace_where: str | None = None) -> Written:
        """Writes a table's content in one atomic commit; see `Warehouse.write`."""
        return self.warehouse().write(table, data, version, replace_where)


class Dataset(dg.ConfigurableResource, ABC):
    """The dataset that the platform learns from, seen through the data contract."""

    split: Literal["global_time", "leave_one_out"] = pydantic.Field(
        default="global_time", description="The split in force: the default of the asset `interactions/splits`."
    )
    image_hosts: list[str] = pydantic.Field(
        default=[], description="Hosts that images are fetched from; `*.example.com`, or `*` for any public host."
    )
    image_networks: list[str] = pydantic.Field(
        default=[], description="Networks of images that are no public internet and still allowed, e.g. `10.1.0.0/16`."
    )
    image_roots: list[str] = pydantic.Field(
        default=[], description="Storage beside the dataset's folder that holds images, e.g. `s3://pictures/shop`."
    )

    @abstractmethod
    def reader(self) -> "Reader":
        """A reader of the configured layout at the configured location."""


class RayJobs(dg.ConfigurableResource, ABC):
    """Runs the programs of `ray_jobs/` on a Ray cluster."""

    train_workers: int = pydantic.Field(0, ge=0, description="Ray Train workers; 0 trains in the job's own process.")
    train_gpu: bool = pydantic.Field(False, description="Whether training workers get a GPU each.")
    train_strategy: str = pydantic.Field("ddp", description="What training workers share: `ddp` or `fsdp`.")
    train_compile: bool = pydantic.Field(False, description="Whether training steps are compiled.")

    def placement(self) -> dict[str, Any]:
        """Where and how a training runs, as fields of its job's config; no part of any version."""
        return {
            "workers": self.train_workers,
            "use_gpu": self.train_gpu,
            "acceleration": {"strategy": self.train_strategy, "compile": self.train_compile},
        }

    @abstractmethod
    def run(
        self, context: dg.AssetExecutionContext | dg.OpExecutionContext, job: str, config: "pydantic.BaseModel"
    ) -> Any:
        """Runs ``ray_jobs.<job>`` and returns its `Result`.

        Args:
            context: The step's context; logs and the job's end follow it.
            job: Module name below `ray_jobs`, e.g. ``captioning``.
            config: The module's `Config`.

        Raises:
            dagster.Failure: If the job failed; the description is the first cause in one sentence.
        """


class LanguageModel(dg.ConfigurableResource, ABC):
    """The language model that writes personas, and captions unless a vision checkpoint does."""

    persona_token_budget: int = pydantic.Field(
        default=50_000, ge=0, description="Tokens that all personas may cost; about 1,300 a user with SmolLM2."
    )

    persona_writer: str = pydantic.Field(
        default="teacher", description="Who writes personas: `teacher`, or the released `student`."
    )
    student_model: str = pydantic.Field(
        default="", description="Name under which an endpoint serves the student's adapter."
    )

    @abstractmethod
    def engine(self) -> "LanguageEngineConfig":
        """How a Ray job reaches the model. Its ``identity`` is part of every version derived from it."""


class Interpreter(dg.ConfigurableResource, ABC):
    """What says of an item's text and image what it is: the models behind captions."""

    caption_token_budget: int = pydantic.Field(0, ge=0, description="Most tokens of a captioning run; 0: no limit.")
    caption_usd_budget: float = pydantic.Field(0.0, ge=0, description="Most money of a captioning run; 0: no limit.")

    @abstractmethod
    def interpreter(self) -> "InterpreterConfig":
        """How a Ray job has items interpreted. Its ``identity`` is part of every version derived from it."""


class TextEncoder(dg.ConfigurableResource, ABC):
    """The model that turns text into dense vectors."""

    @abstractmethod
    def encoder(self) -> "TextEncoderConfig":
        """How a Ray job loads the encoder. Its ``identity`` is part of every version derived from it."""


class Tracking(dg.ConfigurableResource, ABC):
    """MLflow: runs, registered models and their aliases."""

    image_digest: str = pydantic.Field("", description="Digest of the container image that runs this.")
    dataset_licence: str = pydantic.Field("", description="Licence of the dataset.")

    @abstractmethod
    def connect(self, experiment: str) -> Any:
        """Points MLflow at the tracking server and at ``experiment`` (made if need be). Returns the module."""

    @abstractmethod
    def run_url(self, experiment_id: str, run_id: str) -> str:
        """Address of a run in the MLflow UI."""

    @contextlib.contextmanager
    def run(
        self,
        context: dg.AssetExecutionContext,
        experiment: str,
        name: str,
        *,
        params: dict[str, Any],
        tags: dict[str, str],
        note: str,
    ) -> Iterator[Any]:
        """Opens one MLflow run that is linked both ways with the Dagster run.

        Args:
            context: The step's context.
            experiment: MLflow experiment, one a task.
            name: Run name, with candidate and data window.
            params: Logged as parameters (seed, split rule, tie rule, negatives, versions ...).
            tags: Logged as tags, beside those of the Dagster run, the code, the image and the licence.
            note: Markdown shown on top of the run: hypothesis and verdict.

        Yields:
            The active MLflow run.
        """
        mlflow = self.connect(experiment)
        from assets.source_revision import source_revision

        linked = {
            "dagster.run_id": context.run.run_id,
            "dagster.asset_key": context.asset_key.to_user_string(),
            "git.sha": source_revision(),
            "image.digest": self.image_digest or "none",
            "dataset.licence": self.dataset_licence or "not stated",
            "mlflow.note.content": note,
        }
        with mlflow.start_run(run_name=name, tags=linked | tags) as run:
            mlflow.log_params(params)
            context.instance.add_run_tags(context.run.run_id, {"mlflow/run_id": run.info.run_id})
            yield run


class Features(dg.ConfigurableResource, ABC):
    """Feast: where views are published, the offline join and the online store."""

    @abstractmethod
    def store(self) -> "FeastStore":
        """The Feast store, with the repository's objects applied."""

    @abstractmethod
    def publications(self) -> "Publications":
        """What is published, as a plain value; asking it needs no Feast."""

    @abstractmethod
    def publish(
        self, view: str, data: pa.Table | pa.RecordBatchReader, version: str, content_version: str = ""
    ) -> bool:
        """Publishes a view's rows as parquet, one directory a version, switched atomically.

        Args:
            view: Name of the view.
            data: Its rows; a reader is streamed.
            version: Identity of the rows.
            content_version: Version of the captions, codebooks, personas or summaries in them.

        Returns:
            False if that version was already published.
        """

    @abstractmethod
    def persona_store(self) -> "StoreConfig":
        """How a job reaches the online store of personas."""

    @abstractmethod
    def online_store_name(self) -> str:
        """Which online store this is, without secrets."""

    @abstractmethod
    def online_is_empty(self) -> bool:
        """Whether the online store holds nothing, so that whatever was written to it is lost."""

    @abstractmethod
    def forget_online(self, key: str, entities: list[str]) -> int:
        """Deletes entities from the online store: their keys too, not only their features.

        Args:
            key: Join key.
            entities: Its values.

        Returns:
            How many of them the store held.
        """

    @abstractmethod
    def held_online(self, key: str, entities: list[str]) -> int:
        """How many of these entities the online store holds, with features or without."""


class Ledger(dg.ConfigurableResource, ABC):
    """The platform's own records (SQLAlchemy): candidates, promotions, experiments, alerts."""

    @abstractmethod
    def session(self) -> Any:
        """A context manager that yields a SQLAlchemy session and commits at its end."""

    @abstractmethod
    def persona_queue(self) -> "PersonaQueue":
        """The queue of persona refreshes, as a plain value that a Ray job's config can carry; its table is there."""

    @abstractmethod
    def record_candidate(self, record: "CandidateRecord") -> bool:
        """Writes a candidate, once for its name and version. Returns False if the ledger already had it."""

    @abstractmethod
    def candidates(self) -> list["CandidateRecord"]:
        """Every candidate, oldest first."""

    @abstractmethod
    def set_status(self, name: str, version: str, status: str, reason: str) -> None:
        """Notes what became of a candidate.

        Raises:
            KeyError: If the ledger has no such candidate.
        """

    @abstractmethod
    def append_promotion(self, record: "PromotionRecord") -> bool:
        """Appends a promotion or rollback, once for its key. Returns False if the key was already there."""

    @abstractmethod
    def promotions(self) -> list["PromotionRecord"]:
        """Every promotion and rollback, oldest first."""

    @abstractmethod
    def record_experiment(self, record: "ExperimentRecord") -> "ExperimentRecord":
        """Writes an experiment, or appends the phases that the ledger does not have yet.

        Returns:
            The experiment as the ledger holds it.

        Raises:
            ValueError: If it would change the salt or a phase that has already run.
        """

    @abstractmethod
    def experiment(self, name: str) -> "ExperimentRecord | None":
        """An experiment, or None."""

    @abstractmethod
    def forget_list(self) -> "ForgetList":
        """Users who must not come back, and the secret of their digests (made on first use)."""

    @abstractmethod
    def begin_forgetting(self, request: "ForgetRequest") -> "ForgetRequest":
        """Writes a request and puts its users on the forget-list.

        Returns:
            The unfinished request for these very users if there is one, which goes on; else ``request``.
        """

    @abstractmethod
    def note_forgetting(self, request_id: str, done: dict[str, Any], models: tuple[str, ...]) -> None:
        """Notes how far a request got."""

    @abstractmethod
    def append_certificate(self, certificate: "ForgetCertificate") -> bool:
        """Appends a certificate, once for its request. Returns False if it was there."""

    @abstractmethod
    def certificates(self) -> "list[ForgetCertificate]":
        """Every certificate, oldest first."""

    @abstractmethod
    def held_rows(self, user_ids: list[str]) -> dict[str, int]:
        """Rows of users by table, in every table of the ledger that has a column ``user_id``."""

    @abstractmethod
    def erase_rows(self, user_ids: list[str]) -> None:
        """Removes these rows for good: from free pages and the write-ahead log of an SQLite file, too."""

    @abstractmethod
    def tables_with_text(self, text: str) -> list[str]:
        """Tables of the ledger in which ``text`` stands anywhere."""
