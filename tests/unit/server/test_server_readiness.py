"""When the worker says that it serves."""

from __future__ import annotations

from minisgl.core.config import EngineLimits
from minisgl.message import Heartbeat, SchedulerReady
from minisgl.server.readiness import FRESH_SECONDS, SILENT_SECONDS, STUCK_SECONDS, Phase, Readiness

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


def ranks(rounds: dict[int, int], *, loaded: bool = True) -> Readiness:
    """Two ranks after as many `rounds`, and a detokenizer."""
    readiness = Readiness(("scheduler-0", "scheduler-1", "detokenizer"), Clock())
    if loaded:
        for rank, count in rounds.items():
            readiness.heard(Heartbeat(process=f"scheduler-{rank}", rounds=count))
        readiness.heard(Heartbeat(process="detokenizer"))
    return readiness


def watch(readiness: Readiness, seconds: int, **rounds: tuple[int, int]) -> str | None:
    """What is found in so many seconds while ranks beat, each with its first count of rounds and what it adds."""
    for second in range(seconds):
        for name, (first, more) in rounds.items():
            readiness.heard(Heartbeat(process=name.replace("_", "-"), rounds=first + more * second))
        if found := readiness.hanging():
            return found
    return None


def test_a_silent_rank_hangs_and_one_that_waits_for_it_does_not() -> None:
    assert watch(ranks({0: 9, 1: 8}), SILENT_SECONDS, scheduler_0=(9, 0)) is None
    found = watch(ranks({0: 9, 1: 8}), SILENT_SECONDS + 1, scheduler_0=(9, 0))
    assert found == f"scheduler-1: no sign of life for {SILENT_SECONDS} s"


def test_of_ranks_that_are_stuck_the_one_that_got_least_far_is_named() -> None:
    assert watch(ranks({}), STUCK_SECONDS, scheduler_0=(9, 0), scheduler_1=(8, 0)) is None
    found = watch(ranks({}), STUCK_SECONDS + 1, scheduler_0=(9, 0), scheduler_1=(8, 0))
    assert found == f"scheduler-1: stuck in a step for {STUCK_SECONDS} s"
    found = watch(ranks({}), STUCK_SECONDS + 1, scheduler_0=(9, 0), scheduler_1=(9, 0))
    assert found == f"scheduler-0, scheduler-1: stuck in a step for {STUCK_SECONDS} s"


def test_ranks_that_get_on_or_still_load_do_not_hang() -> None:
    assert watch(ranks({}), 2 * STUCK_SECONDS, scheduler_0=(0, 1), scheduler_1=(0, 3)) is None
    assert watch(ranks({}, loaded=False), 2 * STUCK_SECONDS) is None


def test_a_worker_that_was_suspended_as_a_whole_does_not_hang() -> None:
    clock = Clock()
    readiness = Readiness(("scheduler-0",), clock)
    readiness.heard(Heartbeat(process="scheduler-0", rounds=1))
    clock.now += 10 * STUCK_SECONDS
    assert readiness.hanging() is None


def test_a_rank_whose_loop_stands_still_is_not_ready() -> None:
    clock = Clock()
    readiness = Readiness(("scheduler-0",), clock)
    readiness.heard(SchedulerReady(limits=LIMITS, phases={}))
    readiness.heard(Heartbeat(process="scheduler-0", rounds=5))
    clock.now += FRESH_SECONDS + 1
    readiness.heard(Heartbeat(process="scheduler-0", rounds=5))
    assert readiness.reason() == "no sign of life from scheduler-0 (31 s)"
    readiness.heard(Heartbeat(process="scheduler-0", rounds=6))
    assert readiness.reason() is None
