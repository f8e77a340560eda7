"""Requests with a grammar among others: their tokens, their steps, and what the others notice of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core.batch import Batch, Executor, PendingStep, StepScores
from minisgl.core.config import EngineLimits, SchedulerConfig
from minisgl.core.sampling import SamplingParams
from minisgl.grammar.pool import MatcherPool
from minisgl.message import Abort, GrammarBuilt, MasksBuilt, NewRequest, Round, StepTokens
from minisgl.scheduler.loop import MOST_PATIENCE, Endpoint, normal_loop, overlap_loop
from minisgl.scheduler.scheduler import Scheduler
from support.fake_engine import FakeEngine, reference
from support.grammars import COMPILER, EOS, GRAMMARS, constrained, text_of

Message = NewRequest | Abort | GrammarBuilt | MasksBuilt
Loop = Callable[[Scheduler, Executor, Endpoint], None]

TOLD: SimpleQueue[int] = SimpleQueue()
"""Numbers of the advances whose masks are known."""


class PromptPool(MatcherPool):
    """It does at once what is asked for."""

    def submit(self, job: Callable[[], None], **_: bool) -> None:
        job()


class LatePool(MatcherPool):
    """Its threads are late, now more and now less."""

    def submit(self, job: Callable[[], None], **which: bool) -> None:
        delay = random.random() * 0.003

        def late() -> None:
            time.sleep(delay)
            job()

        super().submit(late, **which)


POOL = PromptPool(lambda: COMPILER, None, TOLD.put)
THREADS = MatcherPool(lambda: COMPILER, None, TOLD.put)


class Script:
    """An endpoint that plays given rounds, one a loop, and keeps what each request got."""

    def __init__(self, rounds: list[list[Message]], *, listen: bool = True) -> None:
        """`listen`: rounds have what the pool tells, too."""
        self.rounds = list(rounds)
        self.played: list[list[Message]] = []
        self.outputs: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self._listen = listen
        self._awaits_masks = False

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:
        assert len(self.played) < 50_000, "the loop makes no progress"
        messages: list[Message] = []
        stop = False
        if self.rounds:
            messages = list(self.rounds.pop(0))
        elif block:
            stop = not (self._listen and self._awaits_masks)
            patience = 5.0
        if self._listen and self._awaits_masks:
            with suppress(Empty):
                messages.append(MasksBuilt(number=TOLD.get(timeout=patience)))
        self.played.append(messages)
        return Round(messages=messages, stop=stop)

    def send(self, scheduler: Scheduler) -> None:
        scheduler.check()
        self._awaits_masks = scheduler.awaits_masks
        output = scheduler.take_output() or StepTokens()
        for opened in output.opened:
            assert opened.uid not in self.outputs, "opened twice"
            self.outputs[opened.uid] = []
        for uid, token in zip(output.uids, output.tokens, strict=True):
            self.outputs[uid].append(token)
        for uid, reason in zip(output.finished_uids, output.finish_reasons, strict=True):
            assert uid not in self.reasons, "finished twice"
            self.reasons[uid] = reason


def request(
    uid: int,
    prompt: list[int],
    max_tokens: int,
    grammar: str = "",
    stop: Iterable[int] = (),
    *,
    ignore: bool = True,
    copies: int = 1,
) -> NewRequest:
    params = SamplingParams(
        max_tokens=max_tokens, seed=0, ignore_eos=ignore, grammar=grammar, stop_token_ids=tuple(stop)
    )
    return NewRequest(uid=uid, token_ids=prompt, params=params, copies=copies)


def build(
    *, num_pages: int = 64, page_size: int = 4, rows: int = 8, budget: int = 64, pool: Any = POOL
) -> tuple[Scheduler, FakeEngine]:
    limits = EngineLimits(
        num_pages=num_pages,
        page_size=page_size,
        max_seq_len=num_pages * page_size,
        max_running_requests=rows,
        vocab_size=50,
    )
    scheduler = Scheduler(SchedulerConfig(prefill_budget=budget), limits, [EOS], pool)
    return scheduler, FakeEngine(num_pages=num_pages, page_size=page_size, num_rows=rows)


def run(
    loop: Loop, rounds: list[list[Message]], *, listen: bool = True, **options: Any
) -> tuple[Script, list[Batch], Scheduler]:
    scheduler, engine = build(**options)
    script = Script(rounds, listen=listen)
    loop(scheduler, engine, script)
    stats = scheduler.stats
    assert (stats.running, stats.queued, stats.used_pages) == (0, 0, 0)
    assert scheduler.table.free_rows == scheduler.table.num_rows
    return script, engine.batches, scheduler


arrivals = st.lists(
    st.tuples(
        st.lists(st.integers(0, 49), min_size=1, max_size=20),
        st.integers(1, 24),
        st.sampled_from(["", "", *GRAMMARS]),
        st.sampled_from([(), (), (49,), (3, 44)]),
        st.integers(0, 3),
        st.integers(1, 4),
        st.none() | st.integers(0, 12),
        st.sampled_from([1, 1, 3]),
    ),
    min_size=1,
    max_size=12,
)
Arrivals = list[tuple[list[int], int, str, tuple[int, ...], int, int, int | None, int]]


def rounds_of(load: Arrivals) -> list[list[Message]]:
    """Request i, and its copies, have the ids from ``10 * i``. The first of them is aborted."""
    rounds: list[list[Message]] = [[] for _ in range(60)]
    when = 0
    for index, (prompt, max_tokens, grammar, stop, gap, read, abort, copies) in enumerate(load):
        when += gap
        uid = 10 * index
        rounds[when].append(request(uid, prompt, max_tokens, grammar, stop, copies=copies))
        if grammar:
            rounds[when + read].append(GrammarBuilt(uid=uid))
        if abort is not None:
            rounds[when + abort].append(Abort(uid=uid))
    return rounds


@settings(max_examples=70)
@given(
    load=arrivals,
    pool_tokens=st.sampled_from([48, 96, 512]),
    page_size=st.sampled_from([1, 4]),
    budget=st.sampled_from([3, 16, 64]),
    rows=st.sampled_from([2, 8]),
    overlap=st.booleans(),
    pool=st.sampled_from([POOL, THREADS]),
)
def test_every_answer_is_what_its_own_matcher_allows(
    load: Arrivals, pool_tokens: int, page_size: int, budget: int, rows: int, overlap: bool, pool: MatcherPool
) -> None:
    """Arrivals, aborts and retractions at random: grammars and free texts do not change each other's tokens."""
    script, _, _ = run(
        overlap_loop if overlap else normal_loop,
        rounds_of(load),
        num_pages=pool_tokens // page_size,
        page_size=page_size,
        rows=rows,
        budget=budget,
        pool=pool,
    )
    expected = {}
    for index, (prompt, max_tokens, grammar, stop, _, _, abort, copies) in enumerate(load):
        stop_ids = frozenset(stop)
        free = [] if grammar else reference(prompt, max_tokens, stop_ids)
        answer = constrained(prompt, max_tokens, grammar, stop_ids) if grammar else free
        ends = stop_ids | {EOS} if grammar else stop_ids
        for copy in range(copies):
            expected[10 * index + copy] = answer, ends, abort is not None and copy == 0
    assert script.reasons.keys() == expected.keys()
    for uid, (answer, ends, aborted) in expected.items():
        got = script.outputs.get(uid, [])
        if script.reasons[uid] == "abort":
            assert aborted and got == answer[: len(got)]
        else:
            assert got == answer
            assert script.reasons[uid] == ("stop" if got[-1] in ends else "length")


