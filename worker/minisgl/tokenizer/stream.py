"""Tokens to text, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisgl.tokenizer.text import TextTokenizer

REPLACEMENT = "\ufffd"
"""What decoding puts in the place of bytes that are not, or not yet, UTF-8."""

TRIM_ABOVE = 8
"""Tokens of the window that are decoded again with each new one."""
FORCE_ABOVE = 16
"""Tokens after which a window is cut even where no character ends: its bytes are not text."""


class TextStream:
    """The text of a growing list of tokens, in pieces whose concatenation is the decoding of the whole list.

    A token may end in the middle of a character, and its text may depend on the token before (a space that is
    dropped at the start of a text). So a window of the latest tokens is decoded with each new one. The window
    starts where a character does, at least one piece of text before the newest token.

    Invariant: ``decode(window)[:sent]`` has been returned already.
    """

    __slots__ = ("_boundary", "_sent", "_tokenizer", "_window")

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._boundary = 0
        """Index in the window of the first token whose text was not returned yet."""
        self._sent = 0

    def begin(self, tokens: list[int]) -> str:
        """The text of `tokens`, before any other, but for a character that their end begins."""
        tokens = [token for token in tokens if self._tokenizer.is_text(token)]
        least = max(len(tokens) - FORCE_ABOVE, 0)
        whole = len(tokens)
        while whole > least and self._tokenizer.decode(tokens[least:whole]).endswith(REPLACEMENT):
            whole -= 1
        self._window = tokens[:whole]
        self._boundary = whole
        text = self._tokenizer.decode(self._window).removesuffix(REPLACEMENT)
        self._sent = len(text)
        return text + "".join(self.push(token) for token in tokens[whole:])

    def push(self, token: int) -> str:
        """The text that became final with `token`; empty in the middle of a character."""
        if not self._tokenizer.is_text(token):
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith(REPLACEMENT):
            return self._force(text) if len(self._window) > FORCE_ABOVE else ""
        piece = text[self._sent :]
        if piece and len(self._window) > TRIM_ABOVE:
            self._start_window_at(self._boundary)
        else:
            self._sent = len(text)
        if piece:
            self._boundary = len(self._window)
        return piece

    def finish(self) -> str:
        """What `push` held back, when no token follows that could complete it."""
        piece = self._tokenizer.decode(self._window)[self._sent :]
        self._window.clear()
        self._boundary = self._sent = 0
        return piece

    def _force(self, text: str) -> str:
        """Return all but the last replacement character, which may still become a character.

        UTF-8 synchronizes itself: what follows the first few bytes decodes alike wherever decoding started.
        """
        piece = text[self._sent : -1]
        self._start_window_at(len(self._window) - TRIM_ABOVE)
        self._sent -= 1
        self._boundary = 0
        return piece

    def _start_window_at(self, index: int) -> None:
        del self._window[:index]
        self._sent = len(self._tokenizer.decode(self._window))
