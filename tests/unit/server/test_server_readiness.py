"""When the worker says that it serves."""

from __future__ import annotations

from minisgl.core.config import EngineLimits
from minisgl.message import Heartbeat, SchedulerReady
from minisgl.server.readiness import FRESH_SECONDS, Phase, Readiness

LIMITS = EngineLimits(num_pages=1, page_size=1, max_seq_len=1, max_running_requests=1, vocab_size=1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def serving() -> tuple[Readiness, Clock]:
    clock = Clock()
    readiness = Readiness(("scheduler-0", "detokenizer"), clock)
    readiness.heard(SchedulerReady(limits=LIMITS, phases={}))
    readiness.heard(Heartbeat(process="scheduler-0"))
    readiness.heard(Heartbeat(process="detokenizer"))
    return readiness, clock


def test_ready_only_when_every_process_was_heard_and_the_engine_is_loaded() -> None:
    readiness = Readiness(("scheduler-0", "detokenizer"))
    assert readiness.reason() == "loading: waiting for scheduler-0, detokenizer"
    readiness.heard(Heartbeat(process="detokenizer"))
    readiness.heard(Heartbeat(process="stranger"))
    assert readiness.reason() == "loading: waiting for scheduler-0"
    readiness.heard(Heartbeat(process="scheduler-0"))
    assert readiness.reason() == "loading: waiting for the scheduler"
    readiness.heard(SchedulerReady(limits=LIMITS, phases={}))
    assert readiness.reason() is None


def test_a_silent_process_is_named_until_it_speaks_again() -> None:
    readiness, clock = serving()
    clock.now += FRESH_SECONDS - 1
    readiness.heard(Heartbeat(process="scheduler-0"))
    assert readiness.reason() is None
    clock.now += 2
    assert readiness.reason() == "no sign of life from detokenizer (31 s)"
    readiness.heard(Heartbeat(process="detokenizer"))
    assert readiness.reason() is None


def test_draining_is_not_ready_but_no_trouble() -> None:
    readiness, _ = serving()
    readiness.phase = Phase.DRAINING
    assert readiness.trouble() is None
    assert "draining" in (readiness.reason() or "")
