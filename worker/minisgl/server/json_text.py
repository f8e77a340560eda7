"""JSON (RFC 8259) a character at a time: whether a text can still become a value, and where the value ends."""

from __future__ import annotations

import re
from enum import Enum, auto

SPACE = " \t\n\r"
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_SCALAR_CHARACTERS = frozenset("+-.0123456789Eaeflnrstu")
_SCALAR_STARTS = frozenset("-0123456789tfn")
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


class Expects(Enum):
    """What may come next."""

    VALUE = auto()
    VALUE_OR_END = auto()
    """Behind ``[``."""
    KEY = auto()
    KEY_OR_END = auto()
    """Behind ``{``."""
    COLON = auto()
    COMMA_OR_END = auto()
    STRING = auto()
    """More of a string, or its end."""
    ESCAPE = auto()
    HEXADECIMAL = auto()
    SCALAR = auto()
    """More of a number, true, false or null, or what follows it."""
    NOTHING = auto()
    """The value is complete."""


class JsonText:
    """One value. A number at the top level never becomes complete: more digits could follow."""

    __slots__ = ("_digits", "_is_key", "_open", "_scalar", "expects")

    def __init__(self) -> None:
        self.expects = Expects.VALUE
        self._open: list[str] = []
        """The brackets that close what is open, the innermost last."""
        self._is_key = False
        self._digits = 0
        self._scalar: list[str] = []

    @property
    def depth(self) -> int:
        """Arrays and objects that are open."""
        return len(self._open)

    def push(self, character: str) -> bool:
        """False: the text cannot become JSON with this character, which then does not count."""
        match self.expects:
            case Expects.STRING:
                return self._in_string(character)
            case Expects.ESCAPE:
                self.expects = Expects.HEXADECIMAL if character == "u" else Expects.STRING
                self._digits = 4
                return character in '"\\/bfnrtu'
            case Expects.HEXADECIMAL:
                self._digits -= 1
                if self._digits == 0:
                    self.expects = Expects.STRING
                return character in _HEXADECIMAL
            case Expects.SCALAR if character in _SCALAR_CHARACTERS:
                self._scalar.append(character)
                return True
            case Expects.SCALAR:
                if _SCALAR.fullmatch("".join(self._scalar)) is None:
                    return False
                self.expects = Expects.COMMA_OR_END
        return character in SPACE or self._between(character)

    def _in_string(self, character: str) -> bool:
        if character == '"':
            self._end(Expects.COLON if self._is_key else Expects.COMMA_OR_END)
        elif character == "\\":
            self.expects = Expects.ESCAPE
        return character >= " "

    def _between(self, character: str) -> bool:
        """A character that is in no string and no scalar."""
        expects = self.expects
        if expects in (Expects.VALUE, Expects.VALUE_OR_END):
            if character in '{["':
                self._begin(character)
                return True
            if character in _SCALAR_STARTS:
                self.expects, self._scalar = Expects.SCALAR, [character]
                return True
        elif expects in (Expects.KEY, Expects.KEY_OR_END) and character == '"':
            self.expects, self._is_key = Expects.STRING, True
            return True
        elif expects is Expects.COLON and character == ":":
            self.expects = Expects.VALUE
            return True
        elif expects is Expects.COMMA_OR_END and character == "," and self._open:
            self.expects = Expects.KEY if self._open[-1] == "}" else Expects.VALUE
            return True
        ends = (Expects.COMMA_OR_END, Expects.KEY_OR_END, Expects.VALUE_OR_END)
        if expects in ends and self._open and character == self._open[-1]:
            self._open.pop()
            self._end(Expects.COMMA_OR_END)
            return True
        return False

    def _begin(self, character: str) -> None:
        if character == '"':
            self.expects, self._is_key = Expects.STRING, False
        else:
            self._open.append("}" if character == "{" else "]")
            self.expects = Expects.KEY_OR_END if character == "{" else Expects.VALUE_OR_END

    def _end(self, expects: Expects) -> None:
        self.expects = expects if self._open else Expects.NOTHING
