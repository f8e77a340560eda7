"""What is asked of an engine: prompts as token ids, output lengths, and when each request arrives."""

from __future__ import annotations

import random
from dataclasses import dataclass

TOKEN_IDS = 10_000
"""Prompts are uniform in ``0 .. TOKEN_IDS``, or in the whole vocabulary when that is smaller."""


@dataclass(frozen=True)
class Workload:
    """Requests, each to be generated to its exact length, past any end of sequence."""

    prompts: list[list[int]]
    output_lengths: list[int]

    @property
    def input_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        return sum(self.output_lengths)

    def first_tokens(self) -> Workload:
        """The same prompts, with one token generated for each."""
        return Workload(self.prompts, [1] * len(self.prompts))


def uniform(
    seed: int, requests: int, inputs: tuple[int, int], outputs: tuple[int, int], vocab_size: int
) -> Workload:
    """Lengths uniform in the given ranges, both ends included: all prompts are drawn first, then all outputs.

    With 256 requests, 100..1024 and 100..1024 it is the offline benchmark that nano-vllm and its kin use.
    """
    draw = random.Random(seed)
    top = min(TOKEN_IDS, vocab_size - 1)
    prompts = [[draw.randint(0, top) for _ in range(draw.randint(*inputs))] for _ in range(requests)]
    return Workload(prompts, [draw.randint(*outputs) for _ in range(requests)])


def shared_prefix(seed: int, requests: int, prefix: int, question: int, answer: int, vocab_size: int) -> Workload:
    """Prompts that begin with the same `prefix` tokens, a system prompt, and go on with `question` tokens of their
    own. The prefix depends on its length and the vocabulary alone, so that another seed asks other questions
    under the same prompt.
    """
    top = min(TOKEN_IDS, vocab_size - 1)
    common = random.Random(prefix)
    system = [common.randint(0, top) for _ in range(prefix)]
    draw = random.Random(seed)
    prompts = [system + [draw.randint(0, top) for _ in range(question)] for _ in range(requests)]
    return Workload(prompts, [answer] * requests)


def arrivals(seed: int, rate: float, seconds: float, *, poisson: bool = True) -> list[float]:
    """When requests arrive, in seconds from the beginning, within `seconds`: `rate` a second on average, with
    exponential gaps, or exactly with equal ones.
    """
    if not poisson:
        return [index / rate for index in range(round(rate * seconds))]
    draw = random.Random(seed)
    times: list[float] = []
    time = draw.expovariate(rate)
    while time < seconds:
        times.append(time)
        time += draw.expovariate(rate)
    return times


def percentile(values: list[float], share: float) -> float:
    """The least of `values` that at least `share` of them do not exceed (nearest rank); `values` not empty."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[max(int(rank), 1) - 1]
