"""The job that reads item images: real files and servers, real decoding processes; one test on Ray."""

import datetime as dt
import os

import pyarrow as pa
import pytest

from ray_jobs import image_intake
from ray_jobs.image_intake import plan
from ray_jobs.image_reader import Config, ImageReader
from ray_jobs.images.limits import ImageLimits, RemoteRule
from ray_jobs.images.sources import SourceConfig
from ray_jobs.images.store import ImageStore
from ray_jobs.tables.captions import IMAGE_READS, ITEM_IMAGES
from ray_jobs.tables.interactions import ITEMS
from tests.factories import CREATED
from tests.ray_jobs.images.hostile import CASES, JPEG, PNG, encoded, picture
from tests.ray_jobs.images.image_server import ImageServer


def write_items(tables, uris):
    rows = [
        {"item_id": f"i{n}", "title": "t", "categories": [], "image_uri": uri, "attributes": "{}"}
        | {"created_timestamp": CREATED}
        for n, uri in enumerate(uris)
    ]
    tables.write(ITEMS, pa.Table.from_pylist(rows, ITEMS.schema), version=f"{uris}")


def config_for(tables, folder, **changes):
    changes.setdefault("source", SourceConfig(folder=str(folder)))
    return Config(warehouse=tables.warehouse(), artifacts=tables.artifacts(), batch_size=8, **changes)


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "same.bmp").write_bytes(encoded(picture(), "BMP"))
    (folder / "cut.jpg").write_bytes(JPEG[:400])
    return folder


def read(config):
    """What `run` does, in this process; the actor's decoding process is a real one."""
    reader = ImageReader(config)
    rows = reader(plan(config).to_arrow())
    starts = sum(d.starts for d in reader.decoders._all)
    reader.close()
    config.warehouse.write(ITEM_IMAGES, rows, version=str(dt.datetime.now()))
    return {r["item_id"]: r for r in rows.to_pylist()}, starts


def test_images_are_read_once_and_equal_pictures_are_one(tables, shop):
    write_items(tables, ["a.png", "same.bmp", "cut.jpg", None, " ", "../x.png"])
    config = config_for(tables, shop)
    rows, starts = read(config)
    assert sorted(rows) == ["i0", "i1", "i2", "i5"] and starts == 1
    assert rows["i0"]["pixel_digest"] == rows["i1"]["pixel_digest"] and rows["i0"]["format"] == "PNG"
    assert (rows["i1"]["format"], rows["i1"]["width"], rows["i1"]["height"]) == ("BMP", 96, 64)
    assert [rows[i]["reason"] for i in sorted(rows)] == [None, None, "truncated", "outside_dataset"]
    assert rows["i2"]["detail"].endswith("write the file again.") and rows["i2"]["pixel_digest"] is None
    assert ImageStore.of(config.artifacts).get(rows["i0"]["pixel_digest"])[:2] == b"\xff\xd8"
    again, starts = read(config)
    assert again == rows and starts == 0, "nothing was decoded"


def test_only_what_changed_is_read(tables, shop):
    write_items(tables, ["a.png", "cut.jpg"])
    config = config_for(tables, shop)
    before, _ = read(config)
    (shop / "cut.jpg").write_bytes(JPEG)
    after, _ = read(config)
    assert after["i0"] == before["i0"]
    assert (after["i1"]["reason"], after["i1"]["attempts"]) == (None, 2)
    write_items(tables, ["same.bmp", "cut.jpg"])
    moved, _ = read(config)
    assert moved["i0"]["attempts"] == 1 and moved["i0"]["image_uri"] == "same.bmp" and moved["i1"] == after["i1"]


def test_an_image_that_the_store_lost_is_read_again(tables, shop):
    write_items(tables, ["a.png"])
    config = config_for(tables, shop)
    rows, _ = read(config)
    store = ImageStore.of(config.artifacts)
    os.unlink(store._path(rows["i0"]["pixel_digest"]))
    again, starts = read(config)
    assert starts == 1 and rows["i0"]["pixel_digest"] in store and again["i0"]["attempts"] == 2


