"""The prompt of interpretation: a prompt file as a typed value, and the messages that it makes."""

import pydantic

from models.language.captions import CLOSE, tags
from models.language.interpretation import Interpretation, Vocabulary
from ray_jobs.language.engine import MARK, Message, Neutral
from ray_jobs.prompts import load_prompt

# In this order they follow the caption.
CHOICES = ("mood", "style", "setting")


class Example(pydantic.BaseModel, frozen=True):
    """An item and the answer that is wanted."""

    item: str
    caption: str
    subjects: tuple[str, ...]
    mood: str
    style: str
    setting: str
    text_in_image: str = ""

    @property
    def record(self) -> Interpretation:
        """The answer."""
        categories = [line.removeprefix("categories: ") for line in self.item.splitlines() if "categories: " in line]
        said = self.model_dump(exclude={"item"})
        return Interpretation(**said, tags=tuple(tags(self.caption, ", ".join(categories).split(", "))))


class InterpretationPrompt(pydantic.BaseModel, frozen=True):
    """A prompt file; its comments say what each part is for."""

    name: str
    version: str
    system: str
    repair_system: str
    json_system: str
    json_repair_system: str
    vocabulary: Vocabulary
    neutral: Neutral
    examples: tuple[Example, ...]

    @pydantic.model_validator(mode="after")
    def _examples_choose_what_can_be_chosen(self) -> "InterpretationPrompt":
        for example in self.examples:
            for name, options in zip(CHOICES, self.options, strict=True):
                if getattr(example, name) not in options:
                    raise ValueError(f"the {name} '{getattr(example, name)}' of an example is not in the vocabulary")
        return self

    @property
    def options(self) -> tuple[tuple[str, ...], ...]:
        """What each of `CHOICES` is chosen from."""
        return self.vocabulary.moods, self.vocabulary.styles, self.vocabulary.settings

    def messages(self, attempt: int) -> list[Message]:
        """The shared messages of a model that writes ``<caption> | <mood> | <style> | <setting>``."""
        shared = [Message("system", self.repair_system if attempt else self.system)]
        for example in self.examples:
            answer = f"{MARK} ".join([example.caption, *(getattr(example, name) for name in CHOICES)])
            shared += [Message("user", example.item.strip()), Message("assistant", answer)]
        return shared

    def json_messages(self, attempt: int) -> list[Message]:
        """The shared messages of a model that writes the record as JSON."""
        words = [f" {name}: one of {', '.join(o)}." for name, o in zip(CHOICES, self.options, strict=True)]
        system = (self.json_repair_system if attempt else self.json_system) + "".join(words)
        shared = [Message("system", system)]
        for example in self.examples:
            shared += [
                Message("user", example.item.strip()),
                Message("assistant", example.record.model_dump_json()),
            ]
        return shared

    def texts(self) -> list[str]:
        """Every sentence of the prompt that an answer must not repeat."""
        systems = [self.system, self.repair_system, self.json_system, self.json_repair_system]
        return [*systems, *(example.caption for example in self.examples)]


def interpretation_prompt(name: str) -> InterpretationPrompt:
    """The prompt file ``name``.

    Raises:
        FileNotFoundError: If there is no such prompt.
        ValueError: If the file is no prompt of interpretation.
    """
    try:
        return InterpretationPrompt.model_validate(load_prompt(name))
    except (pydantic.ValidationError, KeyError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else f"{error} is missing"
        raise ValueError(f"The prompt file {name}.toml is no prompt of interpretation: {first}.") from None


def with_lines(text: str, lines: list[str]) -> str:
    """The fenced ``text`` with more lines at its end, inside of the fence."""
    return "\n".join([text.removesuffix(CLOSE).rstrip("\n"), *lines, CLOSE])
