"""The engine as an object, in every combination of its mechanisms, beside `transformers` on the same weights."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import jsonschema
import pytest

from minisgl.grammar import json_schema
from minisgl.llm import LLM, SamplingParams
from support.greedy import Reference, greedy_references
from support.json_schemas import SCHEMAS
from support.tiny_models import make_tiny_model

REQUESTS = 64
TOKENS = 16
RANKS = [
    ("radix", True, 16, 2048, 2),
    ("naive", False, 1, 32, 2),
    ("radix", True, 1, 32, 4),
]
"""Each mechanism with several ranks, at least once."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A small random Llama with SmolLM2's tokenizer."""
    path = make_tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny", vocab_size=49152)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm2 / name, path)
    return path


@pytest.fixture(scope="module")
def references(model: Path) -> list[Reference]:
    """64 prompts: a third share 70 tokens, a third 40 of these, the rest nothing; lengths from 1 to 130."""
    draw = random.Random(5)
    shared = [draw.randrange(49152) for _ in range(70)]
    prompts = []
    for index in range(REQUESTS):
        head = shared[: (70, 40, 0)[index % 3]]
        prompts.append(head + [draw.randrange(49152) for _ in range(draw.randint(1, 60))])
    return greedy_references(model, prompts, TOKENS, ignore_eos=True)


def generate(llm: LLM, references: list[Reference], *, ties: int = 16) -> None:
    """Assert that every request gets its reference, all given at once; of `ties`, one may be a tie (0: none)."""
    params = SamplingParams(temperature=0.0, max_tokens=len(references[0].tokens), ignore_eos=True)
    completions = llm.generate([r.prompt for r in references], params)
    wrong = [
        index
        for index, (reference, completion) in enumerate(zip(references, completions, strict=True))
        if not reference.agrees(completion.token_ids)
    ]
    assert not wrong
    exact = sum(r.tokens == c.token_ids for r, c in zip(references, completions, strict=True))
    assert exact >= len(references) - (len(references) // ties if ties else 0), "ties are rare"
    stats = llm.stats
    assert (stats.running, stats.queued, stats.used_pages) == (0, 0, 0)


@pytest.mark.parametrize(
    ("cache", "overlap", "page_size", "chunk", "tp_size"),
    [*itertools.product(["radix", "naive"], [True, False], [1, 16], [32, 2048], [1]), *RANKS],
)
def test_every_combination_gives_the_same_tokens(
    model: Path,
    references: list[Reference],
    *,
    cache: str,
    overlap: bool,
    page_size: int,
    chunk: int,
    tp_size: int,
) -> None:
    with LLM(
        str(model),
        cache=cache,  # type: ignore[arg-type]
        overlap=overlap,
        page_size=page_size,
        prefill_budget=chunk,
        tp_size=tp_size,
        num_pages=16384 // page_size,
        max_seq_len=256,
    ) as llm:
        ties = 16 if tp_size == 1 else 0  # ranks add in another order than one does, and choose the same tokens
        generate(llm, references, ties=ties)
        generate(llm, references, ties=ties)  # again, now with what the cache kept
        if cache == "radix":
            assert llm.stats.cached_tokens > REQUESTS * 40
        else:
            assert llm.stats.cached_tokens == llm.stats.cached_pages == 0


@pytest.mark.parametrize("overlap", [True, False])
def test_a_pool_too_small_for_the_load_gives_the_same_tokens(
    model: Path, references: list[Reference], *, overlap: bool
) -> None:
    long = greedy_references(model, [r.prompt for r in references[:20]], 80, ignore_eos=True)
    with LLM(str(model), overlap=overlap, page_size=4, num_pages=128, prefill_budget=64) as llm:
        generate(llm, long)
        assert llm.stats.retractions > 0
        assert llm.stats.evicted_pages > 0


def test_sampling_with_a_seed_repeats_whatever_the_company(model: Path, references: list[Reference]) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=1234, max_tokens=TOKENS, ignore_eos=True)
    prompt = references[0].prompt
    with LLM(str(model), num_pages=1024) as llm:
        alone = llm.generate([prompt], params)[0]
        others = [SamplingParams(temperature=1.0, max_tokens=TOKENS, ignore_eos=True)] * 20
        crowd = llm.generate(
            [prompt, *(r.prompt for r in references[1:21])],
            [params, *others],
        )[0]
        other_seed = llm.generate(
            [prompt],
            SamplingParams(temperature=0.8, top_p=0.9, seed=1235, max_tokens=TOKENS, ignore_eos=True),
        )[0]
    assert alone.token_ids == crowd.token_ids
    assert alone.token_ids != other_seed.token_ids


