"""Products whose results go where they are told to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minisgl.layers.matmul import matmul, pack
from minisgl.layers.quantized import FP8, round_rows


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    values, scale = torch.empty(weight.shape, dtype=FP8), torch.empty(len(weight))
    round_rows(weight, values, scale)
    return values, scale


@pytest.mark.parametrize("form", ["plain", "packed", "fp8"])
@pytest.mark.parametrize("biased", [False, True])
def test_into_rows_of_a_larger_matrix(form: str, biased: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(5, 32, generator=generator), torch.randn(48, 32, generator=generator)
    bias = torch.randn(48, generator=generator) if biased else None
    scale = None
    if form == "packed":
        weight = pack(weight)
    elif form == "fp8":
        x, bias = x.bfloat16(), None if bias is None else bias.bfloat16()
        weight, scale = rounded(weight)
    expected = matmul(x, weight, bias, scale)
    whole = torch.full((9, 48), torch.nan, dtype=x.dtype)
    into = whole[2:7]
    assert matmul(x, weight, bias, scale, into) is into
    torch.testing.assert_close(whole[2:7], expected)
    assert whole[:2].isnan().all()
    assert whole[7:].isnan().all()
