"""Grammar texts to llguidance's matchers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from minisgl.grammar.vocabulary import Vocabulary, read_vocabulary
from minisgl.utils.errors import UserError

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,  # about 7 ms of a step
    step_max_items=50_000,
    max_lexer_states=25_000,  # 1 to 2 KB each
    max_grammar_size=500_000,
    verbose_errors=False,
)
"""Counts of work, not of time: every rank meets them at the same token."""

_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Where the grammar leaves one text only, the model may still choose among the tokens that spell it."""

_MAX_REASON = 300


class Compiler:
    """Makes matchers over one model's vocabulary. It may be used in several threads at once."""

    def __init__(self, vocabulary: Vocabulary, *, size: int | None = None, eos_ids: Iterable[int] = ()) -> None:
        """`size`: tokens that a mask has bits for, by default those of the vocabulary and an end of its own.

        With `eos_ids`, any of them may end an answer.
        """
        tokens = list(vocabulary.tokens)
        if size is None:
            size, eos_ids = len(tokens) + 1, [len(tokens)]
        eos = sorted({token for token in eos_ids if token < size})
        if not eos:
            raise UserError("the model names no token that ends an answer, so none can end with a grammar")
        tokens = tokens[:size] + [b""] * (size - len(tokens))
        special = sorted({*vocabulary.special, *eos})
        self.mask_bytes = -(-len(tokens) // 32) * 4
        """Of a mask, whose bits are of as many tokens, and then of none."""
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(tokens, special, eos[0])), eos_token=eos)

    @classmethod
    def load(cls, directory: str, *, size: int | None = None, eos_ids: Iterable[int] = ()) -> Compiler:
        """For the model in a local directory; half a second, holding the GIL, for 150 000 tokens.

        Raises `UserError`.
        """
        return cls(read_vocabulary(directory), size=size, eos_ids=eos_ids)

    def build(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of an answer; `failure` says whether there is one."""
        return LLMatcher(self._tokenizer, _OPTIONS + grammar, log_level=0, limits=LIMITS)

    def refusal(self, grammar: str) -> str | None:
        """Why no answer can follow `grammar`, for its author; None if one can begin to."""
        matcher = self.build(grammar)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return failure(matcher)


class _Tokens(NamedTuple):
    """What llguidance asks of a tokenizer."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None = None

    def __call__(self, _text: str) -> list[int]:
        raise NotImplementedError("only grammars that force tokens need it")


def failure(matcher: LLMatcher) -> str | None:
    """One line on why `matcher` can't go on; None if it can."""
    return _one_line(matcher.get_error()) if matcher.is_error() else None


def _one_line(error: str) -> str:
    """llguidance's message without its excerpt of the grammar, and without where in it."""
    if error.startswith("NoExtension"):
        return "no text fits it"
    error = re.split(r"\n\s+\d+ \| |\n<", error)[0]
    error = re.sub(r"^at \d+\(\d+\): ", "", error).removeprefix("failed to compile JSON schema: ")
    if match := re.match(r"regex parse error:\n(.*)\nerror: (.*)", error, re.DOTALL):
        error = f"a pattern cannot be read: {match[2]}"
    error = " ".join(error.split())
    return error if len(error) <= _MAX_REASON else error[: _MAX_REASON - 3] + "..."
