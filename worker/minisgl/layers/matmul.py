"""The product that nearly all the time goes to, in the form that is fastest on its device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel import kernels_for
from minisgl.layers.quantized import matmul_fp8

BATCH_HINT = 16
"""Rows that oneDNN chooses the layout for; it serves every other number of rows as well."""


def pack(weight: Tensor) -> Tensor:
    """`weight` [out, in] in the form that `matmul` is fastest with; an opaque tensor on a CPU with oneDNN.

    torch multiplies a few rows by a plain float32 matrix at a fraction of the memory's bandwidth; oneDNN's blocked
    layout comes two to three times as far.
    """
    if weight.device.type != "cpu" or not torch._C._has_mkldnn or not weight.numel():
        return weight
    if weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), BATCH_HINT)
        return packed
    return weight


def matmul(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x W^T + b``: x [T, in], weight [out, in] (plain or from `pack`), bias [out] -> [T, out].

    `scale` [out]: of a weight in FP8, from `quantized.round_rows`. `out`, contiguous: where the result goes.
    """
    if out is not None:
        return matmul_into(out, x, weight, bias, scale)
    if scale is not None:
        return matmul_fp8(x, weight, scale, bias)
    if weight.is_mkldnn:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    kernels = kernels_for(x, "gemv") if len(x) == 1 else None
    if kernels is not None and (len(weight) <= kernels.MOST_ROWS or weight.shape[1] <= kernels.WIDE):
        return kernels.gemv(x, weight, bias)  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


def matmul_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """As `matmul`; returns `out`."""
    if scale is not None or weight.is_mkldnn:
        return out.copy_(matmul(x, weight, bias, scale))
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)
