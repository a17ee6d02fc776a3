"""Job: drains the queue of persona refreshes. Workers lease users, write what is missing, and serve what is safe.

The order makes it safe to kill a worker anywhere: the text goes to the store, which is keyed by content; then the
persona to its table and online; then the lease ends. Whoever takes over finds what was paid for.
"""

import contextlib
import functools
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl
import pydantic

from models.personas.freshness import FreshnessConfig, ServedPersona
from models.personas.safety import SafetyConfig
from ray_jobs.actors import RESTARTS
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.language.engine import EngineSetupError, EngineUnavailableError, LanguageEngine, Usage, load_engine
from ray_jobs.personas.batches import LeasedUsers
from ray_jobs.personas.leases import Holding, Value, patiently
from ray_jobs.personas.prompts import NEVER_ANSWERED
from ray_jobs.personas.queue import (
    INELIGIBLE,
    REFRESHED,
    UNCHANGED,
    UNSAFE,
    Lease,
    QueueUnavailableError,
    RefreshQueue,
)
from ray_jobs.personas.safety import SafetyFilter
from ray_jobs.personas.sql_queue import PersonaQueue
from ray_jobs.personas.store import PersonaStore, StoreConfig
from ray_jobs.personas.writing import Config as WritingConfig
from ray_jobs.personas.writing import PersonaWriter, assemble, known_keys, make_stores, resources_of
from ray_jobs.tables.personas import PERSONA_DEAD_LETTERS, PERSONA_STORE, PERSONA_VERDICTS, REFRESHED_PERSONAS

logger = logging.getLogger("belvedere.personas")

# Between two looks at how many files the workers have made.
COMPACT_SECONDS = 30.0
STORES = (PERSONA_STORE, PERSONA_DEAD_LETTERS, REFRESHED_PERSONAS, PERSONA_VERDICTS)


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    writing: WritingConfig = pydantic.Field(description="How personas are written; as of the job `persona_writing`.")
    queue: PersonaQueue = pydantic.Field(description="The queue.")
    store: StoreConfig = pydantic.Field(description="The online store.")
    owner: str = pydantic.Field(description="Name of this drain: its workers' leases carry it.")
    freshness: FreshnessConfig = pydantic.Field(FreshnessConfig(), description="The window of the clusters.")
    safety: SafetyConfig = pydantic.Field(SafetyConfig(), description="What is shown to nobody.")
    users_per_lease: int = pydantic.Field(256, ge=1, description="Users that are leased, and planned, together.")
    lease_seconds: float = pydantic.Field(120.0, gt=0, description="How long a lost worker's users wait.")
    token_budget: int = pydantic.Field(0, ge=0, description="Tokens after which a worker leases no more; 0: no limit.")
    patience_seconds: float = pydantic.Field(120.0, ge=0, description="How long a worker waits for the queue.")
    pause_seconds: float = pydantic.Field(60.0, ge=0, description="Pause of users when the model is away.")
    drain_seconds: float = pydantic.Field(120.0, ge=0, description="What a worker may take to end when it is told to.")


class Counts(NamedTuple):
    """What workers did.

    Attributes:
        leased: Users that were leased.
        refreshed: Users whose persona was written anew and is served.
        unchanged: Users whose clusters have not changed: no model was asked.
        cached: Of the refreshed, those whose text had been paid for before.
        unsafe: Users whose new text is shown to nobody; the last safe one goes on serving.
        withdrawn: Users whose last text is unsafe to the filter in force, without a new one: they are served none.
        ineligible: Users with too little history.
        retried: Users that went back to the queue.
        failed: Users that were given up: dead letters.
        lost: Users whose lease somebody else had taken over.
        llm_calls: Prompts that were answered.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens generated.
    """

    leased: int = 0
    refreshed: int = 0
    unchanged: int = 0
    cached: int = 0
    unsafe: int = 0
    withdrawn: int = 0
    ineligible: int = 0
    retried: int = 0
    failed: int = 0
    lost: int = 0
    llm_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Result(pydantic.BaseModel, frozen=True):
    """What the job did: the sums of `Counts`."""

    counts: Counts


