"""The attention of a whole step: one backend for its decode rows, one for its chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from minisgl.attention.base import Attend, DecodeBackend, PrefillBackend, StepMetadata
from minisgl.kvcache.pool import KVPool


class PagedAttention:
    """Plans the attention of every step; stores the step's keys and values."""

    def __init__(self, pool: KVPool, prefill: PrefillBackend, decode: DecodeBackend) -> None:
        self._pool = pool
        self._prefill = prefill
        self._decode = decode

    def plan(self, step: StepMetadata) -> Attend:
        """What the model calls in each layer of this step."""
        decodes = len(step.host_lengths)
        pool, slots = self._pool, step.slots
        decode = self._decode.plan_decode(step) if decodes else None
        prefill = self._prefill.plan_prefill(step) if step.chunks else None

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            pool.store(layer, slots, key, value)
            out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
            if decode is not None:
                decode(layer, query[:decodes], key[:decodes], value[:decodes], out[:decodes])
            if prefill is not None:
                prefill(layer, query[decodes:], key[decodes:], value[decodes:], out[decodes:])
            return out

        return attend
