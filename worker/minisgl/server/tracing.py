"""OpenTelemetry: a span of each generating request, sent to a collector in the background.

A span is made when its request has ended, of what the exchange knows by then, so that nothing is traced on the way
of a token. Attributes are those of the semantic conventions for generative AI; `gen_ai.latency.*` are vLLM's.
The usual OTEL_* variables add to it: the sampler, the service's name and resource, headers for the collector.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

import minisgl
from minisgl.server.exchange import CLIENT_LEFT, Exchange

if TYPE_CHECKING:
    from minisgl.server.generation import Generation

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
"""`gen_ai.operation.name` by the endpoint."""
FLUSH_SECONDS = 3.0
"""How long the last spans may take when the server ends: the collector may be gone."""

Value = str | int | float | bool | list[str]


class Tracing:
    """Observes exchanges."""

    def __init__(self, endpoint: str, model: str) -> None:
        self._model = model
        named = "OTEL_SERVICE_NAME" in os.environ
        self._provider = TracerProvider(
            resource=Resource.create({} if named else {"service.name": "minisgl"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("minisgl", minisgl.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, exchange: Exchange) -> None:
        """Make the span of a generating request; strangers without the key get none."""
        operation = OPERATIONS.get(exchange.scope["path"])
        if operation is None or exchange.scope["method"] != "POST" or exchange.status == 401:
            return
        end = time.time_ns()
        start = end - round((time.perf_counter() - exchange.arrived_at) * 1e9)
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=self._propagator.extract(Headers(scope=exchange.scope)),
            kind=SpanKind.SERVER,
            start_time=start,
            attributes={"gen_ai.operation.name": operation, **self._attributes(exchange)},
        )
        error = _error(exchange)
        if error is not None:
            span.set_attribute("error.type", error)
            if exchange.status != CLIENT_LEFT and error != "client_disconnected":
                span.set_status(Status(StatusCode.ERROR, exchange.outcome or error))
        span.end(end_time=end)

    def end(self) -> None:
        """Send what is left, if the collector takes it in time."""
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)

    def _attributes(self, exchange: Exchange) -> dict[str, Value]:
        attributes: dict[str, Value | None] = {
            "gen_ai.provider.name": "minisgl",
            "gen_ai.request.model": self._model,
            "gen_ai.request.id": exchange.request_id,
            "http.request.method": exchange.scope["method"],
            "http.response.status_code": exchange.status,
            "url.path": exchange.path,
            "client.address": exchange.client,
        }
        if exchange.body is not None:
            body = exchange.body
            attributes |= {
                "gen_ai.request.max_tokens": getattr(body, "max_completion_tokens", None) or body.max_tokens,
                "gen_ai.request.temperature": body.temperature,
                "gen_ai.request.top_p": body.top_p,
                "gen_ai.request.top_k": body.top_k,
                "gen_ai.request.seed": body.seed,
                "gen_ai.request.stream": bool(body.stream),
            }
        if exchange.generation is not None:
            attributes |= self._answer(exchange.generation)
        return {name: value for name, value in attributes.items() if value is not None}

    def _answer(self, generation: Generation) -> dict[str, Value | None]:
        first, choices = generation.first_token_at, generation.choices
        ttft = None if first is None else first - generation.arrived_at
        return {
            "gen_ai.response.model": self._model,
            "gen_ai.response.finish_reasons": [choice.finish_reason or "abort" for choice in choices],
            "gen_ai.response.time_to_first_chunk": ttft,
            "gen_ai.usage.input_tokens": generation.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": generation.cached_tokens,
            "gen_ai.usage.output_tokens": generation.generated,
            "gen_ai.latency.time_to_first_token": ttft,
            "gen_ai.latency.e2e": time.perf_counter() - generation.arrived_at,
        }


def _error(exchange: Exchange) -> str | None:
    """What kept the client from a whole answer, in a word. None: nothing did."""
    generation = exchange.generation
    error = exchange.error if generation is None or generation.error is None else generation.error
    if error is not None:
        return error.code or error.kind
    if exchange.status >= 400 and exchange.status != CLIENT_LEFT:
        return str(exchange.status)
    unfinished = generation is None or not generation.finished
    return "client_disconnected" if unfinished else None
