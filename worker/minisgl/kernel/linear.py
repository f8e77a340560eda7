"""A linear layer for few tokens, with what is around it: RMSNorm, SiLU·mul, the sum with the residual stream.

Up to some dozens of tokens a layer takes as long as reading its weights. They are asked for while the kernel
before still runs. Where there are too few output features for every multiprocessor to read some, the input
features are split too: the last program of a tile to be done adds up the parts, always in the same order.

RMSNorm needs whole rows only for one number each. So what is normalized is multiplied by the norm's weight where
it is made, and by that number in the product's result. The references are `torch.nn.functional.linear`,
`minisgl.layers.norm` and `minisgl.layers.mlp`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import early, fetch, let_next_start, wait_for_earlier

TILES = 4096
"""Most tiles of a layer."""
MOST_TOKENS = 64
MOST_FEATURES = 8192
"""In and out, of the layers that were seen to take less time than cuBLAS, and the kernels around it."""
HELD_TOKENS = 16
PROGRAMS = 132
"""That should run at once."""


def most_tokens(features: int, size: int) -> int:
    """For which `linear` is the faster way through a layer of this size."""
    return MOST_TOKENS if max(features, size) <= MOST_FEATURES else 1


class Weighted(NamedTuple):
    """RMSNorm of some x [T, size] but for the division by each row's root mean square."""

    values: Tensor
    """[T, size]: x times the norm's weight."""
    squares: Tensor
    """float32 [T, parts]: sums of the squares of parts of x."""
    eps: float


def linear(
    x: Tensor | Weighted,
    weight: Tensor,
    bias: Tensor | None,
    counters: Tensor,
    *,
    gated: bool = False,
) -> Tensor:
    """x [T, in], weight [out, in] contiguous, bias [out] or None -> [T, out].

    `gated`: ``silu(first half) * second half`` of the result, [T, out / 2]; not with a bias. counters int32
    [TILES]: zeros, and again later.
    """
    values = x if isinstance(x, Tensor) else x.values
    features = weight.shape[0] // 2 if gated else weight.shape[0]
    out = values.new_empty((len(values), features))
    _launch(x, weight, bias, counters, out, gated=gated)
    return out


def linear_to_stream(
    x: Tensor, weight: Tensor, counters: Tensor, stream: Tensor, norm: tuple[Tensor, float] | None
) -> Tensor | Weighted:
    """Add the layer's result to `stream` [T, out] in place, and return it, or RMSNorm of it.

    `norm`: weight [out] and epsilon of that.
    """
    if norm is None:
        _launch(x, weight, None, counters, stream, add=True)
        return stream
    tokens, features = stream.shape
    columns = _tile(tokens, features, x.shape[1]).columns
    squares = torch.empty((tokens, triton.cdiv(features, columns)), dtype=torch.float32, device=x.device)
    made = Weighted(torch.empty_like(stream), squares, norm[1])
    _launch(x, weight, None, counters, stream, add=True, norm=norm[0], made=made)
    return made


def _launch(
    x: Tensor | Weighted, weight: Tensor, bias: Tensor | None, counters: Tensor, out: Tensor, *,
    gated: bool = False, add: bool = False, norm: Tensor | None = None, made: Weighted | None = None,
) -> None:  # fmt: skip
    values, squares, eps = (x, x, 0.0) if isinstance(x, Tensor) else x
    (tokens, features), size = out.shape, weight.shape[1]
    rows, columns, block, splits, slices, stages = _tile(tokens, features, size)
    tiles = triton.cdiv(features, columns), triton.cdiv(tokens, rows)
    share = triton.cdiv(triton.cdiv(size, splits), block) * block
    count = tiles[0] * tiles[1] * splits * (2 if gated else 1) if splits > 1 else 0
    parts = torch.empty((count, rows, columns), dtype=torch.float32, device=values.device)
    most_square_parts = 0 if values is squares else max(triton.next_power_of_2(squares.shape[1]), 64)
    _linear[(*tiles, splits)](
        values, weight, weight if bias is None else bias, squares, weight if norm is None else norm,
        out, values if made is None else made.values, values if made is None else made.squares, parts, counters,
        tokens, features, eps, squares.shape[1], size, share, most_square_parts, bias is not None, gated, add,
        norm is not None, rows, columns, block, splits, slices, stages, early(),
        num_warps=slices or 4, launch_pdl=early(),
    )  # fmt: skip


class _Tile(NamedTuple):
    rows: int
    """Tokens."""
    columns: int
    """Output features."""
    block: int
    """Input features that are read at once."""
    splits: int
    """Of the input features: programs that each compute a part of the tile's result."""
    slices: int
    """Parts of a block, one a warp, in programs with a single block, which wait for x with its weights. Or 0."""
    stages: int
    """Blocks in flight."""


