"""Decode steps as CUDA graphs: the whole step, from the rows of the request table to their next tokens.

A graph is captured for some numbers of rows; a batch is filled up with the padding row to the next of them, or to
a larger one that was seen to take less time. The graph reads the rows from `Rows.decode_rows` and everything else
from the request table, so a step of the same requests as before is one launch, and copies nothing from the host. A
second, small graph follows it in batches in which some row draws from fewer than all tokens.

Where logits are to be changed first, the tokens that the step has drawn are of no use: another small graph changes
the logits and draws again, before the second one; a last one counts the tokens. Both are captured when the first
such batch of a size comes.

Several ranks divide the rows of a step when its logits are there, each a part of every row's: each chooses the
tokens of its share, and a graph after that tells the others.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from minisgl.attention.paged import PagedAttention
from minisgl.core.batch import Batch
from minisgl.engine.rows import Choice, Rows
from minisgl.engine.sizes import Contest, captured_sizes, replay_time
from minisgl.kernel import kernels_for
from minisgl.kernel.device_memory import memory_at
from minisgl.models.transformer import Transformer

if TYPE_CHECKING:
    from minisgl.kernel.sample import Draw

T = TypeVar("T")

logger = logging.getLogger("minisgl.engine")


THREAD_LOCAL = "thread_local"
"""How strict a capture is: other threads may use the device, since they may still read weights."""


class _Captured(NamedTuple):
    """What `step` leaves is valid to the end of the step, but for the tokens."""

    step: torch.cuda.CUDAGraph
    filtered: torch.cuda.CUDAGraph | None
    """As is `begun`, None on a rank without a share of the rows."""
    told: torch.cuda.CUDAGraph | None
    """Several ranks tell each other their rows' tokens. None: there is one."""
    columns: Tensor
    """[rows, width]: this rank's part of the logits."""
    begun: Draw | None
    tokens: Tensor
    """int64 [rows], of all ranks."""


class _Shaped(NamedTuple):
    drawn: torch.cuda.CUDAGraph | None
    """Between the first two of `_Captured`, as is the second."""
    counted: torch.cuda.CUDAGraph
    """After all of them."""


