"""What clients get: complete answers and the chunks of a stream, exactly as OpenAI shapes them."""

from __future__ import annotations

import secrets
import time
from typing import Any

from minisgl.server.generation import Choice, Generation


class Reply:
    """How the answer to one request looks. The two endpoints differ in what a choice is."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        self._id = f"{self.prefix}-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model
        self._include_usage = include_usage

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer when it is complete."""
        choices = [self.choice(choice) for choice in generation.choices]
        return self._envelope(self.whole_object, choices) | {"usage": usage(generation)}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before any text."""
        return []

    def news(self, choice: Choice) -> list[dict[str, Any]]:
        """The chunks for what is new of a choice."""
        return [self._chunk([choices]) for choices in self.deltas(choice, choice.take())]

    def closing(self, generation: Generation) -> list[dict[str, Any]]:
        """The chunks after every choice has finished."""
        if not self._include_usage:
            return []
        return [self._envelope(self.chunk_object, []) | {"usage": usage(generation)}]

    def choice(self, choice: Choice) -> dict[str, Any]:
        """An element of `choices` in a complete answer; takes the text."""
        raise NotImplementedError

    def deltas(self, choice: Choice, text: str) -> list[dict[str, Any]]:
        """The elements of `choices` for new `text`, and for the end when there is a finish reason."""
        raise NotImplementedError

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._envelope(self.chunk_object, choices)
        return chunk | {"usage": None} if self._include_usage else chunk

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


class ChatReply(Reply):
    """``/v1/chat/completions``: a chunk with the role, the text's chunks, and one with the finish reason."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk([self._delta(0, {"role": "assistant", "content": ""})])]

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.take(), "refusal": None},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }

    def deltas(self, choice: Choice, text: str) -> list[dict[str, Any]]:
        deltas = [self._delta(choice.index, {"content": text})] if text else []
        if choice.finish_reason:
            deltas.append(self._delta(choice.index, {}, choice.finish_reason))
        return deltas

    def _delta(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


class CompletionReply(Reply):
    """``/v1/completions``: the last text of a choice comes with its finish reason."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def choice(self, choice: Choice) -> dict[str, Any]:
        return self.deltas(choice, choice.take())[0]

    def deltas(self, choice: Choice, text: str) -> list[dict[str, Any]]:
        return [
            {
                "index": choice.index,
                "text": text,
                "logprobs": None,
                "finish_reason": choice.finish_reason or None,
            }
        ]


def usage(generation: Generation) -> dict[str, Any]:
    """Token counts of a request, summed over its prompts."""
    prompt = sum(choice.prompt_tokens for choice in generation.choices)
    completion = sum(choice.generated for choice in generation.choices)
    cached = sum(choice.cached_tokens for choice in generation.choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
