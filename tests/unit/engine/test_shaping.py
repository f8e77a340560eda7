"""Bias, penalties and masks against plain Python, one row and one token at a time."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisgl.core.batch import Batch, Join, MaskWrite
from minisgl.core.sampling import SamplingParams
from minisgl.engine.rows import Rows
from minisgl.engine.shaping import MOST_BIASES

VOCAB = 75
CPU = torch.device("cpu")


def table(num_rows: int) -> Rows:
    return Rows(num_rows=num_rows, max_pages=1, page_size=16, vocab_size=VOCAB, device=CPU)


def by_hand(
    logits: list[float], params: SamplingParams, prompt: list[int], answer: list[int], allowed: set[int] | None
) -> list[float]:
    """What the logits of one row become."""
    bias, times = dict(params.logit_bias), Counter(answer)
    changed = []
    for token, logit in enumerate(logits):
        logit += bias.get(token, 0.0)
        if token in times or token in prompt:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * times[token] + params.presence_penalty * (token in times)
        changed.append(logit if allowed is None or token in allowed else float("-inf"))
    return changed


tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)
shapings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7]),
    top_k=st.sampled_from([0, 5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.8, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5).map(
        lambda bias: tuple(bias.items())
    ),
    grammar=st.sampled_from(["", "", "any"]),
    seed=st.integers(0, 2**63 - 1),
)
requests = st.lists(st.tuples(shapings, tokens, tokens), min_size=1, max_size=6)


def words(allowed: set[int]) -> bytes:
    mask = sum(1 << token for token in allowed)
    return mask.to_bytes(4 * -(-VOCAB // 32), "little")


@settings(max_examples=25, deadline=None)
@given(earlier=requests, requests=requests, seed=st.integers(0, 999))
def test_rows_choose_among_the_logits_worked_out_by_hand(
    earlier: list[tuple[SamplingParams, list[int], list[int]]],
    requests: list[tuple[SamplingParams, list[int], list[int]]],
    seed: int,
) -> None:
    """Some steps of each request, in rows that others left, beside the others and alone."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = table(8)
    used = draw.sample(range(8), len(requests))
    rows.update(Batch(joined=[join(row, *request) for row, request in enumerate(earlier)]))
    rows.update(Batch(joined=[join(row, *request) for row, request in zip(used, requests, strict=True)]))
    alone = [table(1) for _ in requests]
    for lonely, request in zip(alone, requests, strict=True):
        lonely.update(Batch(joined=[join(0, *request)]))
    answers = [list(answer) for _, _, answer in requests]
    for _ in range(4):
        logits = torch.randn(len(requests), VOCAB, generator=generator) * 4
        drawn = [set(draw.sample(range(VOCAB), draw.randint(1, 9))) for _ in requests]
        allowed = [some if params.grammar else None for (params, *_), some in zip(requests, drawn, strict=True)]
        masks = [MaskWrite(row, words(some)) for row, some in zip(used, allowed, strict=True) if some is not None]
        rows.update(Batch(masks=masks))
        expected = [
            by_hand(line, params, prompt, answer, some)
            for line, (params, prompt, _), answer, some in zip(
                logits.tolist(), requests, answers, allowed, strict=True
            )
        ]
        changed = logits.clone()
        chosen = rows.choose(changed, torch.tensor(used), used).tolist()
        torch.testing.assert_close(changed, torch.tensor(expected), atol=1e-4, rtol=1e-5)
        for place, token in enumerate(chosen):
            params, own = requests[place][0], allowed[place]
            assert own is None or token in own
            if params.greedy:
                assert expected[place][token] == pytest.approx(max(expected[place]), abs=1e-4)
            if own is not None:
                alone[place].update(Batch(masks=[MaskWrite(0, words(own))]))
            line = logits[place : place + 1].clone()
            assert alone[place].choose(line, torch.tensor([0]), [0]).tolist() == [token]
            answers[place].append(token)


def join(row: int, params: SamplingParams, prompt: list[int], answer: list[int]) -> Join:
    return Join(row, params, len(answer), prompt + answer if params.penalized else [])


def choose(rows: Rows, logits: Tensor, used: list[int]) -> Tensor:
    """The logits as they are changed."""
    changed = logits.clone()
    rows.choose(changed, torch.tensor(used), used)
    return changed


def test_nothing_is_allocated_or_changed_for_requests_that_ask_for_nothing() -> None:
    rows = table(4)
    rows.update(Batch(joined=[Join(row, SamplingParams(top_k=3, logprobs=2), 0) for row in range(4)]))
    logits = torch.randn(4, VOCAB)
    assert torch.equal(choose(rows, logits, [0, 1, 2, 3]), logits)
    assert rows.shaping._allocated is None and not rows.shaping.any([0, 1, 2, 3])


def test_a_row_is_as_new_for_the_next_request() -> None:
    rows = table(2)
    rows.update(Batch(joined=[Join(0, SamplingParams(presence_penalty=1.0), 2, [3, 4, 5])]))
    logits = torch.zeros(1, VOCAB)
    assert choose(rows, logits, [0]).count_nonzero() == 2
    rows.update(Batch(joined=[Join(0, SamplingParams(), 0)]))
    assert not rows.shaping.any([0])
    assert not choose(rows, logits, [0]).any()
    rows.update(Batch(joined=[Join(0, SamplingParams(presence_penalty=1.0), 0, [6])]))
    assert not choose(rows, logits, [0]).any(), "the prompt is not penalized for its presence"


def test_whatever_the_penalty_logits_stay_numbers() -> None:
    rows = table(1)
    params = SamplingParams(repetition_penalty=1e-38, frequency_penalty=-2.0)
    rows.update(Batch(joined=[Join(0, params, 1, list(range(40)))]))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        changed = choose(rows, (torch.arange(VOCAB) - 20.0).repeat(1, 1).to(dtype), [0])
        assert changed.isfinite().all()


def test_as_many_biases_as_there_may_be() -> None:
    biases = tuple((token, 1.0 + token) for token in range(VOCAB))
    rows = table(2)
    rows.update(Batch(joined=[Join(1, SamplingParams(logit_bias=biases), 0)]))
    changed = choose(rows, torch.zeros(1, VOCAB), [1])
    assert changed.tolist() == [[1.0 + token for token in range(VOCAB)]]
    assert MOST_BIASES >= 300
    rows.update(Batch(joined=[Join(1, SamplingParams(logit_bias=((7, 2.0),)), 0)]))
    assert choose(rows, torch.zeros(1, VOCAB), [1]).count_nonzero() == 1


@pytest.mark.parametrize("cut", [0, 4, 12])
def test_a_mask_of_another_length_allows_what_it_names(cut: int) -> None:
    rows = table(1)
    rows.update(Batch(joined=[Join(0, SamplingParams(grammar="any"), 0)]))
    given = struct.pack("<4i", 5, -1, -1, -1)[: cut + 4]
    rows.update(Batch(masks=[MaskWrite(0, given)]))
    changed = choose(rows, torch.zeros(1, VOCAB), [0])
    allowed = {token for token in range(VOCAB) if token // 32 <= cut // 4 and (token >= 32 or token in (0, 2))}
    assert {token for token in range(VOCAB) if changed[0, token] == 0} == allowed
