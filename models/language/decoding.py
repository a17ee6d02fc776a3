"""Greedy and constrained decoding of a batch of prompts that share their first tokens.

Legend: B rows, Q query tokens, S longest own prompt, L own tokens so far, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from transformers.cache_utils import Cache

from models.language.shared_prefix import OwnLayer, Prefix, own_cache

STOP, LENGTH = "stop", "length"
# A batch is copied without its finished rows once this share of it is finished.
COMPACT_AT = 0.25


class Generated(NamedTuple):
    """What one row generated.

    Attributes:
        ids: Token ids, without the end token.
        finish: ``stop``, or ``length`` when it was cut.
        choices: Index of the option of each choice that follows the text.
    """

    ids: list[int]
    finish: str
    choices: tuple[int, ...] = ()


class _Batch:
    """Rows behind one prefix that advance together, left-padded."""

    def __init__(self, model: Any, prefix: Prefix, prompts: Sequence[Sequence[int]], capacity: int, pad_id: int):
        longest = max(len(p) for p in prompts)
        self.model, self.prefix, self.pad_id = model, prefix, pad_id
        self.cache = own_cache(prefix, longest + capacity)
        device = model.device
        self.valid = torch.zeros(len(prompts), longest + capacity, dtype=torch.bool, device=device)
        ids = torch.full((len(prompts), longest), pad_id, device=device)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            self.valid[row, longest - len(prompt) : longest] = True
        self.used = 0
        self.start = ids

    def prefill(self) -> torch.Tensor:
        """Runs the prompts; returns logits ``(B, V)`` of the next token."""
        length = self.start.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.start.device).tril()
        seen = self.valid[:, None, :length] & causal
        positions = (self.valid[:, :length].cumsum(1) - 1).clamp(min=0) + self.prefix.length
        return self._forward(self.start, positions, seen)

    def step(self, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """Feeds one token ``(B,)`` a row, in vain where not ``counted``; returns logits ``(B, V)`` of the next."""
        self.valid[:, self.used] = counted
        seen = self.valid[:, : self.used + 1]
        positions = (seen.sum(1, keepdim=True) - 1).clamp(min=0) + self.prefix.length
        return self._forward(tokens[:, None], positions, seen[:, None])

    def feed(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Feeds each row its tokens, some of them maybe none; returns logits ``(B, V)`` of the next.

        Logits of a row without tokens mean nothing.
        """
        start, width = self.used, max(len(tokens) for tokens in rows)
        ids = torch.full((len(rows), width), self.pad_id, device=self.valid.device)
        for row, tokens in enumerate(rows):
            if tokens:
                ids[row, width - len(tokens) :] = torch.tensor(tokens, device=ids.device)
                self.valid[row, start + width - len(tokens) : start + width] = True
        causal = torch.ones(width, start + width, dtype=torch.bool, device=ids.device).tril(start)
        seen = self.valid[:, None, : start + width] & causal
        positions = (self.valid[:, : start + width].cumsum(1)[:, start:] - 1).clamp(min=0) + self.prefix.length
        return self._forward(ids, positions, seen)

    def keep(self, rows: list[int]) -> None:
        """Drops every row but ``rows``."""
        index = torch.tensor(rows, device=self.valid.device)
        self.valid = self.valid[index]
        for layer in self._layers:
            layer.select(index)

    def rows(self, rows: list[int]) -> "_Batch":
        """A batch of copies of ``rows``."""
        index = torch.tensor(rows, device=self.valid.device)
        taken = copy.copy(self)
        taken.valid = self.valid[index]
        taken.cache = Cache(layers=[layer.rows(index) for layer in self._layers])
        return taken

    @staticmethod
    def joined(batches: Sequence["_Batch"]) -> "_Batch":
        """One batch of all rows, which may have seen different numbers of tokens."""
        first = copy.copy(batches[0])
        first.used = max(b.used for b in batches)
        first.valid = torch.cat([b.valid for b in batches])
        layers = zip(*(b._layers for b in batches), strict=True)
        first.cache = Cache(layers=[OwnLayer.joined(alike) for alike in layers])
        return first

    @property
    def _layers(self) -> list[Any]:
        return list(self.cache.layers)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, seen_BQL: torch.Tensor) -> torch.Tensor:
        # A padded query sees nothing; the lowest finite number keeps its (unused) softmax free of NaN.
        lowest = torch.finfo(torch.float32).min
        mask = torch.zeros(seen_BQL.shape, device=ids.device).masked_fill_(~seen_BQL, lowest)[:, None]
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=self.prefix,
        )
        self.used += ids.shape[1]
        return out.logits[:, -1].float()


