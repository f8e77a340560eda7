"""The matchers of running requests, and the threads that keep their masks up to date.

A matcher knows which tokens may come next in its answer. To read a grammar takes milliseconds, to work out a mask
some ten microseconds, both without the GIL: threads do it while the scheduler and the device go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from minisgl.utils.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from minisgl.grammar.compiler import Compiler

logger = logging.getLogger("minisgl.grammar")

MAX_THREADS = 4
STACK_BYTES = 64 << 20
"""Address space of a thread's stack: several times what a grammar was allowed when it was checked."""

Mask = bytes | None
"""int32 [ceil(vocab / 32)], bit i of word j is token ``32 * j + i``; None when the matcher has failed."""


def load_compiler(directory: str, size: int, eos_ids: Iterable[int]) -> Compiler:
    """`Compiler.load`, imported with the first grammar, or when a rank has nothing else to do."""
    from minisgl.grammar.compiler import Compiler  # noqa: PLC0415  it takes time that a start does not have

    return Compiler.load(directory, size=size, eos_ids=eos_ids)


class Matcher:
    """One answer's matcher. The scheduler's thread calls `advance` and `mask`."""

    __slots__ = ("_inner", "_mask", "_pool", "_stop_ids")

    def __init__(self, pool: MatcherPool, stop_ids: Iterable[int]) -> None:
        self._pool = pool
        self._stop_ids = tuple(stop_ids)
        self._inner: LLMatcher | None = None
        self._mask: Future[Mask] = Future()

    def advance(self, token: int) -> None:
        """`token` is the answer's next: let a thread work out what may follow it."""
        self._mask = self._pool.submit(self._consume, token)

    def mask(self) -> Mask:
        """What may come next; waits until it is known.

        An answer that may end here may end with any end-of-sequence or stop token.
        """
        return self._mask.result()

    def set_built(self, inner: LLMatcher | None, mask: Mask) -> None:
        """By a thread: the grammar is read. None: it cannot be followed."""
        self._inner = inner
        self._mask.set_result(mask)

    def next(self, inner: LLMatcher) -> Mask:
        """By a thread: the mask where `inner` stands."""
        mask = inner.compute_bitmask()
        if inner.is_error():
            logger.warning("a grammar cannot be followed further: %s", inner.get_error()[:200])
            return None
        if self._stop_ids and inner.is_accepting():
            bits = bytearray(mask)
            for token in self._stop_ids:
                if token >> 3 < len(bits):
                    bits[token >> 3] |= 1 << (token & 7)
            return bytes(bits)
        return mask

    def _consume(self, token: int) -> Mask:
        if self._inner is None:
            return None
        self._inner.consume_token(token)
        return self.next(self._inner)


class MatcherPool:
    """Makes matchers. Threads and vocabulary come with the first."""

    def __init__(self, load: Callable[[], Compiler], built: Callable[[int], None] | None = None) -> None:
        """`built` is told the id of each request whose first mask is known, by a thread of the pool."""
        self._load = load
        self._built = built
        self._compiler: Compiler | None = None
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[tuple[Future[Mask], Callable[..., Mask], tuple[Any, ...]]] = SimpleQueue()
        self._started = False

    def start(self, uid: int, grammar: str, stop_ids: Iterable[int], *, copies: int = 1) -> list[Matcher]:
        """Matchers for as many answers to request `uid`, which may also end with a token of `stop_ids`."""
        matchers = [Matcher(self, stop_ids) for _ in range(copies)]
        self.submit(self._build, uid, grammar, matchers)
        return matchers

    def _build(self, uid: int, grammar: str, matchers: list[Matcher]) -> Mask:
        inner, mask = None, None
        try:
            inner = self.compiler().build(grammar)
            mask = matchers[0].next(inner)
        finally:
            for matcher in matchers[1:]:
                matcher.set_built(inner.deep_copy() if inner is not None and mask is not None else None, mask)
            matchers[0].set_built(inner, mask)
            if self._built is not None:
                self._built(uid)
        return mask

    def submit(self, job: Callable[..., Mask], *arguments: Any) -> Future[Mask]:
        """Let a thread of the pool do a job; one that raises gives None."""
        if not self._started:
            self._start()
        future: Future[Mask] = Future()
        self._jobs.put((future, job, arguments))
        return future

    def load_ahead(self) -> None:
        """Let a thread load what the first grammar would otherwise: it holds the GIL for half a second then."""
        self.submit(self._load_or_leave)

    def _load_or_leave(self) -> Mask:
        with contextlib.suppress(UserError):  # the model is not made for it: whoever asks for a grammar is told
            self.compiler()
        return None

    def compiler(self) -> Compiler:
        """Loaded by the first thread that asks; the others wait for it."""
        with self._lock:
            if self._compiler is None:
                self._compiler = self._load()
            return self._compiler

    def _start(self) -> None:
        self._started = True
        usual = threading.stack_size(STACK_BYTES)
        for _ in range(min(MAX_THREADS, os.cpu_count() or 1)):
            threading.Thread(target=self._work, name="grammar", daemon=True).start()
        threading.stack_size(usual)

    def _work(self) -> None:
        while True:
            future, job, arguments = self._jobs.get()
            try:
                mask = job(*arguments)
            except BaseException:  # llguidance's own panics are no `Exception`
                logger.exception("a grammar's matcher has failed")
                mask = None
            future.set_result(mask)
