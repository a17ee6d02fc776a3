"""A hundred new events on a history of a million: extending the stored state beside computing it anew.

Both give a state to store and a summary to serve. Refreshing starts from the stored form of the old state; computing
anew has all events in memory already, so that no store is timed, and cuts them elsewhere. Their states, summaries and
scores are proven equal. A batch of users is refreshed too, as a nightly job would.
"""

import torch
from torch.utils import _pytree as pytree

from benchmarks.long_history import synthetic
from benchmarks.long_history.claims import Finding, Options, prove_equal
from benchmarks.long_history.stage1 import SHAPE
from benchmarks.measuring import Timing, alternate
from models.long_history.families import FAMILIES
from models.long_history.inputs import History
from models.long_history.parts import part
from models.vista.causal import CausalState, CausalVista
from models.vista.states import pack, unpack

HISTORY, NEW, USERS = 1_000_000, 100, 32
CALLS = 100
PART = 5_000
TARGET = 1_000.0


@torch.inference_mode()
def extended(model: CausalVista, state: CausalState, events: History) -> tuple[list[bytes], torch.Tensor]:
    """The states to store, as `vista/user_states` has them, and the summaries to serve after ``events``."""
    state = model.extend(state, events)
    return pack(state).to_pylist(), model.read(state)


def repeated(history: History, users: int) -> History:
    """The same history for many users."""
    return pytree.tree_map_only(torch.Tensor, lambda column: column.expand(users, *column.shape[1:]), history)


def milliseconds(timing: Timing, each: int) -> str:
    """Median, least and most CPU time of one of ``each`` equal pieces."""
    least, most = min(timing.cpu_seconds), max(timing.cpu_seconds)
    return f"{1e3 * timing.cpu / each:.2f} ms [{1e3 * least / each:.2f}, {1e3 * most / each:.2f}]"


def measure(options: Options) -> list[Finding]:
    """See the module."""
    torch.manual_seed(0)
    model: CausalVista = FAMILIES["vista_causal"].build(**synthetic.SIZES, **SHAPE).eval()  # type: ignore[assignment]
    length, calls = options.size(HISTORY), options.size(CALLS)
    whole = synthetic.whole(length + NEW)
    new = part(whole, length, length + NEW)
    state = model.empty_state(1)
    with torch.inference_mode():
        for start in range(0, length, PART):
            state = model.extend(state, part(whole, start, min(start + PART, length)))
    one = pack(state).to_pylist()
    many = one * USERS
    of_many = repeated(new, USERS)

    def refresh(stored: list[bytes], events: History) -> tuple[list[bytes], torch.Tensor]:
        return extended(model, unpack(model, stored), events)

    def recompute() -> tuple[list[bytes], torch.Tensor]:
        return extended(model, model.empty_state(1), whole)

    def often(stored: list[bytes], events: History) -> None:
        for _ in range(calls):
            refresh(stored, events)

    whole_state, whole_summary = recompute()
    items, difference = synthetic.candidates(500), 0.0
    for stored, events in ((one, new), (many, of_many)):
        states, summaries = refresh(stored, events)
        kept, anew = (unpack(model, [rows[-1]]).means_BNHEE for rows in (states, whole_state))
        prove_equal("refreshed states", kept, anew)
        difference = max(difference, prove_equal("refreshed summaries", summaries[-1:], whole_summary))
        with torch.inference_mode():
            scores = (model.score(summary, items) for summary in (summaries[-1:], whole_summary))
            prove_equal("scores against them", *scores)
    timed = alternate(
        {"one": lambda: often(one, new), "many": lambda: often(many, of_many), "recompute": recompute}, options.repeats
    )
    found = []
    for name, users, whose in (("one", 1, "a user alone"), ("many", USERS, f"each of a batch of {USERS} users")):
        ratio = timed["recompute"].cpu / (timed[name].cpu / calls / users)
        found.append(
            Finding(
                f"{NEW} new events on {length:,}, {whose}: CPU time of computing the state anew over extending it",
                f">= {TARGET:,.0f}",
                ratio,
                ratio >= TARGET,
                f"{milliseconds(timed['recompute'], 1)} against {milliseconds(timed[name], calls * users)}; "
                f"summaries equal within {difference:.0e}",
            )
        )
    return found
