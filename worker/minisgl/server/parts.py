"""What an answer is made of, as far as the text shows it. `reasoning` and `tool_calls` tell the parts apart."""

from __future__ import annotations

from typing import NamedTuple


class Content(NamedTuple):
    """Text for the reader of the answer."""

    text: str


class Thought(NamedTuple):
    """Text that the model wrote for itself."""

    text: str


class Call(NamedTuple):
    """A call of a tool begins; its arguments follow."""

    number: int
    """Among the calls of the answer, from 0."""
    name: str


class Arguments(NamedTuple):
    """A piece of the JSON object that a call gives to its tool."""

    number: int
    text: str


Part = Content | Thought | Call | Arguments


def trailing(text: str, tag: str) -> int:
    """Characters at the end of `text` that may be what `tag` begins with, and the white space before them."""
    longest = min(len(text), len(tag) - 1)
    overlap = next((size for size in range(longest, 0, -1) if text.endswith(tag[:size])), 0)
    return len(text) - len(text[: len(text) - overlap].rstrip())