def test_final_reasons_stand_until_replay_or_other_limits(tables, shop):
    (shop / "big.png").write_bytes(encoded(picture(600, 600)))
    write_items(tables, ["cut.jpg", "big.png"])
    config = config_for(tables, shop, limits=ImageLimits(max_pixels=100_000))
    first, _ = read(config)
    assert [r["reason"] for r in first.values()] == ["truncated", "too_many_pixels"]
    assert read(config) == (first, 0)
    replayed, starts = read(config.model_copy(update={"replay": True}))
    assert starts == 1 and [(r["reason"], r["attempts"]) for r in replayed.values()] == [
        ("truncated", 2),
        ("too_many_pixels", 2),
    ]
    raised, _ = read(config_for(tables, shop))
    assert [(r["reason"], r["attempts"]) for r in raised.values()] == [("truncated", 3), (None, 3)]


def test_remote_images_are_asked_again_when_it_is_worth_it(tables, shop):
    with ImageServer() as server:
        urls = [server.url(p) for p in ("jpeg/a", "status/503", "status/404")]
        write_items(tables, urls)
        rule = RemoteRule(hosts=("127.0.0.1",), networks=("127.0.0.0/8",), ports=(server.port,))
        config = config_for(tables, shop, source=SourceConfig(folder=str(shop), remote=rule))
        rows, _ = read(config)
        assert [r["reason"] for r in rows.values()] == [None, "http_unavailable", "http_refused"]
        assert rows["i0"]["fingerprint"].startswith('etag:"v1";')
        server.asked.clear()
        second, _ = read(config)
        assert [a[0] for a in server.asked] == ["/status/503"], "only what another day may mend"
        assert second["i1"]["attempts"] == 2 and second["i0"] == rows["i0"]
        due = rule.model_copy(update={"recheck_days": 0.0})
        server.asked.clear()
        third, starts = read(config_for(tables, shop, source=SourceConfig(folder=str(shop), remote=due)))
        assert ("/jpeg/a", '"v1"', f"127.0.0.1:{server.port}") in server.asked and starts == 0
        assert third["i0"]["created_timestamp"] > rows["i0"]["created_timestamp"]
        assert third["i0"]["pixel_digest"] == rows["i0"]["pixel_digest"]
    gone, _ = read(config_for(tables, shop, source=SourceConfig(folder=str(shop), remote=due)))
    assert gone["i0"] == third["i0"], "a server's bad day takes no image away"
    assert gone["i1"]["reason"] == "unreachable"


def test_the_job_on_ray_reads_hostile_images_by_the_batch(ray_cluster, tables, shop):
    for name, data, _ in CASES:
        (shop / name).write_bytes(data)
    write_items(tables, [name for name, *_ in CASES] + ["a.png", None])
    config = config_for(tables, shop, num_actors=1, checkpoint_rows=8)
    done = image_intake.run(config)
    assert (done.num_items, done.num_images, done.num_read) == (len(CASES) + 2, len(CASES) + 1, len(CASES) + 1)
    found = {r["image_uri"]: r for r in tables.read(ITEM_IMAGES).to_pylist()}
    assert {name: found[name]["reason"] for name, *_ in CASES} == {name: reason for name, _, reason in CASES}
    assert sum(done.reasons.values()) == sum(reason is not None for *_, reason in CASES)
    assert done.committed and tables.version(ITEM_IMAGES) == done.version
    assert tables.read(IMAGE_READS).num_rows == 0, "what an unfinished run had noted is needed no more"
    again = image_intake.run(config)
    assert (again.version, again.committed, again.num_read) == (done.version, False, 0)


def test_a_killed_run_goes_on_where_it_stood(tables, shop, monkeypatch):
    write_items(tables, ["a.png"] * 20 + ["cut.jpg"] * 4)
    config = config_for(tables, shop, checkpoint_rows=8)

    def dies(config, todo):
        reader = ImageReader(config)
        for at in range(0, 16, 8):
            yield reader(todo.slice(at, 8).to_arrow())
        reader.close()
        raise ConnectionError("the machine went away")

    monkeypatch.setattr(image_intake, "_read", dies)
    with pytest.raises(ConnectionError):
        image_intake.run(config)
    assert not tables.warehouse().exists(ITEM_IMAGES) and tables.read(IMAGE_READS).num_rows == 16
    assert plan(config)["before_fingerprint"].null_count() == 8


def test_a_catalogue_without_images_needs_no_cluster(tables, tmp_path):
    write_items(tables, [None, None])
    done = image_intake.run(config_for(tables, tmp_path / "no such folder"))
    assert (done.num_images, done.reasons, done.committed) == (0, {}, True)
    assert tables.read(ITEM_IMAGES).num_rows == 0
