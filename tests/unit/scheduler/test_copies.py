"""Several answers to one prompt, and what requests ask for beside their tokens: nobody's is lost or another's."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core.batch import Batch, TokenScore
from minisgl.core.config import EngineLimits, SchedulerConfig
from minisgl.core.sampling import SamplingParams
from minisgl.message import Abort, NewRequest, Round, StepTokens
from minisgl.message.types import Opened
from minisgl.scheduler.loop import normal_loop, overlap_loop
from minisgl.scheduler.scheduler import Scheduler
from support.fake_engine import FakeEngine, fake_score, reference

Rounds = list[list[NewRequest | Abort]]


@dataclass
class Listener:
    """Plays rounds, and keeps what is said of each request."""

    rounds: Rounds
    opened: dict[int, Opened] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    scores: dict[int, list[TokenScore]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    queued: list[int] = field(default_factory=list)
    """After each round."""

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:  # noqa: ARG002
        assert len(self.queued) < 5000, "the loop makes no progress"
        if self.rounds:
            return Round(messages=[*self.rounds.pop(0)])
        return Round(messages=[], stop=block)

    def send(self, scheduler: Scheduler) -> None:
        scheduler.check()
        self.queued.append(scheduler.stats.queued)
        output = scheduler.take_output() or StepTokens()
        for opened in output.opened:
            assert opened.uid not in self.opened
            self.opened[opened.uid] = opened
        scores = dict(zip(output.scored, output.scores, strict=True))
        for place, (uid, token) in enumerate(zip(output.uids, output.tokens, strict=True)):
            assert uid in self.opened and uid not in self.reasons
            self.tokens.setdefault(uid, []).append(token)
            if place in scores:
                self.scores.setdefault(uid, []).append(scores.pop(place))
        assert not scores
        for uid, reason in zip(output.finished_uids, output.finish_reasons, strict=True):
            assert uid not in self.reasons, "finished twice"
            self.reasons[uid] = reason


def play(
    rounds: Rounds, *, overlap: bool = True, num_pages: int = 64, rows: int = 8, budget: int = 16
) -> tuple[Listener, list[Batch], Scheduler]:
    limits = EngineLimits(
        num_pages=num_pages, page_size=4, max_seq_len=num_pages * 4, max_running_requests=rows, vocab_size=50
    )
    scheduler = Scheduler(SchedulerConfig(prefill_budget=budget), limits, [])
    engine = FakeEngine(num_pages=num_pages, page_size=4, num_rows=rows)
    listener = Listener([list(messages) for messages in rounds])
    (overlap_loop if overlap else normal_loop)(scheduler, engine, listener)
    stats = scheduler.stats
    assert (stats.running, stats.queued, stats.used_pages) == (0, 0, 0)
    return listener, engine.batches, scheduler


def request(uid: int, prompt: list[int], max_tokens: int = 6, *, copies: int = 1, **params: object) -> NewRequest:
    given = SamplingParams(max_tokens=max_tokens, **({"seed": 5} | params))  # type: ignore[arg-type]
    return NewRequest(uid=uid, token_ids=prompt, params=given, copies=copies, shown=uid % (len(prompt) + 1))


asking = st.fixed_dictionaries(
    {
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "logprobs": st.just(2),
        "prompt_logprobs": st.booleans(),
    }
) | st.fixed_dictionaries({"frequency_penalty": st.sampled_from([0.0, 1.0])})
groups = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=30),
        st.integers(1, 4),
        st.integers(1, 14),
        st.integers(0, 3),
        asking,
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10)), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=120, deadline=None)
@given(
    groups=groups,
    overlap=st.booleans(),
    num_pages=st.sampled_from([12, 16, 64]),
    rows=st.sampled_from([1, 3, 8]),
    budget=st.sampled_from([3, 16, 200]),
)
def test_every_copy_gets_what_it_asked_for(
    groups: list[tuple[list[int], int, int, int, dict[str, object], list[tuple[int, int]]]],
    overlap: bool,
    num_pages: int,
    rows: int,
    budget: int,
) -> None:
    """Random arrivals and aborts in small pools: the fake engine's scores tell any wrong token or place."""
    rounds: Rounds = [[] for _ in range(40)]
    asked: dict[int, NewRequest] = {}
    aborted: set[int] = set()
    when = 0
    for number, (prompt, copies, max_tokens, gap, params, aborts) in enumerate(groups):
        when += gap
        new = request(10 * number, prompt, max_tokens, copies=copies, **params)
        rounds[when].append(new)
        asked |= {new.uid + copy: new for copy in range(copies)}
        for copy, after in aborts:
            rounds[when + after].append(Abort(uid=new.uid + copy))
            aborted.add(new.uid + copy)
    options = {"num_pages": num_pages, "rows": rows, "budget": budget}
    heard, batches, _ = play(rounds, overlap=overlap, **options)
    assert heard.reasons.keys() == asked.keys()
    for uid, new in asked.items():
        prompt, wishes = new.token_ids, new.params
        expected, got = reference(prompt, wishes.max_tokens or 0), heard.tokens.get(uid, [])
        if heard.reasons[uid] == "abort":
            assert uid in aborted and got == expected[: len(got)]
        else:
            assert heard.reasons[uid] == "length" and got == expected
        if uid in heard.opened:
            opened = heard.opened[uid]
            first = len(prompt) - new.shown
            assert (opened.prompt_tokens, opened.shown) == (len(prompt), prompt[first:])
            places = range(first + 1, len(prompt))
            wanted = [fake_score(prompt[:place], prompt[place], 2) for place in places]
            assert opened.prompt_scores == (wanted if wishes.prompt_logprobs else None)
        known = [prompt + got[:place] for place in range(len(got))]
        scores = [fake_score(before, token, 2) for before, token in zip(known, got, strict=True)]
        assert heard.scores.get(uid, []) == (scores if wishes.logprobs is not None else [])
    assert play(rounds, overlap=overlap, **options)[1] == batches, "another rank forms other batches"


