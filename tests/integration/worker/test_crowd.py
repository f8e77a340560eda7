"""The small real model behind the official client: every feature at once, in two hundred streams."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from support.json_schemas import SCHEMAS
from support.worker_process import WorkerProcess

STREAMS = 200
TOKENS = 10
TEMPLATE = """\
{%- if tools %}<|im_start|>system
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call> to call one of {{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
Request = dict[str, Any]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[WorkerProcess]:
    """SmolLM2, whose own template knows no tools, with one that does."""
    model = tmp_path_factory.mktemp("models") / "small"
    shutil.copytree(
        smollm2, model, symlinks=True, copy_function=lambda source, target: Path(target).symlink_to(source)
    )
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(TEMPLATE)
    options = ("--device", "cpu", "--max-running-requests", "64", "--max-seq-len", "1024", "--num-pages", "1200")
    with WorkerProcess(model, *options) as worker:
        yield worker.wait_ready()
        log = worker.log()
        assert "Traceback" not in log and " E " not in log, log


def chat(content: str, **fields: Any) -> Request:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "temperature": 0} | fields


def completion(prompt: str, **fields: Any) -> Request:
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0} | fields


def formatted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


REQUESTS: list[Request] = [
    chat("What is the capital of France?"),
    chat("What is the capital of France?", presence_penalty=1.5),
    chat("Count to ten.", frequency_penalty=1.0),
    chat("Tell me about the sea.", extra_body={"repetition_penalty": 1.3}),
    chat("Say hello.", logit_bias={"28": 5, "30": -100}),
    chat("Name a colour.", response_format=formatted(COLOUR), max_tokens=30),
    chat("Give me an object.", response_format={"type": "json_object"}),
    chat("How is the weather in Rome?", tools=[WEATHER], tool_choice="required", max_tokens=40),
    chat(
        "Weather?",
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=40,
    ),
    chat("Hello!", tools=[WEATHER]),
    chat("Where is Rome?", logprobs=True, top_logprobs=3),
    chat("Where is Rome?", n=2),
    chat("Who wrote Hamlet?", stop=[".", "Shake"]),
    chat("Who wrote Hamlet?", extra_body={"stop_token_ids": [28, 30, 198]}),
    chat("Sing.", temperature=0.8, seed=7),
    chat("Sing.", temperature=0.8, top_p=0.7, seed=8, n=2),
    chat("Dance.", temperature=0.9, seed=9, extra_body={"min_p": 0.1, "top_k": 30}),
    chat("Bye.", extra_body={"ignore_eos": True}),
    completion("The sun rises in the"),
    completion("The sun rises in the", echo=True),
    completion("One, two, three,", echo=True, logprobs=2),
    completion("One, two, three,", logprobs=0, n=2),
    completion("Water boils at", presence_penalty=0.7, logprobs=1),
    completion("Once upon a time", extra_body={"response_format": formatted({"enum": ["yes", "no"]})}),
    completion("Roses are red,", temperature=1.0, seed=3, extra_body={"repetition_penalty": 1.2}),
]
"""Every feature, alone or with others."""


def test_two_hundred_streams_are_what_each_is_alone(worker: WorkerProcess) -> None:
    asyncio.run(_crowd(worker))
    used = worker.metrics()
    assert used["sglang:num_running_reqs"] == used["sglang:num_queue_reqs"] == 0


async def _crowd(worker: WorkerProcess) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{worker.url}/v1", api_key="none", max_retries=0, timeout=600
    ) as client:
        alone = [await _stream(client, request) for request in REQUESTS]
        crowd = await asyncio.gather(*(_stream(client, REQUESTS[i % len(REQUESTS)]) for i in range(STREAMS)))
    for index, found in enumerate(crowd):
        request = REQUESTS[index % len(REQUESTS)]
        expected = alone[index % len(REQUESTS)]
        assert found.keys() == expected.keys() == set(range(request.get("n", 1))), request
        for choice, answer in found.items():
            known = expected[choice]
            assert answer["logprobs"] == pytest.approx(known["logprobs"], abs=1e-3), request
            assert answer | {"logprobs": []} == known | {"logprobs": []}, request
    for index, request in enumerate(REQUESTS):
        if request.get("tool_choice"):
            assert json.loads(alone[index][0]["calls"][0][1])["city"] in ("Paris", "Rome")
        if request.get("max_tokens") == 30:
            jsonschema.validate(json.loads(alone[index][0]["text"]), COLOUR)


async def _stream(client: openai.AsyncOpenAI, request: Request) -> dict[int, dict[str, Any]]:
    """Text, calls, log-probabilities and the reason of the end, by choice, put together from a stream."""
    kind: Any = client.chat.completions if "messages" in request else client.completions
    found: dict[int, dict[str, Any]] = {}
    async for chunk in await kind.create(model="small", stream=True, **request):
        for choice in chunk.choices:
            answer = found.setdefault(
                choice.index, {"text": "", "calls": [], "logprobs": [], "tokens": [], "reason": None}
            )
            answer["reason"] = choice.finish_reason or answer["reason"]
            scores = choice.logprobs
            if "messages" not in request:
                answer["text"] += choice.text
                if scores is not None:
                    answer["tokens"] += scores.tokens
                    answer["logprobs"] += [value for value in scores.token_logprobs if value is not None]
                continue
            answer["text"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.function.name:
                    answer["calls"].append([call.function.name, ""])
                answer["calls"][call.index][1] += call.function.arguments or ""
            if scores is not None:
                answer["tokens"] += [token.token for token in scores.content]
                answer["logprobs"] += [token.logprob for token in scores.content]
    return found


def test_fifty_schemas_are_followed(worker: WorkerProcess) -> None:
    """By a model that would not think of it; all at once."""

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{worker.url}/v1", api_key="none", max_retries=0, timeout=600
        ) as client:
            create: Any = client.chat.completions.create
            return await asyncio.gather(
                *(
                    create(
                        model="small",
                        messages=[{"role": "user", "content": f"Example {index}"}],
                        response_format=formatted(schema),
                        max_tokens=500,
                        temperature=1.0,
                        seed=index,
                    )
                    for index, schema in enumerate(SCHEMAS)
                )
            )

    assert len(SCHEMAS) == 50
    for schema, answer in zip(SCHEMAS, asyncio.run(ask()), strict=True):
        (choice,) = answer.choices
        assert choice.finish_reason == "stop", (schema, choice)
        jsonschema.validate(json.loads(choice.message.content), schema, jsonschema.Draft202012Validator)
