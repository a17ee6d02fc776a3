"""The actor that captions batches of contents: generate, validate, repair, account, store."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.language.interpretation import Interpretation
from models.language.validation import Problem, prompt_phrases, record_problem
from ray_jobs.captions.accounts import CAPTION, call_row
from ray_jobs.captions.budget import Budget
from ray_jobs.captions.keeper import Keeper
from ray_jobs.captions.plan import Config, read_frame
from ray_jobs.images.store import ImageStore
from ray_jobs.interpretation.interpreter import (
    DETERMINISTIC,
    INVALID,
    NEVER_ANSWERED,
    TRANSIENT,
    Answer,
    Content,
    Interpreter,
)
from ray_jobs.interpretation.loading import load_interpreter
from ray_jobs.interpretation.prompting import interpretation_prompt
from ray_jobs.language.engine import EngineSetupError, EngineUnavailableError
from ray_jobs.tables.captions import CALL_LEDGER, CAPTION_DEAD_LETTERS, CAPTION_STORE

COUNTS = ("done", "stored", "dead", "deferred", "calls", "completion_tokens")
# Runs that a content may fail for a passing reason before it is given up for good.
TRANSIENT_RUNS = 3
# Seconds before the first answers of a batch are kept, by a model of one's own, so that most batches are one commit. It
# waits for every write itself; what a kill takes from it is seconds of work, and no money.
OWN_REST = 10.0
# Item and pixel digest of a content, by key.
Places = Mapping[str, tuple[str, Any]]
NO_ROOM = Problem("budget", "The budget had no room for a repair: materialize again with a new budget.")


class Outcome(NamedTuple):
    """What became of one content after all its attempts.

    Attributes:
        content: The content.
        record: Its interpretation, or None.
        problem: Why there is none.
        error_class: Class of the problem.
        answers: One a try.
    """

    content: Content
    record: Interpretation | None
    problem: Problem | None
    error_class: str
    answers: tuple[Answer, ...]

    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of all its calls."""
        calls = [call for answer in self.answers for call in answer.calls]
        return sum(c.prompt_tokens for c in calls), sum(c.completion_tokens for c in calls)


