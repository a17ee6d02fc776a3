"""The repository's objects: complete, and the same for Feast's CLI as for the platform."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from feast.repo_operations import parse_repo
from feast.types import Bytes, from_feast_to_pyarrow_type

import feature_repo.definitions as repository
from assets.features.joining import FEATURES
from assets.features.published_views import VIEWS
from feature_repo.publications import Publication

ROOT = Path(__file__).resolve().parents[2]


def published(*names):
    return {n: Publication(n, f"version-of-{n}", f"content-of-{n}", 3, f"/data/{n}/1") for n in names}


def test_the_cli_finds_what_the_platform_applies(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = parse_repo(ROOT / "feature_repo")
    assert {e.name for e in found.entities} - {"__dummy"} == {e.name for e in repository.ENTITIES}
    assert {v.name for v in found.feature_views} == {v.name for v in repository.VIEWS}
    assert len(found.feature_views) == len(repository.VIEWS), "no view is found in two modules"
    assert {s.name for s in found.feature_services} == {s.name for s in repository.SERVICES}


@pytest.mark.parametrize("view", repository.VIEWS, ids=lambda v: v.name)
def test_views_are_described_and_owned(view):
    assert view.description and view.owner and view.tags["owner"] == view.owner and view.online
    assert all(field.description for field in view.features)
    assert view.batch_source.timestamp_field and view.batch_source.created_timestamp_column == "created_timestamp"


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: v.name)
def test_schemas_agree_with_the_tables_they_are_published_from(view):
    (feast_view,) = [v for v in repository.VIEWS if v.name == view.name]
    assert [f.name for f in feast_view.features] == list(view.features)
    keys = {e.name: e.join_key for e in repository.ENTITIES}
    assert [keys[name] for name in feast_view.entities] == [view.key]
    columns = {c.name: c.type for c in view.table.columns}
    for field in feast_view.features:
        wanted = pa.binary() if field.dtype == Bytes else from_feast_to_pyarrow_type(field.dtype)
        assert wanted == columns[field.name], field.name


def test_what_is_held_for_the_champion_is_online_before_what_it_cannot_read():
    # Views are brought online in this order; a request of the old champion in between finds one of the two.
    names = [view.name for view in VIEWS]
    assert names.index("user_vista_held") < names.index("user_vista")


def test_bound_objects_read_the_published_version_and_say_so():
    objects = repository.bound(published(*[v.name for v in repository.VIEWS]))
    views = {o.name: o for o in objects if type(o).__name__ == "FeatureView"}
    services = [o for o in objects if type(o).__name__ == "FeatureService"]
    assert len(views) == 8 and len(services) == 6
    captions = views["item_captions"]
    assert captions.batch_source.path == "/data/item_captions/1"
    assert "version" not in views["user_persona_text"].tags, "it is pushed row by row"
    assert captions.tags["version"] == "version-of-item_captions"
    assert captions.tags["content_version"] == "content-of-item_captions"
    assert "version" not in repository.item_captions.tags, "the definitions themselves stay as they are"


def test_what_is_not_published_is_left_out():
    objects = repository.bound(published("item_popularity", "user_activity"))
    services = {o.name for o in objects if type(o).__name__ == "FeatureService"}
    assert services == {f"ranker_{n}_v1" for n in ("popularity", "item_knn", "markov_chain", "dlrm")}
    assert [o.name for o in repository.bound({})] == [
        "user",
        "item",
        "user_persona_text_published",
        "user_persona_text",
    ]


def test_the_training_set_has_every_feature_of_every_service():
    joined = set(FEATURES.values())
    for service in repository.SERVICES:
        for projection in service.feature_view_projections:
            if projection.name == "user_vista_held":
                continue  # what requests read during a rollout; training rows have one version
            for feature in projection.features:
                assert (projection.name, feature.name) in joined


def test_feast_is_imported_without_its_type_checks_and_others_keep_theirs(tmp_path):
    code = (
        "import feature_repo, typeguard, feast.feature_view\n"
        "@typeguard.typechecked\n"
        "def f(x: int): return x\n"
        "try: f('a')\n"
        "except typeguard.TypeCheckError: print('checked')\n"
        "try: feast.feature_view.FeatureView(name=1, source=None)\n"
        "except typeguard.TypeCheckError: print('feast checked')\n"
        "else: print('feast unchecked')\n"
    )
    probe = tmp_path / "probe.py"  # A file, since type checks are woven into source.
    probe.write_text(code)
    said = subprocess.run([sys.executable, "-W", "ignore", str(probe)], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.split("\n")[:2] == ["checked", "feast unchecked"], said.stderr
