"""The safety filter of personas: terms, then the language model as classifier where one is configured.

A verdict is kept by text and filter, so that no text is judged, and paid for, twice.
"""

import datetime as dt
from collections.abc import Callable

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.identity import version_of
from models.personas.safety import Flag, SafetyConfig, flagged_by_terms
from ray_jobs.language.engine import ChoiceError, LanguageEngine, LanguageEngineConfig, Message
from ray_jobs.prompts import load_prompt, prompt_digest
from ray_jobs.tables.personas import PERSONA_VERDICTS
from ray_jobs.warehouse import Warehouse

PROMPT = "persona_safety"
SAFE = "safe"
UNDECIDED = Flag("undecided", "classifier")


class SafetyFilter:
    """Judges texts.

    Args:
        config: Terms, and what the classifier may flag.
        warehouse: Where verdicts are kept.
        engine: How the classifier's model is reached; part of the filter's version if it has categories.
        load: Gives the loaded model; called only if there is something to classify.
    """

    def __init__(
        self,
        config: SafetyConfig,
        warehouse: Warehouse,
        engine: LanguageEngineConfig,
        load: Callable[[], LanguageEngine],
    ):
        self.config, self.warehouse, self.load = config, warehouse, load
        asked = {"prompt": prompt_digest(PROMPT), "engine": engine.identity} if config.categories else {}
        self.version = version_of(filter=config.version, **asked)

    def __call__(self, texts: dict[str, str]) -> dict[str, Flag]:
        """Judges texts.

        Args:
            texts: Texts by content key.

        Returns:
            The flags of the unsafe ones, by content key.
        """
        known = self._known(list(texts))
        new = {key: text for key, text in texts.items() if key not in known}
        flags = {key: flagged_by_terms(text, self.config) for key, text in new.items()}
        open_keys = [key for key, flag in flags.items() if flag is None]
        if self.config.categories and open_keys:
            flags |= dict(zip(open_keys, self._classify([new[key] for key in open_keys]), strict=True))
        now = dt.datetime.now(dt.UTC)
        rows = [
            {
                "content_key": key,
                "filter_version": self.version,
                "category": flag.category if flag else "",
                "rule": flag.rule if flag else "",
                "created_timestamp": now,
            }
            for key, flag in flags.items()
        ]
        self.warehouse.append(PERSONA_VERDICTS, pa.Table.from_pylist(rows, PERSONA_VERDICTS.schema))
        return {key: flag for key, flag in (known | flags).items() if flag is not None}

    def _known(self, keys: list[str]) -> dict[str, Flag | None]:
        mine = pc.field("content_key").isin(pa.array(keys, pa.string())) & (pc.field("filter_version") == self.version)
        rows = pl.DataFrame(self.warehouse.read(PERSONA_VERDICTS, ["content_key", "category", "rule"], mine))
        return {key: Flag(category, rule) if category else None for key, category, rule in rows.iter_rows()}

    def _classify(self, texts: list[str]) -> list[Flag | None]:
        said = load_prompt(PROMPT)["choice"]
        messages = [Message("system", said["system"])]
        for example in said["examples"]:
            messages += [Message("user", example["text"].strip()), Message("assistant", example["answer"])]
        options = [SAFE, *self.config.categories]
        # What would open or close the data block is data.
        users = [f"<text>\n{text.replace('<', '(').replace('>', ')')}\n</text>" for text in texts]
        chosen: list[int | None]
        try:
            chosen = list(self.load().choose(messages, users, [options] * len(users), said["neutral"].strip()))
        except ChoiceError as error:
            # What the model gives no answer to, as a provider's own filter refuses it, is shown to nobody.
            chosen = error.chosen
        return [UNDECIDED if c is None else None if c == 0 else Flag(options[c], "classifier") for c in chosen]
