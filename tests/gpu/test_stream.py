"""Gate and up projections of few tokens against torch, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel import kernels_for

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() == 0 or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)

CUDA = torch.device("cuda")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=CUDA).to(torch.bfloat16)


@pytest.mark.parametrize("tokens", [1, 16, 50, 64])
@pytest.mark.parametrize(
    ("features", "size"),
    [(17408, 5120), (18944, 3584), (17000, 64), (1000, 576)],
)
def test_against_torch(features: int, size: int, tokens: int) -> None:
    kernels = kernels_for(x := normal(tokens, size), "stream")
    weight = normal(2 * features, size) * size**-0.5
    gate, up = F.linear(x.float(), weight.float()).chunk(2, dim=-1)
    result, again = (kernels.gate_up(x, weight) for _ in range(2))
    torch.testing.assert_close(result.float(), F.silu(gate) * up, atol=2e-2, rtol=2e-2)
    assert torch.equal(result, again)


def test_a_chain_of_them_in_a_graph() -> None:
    """Each starts while the one before still runs, and must not read its input before that is written."""
    kernels = kernels_for(x := normal(64, 1088), "stream")
    weights = [normal(2 * 1088, 1088) * 0.05 for _ in range(6)]

    def chain() -> list[Tensor]:
        results = [x]
        for weight in weights:
            results.append(kernels.gate_up(results[-1], weight))
        return results

    expected = []
    for result in chain():
        torch.cuda.synchronize()
        expected.append(result.clone())
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        captured = chain()
    for _ in range(20):
        for result in captured[1:]:
            result.zero_()
        graph.replay()
        assert all(torch.equal(*pair) for pair in zip(expected, captured, strict=True))


@pytest.mark.parametrize(
    ("features", "size", "dtype", "suits"),
    [
        (17408, 5120, torch.bfloat16, True),  # Qwen3-14B
        (3072, 1024, torch.bfloat16, False),  # Qwen3-0.6B: little of each program's reading would be weights
        (25600, 5120, torch.bfloat16, False),  # Qwen3-32B: no two powers of two come near its 132nd part
        (17408, 5120, torch.float32, False),
    ],
)
def test_weights_that_suit(features: int, size: int, dtype: torch.dtype, suits: bool) -> None:
    if torch.cuda.get_device_properties(CUDA).multi_processor_count != 132:
        pytest.skip("the parts are those of 132 multiprocessors")
    weight = torch.empty(2 * features, size, dtype=dtype, device=CUDA)
    assert kernels_for(weight, "stream").suits(weight) is suits
