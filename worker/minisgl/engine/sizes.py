"""Numbers of rows for which a decode step is captured as a CUDA graph, and which of them a batch runs as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

REPLAYS = 5
"""Of a graph, to see how long it takes, after one that is not timed."""
GAIN = 0.01
"""Share of a step's time that is worth more rows, and more than measurements differ by."""
NEAREST = 2
"""Larger sizes that are tried in place of one, besides the one that seems fastest."""


def captured_sizes(most: int) -> tuple[list[int], list[int]]:
    """Numbers of rows: those that no batch has to do without, powers of two and `most`; every eighth besides."""
    needed = {1 << i for i in range(most.bit_length())} | {most}
    return sorted(needed), sorted(set(range(8, most, 8)) - needed)


class Contest:
    """Finds out as which size batches run fastest: products of matrices can take longer for fewer rows.

    First a step of each size is timed with padding rows alone. Larger sizes that took less time are then tried
    with as many rows as the smaller one holds, and padding for the rest: it costs attention some time. All ranks
    time the same, one after the other.
    """

    def __init__(self, sizes: Sequence[int], agree: Callable[[list[float]], list[float]]) -> None:
        """`agree`: the times of a rank -> those of the slowest, by which every rank chooses."""
        self._agree = agree
        self._empty = True
        self._times: dict[tuple[int, int], float] = {}
        self._left = [(0, size) for size in sizes]
        self.winners: dict[int, int] = {}
        """For which sizes a batch runs as another; as which, once all is done."""

    @property
    def done(self) -> bool:
        return not self._left

    @property
    def next(self) -> tuple[int, int]:
        """What to time, unless it is `done`: a number of rows that are no padding, and a size that holds them."""
        return self._left[0]

    def add(self, time: float) -> None:
        """How long `next` took, in any unit."""
        self._times[self._left.pop(0)] = time
        if self._left:
            return
        times = dict(zip(self._times, self._agree(list(self._times.values())), strict=True))
        if self._empty:
            self._empty, self._times = False, {}
            self._left = _tries({size: time for (_, size), time in times.items()})
        else:
            self.winners = _winners(times)


def _tries(times: dict[int, float]) -> list[tuple[int, int]]:
    """The time of each size -> numbers of rows, and sizes to try for them: that of as many, and larger ones."""
    tries = []
    for size, time in sorted(times.items()):
        faster = [other for other in sorted(times) if other > size and times[other] < time * (1 - GAIN)]
        if faster:
            fastest = min(faster, key=times.__getitem__)
            tries += [(size, other) for other in sorted({size, *faster[:NEAREST], fastest})]
    return tries


def _winners(times: dict[tuple[int, int], float]) -> dict[int, int]:
    """The times of numbers of rows at sizes -> the fastest size, where it is another and worth it."""
    found = {}
    for rows in {rows for rows, _ in times}:
        sizes = {size: time for (of_rows, size), time in times.items() if of_rows == rows}
        fastest = min(sizes, key=sizes.__getitem__)
        if sizes[fastest] < sizes[rows] * (1 - GAIN):
            found[rows] = fastest
    return found


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
