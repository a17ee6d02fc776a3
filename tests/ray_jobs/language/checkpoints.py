"""Checkpoints for tests: tiny random ones that tests make, and the packaged SmolLM2, converted once a session."""

import functools
import os
from pathlib import Path

from ray_jobs.language.engine import LanguageEngineConfig, Message

ANIMALS = [
    Message("system", "You name the kind of an animal."),
    *(
        Message(role, text)
        for pair in (("sparrow", "bird"), ("trout", "fish"), ("eagle", "bird"), ("tuna", "fish"))
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ),
]
TEXT = [
    "a dark crime story of the night river",
    "title: The King of War categories: war, drama",
    "funny tale about a garden and its letters",
    "bright hopeful music in winter 1995 | sad",
    "calm | tense",
] * 4
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_llama(folder: Path, seed: int = 0, layers: int = 2, context: int = 512, every_byte: bool = True) -> Path:
    """Saves a randomly initialised Llama with a byte-level BPE tokenizer, and returns its folder.

    Args:
        folder: Where to.
        seed: Seed of the weights.
        layers: Layers.
        context: Longest prompt and answer.
        every_byte: Whether the vocabulary has every byte; without, what the model writes is plain letters.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400 if every_byte else 150,
            special_tokens=["<|start|>", "<|end|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if every_byte else [],
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|start|>", pad_token="<|end|>", chat_template=CHAT
    )
    torch.manual_seed(seed)
    # A wide initialisation, so that random logits differ clearly and ties do not decide.
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            tie_word_embeddings=True,
            bos_token_id=fast.bos_token_id,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
        )
    )
    model.generation_config.eos_token_id = fast.eos_token_id
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_config(folder: Path, **changes) -> LanguageEngineConfig:
    """An engine config of a tiny checkpoint."""
    return LanguageEngineConfig(
        **{"kind": "transformers", "model": str(folder), "revision": "r", "dtype": "float32", "batch_size": 3} | changes
    )


@functools.cache
def smollm2() -> LanguageEngineConfig:
    """The packaged SmolLM2, converted into the session's home on the first call."""
    from orchestration.resources.language_model import EmbeddedLanguageModel
    from ray_jobs.language.checkpoints import checkpoint_folder

    config = EmbeddedLanguageModel(cache_dir=f"{os.environ['BELVEDERE_HOME']}/models", batch_size=8).engine()
    checkpoint_folder(config)
    return config