def banned_tokens(ids: Sequence[int], n: int) -> list[int]:
    """Tokens that would complete an ``n``-gram which ``ids`` already hold."""
    if n <= 0 or len(ids) < n - 1:
        return []
    tail = tuple(ids[len(ids) - n + 1 :])
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if tuple(ids[i : i + n - 1]) == tail]


class _Options:
    """A row's walk through its options: at each step only tokens that continue one of them are allowed."""

    def __init__(self, options: Sequence[Sequence[int]], prior: torch.Tensor | None = None):
        self.options, self.prior = options, prior
        self.left = list(range(len(options)))
        self.depth = 0
        self.branched = False

    @property
    def decided(self) -> bool:
        """Whether what is left of the options is the same for all of them."""
        first = self.options[self.left[0]][self.depth :]
        return all(self.options[o][self.depth :] == first for o in self.left)

    def take(self, logits: torch.Tensor) -> int:
        """Takes and returns the best allowed token, given the logits ``(V,)`` of all."""
        allowed = sorted({self.options[o][self.depth] for o in self.left})
        token = allowed[0]
        if len(allowed) > 1:
            scores = logits[allowed]
            if self.prior is not None and not self.branched:
                scores = scores - self.prior[allowed]
            token = allowed[int(scores.argmax())]
            self.branched = True
        self.left = [o for o in self.left if self.options[o][self.depth] == token]
        self.depth += 1
        return token


class Choice(NamedTuple):
    """One of the choices that follow a text.

    Attributes:
        options: Token ids of the options, each closed by an end token.
        prior: Logits ``(V,)``, up to a constant, that the model gives whatever the text; taken off.
    """

    options: Sequence[Sequence[int]]
    prior: torch.Tensor | None = None


class TextRules(NamedTuple):
    """How a text goes on and ends.

    Attributes:
        max_new_tokens: Token limit of a text.
        end_ids: Tokens that end a text.
        is_end: Tells from a text's ids whether it is complete.
        no_repeat_ngram: Never repeat an n-gram of this size within a text; 0 allows all.
        mark: Token ids before each choice; they end a text, too.
        choices: What a finished text goes on with, in this order.
    """

    max_new_tokens: int
    end_ids: Sequence[int]
    is_end: Callable[[list[int]], bool] | None = None
    no_repeat_ngram: int = 0
    mark: Sequence[int] = ()
    choices: Sequence[Choice] = ()

    @property
    def most_tokens(self) -> int:
        """The most tokens that a row takes."""
        return self.max_new_tokens + sum(len(self.mark) + max(map(len, c.options)) for c in self.choices)


class Grammar(Protocol):
    """What holds one row's text to a form, token by token."""

    def hold(self, logits: torch.Tensor) -> None:
        """Sets the logits ``(V,)`` of tokens that may not come next to minus infinity, in place."""

    def accept(self, token: int) -> None:
        """Moves past ``token``."""


class _Row:
    """One row: its text, and what of it and of its choices the batch has not been fed yet."""

    def __init__(self, rules: TextRules, grammar: Grammar | None = None):
        self.rules, self.grammar = rules, grammar
        self.text: list[int] = []
        self.finish = LENGTH
        self.done = False
        self.pending: list[int] = []
        self.choices: list[int] = []

    def take(self, best: int, logits: torch.Tensor) -> int:
        """Takes the next token, given the best one and all logits ``(V,)``; returns the token to feed."""
        rules, text = self.rules, self.text
        if self.grammar is not None:
            self.grammar.hold(logits)
            best = int(logits.argmax())
            self.grammar.accept(best)
        if rules.no_repeat_ngram and (banned := banned_tokens(text, rules.no_repeat_ngram)) and best in banned:
            logits[banned] = -torch.inf
            best = int(logits.argmax())
        if best in rules.end_ids:
            return self._end(STOP, rules.mark)
        text.append(best)
        if rules.is_end is not None and rules.is_end(text):
            return self._end(STOP, rules.mark)
        if rules.mark and text[-len(rules.mark) :] == list(rules.mark):
            del text[-len(rules.mark) :]
            return self._end(STOP, rules.mark[-1:])
        if len(text) == rules.max_new_tokens:
            return self._end(LENGTH, [best, *rules.mark])
        return best

    def _end(self, finish: str, pending: Sequence[int]) -> int:
        self.finish, self.pending, self.done = finish, list(pending), True
        return self.rules.end_ids[0]


