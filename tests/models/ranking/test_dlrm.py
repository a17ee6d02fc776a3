import numpy as np
import pytest
import torch

from models.ranking import dlrm
from models.ranking.dlrm import DLRM, Batch, DLRMConfig
from models.ranking.examples import Examples
from models.ranking.scoring import NeuralScorer, build_scorer
from models.ranking.tokens import TokenBag

NUM = 7


def model(**changes):
    torch.manual_seed(0)
    made = DLRM(DLRMConfig(**({"num_users": 5, "num_items": 9, "num_dense": 4, "width": 8, "hidden": 16} | changes)))
    made.seen_I[1:8] = True
    if made.config.content_width:
        made.content_IE[1:] = torch.randn(9, made.config.content_width)
    if made.config.num_tokens:
        made.catalogue_IT[1:] = torch.arange(1, 10)[:, None] + torch.arange(made.config.num_tokens)
    return made.eval()


def examples(tokens=0, summary=(0, 0), num=NUM, crosses=0):
    rng = np.random.default_rng(0)
    recent = rng.integers(0, 10, (num, 3))
    return Examples(
        rng.integers(0, 6, num),
        rng.integers(0, 10, num),
        rng.normal(size=(num, 4)).astype(np.float32),
        recent,
        np.where(recent > 0, rng.choice([-1, 1], (num, 3)), 0).astype(np.int8),
        rng.integers(0, 50, (num, tokens)),
        rng.integers(-127, 128, (num, *summary)).astype(np.int8),
        np.ones((num, summary[0]), np.float32) / 127,
        rng.normal(size=(num, crosses)).astype(np.float32),
    )


def batch(x):
    return Batch(*(torch.from_numpy(a) for a in x))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"num_tokens": 4},
        {"summary_tokens": 2, "summary_width": 6},
        {"num_tokens": 4, "summary_tokens": 2, "summary_width": 6},
        {"content_width": 3},
        {"num_tokens": 4, "content_width": 3, "num_crosses": 6, "vocabulary": 12},
        {"item_ids": False},
        {"num_tokens": 4, "item_ids": False, "summary_tokens": 2, "summary_width": 6},
    ],
)
def test_both_heads_score_and_learn(inputs):
    made = model(**inputs).train()
    summary = inputs.get("summary_tokens", 0), inputs.get("summary_width", 0)
    x = examples(inputs.get("num_tokens", 0), summary, crosses=inputs.get("num_crosses", 0))
    like, interest = made(batch(x), torch.tensor([0, 3]), torch.arange(1, 8))
    assert like.shape == (NUM,) and interest.shape == (2, 7)
    (like.sum() + interest.logsumexp(1).sum()).backward()
    unused = [n for n, p in made.named_parameters() if p.grad is None]
    assert not unused


def test_scores_do_not_depend_on_the_batch():
    scorer, x = NeuralScorer(model(num_tokens=4)), examples(4)
    whole = scorer.like(x)
    alone = np.concatenate([scorer.like(x.take(slice(i, i + 1))) for i in range(NUM)])
    assert np.allclose(whole, alone, atol=1e-6)


def test_items_without_training_are_told_apart_by_content_only():
    plain, captions = NeuralScorer(model()), NeuralScorer(model(num_tokens=4))
    unseen = [7, 8]
    scores = plain.interest(examples())
    assert np.array_equal(scores[:, unseen[0]], scores[:, unseen[1]])
    scores = captions.interest(examples(4))
    assert not np.allclose(scores[:, unseen[0]], scores[:, unseen[1]])


def test_without_ids_items_are_what_their_content_says_in_the_history_and_as_the_target():
    scorer, x = NeuralScorer(model(num_tokens=4, content_width=3, item_ids=False)), examples(4)
    assert not [name for name, _ in scorer.model.named_parameters() if name.startswith(("items", "interest_bias"))]
    scorer.model.catalogue_IT[2] = scorer.model.catalogue_IT[1]
    scorer.model.content_IE[2] = scorer.model.content_IE[1]
    one, two = (x._replace(item_N=np.full(NUM, i), recent_NL=np.full_like(x.recent_NL, i)) for i in (1, 2))
    assert np.array_equal(scorer.like(one), scorer.like(two))
    scores = scorer.interest(x)
    assert np.array_equal(scores[:, 0], scores[:, 1]) and not np.allclose(scores[:, 0], scores[:, 2])
    nothing = NeuralScorer(model(item_ids=False)).interest(examples())
    assert not nothing.any(), "without IDs and content all items are the same"


