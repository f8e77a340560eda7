"""What the benchmark asks, when, and how its numbers are reduced."""

from __future__ import annotations

import argparse
import statistics
from itertools import pairwise

import pytest
from bench.arguments import length_range, positive
from bench.memory import Series, slope, trends
from bench.server import parse_metrics
from bench.workload import arrivals, percentile, shared_prefix, uniform
from hypothesis import given
from hypothesis import strategies as st


def test_uniform_lengths_reach_both_ends() -> None:
    workload = uniform(1, 400, (3, 5), (7, 9), 1000)
    assert {len(prompt) for prompt in workload.prompts} == {3, 4, 5}
    assert set(workload.output_lengths) == {7, 8, 9}
    assert max(max(prompt) for prompt in workload.prompts) < 1000
    assert workload == uniform(1, 400, (3, 5), (7, 9), 1000) != uniform(2, 400, (3, 5), (7, 9), 1000)
    assert workload.first_tokens().output_lengths == [1] * 400


def test_shared_prefix_is_one_prompt_and_many_questions() -> None:
    one, other = shared_prefix(1, 50, 100, 20, 30, 512), shared_prefix(2, 50, 100, 20, 30, 512)
    prompts = one.prompts + other.prompts
    assert {len(prompt) for prompt in prompts} == {120} and set(one.output_lengths) == {30}
    assert len({tuple(prompt[:100]) for prompt in prompts}) == 1
    assert len({tuple(prompt[100:]) for prompt in prompts}) == 100


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    times = arrivals(1, rate=50, seconds=200)
    assert times == sorted(times) and times[0] > 0 and times[-1] < 200
    assert len(times) == pytest.approx(10_000, rel=0.03)
    gaps = [b - a for a, b in pairwise(times)]
    assert statistics.pstdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05), (
        "exponential: as wide as long"
    )
    assert times == arrivals(1, 50, 200) != arrivals(2, 50, 200)


def test_fixed_arrivals_are_equally_far_apart() -> None:
    assert arrivals(1, rate=4, seconds=1, poisson=False) == [0, 0.25, 0.5, 0.75]


def test_percentiles_are_of_the_values_themselves() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_has_its_share_below(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


def test_ranges_of_lengths() -> None:
    assert length_range("3:5") == (3, 5) and length_range("4") == (4, 4)
    for wrong in ("", "0:3", "5:3", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="LOW:HIGH"):
            length_range(wrong)


def test_numbers_of_things() -> None:
    assert positive("3") == 3
    for wrong in ("", "0", "-1", "x", "1.5", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match="1 or more"):
            positive(wrong)


def test_growth_and_spread_of_memory() -> None:
    series = Series()
    for second in range(10):
        series.add(second, {"rss": 500.0 if second < 4 else 100.0 + 2 * second, "flat": 7.0})
    found = trends(series, after=4)
    assert found["rss"].growth == pytest.approx(10) and found["rss"].spread == pytest.approx(10)
    assert found["flat"].growth == 0 == found["flat"].spread
    assert found["rss"].seconds == 5
    assert trends(series, after=9) == {}
    assert slope([1, 1], [2, 3]) == 0


def test_metrics_are_read_by_name_and_phase() -> None:
    page = """# HELP minisgl:steps_total Steps.
minisgl:steps_total{model_name="m"} 12.0
minisgl:start_seconds{model_name="m",phase="weights"} 1.5
minisgl:start_seconds{model_name="m",phase="graphs"} 2.5
plain 3
"""
    assert parse_metrics(page) == {
        "minisgl:steps_total": 12,
        "minisgl:start_seconds[weights]": 1.5,
        "minisgl:start_seconds[graphs]": 2.5,
        "plain": 3,
    }
