"""Fine-tunes the student on lessons by Ray Train: an adapter on a frozen base, loss on the answers' tokens only."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pydantic
import torch
import torch.nn.functional as F

from models.language.adapters import AdaptedModel, LoraSettings
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.language.chat_prompts import render
from ray_jobs.language.checkpoints import checkpoint_folder
from ray_jobs.language.engine import LanguageEngineConfig
from ray_jobs.personas.lessons import DEV, TRAIN, Lesson, get_lessons
from ray_jobs.personas.student import student_messages
from ray_jobs.training_task import Loss, Task, TrainingOptions

IGNORED = -100


class TaskConfig(pydantic.BaseModel, frozen=True):
    """What a worker needs to know."""

    engine: LanguageEngineConfig = pydantic.Field(description="The base; in-process only.")
    artifacts: ArtifactStore = pydantic.Field(description="Where lessons, checkpoints and the adapter are.")
    lessons: str = pydantic.Field(description="Artifact of the lessons.")
    lora: LoraSettings = pydantic.Field(LoraSettings(), description="Size and place of the adapter.")
    training: TrainingOptions = pydantic.Field(description="How it is trained.")
    batch_size: int = pydantic.Field(8, ge=1, description="Lessons in a step, of all workers.")
    max_tokens: int = pydantic.Field(512, ge=16, description="Longer lessons are left out.")
    recompute: bool = pydantic.Field(False, description="Whether the backward pass computes activations anew.")


class Batch(NamedTuple):
    """B lessons, left-padded, so that their answers end at the same place.

    Attributes:
        ids_BL: Tokens.
        valid_BL: Which of them are no padding.
        labels_BA: The answers' tokens at the last A places; `IGNORED` before them.
    """

    ids_BL: torch.Tensor
    valid_BL: torch.Tensor
    labels_BA: torch.Tensor


def tokenize(tokenizer: Any, lessons: list[Lesson]) -> list[tuple[list[int], list[int]]]:
    """Token ids of every question, as engines render it, and of its answer with an end token."""
    prompts = render(tokenizer, list(student_messages()), [lesson.question for lesson in lessons])
    if not lessons:
        return []
    answers = tokenizer([lesson.answer for lesson in lessons], add_special_tokens=False)["input_ids"]
    return [(p, [*a, tokenizer.eos_token_id]) for p, a in zip(prompts, answers, strict=True)]


def collate(rows: list[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    """Lessons as one batch."""
    longest, answers = max(len(p) + len(a) for p, a in rows), max(len(a) for _, a in rows)
    ids = torch.full((len(rows), longest), pad_id)
    valid = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), answers), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, longest - len(prompt) - len(answer) :] = torch.tensor([*prompt, *answer])
        valid[row, longest - len(prompt) - len(answer) :] = 1
        labels[row, answers - len(answer) :] = torch.tensor(answer)
    return Batch(ids, valid, labels)


def answer_loss(model: torch.nn.Module, batch: Batch, reduction: str) -> torch.Tensor:
    """Cross-entropy of the answers' tokens."""
    # The place before a token predicts it.
    logits = model(batch.ids_BL, batch.valid_BL, batch.labels_BA.shape[1] + 1)[:, :-1]
    return F.cross_entropy(
        logits.float().flatten(0, 1), batch.labels_BA.flatten(), ignore_index=IGNORED, reduction=reduction
    )


class StudentTask(Task):
    """Supervised fine-tuning on the teacher's answers (sequence-level distillation: arXiv 1606.07947)."""

    stage = "persona student"
    metric = "loss_dev"
    mode = "min"

    def __init__(self, config: TaskConfig):
        from transformers import AutoTokenizer

        self.config = config
        self.folder = checkpoint_folder(config.engine)
        tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        self.pad_id = tokenizer.eos_token_id
        parts = {p: tokenize(tokenizer, get_lessons(config.artifacts, config.lessons, p)) for p in (TRAIN, DEV)}
        self.rows = {p: [r for r in rows if len(r[0]) + len(r[1]) <= config.max_tokens] for p, rows in parts.items()}
        self.left_out = sum(len(parts[p]) - len(self.rows[p]) for p in parts)
        for part, rows in self.rows.items():
            if not rows:
                raise ValueError(
                    f"There is no lesson of at most {config.max_tokens} tokens in the part `{part}`: "
                    "raise token_budget or max_tokens."
                )

    def build_model(self) -> torch.nn.Module:
        """See `Task.build_model`."""
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True)
        model = AdaptedModel(base, self.config.lora)
        if self.config.recompute:
            # After the adapter: PEFT would else have frozen embeddings take part in the backward pass.
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def train_batches(self, epoch: int, rank: int, world: int) -> Iterator[Batch]:
        """See `Task.train_batches`."""
        rows, size = self.rows[TRAIN], max(self.config.batch_size // world, 1)
        order = np.random.default_rng([self.config.training.seed, epoch]).permutation(len(rows))
        steps = -(-len(rows) // (size * world))
        # The last batch is filled up from the first, so that all ranks have the same number.
        order = np.resize(order, steps * size * world)
        for step in range(steps):
            start = (step * world + rank) * size
            yield collate([rows[i] for i in order[start : start + size]], self.pad_id)

    def num_examples(self, world: int) -> int:
        """See `Task.num_examples`."""
        return -(-len(self.rows[TRAIN]) // world)

    def loss(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """See `Task.loss`."""
        return Loss(answer_loss(model, batch, "mean"), len(batch.ids_BL))

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """See `Task.evaluate`."""
        device = next(model.parameters()).device
        total, tokens, rows = 0.0, 0, self.rows[DEV]
        for start in range(0, len(rows), self.config.batch_size):
            batch = collate(rows[start : start + self.config.batch_size], self.pad_id)
            batch = Batch(*(x.to(device) for x in batch))
            total += float(answer_loss(model, batch, "sum"))
            tokens += int((batch.labels_BA != IGNORED).sum())
        return {"loss_dev": total / tokens}

    def final_metrics(self, model: torch.nn.Module) -> dict[str, float]:
        """See `Task.final_metrics`."""
        return {
            "lessons_train": len(self.rows[TRAIN]),
            "lessons_dev": len(self.rows[DEV]),
            "lessons_too_long": self.left_out,
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }

    def constructor(self) -> dict[str, Any]:
        """See `Task.constructor`."""
        return {"base": self.config.engine.identity, "lora": pydantic.RootModel(self.config.lora).model_dump()}

    def optimizer(self, model: torch.nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
        """AdamW on what learns."""
        learning = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, lr=options.learning_rate, weight_decay=options.weight_decay)


def build_task(config: TaskConfig) -> StudentTask:
    """The task, as `ray_jobs.training.fit` wants it."""
    return StudentTask(config)
