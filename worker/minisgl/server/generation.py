"""One HTTP request on its way through the worker, as the API server sees it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from minisgl.message import TextScore
from minisgl.server.errors import ApiError


@dataclass(slots=True, eq=False)
class Choice:
    """One answer to a prompt of a request, and what has come back of it."""

    uid: int
    index: int
    first_uid: int
    """Of the first answer to the same prompt."""
    generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str = ""
    last_token_at: float = 0.0
    """`time.perf_counter` when the newest token came; 0 before the first."""
    changed: bool = False
    """There is something that `take` was not called for yet."""
    texts: list[str] = field(default_factory=list)
    scores: list[TextScore] = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        """The first answer to its prompt, which stands for the prompt's tokens in what is counted."""
        return self.uid == self.first_uid

    def take(self) -> tuple[str, list[TextScore]]:
        """The text and the log-probabilities that came since the last call."""
        text, scores = "".join(self.texts), self.scores
        self.texts.clear()
        self.scores = []
        self.changed = False
        return text, scores


class Generation:
    """The answers to one HTTP request, `copies` to each prompt: fed by the frontend, read by `Answer`."""

    def __init__(self, request_id: str, uids: list[int], user: str | None = None, *, copies: int = 1) -> None:
        self.request_id = request_id
        self.user = user
        self.choices = [
            Choice(uid, index, first_uid=uids[index - index % copies]) for index, uid in enumerate(uids)
        ]
        self.arrived_at = time.perf_counter()
        self.first_token_at: float | None = None
        self.grammar_name = "response_format"
        """What the client calls the parameter that the answers' grammar comes from."""
        self.error: ApiError | None = None
        self._unstarted = len(uids) // copies
        """Prompts without a token."""
        self._unfinished = len(uids)
        self._changed: deque[Choice] = deque()
        self._wake = asyncio.Event()

    @property
    def finished(self) -> bool:
        """No more text will come. Some may not have been taken yet."""
        return self._unfinished == 0

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt once."""
        return sum(choice.prompt_tokens for choice in self.choices if choice.is_first)

    @property
    def cached_tokens(self) -> int:
        """Of those, the ones that the prefix cache spared."""
        return sum(choice.cached_tokens for choice in self.choices if choice.is_first)

    @property
    def generated(self) -> int:
        """Tokens of all answers."""
        return sum(choice.generated for choice in self.choices)

    def feed(
        self,
        choice: Choice,
        text: str,
        generated: int,
        finish_reason: str,
        scores: list[TextScore] | None = None,
    ) -> None:
        """One step's news of one answer."""
        now = time.perf_counter()
        if choice.last_token_at == 0.0:
            self._unstarted -= choice.is_first
            if self.first_token_at is None:
                self.first_token_at = now
        choice.last_token_at = now
        choice.generated = generated
        if text:
            choice.texts.append(text)
        if scores is not None:
            choice.scores += scores
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
