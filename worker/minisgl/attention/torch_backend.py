"""Paged attention in plain torch: for CPUs, and the reference that other backends are tested against.

Pages are copied together, a few rows at a time so that the copy is still in the cache when it is read, and then
attended to by `scaled_dot_product_attention`. Query heads that share a key-value head are laid out as further
queries of that head, so that keys and values are never repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisgl.attention.base import Chunk, Part, StepMetadata
from minisgl.kvcache.pool import KVPool

GATHER_BYTES = 4 << 20
"""Keys and values of decode rows that are copied and attended to at once: about a core's share of the cache."""

PADDING_TOKENS = 512
"""Padding that a group of decode rows may have in all: copying it costs about as much as one more group."""

QUERY_BLOCK = 256
"""Prompt tokens that attend at once: those before the last of them are all that is computed and then masked."""


@dataclass(slots=True, frozen=True)
class _Group:
    """Decode rows of similar length, attended to together."""

    members: list[int]
    """Which of the step's decode rows they are."""
    order: Tensor
    """`members`, on the device."""
    rows: Tensor
    """The members' rows of the block table."""


@dataclass(slots=True, frozen=True)
class _Gather:
    """One group's pages in one step, and where in the buffer they go."""

    order: Tensor | None
    """Which of the step's rows they are. None: all, in their order."""
    pages: Tensor
    """int32 [rows * pages]."""
    target: Tensor
    """[rows * pages, elements of a page], in the buffer; `key` and `value` are views of it."""
    key: Tensor
    """[rows, kv_heads, tokens, head_dim], as is `value`."""
    value: Tensor
    mask: Tensor | None
    """Added to the scores: [rows, 1, 1, tokens]. None: every token is attended to."""


