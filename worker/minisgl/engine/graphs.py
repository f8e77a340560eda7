"""Decode steps as CUDA graphs: the whole step, from the rows of the request table to their next tokens.

A graph is captured for some numbers of rows; a batch is filled up to the next of them with the padding row. The
graph reads the rows from `Rows.decode_rows` and all else from the request table, so a step of the same requests
as before is one launch, and copies nothing from the host.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from minisgl.attention.paged import PagedAttention
from minisgl.engine.rows import Rows
from minisgl.kernel import kernels_for
from minisgl.models.transformer import Transformer


def captured_sizes(most: int) -> list[int]:
    """Numbers of rows to capture: few for small batches, then every eighth, and `most` itself."""
    return sorted({1, 2, 4, *range(8, most, 8), most} & set(range(1, most + 1)))


class DecodeGraphs:
    """One graph for each captured size. All share one memory pool: only one of them runs at a time."""

    def __init__(
        self, most: int, model: Transformer, rows: Rows, attention: PagedAttention, stream: torch.cuda.Stream
    ) -> None:
        """Captures, the largest first, so that the others fit in its memory. Rows must hold no request."""
        self._model = model
        self._rows = rows
        self._attention = attention
        self.sizes = captured_sizes(most)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._results: dict[int, tuple[Tensor, Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(), torch.cuda.stream(stream):
            # Kernels are compiled and libraries set up before any capture; kernels change at powers of two.
            for size in reversed(self.sizes):
                if size == most or size.bit_count() == 1:
                    self._step(size)
            for size in reversed(self.sizes):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    self._results[size] = self._step(size)
                self._graphs[size] = graph

    @property
    def most(self) -> int:
        """The largest number of rows that can be replayed."""
        return self.sizes[-1]

    def replay(self, count: int) -> tuple[Tensor, Tensor]:
        """A step of the first `count` of `Rows.decode_rows`.

        Returns their tokens int64 [count], greedy or drawn from all tokens and committed already, and their logits
        [count, vocab]; both are overwritten by the next replay.
        """
        size = self.sizes[bisect_left(self.sizes, count)]
        self._graphs[size].replay()
        tokens, logits = self._results[size]
        return tokens[:count], logits[:count]

    def _step(self, size: int) -> tuple[Tensor, Tensor]:
        table = self._rows
        kernels = kernels_for(table.decode_rows, "step")
        rows = table.decode_rows[:size]
        step = kernels.advance(rows, table.last_tokens, table.lengths, table.block_table, table.page_size)
        attend = self._attention.decode_at(step.slots, step.tables, step.lengths)
        logits = self._model.logits(self._model(step.tokens, step.positions, attend))
        return table.draw(logits, rows), logits
