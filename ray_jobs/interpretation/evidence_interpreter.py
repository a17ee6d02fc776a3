"""Interpretation by a small language model: code gathers the evidence, the model writes and chooses, code fills in.

A model of 135M parameters cannot be trusted with facts. It writes the sentence and chooses mood, style and setting in
one pass of decoding; what the record says of image, text and topic is copied from the evidence.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

from models.language.captions import clean, shown_categories, tags
from models.language.interpretation import MAX_SUBJECTS, TEXT_CHARS, WORD_CHARS, Interpretation
from models.language.validation import Problem
from models.language.words import content_words
from ray_jobs.interpretation.interpreter import (
    DETERMINISTIC,
    Answer,
    Content,
    InterpretationParameters,
    InterpreterConfig,
    Told,
)
from ray_jobs.interpretation.prompting import CHOICES, InterpretationPrompt, with_lines
from ray_jobs.language.engine import MARK, Call, Completion
from ray_jobs.language.transformers_engine import TransformersEngine

# Of what is seen in one image the model is shown so much; every token is at least one byte.
LINE_CHARS, IMAGE_BYTES = 160, 400


class EvidenceInterpreter:
    """See `Interpreter`.

    Args:
        config: The language model.
        prompt: The prompt.
        parameters: How captions are decoded.

    Raises:
        EngineSetupError: If the checkpoint is not there, or cannot be decoded here.
    """

    def __init__(self, config: InterpreterConfig, prompt: InterpretationPrompt, parameters: InterpretationParameters):
        self.config, self.prompt, self.parameters = config, prompt, parameters
        self.engine = TransformersEngine(config.engine)

    @functools.cached_property
    def eyes(self) -> Any:
        """What looks at images; loaded when the first one comes, with the threads that the actor gave PyTorch."""
        import torch

        from ray_jobs.interpretation.image_evidence import ImageEvidence

        return ImageEvidence(torch.get_num_threads())

    def interpret(self, contents: Sequence[Content], attempt: int, told: Told | None = None) -> list[Answer]:
        """See `Interpreter.interpret`."""
        if not contents:
            return []
        started = time.perf_counter()
        seen, blind = self._look(contents)
        shown = [c.text if e is None else with_lines(c.text, _lines(e)) for c, e in zip(contents, seen, strict=True)]
        rows = [row for row in range(len(contents)) if row not in blind]
        completions = self.engine.complete(
            self.prompt.messages(attempt),
            [shown[row] for row in rows],
            self.parameters.max_new_tokens,
            no_repeat_ngram=self.parameters.no_repeat_ngram[attempt],
            choices=self.prompt.options,
            neutral=self.prompt.neutral,
        )
        share = (time.perf_counter() - started) / len(contents)
        answers = {
            row: self._answer(contents[row], seen[row], shown[row], completion, share)
            for row, completion in zip(rows, completions, strict=True)
        }
        for row, why in blind.items():
            problem = Problem("image_unreadable", why)
            answers[row] = Answer(None, problem, DETERMINISTIC, "error", shown[row], "", ())
        return [answers[row] for row in range(len(contents))]

    def most_tokens(self, contents: Sequence[Content]) -> list[int]:
        """See `Interpreter.most_tokens`."""
        longest = max((self.prompt.messages(0), self.prompt.messages(1)), key=lambda shared: len(shared[0].content))
        most = self.engine.most_tokens(
            longest, [c.text for c in contents], self.parameters.max_new_tokens, self.prompt.options
        )
        return [tokens + (IMAGE_BYTES if c.image else 0) for tokens, c in zip(most, contents, strict=True)]

    def _look(self, contents: Sequence[Content]) -> tuple[list[Any], dict[int, str]]:
        """What is seen in each content's image, and why nothing could be seen in some."""
        seen: list[Any] = [None] * len(contents)
        rows = [row for row, c in enumerate(contents) if c.image is not None and self.config.sees_images]
        if not rows:
            return seen, {}
        images = [contents[row].image for row in rows]
        try:
            found = self.eyes.look(images)
        except (OSError, ValueError):
            # One image is at fault, not the others of its batch.
            found = [self._look_at_one(image) for image in images]
        blind = {row: e for row, e in zip(rows, found, strict=True) if isinstance(e, str)}
        for row, evidence in zip(rows, found, strict=True):
            seen[row] = None if row in blind else evidence
        return seen, blind

    def _look_at_one(self, image: bytes | None) -> Any:
        try:
            return self.eyes.look([image])[0]
        except (OSError, ValueError) as error:
            return f"The image cannot be read ({type(error).__name__}): materialize captions/item_images again."

    def _answer(self, content: Content, seen: Any, shown: str, completion: Completion, seconds: float) -> Answer:
        if completion.finish == "error":
            problem = Problem("too_long", completion.error)
            return Answer(None, problem, DETERMINISTIC, "error", shown, "", ())
        call = Call(
            "ok",
            completion.prompt_tokens,
            completion.completion_tokens,
            cached_tokens=completion.cached_tokens,
            seconds=seconds,
        )
        chosen = [options[i] for options, i in zip(self.prompt.options, completion.choices, strict=True)]
        labels = [] if seen is None else [name for name, _ in seen.labels]
        record = Interpretation(
            caption=completion.text,
            subjects=subjects(completion.text, content.text, content.categories, labels),
            **dict(zip(CHOICES, chosen, strict=True)),
            text_in_image="" if seen is None else clean(seen.text, TEXT_CHARS),
            tags=tuple(tag[:WORD_CHARS] for tag in tags(completion.text, content.categories)),
        )
        text = f"{MARK} ".join([completion.text, *chosen])
        return Answer(record, None, "", completion.finish, shown, text, (call,))


def _lines(seen: Any) -> list[str]:
    """What was seen as lines of the prompt: cleaned like all of an item's text, and of bounded length."""
    lines: list[str] = []
    left = IMAGE_BYTES
    for line in seen.lines():
        said = clean(line, LINE_CHARS)
        # A line's break is a byte, too.
        said = said.encode()[: max(left - 1, 0)].decode(errors="ignore").strip()
        left -= len(said.encode()) + 1
        if said:
            lines.append(said)
    return lines


def subjects(caption: str, text: str, categories: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """What an item is about: what its image surely shows, then words of its text that the caption uses, too.

    Args:
        caption: The caption.
        text: The item's fenced text.
        categories: The item's categories; only those that its text shows count, as only they are in its key.
        labels: What its image shows.
    """
    used = set(content_words(caption))
    title = next((line for line in text.splitlines() if line.startswith("title: ")), "").removeprefix("title: ")
    words = [w for w in content_words(", ".join([title, *shown_categories(categories)])) if w in used]
    found = [clean(label.casefold(), WORD_CHARS) for label in labels]
    return tuple(dict.fromkeys(w for w in [*found, *words] if w and len(w) <= WORD_CHARS))[:MAX_SUBJECTS]
