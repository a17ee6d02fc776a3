"""Lessons, and the fine-tuning on them: what learns, what counts as loss, and what survives an interruption."""

import json

import pytest
import torch

from models.language.adapters import AdaptedModel, LoraSettings, merge_adapter, save_adapter
from models.language.sentences import Problem
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.personas.lessons import DEV, HELD, TRAIN, Lesson, get_lessons, lesson_of, part_of, put_lessons
from ray_jobs.personas.student import ask_student
from ray_jobs.personas.student_training import IGNORED, StudentTask, TaskConfig, answer_loss, build_task, collate
from ray_jobs.personas.writers import Written
from ray_jobs.training import fit
from ray_jobs.training_task import TrainingOptions
from tests.ray_jobs.language.checkpoints import tiny_config, tiny_llama
from tests.ray_jobs.personas.test_student import CRIME, REQUEST, SENTENCES, WAR

NOTHING = Problem("no_interest", "")
LESSONS = {
    TRAIN: [Lesson(f"<person>\n{word}\n</person>", json.dumps({"likes": word})) for word in ("war", "crime", "music")],
    DEV: [Lesson("<person>\nspace\n</person>", json.dumps({"likes": "space"}))],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture
def config(folder, tmp_path):
    artifacts = ArtifactStore(str(tmp_path / "artifacts"))
    return TaskConfig(
        engine=tiny_config(folder),
        artifacts=artifacts,
        lessons=put_lessons(artifacts, LESSONS),
        lora=LoraSettings(rank=4),
        training=TrainingOptions(epochs=3, patience=3, learning_rate=2e-2, seed=1),
        batch_size=2,
    )


def train(config, name):
    return fit(build_task, config, name=name, artifacts=config.artifacts, options=config.training)


def test_parts_are_disjoint_and_no_user_ever_moves():
    users = [f"u{i}" for i in range(2000)]
    parts = [part_of(u, 7, 0.1, 0.2) for u in users]
    assert parts == [part_of(u, 7, 0.1, 0.2) for u in users]
    assert parts.count(HELD) == pytest.approx(400, abs=60) and parts.count(DEV) == pytest.approx(200, abs=50)
    assert parts != [part_of(u, 8, 0.1, 0.2) for u in users]


def test_lessons_come_back_as_they_were(tmp_path):
    artifacts, odd = ArtifactStore(str(tmp_path)), [Lesson("a\u2028b\x85c", '{"x": "\u2029"}')]
    assert get_lessons(artifacts, put_lessons(artifacts, {TRAIN: odd}), TRAIN) == odd


def test_a_lesson_is_what_passed_the_gates():
    both = Written([(CRIME, SENTENCES[0]), (WAR, SENTENCES[1])], [(1, 7), (2, 9)], 2, NOTHING, True)
    lesson, question = lesson_of(REQUEST, both), ask_student(REQUEST)
    answer = question.parse(lesson.answer)
    assert lesson.question == question.user
    assert [c.items for c in answer.claims] == [(1, 2), (3, 4)] and answer.topics == (0, 1)
    only_war = lesson_of(REQUEST, both._replace(sentences=[(WAR, SENTENCES[1])]))
    assert "crime stories" not in only_war.answer and "1 Glory" in only_war.question
    assert lesson_of(REQUEST, both._replace(sentences=[])) is None
    assert lesson_of(REQUEST, both._replace(explored=[(1, 7)])) is None


def test_only_answers_count_and_padding_changes_nothing(config):
    task = StudentTask(config)
    torch.manual_seed(0)
    model = task.build_model().eval()
    rows = task.rows[TRAIN]
    batch = collate(rows, task.pad_id)
    assert int((batch.labels_BA != IGNORED).sum()) == sum(len(a) for _, a in rows)
    together = float(answer_loss(model, batch, "sum"))
    assert together == pytest.approx(
        sum(float(answer_loss(model, collate([r], task.pad_id), "sum")) for r in rows), rel=1e-4
    )
    seen = [[tuple(r.tolist()) for b in task.train_batches(e, 0, 1) for r in b.ids_BL] for e in (1, 1, 2)]
    assert seen[0] == seen[1] and len(seen[0]) == 4, "filled up, and the same for the same epoch"
    ranks = [list(task.train_batches(1, rank, 2)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])


def test_recomputed_activations_change_memory_and_nothing_else(config):
    found = []
    for recompute in (False, True):
        task = StudentTask(config.model_copy(update={"recompute": recompute}))
        torch.manual_seed(0)
        model = task.build_model().train()
        kept = {}

        def note(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = task.loss(model, collate(task.rows[TRAIN], task.pad_id)).total
        loss.backward()
        weights = sum(p.untyped_storage().nbytes() for p in model.parameters())
        found.append((loss.detach(), [p.grad for p in model.parameters() if p.requires_grad], sum(kept.values())))
    (loss, grads, kept), (again, gradients, less) = found
    assert torch.equal(loss, again) and grads and all(map(torch.equal, grads, gradients))
    assert less < kept - weights


def test_only_the_adapter_learns_and_it_is_all_that_is_kept(config):
    fitted = train(config, "one")
    losses = [record["loss"] for record in fitted.history]
    assert losses[-1] < losses[0] and fitted.final_metrics["lessons_train"] == 3
    weights = read_model(config.artifacts, "one").weights
    assert weights and all("lora_" in name for name in weights)
    assert sum(w.numel() for w in weights.values()) == fitted.final_metrics["trained_parameters"]
    assert fitted.final_metrics["trained_parameters"] < fitted.num_parameters / 2
    assert not train(config, "one").trained, "a finished training is not repeated"


def test_an_interrupted_training_resumes_bit_equal(config, monkeypatch):
    whole = train(config, "whole")
    batches = StudentTask.train_batches

    def breaks(self, epoch, rank, world):
        yield from batches(self, epoch, rank, world)
        if epoch == 2:
            raise OSError("the power went out")

    monkeypatch.setattr(StudentTask, "train_batches", breaks)
    with pytest.raises(OSError, match="power"):
        train(config, "broken")
    monkeypatch.setattr(StudentTask, "train_batches", batches)
    again = train(config, "broken")
    assert again.resumed_from_epoch == 1 and again.epochs == whole.epochs
    for name, weights in read_model(config.artifacts, "whole").weights.items():
        assert torch.equal(weights, read_model(config.artifacts, "broken").weights[name]), name


def test_a_merged_adapter_is_the_adapted_model(config, tmp_path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    task = StudentTask(config)
    model = task.build_model().eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.2)
    ids = torch.randint(5, 90, (2, 9))
    with torch.inference_mode():
        wanted = model(ids, torch.ones_like(ids), 9)
        save_adapter(model.state_dict(), config.lora, tmp_path)
        base = AutoModelForCausalLM.from_pretrained(task.folder)
        plain = base(ids).logits
        merged = merge_adapter(base, str(tmp_path))(ids).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-3, atol=1e-3)
    assert (plain - wanted).abs().max() > 0.1
    other = AdaptedModel(AutoModelForCausalLM.from_pretrained(task.folder), config.lora)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(other.eval()(ids, torch.ones_like(ids), 9), wanted)
    with pytest.raises(RuntimeError, match="another adapter"):
        other.load_state_dict({"x": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match="There is no adapter"):
        merge_adapter(base, str(tmp_path / "nowhere"))


def test_without_lessons_there_is_no_training(config):
    empty = put_lessons(config.artifacts, LESSONS | {DEV: []})
    with pytest.raises(ValueError, match="There is no lesson of at most 512 tokens in the part `dev`"):
        StudentTask(config.model_copy(update={"lessons": empty}))
