"""What each step computes, and what becomes of its tokens.

A scheduler depends on the messages it is given and the tokens that come back, in their order, and on nothing
else: no clock, no address, no set. So every rank of a tensor-parallel worker forms the same batches.

Steps run in launch order, each seeing the memory as the steps before left it. That is why pages and rows can be
handed to the next request while a launched step still uses them: whatever the next owner does comes later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from minisgl.core.batch import Batch, Join, MaskWrite, PageWrite, PrefillChunk, StepScores
from minisgl.core.config import EngineLimits, SchedulerConfig
from minisgl.core.request import FinishReason, Request, State
from minisgl.grammar.pool import MatcherPool
from minisgl.kvcache.manager import CacheManager
from minisgl.message import Abort, GrammarBuilt, MasksBuilt, NewRequest, SchedulerStats, StepTokens
from minisgl.message.types import Opened
from minisgl.scheduler.copies import CopyManager
from minisgl.scheduler.decode import DecodeManager
from minisgl.scheduler.prefill import PrefillManager
from minisgl.scheduler.table import TableManager


@dataclass(slots=True, frozen=True)
class Step:
    """A batch, and the requests that its tokens belong to, in the order of the tokens."""

    batch: Batch
    requests: list[Request]
    scored: list[tuple[int, Request]] = field(default_factory=list)
    """Places of the chunks that have `targets`, and whose they are."""


SEEDS = 1 << 63


class Scheduler:
    """One rank's scheduler. The caller alternates `handle`, `schedule`, launching, and `complete`."""

    def __init__(
        self,
        config: SchedulerConfig,
        limits: EngineLimits,
        eos_ids: Iterable[int],
        matchers: MatcherPool | None = None,
    ) -> None:
        """`matchers` are for requests with a grammar. The caller hands in all that they tell: a `GrammarBuilt` of
        each request, and a `MasksBuilt` of each step with some.
        """
        self._limits = limits
        self._eos_ids = frozenset(eos_ids)
        self._matchers = matchers
        self.cache = CacheManager(num_pages=limits.num_pages, page_size=limits.page_size, cache=config.cache)
        self.table = TableManager(limits.max_running_requests)
        self.prefill = PrefillManager(self.cache, config.prefill_budget)
        self.decode = DecodeManager()
        self.copies = CopyManager()
        self.requests: dict[int, Request] = {}
        """Every unfinished request by its id."""
        self._advanced: dict[int, list[Request]] = {}
        """By the number of `MatcherPool.advance`, those whose masks are being worked out."""
        self._unchecked: list[Request] = []
        """Those whose masks are known, and may be that there is none."""
        self._arrivals = 0
        self._rewrites: dict[Request, int] = {}
        """Rows whose pages a commit replaced by the tree's from this index on: the next batch tells the device."""
        self._output = StepTokens()
        self._counts = dict.fromkeys(("prompt_tokens", "cached_tokens", "retractions", "steps"), 0)

    # ---- messages ----

    @property
    def has_work(self) -> bool:
        """There is more to do than to wait for messages."""
        return bool(self.prefill.waiting or self.prefill.partial) or self.decode.can_step()

    @property
    def awaits_masks(self) -> bool:
        """A `MasksBuilt` is to come."""
        return bool(self._advanced)

    def handle(self, message: NewRequest | Abort | GrammarBuilt | MasksBuilt) -> None:
        """Take a request into the queue, or forget one in whatever state it is."""
        match message:
            case NewRequest():
                self._add(message)
            case Abort():
                request = self.requests.get(message.uid)
                if request is not None:
                    self._finish(request, FinishReason.ABORT)
            case GrammarBuilt():
                request = self.prefill.unbuilt.pop(message.uid, None)
                if request is not None:
                    self.prefill.add(request)
                    self._unchecked.append(request)
            case MasksBuilt():
                requests = self._advanced.pop(message.number, [])
                for request in requests:
                    request.masked = True
                self._unchecked += requests

    def _add(self, message: NewRequest) -> None:
        room = self._limits.max_seq_len - len(message.token_ids)
        max_tokens = room if message.params.max_tokens is None else message.params.max_tokens
        requests = [self._create(message, max_tokens, index) for index in range(message.copies)]
        self.copies.hold(requests[0], requests[1:])
        if message.params.grammar:
            self._await_matchers(requests)
        else:
            self.prefill.add(requests[0])
        if not message.token_ids or not 1 <= max_tokens <= room:
            # The tokenizer refuses these with a reason. One that came all the same must not stop the others.
            for request in requests:
                self._finish(request, FinishReason.ABORT)

    def _create(self, message: NewRequest, max_tokens: int, index: int) -> Request:
        """Answer `index` of those wanted."""
        params = message.params
        if index and params.seed is not None:
            params = msgspec.structs.replace(params, seed=(params.seed + index) % SEEDS)
        request = Request(
            uid=message.uid + index,
            prompt=message.token_ids,
            params=params,
            max_tokens=max_tokens,
            # A grammar that is complete leaves no other way to go on.
            stop_ids=frozenset(params.stop_token_ids)
            | (frozenset() if params.ignore_eos and not params.grammar else self._eos_ids),
            arrival=self._arrivals,
            shown=message.shown,
        )
        self._arrivals += 1
        self.requests[request.uid] = request
        return request

    def _await_matchers(self, requests: list[Request]) -> None:
        """The first of an answer's copies queues when its `GrammarBuilt` comes, which is for all of them."""
        if self._matchers is None:
            raise RuntimeError("a scheduler without matchers was sent a grammar")
        first, params = requests[0], requests[0].params
        matchers = self._matchers.start(first.uid, params.grammar, params.stop_token_ids, copies=len(requests))
        for request, matcher in zip(requests, matchers, strict=True):
            request.matcher = matcher
        self.prefill.unbuilt[first.uid] = first

    # ---- a step ----

    def schedule(self) -> Step | None:
        """The next step, or None when there is nothing to compute before more tokens or messages come."""
        if self._unchecked:
            self._end_failed()
        batch = Batch()
        running, retracted = self._grow_decodes(batch)
        chunks = self._schedule_prefill(batch, len(running), may_admit=not retracted)
        if not running and not chunks:
            return None

        batch.pages += [PageWrite(r.row, first, r.pages[first:]) for r, first in self._rewrites.items()]
        self._rewrites = {}
        lengths = batch.decode_lengths
        for request in running:
            request.in_flight += 1
            request.computed = computed = request.computed + 1
            lengths.append(computed)
        batch.decode_rows = self.decode.rows(running)
        sampled = [request for request, chunk in chunks if chunk.sample]
        for request in sampled:
            self._finish_prefill(request)
        if self.decode.grammars:
            batch.masks = [MaskWrite(r.row, r.matcher.mask()) for r in (*running, *sampled) if r.matcher]
        self._counts["steps"] += 1
        scored = [(place, request) for place, (request, chunk) in enumerate(chunks) if chunk.targets]
        return Step(batch, running + sampled, scored)

    def _end_failed(self) -> None:
        """End the requests for which no mask can be worked out."""
        while self._unchecked:
            unchecked, self._unchecked = self._unchecked, []
            for request in unchecked:
                if request.state is not State.FINISHED and request.matcher.mask() is None:
                    if not request.generated:  # or nobody would be told of its end
                        opened = msgspec.structs.replace(_open(request), shown=[], prompt_scores=None)
                        self._output.opened.append(opened)
                    self._finish(request, FinishReason.GRAMMAR)

    def _queue_copies(self, copies: list[Request]) -> None:
        self.prefill.add_first(copies)
        self._unchecked += [copy for copy in copies if copy.matcher]

    def _grow_decodes(self, batch: Batch) -> tuple[list[Request], bool]:
        """Give every decoding request a page for its next token, retracting the newest when pages run out.

        Returns the requests that decode in this step, and whether any request was retracted.
        """
        page_size = self._limits.page_size
        grown: dict[Request, PageWrite] = {}
        retracted = False
        running = self.decode.ready()
        for request in running:
            if request.computed % page_size:  # it goes on in a page that it holds
                continue
            while request.state is State.DECODE and not self.cache.available:
                self._retract(max(self._holders(), key=lambda r: r.arrival))
                retracted = True
            if request.state is State.DECODE:
                pages = self.cache.allocate(1)
                grown[request] = PageWrite(request.row, len(request.pages), pages)
                request.pages += pages
        batch.pages += [write for request, write in grown.items() if request.state is State.DECODE]
        if retracted:
            running = [r for r in running if r.state is State.DECODE]
        return running, retracted

    def _schedule_prefill(
        self, batch: Batch, decodes: int, *, may_admit: bool
    ) -> list[tuple[Request, PrefillChunk]]:
        """Fill the rest of the step's budget with chunks of prompts: the one half read, then the queue's."""
        budget = self.prefill.budget(decodes)
        chunks: list[tuple[Request, PrefillChunk]] = []
        if self.prefill.partial is not None:
            budget -= self._append_chunk(batch, chunks, self.prefill.partial, budget)
        if not may_admit or budget <= 0 or not self.table.free_rows:
            return chunks
        for request in self.prefill.admissible(len(self.requests) - self._queued):
            self._admit(request, batch)
            budget -= self._append_chunk(batch, chunks, request, budget)
            if budget <= 0 or not self.table.free_rows:
                break
        return chunks

    def _admit(self, request: Request, batch: Batch) -> None:
        request.move(State.PREFILL)
        self.table.assign(request)
        request.prefix, request.pages = self.cache.acquire(request.reusable())
        request.computed = len(request.pages) * self._limits.page_size
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
            self._counts["prompt_tokens"] += request.prompt_length
            self._counts["cached_tokens"] += request.computed
        known = list(request.tokens) if request.params.penalized else []
        batch.joined.append(Join(request.row, request.params, request.generated, known))
        if request.pages:
            batch.pages.append(PageWrite(request.row, 0, list(request.pages)))

    def _append_chunk(
        self, batch: Batch, chunks: list[tuple[Request, PrefillChunk]], request: Request, budget: int
    ) -> int:
        """Read up to `budget` more tokens of an admitted request in this step; returns how many."""
        held = len(request.pages)
        length = self.prefill.take_chunk(request, budget)
        if not length:
            return 0
        if len(request.pages) > held:
            batch.pages.append(PageWrite(request.row, held, request.pages[held:]))
        start, end = request.computed, request.computed + length
        targets = request.tokens[start + 1 : min(end + 1, request.prompt_length)] if request.unasked else []
        request.asked = max(request.asked, start + len(targets))
        tokens, last = request.tokens[start:end], end == len(request.tokens)
        chunk = PrefillChunk(request.row, start, tokens, sample=last, targets=targets)
        request.computed = end
        batch.prefill.append(chunk)
        chunks.append((request, chunk))
        return length

    def _finish_prefill(self, request: Request) -> None:
        """Its last chunk is in the step: it decodes from the next step on, and others may share its prompt."""
        request.move(State.DECODE)
        request.in_flight += 1
        self.decode.add(request)
        request.prefix, changed = self.cache.commit(
            request.prefix, request.tokens[: request.computed], request.pages
        )
        if changed < request.prefix.pages:
            self._rewrites[request] = changed
        copies = self.copies.release(request)
        for copy in copies:
            copy.prompt_scores, copy.asked = request.prompt_scores, request.asked
        self._queue_copies(copies)

    def complete(self, step: Step, tokens: list[int], scores: StepScores | None = None) -> None:
        """Take the tokens of a step in, and end the requests that they end.

        A request that was retracted while the step ran still gets its token; one that was finished does not.
        """
        output, finished = self._output, State.FINISHED
        uids, new_tokens = output.uids, output.tokens
        advanced: list[Request] = []
        for place, request in step.scored:
            # Also of one that was finished: its copies share them. A retracted one may have computed some twice.
            assert scores is not None
            known_before = len(request.prompt_scores) - step.batch.prefill[place].start
            request.prompt_scores += scores.prompt[place][known_before:]
        for place, (request, token) in enumerate(zip(step.requests, tokens, strict=True)):
            if request.state is finished:
                continue
            request.in_flight -= 1
            request.tokens.append(token)
            length = len(request.tokens)
            if length == request.prompt_length + 1:
                output.opened.append(_open(request))
            uids.append(request.uid)
            new_tokens.append(token)
            if scores is not None and place in scores.sampled:
                output.scored.append(len(new_tokens) - 1)
                output.scores.append(scores.sampled[place])
            if token in request.stop_ids:
                self._finish(request, FinishReason.STOP)
            elif length >= request.end:
                self._finish(request, FinishReason.LENGTH)
            elif request.matcher:
                request.masked = False
                advanced.append(request)
        if advanced:
            assert self._matchers is not None
            number = self._matchers.advance([(request.matcher, request.tokens[-1]) for request in advanced])
            self._advanced[number] = advanced

    def take_output(self) -> StepTokens | None:
        """What happened since the last call, for the detokenizer; None when nothing did."""
        output = self._output
        if not output.uids and not output.finished_uids:
            return None
        self._output = StepTokens()
        return output

    # ---- requests leaving ----

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self._leave_manager(request)
        request.move(State.FINISHED)
        del self.requests[request.uid]
        self._output.finished_uids.append(request.uid)
        self._output.finish_reasons.append(reason.value)
        copies = self.copies.release(request)
        if copies:  # the next one reads the prompt
            self._queue_copies(copies[:1])
            self.copies.hold(copies[0], copies[1:])

    def _retract(self, request: Request) -> None:
        """Take back all that a running request holds; it waits at the front, with the tokens it has."""
        self._counts["retractions"] += 1
        self._leave_manager(request)
        request.move(State.WAITING)
        self.prefill.put_back(request)

    def _leave_manager(self, request: Request) -> None:
        if request.state is State.DECODE:
            self.decode.remove(request)
        elif request in self.copies:
            self.copies.remove(request)
        else:
            self.prefill.remove(request)
        if request.row >= 0:
            self.cache.release(request.prefix, request.tokens[: request.computed], request.pages)
            request.prefix, request.pages, request.computed = None, [], 0
            self._rewrites.pop(request, None)
            self.table.release(request)

    def _holders(self) -> list[Request]:
        """Every request that holds a row and pages."""
        partial = self.prefill.partial
        return [*self.decode, partial] if partial is not None else list(self.decode)

    @property
    def _queued(self) -> int:
        """Requests that hold neither row nor pages."""
        return self.prefill.queued + len(self.copies)

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            running=len(self.requests) - self._queued,
            queued=self._queued,
            used_pages=self.cache.used_pages,
            cached_pages=self.cache.cached_pages,
            total_pages=self.cache.num_pages,
            evicted_pages=self.cache.evicted_pages,
            **self._counts,
        )

    def check(self) -> None:
        """Assert what must hold between steps: every page and every row in exactly one place."""
        self.prefill.check()
        self.copies.check()
        holders = self._holders()
        assert len(holders) + self._queued == len(self.requests)
        rows = [r.row for r in holders]
        assert len(set(rows)) == len(rows) == self.table.num_rows - self.table.free_rows
        for r in holders:
            assert r.computed <= len(r.tokens) + r.in_flight
            assert r.computed <= len(r.pages) * self._limits.page_size
        for r in self.decode:
            assert r.computed == len(r.tokens) + r.in_flight - 1
            assert len(r.pages) == -(-r.computed // self._limits.page_size)
        self.cache.check([page for r in holders for page in r.pages[r.prefix.pages :]])


def _open(request: Request) -> Opened:
    length, first = request.prompt_length, request.prompt_length - request.shown
    return Opened(
        uid=request.uid,
        prompt_tokens=length,
        cached_tokens=request.cached_tokens or 0,
        stop=request.params.stop,
        shown=request.tokens[first:length],
        prompt_scores=request.prompt_scores[first:] if request.params.prompt_logprobs else None,
    )
