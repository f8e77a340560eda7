"""The requests that decode: one token each, every step."""

from __future__ import annotations

from collections.abc import Iterator

from minisgl.core.request import Request


class DecodeManager:
    """Decoding requests in the order in which they began to decode, which is the order of their batch rows."""

    def __init__(self) -> None:
        self._running: dict[Request, None] = {}
        self._rows: list[int] = []

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._running)

    def add(self, request: Request) -> None:
        self._running[request] = None

    def remove(self, request: Request) -> None:
        del self._running[request]

    def unfinished(self) -> list[Request]:
        """Those that want a further token even if none of the launched steps ends them."""
        return [r for r in self._running if len(r.tokens) + r.in_flight < r.end]

    def rows(self, requests: list[Request]) -> list[int]:
        """Their rows; the very list of the last call when nobody joined or left, so that it is uploaded once."""
        rows = [r.row for r in requests]
        if rows != self._rows:
            self._rows = rows
        return self._rows
