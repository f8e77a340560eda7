"""Our attention kernel over random layouts of decode rows and chunks, against the torch backend in float32."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from minisgl.attention.base import Chunk, StepMetadata
from minisgl.attention.paged import PagedAttention, StepAttention
from minisgl.attention.registry import create_attention
from minisgl.attention.triton_backend import TritonBackend, cut_tiles
from minisgl.kvcache.pool import KVPool

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

CUDA = torch.device("cuda")
TOLERANCE = 2e-2
"""A rounding of the shares and one of the result, in half precision, of values around 1."""


@dataclass(frozen=True)
class Shape:
    page_size: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...] = (None,)
    dtype: torch.dtype = torch.bfloat16
    stored: torch.dtype | None = None


SHAPES = [
    Shape(64, 16, 8, 128),
    Shape(16, 40, 8, 128, (None, 300)),
    Shape(1, 9, 3, 64, dtype=torch.float16),
    Shape(32, 4, 2, 256),
    Shape(128, 96, 1, 64, (33,)),
    Shape(24, 6, 6, 128),
    Shape(8, 16, 8, 128, stored=torch.float8_e4m3fn),
]


class Scene:
    """Rows of random tokens, on pages in no order, once in half precision and once in float32."""

    def __init__(self, shape: Shape, rows: int, longest: int) -> None:
        self.shape, self.longest = shape, longest
        width = -(-longest // shape.page_size)
        self.half, self.whole = (
            KVPool(
                num_layers=len(shape.windows),
                num_pages=rows * width + 1,
                page_size=shape.page_size,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                dtype=dtype,
                device=CUDA,
                stored=stored,
            )
            for dtype, stored in ((shape.dtype, shape.stored), (torch.float32, None))
        )
        for half, whole in zip(self.half.layers, self.whole.layers, strict=True):
            whole.normal_()
            half.copy_(whole)
            whole.copy_(half)  # rounded
        self.block_table = torch.randperm(rows * width, device=CUDA).int().view(rows, width)

    def draw(self, seed: int, *, decodes: int, chunks: int, most: int) -> StepMetadata:
        """Decode rows and chunks at random places; half of the chunks begin their row."""
        draw = random.Random(seed)
        rows = draw.sample(range(len(self.block_table)), decodes + chunks)
        lengths = [draw.randint(1, self.longest) for _ in range(decodes)]
        drawn = []
        for row in rows[decodes:]:
            length = draw.randint(1, most)
            drawn.append(Chunk(row, draw.choice((0, draw.randint(0, self.longest - length))), length))
        return StepMetadata(
            slots=torch.zeros(0, dtype=torch.int64, device=CUDA),  # keys and values are all there
            block_table=self.block_table,
            decode_rows=torch.tensor(rows[:decodes], dtype=torch.int64, device=CUDA),
            decode_lengths=torch.tensor(lengths, dtype=torch.int64, device=CUDA),
            host_lengths=lengths,
            chunks=drawn,
        )

    def expected(self, step: StepMetadata, layer: int, query: Tensor) -> Tensor:
        attention = create_attention(("torch", "torch"), self.whole, self.shape.windows, self.shape.heads)
        key = self._own(step)
        keys, values = self.whole.slots[layer][key].unbind(1)
        attend = attention.plan(step)
        return attend(layer, query.float(), keys, values)

    def query(self, step: StepMetadata) -> Tensor:
        shape, tokens = self.shape, len(step.host_lengths) + sum(chunk.length for chunk in step.chunks)
        return torch.randn(tokens, shape.heads, shape.head_dim, device=CUDA).to(shape.dtype)

    def _own(self, step: StepMetadata) -> Tensor:
        """The slots of the step's own tokens."""
        places = list(zip(step.decode_rows.tolist(), (n - 1 for n in step.host_lengths), strict=True))
        places += [(c.row, position) for c in step.chunks for position in range(c.start, c.start + c.length)]
        rows, positions = torch.tensor(places, device=CUDA).unbind(1)
        page_size = self.shape.page_size
        return self.block_table[rows, positions // page_size].long() * page_size + positions % page_size


def run(attend: StepAttention, layer: int, query: Tensor, kv_heads: int) -> Tensor:
    nothing = query[:, :kv_heads]  # the backend reads keys and values from the pool
    return attend(layer, query, nothing, nothing)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"page{shape.page_size}")
def test_any_layout_is_attended_to_as_torch_does(shape: Shape) -> None:
    scene = Scene(shape, rows=40, longest=3000)
    backend = TritonBackend(scene.half, shape.windows, shape.heads)
    attention = PagedAttention(scene.half, backend, backend)
    layouts = [(1, 0, 1), (0, 1, 1), (0, 1, 120), (0, 3, 150), (7, 2, 40), (30, 0, 1), (20, 10, 300), (0, 1, 2500)]
    for seed, (decodes, chunks, most) in enumerate(layouts):
        step = scene.draw(seed, decodes=decodes, chunks=chunks, most=most)
        query = scene.query(step)
        for layer in range(len(shape.windows)):
            result = run(attention.plan(step), layer, query, shape.kv_heads)
            expected = scene.expected(step, layer, query)
            torch.testing.assert_close(result.float(), expected, atol=TOLERANCE, rtol=TOLERANCE)
            again = run(attention.plan(step), layer, query, shape.kv_heads)
            assert torch.equal(result, again)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=lambda shape: f"page{shape.page_size}")
@pytest.mark.parametrize("size", [64, 256])
def test_one_captured_step_serves_every_layout(shape: Shape, size: int) -> None:
    scene = Scene(shape, rows=40, longest=3000)
    backend = TritonBackend(scene.half, shape.windows, shape.heads)
    attention = PagedAttention(scene.half, backend, backend, chunks=backend)
    tiles = torch.zeros((4, size), dtype=torch.int64, device=CUDA)
    query = torch.zeros((size, shape.heads, shape.head_dim), dtype=shape.dtype, device=CUDA)
    slots = torch.zeros(size, dtype=torch.int64, device=CUDA)
    layer = len(shape.windows) - 1

    def step() -> Tensor:
        return run(attention.chunks_at(slots, scene.block_table, tiles), layer, query, shape.kv_heads)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for seed in range(12):
        drawn = scene.draw(seed, decodes=seed, chunks=1 + seed % 3, most=(size - seed) // (1 + seed % 3))
        queries = scene.query(drawn)
        tokens = len(queries)
        spans = zip(drawn.decode_rows.tolist(), (n - 1 for n in drawn.host_lengths), strict=True)
        every = [(row, start, 1) for row, start in spans] + [tuple(chunk) for chunk in drawn.chunks]
        cut = torch.from_numpy(cut_tiles(np.array(every).T, backend.tile_tokens(size)))
        tiles.zero_()
        tiles[:, : cut.shape[1]] = cut.cuda()
        query[:tokens] = queries
        out.fill_(7)
        graph.replay()
        expected = scene.expected(drawn, layer, queries)
        torch.testing.assert_close(out[:tokens].float(), expected, atol=TOLERANCE, rtol=TOLERANCE)
        assert (out[tokens:] == 7).all()
