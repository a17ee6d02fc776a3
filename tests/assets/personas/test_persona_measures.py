"""The measures, run as Dagster runs them, on personas of a real engine with a hand-written model."""

import datetime as dt
import json
import shutil
from collections.abc import Callable
from typing import NamedTuple

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from assets.clusters.cluster_profiles import cluster_profiles
from assets.personas import measure_checks
from assets.personas.measure_report import tables_markdown
from assets.personas.measure_tracking import metrics_of
from assets.personas.persona_measures import persona_measures
from assets.personas.user_personas import user_personas
from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig
from orchestration.resources.language_model import EmbeddedLanguageModel
from orchestration.resources.tables import LocalTables
from orchestration.resources.text_encoder import PackagedTextEncoder
from orchestration.resources.tracking import EmbeddedTracking
from ray_jobs import embedding_store
from ray_jobs.personas import writing as persona_writing
from ray_jobs.personas.examined import Held, Said, is_kept, keep, parameters_of, read_examined
from ray_jobs.personas.panels import before, choose, later_likes, make_panel, read_parameters, read_world
from ray_jobs.personas.planning import earlier, find_all, read_history
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.personas import (
    PERSONA_COVERAGE,
    PERSONA_MEASURES,
    PERSONA_STORE,
    PERSONA_STUDENTS,
    USER_PERSONAS,
)
from ray_jobs.text_encoding import TextEncoder
from tests.assets.clusters.seeding import seed_captions
from tests.assets.personas.parrot import USABLE, write_parrot
from tests.assets.personas.test_personas import seed_clusters
from tests.assets.ranking.test_content_ablation import OnTheTestsCluster
from tests.factories import CREATED, seed_interactions

pytestmark = pytest.mark.ray
EVERY_CHECK = [c for c in vars(measure_checks).values() if isinstance(c, dg.AssetChecksDefinition)]
USERS = 24
WARMED_UP = InterestConfig(min_events=3, min_likes=2, max_interests=3)


class Lineage(NamedTuple):
    """What the tests share: one run of personas by terms and of their measures."""

    tables: LocalTables
    tracking: EmbeddedTracking
    materialize: Callable[..., dg.ExecuteInProcessResult]
    result: dg.ExecuteInProcessResult


def seed(tables) -> None:
    """Half of each history comes after the cut, so that there is something to be right about."""
    seed_interactions(tables, num_users=USERS, num_items=60, events_per_user=14)
    splits = pl.DataFrame(tables.read(SPLITS))
    at = pl.when(pl.col("position") < 8).then(pl.lit("train"))
    by_time = at.when(pl.col("position") < 11).then(pl.lit("valid")).otherwise(pl.lit("test"))
    splits = splits.with_columns(by_time.alias("global_time"), by_time.alias("split"))
    tables.write(SPLITS, splits.to_arrow().cast(SPLITS.schema), "cut")
    seed_captions(tables)
    # As wide as the encoder's vectors are.
    seed_clusters(tables, width=384)


def in_this_process(blocks, actor, arguments, **kwargs):
    """The same actors without processes of their own, of which each would take seconds to start."""
    made = actor(*arguments)
    return pa.concat_tables([made(block) for block in blocks])


