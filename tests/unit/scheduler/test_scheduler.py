"""The scheduler and its loops, with an executor whose tokens are right only if all the bookkeeping is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core.batch import Batch, Executor
from minisgl.core.config import CacheType, EngineLimits, SchedulerConfig
from minisgl.core.request import IllegalMove, Request, State
from minisgl.core.sampling import SamplingParams
from minisgl.message import Abort, NewRequest, Round, StepTokens
from minisgl.scheduler.loop import Endpoint, normal_loop, overlap_loop
from minisgl.scheduler.prefill import MAX_BYPASSES
from minisgl.scheduler.scheduler import Scheduler
from support.fake_engine import FakeEngine, next_token, reference

EOS = 7
Loop = Callable[[Scheduler, Executor, Endpoint], None]


@dataclass
class Script:
    """An endpoint that plays given rounds, one a loop, and keeps what each request got."""

    rounds: list[list[NewRequest | Abort]]
    outputs: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    finished_at: dict[int, int] = field(default_factory=dict)
    loops: int = 0
    most_running: int = 0

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:  # noqa: ARG002
        self.loops += 1
        assert self.loops < 20_000, "the loop makes no progress"
        if self.rounds:
            return Round(messages=[*self.rounds.pop(0)])
        return Round(messages=[], stop=block)

    def send(self, scheduler: Scheduler) -> None:
        scheduler.check()
        self.most_running = max(self.most_running, scheduler.stats.running)
        output = scheduler.take_output() or StepTokens()
        for opened in output.opened:
            assert opened.uid not in self.outputs, "opened twice"
            self.outputs[opened.uid] = []
            self.cached[opened.uid] = opened.cached_tokens
        for uid, token in zip(output.uids, output.tokens, strict=True):
            assert uid not in self.reasons, "a token after the end"
            self.outputs[uid].append(token)
        for uid, reason in zip(output.finished_uids, output.finish_reasons, strict=True):
            assert uid not in self.reasons, "finished twice"
            self.reasons[uid] = reason
            self.finished_at[uid] = self.loops


def request(uid: int, prompt: list[int], max_tokens: int, *, ignore_eos: bool = False) -> NewRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=ignore_eos)
    return NewRequest(uid=uid, token_ids=prompt, params=params)


def build(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    rows: int = 8,
    budget: int = 32,
    cache: CacheType = "radix",
    max_seq_len: int | None = None,
) -> tuple[Scheduler, FakeEngine]:
    limits = EngineLimits(
        num_pages=num_pages,
        page_size=page_size,
        max_seq_len=max_seq_len or num_pages * page_size,
        max_running_requests=rows,
        vocab_size=50,
    )
    scheduler = Scheduler(SchedulerConfig(cache=cache, prefill_budget=budget), limits, [EOS])
    return scheduler, FakeEngine(num_pages=num_pages, page_size=page_size, num_rows=rows)


def assert_idle(scheduler: Scheduler) -> None:
    """Nothing is left of anybody."""
    stats = scheduler.stats
    assert (stats.running, stats.queued, stats.used_pages) == (0, 0, 0)
    assert scheduler.table.free_rows == scheduler.table.num_rows


prompts = st.builds(
    lambda shared, own: list(range(20))[:shared] + own,
    st.integers(0, 20),
    st.lists(st.integers(0, 49), min_size=1, max_size=24),
)
arrivals = st.lists(
    st.tuples(prompts, st.integers(1, 20), st.booleans(), st.integers(0, 4), st.none() | st.integers(0, 12)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=250, deadline=None)
@given(
    arrivals=arrivals,
    page_size=st.sampled_from([1, 4, 16]),
    pool_tokens=st.sampled_from([64, 96, 512]),
    budget=st.sampled_from([3, 8, 32, 512]),
    rows=st.sampled_from([1, 3, 8]),
    cache=st.sampled_from(["radix", "naive"]),
    overlap=st.booleans(),
)
def test_every_request_gets_its_own_tokens(
    arrivals: list[tuple[list[int], int, bool, int, int | None]],
    page_size: int,
    pool_tokens: int,
    budget: int,
    rows: int,
    cache: CacheType,
    overlap: bool,
) -> None:
    """Random arrivals, aborts and pools: no request is lost, finished twice or given another's token."""
    scheduler, engine = build(
        num_pages=pool_tokens // page_size, page_size=page_size, rows=rows, budget=budget, cache=cache
    )
    rounds: list[list[NewRequest | Abort]] = [[] for _ in range(80)]
    when = 0
    for uid, (prompt, max_tokens, ignore_eos, gap, abort_after) in enumerate(arrivals):
        when += gap
        rounds[when].append(request(uid, prompt, max_tokens, ignore_eos=ignore_eos))
        if abort_after is not None:
            rounds[when + abort_after].append(Abort(uid=uid))
    script = Script(rounds)
    (overlap_loop if overlap else normal_loop)(scheduler, engine, script)

    assert_idle(scheduler)
    assert sorted(script.reasons) == list(range(len(arrivals)))
    for uid, (prompt, max_tokens, ignore_eos, _, abort_after) in enumerate(arrivals):
        expected = reference(prompt, max_tokens, frozenset() if ignore_eos else frozenset({EOS}))
        got = script.outputs.get(uid, [])
        if script.reasons[uid] == "abort":
            assert abort_after is not None
            assert got == expected[: len(got)]
        else:
            assert got == expected
            assert script.reasons[uid] == ("stop" if got[-1] == EOS and not ignore_eos else "length")


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
def test_a_pool_too_small_for_the_load_finishes_by_retraction(loop: Loop) -> None:
    scheduler, engine = build(num_pages=24, page_size=4, rows=8)
    load: list[NewRequest | Abort] = [request(uid, [uid, 1, 2, 3], 60, ignore_eos=True) for uid in range(6)]
    script = Script([load])
    loop(scheduler, engine, script)
    assert scheduler.stats.retractions > 0
    assert script.outputs == {uid: reference([uid, 1, 2, 3], 60) for uid in range(6)}
    assert script.finished_at[0] == min(script.finished_at.values()), "the oldest is never the one retracted"


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
def test_work_for_spare_time_waits_for_requests_and_not_the_other_way_round(loop: Loop) -> None:
    scheduler, engine = build()
    engine.chores = 5
    script = Script([[], [], [request(0, [1, 2], 9, ignore_eos=True)], [], [request(1, [3], 9, ignore_eos=True)]])
    loop(scheduler, engine, script)
    steps = len(engine.batches)
    assert engine.idled_after == [0, 0, steps, steps, steps], "one a round; none in a round that brings a request"
    assert script.outputs == {0: reference([1, 2], 9), 1: reference([3], 9)}