@settings(max_examples=10)
@given(load=arrivals, pool_tokens=st.sampled_from([48, 512]), rows=st.sampled_from([2, 8]))
def test_ranks_form_the_same_batches_whatever_their_threads_do(
    load: Arrivals, pool_tokens: int, rows: int
) -> None:
    """Rank 0's threads say when masks are known; another's may be later, and it waits for them."""
    sizes: dict[str, Any] = {"num_pages": pool_tokens // 4, "rows": rows}
    first = LatePool(lambda: COMPILER, None, TOLD.put)
    script, batches, _ = run(overlap_loop, rounds_of(load), pool=first, **sizes)
    other = LatePool(lambda: COMPILER)
    assert run(overlap_loop, script.played, listen=False, pool=other, **sizes)[1] == batches


def test_a_grammar_alone_takes_no_step_in_vain() -> None:
    script, batches, _ = run(overlap_loop, [[request(0, [1], 9, GRAMMARS[3])], [GrammarBuilt(uid=0)]])
    assert len(batches) == len(script.outputs[0]) <= 9


def test_grammars_alone_decode_in_one_step_also_when_they_came_apart() -> None:
    rounds: list[list[Message]] = [[request(0, [1], 60, "start: /[c-e]{60}/")], [GrammarBuilt(uid=0)], [], [], []]
    rounds += [[request(1, [2], 60, "start: /[c-e]{60}/"), GrammarBuilt(uid=1)]]
    for shift in (0, 1):
        _, batches, _ = run(overlap_loop, [[] for _ in range(shift)] + rounds)
        late = batches[-70:]
        assert max(len(batch.decode_rows) for batch in late) == 2
        both = [len(batch.decode_rows) for batch in batches if not batch.prefill]
        alone = sum(count == 1 for count in both)
        assert alone < 12, "the two go on in turns"


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
def test_those_that_wait_for_others_are_not_starved_by_arrivals(loop: Loop) -> None:
    grammar = "start: /[c-e]{9}/"
    rounds: list[list[Message]] = [[request(0, [1], 9, grammar), GrammarBuilt(uid=0)]]
    rounds += [[request(uid, [2], 1, grammar), GrammarBuilt(uid=uid)] for uid in range(1, 40)]
    script, batches, _ = run(loop, rounds, rows=16)
    last = max(index for index, batch in enumerate(batches) if 0 in batch.decode_rows)
    assert script.reasons[0] == "length" and last <= 4 * 9


def test_others_decode_in_every_step_while_a_grammar_sits_one_out() -> None:
    free: list[Message] = [request(uid, [uid, 1], 40) for uid in range(3)]
    guided: list[Message] = [request(9, [5], 30, "start: /[c-e]{30}/")]
    _, alone, _ = run(overlap_loop, [free])
    script, mixed, _ = run(overlap_loop, [free, guided, [GrammarBuilt(uid=9)]])
    assert [batch.decode_rows for batch in alone[1:]] == [
        [row for row in batch.decode_rows if row < 3] for batch in mixed[1 : len(alone)]
    ]
    steps = [index for index, batch in enumerate(mixed) if 3 in batch.decode_rows]
    assert {later - earlier for earlier, later in pairwise(steps) if later < len(alone)} == {2}
    assert len(script.outputs[9]) == 30


class HeldPool(MatcherPool):
    """Its threads work out masks when they are let."""

    def __init__(self) -> None:
        super().__init__(lambda: COMPILER, None, TOLD.put)
        self.held: list[Callable[[], None]] = []
        self.holds = False

    def submit(self, job: Callable[[], None], **_: bool) -> None:
        if self.holds:
            self.held.append(job)
        else:
            job()


def state(scheduler: Scheduler) -> tuple[bool, bool]:
    return scheduler.awaits_masks, scheduler.has_work


def test_free_texts_do_not_wait_for_masks_and_grammars_go_on_when_they_are_there() -> None:
    pool = HeldPool()
    scheduler, engine = build(pool=pool)
    scheduler.handle(request(0, [1], 40))
    scheduler.handle(request(1, [2], 40, "start: /[c-e]{60}/"))
    pool.holds = True
    scheduler.handle(GrammarBuilt(uid=1))

    def step() -> list[int]:
        made = scheduler.schedule()
        assert made is not None
        scheduler.complete(made, engine.launch(made.batch).tokens())
        return [each.uid for each in made.requests]

    assert [step() for _ in range(6)] == [[0, 1], *[[0]] * 5]
    assert state(scheduler) == (True, True)
    for job in pool.held:
        job()
    assert step() == [0], "whatever this rank's threads have done, all ranks must be told"
    scheduler.handle(MasksBuilt(number=TOLD.get(timeout=5)))
    assert state(scheduler) == (False, True)
    assert step() == [0, 1]


def test_a_loop_may_wait_where_all_wait_for_masks() -> None:
    pool = HeldPool()
    scheduler, engine = build(pool=pool)
    scheduler.handle(request(0, [1], 40, "start: /[c-e]{60}/"))
    pool.holds = True
    scheduler.handle(GrammarBuilt(uid=0))
    made = scheduler.schedule()
    assert made is not None
    scheduler.complete(made, engine.launch(made.batch).tokens())
    assert state(scheduler) == (True, False)
    assert scheduler.schedule() is None
    for job in pool.held:
        job()
    scheduler.handle(MasksBuilt(number=TOLD.get(timeout=5)))
    assert state(scheduler) == (False, True)
    assert scheduler.schedule() is not None


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
def test_no_chore_is_done_between_two_tokens(loop: Loop) -> None:
    scheduler, engine = build(pool=THREADS)
    running: list[int] = []

    def idle() -> bool:
        running.append(scheduler.stats.running)
        return True

    engine.idle = idle  # type: ignore[method-assign]
    script = Script([[request(0, [1], 30, "start: /[c-e]{60}/"), GrammarBuilt(uid=0)]])

    class Ending(Script):
        def receive(self, *, block: bool, patience: float = 0.0) -> Round:
            return script.receive(block=block or 0 in script.reasons, patience=patience)

        def send(self, scheduler: Scheduler) -> None:
            script.send(scheduler)

    loop(scheduler, engine, Ending([]))
    assert len(script.outputs[0]) == 30 and not any(running)


class Device:
    """An executor of which either the launches or the steps take ten milliseconds."""

    def __init__(self, engine: Executor, *, launches: bool) -> None:
        self._engine = engine
        self._launches = launches
        self._free = 0.0

    def launch(self, batch: Batch) -> PendingStep:
        if self._launches:
            time.sleep(0.01)
            return self._engine.launch(batch)
        pending = self._engine.launch(batch)
        self._free = end = max(self._free, time.perf_counter()) + 0.01

        class Pending:
            def tokens(self) -> list[int]:
                time.sleep(max(end - time.perf_counter(), 0))
                return pending.tokens()

            def scores(self) -> StepScores | None:
                return pending.scores()

        return Pending()

    def idle(self) -> bool:
        return self._engine.idle()


@pytest.mark.parametrize("launches", [False, True], ids=["a slow device", "a slow host"])
def test_masks_are_waited_for_while_there_is_time_to_spare(launches: bool) -> None:
    patiences: list[float] = []

    class Impatient(Script):
        def receive(self, *, block: bool, patience: float = 0.0) -> Round:
            patiences.append(patience)
            return super().receive(block=block, patience=patience)

    scheduler, engine = build(pool=THREADS)
    rounds: list[list[Message]] = [[request(0, [1], 30), request(1, [2], 30, "start: /[c-e]{60}/")]]
    overlap_loop(scheduler, Device(engine, launches=launches), Impatient([*rounds, [GrammarBuilt(uid=1)]]))
    assert min(patiences) == 0 and max(patiences) <= MOST_PATIENCE
    usual = median(patience for patience in patiences if patience)
    assert usual < 0.002 if launches else usual > 0.004


def test_a_step_without_a_grammar_says_nothing_of_masks() -> None:
    _, batches, _ = run(overlap_loop, [[request(0, [1], 5), request(1, [2], 5)]])
    assert all(batch.masks == [] for batch in batches)


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
def test_a_retracted_answer_goes_on_where_it_was(loop: Loop) -> None:
    grammar = "start: /[c-e]{50}/"
    load: list[Message] = [request(uid, [uid, 1, 2, 3], 50, grammar if uid % 2 else "") for uid in range(6)]
    load += [GrammarBuilt(uid=uid) for uid in (1, 3, 5)]
    script, _, scheduler = run(loop, [load], num_pages=24)
    assert scheduler.stats.retractions > 0
    for uid in range(6):
        prompt = [uid, 1, 2, 3]
        expected = constrained(prompt, 50, grammar, frozenset()) if uid % 2 else reference(prompt, 50)
        assert script.outputs[uid] == expected


@pytest.mark.parametrize("ignore", [True, False])
def test_a_complete_answer_ends_with_stop(ignore: bool) -> None:
    asked = request(0, [3], 50, "start: /abc/", ignore=ignore)
    script, _, _ = run(overlap_loop, [[asked], [GrammarBuilt(uid=0)]])
    assert script.reasons == {0: "stop"}
    assert text_of(script.outputs[0]) == "abc<end>"


def test_a_stop_token_ends_an_answer_where_it_may_end_and_nowhere_else() -> None:
    stop = 49
    asked = [request(uid, [uid], 30, "start: /(abc){4}[de]*/", [stop]) for uid in range(20)]
    built = [GrammarBuilt(uid=uid) for uid in range(20)]
    script, _, _ = run(overlap_loop, [[*asked, *built]], rows=20, num_pages=200)
    ends = {output[-1] for output in script.outputs.values()}
    assert ends == {stop, EOS}
    for output in script.outputs.values():
        assert text_of(output).startswith("abcabcabcabc") and stop not in output[:-1]


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
def test_an_abort_while_the_grammar_is_read(loop: Loop) -> None:
    rounds: list[list[Message]] = [[request(0, [1], 5, GRAMMARS[1])], [Abort(uid=0)], [GrammarBuilt(uid=0)]]
    script, batches, _ = run(loop, rounds)
    assert script.reasons == {0: "abort"} and batches == []


def test_an_unread_grammar_lets_the_loop_wait() -> None:
    scheduler, _ = build()
    scheduler.handle(request(0, [1], 5, GRAMMARS[1]))
    assert not scheduler.has_work and scheduler.stats.queued == 1
    assert scheduler.schedule() is None
    scheduler.handle(GrammarBuilt(uid=0))
    assert scheduler.has_work


class FailingPool:
    """Its matchers allow everything, until they fail."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.advances = 0

    def advance(self, answers: list[tuple[Any, int]]) -> int:
        for matcher, _ in answers:
            matcher.left -= 1
        self.advances += 1
        TOLD.put(self.advances)
        return self.advances

    def start(self, *_: Any, copies: int) -> list[Any]:
        pool = self

        class Failing:
            left = pool.after

            def mask(self) -> bytes | None:
                return b"\xff" * 8 if self.left > 0 else None

        return [Failing() for _ in range(copies)]


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_matcher_that_fails_ends_its_own_request(loop: Loop, after: int) -> None:
    rounds: list[list[Message]] = [[request(0, [1], 20, "start: x", ignore=True), request(1, [2], 20)]]
    rounds.append([GrammarBuilt(uid=0)])
    script, _, _ = run(loop, rounds, pool=FailingPool(after))
    assert script.reasons == {0: "grammar", 1: "length"}
    assert len(script.outputs[0]) == after, "opened, even if there is no token"
    assert script.outputs[1] == reference([2], 20)


@pytest.mark.parametrize("loop", [normal_loop, overlap_loop])
def test_copies_whose_matchers_fail_all_end(loop: Loop) -> None:
    rounds: list[list[Message]] = [[request(0, [1], 20, "start: x", copies=3)], [GrammarBuilt(uid=0)]]
    for after in (0, 2):
        script, _, _ = run(loop, rounds, pool=FailingPool(after))
        assert script.reasons == dict.fromkeys(range(3), "grammar")
