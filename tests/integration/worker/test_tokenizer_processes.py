"""The tokenizer and detokenizer processes as the launcher starts them, with this test in place of the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from minisgl.core.config import Addresses, DetokenizerConfig, TokenizerConfig
from minisgl.core.sampling import SamplingParams
from minisgl.grammar import json_schema
from minisgl.message import (
    Abort,
    Decoder,
    FromWorkers,
    Heartbeat,
    NewRequest,
    Rejected,
    StepText,
    StepTokens,
    TokenizeRequest,
    ToScheduler,
    encode,
)
from minisgl.message.types import Opened
from minisgl.tokenizer.text import TextTokenizer
from minisgl.utils.child import ChildHeader, configuration_line, start_child
from minisgl.utils.sockets import private_directory, pull_socket, push_socket

PATIENCE_MS = 30_000


class Around:
    """The API server's and the scheduler's sockets around the two processes."""

    def __init__(self, model: str, directory: str) -> None:
        self.addresses = addresses = Addresses(directory=directory)
        self.context = zmq.Context()
        self._api = pull_socket(self.context, addresses.api)
        self._scheduler = pull_socket(self.context, addresses.scheduler)
        self.to_tokenizer = push_socket(self.context, addresses.tokenizer(0))
        self.to_detokenizer = push_socket(self.context, addresses.detokenizer)
        tokenizer = TokenizerConfig(model_path=model, addresses=addresses)
        detokenizer = DetokenizerConfig(model_path=model, addresses=addresses)
        self.processes = [
            start_child("minisgl.tokenizer.tokenize_process", ChildHeader(name="tokenizer-0"), tokenizer),
            start_child("minisgl.tokenizer.detokenize_process", ChildHeader(name="detokenizer"), detokenizer),
        ]

    def heartbeat(self) -> str:
        message = self._receive(self._api, FromWorkers)
        assert isinstance(message, Heartbeat)
        return message.process

    def at_api(self) -> StepText | Rejected:
        while isinstance(message := self._receive(self._api, FromWorkers), Heartbeat):
            pass
        assert isinstance(message, StepText | Rejected)
        return message

    def at_scheduler(self) -> NewRequest | Abort:
        message: NewRequest | Abort = self._receive(self._scheduler, ToScheduler)
        return message

    def ask(self, uid: int, **prompt: Any) -> None:
        fields: dict[str, Any] = {"params": SamplingParams(), "max_seq_len": 8192, "vocab_size": 49152} | prompt
        self.to_tokenizer.send(encode(TokenizeRequest(uid=uid, **fields)))

    def close(self) -> list[int]:
        """What the launcher's death does to the processes; returns their exit statuses."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        statuses = [process.wait(10) for process in self.processes]
        self.context.destroy()
        return statuses

    @staticmethod
    def _receive(socket: Any, kind: Any) -> Any:
        assert socket.poll(PATIENCE_MS), "nothing came"
        return Decoder[Any](kind)(socket.recv())


@pytest.fixture(scope="module")
def around(smollm2: Path) -> Iterator[Around]:
    with private_directory() as directory:
        around = Around(str(smollm2), directory)
        assert {around.heartbeat(), around.heartbeat()} == {"tokenizer-0", "detokenizer"}
        yield around
        assert around.close() == [1, 1]


def test_hearts_go_on_beating(around: Around) -> None:
    assert {around.heartbeat() for _ in range(4)} == {"tokenizer-0", "detokenizer"}


