"""FlashAttention-4 (https://github.com/Dao-AILab/flash-attention): for NVIDIA GPUs of the Hopper generation.

In half precision. Its kernels are compiled when they are first called, each in some seconds, and kept on disk.
Nothing is planned on the host: they read lengths and block tables on the device, so that decodes can be captured.
"""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from minisgl.attention.base import Chunk, Part, StepMetadata
from minisgl.kvcache.pool import KVPool

# The library reads these when it is imported. Unasked it keeps no kernel, or keeps it where others may write.
os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(Path.home() / ".cache" / "flash_attn"))

# The function below the public one, which cannot write to a given tensor.
from flash_attn.cute.interface import _flash_attn_fwd


class FlashAttnBackend:
    """Decode and prefill over whole pages, with grouped-query attention and sliding windows."""

    def __init__(self, pool: KVPool, windows: tuple[int | None, ...], _num_heads: int) -> None:
        self._windows = windows
        self._caches = [layer.unbind(2) for layer in pool.layers]
        """Of each layer, keys and values [num_pages, page_size, kv_heads, head_dim]; not contiguous."""
        self._device = pool.layers[0].device
        # Queries and keys of a tile. A page that is as long as a tile is fetched in one piece.
        keys = pool.page_size if pool.page_size in (64, 128) else 128
        self._decode_tile = 64, keys
        self._prefill_tile = 192 if pool.head_dim == 64 else 128, keys

    # ---- decode ----

    def plan_decode(self, step: StepMetadata) -> Part:
        tables = step.block_table.index_select(0, step.decode_rows)
        return self.decode_at(tables, step.decode_lengths.to(torch.int32))

    def decode_at(self, tables: Tensor, lengths: Tensor) -> Part:
        """tables int32 [D, pages], lengths int32 [D]."""

        def decode(layer: int, query: Tensor, _key: Tensor, _value: Tensor, out: Tensor) -> None:
            keys, values = self._caches[layer]
            _flash_attn_fwd(
                query.unsqueeze(1), keys, values, out=out.unsqueeze(1), seqused_k=lengths, page_table=tables,
                causal=True, window_size_left=self._left(layer), tile_mn=self._decode_tile,
            )  # fmt: skip

        return decode

    # ---- prefill ----

    def plan_prefill(self, step: StepMetadata) -> Part:
        starts, lengths, rows = self._upload(step.chunks)
        if not any(chunk.start for chunk in step.chunks):
            return self._prefill_whole(starts)
        tables = step.block_table.index_select(0, rows)

        def prefill(layer: int, query: Tensor, _key: Tensor, _value: Tensor, out: Tensor) -> None:
            keys, values = self._caches[layer]
            _flash_attn_fwd(
                query, keys, values, out=out, cu_seqlens_q=starts, seqused_k=lengths, page_table=tables,
                causal=True, window_size_left=self._left(layer), tile_mn=self._prefill_tile,
            )  # fmt: skip

        return prefill

    def _prefill_whole(self, starts: Tensor) -> Part:
        """Of chunks that begin their rows: all keys are the step's own. In one piece they are fetched faster."""

        def prefill(layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
            _flash_attn_fwd(
                query, key, value, out=out, cu_seqlens_q=starts, cu_seqlens_k=starts, causal=True,
                window_size_left=self._left(layer),
            )  # fmt: skip

        return prefill

    def _upload(self, chunks: list[Chunk]) -> tuple[Tensor, Tensor, Tensor]:
        """int32, on the device: where each of n chunks begins, and the end; its row's tokens [n]; its row [n]."""
        starts = list(accumulate((chunk.length for chunk in chunks), initial=0))
        lengths = [chunk.start + chunk.length for chunk in chunks]
        numbers = torch.tensor(starts + lengths + [chunk.row for chunk in chunks], dtype=torch.int32)
        on_device = numbers.pin_memory().to(self._device, non_blocking=True)
        n = len(chunks)
        return on_device[: n + 1], on_device[n + 1 : 2 * n + 1], on_device[2 * n + 1 :]

    def _left(self, layer: int) -> int | None:
        """So many tokens before its own does a token attend to; None: all."""
        window = self._windows[layer]
        return None if window is None else window - 1
