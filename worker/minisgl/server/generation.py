"""One HTTP request on its way through the worker, as the API server sees it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from minisgl.server.errors import ApiError


@dataclass(slots=True, eq=False)
class Choice:
    """One prompt of a request, and what has come back of it."""

    uid: int
    index: int
    generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str = ""
    last_token_at: float = 0.0
    """`time.perf_counter` when the newest token came; 0 before the first."""
    changed: bool = False
    """There is something that `take` was not called for yet."""
    texts: list[str] = field(default_factory=list)

    def take(self) -> str:
        """The text that came since the last call."""
        text = "".join(self.texts)
        self.texts.clear()
        self.changed = False
        return text


class Generation:
    """The prompts of one HTTP request. The frontend feeds it, the answer to the client reads it."""

    def __init__(self, request_id: str, uids: list[int], user: str | None = None) -> None:
        self.request_id = request_id
        self.user = user
        self.choices = [Choice(uid, index) for index, uid in enumerate(uids)]
        self.arrived_at = time.perf_counter()
        self.first_token_at: float | None = None
        self.error: ApiError | None = None
        self._unstarted = len(uids)
        self._unfinished = len(uids)
        self._changed: deque[Choice] = deque()
        self._wake = asyncio.Event()

    @property
    def finished(self) -> bool:
        """No more text will come. Some may not have been taken yet."""
        return self._unfinished == 0

    def feed(self, choice: Choice, text: str, generated: int, finish_reason: str) -> None:
        """One step's news of one prompt."""
        now = time.perf_counter()
        if choice.last_token_at == 0.0:
            self._unstarted -= 1
            if self.first_token_at is None:
                self.first_token_at = now
        choice.last_token_at = now
        choice.generated = generated
        if text:
            choice.texts.append(text)
        if finish_reason:
            choice.finish_reason = finish_reason
            self._unfinished -= 1
        if (text or finish_reason) and not choice.changed:
            choice.changed = True
            self._changed.append(choice)
        self._wake.set()

    def fail(self, error: ApiError) -> None:
        """The rest will not come."""
        self.error = error
        self._wake.set()

    async def accepted(self) -> None:
        """Wait until every prompt has got its first token, so that none can be refused any more.

        Raises `ApiError` when one was.
        """
        while self._unstarted and self.error is None:
            await self._wait()
        if self.error is not None:
            raise self.error

    async def changed(self) -> Choice:
        """A choice with text to take, or one that has just finished.

        Raises `ApiError` when the rest will not come.
        """
        while not self._changed:
            if self.error is not None:
                raise self.error
            await self._wait()
        return self._changed.popleft()

    async def complete(self) -> None:
        """Wait for the end of every choice. Raises `ApiError` when it will not come."""
        while not self.finished:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def _wait(self) -> None:
        await self._wake.wait()
        self._wake.clear()
