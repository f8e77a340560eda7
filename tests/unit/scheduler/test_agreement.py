"""Ranks that compare their steps: equal ones go on, and one that differs says so before it launches anything."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from minisgl.core.config import EngineLimits, SchedulerConfig
from minisgl.core.sampling import SamplingParams
from minisgl.message import Abort, NewRequest, StepDigest
from minisgl.scheduler.agreement import ComparedScheduler, RanksDiffer
from minisgl.scheduler.scheduler import Scheduler
from support.fake_engine import FakeEngine

LIMITS = EngineLimits(num_pages=24, page_size=4, max_seq_len=96, max_running_requests=6, vocab_size=50)
Message = NewRequest | Abort
Change = Callable[[int, list[Message], Scheduler], None]


def new(uid: int, prompt: list[int], *, seed: int = 0) -> NewRequest:
    params = SamplingParams(max_tokens=12, temperature=0.5, seed=seed, ignore_eos=True)
    return NewRequest(uid=uid, token_ids=prompt, params=params)


def nothing(_when: int, _messages: list[Message], _scheduler: Scheduler) -> None:
    pass


def ranks(rounds: list[list[Message]], change: Change, *, flip_at: int = -1) -> int:
    """Play `rounds` to two ranks, the second with a `change` or, at a step, a wrong token; returns the steps."""
    told: deque[StepDigest] = deque()

    def tell(digest: StepDigest) -> StepDigest:
        told.append(digest)
        return digest

    config = SchedulerConfig(prefill_budget=16)
    schedulers = [
        ComparedScheduler(config, LIMITS, [7], rank=0, exchange=tell),
        ComparedScheduler(config, LIMITS, [7], rank=1, exchange=lambda _: told.popleft()),
    ]
    engines = [FakeEngine(num_pages=24, page_size=4, num_rows=6) for _ in schedulers]
    for when, messages in enumerate(rounds):
        for rank, (scheduler, engine) in enumerate(zip(schedulers, engines, strict=True)):
            heard = list(messages)
            if rank == 1:
                change(when, heard, scheduler)
            for message in heard:
                scheduler.handle(message)
            step = scheduler.schedule()
            if step is not None:
                tokens = engine.launch(step.batch).tokens()
                if rank == 1 and when == flip_at:
                    tokens[-1] += 1
                scheduler.complete(step, tokens)
    assert not told
    return schedulers[1].stats.steps


def random_rounds(seed: int) -> list[list[Message]]:
    draw = random.Random(seed)
    rounds: list[list[Message]] = [[] for _ in range(160)]
    for uid in range(40):
        when = draw.randrange(60)
        prompt = list(range(draw.randrange(12))) + [draw.randrange(50) for _ in range(draw.randrange(1, 30))]
        rounds[when].append(new(uid, prompt, seed=uid))
        if draw.random() < 0.3:
            rounds[when + draw.randrange(40)].append(Abort(uid=uid))
    return rounds


@pytest.mark.parametrize("seed", range(5))
def test_equal_ranks_go_on(seed: int) -> None:
    assert ranks(random_rounds(seed), nothing) > 100


def _another_seed(when: int, messages: list[Message], _scheduler: Scheduler) -> None:
    if when == 2:
        first = messages[0]
        assert isinstance(first, NewRequest)
        messages[0] = msgspec.structs.replace(first, params=msgspec.structs.replace(first.params, seed=1))


def _another_prompt(when: int, messages: list[Message], _scheduler: Scheduler) -> None:
    if when == 2:
        messages[0] = new(1, [9, 8, 6])


def _another_page(when: int, _messages: list[Message], scheduler: Scheduler) -> None:
    if when == 2:
        scheduler.cache.allocate(1)


def _a_missed_request(when: int, messages: list[Message], _scheduler: Scheduler) -> None:
    if when == 2:
        messages.clear()


def _a_missed_abort(when: int, messages: list[Message], _scheduler: Scheduler) -> None:
    if when == 4:
        messages.clear()


def _an_early_abort(when: int, messages: list[Message], _scheduler: Scheduler) -> None:
    """It leaves rank 1 with nothing to launch, while rank 0 launches a step."""
    if when == 1:
        messages.append(Abort(uid=0))


ROUNDS: list[list[Message]] = [[new(0, [1, 2, 3])], [], [new(1, [9, 8, 7])], [], [Abort(uid=0)], [], []]


@pytest.mark.parametrize(
    ("change", "step", "parts"),
    [
        (_another_seed, 3, "joined"),
        (_another_prompt, 3, "prefill"),
        (_another_page, 3, "pages"),
        (_a_missed_request, 3, "joined, pages, prefill, requests"),
        (_a_missed_abort, 5, "pages, decode_rows, decode_lengths, requests"),
        (_an_early_abort, 2, "decode_rows, decode_lengths, requests"),
    ],
)
def test_a_different_rank_is_named_with_the_step_and_what_differs(change: Change, step: int, parts: str) -> None:
    with pytest.raises(RanksDiffer) as raised:
        ranks(ROUNDS, change)
    assert str(raised.value) == f"rank 1 differs from rank 0 at step {step}: {parts}"


def test_a_token_that_only_one_rank_sampled_is_found_at_the_next_step() -> None:
    with pytest.raises(RanksDiffer, match=r"^rank 1 differs from rank 0 at step 3: sampled tokens$"):
        ranks(ROUNDS, nothing, flip_at=1)
