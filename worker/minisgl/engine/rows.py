"""The request table on the device: what a step needs to know of each request, kept from step to step.

The host sends only what changes. A step that decodes the same rows as the step before sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from minisgl.attention.base import Chunk, StepMetadata
from minisgl.core.batch import Batch, Join, PageWrite
from minisgl.core.sampling import SamplingParams
from minisgl.engine.sampler import SamplingRows


class Choice(IntEnum):
    """How much work choosing a row's token is. A batch takes the way of its most demanding row."""

    GREEDY = 0
    DRAWN = 1
    """From all tokens, or those that min-p leaves."""
    RANKED = 2
    """From the most likely tokens: top-k or top-p."""

    @staticmethod
    def of(params: SamplingParams) -> Choice:
        if params.greedy:
            return Choice.GREEDY
        return Choice.RANKED if params.top_k > 0 or params.top_p < 1.0 else Choice.DRAWN


@dataclass(slots=True, frozen=True)
class StepInput:
    """What the model reads in one step, and for which rows it samples."""

    tokens: Tensor
    """int64 [T], as is `positions`."""
    positions: Tensor
    metadata: StepMetadata
    sampled: Tensor | None
    """int64 [S]: the tokens, of T, whose successors are sampled. None: all of them."""
    rows: Tensor
    """int64 [S]: the row that each sampled token is for."""
    choice: Choice
    largest_top_k: int


class Rows:
    """State of every row of the request table, as tensors on the device."""

    def __init__(self, *, num_rows: int, max_pages: int, page_size: int, device: torch.device) -> None:
        """`max_pages`: of one request."""
        self._page_size = page_size
        self._device = device
        self.block_table = torch.zeros((num_rows, max_pages), dtype=torch.int32, device=device)
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """Tokens in the KV cache."""
        self.last_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """The newest token, which is not in the KV cache yet."""
        self.sampling = SamplingRows.zeros(num_rows, device)
        self._choices = [Choice.GREEDY] * num_rows
        self._top_ks = [0] * num_rows
        self._decode_list: list[int] = []
        self._decode_rows = self._upload([], torch.int64)

    def _upload(self, values: Sequence[int] | Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        """The one way from the host to the device."""
        return torch.tensor(values, dtype=dtype, device=self._device)

    # ---- what changes ----

    def begin(self, batch: Batch) -> StepInput:
        """Take in what `batch` changes, and lay out its tokens. `lengths` are then those after the step."""
        if batch.joined:
            self._join(batch.joined)
        if batch.pages:
            self._write_pages(batch.pages)
        decodes = self._decode_input(batch)
        return self._with_chunks(batch, *decodes) if batch.prefill else self._step(batch, *decodes)

    def commit(self, rows: Tensor, tokens: Tensor) -> None:
        """`tokens`, int64 [S], have been sampled for `rows`."""
        self.last_tokens.index_copy_(0, rows, tokens)
        self.sampling.generated.index_add_(0, rows, torch.ones_like(rows))

    def _join(self, joins: list[Join]) -> None:
        for join in joins:
            self._choices[join.row] = Choice.of(join.params)
            self._top_ks[join.row] = join.params.top_k
        rows = self._upload([join.row for join in joins], torch.int64)
        shape = [[join.params.temperature, join.params.top_p, join.params.min_p] for join in joins]
        counts = [[join.params.top_k, join.params.seed or 0, join.generated] for join in joins]
        self.sampling.write(rows, self._upload(shape, torch.float32), self._upload(counts, torch.int64))

    def _write_pages(self, writes: list[PageWrite]) -> None:
        width = self.block_table.shape[1]
        places = [w.row * width + w.first + i for w in writes for i in range(len(w.pages))]
        pages = [page for w in writes for page in w.pages]
        self.block_table.view(-1).index_copy_(
            0, self._upload(places, torch.int64), self._upload(pages, torch.int32)
        )

    # ---- the step's input ----

    def _decode_input(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, tokens and positions of the decode rows, whose lengths it increases."""
        if batch.decode_rows is not self._decode_list and batch.decode_rows != self._decode_list:
            self._decode_rows = self._upload(batch.decode_rows, torch.int64)
        self._decode_list = batch.decode_rows
        rows = self._decode_rows
        positions = self.lengths.index_select(0, rows)
        self.lengths.index_copy_(0, rows, positions + 1)
        return rows, self.last_tokens.index_select(0, rows), positions

    def _step(self, batch: Batch, rows: Tensor, tokens: Tensor, positions: Tensor) -> StepInput:
        """A step of decode rows alone."""
        return StepInput(
            tokens=tokens,
            positions=positions,
            metadata=self._metadata(batch, rows, positions, rows, positions),
            sampled=None,
            rows=rows,
            choice=max((self._choices[row] for row in batch.decode_rows), default=Choice.GREEDY),
            largest_top_k=max((self._top_ks[row] for row in batch.decode_rows), default=0),
        )

    def _with_chunks(self, batch: Batch, rows: Tensor, tokens: Tensor, positions: Tensor) -> StepInput:
        """A step with chunks: their tokens come from the host."""
        chunks, decodes = batch.prefill, len(batch.decode_rows)
        ends, sampled, sampled_rows = decodes, list(range(decodes)), list(batch.decode_rows)
        for chunk in chunks:
            ends += len(chunk.tokens)
            if chunk.sample:
                sampled.append(ends - 1)
                sampled_rows.append(chunk.row)
        of_chunks = self._upload([token for chunk in chunks for token in chunk.tokens], torch.int64)
        spans = [(chunk.start, chunk.start + len(chunk.tokens)) for chunk in chunks]
        chunk_rows = self._upload([chunk.row for chunk in chunks], torch.int64)
        chunk_lengths = self._upload([len(chunk.tokens) for chunk in chunks], torch.int64)
        self.lengths.index_copy_(0, chunk_rows, self._upload([end for _, end in spans], torch.int64))
        all_rows = torch.cat((rows, chunk_rows.repeat_interleave(chunk_lengths)))
        all_positions = torch.cat((positions, *(torch.arange(*span, device=self._device) for span in spans)))
        return StepInput(
            tokens=torch.cat((tokens, of_chunks)),
            positions=all_positions,
            metadata=self._metadata(batch, all_rows, all_positions, rows, positions),
            sampled=self._upload(sampled, torch.int64),
            rows=self._upload(sampled_rows, torch.int64),
            choice=max((self._choices[row] for row in sampled_rows), default=Choice.GREEDY),
            largest_top_k=max((self._top_ks[row] for row in sampled_rows), default=0),
        )

    def _metadata(
        self, batch: Batch, rows: Tensor, positions: Tensor, decode_rows: Tensor, decode_positions: Tensor
    ) -> StepMetadata:
        pages = self.block_table[rows, positions // self._page_size]
        return StepMetadata(
            slots=pages * self._page_size + positions % self._page_size,
            block_table=self.block_table,
            decode_rows=decode_rows,
            decode_lengths=decode_positions + 1,
            host_lengths=batch.decode_lengths,
            chunks=[Chunk(chunk.row, chunk.start, len(chunk.tokens)) for chunk in batch.prefill],
        )
