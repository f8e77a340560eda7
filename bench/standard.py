"""The workloads that every engine is measured with, so that figures can stand side by side."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A workload of `bench.workload.uniform` under one command."""

    name: str
    text: str
    command: str
    requests: int
    inputs: Range
    outputs: Range
    seed: int = 1
    temperature: float = 0.0


def _step(requests: int, inputs: int, text: str) -> Case:
    return Case(f"step-{requests}", text, "step", requests, (inputs, inputs), (257, 257))


def _offline(seed: int) -> Case:
    text = f"256 requests at once, 100-1024 tokens in and out, seed {seed}"
    return Case(f"offline-256-seed{seed}", text, "offline", 256, (100, 1024), (100, 1024), seed, 0.6)


GPU_CASES = (
    _step(1, 272, "decode step of 1 request, about 400 tokens of context"),
    _step(8, 272, "decode step of 8 requests, about 400 tokens of context"),
    _step(64, 1024, "decode step of 64 requests, about 1150 tokens of context"),
    _offline(1),
    _offline(2),
    Case("prefill-64x2048", "prefill of 64 prompts of 2048 tokens", "prefill", 64, (2048, 2048), (1, 1)),
)
"""What the peers of `peers.json` were measured with."""

CPU_CASES = (
    Case("latency-cpu", "one request alone, 64 tokens in, 32 out", "latency", 1, (64, 64), (32, 32)),
    Case("step-4-cpu", "decode step of 4 requests, about 80 tokens of context", "step", 4, (64, 64), (33, 33)),
    Case("offline-16-cpu", "16 requests at once, 32-96 tokens in, 32 out", "offline", 16, (32, 96), (32, 32)),
    Case("prefill-4x128-cpu", "prefill of 4 prompts of 128 tokens", "prefill", 4, (128, 128), (1, 1)),
)
"""Of a size that two cores can do in a minute or two."""


def case_of(command: str, requests: int, inputs: Range, outputs: Range, seed: int, temperature: float) -> Case:
    """The standard case that these arguments are, or one with a name of their own."""
    for case in GPU_CASES + CPU_CASES:
        same_draw = seed == case.seed or inputs[0] == inputs[1]
        if (command, requests, inputs, outputs) == (case.command, case.requests, case.inputs, case.outputs) and (
            same_draw
        ):
            return case
    spans = [f"{low}" if low == high else f"{low}-{high}" for low, high in (inputs, outputs)]
    text = f"{command}: {requests} request(s), {spans[0]} tokens in, {spans[1]} out"
    return Case(f"{command}-{requests}-seed{seed}", text, command, requests, inputs, outputs, seed, temperature)
