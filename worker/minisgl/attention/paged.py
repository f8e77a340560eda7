"""The attention of a whole step: one backend for its decode rows, one for its chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minisgl.attention.base import (
    ChunkBackend,
    DecodeBackend,
    GraphBackend,
    Norms,
    Part,
    PrefillBackend,
    StepMetadata,
    Target,
)
from minisgl.attention.fused import FusedDecode, Whole
from minisgl.kvcache.pool import KVPool


@dataclass(slots=True, frozen=True)
class StepAttention:
    """What the model calls in each layer of one step: `minisgl.attention.base.Attend`."""

    pool: KVPool
    slots: Tensor
    decodes: int
    """So many of the step's tokens, the first ones, are of decode rows."""
    decode: Part | None
    prefill: Part | None
    fused: Whole | None = None
    """Instead of `decode` and `prefill`, in a step of decode rows alone."""

    def whole(self, layer: int, heads: Tensor, norms: Norms | None, rotation: Tensor) -> Tensor | None:
        return None if self.fused is None else self.fused(layer, heads, norms, rotation)

    def target(self, layer: int) -> Target:
        return Target(self.pool.slots[layer], self.slots)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n = self.decodes
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if self.decode is not None:
            self.decode(layer, query[:n], key[:n], value[:n], out[:n])
        if self.prefill is not None:
            self.prefill(layer, query[n:], key[n:], value[n:], out[n:])
        return out


class PagedAttention:
    """Plans the attention of every step."""

    def __init__(
        self,
        pool: KVPool,
        prefill: PrefillBackend,
        decode: DecodeBackend,
        fused: FusedDecode | None = None,
        chunks: ChunkBackend | None = None,
    ) -> None:
        """`fused`: instead of `decode` in steps of decode rows alone, of as many as it takes. `chunks`: for
        captured steps with chunks; None: there can be none.
        """
        self.chunks = chunks
        self._pool = pool
        self._fused = fused
        self._prefill = prefill
        self._decode = decode

    def plan(self, step: StepMetadata) -> StepAttention:
        decodes = len(step.host_lengths)
        if self._fused is not None and self._fused.takes(decodes) and not step.chunks:
            tables = step.block_table.index_select(0, step.decode_rows)
            return self.decode_at(step.slots, tables, step.decode_lengths.to(torch.int32))
        return StepAttention(
            self._pool,
            step.slots,
            decodes,
            self._decode.plan_decode(step) if decodes else None,
            self._prefill.plan_prefill(step) if step.chunks else None,
        )

    @property
    def can_capture(self) -> bool:
        """Whether `decode_at` may be called."""
        return isinstance(self._decode, GraphBackend)

    def decode_at(self, slots: Tensor, tables: Tensor, lengths: Tensor) -> StepAttention:
        """A step of D decode rows that is described on the device alone, as `GraphBackend.decode_at` says."""
        if self._fused is not None and self._fused.takes(len(slots)):
            return StepAttention(self._pool, slots, len(slots), None, None, self._fused.at(tables, lengths))
        assert isinstance(self._decode, GraphBackend)
        return StepAttention(self._pool, slots, len(slots), self._decode.decode_at(tables, lengths), None)

    def chunks_at(self, slots: Tensor, tables: Tensor, tiles: Tensor) -> StepAttention:
        """A step of T chunk tokens that is described on the device alone, as `ChunkBackend.chunks_at` says."""
        assert self.chunks is not None
        return StepAttention(self._pool, slots, 0, None, self.chunks.chunks_at(tables, tiles, len(slots)))
