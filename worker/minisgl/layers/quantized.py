"""Linear layers in FP8 (E4M3: Micikevicius et al. 2022): half the bytes to read, twice the products a second.

Every output feature's weights have a scale of their own, and so has every token's input, with which the largest of
them becomes the largest number of FP8. Products are summed in higher precision, and the sums scaled back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel import kernels_for

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST = 1e-12
"""Of the largest numbers of rows: a row of zeros has a scale as well."""

MULTIPLE = 16
"""What the features of a layer must be a multiple of, in and out."""

ROUNDED_AT_ONCE = 1024
"""Rows: bounds the memory that rounding takes beside its result."""


def round_rows(values: Tensor, rounded: Tensor, scale: Tensor) -> None:
    """``values ~ rounded * scale``: values [rows, n], on any device, to FP8 [rows, n] and float32 [rows]."""
    for first in range(0, len(values), ROUNDED_AT_ONCE):
        part = slice(first, first + ROUNDED_AT_ONCE)
        some = values[part].to(rounded.device, torch.float32)
        row_scale = some.abs().amax(dim=1).clamp_(min=SMALLEST) / LARGEST
        scale[part] = row_scale
        rounded[part] = (some / row_scale.unsqueeze(1)).clamp_(-LARGEST, LARGEST)


def matmul_fp8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``: x [T, in] bfloat16, weight [out, in] and scale [out] from `round_rows` -> [T, out].

    A single token is not rounded: its time goes to reading the weights.
    """
    kernels = kernels_for(x, "fp8" if len(x) > 1 else "gemv")
    if kernels is None:
        rounded, row_scale = torch.empty(x.shape, dtype=FP8), torch.empty(len(x))
        round_rows(x, rounded, row_scale)
        y = F.linear(rounded.float(), weight.float()) * row_scale.unsqueeze(1) * scale
        return (y if bias is None else y + bias).to(x.dtype)
    if len(x) == 1:
        return kernels.gemv(x, weight, bias, scale=scale)  # type: ignore[no-any-return]
    rounded, row_scale = kernels.round_rows(x)
    y = torch._scaled_mm(
        rounded, weight.t(), row_scale, scale.unsqueeze(0), out_dtype=x.dtype, use_fast_accum=True
    )
    return y if bias is None else y.add_(bias)  # cuBLAS has no kernel with a bias for some shapes
