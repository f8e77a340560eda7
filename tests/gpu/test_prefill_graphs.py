"""Short steps with chunks of prompts, captured: greedy text that `transformers` agrees with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from minisgl.core.batch import Batch
from minisgl.engine import prefill_graphs
from minisgl.engine.prefill_graphs import PrefillGraphs
from minisgl.llm import LLM, SamplingParams
from support.judge import Judge
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

FAMILIES: dict[str, dict[str, Any]] = {"qwen3": {}, "mistral": {"sliding_window": 40}}
SHAPE = {"hidden_size": 512, "head_dim": 64, "dtype": "bfloat16", "max_position_embeddings": 2048}
OPTIONS: dict[str, dict[str, Any]] = {
    "steps of 96": {"prefill_budget": 96},
    "steps of 512, no overlap": {"prefill_budget": 512, "overlap": False},
    "steps of 1500": {"prefill_budget": 1500},
    "our attention, pages of 1": {"prefill_budget": 64, "page_size": 1, "attention": ("triton", "triton")},
    "small pool": {"prefill_budget": 48, "num_pages": 80},
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge]:
    overrides: Any = SHAPE | FAMILIES[request.param]
    path = make_tiny_model(request.param, tmp_path_factory.mktemp("models") / request.param, **overrides)
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path, Judge(path)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that ran as graphs."""
    batches: list[Batch] = []
    replay = PrefillGraphs.replay

    def spy(graphs: PrefillGraphs, batch: Batch) -> Any:
        batches.append(batch)
        return replay(graphs, batch)

    monkeypatch.setattr(PrefillGraphs, "replay", spy)
    return batches


def prompts() -> list[list[int]]:
    """20, of which most share a beginning."""
    draw = random.Random(6)
    shared = [draw.randrange(512) for _ in range(900)]
    kept = (900, 333, 60, 0)
    return [shared[: kept[i % 4]] + [draw.randrange(512) for _ in range(draw.randint(1, 70))] for i in range(20)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_greedy_tokens_are_among_the_likeliest(
    case: tuple[Path, Judge], options: dict[str, Any], replayed: list[Batch]
) -> None:
    path, judge = case
    options = {"num_pages": 1024 * 16 // options.get("page_size", 16)} | options
    each = [SamplingParams(temperature=0.0, max_tokens=1 + 3 * i % 29, ignore_eos=True) for i in range(20)]
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=24, **({"page_size": 16} | options)
    ) as llm:  # fmt: skip
        completions = llm.generate(prompts(), each)
        assert llm.stats.used_pages == 0
        first = len(replayed)
        again = llm.generate(prompts(), each)
    assert first and len(replayed) > first
    assert any(batch.decode_rows and batch.prefill for batch in replayed), "no mixed batch was captured"
    assert any(chunk.start and len(chunk.tokens) > 1 for batch in replayed for chunk in batch.prefill)
    for done in (completions, again):
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in done])


def test_long_steps_are_not_captured_and_rests_of_cached_prompts_are(
    case: tuple[Path, Judge], replayed: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, judge = case
    monkeypatch.setattr(prefill_graphs, "most_tokens", lambda _: 512)  # as for a large model
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    base = [random.Random(8).randrange(512) for _ in range(1000)]
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=8, page_size=16, num_pages=512
    ) as llm:  # fmt: skip
        whole = llm.generate([base], params)
        assert not replayed
        rests = llm.generate([base + [7] * n for n in (1, 30)], params)
    assert len(replayed) == 1
    assert [chunk.start for chunk in replayed[0].prefill] == [992, 992]
    judge.check([(c.prompt_token_ids, c.token_ids) for c in (*whole, *rests)])


def test_sampled_rows_leave_greedy_ones_alone_and_repeat(case: tuple[Path, Judge], replayed: list[Batch]) -> None:
    path, judge = case
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 1},
        {"temperature": 0.9, "min_p": 0.2, "seed": 2},
        {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "seed": 3},
    ]
    for kinds in (ways[:2], ways):
        each = [SamplingParams(max_tokens=12, ignore_eos=True, **kinds[i % len(kinds)]) for i in range(20)]
        texts = []
        for _ in range(2):
            with LLM(
                str(path), device="cuda", dtype="bfloat16", max_running_requests=24, page_size=16, num_pages=1024,
                prefill_budget=256, overlap=False,
            ) as llm:  # fmt: skip
                completions = llm.generate(prompts(), each)
            texts.append([completion.token_ids for completion in completions])
        assert texts[0] == texts[1]
        greedy = [c for c, params in zip(completions, each, strict=True) if params.greedy]
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in greedy])
    assert replayed
