"""Requests whose grammar is being tried: neither other requests nor the heartbeats wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from minisgl.grammar.checker import GrammarChecker
from minisgl.message import GrammarChecked, NewRequest, Rejected

logger = logging.getLogger("minisgl.tokenizer")

INVALID_GRAMMAR = "invalid_grammar"


class GrammarDesk:
    """Where a tokenized request waits until its grammar is known to be good. For one thread."""

    def __init__(self, checker: GrammarChecker, connect: Callable[[], Callable[[GrammarChecked], None]]) -> None:
        """`connect` is called in the thread that checks, for how to tell that a grammar was checked."""
        self._checker = checker
        self._connect = connect
        self._waiting: dict[int, tuple[NewRequest, str]] = {}
        self._queue: SimpleQueue[tuple[int, str]] | None = None

    def take(self, request: NewRequest, name: str) -> NewRequest | Rejected | None:
        """What becomes of a request whose grammar comes from the parameter `name`; None: `checked` will tell."""
        refusal = self._checker.known(request.params.grammar)
        if refusal is not None:
            return _decide(request, name, refusal)
        if self._queue is None:
            self._queue = SimpleQueue()
            threading.Thread(target=self._work, args=(self._queue,), name="grammars", daemon=True).start()
        self._waiting[request.uid] = (request, name)
        self._queue.put((request.uid, request.params.grammar))
        return None

    def checked(self, message: GrammarChecked) -> NewRequest | Rejected | None:
        """What becomes of the request; None if it was forgotten."""
        request, name = self._waiting.pop(message.uid, (None, ""))
        return None if request is None else _decide(request, name, message.refusal)

    def forget(self, uid: int) -> None:
        """The request was aborted, if it waits here."""
        self._waiting.pop(uid, None)

    def _work(self, queue: SimpleQueue[tuple[int, str]]) -> None:
        tell = self._connect()
        while True:
            uid, grammar = queue.get()
            try:
                refusal = self._checker.check(grammar)
            except OSError:
                logger.exception("the grammar of request %d cannot be checked", uid)
                refusal = "grammars cannot be checked at the moment"
            tell(GrammarChecked(uid=uid, refusal=refusal))


def _decide(request: NewRequest, name: str, refusal: str) -> NewRequest | Rejected:
    if not refusal:
        return request
    return Rejected(
        uid=request.uid, message=f"{name} cannot be followed: {refusal}", param=name, code=INVALID_GRAMMAR
    )
