"""Job: a name and a sentence for every cluster, written by the language model from member titles and captions.

Clusters are named from the largest down; whoever comes later may not take what a sibling has. What was written for the
same evidence by the same model is taken over from the standing table.
"""

import datetime as dt
import functools
import sys
from typing import Any

import polars as pl
import pyarrow as pa
import pydantic

from models.identity import version_of
from models.language.captions import clean
from models.language.labels import MAX_TITLE, plain, topic
from models.semantic_ids.descriptions import MODEL, Description, of_terms, parsed, problem_of
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.language.engine import LanguageEngineConfig, Message, Usage, load_engine
from ray_jobs.prompts import load_prompt, prompt_digest
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import CLUSTER_DESCRIPTIONS, CLUSTER_PROFILES
from ray_jobs.warehouse import Warehouse

PROMPT = "cluster_description"
NO_REPEAT_NGRAM = 3


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    engine: LanguageEngineConfig = pydantic.Field(description="The language model.")
    version: str = pydantic.Field(description="Version of the table that is written.")
    code_version: str = pydantic.Field(description="Version of the code; part of every content key.")
    max_new_tokens: int = pydantic.Field(48, ge=8, description="Token limit of an answer.")
    num_captions: int = pydantic.Field(3, ge=0, description="Captions of middle items that the model sees.")
    cpus: float = pydantic.Field(1, gt=0, description="CPUs, and threads, of the model.")
    gpus: float = pydantic.Field(0, ge=0, description="GPUs of the model.")


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    num_clusters: int
    num_by_model: int
    num_cached: int
    llm_calls: int
    prompt_tokens: int
    completion_tokens: int
    problems: dict[str, int]
    committed: bool


class Group(pydantic.BaseModel, frozen=True):
    """A cluster as the prompt needs it."""

    cluster: int
    label: str
    titles: list[str]
    captions: list[str]


@functools.cache
def messages() -> tuple[Message, ...]:
    """Instruction and examples."""
    said: dict[str, Any] = load_prompt(PROMPT)["text"]
    made = [Message("system", said["system"])]
    for example in said["examples"]:
        shown = Group(cluster=0, label=example["topic"], titles=example["titles"], captions=example["captions"])
        made += [Message("user", ask(shown, repair=False)), Message("assistant", example["answer"])]
    return tuple(made)


def ask(group: Group, *, repair: bool) -> str:
    """The user message of a cluster. The second try leaves the captions out: a small model copies them."""
    lines = [f"topic: {topic(group.label)}", f"titles: {'; '.join(map(plain, group.titles))}"]
    if group.captions and not repair:
        lines.append(f"captions: {' '.join(clean(c, 2 * MAX_TITLE) for c in group.captions)}")
    return "\n".join(["<group>", *lines, "</group>"])


def content_key(group: Group, config: Config) -> str:
    """Identity of what decides a cluster's description, but for its siblings."""
    return version_of(
        group=group.model_dump(exclude={"cluster"}),
        prompt=prompt_digest(PROMPT),
        engine=config.engine.identity,
        max_new_tokens=config.max_new_tokens,
        code=config.code_version,
    )


def describe(
    config: Config, groups: list[Group], taken: list[Description]
) -> tuple[list[Description], dict[str, int], Usage]:
    """Describes clusters, the first ones first; runs where the model is.

    Args:
        config: The job's knobs.
        groups: Clusters.
        taken: Descriptions that stand already.

    Returns:
        The descriptions, how often each problem was met, and what was spent.
    """
    if config.engine.kind == "transformers":
        import torch

        torch.set_num_threads(max(int(config.cpus), 1))
    engine, told = load_engine(config.engine), [m.content for m in messages() if m.role != "user"]
    made: dict[int, Description] = {}
    problems: dict[str, int] = {}
    for repair in (False, True):
        waiting = [group for group in groups if group.cluster not in made]
        if not waiting:
            break
        answers = engine.complete(
            list(messages()),
            [ask(group, repair=repair) for group in waiting],
            config.max_new_tokens,
            no_repeat_ngram=NO_REPEAT_NGRAM,
        )
        for group, answer in zip(waiting, answers, strict=True):
            found = problem_of(
                answer.text,
                terms=[group.label, *group.titles, *group.captions],
                titles=group.titles,
                prompt=told,
                siblings=[*taken, *made.values()],
                truncated=answer.finish == "length",
            )
            if found is None:
                made[group.cluster] = Description(*parsed(answer.text), MODEL)
            else:
                problems[found.reason] = problems.get(found.reason, 0) + 1
    for group in groups:
        if group.cluster not in made:
            made[group.cluster] = of_terms(group.label, group.titles, [*taken, *made.values()])
    return [made[group.cluster] for group in groups], problems, engine.usage


def read_groups(config: Config) -> list[Group]:
    """Clusters with the captions of their middle items, the largest first."""
    columns = ["cluster", "label", "items", "example_item_ids", "example_titles"]
    profiles = config.warehouse.read(CLUSTER_PROFILES, columns).to_pylist()
    captions = pl.DataFrame(config.warehouse.read(ITEM_CAPTIONS, ["item_id", "caption"]))
    said = dict(captions.drop_nulls().iter_rows())
    return [
        Group(
            cluster=row["cluster"],
            label=row["label"],
            titles=list(dict.fromkeys(row["example_titles"])),
            captions=[said[i] for i in row["example_item_ids"] if i in said][: config.num_captions],
        )
        for row in sorted(profiles, key=lambda row: (-row["items"], row["cluster"]))
    ]


def run(config: Config) -> Result:
    """Writes `CLUSTER_DESCRIPTIONS`."""
    import ray

    groups = read_groups(config)
    keys = {group.cluster: content_key(group, config) for group in groups}
    standing: dict[str, Description] = {}
    if config.warehouse.exists(CLUSTER_DESCRIPTIONS):
        names = ["content_key", "name", "description", "written_by"]
        rows = config.warehouse.read(CLUSTER_DESCRIPTIONS, names).to_pylist()
        standing = {r["content_key"]: Description(r["name"], r["description"], r["written_by"]) for r in rows}
    made = {g.cluster: standing[keys[g.cluster]] for g in groups if keys[g.cluster] in standing}
    missing = [g for g in groups if g.cluster not in made]
    problems: dict[str, int] = {}
    spent = Usage()
    if missing:
        task: Any = ray.remote(describe).options(num_cpus=config.cpus, num_gpus=config.gpus)
        written, problems, spent = ray.get(task.remote(config, missing, list(made.values())))
        made |= {g.cluster: d for g, d in zip(missing, written, strict=True)}
    now = dt.datetime.now(dt.UTC)
    rows = [
        {
            "cluster": group.cluster,
            "name": made[group.cluster].name,
            "description": made[group.cluster].sentence,
            "written_by": made[group.cluster].written_by,
            "content_key": keys[group.cluster],
            "created_timestamp": now,
        }
        for group in sorted(groups, key=lambda g: g.cluster)
    ]
    table = pa.Table.from_pylist(rows, CLUSTER_DESCRIPTIONS.schema)
    written_table = config.warehouse.write(CLUSTER_DESCRIPTIONS, table, config.version)
    return Result(
        num_clusters=len(groups),
        num_by_model=sum(d.written_by == MODEL for d in made.values()),
        num_cached=len(groups) - len(missing),
        llm_calls=spent.calls,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        problems=problems,
        committed=written_table.committed,
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
