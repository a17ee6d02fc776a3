"""500 candidates against a history of 100,000 events: VISTA's kept summary beside DIN's tokens and HSTU's keys.

Each model has kept what it can of the history, and scores the candidates; making that is not timed. Widths, heads and
layers are the same; VISTA keeps as many summary tokens as the published system.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.long_history.claims import Finding, Options, prove_equal
from benchmarks.long_history.synthetic import SIZES, candidates, whole
from benchmarks.measuring import Timing, alternate
from models.long_history.families import FAMILIES
from models.long_history.inputs import History, Items
from models.long_history.interface import HistoryModel

WIDTH, HEADS, LAYERS, SEEDS = 32, 2, 2, 128
EVENTS, CANDIDATES = 100_000, 500
PROOF_EVENTS, PROOF_CANDIDATES = 1_500, 20
TARGETS = {"din": 100, "hstu": 30}


def measure(options: Options) -> list[Finding]:
    """See the package."""
    events, count = options.size(EVENTS), options.size(CANDIDATES)
    models = {"vista": build("vista", num_seeds=SEEDS), "din": build("din"), "hstu": build("hstu")}
    history, items = whole(events), candidates(count)
    with torch.inference_mode():
        differences = {name: prove(name, model) for name, model in models.items()}
        kept = {name: model.encode_history(history) for name, model in models.items()}
        score = {name: (lambda name=name: models[name].score(kept[name], items)) for name in models}
        timed = alternate({name: score[name] for name in TARGETS}, options.repeats)
        # A call takes milliseconds: more of them, or the clock decides.
        timed |= alternate({"vista": score["vista"]}, 20 * options.repeats)
    ours, found = timed["vista"], []
    for name, target in TARGETS.items():
        ratio = timed[name].cpu / ours.cpu
        found.append(
            Finding(
                f"{count:,} candidates, {events:,} events, width {WIDTH}: VISTA from cache vs {name.upper()}",
                f">= {target}x",
                ratio,
                ratio >= target,
                f"{told(ours)} and {size_of(kept['vista'])} kept, {told(timed[name])} and {size_of(kept[name])} kept; "
                f"each equal to a pass per candidate within {differences['vista']:.1e}, {differences[name]:.1e}",
            )
        )
    return found


def build(family: str, **changes: int) -> HistoryModel:
    """A model of this benchmark's size, with weights that a seed draws."""
    torch.manual_seed(0)
    return FAMILIES[family].build(**SIZES, width=WIDTH, heads=HEADS, layers=LAYERS, **changes).eval()


def prove(name: str, model: HistoryModel) -> float:
    """What is kept gives the logits of a whole pass for each candidate alone."""
    history, items = whole(PROOF_EVENTS), candidates(PROOF_CANDIDATES)
    alone = torch.cat([whole_pass(model, history, items, place) for place in range(PROOF_CANDIDATES)], 1)
    return prove_equal(name, model.score(model.encode_history(history), items), alone, absolute=1e-4)


def whole_pass(model: HistoryModel, history: History, items: Items, place: int) -> Tensor:
    """Logit of one candidate with nothing kept."""
    return model(history, Items(items.ids[:, [place]], items.codes[:, [place]])).logits_BC


def told(timing: Timing) -> str:
    """Milliseconds with the fastest and the slowest repeat."""
    low, middle, high = (1e3 * x for x in (min(timing.cpu_seconds), timing.cpu, max(timing.cpu_seconds)))
    return f"{middle:,.1f} ms [{low:,.1f}, {high:,.1f}]"


def size_of(encoding: Any) -> str:
    """How much is kept."""
    size = sum(x.numel() * x.element_size() for x in pytree.tree_leaves(encoding) if isinstance(x, Tensor))
    return f"{size / 2**20:,.2f} MiB"
