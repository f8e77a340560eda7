"""Decode attention for a few rows on CUDA: with rotation and storing in one kernel, and nothing to plan."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minisgl.attention.base import Norms
from minisgl.kernel import kernels_for
from minisgl.kvcache.pool import KVPool

Whole = Callable[[int, Tensor, Norms | None, Tensor], Tensor]
"""(layer, heads, norms, rotation): what `Attend.whole` does."""


class FewRows:
    """What `minisgl.kernel.decode` needs besides a step's own tensors."""

    def __init__(self, pool: KVPool, windows: tuple[int | None, ...]) -> None:
        """`pool`: on CUDA, of heads whose dimension is a power of two."""
        self._pool = pool
        self._windows = windows
        self._kernels = kernels_for(pool.slots[0], "decode")
        self.most: int = self._kernels.MOST_ROWS
        count = self.most * pool.kv_heads
        self._counters = torch.zeros(count, dtype=torch.int32, device=pool.slots[0].device)

    def at(self, tables: Tensor, lengths: Tensor) -> Whole:
        """A step of D rows, `most` at most: tables int32 [D, pages], lengths int32 [D] with the new tokens."""
        pool = self._pool

        def whole(layer: int, heads: Tensor, norms: Norms | None, rotation: Tensor) -> Tensor:
            return self._kernels.decode(  # type: ignore[no-any-return]
                heads, pool.kv_heads, norms, rotation, pool.slots[layer], pool.page_size, tables, lengths,
                self._windows[layer], self._counters,
            )  # fmt: skip

        return whole
