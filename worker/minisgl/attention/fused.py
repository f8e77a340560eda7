"""Decode attention on CUDA with rotation and storing in one kernel, and nothing that is planned on the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minisgl.attention.base import Norms
from minisgl.kernel import kernels_for
from minisgl.kvcache.pool import KVPool

Whole = Callable[[int, Tensor, Norms | None, Tensor], Tensor]
"""(layer, heads, norms, rotation): what `Attend.whole` does."""


class FusedDecode:
    """What `minisgl.kernel.few_rows` and `minisgl.kernel.decode` need besides a step's own tensors."""

    def __init__(
        self, pool: KVPool, windows: tuple[int | None, ...], num_heads: int, *, many: bool = False
    ) -> None:
        """`pool`: on CUDA, of heads whose dimension is a power of two. `num_heads`: query heads of this rank.
        `many`: whether it is for any number of rows, and not only for few.
        """
        self._pool = pool
        self._windows = windows
        self._num_heads = num_heads
        self._many = many
        self._few_kernels = kernels_for(pool.slots[0], "few_rows")
        self._most_few: int = self._few_kernels.MOST_ROWS
        count = self._most_few * pool.kv_heads
        self._counters = torch.zeros(count, dtype=torch.int32, device=pool.slots[0].device)

    def takes(self, rows: int) -> bool:
        return self._many or rows <= self._most_few

    def at(self, tables: Tensor, lengths: Tensor) -> Whole:
        """A step of D rows: tables int32 [D, pages], lengths int32 [D] with the new tokens."""
        return (self._few if len(lengths) <= self._most_few else self._any)(tables, lengths)

    def _few(self, tables: Tensor, lengths: Tensor) -> Whole:
        pool, windows, kernels = self._pool, self._windows, self._few_kernels

        def whole(layer: int, heads: Tensor, norms: Norms | None, rotation: Tensor) -> Tensor:
            return kernels.decode(  # type: ignore[no-any-return]
                heads, pool.kv_heads, norms, rotation, pool.slots[layer], pool.page_size, tables, lengths,
                windows[layer], self._counters,
            )  # fmt: skip

        return whole

    def _any(self, tables: Tensor, lengths: Tensor) -> Whole:
        pool, windows, kernels = self._pool, self._windows, kernels_for(lengths, "decode")
        shape = self._num_heads, pool.kv_heads, pool.head_dim, pool.slots[0].dtype
        plan = kernels_for(lengths, "decode_plan").plan
        work = {window: plan(lengths, window, *shape) for window in set(windows)}

        def whole(layer: int, heads: Tensor, norms: Norms | None, rotation: Tensor) -> Tensor:
            return kernels.decode(  # type: ignore[no-any-return]
                heads, pool.kv_heads, norms, rotation, pool.slots[layer], pool.page_size, tables, lengths,
                windows[layer], work[windows[layer]],
            )  # fmt: skip

        return whole
