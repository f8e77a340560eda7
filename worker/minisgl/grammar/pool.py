"""The matchers of running requests, and the threads that keep their masks up to date.

A matcher knows which tokens may come next in its answer. To read a grammar takes milliseconds, to work out a mask
ten microseconds or some hundred, both without the GIL: threads do it while the scheduler and the device go on.
Those that work masks out are llguidance's own, which share the answers of a step among themselves: Python's would
take the GIL from the scheduler, and from each other, for every answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from minisgl.utils.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from minisgl.grammar.compiler import Compiler

logger = logging.getLogger("minisgl.grammar")

READERS = 4
"""Threads that read grammars."""
MAX_THREADS = 16
"""That work masks out, on a host with so many processors. Every rank has as many, and works out the same masks."""
STACK_BYTES = 64 << 20
"""Address space of a thread's stack: several times what a grammar was allowed when it was checked."""
STACK_VARIABLE = "RUST_MIN_STACK"

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

    @property
    def inner(self) -> LLMatcher | None:
        """By a thread, once it is built. None: nothing can follow."""
        return self._inner

    def told(self, inner: LLMatcher, mask: bytes) -> Mask:
        """By a thread: what `mask`, worked out where `inner` stands, becomes of this answer."""
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
        self._to_read: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._to_advance: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._started = False
        self._executor: LLExecutor | None = None
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
        self._advances += 1
        self.promised += 1
        masks: Future[list[Mask]] = Future()
        for place, (matcher, _) in enumerate(answers):
            matcher.await_mask(masks, place)
        self.submit(partial(self._advance, answers, masks, self._advances), read=False)
        return self._advances

    def _advance(self, answers: Sequence[tuple[Matcher, int]], masks: Future[list[Mask]], number: int) -> None:
        found: list[Mask] = [None] * len(answers)
        try:
            for place, mask in self._masks_behind(answers):
                found[place] = mask
        finally:
            masks.set_result(found)
            if self._masked is not None:
                self._masked(number)

    def _masks_behind(self, answers: Sequence[tuple[Matcher, int]]) -> Iterator[tuple[int, Mask]]:
        """The places of those answers that can still be followed, and the masks behind their tokens."""
        followed = [
            (place, matcher, inner, token)
            for place, (matcher, token) in enumerate(answers)
            if (inner := matcher.inner) is not None
        ]
        if not followed:
            return
        size, executor = self.compiler().mask_bytes, self._executor
        assert executor is not None, "it comes with the compiler"
        executor.consume_token_par([(inner, token) for _, _, inner, token in followed])
        masks = np.empty((len(followed), size), dtype=np.uint8)
        targets = [(inner, line) for line, (_, _, inner, _) in enumerate(followed)]
        executor.unsafe_compute_mask_ptr(targets, masks.ctypes.data, size, len(masks))
        for mask, (place, matcher, inner, _) in zip(masks, followed, strict=True):
            yield place, matcher.told(inner, mask.tobytes())

    def _build(self, uid: int, grammar: str, matchers: list[Matcher]) -> None:
        inner, mask = None, None
        try:
            inner = self.compiler().build(grammar)
            mask = matchers[0].told(inner, inner.compute_bitmask())
        finally:
            for matcher in matchers[1:]:
                matcher.set_built(inner.deep_copy() if inner is not None and mask is not None else None, mask)
            matchers[0].set_built(inner, mask)
            if self._built is not None:
                self._built(uid)

    def submit(self, job: Callable[[], None], *, read: bool = True) -> None:
        """Let a thread do a job. Grammars are read beside each other, and masks do not wait for them."""
        if not self._started:
            self._start_threads()
        (self._to_read if read else self._to_advance).put(job)

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
                self._executor = _executor()
            return self._compiler

    def _start_threads(self) -> None:
        self._started = True
        usual = threading.stack_size(STACK_BYTES)
        for jobs in (self._to_advance, *[self._to_read] * READERS):
            threading.Thread(target=_work, args=[jobs], name="grammar", daemon=True).start()
        threading.stack_size(usual)


def _work(jobs: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        job = jobs.get()
        try:
            job()
        except BaseException:  # llguidance's own panics are no `Exception`
            logger.exception("a grammar cannot be read or followed")


def _executor() -> LLExecutor:
    """llguidance's threads, with stacks as large as those of the threads here."""
    from llguidance import LLExecutor  # noqa: PLC0415  see `load_compiler`

    # Rust reads it when a library's first thread is started, and never again.
    before = os.environ.get(STACK_VARIABLE)
    os.environ[STACK_VARIABLE] = str(STACK_BYTES)
    try:
        return LLExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
    finally:
        if before is None:
            del os.environ[STACK_VARIABLE]
        else:
            os.environ[STACK_VARIABLE] = before
