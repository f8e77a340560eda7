"""What a request asks of sampling, through the whole engine, against logits that `transformers` computes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models
from torch import Tensor

from minisgl.core.batch import TokenScore
from minisgl.llm import LLM, Completion, SamplingParams
from support.tiny_models import make_tiny_model

TOKENS = 56
TIE = 1e-3
"""As `support.greedy.TIE`."""


class Reference:
    """A model of `transformers` in float32."""

    def __init__(self, path: Path) -> None:
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def logits(self, tokens: list[int]) -> Tensor:
        """float32 [len(tokens), vocab]: what follows each."""
        with torch.inference_mode():
            return self._model(torch.tensor([tokens])).logits[0]  # type: ignore[no-any-return]


def shaped(logits: Tensor, params: SamplingParams, prompt: list[int], answer: list[int]) -> Tensor:
    """logits [vocab] as they are before the choice."""
    logits = logits.clone()
    for token, bias in params.logit_bias:
        logits[token] += bias
    for token in {*prompt, *answer}:
        factor = params.repetition_penalty
        logits[token] *= 1 / factor if logits[token] > 0 else factor
    for token, times in Counter(answer).items():
        logits[token] -= params.frequency_penalty * times + params.presence_penalty
    return logits


def check_scores(
    scores: list[TokenScore] | None, logits: Tensor, tokens: list[int], k: int, within: float
) -> None:
    """logits [N, vocab], before each of N `tokens`."""
    assert scores is not None and len(scores) == len(tokens)
    expected = logits.log_softmax(-1)
    own = expected[range(len(tokens)), tokens]
    assert torch.allclose(torch.tensor([score.logprob for score in scores]), own, atol=within, rtol=0)
    for score, line in zip(scores, expected, strict=True):
        top = torch.tensor(score.top_logprobs)
        assert len(score.top_ids) == len(set(score.top_ids)) == k
        assert torch.allclose(top, line[score.top_ids], atol=within, rtol=0)
        assert torch.allclose(top, line.topk(k).values, atol=within, rtol=0)


def check(reference: Reference, params: SamplingParams, done: Completion, within: float = 1e-4) -> None:
    """Greedy answers choose the largest of the shaped logits; log-probabilities are of the model's own."""
    prompt, answer = done.prompt_token_ids, done.token_ids
    logits = reference.logits(prompt + answer)
    before = logits[len(prompt) - 1 : -1]
    if params.greedy:
        for place, token in enumerate(answer):
            line = shaped(before[place], params, prompt, answer[:place])
            assert line[token] > line.max() - TIE
    if params.logprobs is None:
        assert done.logprobs is None
    else:
        check_scores(done.logprobs, before, answer, params.logprobs, within)
    if params.prompt_logprobs:
        assert params.logprobs is not None
        check_scores(done.prompt_logprobs, logits[: len(prompt) - 1], prompt[1:], params.logprobs, within)
    else:
        assert done.prompt_logprobs is None


def kinds(draw: random.Random) -> list[SamplingParams]:
    """Every kind of request, greedy and not, plain ones among them."""
    bias = tuple((token, draw.uniform(-5, 5)) for token in draw.sample(range(512), 40))
    each: list[dict[str, Any]] = [
        {},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7, "logprobs": 0},
        {"repetition_penalty": 1.8},
        {"logit_bias": bias},
        {"presence_penalty": -1.0, "repetition_penalty": 0.8, "logit_bias": bias[:5], "logprobs": 5},
        {"logprobs": 20, "prompt_logprobs": True},
        {"logprobs": 1, "prompt_logprobs": True, "frequency_penalty": 2.0},
    ]
    ways: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9}, {"temperature": 1.1}]
    return [
        SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=number, **kind, **way)
        for number, (kind, way) in enumerate((kind, way) for way in ways for kind in each)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    """Chunks of 16 tokens, and a pool that holds some of the requests at a time."""
    with LLM(str(tiny), device="cpu", num_pages=50, page_size=8, prefill_budget=16) as llm:
        yield llm


def some_prompts(count: int) -> list[list[int]]:
    draw = random.Random(3)
    shared = [draw.randrange(512) for _ in range(40)]
    return [
        shared[: (40, 20, 0)[i % 3]] + [draw.randrange(512) for _ in range(draw.randint(1, 30))]
        for i in range(count)
    ]


def test_requests_of_every_kind_together_in_a_small_pool(tiny: Path, llm: LLM) -> None:
    """Chunked, retracted and beside each other, each gets the tokens and log-probabilities that it would alone."""
    params = kinds(random.Random(1))
    prompts = some_prompts(len(params))
    together = llm.generate(prompts, params)
    assert llm.stats.retractions > 3
    reference = Reference(tiny)
    for one, done in zip(params, together, strict=True):
        check(reference, one, done)
    for place in range(0, len(params), 5):
        [alone] = llm.generate([prompts[place]], params[place])
        assert alone.token_ids == together[place].token_ids


def test_a_prompt_is_scored_although_it_is_cached(tiny: Path, llm: LLM) -> None:
    prompt = some_prompts(1)[0] * 3
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, logprobs=3)
    plain, scored = (
        params,
        SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, logprobs=3, prompt_logprobs=True),
    )
    llm.generate([prompt], plain)
    [cached], [done] = llm.generate([prompt], plain), llm.generate([prompt], scored)
    assert cached.cached_tokens > 100 and done.cached_tokens == 0
    assert cached.token_ids == done.token_ids
    check(Reference(tiny), scored, done)
    [shortest] = llm.generate([[5]], scored)
    assert shortest.prompt_logprobs == []


def test_more_positions_than_are_scored_at_once(tiny: Path) -> None:
    """One chunk of 250 tokens, and more likely tokens than there are."""
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logprobs=600, prompt_logprobs=True)
    prompt = [random.Random(8).randrange(512) for _ in range(250)]
    with LLM(str(tiny), device="cpu", num_pages=64, page_size=8) as llm:
        [done] = llm.generate([prompt], params)
    assert done.prompt_logprobs is not None
    logits = Reference(tiny).logits(prompt)
    check_scores(done.prompt_logprobs, logits[:-1], prompt[1:], 512, 1e-4)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (SamplingParams(logit_bias=((512, 1.0),)), "token id 512 is outside the vocabulary: ids are 0 to 511"),
        (SamplingParams(logit_bias=((5, 1.0), (5, 2.0))), "logit_bias names a token twice"),
        (SamplingParams(logit_bias=tuple((n, 0.0) for n in range(513))), "logit_bias has 513 tokens"),
        (SamplingParams(repetition_penalty=0.0), "repetition_penalty 0: must be above 0"),
        (SamplingParams(prompt_logprobs=True), "prompt_logprobs needs logprobs"),
    ],
)
def test_what_no_engine_can_do_is_refused(llm: LLM, params: SamplingParams, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        llm.generate([[1, 2]], params)


def test_the_small_real_model(smollm2: Path) -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=12, logprobs=5, prompt_logprobs=True, repetition_penalty=1.2, ignore_eos=True
    )
    with LLM(str(smollm2), device="cpu", num_pages=64) as llm:
        [done] = llm.generate(["The capital of France is Paris. The capital of Italy is"], params)
    check(Reference(smollm2), params, done, within=1e-2)
