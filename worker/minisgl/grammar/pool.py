"""The matchers of running requests, and the threads that keep their masks up to date.

A matcher knows which tokens may come next in its answer. To read a grammar takes milliseconds, to work out a mask
ten microseconds or a hundred, both without the GIL: threads do it while the scheduler and the device go on. They
share the answers of a step: to hand over each by itself would take as long as its mask.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from minisgl.utils.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from minisgl.grammar.compiler import Compiler

logger = logging.getLogger("minisgl.grammar")

MAX_THREADS = 8
"""Every rank of a host has as many, and works out the same masks."""
STACK_BYTES = 64 << 20
"""Address space of a thread's stack: several times what a grammar was allowed when it was checked."""

Mask = bytes | None
"""int32 [ceil(vocab / 32)], bit i of word j is token ``32 * j + i``; None when the matcher has failed."""


def load_compiler(directory: str, size: int, eos_ids: Iterable[int]) -> Compiler:
    """`Compiler.load`, imported with the first grammar, or when a rank has nothing else to do."""
    from minisgl.grammar.compiler import Compiler  # noqa: PLC0415  it takes time that a start does not have

    return Compiler.load(directory, size=size, eos_ids=eos_ids)


class Matcher:
    """One answer's matcher. The scheduler's thread calls `mask`."""

    __slots__ = ("_inner", "_masks", "_place", "_stop_ids")

    def __init__(self, stop_ids: Iterable[int]) -> None:
        self._stop_ids = tuple(stop_ids)
        self._inner: LLMatcher | None = None
        self._masks: Future[list[Mask]] = Future()
        self._place = 0

    def mask(self) -> Mask:
        """What may come next; waits until it is known.

        An answer that may end here may end with any end-of-sequence or stop token.
        """
        return self._masks.result()[self._place]

    def await_mask(self, masks: Future[list[Mask]], place: int) -> None:
        """The next mask is to be the one at this place of `masks`."""
        self._masks, self._place = masks, place

    def set_built(self, inner: LLMatcher | None, mask: Mask) -> None:
        """By a thread: the grammar is read. None: it cannot be followed."""
        self._inner = inner
        self._masks.set_result([mask])

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

    def consume(self, token: int) -> Mask:
        """By a thread: the mask behind `token`, the answer's next."""
        if self._inner is None:
            return None
        self._inner.consume_token(token)
        return self.next(self._inner)


class MatcherPool:
    """Makes matchers, and moves them on. Threads and vocabulary come with the first."""

    def __init__(
        self,
        load: Callable[[], Compiler],
        built: Callable[[int], None] | None = None,
        masked: Callable[[int], None] | None = None,
    ) -> None:
        """Threads of the pool call these two: `built` with the id of each request whose first mask is known, and
        `masked` with the number of each `advance` whose masks are.
        """
        self._load = load
        self._built = built
        self._masked = masked
        self._compiler: Compiler | None = None
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = 0
        self._advances = 0
        self.promised = 0
        """How often the two are to be called for all that was asked for so far."""

    def start(self, uid: int, grammar: str, stop_ids: Iterable[int], *, copies: int = 1) -> list[Matcher]:
        """Matchers for as many answers to request `uid`, which may also end with a token of `stop_ids`."""
        matchers = [Matcher(stop_ids) for _ in range(copies)]
        self.promised += 1
        self.submit(partial(self._build, uid, grammar, matchers))
        return matchers

    def advance(self, answers: Sequence[tuple[Matcher, int]]) -> int:
        """Let threads work out what may follow each answer's next token; returns the number of this call."""
        self._begin()
        self._advances += 1
        self.promised += 1
        parts = min(self._threads, len(answers))
        step = _Step(parts, self._masked, self._advances)
        for first in range(parts):
            part = answers[first::parts]
            masks: Future[list[Mask]] = Future()
            for place, (matcher, _) in enumerate(part):
                matcher.await_mask(masks, place)
            self.submit(partial(step.run, part, masks))
        return self._advances

    def _build(self, uid: int, grammar: str, matchers: list[Matcher]) -> None:
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

    def submit(self, job: Callable[[], None]) -> None:
        """Let a thread of the pool do a job."""
        self._begin()
        self._jobs.put(job)

    def load_ahead(self) -> None:
        """Let a thread load what the first grammar would otherwise: it holds the GIL for half a second then."""
        self.submit(self._load_or_leave)

    def _load_or_leave(self) -> None:
        with contextlib.suppress(UserError):  # the model is not made for it: whoever asks for a grammar is told
            self.compiler()

    def compiler(self) -> Compiler:
        """Loaded by the first thread that asks; the others wait for it."""
        with self._lock:
            if self._compiler is None:
                self._compiler = self._load()
            return self._compiler

    def _begin(self) -> None:
        if self._threads:
            return
        self._threads = min(MAX_THREADS, os.cpu_count() or 1)
        usual = threading.stack_size(STACK_BYTES)
        for _ in range(self._threads):
            threading.Thread(target=self._work, name="grammar", daemon=True).start()
        threading.stack_size(usual)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except BaseException:  # llguidance's own panics are no `Exception`
                logger.exception("a grammar cannot be read")


class _Step:
    """The answers of a step, in parts."""

    def __init__(self, parts: int, masked: Callable[[int], None] | None, number: int) -> None:
        self._left = parts
        self._masked = masked
        self._number = number
        self._lock = threading.Lock()

    def run(self, part: Sequence[tuple[Matcher, int]], masks: Future[list[Mask]]) -> None:
        """By a thread. Whoever does the last part says that all are done."""
        masks.set_result([_consumed(matcher, token) for matcher, token in part])
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last and self._masked is not None:
            self._masked(self._number)


def _consumed(matcher: Matcher, token: int) -> Mask:
    try:
        return matcher.consume(token)
    except BaseException:  # llguidance's own panics are no `Exception`
        logger.exception("a grammar's matcher has failed")
        return None