class TorchBackend:
    """Decode and prefill for any page size, grouped-query attention and sliding windows."""

    def __init__(self, pool: KVPool, windows: tuple[int | None, ...]) -> None:
        self._pool = pool
        self._windows = windows
        self._pages = [layer.flatten(1) for layer in pool.layers]
        layer = pool.layers[0]
        self._device, self._dtype = layer.device, pool.dtype
        self._buffer = layer.new_empty(0)
        self._groups: list[_Group] = []
        self._grouped_rows: Tensor | None = None
        self._grouped_tokens = 0
        self._masks: dict[int | None, Tensor] = {}

    # ---- decode ----

    def plan_decode(self, step: StepMetadata) -> Part:
        self._group(step)
        plans = {window: self._plan_window(step, window) for window in set(self._windows)}
        windows, pages, kv_heads = self._windows, self._pages, self._pool.kv_heads

        def decode(layer: int, query: Tensor, _key: Tensor, _value: Tensor, out: Tensor) -> None:
            by_kv_head = (query.shape[0], kv_heads, -1, query.shape[2])
            query, out = query.view(by_kv_head), out.view(by_kv_head)
            for gather in plans[windows[layer]]:
                torch.index_select(pages[layer], 0, gather.pages, out=gather.target)
                rows = query if gather.order is None else query.index_select(0, gather.order)
                key, value = gather.key.to(rows.dtype), gather.value.to(rows.dtype)
                result = _attention(rows, key, value, gather.mask)
                if gather.order is None:
                    out.copy_(result)
                else:
                    out.index_copy_(0, gather.order, result)

        return decode

    def _group(self, step: StepMetadata) -> None:
        """Sort the rows into groups; kept until the rows change, or have grown out of shape."""
        lengths = step.host_lengths
        if step.decode_rows is self._grouped_rows:
            tokens = sum(len(g.members) * max(lengths[i] for i in g.members) for g in self._groups)
            if tokens <= self._grouped_tokens:
                return
        pool = self._pool
        token_bytes = 2 * pool.kv_heads * pool.head_dim * self._dtype.itemsize
        most_tokens = max(GATHER_BYTES // token_bytes, 1)
        parts: list[list[int]] = []
        padding = 0
        for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            if parts:
                longest = lengths[parts[-1][0]]
                padding += longest - lengths[index]
                if (len(parts[-1]) + 1) * longest <= most_tokens and padding <= PADDING_TOKENS:
                    parts[-1].append(index)
                    continue
            parts.append([index])
            padding = 0
        self._groups = []
        for part in parts:
            order = torch.tensor(part, device=self._device)
            self._groups.append(_Group(part, order, step.decode_rows[order]))
        self._grouped_rows = step.decode_rows
        padded = sum(len(part) * lengths[part[0]] for part in parts)
        self._grouped_tokens = padded + max(padded // 2, pool.page_size * len(lengths))

    def _plan_window(self, step: StepMetadata, window: int | None) -> list[_Gather]:
        page_size = self._pool.page_size
        longest = [max(step.host_lengths[i] for i in group.members) for group in self._groups]
        widths = [-(-length // page_size) for length in longest]
        if window is not None:
            # A window of w tokens touches so many pages, wherever in its first page it begins.
            widths = [min(width, (window + page_size - 2) // page_size + 1) for width in widths]
        self._reserve(max(len(g.members) * width for g, width in zip(self._groups, widths, strict=True)))
        return [
            self._plan_group(step, group, length, width, window)
            for group, length, width in zip(self._groups, longest, widths, strict=True)
        ]

    def _plan_group(
        self, step: StepMetadata, group: _Group, longest: int, width: int, window: int | None
    ) -> _Gather:
        """`width` pages of each row of the group: the first ones or, with a window, those up to the last token."""
        page_size, count = self._pool.page_size, len(group.members)
        order = None if group.members == list(range(len(step.host_lengths))) else group.order
        if width * page_size >= longest:
            pages = step.block_table[:, :width].index_select(0, group.rows)
            if count == 1 and window is None:
                target, key, value = self._views(1, width)
                return _Gather(order, pages[0], target, key[:, :, :longest], value[:, :, :longest], None)
            first = torch.zeros((count, 1), dtype=torch.int64, device=self._device)
            lengths = step.decode_lengths[group.order].unsqueeze(1)
        else:
            lengths = step.decode_lengths[group.order].unsqueeze(1)
            first = ((lengths + (page_size - 1)) // page_size - width).clamp_min_(0)
            columns = first + torch.arange(width, device=self._device)
            pages = step.block_table[group.rows.unsqueeze(1), columns]
        positions = first * page_size + torch.arange(width * page_size, device=self._device)
        hidden = positions >= lengths
        if window is not None:
            hidden |= positions < lengths - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        mask = mask.masked_fill_(hidden, -torch.inf).view(count, 1, 1, -1)
        target, key, value = self._views(count, width)
        return _Gather(order, pages.flatten(), target, key, value, mask)

    # ---- prefill ----

    def plan_prefill(self, step: StepMetadata) -> Part:
        windows, pages, pool = self._windows, self._pages, self._pool
        page_size, kv_heads = pool.page_size, pool.kv_heads
        # The pages from the first token that the window leaves in sight. A chunk that begins a row needs none,
        # unless the pool rounds: it reads its own keys and values rounded, as those that share its pages will.
        gathers: list[dict[int | None, tuple[int, Tensor]]] = []
        for row, start, length in step.chunks:
            gathers.append({})
            for window in set(windows) if start or pool.rounds else ():
                first = 0 if window is None else max(0, start - window + 1) // page_size
                last = -(-(start + length) // page_size)
                gathers[-1][window] = first * page_size, step.block_table[row, first:last]
        longest = max(chunk.start + chunk.length for chunk in step.chunks)
        masks = {window: self._relative_mask(window, longest) for window in set(windows)}

        def prefill(layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
            window, begin = windows[layer], 0
            for chunk, gathered in zip(step.chunks, gathers, strict=True):
                end = begin + chunk.length
                if gathered:
                    first, numbers = gathered[window]
                    tokens = pages[layer].index_select(0, numbers).view(-1, 2, kv_heads, pool.head_dim)
                    keys, values = tokens.to(query.dtype).unbind(1)
                else:
                    first, keys, values = 0, key[begin:end], value[begin:end]
                _attend_chunk(query[begin:end], keys, values, out[begin:end], chunk, first, window, masks[window])
                begin = end

        return prefill

    def _relative_mask(self, window: int | None, longest: int) -> Tensor:
        """What the queries of a block may see, by distance: [QUERY_BLOCK, W], with W at least `longest`.

        Column ``W - QUERY_BLOCK + i`` is query i's own token. A block at any position takes its keys' columns.
        """
        mask = self._masks.get(window)
        if mask is None or mask.shape[1] < longest + QUERY_BLOCK:
            width = -(-longest // 1024) * 1024 + QUERY_BLOCK
            queries = torch.arange(QUERY_BLOCK, device=self._device).unsqueeze(1)
            distance = torch.arange(QUERY_BLOCK - width, QUERY_BLOCK, device=self._device) - queries
            hidden = distance > 0
            if window is not None:
                hidden |= distance <= -window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
            self._masks[window] = mask.masked_fill_(hidden, -torch.inf)
        return self._masks[window]

    # ---- the buffer ----

    def _reserve(self, pages: int) -> None:
        size = pages * self._pages[0].shape[1]
        if self._buffer.numel() < size:
            self._buffer = self._buffer.new_empty(size + size // 4)

    def _views(self, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The buffer's start as [rows * width, elements of a page], and its keys and values by row."""
        pool, elements = self._pool, self._pages[0].shape[1]
        target = self._buffer[: rows * width * elements].view(rows * width, elements)
        tokens = target.view(rows, width * pool.page_size, 2, pool.kv_heads, pool.head_dim)
        key, value = tokens.transpose(1, 3).unbind(2)
        return target, key, value


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``softmax(query key^T / sqrt(head_dim) + mask) value`` over the last two dimensions.

    CUDA's fused kernels want alignments that views of pages and masks do not have: there it is the plain formula.
    """
    if query.is_cuda:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _attend_chunk(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    chunk: Chunk,
    first: int,
    window: int | None,
    mask: Tensor,
) -> None:
    """Attention of one chunk to `key` and `value`, whose first token is at position `first`, block by block."""
    length, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.view(length, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    by_head = (kv_heads, heads // kv_heads, -1, -1)  # the expansion is of the view: nothing is copied
    keys = key.transpose(0, 1).unsqueeze(1).expand(by_head)
    values = value.transpose(0, 1).unsqueeze(1).expand(by_head)
    result = out.view(length, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    for i in range(0, length, QUERY_BLOCK):
        n = min(QUERY_BLOCK, length - i)
        position = chunk.start + i
        low = first if window is None else max(first, position - window + 1)
        own = mask.shape[1] - QUERY_BLOCK  # column of the block's first token
        seen = slice(low - first, position + n - first)
        result[:, :, i : i + n] = _attention(
            grouped[:, :, i : i + n],
            keys[:, :, seen],
            values[:, :, seen],
            mask[:n, own - (position - low) : own + n],
        )
