"""What clients get: complete answers and the chunks of a stream, exactly as OpenAI shapes them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from minisgl.core.request import FinishReason
from minisgl.message import TextScore
from minisgl.server.answer_parser import AnswerParser
from minisgl.server.dialect import Dialect
from minisgl.server.generation import Choice, Generation
from minisgl.server.openai_logprobs import CompletionLogprobs, chat_logprobs
from minisgl.server.openai_types import ChatRequest, CompletionRequest
from minisgl.server.parts import Arguments, Call, Content, Part, Thought


class Reply:
    """How the answer to one request looks. The two endpoints differ in what a choice is."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, *, include_usage: bool = False, scored: bool = False) -> None:
        """`scored`: with log-probabilities."""
        self._id = f"{self.prefix}-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model
        self._include_usage = include_usage
        self._scored = scored

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer when it is complete."""
        choices = [self.choice(choice) for choice in generation.choices]
        return self._envelope(self.whole_object, choices) | {"usage": usage(generation)}

    def opening(self, _generation: Generation) -> list[dict[str, Any]]:
        """The chunks before any text."""
        return []

    def news(self, choice: Choice) -> list[dict[str, Any]]:
        """The chunks for what is new of a choice."""
        return [self._chunk([choices]) for choices in self.deltas(choice)]

    def closing(self, generation: Generation) -> list[dict[str, Any]]:
        """The chunks after every choice has finished."""
        if not self._include_usage:
            return []
        return [self._envelope(self.chunk_object, []) | {"usage": usage(generation)}]

    def choice(self, choice: Choice) -> dict[str, Any]:
        """An element of `choices` in a complete answer; takes what came."""
        raise NotImplementedError

    def deltas(self, choice: Choice) -> list[dict[str, Any]]:
        """The elements of `choices` for what is new, and for the end when there is a finish reason."""
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
    """``/v1/chat/completions``: a chunk with the role, the parts' chunks, and one with the finish reason."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, model: str, request: ChatRequest, dialect: Dialect) -> None:
        super().__init__(model, include_usage=request.include_usage, scored=bool(request.logprobs))
        self._new_parser: Callable[[], AnswerParser] = partial(request.parser, dialect)
        self._parsers: dict[int, AnswerParser] = {}
        self._unsent: dict[int, list[TextScore]] = {}
        """By choice, the log-probabilities of tokens whose text is held back."""
        self._reason_for_calls = request.reason_for_calls

    def opening(self, generation: Generation) -> list[dict[str, Any]]:
        first = {"role": "assistant", "content": ""}
        return [self._chunk([self._delta(choice.index, first)]) for choice in generation.choices]

    def choice(self, choice: Choice) -> dict[str, Any]:
        text, scores = choice.take()
        parser = self._new_parser()
        parts = parser.push(text) + parser.finish()
        calls = [_call(part) for part in parts if isinstance(part, Call)]
        for part in parts:
            if isinstance(part, Arguments):
                calls[part.number]["function"]["arguments"] += part.text
        content = "".join(part.text for part in parts if isinstance(part, Content))
        thought = "".join(part.text for part in parts if isinstance(part, Thought))
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if calls else ""),
            "refusal": None,
        }
        message |= {"reasoning_content": thought} if thought else {}
        message |= {"tool_calls": calls} if calls else {}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": chat_logprobs(scores) if self._scored else None,
            "finish_reason": self._finish_reason(choice, parser),
        }

    def deltas(self, choice: Choice) -> list[dict[str, Any]]:
        text, scores = choice.take()
        if choice.index not in self._parsers:
            self._parsers[choice.index] = self._new_parser()
        parser = self._parsers[choice.index]
        parts = parser.push(text)
        if choice.finish_reason:
            parts += parser.finish()
        deltas = [self._delta(choice.index, _part(part)) for part in parts]
        if choice.finish_reason:
            deltas.append(self._delta(choice.index, {}, self._finish_reason(choice, parser)))
        if self._scored:
            scores = self._unsent.pop(choice.index, []) + scores
            if not deltas:
                self._unsent[choice.index] = scores
            elif scores:
                deltas[0]["logprobs"] = chat_logprobs(scores)
        return deltas

    def _finish_reason(self, choice: Choice, parser: AnswerParser) -> str:
        calls = parser.called and choice.finish_reason == FinishReason.STOP.value
        return self._reason_for_calls if calls else choice.finish_reason

    def _delta(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _part(part: Part) -> dict[str, Any]:
    """The delta that a part of an answer makes."""
    match part:
        case Content():
            return {"content": part.text}
        case Thought():
            return {"reasoning_content": part.text}
        case Call():
            return {"tool_calls": [{"index": part.number} | _call(part)]}
        case Arguments():
            return {"tool_calls": [{"index": part.number, "function": {"arguments": part.text}}]}


def _call(part: Call) -> dict[str, Any]:
    """A tool call without its arguments."""
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": part.name, "arguments": ""},
    }


class CompletionReply(Reply):
    """``/v1/completions``: the last text of a choice comes with its finish reason."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, model: str, request: CompletionRequest) -> None:
        super().__init__(model, include_usage=request.include_usage, scored=request.logprobs is not None)
        self._columns: dict[int, CompletionLogprobs] = {}

    def choice(self, choice: Choice) -> dict[str, Any]:
        return self.deltas(choice)[0]

    def deltas(self, choice: Choice) -> list[dict[str, Any]]:
        text, scores = choice.take()
        logprobs = None
        if self._scored:
            logprobs = self._columns.setdefault(choice.index, CompletionLogprobs()).columns(scores)
        return [
            {
                "index": choice.index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": choice.finish_reason or None,
            }
        ]


def usage(generation: Generation) -> dict[str, Any]:
    """Token counts of a request: each prompt once, and all its answers."""
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.generated,
        "total_tokens": generation.prompt_tokens + generation.generated,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }
