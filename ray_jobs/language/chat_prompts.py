"""Chat messages as token ids, the same for training and for inference."""

from collections.abc import Sequence
from typing import Any

from ray_jobs.language.engine import Message


def render(tokenizer: Any, shared: Sequence[Message], users: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts that ``users`` make behind the ``shared`` messages, up to where the answer begins."""
    texts = []
    for user in users:
        for token in tokenizer.all_special_tokens:
            # Text of an item must not open a turn of its own.
            user = user.replace(token, " ")
        texts.append(conversation(tokenizer, [*shared, Message("user", user.strip())]))
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def conversation(tokenizer: Any, messages: list[Message]) -> str:
    """The messages as one text, by the checkpoint's template or as plain turns, up to where the answer begins."""
    if not tokenizer.chat_template:
        return "\n".join(f"{m.role}: {m.content}" for m in messages) + "\nassistant:"
    return str(
        tokenizer.apply_chat_template([m._asdict() for m in messages], tokenize=False, add_generation_prompt=True)
    )
