"""The kernels that change logits and count tokens, and draws that take another's place, against torch."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from minisgl.core.batch import Batch, Join, MaskWrite
from minisgl.core.sampling import SamplingParams
from minisgl.engine.rows import Choice, Rows
from minisgl.engine.shaping import ShapingTable, shape_row

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

CUDA = torch.device("cuda")
HALVES = (torch.bfloat16, torch.float16)


def ways(vocab: int) -> list[SamplingParams]:
    """All combinations of what changes logits, with a bias on tokens at both ends."""
    draw = random.Random(vocab)
    some = sorted({0, 1, vocab - 1, *(draw.randrange(vocab) for _ in range(280))})
    bias = tuple((token, draw.uniform(-30, 30)) for token in some)
    return [
        SamplingParams(
            presence_penalty=p,
            frequency_penalty=f,
            repetition_penalty=r,
            logit_bias=b,
            grammar=g,
            temperature=t,
            seed=n,
        )
        for n, (p, f, r, b, g, t) in enumerate(
            itertools.product((0.0, 1.1), (0.0, -0.3), (1.0, 1.7, 1e-38), ((), bias), ("", "any"), (0.0, 0.8))
        )
    ]


def table(params: list[SamplingParams], vocab: int) -> Rows:
    """A request table whose rows have these parameters, prompts, answers and masks of their own."""
    draw = random.Random(1)
    rows = Rows(num_rows=len(params), max_pages=1, page_size=16, vocab_size=vocab, device=CUDA)
    joined, masks = [], []
    for row, each in enumerate(params):
        tokens = [draw.randrange(vocab) for _ in range(300)]
        joined.append(Join(row, each, 200, tokens if each.penalized else []))
        if each.grammar:
            masks.append(MaskWrite(row, draw.randbytes(4 * -(-vocab // 32))))
    rows.update(Batch(joined=joined, masks=masks))
    return rows


def state(rows: Rows) -> ShapingTable:
    found = rows.shaping._allocated
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("vocab", [7, 77, 4096, 49_152, 151_936])
def test_logits_are_changed_as_by_torch(vocab: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab)
    params = ways(vocab)
    rows = table(params, vocab)
    places = torch.randperm(len(params)).tolist()
    logits = (6 * torch.randn((len(places), vocab), device=CUDA)).to(dtype)
    expected, changed = logits.clone(), logits.clone()
    for line, row in zip(expected, places, strict=True):
        shape_row(line, state(rows), row, int(state(rows).kinds[row]))
    rows.shaping.change(changed, torch.tensor(places, device=CUDA))
    assert torch.equal(changed.isinf(), expected.isinf()) and not changed.isnan().any()
    torch.testing.assert_close(changed, expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
    untouched = [place for place, row in enumerate(places) if not params[row].shaped]
    assert untouched and torch.equal(changed[untouched], logits[untouched])


@pytest.mark.parametrize("count", [1, 2, 16, 96])
def test_tokens_are_counted_as_by_torch(count: int) -> None:
    vocab = 5000
    rows = table(ways(vocab), vocab)
    places = torch.randperm(96, device=CUDA)[:count]
    tokens = torch.randint(0, vocab, (count,), device=CUDA)
    expected = state(rows).seen.clone()
    expected[places, tokens] += 2 * (state(rows).kinds[places] & 1)
    rows.shaping.count(places, tokens)
    assert torch.equal(state(rows).seen, expected)


SAMPLING = [
    SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=n)
    for n, (t, k, p, m) in enumerate(itertools.product((0.0, 0.7, 2.0), (0, 1, 20), (1.0, 0.9), (0.0, 0.1)))
]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_draw_instead_of_another_is_as_if_there_had_been_no_other(dtype: torch.dtype) -> None:
    vocab = 20_000
    one, two = table(SAMPLING, vocab), table(SAMPLING, vocab)
    places = torch.arange(len(SAMPLING), device=CUDA)

    def logits() -> Tensor:
        return (3 * torch.randn((len(places), vocab), device=CUDA)).to(dtype)

    for _ in range(3):
        first, second = logits(), logits()
        begun = one.begin_draw(first, places)
        begun.logits.copy_(second)
        one.begin_draw(begun.logits, places, begun)
        one.finish_draw(begun)
        assert torch.equal(begun.tokens, two.draw(second, places, Choice.RANKED))
        assert torch.equal(one.sampling.generated, two.sampling.generated)
        assert torch.equal(one.last_tokens, two.last_tokens)


def test_a_chain_of_them_in_a_graph() -> None:
    """Each starts while the one before still runs, and must not read its input before that is written."""
    vocab = 49_152
    params = ways(vocab)
    eager, captured = table(params, vocab), table(params, vocab)
    places = torch.arange(len(params), device=CUDA)
    logits = (4 * torch.randn((len(params), vocab), device=CUDA)).bfloat16()

    def step(rows: Rows, values: Tensor) -> Tensor:
        begun = rows.begin_draw(values, places)
        rows.shaping.change(values, places)
        rows.begin_draw(values, places, begun)
        rows.finish_draw(begun)
        rows.shaping.count(places, begun.tokens)
        return begun.tokens

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        values = logits.clone()
        before = [each.clone() for each in (captured.sampling.generated, state(captured).seen)]
        step(captured, values)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            tokens = step(captured, values)
        captured.sampling.generated.copy_(before[0])
        state(captured).seen.copy_(before[1])
        for _ in range(5):
            values.copy_(logits)
            graph.replay()
            assert torch.equal(tokens, step(eager, logits.clone()))
            assert torch.equal(state(captured).seen, state(eager).seen)
