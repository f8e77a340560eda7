"""Tool calls in a text that comes in pieces, in the forms that models are trained to write.

    qwen    <tool_call> {"name": ..., "arguments": {...}} </tool_call>, as often as there are calls (also Hermes)
    llama3  {"name": ..., "parameters": {...}} as the whole answer or behind <|python_tag|>, semicolons between

What does not become a call is content, to the last character.
"""

from __future__ import annotations

from enum import Enum, auto

from minisgl.grammar import ToolForm
from minisgl.server.call_reader import CallReader
from minisgl.server.json_text import SPACE
from minisgl.server.parts import Arguments, Call, Content, Part, trailing

_OPEN: dict[ToolForm, str] = {"qwen": "<tool_call>", "llama3": "<|python_tag|>"}
_CLOSE: dict[ToolForm, str] = {"qwen": "</tool_call>", "llama3": ";"}


class _Place(Enum):
    TEXT = auto()
    BARE = auto()
    """Where a call may begin without a tag."""
    OPENED = auto()
    """Behind the tag, before the call."""
    CALL = auto()
    BEHIND = auto()
    """Behind a call, before its end mark."""


class ToolCallParser:
    """Where the pieces are cut makes no difference. White space around a call belongs to the call.

    `eager` gives a call away as soon as its name and the beginning of its arguments are certain, and then what
    comes of the arguments; if it breaks off later, it stays as it is, and the rest is content. Otherwise a call is
    held until it is complete. `most`: calls past so many are dropped.
    """

    def __init__(self, form: ToolForm, names: frozenset[str], *, eager: bool, most: int | None = None) -> None:
        self._open, self._close = _OPEN[form], _CLOSE[form]
        self._outside = _Place.TEXT if form == "qwen" else _Place.BARE
        """Where a text begins, and goes on behind a call."""
        self._names = names
        self._eager = eager
        self._most = most
        self._place = self._outside
        self._held = ""
        """The end of the text so far, which may belong to a call."""
        self._before = ""
        """What stands before the call that is being read."""
        self._reader = CallReader(names)
        self._given = False
        """The call that is being read was given away."""
        self._bare_behind = False
        """Nothing but white space has followed the latest call."""
        self.calls = 0
        """Calls that are complete."""
        self._begun = 0
        """Calls that were given away, whole or not."""
        self.broken = False
        """A call was given away that was never completed."""

    def push(self, piece: str) -> list[Part]:
        """What becomes certain with `piece`."""
        parts: list[Part] = []
        while piece:
            if self._place is _Place.CALL:
                piece = self._read_call(piece, parts)
            else:
                text, self._held = self._held + piece, ""
                piece = self._read_text(text, parts)
        if self._place is _Place.CALL and self._eager and self._reader.certain:
            self._give(parts)
        return parts

    def finish(self) -> list[Part]:
        """What was held back, when nothing follows."""
        parts: list[Part] = []
        if self._place is _Place.CALL:
            self._leave_call(parts)
        text, self._before, self._held = self._before + self._held, "", ""
        if self._place is not _Place.BEHIND and (text.strip() or not self._bare_behind):
            _add(parts, Content(text))
        return parts

    def _read_text(self, text: str, parts: list[Part]) -> str:
        """Read `text` outside of calls, and return what is to be read in another place."""
        bare = text.lstrip(SPACE)
        space = text[: len(text) - len(bare)]
        if self._place is _Place.BEHIND:
            if self._close.startswith(bare) and bare != self._close:
                self._held = text
                return ""
            self._place = self._outside
            return bare[len(self._close) :] if bare.startswith(self._close) else text
        if self._place is _Place.OPENED:
            self._before += space
            if bare and bare[0] != "{":
                self._leave_call(parts)
            elif bare:
                self._place = _Place.CALL
            return bare
        if self._place is _Place.BARE:
            if bare.startswith("{"):
                self._before, self._place = space, _Place.CALL
                return bare
            if self._open.startswith(bare) and bare != self._open:
                self._held = text
                return ""
            self._place = _Place.TEXT
        start = text.find(self._open)
        if start >= 0:
            content = text[:start].rstrip(SPACE)
            self._before = text[len(content) : start] + self._open
            self._place = _Place.OPENED
        else:
            content = text[: len(text) - trailing(text, self._open)]
            self._held = text[len(content) :]
        self._bare_behind = self._bare_behind and not content
        _add(parts, Content(content))
        return text[start + len(self._open) :] if start >= 0 else ""

    def _read_call(self, piece: str, parts: list[Part]) -> str:
        """Read `piece` as more of a call, and return what stands behind it."""
        for index, character in enumerate(piece):
            if not self._reader.push(character):
                self._leave_call(parts)
                return piece[index:]
            if self._reader.ended:
                self._leave_call(parts)
                return piece[index + 1 :]
        return ""

    def _leave_call(self, parts: list[Part]) -> None:
        """The call is complete, or what was read of it is none."""
        reader, rest = self._reader, ""
        if reader.callable:
            self._give(parts)
            self.calls += 1
            rest = reader.rest
        elif self._given or (self._eager and reader.certain):
            self._give(parts)
            self.broken = True
        else:
            rest = self._before + reader.text
        self._bare_behind = reader.callable and not rest.strip()
        self._place = _Place.BEHIND if self._bare_behind else _Place.TEXT
        if not self._bare_behind:
            _add(parts, Content(rest))
        self._before, self._given, self._reader = "", False, CallReader(self._names)

    def _give(self, parts: list[Part]) -> None:
        """What is new of the call that is being read."""
        if not self._given:
            if self._begun == self._most:
                return
            assert self._reader.name is not None
            parts.append(Call(self._begun, self._reader.name))
            self._given = True
            self._begun += 1
        _add(parts, Arguments(self._begun - 1, self._reader.take()))


def _add(parts: list[Part], part: Content | Arguments) -> None:
    if not part.text:
        return
    if parts and isinstance(parts[-1], Content) and isinstance(part, Content):
        part = Content(parts.pop().text + part.text)  # type: ignore[union-attr]
    parts.append(part)
