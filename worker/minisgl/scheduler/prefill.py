"""The requests that wait, and how their prompts are cut into chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from minisgl.core.request import Request, State
from minisgl.kvcache.manager import CacheManager

MAX_BYPASSES = 64
"""Requests that may be admitted past one that does not fit yet. Then they all wait, so that it is not starved."""
SCAN_LENGTH = 32
"""How many waiting requests are looked at in one step: bounds the host's work."""
MARGIN_TOKENS = 32
"""Room left for the growth of each running request when another is admitted."""


class PrefillManager:
    """The waiting queue, first come first served, and the one request whose prompt is half read."""

    def __init__(self, cache: CacheManager, chunk_budget: int) -> None:
        self._cache = cache
        self._chunk_budget = chunk_budget
        self.unbuilt: dict[int, Request] = {}
        """By id, those whose grammar is still being read: they do not queue yet."""
        self.waiting: deque[Request] = deque()
        self.partial: Request | None = None
        """Admitted, with part of its prompt still to read; always served before anyone else is admitted."""

    @property
    def queued(self) -> int:
        """Requests that hold nothing yet."""
        return len(self.waiting) + len(self.unbuilt)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def put_back(self, request: Request) -> None:
        """A retracted request goes to the front."""
        self.waiting.appendleft(request)

    def add_first(self, requests: list[Request]) -> None:
        """To the front, in this order."""
        self.waiting.extendleft(reversed(requests))

    def remove(self, request: Request) -> None:
        """Forget a waiting or partly read request."""
        if self.partial is request:
            self.partial = None
        elif self.unbuilt.pop(request.uid, None) is None:
            self.waiting.remove(request)

    def budget(self, decodes: int) -> int:
        """Prompt tokens that the step may read beside `decodes` decode tokens.

        A quarter of the whole budget is always left, so that a crowd of decodes never stops arrivals for good.
        """
        return max(self._chunk_budget - decodes, self._chunk_budget // 4, 1)

    def admissible(self, running: int) -> Iterator[Request]:
        """Waiting requests that fit now, each to be admitted by the caller before the next is asked for.

        Admission is optimistic: prompt and a margin must fit, not `max_tokens`. With nobody running there is no
        margin, and as no request may be longer than the pool, the first in the queue then always fits.
        """
        skipped: list[Request] = []
        while self.partial is None and len(skipped) < min(len(self.waiting), SCAN_LENGTH):
            request = self.waiting[len(skipped)]
            if self._fits(request, running):
                del self.waiting[len(skipped)]
                for other in skipped:
                    other.bypassed += 1
                request.bypassed = 0
                running += 1
                yield request
            elif request.bypassed >= MAX_BYPASSES:
                return
            else:
                skipped.append(request)

    def _fits(self, request: Request, running: int) -> bool:
        page_size = self._cache.page_size
        cached, evictable = self._cache.lookup(request.reusable())
        needed = -(-len(request.tokens) // page_size) - cached
        margin = running * -(-MARGIN_TOKENS // page_size)
        return needed + margin <= self._cache.available - evictable

    def take_chunk(self, request: Request, budget: int) -> int:
        """How many tokens of an admitted request to read now, with pages for them; 0 when pages are short.

        Extends ``request.pages``. Keeps `partial` up to date.
        """
        length = min(budget, len(request.tokens) - request.computed)
        missing = -(-(request.computed + length) // self._cache.page_size) - len(request.pages)
        if missing > self._cache.available:
            self.partial = request
            return 0
        request.pages += self._cache.allocate(missing)
        self.partial = request if request.computed + length < len(request.tokens) else None
        return length

    def check(self) -> None:
        """Assert what must hold between steps."""
        assert all(r.state is State.WAITING and not r.pages for r in self.waiting)
        assert self.partial is None or self.partial.state is State.PREFILL