class Captioner:
    """Captions batches of contents and appends them to the store. Ray runs it as an actor.

    Args:
        config: The job's config.
        threads: CPU threads of an in-process model; 0 leaves them as they are.
        gpus: GPUs of the actor, for the call ledger.
        budget: The run's budget, or the handle of the actor that holds it; None: no limit.
    """

    def __init__(self, config: Config, threads: int = 0, gpus: float = 0.0, budget: Any = None):
        if threads and config.interpreter.kind != "endpoint":
            import torch

            torch.set_num_threads(threads)
        self.config, self.gpus, self.budget = config, gpus, budget
        self.images = ImageStore.of(config.artifacts)
        self.interpreter: Interpreter = load_interpreter(config.interpreter, config.prompt, config.parameters)
        self.phrases = prompt_phrases(interpretation_prompt(config.prompt).texts(), config.rules)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Captions the contents of ``batch`` that are not stored yet; returns one row of counts and traces."""
        keys = [str(k) for k in batch["content_key"]]
        # A batch may come again when its actor died after the append.
        known = read_frame(self.config.warehouse, CAPTION_STORE, ["content_key"], [("content_key", "in", keys)])
        rows = [i for i, key in enumerate(keys) if key not in set(known["content_key"])]
        pixels = [batch["pixel_digest"][i] for i in rows]
        contents = [
            Content(keys[i], str(batch["text"][i]), tuple(str(c) for c in batch["categories"][i]), image)
            for i, image in zip(rows, self.pictures(pixels), strict=True)
        ]
        lost = {c.key for c, p in zip(contents, pixels, strict=True) if p is not None and c.image is None}
        places = {keys[i]: (str(batch["item_id"][i]), batch["pixel_digest"][i]) for i in rows}
        found = {c.key: _image_is_gone(c) for c in contents if c.key in lost}
        self.caption([c for c in contents if c.key not in lost], CAPTION, found, places)
        # Not reached if the model goes away: what was to be repaired stays open then.
        dead = self._give_up([o for o in found.values() if o.problem not in (None, NO_ROOM)], places)
        stored = sum(o.record is not None for o in found.values())
        calls = [call for o in found.values() for a in o.answers for call in a.calls]
        deferred = len(rows) - len(found) + sum(o.problem == NO_ROOM for o in found.values())
        counts = (len(keys), stored, dead, deferred, len(calls), sum(c.completion_tokens for c in calls))
        traces = json.dumps([trace_of(o, places[o.content.key][0]) for o in list(found.values())[:2]])
        return {name: np.array([n]) for name, n in zip(COUNTS, counts, strict=True)} | {"traces": np.array([traces])}

    def _store(self, outcomes: Sequence[Outcome], places: Places) -> None:
        """Appends the records of contents that have a place."""
        now = dt.datetime.now(dt.UTC)
        stored = [
            _stored(o, places[o.content.key][1], self.config, now)
            for o in outcomes
            if o.record and o.content.key in places
        ]
        self.config.warehouse.append(CAPTION_STORE, pa.Table.from_pylist(stored, CAPTION_STORE.schema))

    def _give_up(self, outcomes: Sequence[Outcome], places: Places) -> int:
        """Appends dead letters; returns how many."""
        if not outcomes:
            return 0
        keys = [o.content.key for o in outcomes]
        names = ["content_key", "first_seen", "attempts", "error_class"]
        before = read_frame(self.config.warehouse, CAPTION_DEAD_LETTERS, names, [("content_key", "in", keys)])
        earlier = before.rows_by_key("content_key", named=True)
        now = dt.datetime.now(dt.UTC)
        dead = [_dead(o, places[o.content.key][0], self.config, now, earlier.get(o.content.key, [])) for o in outcomes]
        self.config.warehouse.append(CAPTION_DEAD_LETTERS, pa.Table.from_pylist(dead, CAPTION_DEAD_LETTERS.schema))
        return len(dead)

    def pictures(self, digests: Sequence[Any]) -> list[bytes | None]:
        """Canonical images; None for None, and for what the image store lost."""
        try:
            return self.images.get_many(digests)
        except FileNotFoundError:
            return [self.images.get(d) if d is not None and d in self.images else None for d in digests]

    def caption(
        self, contents: Sequence[Content], purpose: str, found: dict[str, Outcome], places: Places | None = None
    ) -> None:
        """Asks, validates and asks again where that may help; accounts for every request, whatever happens.

        Args:
            contents: What is to be interpreted.
            purpose: `CAPTION` or `CANARY`.
            found: Takes what became of each content, by key. A content that was never asked about, because the budget
                had no room for it, is not among them; one whose repair had no room has the problem `NO_ROOM`.
            places: Item and pixels of the contents whose records are stored.

        Raises:
            EngineUnavailableError: As of `Interpreter.interpret`; what was answered until then is kept.
            EngineSetupError: Likewise.
        """
        open_ = list(contents)
        for attempt in range(self.config.parameters.tries):
            waiting = open_
            while waiting:
                asked, reserved = self._afford(waiting)
                if not asked:
                    break
                waiting = waiting[len(asked) :]
                spent, usd = self._ask(asked, attempt, purpose, found, places or {})
                self._on_budget("settle", reserved, spent, usd)
            if attempt:
                for content in waiting:
                    found[content.key] = found[content.key]._replace(problem=NO_ROOM, error_class=TRANSIENT)
            open_ = [c for c in open_ if c.key in found and found[c.key].error_class == INVALID]

    def _ask(
        self, contents: list[Content], attempt: int, purpose: str, found: dict[str, Outcome], places: Places
    ) -> tuple[int, float]:
        """Asks once, and keeps answers as they come, so that a kill loses none. Returns tokens and USD."""
        taken: set[int] = set()
        answers: list[Answer] = []
        price = self.config.interpreter.engine
        spent, usd = 0, 0.0
        stored: set[str] = set()
        billed = self.config.interpreter.kind == "endpoint"
        keeper = Keeper(lambda fresh: self._keep(fresh, purpose, places, stored), at_first=0.0 if billed else OWN_REST)

        def take(row: int, answer: Answer) -> None:
            nonlocal spent, usd
            content = contents[row]
            earlier = found[content.key].answers if content.key in found else ()
            found[content.key] = self._outcome(content, (*earlier, answer))
            taken.add(row)
            spent += sum(c.prompt_tokens + c.completion_tokens for c in answer.calls)
            usd += sum(price.usd(c.prompt_tokens, c.completion_tokens) for c in answer.calls)
            keeper.take(found[content.key])

        try:
            answers = self.interpreter.interpret(contents, attempt, take)
        except (EngineUnavailableError, EngineSetupError) as error:
            why = Problem(NEVER_ANSWERED, str(error))
            answers = [Answer(None, why, TRANSIENT, "error", "", "", calls) for calls in error.calls]
            raise
        finally:
            for row, answer in enumerate(answers):
                if row not in taken:
                    take(row, answer)
            keeper.finish()
        return spent, usd

    def _keep(self, outcomes: Sequence[Outcome], purpose: str, places: Places, stored: set[str]) -> None:
        """Puts answers on record. The store first: what it holds is paid for once.

        If a kill comes between the two, `caption_accounts.mend_accounts` enters what the ledger lacks.
        """
        # Comes again with the same answers after an error of the accounts.
        self._store([o for o in outcomes if o.content.key not in stored], places)
        stored.update(o.content.key for o in outcomes)
        self._keep_accounts(outcomes, purpose)

    def _outcome(self, content: Content, answers: tuple[Answer, ...]) -> Outcome:
        """What the last answer makes of a content."""
        last = answers[-1]
        if last.record is None:
            return Outcome(content, None, last.problem, last.error_class, answers)
        problem = record_problem(last.record, last.finish, self.config.rules, self.phrases)
        return Outcome(content, None if problem else last.record, problem, INVALID if problem else "", answers)

    def _afford(self, contents: list[Content]) -> tuple[list[Content], int]:
        """The contents that the budget has room for, and the tokens that were reserved for them."""
        if self.budget is None or not contents:
            return contents, 0
        most = self.interpreter.most_tokens(contents)
        room = int(self._on_budget("reserve", most))
        return contents[:room], sum(most[:room])

    def _on_budget(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the budget, wherever it is."""
        if self.budget is None:
            return None
        if isinstance(self.budget, Budget):
            return getattr(self.budget, method)(*arguments)
        import ray

        return ray.get(getattr(self.budget, method).remote(*arguments))

    def _keep_accounts(self, outcomes: Sequence[Outcome], purpose: str) -> None:
        """Writes a row of the call ledger for every request that the last answers took."""
        now = dt.datetime.now(dt.UTC)
        rows = [
            call_row(self.config, o.content.key, purpose, len(o.answers) - 1, request, call, self.gpus, now)
            for o in outcomes
            for request, call in enumerate(o.answers[-1].calls)
        ]
        self.config.warehouse.append(CALL_LEDGER, pa.Table.from_pylist(rows, CALL_LEDGER.schema))


