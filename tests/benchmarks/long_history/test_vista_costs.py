"""The benchmarks of VISTA's costs in a tiny size, and the proof of equality that stands before them."""

import pytest
import torch

from benchmarks.long_history import chunks, refresh, stage1, stage2, synthetic
from benchmarks.long_history.claims import Options, modules, prove_equal

TRIAL = Options(repeats=1, scale=0.001)


def test_every_claim_is_found():
    assert {"stage1", "stage2", "refresh"} <= {name for name, _ in modules()}


def test_what_differs_is_not_timed():
    assert prove_equal("same", torch.ones(3), torch.ones(3) + 1e-7) < 1e-6
    with pytest.raises(SystemExit, match="nothing is timed"):
        prove_equal("other", torch.ones(3), torch.ones(3) + 1e-2)


def test_histories_in_parts_are_the_whole():
    whole, parts = synthetic.whole(5_000), list(synthetic.parts(5_000))
    assert [int(part.lengths_B) for part in parts] == [4_096, 904]
    assert torch.equal(torch.cat([part.items.ids for part in parts], 1), whole.items.ids)
    assert (whole.times_BL.diff() >= 0).all()


@pytest.mark.parametrize("family", stage1.NAMES)
def test_summaries_in_parts_are_those_at_once(family):
    assert stage1.prove(family, 1_500) < 1e-4


@pytest.mark.parametrize("module", [stage2, refresh, chunks], ids=lambda module: module.__name__.split(".")[-1])
def test_claims_are_measured_and_told(module):
    found = module.measure(TRIAL)
    assert found and all(finding.ratio > 0 and finding.claim in finding.row() for finding in found)
