"""The choice of twins: settings in, one resource instance a system out."""

from typing import Any

import dagster as dg

from orchestration.resources.dataset import ConfiguredDataset
from orchestration.resources.features import features_twin
from orchestration.resources.interpreter import interpreter_twin
from orchestration.resources.language_model import language_model_twin
from orchestration.resources.ledger import ledger_twin
from orchestration.resources.ray_jobs import LocalRayJobs, SubmittedRayJobs
from orchestration.resources.tables import LocalTables, ObjectStorageTables
from orchestration.resources.text_encoder import FolderTextEncoder, PackagedTextEncoder
from orchestration.resources.tracking import tracking_twin
from orchestration.settings import Settings


def resources(settings: Settings) -> dict[str, dg.ConfigurableResource]:
    """Returns every resource that the lineage needs, by the name that assets use."""
    language_model = language_model_twin(
        base_url=settings.llm_base_url,
        model=settings.llm_model,
        revision=settings.llm_revision,
        api_key=settings.llm_api_key.get_secret_value(),
        device=settings.llm_device,
        cache_dir=f"{settings.home}/models",
        max_in_flight=settings.llm_max_in_flight,
        usd_per_million_prompt_tokens=settings.llm_usd_per_million_prompt_tokens,
        usd_per_million_completion_tokens=settings.llm_usd_per_million_completion_tokens,
        persona_token_budget=settings.persona_token_budget,
        persona_writer=settings.persona_writer,
        student_model=settings.llm_student_model,
    )
    remote_tables = "://" in settings.warehouse
    placed = ("train_workers", "train_gpu", "train_strategy", "train_compile")
    training: dict[str, Any] = {name: getattr(settings, name) for name in placed}
    return {
        "dataset": ConfiguredDataset(
            source=settings.dataset,
            split=settings.split,
            image_hosts=settings.image_hosts,
            image_networks=settings.image_networks,
            image_roots=settings.image_roots,
        ),
        "tables": (
            ObjectStorageTables(
                warehouse_root=settings.warehouse,
                artifact_root=settings.artifacts,
                storage_options=settings.storage_options,
            )
            if remote_tables
            else LocalTables(warehouse_root=settings.warehouse, artifact_root=settings.artifacts)
        ),
        "ray_jobs": (
            SubmittedRayJobs(address=settings.ray_jobs_address, **training)
            if settings.ray_jobs_address
            else LocalRayJobs(address=settings.ray_address, num_cpus=settings.ray_cpus, **training)
        ),
        "tracking": tracking_twin(
            settings.mlflow_tracking_uri,
            settings.mlflow_artifacts,
            settings.mlflow_ui,
            image_digest=settings.image_digest,
            dataset_licence=settings.dataset_licence,
        ),
        "ledger": ledger_twin(settings.ledger_url),
        "text_encoder": (
            FolderTextEncoder(folder=settings.text_encoder, device=settings.text_encoder_device)
            if settings.text_encoder
            else PackagedTextEncoder(device=settings.text_encoder_device)
        ),
        "language_model": language_model,
        "interpreter": interpreter_twin(
            language_model,
            vlm_model=settings.vlm_model,
            vlm_device=settings.vlm_device,
            vlm_dtype=settings.vlm_dtype,
            vlm_attention=settings.vlm_attention,
            sees_images=settings.look_at_images,
            llm_sees_images=settings.llm_sees_images,
            caption_token_budget=settings.caption_token_budget,
            caption_usd_budget=settings.caption_usd_budget,
        ),
        "features": features_twin(
            online_path=f"{settings.home}/feast/online.db",
            redis=settings.feast_redis,
            registry_url=settings.feast_registry_url,
            offline_root=settings.feast_offline,
            storage_options=settings.storage_options,
        ),
    }
