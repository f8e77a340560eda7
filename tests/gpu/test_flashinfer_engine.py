"""The engine in bfloat16 with FlashInfer and CUDA graphs: greedy text that `transformers` agrees with."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from minisgl.engine.engine import Engine
from minisgl.llm import LLM, SamplingParams
from support.judge import Judge
from support.tiny_models import make_tiny_model

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU"),
    pytest.mark.skipif(find_spec("flashinfer") is None, reason="needs flashinfer-python"),
]

FAMILIES = {"llama": {}, "qwen2": {}, "qwen3": {}, "qwen3_moe": {}, "mistral": {"sliding_window": 40}}
"""The last attends to a window, which most of its rows outgrow."""
SHAPE = {"hidden_size": 512, "head_dim": 64, "dtype": "bfloat16"}

OPTIONS: dict[str, dict[str, Any]] = {
    "graphs, some of them padded, some batches too large": {"num_pages": 1024, "cuda_graph_max_batch": 20},
    "no overlap": {"num_pages": 1024, "overlap": False},
    "small pool": {"num_pages": 20},
    "no graphs, chunks of 32": {"num_pages": 1024, "prefill_budget": 32, "cuda_graph_max_batch": 0},
    "prefill by torch": {"num_pages": 1024, "attention": ("torch", "flashinfer")},
    "decode by torch": {"num_pages": 1024, "attention": ("flashinfer", "torch")},
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge]:
    overrides: Any = SHAPE | FAMILIES[request.param]
    path = make_tiny_model(request.param, tmp_path_factory.mktemp("models") / request.param, **overrides)
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path, Judge(path, misses=0.05 if request.param == "qwen3_moe" else 0.0)


def prompts() -> list[list[int]]:
    """24, of which two thirds share beginnings."""
    draw = random.Random(5)
    shared = [draw.randrange(512) for _ in range(60)]
    return [
        shared[: (60, 30, 0)[i % 3]] + [draw.randrange(512) for _ in range(draw.randint(1, 50))] for i in range(24)
    ]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_greedy_tokens_are_among_the_likeliest(case: tuple[Path, Judge], options: dict[str, Any]) -> None:
    path, judge = case
    lengths = [1 + 3 * i % 29 for i in range(24)]  # rows leave at every size of batch
    each = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in lengths]
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=24, page_size=16, **options
    ) as llm:  # fmt: skip
        completions = llm.generate(prompts(), each)
        assert llm.stats.used_pages == 0
        again = llm.generate(prompts(), each)  # now from the prefix cache, and in rows used before
    for done in (completions, again):
        assert [len(completion.token_ids) for completion in done] == lengths
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in done])


def test_sizes_captured_while_idle(case: tuple[Path, Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 17 to 24 rows run as 32 first, and then, beside a prefix cache that is in use, maybe as 24."""
    path, judge = case
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    idle, chores = Engine.idle, 0
    monkeypatch.setattr(Engine, "idle", lambda _: False)
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=64, page_size=16, num_pages=1024
    ) as llm:  # fmt: skip
        done = llm.generate(prompts(), params)
        decodes, chunks = llm._engine._graphs, llm._engine._prefill_graphs
        assert decodes is None or (32 not in decodes.later and 24 in decodes.later)
        left = sum(len(graphs.later) for graphs in (decodes, chunks) if graphs is not None)
        while idle(llm._engine):
            chores += 1
        if decodes is None:
            assert chores == max(left - 1, 0), "the last leaves none"
        else:
            assert chores >= left + len(decodes._sizes) - 1, "each is timed, too"
            assert all(size < other for size, other in decodes._winners.items())
        again = llm.generate(prompts(), params)
    assert sum(completion.cached_tokens for completion in again) > 500
    for completions in (done, again):
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in completions])


def test_sampled_rows_leave_greedy_ones_alone(case: tuple[Path, Judge]) -> None:
    path, judge = case
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 1},
        {"temperature": 0.9, "min_p": 0.2, "seed": 2},
        {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "seed": 3},
    ]
    for kinds in (ways[:2], ways[:3], ways):
        each = [SamplingParams(max_tokens=20, ignore_eos=True, **kinds[i % len(kinds)]) for i in range(24)]
        with LLM(
            str(path), device="cuda", dtype="bfloat16", max_running_requests=24, page_size=16, num_pages=1024
        ) as llm:  # fmt: skip
            completions = llm.generate(prompts(), each)
        assert all(len(completion.token_ids) == 20 for completion in completions)
        greedy = [c for c, params in zip(completions, each, strict=True) if params.greedy]
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in greedy])


def test_batches_that_run_as_much_larger_ones(case: tuple[Path, Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the largest size had always taken the least time. Rows that were only timed leave nothing behind."""
    path, judge = case
    sizes = [1, 2, 4, 8, 16, 24, 32, 40]
    timed: list[dict[tuple[int, int], float]] = []

    def largest(times: dict[tuple[int, int], float]) -> dict[int, int]:
        timed.append(times)
        return dict.fromkeys(sizes, 40)

    monkeypatch.setattr("minisgl.engine.sizes._tries", lambda times: [(size, 40) for size in sorted(times)])
    monkeypatch.setattr("minisgl.engine.sizes._winners", largest)
    each = [SamplingParams(temperature=0.0, max_tokens=4 + i, ignore_eos=True) for i in range(24)]
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=40, page_size=16, num_pages=1024
    ) as llm:  # fmt: skip
        done = llm.generate(prompts(), each)
        again = llm.generate(prompts(), each)  # from the prefix cache
        assert llm.stats.used_pages == 0
        assert timed or llm._engine._graphs is None
    for times in timed:
        assert list(times) == [(size, 40) for size in sizes] and min(times.values()) > 0
    for completions in (done, again):
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in completions])