@pytest.fixture(scope="module")
def lineage(tmp_path_factory, migrated_mlflow, ray_cluster):
    home = tmp_path_factory.mktemp("measures")
    tables = LocalTables(warehouse_root=f"{home}/warehouse", artifact_root=f"{home}/artifacts")
    shutil.copy(migrated_mlflow, home / "mlflow.db")
    tracking = EmbeddedTracking(tracking_uri=f"sqlite:///{home}/mlflow.db", artifact_root=f"{home}/mlflow")
    parrot = write_parrot(tmp_path_factory.mktemp("parrot"), USABLE)
    seed(tables)
    with dg.instance_for_test(temp_dir=str(home)) as instance, pytest.MonkeyPatch.context() as patch:

        class Written:
            def __init__(self, *arguments, **kwargs):
                self.rows = in_this_process(*arguments, **kwargs)

            def iter_rows(self):
                return iter(self.rows.to_pylist())

        patch.setattr(persona_writing, "map_blocks", Written)
        patch.setattr(
            embedding_store,
            "encode_on_ray",
            lambda data, encoder: [in_this_process([data], TextEncoder, (encoder,))] if data.num_rows else [],
        )

        def materialize(assets, tables=tables, **config):
            knobs = {"min_events": 3, "min_likes": 2, "grouping": "salient_terms"} | config
            ops = {
                "personas__user_personas": {"config": knobs},
                "personas__persona_measures": {"config": {"resamples": 50, "draws": 2, "budget": 5}},
            }
            names = {"__".join(key.path) for a in assets if isinstance(a, dg.AssetsDefinition) for key in a.keys}
            return dg.materialize(
                assets,
                instance=instance,
                raise_on_error=False,
                run_config={"ops": {name: found for name, found in ops.items() if name in names}},
                resources={
                    "tables": tables,
                    "tracking": tracking,
                    "ray_jobs": OnTheTestsCluster(),
                    "text_encoder": PackagedTextEncoder(),
                    "language_model": EmbeddedLanguageModel(cache_dir="", folder=str(parrot)),
                },
            )

        result = materialize([cluster_profiles, user_personas, persona_measures, *EVERY_CHECK])
        yield Lineage(tables, tracking, materialize, result)


def said(result):
    assert result.success, [e.event_specific_data.error.to_string()[-1500:] for e in result.get_step_failure_events()]
    (made,) = result.asset_materializations_for_node("personas__persona_measures")
    return {name: value.value for name, value in made.metadata.items()}


def test_measures_stand_in_the_table_the_checks_and_mlflow(lineage):
    seeded, tracking, materialize, result = lineage
    told = said(result)
    rows = pl.DataFrame(seeded.read(PERSONA_MEASURES))
    value = {
        (r["personas"], r["split_rule"], r["period"], r["measure"], r["arm"], r["baseline"]): r for r in rows.to_dicts()
    }
    assert value["written", "", "", "instruction_following_rate", "own", ""]["value"] == 1.0
    assert set(rows["personas"]) == {"written", "semantic_ids", "salient_terms"}
    assert set(rows.filter(pl.col("period") != "")["split_rule"]) == {"global_time", "leave_one_out"}
    assert (rows["low"] <= rows["high"]).all()
    for personas in ("semantic_ids", "salient_terms"):
        key = (personas, "global_time", "test")
        # Users like one genre: what they liked says more of what comes than what others liked.
        own, other = (value[*key, "next_cluster_hit_seen", arm, ""]["value"] for arm in ("own", "other_user"))
        assert own > other
        assert (
            value[*key, "recall_at_5", "own", ""]["num_users"]
            == value[*key, "recall_at_5", "unrestricted", ""]["num_users"]
        )
        valid = value[personas, "", "", "exploration_valid", "own", ""]["value"]
        assert valid > value[personas, "", "", "exploration_valid", "random_cluster", ""]["value"]
    assert told["choices_planned"] >= told["choices_from_store"] > 0
    checks = {
        c.check_name: c for c in result.get_asset_check_evaluations() if c.asset_key.path[-1] == "persona_measures"
    }
    assert set(checks) == {"schema", "volume", "semantic", "instructions_followed", "grounded", "specific", "retrieval"}
    assert checks["instructions_followed"].passed and checks["schema"].passed and checks["semantic"].passed
    assert not checks["grounded"].passed, "the hand-written model says the same of everybody"
    assert not checks["specific"].passed or value["written", "", "", "owner_mrr", "own", "other_user"]["low"] > 0
    assert told["personas_with_evidence"].count("user •••") == 10 and "u1 " not in told["personas_with_evidence"]
    assert "data:image/png" in told["plot"] and "| grounding_precision | own |" in told["measures"]

    client = tracking.connect("personas").MlflowClient()
    experiment = client.get_experiment_by_name("personas").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.data.metrics["written/grounding_precision/own"] == pytest.approx(told["grounding_precision"], abs=1e-4)
    assert run.data.metrics == pytest.approx(metrics_of(rows.to_dicts()))
    found = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert found >= {"measures.png", "measures.csv", "personas_with_evidence.json", "personas_with_evidence.md"}
    again = said(materialize([persona_measures]))
    assert again["unchanged"] and again["plot"] == told["plot"] and len(client.search_runs([experiment])) == 1
    assert again["personas_with_evidence"] == told["personas_with_evidence"]