@pytest.mark.parametrize("overlap", [False, True])
def test_a_prompt_is_read_once_for_all_copies(overlap: bool) -> None:
    prompt = list(range(40))
    heard, batches, _ = play([[request(0, prompt, copies=4), request(9, [1, 2])]], overlap=overlap, budget=16)
    lengths = [[len(chunk.tokens) for chunk in batch.prefill] for batch in batches if batch.prefill]
    assert lengths == [[16], [16], [8, 2], [4, 4, 4]], "the others read the last page, when the first has read all"
    assert [heard.opened[uid].cached_tokens for uid in range(4)] == [0, 36, 36, 36]
    assert heard.queued[:3] == [4, 4, 3]
    assert list(heard.opened) == [0, 9, 1, 2, 3]


def test_each_copy_has_a_seed_of_its_own() -> None:
    _, batches, _ = play([[request(0, [1, 2, 3], copies=3, seed=2**63 - 2)]])
    assert [join.params.seed for batch in batches for join in batch.joined] == [2**63 - 2, 2**63 - 1, 0]


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("aborted", [[0], [0, 1], [2], [2, 1, 0], [0, 2, 1]])
def test_whoever_is_aborted_first_the_others_are_answered(aborted: list[int], after: int) -> None:
    rounds: Rounds = [[request(0, list(range(30)), 9, copies=3)], *[[] for _ in range(after)]]
    rounds += [[Abort(uid=uid)] for uid in aborted]
    heard, _, _ = play(rounds, budget=8)
    assert heard.reasons == {uid: "abort" if uid in aborted else "length" for uid in range(3)}
    assert all(heard.tokens[uid] == reference(list(range(30)), 9) for uid in range(3) if uid not in aborted)


def test_when_the_reader_leaves_the_next_copy_reads_the_prompt() -> None:
    prompt = list(range(32))
    rounds: Rounds = [[request(0, prompt, copies=3)], [Abort(uid=0)]]
    _, batches, _ = play(rounds, budget=8)
    assert sum(len(chunk.tokens) for batch in batches for chunk in batch.prefill) == 32 + 4


def test_what_can_never_run_is_ended_with_all_its_copies() -> None:
    heard, batches, _ = play([[request(0, [], copies=3), request(5, [1] * 60, 9, copies=2)]], num_pages=16)
    assert heard.reasons == dict.fromkeys((0, 1, 2, 5, 6), "abort")
    assert not batches


def test_prompt_scores_are_computed_although_the_prompt_is_cached_and_once_for_all_copies() -> None:
    prompt = [*range(33)]
    first = request(33, prompt, 2)
    asking = msgspec.structs.replace(
        request(70, prompt, 2, copies=2, logprobs=0, prompt_logprobs=True), shown=len(prompt)
    )
    heard, batches, _ = play([[first], [], [], [], [], [], [], [asking]], budget=16)
    targets = [token for batch in batches for chunk in batch.prefill for token in chunk.targets]
    assert targets == prompt[1:]
    for uid, cached in ((70, 0), (71, 32)):
        assert heard.opened[uid].shown == prompt
        assert heard.opened[uid].prompt_scores == [fake_score(prompt[:n], n, 0) for n in range(1, 33)]
        assert heard.opened[uid].cached_tokens == cached
