"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685) of causal language models, by the library PEFT.

Adapters are kept in PEFT's own form (`adapter_config.json`, `adapter_model.safetensors`), which vLLM serves as it is.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Size and place of the adapter.

    Attributes:
        rank: Rank of the two factors.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout before the first factor.
        targets: Names of the linear layers that are adapted.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class AdaptedModel(torch.nn.Module):
    """A frozen causal language model with an adapter that learns. Its state dict is the adapter's alone.

    Args:
        model: A causal language model of `transformers`.
        settings: The adapter's.
    """

    def __init__(self, model: Any, settings: LoraSettings):
        super().__init__()
        from peft import LoraConfig, TaskType, get_peft_model

        self.adapted: Any = get_peft_model(
            model,
            LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=list(settings.targets),
            ),
        )

    def forward(self, ids_BL: torch.Tensor, valid_BL: torch.Tensor, num_last: int) -> torch.Tensor:
        """Logits ``(B, num_last, V)`` of left-padded rows at their last places."""
        positions_BL = (valid_BL.cumsum(1) - 1).clamp(min=0)
        out = self.adapted(
            input_ids=ids_BL,
            attention_mask=valid_BL,
            position_ids=positions_BL,
            logits_to_keep=num_last,
            use_cache=False,
        )
        return out.logits

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapter's weights, named as PEFT names them in its files."""
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(self.adapted))

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads weights that `state_dict` gave.

        Raises:
            RuntimeError: If some are unknown or missing.
        """
        from peft import set_peft_model_state_dict

        if set(state_dict) != set(self.state_dict()):
            raise RuntimeError("These are weights of another adapter: train under another name.")
        return set_peft_model_state_dict(self.adapted, dict(state_dict))


def save_adapter(weights: dict[str, torch.Tensor], settings: LoraSettings, folder: Path) -> None:
    """Writes an adapter as PEFT and vLLM read it.

    Args:
        weights: State dict of `AdaptedModel`.
        settings: The adapter's.
        folder: Where to; it exists.
    """
    save_file({name: w.detach().cpu().contiguous().clone() for name, w in weights.items()}, str(folder / WEIGHTS))
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted(settings.targets),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(said, indent=1, sort_keys=True), encoding="utf-8")


def merge_adapter(model: Any, folder: str) -> Any:
    """The model with the adapter in ``folder`` added into its weights; it costs nothing more to run.

    Raises:
        FileNotFoundError: If there is no adapter.
    """
    from peft import PeftModel

    if not (Path(folder) / CONFIG).is_file():
        raise FileNotFoundError(f"There is no adapter in {folder}: give a folder with {CONFIG} and {WEIGHTS}.")
    return PeftModel.from_pretrained(model, folder).merge_and_unload()
