"""Tensor parallel on GPUs, in half precision and in CUDA graphs: text that `transformers` agrees with."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tokenizers import Tokenizer, models

from minisgl.llm import LLM, RankLostError, SamplingParams
from support.judge import Judge
from support.tiny_models import make_tiny_model

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA GPUs")

TOKENS = 24
SIZES = [pytest.param(size, marks=pytest.mark.skipif(size > GPUS, reason=f"needs {size} GPUs")) for size in (2, 4)]
WAYS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "graphs, NCCL by torch": {"pynccl": False},
    "no graphs": {"cuda_graph_max_batch": 0},
    "small pool": {"num_pages": 24, "prefill_budget": 64},
    "divided rows": {"prefill_budget": 8192, "max_running_requests": 64, "cache": "naive"},
}
SHAPE = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_size": 512,
    "vocab_size": 1021,
}
"""Two key-value heads, each on two of four ranks; tokens that neither two nor four ranks divide."""


@pytest.fixture(scope="module", params=["llama", "qwen3", "qwen3_moe"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge]:
    path = make_tiny_model(request.param, tmp_path_factory.mktemp("models") / request.param, **SHAPE)
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path, Judge(path, misses=0.05 if request.param == "qwen3_moe" else 0.0)


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    shared = [draw.randrange(1021) for _ in range(80)]
    return [
        shared[: (80, 40, 0)[i % 3]] + [draw.randrange(1021) for _ in range(draw.randint(1, 60))]
        for i in range(21)
    ]


def load(path: Path, size: int, **options: Any) -> LLM:
    given = {"num_pages": 512, "page_size": 16, "max_seq_len": 256, "max_running_requests": 32} | options
    return LLM(str(path), device="cuda", dtype="bfloat16", tp_size=size, **given)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_greedy_text(case: tuple[Path, Judge], size: int, way: str) -> None:
    path, judge = case
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    with load(path, size, **WAYS[way]) as llm:
        done = [
            llm.generate(prompts() * (3 if way == "divided rows" else 1), params),
            llm.generate(prompts()[:5], params),
            llm.generate(prompts()[0], params),
        ]
        assert llm.stats.used_pages == 0
        peers = llm._engine._comm._peers
        assert peers is not None
        divided = peers._sequence is not None and peers._sequence.count > 0
        assert divided == (way == "divided rows")
    for completions in done:
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in completions])


def test_a_rank_that_dies_ends_what_waits_for_it(case: tuple[Path, Judge]) -> None:
    path, _ = case
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    with load(path, 2) as llm:
        llm.generate(prompts(), params)
        (victim,) = [
            child for child in psutil.Process().children() if "minisgl.scheduler.process" in child.cmdline()
        ]
        begun = time.monotonic()
        threading.Timer(0.1, victim.kill).start()
        with pytest.raises(RankLostError, match="scheduler-1 was killed by SIGKILL"):
            llm.generate(prompts() * 100, params)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("size", SIZES)
def test_every_kind_of_choice_in_graphs(case: tuple[Path, Judge], size: int) -> None:
    """Rows are divided among the ranks, whatever they ask for; what each chooses, all know."""
    path, judge = case
    kinds = [
        SamplingParams(temperature=0.8, max_tokens=TOKENS, ignore_eos=True, seed=1),
        SamplingParams(temperature=0.8, top_k=20, top_p=0.8, max_tokens=TOKENS, ignore_eos=True, seed=2),
        SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=3),
        SamplingParams(temperature=0.0, presence_penalty=2.0, max_tokens=TOKENS, ignore_eos=True),
        SamplingParams(
            temperature=0.9, logit_bias=((7, -100.0), (8, 5.0)), max_tokens=TOKENS, ignore_eos=True, seed=3
        ),
    ]
    given = [kinds[index % len(kinds)] for index in range(21)]
    with load(path, size, cache="naive") as llm:  # both runs have the same steps
        first, again = llm.generate(prompts(), given), llm.generate(prompts(), given)
    greedy = [done for done, params in zip(first, given, strict=True) if params.logprobs]
    judge.check([(done.prompt_token_ids, done.token_ids) for done in greedy])
    for done, params in zip(first, given, strict=True):
        if params.logprobs:
            assert all(score.logprob == score.top_logprobs[0] for score in done.logprobs or [])
        if params.logit_bias:
            assert 7 not in done.token_ids
    assert [done.token_ids for done in again] == [done.token_ids for done in first]
