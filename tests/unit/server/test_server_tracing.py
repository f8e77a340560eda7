"""Spans as a collector gets them: real sockets, real protobuf."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from minisgl.server import tracing
from support.api_server import MODEL, ApiServer, api_server
from support.fake_workers import CACHED_TOKENS, PROMPT_TOKENS, wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ERROR = 2


class Collector:
    """An OTLP/HTTP collector that keeps the bodies it gets."""

    def __init__(self) -> None:
        bodies = self._bodies = list[bytes]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self) -> list[tuple[Any, dict[str, Any]]]:
        """Every span that has come, with its attributes and its resource's."""
        found = []
        for body in self._bodies:
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _attributes(part.resource.attributes)
                for scope in part.scope_spans:
                    found += [(span, _attributes(span.attributes) | resource) for span in scope.spans]
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _attributes(pairs: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return (
            [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
        )

    return {pair.key: plain(pair.value) for pair in pairs}


class Traced:
    def __init__(self, server: ApiServer, collector: Collector) -> None:
        self.server = server
        self.collector = collector

    def span(self, request_id: str) -> tuple[Any, dict[str, Any]]:
        """The one span of a request, once it has come."""

        def mine() -> list[tuple[Any, dict[str, Any]]]:
            return [found for found in self.collector.spans() if found[1].get("gen_ai.request.id") == request_id]

        wait_until(lambda: bool(mine()))
        (found,) = mine()
        return found


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    collector = Collector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        with api_server(api_key="k", otlp_traces_endpoint=collector.url, max_queued_requests=0) as server:
            server.http.headers["authorization"] = "Bearer k"
            yield Traced(server, collector)
    collector.close()


def test_an_answer(traced: Traced) -> None:
    before = time.time_ns()
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Par|is"}],
        "temperature": 0.5,
        "max_tokens": 9,
    }
    headers = {"x-request-id": "one", "traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
    traced.server.http.post("/v1/chat/completions", json=body | {"stream": True}, headers=headers)
    span, attributes = traced.span("one")
    assert (span.name, span.kind, span.status.code) == (f"chat {MODEL}", span.SPAN_KIND_SERVER, 0)
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "a=b")
    assert before <= span.start_time_unix_nano + 10**6 and span.start_time_unix_nano < span.end_time_unix_nano
    ttft, whole = (attributes.pop(f"gen_ai.latency.{name}") for name in ("time_to_first_token", "e2e"))
    assert 0 < ttft <= whole <= 10
    assert attributes.pop("gen_ai.response.time_to_first_chunk") == ttft
    assert {name: value for name, value in attributes.items() if not name.startswith("telemetry.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "minisgl",
        "gen_ai.request.id": "one",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": True,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": PROMPT_TOKENS,
        "gen_ai.usage.cache_read.input_tokens": CACHED_TOKENS,
        "gen_ai.usage.output_tokens": 3,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "client.address": "127.0.0.1",
        "service.name": "minisgl",
        "deployment.environment.name": "test",
        **(
            {"service.instance.id": attributes["service.instance.id"]}
            if "service.instance.id" in attributes
            else {}
        ),
    }


def test_without_a_parent_it_is_a_trace_of_its_own(traced: Traced) -> None:
    headers = {"x-request-id": "alone", "traceparent": "nonsense"}
    traced.server.http.post("/v1/completions", json={"model": MODEL, "prompt": ["a", "b"]}, headers=headers)
    span, attributes = traced.span("alone")
    assert (span.name, span.parent_span_id) == (f"text_completion {MODEL}", b"")
    assert attributes["gen_ai.response.finish_reasons"] == ["stop", "stop"]


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"prompt": "a", "what": 1}, 400, "unknown_parameter"),
        ({"prompt": "<reject>"}, 400, "context_length_exceeded"),
        ({"prompt": "<crash>"}, 500, "internal_error"),
        ({"prompt": "a", "model": "other"}, 404, "model_not_found"),
    ],
)
def test_an_error_sets_the_status(traced: Traced, fields: dict[str, Any], status: int, error: str) -> None:
    answer = traced.server.http.post("/v1/completions", json={"model": MODEL} | fields)
    span, attributes = traced.span(answer.headers["x-request-id"])
    assert (span.status.code, attributes["error.type"]) == (ERROR, error)
    assert attributes["http.response.status_code"] == answer.status_code == status


def test_a_stream_that_breaks_is_an_error_and_a_client_that_leaves_is_none(traced: Traced) -> None:
    body = {"model": MODEL, "prompt": "a|<abort>", "stream": True}
    traced.server.http.post("/v1/completions", json=body, headers={"x-request-id": "broken"})
    span, attributes = traced.span("broken")
    assert (span.status.code, attributes["error.type"]) == (ERROR, "internal_error")
    assert attributes["http.response.status_code"] == 200

    body["prompt"] = "a|<hang>"
    headers = {"x-request-id": "left"}
    with traced.server.http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        next(answer.iter_lines())
    span, attributes = traced.span("left")
    assert (span.status.code, attributes["error.type"]) == (0, "client_disconnected")
    assert attributes["gen_ai.response.finish_reasons"] == ["abort"]


def test_others_leave_no_span(traced: Traced) -> None:
    for path in ("/live", "/v1/models", "/metrics", "/page/state"):
        traced.server.http.get(path)
    traced.server.http.post("/v1/completions", json={}, headers={"authorization": "Bearer x", "x-request-id": "x"})
    traced.server.http.post("/v1/completions", json={"model": MODEL, "prompt": "a"}, headers={"x-request-id": "z"})
    traced.span("z")  # they come in order
    spans = traced.collector.spans()
    assert "x" not in {attributes["gen_ai.request.id"] for _, attributes in spans}
    assert {span.name for span, _ in spans} <= {f"chat {MODEL}", f"text_completion {MODEL}"}


def test_a_collector_that_is_away_delays_nothing_but_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.2)
    with api_server(otlp_traces_endpoint="http://127.0.0.1:9/v1/traces") as server:
        began = time.monotonic()
        assert server.chat("Par|is").status_code == 200
        assert time.monotonic() - began < 2
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 2


def test_untraced_nothing_is_imported() -> None:
    modules = "opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf", "minisgl.server.tracing"
    code = f"import sys, minisgl.server.api_process; print(set({modules}) & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown == "set()\n"
