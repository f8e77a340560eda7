"""The sampler against probabilities worked out one row at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minisgl.core.sampling import SamplingParams
from minisgl.engine.sampler import CANDIDATES, SamplingRows, greedy, sample, uniform

DRAWS = 20_000


def rows_of(params: list[SamplingParams], generated: list[int] | None = None) -> SamplingRows:
    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    return SamplingRows(
        temperature=floats([p.temperature for p in params]),
        top_p=floats([p.top_p for p in params]),
        min_p=floats([p.min_p for p in params]),
        top_k=integers([p.top_k for p in params]),
        seed=integers([p.seed or 0 for p in params]),
        generated=integers(generated or [0] * len(params)),
    )


def draw(logits: Tensor, params: list[SamplingParams], generated: list[int] | None = None) -> list[int]:
    ranked = any(p.top_k > 0 or p.top_p < 1 for p in params)
    tokens = sample(logits, rows_of(params, generated), ranked=ranked, largest_top_k=max(p.top_k for p in params))
    return [int(token) for token in tokens]


def exact(logits: list[float], params: SamplingParams) -> list[float]:
    """The distribution that `params` asks for; the logits must differ."""
    scaled = [math.exp((x - max(logits)) / params.temperature) for x in logits]
    shares = [x / sum(scaled) for x in scaled]
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    if params.top_k:
        order = order[: params.top_k]
    total = sum(shares[i] for i in order)
    kept: list[int] = []
    for i in order:
        if sum(shares[j] for j in kept) >= params.top_p * total:
            break
        kept.append(i)
    kept = [i for i in kept if shares[i] >= params.min_p * shares[order[0]]]
    total = sum(shares[i] for i in kept)
    return [shares[i] / total if i in kept else 0.0 for i in range(len(shares))]


LOGITS = [0.3, 2.0, -1.0, 1.1, 0.0, 1.7, -4.0, 0.9]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=3.0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.6),
        SamplingParams(min_p=0.3),
        SamplingParams(temperature=1.5, top_k=5, top_p=0.8),
        SamplingParams(temperature=1.5, top_p=0.9, min_p=0.4),
        SamplingParams(temperature=0.8, top_k=6, top_p=0.95, min_p=0.05),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_their_probability_says(params: SamplingParams) -> None:
    rows = [params] * DRAWS
    tokens = draw(torch.tensor([LOGITS] * DRAWS), rows, list(range(DRAWS)))
    counts = [tokens.count(token) for token in range(len(LOGITS))]
    expected = [DRAWS * share for share in exact(LOGITS, params)]
    assert all(count == 0 for count, share in zip(counts, expected, strict=True) if share == 0)
    chi_square = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True) if e)
    assert chi_square < 30  # 7 degrees of freedom: exceeded once in 10 000 seeds


def test_greedy_takes_the_largest() -> None:
    assert greedy(torch.tensor([LOGITS, LOGITS[::-1]])).tolist() == [1, 6]


def test_a_greedy_row_among_sampled_rows() -> None:
    params = [SamplingParams(temperature=2.0, seed=seed) for seed in range(50)]
    params[17] = SamplingParams(temperature=0.0, seed=17)
    params[31] = SamplingParams(temperature=5.0, top_k=1, seed=31)
    for generated in range(20):
        tokens = draw(torch.tensor([LOGITS] * 50), params, [generated] * 50)
        assert tokens[17] == tokens[31] == 1
        assert len(set(tokens)) > 3


@given(
    seed=st.integers(0, 2**63 - 1),
    generated=st.integers(0, 10_000),
    mates=st.lists(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
            top_k=st.sampled_from([0, 1, 3, 400]),
            top_p=st.sampled_from([0.1, 0.9, 1.0]),
            min_p=st.sampled_from([0.0, 0.2]),
            seed=st.integers(0, 1000),
        ),
        max_size=5,
    ),
    place=st.integers(0, 5),
)
def test_a_row_draws_the_same_token_in_any_batch(
    seed: int, generated: int, mates: list[SamplingParams], place: int
) -> None:
    own = SamplingParams(temperature=0.9, top_k=30, top_p=0.9, seed=seed)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(mates) + 1, 1000, generator=generator) * 3
    place %= len(mates) + 1
    alone = draw(logits[place : place + 1], [own], [generated])
    together = draw(logits, [*mates[:place], own, *mates[place:]], [generated] * len(logits))
    assert together[place] == alone[0]


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.3])
def test_top_p_keeps_at_least_the_most_likely(top_p: float) -> None:
    params = [SamplingParams(temperature=5.0, top_p=top_p, seed=seed) for seed in range(200)]
    logits = torch.tensor([[0.0, 9.0, 0.0, -3.0]] * 200)
    assert set(draw(logits, params)) == {1}


def test_min_p_of_one_keeps_the_most_likely() -> None:
    params = [SamplingParams(temperature=5.0, min_p=1.0, seed=seed) for seed in range(200)]
    assert set(draw(torch.tensor([LOGITS] * 200), params)) == {1}


def test_equally_likely_tokens_stay_or_go_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]] * 300)
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.5), SamplingParams(min_p=0.5)):
        assert set(draw(logits, [params] * 300, list(range(300)))) == {1, 3}
    assert set(draw(logits, [SamplingParams(top_k=3)] * 300, list(range(300)))) == {0, 1, 2, 3, 4}
    assert len(set(draw(logits, [SamplingParams(top_k=1)] * 300, list(range(300))))) == 1  # greedy


@pytest.mark.parametrize("top_p", [0.5, 0.999999, 1.0])
def test_a_nucleus_wider_than_the_first_candidates(top_p: float) -> None:
    """Nearly flat logits: the nucleus has thousands of tokens."""
    vocab = 8 * CANDIDATES
    logits = torch.linspace(0, 0.01, vocab).repeat(2000, 1)
    params = [SamplingParams(top_p=top_p, top_k=0 if i % 2 else 2, seed=i) for i in range(2000)]
    tokens = draw(logits, params)
    assert min(tokens[1::2]) >= int(vocab * (1 - top_p) * 0.97)
    assert min(tokens[1::2]) <= vocab * (1 - top_p) + vocab * 0.02
    assert set(tokens[::2]) <= {vocab - 1, vocab - 2}


@pytest.mark.parametrize("temperature", [1e-45, 1e-12, 1e-3])
def test_a_tiny_temperature_is_greedy_and_finite(temperature: float) -> None:
    params = [SamplingParams(temperature=temperature, top_p=0.9, seed=seed) for seed in range(20)]
    assert set(draw(torch.tensor([[-80.0, 90.0, 89.0]] * 20), params)) == {1}


def test_the_ends_of_the_range_of_draws() -> None:
    """Found by running SplitMix64 backwards: seeds whose first number is the least and the greatest there is."""
    least, greatest = 7212067755985902090, 7847446708167360269
    assert uniform(torch.tensor([least, greatest]), torch.zeros(2, dtype=torch.int64)).tolist() == [0, 1 - 2**-24]
    logits = torch.tensor([[-9.0, 1.0, 0.5, 2.0, -9.0]])
    assert draw(logits, [SamplingParams(top_k=3, seed=least)]) == [1]
    assert draw(logits, [SamplingParams(top_k=3, seed=greatest)]) == [3]


def test_half_precision_logits() -> None:
    logits = torch.tensor([LOGITS] * 200, dtype=torch.bfloat16)
    assert len(set(draw(logits, [SamplingParams()] * 200, list(range(200))))) > 4


def test_uniform_is_uniform_over_seeds_and_counters() -> None:
    for seed, counter in (
        (torch.full((DRAWS,), 7), torch.arange(DRAWS)),
        (torch.arange(DRAWS), torch.zeros(DRAWS, dtype=torch.int64)),
        (torch.arange(DRAWS), torch.arange(DRAWS).flip(0)),
    ):
        values = uniform(seed, counter)
        assert float(values.min()) >= 0 and float(values.max()) < 1
        counts = torch.histc(values, bins=20, min=0, max=1)
        chi_square = float(((counts - DRAWS / 20) ** 2 / (DRAWS / 20)).sum())
        assert chi_square < 50  # 19 degrees of freedom: exceeded once in 10 000 seeds
        neighbours = torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1]
        assert abs(float(neighbours)) < 0.03


def test_uniform_is_splitmix64() -> None:
    """Against the algorithm in Python's integers."""

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    for seed, counter in ((0, 0), (1, 0), (2**63 - 1, 12345), (987654321, 3)):
        state = (mix(seed) + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
        expected = (mix(state) >> 40) / 2**24
        assert float(uniform(torch.tensor([seed]), torch.tensor([counter]))) == expected
