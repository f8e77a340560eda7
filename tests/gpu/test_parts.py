"""A large linear layer's parts of few tokens, and what adds them up, against torch, on fresh random inputs."""

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


@pytest.mark.parametrize("tokens", [2, 16, 50, 64])
@pytest.mark.parametrize(("features", "size"), [(5120, 17408), (4096, 14336), (1024, 4160), (128, 64)])
def test_against_torch(features: int, size: int, tokens: int) -> None:
    kernels = kernels_for(x := normal(tokens, size), "parts")
    weight = normal(features, size) * size**-0.5
    result, again = (kernels.linear(x, weight) for _ in range(2))
    torch.testing.assert_close(result.sum(0), F.linear(x.float(), weight.float()), atol=1e-2, rtol=1e-3)
    assert torch.equal(result, again)


def test_a_chain_with_the_sum_and_the_norm_in_a_graph() -> None:
    """Each kernel starts while the one before still runs, and must not read its input before that is written."""
    kernels, layers = kernels_for(x := normal(64, 1152), "parts"), kernels_for(x)
    weights = [normal(1152, 1152) * 1152**-0.5 for _ in range(6)]
    norm = normal(1152)

    def chain() -> list[Tensor]:
        stream, results = x.clone(), [x]
        for weight in weights:
            results.append(layers.add_rms_norm(kernels.linear(results[-1], weight), stream, norm, 1e-6))
        return [*results[1:], stream]

    stream, x_again, expected = x.clone(), x, []
    for weight in weights:
        stream += F.linear(x_again.float(), weight.float()).to(torch.bfloat16)
        x_again = F.rms_norm(stream.float(), (1152,), norm.float(), 1e-6).to(torch.bfloat16)
        expected.append(x_again)
    first = [result.clone() for result in chain()]
    for result, reference in zip(first, [*expected, stream], strict=True):
        assert (result.float() - reference.float()).norm() < 2e-2 * reference.float().norm()
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        captured = chain()
    for _ in range(20):
        for result in captured:
            result.zero_()
        graph.replay()
        assert all(torch.equal(*pair) for pair in zip(first, captured, strict=True))


@pytest.mark.parametrize(
    ("features", "size", "dtype", "suits"),
    [
        (5120, 17408, torch.bfloat16, True),  # down, in Qwen3-14B
        (5120, 5120, torch.bfloat16, False),  # its attention's output: no gain
        (1024, 3072, torch.bfloat16, False),  # down, in Qwen3-0.6B
        (5120, 17408, torch.float32, False),
    ],
)
def test_weights_that_suit(features: int, size: int, dtype: torch.dtype, suits: bool) -> None:
    if torch.cuda.get_device_properties(CUDA).multi_processor_count != 132:
        pytest.skip("the parts are those of 132 multiprocessors")
    weight = torch.empty(features, size, dtype=dtype, device=CUDA)
    assert kernels_for(weight, "parts").suits(weight) is suits
