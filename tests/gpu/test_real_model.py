"""The real small model in bfloat16: greedy text that `transformers` on the same GPU agrees with."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from minisgl.llm import LLM, SamplingParams
from support.judge import Judge

REPOSITORY = Path(__file__).parent.parent.parent
MODEL = REPOSITORY / ".models" / "SmolLM2-135M-Instruct"

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU"),
    pytest.mark.skipif(find_spec("flashinfer") is None, reason="needs flashinfer-python"),
    pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="needs the model of `make model`"),
]

QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain how a bicycle stays upright.",
    "List the first ten prime numbers.",
    "Name three animals that live in the Arctic, and say what they eat.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes.",
]

OPTIONS: dict[str, dict[str, Any]] = {
    "alone": {"max_running_requests": 1, "page_size": 64},
    "together": {"page_size": 64},
    "pages of 16, chunks of 64": {"page_size": 16, "prefill_budget": 64},
    "no graphs": {"page_size": 64, "cuda_graph_max_batch": 0},
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Questions in the model's chat format, then long texts that begin alike."""
    tokenizer: Any = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    asked = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS]
    text = (REPOSITORY / "docs" / "tour.md").read_text()
    ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in asked]
    return ids + [tokenizer.encode(text).ids[:length] for length in (300, 700, 1100)]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(MODEL)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_greedy_text_of_the_real_model(prompts: list[list[int]], judge: Judge, options: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=64)
    with LLM(str(MODEL), device="cuda", dtype="bfloat16", memory_ratio=0.1, max_seq_len=2048, **options) as llm:
        first = llm.generate(prompts, params)
        again = llm.generate(prompts, params)  # now from the prefix cache
        assert "Paris" in first[0].text
    for done in (first, again):
        judge.check([(completion.prompt_token_ids, completion.token_ids) for completion in done])
