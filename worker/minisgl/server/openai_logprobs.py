"""Log-probabilities as OpenAI shapes them: a list of objects in chats, columns in completions."""

from __future__ import annotations

import codecs
from typing import Any

from minisgl.message import TextScore, TokenText

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not have."""
REPLACEMENT = "\ufffd"


def chat_logprobs(scores: list[TextScore]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    content = [
        _chat_token(score) | {"top_logprobs": [_chat_token(token) for token in score.top]} for score in scores
    ]
    return {"content": content, "refusal": None}


def _chat_token(token: TextScore | TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.data)}


class CompletionLogprobs:
    """The `logprobs` of one completion's choice, which may come in pieces.

    `text_offset` is where a token's text begins in the choice's: the characters that the bytes before it complete.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def columns(self, scores: list[TextScore]) -> dict[str, Any]:
        """For the tokens that follow those of the last call."""
        offsets = []
        for score in scores:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(score.data))
        return {
            "tokens": [_name(score) for score in scores],
            "token_logprobs": [_finite(score.logprob) for score in scores],
            "top_logprobs": [_top(score) for score in scores],
            "text_offset": offsets,
        }


def _top(score: TextScore) -> dict[str, float | None] | None:
    """The most likely tokens, and the token itself; None where nothing predicts it."""
    if score.logprob is None:
        return None
    top: dict[str, float | None] = {}
    tokens: list[TextScore | TokenText] = [*score.top, score]
    for token in tokens:
        top.setdefault(_name(token), _finite(token.logprob))  # of tokens that read alike, the likelier
    return top


def _name(token: TextScore | TokenText) -> str:
    """A token that is no text by itself is named by its bytes, which tell it from others."""
    if REPLACEMENT not in token.text or token.data == token.text.encode():
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)
