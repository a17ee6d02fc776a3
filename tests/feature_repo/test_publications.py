"""Publications appear whole, are switched at once, and older ones go."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from feature_repo import publications as module
from feature_repo.publications import POINTER, Publications, filesystem_of


def rows(*values):
    return pa.table({"item_id": pa.array([str(v) for v in values], pa.string()), "n": pa.array(values, pa.int64())})


def read(publications, view="v"):
    files, path = filesystem_of(publications.current(view).uri, publications.storage_options)
    return pa.dataset.dataset(path, filesystem=files, format="parquet").to_table()["n"].to_pylist()


@pytest.fixture
def publications(tmp_path):
    return Publications(str(tmp_path / "offline"))


def test_the_first_version_counts_and_the_same_is_not_written_again(publications):
    assert publications.current("v") is None
    assert publications.publish("v", rows(1, 2), "a", "content") is True
    assert publications.publish("v", rows(9), "a") is False
    found = publications.current("v")
    assert (found.version, found.content_version, found.num_rows, found.previous) == ("a", "content", 2, "")
    assert read(publications) == [1, 2]


def test_two_versions_are_kept(publications):
    for version, value in zip("abcd", range(4), strict=True):
        publications.publish("v", rows(value), version)
        publications.publish("other", rows(value), version)
    assert {p.name for p in (Path(publications.root) / "v").iterdir()} == {"c", "d", POINTER}
    assert publications.current("v").previous == "c" and publications.exists("v", "c")
    assert not publications.exists("v", "a") and not publications.exists("v", "")
    assert read(publications) == [3]


def test_wide_rows_are_published_in_small_row_groups(publications):
    wide = pa.table({"item_id": [str(i) for i in range(3000)], "summary": [b"x" * 16_384] * 3000})
    publications.publish("v", wide, "a")
    publications.publish("narrow", rows(*range(3000)), "a")
    groups = {}
    for view in ("v", "narrow"):
        found = pq.ParquetFile(next(Path(publications.uri(view, "a")).glob("*.parquet")))
        assert found.metadata.num_rows == 3000
        groups[view] = [found.metadata.row_group(i).num_rows for i in range(found.metadata.num_row_groups)]
    # Eight MiB decoded, whatever zstd makes of them.
    assert max(groups["v"]) * 16_384 <= module.GROUP_BYTES and groups["narrow"] == [3000]


def test_a_version_comes_back(publications):
    for version, value in (("a", 1), ("b", 2), ("a", 1)):
        publications.publish("v", rows(value), version)
    assert publications.current("v").version == "a" and publications.current("v").previous == "b"
    assert read(publications) == [1]


def test_a_killed_writer_leaves_what_counted(publications, tmp_path):
    publications.publish("v", rows(1), "a")

    def dies():
        yield rows(5).to_batches()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publications.publish("v", pa.RecordBatchReader.from_batches(rows(5).schema, dies()), "b")
    assert publications.current("v").version == "a" and read(publications) == [1]
    publications.publish("v", rows(6), "b")
    assert read(publications) == [6], "what the killed writer left is not read"


def test_large_views_are_cut_into_files_and_empty_ones_keep_their_schema(publications, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 2)
    batches = rows(*range(5)).to_batches(max_chunksize=1)
    publications.publish("v", pa.RecordBatchReader.from_batches(rows(0).schema, batches), "a")
    assert len(list((Path(publications.root) / "v" / "a").iterdir())) == 3
    assert read(publications) == list(range(5))
    publications.publish("v", rows(), "b")
    assert read(publications) == [] and publications.current("v").num_rows == 0


@pytest.mark.services
def test_object_storage_is_the_same(monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "AWS_ACCESS_KEY_ID": "key/with+signs",
            "AWS_SECRET_ACCESS_KEY": "secret/+=",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }
        boto3.client(
            "s3",
            endpoint_url=options["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="k",
            aws_secret_access_key="s",
        ).create_bucket(Bucket="bucket")
        publications = Publications("s3://bucket/offline", options)
        for version, value in zip("abc", range(3), strict=True):
            assert publications.publish("v", rows(value), version) is True
        assert publications.publish("v", rows(0), "c") is False
        assert read(publications) == [2] and publications.current("v").previous == "b"
        assert not publications.exists("v", "a")
    finally:
        server.stop()


def test_the_pointer_is_plain_text(publications):
    publications.publish("v", rows(1), "a", "c1")
    said = json.loads((Path(publications.root) / "v" / POINTER).read_text())
    assert said["version"] == "a" and said["content_version"] == "c1" and said["published_at"]
