"""The interpreter's twins: what settings choose, and that each can be used as it says."""

import pytest

from orchestration.resources.choice import resources
from orchestration.resources.interpreter import CheckpointInterpreter, LanguageModelInterpreter
from orchestration.settings import Settings
from ray_jobs.interpretation.interpreter import InterpretationParameters
from ray_jobs.interpretation.loading import load_interpreter
from ray_jobs.language.engine import EngineSetupError
from tests.ray_jobs.interpretation.checkpoints import tiny_llava
from tests.ray_jobs.interpretation.contents import content, picture, record_json
from tests.ray_jobs.language.checkpoints import tiny_llama
from tests.ray_jobs.language.fault_server import FaultServer


def twin(tmp_path, **settings):
    return resources(Settings(home=tmp_path, **settings))["interpreter"]


def test_settings_choose_the_twin(tmp_path):
    embedded = twin(tmp_path, caption_token_budget=7, caption_usd_budget=1.5)
    assert isinstance(embedded, LanguageModelInterpreter)
    assert (embedded.caption_token_budget, embedded.caption_usd_budget) == (7, 1.5)
    config = embedded.interpreter()
    assert (config.kind, config.engine.kind, config.sees_images) == ("evidence", "transformers", True)
    at = {"llm_base_url": "http://host/v1", "llm_model": "m"}
    remote = twin(tmp_path, **at).interpreter()
    assert (remote.kind, remote.engine.kind, remote.sees_images) == ("endpoint", "openai", True)
    assert not twin(tmp_path, **at, llm_sees_images=False).interpreter().sees_images
    assert twin(tmp_path, llm_sees_images=False).interpreter().sees_images, "nobody sends images anywhere"
    assert not twin(tmp_path, look_at_images=False).interpreter().sees_images
    vision = twin(
        tmp_path, **at, vlm_model="/models/vlm", vlm_dtype="bfloat16", vlm_device="cuda", vlm_attention="eager"
    )
    assert isinstance(vision, CheckpointInterpreter) and vision.folder == "/models/vlm"
    with pytest.raises(EngineSetupError, match="no checkpoint in /models/vlm.*BELVEDERE_VLM_MODEL"):
        vision.interpreter()


def test_identity_follows_whatever_decides_the_record(tmp_path):
    folder = str(tiny_llava(tmp_path / "vlm"))
    at = {"llm_base_url": "http://host/v1", "llm_model": "m"}
    identities = [
        tuple(sorted(twin(tmp_path, **changes).interpreter().identity.items()))
        for changes in (
            {},
            {"look_at_images": False},
            at,
            at | {"llm_sees_images": False},
            at | {"llm_revision": "2"},
            {"vlm_model": folder},
            {"vlm_model": folder, "vlm_dtype": "float32"},
            {"vlm_model": folder, "look_at_images": False},
        )
    ]
    assert len(set(identities)) == len(identities)
    costs_nothing = at | {"llm_usd_per_million_prompt_tokens": 3, "llm_max_in_flight": 2}
    assert twin(tmp_path, **costs_nothing).interpreter().identity == twin(tmp_path, **at).interpreter().identity


@pytest.mark.parametrize("kind", ["evidence", "vision", "endpoint"])
def test_every_twin_interprets(tmp_path, kind):
    with FaultServer(lambda body, n: record_json()) as server:
        settings = {
            "evidence": lambda: {"llm_model": str(tiny_llama(tmp_path / "llm", context=4096))},
            "vision": lambda: {"vlm_model": str(tiny_llava(tmp_path / "vlm"))},
            "endpoint": lambda: {"llm_base_url": server.url, "llm_model": "m"},
        }[kind]()
        config = twin(tmp_path, **settings).interpreter()
        assert config.kind == kind and type(config).model_validate_json(config.model_dump_json()) == config
        engine = load_interpreter(config, "item_caption", InterpretationParameters(max_json_tokens=1_500))
        answers = engine.interpret([content("a", "Shoe"), content("b", "Shirt", image=picture("red"))], 0)
        assert [a.problem for a in answers] == [None, None] and all(a.record and a.calls for a in answers)
