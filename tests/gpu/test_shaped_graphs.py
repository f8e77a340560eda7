"""Decode steps as CUDA graphs with rows whose logits are changed or scored: the same tokens as without."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

from minisgl.engine.graphs import DecodeGraphs
from minisgl.llm import LLM, Completion, SamplingParams
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")

VOCAB = 2048
TOKENS = 40
ROUNDING = 0.2
"""More than two roundings of a logit of about 16 to bfloat16."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny_model(
        "qwen3", tmp_path_factory.mktemp("models") / "tiny", vocab_size=VOCAB, hidden_size=512, head_dim=64,
        dtype="bfloat16",
    )  # fmt: skip
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module", params=[20, 0], ids=["graphs", "eager"])
def llm(request: pytest.FixtureRequest, path: Path) -> Iterator[LLM]:
    """Batches of up to 24 rows: those of more than 20 do not run as graphs. Prompts are read alike every time."""
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=24, page_size=16, num_pages=1024,
        cuda_graph_max_batch=request.param, cache="naive",
    ) as llm:  # fmt: skip
        yield llm


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(VOCAB) for _ in range(20)] for _ in range(count)]


WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 1.2, "top_p": 0.9, "min_p": 0.01},
]


def plain(count: int) -> list[SamplingParams]:
    return [
        SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=row, **WAYS[row % len(WAYS)])
        for row in range(count)
    ]


def changed(params: list[SamplingParams], rows: range, **fields: Any) -> list[SamplingParams]:
    return [msgspec.structs.replace(p, **fields) if row in rows else p for row, p in enumerate(params)]


def tokens(done: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in done]


@pytest.mark.parametrize("count", [1, 3, 8, 24])
def test_shaping_that_changes_nothing_changes_nothing(llm: LLM, count: int) -> None:
    """A bias of 0, and log-probabilities: the step is drawn twice, and must come to the same."""
    expected = tokens(llm.generate(prompts(count), plain(count)))
    assert len({tuple(answer) for answer in expected}) == count
    for rows in (range(count), range(0, count, 2)):
        params = changed(plain(count), rows, logit_bias=((7, 0.0),))
        assert tokens(llm.generate(prompts(count), params)) == expected
        assert tokens(llm.generate(prompts(count), changed(params, rows, logprobs=3))) == expected


@pytest.mark.parametrize("count", [3, 8, 24])
def test_rows_beside_shaped_rows_get_the_same_tokens(llm: LLM, count: int) -> None:
    expected = tokens(llm.generate(prompts(count), plain(count)))
    shaped = changed(plain(count), range(1, count, 2), presence_penalty=1.0, repetition_penalty=1.5)
    done = tokens(llm.generate(prompts(count), shaped))
    assert done[::2] == expected[::2]
    assert all(one != other for one, other in zip(done[1::2], expected[1::2], strict=True))
    assert tokens(llm.generate(prompts(count), shaped)) == done, "the same again, in rows used before"


@pytest.mark.parametrize("count", [1, 8, 24])
def test_greedy_rows_choose_by_penalized_logits(llm: LLM, count: int) -> None:
    """Worked out from the log-probabilities that the engine gives of its own logits."""
    params = changed(
        plain(count), range(count), temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, logprobs=200,
        presence_penalty=2.0, frequency_penalty=0.5, logit_bias=((11, -100.0), (12, 1.5)),
    )  # fmt: skip
    for done in llm.generate(prompts(count), params):
        assert done.logprobs is not None
        before: Counter[int] = Counter()
        for token, score in zip(done.token_ids, done.logprobs, strict=True):
            bias = {11: -100.0, 12: 1.5}
            values = {
                other: logprob + bias.get(other, 0.0) - 2.0 * (before[other] > 0) - 0.5 * before[other]
                for other, logprob in zip(score.top_ids, score.top_logprobs, strict=True)
            }
            assert values[token] > max(values.values()) - ROUNDING
            before[token] += 1
        assert max(before.values()) < TOKENS // 2


def test_log_probabilities_are_those_of_transformers(llm: LLM, path: Path) -> None:
    params = changed(plain(9), range(0, 9, 2), logprobs=5, prompt_logprobs=True, frequency_penalty=0.3)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for one, done in zip(params, llm.generate(prompts(9), params), strict=True):
        if one.logprobs is None:
            assert done.logprobs is done.prompt_logprobs is None
            continue
        assert done.logprobs is not None and done.prompt_logprobs is not None
        everything = done.prompt_token_ids + done.token_ids
        with torch.inference_mode():
            expected = model(torch.tensor([everything])).logits[0].log_softmax(-1)
        scores = done.prompt_logprobs + done.logprobs
        ours = torch.tensor([score.logprob for score in scores])
        theirs = expected[range(len(scores)), everything[1:]]
        assert float((ours - theirs).abs().mean()) < 0.1
        for score in scores:
            assert score.top_logprobs == sorted(score.top_logprobs, reverse=True)
            assert score.logprob <= score.top_logprobs[0]


def test_small_graphs_are_captured_for_shaped_batches_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    capture = DecodeGraphs._capture_shaped

    def noted(graphs: DecodeGraphs, size: int) -> None:
        capture(graphs, size)
        sizes.append(size)

    monkeypatch.setattr(DecodeGraphs, "_capture_shaped", noted)
    with LLM(
        str(path), device="cuda", dtype="bfloat16", max_running_requests=24, page_size=16, num_pages=1024
    ) as llm:  # fmt: skip
        llm.generate(prompts(8), plain(8))
        assert sizes == []
        for _ in range(2):
            llm.generate(prompts(8), changed(plain(8), range(1), presence_penalty=1.0))
        assert sizes == [8]
