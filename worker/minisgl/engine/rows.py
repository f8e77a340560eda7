"""The request table on the device: what a step needs to know of each request, kept from step to step.

The host sends only what changes. A step that decodes the same rows as the step before sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minisgl.attention.base import Chunk, StepMetadata
from minisgl.core.batch import Batch, Join, PageWrite
from minisgl.core.sampling import SamplingParams
from minisgl.distributed import Communicator
from minisgl.engine.sampler import SamplingRows, greedy, sample
from minisgl.engine.scores import Question
from minisgl.engine.shaping import Shaping
from minisgl.kernel import kernels_for

if TYPE_CHECKING:
    from minisgl.kernel.sample import Draw  # imports Triton, which builds of torch for CPUs lack


PRETENDED, PRETENDED_STEPS = 1024, 16
"""Tokens of each row in a step that is only timed, if there can be so many; and such steps of the same rows."""


class Choice(IntEnum):
    """How much work choosing a row's token is. A batch takes the way of its most demanding row."""

    GREEDY = 0
    DRAWN = 1
    """From all tokens."""
    FILTERED = 2
    """From those that min-p leaves."""
    RANKED = 3
    """From the most likely tokens: top-k or top-p."""

    @staticmethod
    def of(params: SamplingParams) -> Choice:
        if params.greedy:
            return Choice.GREEDY
        if params.top_k > 0 or params.top_p < 1.0:
            return Choice.RANKED
        return Choice.FILTERED if params.min_p > 0.0 else Choice.DRAWN


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
    host_rows: list[int]
    """The same."""


