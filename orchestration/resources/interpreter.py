"""Twins of the interpreter: the language model with packaged eyes or behind an endpoint, or a vision checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pydantic

from assets.resources import Interpreter, LanguageModel
from orchestration.resources.language_model import EndpointLanguageModel

if TYPE_CHECKING:
    from ray_jobs.interpretation.interpreter import InterpreterConfig


class LanguageModelInterpreter(Interpreter):
    """The language model: in process, packaged models say what an image shows; an endpoint sees images itself."""

    language_model: dg.ResourceDependency[LanguageModel]
    sees_images: bool = pydantic.Field(default=True, description="Whether images are looked at.")

    def interpreter(self) -> "InterpreterConfig":
        """See `Interpreter.interpreter`."""
        from ray_jobs.interpretation.interpreter import InterpreterConfig

        engine = self.language_model.engine()
        kind = "endpoint" if engine.kind == "openai" else "evidence"
        return InterpreterConfig(kind=kind, engine=engine, sees_images=self.sees_images)


class CheckpointInterpreter(Interpreter):
    """A Hugging Face image-text-to-text checkpoint in a folder that every Ray node sees."""

    folder: str = pydantic.Field(description="Checkpoint folder.")
    device: str = pydantic.Field(default="cpu", description="`cpu` or `cuda`.")
    dtype: str = pydantic.Field(default="auto", description="Type to compute in; `auto` is the checkpoint's own.")
    attention: str = pydantic.Field(default="sdpa", description="`sdpa`, `eager` or `flash_attention_2`.")
    batch_size: int = pydantic.Field(default=8, ge=1, description="Prompts decoded together.")
    sees_images: bool = pydantic.Field(default=True, description="Whether images are looked at.")

    def interpreter(self) -> "InterpreterConfig":
        """See `Interpreter.interpreter`.

        Raises:
            EngineSetupError: If the folder holds no checkpoint.
        """
        from ray_jobs.interpretation.interpreter import InterpreterConfig
        from ray_jobs.language.checkpoints import folder_revision

        return InterpreterConfig.model_validate(
            {
                "kind": "vision",
                "engine": {
                    "kind": "transformers",
                    "model": self.folder,
                    "revision": folder_revision(Path(self.folder), "BELVEDERE_VLM_MODEL"),
                    "device": self.device,
                    "dtype": self.dtype,
                    "batch_size": self.batch_size,
                },
                "attention": self.attention,
                "sees_images": self.sees_images,
            }
        )


def interpreter_twin(
    language_model: LanguageModel,
    *,
    vlm_model: str,
    vlm_device: str,
    vlm_dtype: str,
    vlm_attention: str,
    sees_images: bool,
    llm_sees_images: bool,
    caption_token_budget: int,
    caption_usd_budget: float,
) -> Interpreter:
    """The vision checkpoint if there is one, else the language model.

    Args:
        language_model: The language model.
        vlm_model: Folder of a vision checkpoint, or nothing.
        vlm_device: Its device.
        vlm_dtype: Its type.
        vlm_attention: Its attention.
        sees_images: Whether images are looked at at all.
        llm_sees_images: Whether the endpoint is shown images.
        caption_token_budget: Most tokens of a run.
        caption_usd_budget: Most money of a run.
    """
    budgets: dict[str, Any] = {"caption_token_budget": caption_token_budget, "caption_usd_budget": caption_usd_budget}
    if vlm_model:
        return CheckpointInterpreter(
            folder=vlm_model,
            device=vlm_device,
            dtype=vlm_dtype,
            attention=vlm_attention,
            sees_images=sees_images,
            **budgets,
        )
    # In process the model never sees an image itself.
    shown = sees_images and (llm_sees_images or not isinstance(language_model, EndpointLanguageModel))
    return LanguageModelInterpreter(language_model=language_model, sees_images=shown, **budgets)
