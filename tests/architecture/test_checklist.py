"""Every asset fulfils the Dagster checklist; a new one that forgets an item fails here."""

import ast
from pathlib import Path

import dagster as dg
import pytest

from assets.policies import GPU_POOL, LLM_POOL
from orchestration.definitions import defs
from orchestration.reference import all_tables

ROOT = Path(__file__).resolve().parents[2]
CODE_LOCATION = defs()
GRAPH = CODE_LOCATION.resolve_asset_graph()
SPECS = {
    key: spec
    for assets in CODE_LOCATION.assets or []
    if isinstance(assets, dg.AssetsDefinition)
    for key, spec in assets.specs_by_key.items()
}
STAGES = {"interactions", "captions", "clusters", "personas", "vista", "features", "ranking", "experiments"}
CHECKS = {"schema", "volume", "semantic"}
READ_FROM_THE_SOURCE = {dg.AssetKey(["interactions", name]) for name in ("items", "users", "quarantine")}


def test_the_code_location_loads():
    dg.Definitions.validate_loadable(CODE_LOCATION)
    assert {key.path[0] for key in SPECS} == STAGES


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda k: k.to_user_string())
def test_asset_tells_what_on_call_and_analysts_need(key):
    spec = SPECS[key]
    assert len(key.path) == 2 and spec.group_name == key.path[0]
    first = (spec.description or "").strip().split("\n")[0]
    assert len(first) > 20 and first.endswith("."), "the first sentence says what the data is"
    assert "if this is red" in " ".join((spec.description or "").lower().split())
    assert spec.owners and 1 <= len(spec.kinds) <= 3
    assert {"tier", "pii", "cost-class", "slo"} <= set(spec.tags)
    wanted = {
        "dagster/uri",
        "dagster/table_name",
        "dagster/column_schema",
        "dagster/column_lineage",
        "dagster/code_references",
        "runbook",
        "mlflow",
    }
    assert wanted <= set(spec.metadata), f"missing {wanted - set(spec.metadata)}"
    assert spec.code_version
    assert spec.freshness_policy is not None
    assert spec.automation_condition is not None and spec.automation_condition.get_label()


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda k: k.to_user_string())
def test_asset_links_its_own_code(key):
    local, page = SPECS[key].metadata["dagster/code_references"].code_references
    assert ROOT / "assets" / key.path[0] in Path(local.file_path).parents, "not a decorator's file"
    name = Path(local.file_path).relative_to(ROOT).as_posix()
    assert page.url.endswith(f"/blob/main/{name}#L{local.line_number}")


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda k: k.to_user_string())
def test_column_lineage_names_columns_that_exist_upstream(key):
    contracts = {table.name: {c.name for c in table.columns} for table in all_tables()}
    contracts |= {
        k.to_user_string(): {c.name for c in s.metadata["dagster/column_schema"].columns} for k, s in SPECS.items()
    }
    above, waiting = set(), [key]
    while waiting:
        parents = GRAPH.get(waiting.pop()).parent_keys - above
        above |= parents
        waiting += parents
    lineage = SPECS[key].metadata["dagster/column_lineage"].deps_by_column
    assert lineage or key in READ_FROM_THE_SOURCE, "nobody said what its columns are made of"
    for column, sources in lineage.items():
        assert column in contracts[key.to_user_string()], column
        assert sources and len(set(sources)) == len(sources), column
        for source in sources:
            assert source.asset_key in above, f"{column}: {source.asset_key} is not upstream"
            assert source.column_name in contracts[source.asset_key.to_user_string()], f"{column}: {source}"


def test_column_lineage_of_features_is_what_the_join_reads():
    from assets.features.joining import FEATURES
    from assets.features.published_views import BY_NAME

    lineage = SPECS[dg.AssetKey(["features", "training_set"])].metadata["dagster/column_lineage"].deps_by_column
    for column, (view, feature) in FEATURES.items():
        (source,) = lineage[column]
        assert (source.asset_key.to_user_string(), source.column_name) == (BY_NAME[view].table.name, feature), column


