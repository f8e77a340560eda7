"""The HTTP surface with every real process behind it. The model's weights are random: its text has no meaning."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tokenizers import Tokenizer

from support.dummy_model import CONFIG, make_dummy_model
from support.fake_workers import wait_until
from support.worker_process import WorkerProcess

LIMIT = int(str(CONFIG["max_position_embeddings"]))
OPTIONS = (
    *("--dummy-weight", "--device", "cpu", "--num-pages", "200", "--num-tokenizer", "2"),
    *("--max-running-requests", "8", "--max-queued-requests", "8", "--max-prefill-length", "64"),
)
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun."


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[WorkerProcess]:
    model = make_dummy_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)
    with WorkerProcess(model, *OPTIONS) as worker:
        yield worker.wait_ready()
        assert_idle(worker)
        assert worker.process.poll() is None
        log = worker.log()
        assert "Traceback" not in log and " E " not in log, log


@pytest.fixture(scope="module")
def client(worker: WorkerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


def post(worker: WorkerProcess, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
    return httpx.post(worker.url + path, json={"model": "tiny"} | fields, timeout=60)


def text_of(worker: WorkerProcess, **fields: Any) -> str:
    response = post(worker, **fields)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def assert_idle(worker: WorkerProcess) -> None:
    """Every request is gone, and with it the pages that it held."""

    def idle() -> bool:
        metrics = worker.metrics()
        names = ("sglang:num_running_reqs", "sglang:num_queue_reqs", "minisgl:used_pages")
        return all(metrics[name] == 0 for name in names)

    wait_until(idle)


def test_usage_counts_real_tokens_and_the_cache(
    worker: WorkerProcess, client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    prompt = TEXT + " One." * 10
    length = len(tokenizer.encode(prompt).ids)
    for cached in (0, length // 16 * 16):
        usage = client.completions.create(model="tiny", prompt=prompt, max_tokens=3, temperature=0).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (length, cached)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert worker.metrics()["sglang:cache_hit_rate"] > 0


def test_token_ids_are_the_text_that_they_stand_for(worker: WorkerProcess, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT).ids
    texts = [text_of(worker, prompt=prompt, max_tokens=8, temperature=0) for prompt in (TEXT, ids, [ids])]
    assert len(set(texts)) == 1


def test_tokenize_counts_as_the_endpoints_do(
    worker: WorkerProcess, client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    text = f"{TEXT} naïve 🙂 <|im_start|>"
    answer = httpx.post(f"{worker.url}/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    encoded = tokenizer.encode(text)
    assert (answer["tokens"], answer["token_strs"]) == (encoded.ids, encoded.tokens)
    assert (answer["count"], answer["max_model_len"]) == (len(encoded.ids), LIMIT)
    back = httpx.post(f"{worker.url}/detokenize", json={"tokens": encoded.ids}).json()
    assert back == {"prompt": text}

    messages: Any = [{"role": "user", "content": "Hello there"}]
    usage = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1).usage
    chat = httpx.post(f"{worker.url}/tokenize", json={"messages": messages}).json()
    assert usage is not None and chat["count"] == usage.prompt_tokens
    closed = httpx.post(
        f"{worker.url}/tokenize", json={"messages": messages, "add_generation_prompt": False}
    ).json()
    assert closed["tokens"] == chat["tokens"][: closed["count"]] and closed["count"] < chat["count"]

    refused = httpx.post(f"{worker.url}/tokenize", json={"prompt": "a" * 1_000_000})
    assert refused.status_code == 400 and "1000000 characters" in refused.text and str(LIMIT) in refused.text
    refused = httpx.post(f"{worker.url}/detokenize", json={"tokens": [1, 10**6]})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tokens"


def test_several_prompts_are_answered_as_each_alone(worker: WorkerProcess) -> None:
    prompts = [f"{TEXT} {number}" for number in range(4)]
    alone = [text_of(worker, prompt=prompt, max_tokens=8, temperature=0) for prompt in prompts]
    together = post(worker, prompt=prompts, max_tokens=8, temperature=0).json()["choices"]
    assert [choice["text"] for choice in together] == alone


def test_stop_strings_end_the_text_and_never_show(worker: WorkerProcess) -> None:
    free = text_of(worker, prompt=TEXT, max_tokens=24, temperature=0, ignore_eos=True)
    stop = free[len(free) // 2 :][:5]
    expected = free.partition(stop)[0]
    fields: dict[str, Any] = {"prompt": TEXT, "max_tokens": 24, "temperature": 0, "stop": ["never seen", stop]}
    choice = post(worker, **fields, ignore_eos=True).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    streamed = post(worker, **fields, ignore_eos=True, stream=True).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in streamed[:-2]]
    assert "".join(chunk["text"] for chunk in chunks) == expected
    assert chunks[-1]["finish_reason"] == "stop"
    assert_idle(worker)


def test_stop_token_ids_end_the_text(worker: WorkerProcess, tokenizer: Tokenizer) -> None:
    fields: dict[str, Any] = {"prompt": TEXT, "temperature": 0, "ignore_eos": True}
    first = text_of(worker, **fields, max_tokens=1)
    same = [token for token in range(tokenizer.get_vocab_size()) if tokenizer.decode([token]) == first]
    ended = post(worker, **fields, max_tokens=8, stop_token_ids=same[:16]).json()
    assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")
    assert ended["usage"]["completion_tokens"] == 1


def test_equal_seeds_give_equal_text_and_no_seed_does_not(worker: WorkerProcess) -> None:
    fields: dict[str, Any] = {"prompt": TEXT, "max_tokens": 12, "ignore_eos": True}
    with ThreadPoolExecutor(4) as pool:
        seeded = list(pool.map(lambda _: text_of(worker, **fields, seed=11), range(4)))
        free = list(pool.map(lambda _: text_of(worker, **fields), range(4)))
    assert len(set(seeded)) == 1
    assert len(set(free)) == 4


def test_chat_has_the_rest_of_the_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": TEXT}], extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None and answer.usage.total_tokens == LIMIT
    assert answer.choices[0].finish_reason == "length"


def test_too_long_prompts_say_both_numbers(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    long = TEXT * 40
    length = len(tokenizer.encode(long).ids)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=long)
    assert caught.value.code == "context_length_exceeded"
    assert str(length) in caught.value.message and str(LIMIT) in caught.value.message
    with pytest.raises(openai.BadRequestError, match=str(LIMIT)) as caught:
        client.completions.create(model="tiny", prompt=TEXT, max_tokens=LIMIT)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match=f"max_completion_tokens is {LIMIT}") as caught:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": TEXT}], max_completion_tokens=LIMIT
        )
    assert caught.value.param == "max_completion_tokens"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [49152]},
        {"prompt": [[1], [2**31 - 1]]},
        {"prompt": "x" * 1_000_000},
        {"prompt": " " * 100_000},
        {"prompt": ""},
    ],
)
def test_what_the_tokenizer_refuses(worker: WorkerProcess, fields: dict[str, Any]) -> None:
    response = post(worker, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2, "top_p": 1e-300},
        {"temperature": 1e-5, "top_k": 2**31 - 1},
        {"temperature": 5e-324},
        {"min_p": 1},
        {"top_p": 1e-9, "min_p": 1, "top_k": 1, "seed": -(2**63)},
        {"stop": ["a" * 1024] * 16},
        {"stop_token_ids": [2**31 - 1]},
        {"prompt": "\x00\x01\u2028\U0010ffff<|im_end|><|im_start|>"},
        {"prompt": "e\u0301" * 50 + "\u202e" + "🧑‍🚀" * 20},
    ],
)
def test_extreme_but_valid_requests_are_served(worker: WorkerProcess, fields: dict[str, Any]) -> None:
    body: dict[str, Any] = {"prompt": TEXT, "max_tokens": 4} | fields
    response = post(worker, **body)
    assert response.status_code == 200, response.text


def test_a_client_that_leaves_gives_its_pages_back(worker: WorkerProcess, client: openai.OpenAI) -> None:
    aborted = worker.metrics()["minisgl:aborted_requests_total"]
    fields: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": 400}
    for _ in range(8):
        stream = client.completions.create(**fields, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
    wait_until(lambda: worker.metrics()["minisgl:aborted_requests_total"] == aborted + 8)
    assert_idle(worker)


def test_clients_that_leave_the_queue_leave_it(worker: WorkerProcess) -> None:
    body = json.dumps({"model": "tiny", "prompt": [TEXT] * 16, "max_tokens": 400, "ignore_eos": True}).encode()
    aborted = worker.metrics()["minisgl:aborted_requests_total"]
    with socket.create_connection(("127.0.0.1", worker.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        wait_until(lambda: worker.metrics()["sglang:num_queue_reqs"] > 0)
        full = post(worker, prompt="x")
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    wait_until(lambda: worker.metrics()["minisgl:aborted_requests_total"] == aborted + 16)
    assert_idle(worker)
    assert post(worker, prompt="x").status_code == 200


def test_metrics_tell_of_the_start_and_the_work(worker: WorkerProcess) -> None:
    metrics = worker.metrics()
    assert metrics["minisgl:total_pages"] == 200
    phases = re.findall(r'phase="(\w+)"', httpx.get(f"{worker.url}/metrics").text)
    assert " ".join(phases) == "launch imports distributed weights kv_pool attention warmup graphs tokenizers"
    assert metrics["minisgl:start_seconds"] > 0
    for name in ("prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count"):
        assert metrics[f"sglang:{name}"] > 0
