"""The actor that captions batches of contents: generate, validate, repair, store."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa

from models.language.captions import tags
from models.language.validation import Problem, problem, prompt_phrases
from ray_jobs.caption_plan import NEVER_ANSWERED, Config, messages, stored_keys
from ray_jobs.language.engine import Completion, LanguageEngine, Neutral, load_engine
from ray_jobs.prompts import load_prompt
from ray_jobs.tables.captions import CAPTION_DEAD_LETTERS, CAPTION_STORE


class Captioner:
    """Captions batches of contents and appends them to the store. Ray runs it as an actor.

    Args:
        config: The job's config.
        threads: CPU threads of an in-process model; 0 leaves them as they are.
    """

    def __init__(self, config: Config, threads: int = 0):
        if threads and config.engine.kind == "transformers":
            import torch

            torch.set_num_threads(threads)
        self.config = config
        self.prompt = load_prompt(config.prompt)
        self.engine: LanguageEngine = load_engine(config.engine)
        said = [self.prompt["system"], self.prompt["repair_system"], *(e["caption"] for e in self.prompt["examples"])]
        self.phrases = prompt_phrases(said, config.rules)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Captions the contents of ``batch`` that are not stored yet; returns one row of counts."""
        keys = [str(k) for k in batch["content_key"]]
        # A batch may come again when its actor died after the append.
        known = set(stored_keys(self.config.warehouse, CAPTION_STORE, [("content_key", "in", keys)])["content_key"])
        rows = [i for i, key in enumerate(keys) if key not in known]
        before = self.engine.usage
        stored, dead = self._caption(rows, batch) if rows else ([], [])
        spent = self.engine.usage.minus(before)
        self.config.warehouse.append(CAPTION_STORE, pa.Table.from_pylist(stored, CAPTION_STORE.schema))
        self.config.warehouse.append(CAPTION_DEAD_LETTERS, pa.Table.from_pylist(dead, CAPTION_DEAD_LETTERS.schema))
        counts = {"done": len(keys), "stored": len(stored), "dead": len(dead)} | spent._asdict()
        return {name: np.array([count]) for name, count in counts.items()}

    def _caption(
        self, rows: list[int], batch: dict[str, np.ndarray]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        answers: dict[int, list[Completion]] = {row: [] for row in rows}
        problems: dict[int, Problem] = {}
        tries = (("system", self.config.no_repeat_ngram), ("repair_system", self.config.repair_no_repeat_ngram))
        open_rows = rows
        for system, no_repeat_ngram in tries:
            shown = [str(batch["evidence"][row]) for row in open_rows]
            completions = self.engine.complete(
                messages(self.prompt, system),
                shown,
                self.config.max_new_tokens,
                no_repeat_ngram=no_repeat_ngram,
                options=self.prompt["moods"],
                neutral=Neutral(**self.prompt["neutral"]),
            )
            still_open = []
            for row, completion in zip(open_rows, completions, strict=True):
                answers[row].append(completion)
                found = self._problem(completion)
                if found is None:
                    problems.pop(row, None)
                    continue
                problems[row] = found
                if found.reason != NEVER_ANSWERED:
                    still_open.append(row)
            open_rows = still_open
            if not open_rows:
                break
        now = dt.datetime.now(dt.UTC)
        stored = [
            self._row(batch, row, answers[row]) | {"created_timestamp": now} for row in rows if row not in problems
        ]
        dead = [
            {
                "content_key": str(batch["content_key"][row]),
                "item_id": str(batch["item_id"][row]),
                "reason": found.reason,
                "detail": found.detail,
                "attempts": len(answers[row]),
                "created_timestamp": now,
            }
            for row, found in problems.items()
        ]
        return stored, dead

    def _problem(self, completion: Completion) -> Problem | None:
        if completion.finish == "error":
            return Problem(NEVER_ANSWERED, completion.error)
        found = problem(completion.text, completion.finish, self.config.rules, self.phrases)
        if found is None and completion.choice < 0:
            return Problem("no_mood", "The model named none of the prompt's moods.")
        return found

    def _row(self, batch: dict[str, np.ndarray], row: int, answers: list[Completion]) -> dict[str, Any]:
        last = answers[-1]
        return {
            "content_key": str(batch["content_key"][row]),
            "caption": last.text,
            "mood": self.prompt["moods"][last.choice],
            "tags": tags(last.text, [str(c) for c in batch["categories"][row]]),
            "attempts": len(answers),
            "prompt_tokens": sum(a.prompt_tokens for a in answers),
            "completion_tokens": sum(a.completion_tokens for a in answers),
        }