def test_a_request_its_rejection_and_its_abort(around: Around, smollm2: Path) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    around.ask(1, messages=chat)
    around.ask(2, text="x" * 100_000)
    around.to_tokenizer.send(encode(Abort(uid=1)))
    request = around.at_scheduler()
    assert isinstance(request, NewRequest)
    tokenizer = TextTokenizer.load(str(smollm2))
    assert request.token_ids == tokenizer.encode(tokenizer.render_chat(chat), add_special_tokens=False)
    assert request.params.max_tokens == 8192 - len(request.token_ids)
    rejected = around.at_api()
    assert isinstance(rejected, Rejected)
    assert (rejected.uid, rejected.code) == (2, "context_length_exceeded")
    assert around.at_scheduler() == Abort(uid=1)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "prompt",
    [
        {"messages": [{"role": "user", "content": nested(200)}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": {"a": 1}, "role": 3}]},
        {"token_ids": [2**40]},
        {"token_ids": [-(2**40)]},
        {},
    ],
)
def test_no_request_stops_the_others(around: Around, prompt: dict[str, Any]) -> None:
    around.ask(3, **prompt)
    rejected = around.at_api()
    assert isinstance(rejected, Rejected) and rejected.message
    around.ask(4, text="still there")
    request = around.at_scheduler()
    assert isinstance(request, NewRequest) and request.uid == 4


@pytest.mark.parametrize("frame", [b"", b"\xc1", msgspec.msgpack.encode({"type": "Unknown"})])
def test_frames_that_are_no_messages_are_dropped(around: Around, frame: bytes) -> None:
    around.to_tokenizer.send(frame)
    around.ask(5, text="still there")
    request = around.at_scheduler()
    assert isinstance(request, NewRequest) and request.uid == 5


def test_a_grammar_is_tried_while_others_go_on(around: Around) -> None:
    """A grammar that explodes is refused after a second; one that is aborted meanwhile never gets further."""
    explodes = {"allOf": [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrstuvwx"]}

    def ask(uid: int, schema: dict[str, Any]) -> None:
        around.ask(uid, text="x", params=SamplingParams(grammar=json_schema(schema)), grammar_name="tools")

    ask(11, explodes)
    ask(12, {"const": "aborted"})
    around.to_tokenizer.send(encode(Abort(uid=12)))
    ask(13, {"const": "good"})
    around.ask(14, text="no grammar")
    arrived = [around.at_scheduler() for _ in range(3)]
    assert [message.uid for message in arrived if isinstance(message, NewRequest)] == [14, 13]
    rejected = around.at_api()
    assert isinstance(rejected, Rejected)
    assert (rejected.uid, rejected.param, rejected.code) == (11, "tools", "invalid_grammar")
    assert rejected.message == "tools cannot be followed: it takes more than 1 s to read: make it simpler"
    ask(15, {"const": "good"})
    assert around.at_scheduler().uid == 15, "at once: it is known"


def test_steps_become_text_and_a_stop_string_an_abort(around: Around, smollm2: Path) -> None:
    ids = TextTokenizer.load(str(smollm2)).encode("One. Two. Three.", add_special_tokens=False)
    opened = [Opened(6, 9, 4, (". T",))]
    text, reasons = "", []
    for token in ids:
        around.to_detokenizer.send(encode(StepTokens(uids=[6], tokens=[token], opened=opened)))
        opened = []
    while "stop" not in reasons:
        step = around.at_api()
        assert isinstance(step, StepText)
        assert (step.uids, step.prompt_tokens, step.cached_tokens) == ([6], [9], [4])
        text += step.texts[0]
        reasons += step.finish_reasons
    assert text == "One"
    assert around.at_scheduler() == Abort(uid=6)


@pytest.mark.parametrize("module", ["tokenize_process", "detokenize_process"])
def test_a_model_without_a_tokenizer_is_one_line_and_exit_status_2(module: str, tmp_path: Path) -> None:
    addresses = Addresses(directory=str(tmp_path))
    config = TokenizerConfig(model_path=str(tmp_path), addresses=addresses)
    command = [sys.executable, "-m", f"minisgl.tokenizer.{module}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(configuration_line(ChildHeader(name="x"), config))
        process.stdin.flush()
        lines = process.stderr.read().decode().splitlines()
        process.wait()
    assert process.returncode == 2
    assert len(lines) == 1 and lines[0].startswith(f"minisgl: error: {tmp_path}: ")
