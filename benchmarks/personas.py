"""Personas a second: teacher and student, each beside plain batched `transformers` generate on the same prompts.

    python -m benchmarks.personas --users 8 --repeats 1 --adapter <folder of a student>

Requests are those of the finished lineage below BELVEDERE_HOME: interests and topics of its most active users. Same
weights, threads and batches, float32, greedy decoding. The peer is what one would write first: left-padded batches of
whole prompts through ``model.generate``. Texts are compared before anything is timed: sums in another order may flip a
near tie, so that 95 % have to be equal.

* Teacher: the sentences, without its ban on repeated n-grams, which `generate` would apply to the prompt, too. Its
  choices are scores of given texts and have no peer in ``generate``.
* Student: the whole answer, both held to the same grammars. Without --adapter the untaught base writes.

Then both write whole personas of the same users: calls, tokens, and seconds for 1,000 users.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import Timing, alternate, machine
from orchestration.quiet import be_quiet

be_quiet()

MIN_EQUAL = 0.95
MAX_NEW_TOKENS, MAX_INTERESTS = 40, 3


def requests_of(home: Path, count: int) -> list[Any]:
    """The requests of the most active users."""
    from models.personas.exploration import ExplorationConfig
    from models.personas.interests import InterestConfig
    from ray_jobs.personas.planning import make_plan
    from ray_jobs.personas.prompts import Request
    from ray_jobs.warehouse import Warehouse

    plan = make_plan(
        Warehouse(str(home / "warehouse")),
        interests=InterestConfig(max_interests=MAX_INTERESTS),
        exploration=ExplorationConfig(),
        token_budget=count,
        tokens_of=lambda request: 1,
        identity={},
    )
    return [Request.model_validate_json(request) for request in plan.users["request"]]


def plain_generate(
    ours: Any, plain: Any, shared: Any, users: list[str], limit: int, stop: str | None, schemas: list[Any]
) -> list[str]:
    """Left-padded batches of whole prompts through ``model.generate``; under grammars where there are schemas."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
    from xgrammar.contrib.hf import LogitsProcessor

    from ray_jobs.language.chat_prompts import render

    prompts, size = render(ours.tokenizer, shared, users), ours.config.batch_size
    rules: dict[str, Any] = {}
    if stop:
        rules["stopping_criteria"] = StoppingCriteriaList([StopStringCriteria(ours.tokenizer, [stop])])
    texts: list[str] = []
    for start in range(0, len(prompts), size):
        if schemas:
            held = [ours.grammars.compiled(schema) for schema in schemas[start : start + size]]
            rules["logits_processor"] = LogitsProcessorList([LogitsProcessor(held)])
        batch = ours.tokenizer.pad(
            {"input_ids": prompts[start : start + size]}, padding_side="left", return_tensors="pt"
        )
        with torch.inference_mode():
            out = plain.generate(
                **batch,
                max_new_tokens=limit,
                do_sample=False,
                pad_token_id=ours.pad_id,
                eos_token_id=ours.end_ids,
                **rules,
            )
        decoded = ours.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        texts += [(text.split(stop, 1)[0] if stop else text).strip() for text in decoded]
    return texts


def compare(name: str, ours: Callable[[], list[str]], peer: Callable[[], list[str]], users: int, repeats: int) -> None:
    """Proves that the texts are equal, times both, prints the ratio."""
    mine, theirs = ours(), peer()
    equal = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)
    print(f"{name}: {len(mine)} texts, equal to transformers' {equal:.1%}")
    if equal < MIN_EQUAL:
        raise SystemExit(f"Fewer than {MIN_EQUAL:.0%} of the texts are equal: nothing is timed.")
    timed: dict[str, Timing] = alternate({"belvedere": ours, "transformers": peer}, repeats, warm=True)
    for who, timing in timed.items():
        ratio = timing.median / timed["belvedere"].median
        print(f"  {who:13} {timing.text(users, 'personas'):34} belvedere is {ratio:.2f}x as fast")


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--users", type=int, default=8)
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--threads", type=int, default=1, help="threads of every contender")
    options.add_argument("--adapter", default="", help="folder of a student's PEFT adapter")
    said = options.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    from models.language.adapters import merge_adapter
    from orchestration.resources.language_model import EmbeddedLanguageModel
    from orchestration.settings import Settings
    from ray_jobs.language.checkpoints import checkpoint_folder
    from ray_jobs.language.engine import load_engine
    from ray_jobs.personas.prompts import ask_interest, interest_messages
    from ray_jobs.personas.student import MAX_ANSWER_TOKENS, StudentWriter, ask_student, student_messages
    from ray_jobs.personas.teacher import TeacherWriter

    torch.set_num_threads(said.threads)
    home = Path(Settings().home)
    base = EmbeddedLanguageModel(cache_dir=str(home / "models"), dtype="float32").engine()
    requests = requests_of(home, said.users)
    print(f"{len(requests)} users, {said.threads} threads, float32, {machine()}")

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(checkpoint_folder(base), dtype=torch.float32).eval()

    teacher, plain = load_engine(base), loaded()
    sentences = [ask_interest(interest) for request in requests for interest in request.interests]
    told = list(interest_messages())
    compare(
        "teacher's sentences",
        lambda: [c.text for c in teacher.complete(told, sentences, MAX_NEW_TOKENS)],
        lambda: plain_generate(teacher, plain, told, sentences, MAX_NEW_TOKENS, "\n", []),
        len(requests),
        said.repeats,
    )
    student = load_engine(base.model_copy(update={"adapter": said.adapter})) if said.adapter else teacher
    taught = merge_adapter(plain, said.adapter) if said.adapter else plain
    questions = [ask_student(request) for request in requests]
    asked, schemas = [q.user for q in questions], [q.schema for q in questions]
    shared = list(student_messages())
    compare(
        "student's personas",
        lambda: [c.text for c in student.complete(shared, asked, MAX_ANSWER_TOKENS, stop=None, schemas=schemas)],
        lambda: plain_generate(student, taught, shared, asked, MAX_ANSWER_TOKENS, None, schemas),
        len(requests),
        said.repeats,
    )
    writers = {"teacher": TeacherWriter(teacher, MAX_NEW_TOKENS), "student": StudentWriter(student)}
    spent = {}
    for name, writer in writers.items():
        before = writer.engine.usage
        writer.write(requests)
        spent[name] = writer.engine.usage.minus(before)
    timed = alternate(
        {name: (lambda w=writer: w.write(requests)) for name, writer in writers.items()}, said.repeats, warm=True
    )
    for name, usage in spent.items():
        tokens = (usage.prompt_tokens + usage.completion_tokens) / len(requests)
        print(
            f"whole personas, {name}: {usage.calls / len(requests):.1f} calls and {tokens:,.0f} tokens a user "
            f"({usage.completion_tokens / len(requests):,.0f} generated), "
            f"{1000 * timed[name].median / len(requests):,.0f} s for 1,000 users"
        )
    print(f"the student is {timed['teacher'].median / timed['student'].median:.2f}x as fast as the teacher")


if __name__ == "__main__":
    main()