def borrowed(tensor: Tensor) -> Tensor:
    """The same memory, contiguous, which this tensor does not keep: it belongs to a graph's pool, and other graphs
    of the pool use it in their turn.
    """
    assert tensor.is_contiguous()
    memory = memory_at(tensor.data_ptr(), tensor.nbytes, tensor.device)
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
        self._contest: Contest | None = None
        """Between the captured sizes, once all are."""
        self._winners: dict[int, int] = {}
        """For some sizes, as which other a batch runs."""
        self.prepare(most)
        self.prepare(1)

    @property
    def has_chores(self) -> bool:
        """Whether `do_chore` has something left to do."""
        return bool(self.later) or self._contest is None or not self._contest.done

    def do_chore(self) -> None:
        """Capture one of the sizes left for `later`; once there is none, time one. No step may be running."""
        if self.later:
            self._capture(self.later[0])
            return
        if self._contest is None:
            self._contest = Contest(self._sizes, self._slowest)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            rows, size = self._contest.next
            self._rows.pretend(rows)
            self._contest.add(replay_time(self._graphs[size].step))
        if self._contest.done:
            self._winners = self._contest.winners
            told = ", ".join(f"{size} as {other}" for size, other in sorted(self._winners.items()))
            logger.info("numbers of decode rows that run faster as a larger one: %s", told or "none")

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

    def columns(self, count: int) -> Tensor:
        """This rank's part of the logits [count, width], between `run` and `choose`."""
        return self._graphs[self._size(count)].columns[:count]

    def choose(self, count: int, choice: Choice, *, shaped: bool) -> Tensor:
        """The tokens of these rows, of which `choice` is the most demanding, int64 [count], committed.

        The next `run` overwrites them. `shaped`: as in `prepare`, which must have been told.
        """
        size = self._size(count)
        graphs = self._graphs[size]
        if graphs.filtered is not None:
            if shaped:
                self._shaped[size].drawn.replay()  # type: ignore[union-attr]  # this rank has rows
            if choice > Choice.DRAWN:
                graphs.filtered.replay()
        if graphs.told is not None:
            graphs.told.replay()
        if shaped:
            self._shaped[size].counted.replay()
        return graphs.tokens[:count]

    def close(self) -> None:
        """Free the graphs, of which none may be running."""
        for size, graphs in self._graphs.items():
            shaped = self._shaped.get(size, ())
            for graph in (graphs.step, graphs.filtered, graphs.told, *shaped):
                if graph is not None:
                    graph.reset()

    def _size(self, count: int) -> int:
        size = self._sizes[bisect_left(self._sizes, count)]
        return self._winners.get(size, size)

    def _slowest(self, times: list[float]) -> list[float]:
        """The times of this rank -> the longest of all ranks, each by itself."""
        own = torch.tensor([times], dtype=torch.float64, device=self._rows.lengths.device)
        found: list[float] = self._rows.comm.all_gather(own).amax(0).tolist()
        return found

    def _capture(self, size: int) -> None:
        filtered = told = None
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._rows.update(Batch())  # leaves nothing but padding in `Rows.decode_rows`
            with self._model.shortened():  # compiles kernels and sets up libraries
                _, begun = self._step(size)
                if begun is not None:
                    self._rows.finish_draw(begun)
                self._tell(size, begun)
            step, (columns, begun) = self._captured(lambda: self._step(size))
            kept = tokens = None
            if begun is not None:
                drawn = begun
                filtered, _ = self._captured(lambda: self._rows.finish_draw(drawn))
                # The memory goes back to the pool: nothing else runs between the graphs of a step that use it. But
                # the tokens are read when the next step has been launched.
                lent = {name: borrowed(tensor) for name, tensor in begun._asdict().items()}
                kept, tokens = begun._replace(**lent | {"tokens": begun.tokens}), begun.tokens
            if self._rows.comm.size > 1:
                told, tokens = self._captured(lambda: self._tell(size, begun))
            assert tokens is not None
        self.later.remove(size)
        self._graphs[size] = _Captured(step, filtered, told, borrowed(columns), kept, tokens)
        insort(self._sizes, size)

    def _capture_shaped(self, size: int) -> None:
        table, graphs = self._rows, self._graphs[size]
        begun, drawn = graphs.begun, None
        rows = table.decode_rows[:size]
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            table.update(Batch())
            if begun is not None:
                shaped = begun
                self._shape(shaped)  # compiles kernels
                drawn, _ = self._captured(lambda: self._shape(shaped))
            table.shaping.count(rows, graphs.tokens)
            counted, _ = self._captured(lambda: table.shaping.count(rows, graphs.tokens))
        self._shaped[size] = _Shaped(drawn, counted)

    def _captured(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """A graph of what `work` launches, and what it returns."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=THREAD_LOCAL):
            made = work()
        return graph, made

    def _shape(self, begun: Draw) -> None:
        self._rows.shaping.change(begun.logits, begun.rows)
        self._rows.begin_draw(begun.logits, begun.rows, begun)

    def _step(self, size: int) -> tuple[Tensor, Draw | None]:
        """The logits, as far as they are this rank's, and the draw for the rows that are."""
        table = self._rows
        kernels = kernels_for(table.decode_rows, "step")
        rows = table.decode_rows[:size]
        step = kernels.advance(rows, table.last_tokens, table.lengths, table.block_table, table.page_size)
        attend = self._attention.decode_at(step.slots, step.tables, step.lengths)
        columns = self._model.columns(self._model(step.tokens, step.positions, attend))
        if table.comm.size == 1:
            return columns, table.begin_draw(columns, rows)
        logits = table.own_logits(columns)
        return columns, table.begin_draw(logits, rows[table.comm.share(size)]) if len(logits) else None

    def _tell(self, size: int, begun: Draw | None) -> Tensor:
        """The tokens of all rows, int64 [size], once every rank has chosen those of its share."""
        table = self._rows
        rows = table.decode_rows[:size]
        tokens = table.comm.collect(rows[:0] if begun is None else begun.tokens, size)
        for others in table.others(size):
            table.adopt(rows[others], tokens[others])
        return tokens