def test_column_lineage_of_scores_is_what_the_rankers_read():
    from assets.ranking.specs import CANDIDATES
    from ray_jobs.ranking.data import FEATURE_REFS, HELD_REFS, feature_refs

    for spec in CANDIDATES:
        lineage = SPECS[dg.AssetKey(["ranking", spec.name])].metadata["dagster/column_lineage"].deps_by_column
        read = {s.column_name for s in lineage["score"] if s.asset_key.path == ["features", "training_set"]}
        served = set(feature_refs(spec.kind, spec.inputs)) - set(HELD_REFS.values())
        assert {FEATURE_REFS[c] for c in read if c in FEATURE_REFS} == served, spec.name


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda k: k.to_user_string())
def test_what_needs_a_model_server_or_a_gpu_waits_for_its_pool(key):
    kinds, pool = set(SPECS[key].kinds), GRAPH.get(key).assets_def.op.pool
    if "llm" in kinds:
        assert pool == LLM_POOL and SPECS[key].tags["cost-class"] == "llm"
    elif kinds & {"pytorch", "huggingface"}:
        assert pool == GPU_POOL


def test_every_check_result_states_its_severity():
    for path in (ROOT / "assets").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("AssetCheckResult"):
                stated = {argument.arg for argument in call.keywords}
                assert "severity" in stated, f"{path.relative_to(ROOT)}:{call.lineno}"


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda k: k.to_user_string())
def test_asset_reports_the_same_runtime_metadata(key):
    """Each materialization comes out of `Report`, which adds rows, seconds, memory, sample and plot."""
    tree = ast.parse(Path(SPECS[key].metadata["dagster/code_references"].code_references[0].file_path).read_text())
    made = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith("MaterializeResult")]
    reported = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and ast.unparse(n.func) in ("report.result", "report.unchanged")
    ]
    assert reported and not made


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda k: k.to_user_string())
def test_asset_has_checks_of_all_kinds(key):
    names = {check.name for check in GRAPH.asset_check_keys if check.asset_key == key}
    assert names >= CHECKS, f"missing {CHECKS - names}"


@pytest.mark.parametrize("key", sorted(SPECS), ids=lambda k: k.to_user_string())
def test_asset_retries_transient_errors_with_jitter(key):
    policy = GRAPH.get(key).assets_def.op.retry_policy
    assert policy is not None and policy.jitter is not None and policy.max_retries <= 3


def test_what_feeds_training_or_serving_is_guarded_by_blocking_checks():
    for key in SPECS:
        if GRAPH.get(key).child_keys:
            assert [c for c in GRAPH.asset_check_keys if c.asset_key == key and GRAPH.get(c).blocking], key


JOBS = {job.name: job for job in CODE_LOCATION.resolve_all_job_defs() if not job.name.startswith("__")}


def test_jobs_are_named_by_intent():
    wanted = {"refresh_daily", "rematerialize_failed", "rebuild_clusters", "replay_quarantine", "rollback_model"}
    assert wanted <= set(JOBS)
    assert all(job.description and job.tags.get("intent") for job in JOBS.values())


def test_every_link_of_an_alert_leads_to_a_page():
    from orchestration.settings import Settings
    from orchestration.watch import Directory

    settings = Settings()
    directory = Directory(GRAPH, settings)
    links = [directory.runbook(key) for key in SPECS] + [directory.runbook(None)]
    links += [directory.job_page(name) for name in (*JOBS, "__ASSET_JOB")]
    for link in links:
        assert (ROOT / link.removeprefix(f"{settings.source_base}/")).is_file(), link


def test_every_kind_of_alert_is_in_the_runbook():
    from orchestration import persona_watch, watch

    page = (ROOT / "docs/how-to/runbooks/alerts.md").read_text()
    trees = [ast.parse(Path(module.__file__).read_text()) for module in (watch, persona_watch)]
    kinds = {
        constant.value
        for tree in trees
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Alert"
        for argument in call.keywords
        if argument.arg == "kind"
        for constant in ast.walk(argument.value)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    assert kinds >= {"run_failure", "check", "freshness", "quarantine", "queue", "personas", "daemon"}
    for kind in kinds:
        assert f"| `{kind}`" in page, kind