def test_the_same_messages_give_the_same_batches() -> None:
    """Two ranks that hear the same rounds form the same batches in the same row order."""
    histories: list[list[Batch]] = []
    for _ in range(2):
        scheduler, engine = build(num_pages=20, page_size=4, rows=5, budget=16)
        rounds: list[list[NewRequest | Abort]] = [[request(n, list(range(n % 5, 9 + n)), 12)] for n in range(12)]
        rounds.append([Abort(uid=3), Abort(uid=11)])
        overlap_loop(scheduler, engine, Script(rounds))
        histories.append(engine.batches)
    assert histories[0] == histories[1]


def test_a_shared_prefix_is_computed_once() -> None:
    scheduler, engine = build(num_pages=64, page_size=4, rows=8, budget=256)
    shared = list(range(40))
    script = Script([[request(0, [*shared, 41], 2)], [], [request(1, [*shared, 42, 43], 2)]])
    normal_loop(scheduler, engine, script)
    assert script.cached == {0: 0, 1: 40}
    assert [sum(len(c.tokens) for c in b.prefill) for b in engine.batches if b.prefill] == [41, 2]


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    scheduler, engine = build(page_size=4)
    prompt = list(range(16))
    script = Script([[request(0, prompt, 1)], [], [], [request(1, prompt, 3)]])
    normal_loop(scheduler, engine, script)
    assert script.cached[1] == 12
    assert script.outputs[1] == reference(prompt, 3, frozenset({EOS}))


def test_the_budget_bounds_a_step_and_decodes_are_in_every_step() -> None:
    scheduler, engine = build(num_pages=256, page_size=4, rows=4, budget=16)
    script = Script([[request(0, [1, 2, 3], 40, ignore_eos=True)], [], [request(1, list(range(200)), 2)]])
    normal_loop(scheduler, engine, script)
    assert max(batch.num_tokens for batch in engine.batches) == 16
    first = next(i for i, b in enumerate(engine.batches) if len(b.prefill) and b.prefill[0].row == 1)
    mixed = [b for b in engine.batches[first:] if b.prefill]
    assert len(mixed) == 14, "200 tokens beside one decode, 15 a step"
    assert all(batch.decode_rows == [0] for batch in mixed)


