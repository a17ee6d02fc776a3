"""Grammars that hold an answer to a JSON schema, token by token, by xgrammar (Dong et al. 2024, arXiv:2411.15100)."""

import json
from collections.abc import Sequence
from typing import Any


class SchemaGrammar:
    """See `models.language.decoding.Grammar`.

    Args:
        compiled: A compiled grammar of xgrammar.
        vocab_size: Size of the logits.
    """

    def __init__(self, compiled: Any, vocab_size: int):
        import xgrammar

        self._xgrammar = xgrammar
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._mask = xgrammar.allocate_token_bitmask(1, vocab_size)

    def hold(self, logits: Any) -> None:
        """See `Grammar.hold`."""
        self._matcher.fill_next_token_bitmask(self._mask)
        self._xgrammar.apply_token_bitmask_inplace(logits[None], self._mask.to(logits.device))

    def accept(self, token: int) -> None:
        """See `Grammar.accept`."""
        self._matcher.accept_token(token)


class Grammars:
    """Compiles schemas for a tokenizer; equal schemas once.

    Args:
        tokenizer: The checkpoint's tokenizer.
        vocab_size: Size of the logits, which may be larger than the tokenizer's vocabulary.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Sequence[int]):
        self.tokenizer, self.vocab_size, self.end_ids = tokenizer, vocab_size, list(end_ids)
        self._compiler: Any = None

    def of(self, schema: dict[str, Any]) -> SchemaGrammar:
        """A fresh grammar for one answer under ``schema``."""
        return SchemaGrammar(self.compiled(schema), self.vocab_size)

    def compiled(self, schema: dict[str, Any]) -> Any:
        """The schema as xgrammar compiles it."""
        import xgrammar

        if self._compiler is None:
            self._compiler = xgrammar.GrammarCompiler(
                xgrammar.TokenizerInfo.from_huggingface(
                    self.tokenizer, vocab_size=self.vocab_size, stop_token_ids=self.end_ids
                )
            )
        return self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
