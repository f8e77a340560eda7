"""``/tokenize``, ``/detokenize`` and the card of the model, over scripted workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from minisgl.message import Rejected, TextToTokens, TokensToText
from support.api_server import MODEL, ApiServer, api_server
from support.fake_workers import LIMITS, wait_until

CHAT: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with api_server(max_queued_requests=0, model="org/tiny") as server:
        yield server
        assert not server.frontend._asked
        assert not server.workers.requests, "only a tokenizer is asked"


def test_a_text(server: ApiServer) -> None:
    answer = server.http.post("/tokenize", json={"prompt": "Hi"})
    assert answer.json() == {
        "count": 2,
        "max_model_len": LIMITS.max_seq_len,
        "tokens": [72, 105],
        "token_strs": None,
    }
    asked = server.workers.questions[-1]
    assert isinstance(asked, TextToTokens)
    assert (asked.add_special_tokens, asked.max_seq_len) == (True, LIMITS.max_seq_len)
    body = {"model": MODEL, "prompt": "Hi", "return_token_strs": True, "add_special_tokens": False}
    assert server.http.post("/tokenize", json=body).json()["token_strs"] == ["H", "i"]
    asked = server.workers.questions[-1]
    assert isinstance(asked, TextToTokens) and not asked.add_special_tokens


def test_a_chat(server: ApiServer) -> None:
    assert server.http.post("/tokenize", json={"messages": CHAT}).json()["tokens"] == [72, 105]
    asked = server.workers.questions[-1]
    assert isinstance(asked, TextToTokens)
    assert (asked.messages, asked.text, asked.add_special_tokens) == (CHAT, None, False)
    assert asked.template == {"add_generation_prompt": True}
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {
        "messages": CHAT,
        "add_generation_prompt": False,
        "tools": tools,
        "chat_template_kwargs": {"enable_thinking": False},
        "add_special_tokens": True,
    }
    assert server.http.post("/tokenize", json=body).status_code == 200
    asked = server.workers.questions[-1]
    assert isinstance(asked, TextToTokens) and asked.add_special_tokens
    assert asked.template == {"add_generation_prompt": False, "tools": tools, "enable_thinking": False}


def test_tokens_become_text(server: ApiServer) -> None:
    assert server.http.post("/detokenize", json={"tokens": [72, 105]}).json() == {"prompt": "Hi"}
    asked = server.workers.questions[-1]
    assert isinstance(asked, TokensToText) and asked.vocab_size == LIMITS.vocab_size
    assert server.http.post("/detokenize", json={"model": MODEL, "tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, 400, "prompt"),
        ("/tokenize", {"prompt": 3}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, 400, "add_generation_prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": CHAT, "chat_template": "x"}, 400, "chat_template"),
        ("/tokenize", {"messages": CHAT, "chat_template_kwargs": {"a": [2**64]}}, 400, "chat_template_kwargs"),
        ("/tokenize", {"messages": CHAT, "tools": [{"type": "function"}]}, 400, "tools[0].function"),
        ("/tokenize", {"messages": CHAT, "continue_final_message": True}, 400, "continue_final_message"),
        ("/tokenize", {"prompt": "a", "max_tokens": 3}, 400, "max_tokens"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "<reject>"}, 400, "prompt"),
        ("/tokenize", {"prompt": "<crash>"}, 500, None),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [1], "prompt": "a"}, 400, "prompt"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
def test_what_is_refused_is_named(
    server: ApiServer, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = server.http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_questions_wait_in_the_same_queue(server: ApiServer) -> None:
    """So that they cannot pile up before the tokenizers without a bound."""
    ask = {"prompt": "<hang>"}
    before = len(server.workers.questions)
    with ThreadPoolExecutor() as pool:
        hanging = [
            pool.submit(server.http.post, "/tokenize", json=ask) for _ in range(LIMITS.max_running_requests)
        ]
        wait_until(lambda: len(server.frontend._asked) == LIMITS.max_running_requests)
        assert server.http.post("/tokenize", json=ask).status_code == 429
        wait_until(lambda: len(server.workers.questions) == before + len(hanging))
        for asked in server.workers.questions[before:]:
            server.workers.send(Rejected(uid=asked.uid, message="no", param="prompt"))
        assert {future.result().status_code for future in hanging} == {400}


def test_the_card(server: ApiServer) -> None:
    listed = server.openai.models.list().data
    card = server.openai.models.retrieve(MODEL)
    assert listed == [card]
    assert (card.id, card.object, card.owned_by) == (MODEL, "model", "minisgl")
    extra = {"root": "org/tiny", "parent": None, "max_model_len": LIMITS.max_seq_len}
    assert card.model_extra == extra
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_they_need_the_key_and_a_worker_that_serves() -> None:
    with api_server(ready=False, api_key="k") as server:
        assert server.http.post("/tokenize", json={"prompt": "a"}).status_code == 401
        key = {"authorization": "Bearer k"}
        answer = server.http.post("/detokenize", json={"tokens": [1]}, headers=key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert server.http.get("/v1/models", headers=key).json()["data"][0]["max_model_len"] is None
