"""One token through a linear layer, with what comes before and after it: every weight is read once.

With one token a layer takes as long as reading its weights, and cuBLAS, made for many rows, comes to a third of
the memory's bandwidth. Kernels for the small operators around it would take about as long again: so the
normalization before it is part of it, and so is what follows, SiLU·mul or the sum with the residual stream. The
references are `torch.nn.functional.linear`, `minisgl.layers.norm` and `minisgl.layers.mlp`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import early, let_next_start, wait_for_earlier

MOST_ROWS, WIDE = 65_536, 1024
"""Output features beyond which cuBLAS is as fast, a vocabulary's, if there are more than `WIDE` input features."""


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """x [1, in], weight [out, in] contiguous, bias [out] -> [1, out].

    `scale`: float32 [out], of a weight in FP8; the input is not rounded, as reading weights is what takes time.
    `norm`: weight [in] and epsilon of an RMSNorm of x. `gated`: ``silu(first half) * second half`` of the result,
    [1, out / 2]; not with a bias. `residual` [1, out]: the result is added to it in place, and it is returned.
    """
    in_features = x.shape[1]
    features = weight.shape[0] // 2 if gated else weight.shape[0]
    out = x.new_empty((1, features)) if residual is None else residual
    rows, block, warps = _tile(features, in_features, gated)
    norm_weight, eps = norm or (x, 0.0)
    _gemv[(triton.cdiv(features, rows),)](
        x, weight, weight if bias is None else bias, x if scale is None else scale, norm_weight, out, features,
        eps, in_features, scale is not None, norm is not None, bias is not None, gated, residual is not None,
        rows, block, early(), num_warps=warps, launch_pdl=early(),
    )  # fmt: skip
    return out


def _tile(features: int, in_features: int, gated: bool) -> tuple[int, int, int]:
    """Output features of a program, input features that it reads at once, and warps.

    On an H200 the fastest of those tried, in whole layers, for Qwen3-0.6B on one GPU, Qwen3-14B on one and on two
    and Qwen3-32B on four, or within 0.2 us of it.
    """
    if features <= 2048:
        block = min(triton.next_power_of_2(in_features), 2048)
        return 2, block, max(block // 512, 1)
    small = in_features <= 1024
    if gated and small:
        return 2, 1024, 4
    if gated:
        return (4, 1024, 4) if features <= 12_288 else (2, 512, 2)
    if small:
        return 4, 512, 2
    if in_features > 8192:
        return (2, 2048, 4) if in_features <= 12_288 else (4, 512, 1)
    if features <= 4096:
        return 2, 2048, 4
    if in_features <= 4096:
        return (4, 1024, 4) if in_features <= 2048 else (2, 1024, 2)
    return (4, 512, 4) if features > 6144 else (4, 512, 2)


@triton.jit
def _gemv(
    x, weight, bias, scales, norm, out, features, eps, in_features: tl.constexpr, scaled: tl.constexpr,
    normalize: tl.constexpr, has_bias: tl.constexpr, gated: tl.constexpr, add: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    let_next_start(early)
    feature = tl.program_id(0) * rows + tl.arange(0, rows)
    there = feature < features
    gate_row = weight + tl.where(there, feature, 0).to(tl.int64)[:, None] * in_features
    up_row = gate_row + features.to(tl.int64) * in_features
    column = tl.arange(0, block)
    inside = column < in_features
    gate_weights = tl.load(gate_row + column[None, :], inside[None, :], 0.0)  # no kernel writes weights
    up_weights = gate_weights
    if gated:
        up_weights = tl.load(up_row + column[None, :], inside[None, :], 0.0)
    scale = 1.0
    up_scale = 1.0
    if scaled:
        scale = tl.load(scales + feature, there, 0.0)
        if gated:
            up_scale = tl.load(scales + features + feature, there, 0.0)
    shift = 0.0
    before = 0.0
    if has_bias:
        shift = tl.load(bias + feature, there, 0.0).to(tl.float32)
    wait_for_earlier(early)
    if add:
        before = tl.load(out + feature, there, 0.0).to(tl.float32)
    values = tl.load(x + column, inside, 0.0).to(tl.float32)
    squares = values * values
    if normalize:
        values *= tl.load(norm + column, inside, 0.0).to(tl.float32)
    gate = gate_weights.to(tl.float32) * values[None, :]
    up = gate
    if gated:
        up = up_weights.to(tl.float32) * values[None, :]
    for first in tl.range(block, in_features, block, loop_unroll_factor=4):
        at = first + column
        inside = at < in_features
        gate_weights = tl.load(gate_row + at[None, :], inside[None, :], 0.0)
        values = tl.load(x + at, inside, 0.0).to(tl.float32)
        squares += values * values
        if normalize:
            values *= tl.load(norm + at, inside, 0.0).to(tl.float32)
        gate += gate_weights.to(tl.float32) * values[None, :]
        if gated:
            up_weights = tl.load(up_row + at[None, :], inside[None, :], 0.0)
            up += up_weights.to(tl.float32) * values[None, :]
    kind: tl.constexpr = out.dtype.element_ty
    norm_scale = 1.0
    if normalize:  # the same for all features, so it comes last
        norm_scale = tl.rsqrt(tl.sum(squares) / in_features + eps)
    result = tl.sum(gate, axis=1) * norm_scale * scale
    if has_bias:
        result += shift
    if gated:
        result = result.to(kind).to(tl.float32)
        result = (result * tl.sigmoid(result)).to(kind).to(tl.float32)
        result *= (tl.sum(up, axis=1) * norm_scale * up_scale).to(kind).to(tl.float32)
    if add:
        result = result.to(kind).to(tl.float32) + before
    tl.store(out + feature, result.to(kind), there)
