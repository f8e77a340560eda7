"""Each kernel against the torch operators that it replaces, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel import kernels_for
from minisgl.layers.rope import RopeConfig
from minisgl.layers.rotary import Rotary, rotate

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

CUDA = torch.device("cuda")
DTYPES = (torch.float32, torch.bfloat16)


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=CUDA).to(dtype)


def close(result: Tensor, expected: Tensor) -> None:
    """Within a rounding or two of the type."""
    tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 1000, 1024, 5120])
@pytest.mark.parametrize("rows", [1, 300])
def test_add_rms_norm(rows: int, size: int, dtype: torch.dtype) -> None:
    x, residual, weight = (normal(n, size, dtype=dtype) for n in (rows, rows, 1))
    expected_residual = residual + x
    expected = F.rms_norm(expected_residual, (size,), weight[0], 1e-6)
    out = kernels_for(x).add_rms_norm(x, residual, weight[0], 1e-6)
    close(residual, expected_residual)
    close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 5120])
def test_rms_norm_and_gather(size: int, dtype: torch.dtype) -> None:
    table, weight = normal(50, size, dtype=dtype), normal(size, dtype=dtype)
    index = torch.tensor([49, 0, 7], device=CUDA)
    kernels = kernels_for(table)
    rows = kernels.gather(table, index)
    assert torch.equal(rows, table[index])
    part = kernels.gather(table[5:20], index, first=5, apart=True)  # of the rows of one rank, of three
    assert torch.equal(part, torch.stack((torch.zeros_like(rows[0]), torch.zeros_like(rows[0]), rows[2])))
    close(kernels.rms_norm(rows, weight, 1e-6), F.rms_norm(rows, (size,), weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 3072])
def test_silu_and_mul(size: int, dtype: torch.dtype) -> None:
    x = normal(77, 2 * size, dtype=dtype)
    close(kernels_for(x).silu_and_mul(x), F.silu(x[:, :size]) * x[:, size:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "into"), [(4096, 1024), (1024, 3072), (7168, 5120), (99, 70)])
def test_gemv(out: int, into: int, bias: bool, dtype: torch.dtype) -> None:
    x, weight, offset = normal(1, into, dtype=dtype), normal(out, into, dtype=dtype), normal(out, dtype=dtype)
    result = kernels_for(x, "gemv").gemv(x, weight, offset if bias else None)
    expected = F.linear(x.double(), weight.double(), offset.double() if bias else None)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert (result - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize(
    ("out", "into", "dtype"),
    [
        (4096, 1024, torch.bfloat16), (1024, 3072, torch.bfloat16), (17_408, 5120, torch.bfloat16),
        (5120, 17_408, torch.bfloat16), (99, 70, torch.bfloat16), (99, 70, torch.float32),
    ],
)  # fmt: skip
def test_gemv_with_what_is_around_it(out: int, into: int, dtype: torch.dtype) -> None:
    gemv = kernels_for(x := normal(1, into, dtype=dtype), "gemv").gemv
    weight, scale = normal(2 * out, into, dtype=dtype) * into**-0.5, normal(into, dtype=dtype)
    normalized = F.rms_norm(x.float(), (into,), scale.float(), 1e-6)
    gate, up = F.linear(normalized, weight.float()).chunk(2, dim=-1)
    close(gemv(x, weight, norm=(scale, 1e-6)), torch.cat((gate, up), dim=-1).to(dtype))
    close(gemv(x, weight, norm=(scale, 1e-6), gated=True), (F.silu(gate) * up).to(dtype))
    stream = normal(1, 2 * out, dtype=dtype)
    expected = stream + F.linear(x, weight)
    assert gemv(x, weight, residual=stream) is stream
    close(stream, expected)


@pytest.mark.parametrize("tokens", [2, 16, 40, 64, 100])
@pytest.mark.parametrize(("out", "into"), [(4096, 1024), (1024, 3072), (1024, 2048), (99, 72)])
def test_linear_of_few_tokens(out: int, into: int, tokens: int) -> None:
    kernels = kernels_for(x := normal(tokens, into, dtype=torch.bfloat16), "linear")
    weight = normal(2 * out, into, dtype=torch.bfloat16) * into**-0.5
    bias = normal(2 * out, dtype=torch.bfloat16)
    counters = torch.zeros(kernels.TILES, dtype=torch.int32, device=CUDA)
    plain = F.linear(x.float(), weight.float())
    gate, up = plain.chunk(2, dim=-1)
    close(kernels.linear(x, weight, bias, counters), (plain + bias).to(torch.bfloat16))
    close(kernels.linear(x, weight, None, counters, gated=True), (F.silu(gate) * up).to(torch.bfloat16))
    assert torch.equal(*(kernels.linear(x, weight, None, counters) for _ in range(2)))
    assert not counters.any()


@pytest.mark.parametrize("tokens", [2, 16, 40, 64, 100])
@pytest.mark.parametrize(("hidden", "into", "out"), [(1024, 2048, 3072), (1024, 3072, 4096), (104, 72, 40)])
def test_linear_to_the_stream_and_from_its_norm(hidden: int, into: int, out: int, tokens: int) -> None:
    kernels = kernels_for(x := normal(tokens, into, dtype=torch.bfloat16), "linear")
    weight = normal(hidden, into, dtype=torch.bfloat16) * into**-0.5
    norm, next_weight = normal(hidden, dtype=torch.bfloat16), normal(2 * out, hidden, dtype=torch.bfloat16)
    next_weight *= hidden**-0.5
    stream, alone = normal(tokens, hidden, dtype=torch.bfloat16).repeat(2, 1, 1)
    counters = torch.zeros(kernels.TILES, dtype=torch.int32, device=CUDA)
    expected = (stream + F.linear(x.float(), weight.float())).to(torch.bfloat16)
    begun = kernels.linear_to_stream(x, weight, counters, stream, (norm, 1e-6))
    close(stream, expected)
    assert kernels.linear_to_stream(x, weight, counters, alone, None) is alone
    assert torch.equal(alone, stream)
    plain = F.linear(F.rms_norm(expected.float(), (hidden,), norm.float(), 1e-6), next_weight.float())
    gate, up = plain.chunk(2, dim=-1)
    for gated, exact in ((False, plain), (True, F.silu(gate) * up)):
        result = kernels.linear(begun, next_weight, None, counters, gated=gated).float()
        assert (result - exact).norm() < 1e-2 * exact.norm()  # three roundings to bfloat16, of up to 4e-3 each
    assert not counters.any()


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "norm", "stored"),
    [
        (16, 8, 128, True, torch.bfloat16), (16, 8, 128, True, torch.float8_e4m3fn),
        (40, 8, 128, False, torch.bfloat16), (9, 3, 64, False, torch.bfloat16), (4, 4, 256, True, torch.bfloat16),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("page_size", "lengths", "kernel"),
    [
        (64, [1], "few"), (16, [7000, 65], "few"), (64, [40, 1, 1300, 64], "few"), (64, [1], "many"),
        (16, [7000, 65], "many"), (64, [40, 1, 1300, 64], "many"), (1, [500, 9], "many"), (24, [77] * 9, "many"),
        (64, [13 * row % 997 + 1 for row in range(150)], "many"),
    ],
)  # fmt: skip
def test_decode(
    kernel: str, lengths: list[int], page_size: int, heads: int, kv_heads: int, head_dim: int, window: int | None,
    norm: bool, stored: torch.dtype,
) -> None:  # fmt: skip
    rows, width = len(lengths), -(-max(lengths) // page_size)
    tables = torch.randperm(rows * width, device=CUDA).view(rows, width).to(torch.int32)
    cache = normal(rows * width * page_size, 2, kv_heads, head_dim, dtype=stored)
    projected = normal(rows, heads + 2 * kv_heads, head_dim, dtype=torch.bfloat16)
    weights = normal(2, head_dim, dtype=torch.bfloat16)
    norms = (weights[0], weights[1], 1e-6) if norm else None
    after = torch.tensor(lengths, dtype=torch.int32, device=CUDA)
    rotary = Rotary(RopeConfig(theta=10_000.0), head_dim, 8192)
    rotary.to(CUDA)
    rotation = rotary.at(after.long() - 1)
    expected_cache = cache.clone()
    many, few = kernels_for(cache, "decode"), kernels_for(cache, "few_rows")
    inputs = (projected, kv_heads, norms, rotation, cache, page_size, tables, after, window)
    counters = torch.zeros(few.MOST_ROWS * kv_heads, dtype=torch.int32, device=CUDA)
    if kernel == "few":
        first, second = (few.decode(*inputs, counters) for _ in range(2))
        assert not counters.any()
    else:
        work = kernels_for(cache, "decode_plan").plan(after, window, heads, kv_heads, head_dim, stored)
        first, second = (many.decode(*inputs, work) for _ in range(2))
    last = after.long() - 1
    slots = tables.gather(1, (last // page_size).unsqueeze(1)).squeeze(1).long() * page_size + last % page_size
    query, _, _ = kernels_for(cache).rotate_and_store(projected, kv_heads, norms, rotation, expected_cache, slots)
    stored_too = cache.view(torch.uint8) == expected_cache.view(torch.uint8)  # but for a rounding here and there
    assert stored_too[slots].float().mean() > 0.99
    stored_too[slots] = True
    assert stored_too.all()
    read = cache.float()
    for row, length in enumerate(lengths):
        places = torch.arange(max(0, length - (window or length)), length, device=CUDA)
        keys, values = read[tables[row, places // page_size].long() * page_size + places % page_size].unbind(1)
        grouped = query[row].view(kv_heads, -1, head_dim).float()
        shares = torch.einsum("kgd,tkd->kgt", grouped, keys).mul(head_dim**-0.5).softmax(-1)
        mixed = torch.einsum("kgt,tkd->kgd", shares, values).flatten(0, 1)
        close(first[row], mixed.to(torch.bfloat16))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("tokens", [61, 1100])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(16, 8, 128), (40, 8, 128), (8, 2, 8), (9, 3, 64)])
def test_rotate_and_store(
    heads: int, kv_heads: int, head_dim: int, tokens: int, norm: bool, dtype: torch.dtype
) -> None:
    slots_in_pool = 1500
    every = normal(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    weights = normal(2, head_dim, dtype=dtype)
    rotary = Rotary(RopeConfig(), head_dim, 4000)
    rotary.to(CUDA)
    rotation = rotary.at(torch.randint(0, 4000, (tokens,), device=CUDA))
    slots = torch.randperm(slots_in_pool, device=CUDA)[:tokens]
    cache = normal(slots_in_pool, 2, kv_heads, head_dim, dtype=dtype)
    expected_cache = cache.clone()
    query, key, value = every[:, :heads], every[:, heads : heads + kv_heads], every[:, heads + kv_heads :]
    if norm:
        query, key = (F.rms_norm(x, (head_dim,), w, 1e-6) for x, w in zip((query, key), weights, strict=True))
    query, key = rotate(query, rotation), rotate(key, rotation)
    expected_cache[slots] = torch.stack((key, value), dim=1)
    norms = (weights[0], weights[1], 1e-6) if norm else None
    results = kernels_for(every).rotate_and_store(every, kv_heads, norms, rotation, cache, slots)
    for result, expected in zip(results, (query, key, value), strict=True):
        close(result, expected)
    close(cache, expected_cache)
    untouched = torch.ones(slots_in_pool, dtype=torch.bool, device=CUDA)
    untouched[slots] = False
    assert torch.equal(cache[untouched], expected_cache[untouched])


def test_advance() -> None:
    rows, width, page_size = 40, 300, 16
    table = torch.randint(0, 10_000, (rows + 1, width), dtype=torch.int32, device=CUDA)
    lengths = torch.randint(1, width * page_size - 1, (rows + 1,), device=CUDA)
    lengths[-1] = 0
    last = torch.randint(0, 1000, (rows + 1,), device=CUDA)
    chosen = torch.cat((torch.randperm(rows, device=CUDA)[:29], torch.full((3,), rows, device=CUDA)))
    before = lengths.clone()
    step = kernels_for(chosen, "step").advance(chosen, last, lengths, table, page_size)
    positions = before[chosen]
    assert torch.equal(step.tokens, last[chosen])
    assert torch.equal(step.positions, positions)
    assert torch.equal(step.lengths.long(), positions + 1)
    assert torch.equal(
        step.slots, table[chosen, positions // page_size].long() * page_size + positions % page_size
    )
    for gathered, row, position in zip(step.tables, chosen.tolist(), positions.tolist(), strict=True):
        pages = position // page_size + 1
        assert torch.equal(gathered[:pages], table[row, :pages])
    before[chosen[:29]] += 1
    assert torch.equal(lengths, before)
