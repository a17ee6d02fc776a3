"""The one settings object. Environment variables ``BELVEDERE_*`` choose; nothing else reads the environment."""

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "BELVEDERE_"
MOVIELENS_LICENCE = "MovieLens (GroupLens): research use, no redistribution, no commercial use without permission"


class Settings(BaseSettings):
    """Everything that differs between a laptop and production. Every default is the embedded one."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", env_file=".env", env_file_encoding="utf-8")

    home: Path = pydantic.Field(Path(".belvedere"), description="Folder of everything that the embedded twins keep.")
    dataset: str = pydantic.Field(
        "", description="Reader and location, e.g. `contract:/data/shop`; MovieLens-100K below `home` by default."
    )
    dataset_licence: str = pydantic.Field(
        "", description="Licence of the dataset, for the tags of MLflow runs; MovieLens' own by default."
    )
    split: Literal["global_time", "leave_one_out"] = pydantic.Field(
        "global_time", description="The split in force: `global_time` or `leave_one_out`."
    )
    first_day: dt.date | None = pydantic.Field(
        None, description="First day of the daily partitions; that of the surveyed dataset by default."
    )
    last_day: dt.date | None = pydantic.Field(
        None, description="Last day of the daily partitions; open by default unless the dataset is historical."
    )

    warehouse: str = pydantic.Field("", description="Root of the Delta tables: a folder or `s3://bucket/prefix`.")
    artifacts: str = pydantic.Field("", description="Root of checkpoints and models: a folder or `s3://...`.")
    storage_options: dict[str, str] = pydantic.Field(
        default_factory=dict, description="Credentials of the object storage, as JSON."
    )

    ray_address: str = pydantic.Field("", description="`host:6379` of a running Ray cluster; empty starts a local one.")
    ray_jobs_address: str = pydantic.Field(
        "", description="`http://host:8265`: submit jobs there through Pipes instead of running them in the step."
    )
    ray_cpus: int = pydantic.Field(2, ge=1, description="CPUs of the local Ray cluster.")

    dagster_postgres_url: str = pydantic.Field(
        "", description="`postgresql+psycopg2://...` of Dagster's storage; SQLite by default."
    )
    dagster_ui: str = pydantic.Field(
        "http://127.0.0.1:3000", description="Address of the Dagster UI, for links in alerts."
    )
    mlflow_tracking_uri: str = pydantic.Field(
        "", description="MLflow server or database; SQLite below `home` by default."
    )
    mlflow_artifacts: str = pydantic.Field(
        "", description="Artifact root of new MLflow experiments; below `home` by default."
    )
    mlflow_ui: str = pydantic.Field("http://127.0.0.1:5000", description="Address of the MLflow UI, for links.")
    ledger_url: str = pydantic.Field("", description="SQLAlchemy URL of the ledger; SQLite below `home` by default.")
    feast_registry_url: str = pydantic.Field("", description="SQLAlchemy URL of Feast's registry; SQLite by default.")
    feast_redis: str = pydantic.Field("", description="`host:port` of the Redis online store; SQLite by default.")
    feast_offline: str = pydantic.Field("", description="Root of the published views; below `home` by default.")

    llm_base_url: str = pydantic.Field("", description="OpenAI-compatible endpoint, e.g. `http://vllm:8000/v1`.")
    llm_model: str = pydantic.Field(
        "", description="Model name there, or a Hugging Face checkpoint folder; SmolLM2 by default."
    )
    llm_api_key: pydantic.SecretStr = pydantic.Field(pydantic.SecretStr(""), description="Key of the endpoint.")
    llm_revision: str = pydantic.Field(
        "", description="Revision of what the endpoint serves; change it when the weights change."
    )
    llm_max_in_flight: int = pydantic.Field(16, ge=1, description="Concurrent requests to the endpoint.")
    llm_usd_per_million_prompt_tokens: float = pydantic.Field(
        0.0, ge=0, description="Price of the endpoint's prompt tokens."
    )
    llm_usd_per_million_completion_tokens: float = pydantic.Field(
        0.0, ge=0, description="Price of its completion tokens."
    )
    llm_device: str = pydantic.Field("cpu", description="Device of the in-process model: `cpu` or `cuda`.")
    llm_sees_images: bool = pydantic.Field(
        True, description="Whether images are sent to the endpoint; its model must take them."
    )
    vlm_model: str = pydantic.Field(
        "", description="Folder of a Hugging Face image-text-to-text checkpoint; then it writes the captions."
    )
    vlm_device: str = pydantic.Field("cpu", description="Device of that checkpoint: `cpu` or `cuda`.")
    vlm_dtype: Literal["auto", "bfloat16", "float16", "float32"] = pydantic.Field(
        "auto", description="Type that it computes in."
    )
    vlm_attention: Literal["sdpa", "eager", "flash_attention_2"] = pydantic.Field(
        "sdpa", description="Its attention kernel."
    )
    image_hosts: list[str] = pydantic.Field(
        default_factory=list,
        description="Hosts that item images may be fetched from over HTTP, as JSON; none by default.",
    )
    image_networks: list[str] = pydantic.Field(
        default_factory=list, description="Private networks that these hosts may be in, as JSON, e.g. `10.1.0.0/16`."
    )
    image_roots: list[str] = pydantic.Field(
        default_factory=list, description="Other storage that item images may be in, as JSON, e.g. `s3://posters/`."
    )
    look_at_images: bool = pydantic.Field(
        True, description="Whether captions look at images: an endpoint gets them as data URLs."
    )
    caption_token_budget: int = pydantic.Field(
        0, ge=0, description="Most tokens that a captioning run may spend; 0: no limit."
    )
    caption_usd_budget: float = pydantic.Field(
        0.0, ge=0, description="Most money that a captioning run may spend, at the endpoint's prices; 0: no limit."
    )
    persona_token_budget: int = pydantic.Field(
        50_000, ge=0, description="Tokens that all personas may cost; about 1,450 a user with SmolLM2."
    )
    persona_daily_tokens: int = pydantic.Field(
        500_000, ge=0, description="Tokens a UTC day from which the sensor refreshes no more personas; 0: no limit."
    )
    persona_writer: Literal["teacher", "student"] = pydantic.Field(
        "teacher",
        description="Who writes personas: the `teacher`, several calls a user, or the released `student`, one.",
    )
    llm_student_model: str = pydantic.Field(
        "", description="Name under which the endpoint serves the released student's adapter."
    )
    text_encoder: str = pydantic.Field(
        "", description="Folder of a sentence-transformers checkpoint; MiniLM-L6 by default."
    )
    text_encoder_device: str = pydantic.Field("cpu", description="Device of the text encoder: `cpu` or `cuda`.")
    train_workers: int = pydantic.Field(
        0, ge=0, description="Ray Train workers; 0 is Ray Train's local mode, in the step's own process."
    )
    train_gpu: bool = pydantic.Field(False, description="Whether training workers get a GPU each.")
    train_strategy: Literal["ddp", "fsdp"] = pydantic.Field(
        "ddp",
        description="What several training workers share: `ddp`, gradients; `fsdp`, weights and optimiser states too.",
    )
    train_compile: bool = pydantic.Field(
        False, description="Whether training steps are compiled by `torch.compile`, which needs a C++ compiler."
    )

    alert_webhook: str = pydantic.Field(
        "", description="URL that alerts are posted to; a file below `home` by default."
    )
    image_digest: str = pydantic.Field(
        "", description="Digest of the container image that runs this, for the tags of MLflow runs."
    )
    source_base: str = pydantic.Field(
        "https://github.com/belvedere-mlops/belvedere/blob/main",
        description="Where the source's files are, for links from assets to their code.",
    )
    runbook_base: str = pydantic.Field(
        "", description="Where the runbook pages are; `docs/how-to` below `source_base` by default."
    )

    @pydantic.model_validator(mode="after")
    def _fill(self) -> "Settings":
        self.home = self.home.expanduser().resolve()
        h = self.home
        self.dataset = self.dataset or self.default_dataset
        if self.dataset == self.default_dataset:
            self.dataset_licence = self.dataset_licence or MOVIELENS_LICENCE
        self.warehouse = self.warehouse or f"{h}/warehouse"
        self.artifacts = self.artifacts or f"{h}/artifacts"
        self.mlflow_tracking_uri = self.mlflow_tracking_uri or f"sqlite:///{h}/mlflow/mlflow.db"
        self.mlflow_artifacts = self.mlflow_artifacts or f"file://{h}/mlflow/artifacts"
        self.ledger_url = self.ledger_url or f"sqlite:///{h}/ledger.db"
        self.feast_registry_url = self.feast_registry_url or f"sqlite:///{h}/feast/registry.db"
        self.feast_offline = self.feast_offline or f"{h}/feast/offline"
        self.runbook_base = self.runbook_base or f"{self.source_base}/docs/how-to"
        return self

    @property
    def default_dataset(self) -> str:
        """MovieLens-100K, where `make run` puts it."""
        return f"recbole:{self.home}/datasets/ml-100k"

    @property
    def mlflow_runs(self) -> str:
        """Address of MLflow's experiments in its view of models; it opens in that of agents, which shows no metric."""
        return f"{self.mlflow_ui.rstrip('/')}/#/experiments?workflowType=machine_learning"

    @property
    def survey_file(self) -> Path:
        """Where the survey of the dataset (first and last day) is kept."""
        return self.home / "dataset.json"

    def days(self) -> tuple[dt.date, dt.date | None]:
        """First day, and exclusive end (None: open), of the daily partitions.

        Set days win; then the survey's; then the last thirty days.
        """
        surveyed: dict[str, str] = {}
        if self.survey_file.exists():
            kept = json.loads(self.survey_file.read_text())
            surveyed = kept if kept.get("dataset") == self.dataset else {}
        today = dt.datetime.now(dt.UTC).date()
        first = self.first_day or (
            dt.date.fromisoformat(surveyed["first_day"]) if surveyed else today - dt.timedelta(days=30)
        )
        last = self.last_day or (dt.date.fromisoformat(surveyed["last_day"]) if surveyed else None)
        historical = last is not None and (self.last_day is not None or (today - last).days > 365)
        return first, (last + dt.timedelta(days=1)) if historical and last else None


def refused(error: pydantic.ValidationError) -> str:
    """Why settings are refused, in one sentence."""
    first = error.errors()[0]
    name = "_".join(str(part) for part in first["loc"]).upper()
    return (
        f"{PREFIX}{name.removeprefix(PREFIX)} is set to {first['input']!r}, which cannot be used "
        f"({first['msg']}): see docs/reference/configuration.md."
    )


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none; a misspelt one would be ignored in silence."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
