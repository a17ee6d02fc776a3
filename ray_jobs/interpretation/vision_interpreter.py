"""Interpretation by a Hugging Face image-text-to-text checkpoint in process, decoded under the record's JSON schema.

Any checkpoint that `AutoModelForImageTextToText` and `AutoProcessor` load and that has a chat template, on CPU or CUDA;
images and texts go through it in left-padded batches. The grammar is xgrammar's (Dong et al. 2024, arXiv:2411.15100).
"""

import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from models.language.interpretation import json_schema, parse
from models.language.validation import Problem
from ray_jobs.interpretation.interpreter import (
    DETERMINISTIC,
    INVALID,
    Answer,
    Content,
    InterpretationParameters,
    InterpreterConfig,
    Told,
)
from ray_jobs.interpretation.prompting import InterpretationPrompt
from ray_jobs.language.engine import Call, EngineSetupError, Message

# On what was written already, in a repair; a whole ban on repeats would contradict JSON's punctuation.
REPETITION_PENALTY = 1.1


class VisionInterpreter:
    """See `Interpreter`.

    Args:
        config: Folder of the checkpoint, device, type and kind of attention.
        prompt: The prompt.
        parameters: How records are decoded.

    Raises:
        EngineSetupError: If the folder holds no such checkpoint, or it cannot be used as it is configured.
    """

    def __init__(self, config: InterpreterConfig, prompt: InterpretationPrompt, parameters: InterpretationParameters):
        import torch
        import xgrammar
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.config, self.prompt, self.parameters = config, prompt, parameters
        engine, folder = config.engine, Path(config.engine.model)
        if not (folder / "config.json").is_file():
            raise EngineSetupError(
                f"There is no checkpoint in {folder}: set BELVEDERE_VLM_MODEL to an image-text-to-text model's folder."
            )
        dtype = "auto" if engine.dtype == "auto" else getattr(torch, engine.dtype)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, attn_implementation=config.attention, local_files_only=True
            )
        except (OSError, ValueError, ImportError) as error:
            raise EngineSetupError(
                f"{folder} cannot be loaded as an image-text-to-text model with {config.attention} attention "
                f"({_first_line(error)}): set BELVEDERE_VLM_MODEL and BELVEDERE_VLM_ATTENTION."
            ) from error
        self.model = model.to(engine.device).eval()
        self.tokenizer = self.processor.tokenizer
        if not (getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template):
            raise EngineSetupError(f"The checkpoint {folder} has no chat template: use the instruction-tuned model.")
        self.tokenizer.padding_side = "left"
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        self.end_ids = sorted(e for e in ends if e is not None)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.end_ids[0])
        text = self.model.config.get_text_config()
        self.context = int(getattr(text, "max_position_embeddings", 0) or 1 << 30)
        vocabulary = xgrammar.TokenizerInfo.from_huggingface(
            self.tokenizer, vocab_size=text.vocab_size, stop_token_ids=self.end_ids
        )
        self.grammar = xgrammar.GrammarCompiler(vocabulary).compile_json_schema(
            json.dumps(json_schema(prompt.vocabulary)), any_whitespace=False
        )
        names = ("image_token", "boi_token")
        self.image_marks = {t for t in (getattr(self.processor, n, None) for n in names) if isinstance(t, str)}
        self.image_ids = {
            i for i in (getattr(self.model.config, n, None) for n in ("image_token_id", "image_token_index")) if i
        }
        # Text of an item must neither open a turn of its own nor stand for an image.
        control = {*self.tokenizer.all_special_tokens, *self.image_marks}
        control |= {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        self.control = re.compile("|".join(map(re.escape, sorted(filter(None, control), key=len, reverse=True))))

    def interpret(self, contents: Sequence[Content], attempt: int, told: Told | None = None) -> list[Answer]:
        """See `Interpreter.interpret`."""
        images, blind = self._images(contents)
        answers = {r: _unanswered(contents[r], Problem("image_unreadable", why)) for r, why in blind.items()}
        for rows in self._batches([r for r in range(len(contents)) if r not in answers], contents, images):
            answers |= self._interpret_batch(rows, contents, [images[r] for r in rows if r in images], attempt)
        return [answers[row] for row in range(len(contents))]

    def most_tokens(self, contents: Sequence[Content]) -> list[int]:
        """See `Interpreter.most_tokens`."""
        longest = max((self.prompt.json_messages(0), self.prompt.json_messages(1)), key=lambda m: len(m[0].content))
        images, blind = self._images(contents)
        most = []
        for row, content in enumerate(contents):
            if row in blind:
                # The model is not asked.
                most.append(0)
                continue
            inputs = self._inputs(longest, [content.text], [images[row]] if row in images else [])
            most.append(inputs["input_ids"].shape[1] + self.parameters.max_json_tokens)
        return most

    def _images(self, contents: Sequence[Content]) -> tuple[dict[int, Any], dict[int, str]]:
        """Images of the contents that are shown with one, and why those of others cannot be."""
        images: dict[int, Any] = {}
        blind: dict[int, str] = {}
        for row, content in enumerate(contents):
            try:
                if content.image is not None and self.config.sees_images:
                    images[row] = _decoded(content.image)
            except (OSError, ValueError) as error:
                blind[row] = (
                    f"The image cannot be read ({type(error).__name__}): materialize captions/item_images again."
                )
        return images, blind

    def _batches(self, rows: list[int], contents: Sequence[Content], images: dict[int, Any]) -> Iterator[list[int]]:
        """Rows in batches, with an image or without, longest texts first, so that they need little padding."""
        for seen in (True, False):
            alike = [r for r in rows if (r in images) is seen]
            alike.sort(key=lambda r: (-len(contents[r].text), contents[r].key))
            size = self.config.engine.batch_size
            yield from (alike[at : at + size] for at in range(0, len(alike), size))

    def _interpret_batch(
        self, rows: list[int], contents: Sequence[Content], images: list[Any], attempt: int
    ) -> dict[int, Answer]:
        import torch
        from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
        from xgrammar.contrib.hf import LogitsProcessor

        started = time.perf_counter()
        inputs = self._inputs(self.prompt.json_messages(attempt), [contents[r].text for r in rows], images)
        length = inputs["input_ids"].shape[1]
        if length + self.parameters.max_json_tokens > self.context:
            if len(rows) > 1:
                # One is too long, not the others of its batch.
                alone = [self._interpret_batch([r], contents, images[i : i + 1], attempt) for i, r in enumerate(rows)]
                return {r: answer for one in alone for r, answer in one.items()}
            why = (
                f"The prompt has {length:,} tokens and the answer {self.parameters.max_json_tokens:,}, but the model "
                f"reads {self.context:,}: use a model with a longer context."
            )
            return {rows[0]: _unanswered(contents[rows[0]], Problem("too_long", why))}
        rules = LogitsProcessorList()
        if attempt:
            rules.append(RepetitionPenaltyLogitsProcessor(REPETITION_PENALTY, prompt_ignore_length=length))
        rules.append(LogitsProcessor(self.grammar))
        with torch.inference_mode():
            out = self.model.generate(
                **inputs.to(self.model.device, self.model.dtype),
                max_new_tokens=self.parameters.max_json_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=rules,
                eos_token_id=self.end_ids,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        share = (time.perf_counter() - started) / len(rows)
        answers = {}
        for place, row in enumerate(rows):
            prompt = inputs["input_ids"][place][inputs["attention_mask"][place].bool()]
            new = out[place, length:].tolist()
            end = next((i for i, token in enumerate(new) if token in self.end_ids), None)
            call = Call(
                "ok",
                len(prompt),
                len(new) if end is None else end + 1,
                image_tokens=sum(int(i) in self.image_ids for i in prompt),
                seconds=share,
            )
            text = self.tokenizer.decode(new[:end], skip_special_tokens=True)
            answers[row] = self._answer(contents[row], text, "length" if end is None else "stop", call)
        return answers

    def _answer(self, content: Content, text: str, finish: str, call: Call) -> Answer:
        found = parse(text, self.prompt.vocabulary)
        if isinstance(found, Problem):
            if finish == "length":
                found = Problem("cut", "The answer was cut at the token limit.")
            return Answer(None, found, INVALID, finish, content.text, text, (call._replace(outcome=found.reason),))
        return Answer(found, None, "", finish, content.text, text, (call,))

    def _inputs(self, shared: Sequence[Message], texts: Sequence[str], images: Sequence[Any]) -> Any:
        """Model inputs of a batch in which either all have an image or none.

        Raises:
            EngineSetupError: If the chat template does not put each image into its prompt exactly once.
        """
        prompts = [self._chat(shared, text, bool(images)) for text in texts]
        for prompt in prompts if self.image_marks else []:
            found = max((prompt.count(mark) for mark in self.image_marks), default=0)
            if found != bool(images):
                raise EngineSetupError(
                    f"The chat template of {self.config.engine.model} shows {found} images where {int(bool(images))} "
                    "belongs: mend the template, or set BELVEDERE_LOOK_AT_IMAGES=false."
                )
        shown: dict[str, Any] = {"images": [[image] for image in images]} if images else {}
        # The chat template wrote the special tokens already.
        return self.processor(text=prompts, **shown, padding=True, return_tensors="pt", add_special_tokens=False)

    def _chat(self, shared: Sequence[Message], user: str, sees: bool) -> str:
        last: list[dict[str, str]] = [{"type": "text", "text": self.control.sub(" ", user)}]
        turns = [{"role": m.role, "content": [{"type": "text", "text": m.content}]} for m in shared]
        turns.append({"role": "user", "content": [{"type": "image"}, *last] if sees else last})
        return str(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _decoded(image: bytes) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(image)) as known:
        return known.convert("RGB")


def _unanswered(content: Content, problem: Problem) -> Answer:
    return Answer(None, problem, DETERMINISTIC, "error", content.text, "", ())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
