"""A tokenizer, a scheduler and a detokenizer in one thread, which speak the real messages and follow a script.

The script is the prompt itself: its parts between bars are sent as one token's text each. A part may also be an
order: ``<hang>`` sends nothing more, ``<length>`` ends with that reason, ``<reject>`` and ``<crash>`` are the
tokenizer's refusals, ``<abort>`` and ``<grammar>`` are the engine's own giving up, ``<copy>`` is the number of the
answer among those to the same prompt. Who asks for log-probabilities gets -0.5 for each token, and the letters
A, B, ... as others.
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
    Text,
    TextScore,
    TextToTokens,
    TokenizeRequest,
    Tokens,
    TokensToText,
    TokenText,
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
        self.questions: list[TextToTokens | TokensToText] = []
        self.tokenizer_of: dict[int, int] = {}
        self.aborted: list[int] = []
        self.aborted_at: dict[int, int] = {}
        """Which tokenizer read the abort."""
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
                    self.aborted_at[message.uid] = inboxes.index(inbox)
                elif isinstance(message, (TextToTokens, TokensToText)):
                    self.questions.append(message)
                    self._outbox += answer(message)
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
    answers = [_answer(request, copy) for copy in range(request.copies)]
    refused = any(isinstance(message, Rejected) for message in answers[0])
    return answers[0] if refused else [message for answer in answers for message in answer]


def _answer(request: TokenizeRequest, copy: int) -> list[msgspec.Struct]:
    prompt = request.text if request.messages is None else request.messages[-1]["content"]
    parts = ["".join(map(str, request.token_ids))] if request.token_ids else (prompt or "").split("|")
    messages: list[msgspec.Struct] = []

    def step(text: str, reason: str = "") -> None:
        generated = 1 + sum(isinstance(message, StepText) for message in messages)
        scores = [] if request.params.logprobs is None or reason == "stop" else [_score(request, text)]
        if request.echo and not messages:
            if request.params.prompt_logprobs:
                scores.insert(0, TextScore(text=prompt or "", data=(prompt or "").encode(), logprob=None))
            text = (prompt or "") + text
        messages.append(
            StepText(
                uids=[request.uid + copy],
                texts=[text],
                generated=[generated],
                prompt_tokens=[PROMPT_TOKENS],
                cached_tokens=[CACHED_TOKENS],
                finish_reasons=[reason],
                scored=[0] if scores else [],
                scores=[scores] if scores else [],
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
            case "<length>" | "<abort>" | "<grammar>":
                step("", part.strip("<>"))
                return messages
            case "<copy>":
                step(str(copy))
            case _:
                step(part)
    step("", "stop")
    return messages


def answer(question: TextToTokens | TokensToText) -> list[msgspec.Struct]:
    """To what only a tokenizer is asked: a token for each character, and back."""
    if isinstance(question, TokensToText):
        return [Text(uid=question.uid, text="".join(map(chr, question.token_ids)))]
    text = question.text if question.messages is None else question.messages[-1]["content"]
    match text:
        case "<hang>":
            return []
        case "<reject>":
            return [Rejected(uid=question.uid, message="too long", param="prompt", code="context_length_exceeded")]
        case "<crash>":
            return [Rejected(uid=question.uid, message="secret", code="internal_error")]
    names = list(text or "") if question.names else None
    return [Tokens(uid=question.uid, token_ids=list(map(ord, text or "")), names=names)]


def _score(request: TokenizeRequest, text: str) -> TextScore:
    letters = [chr(ord("A") + place) for place in range(request.params.logprobs or 0)]
    top = [
        TokenText(text=letter, data=letter.encode(), logprob=-1.0 - place) for place, letter in enumerate(letters)
    ]
    return TextScore(text=text, data=text.encode(), logprob=-0.5, top=top)


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
