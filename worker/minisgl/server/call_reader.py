"""One tool call, ``{"name": ..., "arguments": {...}}``, a character at a time."""

from __future__ import annotations

import json
from typing import Any

from minisgl.server.json_text import SPACE, Expects, JsonText

_ARGUMENTS = ("arguments", "parameters")
_KEYS = frozenset(("name", "type", "id", *_ARGUMENTS))


class CallReader:
    """Reads an object with the name of one of the tools `names`, and its arguments.

    The arguments may be missing or null, which is no arguments, or be a string that holds the object. Of equal
    keys the first counts.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._json = JsonText()
        self._text: list[str] = []
        self._key = ""
        self._start = 0
        """Where in the text the latest key or value at the top level starts."""
        self._open: int | None = None
        """Where the arguments start, if they are an object and stand behind the name."""
        self._arguments: str | None = None
        self._read = 0
        """Where the text ends that name and arguments need."""
        self._taken = 0
        """Where the text ends that `take` has returned."""
        self.name: str | None = None
        self.certain = False
        """The name is known, and the arguments have begun well."""

    @property
    def text(self) -> str:
        """All that was read."""
        return "".join(self._text)

    @property
    def ended(self) -> bool:
        """The object is complete."""
        return self._json.expects is Expects.NOTHING

    @property
    def callable(self) -> bool:
        """There is a call, even if nothing follows."""
        return self.name is not None and (self._arguments is not None or self.ended)

    @property
    def rest(self) -> str:
        """What was read behind name and arguments, of an object that has not ended."""
        return "" if self.ended else "".join(self._text[self._read :])

    def take(self) -> str:
        """What is new of the arguments, as JSON."""
        if self._open is None:
            taken, self._taken = self._taken, 1
            return "" if taken else self._arguments or "{}"
        start, end = max(self._taken, self._open), len(self._text) if self._arguments is None else self._read
        self._taken = end
        return "".join(self._text[start:end])

    def push(self, character: str) -> bool:
        """False: no call can become of the text with this character, which then does not count."""
        before, depth = self._json.expects, self._json.depth
        if not self._json.push(character):
            return False
        self._text.append(character)
        fits = True
        if depth <= 1:
            fits = self._at_top(character, before, depth)
        elif self._json.depth == 1:
            fits = self._end_value(len(self._text))
        elif before is Expects.KEY_OR_END and depth == 2 and self._open is not None and character not in SPACE:
            self.certain = True
        if not fits:
            self._text.pop()
        return fits

    def _at_top(self, character: str, before: Expects, depth: int) -> bool:
        """A character of the object itself."""
        now, position = self._json.expects, len(self._text) - 1
        if depth == 0:
            return character == "{"
        if before in (Expects.KEY, Expects.KEY_OR_END) and now is Expects.STRING:
            self._start = position
        elif before is Expects.STRING and now is Expects.COLON:
            self._key = json.loads("".join(self._text[self._start :]))
            return self._key in _KEYS
        elif before is Expects.VALUE and now is not Expects.VALUE:
            self._start = position
            if character == "{" and self.name is not None and self._key in _ARGUMENTS and self._arguments is None:
                self._open = position
        elif before is Expects.STRING and now in (Expects.COMMA_OR_END, Expects.NOTHING):
            return self._end_value(position + 1)
        elif before is Expects.SCALAR and now is not Expects.SCALAR:
            return self._end_value(position)
        return True

    def _end_value(self, end: int) -> bool:
        """The value of the latest key at the top level ends before `end`. False: it is not one that a call has."""
        text = "".join(self._text[self._start : end])
        if self._key == "name" and self.name is None:
            name = json.loads(text)
            self.name = name if isinstance(name, str) and name in self._names else None
            self._read = end
            return self.name is not None
        if self._key in _ARGUMENTS and self._arguments is None:
            self._arguments = _object(text)
            self._read = end
            return self._arguments is not None
        return True


def _object(text: str) -> str | None:
    """The JSON object that `text` is, or is the string of; None when there is none."""
    if text.startswith("{"):
        return text
    value: Any = json.loads(text)
    if value is None:
        return "{}"
    try:
        value.encode()  # a lone surrogate is no text
        return value if isinstance(json.loads(value), dict) else None
    except (AttributeError, ValueError, RecursionError):
        return None
