"""The kernels that choose tokens from logits of 16 bits, against `minisgl.engine.sampler`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minisgl.core.batch import Batch, Join
from minisgl.core.sampling import SamplingParams
from minisgl.engine.rows import Choice, Rows
from minisgl.engine.sampler import SamplingRows, sample

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

CUDA = torch.device("cuda")
HALVES = (torch.bfloat16, torch.float16)

WAYS = [
    SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m)
    for t, k, p, m in itertools.product(
        (0.0, 1e-40, 0.05, 0.6, 1.0, 3.0), (0, 1, 2, 20, 50, 400, 10**6), (1e-6, 0.5, 0.95, 1.0), (0.0, 0.1, 1.0)
    )
]
"""All combinations; 504 of them."""


def table(params: list[SamplingParams]) -> Rows:
    """A request table whose rows have these parameters, in this order."""
    rows = Rows(num_rows=len(params), max_pages=1, page_size=16, vocab_size=16, device=CUDA)
    rows.update(Batch(joined=[Join(row, each, 7 * row) for row, each in enumerate(params)]))
    return rows


def seeded(params: list[SamplingParams], first: int = 0) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=p.temperature, top_k=p.top_k, top_p=p.top_p, min_p=p.min_p, seed=first + i)
        for i, p in enumerate(params)
    ]


def draw(logits: Tensor, params: list[SamplingParams], chosen: list[int] | None = None) -> Tensor:
    """The tokens of the `chosen` rows, None for all; checks what a draw writes besides."""
    on_device = torch.tensor(range(len(params)) if chosen is None else chosen, device=CUDA)
    choice = max(Choice.of(params[row]) for row in on_device.tolist())
    rows = table(params)
    counted = rows.sampling.generated.clone()
    counted[on_device] += 1
    tokens = rows.draw(logits, on_device, choice).clone()
    assert torch.equal(rows.last_tokens[on_device], tokens)
    assert torch.equal(rows.sampling.generated, counted)
    again = rows.draw(logits, on_device, choice).clone()  # with the next random numbers
    rows.sampling.generated.copy_(counted)
    assert torch.equal(rows.draw(logits, on_device, choice), again), "a draw leaves something behind"
    return tokens


def compare(logits: Tensor, params: list[SamplingParams], chosen: list[int], tokens: Tensor) -> None:
    """Assert that `tokens` are the reference's. Greedy rows may choose any token with the largest logit.

    Sums are made in another order: a draw next to a boundary may fall on its other side. One in fifty does where
    a vocabulary of 151,936 is about equally likely.
    """
    rows = table(params).sampling.at(torch.tensor(chosen, device=CUDA))
    expected = sample(logits, rows, ranked=True, largest_top_k=max(params[row].top_k for row in chosen))
    picked, wanted = (logits.gather(1, t.unsqueeze(1)).squeeze(1) for t in (tokens, expected))
    greedy = torch.tensor([params[row].greedy for row in chosen], device=CUDA)
    assert torch.equal(picked[greedy], wanted[greedy])
    differ = [chosen[i] for i in ((tokens != expected) & ~greedy).nonzero().flatten().tolist()]
    assert len(differ) <= int(0.03 * len(chosen)), [params[row] for row in differ]


def flat(count: int, vocab: int) -> Tensor:
    return torch.randn((count, vocab), device=CUDA)


def peaked(count: int, vocab: int) -> Tensor:
    """As a model's: some dozen tokens far above the others."""
    logits = 2.5 * torch.randn((count, vocab), device=CUDA)
    places = torch.randint(0, vocab, (count, min(40, vocab)), device=CUDA)
    return logits.scatter_(1, places, 24 - torch.rand(places.shape, device=CUDA).cumsum(1) * 0.6)


