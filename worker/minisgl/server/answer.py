"""Runs one request from its start to the last byte of the answer, or until the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minisgl.server.errors import ApiError, internal
from minisgl.server.exchange import EXCHANGE, Exchange
from minisgl.server.frontend import Frontend
from minisgl.server.generation import Generation
from minisgl.server.openai_output import Reply

logger = logging.getLogger("minisgl.server")

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the tokens back
]


class Answer(Response):
    """The response of a generating endpoint.

    Until the first byte it fails as an `ApiError` with a status of its own; a stream that has begun fails with an
    error event in it. A client that disconnects aborts the request, wherever it is.
    """

    def __init__(self, frontend: Frontend, begin: Callable[[], Generation], reply: Reply, *, stream: bool) -> None:
        super().__init__()
        self._frontend = frontend
        self._begin = begin
        self._reply = reply
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        generation = exchange.generation = self._begin()
        outcome = "client disconnected"
        respond = self._send_stream if self._stream else self._send_whole
        work = asyncio.create_task(respond(generation, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                outcome = _outcome(generation) or "failed"
                work.result()
        finally:
            work.cancel()
            gone.cancel()
            self._frontend.close(generation)
            exchange.outcome = outcome

    async def _send_whole(self, generation: Generation, send: Send) -> None:
        await generation.complete()
        body = msgspec.json.encode(self._reply.whole(generation))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(self, generation: Generation, send: Send) -> None:
        await generation.accepted()
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        try:
            await _write(send, self._reply.opening(generation))
            unfinished = len(generation.choices)
            while unfinished:
                choice = await generation.changed()
                unfinished -= choice.finish_reason != ""
                await _write(send, self._reply.news(choice))
            await _write(send, self._reply.closing(generation))
            last = b"data: [DONE]\n\n"
        except ApiError as error:
            last = _event(error.body())
        except Exception:
            logger.exception("request %s failed", generation.request_id)
            last = _event(internal().body())
        await send({"type": "http.response.body", "body": last})


async def _write(send: Send, chunks: Iterable[dict[str, Any]]) -> None:
    body = b"".join(map(_event, chunks))
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _outcome(generation: Generation) -> str:
    if generation.error is not None:
        return f"{generation.error.status} {generation.error.code or generation.error.kind}"
    return ",".join(choice.finish_reason for choice in generation.choices)