class PersonaRefresher:
    """Actor: leases users and refreshes their personas until nothing is due.

    Args:
        config: The job's knobs.
        number: Which of the job's workers this is; a worker that is started again takes its leases over.
        engine: A loaded engine; loads the configured one when the first text is to be written.
        threads: CPU threads of an in-process model; 0 leaves them as they are.
    """

    def __init__(self, config: Config, number: int = 0, engine: LanguageEngine | None = None, threads: int = 0):
        self.config, self.threads = config, threads
        self.owner = f"{config.owner}-{number}"
        self.warehouse = config.writing.warehouse
        self.queue: RefreshQueue = config.queue
        self.store: PersonaStore = config.store.open()
        self.writer: PersonaWriter | None = None
        self.engine = engine
        self.judge: LanguageEngine | None = None
        self.safety = SafetyFilter(config.safety, self.warehouse, config.writing.engine, self._judging)
        self.stopping = threading.Event()
        self.counted = Counts()

    def stop(self) -> None:
        """Has the worker end after the users in hand; the others go back to the queue."""
        self.stopping.set()

    def drain(self) -> Counts:
        """Works until nothing is due, the budget is spent or `stop` is called."""
        config = self.config
        self._ask(lambda: self.queue.recover(self.owner))
        while not self.stopping.is_set() and not self._spent():
            leases = self._ask(lambda: self.queue.lease(config.users_per_lease, self.owner, config.lease_seconds))
            if not leases:
                break
            self._count(leased=len(leases))
            with Holding(self.queue, leases, config.lease_seconds) as holding:
                self(leases, holding)
        return self.counted

    def __call__(self, leases: Sequence[Lease], holding: Holding) -> None:
        """Refreshes users, some at a time; what an error keeps from being begun goes back to the queue."""
        size = self.config.writing.users_per_batch
        left = list(leases)
        pause = 0.0
        try:
            work = LeasedUsers.of(left, self.config.writing, self.config.freshness, self.store)
            while left and not self.stopping.is_set() and not self._spent():
                batch = left[:size]
                # Whoever has taken a user over pays for it; it must not be paid for here as well.
                held = self._held(batch)
                self._count(lost=len(batch) - len(held))
                self._refresh_or_isolate(work, held)
                holding.finished(batch)
                left = left[size:]
        except QueueUnavailableError:
            left = []  # They come back when their leases end.
            raise
        except Exception:
            pause = self.config.pause_seconds
            raise
        finally:
            holding.finished(left)
            if left:
                self._count(retried=self._ask(lambda: self.queue.release(left, pause)))

    def _refresh_or_isolate(self, work: LeasedUsers, batch: list[Lease]) -> None:
        """Refreshes a batch; after an error each user alone, so that one cannot keep the others from it."""
        if not batch:
            return
        try:
            self._refresh(work, batch)
            return
        except (QueueUnavailableError, EngineUnavailableError, EngineSetupError):
            raise
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            logger.warning("personas: %s in a batch of %d users: each is tried alone", type(error).__name__, len(batch))
        errors: dict[Lease, Exception] = {}
        for lease in batch:
            try:
                self._refresh(work, [lease])
            except (QueueUnavailableError, EngineUnavailableError, EngineSetupError):
                raise
            except Exception as error:
                errors[lease] = error
        if len(errors) == len(batch):
            raise errors[batch[0]]  # Not the users: whatever all of them need is away.
        for lease, failed in errors.items():
            self._fail(lease, failed)

    def _fail(self, lease: Lease, error: Exception) -> None:
        # Without the error's own words, which may be about the user.
        said = f"{type(error).__name__} while the persona was refreshed; the worker's log has the traceback."
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.error("personas: row %d of the queue failed with %s:\n%s", lease.id, type(error).__name__, where)
        held = self._ask(lambda: self.queue.fail(lease, said, retryable=True))
        self._count(**{"retried" if held else "lost": 1})

    def _refresh(self, work: LeasedUsers, batch: list[Lease]) -> None:
        before = self._usage()
        try:
            self._refresh_all(work, batch)
        finally:
            spent = self._usage().minus(before)
            tokens = {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}
            self._count(llm_calls=spent.calls, **tokens)

    def _refresh_all(self, work: LeasedUsers, batch: list[Lease]) -> None:
        ends: list[tuple[Lease, str, str]] = []
        served: list[ServedPersona] = []
        written: list[Lease] = []
        # The filter may be another one than when these were written.
        standing = {p.content_key: p.persona for lease in batch if (p := work.standing.get(lease.user_id))}
        unsafe = self.safety(standing)
        barred = {u for u, p in work.standing.items() if p.content_key in unsafe}
        for lease in batch:
            if lease.user_id not in work.planned:
                ends.append((lease, INELIGIBLE, "Too little history for a persona."))
            elif work.is_unchanged(lease.user_id) and lease.user_id not in barred:
                served.append(work.confirmed(lease.user_id))
                ends.append((lease, UNCHANGED, ""))
            else:
                written.append(lease)
        rows, cached = self._texts(work, written)
        flags = self.safety({row["content_key"]: row["persona"] for row in rows.values()})
        good: list[tuple[Lease, dict[str, Any]]] = []
        without: list[Lease] = []
        for lease in written:
            row = rows.get(lease.user_id)
            if row is None:
                without.append(lease)
            elif flag := flags.get(row["content_key"]):
                ends.append((lease, UNSAFE, f"The safety filter found {flag.category} ({flag.rule})."))
            else:
                good.append((lease, row))
                ends.append((lease, REFRESHED, ""))
        self._publish(work, batch, good, served, barred)
        done = self._ask(lambda: self.queue.complete(ends))
        # Forgotten, or never there: no row must keep such a user's id.
        unknown = [lease.user_id for lease in batch if lease.user_id not in work.clusters]
        if unknown:
            self._ask(lambda: self.queue.remove(unknown))
        names = [outcome if held else "lost" for (_, outcome, _), held in zip(ends, done, strict=True)]
        self._count(**{name: names.count(name) for name in set(names)})
        self._count(cached=sum(row["content_key"] in cached for _, row in good))
        for lease in without:
            self._give_up(work, lease)

    def _texts(self, work: LeasedUsers, leases: list[Lease]) -> tuple[dict[str, dict[str, Any]], set[str]]:
        """Rows of personas by user, written where the store lacks them; and the keys that it had before."""
        if not leases:
            return {}, set()
        users = work.plan.users.filter(pl.col("user_id").is_in([lease.user_id for lease in leases]))
        wanted = users.select("content_key", "request").unique("content_key", maintain_order=True)
        known = set(known_keys(self.warehouse, wanted["content_key"].to_list())["content_key"])
        if set(wanted["content_key"]) - known:
            # It leaves out itself what is stored or dead.
            self._loaded()(wanted.to_arrow())
        found = assemble(self.config.writing, work.plan._replace(users=users))
        return {row["user_id"]: row for row in found.iter_rows(named=True)}, known

    def _give_up(self, work: LeasedUsers, lease: Lease) -> None:
        reason = work.reason(lease.user_id)
        said = f"No usable text ({reason}): see personas/dead_letters."
        held = self._ask(lambda: self.queue.fail(lease, said, retryable=reason == NEVER_ANSWERED))
        self._count(**{"lost" if not held else "retried" if reason == NEVER_ANSWERED else "failed": 1})

    def _publish(
        self,
        work: LeasedUsers,
        batch: list[Lease],
        good: list[tuple[Lease, dict[str, Any]]],
        served: list[ServedPersona],
        barred: set[str],
    ) -> None:
        """Writes to the table, then online: only users whose lease is still held a moment before."""
        held = {lease.id for lease in self._held(batch)}
        still = {lease.user_id for lease in batch if lease.id in held}
        good = [(lease, row) for lease, row in good if lease.id in held]
        self.warehouse.append(REFRESHED_PERSONAS, work.table(good))
        online = [p for p in served if p.user_id in still] + [work.served(row) for _, row in good]
        if online:
            self.store.write(online)
        gone = sorted(barred & still - {p.user_id for p in online})
        if gone:
            self.store.remove(gone)
            self._count(withdrawn=len(gone))

    def _loaded(self) -> PersonaWriter:
        if self.writer is None:
            self.writer = PersonaWriter(self.config.writing, self.engine, self.threads)
            self.engine = self.writer.engine
        return self.writer

    def _judging(self) -> LanguageEngine:
        """The engine that judges: never a student, who was taught to write personas and nothing else."""
        if self.config.writing.student is None:
            return self._loaded().engine
        if self.judge is None:
            self.judge = load_engine(self.config.writing.engine)
        return self.judge

    def _usage(self) -> Usage:
        spent = [engine.usage for engine in (self.engine, self.judge) if engine is not None]
        return functools.reduce(Usage.plus, spent, Usage())

    def _spent(self) -> bool:
        tokens = self.counted.prompt_tokens + self.counted.completion_tokens
        return 0 < self.config.token_budget <= tokens

    def _held(self, leases: list[Lease]) -> list[Lease]:
        return self._ask(lambda: self.queue.renew(leases, self.config.lease_seconds))

    def _ask(self, call: Callable[[], Value]) -> Value:
        return patiently(call, self.config.patience_seconds)

    def _count(self, **more: int) -> None:
        self.counted = self.counted._replace(**{k: getattr(self.counted, k) + v for k, v in more.items()})


