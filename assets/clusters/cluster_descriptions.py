"""Cluster names: inputs are profiles and captions; the version is theirs with model and prompt."""

import dagster as dg

from assets.failures import data_errors_are_final
from assets.policies import LLM_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import LanguageModel, RayJobs, Tables
from models.identity import version_of
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import CLUSTER_DESCRIPTIONS, CLUSTER_PROFILES

CODE_VERSION = "1"


@dg.asset(
    key=["clusters", "cluster_descriptions"],
    group_name="clusters",
    kinds={"ray", "llm", "deltalake"},
    deps=[["clusters", "cluster_profiles"], ["captions", "item_captions"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    pool=LLM_POOL,
    metadata=definition_metadata(CLUSTER_DESCRIPTIONS),
    tags={"cost-class": "llm"},
)
@data_errors_are_final
def cluster_descriptions(
    context: dg.AssetExecutionContext, tables: Tables, ray_jobs: RayJobs, language_model: LanguageModel
) -> dg.MaterializeResult:
    """Name and one-sentence description of every cluster, by the language model, unlike those of its siblings.

    One row a cluster. Read by people. Where no answer was usable, label and middle titles stand in, and `written_by`
    says so. What was written for the same evidence is kept.
    If this is red: the model cannot be reached, as the message says; mend it and run `rematerialize_failed`.
    """
    report = Report(CLUSTER_DESCRIPTIONS)
    engine = language_model.engine()
    from ray_jobs.prompts import prompt_digest

    version = version_of(
        profiles=tables.version(CLUSTER_PROFILES),
        captions=tables.version(ITEM_CAPTIONS),
        engine=engine.identity,
        prompt=prompt_digest("cluster_description"),
        code=CODE_VERSION,
    )
    if tables.is_current(CLUSTER_DESCRIPTIONS, version):
        return report.unchanged(tables, version, {"llm_calls": 0})
    from ray_jobs.clusters import naming as cluster_naming

    on_gpu = engine.kind == "transformers" and engine.device == "cuda"
    done = ray_jobs.run(
        context,
        "clusters.naming",
        cluster_naming.Config(
            warehouse=tables.warehouse(),
            engine=engine,
            version=version,
            code_version=CODE_VERSION,
            gpus=float(on_gpu),
        ),
    )
    return report.result(
        version=version,
        data=tables.read(CLUSTER_DESCRIPTIONS),
        committed=done.committed,
        metadata=done.model_dump(exclude={"committed", "problems"})
        | {
            "usd": round(engine.usd(done.prompt_tokens, done.completion_tokens), 6),
            "problems": dg.MetadataValue.json(done.problems),
            "page": page(tables),
        },
    )


def page(tables: Tables) -> dg.MetadataValue:
    """Every cluster on one page: size, name, sentence and examples; the largest first."""
    profiles = tables.read(CLUSTER_PROFILES, ["cluster", "items", "example_titles"]).to_pylist()
    described = {row["cluster"]: row for row in tables.read(CLUSTER_DESCRIPTIONS).to_pylist()}
    lines = ["| cluster | items | name | description | written by | examples |", "|---|---|---|---|---|---|"]
    for row in sorted(profiles, key=lambda row: -row["items"])[:300]:
        said = described[row["cluster"]]
        cells = [row["cluster"], row["items"], said["name"], said["description"], said["written_by"]]
        shown = [str(c).replace("|", "/") for c in (*cells, "; ".join(row["example_titles"]))]
        lines.append(f"| {' | '.join(shown)} |")
    return dg.MetadataValue.md("\n".join(lines))
