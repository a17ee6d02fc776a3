"""Greedy and constrained decoding of a batch of prompts that share their first tokens.

Legend: B rows, Q query tokens, S longest own prompt, L own tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from models.language.shared_prefix import Prefix, own_cache

STOP, LENGTH = "stop", "length"
# A batch is copied without its finished rows once this share of it is finished.
COMPACT_AT = 0.25


class Generated(NamedTuple):
    """What one row generated.

    Attributes:
        ids: Token ids, without the end token.
        finish: ``stop``, or ``length`` when it was cut.
        choice: Index of the option that follows the text; -1 without options.
    """

    ids: list[int]
    finish: str
    choice: int = -1


class _Batch:
    """Rows behind one prefix that advance together, left-padded."""

    def __init__(self, model: Any, prefix: Prefix, prompts: Sequence[Sequence[int]], capacity: int, pad_id: int):
        longest = max(len(p) for p in prompts)
        self.model, self.prefix = model, prefix
        self.cache = own_cache(prefix, longest + capacity)
        device = model.device
        self.valid = torch.zeros(len(prompts), longest + capacity, dtype=torch.bool, device=device)
        ids = torch.full((len(prompts), longest), pad_id, device=device)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            self.valid[row, longest - len(prompt) :] = True
        self.used = 0
        self.start = ids

    def prefill(self) -> torch.Tensor:
        """Runs the prompts; returns logits ``(B, V)`` of the next token."""
        length = self.start.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.start.device).tril()
        seen = self.valid[:, None, :length] & causal
        positions = (self.valid[:, :length].cumsum(1) - 1).clamp(min=0) + self.prefix.length
        return self._forward(self.start, positions, seen)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feeds one token ``(B,)`` a row; returns logits ``(B, V)`` of the next."""
        self.valid[:, self.used] = True
        seen = self.valid[:, : self.used + 1]
        positions = seen.sum(1, keepdim=True) - 1 + self.prefix.length
        return self._forward(tokens[:, None], positions, seen[:, None])

    def keep(self, rows: list[int]) -> None:
        """Drops every row but ``rows``."""
        index = torch.tensor(rows, device=self.valid.device)
        self.valid = self.valid[index]
        layers: list[Any] = list(self.cache.layers)
        for layer in layers:
            layer.select(index)

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


class TextRules(NamedTuple):
    """How a text goes on and ends.

    Attributes:
        max_new_tokens: Token limit of a text.
        end_ids: Tokens that end a text.
        is_end: Tells from a text's ids whether it is complete.
        no_repeat_ngram: Never repeat an n-gram of this size within a text; 0 allows all.
        mark: Token ids between a text and its option; they end a text, too.
        options: Token ids of the options, each closed by an end token; a finished text goes on with one of them.
        prior: Logits ``(V,)`` that the model gives to the options' first tokens whatever the text; taken off.
    """

    max_new_tokens: int
    end_ids: Sequence[int]
    is_end: Callable[[list[int]], bool] | None = None
    no_repeat_ngram: int = 0
    mark: Sequence[int] = ()
    options: Sequence[Sequence[int]] = ()
    prior: torch.Tensor | None = None


class _Row:
    """One row's text, and then its walk through the options."""

    def __init__(self, rules: TextRules):
        self.rules = rules
        self.text: list[int] = []
        self.finish = LENGTH
        self.done = False
        self.walk: _Options | None = None

    def take(self, best: int, logits: torch.Tensor) -> int:
        """Takes the next token, given the best one and all logits ``(V,)``; returns the token to feed."""
        rules, text = self.rules, self.text
        if self.walk is not None:
            return self._follow(logits)
        if len(text) == rules.max_new_tokens:
            return self._close(logits)
        if rules.no_repeat_ngram and (banned := banned_tokens(text, rules.no_repeat_ngram)) and best in banned:
            logits[banned] = -torch.inf
            best = int(logits.argmax())
        if best in rules.end_ids:
            self.finish = STOP
            return self._close(logits)
        text.append(best)
        if rules.is_end is not None and rules.is_end(text):
            self.finish = STOP
            return self._close(logits)
        if rules.mark and text[-len(rules.mark) :] == list(rules.mark):
            del text[-len(rules.mark) :]
            self.finish, self.walk = STOP, _Options(rules.options, rules.prior)
        elif len(text) == rules.max_new_tokens and not rules.options:
            self.done = True
        return best

    def _close(self, logits: torch.Tensor) -> int:
        if not self.rules.options:
            self.done = True
            return self.rules.end_ids[0]
        self.walk = _Options([[*self.rules.mark, *o] for o in self.rules.options], self.rules.prior)
        return self._follow(logits)

    def _follow(self, logits: torch.Tensor) -> int:
        assert self.walk is not None
        token = self.walk.take(logits)
        self.done = self.walk.decided
        return token


@torch.inference_mode()
def generate(
    model: Any, prefix: Prefix, prompts: Sequence[Sequence[int]], rules: TextRules, *, pad_id: int
) -> list[Generated]:
    """Decodes greedily; finished rows leave the batch.

    Args:
        model: A causal language model of `transformers` with shared-prefix attention.
        prefix: The shared tokens' keys and values.
        prompts: Own token ids of each row, not empty.
        rules: How texts go on and end.
        pad_id: Token that fills shorter prompts.
    """
    longest = max((len(o) for o in rules.options), default=0)
    batch = _Batch(model, prefix, prompts, rules.max_new_tokens + len(rules.mark) + longest, pad_id)
    all_rows = rows = [_Row(rules) for _ in prompts]
    logits = batch.prefill()
    while True:
        best = logits.argmax(-1).tolist()
        fed = [best[i] if row.done else row.take(best[i], logits[i]) for i, row in enumerate(rows)]
        alive = [i for i, row in enumerate(rows) if not row.done]
        if not alive:
            return [Generated(r.text, r.finish, r.walk.left[0] if r.walk else -1) for r in all_rows]
        if len(rows) - len(alive) >= COMPACT_AT * len(rows):
            batch.keep(alive)
            fed = [fed[i] for i in alive]
            rows = [rows[i] for i in alive]
        logits = batch.step(torch.tensor(fed, device=batch.valid.device))


@torch.inference_mode()
def next_token_logits(model: Any, prefix: Prefix, prompt: Sequence[int], *, pad_id: int) -> torch.Tensor:
    """Logits ``(V,)`` of the token after ``prompt``."""
    return _Batch(model, prefix, [prompt], 1, pad_id).prefill()[0]


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
        logits = batch.step(torch.tensor([tokens[place] for place in alive], device=batch.valid.device))
