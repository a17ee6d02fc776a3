"""The stage `experiments`: candidates, gate and promotion against a real MLflow registry."""

import dagster as dg
import pyarrow as pa
import pytest

from assets.experiments.assignment import assignment
from assets.experiments.champion import champion
from assets.experiments.checks import (
    gate,
)
from assets.experiments.registry import Registry
from orchestration.jobs.promote_model import PromoteConfig, promote_model
from orchestration.jobs.rollback_model import rollback_model
from orchestration.ledger.database import ready_engine
from orchestration.resources.ledger import ledger_twin
from orchestration.resources.tracking import ServerTracking
from ray_jobs.tables.experiments import (
    CHALLENGER,
    CHAMPION,
    EXPERIMENT_CANDIDATES,
)
from tests.assets.experiments.nights import (
    CHAIN,
    CHECKS,
    SKILLS,
    aliases,
    back,
    first_champion,
    launch,
    night,
    row,
    second_champion,
    serve_summaries,
    trained_on,
)
from tests.assets.experiments.results import said, why
from tests.assets.experiments.seeding import seed_rankers
from tests.factories import seed_interactions


def test_the_first_champion_is_promoted_and_the_second_night_does_nothing(platform, instance):
    seed_rankers(platform["tables"], platform["tracking"], SKILLS)
    result = night(platform, instance)
    assert result.success
    assert row(platform)["decision"] == "promote" and row(platform)["champion"] is None
    assert aliases(platform) == {"champion": "dlrm@v1"}
    [move] = platform["ledger"].promotions()
    assert (move.kind, move.before, move.after.label, move.forced) == ("promote", None, "dlrm@v1", False)
    assert all(r["ok"] for r in move.report["rules"]) and move.dagster_run_id == result.run_id
    assert {c.name: c.status for c in platform["ledger"].candidates()} == {
        "dlrm": "promoted",
        "popularity": "candidate",
    }
    client = platform["tracking"].connect("ranking").MlflowClient()
    version = client.get_model_version_by_alias("ranker", "champion")
    assert version.tags["validation"] == "passed" and "beats floor" in version.tags["gate_report"]
    tags = client.get_run(version.run_id).data.tags
    assert tags["status"] == "promoted" and tags["ab_experiment"] == "champion_vs_challenger"
    again = night(platform, instance)
    assert again.success
    assert all(
        said(again, name)["unchanged"] and said(again, name)["table_commits"] == 0
        for name in ("candidates", "challenger", "champion")
    )
    assert len(platform["ledger"].promotions()) == 1


def test_serving_loads_the_champion_by_one_name(platform, instance):
    seed_rankers(platform["tables"], platform["tracking"], SKILLS)
    night(platform, instance)
    mlflow = platform["tracking"].connect("ranking")
    assert mlflow.artifacts.load_dict("models:/ranker@champion/constructor.json") == {"name": "dlrm"}


def test_a_better_one_takes_over_and_the_old_one_stays_at_hand(platform, instance):
    second_champion(platform, instance)
    first, second = platform["ledger"].promotions()
    assert second.before == first.after == second.previous
    assert row(platform)["gain_low"] > 0 and row(platform)["champion"] == "dlrm"
    shown = {r["alias"]: r["candidate"] for r in platform["tables"].read(CHAMPION).to_pylist()}
    assert shown == {"champion": "wide", "previous": "dlrm"}
    again = night(platform, instance)
    assert said(again, "challenger")["unchanged"] and said(again, "champion")["unchanged"]


@pytest.mark.parametrize(
    ("skills", "lucky", "bias", "decision"),
    [
        ({"popularity": 0.8, "dlrm": 0.2}, (), 0.0, "keep"),
        ({"popularity": 0.5, "dlrm": 0.5}, (), 0.0, "keep"),
        ({"popularity": 0.2, "dlrm": 0.8}, ("dlrm",), 0.0, "reject"),
        ({"popularity": 0.2, "dlrm": 0.8}, (), 0.8, "reject"),
    ],
)
def test_what_the_evidence_does_not_carry_is_not_promoted(platform, instance, skills, lucky, bias, decision):
    seed_rankers(platform["tables"], platform["tracking"], skills, lucky=lucky, bias=bias)
    result = night(platform, instance)
    kept = decision == "keep"
    assert (row(platform)["decision"], result.success) == (decision, True), "a refusal is no failed run"
    assert platform["ledger"].promotions() == [] and "champion" not in aliases(platform)
    evaluation = next(e for e in result.get_asset_check_evaluations() if e.check_name == "gate")
    assert evaluation.passed is kept and evaluation.description == row(platform)["reason"]
    assert evaluation.blocking and evaluation.severity == dg.AssetCheckSeverity.WARN
    assert said(result, "champion")["promotions"] == 0
    assert {c.name: c.status for c in platform["ledger"].candidates()}["dlrm"] == ("candidate" if kept else "rejected")
    assert aliases(platform) == ({} if kept else {"challenger": "dlrm@v1"})
    before = platform["tables"].version(CHALLENGER)
    night(platform, instance)
    assert platform["tables"].version(CHALLENGER) == before, "a decision stands until there is something new"


