"""The vision interpreter on tiny random checkpoints: does the model really see the image, and only as it should?"""

import pytest
import torch

from ray_jobs.interpretation.interpreter import DETERMINISTIC, INVALID, InterpretationParameters
from ray_jobs.language.engine import EngineSetupError
from tests.ray_jobs.interpretation.checkpoints import tiny_idefics3, tiny_llava
from tests.ray_jobs.interpretation.contents import HOSTILE, blank, content, interpreter, picture
from tests.ray_jobs.language.checkpoints import tiny_llama

ENGINE = {"kind": "transformers", "revision": "r", "dtype": "float32", "batch_size": 4}
RED, BLUE = picture("red"), picture("blue", "SALE")
SHORT = InterpretationParameters(max_json_tokens=32)


@pytest.fixture(scope="module", params=[tiny_idefics3, tiny_llava])
def engine(request, tmp_path_factory):
    folder = request.param(tmp_path_factory.mktemp(request.param.__name__))
    return interpreter("vision", ENGINE | {"model": str(folder)}, SHORT)


def logits(engine, images, text="<item>\ntitle: Shoe\n</item>"):
    """Logits of the first token of the answer."""
    from ray_jobs.interpretation.vision_interpreter import _decoded

    inputs = engine._inputs(engine.prompt.json_messages(0), [text] * max(len(images), 1), [_decoded(i) for i in images])
    with torch.inference_mode():
        return inputs, engine.model(**inputs).logits[:, -1]


def test_the_prompt_holds_the_image_and_the_image_decides(engine):
    inputs, seen = logits(engine, [RED, BLUE, blank(RED), RED])
    (image_id,) = engine.image_ids
    assert (inputs["input_ids"] == image_id).sum(1).unique().numel() == 1 and (inputs["input_ids"] == image_id).any()
    assert torch.allclose(seen[0], seen[3], atol=1e-4)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (seen[one] - seen[other]).abs().max() > 1e-3, "another image, another answer"
    alone, unseen = logits(engine, [])
    assert not (alone["input_ids"] == image_id).any() and (seen[0] - unseen[0]).abs().max() > 1e-3


def test_items_cannot_bring_images_or_turns_of_their_own(engine):
    count = []
    for text in ("<item>\ntitle: Shoe\n</item>", f"<item>\ntitle: {HOSTILE} [<image>]\n</item>"):
        inputs, _ = logits(engine, [RED], text)
        ids = inputs["input_ids"][0].tolist()
        special = set(engine.tokenizer.all_special_ids)
        count.append(sum(i in special for i in ids))
    assert count[0] == count[1]


def test_a_template_that_shows_another_number_of_images_is_an_error(engine, monkeypatch):
    template = engine.processor.chat_template
    for wrong in (template.replace("<image>", ""), template.replace("<image>", "<image><image>")):
        monkeypatch.setattr(engine.processor, "chat_template", wrong)
        with pytest.raises(EngineSetupError, match="images where 1 belongs"):
            engine.interpret([content("a", "Shoe", image=RED)], 0)


def test_random_weights_that_never_come_to_an_end_are_cut(engine):
    answers = engine.interpret([content("a", "Shoe", image=RED), content("b", "Shoe")], 0)
    for answer in answers:
        assert (answer.record, answer.error_class, answer.problem.reason) == (None, INVALID, "cut")
        assert answer.finish == "length" and answer.calls[0].outcome == "cut"
        assert answer.calls[0].completion_tokens == 32 and answer.text.startswith('{"caption": "')
    assert answers[0].calls[0].image_tokens > 0 == answers[1].calls[0].image_tokens


def test_images_may_be_left_unseen(engine):
    blind = interpreter("vision", ENGINE | {"model": engine.config.engine.model}, SHORT, sees_images=False)
    seen, unseen = (e.interpret([content("a", "Shoe", image=RED)], 0)[0] for e in (engine, blind))
    assert unseen.calls[0].image_tokens == 0 < seen.calls[0].image_tokens
    assert unseen.text == engine.interpret([content("a", "Shoe")], 0)[0].text


def test_a_content_that_is_too_long_does_not_fail_the_others(tmp_path):
    folder = tiny_idefics3(tmp_path, context=1_500)
    engine = interpreter("vision", ENGINE | {"model": str(folder)}, SHORT)
    short, long = content("a", "Shoe"), content("b", "Shoe", description="qx" * 190)
    good, bad = engine.interpret([short, long._replace(text=long.text * 3)], 0)
    assert good.calls and (bad.error_class, bad.problem.reason, bad.calls) == (DETERMINISTIC, "too_long", ())


def test_an_image_that_cannot_be_read_reserves_nothing_and_fails_no_other(engine):
    contents = [content("a", "Shoe", image=RED), content("b", "Shoe", image=b"\xff\xd8 no image"), content("c", "Shoe")]
    most = engine.most_tokens(contents)
    assert most[1] == 0 and [most[0], most[2]] == engine.most_tokens([contents[0], contents[2]])
    bad = engine.interpret(contents[1:2], 0)[0]
    assert (bad.problem.reason, bad.calls) == ("image_unreadable", ())


def test_what_cannot_be_used_is_one_sentence(tmp_path):
    with pytest.raises(EngineSetupError, match="no checkpoint .*BELVEDERE_VLM_MODEL"):
        interpreter("vision", ENGINE | {"model": str(tmp_path)})
    text_only = tiny_llama(tmp_path / "text")
    with pytest.raises(EngineSetupError, match="image-text-to-text") as error:
        interpreter("vision", ENGINE | {"model": str(text_only)})
    assert "\n" not in str(error.value)
    base = tiny_llava(tmp_path / "base")
    for name in ("chat_template.jinja", "chat_template.json"):
        (base / name).unlink(missing_ok=True)
    with pytest.raises(EngineSetupError, match="no chat template"):
        interpreter("vision", ENGINE | {"model": str(base)})
