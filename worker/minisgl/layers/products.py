"""Which algorithm multiplies a number of tokens by a matrix fastest on this GPU: found out by trying."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel import kernels_for

MOST_TOKENS = 512
"""That are tried: it takes the longer, the more there are."""
GAIN = 0.02
"""Share of its time by which another algorithm must be faster than torch's choice."""
CALLS, TURNS = 8, 3
"""That are timed together; how often, of which the least time counts."""
AHEAD = 300_000
"""Clock cycles that the GPU waits first, so that all calls are there when it begins."""

Way = Callable[[Tensor, Tensor], Tensor]


class Products:
    """The linear layers of a model on one GPU, in 16 bits and without biases.

    Numbers of tokens that were multiplied within `tried` are multiplied in the fastest way from then on, in CUDA
    graphs and out of them; others in torch's.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """`weights` [out, in]: of the layers, some at least."""
        self._alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for weight in weights:
            self._alike[weight.shape].append(weight)
        kernels = kernels_for(weights[0], "cublas")
        self._alignment: int = kernels.ALIGNMENT
        self._library: Any = None
        with suppress(OSError):
            self._library = kernels.CublasLt(weights[0].device)
        self._ways: dict[tuple[int, torch.Size], Way] = {}
        self._trying = False

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [T, in], weight [out, in] -> x W^T [T, out]."""
        aligned = (x.data_ptr() | weight.data_ptr()) % self._alignment == 0
        if self._library is None or not aligned or not x.is_contiguous():
            return F.linear(x, weight)
        key = len(x), weight.shape
        if self._trying and len(x) <= MOST_TOKENS and key not in self._ways:
            self._ways[key] = self._fastest(x, weight.shape)
        return self._ways.get(key, F.linear)(x, weight)

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Within, new numbers of tokens are multiplied in every way there is: no graph may be captured."""
        self._trying = True
        try:
            yield
        finally:
            self._trying = False

    def _fastest(self, x: Tensor, shape: torch.Size) -> Way:
        """Its results are the same in every call; another start may find another way faster, by little."""
        weights = list(islice(cycle(self._alike[shape]), CALLS))  # each cold, as in a step
        ways: list[Way] = [F.linear]
        plans: list[Any] = []
        with suppress(RuntimeError):  # it names none for some shapes
            plans = self._library.plans(len(x), weights[0])
        for plan in plans:
            with suppress(RuntimeError):  # and some that the device then refuses
                self._library.linear(x, weights[0], plan)
                ways.append(partial(self._library.linear, plan=plan))
        # Turn by turn, as other work of the GPU may slow down some of them.
        turns = [[_time(way, x, weights) for way in ways] for _ in range(TURNS)]
        times = [min(found) for found in zip(*turns, strict=True)]
        fastest = min(range(len(ways)), key=times.__getitem__)
        return ways[fastest] if times[fastest] < times[0] * (1 - GAIN) else ways[0]


def _time(way: Way, x: Tensor, weights: Sequence[Tensor]) -> float:
    """Milliseconds of all, on the current stream."""
    way(x, weights[0])  # what is called first is loaded first
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(AHEAD)  # type: ignore[no-untyped-call]
    begin.record()
    for weight in weights:
        way(x, weight)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