def test_a_promotion_that_its_rules_do_not_carry_is_blocked(platform, instance):
    seed_rankers(platform["tables"], platform["tracking"], SKILLS, lucky=("dlrm",))
    assert night(platform, instance).success
    forged = [row(platform) | {"decision": "promote"}]
    tables = platform["tables"]
    tables.write(CHALLENGER, pa.Table.from_pylist(forged, CHALLENGER.schema), version=tables.version(CHALLENGER) + "x")
    checked = dg.materialize(
        [*CHAIN, gate],
        resources=platform,
        instance=instance,
        raise_on_error=False,
        selection=dg.AssetSelection.checks(gate),
    )
    [evaluation] = checked.get_asset_check_evaluations()
    assert not checked.success and evaluation.severity == dg.AssetCheckSeverity.ERROR
    dg.materialize(CHAIN, resources=platform, instance=instance, selection=[champion])
    assert platform["ledger"].promotions() == [] and "champion" not in aliases(platform)


def test_one_that_was_refused_is_not_put_to_the_test_again(platform, instance):
    seed_rankers(platform["tables"], platform["tracking"], SKILLS, lucky=("dlrm",))
    assert night(platform, instance).success and row(platform)["decision"] == "reject"
    # Another candidate is trained; the refused one is still best on validation.
    seed_rankers(platform["tables"], platform["tracking"], SKILLS | {"markov": 0.3}, lucky=("dlrm",))
    assert night(platform, instance).success
    assert row(platform)["decision"] == "keep" and "decided against before" in row(platform)["reason"]


def test_every_asset_passes_its_checks(platform, instance):
    seed_interactions(platform["tables"])
    seed_rankers(platform["tables"], platform["tracking"], SKILLS)
    result = dg.materialize([*CHAIN, assignment, *CHECKS], resources=platform, instance=instance, raise_on_error=False)
    assert result.success
    failed = [(e.asset_key, e.check_name, e.description) for e in result.get_asset_check_evaluations() if not e.passed]
    assert failed == [] and len(result.get_asset_check_evaluations()) == 15
    assert "gains" in said(result, "challenger") and "history" in said(result, "champion")
    again = dg.materialize([*CHAIN, assignment], resources=platform, instance=instance)
    assert all(said(again, n)["unchanged"] for n in ("candidates", "challenger", "champion", "assignment"))


def test_a_candidate_without_floor_to_compare_is_refused_in_a_sentence(platform, instance):
    seed_rankers(platform["tables"], platform["tracking"], {"dlrm": 0.8})
    result = night(platform, instance)
    assert not result.success
    assert "needs the floor popularity among the candidates (dlrm): materialize ranking/popularity." in why(result)


def test_a_lost_ledger_finds_candidates_and_champion_again(platform, instance, tmp_path):
    first_champion(platform, instance)
    url = f"sqlite:///{tmp_path}/other.db"
    other = ledger_twin(url)
    result = night(platform | {"ledger": other}, instance)
    assert result.success and said(result, "candidates")["new_candidates"] == 2
    assert [m.after.label for m in other.promotions()] == ["dlrm@v1"]
    ready_engine(url).dispose()


def test_promotion_and_rollback_refuse_in_one_sentence_while_mlflow_is_down(platform, instance):
    second_champion(platform, instance)
    down = ServerTracking(tracking_uri="http://127.0.0.1:9")
    with pytest.raises(dg.Failure, match="Promotion is refused because MLflow does not answer; nothing was changed."):
        Registry(down)
    result = back(platform | {"tracking": down}, instance)
    assert not result.success and why(result).startswith("Promotion is refused because MLflow does not answer")
    assert len(platform["ledger"].promotions()) == 2 and aliases(platform)["champion"] == "wide@v1"


