"""FlashAttention-4's kernels against the torch backend, and the engine with them."""

from __future__ import annotations

import random
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from minisgl.attention.base import Chunk, StepMetadata, Target
from minisgl.attention.registry import create_attention
from minisgl.kvcache.pool import KVPool
from minisgl.llm import LLM, SamplingParams
from support.judge import Judge
from support.tiny_models import make_tiny_model

HOPPER = torch.cuda.device_count() > 0 and torch.cuda.get_device_capability()[0] == 9
pytestmark = [
    pytest.mark.skipif(not HOPPER, reason="needs a CUDA GPU of the Hopper generation"),
    pytest.mark.skipif(not list(distributions(name="flash-attn-4")), reason="needs the package flash-attn-4"),
]

KV_HEADS = 2
CHUNKS = {
    "whole prompts": [Chunk(0, 0, 300), Chunk(1, 0, 1), Chunk(2, 0, 129)],
    "some continue": [Chunk(0, 0, 300), Chunk(1, 77, 130), Chunk(2, 513, 1)],
}


@pytest.mark.parametrize(
    ("head_dim", "group", "page_size", "window"),
    [(64, 1, 1, None), (64, 4, 16, 100), (128, 2, 64, None), (128, 5, 128, 100)],
)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_decodes_and_chunks_attend_as_the_reference_does(
    chunks: list[Chunk], head_dim: int, group: int, page_size: int, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = [640, 640, 640, 600, 1]  # the last two are decode rows
    width = -(-640 // page_size)
    pool = KVPool(
        num_layers=1,
        num_pages=len(lengths) * width,
        page_size=page_size,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )
    pool.layers[0].normal_()
    table = torch.randperm(pool.num_pages, device="cuda").int().view(len(lengths), width)
    tokens = [(row, lengths[row] - 1) for row in (3, 4)]
    tokens += [(chunk.row, chunk.start + i) for chunk in chunks for i in range(chunk.length)]
    rows, positions = torch.tensor(tokens, device="cuda").unbind(1)
    step = StepMetadata(
        slots=table[rows, positions // page_size].long() * page_size + positions % page_size,
        block_table=table,
        decode_rows=torch.tensor([3, 4], device="cuda"),
        decode_lengths=torch.tensor(lengths[3:], device="cuda"),
        host_lengths=lengths[3:],
        chunks=chunks,
    )
    heads = group * KV_HEADS
    qkv = torch.randn(len(tokens), heads + 2 * KV_HEADS, head_dim, device="cuda", dtype=torch.bfloat16)
    query, key, value = qkv[:, :heads], qkv[:, heads:-KV_HEADS], qkv[:, -KV_HEADS:]
    Target(pool.slots[0], step.slots).store(key, value)
    expected, result = (
        create_attention((name, name), pool, (window,), heads).plan(step)(0, query, key, value)
        for name in ("torch", "flash_attn")
    )
    torch.testing.assert_close(result, expected, atol=2e-2, rtol=2e-2)


OPTIONS: dict[str, dict[str, Any]] = {
    "graphs": {"num_pages": 1024, "attention": ("flash_attn", "flash_attn"), "cuda_graph_max_batch": 20},
    "small pool": {"num_pages": 20, "attention": ("flash_attn", "flash_attn")},
    "chunks of 32": {"num_pages": 1024, "attention": ("flash_attn", "torch"), "prefill_budget": 32},
}


@pytest.fixture(scope="module", params=[None, 40], ids=["qwen3", "mistral, window of 40"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge]:
    family = "mistral" if request.param else "qwen3"
    overrides: Any = {"hidden_size": 512, "head_dim": 64, "dtype": "bfloat16"}
    if request.param:
        overrides["sliding_window"] = request.param
    path = make_tiny_model(family, tmp_path_factory.mktemp("models") / family, **overrides)
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path, Judge(path)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_greedy_tokens_are_among_the_likeliest(case: tuple[Path, Judge], options: dict[str, Any]) -> None:
    path, judge = case
    draw = random.Random(5)
    shared = [draw.randrange(512) for _ in range(60)]
    prompts = [shared[: (60, 30, 0)[i % 3]] + [draw.randrange(512) for _ in range(20)] for i in range(24)]
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=24, **({"page_size": 16} | options)
    ) as llm:  # fmt: skip
        for _ in range(2):  # the second time from the prefix cache
            done = llm.generate(prompts, params)
            judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in done])
