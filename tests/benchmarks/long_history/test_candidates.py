"""The benchmark of candidates in a tiny size: what it proves equal, and what it refuses to time."""

import pytest
import torch

from benchmarks.long_history import candidates
from benchmarks.long_history.claims import Options


def test_every_peer_is_found_and_told(monkeypatch):
    monkeypatch.setattr(candidates, "PROOF_EVENTS", 60)
    monkeypatch.setattr(candidates, "PROOF_CANDIDATES", 3)
    found = candidates.measure(Options(repeats=1, scale=0.002))
    assert [f.claim.rpartition(" ")[-1] for f in found] == ["DIN", "HSTU"]
    assert all(f.ratio > 0 and "1 candidates, 200 events" in f.claim for f in found)


def test_a_cache_of_another_history_is_not_timed(monkeypatch):
    monkeypatch.setattr(candidates, "PROOF_EVENTS", 60)
    model = candidates.build("vista", num_seeds=4)
    right = model.encode_history
    monkeypatch.setattr(model, "encode_history", lambda history: right(history).flip(-1))
    with torch.no_grad(), pytest.raises(SystemExit, match="vista: the results differ"):
        candidates.prove("vista", model)
