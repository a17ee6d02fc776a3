import dataclasses
import math

import numpy as np
import pytest
import torch

from models.ranking import crosses
from models.ranking.crosses import NUM_CROSSES, TokenCrosses, Vocabulary, vocabulary_of
from models.ranking.dlrm import DLRM, DLRMConfig
from models.ranking.examples import Examples
from models.ranking.scoring import NeuralScorer, build_scorer

NUM_ITEMS, NUM_RECENT, WIDTH = 30, 8, 5


def catalogue(seed=0):
    """Tokens of items, of various numbers, with gaps between ids, and their weights."""
    rng = np.random.default_rng(seed)
    tokens_IT = np.zeros((NUM_ITEMS + 1, WIDTH), np.int64)
    for item in range(1, NUM_ITEMS + 1):
        own = np.sort(rng.choice(np.arange(1, 25) * 7, rng.integers(0, WIDTH + 1), replace=False))
        tokens_IT[item, : len(own)] = own
    weights_IT = np.where(tokens_IT > 0, 1 + (tokens_IT % 11) / 3, 0).astype(np.float32)
    return tokens_IT, weights_IT


def examples(tokens_IT, num=60, seed=1):
    rng = np.random.default_rng(seed)
    recent = rng.integers(0, NUM_ITEMS + 1, (num, NUM_RECENT))
    recent[: num // 4, 3:] = 0
    recent[-1] = 0
    item = rng.integers(0, NUM_ITEMS + 1, num)
    tokens = tokens_IT[item].copy()
    tokens[0, 0] = 10_000  # a token that no item of the catalogue has
    return Examples(
        rng.integers(0, 6, num),
        item,
        rng.normal(size=(num, 4)).astype(np.float32),
        recent,
        np.where(recent > 0, rng.choice([-1, 1], recent.shape), 0).astype(np.int8),
        tokens,
        np.zeros((num, 0, 0), np.int8),
        np.zeros((num, 0), np.float32),
        np.zeros((num, 0), np.float32),
    )


def by_hand(x, tokens_IT, vocabulary, decay, size):
    """The definition, one token at a time."""
    idf = dict(zip(vocabulary.token_V.tolist(), vocabulary.idf_V.tolist(), strict=True))
    rarest = max(idf.values())
    made = np.zeros((x.num_rows, NUM_CROSSES))
    for n in range(x.num_rows):
        for which, sign in enumerate((1, -1)):
            counts, total = {}, 0.0
            for place, (item, liked) in enumerate(zip(x.recent_NL[n], x.liked_NL[n], strict=True)):
                if liked != sign:
                    continue
                total += decay**place
                for token in tokens_IT[item]:
                    if token:
                        counts[token] = counts.get(token, 0.0) + decay**place
            kept = sorted(counts, key=lambda t: (-round(counts[t] / total, 9), -idf[t], t))[:size]
            share = {t: counts[t] / total for t in kept}
            own = [int(t) for t in x.tokens_NT[n] if t]
            shared = [t for t in own if t in share]
            overlap = sum(idf[t] * share[t] for t in shared)
            union = sum(idf.get(t, rarest) for t in own) + sum(idf[t] * share[t] for t in share) - overlap
            made[n, 3 * which : 3 * which + 3] = (
                math.log1p(len(shared)),
                overlap / union if union else 0.0,
                max((idf[t] * share[t] for t in shared), default=0.0),
            )
    return made


@pytest.mark.parametrize("size", [64, 4, 1])
@pytest.mark.parametrize("at_once", [crosses.ENTRIES_AT_ONCE, NUM_RECENT * WIDTH * 7])
def test_crosses_are_what_their_definition_says(monkeypatch, size, at_once):
    monkeypatch.setattr(crosses, "ENTRIES_AT_ONCE", at_once)
    tokens_IT, weights_IT = catalogue()
    vocabulary, x = vocabulary_of(tokens_IT, weights_IT), examples(tokens_IT)
    made = TokenCrosses(tokens_IT, vocabulary, 0.9, size)(x)
    wanted = by_hand(x, tokens_IT, vocabulary, 0.9, size)
    assert (wanted > 0).mean() > 0.1, "or nothing is compared"
    assert np.allclose(made, wanted, atol=1e-6)
    assert not made[-1].any(), "a user without history has no profile"


def test_a_profile_is_made_of_the_history_only():
    """Neither the item of the event nor its tokens change the profile, nor do tokens of items that come later."""
    tokens_IT, weights_IT = catalogue()
    x = examples(tokens_IT)
    maker = TokenCrosses(tokens_IT, vocabulary_of(tokens_IT, weights_IT))
    weight_NL = (x.liked_NL > 0).astype(float)
    before = maker.profiles(x.recent_NL, weight_NL)
    for row in range(x.num_rows):
        mine = before.row_E == row
        history = x.recent_NL[row][x.liked_NL[row] > 0]
        allowed = set(tokens_IT[history].ravel().tolist())
        assert set(maker.vocabulary.token_V[before.token_E[mine]].tolist()) <= allowed
    future = tokens_IT.copy()
    never_seen = np.setdiff1d(np.arange(1, NUM_ITEMS + 1), x.recent_NL[:5])
    future[never_seen] = future[never_seen][:, ::-1] * 0
    few = x.take(slice(0, 5))
    with_future, without = (TokenCrosses(t, maker.vocabulary)(few) for t in (tokens_IT, future))
    assert np.array_equal(with_future, without)


def test_rows_of_one_request_share_their_profile(monkeypatch):
    tokens_IT, weights_IT = catalogue()
    x = examples(tokens_IT, num=20)
    request = x._replace(recent_NL=np.repeat(x.recent_NL[:1], 20, 0), liked_NL=np.repeat(x.liked_NL[:1], 20, 0))
    maker, made = TokenCrosses(tokens_IT, vocabulary_of(tokens_IT, weights_IT)), []
    profiles = TokenCrosses.profiles
    monkeypatch.setattr(
        TokenCrosses,
        "profiles",
        lambda self, recent, weight: made.append(len(recent)) or profiles(self, recent, weight),
    )
    whole = maker(request)
    assert made == [1, 1], "one profile of likes and one of dislikes for all items"
    alone = np.concatenate([maker(request.take(slice(i, i + 1))) for i in range(20)])
    assert np.array_equal(whole, alone)


def test_idf_is_the_tokens_own_or_that_of_the_catalogue():
    tokens_IT = np.array([[0, 0], [3, 9], [3, 0], [0, 0]])
    own = vocabulary_of(tokens_IT, np.array([[0, 0], [1, 5], [1, 0], [0, 0]], np.float32))
    assert own.token_V.tolist() == [3, 9] and own.idf_V.tolist() == [1.0, 5.0]
    counted = vocabulary_of(tokens_IT).idf_V
    assert counted == pytest.approx([math.log(3 / 3) + 1, math.log(3 / 2) + 1])
    nothing = vocabulary_of(np.zeros((4, 2), np.int64))
    x = examples(np.zeros((NUM_ITEMS + 1, 2), np.int64), num=4)
    empty = TokenCrosses(np.zeros((NUM_ITEMS + 1, 2), np.int64), nothing)
    assert not empty(x).any()
    assert isinstance(nothing, Vocabulary)


def scorer(tokens_IT, weights_IT, x):
    torch.manual_seed(0)
    vocabulary = vocabulary_of(tokens_IT, weights_IT)
    config = DLRMConfig(
        num_users=5,
        num_items=NUM_ITEMS,
        num_dense=4,
        width=8,
        hidden=16,
        num_tokens=WIDTH,
        num_crosses=NUM_CROSSES,
        vocabulary=len(vocabulary.token_V),
    )
    made = DLRM(config)
    made.seen_I[1:] = True
    made.catalogue_IT.copy_(torch.from_numpy(tokens_IT))
    made.token_V.copy_(torch.from_numpy(vocabulary.token_V))
    made.idf_V.copy_(torch.from_numpy(vocabulary.idf_V))
    ready = TokenCrosses(tokens_IT, vocabulary)(x)
    made.cross_mean_C.copy_(torch.from_numpy(ready.mean(0)))
    made.cross_scale_C.copy_(torch.from_numpy(ready.std(0)))
    return NeuralScorer(made.eval()), x._replace(crosses_NC=ready)


def test_a_request_is_scored_as_in_training_in_a_batch_and_alone():
    tokens_IT, weights_IT = catalogue()
    x = examples(tokens_IT)
    made, ready = scorer(tokens_IT, weights_IT, x)
    served = made.like(x)
    assert np.allclose(served, made.like(ready), atol=1e-6), "crosses made at serving are those of training"
    alone = np.concatenate([made.like(x.take(slice(i, i + 1))) for i in range(x.num_rows)])
    assert np.allclose(served, alone, atol=1e-6)
    blind = made.like(ready._replace(crosses_NC=np.zeros_like(ready.crosses_NC)))
    assert np.abs(served - blind).max() > 1e-3, "crosses are read"
    weights = {k: v.numpy() for k, v in made.model.state_dict().items()}
    again = build_scorer("dlrm", dataclasses.asdict(made.model.config), weights)
    assert np.array_equal(again.like(x), served), "all that they need is in the artifact"
