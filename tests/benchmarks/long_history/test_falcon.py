"""The benchmark of M-FALCON in a tiny size."""

import torch

from benchmarks.long_history.claims import Options
from benchmarks.long_history.falcon import hstu, measure, separate_passes
from benchmarks.long_history.synthetic import candidates, whole


def test_the_claim_is_measured_and_told():
    (found,) = measure(Options(repeats=1, scale=0.01))
    assert found.ratio > 0 and "10 candidates, 10 events" in found.claim


def test_passes_in_batches_are_those_one_by_one():
    model, history, items = hstu(), whole(30), candidates(5)
    with torch.no_grad():
        torch.testing.assert_close(separate_passes(model, history, items, 1), separate_passes(model, history, items, 3))
