"""What changes the logits before the choice: bias, penalties, and a grammar's mask, in this order.

It is kept on the device for each row of the request table, allocated when the first request asks for any of it. A
step uploads nothing but masks: which tokens a request has is counted on the device, as they are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minisgl.core.batch import Join, MaskWrite
from minisgl.core.sampling import SamplingParams
from minisgl.kernel import kernels_for

PENALIZED, BIASED, MASKED = 1, 2, 4
"""Kinds of shaping, as bits; the kernels know them as numbers."""
MOST_BIASES = 512
"""Tokens of one request that can have a bias: a power of two."""


class ShapingTable(NamedTuple):
    """One line a row of the request table. A line says nothing unless the row's kinds say that it does."""

    kinds: Tensor
    """int32 [rows]"""
    numbers: Tensor
    """float32 [rows, 3]: presence, frequency and repetition penalty."""
    seen: Tensor
    """int32 [rows, vocab]: twice the times that the token was generated, and 1 if it is in the prompt."""
    bias_ids: Tensor
    """int32 [rows, `MOST_BIASES`], -1 after the last."""
    biases: Tensor
    """float32, beside them."""
    masks: Tensor
    """int32 [rows, ceil(vocab / 32)]: `minisgl.core.batch.MaskWrite.words`."""

    @staticmethod
    def allocate(num_rows: int, vocab_size: int, device: torch.device) -> ShapingTable:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return ShapingTable(
            kinds=zeros(num_rows),
            numbers=zeros(num_rows, 3, dtype=torch.float32),
            seen=zeros(num_rows, vocab_size),
            bias_ids=zeros(num_rows, MOST_BIASES),
            biases=zeros(num_rows, MOST_BIASES, dtype=torch.float32),
            masks=zeros(num_rows, -(-vocab_size // 32)),
        )

    def at(self, rows: Tensor) -> ShapingTable:
        """The lines of `rows`, int64 [S]."""
        return ShapingTable(*(column.index_select(0, rows) for column in self))


def kinds_of(params: SamplingParams) -> int:
    return PENALIZED * params.penalized | BIASED * bool(params.logit_bias) | MASKED * bool(params.grammar)


def shaped(logits: Tensor, table: ShapingTable) -> Tensor:
    """logits [S, vocab], table [S] -> the changed logits, in the same type.

    Finite ones stay finite, whatever a penalty does to them, but for those that a mask forbids: they are -inf.
    """
    kinds = table.kinds.unsqueeze(1)
    vocab_size = logits.shape[1]
    is_token = (table.bias_ids >= 0) & (table.bias_ids < vocab_size)
    biases = torch.where(is_token & (kinds & BIASED > 0), table.biases, 0.0)
    values = logits.float().scatter_add(1, table.bias_ids.clamp(0, vocab_size - 1).long(), biases)
    values = values.to(logits.dtype).float()

    presence, frequency, repetition = table.numbers.unsqueeze(2).unbind(1)
    times = table.seen >> 1
    repeated = torch.where(values > 0, values / repetition, values * repetition)
    penalized = torch.where(table.seen > 0, repeated, values) - (frequency * times + presence * (times > 0))
    largest = torch.finfo(logits.dtype).max
    values = torch.where(kinds & PENALIZED > 0, penalized.clamp_(-largest, largest), values)

    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (table.masks.unsqueeze(2) >> bits & 1).flatten(1)[:, :vocab_size] > 0
    values.masked_fill_((kinds & MASKED > 0) & ~allowed, -torch.inf)
    return values.to(logits.dtype)


class Shaping:
    """Of which rows the logits are changed, and how."""

    def __init__(
        self, num_rows: int, vocab_size: int, device: torch.device, upload: Callable[..., Tensor]
    ) -> None:
        """`upload`: as `minisgl.engine.rows.Rows.upload`."""
        self._num_rows, self._vocab_size, self._device = num_rows, vocab_size, device
        self._upload = upload
        self._kinds: dict[int, int] = {}
        """Of the rows whose newest request has any."""
        self._allocated: ShapingTable | None = None

    @property
    def _table(self) -> ShapingTable:
        if self._allocated is None:
            self._allocated = ShapingTable.allocate(self._num_rows, self._vocab_size, self._device)
        return self._allocated

    # ---- what changes ----

    def join(self, joins: list[Join]) -> None:
        """Rows that belong to new requests."""
        for join in joins:
            if join.row in self._kinds or join.params.shaped:
                kinds = kinds_of(join.params)
                self._table.kinds[join.row] = kinds
                if kinds:
                    self._kinds[join.row] = kinds
                    self._join(join, kinds)
                else:
                    del self._kinds[join.row]

    def _join(self, join: Join, kinds: int) -> None:
        table, row, params = self._table, join.row, join.params
        if kinds & BIASED:
            ids, biases = zip(*params.logit_bias, strict=True)
            table.bias_ids[row].fill_(-1)[: len(ids)] = self._upload(ids, torch.int32)
            table.biases[row, : len(ids)] = self._upload(biases, torch.float32)
        if kinds & MASKED:
            table.masks[row] = -1
        if kinds & PENALIZED:
            numbers = [params.presence_penalty, params.frequency_penalty, params.repetition_penalty]
            table.numbers[row] = self._upload(numbers, torch.float32)
            known = np.array(join.tokens, dtype=np.int64)
            prompt = known[: len(known) - join.generated]
            tokens, places = np.unique(known, return_inverse=True)
            times = np.bincount(places[len(prompt) :], minlength=len(tokens))
            values = 2 * times + np.isin(tokens, prompt)
            uploaded = self._upload(torch.from_numpy(np.stack((tokens, values))))
            table.seen[row].zero_().index_copy_(0, uploaded[0], uploaded[1].to(torch.int32))

    def write_masks(self, writes: list[MaskWrite]) -> None:
        masks = self._table.masks
        words = np.zeros((len(writes), masks.shape[1]), dtype=np.int32)
        for line, write in zip(words, writes, strict=True):
            given = np.frombuffer(write.words, dtype=np.int32)[: len(line)]
            line[: len(given)] = given
        rows = self._upload([write.row for write in writes])
        masks.index_copy_(0, rows, self._upload(torch.from_numpy(words)))

    # ---- a step ----

    def any(self, rows: list[int]) -> bool:
        """Whether the logits of one of `rows` are changed."""
        return bool(self._kinds) and not self._kinds.keys().isdisjoint(rows)

    def change(self, logits: Tensor, rows: Tensor) -> None:
        """Change logits [S, vocab] of `rows`, int64 [S], in place."""
        kernels = kernels_for(logits, "shape")
        if kernels is not None and logits.itemsize == 2:
            kernels.shape(logits, rows, self._table)
            return
        places = self._table.kinds.index_select(0, rows).nonzero().squeeze(1)
        table = self._table.at(rows.index_select(0, places))
        logits.index_copy_(0, places, shaped(logits.index_select(0, places), table))

    def count(self, rows: Tensor, tokens: Tensor) -> None:
        """`tokens` have been chosen for `rows`, both int64 [S]."""
        table = self._table
        kernels = kernels_for(tokens, "shape")
        if kernels is not None:
            kernels.count(tokens, rows, table)
            return
        times = table.kinds.index_select(0, rows).bitwise_and_(PENALIZED) * 2
        table.seen.view(-1).index_add_(0, rows * self._vocab_size + tokens, times)
