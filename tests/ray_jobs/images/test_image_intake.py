"""The job that reads item images: real files and servers, real decoding processes; one test on Ray."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from ray_jobs.images import intake as image_intake
from ray_jobs.images.decoder import DecoderPool
from ray_jobs.images.intake import images_version, plan
from ray_jobs.images.limits import ImageLimits, RemoteRule
from ray_jobs.images.reader import Config, ImageReader
from ray_jobs.images.reasons import ImageRefusedError
from ray_jobs.images.sources import SourceConfig, SourceReader
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
    assert (after["i1"]["reason"], after["i1"]["attempts"]) == (None, 1)
    write_items(tables, ["same.bmp", "cut.jpg"])
    moved, _ = read(config)
    assert moved["i0"]["attempts"] == 1 and moved["i0"]["image_uri"] == "same.bmp" and moved["i1"] == after["i1"]


@pytest.mark.parametrize("left", [None, b"", b"\xff\xd8 cut"])
def test_an_image_that_the_store_lost_or_damaged_is_read_again(tables, shop, left):
    write_items(tables, ["a.png"])
    config = config_for(tables, shop)
    rows, _ = read(config)
    store = ImageStore.of(config.artifacts)
    kept = Path(store._path(rows["i0"]["pixel_digest"]))
    jpeg = kept.read_bytes()
    kept.unlink() if left is None else kept.write_bytes(left)
    again, starts = read(config)
    assert starts == 1 and kept.read_bytes() == jpeg and again["i0"]["attempts"] == 2
    assert images_version(as_table(again)) == images_version(as_table(rows))


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
    assert [(r["reason"], r["attempts"]) for r in raised.values()] == [("truncated", 3), (None, 1)]


def test_a_file_that_hangs_the_decoder_is_given_up_until_it_changes(tables, shop, monkeypatch):
    write_items(tables, ["a.png"])
    config = config_for(tables, shop)
    decoded = []

    def hangs(pool, data):
        decoded.append(data)
        raise ImageRefusedError("decode_timeout", limit=10.0)

    monkeypatch.setattr(DecoderPool, "decode", hangs)
    told = [read(config)[0]["i0"] for _ in range(5)]
    assert {r["reason"] for r in told} == {"decode_timeout"}
    assert [r["attempts"] for r in told] == [1, 2, 3, 3, 3] and len(decoded) == 3
    read(config.model_copy(update={"replay": True}))
    read(config_for(tables, shop, limits=ImageLimits(decode_seconds=11.0)))
    (shop / "a.png").write_bytes(JPEG)
    read(config)
    assert decoded[3:] == [PNG, PNG, JPEG]


def test_a_changed_file_that_hangs_the_decoder_is_not_a_servers_bad_day(tables, shop, monkeypatch):
    write_items(tables, ["a.png"])
    config = config_for(tables, shop)
    read(config)
    (shop / "a.png").write_bytes(JPEG)

    def hangs(pool, data):
        raise ImageRefusedError("decode_timeout", limit=10.0)

    monkeypatch.setattr(DecoderPool, "decode", hangs)
    assert [read(config)[0]["i0"]["attempts"] for _ in range(4)] == [1, 2, 3, 3]


def test_malformed_addresses_and_hostile_redirects_cost_their_rows_only(tables, shop):
    with ImageServer() as server:
        bad = [
            "http://[oops/x.jpg",
            "s3://[b/x",
            "https://ex\u2100mple.com/a.jpg",
            server.url("redirect/http://[oops/x"),
        ]
        write_items(tables, [*bad, "a.png"])
        rule = RemoteRule(hosts=("*",), networks=("127.0.0.0/8",), ports=(server.port,))
        config = config_for(tables, shop, source=SourceConfig(folder=str(shop), remote=rule))
        rows, _ = read(config)
        assert [r["reason"] for r in rows.values()] == ["bad_address"] * 4 + [None]
        assert read(config)[0] == rows


def test_whatever_an_address_does_to_a_library_costs_its_row_only(tables, shop, monkeypatch):
    write_items(tables, ["a.png", "b.png"])
    real = SourceReader.read

    def surprised(reader, uri, known=""):
        if uri == "b.png":
            raise ValueError("what nobody thought of")
        return real(reader, uri, known)

    monkeypatch.setattr(SourceReader, "read", surprised)
    rows, _ = read(config_for(tables, shop))
    assert [r["reason"] for r in rows.values()] == [None, "bad_address"]


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


def as_table(rows):
    return pa.Table.from_pylist(list(rows.values()), ITEM_IMAGES.schema)


@pytest.fixture
def here(monkeypatch):
    """Runs of the job read in this process."""

    def reads(config, todo):
        reader = ImageReader(config)
        yield reader(todo.to_arrow())
        reader.close()

    monkeypatch.setattr(image_intake, "_read", reads)


def test_the_version_stands_while_images_are_only_asked_for(tables, shop, here):
    with ImageServer() as server:
        dead = [f"http://127.0.0.1:9/{n}.jpg" for n in range(3)]
        write_items(tables, [server.url("jpeg/a"), server.url("status/404"), server.url("status/503"), *dead, "a.png"])
        rule = RemoteRule(hosts=("127.0.0.1",), networks=("127.0.0.0/8",), ports=(9, server.port), recheck_days=0.0)
        config = config_for(tables, shop, source=SourceConfig(folder=str(shop), remote=rule))
        first = image_intake.run(config)
        assert first.committed and first.reasons["unreachable"] == 3 and tables.warehouse().num_rows(IMAGE_READS) == 0
        for etag, touched in (('"v1"', 1), ('"v2"', 2), ("", 3)):
            server.etag = etag
            (shop / "a.png").write_bytes(PNG + bytes(touched))
            done = image_intake.run(config)
            assert (done.version, done.committed, done.num_read) == (first.version, False, 7)
        assert plan(config)["before_attempts"].to_list() == [4] * 7, "and yet it is known what was asked"
        rested = config.model_copy(
            update={"source": SourceConfig(folder=str(shop), remote=rule.model_copy(update={"recheck_days": 7.0}))}
        )
        for asked in (["/status/404", "/status/503"], ["/status/503"]):
            # Another rule is another chance for what is quarantined; what is usable is not due.
            server.asked.clear()
            image_intake.run(rested)
            assert sorted(a[0] for a in server.asked) == asked
        assert tables.warehouse().num_rows(IMAGE_READS) == 7
        (shop / "a.png").write_bytes(encoded(picture(seed=1)))
        changed = image_intake.run(rested)
    assert changed.committed and changed.version != first.version == done.version
    assert tables.warehouse().num_rows(IMAGE_READS) == 0


def test_one_outage_is_as_good_as_another_for_the_version():
    def version(**said):
        row = {"item_id": "i", "image_uri": "u", "fingerprint": "f", "attempts": 1, "created_timestamp": CREATED} | said
        return images_version(pa.Table.from_pylist([row], ITEM_IMAGES.schema))

    out = version(reason="unreachable", detail="x")
    assert out == version(reason="fetch_timeout", detail="y", attempts=3, fingerprint="g")
    told = [version(pixel_digest="a" * 32), version(reason="empty", detail="x"), version(reason="empty", detail="y")]
    assert len({out, *told}) == 4


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