def test_a_crowd_of_decodes_leaves_prefill_a_quarter_of_the_budget() -> None:
    scheduler, engine = build(num_pages=512, page_size=4, rows=40, budget=16)
    crowd: list[NewRequest | Abort] = [request(n, [n], 100, ignore_eos=True) for n in range(30)]
    script = Script([crowd, *[[] for _ in range(10)], [request(99, [5] * 40, 1)]])
    normal_loop(scheduler, engine, script)
    assert script.finished_at[99] < min(script.finished_at[n] for n in range(30))
    late = [len(b.prefill[0].tokens) for b in engine.batches if b.prefill and len(b.decode_rows) == 30]
    assert late == [4] * 10


def test_a_large_request_neither_blocks_small_ones_nor_starves() -> None:
    scheduler, engine = build(num_pages=32, page_size=4, rows=8, budget=256)
    rounds: list[list[NewRequest | Abort]] = [[request(0, [1, 2], 90, ignore_eos=True)], [], []]
    rounds.append([request(1, [9] * 100, 1)])  # fits only when nobody else runs
    small = 3 * MAX_BYPASSES
    rounds += [[request(100 + n, [n % 50, 3], 8, ignore_eos=True)] for n in range(small)]
    script = Script(rounds)
    normal_loop(scheduler, engine, script)
    finished = sorted(script.finished_at, key=lambda uid: script.finished_at[uid])
    place = finished.index(1)
    assert place > 0 and finished[0] >= 100, "small requests go past it"
    assert place <= MAX_BYPASSES + 9, "but not for ever"


def test_a_request_that_ends_has_one_dropped_token_in_flight() -> None:
    scheduler, engine = build()
    prompt = next(p for p in ([n, 1] for n in range(50)) if EOS in reference(p, 12))
    expected = reference(prompt, 12, frozenset({EOS}))
    script = Script([[request(0, prompt, 40)]])
    overlap_loop(scheduler, engine, script)
    assert script.outputs[0] == expected
    assert len(engine.batches) == len(expected) + 1


def test_an_end_by_length_launches_nothing_in_vain() -> None:
    scheduler, engine = build()
    overlap_loop(scheduler, engine, Script([[request(0, [1, 2], 5, ignore_eos=True)]]))
    assert len(engine.batches) == 5


def test_a_steady_decode_step_sends_only_its_rows() -> None:
    scheduler, engine = build(page_size=16, num_pages=16)
    overlap_loop(scheduler, engine, Script([[request(0, [1], 12, ignore_eos=True)]]))
    steady = engine.batches[1:]
    assert len(steady) == 11
    assert all(not (b.joined or b.pages or b.prefill) for b in steady)
    assert all(b.decode_rows is steady[0].decode_rows for b in steady)


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
@pytest.mark.parametrize("after", range(8))
def test_abort_in_every_state(loop: Loop, after: int) -> None:
    """Waiting, half read, in flight, decoding: the pages and the row are free after the abort's step."""
    scheduler, engine = build(num_pages=64, page_size=4, rows=1, budget=8)
    rounds: list[list[NewRequest | Abort]] = [[request(0, list(range(30)), 30, ignore_eos=True)]]
    rounds[0].append(request(1, [3, 1], 4, ignore_eos=True))
    rounds += [[] for _ in range(after)]
    rounds.append([Abort(uid=0), Abort(uid=12345)])
    script = Script(rounds)
    loop(scheduler, engine, script)
    assert_idle(scheduler)
    assert script.reasons == {0: "abort", 1: "length"}
    assert script.outputs[1] == reference([3, 1], 4)


def test_what_the_tokenizer_should_have_refused_is_ended_at_once() -> None:
    scheduler, engine = build(num_pages=4, page_size=4)
    bad = [request(0, [], 4), request(1, [1] * 10, 7), request(2, [1] * 16, 1), request(3, [1], 0)]
    script = Script([[*bad, request(4, [1] * 10, 6)]])
    normal_loop(scheduler, engine, script)
    assert script.reasons == {0: "abort", 1: "abort", 2: "abort", 3: "abort", 4: script.reasons[4]}
    assert script.outputs == {4: reference([1] * 10, 6, frozenset({EOS}))}


def test_illegal_moves_raise() -> None:
    r = Request(uid=1, prompt=[1], params=SamplingParams(), max_tokens=1, stop_ids=frozenset(), arrival=0)
    with pytest.raises(IllegalMove, match="request 1: waiting -> decode"):
        r.move(State.DECODE)
    r.move(State.FINISHED)
    with pytest.raises(IllegalMove):
        r.move(State.WAITING)


def test_the_fake_model_is_not_trivial() -> None:
    assert len({next_token([n]) for n in range(40)}) > 15