def test_content_embeddings_tell_new_items_apart_and_reach_the_target():
    scorer, x = NeuralScorer(model(content_width=3)), examples()
    scores = scorer.interest(x)
    assert not np.allclose(scores[:, 7], scores[:, 8]), "items that the training period never saw"
    before = scorer.like(x._replace(item_N=np.full(NUM, 8)))
    assert not np.allclose(before, scorer.like(x._replace(item_N=np.full(NUM, 9))))


def test_absent_summaries_are_the_learned_one_and_no_number():
    made = model(summary_tokens=2, summary_width=6)
    x = examples(summary=(2, 6))
    absent = x._replace(scales_NK=np.zeros_like(x.scales_NK))
    assert np.isfinite(NeuralScorer(made).like(absent)).all()
    other = absent._replace(summary_NKW=np.zeros_like(x.summary_NKW))
    assert np.array_equal(NeuralScorer(made).like(absent), NeuralScorer(made).like(other))


def test_in_a_large_catalogue_the_tokens_of_the_items_that_are_looked_up_are_enough(monkeypatch):
    monkeypatch.setattr(dlrm, "ITEMS_AT_ONCE", 4)
    made, x = model(num_tokens=4), batch(examples(4))
    whole, items = made.catalogue(), torch.tensor([2, 5])
    needed = made.catalogue(torch.unique(torch.cat([x.recent_BL.flatten(), items])))
    assert not torch.equal(whole.tokens, needed.tokens)
    ours, theirs = (made.interest_logits(made.user(x, c), c, items) for c in (needed, whole))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_request_does_not_pay_for_the_whole_catalogue(monkeypatch):
    scorer, made = NeuralScorer(model(num_tokens=4)), []
    bag = TokenBag.forward
    monkeypatch.setattr(TokenBag, "forward", lambda self, tokens: made.append(len(tokens)) or bag(self, tokens))
    for _ in range(3):
        scorer.like(examples(4, num=2))
    assert made == [10, 2, 2, 2], "the catalogue's ten rows once, then those that were asked for"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_where_the_model_is():
    on_cpu, on_gpu = NeuralScorer(model(num_tokens=4)), NeuralScorer(model(num_tokens=4).cuda())
    assert np.allclose(on_gpu.like(examples(4)), on_cpu.like(examples(4)), atol=1e-4)
    assert np.allclose(on_gpu.interest(examples(4)), on_cpu.interest(examples(4)), atol=1e-4)


def test_weights_rebuild_the_same_scorer():
    import dataclasses

    scorer, x = NeuralScorer(model(num_tokens=4)), examples(4)
    weights = {k: v.numpy() for k, v in scorer.model.state_dict().items()}
    again = build_scorer("dlrm", dataclasses.asdict(scorer.model.config), weights)
    assert np.array_equal(again.like(x), scorer.like(x))
    assert np.array_equal(again.interest(x), scorer.interest(x))
    with pytest.raises(ValueError, match="no ranker of the kind"):
        build_scorer("oracle", {}, {})


def test_a_bag_ignores_padding_and_order_and_is_zero_without_tokens():
    torch.manual_seed(0)
    bag = TokenBag(64, 8).eval()
    a, b, none = (bag(torch.tensor([t])) for t in ([3, 9, 0, 0], [9, 3, 0, 0], [0, 0, 0, 0]))
    assert torch.allclose(a, b, atol=1e-6) and not none.any()
    assert torch.allclose(a, bag(torch.tensor([[3, 9]])), atol=1e-6)


def test_two_hashes_tell_colliding_tokens_apart():
    torch.manual_seed(0)
    bag = TokenBag(16, 8).eval()
    vectors = bag(torch.arange(1, 65)[:, None])
    distinct = torch.unique(vectors.round(decimals=5), dim=0)
    assert len(distinct) > 16, "one hash alone could tell 16 tokens apart at most"
