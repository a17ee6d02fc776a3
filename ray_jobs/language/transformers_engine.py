"""The in-process engine: a Hugging Face causal language model, decoded in batches behind its shared prefix."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

from models.language import decoding, shared_prefix
from models.language.adapters import merge_adapter
from ray_jobs.language.chat_prompts import render
from ray_jobs.language.checkpoints import checkpoint_folder
from ray_jobs.language.engine import (
    MARK,
    ChoiceError,
    Completion,
    EngineSetupError,
    LanguageEngineConfig,
    Message,
    Neutral,
    Usage,
)
from ray_jobs.language.grammars import Grammars

PREFIXES_KEPT = 4
# Without examples, prompts that differ in their first letter tell what all prompts have in common.
PROBES = ("a", "Z", "7")


class TransformersEngine:
    """See `LanguageEngine`.

    Args:
        config: Model, device and type.

    Raises:
        EngineSetupError: If the checkpoint is not there, or its architecture cannot be decoded here.
    """

    def __init__(self, config: LanguageEngineConfig):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        folder = checkpoint_folder(config)
        self.config = config
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, _compute_type(config)), local_files_only=True
        )
        _check_architecture(model)
        if config.adapter:
            model = merge_adapter(model, config.adapter)
        model.set_attn_implementation(shared_prefix.ATTENTION)
        self.model: Any = model.to(config.device).eval()
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        self.end_ids = sorted(e for e in ends if e is not None)
        if not self.end_ids:
            raise EngineSetupError(
                f"The checkpoint {folder} has no end token: set eos_token_id in generation_config.json."
            )
        self.pad_id = self.end_ids[0]
        self.context = int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 30)
        self.usage = Usage()
        self.grammars = Grammars(self.tokenizer, self.model.config.vocab_size, self.end_ids)
        self._prefixes: collections.OrderedDict[tuple[int, ...], shared_prefix.Prefix] = collections.OrderedDict()
        self._probed: dict[tuple[Message, ...], list[list[int]]] = {}
        self._priors: dict[tuple[tuple[Message, ...], str, tuple[str, ...]], Any] = {}

    def complete(
        self,
        shared: list[Message],
        users: list[str],
        max_new_tokens: int,
        stop: str | None = "\n",
        no_repeat_ngram: int = 0,
        schemas: Sequence[dict[str, Any]] = (),
        choices: Sequence[Sequence[str]] = (),
        neutral: Neutral | None = None,
    ) -> list[Completion]:
        """See `LanguageEngine.complete`.

        Args:
            shared: As there.
            users: As there.
            max_new_tokens: As there.
            stop: As there.
            no_repeat_ngram: As there.
            schemas: As there.
            choices: Options of each choice that follows the text, ``<text> | <option> | <option>`` as in the examples'
                answers; decoding is constrained to them.
            neutral: An exchange without content, to calibrate the choices by.
        """
        prompts, shared_length = self._prompts(shared, users)

        def is_end(ids: list[int]) -> bool:
            # A character or a stop text may spread over several tokens.
            return stop is not None and stop in self.tokenizer.decode(ids[-8:])

        rules = decoding.TextRules(
            max_new_tokens,
            self.end_ids,
            is_end if stop else None,
            no_repeat_ngram,
            self._tokens(MARK) if choices else [],
            self._choices(shared, choices, neutral),
        )
        room = rules.most_tokens
        answers: list[Completion] = [
            Completion("", 0, 0, "error", self._too_long(p))
            if len(p) + room > self.context
            else Completion("", 0, 0, "")
            for p in prompts
        ]
        for rows in self._batches([r for r, a in enumerate(answers) if not a.error], prompts):
            prefix = self._prefix(prompts[rows[0]][:shared_length])
            generated = decoding.generate(
                self.model,
                prefix,
                [prompts[r][shared_length:] for r in rows],
                rules,
                pad_id=self.pad_id,
                grammars=[self.grammars.of(schemas[r]) for r in rows] if schemas else (),
            )
            for row, (ids, finish, chosen) in zip(rows, generated, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                text = text.split(stop, 1)[0] if stop else text
                options = [choice.options[o] for choice, o in zip(rules.choices, chosen, strict=True)]
                spent = len(ids) + sum(len(rules.mark) + len(o) for o in options)
                answers[row] = Completion(
                    text.strip(), len(prompts[row]), spent, finish, choices=chosen, cached_tokens=shared_length
                )
        answered = [a for a in answers if a.finish != "error"]
        self.usage = self.usage.plus(
            Usage(len(answered), sum(a.prompt_tokens for a in answered), sum(a.completion_tokens for a in answered))
        )
        return answers

    def choose(
        self, shared: list[Message], users: list[str], options: list[list[str]], neutral: str | None = None
    ) -> list[int]:
        """See `LanguageEngine.choose`."""
        prompts, shared_length = self._prompts(shared, users)
        tokens = {o: [*self._tokens(o), self.end_ids[0]] for row in options for o in row}
        chosen: list[int | None] = [None] * len(users)
        reasons = {}
        for row, (prompt, wanted) in enumerate(zip(prompts, options, strict=True)):
            if not wanted:
                reasons[row] = "The prompt has no options."
            elif len(prompt) + max(len(tokens[o]) for o in wanted) > self.context:
                reasons[row] = self._too_long(prompt)
        prior = self._prior(shared, neutral) if neutral is not None else None
        for rows in self._batches([r for r in range(len(users)) if r not in reasons], prompts):
            prefix = self._prefix(prompts[rows[0]][:shared_length])
            picked = decoding.choose(
                self.model,
                prefix,
                [prompts[r][shared_length:] for r in rows],
                [[tokens[o] for o in options[r]] for r in rows],
                pad_id=self.pad_id,
                prior=prior,
            )
            for row, option in zip(rows, picked, strict=True):
                chosen[row] = option
        self.usage = self.usage.plus(
            Usage(
                len(users) - len(reasons),
                sum(len(p) for r, p in enumerate(prompts) if r not in reasons),
                sum(len(tokens[options[r][c]]) for r, c in enumerate(chosen) if c is not None),
            )
        )
        if reasons:
            raise ChoiceError(chosen, reasons)
        return [c for c in chosen if c is not None]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _choices(
        self, shared: list[Message], choices: Sequence[Sequence[str]], neutral: Neutral | None
    ) -> list[decoding.Choice]:
        found = []
        for place, options in enumerate(choices):
            prior = None
            if neutral:
                # What a choice prefers hangs on the choices before it: the mean over what these may be.
                before = choices[:place]
                texts = [
                    MARK.join([neutral.text, *(f" {options[i % len(options)]}" for options in before), ""])
                    for i in range(max(map(len, before), default=1))
                ]
                prior = self._prior(shared, neutral.user, texts)
            # A closing token tells an option from one that begins like it.
            found.append(decoding.Choice([[*self._tokens(f" {o}"), self.end_ids[0]] for o in options], prior))
        return found

    def most_tokens(
        self, shared: list[Message], users: list[str], max_new_tokens: int, choices: Sequence[Sequence[str]] = ()
    ) -> list[int]:
        """The most tokens, prompt and answer, that `complete` takes for each user message."""
        rules = decoding.TextRules(
            max_new_tokens, self.end_ids, mark=self._tokens(MARK), choices=self._choices(shared, choices, None)
        )
        return [len(prompt) + rules.most_tokens for prompt in self._prompts(shared, users)[0]]

    def _prior(self, shared: list[Message], user: str, texts: Sequence[str] = ("",)) -> Any:
        """Mean log-probabilities of the token that follows each of ``texts`` as the answer to ``user``."""
        key = (tuple(shared), user, tuple(texts))
        if key not in self._priors:
            (prompt,), shared_length = self._prompts(shared, [user])
            own = [[*prompt[shared_length:], *(self._tokens(text) if text else [])] for text in texts]
            logits = decoding.next_token_logits(
                self.model, self._prefix(prompt[:shared_length]), own, pad_id=self.pad_id
            )
            self._priors[key] = logits.log_softmax(-1).mean(0)
        return self._priors[key]

    def _too_long(self, prompt: list[int]) -> str:
        return f"The prompt has {len(prompt):,} tokens, but the model reads {self.context:,}: shorten the item's text."

    def _batches(self, rows: list[int], prompts: list[list[int]]) -> Iterator[list[int]]:
        """Rows in batches, longest prompts first, so that rows of one batch need little padding."""
        ordered = sorted(rows, key=lambda r: (-len(prompts[r]), prompts[r]))
        for start in range(0, len(ordered), self.config.batch_size):
            yield ordered[start : start + self.config.batch_size]

    def _prompts(self, shared: Sequence[Message], users: Sequence[str]) -> tuple[list[list[int]], int]:
        """Token ids of every prompt, and how many they have in common.

        Prompts are tokenised as a whole, so that the ids are those of the plain text.
        """
        key = tuple(shared)
        if key not in self._probed:
            # The examples' user messages begin like the users'; what they have in common is computed once, too.
            examples = list(dict.fromkeys(m.content for m in shared if m.role == "user"))
            self._probed[key] = self._render(shared, examples if len(examples) > 1 else PROBES)
        prompts = self._render(shared, users)
        probes = self._probed[key]
        common = min(len(p) for p in probes) - 1
        for prompt in [*probes[1:], *prompts]:
            common = min(common, len(prompt) - 1)
            while prompt[:common] != probes[0][:common]:
                common -= 1
        return prompts, common

    def _render(self, shared: Sequence[Message], users: Sequence[str]) -> list[list[int]]:
        return render(self.tokenizer, shared, users)

    def _prefix(self, ids: list[int]) -> shared_prefix.Prefix:
        key = tuple(ids)
        if key not in self._prefixes:
            self._prefixes[key] = shared_prefix.compute_prefix(self.model, ids)
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > PREFIXES_KEPT:
            self._prefixes.popitem(last=False)
        return self._prefixes[key]


def _compute_type(config: LanguageEngineConfig) -> str:
    import torch

    if config.dtype != "auto":
        return config.dtype
    # Without AVX512-BF16 a processor emulates bfloat16, five times slower than float32.
    native = config.device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def _check_architecture(model: Any) -> None:
    kind = model.config.model_type
    window = getattr(model.config, "sliding_window", None)
    if not getattr(model, "_supports_attention_backend", False) or window:
        raise EngineSetupError(
            f"Models of type {kind} cannot share a prompt prefix in process: serve the model behind an "
            "OpenAI-compatible endpoint and set BELVEDERE_LLM_BASE_URL."
        )
