"""Interpretation by a model behind an OpenAI-compatible endpoint, which is shown the image as a data URL."""

import base64
import functools
from collections.abc import Callable, Sequence
from typing import Any

from models.language.interpretation import json_schema, parse
from models.language.validation import Problem
from ray_jobs.interpretation.interpreter import (
    DETERMINISTIC,
    INVALID,
    NEVER_ANSWERED,
    TRANSIENT,
    Answer,
    Content,
    InterpretationParameters,
    InterpreterConfig,
    Told,
)
from ray_jobs.interpretation.prompting import InterpretationPrompt
from ray_jobs.language.endpoint import (
    PAID_RETRIES,
    TRIVIAL,
    Endpoint,
    Request,
    chat,
    counted,
    json_schema_format,
    trivial_like,
)
from ray_jobs.language.engine import EngineSetupError
from ray_jobs.language.replies import ANSWERED, REFUSED, Reply

FREQUENCY_PENALTY = 0.3
# What a budget reserves: no token is shorter than a byte; a canonical image of 512 x 512 pixels costs at most this
# much in the models known (Qwen2-VL 324, LLaVA-NeXT 2,880).
MOST_IMAGE_TOKENS = 2_880
TOKENS_PER_MESSAGE = 8
# A batch may be asked in plain words, too; its first row pays for three trivial prompts that find out who is to blame.
MOST_PROBES = 3


class EndpointInterpreter:
    """See `Interpreter`.

    Args:
        config: The endpoint, and whether it is shown images.
        prompt: The prompt.
        parameters: How records are decoded.

    Raises:
        EngineSetupError: If the config names no endpoint.
    """

    def __init__(self, config: InterpreterConfig, prompt: InterpretationPrompt, parameters: InterpretationParameters):
        self.config, self.prompt, self.parameters = config, prompt, parameters
        self.endpoint = Endpoint(config.engine)
        self.format = json_schema_format("interpretation", json_schema(prompt.vocabulary))

    def interpret(self, contents: Sequence[Content], attempt: int, told: Told | None = None) -> list[Answer]:
        """See `Interpreter.interpret`."""
        if not contents:
            return []

        def tell(row: int, reply: Reply) -> None:
            if told is not None:
                told(row, self._answer(contents[row], reply))

        requests = [self._request(content, attempt) for content in contents]
        replies = self._ask(requests, tell)
        self._check_that_images_are_taken(contents, requests, replies)
        return [self._answer(content, reply) for content, reply in zip(contents, replies, strict=True)]

    def most_tokens(self, contents: Sequence[Content]) -> list[int]:
        """See `Interpreter.most_tokens`."""
        shared = max(self._most_of_shared) + self.parameters.max_json_tokens
        asked = (PAID_RETRIES + 1) * (2 if self.format else 1)
        most = [
            asked * (shared + _most_tokens(c.text) + (MOST_IMAGE_TOKENS if self._is_shown(c) else 0)) for c in contents
        ]
        probe = shared + _most_tokens(TRIVIAL) + (MOST_IMAGE_TOKENS if self.config.sees_images else 0)
        return [tokens + (0 if row else MOST_PROBES * (PAID_RETRIES + 1) * probe) for row, tokens in enumerate(most)]

    @functools.cached_property
    def _most_of_shared(self) -> list[int]:
        return [
            sum(_most_tokens(m.content) + TOKENS_PER_MESSAGE for m in self.prompt.json_messages(attempt))
            for attempt in (0, 1)
        ]

    def _is_shown(self, content: Content) -> bool:
        return content.image is not None and self.config.sees_images

    def _request(self, content: Content, attempt: int) -> Request:
        user: Any = content.text
        if self._is_shown(content):
            assert content.image is not None
            url = f"data:image/jpeg;base64,{base64.b64encode(content.image).decode()}"
            # The image first, as models are trained on it, and so that its item's text is read with it in view.
            user = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content.text}]
        limits: dict[str, Any] = {"max_tokens": self.parameters.max_json_tokens}
        if attempt:
            limits["frequency_penalty"] = FREQUENCY_PENALTY
        return Request(chat(self.prompt.json_messages(attempt), user), limits | self.format)

    def _ask(self, requests: list[Request], told: Callable[[int, Reply], None]) -> list[Reply]:
        """Asks under the schema; an endpoint that refuses schemas is asked in the prompt's plain words alone."""
        replies = self.endpoint.ask_all(requests, told)
        plain = [
            request._replace(limits={k: v for k, v in request.limits.items() if k not in self.format})
            for request in requests
        ]
        refused = [i for i, reply in enumerate(replies) if reply.outcome == REFUSED]
        if self.format and refused and not any(reply.outcome == ANSWERED for reply in replies):
            found = self.endpoint.ask_also([plain[i] for i in refused], refused, replies)
            for i, reply in zip(refused, found, strict=True):
                replies[i] = reply._replace(calls=replies[i].calls)
            if any(reply.outcome == ANSWERED for reply in found):
                self.format = {}
        return self.endpoint.blame(plain, replies)

    def _check_that_images_are_taken(
        self, contents: Sequence[Content], requests: list[Request], replies: list[Reply]
    ) -> None:
        """Tells an endpoint that takes no images from images that it refuses.

        Raises:
            EngineSetupError: If the endpoint answers the same request without its image.
        """
        shown = [i for i, content in enumerate(contents) if self._is_shown(content)]
        if not shown or any(replies[i].outcome != REFUSED for i in shown):
            return
        first = shown[0]
        trivial = trivial_like(requests[first])
        with_image = trivial._replace(
            messages=[*trivial.messages[:-1], *chat([], [_grey_image(), {"type": "text", "text": TRIVIAL}])]
        )
        seen, blind = self.endpoint.ask_also([with_image, trivial], [first, first], replies)
        if seen.outcome == REFUSED and blind.outcome == ANSWERED:
            why = f"{seen.text} Without an image it answers: set BELVEDERE_LLM_SEES_IMAGES=false, or serve a model "
            raise counted(EngineSetupError(f"{why}that takes images."), replies)

    def _answer(self, content: Content, reply: Reply) -> Answer:
        if reply.outcome == ANSWERED and reply.finish != "refusal":
            found = parse(reply.text, self.prompt.vocabulary)
            if isinstance(found, Problem):
                if reply.finish == "length":
                    found = Problem("cut", "The answer was cut at the token limit.")
                return Answer(None, found, INVALID, reply.finish, content.text, reply.text, _marked(reply, found))
            return Answer(found, None, "", reply.finish, content.text, reply.text, reply.calls)
        if reply.outcome == ANSWERED:
            problem = Problem("refusal", "The model refused to answer.")
            return Answer(None, problem, DETERMINISTIC, "stop", content.text, reply.text, reply.calls)
        if reply.outcome == REFUSED:
            problem = Problem("refused", reply.text)
            return Answer(None, problem, DETERMINISTIC, "error", content.text, "", reply.calls)
        return Answer(None, Problem(NEVER_ANSWERED, reply.text), TRANSIENT, "error", content.text, "", reply.calls)


def _marked(reply: Reply, problem: Problem) -> tuple[Any, ...]:
    """The calls, of which the last did not bring what it should."""
    return (*reply.calls[:-1], reply.calls[-1]._replace(outcome=problem.reason))


def _most_tokens(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@functools.cache
def _grey_image() -> dict[str, Any]:
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(sink, format="JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
