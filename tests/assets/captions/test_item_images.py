"""The asset and its checks on a real folder of pictures, good and bad, and on a dataset without any."""

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest

from assets.captions import image_checks
from assets.captions.image_charts import contact_sheet, quarantine_markdown
from assets.captions.item_images import ImageIntake, intake_config, item_images
from orchestration.resources.dataset import ConfiguredDataset
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.images.store import ImageStore
from ray_jobs.tables.captions import ITEM_IMAGES
from ray_jobs.tables.interactions import ITEMS
from tests.factories import CREATED
from tests.ray_jobs.images.hostile import JPEG, PNG, encoded, picture

CHECKS = [
    image_checks.item_images_checks,
    image_checks.images_are_usable_or_told,
    image_checks.few_images_are_quarantined,
]


def write_items(tables, uris):
    rows = [
        {"item_id": f"i{n}", "title": "t", "categories": [], "image_uri": uri, "attributes": "{}"}
        | {"created_timestamp": CREATED}
        for n, uri in enumerate(uris)
    ]
    tables.write(ITEMS, pa.Table.from_pylist(rows, ITEMS.schema), version=f"{uris}")


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    for n in range(9):
        (folder / f"{n}.png").write_bytes(encoded(picture(seed=n)))
    (folder / "same.jpg").write_bytes(JPEG)
    (folder / "cut.png").write_bytes(PNG[:300])
    return ConfiguredDataset(source=f"contract:{folder}")


def materialize(tables, instance, dataset, **config):
    result = dg.materialize(
        [item_images, *CHECKS],
        instance=instance,
        resources={"tables": tables, "dataset": dataset, "ray_jobs": LocalRayJobs()},
        run_config={"ops": {"captions__item_images": {"config": config}}},
    )
    events = result.asset_materializations_for_node("captions__item_images")
    checks = {e.check_name: e for e in result.get_asset_check_evaluations()}
    return {k: v.value for k, v in events[-1].metadata.items()}, checks


def test_images_good_and_bad_and_then_nothing_more(ray_cluster, tables, instance, dataset):
    write_items(tables, [f"{n}.png" for n in range(9)] + ["same.jpg", "same.jpg", "cut.png", "/etc/passwd", None])
    said, checks = materialize(tables, instance, dataset, num_actors=1)
    assert (said["items_with_image"], said["items_without_image"], said["images_read"]) == (13, 1, 13)
    assert (said["usable"], said["distinct_images"], said["quarantined"]) == (11, 10, 2)
    assert said["reasons"] == {"truncated": 1, "outside_dataset": 1} and said["formats"] == {"PNG": 9, "JPEG": 2}
    assert said["contact_sheet"].startswith("![contact sheet](data:image/jpeg;base64,")
    assert said["image_sizes"].startswith("![") and said["quarantine"].count("\n") == 3
    assert "| i12 | /etc/passwd | outside_dataset |" in said["quarantine"]
    assert len(checks) == 5 and [n for n, e in checks.items() if not e.passed] == ["quarantined"]
    warned = checks["quarantined"]
    assert warned.severity == dg.AssetCheckSeverity.WARN and not warned.blocking
    assert "15.4% of 13 images are quarantined (" in warned.description

    version = tables.version(ITEM_IMAGES)
    again, _ = materialize(tables, instance, dataset, num_actors=1)
    assert (again["images_read"], again["table_commits"], again["unchanged"]) == (0, 0, True)
    assert again["contact_sheet"] == said["contact_sheet"] and tables.version(ITEM_IMAGES) == version
    replayed, _ = materialize(tables, instance, dataset, num_actors=1, replay=True)
    assert replayed["images_read"] == 2 and replayed["quarantined"] == 2


def test_the_contact_sheet_leaves_out_what_it_cannot_open_and_says_so(tmp_path):
    store = ImageStore(str(tmp_path))
    digests = [letter * 32 for letter in "abc"]
    store.put(digests[0], JPEG)
    store.put(digests[1], b"no picture \xff\xd9")
    rows = pl.DataFrame({"pixel_digest": digests})
    said = contact_sheet(rows, store).value
    assert said.startswith("![contact sheet](data:image/jpeg;base64,")
    assert said.endswith(
        f"2 of 3 cannot be opened in the store of images, e.g. `{digests[1]}.jpg`: "
        "delete them there and materialize again."
    )
    assert "cannot be opened" not in contact_sheet(rows[:1], store).value


def test_a_dataset_without_images_is_none_the_worse(tables, instance, dataset):
    write_items(tables, [None, None])
    said, checks = materialize(tables, instance, dataset)
    assert (said["items_with_image"], said["quarantined"], said["reasons"]) == (0, 0, {})
    assert tables.warehouse().num_rows(ITEM_IMAGES) == 0
    assert len(checks) == 5 and all(e.passed for e in checks.values())


def test_settings_and_knobs_reach_the_job(tables, dataset):
    remote = dataset.model_copy(
        update={"image_hosts": ["*.shop.example"], "image_networks": ["10.1.0.0/16"], "image_roots": ["s3://b/x"]}
    )
    job = intake_config(tables, remote, ImageIntake(max_pixels=7, fetch_seconds=3.0, replay=True))
    assert (job.limits.max_pixels, job.replay, job.source.remote.fetch_seconds) == (7, True, 3.0)
    assert job.source.remote.hosts == ("*.shop.example",) and job.source.remote.networks == ("10.1.0.0/16",)
    assert job.source.roots == ("s3://b/x",) and job.source.folder.endswith("/shop")
    assert intake_config(tables, dataset, ImageIntake()).source.remote.hosts == (), "nobody is asked by default"


def rows(tables, *quarantined, digest=True):
    written = [
        {"item_id": f"i{n}", "image_uri": f"{n}.png", "fingerprint": "x", "attempts": 1, "created_timestamp": CREATED}
        | ({"reason": "cut", "detail": "Cut: mend it."} if n in quarantined else {"pixel_digest": "a" * 32})
        for n in range(40)
    ]
    if not digest:
        written[3].pop("pixel_digest")
    tables.write(ITEM_IMAGES, pa.Table.from_pylist(written, ITEM_IMAGES.schema), version=f"{quarantined}{digest}")


@pytest.mark.parametrize("quarantined, passed", [((), True), ((1, 2), True), ((1, 2, 3), False)])
def test_the_share_of_quarantined_images_is_watched(tables, quarantined, passed):
    rows(tables, *quarantined)
    found = image_checks.few_images_are_quarantined(tables=tables)
    assert found.passed == passed and found.metadata["quarantined"].value == len(quarantined)
    assert image_checks.images_are_usable_or_told(tables=tables).passed


def test_a_row_that_is_neither_blocks(tables):
    rows(tables, digest=False)
    found = image_checks.images_are_usable_or_told(tables=tables)
    assert not found.passed and found.metadata["failing_sample"].value == "i3"


def test_what_a_source_wrote_cannot_break_out_of_the_page():
    uri = "x|y](javascript:alert(1))<img src=x>\n# head"
    shown = quarantine_markdown(
        pl.DataFrame({"item_id": ["i"], "image_uri": [uri], "reason": ["not_found"], "detail": [f"There is no {uri}."]})
    )
    assert shown.count("\n") == 2 and "<img" not in shown and "](" not in shown
