"""Decode steps as CUDA graphs: the whole step, from the rows of the request table to their next tokens.

A graph is captured for some numbers of rows; a batch is filled up to the next of them with the padding row. The
graph reads the rows from `Rows.decode_rows` and all else from the request table, so a step of the same requests
as before is one launch, and copies nothing from the host. A second, small graph follows it in batches in which
some row draws from fewer than all tokens.

Where logits are to be changed first, the tokens that the step has drawn are of no use: another small graph changes
the logits and draws again, before the second one; a last one counts the tokens. Both are captured when the first
such batch of a size comes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from minisgl.attention.paged import PagedAttention
from minisgl.core.batch import Batch
from minisgl.engine.rows import Choice, Rows
from minisgl.kernel import kernels_for
from minisgl.models.transformer import Transformer

if TYPE_CHECKING:
    from minisgl.kernel.sample import Draw


def captured_sizes(most: int) -> tuple[list[int], list[int]]:
    """Numbers of rows: those that no batch has to do without, powers of two and `most`; every eighth besides."""
    needed = {1 << i for i in range(most.bit_length())} | {most}
    return sorted(needed), sorted(set(range(8, most, 8)) - needed)


THREAD_LOCAL = "thread_local"
"""How strict a capture is: other threads may use the device, since they may still read weights."""


class _Captured(NamedTuple):
    step: torch.cuda.CUDAGraph
    filtered: torch.cuda.CUDAGraph
    begun: Draw
    """What the one leaves to the other; valid from the one to the end of the step."""


class _Shaped(NamedTuple):
    drawn: torch.cuda.CUDAGraph
    """Between the two of `_Captured`."""
    counted: torch.cuda.CUDAGraph
    """After them."""


class _Memory:
    """A tensor's memory, for `torch.as_tensor` (CUDA Array Interface, version 3)."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (tensor.nbytes,),
            "data": (tensor.data_ptr(), False),
        }


def borrowed(tensor: Tensor) -> Tensor:
    """The same memory, contiguous, which this tensor does not keep: it belongs to a graph's pool, and other graphs
    of the pool use it in their turn.
    """
    assert tensor.is_contiguous()
    memory = torch.as_tensor(_Memory(tensor), device=tensor.device)
    return memory.view(tensor.dtype).view(tensor.shape)


class DecodeGraphs:
    """The graphs of each captured size. All share one memory pool: only one size runs at a time."""

    def __init__(
        self, most: int, model: Transformer, rows: Rows, attention: PagedAttention, stream: torch.cuda.Stream
    ) -> None:
        """Captures the largest size, so that the others fit in its memory, and the smallest."""
        self.most = most
        """The largest number of rows that can be replayed."""
        self._model = model
        self._rows = rows
        self._attention = attention
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _Captured] = {}
        self._shaped: dict[int, _Shaped] = {}
        self._sizes: list[int] = []  # captured, ascending
        self._needed, others = captured_sizes(most)
        self.later = [*self._needed[::-1], *others]
        """Sizes that are not captured yet."""
        self.prepare(most)
        self.prepare(1)

    def capture_next(self) -> None:
        """Capture one of the sizes left for `later`."""
        self._capture(self.later[0])

    def prepare(self, count: int, *, shaped: bool = False) -> None:
        """Before `Rows.update` of a step of `count` rows: capture the size that it needs, if none yet does.

        `shaped`: the logits of some of the rows are to be changed.
        """
        size = self._needed[bisect_left(self._needed, count)]
        if size not in self._graphs:
            self._capture(size)
        if shaped and self._size(count) not in self._shaped:
            self._capture_shaped(self._size(count))

    def run(self, count: int) -> None:
        """A step of the first `count` of `Rows.decode_rows`, up to their logits."""
        self._graphs[self._size(count)].step.replay()

    def logits(self, count: int) -> Tensor:
        """[count, vocab], between `run` and `choose`."""
        return self._graphs[self._size(count)].begun.logits[:count]

    def choose(self, count: int, choice: Choice, *, shaped: bool) -> Tensor:
        """The tokens of these rows, of which `choice` is the most demanding, int64 [count], committed.

        The next `run` overwrites them. `shaped`: as in `prepare`, which must have been told.
        """
        size = self._size(count)
        graphs = self._graphs[size]
        if shaped:
            self._shaped[size].drawn.replay()
        if choice > Choice.DRAWN:
            graphs.filtered.replay()
        if shaped:
            self._shaped[size].counted.replay()
        return graphs.begun.tokens[:count]

    def _size(self, count: int) -> int:
        return self._sizes[bisect_left(self._sizes, count)]

    def _capture(self, size: int) -> None:
        step, filtered = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._rows.update(Batch())  # leaves nothing but padding in `Rows.decode_rows`
            with self._model.shortened():
                self._rows.finish_draw(self._step(size))  # compiles kernels and sets up libraries
            with torch.cuda.graph(step, self._pool, self._stream, capture_error_mode=THREAD_LOCAL):
                begun = self._step(size)
            with torch.cuda.graph(filtered, self._pool, self._stream, capture_error_mode=THREAD_LOCAL):
                self._rows.finish_draw(begun)
            # The memory goes back to the pool: nothing else runs between the graphs of a step that use it.
            tensors = {name: borrowed(tensor) for name, tensor in begun._asdict().items()}
        # The tokens are read when the next step has been launched.
        kept = begun._replace(**tensors | {"tokens": begun.tokens})
        self.later.remove(size)
        self._graphs[size] = _Captured(step, filtered, kept)
        insort(self._sizes, size)

    def _capture_shaped(self, size: int) -> None:
        table, begun = self._rows, self._graphs[size].begun
        drawn, counted = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            table.update(Batch())
            self._shape(begun)  # compiles kernels
            table.shaping.count(begun.rows, begun.tokens)
            with torch.cuda.graph(drawn, self._pool, self._stream, capture_error_mode=THREAD_LOCAL):
                self._shape(begun)
            with torch.cuda.graph(counted, self._pool, self._stream, capture_error_mode=THREAD_LOCAL):
                table.shaping.count(begun.rows, begun.tokens)
        self._shaped[size] = _Shaped(drawn, counted)

    def _shape(self, begun: Draw) -> None:
        self._rows.shaping.change(begun.logits, begun.rows)
        self._rows.begin_draw(begun.logits, begun.rows, begun)

    def _step(self, size: int) -> Draw:
        table = self._rows
        kernels = kernels_for(table.decode_rows, "step")
        rows = table.decode_rows[:size]
        step = kernels.advance(rows, table.last_tokens, table.lengths, table.block_table, table.page_size)
        attend = self._attention.decode_at(step.slots, step.tables, step.lengths)
        logits = self._model.logits(self._model(step.tokens, step.positions, attend))
        return table.begin_draw(logits, rows)
