"""Where images may be read from, on disk and on object storage."""

import os

import pyarrow.fs as pafs
import pytest

from ray_jobs.images.limits import ImageLimits
from ray_jobs.images.reasons import ImageRefusedError
from ray_jobs.images.sources import SourceConfig, SourceReader
from tests.ray_jobs.images.hostile import JPEG, PNG


@pytest.fixture
def shop(tmp_path):
    """A dataset's folder, and files beside it that are none of its business."""
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "shop-of-others").mkdir()
    (tmp_path / "shop-of-others" / "b.png").write_bytes(PNG)
    (folder / "images" / "inside.png").symlink_to(folder / "images" / "a.png")
    (folder / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "images" / "ring.png").symlink_to(folder / "images" / "ring.png")
    (folder / "images" / "large.png").write_bytes(PNG + bytes(2 << 20))
    os.mkfifo(folder / "images" / "pipe.png")
    return folder


def reader(folder, **more):
    return SourceReader(SourceConfig(folder=str(folder), **more), ImageLimits(max_bytes=1 << 20))


@pytest.mark.parametrize("uri", ["images/a.png", "./images/a.png", "images/../images/a.png", "images/inside.png"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_paths_below_the_folder_are_read(shop, uri, scheme):
    made = reader(f"{scheme}{shop}")
    data, fingerprint = made.read(uri)
    assert data == PNG and made.read(uri, fingerprint) == (None, fingerprint)


@pytest.mark.parametrize(
    "uri, reason",
    [
        ("../secret.png", "outside_dataset"),
        ("images/../../secret.png", "outside_dataset"),
        ("../shop-of-others/b.png", "outside_dataset"),
        ("images/out.png", "outside_dataset"),
        ("elsewhere/secret.png", "outside_dataset"),
        ("/etc/passwd", "outside_dataset"),
        ("{shop}/images/a.png", "outside_dataset"),
        ("file://{shop}/images/a.png", "outside_dataset"),
        ("FILE:///etc/passwd", "outside_dataset"),
        ("~/secret.png", "outside_dataset"),
        ("images/a.png\0.jpg", "outside_dataset"),
        ("s3://other-bucket/a.png", "outside_dataset"),
        ("memory://anywhere/a.png", "outside_dataset"),
        ("ftp://host/a.png", "unsupported_scheme"),
        ("data:image/png;base64,AAAA", "unsupported_scheme"),
        ("http://host/a.png", "remote_off"),
        ("http://[oops/a.png", "bad_address"),
        ("http://user:pw@[oops/a.png", "bad_address"),
        ("https://ex\u2100mple.com/a.png", "bad_address"),
        ("s3://[bucket/a.png", "bad_address"),
        ("images/none.png", "not_found"),
        ("images/a.png/b.png", "not_found"),
        ("images/ring.png", "not_found"),
        ("images", "not_a_file"),
        ("images/pipe.png", "not_a_file"),
        ("x" * 5000, "not_found"),
        ("images/large.png", "too_many_bytes"),
    ],
)
def test_everything_else_is_refused_in_a_sentence(shop, uri, reason):
    with pytest.raises(ImageRefusedError) as found:
        reader(shop).read(uri.format(shop=shop))
    assert found.value.reason == reason, str(found.value)
    assert len(str(found.value)) < 400 and str(found.value).endswith(".") and "pw" not in str(found.value)


def test_a_changed_file_is_read_again(shop):
    made = reader(shop)
    before = made.read("images/a.png").fingerprint
    (shop / "images" / "a.png").write_bytes(JPEG)
    assert made.read("images/a.png", before).data == JPEG


def test_what_is_too_large_is_known_by_its_fingerprint(shop):
    with pytest.raises(ImageRefusedError) as found:
        reader(shop).read("images/large.png")
    made = reader(shop)
    assert found.value.fingerprint and made.read("images/large.png", found.value.fingerprint).data is None


def test_storage_of_any_kind_is_read_below_its_roots():
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("/bucket/shop/images/a.png", "/bucket/pictures/b.png", "/bucket/secret.png"):
        files.pipe(name, PNG)
    made = reader("memory://bucket/shop", roots=("memory://bucket/pictures",))
    for uri in ("images/a.png", "memory://bucket/shop/images/a.png", "memory://bucket/pictures/b.png"):
        data, fingerprint = made.read(uri)
        assert data == PNG and made.read(uri, fingerprint).data is None
    for uri in ("memory://bucket/secret.png", "../secret.png", "memory://bucket/shop/../secret.png"):
        with pytest.raises(ImageRefusedError, match="is not below"):
            made.read(uri)
    with pytest.raises(ImageRefusedError, match="There is no file"):
        made.read("images/none.png")


@pytest.mark.services
def test_images_of_a_bucket_are_read_with_the_configured_credentials(object_store):
    files, _ = _bucket(object_store)
    with files.open_output_stream("lake/shop/images/a.png") as stream:
        stream.write(PNG)
    made = reader("s3://lake/shop", storage_options=object_store)
    data, fingerprint = made.read("images/a.png")
    assert data == PNG and made.read("s3://lake/shop/images/a.png", fingerprint).data is None
    broken = reader("s3://lake/shop", storage_options=object_store | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    with pytest.raises(ImageRefusedError) as found:
        broken.read("images/a.png")
    assert found.value.reason == "read_error" and found.value.transient


def _bucket(options):
    from ray_jobs.filesystems import filesystem_at

    files, path = filesystem_at("s3://lake", options)
    assert isinstance(files, pafs.S3FileSystem)
    return files, path