def test_personas_by_terms_cite_what_their_users_liked(lineage):
    seeded = lineage.tables
    personas = pl.DataFrame(seeded.read(USER_PERSONAS))
    assert read_parameters(seeded.warehouse()).interests.grouping == "salient_terms"
    cited = personas.select("user_id", "interests").explode("interests").unnest("interests")
    assert not set(cited["label"]) <= set(read_world(seeded.warehouse()).clusters["label"]), "labels are the user's own"
    liked = pl.DataFrame(seeded.read(SPLITS)).filter(pl.col("label") == 1).select("user_id", "item_id")
    cited = cited.select("user_id", pl.col("evidence_item_ids").alias("item_id")).explode("item_id")
    assert cited.height > USERS and cited.join(liked, on=["user_id", "item_id"], how="anti").is_empty()


def test_an_examined_student_is_measured_beside_its_teacher_on_what_neither_saw(lineage):
    """The teacher says what it should, of all interests; the student the same of each first one, by one item."""
    seeded = lineage.tables
    warehouse, users = seeded.warehouse(), [f"u{n}" for n in range(12)]
    config, exploration = WARMED_UP, ExplorationConfig()
    past = earlier(read_history(warehouse, users, 0.25))
    found = find_all(warehouse, past, config, exploration)
    held, texts = [], {"teacher": [], "student": []}
    for user in users:
        interests, candidates = (
            f.filter(pl.col("user_id") == user).to_dicts() for f in (found.interests, found.candidates)
        )
        seen = past.filter(pl.col("user_id") == user)["position"].max()
        request = found.requests[user].model_dump_json()
        held.append(Held(user, request, {}, [], [], interests, candidates, seen))
        for writer, kept, items in (("teacher", interests, 3), ("student", interests[:1], 1)):
            texts[writer].append(
                [Said(i["cluster"], f"Likes {i['label']} a lot.", i["evidence_titles"][:items]) for i in kept]
            )
    assert sum(map(len, texts["teacher"])) > sum(map(len, texts["student"])) == len(users)
    for writer, sentences in texts.items():
        rows = [(True, [s.cluster for s in told], []) for told in sentences]
        keep(warehouse, writer, "one", "s1", parameters_of(config, exploration), held, sentences, rows)
        assert is_kept(warehouse, writer, "one") and not is_kept(warehouse, writer, "two")
    assert not read_examined(warehouse, read_world(warehouse)), "whose verdict is not in the table is not measured"
    judged = {c.name: {"string": "", "bool": False}.get(str(c.type), 0) for c in PERSONA_STUDENTS.columns}
    rows = [judged | {"writer": w, "student_version": "s1", "created_timestamp": CREATED} for w in texts]
    seeded.write(PERSONA_STUDENTS, pa.Table.from_pylist(rows, PERSONA_STUDENTS.schema), "judged")

    result = lineage.materialize([persona_measures, measure_checks.persona_measures_checks])
    told = said(result)
    assert all(c.passed for c in result.get_asset_check_evaluations())
    value = {
        (r["personas"], r["period"], r["measure"], r["arm"]): r
        for r in seeded.read(PERSONA_MEASURES).to_pylist()
        if r["split_rule"] == "held_events" and not r["baseline"]
    }
    of_teacher, of_student = ({k[1:] for k in value if k[0] == w} for w in ("teacher", "student"))
    assert of_teacher == of_student | {k for k in of_teacher if k[1].startswith("pairwise")}
    for measure, controls in {
        ("", "grounding_precision"): {"other_user"},
        ("", "sporadic_evidence"): {"random_cluster"},
        ("", "history_coverage"): {"popular", "raw_clusters", "other_user"},
        ("test", "recall_at_5"): {"unrestricted", "popular", "raw_clusters", "other_user"},
    }.items():
        assert {k[2] for k in of_student if k[:2] == measure} == controls | {"own"}, measure
    # No explorations are in it, so a persona is whole only where none were asked for.
    assert value["student", "", "sporadic_evidence", "own"]["value"] == 1.0, "one item shows little"
    assert value["student", "", "grounding_precision_two_items", "own"]["value"] == 0.0
    assert value["teacher", "", "sporadic_evidence", "own"]["value"] < 1.0
    shares = [value[w, "", "history_coverage", "own"]["value"] for w in ("student", "teacher")]
    assert 0 < shares[0] < shares[1]
    assert value["student", "test", "next_cluster_hit", "own"]["num_users"] > 0
    assert "student held_events" in told["measures"] and told["grounding_threshold_student"] > 0