class Rows:
    """State of every row of the request table, as tensors on the device."""

    def __init__(
        self,
        *,
        num_rows: int,
        max_pages: int,
        page_size: int,
        vocab_size: int,
        device: torch.device,
        comm: Communicator | None = None,
        padding_page: int = 0,
    ) -> None:
        """`max_pages`: of one request. One row more than `num_rows`, the last, fills up captured batches: it
        belongs to no request, and writes its keys and values to `padding_page`.
        """
        self.page_size = page_size
        self.comm = Communicator() if comm is None else comm
        self._device = device
        self._padding_row = num_rows
        self._padding_page = padding_page
        self.block_table = torch.zeros((num_rows + 1, max_pages), dtype=torch.int32, device=device)
        self.block_table[-1] = padding_page
        num_rows += 1
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """Tokens in the KV cache."""
        self.last_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """The newest token, which is not in the KV cache yet."""
        self.sampling = SamplingRows.zeros(num_rows, device)
        values = 1 << 16 if device.type == "cuda" else 0
        self._counts = torch.zeros((num_rows, values), dtype=torch.int32, device=device)
        """What `finish_draw` counts: how often each value of 16 bits occurs in a row's logits. Zeros meanwhile."""
        self._vocab_size = vocab_size
        self.shaping = Shaping(num_rows, vocab_size, device, self.upload)
        self.scored: dict[int, int] = {}
        """Rows whose newest request asks for log-probabilities, and of how many of the most likely tokens."""
        self._question: Question | None = None
        self._choices = [Choice.GREEDY] * num_rows
        self._chosen: list[int] = []
        self._choice = Choice.GREEDY
        """What the rows of `_chosen` take: a list that is the same, in steady decoding, step after step."""
        self._top_ks = [0] * num_rows
        self._decode_list: list[int] = []
        self.decode_rows = self.upload([num_rows - 1] * num_rows)
        """The rows of the newest batch that decodes, then the padding row: captured steps read them here."""
        self._decode_view = self.decode_rows[:0]

    def upload(
        self, values: Sequence[int] | Sequence[Sequence[float]] | Tensor, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """The one way from the host to the device. Does not wait: torch keeps the pinned copy until it is read."""
        host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
        return host if self._device.type == "cpu" else host.pin_memory().to(self._device, non_blocking=True)

    # ---- what changes ----

    def update(self, batch: Batch) -> None:
        """Take in what `batch` changes."""
        if batch.joined:
            self._join(batch.joined)
        if batch.pages:
            self._write_pages(batch.pages)
        if batch.masks:
            self.shaping.write_masks(batch.masks)
        rows = batch.decode_rows
        if rows is not self._decode_list and rows != self._decode_list:
            padding = [self._padding_row] * (len(self.decode_rows) - len(rows))
            self.decode_rows.copy_(self.upload(rows + padding))
            self._decode_view = self.decode_rows[: len(rows)]
        self._decode_list = rows

    def pretend(self, count: int) -> None:
        """Let the next steps, `PRETENDED_STEPS` at most, decode `count` rows of some tokens. No row may be in use.

        They read pages of the pool, whatever is there, and write to the padding page alone. Where rows can't have
        so many tokens, only padding is decoded.
        """
        size, width = self.page_size, self.block_table.shape[1]
        pages = min(PRETENDED // size, width // 2, self._padding_page)
        if (width - 1 - pages) * size < PRETENDED_STEPS:
            count = 0
        table, read = self.block_table[:count], torch.arange(count * pages, dtype=torch.int32, device=self._device)
        table[:, :pages] = (read % max(self._padding_page, 1)).view(count, pages)
        table[:, pages:] = self._padding_page
        self.lengths[:count] = pages * size
        self.last_tokens[:count] = 0
        self.update(Batch(decode_rows=list(range(count))))

    def choice(self, rows: list[int]) -> Choice:
        """What choosing the tokens of `rows` takes."""
        if rows is not self._chosen:
            self._chosen, self._choice = rows, max((self._choices[row] for row in rows), default=Choice.GREEDY)
        return self._choice

    def question(self, rows: list[int]) -> Question | None:
        """Which of `rows` ask for log-probabilities, None if none does. Uploaded when it has changed."""
        if not self.scored or self.scored.keys().isdisjoint(rows):
            return None
        asked = [(place, self.scored[row]) for place, row in enumerate(rows) if row in self.scored]
        if self._question is None or self._question.asked != asked:
            self._question = Question(asked, self.upload([place for place, _ in asked]))
        return self._question

    def lay_out(self, batch: Batch) -> StepInput:
        """The tokens of `batch`, after `update`. `lengths` are then those after the step."""
        decodes = self._decode_input()
        return self._with_chunks(batch, *decodes) if batch.prefill else self._step(batch, *decodes)

    def choose(self, columns: Tensor, rows: Tensor, host_rows: list[int]) -> Tensor:
        """This rank's part of the logits [S, width], which may change -> the next tokens of `rows`, int64 [S].

        They are committed. Ranks divide the rows: each chooses its own rows' tokens and tells the others.
        """
        comm = self.comm
        if comm.size == 1:
            return self._choose(columns, rows, host_rows)
        own = comm.share(len(rows))
        chosen = self._choose(self.own_logits(columns), rows[own], host_rows[own])
        tokens = comm.collect(chosen, len(rows))
        for others in self.others(len(rows)):
            self.adopt(rows[others], tokens[others])
            if self.shaping.any(host_rows[others]):
                self.shaping.count(rows[others], tokens[others])
        return tokens

    def own_logits(self, columns: Tensor) -> Tensor:
        """This rank's part of the logits [S, width] -> all logits of its share of the rows [share, vocab]."""
        return self.comm.exchange(columns)[:, : self._vocab_size].contiguous()

    def others(self, count: int) -> list[slice]:
        """The shares of the other ranks of `count` rows, as far as there are any."""
        own = self.comm.share(count)
        return [part for part in (slice(0, own.start), slice(own.stop, count)) if part.start < part.stop]

    def adopt(self, rows: Tensor, tokens: Tensor) -> None:
        """`tokens` have been chosen for `rows`, both int64 [S]."""
        self.last_tokens.index_copy_(0, rows, tokens)
        self.sampling.generated.index_add_(0, rows, torch.ones_like(rows))

    def _choose(self, logits: Tensor, rows: Tensor, host_rows: list[int]) -> Tensor:
        """logits [S, vocab], which may change -> the next tokens of `rows`, int64 [S], committed."""
        if not host_rows:
            return rows
        choice, shaped = self.choice(host_rows), self.shaping.any(host_rows)
        if shaped:
            self.shaping.change(logits, rows, host_rows)
        if logits.is_cuda and logits.itemsize == 2:
            tokens = self.draw(logits, rows, choice)
        else:
            if choice is Choice.GREEDY:
                tokens = greedy(logits)
            else:
                tokens = sample(
                    logits,
                    self.sampling.at(rows),
                    ranked=choice is Choice.RANKED,
                    largest_top_k=max(self._top_ks[row] for row in host_rows),
                )
            self.adopt(rows, tokens)
        if shaped:
            self.shaping.count(rows, tokens)
        return tokens

    def draw(self, logits: Tensor, rows: Tensor, choice: Choice) -> Tensor:
        """On CUDA, logits of 16 bits [S, vocab] -> the next tokens of `rows`, int64 [S], committed."""
        begun = self.begin_draw(logits, rows)
        if choice > Choice.DRAWN:
            self.finish_draw(begun)
        return begun.tokens

    def begin_draw(self, logits: Tensor, rows: Tensor, instead_of: Draw | None = None) -> Draw:
        """The tokens of rows that are greedy or draw from all tokens. `instead_of`: as in `kernel.sample.draw`."""
        begun: Draw = kernels_for(logits, "sample").draw(logits, rows, self.sampling, self.last_tokens, instead_of)
        return begun

    def finish_draw(self, begun: Draw) -> None:
        """The tokens of the other rows."""
        kernels_for(begun.logits, "sample").draw_filtered(begun, self.sampling, self.last_tokens, self._counts)

    def _join(self, joins: list[Join]) -> None:
        self._chosen = []
        for join in joins:
            self._choices[join.row] = Choice.of(join.params)
            self._top_ks[join.row] = join.params.top_k
            self.scored.pop(join.row, None)
            if join.params.logprobs is not None:
                self.scored[join.row] = join.params.logprobs
        rows = self.upload([join.row for join in joins])
        shape = [[join.params.temperature, join.params.top_p, join.params.min_p] for join in joins]
        counts = [[join.params.top_k, join.params.seed or 0, join.generated] for join in joins]
        self.sampling.write(rows, self.upload(shape, torch.float32), self.upload(counts))
        self.shaping.join(joins)

    def _write_pages(self, writes: list[PageWrite]) -> None:
        width = self.block_table.shape[1]
        places = [w.row * width + w.first + i for w in writes for i in range(len(w.pages))]
        pages = [page for w in writes for page in w.pages]
        uploaded = self.upload([places, pages])
        self.block_table.view(-1).index_copy_(0, uploaded[0], uploaded[1].to(torch.int32))

    # ---- the step's input ----

    def _decode_input(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, tokens and positions of the decode rows, whose lengths it increases."""
        rows = self._decode_view
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
            host_rows=batch.decode_rows,
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
        spans = [(chunk.start, chunk.start + len(chunk.tokens)) for chunk in chunks]
        chunk_rows, chunk_ends = self.upload([[chunk.row for chunk in chunks], [end for _, end in spans]])
        self.lengths.index_copy_(0, chunk_rows, chunk_ends)
        of_chunks = torch.empty((3, ends - len(rows)), dtype=torch.int64)
        torch.cat([torch.full((len(chunk.tokens),), chunk.row) for chunk in chunks], out=of_chunks[0])
        torch.cat([torch.arange(*span) for span in spans], out=of_chunks[1])
        tokens_of_chunks = [np.array(chunk.tokens) for chunk in chunks]  # seven times as fast as torch.tensor
        of_chunks[2] = torch.from_numpy(np.concatenate(tokens_of_chunks))
        more_rows, more_positions, more_tokens = self.upload(of_chunks)
        all_rows, all_positions = torch.cat((rows, more_rows)), torch.cat((positions, more_positions))
        places, token_rows = self.upload([sampled, sampled_rows])
        return StepInput(
            tokens=torch.cat((tokens, more_tokens)),
            positions=all_positions,
            metadata=self._metadata(batch, all_rows, all_positions, rows, positions),
            sampled=places,
            rows=token_rows,
            host_rows=sampled_rows,
        )

    def _metadata(
        self, batch: Batch, rows: Tensor, positions: Tensor, decode_rows: Tensor, decode_positions: Tensor
    ) -> StepMetadata:
        pages = self.block_table[rows, positions // self.page_size]
        return StepMetadata(
            slots=pages * self.page_size + positions % self.page_size,
            block_table=self.block_table,
            decode_rows=decode_rows,
            decode_lengths=decode_positions + 1,
            host_lengths=batch.decode_lengths,
            chunks=[Chunk(chunk.row, chunk.start, len(chunk.tokens)) for chunk in batch.prefill],
        )
