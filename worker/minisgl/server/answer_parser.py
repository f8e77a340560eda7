"""The text of a chat answer, taken apart: thoughts, content, tool calls."""

from __future__ import annotations

from minisgl.server.parts import Content, Part
from minisgl.server.reasoning import ThoughtParser
from minisgl.server.tool_calls import ToolCallParser


class AnswerParser:
    """Reads one answer; with neither parser, all of it is content."""

    def __init__(self, thoughts: ThoughtParser | None = None, tools: ToolCallParser | None = None) -> None:
        self._thoughts = thoughts
        self._tools = tools

    @property
    def called(self) -> bool:
        """The answer calls tools, and every call that the client has seen is complete."""
        return self._tools is not None and self._tools.calls > 0 and not self._tools.broken

    def push(self, text: str) -> list[Part]:
        """What becomes certain with `text`."""
        if not text:
            return []
        return self._read([Content(text)] if self._thoughts is None else self._thoughts.push(text))

    def finish(self) -> list[Part]:
        """What was held back, when nothing follows."""
        parts = [] if self._thoughts is None else self._read(self._thoughts.finish())
        return parts if self._tools is None else parts + self._tools.finish()

    def _read(self, parts: list[Part]) -> list[Part]:
        if self._tools is None:
            return parts
        read: list[Part] = []
        for part in parts:
            read += self._tools.push(part.text) if isinstance(part, Content) else [part]
        return read
