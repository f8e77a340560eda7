"""The endpoints over scripted workers: what clients get, and what the workers are told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from minisgl.message import Heartbeat, SchedulerReady, SchedulerStats
from support.api_server import MODEL, ApiServer, api_server
from support.fake_workers import CACHED_TOKENS, LIMITS, PROMPT_TOKENS, one_token, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with api_server(max_body_size=20_000, max_queued_requests=4) as server:
        yield server
        assert not server.frontend._in_flight, "a request was left behind"
        assert not server.frontend._open


def events(text: str) -> list[dict[str, Any]]:
    """The data of a stream's events, without the last."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def user(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


def usage(prompts: int, generated: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompts * PROMPT_TOKENS,
        "completion_tokens": generated,
        "total_tokens": prompts * PROMPT_TOKENS + generated,
        "prompt_tokens_details": {"cached_tokens": prompts * CACHED_TOKENS},
    }


def raw(server: ApiServer, request: bytes) -> bytes:
    """The answer to bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:  # the server need not read all of a flood
            pass
        return answer


class TestAnswers:
    def test_chat(self, server: ApiServer) -> None:
        answer = server.chat("Par|is", max_tokens=9).json()
        assert answer.pop("id").startswith("chatcmpl-")
        assert isinstance(answer.pop("created"), int)
        assert answer == {
            "object": "chat.completion",
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Paris", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": usage(1, 3),
        }
        request = server.workers.last()
        assert request.messages == user("Par|is")
        assert (request.params.max_tokens, request.max_seq_len) == (9, LIMITS.max_seq_len)
        assert request.vocab_size == LIMITS.vocab_size

    def test_chat_stream(self, server: ApiServer) -> None:
        response = server.chat("Par||is|<length>", stream=True)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        chunks = events(response.text)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert all("usage" not in chunk for chunk in chunks)
        deltas = [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]
        assert deltas[0] == ({"role": "assistant", "content": ""}, None)
        assert deltas[-1] == ({}, "length")
        middle = deltas[1:-1]
        assert "".join(delta["content"] for delta, _ in middle) == "Paris"
        assert all(delta["content"] and reason is None for delta, reason in middle)

    def test_usage_is_the_streams_last_chunk_when_asked_for(self, server: ApiServer) -> None:
        for response in (
            server.chat("a|b", stream=True, stream_options={"include_usage": True}),
            server.complete("a|b", stream=True, stream_options={"include_usage": True}),
        ):
            *chunks, last = events(response.text)
            assert all(chunk["usage"] is None for chunk in chunks)
            assert (last["choices"], last["usage"]) == ([], usage(1, 3))

    def test_completion_of_several_prompts(self, server: ApiServer) -> None:
        answer = server.complete(["a|b", "c|<length>"]).json()
        assert answer["object"] == "text_completion"
        assert answer["choices"] == [
            {"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"},
            {"index": 1, "text": "c", "logprobs": None, "finish_reason": "length"},
        ]
        assert answer["usage"] == usage(2, 5)

    def test_completion_stream_of_several_prompts(self, server: ApiServer) -> None:
        texts, reasons = {0: "", 1: ""}, {}
        for chunk in events(server.complete(["a|b", "c|<length>"], stream=True).text):
            (choice,) = chunk["choices"]
            assert choice["index"] not in reasons, "text after the end"
            texts[choice["index"]] += choice["text"]
            if choice["finish_reason"] is not None:
                reasons[choice["index"]] = choice["finish_reason"]
        assert texts == {0: "ab", 1: "c"}
        assert reasons == {0: "stop", 1: "length"}

    def test_token_ids(self, server: ApiServer) -> None:
        assert server.complete([1, 2]).json()["choices"][0]["text"] == "12"
        assert server.workers.last().token_ids == [1, 2]
        assert server.workers.last().text is None

    def test_seeds_are_drawn_when_not_given(self, server: ApiServer) -> None:
        server.complete(["a", "b"])
        first, second = (request.params.seed for request in server.workers.requests[-2:])
        assert first is not None and second is not None and first != second
        assert 0 <= first < 2**63
        server.complete(["a", "b"], seed=5)
        assert [request.params.seed for request in server.workers.requests[-2:]] == [5, 5]

    def test_the_official_client(self, server: ApiServer) -> None:
        create = server.openai.chat.completions.create
        answer = create(model=MODEL, messages=user("a|b"), max_completion_tokens=4, user="ann")
        assert answer.choices[0].message.content == "ab"
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
        history = [*user("a|b"), answer.choices[0].message.model_dump(), *user("c|d")]
        stream = create(model=MODEL, messages=history, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "cd"
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
        completed = server.openai.completions.create(model=MODEL, prompt=["a", "b"])
        assert [choice.text for choice in completed.choices] == ["a", "b"]
        assert [model.id for model in server.openai.models.list()] == [MODEL]
        assert server.openai.models.retrieve(MODEL).id == MODEL


class TestErrors:
    @staticmethod
    def error(response: Any, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert set(response.json()) == {"error"}
        error: dict[str, Any] = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error

    def test_bad_field(self, server: ApiServer) -> None:
        seen = len(server.workers.requests)
        assert self.error(server.chat("x", temperature=3), 400)["param"] == "temperature"
        assert len(server.workers.requests) == seen, "a bad request reached the workers"

    def test_malformed_json_and_other_content(self, server: ApiServer) -> None:
        for content, kind in [
            (b"{", "application/json"),
            (b"{}", "text/plain"),
            (b"model=tiny", "application/x-www-form-urlencoded"),
        ]:
            response = server.http.post("/v1/chat/completions", content=content, headers={"content-type": kind})
            self.error(response, 400)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_refusal_by_the_tokenizer_has_its_words_and_no_stream(self, server: ApiServer, stream: bool) -> None:
        error = self.error(server.chat("<reject>", stream=stream), 400)
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
        assert "900" in error["message"] and "512" in error["message"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_one_refused_prompt_refuses_the_request_and_aborts_the_others(
        self, server: ApiServer, stream: bool
    ) -> None:
        self.error(server.complete(["a|<hang>", "<reject>"], stream=stream), 400)
        # Two tokenizers: which of the two requests is read first is not said.
        uid = next(r.uid for r in reversed(server.workers.requests) if r.text == "a|<hang>")
        wait_until(lambda: uid in server.workers.aborted)

    @pytest.mark.parametrize("prompt", ["<crash>", "<abort>"])
    def test_the_workers_own_failure_is_500_and_tells_nothing(self, server: ApiServer, prompt: str) -> None:
        error = self.error(server.chat(prompt), 500)
        assert (error["type"], error["message"]) == ("server_error", "internal server error")

    def test_a_failure_in_a_stream_is_an_event(self, server: ApiServer) -> None:
        response = server.chat("a|<abort>", stream=True)
        assert response.status_code == 200
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        with pytest.raises(openai.APIError, match="internal server error"):
            list(server.openai.completions.create(model=MODEL, prompt="a|<abort>", stream=True))

    def test_unknown_model_path_and_method(self, server: ApiServer) -> None:
        assert self.error(server.chat("x", model="gpt-4"), 404)["code"] == "model_not_found"
        assert self.error(server.http.get("/v1/models/a/b"), 404)["code"] == "model_not_found"
        assert "/v2" in self.error(server.http.get("/v2"), 404)["message"]
        wrong = server.http.get("/v1/completions")
        self.error(wrong, 405)
        assert wrong.headers["allow"] == "POST"

    def test_a_large_body_is_refused_whether_or_not_it_says_so(self, server: ApiServer) -> None:
        assert self.error(server.chat("x" * 20_000), 413)["code"] == "body_too_large"

        def pieces() -> Iterator[bytes]:
            for _ in range(30):
                yield b"x" * 1000

        chunked = server.http.post(
            "/v1/completions", content=pieces(), headers={"content-type": "application/json"}
        )
        assert self.error(chunked, 413)["code"] == "body_too_large"
        assert server.chat("x" * 19_000).status_code == 200

    def test_more_prompts_than_can_ever_be_in_flight(self, server: ApiServer) -> None:
        assert "at most 8" in self.error(server.complete(["x"] * 9), 400)["message"]

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"GET /live HTTP/1.1\r\nX: " + b"x" * 200_000,
            b"GET /live HTTP/1.1\r\n" + b"X: y\r\n" * 40_000,
            b"GET /" + b"x" * 200_000,
            b"\x00\x01\x02\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ],
    )
    def test_what_is_no_http_is_refused(self, server: ApiServer, request_bytes: bytes) -> None:
        answer = raw(server, request_bytes)
        assert answer.startswith(b"HTTP/1.1 400") or answer == b""
        assert server.http.get("/live").status_code == 200

    def test_an_offer_to_upgrade_does_not_cost_the_body(self, server: ApiServer) -> None:
        body = json.dumps({"model": MODEL, "prompt": "a|b"}).encode()
        answer = raw(
            server,
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABk\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
            + b"GET /live HTTP/1.1\r\nConnection: close\r\n\r\n",
        )
        assert answer.startswith(b"HTTP/1.1 200") and b'"text":"ab"' in answer


class TestDisconnect:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("prompt", ["<hang>", "a|b|<hang>"])
    def test_a_client_that_leaves_aborts(self, server: ApiServer, stream: bool, prompt: str) -> None:
        before = len(server.workers.requests)
        body = json.dumps({"model": MODEL, "messages": user(prompt), "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            wait_until(lambda: len(server.workers.requests) > before)
            if stream and prompt != "<hang>":
                assert b"200 OK" in connection.recv(100)
        uid = server.workers.last().uid
        wait_until(lambda: uid in server.workers.aborted)
        wait_until(lambda: not server.frontend._open)

    def test_closing_the_clients_stream_aborts(self, server: ApiServer) -> None:
        stream = server.openai.chat.completions.create(model=MODEL, messages=user("a|<hang>"), stream=True)
        next(iter(stream))
        stream.close()
        uid = server.workers.last().uid
        wait_until(lambda: uid in server.workers.aborted)

    def test_an_answered_request_is_not_aborted(self, server: ApiServer) -> None:
        server.chat("a|b", stream=True)
        server.chat("a|b")
        first, second = server.workers.requests[-2:]
        server.complete("later")
        assert not {first.uid, second.uid} & set(server.workers.aborted)

    def test_a_request_and_its_abort_take_one_tokenizer(self, server: ApiServer) -> None:
        server.complete(["a", "b", "c", "d"])
        assert set(server.workers.tokenizer_of.values()) == {0, 1}
        for uid, tokenizer in server.workers.tokenizer_of.items():
            assert tokenizer == uid % 2


class TestLimits:
    def test_a_full_queue_is_429_until_a_place_is_free(self) -> None:
        with api_server(max_queued_requests=1) as server, ThreadPoolExecutor() as pool:
            most = LIMITS.max_running_requests + 1
            hanging = [pool.submit(server.complete, "<hang>") for _ in range(most)]
            wait_until(lambda: len(server.workers.requests) == most)
            refused = server.complete("x")
            assert TestErrors.error(refused, 429)["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) > 0
            assert server.complete(["x"] * 2).status_code == 429
            for request in server.workers.requests[:most]:
                server.workers.send(one_token(request.uid, "done", "stop"))
            assert {future.result().json()["choices"][0]["text"] for future in hanging} == {"done"}
            assert server.complete("x").status_code == 200

    def test_frames_of_requests_that_are_gone_are_ignored(self, server: ApiServer) -> None:
        gone = server.workers.last().uid
        server.workers.send(one_token(gone, "x", ""))
        assert server.complete("a").json()["choices"][0]["text"] == "a"


class TestCommon:
    def test_request_ids_are_honoured_and_returned(self, server: ApiServer) -> None:
        assert server.http.get("/live", headers={"x-request-id": "my-id.1"}).headers["x-request-id"] == "my-id.1"
        odd = server.http.get("/live", headers={"x-request-id": "no spaces"}).headers["x-request-id"]
        assert odd != "no spaces" and len(odd) == 32

    def test_the_key_guards_all_but_probes_and_metrics(self) -> None:
        with api_server(api_key="sesame") as server:
            for path in ("/live", "/ready", "/health", "/metrics"):
                assert server.http.get(path).status_code == 200
            for headers in (
                {},
                {"authorization": "Bearer no"},
                {"authorization": "sesame"},
                {"authorization": "é"},
            ):
                encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
                for path in ("/v1/models", "/no/such/path", "/openapi.json"):
                    response = server.http.get(path, headers=encoded)
                    assert TestErrors.error(response, 401)["code"] == "invalid_api_key"
            assert server.http.get("/v1/models", headers={"authorization": "bearer sesame"}).status_code == 200
            with pytest.raises(openai.AuthenticationError):
                server.openai.models.list()
            assert list(server.openai.with_options(api_key="sesame").models.list())

    def test_not_ready_says_what_is_missing(self) -> None:
        with api_server(ready=False) as server:
            assert server.http.get("/live").status_code == 200
            missing = TestErrors.error(server.http.get("/ready"), 503)["message"]
            assert missing == "loading: waiting for scheduler-0, tokenizer-0, tokenizer-1, detokenizer"
            assert TestErrors.error(server.chat("x"), 503)["code"] == "not_ready"
            for process in ("tokenizer-0", "tokenizer-1", "detokenizer"):
                server.workers.send(Heartbeat(process=process))
            wait_until(lambda: "tokenizer" not in server.http.get("/health").text)
            assert server.http.get("/health").json()["error"]["message"] == "loading: waiting for scheduler-0"
            server.workers.send(Heartbeat(process="scheduler-0"))
            server.workers.send(SchedulerReady(limits=LIMITS, phases={}))
            wait_until(lambda: server.http.get("/ready").status_code == 200)
            assert server.http.head("/ready").status_code == 200
            assert server.chat("x").status_code == 200

    def test_openapi_describes_the_bodies(self, server: ApiServer) -> None:
        schema = server.http.get("/openapi.json").json()
        body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
        known = schema["components"]["schemas"]
        assert {"messages", "temperature"} <= set(known["ChatRequest"]["properties"])
        prompt, stop = (known["CompletionRequest"]["properties"][name]["anyOf"] for name in ("prompt", "stop"))
        assert {form["type"] for form in prompt} == {"string", "array"} and len(prompt) == 4
        assert {form["type"] for form in stop} == {"string", "array", "null"}
        for path in schema["paths"].values():
            for operation in path.values():
                assert operation["responses"].keys() == {"200", "default"}
        references = json.dumps(schema).split("#/components/schemas/")[1:]
        assert {reference.partition('"')[0] for reference in references} <= set(known)


class TestMetrics:
    @staticmethod
    def read(server: ApiServer) -> dict[str, float]:
        response = server.http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in response.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def test_names_and_counts(self) -> None:
        with api_server() as server:
            model = f'{{model_name="{MODEL}"}}'
            server.complete("a|b")
            server.chat("a|b|c", stream=True)
            metrics = self.read(server)
            assert metrics[f"sglang:prompt_tokens_total{model}"] == 2 * PROMPT_TOKENS
            assert metrics[f"sglang:generation_tokens_total{model}"] == 3 + 4
            assert metrics[f"sglang:time_to_first_token_seconds_count{model}"] == 2
            assert metrics[f"sglang:inter_token_latency_seconds_count{model}"] == 2 + 3
            assert metrics[f"sglang:e2e_request_latency_seconds_count{model}"] == 2
            assert metrics[f'minisgl:start_seconds{{model_name="{MODEL}",phase="weights"}}'] == 1.5
            assert 0 <= metrics[f'minisgl:start_seconds{{model_name="{MODEL}",phase="tokenizers"}}'] < 60
            server.workers.send(
                SchedulerStats(
                    running=3,
                    queued=2,
                    used_pages=16,
                    cached_pages=8,
                    total_pages=64,
                    prompt_tokens=100,
                    cached_tokens=25,
                    retractions=4,
                    evicted_pages=5,
                )
            )
            wait_until(lambda: self.read(server)[f"sglang:num_running_reqs{model}"] == 3)
            metrics = self.read(server)
            for name, value in {
                "sglang:num_queue_reqs": 2,
                "sglang:token_usage": 0.25,
                "sglang:cache_hit_rate": 0.25,
                "minisgl:used_pages": 16,
                "minisgl:cached_pages": 8,
                "minisgl:total_pages": 64,
                "minisgl:retractions_total": 4,
                "minisgl:evicted_pages_total": 5,
                "minisgl:aborted_requests_total": 0,
            }.items():
                assert metrics[f"{name}{model}"] == value, name
            assert not [name for name in metrics if "_created" in name]

    def test_an_abort_is_counted(self) -> None:
        with api_server() as server:
            stream = server.openai.completions.create(model=MODEL, prompt="a|<hang>", stream=True)
            next(iter(stream))
            stream.close()
            wait_until(lambda: self.read(server)[f'minisgl:aborted_requests_total{{model_name="{MODEL}"}}'] == 1)
