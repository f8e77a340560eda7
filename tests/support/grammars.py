"""Grammars over the fake engine's vocabulary, and what it must write under them."""

from __future__ import annotations

from collections.abc import Sequence

from minisgl.grammar import json_schema
from minisgl.grammar.compiler import Compiler
from minisgl.grammar.vocabulary import Vocabulary
from support.fake_engine import VOCAB, next_token

EOS = 7
_PIECES = [
    *'0123456789{}[]":, \n-',
    '"a"',
    '": ',
    '{"',
    '", "',
    "ab",
    "ba",
    "true",
    "}]",
    *"abcdefghijklmnopqrstu",
]
_TEXTS = [*_PIECES[:EOS], "<end>", *_PIECES[EOS : VOCAB - 1]]
assert len(_TEXTS) == VOCAB

COMPILER = Compiler(Vocabulary([text.encode() for text in _TEXTS], frozenset({EOS})), size=VOCAB, eos_ids=[EOS])

GRAMMARS = [
    json_schema(
        {
            "type": "object",
            "properties": {"a": {"enum": ["ab", "ba"]}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
    ),
    "start: /[ab]{1,12}/",
    "start: /(ab|ba)*c?/",
    "start: /[a-e]+/",
]


def text_of(tokens: Sequence[int]) -> str:
    return "".join(_TEXTS[token] for token in tokens)


def constrained(prompt: Sequence[int], max_tokens: int, grammar: str, stop_ids: frozenset[int]) -> list[int]:
    """What a request must generate under `grammar`, whatever else runs, by a matcher of its own."""
    matcher = COMPILER.build(grammar)
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        mask = bytearray(matcher.compute_bitmask())
        if matcher.is_accepting():
            for token in stop_ids:
                mask[token >> 3] |= 1 << (token & 7)
        tokens.append(next_token(tokens, bytes(mask)))
        if tokens[-1] in stop_ids | {EOS}:
            break
        assert matcher.consume_token(tokens[-1]), matcher.get_error()
    return tokens[len(prompt) :]