def test_nobody_with_enough_history_is_no_error(lineage, tables):
    seed(tables)
    wanted = [cluster_profiles, user_personas, persona_measures, *EVERY_CHECK]
    result = lineage.materialize(wanted, tables=tables, min_events=100)
    told = said(result)
    assert told["dagster/row_count"] == 0 and told["measures"] == "Nobody has enough history to be measured."
    assert "fewer than two users" in told["left_out"]
    assert all(c.passed for c in result.get_asset_check_evaluations())


@pytest.mark.parametrize("rule", ["global_time", "leave_one_out"])
@pytest.mark.parametrize("grouping", ["semantic_ids", "salient_terms"])
def test_nothing_that_comes_later_reaches_a_persona_that_is_held_against_it(lineage, rule, grouping):
    """Every later event is replaced by an invented one, liked or not: personas, vectors and orders stay as they are."""
    warehouse = lineage.tables.warehouse()
    world, config = read_world(warehouse), InterestConfig(**(vars(WARMED_UP) | {"grouping": grouping}))
    users = [f"u{n}" for n in range(USERS)]
    history = read_history(warehouse, users)
    rng = np.random.default_rng(0)
    other = world.items.sample(history.height, with_replacement=True, seed=1)["item_id"]
    labels = history.select(pl.col("item_id").alias("_item"), "cluster", "label", "title").unique("_item")
    later = pl.col(rule) != "train"
    changed = (
        history.with_columns(
            pl.when(later).then(other).otherwise("item_id").alias("item_id"),
            pl.when(later).then(pl.Series(rng.random(history.height) < 0.5)).otherwise("liked").alias("liked"),
            pl.when(later).then(pl.col("timestamp") + dt.timedelta(days=9)).otherwise("timestamp").alias("timestamp"),
        )
        .drop("cluster", "label", "title")
        .join(labels, left_on="item_id", right_on="_item", how="left")
    )
    assert not changed.select("item_id", "liked").equals(history.select("item_id", "liked"))
    panels = []
    for events in (history, changed):
        past = before(events, rule, config)
        assert past[rule].unique().to_list() == ["train"]
        found = find_all(warehouse, past, config, ExplorationConfig())
        explorations, _ = choose(warehouse, found, {})
        panels.append(make_panel(world, users, past, found.interests, explorations, config))
    same, held = panels
    assert same.interests.height > 0 and same.interests.equals(held.interests)
    assert same.explorations.equals(held.explorations)
    for name in ("share_UC", "touched_UC", "history_UD"):
        assert np.array_equal(getattr(same, name), getattr(held, name)), name
    targets = later_likes(world, same, history, rule, "test")
    assert targets.height > 0
    met = same.met.select("user", "item")
    assert targets.join(met, on=["user", "item"], how="semi").is_empty()


def test_a_split_whose_training_part_comes_later_is_refused(lineage):
    history = read_history(lineage.tables.warehouse(), ["u0", "u1"])
    swapped = history.with_columns(pl.col("global_time").reverse().over("user_id"))
    with pytest.raises(ValueError, match="materialize interactions/splits again"):
        before(swapped, "global_time", WARMED_UP)


