"""The API server's side of the worker's sockets: requests out to tokenizers, text back from the detokenizer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import zmq
import zmq.asyncio

from minisgl.core.config import Addresses, EngineLimits
from minisgl.core.request import FinishReason
from minisgl.core.sampling import SamplingParams
from minisgl.message import (
    Abort,
    Decoder,
    FromWorkers,
    Heartbeat,
    Rejected,
    SchedulerReady,
    SchedulerStats,
    StepText,
    Text,
    TextToTokens,
    Timeline,
    TokenizeRequest,
    Tokens,
    TokensToText,
    ToTokenizer,
    Watch,
    encode,
)
from minisgl.server.errors import ApiError, internal, invalid, queue_full, unavailable
from minisgl.server.generation import Choice, Generation
from minisgl.server.metrics import Metrics
from minisgl.server.readiness import Phase, Readiness
from minisgl.server.recent_steps import RecentSteps
from minisgl.utils.sockets import pull_socket, push_socket

logger = logging.getLogger("minisgl.server")

WATCH_SECONDS = 3.0
"""How long the scheduler tells of its steps after the page was last looked at."""


class Prompt(NamedTuple):
    """Exactly one of the first three is set."""

    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    template: dict[str, Any] = {}  # noqa: RUF012 (the default of a named tuple is never changed)
    """What the chat template is told besides."""
    limit_name: str = "max_tokens"
    """What the client calls the limit of the answer's length."""
    grammar_name: str = "response_format"
    """What the client calls the parameter that the grammar comes from."""
    echo: bool = False
    """The answer begins with the prompt."""


