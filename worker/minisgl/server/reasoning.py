"""Thoughts apart from answers: ``<think> ... </think>`` at the beginning of a text that comes in pieces."""

from __future__ import annotations

from enum import Enum, auto

from minisgl.server.parts import Content, Part, Thought, trailing

OPEN, CLOSE = "<think>", "</think>"


class _Place(Enum):
    START = auto()
    OPENED = auto()
    """Behind the tag, before the first word of the thought."""
    THOUGHT = auto()
    CLOSED = auto()
    """Behind the closing tag, before the first word of the answer."""
    ANSWER = auto()


class ThoughtParser:
    """Where the pieces are cut makes no difference. White space next to a tag belongs to the tag.

    A thought that is never closed is one to the end; a text that does not begin with one has none.
    """

    def __init__(self) -> None:
        self._place = _Place.START
        self._held = ""
        """The end of the text so far, which may belong to a tag."""

    def push(self, piece: str) -> list[Part]:
        """What becomes certain with `piece`."""
        text, self._held = self._held + piece, ""
        parts: list[Part] = []
        if self._place is _Place.START:
            begun = text.lstrip()
            if begun.startswith(OPEN):
                self._place, text = _Place.OPENED, begun[len(OPEN) :]
            elif OPEN.startswith(begun):
                self._held = text
                return []
            else:
                self._place = _Place.ANSWER
        if self._place is _Place.OPENED:
            text = text.lstrip()
            if text:
                self._place = _Place.THOUGHT
        if self._place is _Place.THOUGHT:
            thought, closed, rest = text.partition(CLOSE)
            if closed:
                thought, self._place = thought.rstrip(), _Place.CLOSED
            else:
                keep = trailing(thought, CLOSE)
                thought, self._held = thought[: len(thought) - keep], thought[len(thought) - keep :]
            if thought:
                parts.append(Thought(thought))
            text = rest
        if self._place is _Place.CLOSED:
            text = text.lstrip()
            if text:
                self._place = _Place.ANSWER
        if text:
            parts.append(Content(text))
        return parts

    def finish(self) -> list[Part]:
        """What was held back, when nothing follows."""
        text, self._held = self._held, ""
        if not text:
            return []
        return [Thought(text) if self._place is _Place.THOUGHT else Content(text)]
