"""What a model asks of an attention backend, and what a backend is told of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Target(NamedTuple):
    """Where the keys and values of a step's tokens go, in one layer."""

    cache: Tensor
    """[slots, 2, kv_heads, head_dim]: keys (0) and values (1)."""
    slots: Tensor
    """int64 [T], all different."""

    def store(self, key: Tensor, value: Tensor) -> None:
        """Write key and value [T, kv_heads, head_dim]. What FP8 cannot hold becomes its largest number."""
        both, cache = torch.stack((key, value), dim=1), self.cache
        if cache.dtype == torch.float8_e4m3fn:
            largest = torch.finfo(cache.dtype).max
            both = both.clamp_(-largest, largest).to(cache.dtype).view(torch.uint8)
            cache = cache.view(torch.uint8)
        cache.index_copy_(0, self.slots, both)


Norms = tuple[Tensor, Tensor, float]
"""Weights [head_dim] of the normalizations of query and key heads, and their epsilon."""


class Attend(Protocol):
    """Causal attention of one step, for the layer that calls it."""

    def whole(self, layer: int, heads: Tensor, norms: Norms | None, rotation: Tensor) -> Tensor | None:
        """All that the layer does between its projections, in one kernel; None: not in this step.

        heads [T, heads + 2 kv_heads, head_dim]: queries, keys, values; rotation: `minisgl.layers.rotary.Rotary.at`
        of the tokens' positions -> [T, heads, head_dim].
        """
        ...

    def target(self, layer: int) -> Target:
        """Where the layer stores its keys and values before it attends."""
        ...

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to all tokens that the step's requests have: `key` and `value` are in `target` already.

        query [T, heads, head_dim], key and value [T, kv_heads, head_dim] -> [T, heads, head_dim]. Scores are
        scaled by ``head_dim ** -0.5``; the layer's sliding window applies.
        """
        ...


class Chunk(NamedTuple):
    """Prompt tokens of one row, at positions ``start .. start + length - 1``."""

    row: int
    start: int
    length: int


@dataclass(slots=True, frozen=True, kw_only=True)
class StepMetadata:
    """Where the tokens of one step are: those of the decode rows first, one each, then the chunks'."""

    slots: Tensor
    """int64 [T], on the device: where each token's keys and values go."""
    block_table: Tensor
    """int32 [rows, pages], on the device: every row's pages, valid as far as the row has tokens."""
    decode_rows: Tensor
    """int64 [D], on the device. The same object as long as the rows stay the same."""
    decode_lengths: Tensor
    """int64 [D], on the device: tokens of each decode row, this step's included."""
    host_lengths: list[int]
    """`decode_lengths` as the host knows them."""
    chunks: list[Chunk]


Part = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]
"""(layer, query, key, value, out): attention of some tokens, written to `out` [t, heads, head_dim].

Their keys and values are in the pool already; `key` and `value` are the same once more.
"""


class DecodeBackend(Protocol):
    """Attention of one new token in each of many rows."""

    def plan_decode(self, step: StepMetadata) -> Part:
        """Attention of the step's decode rows, of which there is at least one."""
        ...


class PrefillBackend(Protocol):
    """Attention of chunks of prompts."""

    def plan_prefill(self, step: StepMetadata) -> Part:
        """Attention of the step's chunks, of which there is at least one."""
        ...


class Backend(DecodeBackend, PrefillBackend, Protocol):
    """One that can do both."""


@runtime_checkable
class GraphBackend(Protocol):
    """A decode backend whose launches depend on nothing but what is on the device: they can be captured."""

    def decode_at(self, tables: Tensor, lengths: Tensor) -> Part:
        """Attention of one token in each of D rows, with tables int32 [D, pages] and lengths int32 [D]."""
        ...
