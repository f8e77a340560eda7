"""The requests that decode: one token each, every step."""

from __future__ import annotations

from collections.abc import Iterator

from minisgl.core.request import Request


class DecodeManager:
    """Decoding requests in the order in which they began to decode, which is the order of their batch rows."""

    def __init__(self) -> None:
        self._running: dict[Request, None] = {}
        self._told: list[Request] | None = None
        """Whom `rows` was last asked about, if nobody has joined or left since."""
        self._rows: list[int] = []
        """Of those of `_told`."""
        self.grammars = 0
        """How many of them have a grammar."""
        self._awaited: set[Request] = set()
        """Those for whom the ones that can decode wait."""

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._running)

    def add(self, request: Request) -> None:
        self._running[request] = None
        self._told = None
        self.grammars += request.matcher is not None

    def remove(self, request: Request) -> None:
        del self._running[request]
        self._told = None  # it may come back with another row
        self.grammars -= request.matcher is not None

    def unfinished(self) -> list[Request]:
        """Those that want a further token even if none of the launched steps ends them.

        Of a decoding request, `computed` is one less than the tokens that are known or in flight.
        """
        return [r for r in self._running if r.computed + 1 < r.end]

    def ready(self) -> list[Request]:
        """The unfinished ones that can decode in the next step.

        One with a grammar can't while its last token is not known, and what may follow it. If all have a grammar,
        those that can decode wait for the others, so that they go on in one step, not in turns; but not for those
        that have come since.
        """
        unfinished = self.unfinished()
        if not self.grammars:
            return unfinished
        ready, self._awaited = self._sorted(unfinished)
        return [] if self._awaited else ready

    def can_step(self) -> bool:
        """Whether `ready` would give any, or did when a step was launched that is not complete yet."""
        if not self.grammars:
            return bool(self._running)
        ready, awaited = self._sorted(self.unfinished())
        return bool(ready) and not awaited

    def _sorted(self, unfinished: list[Request]) -> tuple[list[Request], set[Request]]:
        """Those that can decode, and those for whom they wait first."""
        ready = [r for r in unfinished if not r.matcher or (r.masked and not r.in_flight)]
        if not ready or len(ready) == len(unfinished) or not all(r.matcher for r in ready):
            return ready, set()
        others = set(unfinished).difference(ready)
        return ready, self._awaited & others if self._awaited else others

    def rows(self, requests: list[Request]) -> list[int]:
        """Their rows; the very list of the last call when nobody joined or left, so that it is uploaded once."""
        if requests != self._told:
            self._told, self._rows = requests, [r.row for r in requests]
        return self._rows
