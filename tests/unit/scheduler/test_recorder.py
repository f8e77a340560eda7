"""The record of the last steps: true whatever happens to the requests, cheap, and without influence."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core.batch import Batch, PendingStep
from minisgl.core.config import Addresses, EngineLimits, SchedulerConfig
from minisgl.core.sampling import SamplingParams
from minisgl.message import (
    Abort,
    Decoder,
    FromWorkers,
    GrammarBuilt,
    Heartbeat,
    NewRequest,
    Round,
    SchedulerStats,
    Timeline,
    Watch,
    encode,
)
from minisgl.scheduler import recorder as recorder_module
from minisgl.scheduler.agreement import ComparedScheduler
from minisgl.scheduler.io import RankZeroEndpoint
from minisgl.scheduler.loop import normal_loop, overlap_loop
from minisgl.scheduler.recorder import (
    CAPACITY,
    RecordedComparedScheduler,
    RecordedScheduler,
    Recorder,
)
from minisgl.scheduler.scheduler import Scheduler, Step
from minisgl.utils.sockets import pull_socket, push_socket
from support.fake_engine import FakeEngine

PAGE_SIZE = 4


def build(make: Callable[..., Scheduler], pages: int = 24, **options: Any) -> Scheduler:
    limits = EngineLimits(
        num_pages=pages, page_size=PAGE_SIZE, max_seq_len=pages * PAGE_SIZE, max_running_requests=4, vocab_size=50
    )
    return make(SchedulerConfig(prefill_budget=12), limits, [7], **options)


class Witness:
    """An executor and an endpoint that write down whose rows each batch names."""

    def __init__(self, scheduler: Scheduler, rounds: list[list[NewRequest | Abort | GrammarBuilt]]) -> None:
        self._scheduler = scheduler
        self._rounds = rounds
        self.engine = FakeEngine(num_pages=scheduler.cache.num_pages, page_size=PAGE_SIZE, num_rows=4)
        self.seen: list[tuple[list[int], list[tuple[int, int]]]] = []

    def launch(self, batch: Batch) -> PendingStep:
        owner = {request.row: uid for uid, request in self._scheduler.requests.items()}
        self.seen.append(
            ([owner[row] for row in batch.decode_rows], [(owner[c.row], len(c.tokens)) for c in batch.prefill])
        )
        return self.engine.launch(batch)

    def idle(self) -> bool:
        return False

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:  # noqa: ARG002
        if self._rounds:
            return Round(messages=[*self._rounds.pop(0)])
        return Round(messages=[], stop=block)

    def send(self, scheduler: Scheduler) -> None:
        scheduler.take_output()


def told(timeline: Timeline | None) -> list[tuple[list[int], list[tuple[int, int]]]]:
    if timeline is None:
        return []
    return [(timeline.crowds[step.crowd], step.read) for step in timeline.steps]


prompts = st.lists(st.integers(0, 49), min_size=1, max_size=30)
arrivals = st.lists(
    st.tuples(prompts, st.integers(1, 12), st.integers(1, 3), st.none() | st.integers(0, 8)),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60)
@given(arrivals=arrivals, gap=st.integers(0, 3), overlap=st.booleans())
def test_it_tells_whose_rows_every_step_had(
    arrivals: list[tuple[list[int], int, int, int | None]], gap: int, overlap: bool
) -> None:
    """With requests that come, end, are aborted and retracted (the pool is small), as often as not at once."""

    def rounds() -> list[list[NewRequest | Abort | GrammarBuilt]]:
        made: list[list[NewRequest | Abort | GrammarBuilt]] = [[] for _ in range(len(arrivals) * gap + 24)]
        for place, (prompt, max_tokens, copies, abort) in enumerate(arrivals):
            params = SamplingParams(max_tokens=max_tokens, seed=0)
            made[place * gap].append(NewRequest(uid=3 * place, token_ids=prompt, params=params, copies=copies))
            if abort is not None:
                made[place * gap + abort].append(Abort(uid=3 * place))
        return made

    loop = overlap_loop if overlap else normal_loop
    recorder = Recorder()
    recorded = build(RecordedScheduler, recorder=recorder)
    witness = Witness(recorded, rounds())
    loop(recorded, witness, witness)
    assert told(recorder.take()) == witness.seen[-CAPACITY:]
    assert recorder.take() is None

    plain = build(Scheduler)
    other = Witness(plain, rounds())
    loop(plain, other, other)
    assert other.engine.batches == witness.engine.batches, "the record changed what is scheduled"


def test_times_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def tick() -> float:
        nonlocal clock
        clock += 1.0
        return clock

    monkeypatch.setattr(recorder_module, "time", SimpleNamespace(monotonic=tick))
    recorder = Recorder()
    step = Step(Batch(decode_rows=[0]), [])
    for call in "lclcllcc":  # launched, completed
        recorder.launched(step, -1) if call == "l" else recorder.completed()
    timeline = recorder.take()
    assert timeline is not None
    times = [(record.number, record.started, record.seconds) for record in timeline.steps]
    assert times == [(0, 1, 1), (1, 3, 1), (2, 5, 2), (3, 7, 1)], "the fourth waited for the third"


def test_it_keeps_the_last_ones_only() -> None:
    recorder = Recorder()
    step = Step(Batch(decode_rows=[0, 1]), [])
    for _ in range(CAPACITY + 10):
        recorder.launched(step, -1)
        recorder.completed()
    timeline = recorder.take()
    assert timeline is not None
    assert [record.number for record in timeline.steps] == list(range(10, CAPACITY + 10))
    assert len(timeline.crowds) == 1, "what stays the same is sent once"


def test_a_steady_step_costs_next_to_nothing() -> None:
    """Half a microsecond on an idle machine; the bound leaves room for a busy one."""
    recorder = Recorder()
    rows = list(range(256))
    step = Step(Batch(decode_rows=rows), [])
    best = 1.0
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            recorder.launched(step, -1)
            recorder.completed()
        best = min(best, (time.perf_counter() - began) / 500)
    assert best < 3e-6, f"{best * 1e6:.2f} us a step"


def test_ranks_can_be_compared_besides() -> None:
    recorder = Recorder()
    scheduler = build(RecordedComparedScheduler, recorder=recorder, rank=0, exchange=lambda digest: digest)
    assert isinstance(scheduler, ComparedScheduler)
    params = SamplingParams(max_tokens=3, seed=0, ignore_eos=True)
    witness = Witness(scheduler, [[NewRequest(uid=5, token_ids=[1, 2], params=params)]])
    overlap_loop(scheduler, witness, witness)
    assert told(recorder.take()) == [([], [(5, 2)]), ([5], []), ([5], [])]


class Wires:
    """The other ends of rank 0's sockets."""

    def __init__(self, directory: Path, recorder: Recorder | None) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        addresses = Addresses(directory=str(directory))
        self._api = pull_socket(self._context, addresses.api)
        pull_socket(self._context, addresses.detokenizer)
        self.endpoint = RankZeroEndpoint(addresses, 1, "scheduler-0", recorder)
        self._scheduler = push_socket(self._context, addresses.scheduler)
        self._decode: Decoder[FromWorkers] = Decoder(FromWorkers)

    def watch(self, seconds: float) -> Round:
        self._scheduler.send(encode(Watch(seconds=seconds)))
        return self.endpoint.receive(block=True)

    def heard(self) -> deque[FromWorkers]:
        messages: deque[FromWorkers] = deque()
        while self._api.poll(50):
            message = self._decode(self._api.recv())
            if not isinstance(message, (Heartbeat, SchedulerStats)):
                messages.append(message)
        return messages


def test_the_record_is_sent_only_while_somebody_looks(tmp_path: Path) -> None:
    recorder = Recorder()
    wires = Wires(tmp_path, recorder)
    scheduler = build(RecordedScheduler, recorder=recorder)
    params = SamplingParams(max_tokens=3, seed=0, ignore_eos=True)
    witness = Witness(scheduler, [[NewRequest(uid=5, token_ids=[1, 2], params=params)]])
    overlap_loop(scheduler, witness, witness)

    wires.endpoint.send(scheduler)
    assert not wires.heard()
    assert wires.watch(60.0).messages == [], "no rank hears of it"
    wires.endpoint.send(scheduler)
    (timeline,) = wires.heard()
    assert isinstance(timeline, Timeline) and told(timeline) == [([], [(5, 2)]), ([5], []), ([5], [])]
    wires.endpoint.send(scheduler)
    assert not wires.heard(), "nothing is sent twice"


def test_without_a_recorder_a_look_is_harmless(tmp_path: Path) -> None:
    wires = Wires(tmp_path, None)
    assert wires.watch(60.0).messages == []
    wires.endpoint.send(build(Scheduler))
    assert not wires.heard()
