"""The summary of a history that is read in chunks, so that its length does not matter to memory.

Every event of a bidirectional layer reads what all events wrote, so that a layer needs a pass of its own over the
history: one that sums up what its tokens write, computed anew from the layers below, whose sums are known by then.
N layers cost N passes and N (N + 1) / 2 blocks an event. `CausalVista` needs one pass, and none over old events.

Shapes: B users, L events of a chunk, K seeds, D width.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor

from models.attention import LinearState, QuasiLinearBlock
from models.long_history.inputs import History, log_bucket
from models.vista.model import Vista

Chunks = Callable[[], Iterable[History]]
"""Gives the same histories at every call, oldest chunk first; a user may have no events in a chunk, or fewer."""


@torch.no_grad()
def stream_summary(model: Vista, chunks: Chunks, lengths_B: Tensor) -> Tensor:
    """What ``model.encode_history`` gives of the whole histories, B x K x D, within float error.

    Args:
        model: VISTA with quasi-linear attention, in eval mode.
        chunks: The histories.
        lengths_B: Events of each user in all chunks; how recent an event is follows from it.

    Raises:
        ValueError: If the model attends by softmax or is in training mode, or the chunks hold other numbers of events.
    """
    summarizer = model.summarizer
    if model.config.attention != "quasi_linear":
        raise ValueError("Softmax attention needs all events at once: encode the history whole, or cut it.")
    if model.training:
        raise ValueError("Streaming computes layers anew, which dropout would make different ones: call eval() first.")
    seeds_BKD = summarizer.seeds_KD + summarizer.length(log_bucket(lengths_B))[:, None]
    all_BK = torch.ones(seeds_BKD.shape[:2], dtype=torch.bool, device=seeds_BKD.device)
    below: list[tuple[QuasiLinearBlock, LinearState]] = []
    for block in cast(list[QuasiLinearBlock], list(summarizer.blocks)):
        total = block.written(seeds_BKD, all_BK)
        # A small chunk is lost in a large float32.
        sum_BHEE, count_B, before_B = total.sum_BHEE.double(), total.count_B, torch.zeros_like(lengths_B)
        for chunk in chunks():
            # The rank from the end counts what is still to come.
            ahead = chunk._replace(lengths_B=lengths_B - before_B)
            tokens_BLD = summarizer.embed(ahead, model.items(chunk.items))
            for lower, state in below:
                tokens_BLD = lower.given(tokens_BLD, state)
            written = block.written(tokens_BLD, chunk.valid_BL)
            sum_BHEE, count_B = sum_BHEE + written.sum_BHEE, count_B + written.count_B
            before_B = before_B + chunk.lengths_B
        if not torch.equal(before_B, lengths_B):
            raise ValueError(
                "The chunks do not hold as many events as `lengths_B` says: give the lengths of what is read."
            )
        state = LinearState(sum_BHEE.to(seeds_BKD.dtype), count_B)
        seeds_BKD = block.given(seeds_BKD, state)
        below.append((block, state))
    return summarizer.norm(seeds_BKD)
