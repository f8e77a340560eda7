"""What the model reads in a step of chunks, from what the host sends of it and the request table.

The reference is `minisgl.engine.rows.Rows.lay_out`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

NEWEST = -1
"""Instead of a token: the newest of its row, which the host may not know yet."""


def look_up(
    sent: Tensor, last_tokens: Tensor, lengths: Tensor, block_table: Tensor, page_size: int
) -> tuple[Tensor, Tensor]:
    """sent int64 [3, T], contiguous: row, position, token or `NEWEST`; a row's tokens are neighbours, in order.

    Returns tokens and slots, int64 [T], and sets `lengths` of the rows to what they are after the step, but of the
    last row, which is padding. last_tokens and lengths int64 [rows], block_table int32 [rows, pages], of every row
    of the request table.
    """
    count = sent.shape[1]
    tokens, slots = torch.empty((2, count), dtype=torch.int64, device=sent.device)
    _look_up[(triton.cdiv(count, 128),)](
        sent, last_tokens, lengths, block_table, tokens, slots, count, block_table.shape[1],
        last_tokens.shape[0] - 1, NEWEST, page_size, 128, early(), launch_pdl=early(),
    )  # fmt: skip
    return tokens, slots


@triton.jit
def _look_up(
    sent, last_tokens, lengths, block_table, tokens, slots, count, width, padding, newest: tl.constexpr,
    page_size: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    begin(early)
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < count
    row, position = tl.load(sent + index, inside, 0), tl.load(sent + count + index, inside, 0)
    token = tl.load(sent + 2 * count + index, inside, 0)
    token = tl.where(token == newest, tl.load(last_tokens + row, inside, 0), token)
    page = tl.load(block_table + row * width + position // page_size, inside, 0).to(tl.int64)
    tl.store(tokens + index, token, inside)
    tl.store(slots + index, page * page_size + position % page_size, inside)
    is_last = row != tl.load(sent + index + 1, index + 1 < count, -1)
    tl.store(lengths + row, position + 1, inside & is_last & (row != padding))
