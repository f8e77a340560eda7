"""The engine on GPUs, with the reference attention backend: the same tokens as `transformers`, and as the CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from minisgl.llm import LLM, SamplingParams
from support.greedy import Reference, greedy_references
from support.tiny_models import make_tiny_model

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs a CUDA GPU")

TOKENS = 16
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "mistral")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Reference]]:
    """A tiny random model, and 24 prompts of which two thirds share beginnings."""
    path = make_tiny_model(request.param, tmp_path_factory.mktemp("models") / request.param)
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    draw = random.Random(5)
    shared = [draw.randrange(512) for _ in range(60)]
    prompts = [
        shared[: (60, 30, 0)[i % 3]] + [draw.randrange(512) for _ in range(draw.randint(1, 50))] for i in range(24)
    ]
    return path, greedy_references(path, prompts, TOKENS, ignore_eos=True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_pages": 1024},
        {"num_pages": 8192, "overlap": False, "page_size": 1, "prefill_budget": 32},
        {"num_pages": 40, "page_size": 8},
        pytest.param(
            {"num_pages": 1024, "tp_size": 2}, marks=pytest.mark.skipif(GPUS < 2, reason="needs two CUDA GPUs")
        ),
    ],
    ids=["overlap", "no overlap, pages of 1, chunks of 32", "small pool", "two ranks"],
)
def test_greedy_tokens_are_those_of_transformers(
    case: tuple[Path, list[Reference]], options: dict[str, Any]
) -> None:
    path, references = case
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    with LLM(str(path), device="cuda", dtype="float32", **({"page_size": 16} | options)) as llm:
        completions = llm.generate([r.prompt for r in references], params)
        assert llm.stats.used_pages == 0
    assert all(r.agrees(c.token_ids) for r, c in zip(references, completions, strict=True))


def test_a_seed_gives_the_same_tokens_in_any_company(case: tuple[Path, list[Reference]]) -> None:
    path, references = case
    params = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, seed=7, max_tokens=TOKENS, ignore_eos=True)
    prompts = [r.prompt for r in references]
    with LLM(str(path), device="cuda", dtype="float32", num_pages=1024) as llm:
        alone = llm.generate(prompts[:1], params)[0]
        crowd = llm.generate(prompts, params)[0]
    assert alone.token_ids == crowd.token_ids