def _image_is_gone(content: Content) -> Outcome:
    problem = Problem("image_missing", "The image store lost the image: run replay_dead_letters, which reads it again.")
    return Outcome(content, None, problem, DETERMINISTIC, ())


def _stored(outcome: Outcome, pixel_digest: Any, config: Config, now: dt.datetime) -> dict[str, Any]:
    assert outcome.record is not None
    prompt_tokens, completion_tokens = outcome.tokens()
    return {
        "content_key": outcome.content.key,
        **outcome.record.model_dump(),
        "evidence": outcome.answers[-1].prompt,
        "pixel_digest": None if pixel_digest is None else str(pixel_digest),
        "attempts": len(outcome.answers),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "caption_version": config.caption_version,
        "created_timestamp": now,
    }


def _dead(
    outcome: Outcome, item_id: str, config: Config, now: dt.datetime, earlier: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A dead letter.

    Args:
        outcome: What became of the content.
        item_id: An item that has it.
        config: The job's config.
        now: When it was given up.
        earlier: Its dead letters of earlier runs.
    """
    assert outcome.problem is not None
    fleeting = outcome.error_class == TRANSIENT
    # What fails in run after run, while others are answered, is the content's own fault, and costs each run anew.
    often = sum(row["error_class"] == TRANSIENT for row in earlier) + 1 >= TRANSIENT_RUNS
    return {
        "content_key": outcome.content.key,
        "item_id": item_id,
        "reason": outcome.problem.reason,
        "error_class": DETERMINISTIC if fleeting and often else outcome.error_class,
        "detail": outcome.problem.detail,
        "attempts": len(outcome.answers) + max((row["attempts"] for row in earlier), default=0),
        "caption_version": config.caption_version,
        "first_seen": min((row["first_seen"] for row in earlier), default=now),
        "created_timestamp": now,
    }


def trace_of(outcome: Outcome, item_id: str) -> dict[str, Any]:
    """The exchange about one content, for MLflow: prompt, answers, tokens, latency."""
    return {
        "item_id": item_id,
        "content_key": outcome.content.key,
        "prompt": outcome.answers[-1].prompt if outcome.answers else outcome.content.text,
        "has_image": outcome.content.image is not None,
        "record": outcome.record.model_dump(mode="json") if outcome.record else None,
        "problem": outcome.problem.reason if outcome.problem else "",
        "answers": [
            {"text": a.text, "finish": a.finish, "calls": [call._asdict() for call in a.calls]} for a in outcome.answers
        ],
    }