def test_the_choice_of_the_model_is_taken_where_the_content_is_the_same(lineage):
    seeded = lineage.tables
    warehouse, parameters = seeded.warehouse(), read_parameters(seeded.warehouse())
    history = read_history(warehouse, [f"u{n}" for n in range(USERS)])
    found = find_all(warehouse, history, parameters.interests, parameters.exploration)
    chosen, stored = choose(warehouse, found, parameters.identity)
    kept = pl.DataFrame(seeded.read(USER_PERSONAS)).select("user_id", "explorations").explode("explorations")
    kept = kept.drop_nulls().unnest("explorations").select("user_id", "anchor_cluster", "cluster")
    assert stored == seeded.read(PERSONA_STORE).num_rows > 0
    assert chosen.sort(chosen.columns).equals(kept.sort(kept.columns))
    top, none = choose(warehouse, found, parameters.identity | {"prompts": "others"})
    assert none == 0 and top.height == chosen.height


def test_checks_judge_by_intervals_and_only_with_enough_users(tables):
    seed_interactions(tables, num_users=3, num_items=5, events_per_user=5)
    counted = {c.name: 0 for c in PERSONA_COVERAGE.columns} | {
        "parameters": json.dumps({"interests": {"grouping": "semantic_ids"}}),
        "created_timestamp": CREATED,
    }
    tables.write(PERSONA_COVERAGE, pa.Table.from_pylist([counted], PERSONA_COVERAGE.schema), "v")

    def judged(version, personas, measure, baseline, low, high, users, period=""):
        row = {
            "personas": personas,
            "split_rule": period and "global_time",
            "period": period,
            "measure": measure,
            "arm": "own",
            "baseline": baseline,
            "value": (low + high) / 2,
            "low": low,
            "high": high,
            "num_users": users,
            "personas_version": "p",
            "created_timestamp": CREATED,
        }
        tables.write(PERSONA_MEASURES, pa.Table.from_pylist([row], PERSONA_MEASURES.schema), version)
        found = {
            "instructions": measure_checks.instructions_are_followed(tables),
            "grounded": measure_checks.claims_are_grounded(tables),
            "specific": measure_checks.personas_are_specific(tables),
            "retrieval": measure_checks.restriction_is_worth_it(tables),
        }
        return [name for name, result in found.items() if not result.passed], found

    assert judged("1", "written", "grounding_precision", "other_user", 0.1, 0.3, 50)[0] == []
    assert judged("2", "written", "grounding_precision", "other_user", -0.1, 0.3, 50)[0] == ["grounded"]
    failed, found = judged("3", "written", "grounding_precision", "other_user", -0.1, 0.3, 19)
    assert failed == [] and "too few" in found["grounded"].description
    assert judged("4", "semantic_ids", "grounding_precision", "other_user", -0.1, 0.3, 50)[0] == [], "not in force"
    assert judged("5", "written", "owner_mrr", "other_user", 0.0, 0.3, 50)[0] == ["specific"]
    assert judged("6", "written", "instruction_following_rate", "", 0.7, 0.9, 50)[0] == ["instructions"]
    failed, found = judged("7", "semantic_ids", "recall_at_50", "popular", -0.2, -0.1, 50, period="test")
    assert failed == ["retrieval"] and found["retrieval"].severity == dg.AssetCheckSeverity.WARN
    assert found["retrieval"].description.startswith("popular: finds more")
    assert judged("8", "semantic_ids", "recall_at_50", "popular", -0.2, 0.1, 50, period="test")[0] == [], "uncertain"
    assert judged("9", "salient_terms", "recall_at_50", "popular", -0.2, -0.1, 50, period="test")[0] == []


def test_tables_of_measures_have_a_column_for_each_set_of_personas():
    made = {"split_rule": "", "period": "", "baseline": "", "low": 0.0, "high": 1.0, "value": 0.5}
    lines = [
        made | {"personas": p, "measure": "m", "arm": a}
        for p in ("written", "semantic_ids")
        for a in ("own", "popular")
    ]
    table = tables_markdown(lines)
    assert table.splitlines()[0] == "| measure | arm | written | semantic_ids |"
    assert "| m | popular | 0.500 [0.000, 1.000] | 0.500 [0.000, 1.000] |" in table
    assert tables_markdown([]) == "Nobody has enough history to be measured."
