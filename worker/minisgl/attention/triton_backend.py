"""Our own attention kernel, `minisgl.kernel.paged`: for any page size, and for steps that are captured.

Nothing is planned on the host: a decode row and a chunk are the same thing, tiles of tokens that a row and a
position are given for.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minisgl.attention.base import Part, StepMetadata
from minisgl.kernel import kernels_for
from minisgl.kvcache.pool import KVPool

Numbers = NDArray[np.int64]

SHORT_STEP = 128
"""Tokens up to which tiles are low, so that there are more of them."""


class TritonBackend:
    """Decode and prefill in half precision, with grouped-query attention and sliding windows."""

    def __init__(self, pool: KVPool, windows: tuple[int | None, ...], num_heads: int) -> None:
        """`num_heads`: query heads of this rank."""
        self._pool = pool
        self._windows = windows
        self._group = num_heads // pool.kv_heads
        self._device = pool.layers[0].device
        self._processors = torch.cuda.get_device_properties(self._device).multi_processor_count
        self._kernels = kernels_for(pool.layers[0], "paged")
        self._scratch = cache(self._make_scratch)

    def plan_decode(self, step: StepMetadata) -> Part:
        return self._decode(step.block_table, step.decode_rows, step.decode_lengths)

    def decode_at(self, tables: Tensor, lengths: Tensor) -> Part:
        """tables int32 [D, pages], lengths int32 [D]."""
        return self._decode(tables, torch.arange(len(lengths), device=self._device), lengths)

    def plan_prefill(self, step: StepMetadata) -> Part:
        tokens = sum(chunk.length for chunk in step.chunks)
        tiles = cut_tiles(np.array(step.chunks).T, self.tile_tokens(tokens))
        on_device = torch.from_numpy(tiles).pin_memory().to(self._device, non_blocking=True)
        return self.chunks_at(step.block_table, on_device, tokens)

    def tile_tokens(self, tokens: int) -> int:
        """Most tokens of a tile in a step of `tokens`."""
        return self._tile_rows(tokens) // self._group

    def chunks_at(self, tables: Tensor, tiles: Tensor, tokens: int) -> Part:
        """As `minisgl.attention.base.ChunkBackend.chunks_at` says."""
        return self._part(tables, tiles, self._tile_rows(tokens))

    def _decode(self, tables: Tensor, rows: Tensor, lengths: Tensor) -> Part:
        places = torch.arange(len(rows), device=self._device)
        tiles = torch.stack((rows, places, torch.ones_like(rows), lengths - 1))
        return self._part(tables, tiles, max(16, _power_of_2(self._group)))

    def _part(self, tables: Tensor, tiles: Tensor, tile_rows: int) -> Part:
        kernels, pool, windows, programs = self._kernels, self._pool, self._windows, self._programs(tile_rows)
        plans = {window: kernels.plan(tiles, window, pool.kv_heads, programs) for window in set(windows)}
        scratch = self._scratch(tile_rows)

        def attend(layer: int, query: Tensor, _key: Tensor, _value: Tensor, out: Tensor) -> None:
            window = windows[layer]
            kernels.attend(query, pool.layers[layer], tables, plans[window], window, scratch, programs, out)

        return attend

    def _tile_rows(self, tokens: int) -> int:
        return max(64 if tokens <= SHORT_STEP else 128, _power_of_2(self._group))

    def _programs(self, tile_rows: int) -> int:
        """How many run at once: of low tiles, two on each of the GPU's multiprocessors."""
        return self._processors * (2 if tile_rows < 128 else 1)

    def _make_scratch(self, tile_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        pool = self._pool
        scratch: tuple[Tensor, Tensor, Tensor] = self._kernels.Scratch.make(
            self._programs(tile_rows), pool.kv_heads, tile_rows, pool.head_dim, self._device
        )
        return scratch


def cut_tiles(chunks: Numbers, most: int) -> Numbers:
    """Chunks [3, N], row, start and length -> tiles [4, M] of at most `most` tokens.

    A tile's row, its first token among all the chunks', its tokens, and the position of the first.
    """
    rows, starts, lengths = chunks
    counts = -(-lengths // most)
    chunk = np.repeat(np.arange(len(rows)), counts)
    offset = (np.arange(len(chunk)) - (counts.cumsum() - counts)[chunk]) * most
    firsts = (lengths.cumsum() - lengths)[chunk] + offset
    return np.stack((rows[chunk], firsts, np.minimum(lengths[chunk] - offset, most), starts[chunk] + offset))


def _power_of_2(number: int) -> int:
    """The smallest that is no less."""
    return 1 << (number - 1).bit_length()
