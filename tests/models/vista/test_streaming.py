"""Streamed = whole: a history in chunks gives the summary of the history at once."""

import pytest
import torch

from models.long_history.parts import part
from models.vista.model import Vista, VistaConfig
from models.vista.streaming import stream_summary
from tests.models.long_history.test_incremental import ragged_parts
from tests.models.long_history.tiny import SIZES, histories

LENGTHS = [90, 0, 1, 37]


def vista(**changes):
    torch.manual_seed(0)
    return Vista(VistaConfig(**SIZES, num_seeds=4, width=16, layers=3, embedding_std=1.0, **changes)).eval()


def cut(history, size):
    return lambda: (part(history, at, at + size) for at in range(0, history.actions_BL.shape[1], size))


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_streamed_is_whole(size):
    model, history = vista(), histories(LENGTHS)
    with torch.no_grad():
        whole = model.encode_history(history)
    torch.testing.assert_close(stream_summary(model, cut(history, size), history.lengths_B), whole)


def test_chunks_may_be_ragged():
    model, history = vista(), histories(LENGTHS)
    ends_PB = torch.tensor([[50, 0, 0, 3], [50, 0, 1, 3], [90, 0, 1, 37]])
    with torch.no_grad():
        whole = model.encode_history(history)
    torch.testing.assert_close(stream_summary(model, lambda: ragged_parts(history, ends_PB), history.lengths_B), whole)


def test_a_hundred_thousand_events():
    model, history = vista(), histories([100_000])
    with torch.no_grad():
        whole = model.encode_history(history)
    streamed = stream_summary(model, cut(history, 4096), history.lengths_B)
    torch.testing.assert_close(streamed, whole, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_streamed_is_refused():
    history = histories([9])
    with pytest.raises(ValueError, match="encode the history whole"):
        stream_summary(vista(attention="softmax"), cut(history, 4), history.lengths_B)
    with pytest.raises(ValueError, match="eval"):
        stream_summary(vista().train(), cut(history, 4), history.lengths_B)
    with pytest.raises(ValueError, match="lengths of what is read"):
        stream_summary(vista(), cut(history, 4), torch.tensor([10]))
