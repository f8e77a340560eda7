"""Products by other algorithms than torch's choice: as right as those, and taken where they were tried."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel import kernels_for
from minisgl.layers.products import MOST_TOKENS, Products

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

SHAPES = ((3584, 5120), (1024, 3072), (320, 320))


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def near(result: Tensor, x: Tensor, weight: Tensor) -> None:
    """As near to float32 as rounding the result allows."""
    expected = x.float() @ weight.float().T
    rough = 2**-7 if x.dtype == torch.bfloat16 else 2**-10
    torch.testing.assert_close(result.float(), expected, rtol=rough, atol=rough * float(expected.std()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_plan_multiplies(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = normal(*shape, dtype=dtype)
    library = kernels_for(weight, "cublas").CublasLt(weight.device)
    for tokens in (2, 17, 96, 208):
        x = normal(tokens, shape[1], dtype=dtype)
        plans = library.plans(tokens, weight)
        assert len(plans) > 1
        for plan in plans:
            near(library.linear(x, weight, plan), x, weight)


def test_what_was_tried_is_taken_in_graphs_and_out_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [normal(*shape) for shape in SHAPES for _ in range(3)]
    products = Products(weights)
    monkeypatch.setattr("minisgl.layers.products.GAIN", -1e9)  # any other way is taken, if there is one
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    given = {tokens: [normal(tokens, weight.shape[1]) for weight in weights] for tokens in (8, 96, 256)}
    with torch.cuda.stream(stream):
        for tokens, inputs in given.items():
            with products.tried():
                for x, weight in zip(inputs, weights, strict=True):
                    near(products.linear(x, weight), x, weight)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = [products.linear(x, weight) for x, weight in zip(inputs, weights, strict=True)]
            for x in inputs:
                x.copy_(normal(*x.shape))
            graph.replay()
            stream.synchronize()
            for x, weight, result in zip(inputs, weights, results, strict=True):
                near(result, x, weight)
                assert torch.equal(result, products.linear(x, weight)), tokens


def test_others_are_multiplied_as_torch_does() -> None:
    weight = normal(*SHAPES[1])
    products = Products([weight])
    x = normal(64, weight.shape[1])
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    with products.tried():
        for odd in (normal(MOST_TOKENS + 1, weight.shape[1]), x.repeat(1, 2)[:, ::2], normal(65, 3073)[:, 1:]):
            assert torch.equal(products.linear(odd, weight), F.linear(odd, weight))
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))
