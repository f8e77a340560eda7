"""A mixture of experts without the host: it never learns how many tokens an expert got.

The (token, choice) pairs are sorted by expert into blocks of a fixed number of rows, each of one expert, the last
of an expert filled up. There are at most so many blocks as the number of tokens allows; a program of a block that
is not needed ends at once. So every grid depends on the number of tokens alone, and a step can be captured.
The sums are in a fixed order: the same tokens give the same bits. The reference is `minisgl.layers.moe`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

FEW = 8
"""Tokens up to which cuBLAS takes longer for the router than reading its weights for each of them."""
ROUTED = 16
"""Tokens that one program chooses experts for."""


class Tile(NamedTuple):
    """What one program of a matrix product computes, and how."""

    rows: int
    columns: int
    block: int
    """Input features that are read at once."""
    stages: int
    warps: int


class Blocks(NamedTuple):
    """The pairs in order of their experts."""

    order: Tensor
    """int32 [blocks * rows]: the pair ``token * choices + choice`` of each row; undefined where there is none."""
    plan: Tensor
    """int32 [2, experts]: the block at which each expert's blocks end, and the row at which its pairs end."""
    weights: Tensor
    """float32 [T, choices]: of each pair, in the reference's order of choices."""


def mixture(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, choices: int, normalize: bool) -> Tensor:
    """Each token's sum of what its `choices` likeliest experts make of it, times their weights.

    x [T, hidden], contiguous, T >= 1; router [experts, hidden]; gate_up [experts, 2 n, hidden]
    and down [experts, hidden, n] -> [T, hidden]. `normalize`: the chosen experts' weights add up to one.
    """
    tokens, hidden = x.shape
    size = down.shape[2]
    first, second = tiles(tokens, choices, len(router), x.dtype)
    blocks = route(score(x, router), choices, normalize, first.rows)
    inner = x.new_empty((len(blocks.order), size))
    _multiply(x, gate_up, blocks, inner, first, choices, gated=True)
    results = x.new_empty((tokens * choices, hidden))
    _multiply(inner, down, blocks, results, second, choices, gated=False)
    out = torch.empty_like(x)
    block = min(triton.next_power_of_2(hidden), 256 if tokens <= 64 else 1024)
    _add[(tokens, triton.cdiv(hidden, block))](
        results, blocks.weights, out, hidden, choices, triton.next_power_of_2(choices), block, early(),
        launch_pdl=early(),
    )  # fmt: skip
    return out


