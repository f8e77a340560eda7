"""Short steps with chunks of prompts as CUDA graphs: what the prefix cache leaves of a prompt, and decodes beside.

Such a step takes the GPU less time than launching its kernels takes the host. A graph is captured for some numbers
of tokens; a step is filled up with tokens of the padding row. What the host knows of a step is sent in one copy;
the rest is in the request table. Decode rows are chunks of one token, the newest of their row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from minisgl.attention.paged import PagedAttention
from minisgl.attention.triton_backend import Numbers, cut_tiles
from minisgl.core.batch import Batch
from minisgl.engine.graphs import THREAD_LOCAL
from minisgl.engine.rows import Rows
from minisgl.kernel import kernels_for
from minisgl.models.transformer import Transformer

Array = TypeVar("Array", Tensor, Numbers)

SIZES = (64, 128, 192, 256, 32, 16, 384, 512, 640, 768, 1024, 896, 1280, 1536, 1792, 2048)
"""Numbers of tokens to capture, after the largest, in whose memory the others fit."""
LEAST = 512
"""Tokens of the largest size for any model."""
WORTHWHILE = 1e13
"""Floating-point operations that a large GPU does while the host launches the kernels of a step, which takes more
than 10 ms. Of a small model they are those of more tokens."""
SHORT = 64
"""The one that is captured at the latest when a step can use it."""


class Sent(NamedTuple, Generic[Array]):
    """What the host sends of a step, int64: parts of one piece of memory."""

    tokens: Array
    """[3, size]: of each token its row, position and token."""
    tiles: Array
    """[4, most tiles], what `ChunkBackend.chunks_at` takes."""
    sampled: Array
    """[2, size]: of each sampled token its place among the tokens, and its row."""


@dataclass(slots=True, frozen=True)
class ReplayedStep:
    """For which rows a replayed step samples; the names are those of `minisgl.engine.rows.StepInput`."""

    sampled: Tensor
    """int64 [S], as is `rows`; overwritten by the next replay."""
    rows: Tensor
    host_rows: list[int]


def most_tokens(weights: int) -> int:
    """The largest size for a model whose layers have so many weights on this rank."""
    return max(size for size in SIZES if size <= max(WORTHWHILE / (2 * weights), LEAST))


class PrefillGraphs:
    """One graph for each size. All share one memory pool: only one of them runs at a time."""

    def __init__(
        self, model: Transformer, rows: Rows, attention: PagedAttention, stream: torch.cuda.Stream
    ) -> None:
        """Captures the largest size."""
        self.most = most_tokens(sum(parameter.numel() for parameter in model.layers.parameters()))
        """The largest number of tokens that can be replayed."""
        self.later = [self.most, *(size for size in SIZES if size < self.most)]
        """Sizes that are not captured yet."""
        self._model = model
        self._rows = rows
        self._attention = attention
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._sizes: list[int] = []  # captured, ascending
        numbers = sum(height * width for height, width in self._shapes(self.most))
        self._sent = torch.empty(numbers, dtype=torch.int64, device=rows.lengths.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._results: dict[int, Tensor] = {}
        self._capture(self.most)

    @property
    def has_chores(self) -> bool:
        """Whether `do_chore` has something left to do."""
        return bool(self.later)

    def do_chore(self) -> None:
        """Capture one of the sizes left for later."""
        self._capture(self.later[0])

    def prepare(self, tokens: int) -> None:
        """Before `Rows.update` of a step of `tokens`: capture the size for short ones, if idle time was short."""
        if tokens <= SHORT and SHORT in self.later:
            self._capture(SHORT)

    def replay(self, batch: Batch) -> tuple[ReplayedStep, Tensor]:
        """A step of at most `most` tokens, after `Rows.update`.

        Returns for which rows it samples, and the hidden states [size, hidden] of all its tokens, which the next
        replay overwrites.
        """
        size = self._sizes[bisect_left(self._sizes, batch.num_tokens)]
        sampled_rows = self._send(batch, size)
        self._graphs[size].replay()
        sampled, rows = self._view(self._sent, size).sampled[:, : len(sampled_rows)]
        return ReplayedStep(sampled, rows, sampled_rows), self._results[size]

    def close(self) -> None:
        """Free the graphs, of which none may be running."""
        for graph in self._graphs.values():
            graph.reset()

    def _shapes(self, size: int) -> tuple[tuple[int, int], ...]:
        """Of the fields of `Sent`."""
        # Every row has at most one tile that is not full. Fields begin where kernels read them fastest.
        tiles = -(-(len(self._rows.lengths) + size // self._tile_tokens(size)) // 16) * 16
        return (3, size), (4, min(tiles, size)), (2, size)

    def _view(self, memory: Array, size: int) -> Sent[Array]:
        """The parts of a piece of memory for a step of `size` tokens."""
        fields: list[Array] = []
        start = 0
        for height, width in self._shapes(size):
            end = start + height * width
            fields.append(memory[start:end].reshape(height, width))
            start = end
        return Sent(*fields)

    def _send(self, batch: Batch, size: int) -> list[int]:
        """Send what the host knows of a step; returns the rows that it samples for."""
        decodes, chunks = len(batch.decode_rows), batch.prefill
        spans = np.array(
            [(row, length - 1, 1) for row, length in zip(batch.decode_rows, batch.decode_lengths, strict=True)]
            + [(chunk.row, chunk.start, len(chunk.tokens)) for chunk in chunks],
            dtype=np.int64,
        ).reshape(-1, 3)
        rows, starts, lengths = spans.T
        ends = lengths.cumsum()
        tokens = batch.num_tokens
        memory: Numbers = np.zeros(sum(height * width for height, width in self._shapes(size)), dtype=np.int64)
        sent = self._view(memory, size)
        row, position, token = sent.tokens
        row[:tokens] = np.repeat(rows, lengths)
        row[tokens:] = len(self._rows.lengths) - 1  # the padding row
        position[:tokens] = np.arange(tokens) - np.repeat(ends - lengths - starts, lengths)
        token[:decodes] = kernels_for(self._sent, "chunks").NEWEST
        token[decodes:tokens] = [token for chunk in chunks for token in chunk.tokens]
        tiles = cut_tiles(spans.T, self._tile_tokens(size))
        sent.tiles[:, : tiles.shape[1]] = tiles
        is_sampled = np.array([True] * decodes + [chunk.sample for chunk in chunks], dtype=bool)
        sampled_rows = rows[is_sampled]
        sent.sampled[:, : len(sampled_rows)] = ends[is_sampled] - 1, sampled_rows
        # torch keeps the pinned copy until it is read.
        self._sent[: len(memory)].copy_(torch.from_numpy(memory).pin_memory(), non_blocking=True)
        return [int(row) for row in sampled_rows]

    def _tile_tokens(self, size: int) -> int:
        assert self._attention.chunks is not None
        return self._attention.chunks.tile_tokens(size)

    def _capture(self, size: int) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._send(Batch(), size)
            with self._model.shortened():
                self._step(size)  # compiles kernels and sets up libraries
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=THREAD_LOCAL):
                self._results[size] = self._step(size)
        self.later.remove(size)
        self._graphs[size] = graph
        insort(self._sizes, size)

    def _step(self, size: int) -> Tensor:
        table, sent = self._rows, self._view(self._sent, size)
        tokens, slots = kernels_for(self._sent, "chunks").look_up(
            sent.tokens, table.last_tokens, table.lengths, table.block_table, table.page_size
        )
        attend = self._attention.chunks_at(slots, table.block_table, sent.tiles)
        hidden: Tensor = self._model(tokens, sent.tokens[1], attend)
        return hidden
