"""What is asked of an engine: prompts as token ids, and output lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass

TOKEN_IDS = 10_000
"""Prompts are uniform in ``0 .. TOKEN_IDS``, or in the whole vocabulary when that is smaller."""


@dataclass(frozen=True)
class Workload:
    """Requests given at once, each to be generated to its exact length, past any end of sequence."""

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