def _tile(tokens: int, features: int, size: int) -> _Tile:
    """The fastest on an H200, or near it, for weights of some megabytes.

    A few tokens: all weights are in registers before x is there. More: x is streamed with the weights, and tiles
    are narrow, so that every multiprocessor has one or two.
    """
    if tokens <= HELD_TOKENS:
        return _Tile(16, 16, 1024, triton.cdiv(size, 1024), 4, 0)
    splits = min(PROGRAMS // (triton.cdiv(features, 16) * triton.cdiv(tokens, 64)), size // 512)
    if splits > 1:
        return _Tile(64, 16, 256, splits, 0, 3)
    return _Tile(64, 16, 128, 1, 0, 4)


@triton.jit(do_not_specialize=["tokens"])
def _linear(
    x, weight, bias, squares, norm, out, weighted, new_squares, parts, counters, tokens, features, eps,
    square_parts, size: tl.constexpr, share: tl.constexpr, most_square_parts: tl.constexpr,
    has_bias: tl.constexpr, gated: tl.constexpr, add: tl.constexpr, normalize: tl.constexpr, rows: tl.constexpr,
    columns: tl.constexpr, block: tl.constexpr, splits: tl.constexpr, slices: tl.constexpr, stages: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    let_next_start(early)
    feature = tl.program_id(0) * columns + tl.arange(0, columns)
    token = tl.program_id(1) * rows + tl.arange(0, rows)
    there = feature < features
    real = (token < tokens)[:, None]
    first_weight = weight + tl.where(there, feature, 0).to(tl.int64) * size
    to_up = features.to(tl.int64) * size
    exact: tl.constexpr = size == share * splits
    if slices:
        width: tl.constexpr = block // slices
        at = tl.arange(0, slices)[:, None, None] * width + tl.arange(0, width)[None, None, :]
        at += tl.program_id(2) * share
        inside = exact | (at < size)
        gate_weights = tl.load(first_weight[None, :, None] + at, inside, 0.0)  # no kernel writes weights
        up_weights = gate_weights
        if gated:
            up_weights = tl.load(first_weight[None, :, None] + to_up + at, inside, 0.0)
    elif early and exact:
        piece: tl.constexpr = share // 8
        pieces = first_weight[:, None] + tl.program_id(2) * share + tl.arange(0, 8)[None, :] * piece
        fetch(pieces, piece * 2)
        if gated:
            fetch(pieces + to_up, piece * 2)
    weights_after = norm
    if normalize:
        weights_after = tl.load(norm + feature, there, 0.0)
    wait_for_earlier(early)
    place = token.to(tl.int64)[:, None] * features + feature[None, :]
    mask = real & there[None, :]
    before = out
    if add:
        before = tl.load(out + place, mask, 0.0)
    every = squares
    if most_square_parts:
        index = tl.arange(0, most_square_parts)[None, :]
        every = tl.load(squares + token[:, None] * square_parts + index, real & (index < square_parts), 0.0)
    gate = tl.zeros((rows, columns), tl.float32)
    up = gate
    x_row = x + token.to(tl.int64) * size
    if slices:
        values = tl.load(x_row[None, :, None] + at, real[None, :, :] & inside, 0.0)
        gate = tl.sum(tl.dot(values, tl.permute(gate_weights, 0, 2, 1)), axis=0)
        if gated:
            up = tl.sum(tl.dot(values, tl.permute(up_weights, 0, 2, 1)), axis=0)
    else:
        start = tl.program_id(2) * share
        for first in tl.range(start, start + share, block, num_stages=stages):
            at = first + tl.arange(0, block)[None, :]
            inside = exact | (at < size)
            values = tl.load(x_row[:, None] + at, real & inside, 0.0)
            gate = tl.dot(values, tl.load(first_weight[:, None] + at, inside, 0.0).T, gate)
            if gated:
                up = tl.dot(values, tl.load(first_weight[:, None] + to_up + at, inside, 0.0).T, up)
    done = True
    if splits > 1:
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        spot = tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :]
        part_size: tl.constexpr = rows * columns * (2 if gated else 1)
        first_part = parts + tile * splits * part_size + spot
        own = first_part + tl.program_id(2) * part_size
        tl.store(own, gate, real)
        if gated:
            tl.store(own + rows * columns, up, real)
        tl.debug_barrier()  # all threads have written before one of them counts
        done = tl.atomic_add(counters + tile, 1, sem="acq_rel") == splits - 1
        if done:
            tl.store(counters + tile, 0)
            gate = tl.zeros((rows, columns), tl.float32)
            up = tl.zeros((rows, columns), tl.float32)
            for part in tl.static_range(splits):
                gate += tl.load(first_part + part * part_size, real, 0.0, cache_modifier=".cg")
                if gated:
                    up += tl.load(first_part + part * part_size + rows * columns, real, 0.0, cache_modifier=".cg")
    if done:
        kind: tl.constexpr = out.dtype.element_ty
        if most_square_parts:
            scale = tl.rsqrt(tl.sum(every, axis=1) / size + eps)[:, None]
            gate *= scale
            up *= scale
        if has_bias:
            gate += tl.load(bias + feature, there, 0.0).to(tl.float32)[None, :]
        result = gate.to(kind).to(tl.float32)
        if gated:
            result = (result * tl.sigmoid(result)).to(kind).to(tl.float32) * up.to(kind).to(tl.float32)
        if add:
            result += before.to(tl.float32)
        tl.store(out + place, result.to(kind), mask)
        if normalize:
            result = tl.where(there[None, :], result.to(kind).to(tl.float32), 0.0)
            sums = tl.sum(result * result, axis=1)
            tl.store(new_squares + token * tl.num_programs(0) + tl.program_id(0), sums, token < tokens)
            result *= weights_after.to(tl.float32)[None, :]
            tl.store(weighted + place, result.to(kind), mask)
