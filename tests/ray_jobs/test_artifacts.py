"""The artifact store: a directory is there whole, or not at all."""

import pyarrow.fs as pafs
import pytest

from ray_jobs.artifacts import ArtifactStore


def test_a_writer_killed_in_mid_rewrite_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    store = ArtifactStore(str(tmp_path / "store"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "quality.json").write_text('{"fine": true}')
    store.put(tmp_path / "new", "quality/v1")
    assert store.exists("quality/v1")

    def killed(*args, **kwargs):
        (tmp_path / "store" / "quality" / "v1" / "quality.json").write_text('{"fi')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pafs, "copy_files", killed)
        store.put(tmp_path / "new", "quality/v1")
    assert not store.exists("quality/v1")
    store.put(tmp_path / "new", "quality/v1")
    with store.local("quality/v1") as folder:
        assert (folder / "quality.json").read_text() == '{"fine": true}'
