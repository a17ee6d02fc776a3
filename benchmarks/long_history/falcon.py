"""M-FALCON beside a pass for every candidate: 1,024 candidates of HSTU against one history.

Both start with nothing kept: M-FALCON runs the history once and the candidates in micro-batches against its keys and
values. The peer runs history and candidate together for each candidate; it gets them one by one and in batches, and
the faster of both is what counts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.long_history.claims import Finding, Options, prove_equal
from benchmarks.long_history.synthetic import SIZES, candidates, whole
from benchmarks.measuring import alternate
from models.long_history.hstu import Hstu, HstuConfig
from models.long_history.inputs import History, Items

WIDTH, HEADS, LAYERS = 32, 2, 2
EVENTS, CANDIDATES, TARGET = 1_000, 1_024, 20
BATCH = 16
"""Passes of the peer at once; more of them leave the cache."""


def measure(options: Options) -> list[Finding]:
    """See the package."""
    events, count = options.size(EVENTS), options.size(CANDIDATES)
    model, history, items = hstu(), whole(events), candidates(count)
    contenders: dict[str, Callable[[], Tensor]] = {
        "falcon": lambda: model.score(model.encode_history(history), items),
        "one by one": lambda: separate_passes(model, history, items, 1),
        "batched": lambda: separate_passes(model, history, items, BATCH),
    }
    with torch.inference_mode():
        kept = model.encode_history(history)
        difference = max(
            prove_equal(f"M-FALCON and passes {name}", contenders["falcon"](), contenders[name](), absolute=1e-4)
            for name in ("one by one", "batched")
        )
        slow = alternate(
            {name: contenders[name] for name in ("one by one", "batched")}, max(options.repeats // 2, 1), warm_up=False
        )
        fast = alternate(
            {"falcon": contenders["falcon"], "kept": lambda: model.score(kept, items)}, 4 * options.repeats
        )
    peer = min(slow.values(), key=lambda timing: timing.cpu)
    ratio = peer.cpu / fast["falcon"].cpu
    said = ", ".join(f"{name} {timing.cpu:.3f} s" for name, timing in slow.items())
    return [
        Finding(
            f"M-FALCON vs one pass per candidate: {count:,} candidates, {events:,} events, width {WIDTH}",
            f">= {TARGET}x",
            ratio,
            ratio >= TARGET,
            f"history and candidates {1e3 * fast['falcon'].cpu:.1f} ms "
            f"[{1e3 * min(fast['falcon'].cpu_seconds):.1f}, {1e3 * max(fast['falcon'].cpu_seconds):.1f}], "
            f"with kept keys {1e3 * fast['kept'].cpu:.1f} ms, passes {said}; equal within {difference:.1e}",
        )
    ]


def hstu(**changes: int) -> Hstu:
    """HSTU of this benchmark's size."""
    torch.manual_seed(0)
    return Hstu(HstuConfig(**SIZES, width=WIDTH, heads=HEADS, layers=LAYERS, **changes)).eval()


def separate_passes(model: Hstu, history: History, items: Items, batch: int) -> Tensor:
    """Logits of one user's candidates, each from a pass of its own, ``batch`` passes at once."""
    found = []
    for ids, codes in zip(items.ids.split(batch, 1), items.codes.split(batch, 1), strict=True):
        size = ids.shape[1]
        repeated = History(
            Items(*(part.expand(size, *part.shape[1:]) for part in history.items[:2])),
            *(part.expand(size, *part.shape[1:]) for part in history[1:]),
        )
        found.append(model(repeated, Items(ids.transpose(0, 1), codes.transpose(0, 1))).logits_BC)
    return torch.cat(found).transpose(0, 1)