def sorted_up(count: int, vocab: int) -> Tensor:
    """All the likely tokens side by side."""
    return peaked(count, vocab).sort(dim=1).values


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("vocab", [7, 512, 4097, 151_936])
@pytest.mark.parametrize("make", [flat, peaked, sorted_up])
def test_every_way_of_choosing_draws_what_the_reference_draws(
    make: Callable[[int, int], Tensor], vocab: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(vocab)
    params = seeded(WAYS, vocab)
    logits = make(len(params), vocab).to(dtype)
    compare(logits, params, list(range(len(params))), draw(logits, params))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("count", [1, 2, 3, 64, 256])
def test_any_number_of_rows_in_any_order(count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    params = seeded([WAYS[(31 * i) % len(WAYS)] for i in range(300)])
    chosen = torch.randperm(300)[:count].tolist()
    logits = peaked(count, 32_000).to(dtype)
    compare(logits, params, chosen, draw(logits, params, chosen))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_seed_gives_the_same_tokens_whatever_the_batch_mates(dtype: torch.dtype) -> None:
    params = seeded(WAYS)
    logits = flat(len(params), 5000).to(dtype)
    together = draw(logits, params)
    for row in range(0, len(params), 29):
        assert draw(logits[row : row + 1], params, [row]).tolist() == [int(together[row])]


def test_the_extreme_values_of_the_type() -> None:
    """Zeros of both signs, subnormal numbers, the largest there are, and a mask of -inf."""
    for dtype in HALVES:
        limits = torch.finfo(dtype)
        logits = torch.full((300, 3000), limits.min, device=CUDA, dtype=dtype)
        logits[:, 1024:2048] = -torch.inf
        logits[:, 5] = -0.0
        logits[:, 2500] = 0.0
        logits[:, 2999] = limits.smallest_normal
        logits[:, 17] = -limits.smallest_normal
        for params, allowed in (
            (SamplingParams(top_k=2), {2999, 5, 2500}),
            (SamplingParams(top_k=4), {2999, 5, 2500, 17}),
            (SamplingParams(top_p=0.1), {2999}),
            (SamplingParams(temperature=0.5, min_p=1e-4), {2999, 5, 2500, 17}),
        ):
            assert set(draw(logits, seeded([params] * 300)).tolist()) == allowed
        logits[:, 100] = limits.max
        assert set(draw(logits, seeded([SamplingParams(top_k=9, temperature=50.0)] * 300)).tolist()) == {100}


def test_logits_that_are_not_numbers_give_some_token() -> None:
    params = seeded(WAYS)
    logits = torch.full((len(params), 3000), torch.nan, device=CUDA, dtype=torch.bfloat16)
    tokens = table(params).draw(logits, torch.arange(len(params), device=CUDA), Choice.RANKED)
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 3000


def test_equally_likely_tokens_stay_or_go_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]] * 300, device=CUDA, dtype=torch.bfloat16)
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.5), SamplingParams(min_p=0.5)):
        assert set(draw(logits, seeded([params] * 300)).tolist()) == {1, 3}
    assert set(draw(logits, seeded([SamplingParams(top_k=3)] * 300)).tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=2.0, top_p=0.8),
        SamplingParams(temperature=1.5, top_k=6, top_p=0.9),
        SamplingParams(temperature=1.5, min_p=0.1),
        SamplingParams(temperature=1.5, top_k=6, top_p=0.95, min_p=0.1),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_their_probability_says(params: SamplingParams) -> None:
    draws, scattered = 20_000, [3, 90, 1024, 1500, 4000, 4001, 5999, 17]
    values = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 1.75, -0.25, 1.25], device=CUDA)
    logits = torch.full((draws, 6000), -60.0, device=CUDA, dtype=torch.bfloat16)
    logits[:, scattered] = values.bfloat16()
    shares = (values.double() / params.temperature).softmax(dim=0)
    ranked, order = shares.sort(descending=True)
    ranked[params.top_k or len(ranked) :] = 0
    ranked[ranked.cumsum(0) - ranked >= params.top_p * ranked.sum()] = 0
    ranked[ranked < params.min_p * ranked[0]] = 0
    expected = torch.zeros_like(ranked).scatter(0, order, ranked / ranked.sum()) * draws
    drawn = draw(logits, seeded([params] * draws)).bincount(minlength=6000)
    counts = drawn[scattered]
    assert int(counts.sum()) == draws, "a token without weight was drawn"
    assert not counts[expected == 0].any()
    there = expected > 0
    chi_square = ((counts - expected)[there] ** 2 / expected[there]).sum()
    assert float(chi_square) < 30  # 7 degrees of freedom: exceeded once in 10 000 seeds


def test_a_graph_draws_what_single_launches_draw() -> None:
    params = seeded(WAYS)
    logits = peaked(len(params), 20_000).bfloat16()
    places = torch.arange(len(params), device=CUDA)
    rows, captured = table(params), table(params)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.draw(logits, places, Choice.RANKED)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            tokens = captured.draw(logits, places, Choice.RANKED)
        captured.sampling.generated.copy_(rows.sampling.generated)
        for _ in range(3):
            graph.replay()
            assert torch.equal(tokens, rows.draw(logits, places, Choice.RANKED))


def test_parameters_without_rows_to_filter_change_nothing() -> None:
    """The second part leaves the tokens of the first alone."""
    params = seeded([SamplingParams(temperature=0.0), SamplingParams(temperature=0.9)] * 40)
    logits = flat(80, 9000).bfloat16()
    places = torch.arange(80, device=CUDA)
    one, both = table(params), table(params)
    assert torch.equal(one.draw(logits, places, Choice.DRAWN), both.draw(logits, places, Choice.RANKED))
    assert torch.equal(one.sampling.generated, both.sampling.generated)


def test_rows_of_parameters_keep_their_order() -> None:
    """The kernels take the columns of `SamplingRows` by place."""
    assert SamplingRows._fields == ("temperature", "top_p", "min_p", "top_k", "seed", "generated")
