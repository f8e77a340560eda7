"""The end of a text at a stop string, however the string's characters arrive."""

from __future__ import annotations


class StopStrings:
    """Holds text back while it could be the beginning of a stop string, so that nothing of one is ever returned.

    The text ends at the stop string that is complete first; of those that are complete at the same character, at
    the one that begins first. Where the pieces of the text are cut makes no difference.

    Invariant: the held text is the longest end of the text that begins a stop string, and contains none.
    """

    __slots__ = ("_held", "_stops")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that `piece` makes final, and whether a stop string ends it there; then nothing may follow."""
        if not self._stops or not piece:
            return piece, False
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            return text[: min(found)[1]], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """The held text, when nothing follows that could make it a stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
