"""Several ranks: they compute the same, and one that does not, dies or hangs ends the worker and is named."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import zmq

from minisgl.core.config import Addresses, EngineConfig, SchedulerConfig, SchedulerProcessConfig
from minisgl.core.sampling import SamplingParams
from minisgl.message import (
    Abort,
    Decoder,
    FromWorkers,
    Heartbeat,
    NewRequest,
    SchedulerReady,
    SchedulerStats,
    StepTokens,
    encode,
)
from minisgl.server.readiness import SILENT_SECONDS
from minisgl.utils.child import ChildHeader, start_child
from minisgl.utils.sockets import private_directory, pull_socket, push_socket
from support.dummy_model import CONFIG, make_dummy_model
from support.fake_workers import wait_until
from support.worker_process import WorkerProcess

VOCAB = 320
SCHEDULER = SchedulerConfig(prefill_budget=256, check_ranks=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of few words, since scheduling is what counts."""
    directory = tmp_path_factory.mktemp("small")
    (directory / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": VOCAB, "num_hidden_layers": 1}))
    words = {chr(33 + index): index for index in range(94)}
    tokenizer = {"model": {"vocab": words}, "decoder": {"type": "ByteLevel"}}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


class Ranks:
    """The scheduler processes of one worker, spoken to as tokenizer, detokenizer and API server would."""

    def __init__(self, directory: str, model: Path, schedulers: list[SchedulerConfig]) -> None:
        addresses = Addresses(directory=directory)
        self._context: zmq.Context[Any] = zmq.Context()
        self._api = pull_socket(self._context, addresses.api)
        self._tokens = pull_socket(self._context, addresses.detokenizer)
        self._requests = push_socket(self._context, addresses.scheduler)
        self._hear: Decoder[FromWorkers] = Decoder(FromWorkers)
        self._read: Decoder[StepTokens] = Decoder(StepTokens)
        self.stats = SchedulerStats()
        self.beats: Counter[str] = Counter()
        engine = EngineConfig(
            model_path=str(model),
            dummy_weight=True,
            num_pages=400,
            page_size=4,
            max_running_requests=48,
            tp_size=len(schedulers),
            rendezvous=f"{directory}/rendezvous",
            num_threads=1,
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank, scheduler in enumerate(schedulers):
            config = SchedulerProcessConfig(
                engine=msgspec.structs.replace(engine, tp_rank=rank), scheduler=scheduler, addresses=addresses
            )
            header = ChildHeader(name=f"scheduler-{rank}", log_level="error")
            self.processes.append(start_child("minisgl.scheduler.process", header, config))
        while not isinstance(self._hear(self._receive(self._api)), SchedulerReady):
            pass

    def send(self, message: NewRequest | Abort) -> None:
        self._requests.send(encode(message))

    def step(self) -> StepTokens:
        """The next output of rank 0."""
        return self._read(self._receive(self._tokens))

    def listen(self, seconds: float) -> None:
        """Take in what arrives for the API server within `seconds`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._api.poll(left * 1000):
                message = self._hear(self._api.recv())
                if isinstance(message, SchedulerStats):
                    self.stats = message
                elif isinstance(message, Heartbeat):
                    self.beats[message.process] += 1

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self._context.destroy(linger=0)

    @staticmethod
    def _receive(socket: Any) -> bytes:
        assert socket.poll(60_000), "no word from the ranks"
        frame: bytes = socket.recv()
        return frame


@contextmanager
def running(model: Path, schedulers: list[SchedulerConfig]) -> Iterator[Ranks]:
    with private_directory() as directory:
        ranks = Ranks(directory, model, schedulers)
        try:
            yield ranks
        finally:
            ranks.close()


def random_request(draw: random.Random, uid: int) -> NewRequest:
    """One of a few beginnings, an end of its own, any sampling, sometimes a grammar or several answers.

    Of 500, the first 30 together outgrow the pool, so that some are retracted.
    """
    long = uid % 500 < 30
    prompt = [draw.randrange(4)] * draw.choice([0, 8, 20, 40])
    prompt += [draw.randrange(VOCAB) for _ in range(draw.choice([1, 3, 9, 30, 150]))]
    params = SamplingParams(
        max_tokens=60 if long else draw.choice([1, 2, 5, 9]),
        temperature=draw.choice([0.0, 0.7, 1.0]),
        top_k=draw.choice([0, 1, 20]),
        top_p=draw.choice([1.0, 0.9]),
        min_p=draw.choice([0.0, 0.05]),
        grammar=""
        if long
        else draw.choice(["", "", "", "start: /[a-z]{1,9}(,[0-9]{1,4}){0,6}/", "start: /[d-k]{60}/"]),
        frequency_penalty=draw.choice([0.0, 0.0, 0.5]),
        logprobs=3 if (scored := draw.random() < 0.3) else None,
        prompt_logprobs=scored and draw.random() < 0.5,
        seed=draw.randrange(2**40),
        ignore_eos=long or draw.random() < 0.5,
    )
    return NewRequest(uid=uid, token_ids=prompt, params=params, copies=draw.choice([1, 1, 1, 1, 1, 3]))


@pytest.mark.parametrize(("size", "requests"), [(2, 1000), (4, 60)])
def test_random_requests_and_aborts_keep_the_ranks_equal(small: Path, size: int, requests: int) -> None:
    """Every rank compares every step, and leaves at the first that differs."""
    draw = random.Random(size)
    ended: Counter[int] = Counter()
    aborted: set[int] = set()
    reasons: Counter[str] = Counter()
    sent = 0
    with running(small, [SCHEDULER] * size) as ranks:
        while sent < requests or len(ended) < sent:
            while sent < requests and sent - len(ended) < 80:
                request = random_request(draw, sent)
                ranks.send(request)
                sent += request.copies
                if draw.random() < 0.2:
                    victim = draw.randrange(max(sent - 40, 0), sent)
                    aborted.add(victim)
                    ranks.send(Abort(uid=victim))
            output = ranks.step()
            ended.update(output.finished_uids)
            reasons.update(output.finish_reasons)
        ranks.listen(1.5)
        assert [process.poll() for process in ranks.processes] == [None] * size
        assert set(ended.values()) == {1}
        assert requests // 20 < reasons["abort"] <= len(aborted) and reasons["length"] > requests // 2
        stats = ranks.stats
        assert stats.steps > 50 and stats.retractions and stats.cached_tokens and stats.evicted_pages
        assert set(ranks.beats) == {f"scheduler-{rank}" for rank in range(size)}


def test_a_rank_that_schedules_otherwise_is_named(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = msgspec.structs.replace(SCHEDULER, prefill_budget=255)
    with running(small, [SCHEDULER, other]) as ranks:
        for uid, length in enumerate((50, 10, 256)):  # the last is the first that does not fit in 255
            params = SamplingParams(max_tokens=1, seed=0)
            ranks.send(NewRequest(uid=uid, token_ids=[uid] * length, params=params))
            if uid < 2:
                assert ranks.step().finished_uids == [uid]
        assert ranks.processes[1].wait(20) == 1
    assert "RanksDiffer: rank 1 differs from rank 0 at step 3: prefill, requests" in capfd.readouterr().err


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path, smollm2: Path) -> Iterator[Start]:
    """Start workers of two ranks."""
    model = make_dummy_model(tmp_path / "tiny", smollm2)
    options = ("--dummy-weight", "--num-pages", "200", "--device", "cpu", "--tp", "2")
    with ExitStack() as stack:
        yield lambda: stack.enter_context(WorkerProcess(model, *options, env={"MINISGL_CHECK_RANKS": "1"}))


@contextmanager
def busy(worker: WorkerProcess) -> Iterator[None]:
    """With requests whose tokens keep both ranks in their steps."""

    def ask() -> None:
        body = {"model": "tiny", "prompt": "Once", "max_tokens": 480, "ignore_eos": True}
        with suppress(httpx.TransportError):  # which ends it
            while True:
                httpx.post(f"{worker.url}/v1/completions", json=body, timeout=90)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: worker.metrics()["minisgl:steps_total"] > 10)
    yield
    for thread in threads:
        thread.join()


def test_a_killed_rank_ends_a_busy_worker_within_three_seconds(start: Start) -> None:
    worker = start().wait_ready()
    children = worker.children()
    with busy(worker):
        began = time.monotonic()
        os.kill(children["scheduler.process-1"].pid, signal.SIGKILL)
        assert worker.process.wait(10) == 1
        assert time.monotonic() - began < 3
    assert "scheduler-1 was killed by SIGKILL: stopping the worker" in worker.log()
    assert not [child for child in children.values() if child.is_running()]


def test_a_rank_that_hangs_ends_the_worker_and_is_named(start: Start) -> None:
    """Two workers at once, since it takes long: a busy one, whose other rank waits in a step, and an idle one."""
    workers = [start(), start()]
    hung = ["scheduler-1", "scheduler-0"]
    children = [worker.wait_ready().children() for worker in workers]
    with busy(workers[0]):
        began = time.monotonic()
        for name, processes in zip(hung, children, strict=True):
            processes[name.replace("-", ".process-")].send_signal(signal.SIGSTOP)
        for worker in workers:
            assert worker.process.wait(SILENT_SECONDS + 10) == 1
        assert SILENT_SECONDS - 2 < time.monotonic() - began < SILENT_SECONDS + 5
    for worker, name, processes in zip(workers, hung, children, strict=True):
        last = worker.log().splitlines()[-1]
        assert last.endswith(f"{name}: no sign of life for {SILENT_SECONDS} s: stopping the worker")
        assert not [child for child in processes.values() if child.is_running()]
