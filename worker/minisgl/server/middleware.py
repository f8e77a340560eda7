"""What every HTTP exchange has in common: a request id, a key if there is one, and who is told of its end."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minisgl.server.errors import wrong_key
from minisgl.server.exchange import EXCHANGE, OPEN_PATHS, Exchange, Observer
from minisgl.server.readiness import Phase, Readiness

REQUEST_ID = "minisgl.request_id"
"""Where a request's scope holds its id."""

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Common:
    """ASGI middleware: returns ``x-request-id``, asks for the key, closes connections while draining."""

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, readiness: Readiness, observers: Sequence[Observer] = ()
    ) -> None:
        self._app = app
        self._observers = observers
        self._key = None if api_key is None else api_key.encode()
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = scope[REQUEST_ID] = given if _GOOD_ID.fullmatch(given) else secrets.token_hex(16)
        exchange = scope[EXCHANGE] = Exchange(scope, request_id)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                marked = MutableHeaders(scope=message)
                marked["x-request-id"] = request_id
                if self._readiness.phase is not Phase.SERVING:
                    marked["connection"] = "close"  # so that the client's next request may reach another server
            await send(message)

        allowed = self._key is None or scope["path"] in OPEN_PATHS or self._has_key(headers)
        try:
            await (self._app if allowed else wrong_key().response())(scope, receive, send_marked)
        except Exception:
            exchange.status = 500  # the answer to it is written further out
            raise
        finally:
            for observe in self._observers:
                observe(exchange)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._key or b"")
        return right and scheme.lower() == "bearer"
