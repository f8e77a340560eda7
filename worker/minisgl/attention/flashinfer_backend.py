"""FlashInfer's attention kernels (https://flashinfer.ai): for NVIDIA GPUs from Hopper on, in half precision.

Decode is its XQA kernel, which reads block table and lengths on the device: nothing is planned on the host, so a
captured step needs nothing from it. Prefill is its paged prefill kernel, which is planned once a step.

With an FP8 pool, XQA multiplies in FP8: it rounds queries and attention weights as well. Prefill copies the pages
to half precision first, which is little beside the rest of its work, and uses the same kernel as without FP8.
"""

from __future__ import annotations

from itertools import accumulate, cycle

import flashinfer
import torch
from flashinfer.xqa import xqa
from torch import Tensor

from minisgl.attention.base import Part, StepMetadata
from minisgl.kvcache.pool import KVPool

WORKSPACE_BYTES = 256 << 20
"""For the parts of long rows that several blocks attend to, and for what they leave to be merged."""
SEMAPHORE_BYTES = 8 << 20
PLANS_IN_FLIGHT = 2
"""A plan is copied to the device from pinned memory of its wrapper. Steps are launched at most one ahead."""


class FlashInferBackend:
    """Decode and prefill over whole pages, with grouped-query attention and sliding windows."""

    def __init__(self, pool: KVPool, windows: tuple[int | None, ...], num_heads: int) -> None:
        """`num_heads`: query heads of this rank."""
        self._pool = pool
        self._num_heads = num_heads
        self._windows = windows
        layer = pool.layers[0]
        self._device, self._dtype = layer.device, pool.dtype
        self._caches = [layer.unbind(2) for layer in pool.layers]
        """Of each layer, keys and values [num_pages, page_size, kv_heads, head_dim]; not contiguous."""
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=self._device)
        self._semaphores = torch.zeros(SEMAPHORE_BYTES // 4, dtype=torch.int32, device=self._device)
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper
        self._wrappers = cycle(
            [{window: wrapper(self._workspace, "NHD") for window in set(windows)} for _ in range(PLANS_IN_FLIGHT)]
        )
        """One for each window, which each has its own plan."""

    # ---- decode ----

    def plan_decode(self, step: StepMetadata) -> Part:
        tables = step.block_table.index_select(0, step.decode_rows)
        return self.decode_at(tables, step.decode_lengths.to(torch.int32))

    def decode_at(self, tables: Tensor, lengths: Tensor) -> Part:
        """tables int32 [D, pages], lengths int32 [D]."""
        kv_heads, page_size = self._pool.kv_heads, self._pool.page_size
        lengths = lengths.unsqueeze(1)

        def decode(layer: int, query: Tensor, _key: Tensor, _value: Tensor, out: Tensor) -> None:
            keys, values = self._caches[layer]
            xqa(
                query.unsqueeze(1), keys, values, tables, lengths, out.unsqueeze(1), self._workspace,
                self._semaphores, kv_heads, page_size, sliding_win_size=self._windows[layer] or 0,
            )  # fmt: skip

        return decode

    # ---- prefill ----

    def plan_prefill(self, step: StepMetadata) -> Part:
        page_size, width = self._pool.page_size, step.block_table.shape[1]
        lengths = [chunk.start + chunk.length for chunk in step.chunks]
        pages = [-(-length // page_size) for length in lengths]
        places = [torch.arange(c.row * width, c.row * width + n) for c, n in zip(step.chunks, pages, strict=True)]
        places_on_device = torch.cat(places).pin_memory().to(self._device, non_blocking=True)
        numbers = step.block_table.view(-1).index_select(0, places_on_device)
        pool, rounds = self._pool, self._pool.rounds
        read = torch.arange(len(numbers), dtype=torch.int32, device=self._device) if rounds else numbers
        query_starts = _starts([chunk.length for chunk in step.chunks])
        last = torch.tensor([(length - 1) % page_size + 1 for length in lengths], dtype=torch.int32)
        wrappers = next(self._wrappers)

        for window, wrapper in wrappers.items():
            wrapper.plan(
                query_starts, _starts(pages), read, last, self._num_heads, pool.kv_heads, pool.head_dim, page_size,
                causal=True, window_left=(window or 0) - 1, q_data_type=self._dtype,
            )  # fmt: skip

        def prefill(layer: int, query: Tensor, _key: Tensor, _value: Tensor, out: Tensor) -> None:
            cache = self._caches[layer]
            if rounds:
                cache = pool.layers[layer].index_select(0, numbers).to(self._dtype).unbind(2)
            wrappers[self._windows[layer]].run(query, cache, out=out)

        return prefill


def _starts(counts: list[int]) -> Tensor:
    """int32 [n + 1]: where each of n neighbours begins, and the end."""
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
