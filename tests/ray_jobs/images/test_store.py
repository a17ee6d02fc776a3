"""The contract of `ImageStore`, held by a local folder and by object storage alike."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from ray_jobs.artifacts import ArtifactStore
from ray_jobs.images.store import ImageStore

FIRST, SECOND = "ab" * 16, "cd" * 16
ONE, TWO = b"one\xff\xd9", b"two\xff\xd9"


@pytest.fixture(params=["local", pytest.param("object_storage", marks=pytest.mark.services)])
def store(request, tmp_path):
    if request.param == "local":
        return ImageStore.of(ArtifactStore(str(tmp_path / "artifacts")))
    options = request.getfixturevalue("object_store")
    return ImageStore.of(ArtifactStore(f"s3://lake/{tmp_path.name}", options))


def test_what_is_put_is_got(store):
    assert FIRST not in store
    assert store.put(FIRST, ONE) and not store.put(FIRST, TWO)
    assert FIRST in store and store.get(FIRST) == ONE, "a digest names its content"
    store.put(SECOND, TWO)
    assert store.get_many([SECOND, None, FIRST, SECOND]) == [TWO, None, ONE, TWO]
    assert pickle.loads(pickle.dumps(store)) == store and pickle.loads(pickle.dumps(store)).get(FIRST) == ONE


@pytest.mark.parametrize("left", [b"", b"\xd9", b"one", bytes(100)])
def test_a_damaged_file_counts_as_absent_and_is_written_again(store, left):
    store.put(FIRST, ONE)
    with store._place[0].open_output_stream(store._path(FIRST)) as stream:
        stream.write(left)
    assert FIRST not in store
    assert store.put(FIRST, ONE) and FIRST in store and store.get(FIRST) == ONE


def test_what_is_missing_is_named(store):
    with pytest.raises(FileNotFoundError, match=f"Image {FIRST} is not in .*/images: materialize captions/item_images"):
        store.get_many([FIRST])
    for digest in ("", "../../etc/passwd", "a/b"):
        with pytest.raises(ValueError, match="is no pixel digest"):
            store.get(digest)


def test_writers_of_one_image_do_not_meet(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.put(FIRST, bytes(100_000) + ONE), range(16)))
    assert store.get(FIRST) == bytes(100_000) + ONE


def test_a_folder_holds_whole_files_only(tmp_path):
    store = ImageStore(str(tmp_path))
    store.put(FIRST, ONE)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [f"images/ab/{FIRST}.jpg"]
