"""The endpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

import minisgl
from minisgl.server.answer import Answer
from minisgl.server.body import read_request
from minisgl.server.config import ServerConfig
from minisgl.server.errors import ApiError, internal, unavailable, unknown_model
from minisgl.server.exchange import EXCHANGE, Observer, log_exchange
from minisgl.server.frontend import Frontend
from minisgl.server.metrics import CONTENT_TYPE, Metrics
from minisgl.server.middleware import REQUEST_ID, Common
from minisgl.server.openai_output import ChatReply, CompletionReply, Reply
from minisgl.server.openai_types import ChatRequest, CompletionRequest
from minisgl.server.openapi import body_of, describe
from minisgl.server.page import add_page
from minisgl.server.tokenize import DetokenizeBody, TokenizeBody, detokenize, tokenize

JSON, EVENTS = "application/json", "text/event-stream"
Tokenizing = TypeVar("Tokenizing", TokenizeBody, DetokenizeBody)


def create_app(
    config: ServerConfig, frontend: Frontend, metrics: Metrics, observers: Sequence[Observer] = ()
) -> FastAPI:
    """The ASGI application over `frontend`. `observers` are told of every request, and so is the log."""
    app = FastAPI(
        title="MiniSGLang", version=minisgl.__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(
        Common,
        api_key=config.api_key,
        readiness=frontend.readiness,
        observers=(log_exchange, *observers),
    )
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)
    _add_probes(app, frontend, metrics)
    _add_models(app, config, frontend)
    _add_tokenizing(app, config, frontend)
    _add_generation(app, config, frontend)
    describe(app, [ChatRequest, CompletionRequest, TokenizeBody, DetokenizeBody], config.served_model_name)
    if config.page:
        add_page(app, config, frontend, metrics)
    return app


def _add_probes(app: FastAPI, frontend: Frontend, metrics: Metrics) -> None:
    async def live() -> dict[str, str]:
        """The process is up."""
        return {"status": "live"}

    async def ready() -> dict[str, str]:
        """Every process serves, and the worker wants new requests; 503 with the reason otherwise."""
        reason = frontend.readiness.reason()
        if reason is not None:
            raise unavailable(reason, code="not_ready")
        return {"status": "ready"}

    for path, probe in (("/live", live), ("/ready", ready), ("/health", ready)):
        app.get(path, operation_id=path[1:])(probe)
        app.head(path, include_in_schema=False)(probe)  # some load balancers ask so

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses=text)
    async def scrape() -> Response:
        """Prometheus' text format."""
        return Response(metrics.page(), headers={"content-type": CONTENT_TYPE})


def _add_models(app: FastAPI, config: ServerConfig, frontend: Frontend) -> None:
    created = int(time.time())

    def card() -> dict[str, Any]:
        limits = frontend.readiness.limits
        return {
            "id": config.served_model_name,
            "object": "model",
            "created": created,
            "owned_by": "minisgl",
            "root": config.model or config.served_model_name,
            "parent": None,
            "max_model_len": None if limits is None else limits.max_seq_len,
        }

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{model:path}")
    async def get_model(model: str) -> dict[str, Any]:
        """The served model; 404 for any other name."""
        _check_model(model, config)
        return card()


def _add_tokenizing(app: FastAPI, config: ServerConfig, frontend: Frontend) -> None:
    async def read(request: Request, kind: type[Tokenizing]) -> Tokenizing:
        body = await read_request(request, kind, config.max_body_size)
        if body.model is not None:
            _check_model(body.model, config)
        return body

    @app.post("/tokenize", operation_id="tokenize", openapi_extra=body_of(TokenizeBody, JSON))
    async def _(request: Request) -> Response:
        """The tokens of a text, or of a chat as the model's template writes it."""
        return await tokenize(await read(request, TokenizeBody), frontend)

    @app.post("/detokenize", operation_id="detokenize", openapi_extra=body_of(DetokenizeBody, JSON))
    async def _(request: Request) -> Response:
        """The text of tokens."""
        return await detokenize(await read(request, DetokenizeBody), frontend)


def _add_generation(app: FastAPI, config: ServerConfig, frontend: Frontend) -> None:
    def answer(request: Request, body: ChatRequest | CompletionRequest, reply: Reply) -> Answer:
        _check_model(body.model, config)
        request.scope[EXCHANGE].body = body
        params = body.params(config.sampling, config.dialect)
        return Answer(
            frontend,
            lambda: frontend.start(
                request.scope[REQUEST_ID], body.prompts(), params, body.user, copies=body.copies
            ),
            reply,
            stream=bool(body.stream),
        )

    @app.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest, JSON, EVENTS))
    async def chat_completions(request: Request) -> Response:
        """Answer a chat, whole or as server-sent events."""
        body = await read_request(request, ChatRequest, config.max_body_size)
        return answer(request, body, ChatReply(config.served_model_name, body, config.dialect))

    @app.post("/v1/completions", openapi_extra=body_of(CompletionRequest, JSON, EVENTS))
    async def completions(request: Request) -> Response:
        """Go on with one or several prompts, whole or as server-sent events."""
        body = await read_request(request, CompletionRequest, config.max_body_size)
        return answer(request, body, CompletionReply(config.served_model_name, body))


def _check_model(name: str, config: ServerConfig) -> None:
    if name != config.served_model_name:
        raise unknown_model(name, config.served_model_name)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    request.scope[EXCHANGE].error = error
    return error.response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """The router's own: no such path, no such method on it."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = str(error.detail).lower().replace(" ", "_")
    headers = dict(error.headers) if error.headers else None
    return await _on_api_error(request, ApiError(error.status_code, message, code=code, headers=headers))


async def _on_failure(_request: Request, _error: Exception) -> Response:
    return internal().response()  # the error itself is raised on, and logged by uvicorn