def _choose_all(batch: _Batch, rows: Sequence[_Row], rules: TextRules) -> None:
    """Lets every row of ``batch`` make its choices, all rows one after the other's tokens in the same passes."""
    for choice in rules.choices:
        walks = [_Options(choice.options, choice.prior) for _ in rows]
        waiting = set(range(len(rows)))
        pending = [row.pending for row in rows]
        while waiting:
            logits = batch.feed(pending)
            taken = {i: walks[i].take(logits[i]) for i in sorted(waiting)}
            waiting = {i for i in waiting if not walks[i].decided}
            # What is left of a row that has chosen is fed together with what comes before its next choice.
            pending = [[taken[i]] if i in waiting else [] for i in range(len(rows))]
        for row, walk in zip(rows, walks, strict=True):
            option = walk.left[0]
            row.choices.append(option)
            # The last token that was taken is not fed yet, and the closing end token never is.
            row.pending = [*choice.options[option][walk.depth - 1 : -1], *rules.mark]


@torch.inference_mode()
def generate(
    model: Any,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    rules: TextRules,
    *,
    pad_id: int,
    grammars: Sequence[Grammar] = (),
) -> list[Generated]:
    """Decodes greedily; finished rows leave the batch, and come together again to make their choices.

    Args:
        model: A causal language model of `transformers` with shared-prefix attention.
        prefix: The shared tokens' keys and values.
        prompts: Own token ids of each row, not empty.
        rules: How texts go on and end.
        pad_id: Token that fills shorter prompts.
        grammars: What holds each row's text; none leaves texts free.
    """
    # Rows take their tokens in the same passes; where their options differ in length, some columns stay empty.
    room = sum(len(rules.mark) + 2 * max(map(len, c.options)) for c in rules.choices)
    batch = _Batch(model, prefix, prompts, rules.max_new_tokens + room, pad_id)
    all_rows = rows = [_Row(rules, grammars[i] if grammars else None) for i in range(len(prompts))]
    finished: list[_Batch] = []
    order: list[_Row] = []
    logits = batch.prefill()
    while True:
        best = logits.argmax(-1).tolist()
        fed = [best[i] if row.done else row.take(best[i], logits[i]) for i, row in enumerate(rows)]
        alive = [i for i, row in enumerate(rows) if not row.done]
        if not alive or len(rows) - len(alive) >= COMPACT_AT * len(rows):
            gone = [i for i, row in enumerate(rows) if row.done]
            if rules.choices:
                finished.append(batch.rows(gone))
                order += [rows[i] for i in gone]
            if not alive:
                break
            batch.keep(alive)
            fed = [fed[i] for i in alive]
            rows = [rows[i] for i in alive]
        tokens, counted = torch.tensor([fed, [not row.done for row in rows]], device=batch.valid.device)
        logits = batch.step(tokens, counted.bool())
    if rules.choices:
        _choose_all(_Batch.joined(finished), order, rules)
    return [Generated(r.text, r.finish, tuple(r.choices)) for r in all_rows]


@torch.inference_mode()
def next_token_logits(model: Any, prefix: Prefix, prompts: Sequence[Sequence[int]], *, pad_id: int) -> torch.Tensor:
    """Logits ``(B, V)`` of the token after each of ``prompts``."""
    return _Batch(model, prefix, prompts, 1, pad_id).prefill()


@torch.inference_mode()
def choose(
    model: Any,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    pad_id: int,
    prior: torch.Tensor | None = None,
) -> list[int]:
    """Decodes greedily within each row's options: at each step only tokens that continue an option are allowed.

    Args:
        model: As in `generate`.
        prefix: As in `generate`.
        prompts: As in `generate`.
        options: Token ids of each row's options, each closed by the end token.
        pad_id: As in `generate`.
        prior: Logits ``(V,)`` of the first token that the model gives whatever it is asked; taken off.

    Returns:
        The index of each row's option; the first of equal ones.
    """
    batch = _Batch(model, prefix, prompts, max(len(o) for row in options for o in row), pad_id)
    walks = [_Options(row, prior) for row in options]
    rows = list(range(len(prompts)))
    logits = batch.prefill()
    while True:
        tokens = [walks[row].take(logits[place]) for place, row in enumerate(rows)]
        alive = [place for place, row in enumerate(rows) if not walks[row].decided]
        if not alive:
            return [walk.left[0] for walk in walks]
        if len(alive) < len(rows):
            batch.keep(alive)
            rows = [rows[place] for place in alive]
        logits = batch.feed([[tokens[place]] for place in alive])
