"""Numbers of rows for which a decode step is captured as a CUDA graph, and which of them a batch runs as."""

from __future__ import annotations

from itertools import pairwise

import torch

REPLAYS = 5
"""Of a graph, to see how long it takes."""
GAIN = 0.01
"""Share of a step's time that is worth more rows, and more than measurements differ by."""


def captured_sizes(most: int) -> tuple[list[int], list[int]]:
    """Numbers of rows: those that no batch has to do without, powers of two and `most`; every eighth besides."""
    needed = {1 << i for i in range(most.bit_length())} | {most}
    return sorted(needed), sorted(set(range(8, most, 8)) - needed)


def fastest(times: dict[int, float]) -> dict[int, int]:
    """The time of a step of each size -> as which size a batch of each runs: itself, or a larger, faster one.

    Products of matrices are made for some numbers of rows, and can take longer for fewer.
    """
    chosen: dict[int, int] = {}
    best = max(times)
    for size in sorted(times, reverse=True):
        chosen[size] = best if times[best] < times[size] * (1 - GAIN) else size
        best = min(best, size, key=times.__getitem__)
    return chosen


def replay_time(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds of one replay on the current stream: the least of some, as what disturbs only adds to it."""
    graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    marks[-1].synchronize()
    return min(float(before.elapsed_time(after)) for before, after in pairwise(marks))