def test_a_promotion_that_died_between_alias_and_record_is_finished(platform, instance, monkeypatch):
    first_champion(platform, instance)
    seed_rankers(platform["tables"], platform["tracking"], SKILLS | {"wide": 0.97})
    ledger_type = type(platform["ledger"])

    def die(self, record):
        raise ValueError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_type, "append_promotion", die)
        assert not night(platform, instance).success
    assert aliases(platform) == {"champion": "wide@v1", "previous": "dlrm@v1"}
    assert len(platform["ledger"].promotions()) == 1
    assert night(platform, instance).success
    first, second = platform["ledger"].promotions()
    assert (second.before, second.after.label) == (first.after, "wide@v1")
    assert aliases(platform) == {"champion": "wide@v1", "previous": "dlrm@v1"}


def test_an_alias_moved_by_hand_is_noticed_and_mended_by_name(platform, instance):
    second_champion(platform, instance)
    client = platform["tracking"].connect("ranking").MlflowClient()
    client.set_registered_model_alias("ranker", "champion", "1")
    seed_rankers(platform["tables"], platform["tracking"], SKILLS | {"wide": 0.97, "deep": 0.999})
    result = night(platform, instance)
    assert not result.success and "somebody moved it by hand" in why(result)
    assert back(platform, instance, reason="version 1 shall serve", to_version="1").success
    assert night(platform, instance).success and aliases(platform)["champion"] == "deep@v1"


def promote(platform, instance, **config):
    return launch(promote_model, platform, instance, "put_to_the_gate", PromoteConfig(**config))


def test_a_named_candidate_passes_the_gate_or_is_refused_or_is_forced_on_the_record(platform, instance):
    first_champion(platform, instance)
    refused = promote(platform, instance, candidate="popularity", reason="I like it")
    assert not refused.success and "Set force" in why(refused) and "beats champion dlrm@v1" in why(refused)
    assert aliases(platform) == {"champion": "dlrm@v1"}
    assert promote(platform, instance, candidate="popularity", reason="an incident", force=True).success
    assert aliases(platform) == {"champion": "popularity@v1", "previous": "dlrm@v1"}
    move = platform["ledger"].promotions()[-1]
    assert move.forced and move.reason == "an incident" and move.report["decision"] == "reject"
    assert promote(platform, instance, candidate="dlrm@v1", reason="the incident is over").success
    assert not platform["ledger"].promotions()[-1].forced
    assert aliases(platform)["champion"] == "dlrm@v1"
    assert promote(platform, instance, candidate="dlrm", reason="twice is once").success
    assert len(platform["ledger"].promotions()) == 3


def test_a_candidate_that_cannot_read_what_is_served_is_not_promoted_even_by_force(platform, instance):
    first_champion(platform, instance)
    trained_on(platform, "popularity", user_summary_version="A")
    serve_summaries(platform, "B")
    refused = promote(platform, instance, candidate="popularity", reason="an incident", force=True)
    assert not refused.success and why(refused).startswith(
        "Version 2 (popularity@v1) reads VISTA summaries of version A, but vista/user_summaries holds B"
    )
    assert aliases(platform) == {"champion": "dlrm@v1"} and len(platform["ledger"].promotions()) == 1


def test_an_unknown_candidate_is_refused_with_the_known_ones(platform, instance):
    first_champion(platform, instance)
    assert "name one of dlrm, popularity" in why(promote(platform, instance, candidate="dlmr", reason="a typing error"))
    assert "none named" in why(promote(platform, instance))


def test_the_launchpad_shows_every_knob_with_a_default():
    for job, op, knobs in (
        (rollback_model, "move_champion_back", {"reason", "to_version"}),
        (promote_model, "put_to_the_gate", {"candidate", "reason", "force", "max_ece", "floor"}),
    ):
        fields = job.nodes_in_topological_order[0].definition.config_schema.config_type.fields
        assert knobs <= set(fields) and all(fields[k].description for k in knobs)
        assert job.run_config["ops"][op]["config"].keys() >= knobs
        assert job.description


def test_the_table_of_candidates_remembers_earlier_nights(platform, instance):
    first_champion(platform, instance)
    seed_rankers(platform["tables"], platform["tracking"], SKILLS, version={"dlrm": "v2", "popularity": "v1"})
    night(platform, instance)
    kept = {
        (r["candidate"], r["candidate_version"]): (r["status"], r["is_current"])
        for r in platform["tables"].read(EXPERIMENT_CANDIDATES).to_pylist()
    }
    assert kept == {
        ("dlrm", "v1"): ("promoted", False),
        ("dlrm", "v2"): ("candidate", True),
        ("popularity", "v1"): ("candidate", True),
    }