def tiles(tokens: int, choices: int, experts: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """Tiles of the products with `gate_up` and with `down`, of equal rows.

    They change only from one power of two of `tokens` to the next.
    """
    average = triton.next_power_of_2(tokens) * choices / experts
    if dtype == torch.float32:
        tile = Tile(16 if average <= 8 else 32, 32, 32, 2, 4)
        return tile, tile
    if average <= 8:  # few rows: the weights' way from memory is all that counts
        return Tile(16, 32, 128, 4, 4), Tile(16, 32, 128, 5, 2) if tokens <= 2 else Tile(16, 128, 128, 4, 4)
    if average <= 16:
        return Tile(32, 64, 128, 3, 4), Tile(32, 128, 128, 3, 4)
    if average <= 64:
        return Tile(64, 128, 64, 4, 4), Tile(64, 128, 64, 4, 4)
    return Tile(128, 128, 64, 3, 8), Tile(128, 256, 64, 3, 8)


def score(x: Tensor, router: Tensor) -> Tensor:
    """The router's logits, float32 [T, experts]: sums of products that are exact."""
    (tokens, hidden), experts = x.shape, len(router)
    if tokens > FEW:
        return torch.mm(x, router.T, out_dtype=torch.float32)
    logits = torch.empty((tokens, experts), dtype=torch.float32, device=x.device)
    _score[(triton.cdiv(experts, 2), tokens)](
        x, router, logits, experts, hidden, triton.next_power_of_2(hidden), early(), launch_pdl=early()
    )
    return logits


@triton.jit
def _score(
    x, router, logits, experts: tl.constexpr, hidden: tl.constexpr, block: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """One token's logits for two experts."""
    expert = tl.program_id(0) * 2 + tl.arange(0, 2)
    k = tl.arange(0, block)
    mask = (expert < experts)[:, None] & (k < hidden)[None, :]
    weights = tl.load(router + expert[:, None] * hidden + k[None, :], mask, 0.0)  # no kernel writes them
    begin(early)
    token = tl.program_id(1)
    values = tl.load(x + token * hidden + k, k < hidden, 0.0)
    total = tl.sum(weights.to(tl.float32) * values.to(tl.float32)[None, :], axis=1)
    tl.store(logits + token * experts + expert, total, expert < experts)


def route(logits: Tensor, choices: int, normalize: bool, rows: int) -> Blocks:
    """Choose each token's experts, and sort the pairs into blocks of `rows`. logits float32 [T, experts]."""
    tokens, experts = logits.shape
    pairs = tokens * choices
    blocks = min(experts, pairs) + pairs // rows  # of every expert with pairs, the last may be any part full
    order, plan = (logits.new_empty(shape, dtype=torch.int32) for shape in (blocks * rows, (2, experts)))
    weights = logits.new_empty((tokens, choices))
    tile = 1 if tokens == 1 else ROUTED
    parts = triton.cdiv(tokens, tile)
    chosen, counts = logits.new_empty((tokens, experts), dtype=torch.int8), plan.new_empty((parts + 1, experts))
    width = triton.next_power_of_2(experts)
    warps = 1 if tokens == 1 else 4
    _route[(parts,)](
        logits, weights, chosen, counts, order, plan, tokens, experts, choices, normalize, parts == 1, rows,
        tile, width, early(), num_warps=warps, launch_pdl=early(),
    )  # fmt: skip
    if parts > 1:
        _add_up_parts[(triton.cdiv(experts, 4),)](counts, parts, experts, 4, 256, early(), launch_pdl=early())
        _arrange[(parts,)](
            chosen, counts, order, plan, tokens, parts, experts, choices, rows, tile, width, early(),
            num_warps=warps, launch_pdl=early(),
        )  # fmt: skip
    return Blocks(order, plan, weights)


@triton.jit(do_not_specialize=["tokens"])
def _route(
    logits, weights, chosen, counts, order, plan, tokens, experts: tl.constexpr, choices: tl.constexpr,
    normalize: tl.constexpr, alone: tl.constexpr, rows: tl.constexpr, tile: tl.constexpr, width: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """Choose experts for `tile` tokens. When these are all, place their pairs as well."""
    begin(early)
    token = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    expert = tl.arange(0, width)[None, :]
    inside = (token < tokens) & (expert < experts)
    values = tl.load(logits + token * experts + expert, inside, -float("inf"))
    values = tl.exp(values - tl.max(values, axis=1)[:, None])
    share = values / tl.sum(values, axis=1)[:, None]
    # What is not a number must not choose an expert that there is not.
    left = tl.where(expert < experts, tl.where(share > 0, share, 0.0), -1.0)
    choice = tl.full((tile, width), -1, tl.int32)
    for number in range(choices):
        largest = expert == tl.argmax(left, axis=1)[:, None]
        choice = tl.where(largest & inside, number, choice)
        left = tl.where(largest, -1.0, left)
    taken = choice >= 0
    if normalize:
        share = share / tl.sum(tl.where(taken, share, 0.0), axis=1)[:, None]
    tl.store(weights + token * choices + choice, share, taken)
    count = tl.sum(taken.to(tl.int32), axis=0)
    if alone:
        _place(choice, token, count, tl.zeros_like(count), order, plan, experts, choices, rows, width)
    else:
        tl.store(chosen + token * experts + expert, choice.to(tl.int8), inside)
        tl.store(counts + tl.program_id(0) * experts + tl.arange(0, width), count, tl.arange(0, width) < experts)


@triton.jit(do_not_specialize=["parts"])
def _add_up_parts(
    counts, parts, experts: tl.constexpr, columns: tl.constexpr, block: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """Replace each part's number of pairs by the number in all parts before it; the last row gets the sums."""
    begin(early)
    expert = tl.program_id(0) * columns + tl.arange(0, columns)
    total = tl.zeros((columns,), tl.int32)
    for start in range(0, parts, block):
        part = start + tl.arange(0, block)[:, None]
        place, mask = counts + part * experts + expert[None, :], (part < parts) & (expert < experts)[None, :]
        count = tl.load(place, mask, 0)
        tl.store(place, total[None, :] + tl.cumsum(count, axis=0) - count, mask)
        total += tl.sum(count, axis=0)
    tl.store(counts + parts * experts + expert, total, expert < experts)


@triton.jit(do_not_specialize=["tokens", "parts"])
def _arrange(
    chosen, counts, order, plan, tokens, parts, experts: tl.constexpr, choices: tl.constexpr, rows: tl.constexpr,
    tile: tl.constexpr, width: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Place the pairs of `tile` tokens, behind those of all earlier tokens with the same expert."""
    begin(early)
    expert = tl.arange(0, width)
    total = tl.load(counts + parts * experts + expert, expert < experts, 0)
    before = tl.load(counts + tl.program_id(0) * experts + expert, expert < experts, 0)
    token = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    inside = (token < tokens) & (expert < experts)[None, :]
    choice = tl.load(chosen + token * experts + expert[None, :], inside, -1).to(tl.int32)
    _place(choice, token, total, before, order, plan, experts, choices, rows, width)


@triton.jit
def _place(
    choice, token, total, before, order, plan, experts: tl.constexpr, choices: tl.constexpr, rows: tl.constexpr,
    width: tl.constexpr,
):  # fmt: skip
    """choice [tile, width]: which of its token's choices an expert is, or -1; total and before [width]: pairs."""
    blocks = (total + rows - 1) // rows
    stop = tl.cumsum(blocks, axis=0)
    start = (stop - blocks) * rows
    taken = choice >= 0
    rank = (start + before)[None, :] + tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(order + rank, token * choices + choice, taken)
    expert = tl.arange(0, width)
    if tl.program_id(0) == 0:
        tl.store(plan + expert, stop, expert < experts)
        tl.store(plan + experts + expert, start + total, expert < experts)


def _multiply(
    x: Tensor, weight: Tensor, blocks: Blocks, out: Tensor, tile: Tile, choices: int, *, gated: bool
) -> None:
    experts, wide, depth = weight.shape
    width = wide // 2 if gated else wide
    grid = len(blocks.order) // tile.rows * triton.cdiv(width, tile.columns)
    _experts[(grid,)](
        x, weight, blocks.order, blocks.plan, out, experts, width, depth, choices, gated, tile.rows, tile.columns,
        tile.block, triton.next_power_of_2(experts), early(),
        num_warps=tile.warps, num_stages=tile.stages, launch_pdl=early(),
    )  # fmt: skip


@triton.jit
def _experts(
    x, weight, order, plan, out, experts: tl.constexpr, width: tl.constexpr, depth: tl.constexpr,
    choices: tl.constexpr, gated: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
    every: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """One block's rows times some of its expert's features.

    `gated`: rows of tokens -> ``silu(gate) * up`` in the order of the blocks; else from there to the pairs' rows.
    """
    begin(early)
    strips: tl.constexpr = (width + columns - 1) // columns
    number = tl.program_id(0) // strips  # neighbours share the block's rows, and the next ones its expert
    one = tl.arange(0, every)
    stops = tl.load(plan + one, one < experts, 1 << 30)
    ends = tl.load(plan + experts + one, one < experts, 0)
    place = number * rows + tl.arange(0, rows)
    pair = tl.load(order + place)
    expert = tl.sum((stops <= number).to(tl.int32))
    if expert >= experts:
        return
    there = place < tl.sum(tl.where(one == expert, ends, 0))
    pair = tl.where(there, pair, 0)
    column = tl.program_id(0) % strips * columns + tl.arange(0, columns)
    k = tl.arange(0, block)[None, :]
    source = x + (pair // choices if gated else place).to(tl.int64)[:, None] * depth + k
    matrix = weight + (expert.to(tl.int64) * (2 if gated else 1) * width + column)[:, None] * depth + k
    known = (width % columns == 0) | (column < width)[:, None]
    total = tl.zeros((rows, columns), tl.float32)
    up = tl.zeros((rows, columns), tl.float32)
    for start in range(0, depth, block):
        inside = (depth % block == 0) | (start + k < depth)
        tile = tl.load(source + start, there[:, None] & inside, 0.0)
        total = tl.dot(tile, tl.load(matrix + start, known & inside, 0.0).T, total, input_precision="ieee")
        if gated:
            other = tl.load(matrix + width * depth + start, known & inside, 0.0)
            up = tl.dot(tile, other.T, up, input_precision="ieee")
    result = total.to(out.dtype.element_ty)
    if gated:
        gate = result.to(tl.float32)
        gate = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
        result = (gate * up.to(out.dtype.element_ty).to(tl.float32)).to(out.dtype.element_ty)
    target = out + (place if gated else pair).to(tl.int64)[:, None] * width + column[None, :]
    tl.store(target, result, there[:, None] & (column < width)[None, :])


@triton.jit
def _add(
    results, weights, out, size, choices: tl.constexpr, every: tl.constexpr, block: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """The weighted sum of a token's results."""
    begin(early)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    pair = token * choices + tl.arange(0, every)
    chosen = tl.arange(0, every) < choices
    values = tl.load(results + pair[:, None] * size + column, chosen[:, None] & (column < size), 0.0)
    weight = tl.load(weights + pair, chosen, 0.0)
    total = tl.sum(values.to(tl.float32) * weight[:, None], axis=0)
    tl.store(out + token * size + column, total.to(out.dtype.element_ty), column < size)