class Frontend:
    """Owns the requests in flight. Lives on one event loop."""

    def __init__(
        self,
        addresses: Addresses,
        *,
        num_tokenizers: int,
        max_queued_requests: int,
        readiness: Readiness,
        metrics: Metrics,
    ) -> None:
        self.readiness = readiness
        self._metrics = metrics
        self._max_queued = max_queued_requests
        self._context = zmq.Context()
        self._inbox = pull_socket(zmq.asyncio.Context(self._context), addresses.api)
        # Not asyncio sockets: without a high-water mark a send never waits, and it can stand in a `finally`.
        self._tokenizers = [
            push_socket(self._context, addresses.tokenizer(index)) for index in range(num_tokenizers)
        ]
        self._decode: Decoder[FromWorkers] = Decoder(FromWorkers)
        self._scheduler_address = addresses.scheduler
        self._scheduler: Any = None
        """The socket to the scheduler, once somebody looks on."""
        self._watched_until = 0.0
        self.recent = RecentSteps()
        self._announced = False
        self._loaded: tuple[float, dict[str, float]] = (0.0, {})
        """When the scheduler was ready, and the seconds of each phase of its start."""
        self._next_uid = 0
        self._in_flight: dict[int, tuple[Generation, Choice]] = {}
        self._asked: dict[int, asyncio.Future[Tokens | Text]] = {}
        """What only a tokenizer is asked."""
        self._open: set[Generation] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def start(
        self,
        request_id: str,
        prompts: list[Prompt],
        params: SamplingParams,
        user: str | None = None,
        *,
        copies: int = 1,
    ) -> Generation:
        """Send the prompts of one HTTP request on their way, for `copies` answers each.

        A seed that is not given is drawn for each prompt. Every generation started must be given to `close`.
        Raises `ApiError`: 503 while the worker does not serve, 429 when the queue is full, 400 when so many
        answers never fit or the bias is of a token that the model does not have.
        """
        limits = self._admit(len(prompts), copies)
        _check_bias(params, limits.vocab_size)
        count = len(prompts) * copies
        uids = list(range(self._next_uid, self._next_uid + count))
        self._next_uid += count
        generation = Generation(request_id, uids, user, copies=copies)
        generation.grammar_name = prompts[0].grammar_name
        self._open.add(generation)
        self._idle.clear()
        for choice in generation.choices:
            self._in_flight[choice.uid] = (generation, choice)
            self.recent.name(choice.uid, request_id if count == 1 else f"{request_id}/{choice.index}")
        for choice, prompt in zip(generation.choices[::copies], prompts, strict=True):
            seed = secrets.randbits(63) if params.seed is None else params.seed
            self._send(
                TokenizeRequest(
                    uid=choice.uid,
                    copies=copies,
                    params=msgspec.structs.replace(params, seed=seed),
                    max_seq_len=limits.max_seq_len,
                    vocab_size=limits.vocab_size,
                    **prompt._asdict(),
                )
            )
        return generation

    def close(self, generation: Generation) -> None:
        """The client has its answer, or will never have it: what still runs of the generation is aborted."""
        self._open.discard(generation)
        for choice in generation.choices:
            if self._in_flight.pop(choice.uid, None) is not None:
                self._send(Abort(uid=choice.uid), choice.first_uid)
                self._metrics.aborted.inc()
        if not self._open:
            self._idle.set()

    async def ask(self, question: Callable[[int, EngineLimits], TextToTokens | TokensToText]) -> Tokens | Text:
        """Put a question to a tokenizer, made of its id and the limits. Raises `ApiError`, as `start` does."""
        limits = self._admit(1)
        uid = self._next_uid
        self._next_uid += 1
        answer: asyncio.Future[Tokens | Text] = asyncio.get_running_loop().create_future()
        self._asked[uid] = answer
        try:
            self._send(question(uid, limits))
            return await answer
        finally:
            self._asked.pop(uid, None)

    def watch(self) -> None:
        """Somebody looks at the worker: its scheduler tells of its steps for a while."""
        now = time.monotonic()
        if self.readiness.limits is not None and now > self._watched_until - WATCH_SECONDS / 2:
            if self._scheduler is None:
                self._scheduler = push_socket(self._context, self._scheduler_address)
            self._watched_until = now + WATCH_SECONDS
            self._scheduler.send(encode(Watch(seconds=WATCH_SECONDS)), zmq.NOBLOCK)

    def in_flight(self, most: int) -> list[dict[str, Any]]:
        """The oldest requests that are being served, without their text."""
        now = time.perf_counter()
        return [
            {
                "uid": uid,
                "name": self.recent.name_of(uid) or generation.request_id,
                "prompt_tokens": choice.prompt_tokens,
                "cached_tokens": choice.cached_tokens,
                "generated": choice.generated,
                "seconds": round(now - generation.arrived_at, 3),
            }
            for uid, (generation, choice) in itertools.islice(self._in_flight.items(), most)
        ]

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def fail_all(self, error: ApiError) -> None:
        """End every request in flight with `error`."""
        for generation in self._open:
            generation.fail(error)

    async def receive(self) -> None:
        """Read what the workers send, for ever."""
        while True:
            self._handle(self._decode(await self._inbox.recv()))
            await asyncio.sleep(0)  # a recv that finds a frame does not yield to the answers

    def destroy(self) -> None:
        """Close the sockets."""
        self._inbox.close()
        self._context.destroy(linger=0)

    def _admit(self, prompts: int, copies: int = 1) -> EngineLimits:
        trouble = self.readiness.trouble()
        if self.readiness.phase is Phase.REFUSING:
            raise unavailable("the server is shutting down and takes no new requests", code="shutting_down")
        limits = self.readiness.limits
        if trouble is not None or limits is None:
            raise unavailable(f"the server is not ready: {trouble}", code="not_ready")
        most, count = limits.max_running_requests + self._max_queued, prompts * copies
        if count > most:
            what = (
                f"{prompts} prompts" if copies == 1 else f"{prompts} prompts with n = {copies}, {count} answers,"
            )
            param = "prompt" if copies == 1 else "n"
            raise invalid(f"{what} in one request; at most {most} can be in flight", param=param)
        busy = len(self._in_flight) + len(self._asked)
        if busy + count > most:
            raise queue_full(busy, most)
        return limits

    def _send(self, message: ToTokenizer, first_uid: int | None = None) -> None:
        # All messages of a prompt take one tokenizer, so that an abort cannot overtake its request.
        uid = message.uid if first_uid is None else first_uid
        self._tokenizers[uid % len(self._tokenizers)].send(encode(message), zmq.NOBLOCK)

    def _handle(self, message: FromWorkers) -> None:
        match message:
            case StepText():
                self._step(message)
            case Rejected():
                self._reject(message)
            case Tokens() | Text():
                if message.uid in self._asked:
                    self._asked.pop(message.uid).set_result(message)
            case Timeline():
                self.recent.add(message)
            case SchedulerStats():
                self._metrics.report(message)
            case SchedulerReady():
                self._loaded = (time.monotonic(), message.phases)
                self._hear(message)
            case Heartbeat():
                self._hear(message)

    def _hear(self, message: Heartbeat | SchedulerReady) -> None:
        self.readiness.heard(message)
        if not self._announced and self.readiness.trouble() is None:
            self._announced = True
            ready_at, phases = self._loaded
            phases = {**phases, "tokenizers": time.monotonic() - ready_at}
            self._metrics.started(phases)
            logger.info("ready to serve after %.2f s", sum(phases.values()))

    def _step(self, step: StepText) -> None:
        scores = dict(zip(step.scored, step.scores, strict=True))
        columns = zip(
            step.uids,
            step.texts,
            step.generated,
            step.prompt_tokens,
            step.cached_tokens,
            step.finish_reasons,
            strict=True,
        )
        for place, (uid, text, generated, prompt_tokens, cached_tokens, finish_reason) in enumerate(columns):
            if uid not in self._in_flight:
                continue  # closed before, and its abort is on the way
            generation, choice = self._in_flight[uid]
            if finish_reason == FinishReason.ABORT.value:
                del self._in_flight[uid]
                logger.error("request %s was given up by the engine", generation.request_id)
                generation.fail(internal())
                continue
            if finish_reason == FinishReason.GRAMMAR.value:
                del self._in_flight[uid]
                name = generation.grammar_name
                message = f"{name} takes too much work to follow: the answer breaks off after {generated} tokens"
                generation.fail(invalid(message, param=name, code="grammar_too_complex"))
                continue
            before, last = choice.generated, choice.last_token_at
            choice.prompt_tokens = prompt_tokens
            choice.cached_tokens = cached_tokens
            generation.feed(choice, text, generated, finish_reason, scores.get(place))
            self._measure(generation, choice, new=generated - before, last=last)
            if finish_reason:
                del self._in_flight[uid]

    def _measure(self, generation: Generation, choice: Choice, *, new: int, last: float) -> None:
        metrics, now = self._metrics, choice.last_token_at
        if last == 0.0:
            metrics.first_token.observe(now - generation.arrived_at)
            if choice.is_first:
                metrics.prompt_tokens.inc(choice.prompt_tokens)
        else:
            for _ in range(new):
                metrics.inter_token.observe((now - last) / new)
        metrics.generation_tokens.inc(new)
        if choice.finish_reason:
            metrics.end_to_end.observe(now - generation.arrived_at)
            metrics.requests.inc()

    def _reject(self, rejected: Rejected) -> None:
        if rejected.code == "internal_error":
            error = internal()
        else:
            error = invalid(rejected.message, param=rejected.param, code=rejected.code)
        if rejected.uid in self._asked:
            self._asked.pop(rejected.uid).set_exception(error)
        elif rejected.uid in self._in_flight:
            generation, _ = self._in_flight[rejected.uid]
            for choice in generation.choices:
                if choice.first_uid == rejected.uid:
                    self._in_flight.pop(choice.uid, None)
            generation.fail(error)


def _check_bias(params: SamplingParams, vocab_size: int) -> None:
    for token, _ in params.logit_bias:
        if token >= vocab_size:
            outside = f"token id {token} is outside the vocabulary: ids are 0 to {vocab_size - 1}"
            raise invalid(f"logit_bias: {outside}", param="logit_bias")
