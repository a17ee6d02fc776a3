"""A training step of causal VISTA, beside bidirectional VISTA and beside itself without chunks.

Without chunks, the masked product is over all events, quadratic in them; its summaries and gradients are proven equal
to those in chunks first. Bidirectional VISTA is another model of the same size. 8,192 events a batch.
"""

import torch
from torch import Tensor

from benchmarks.long_history import synthetic
from benchmarks.long_history.claims import Finding, Options, prove_equal
from benchmarks.long_history.stage1 import SHAPE
from benchmarks.measuring import alternate
from models import causal_attention
from models.long_history.families import FAMILIES
from models.long_history.inputs import History, Items
from models.long_history.interface import HistoryModel

LENGTHS, EVENTS, CANDIDATES = (128, 512, 2048), 8192, 16


def batch(length: int, users: int) -> tuple[History, Items]:
    """Histories of equal length, and candidates."""
    made = [synthetic.whole(length, seed) for seed in range(users)]
    columns = [torch.cat([history[at] for history in made]) for at in range(1, 6)]
    items = Items(torch.cat([h.items.ids for h in made]), torch.cat([h.items.codes for h in made]))
    asked = [synthetic.candidates(CANDIDATES, seed) for seed in range(users)]
    return History(items, *columns), Items(torch.cat([c.ids for c in asked]), torch.cat([c.codes for c in asked]))


def step(model: HistoryModel, history: History, items: Items, chunk: int = causal_attention.CHUNK) -> list[Tensor]:
    """Gradients of one step."""
    usual, causal_attention.CHUNK = causal_attention.CHUNK, chunk
    try:
        model.zero_grad()
        output = model(history, items)
        (output.logits_BC.square().mean() + output.auxiliary).backward()
    finally:
        causal_attention.CHUNK = usual
    return [p.grad for p in model.parameters() if p.grad is not None]


def measure(options: Options) -> list[Finding]:
    """See the module."""
    torch.manual_seed(0)
    arguments = synthetic.SIZES | SHAPE | {"dropout": 0.0, "item_dropout": 0.0}
    models = {name: FAMILIES[name].build(**arguments).train() for name in ("vista", "vista_causal")}
    causal, found = models["vista_causal"], []
    for length in (options.size(length) for length in LENGTHS):
        history, items = batch(length, max(options.size(EVENTS) // length, 1))
        chunked, whole = ([g.clone() for g in step(causal, history, items, size)] for size in (32, length))
        difference = max(
            prove_equal("gradients in chunks", *pair, relative=1e-3) for pair in zip(chunked, whole, strict=True)
        )
        timed = alternate(
            {
                "chunks": lambda h=history, c=items: step(causal, h, c),
                "one matrix": lambda h=history, c=items, size=length: step(causal, h, c, size),
                "bidirectional": lambda h=history, c=items: step(models["vista"], h, c),
            },
            options.repeats,
        )
        for peer in ("one matrix", "bidirectional"):
            each = (
                f"{1e3 * timed[name].cpu:.0f} ms [{1e3 * min(timed[name].cpu_seconds):.0f}, "
                f"{1e3 * max(timed[name].cpu_seconds):.0f}]"
                for name in (peer, "chunks")
            )
            proof = f"; gradients equal within {difference:.0e}" if peer == "one matrix" else ""
            claim = f"training step of causal VISTA, {length:,} events: CPU time of {peer} over chunks"
            ratio = timed[peer].cpu / timed["chunks"].cpu
            found.append(Finding(claim, "", ratio, None, " against ".join(each) + proof))
    return found
