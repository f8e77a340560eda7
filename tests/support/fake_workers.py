"""A tokenizer, a scheduler and a detokenizer in one thread, which speak the real messages and follow a script.

The script is the prompt itself: its parts between bars are sent as one token's text each. A part may also be an
order: ``<hang>`` sends nothing more, ``<length>`` ends with that reason, ``<reject>`` and ``<crash>`` are the
tokenizer's refusals, ``<abort>`` is the engine's own giving up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec
import zmq

from minisgl.core.config import Addresses, EngineLimits
from minisgl.message import (
    Abort,
    Decoder,
    Heartbeat,
    Rejected,
    SchedulerReady,
    SchedulerStats,
    StepText,
    TokenizeRequest,
    ToTokenizer,
    encode,
)
from minisgl.utils.sockets import pull_socket, push_socket

PROCESSES = ("scheduler-0", "tokenizer-0", "tokenizer-1", "detokenizer")
LIMITS = EngineLimits(num_pages=64, page_size=16, max_seq_len=512, max_running_requests=4, vocab_size=100)
PROMPT_TOKENS, CACHED_TOKENS = 7, 3


class FakeWorkers:
    """Everything behind the API server; `requests` and `aborted` are what it was asked."""

    def __init__(self, addresses: Addresses, *, ready: bool = True) -> None:
        self.requests: list[TokenizeRequest] = []
        self.tokenizer_of: dict[int, int] = {}
        self.aborted: list[int] = []
        self._addresses = addresses
        self._ready = ready
        self._stop = threading.Event()
        self._outbox: list[Any] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> FakeWorkers:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def send(self, message: msgspec.Struct) -> None:
        """To the API server, from any thread."""
        with self._lock:
            self._outbox.append(message)

    def last(self) -> TokenizeRequest:
        """The newest request."""
        return self.requests[-1]

    def _run(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        inboxes = [pull_socket(context, self._addresses.tokenizer(index)) for index in range(2)]
        api = push_socket(context, self._addresses.api)
        decode: Decoder[ToTokenizer] = Decoder(ToTokenizer)
        poller = zmq.Poller()
        for inbox in inboxes:
            poller.register(inbox)
        if self._ready:
            for process in PROCESSES:
                api.send(encode(Heartbeat(process=process)))
            api.send(encode(SchedulerReady(limits=LIMITS, phases={"weights": 1.5})))
            api.send(encode(SchedulerStats(total_pages=64, used_pages=16, prompt_tokens=8, cached_tokens=2)))
        while not self._stop.is_set():
            for inbox, _ in poller.poll(5):
                message = decode(inbox.recv())
                if isinstance(message, Abort):
                    self.aborted.append(message.uid)
                elif isinstance(message, TokenizeRequest):
                    self.tokenizer_of[message.uid] = inboxes.index(inbox)
                    self.requests.append(message)
                    self._outbox += script(message)
            with self._lock:
                messages, self._outbox = self._outbox, []
            for message in messages:
                api.send(encode(message))
        context.destroy(linger=0)


def script(request: TokenizeRequest) -> list[msgspec.Struct]:
    """What the workers answer to a request."""
    prompt = request.text if request.messages is None else request.messages[-1]["content"]
    parts = ["".join(map(str, request.token_ids))] if request.token_ids else (prompt or "").split("|")
    messages: list[msgspec.Struct] = []

    def step(text: str, reason: str = "") -> None:
        generated = 1 + sum(isinstance(message, StepText) for message in messages)
        messages.append(
            StepText(
                uids=[request.uid],
                texts=[text],
                generated=[generated],
                prompt_tokens=[PROMPT_TOKENS],
                cached_tokens=[CACHED_TOKENS],
                finish_reasons=[reason],
            )
        )

    for part in parts:
        match part:
            case "<hang>":
                return messages
            case "<reject>":
                message = "the prompt has 900 tokens, and the context length is 512"
                return [
                    Rejected(uid=request.uid, message=message, param="messages", code="context_length_exceeded")
                ]
            case "<crash>":
                return [Rejected(uid=request.uid, message="secret", code="internal_error")]
            case "<length>" | "<abort>":
                step("", part.strip("<>"))
                return messages
            case _:
                step(part)
    step("", "stop")
    return messages


def one_token(uid: int, text: str, finish_reason: str) -> StepText:
    """A frame for one request's first token."""
    return StepText(
        uids=[uid],
        texts=[text],
        generated=[1],
        prompt_tokens=[1],
        cached_tokens=[0],
        finish_reasons=[finish_reason],
    )


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for `condition`, which another thread or process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