def test_ranks_choose_as_one_does(model: Path, references: list[Reference]) -> None:
    """They divide the rows of a step among them: whatever a row asks for, it gets it."""
    kinds = [
        SamplingParams(temperature=0.9, max_tokens=TOKENS, ignore_eos=True, seed=1),
        SamplingParams(temperature=0.9, top_k=20, top_p=0.8, max_tokens=TOKENS, ignore_eos=True, seed=2),
        SamplingParams(temperature=0.7, min_p=0.1, max_tokens=TOKENS, ignore_eos=True, seed=3, logprobs=2),
        SamplingParams(temperature=0.0, presence_penalty=1.5, max_tokens=TOKENS, ignore_eos=True),
        SamplingParams(temperature=1.0, logit_bias=((7, 9.0),), max_tokens=TOKENS, ignore_eos=True, seed=4),
    ]
    prompts = [reference.prompt for reference in references[:13]]
    found = []
    for size in (1, 2, 4):
        with LLM(str(model), num_pages=1024, max_seq_len=256, tp_size=size) as llm:
            params = [kinds[index % len(kinds)] for index in range(len(prompts))]
            alone = llm.generate(prompts[3], params[3])[0]
            found.append((llm.generate(prompts, params), alone))
    (expected, alone), *others = found
    assert alone.token_ids == expected[3].token_ids
    for completions, one in others:
        assert one.token_ids == alone.token_ids
        for completion, reference in zip(completions, expected, strict=True):
            assert completion.token_ids == reference.token_ids
            for score, known in zip(completion.logprobs or (), reference.logprobs or (), strict=True):
                assert score.logprob == pytest.approx(known.logprob, abs=1e-4)
                assert score.top_ids == known.top_ids


def test_what_cannot_be_served_is_named(model: Path) -> None:
    with LLM(str(model), num_pages=16, page_size=4) as llm:
        with pytest.raises(ValueError, match=r"prompt 1: .*64 tokens"):
            llm.generate([[1, 2], [1] * 64])
        with pytest.raises(ValueError, match=r"prompt 0: .*max_tokens is 60"):
            llm.generate([[1, 2, 3, 4, 5]], SamplingParams(max_tokens=60))
        with pytest.raises(ValueError, match="2 prompts, but 1 sampling parameters"):
            llm.generate([[1], [2]], [SamplingParams()])
        assert llm.generate([]) == []
        assert len(llm.generate([[1, 2]], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_a_real_chat(smollm2: Path) -> None:
    with LLM(str(smollm2), num_pages=128) as llm:
        answer = llm.chat(
            [{"role": "user", "content": "What is the capital of France?"}],
            SamplingParams(temperature=0.0, max_tokens=24),
        )[0]
        assert "Paris" in answer.text
        stopped = llm.chat(
            [{"role": "user", "content": "What is the capital of France?"}],
            SamplingParams(temperature=0.0, max_tokens=24, stop=("Paris",)),
        )[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == answer.text.partition("Paris")[0]


def test_answers_fit_their_schemas_beside_free_ones_that_stay_as_they_are(
    model: Path, references: list[Reference]
) -> None:
    """Two ranks, each with matchers of its own; the random model chooses among what they leave it."""
    free = references[:8]
    greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    schemas = SCHEMAS[:40:4]
    guided = [
        SamplingParams(temperature=1.0, seed=index, max_tokens=250, grammar=json_schema(schema))
        for index, schema in enumerate(schemas)
    ]
    with LLM(str(model), tp_size=2, num_pages=1024) as llm:
        prompts = [*(reference.prompt for reference in free), *([1, 2, 3] for _ in schemas)]
        completions = llm.generate(prompts, [greedy] * len(free) + guided)
        for reference, completion in zip(free, completions, strict=False):
            assert reference.agrees(completion.token_ids)
        for schema, completion in zip(schemas, completions[len(free) :], strict=True):
            assert completion.finish_reason == "stop"
            jsonschema.validate(json.loads(completion.text), schema, jsonschema.Draft202012Validator)
        with pytest.raises(ValueError, match="prompt 0: grammar cannot be followed: Unimplemented keys"):
            llm.generate("x", SamplingParams(grammar=json_schema({"not": {}})))
