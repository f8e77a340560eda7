"""64 concurrent clients get, to the letter, the greedy text that `transformers` gives one prompt at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from tokenizers import Tokenizer

from support.greedy import Reference, greedy_references
from support.worker_process import WorkerProcess

pytestmark = pytest.mark.timeout(900)  # the first run makes the references

CLIENTS = 64
TOKENS = 8

SYSTEM = (
    "You are a careful assistant in a small shop that repairs bicycles, clocks and radios. "
    "Answer in one short sentence, and never promise a date."
)
SUBJECTS = ("a bicycle", "a clock", "a radio", "a lamp", "a kettle", "a piano", "a camera", "a typewriter")
QUESTIONS = (
    "What is {}?",
    "How do I clean {}?",
    "Name three parts of {}.",
    "Who invented {}?",
    "Why does {} break?",
    "What does {} cost?",
    "Say something kind about {}.",
    "Where can I buy {}?",
)


def conversations() -> list[list[dict[str, str]]]:
    """64 chats: all share the system prompt, half of them the beginning of the question."""
    return [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.format(subject)}]
        for question in QUESTIONS
        for subject in SUBJECTS
    ]


def chat_text(messages: list[dict[str, str]]) -> str:
    """SmolLM2's chat format, written out."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"{turns}<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


@pytest.fixture(scope="module")
def references(smollm2: Path, tokenizer: Tokenizer) -> list[Reference]:
    prompts = [tokenizer.encode(chat_text(m), add_special_tokens=False).ids for m in conversations()]
    assert len({tuple(p) for p in prompts}) == CLIENTS
    return greedy_references(smollm2, prompts, TOKENS)


CONFIGURATIONS: dict[str, tuple[list[str], dict[str, str]]] = {
    "radix, overlap, pages of 16, chunks of 2048": (
        ["--cache", "radix", "--page-size", "16", "--max-prefill-length", "2048"],
        {},
    ),
    "naive, no overlap, pages of 1, chunks of 32": (
        ["--cache", "naive", "--page-size", "1", "--max-prefill-length", "32", "--num-tokenizer", "2"],
        {"MINISGL_DISABLE_OVERLAP_SCHEDULING": "1"},
    ),
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def worker(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[WorkerProcess]:
    options, env = CONFIGURATIONS[request.param]
    with WorkerProcess(smollm2, *options, env=env) as process:
        yield process.wait_ready()


async def ask_all(
    url: str,
    *,
    stream: bool | None = None,
    clients: int = CLIENTS,
    max_tokens: int = TOKENS,
    ignore_eos: bool = False,
) -> list[tuple[str, str, int]]:
    """The first chats, all at once: text, finish reason and completion tokens of each.

    `stream` None: every other one streams.
    """
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=240)

    async def ask(index: int, messages: Any) -> tuple[str, str, int]:
        arguments: dict[str, Any] = {
            "model": "SmolLM2-135M-Instruct",
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
            "extra_body": {"ignore_eos": ignore_eos},
        }
        if not (index % 2 == 0 if stream is None else stream):
            answer = await client.chat.completions.create(**arguments)
            choice = answer.choices[0]
            return choice.message.content or "", choice.finish_reason, answer.usage.completion_tokens
        text, reason, tokens = "", "", 0
        async for chunk in await client.chat.completions.create(
            **arguments, stream=True, stream_options={"include_usage": True}
        ):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        return text, reason, tokens

    async with client:
        return await asyncio.gather(*(ask(*item) for item in enumerate(conversations()[:clients])))


def test_64_concurrent_clients(worker: WorkerProcess, references: list[Reference], tokenizer: Tokenizer) -> None:
    answers = asyncio.run(ask_all(worker.url))
    compare(references, answers, tokenizer)
    metrics = worker.metrics()
    assert metrics["sglang:num_running_reqs"] == metrics["sglang:num_queue_reqs"] == 0
    assert metrics["minisgl:used_pages"] == metrics["minisgl:retractions_total"] == 0


def test_50_clients_that_hang_up(worker: WorkerProcess) -> None:
    """Some before their first token, some in the middle of the stream: nothing of them stays."""
    aborted = worker.metrics()["minisgl:aborted_requests_total"]

    async def hang_up(client: httpx.AsyncClient, index: int) -> None:
        body = {
            "model": "SmolLM2-135M-Instruct",
            "messages": conversations()[index],
            "max_tokens": 1000,
            "ignore_eos": True,
            "stream": True,
        }
        lines = index % 5  # the first line comes with the first token
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(None if lines else 0.2 + 0.05 * index),
                client.stream("POST", "/v1/chat/completions", json=body) as response,
            ):
                seen = 0
                async for line in response.aiter_lines():
                    seen += line.startswith("data:")
                    if seen >= lines > 0:
                        break

    async def hang_up_all() -> None:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=worker.url, timeout=240, limits=limits) as client:
            await asyncio.gather(*(hang_up(client, index) for index in range(50)))

    asyncio.run(hang_up_all())
    names = "sglang:num_running_reqs", "sglang:num_queue_reqs", "minisgl:used_pages"
    deadline = time.monotonic() + 60
    empty = 0  # looks in a row; a busy server may read the last request after its client has gone
    while empty < 20:
        metrics = worker.metrics()
        left = {name: metrics[name] for name in names}
        # Those that waited for a line did reach the server; of the others, some may have given up before.
        hung_up = metrics["minisgl:aborted_requests_total"] - aborted
        empty = empty + 1 if 40 <= hung_up <= 50 and not any(left.values()) else 0
        assert time.monotonic() < deadline, (hung_up, left)
        time.sleep(0.05)


def test_a_pool_too_small_for_the_load(smollm2: Path, tokenizer: Tokenizer) -> None:
    """Every request finishes, some after a retraction, with the text that it has alone."""
    clients, tokens = 8, 40
    prompts = [tokenizer.encode(chat_text(m), add_special_tokens=False).ids for m in conversations()[:clients]]
    references = greedy_references(smollm2, prompts, tokens, ignore_eos=True)
    needed = sum(len(r.prompt) + len(r.tokens) for r in references)
    with WorkerProcess(smollm2, "--page-size", "4", "--num-pages", "60", "--log-level", "warning") as worker:
        assert needed > 2 * 60 * 4, "the pool holds less than half of the load"
        worker.wait_ready()
        answers = asyncio.run(
            ask_all(worker.url, stream=True, clients=clients, max_tokens=tokens, ignore_eos=True)
        )
        compare(references, answers, tokenizer, tokens)
        metrics = worker.metrics()
    assert metrics["minisgl:retractions_total"] > 0
    assert metrics["minisgl:used_pages"] == 0


def compare(
    references: list[Reference], answers: list[tuple[str, str, int]], tokenizer: Tokenizer, limit: int = TOKENS
) -> None:
    """Assert that every answer is its reference's text, or parts from it at a tie."""
    exact = 0
    for reference, (text, reason, tokens) in zip(references, answers, strict=True):
        expected = tokenizer.decode(reference.tokens, skip_special_tokens=True)
        if text == expected:
            exact += 1
            assert tokens == len(reference.tokens)
            assert reason == ("length" if len(reference.tokens) == limit else "stop")
        else:
            certain = reference.certain_tokens()
            assert len(certain) < len(reference.tokens), f"{text!r} instead of {expected!r}, and no tie"
            assert text.startswith(tokenizer.decode(certain, skip_special_tokens=True))
    assert exact >= len(references) * 15 // 16, "ties are rare"
