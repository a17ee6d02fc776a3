"""Stage 2 on 500 candidates: its cost does not know how long the history was.

The summaries are those of causal VISTA, of a thousand and of a million events. That scores from a kept summary are
those of the joint pass over the whole history is proven first, on the shorter one.
"""

import torch

from benchmarks.long_history import synthetic
from benchmarks.long_history.claims import Finding, Options, prove_equal
from benchmarks.long_history.stage1 import SHAPE, summarizer
from benchmarks.measuring import alternate
from models.long_history.families import FAMILIES

SHORT, LONG, CANDIDATES = 1_000, 1_000_000, 500
CALLS = 50
WITHIN = 0.1


def measure(options: Options) -> list[Finding]:
    """See the module."""
    torch.manual_seed(0)
    model = FAMILIES["vista_causal"].build(**synthetic.SIZES, **SHAPE).eval()
    items, summarize = synthetic.candidates(CANDIDATES), summarizer("vista_causal")
    short, long, calls = options.size(SHORT), options.size(LONG), options.size(CALLS)
    kept = {length: summarize(lambda length=length: synthetic.parts(length), length) for length in (short, long)}

    @torch.no_grad()
    def score(length: int) -> torch.Tensor:
        for _ in range(calls):
            logits = model.score(kept[length], items)
        return logits

    with torch.no_grad():
        joint = model(synthetic.whole(short), items).logits_BC
    difference = prove_equal("scores from a kept summary", score(short), joint)
    timed = alternate({"short": lambda: score(short), "long": lambda: score(long)}, 4 * options.repeats)
    ratio = timed["long"].cpu / timed["short"].cpu
    each = " against ".join(
        f"{1e3 * timed[name].cpu / calls:.2f} ms [{1e3 * min(timed[name].cpu_seconds) / calls:.2f}, "
        f"{1e3 * max(timed[name].cpu_seconds) / calls:.2f}]"
        for name in ("long", "short")
    )
    return [
        Finding(
            f"stage 2, {CANDIDATES} candidates: CPU time with a history of {long:,} events over {short:,}",
            f"within {WITHIN:.0%}",
            ratio,
            abs(ratio - 1) <= WITHIN,
            f"{each}; kept = joint within {difference:.0e}",
        )
    ]