@contextlib.contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, while this runs in the process's main thread."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_workers(config: Config) -> list[Any]:
    """The actors. One that dies is started again under its name, takes its leases over, and goes on."""
    import ray

    cpus, gpus = resources_of(config.writing)
    # Two threads: one works, one hears `stop`. Calls are tried again as long as the actor is started again: a lost node
    # refuses several connections before anybody knows that it is lost.
    actor: Any = ray.remote(PersonaRefresher).options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=-1, max_concurrency=2
    )
    return [actor.remote(config, n, None, max(int(cpus), 1)) for n in range(config.writing.num_actors)]


def run(config: Config) -> Result:
    """Drains the queue once.

    Raises:
        KeyboardInterrupt: If SIGTERM or SIGINT came; the workers have ended what they had in hand.
    """
    import ray

    make_stores(config.writing.warehouse, *STORES)
    workers = start_workers(config)
    pending = [worker.drain.remote() for worker in workers]
    with _told_to_end() as told:
        left, until, compacted = pending, 0.0, time.monotonic()
        while left and not (until and time.monotonic() > until):
            _, left = ray.wait(left, num_returns=len(left), timeout=1.0)
            # As it goes: workers look every batch up in these, and each batch is a file.
            if time.monotonic() - compacted > COMPACT_SECONDS:
                _compact(config)
                compacted = time.monotonic()
            if told.is_set() and not until:
                until = time.monotonic() + config.drain_seconds
                for worker in workers:
                    worker.stop.remote()
    if told.is_set():
        raise KeyboardInterrupt
    counts = Counts(*map(sum, zip(*ray.get(pending), strict=True)))
    _compact(config)
    config.queue.prune(config.freshness.max_age_seconds)
    return Result(counts=counts)


def _compact(config: Config) -> None:
    for table in STORES:
        config.writing.warehouse.compact(table)


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
